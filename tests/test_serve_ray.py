"""A server as replicas on a local Ray cluster: one is killed under load, and others' applications stay.

One cluster and one server for most of it. About 35 s, most of which is Ray's.
"""

from __future__ import annotations

import asyncio
import builtins
import concurrent.futures
import os
import shutil
import signal
import socket
import sys
import threading
import time
from dataclasses import replace

import artifacts
import httpx
import psutil
import pytest

from vitrail.cli import main
from vitrail.predict import load
from vitrail.serve import scale
from vitrail.serve.keys import new_key
from vitrail.serve.nodes import Setup, refusal
from vitrail.serve.settings import Served, Settings
from vitrail.version import __version__

pytest.importorskip("fastapi", reason="needs the extra serve")
pytest.importorskip("ray.serve", reason="needs the extra ray")

from serving import Server, slow_photo

from vitrail.serve import ray as on_cluster
from vitrail.serve import replica
from vitrail.serve.replica import TOLD, Hosted

pytestmark = [pytest.mark.slow, pytest.mark.alone]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    return artifacts.make_artifact(tmp_path_factory.mktemp("classify"))


@pytest.fixture(scope="module")
def photos(artifact):
    return [photo.read_bytes() for photo in artifact.photos]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Also marks this test's replicas among the machine's processes."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def cluster(cache):
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VITRAIL_CACHE", str(cache))  # its processes hand it down
        found = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    yield found
    found.shutdown()


@pytest.fixture(scope="module")
def key(tmp_path_factory):
    """A key, and the file with its line."""
    text, line = new_key("alice")
    file = tmp_path_factory.mktemp("keys") / "keys.txt"
    file.write_text(line + "\n", "utf-8")
    return text, file


def free_port() -> int:
    """Of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def server(cluster, artifact, cache, key):
    asked = ("--ray", cluster.address, "--replicas", 2, "--threads", 1, "--max-queue", 4, "--max-batch", 1)
    with Server(artifact.path, *asked, "--api-keys", key[1], cache=cache, port=free_port()) as found:
        found.client.headers["x-api-key"] = key[0]
        yield found
        if found.process.poll() is None:
            found.terminate()


@pytest.fixture
def driver(cluster):
    """This process as a driver of its own."""
    import ray

    ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
    yield ray
    ray.shutdown()


def processes(cache) -> list[psutil.Process]:
    """The replicas' processes."""
    found = []
    for process in psutil.process_iter(["name", "cmdline"]):
        if "ServeReplica" in " ".join(process.info["cmdline"] or ()):
            environment = process.environ()
            found += [process] * (environment.get("VITRAIL_CACHE") == str(cache))
    return found


def replicas(server, seconds: float) -> set[str]:
    """Names of the replicas that answer, once there are two."""
    names: set[str] = set()
    end = time.monotonic() + seconds
    while len(names) < 2:
        assert time.monotonic() < end, f"only {names} answer"
        answer = server.client.get("/v1/models")
        if answer.status_code == 200:
            names.add(answer.json()["replica"])
        time.sleep(0.02)
    return names


# --- on the cluster -----------------------------------------------------------------------------------


def test_answers_are_those_of_predict_and_the_door_is_the_same(server, artifact, photos):
    with load(artifact.path, batch_size=1) as model:
        expected = model.predict(photos, top=3)
    files = [("image", (str(i), data)) for i, data in enumerate(photos)]
    answer = server.client.post("/v1/classify?top=3", files=files, headers={"x-request-id": "mine"})
    assert [
        [(one["label"], one["probability"]) for one in result["labels"]]
        for result in answer.json()["results"]
    ] == [[(one.label, one.probability) for one in prediction.top] for prediction in expected]
    assert answer.headers.get_list("x-request-id") == ["mine"]
    assert answer.json()["request_id"] == "mine"
    stranger = httpx.post(f"{server.url}/v1/classify", content=photos[0])
    assert (stranger.status_code, stranger.json()["error"]["code"]) == (401, "unauthorised")
    assert len(stranger.headers.get_list("x-request-id")) == 1
    late = server.post("/v1/classify", photos[0], x_deadline_ms="0")
    assert (late.status_code, late.json()["error"]["code"]) == (400, "bad_request")
    large = server.client.post("/v1/classify", files=[("image", photos[0])] * 5)
    assert (large.status_code, large.json()["error"]["code"]) == (413, "too_large")
    assert server.ready()
    assert 'replica="' in server.client.get("/metrics").text


def test_beyond_their_queues_the_replicas_refuse(server):
    photo = slow_photo()
    with concurrent.futures.ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(lambda _: server.post("/v1/classify", photo), range(24)))
    codes = [answer.status_code for answer in answers]
    assert set(codes) == {200, 429}
    refused = [answer for answer in answers if answer.status_code == 429]
    assert {answer.json()["error"]["code"] for answer in refused} == {"queue_full"}
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)


def test_a_replica_killed_under_load_costs_no_wrong_answer_and_is_replaced(server, cache, photos):
    expected = server.post("/v1/classify", photos[0]).json()["results"]
    before = replicas(server, 10)
    answers: list[httpx.Response] = []
    over = threading.Event()

    def load_on() -> None:
        with httpx.Client(base_url=server.url, headers=server.client.headers, timeout=60) as client:
            while not over.is_set():
                answers.append(client.post("/v1/classify", content=photos[0]))

    clients = [threading.Thread(target=load_on) for _ in range(4)]
    for client in clients:
        client.start()
    try:
        time.sleep(1.0)
        running = processes(cache)
        assert len(running) == 2
        running[0].send_signal(signal.SIGKILL)
        begin = time.monotonic()
        after = replicas_after(server, before, 60)
        took = time.monotonic() - begin
    finally:
        over.set()
        for client in clients:
            client.join()
    failed = [answer for answer in answers if answer.status_code != 200]
    print(f"{len(answers)} requests, {len(failed)} failed; two replicas again after {took:.1f} s")
    assert len(after & before) == 1
    assert all(answer.json()["results"] == expected for answer in answers if answer.status_code == 200)
    assert {answer.status_code for answer in failed} <= {429, 500, 503}
    assert len(failed) <= len(clients)  # what the dead one had in hand


def replicas_after(server, before: set[str], seconds: float) -> set[str]:
    """Names of the two replicas once one of those before is replaced."""
    end = time.monotonic() + seconds
    seen: set[str] = set()
    while len(seen - before) < 1 or len(seen) < 2:
        assert time.monotonic() < end, f"still {seen}"
        answer = server.client.get("/v1/models")
        if answer.status_code == 200 and answer.json()["models"][0]["ready"]:
            seen.add(answer.json()["replica"])
        time.sleep(0.02)
    return seen


def test_a_second_server_and_another_port_are_refused(server, cluster, artifact, capsys, monkeypatch):
    monkeypatch.setattr(on_cluster, "CLAIM_S", 0.0)
    command = ["serve", str(artifact.path), "--ray", cluster.address]
    assert main(command) == 2
    assert "Another `vitrail serve --ray` serves on this cluster" in capsys.readouterr().err
    monkeypatch.setattr(on_cluster._Application, "_claim", lambda self: None)
    assert main([*command, "--port", "1"]) == 2
    assert "Ray Serve listens on 127.0.0.1:" in capsys.readouterr().err
    assert server.ready()


def test_at_the_end_only_its_own_application_goes(server, driver):
    from ray import serve

    @serve.deployment(ray_actor_options={"num_cpus": 0})
    class Other:
        def __call__(self) -> str:
            return "here"

    serve.run(Other.bind(), name="other", route_prefix="/other")
    assert set(serve.status().applications) == {"vitrail", "other"}
    photo = slow_photo()
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        flying = [pool.submit(server.post, "/v1/classify", photo) for _ in range(4)]
        time.sleep(0.05)
        assert server.terminate() == 0
        assert [answer.result().status_code for answer in flying] == [200] * 4
    assert set(serve.status().applications) == {"other"}
    assert httpx.get(f"{server.url}/other").text == "here"
    assert httpx.get(f"{server.url}/v1/models").status_code == 404
    assert server.log == []  # what replicas log is in Ray's files, and Ray tells nothing of its own here
    serve.shutdown()


# --- what stops it ------------------------------------------------------------------------------------


def test_another_ray_a_node_without_the_artifact_and_no_cluster_are_one_sentence(
    cluster, artifact, tmp_path, capsys, monkeypatch
):
    command = ["serve", str(artifact.path), "--ray"]
    assert main([*command, "127.0.0.1:1"]) == 2
    assert "No Ray cluster answers at 127.0.0.1:1" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr("ray._private.utils.compute_version_info", lambda: ("1.0.0", "3.0.0"))
        assert main([*command, cluster.address]) == 2
    said = capsys.readouterr().err
    assert "and this command Ray 1.0.0 on Python 3.0.0" in said
    assert said.count("\n") == 1
    assert main([*command, cluster.address, "--threads", "3"]) == 2
    assert "asks for 3 cores, and no node of the cluster has more than 2 cores" in capsys.readouterr().err
    moved = shutil.copytree(artifact.path, tmp_path / "moved")
    real = on_cluster._setup

    def setup(*arguments):
        found = real(*arguments)
        shutil.rmtree(moved)
        return found

    monkeypatch.setattr(on_cluster, "_setup", setup)
    assert main(["serve", str(moved), "--ray", cluster.address]) == 2
    assert f"{moved} does not exist on" in capsys.readouterr().err


def test_why_a_replica_does_not_start_is_one_sentence_and_nothing_stays(
    cluster, artifact, tmp_path, capsys, monkeypatch
):
    """As on a node that joins later: none was there to be asked before."""
    moved = shutil.copytree(artifact.path, tmp_path / "moved")
    monkeypatch.setattr(on_cluster._Application, "_check_nodes", lambda self: shutil.rmtree(moved))
    monkeypatch.setattr(on_cluster, "STARTS", 1)
    port = free_port()
    command = ["serve", str(moved), "--threads", "1", "--port", str(port), "--ray", cluster.address]
    assert main(command) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert f"{moved} does not exist on" in said[0]
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/-/healthz")


def test_without_ray_serve_the_line_to_install_is_said(artifact, capsys, monkeypatch):
    real = builtins.__import__
    absent = "ray"

    def without(name, globals=None, locals=None, fromlist=(), level=0):
        if level == 0 and (name == absent or (name == "ray" and absent in (fromlist or ()))):
            raise ImportError(name)
        return real(name, globals, locals, fromlist, level)

    monkeypatch.setattr(builtins, "__import__", without)
    assert main(["serve", str(artifact.path), "--ray"]) == 2
    assert "[ray]" in capsys.readouterr().err
    absent = "serve"
    assert main(["serve", str(artifact.path), "--ray"]) == 2
    said = capsys.readouterr().err
    assert "Ray Serve" in said
    assert "[serve,ray]" in said


# --- without a cluster --------------------------------------------------------------------------------


def setup_of(artifact, **settings) -> Setup:
    return Setup(
        vitrail=__version__,
        models=(Served(name="tiny", path=artifact.path),),
        digests={artifact.path: artifact.digest},
        settings=Settings(threads=1, max_batch=1, access_log=False, **settings),
        keys=None,
    )


def test_a_node_is_refused_for_what_it_lacks(artifact, tmp_path):
    setup = setup_of(artifact)
    assert refusal(setup) is None
    assert "install the same" in str(refusal(replace(setup, vitrail="0.0.0")))
    assert "is another artifact on" in str(refusal(replace(setup, digests={artifact.path: "0" * 64})))
    assert "does not exist on" in str(refusal(replace(setup, digests={tmp_path / "none": "0" * 64})))


def test_health_is_readiness_and_tells_why_a_replica_does_not_start(artifact, monkeypatch, tmp_path):
    monkeypatch.setattr(replica, "_name", lambda: "r1")
    monkeypatch.setenv("VITRAIL_CACHE", str(tmp_path))

    async def live(hosted: Hosted, then) -> None:
        told: asyncio.Queue = asyncio.Queue()
        told.put_nowait({"type": "lifespan.startup"})
        said: asyncio.Queue = asyncio.Queue()
        task = asyncio.ensure_future(hosted({"type": "lifespan"}, told.get, said.put))
        assert (await said.get())["type"] == "lifespan.startup.complete"
        await then(hosted)
        told.put_nowait({"type": "lifespan.shutdown"})
        await task

    async def dies(hosted: Hosted) -> None:
        await hosted.check()
        os.kill(hosted._site.models["tiny"].live.pid, signal.SIGKILL)
        await hosted._site.models["tiny"].live.ended.wait()
        with pytest.raises(RuntimeError, match=f"{TOLD}tiny: (its process ended|it is being loaded)"):
            await hosted.check()

    async def never_starts(hosted: Hosted) -> None:
        with pytest.raises(RuntimeError, match=f"{TOLD}.* is another artifact on"):
            await hosted.check()

    asyncio.run(live(Hosted(setup_of(artifact)), dies))
    wrong = replace(setup_of(artifact), digests={artifact.path: "0" * 64})
    asyncio.run(live(Hosted(wrong), never_starts))


def test_what_ray_is_told_of_replicas(artifact, monkeypatch):
    def deployed(**settings):
        application = on_cluster._Application(sys.modules["ray"], serve, setup_of(artifact, **settings), 3)
        return application._deployment()

    from ray import serve

    fixed = deployed(replicas="2")
    assert fixed.num_replicas == 2
    assert fixed.ray_actor_options["num_cpus"] == 3
    assert fixed.max_ongoing_requests == Settings.max_connections
    scaled = deployed(replicas="2-8")._deployment_config.autoscaling_config
    assert (scaled.min_replicas, scaled.max_replicas, scaled.target_ongoing_requests) == (2, 8, 8)
    promised = deployed(replicas="1-2", max_latency_ms=50.0)._deployment_config.autoscaling_config
    assert promised.target_ongoing_requests == 1


def test_threads_are_the_artifacts_or_what_was_asked_for(artifact):
    assert scale.threads_of([artifact], Settings()) == 1
    assert scale.threads_of([artifact], Settings(threads=3)) == 3

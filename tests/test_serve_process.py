"""A server under load, with dead and stuck processes, on its way out, and started wrongly. About 20 s."""

from __future__ import annotations

import concurrent.futures
import importlib.util
import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import artifacts
import httpx
import pytest
from PIL import Image

from vitrail.cli import main
from vitrail.serve.keys import Keys, new_key, read_keys

pytest.importorskip("fastapi", reason="needs the extra serve")

import serving
from serving import Server

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    return artifacts.make_artifact(tmp_path_factory.mktemp("classify"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def photo(artifact):
    return artifact.photos[0].read_bytes()


@pytest.fixture(scope="module")
def slow_photo():
    return serving.slow_photo()


@pytest.fixture(scope="module")
def flat_photo():
    """A PNG of 50 KB that takes a core a tenth of a second."""
    file = io.BytesIO()
    Image.new("RGB", (4000, 4000)).save(file, "PNG")
    return file.getvalue()


def together(count, request) -> list:
    """`request(i)` for each i at the same time."""
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        return list(pool.map(request, range(count)))


def wait_for(condition, seconds: float = 10) -> None:
    """Fails where it does not come true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# --- processes ----------------------------------------------------------------------------------------


def test_a_killed_model_is_told_of_at_once_and_started_again(artifact, cache, photo, slow_photo):
    with Server(artifact.path, cache=cache) as server:
        flying = threading.Thread(target=lambda: answers.extend(together(8, post)))
        answers: list[httpx.Response] = []

        def post(_):
            return httpx.post(f"{server.url}/v1/classify", content=slow_photo, timeout=30)

        flying.start()
        while not server.models()["winner"]["queue"]["images"]:
            time.sleep(0.01)
        os.kill(server.worker(), signal.SIGKILL)
        flying.join()
        assert {answer.status_code for answer in answers} <= {200, 503}, "".join(server.said)
        refused = [answer for answer in answers if answer.status_code == 503]
        assert refused
        assert {a.json()["error"]["code"] for a in refused} <= {"worker_died", "not_ready"}
        assert all(answer.headers["retry-after"] == "1" for answer in refused)
        server.wait(True, 20)
        assert server.post("/v1/classify", photo).status_code == 200
        found = server.models()["winner"]
        assert (found["restarts"], found["queue"]["images"]) == (1, 0)
        assert server.metric("vitrail_worker_restarts_total", reason="died") == 1


HOOK = """
import os, sys, time
if "vitrail.serve.worker" in sys.orig_argv:
    from vitrail.serve import engines
    plain, place = engines.Engines.run, os.environ["ODD"]
    def run(self, inputs, size):
        outputs, seconds = plain(self, inputs, size)
        while os.path.exists(place + "/hangs"):
            time.sleep(0.02)
        sign = -1 if os.path.exists(place + "/wrong") else 1
        return {name: sign * values for name, values in outputs.items()}, seconds
    engines.Engines.run = run
"""
"""A model's process whose engine gives wrong answers, or none, while a file of this name exists."""


def test_an_engine_that_errs_or_hangs_is_found_out(artifact, cache, photo, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(HOOK)
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {"PYTHONPATH": path, "ODD": str(tmp_path)}
    options = ("--stuck", "1s", "--max-batch", 1)

    def restarts(reason: str) -> float:
        return server.metric("vitrail_worker_restarts_total", reason=reason)

    with Server(artifact.path, *options, cache=cache, env=env) as server:
        (tmp_path / "wrong").touch()
        server.wait(False, 5)
        (why,) = server.models()["winner"]["reasons"]
        assert "is not answered as recorded" in why
        refused = server.post("/v1/classify", photo)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_ready")
        assert restarts("wrong answers") == 0  # once may be chance
        wait_for(lambda: server.ready() or restarts("wrong answers") == 1)
        (tmp_path / "wrong").unlink()
        server.wait(True, 20)
        assert server.post("/v1/classify", photo).status_code == 200

        (tmp_path / "hangs").touch()
        worker = server.worker()
        answer = server.post("/v1/classify", photo)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "worker_died")
        (tmp_path / "hangs").unlink()
        server.wait(True, 20)
        assert server.worker() != worker
        assert restarts("stuck") == 1
        assert server.post("/v1/classify", photo).status_code == 200


def test_a_stuck_model_turns_readiness_red_and_is_started_again(artifact, cache, photo):
    with Server(artifact.path, "--stuck", "3s", cache=cache) as server:
        assert server.ready()
        worker = server.worker()
        os.kill(worker, signal.SIGSTOP)
        assert server.wait(False, 5) < 5
        assert server.client.get("/v2/health/live").status_code == 200
        server.wait(True, 20)
        assert server.worker() != worker
        assert server.post("/v1/classify", photo).status_code == 200
        assert server.metric("vitrail_worker_restarts_total", reason="stuck") == 1


# --- load ---------------------------------------------------------------------------------------------


def test_beyond_its_queue_a_server_refuses_and_serves_on(artifact, cache, photo, slow_photo):
    with Server(artifact.path, "--max-queue", 4, cache=cache) as server:
        answers = together(
            24, lambda _: httpx.post(f"{server.url}/v1/classify", content=slow_photo, timeout=30)
        )
        codes = [answer.status_code for answer in answers]
        assert set(codes) == {200, 429}
        assert codes.count(200) >= 4
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert refused.json()["error"]["code"] == "queue_full"
        assert int(refused.headers["retry-after"]) >= 1
        assert server.metric("vitrail_rejected_total", code="queue_full") == codes.count(429)
        files = [("image", (str(i), photo)) for i in range(5)]  # one rule for several in one request
        assert server.client.post("/v1/classify", files=files).status_code == 413
        assert server.post("/v1/classify", photo).status_code == 200


def test_with_a_promise_more_is_refused_than_the_queue_would(artifact, cache, photo, flat_photo):
    with Server(artifact.path, "--max-latency", "100ms", "--max-batch", 1, cache=cache) as server:

        def post(_=None):
            return httpx.post(f"{server.url}/v1/classify", content=flat_photo, timeout=30).status_code

        assert post() == 200  # which tells the pace
        codes = together(24, post)
        assert set(codes) == {200, 429}
        assert codes.count(429) >= 12  # of 64 places
        assert server.post("/v1/classify", photo).status_code == 200


def test_slow_clients_hold_no_place_and_are_sent_away(artifact, cache, photo):
    with Server(artifact.path, "--max-queue", 2, "--upload-timeout", "1s", cache=cache) as server:
        address = ("127.0.0.1", int(server.url.rsplit(":", 1)[1]))
        head = b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nabc"
        slow = [socket.create_connection(address) for _ in range(8)]
        for connection in slow[:4]:
            connection.sendall(head)
        slow[4].sendall(b"GET / HT")  # the others say nothing at all
        assert server.post("/v1/classify", photo).status_code == 200
        for connection in slow:
            connection.settimeout(10)
        first = slow[0].recv(1000)
        assert first.startswith(b"HTTP/1.1 408")
        assert slow[5].recv(1000) == b""
        assert slow[4].recv(1000) == b""
        for connection in slow:
            connection.close()


def test_what_a_client_that_leaves_has_asked_is_left_undone(artifact, cache, flat_photo):
    with Server(artifact.path, "--max-queue", 16, "--max-batch", 1, cache=cache) as server:
        files = [("image", (str(i), flat_photo)) for i in range(16)]
        request = httpx.Request("POST", f"{server.url}/v1/classify", files=files)
        head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
        with server.connect(f"POST /v1/classify HTTP/1.1\r\n{head}\r\n".encode() + request.read()):
            wait_for(lambda: server.models()["winner"]["queue"]["images"] == 16)
        wait_for(lambda: server.models()["winner"]["queue"]["images"] == 0)
        time.sleep(0.5)  # images are counted with the next sign of life
        assert server.metric("vitrail_images_total", model="winner") < 12


# --- leaving ------------------------------------------------------------------------------------------


def test_on_sigterm_work_in_flight_is_finished_and_the_exit_code_is_0(artifact, cache, slow_photo):
    with Server(artifact.path, cache=cache) as server:
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            flying = [
                pool.submit(httpx.post, f"{server.url}/v1/classify", content=slow_photo, timeout=30)
                for _ in range(8)
            ]
            deadline = time.monotonic() + 10
            while server.models()["winner"]["queue"]["images"] < 6 and time.monotonic() < deadline:
                time.sleep(0.005)
            taken = server.models()["winner"]["queue"]["images"]
            assert server.terminate() == 0
            done = [future.exception() or future.result().status_code for future in flying]
        assert done.count(200) >= taken  # the last ones may have found the door closed
        assert {code for code in done if isinstance(code, int)} <= {200, 503}
        with pytest.raises(httpx.ConnectError):
            httpx.get(server.url)
        assert "Traceback" not in "".join(server.said)


def test_a_rolling_restart_fails_no_request(artifact, cache, photo):
    """As a load balancer does it: requests go to whoever was ready a moment ago."""
    with Server(artifact.path, "--drain-grace", "1s", cache=cache) as old:
        ready, failures, done = [old.url], [], threading.Event()

        def send():
            with httpx.Client(timeout=10) as client:
                while not done.is_set():
                    answer = client.post(f"{ready[-1]}/v1/classify", content=photo)
                    if answer.status_code != 200:
                        failures.append(answer.text)

        senders = [threading.Thread(target=send) for _ in range(4)]
        for sender in senders:
            sender.start()
        with Server(artifact.path, cache=cache) as new:
            old.process.send_signal(signal.SIGTERM)
            while httpx.get(f"{old.url}/v2/health/ready").status_code == 200:
                time.sleep(0.02)
            time.sleep(0.2)  # a balancer asks now and then
            ready.append(new.url)
            assert old.process.wait(20) == 0
            time.sleep(0.3)
            done.set()
            for sender in senders:
                sender.join()
            assert failures == []
            assert new.metric("vitrail_requests_total", endpoint="classify", status="200") > 10


# --- starting -----------------------------------------------------------------------------------------


def test_without_keys_others_cannot_be_served_and_with_them_only_their_owners(
    artifact, cache, photo, tmp_path, capsys
):
    assert main(["serve", str(artifact.path), "--host", "0.0.0.0"]) == 2
    assert "API keys are needed" in capsys.readouterr().err
    assert main(["serve", "--new-key", "alice"]) == 0
    key, line = capsys.readouterr().out.split("\n")[:2]
    assert key not in line
    file = tmp_path / "keys"
    file.write_text(f"# for tests\n{line}\n")
    with Server(artifact.path, "--host", "0.0.0.0", "--api-keys", file, cache=cache) as server:
        server.client.base_url = server.url.replace("0.0.0.0", "127.0.0.1")
        assert server.client.get("/v2/health/ready").status_code == 200
        for wrong in ({}, {"authorization": "Bearer x"}, {"authorization": f"Bearer {key}x"}):
            answer = server.post("/v1/classify", photo, **wrong)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert server.client.get("/metrics").status_code == 401
        assert server.post("/v1/classify", photo, authorization=f"Bearer {key}").status_code == 200
        assert server.post("/v1/classify", photo, x_api_key=key).status_code == 200


def test_a_key_file_holds_hashes_only(tmp_path):
    key, line = new_key("bob")
    file = tmp_path / "keys"
    file.write_text(line)
    assert read_keys(file).owner(key) == "bob"
    assert read_keys(file).owner(key + "x") is None
    assert Keys([]).owner(key) is None
    for text in (key, "", f"{line}\n{line}", "bob md5:0"):
        file.write_text(text)
        with pytest.raises(ValueError, match=r"not a name and a hash|holds no key|twice"):
            read_keys(file)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "There is nothing to serve"),
        (["{artifact}", "{artifact}"], "would both be called winner"),
        (["a b={artifact}"], "cannot be a model's name"),
        (["/nowhere/at/all"], "does not exist: name the folder"),
        (["{artifact}", "--port", "70000"], "'70000' is not a whole number from 0 to 65535"),
        (["{artifact}", "--max-latency", "50"], "has no unit"),
        (["{artifact}", "--deadline", "5"], "write 5ms or 5s"),
        (["{artifact}", "--host", "192.0.2.7", "--api-keys", "{keys}"], "cannot be used"),
        (["{artifact}", "--api-keys", "/nowhere"], "cannot be read"),
        (["{artifact}", "--config", "{toml}"], "unknown key 'prot'. Did you mean port?"),
        (["{artifact}", "--max-queue-megapixels", "10"], "raise it, or lower"),
        (["{artifact}", "--replicas", "2"], "--replicas needs a cluster"),
        (["{artifact}", "--replicas", "8-2", "--ray"], "replicas is '8-2': give a number, or a range"),
        (["{artifact}", "--allow-activate", ".", "--ray"], "the model of one replica only"),
        (["{artifact}", "--drain-grace", "5s", "--ray"], "stops sending to a replica"),
        (["{artifact}", "--port", "0", "--ray"], "another port on each node"),
        (
            ["{artifact}", "--host", "192.0.2.7", "--port", "1", "--api-keys", "{keys}", "--ray"],
            "an address of one node",
        ),
    ],
)
def test_a_wrong_start_is_one_sentence(artifact, tmp_path, capsys, arguments, said):
    (tmp_path / "keys").write_text(new_key("a")[1])
    (tmp_path / "bad.toml").write_text("prot = 1\n")
    places = {"artifact": artifact.path, "keys": tmp_path / "keys", "toml": tmp_path / "bad.toml"}
    command = ["serve", *(argument.format(**places) for argument in arguments)]
    assert main(command if "--port" in command else [*command, "--port", "0"]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert len(err.splitlines()) == 1


def test_a_port_in_use_and_a_damaged_artifact_are_one_sentence(artifact, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = vitrail("serve", artifact.path, "--port", port)
    assert (done.returncode, done.stderr) == (
        2,
        f"vitrail: error: Port {port} of 127.0.0.1 is in use: choose another with --port.\n",
    )
    damaged = artifacts.make_artifact(tmp_path)
    (damaged.path / "labels.txt").write_text("one\n")
    done = vitrail("serve", damaged.path, "--port", 0)
    assert done.returncode == 2
    assert "labels.txt was changed" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_settings_come_from_a_file_and_torch_stays_out(artifact, cache, tmp_path):
    settings = tmp_path / "serve.toml"
    settings.write_text(
        f'artifacts = ["one={artifact.path}"]\nmax-queue = 3\ndeadline = "2s"\naccess_log = false\n'
    )
    with Server("--config", settings, "--max-queue", 5, cache=cache) as server:
        assert server.models()["one"]["queue"]["most"] == 5
        for pid in (server.process.pid, server.worker()):
            with open(f"/proc/{pid}/maps") as maps:
                assert not {"torch", "onnxruntime"} & {part for line in maps for part in line.split("/")}
        assert server.log == []


def test_the_http_process_imports_no_engine_and_nothing_that_decodes():
    code = (
        "import sys, vitrail.cli.serve, vitrail.serve.server, vitrail.serve.start;"
        "heavy = {'torch', 'openvino', 'onnxruntime', 'vitrail.predict', 'vitrail.images.decode'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def vitrail(*arguments) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vitrail", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def campaign(name: str):
    """The module of a campaign."""
    spec = importlib.util.spec_from_file_location(f"fuzz_{name}", ROOT / "fuzz" / f"{name}.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def test_a_sample_of_what_the_openapi_document_says_is_true(tmp_path):
    """`python fuzz/serve_schema.py` asks a hundred times of each."""
    pytest.importorskip("schemathesis")
    found = campaign("serve_schema").campaign(7, 3, tmp_path)
    assert found["faults"] == []
    good = {name.rsplit(" ", 1)[0] for name in found["statuses"] if name.endswith(" 200")}
    assert {"POST /v1/classify", "POST /v1/embed", "POST /v2/models/{name}/infer", "GET /metrics"} <= good


def test_a_sample_of_the_fuzzing_campaign_finds_no_fault(tmp_path):
    """`python fuzz/serve.py` does ten thousand."""
    fuzz = campaign("serve")
    found = fuzz.campaign(7, list(range(200)), tmp_path, keys=True)
    assert found["faults"] == []
    assert len({name.split()[0] for name in found["statuses"]}) == 11

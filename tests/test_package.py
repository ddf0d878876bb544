"""`vitrail package`: the command, Docker's folder, OpenVINO Model Server's; served by us (below 10 s)."""

from __future__ import annotations

import http.server
import json
import re
import shutil
import subprocess
import sys
import threading
import types
import zipfile
from pathlib import Path

import artifacts
import desk
import numpy as np
import pytest
from packages import (
    SIZE,
    config,
    exec_form,
    instructions,
    named,
    program,
    server_config,
)

import vitrail
from vitrail.cli import command_parser, main
from vitrail.errors import InputError
from vitrail.package import TARGETS, order, package
from vitrail.runtimes.openvino import core as one_core  # a second one would unload the plugin
from vitrail.store import sha256_file

SERVERS = [target for target in TARGETS if target != "phone"]
"""What serves; the rest is in test_package_phone.py."""


@pytest.fixture(scope="module")
def winner(tmp_path_factory):
    return named(tmp_path_factory.mktemp("named"))


@pytest.fixture(scope="module")
def onnx(tmp_path_factory):
    return artifacts.make_onnx_artifact(tmp_path_factory.mktemp("onnx"))


@pytest.fixture(scope="module")
def packages(winner, tmp_path_factory):
    """{target: folder} of the same artifact."""
    place = tmp_path_factory.mktemp("packages")
    for target in SERVERS:
        package(winner.path, target, place / target, name="tiny")
    return {target: place / target for target in SERVERS}


# --- the command ------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", SERVERS)
def test_the_command_needs_no_torch_and_says_what_is_next(winner, target, tmp_path):
    out = tmp_path / "out"
    arguments = ("package", winner.path, "--for", target, "--out", out, "--json", "-")
    done = desk.vitrail(*arguments, cache=tmp_path, without_torch=True)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["target"], said["name"], said["path"]) == (target, "winner", str(out))
    facts = json.loads((out / "vitrail-package.json").read_text())
    assert facts["artifact_sha256"] == sha256_file(winner.path / "manifest.json")
    assert facts["notes"] == said["notes"]
    assert all(note in (out / "README.md").read_text() for note in said["notes"] if "--wheel" not in note)
    assert {path.stat().st_mode & 0o777 for path in out.rglob("*")} == {0o644, 0o755}


def test_an_earlier_package_is_replaced_and_nothing_else(winner, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["package", str(winner.path), "--for", "docker", "--out", str(out)]
    assert main(command) == 0
    assert "README.md" in capsys.readouterr().out
    assert main(command) == 2
    assert "already exists" in capsys.readouterr().err
    (out / "note").touch()
    assert main([*command, "--overwrite"]) == 0
    assert not (out / "note").exists()
    (out / "vitrail-package.json").write_text("{}")
    capsys.readouterr()
    assert main([*command, "--overwrite"]) == 2
    assert "is not a package and is not overwritten" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"target": "dokcer"},
            "'dokcer': use docker, triton, openvino-model-server or phone. Did you mean docker?",
        ),
        ({"target": "docker", "name": "a b"}, "'a b' cannot be a model's name"),
        ({"target": "docker", "name": "../a"}, "'../a' cannot be a model's name"),
        ({"target": "docker", "wheel": __file__}, "is not a wheel of Vitrail"),
        ({"target": "docker", "wheel": "none.whl"}, "There is no file none.whl"),
        ({"target": "docker", "max_batch": 4}, "max batch is Triton's"),
        ({"target": "triton", "max_batch": 0}, "max batch is 0"),
        ({"target": "docker", "artifact": "nowhere"}, "nowhere does not exist"),
    ],
)
def test_wrong_use_is_one_sentence_and_leaves_nothing(winner, options, said, tmp_path):
    arguments = {"artifact": winner.path, **options}
    with pytest.raises(InputError, match=re.escape(said)):
        package(arguments.pop("artifact"), arguments.pop("target"), tmp_path / "out", **arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("target", SERVERS)
def test_a_damaged_artifact_is_refused_and_a_package_inside_one_too(winner, target, tmp_path):
    damaged = shutil.copytree(winner.path, tmp_path / "damaged")
    with pytest.raises(InputError, match="inside the artifact"):
        package(damaged, target, damaged / "deep" / "out")
    weights = damaged / "model" / "model.bin"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\7")
    with pytest.raises(InputError, match=r"model\.bin was changed"):
        package(damaged, target, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["damaged"]


@pytest.mark.parametrize("target", ["triton", "openvino-model-server"])
def test_a_tensor_without_a_name_cannot_be_addressed(winner, target, tmp_path, monkeypatch):
    # OpenVINO 2026.4 names every output by itself; earlier ones do not.
    monkeypatch.setitem(order.PORTS, "openvino", lambda path: ([("images", None)], [("", None)]))
    with pytest.raises(InputError, match="does not have one output with a name"):
        package(winner.path, target, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- docker -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["docker", "triton"])
def test_what_the_dockerfile_copies_is_there(packages, target):
    folder = packages[target]
    found = instructions(folder / "Dockerfile")
    known = {
        "ARG",
        "FROM",
        "COPY",
        "RUN",
        "ENV",
        "USER",
        "EXPOSE",
        "STOPSIGNAL",
        "HEALTHCHECK",
        "ENTRYPOINT",
        "CMD",
    }
    assert {name for name, _ in found} <= known
    sources = [rest.split()[:-1] for name, rest in found if name == "COPY" and "--from" not in rest]
    assert sources
    assert all((folder / source).exists() for (source,) in sources)
    user = [rest for name, rest in found if name == "USER"][-1]
    assert int(user.split(":")[0]) > 0, "not root"


def test_the_image_gets_the_artifact_and_no_key(packages, winner):
    folder = packages["docker"]
    vitrail.load(folder / "artifact").close()  # whole
    kept = (folder / ".dockerignore").read_text().splitlines()
    kept = {line.removeprefix("!") for line in kept if line.startswith("!")}
    copied = {
        rest.split()[0].rstrip("/") for name, rest in instructions(folder / "Dockerfile") if name == "COPY"
    }
    assert kept == copied - {"--from=build"}
    assert "*" in (folder / ".dockerignore").read_text().splitlines()


def test_the_wheel_is_the_one_that_is_installed(winner, tmp_path):
    wheel = tmp_path / "vitrail-9.8.7-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as inside:
        inside.writestr("vitrail/__init__.py", "")
    for target, asked in (("docker", "vitrail[serve]==9.8.7"), ("triton", "vitrail==9.8.7")):
        packed = package(winner.path, target, tmp_path / target, wheel=wheel)
        assert (tmp_path / target / "wheels" / wheel.name).read_bytes() == wheel.read_bytes()
        assert f'"{asked}"' in (tmp_path / target / "Dockerfile").read_text()
        assert not any("--wheel" in note for note in packed.notes)


def test_the_image_s_command_is_one_of_vitrail_s(packages):
    file = packages["docker"] / "Dockerfile"
    entry, command = exec_form(file, "ENTRYPOINT"), exec_form(file, "CMD")
    assert entry == ["vitrail"]
    assert command[0] == "serve"
    args = command_parser("serve").parse_args(command[1:])
    assert args.artifacts == ["tiny=/artifact"]
    assert (args.host, args.port, args.api_keys) == ("0.0.0.0", 8000, "/run/secrets/api-keys")


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1), (None, 1)])
def test_the_health_check_asks_the_server_itself(packages, status, code, monkeypatch):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status if self.path == "/v2/health/ready" else 404)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    if status is None:
        server.shutdown()
        server.server_close()
    try:
        _, script, _ = exec_form(packages["docker"] / "Dockerfile", "HEALTHCHECK")
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
        done = subprocess.run(
            [sys.executable, packages["docker"] / Path(script).name, str(server.server_port)],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


# --- OpenVINO Model Server --------------------------------------------------------------------------


@pytest.mark.parametrize("pixels", [False, True])
def test_the_server_is_told_what_was_measured(pixels, tmp_path):
    artifact = named(tmp_path / "made", pixels=pixels)
    folder = tmp_path / "server"
    package(artifact.path, "openvino-model-server", folder, name="tiny")
    found = server_config(folder)
    shape, layout = ((2, SIZE, SIZE, 3), "NHWC") if pixels else ((2, 3, SIZE, SIZE), "NCHW")
    assert found["shape"] == str(shape)
    assert found["layout"] == {"images": layout}
    assert found["base_path"] == "models/tiny"
    assert found["plugin_config"] == {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": "1",
        "NUM_STREAMS": "1",
    }
    # OpenVINO itself takes all of it, and reads it back.
    core = one_core()
    model = core.read_model(folder / found["base_path"] / "1" / "model.xml")
    model.reshape(list(shape))
    compiled = core.compile_model(model, found["target_device"], found["plugin_config"])
    assert compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "f32"
    assert ("uint8 (2, 32, 32, 3)" in (folder / "README.md").read_text()) == pixels
    client = program(folder / "client.py", "server_client")

    class Server:
        """The model behind the client's own tensors."""

        def infer(self, name, inputs):
            (given,) = inputs
            assert (name, given.name(), tuple(given.shape())) == ("tiny", "images", shape)
            assert given.datatype() == ("UINT8" if pixels else "FP32")
            values = np.frombuffer(given._raw_data, np.uint8 if pixels else np.float32).reshape(shape).copy()
            return types.SimpleNamespace(as_numpy={"scores": compiled(values)[0]}.__getitem__)

    with vitrail.load(artifact.path) as predictor:
        for photo in artifact.photos:
            (expected,) = predictor.predict(photo)
            answer = client.answer(Server(), str(photo))
            assert [r.label for r in answer.top] == [r.label for r in expected.top]
            assert np.allclose(
                [r.probability for r in answer.top], [r.probability for r in expected.top], atol=1e-6
            )


def test_an_onnx_file_on_openvino_is_no_longer_what_was_measured(onnx, tmp_path):
    packed = package(onnx.path, "openvino-model-server", tmp_path / "server")
    assert any("was measured on ONNX Runtime" in note for note in packed.notes)
    assert (tmp_path / "server" / "models" / "onnx" / "1" / "model.onnx").is_file()
    assert server_config(tmp_path / "server")["layout"] == {"image": "NCHW"}


# --- against our own server -------------------------------------------------------------------------


@pytest.mark.slow
def test_the_image_s_command_serves_and_all_packages_speak_its_protocol(packages, winner, tmp_path):
    """The command of the image with its paths as they are here; asked by the health check and the clients."""
    import tritonclient.http
    from serving import Server
    from tritonclient.grpc.model_config_pb2 import DataType

    from vitrail.serve.keys import new_key

    key, line = new_key("me")
    (tmp_path / "api-keys").write_text(line + "\n")
    docker = packages["docker"]
    places = {
        "tiny=/artifact": f"tiny={docker / 'artifact'}",
        "/run/secrets/api-keys": str(tmp_path / "api-keys"),
        "0.0.0.0": "127.0.0.1",
    }
    _, *arguments = (places.get(word, word) for word in exec_form(docker / "Dockerfile", "CMD"))
    home = tmp_path / "home"
    home.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        with Server(*arguments, cache=home / "cache") as server:
            port = server.url.rpartition(":")[2]
            done = subprocess.run(
                [sys.executable, docker / "healthcheck.py", port], capture_output=True, timeout=60
            )
            assert done.returncode == 0, done.stderr

            metadata = server.client.get("/v2/models/tiny", headers={"x-api-key": key}).json()
            model = config(packages["triton"] / "models" / "tiny_model")
            for ours, theirs in ((metadata["inputs"], model.input), (metadata["outputs"], model.output)):
                described = [
                    {
                        "name": each.name,
                        "datatype": DataType.Name(each.data_type)[5:],
                        "shape": [-1, *each.dims],
                    }
                    for each in theirs
                ]
                assert described == ours

            client = program(packages["openvino-model-server"] / "client.py", "server_client")
            asks = tritonclient.http.InferenceServerClient(f"127.0.0.1:{port}")

            class WithKey:
                def infer(self, name, inputs):
                    return asks.infer(name, inputs, headers={"x-api-key": key})

            with vitrail.load(winner.path) as predictor:
                for photo in winner.photos:
                    (expected,) = predictor.predict(photo)
                    answer = client.answer(WithKey(), str(photo))
                    assert answer.label == expected.label
                    assert answer.probability == pytest.approx(expected.probability, abs=1e-6)
            asks.close()
        written = {path.relative_to(home).parts[0] for path in home.rglob("*") if path.is_file()}
        assert written <= {"cache"}, "the file system may be read-only"

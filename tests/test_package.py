"""Packages for Docker, Triton and OpenVINO Model Server: parsed, run as far as they run here (below 10 s)."""

from __future__ import annotations

import http.server
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import threading
import types
from dataclasses import replace
from pathlib import Path

import artifacts
import desk
import jsonschema
import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as ops

import vitrail
from vitrail.artifact import Artifact, write
from vitrail.cli import command_parser, main
from vitrail.errors import InputError
from vitrail.images.decode import decode
from vitrail.package import TARGETS, package, pbtxt
from vitrail.store import sha256_file
from vitrail.tasks.embed import Embed
from vitrail.vocabulary import Export, Requirements

SIZE, CLASSES = artifacts.SIZE, len(artifacts.LABELS)


def network(*, pixels: bool) -> ov.Model:
    """The small network of artifacts.py with names; `pixels`: it normalises by itself."""
    entry = ops.parameter(
        [-1, SIZE, SIZE, 3] if pixels else [-1, 3, SIZE, SIZE], np.uint8 if pixels else np.float32
    )
    image = entry
    if pixels:
        mean, std = (
            np.array(v, np.float32).reshape(1, 3, 1, 1)
            for v in (artifacts.PREPROCESS.mean, artifacts.PREPROCESS.std)
        )
        planes = ops.transpose(ops.convert(entry, "f32"), ops.constant([0, 3, 1, 2]))
        image = ops.divide(
            ops.subtract(ops.divide(planes, ops.constant(np.float32(255))), ops.constant(mean)),
            ops.constant(std),
        )
    features = ops.relu(
        ops.convolution(image, ops.constant(artifacts.FILTERS), [1, 1], [0, 0], [0, 0], [1, 1])
    )
    pooled = ops.reduce_mean(features, ops.constant([2, 3]), keep_dims=False)
    model = ov.Model([ops.matmul(pooled, ops.constant(artifacts.HEAD), False, False)], [entry], "tiny")
    model.inputs[0].get_tensor().set_names({"images"})
    model.outputs[0].get_tensor().set_names({"scores"})
    return model


def named(
    folder: Path, *, pixels: bool = False, precision: str = "fp32", nameless: bool = False, **evidence
) -> Artifact:
    """An OpenVINO artifact whose file names its tensors; `nameless`: not the output."""
    bundle = artifacts.make_bundle(folder)
    (folder / "named").mkdir()
    ov.save_model(network(pixels=pixels), folder / "named" / "model.xml", compress_to_fp16=False)
    if nameless:
        graph = folder / "named" / "model.xml"
        graph.write_text(graph.read_text().replace('names="scores"', "").replace('output_names="scores"', ""))
    preprocess = replace(artifacts.PREPROCESS, pixels="uint8" if pixels else "normalised")
    task = replace(bundle.task, preprocess=preprocess)
    variant = replace(bundle.variant, passes=("uint8",) if pixels else (), precision=precision)
    return write(
        folder / "winner",
        replace(
            bundle,
            variant=variant,
            task=task,
            export=Export(
                folder=str(folder / "named"),
                files=("model.xml", "model.bin"),
                graphs=(task.graph("model.xml"),),
            ),
            evidence=replace(bundle.evidence, **evidence),
        ),
    )


@pytest.fixture(scope="module")
def winner(tmp_path_factory):
    return named(tmp_path_factory.mktemp("named"), requirements=Requirements(max_latency_ms=50.0))


@pytest.fixture(scope="module")
def onnx(tmp_path_factory):
    return artifacts.make_onnx_artifact(tmp_path_factory.mktemp("onnx"))


@pytest.fixture(scope="module")
def packages(winner, tmp_path_factory):
    """{target: folder} of the same artifact."""
    place = tmp_path_factory.mktemp("packages")
    for target in TARGETS:
        package(winner.path, target, place / target, name="tiny")
    return {target: place / target for target in TARGETS}


def program(path: Path, name: str):
    """A program of a package as a module."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- the command ------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
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
            "Unknown target 'dokcer': use docker, triton or openvino-model-server. Did you mean docker?",
        ),
        ({"target": "docker", "name": "a b"}, "'a b' cannot be a model's name"),
        ({"target": "docker", "name": "../a"}, "'../a' cannot be a model's name"),
        ({"target": "docker", "wheel": __file__}, "is not a wheel of Vitrail"),
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


@pytest.mark.parametrize("target", TARGETS)
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
def test_a_tensor_without_a_name_cannot_be_addressed(target, tmp_path):
    artifact = named(tmp_path / "made", nameless=True)
    with pytest.raises(InputError, match="does not have one output with a name"):
        package(artifact.path, target, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- docker -----------------------------------------------------------------------------------------


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """(instruction, the rest), lines joined and comments dropped."""
    text = re.sub(r"^#.*\n", "", dockerfile.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]


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
    import zipfile

    wheel = tmp_path / "vitrail-9.8.7-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as inside:
        inside.writestr("vitrail/__init__.py", "")
    for target, asked in (("docker", "vitrail[serve]==9.8.7"), ("triton", "vitrail==9.8.7")):
        packed = package(winner.path, target, tmp_path / target, wheel=wheel)
        assert (tmp_path / target / "wheels" / wheel.name).read_bytes() == wheel.read_bytes()
        assert f'"{asked}"' in (tmp_path / target / "Dockerfile").read_text()
        assert not any("--wheel" in note for note in packed.notes)


def exec_form(dockerfile: Path, name: str) -> list[str]:
    (rest,) = (rest for each, rest in instructions(dockerfile) if each == name)
    return json.loads(rest[rest.index("[") :])


def test_the_image_s_command_is_one_of_vitrail_s(packages):
    file = packages["docker"] / "Dockerfile"
    entry, command = exec_form(file, "ENTRYPOINT"), exec_form(file, "CMD")
    assert entry == ["vitrail"]
    assert command[0] == "serve"
    pytest.importorskip("vitrail.serve")
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


# --- triton -----------------------------------------------------------------------------------------


def config(folder: Path):
    """Triton's own reading of a model's configuration."""
    from google.protobuf import text_format
    from tritonclient.grpc.model_config_pb2 import ModelConfig

    return text_format.Parse((folder / "config.pbtxt").read_text(), ModelConfig())


def parameters(found) -> dict[str, str]:
    return {key: value.string_value for key, value in found.parameters.items()}


def test_the_repository_is_read_as_triton_reads_it(packages, winner):
    from tritonclient.grpc.model_config_pb2 import TYPE_FP32, TYPE_STRING, ModelInstanceGroup

    models = packages["triton"] / "models"
    assert sorted(path.name for path in models.iterdir()) == ["tiny", "tiny_model", "tiny_preprocess"]
    model, prepare, whole = (config(models / name) for name in ("tiny_model", "tiny_preprocess", "tiny"))
    assert [c.name for c in (model, prepare, whole)] == ["tiny_model", "tiny_preprocess", "tiny"]
    assert {c.max_batch_size for c in (model, prepare, whole)} == {2}
    assert (model.backend, prepare.backend, whole.platform) == ("openvino", "python", "ensemble")
    (images,), (scores,) = model.input, model.output
    assert (images.name, images.data_type, list(images.dims)) == ("images", TYPE_FP32, [3, SIZE, SIZE])
    assert (scores.name, list(scores.dims), scores.label_filename) == ("scores", [CLASSES], "labels.txt")
    assert model.HasField("dynamic_batching")
    assert model.dynamic_batching.max_queue_delay_microseconds == 5000  # 50 ms allowed, 4 taken
    (group,) = model.instance_group
    assert (group.count, group.kind) == (1, ModelInstanceGroup.KIND_CPU)
    assert parameters(model)["INFERENCE_NUM_THREADS"] == "1"
    assert "HINT_BF16" not in parameters(model)
    assert (whole.input[0].data_type, list(whole.input[0].dims)) == (TYPE_STRING, [1])
    assert whole.output[0] == scores
    steps = {step.model_name: step for step in whole.ensemble_scheduling.step}
    assert dict(steps["tiny_preprocess"].input_map) == {"image": "image"}
    assert dict(steps["tiny_model"].input_map) == {"images": steps["tiny_preprocess"].output_map["images"]}
    assert dict(steps["tiny_model"].output_map) == {"scores": "scores"}
    for name in ("tiny", "tiny_model"):
        assert (models / name / "labels.txt").read_bytes() == (winner.path / "labels.txt").read_bytes()
    for name in ("model.xml", "model.bin"):
        assert (models / "tiny_model" / "1" / name).read_bytes() == (
            winner.path / "model" / name
        ).read_bytes()


def test_another_engine_precision_and_batch(onnx, tmp_path):
    packed = package(onnx.path, "triton", tmp_path / "onnx", max_batch=16)
    assert any("of batches of 2, not of 16" in note for note in packed.notes)
    model = config(tmp_path / "onnx" / "models" / "onnx_model")
    assert (model.backend, model.max_batch_size) == ("onnxruntime", 16)
    assert (model.input[0].name, model.output[0].name) == ("image", "scores")  # as in the file
    assert parameters(model)["intra_op_thread_count"] == "1"
    assert (tmp_path / "onnx" / "models" / "onnx_model" / "1" / "model.onnx").is_file()


@pytest.mark.parametrize(
    ("precision", "operations", "hint"),
    [
        ("fp32", "f32:9", "f32"),
        ("bf16", "bf16:9", "bf16"),
        ("int8", "f32:2 u8:7", "f32"),
        ("int8", "bf16:2 u8:7", "bf16"),
    ],
)
def test_the_precision_is_the_measured_one(precision, operations, hint, tmp_path):
    made = named(tmp_path / "made", precision=precision)
    facts = replace(made.manifest.evidence.facts, precision=precision, details=(("operations", operations),))
    artifact = named(tmp_path / "again", precision=precision, facts=facts)
    packed = package(artifact.path, "triton", tmp_path / "triton")
    model = config(tmp_path / "triton" / "models" / "winner_model")
    assert parameters(model).get("HINT_BF16") == ("YES" if hint == "bf16" else None)
    assert any("cannot be asked for fp32" in note for note in packed.notes) == (hint == "f32")
    package(artifact.path, "openvino-model-server", tmp_path / "ovms")
    assert server_config(tmp_path / "ovms")["plugin_config"]["INFERENCE_PRECISION_HINT"] == hint


@pytest.fixture
def triton_utils(monkeypatch):
    """What Triton gives to models in Python, as far as ours asks for it."""

    class Tensor:
        def __init__(self, name, values):
            self.name, self.values = name, values

        def as_numpy(self):
            return self.values

    class TritonError:
        INVALID_ARG = "INVALID_ARG"

        def __init__(self, message, code):
            self.message, self.code = message, code

    utils = types.ModuleType("triton_python_backend_utils")
    utils.Tensor, utils.TritonError = Tensor, TritonError
    utils.TritonModelException = type("TritonModelException", (Exception,), {})
    utils.InferenceResponse = lambda tensors=(), error=None: types.SimpleNamespace(
        tensors=tensors, error=error
    )
    utils.get_input_tensor_by_name = lambda request, name: request[name]
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", utils)
    return utils


def preprocessing(folder: Path, utils):
    """The loaded model of the preprocessing step, as Triton starts it."""
    from google.protobuf import json_format

    said = json_format.MessageToDict(config(folder), preserving_proto_field_name=True)
    model = program(folder / "1" / "model.py", "triton_model").TritonPythonModel()
    model.initialize({"model_config": json.dumps(said)})
    return model


def asked(utils, *files: bytes):
    return {"image": utils.Tensor("image", np.array([[data] for data in files], dtype=np.object_))}


@pytest.mark.parametrize("pixels", [False, True])
def test_triton_prepares_the_same_tensor(pixels, tmp_path, triton_utils):
    """On real photos, JPEGs turned and scaled while decoding among them."""
    from PIL import Image

    artifact = named(tmp_path / "made", pixels=pixels)
    package(artifact.path, "triton", tmp_path / "triton")
    models = tmp_path / "triton" / "models"
    model = preprocessing(models / "winner_preprocess", triton_utils)
    large = decode(artifact.photos[1]).resize((1001, 747))
    exif = Image.Exif()
    exif[0x0112] = 6
    large.save(tmp_path / "large.jpg", exif=exif)
    photos = [*artifact.photos, tmp_path / "large.jpg"]
    with vitrail.load(artifact.path) as predictor:
        (expected,) = predictor.prepare(photos).values()
        (expected_full,) = predictor.prepare(artifact.photos, scaled=False).values()
    (response,) = model.execute([asked(triton_utils, *(path.read_bytes() for path in photos))])
    (tensor,) = response.tensors
    assert tensor.name == "images"
    assert tensor.values.dtype == expected.dtype
    assert np.array_equal(tensor.values, expected)
    # The file of the next step gives the recorded outputs, at the batch that Triton compiles it for.
    again = ov.Core().read_model(models / "winner_model" / "1" / "model.xml")
    compiled = ov.Core().compile_model(again, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled(expected_full)[0]
    assert np.allclose(found, artifact.own_outputs()["scores"], rtol=1e-5, atol=1e-6)


def test_a_bad_image_fails_its_own_request_alone(packages, triton_utils, winner):
    model = preprocessing(packages["triton"] / "models" / "tiny_preprocess", triton_utils)
    good = winner.photos[0].read_bytes()
    bad, fine = model.execute([asked(triton_utils, good, b"no image"), asked(triton_utils, good)])
    assert bad.error.code == "INVALID_ARG"
    assert "image" in bad.error.message
    assert fine.error is None


def test_preprocessing_that_changed_is_noticed_when_it_is_loaded(packages, triton_utils, tmp_path):
    folder = shutil.copytree(packages["triton"] / "models" / "tiny_preprocess", tmp_path / "changed")
    recorded = np.load(folder / "1" / "prepared.npy")
    recorded[0, 1, 5, 5] += 3 / (255 * artifacts.PREPROCESS.std[1])
    np.save(folder / "1" / "prepared.npy", recorded)
    with pytest.raises(triton_utils.TritonModelException, match=r"by 3\.0 of 255"):
        preprocessing(folder, triton_utils)


def test_triton_s_client_says_what_predict_says(packages, triton_utils, winner):
    from tritonclient.utils import deserialize_bytes_tensor

    folder = packages["triton"]
    step = preprocessing(folder / "models" / "tiny_preprocess", triton_utils)
    client = program(folder / "client.py", "triton_client")
    with vitrail.load(winner.path) as predictor:

        class Triton:
            """The ensemble, run here on what the client would send."""

            def infer(self, name, inputs, outputs):
                assert (name, inputs[0].name(), inputs[0].datatype(), inputs[0].shape()) == (
                    "tiny",
                    "image",
                    "BYTES",
                    [1, 1],
                )
                (data,) = deserialize_bytes_tensor(inputs[0]._raw_data)
                (response,) = step.execute([asked(triton_utils, data)])
                scores = predictor.run({"images": response.tensors[0].values})["scores"]
                return types.SimpleNamespace(as_numpy={outputs[0].name(): scores}.__getitem__)

        for photo in winner.photos:
            (prediction,) = predictor.predict(photo)
            lines = client.answer(Triton(), photo.read_bytes())
            assert lines == [f"{each.probability:6.1%}  {each.label}" for each in prediction.top]


def test_an_embedder_has_no_labels(tmp_path):
    bundle = artifacts.make_bundle(tmp_path / "made")
    (tmp_path / "named").mkdir()
    model = network(pixels=False)
    model.outputs[0].get_tensor().set_names({"vectors"})
    ov.save_model(model, tmp_path / "named" / "model.xml", compress_to_fp16=False)
    task = Embed(preprocess=artifacts.PREPROCESS, width=CLASSES)
    candidate = replace(bundle.variant.candidate, task="embed")
    write(
        tmp_path / "embedder",
        replace(
            bundle,
            task=task,
            variant=replace(bundle.variant, candidate=candidate),
            export=Export(
                folder=str(tmp_path / "named"),
                files=("model.xml", "model.bin"),
                graphs=(task.graph("model.xml"),),
            ),
            fp32_outputs={"vectors": bundle.fp32_outputs["scores"]},
            own_outputs={"vectors": bundle.own_outputs["scores"]},
        ),
    )
    for target in TARGETS:
        package(tmp_path / "embedder", target, tmp_path / target)
    found = config(tmp_path / "triton" / "models" / "embedder")
    assert (found.output[0].name, found.output[0].label_filename) == ("vectors", "")
    assert not list(tmp_path.glob("triton/models/*/labels.txt"))
    assert "/v1/embed" in (tmp_path / "docker" / "README.md").read_text()
    assert not (tmp_path / "openvino-model-server" / "labels.txt").exists()


def test_texts_of_any_letters_are_read_back():
    from google.protobuf import text_format
    from tritonclient.grpc.model_config_pb2 import ModelConfig

    for value in ('a "b" \\ c\nd', "größe\t\x00", "🙂\x7f"):
        text = pbtxt.text({"name": value, "parameters": pbtxt.parameters({value: value})})
        found = text_format.Parse(text, ModelConfig())
        assert found.name == value
        assert parameters(found) == {value: value}


# --- OpenVINO Model Server --------------------------------------------------------------------------

OF_A_MODEL = {
    "type": "object",
    "required": ["name"],
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string"},
        "base_path": {"type": "string"},
        "shape": {"type": ["string", "object"]},
        "layout": {"type": ["string", "object"], "additionalProperties": {"type": "string"}},
        "nireq": {"type": "integer", "minimum": 0},
        "target_device": {"type": "string"},
        "plugin_config": {
            "type": "object",
            "additionalProperties": {"type": ["string", "boolean", "number"]},
        },
    },
}
"""What the server's src/schema.cpp admits, as far as we use it."""


def server_config(folder: Path) -> dict:
    document = json.loads((folder / "config.json").read_text())
    assert list(document) == ["model_config_list"]
    (entry,) = document["model_config_list"]
    assert list(entry) == ["config"]
    jsonschema.validate(entry["config"], OF_A_MODEL)
    return entry["config"]


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
    core = ov.Core()
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
            assert (name, given.name(), given.shape()) == ("tiny", "images", list(shape))
            assert given.datatype() == ("UINT8" if pixels else "FP32")
            values = np.frombuffer(given._raw_data, np.uint8 if pixels else np.float32).reshape(shape)
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

"""Triton's model repository: read by its own message types, and its programs run (below 5 s)."""

from __future__ import annotations

import json
import shutil
import sys
import types
from pathlib import Path

import artifacts
import numpy as np
import openvino as ov
import pytest
from packages import (
    CLASSES,
    SIZE,
    config,
    named,
    parameters,
    program,
    server_config,
)

import vitrail
from vitrail.images.decode import decode
from vitrail.package import package, pbtxt
from vitrail.runtimes.openvino import core as one_core  # a second one would unload the plugin

SERVERS = ("docker", "triton", "openvino-model-server")


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


# --- triton -----------------------------------------------------------------------------------------


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
    artifact = named(tmp_path / "made", precision=precision, operations=operations)
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
    compiled = one_core().compile_model(again, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled(expected_full)[0]
    assert np.allclose(found, artifact.own_outputs()["scores"], rtol=1e-4, atol=1e-4)


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
    embedder = named(tmp_path / "made", embed=True)
    for target in SERVERS:
        package(embedder.path, target, tmp_path / target, name="embedder")
    found = config(tmp_path / "triton" / "models" / "embedder_model")
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

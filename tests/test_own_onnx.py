"""A person's own ONNX file: read, refused, and copied so that the copy answers as the file does.

The file itself, run by ONNX Runtime, is what all copies are compared with.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from own_nets import CLASSES, MACS, PARAMETERS, SAID, SIZE, net

from vitrail import cli, hardware
from vitrail.errors import InputError
from vitrail.export import onnx_file, onnx_run, own_onnx
from vitrail.export.bench import Bench
from vitrail.export.onnx_file import open_model
from vitrail.export.requests import OwnRequest
from vitrail.export.variants import variants
from vitrail.export.workshop import Workshop
from vitrail.images.decode import decode
from vitrail.images.photos import sample_photos
from vitrail.measure import sandbox
from vitrail.sources.own_onnx import NeedsPreprocess, OwnONNX
from vitrail.sources.prepared import example, prepared
from vitrail.sources.source import Context
from vitrail.tasks.classify import probabilities
from vitrail.vocabulary import Accuracy, Requirements, SearchSettings, Workload
from vitrail.weights.find import WeightsFinder

PHOTO = np.random.default_rng(1).integers(0, 256, (5, 3, SIZE, SIZE)).astype(np.float32)
"""Pixels from 0 to 255."""


def saved(model: onnx.ModelProto, folder: Path, name: str = "net.onnx") -> Path:
    path = folder / name
    path.write_bytes(model.SerializeToString())
    return path


def asked(path: Path, *, classes: int = len(CLASSES), batch_size: int = 1, **said: object) -> OwnRequest:
    found = prepared({**SAID, **said})
    return OwnRequest(
        file=str(path),
        preprocess=found.preprocess,
        classes=classes,
        batch_size=batch_size,
        threads=1,
        input=found.input,
        output=found.output,
        layout=found.layout,
        channels=found.channels,
    )


def refusal(model: onnx.ModelProto | bytes, folder: Path, **changes) -> str:
    """What is said of a file, which must be one sentence."""
    path = folder / "net.onnx"
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    facts = own_onnx.describe(msgspec.to_builtins(asked(path, **changes)))
    assert set(facts) == {"refused"}, facts
    assert "\n" not in facts["refused"]
    assert facts["refused"].endswith(".")
    return facts["refused"]


def described(model: onnx.ModelProto, folder: Path, **changes) -> dict:
    facts = own_onnx.describe(msgspec.to_builtins(asked(saved(model, folder), **changes)))
    assert "refused" not in facts, facts
    return facts


def run(path: Path, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, inputs)


def copied(path: Path, request: OwnRequest) -> Path:
    target = path.with_name("copy.onnx")
    own_onnx.write_copy(request, target)
    model = onnx.load(target)
    assert [value.name for value in model.graph.input] == ["images"]
    assert [value.name for value in model.graph.output] == ["scores"]
    return target


# --- the copy answers as the file does ------------------------------------------------------------


@pytest.mark.parametrize("batch", ["N", 1, 2])
@pytest.mark.parametrize("sides", [(SIZE, SIZE), ("H", "W")])
def test_a_copy_takes_any_batch_and_answers_as_the_file(tmp_path, batch, sides):
    path = saved(net(batch=batch, sides=sides), tmp_path)
    images = (PHOTO / 255 - 0.5) / 0.25
    (given,) = run(copied(path, asked(path)), {"images": images})
    each = 5 if batch == "N" else batch
    for start in range(0, 5 - each + 1, each):
        (expected,) = run(path, {"pixel values": images[start : start + each]})
        np.testing.assert_allclose(given[start : start + each], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 4), (1, -1)])
def test_a_reshape_that_names_the_batch_is_freed(tmp_path, shape):
    facts = described(net(batch=1, reshape=shape), tmp_path)
    assert facts["own"]["batch"] is None
    assert "exported for 1 image at a time" in facts["notes"][0]
    images = (PHOTO / 255 - 0.5) / 0.25
    (given,) = run(copied(tmp_path / "net.onnx", asked(tmp_path / "net.onnx")), {"images": images})
    expected = [run(tmp_path / "net.onnx", {"pixel values": image[None]})[0][0] for image in images]
    np.testing.assert_allclose(given, expected, rtol=1e-5, atol=1e-6)


def between(*nodes: onnx.NodeProto, **weights: np.ndarray) -> onnx.ModelProto:
    """A net for one image with nodes that turn `flat` into `other` before its last layer."""
    model = net(batch=1)
    model.graph.initializer.extend(numpy_helper.from_array(value, key) for key, value in weights.items())
    last = model.graph.node.pop()
    last.input[0] = "other"
    model.graph.node.extend([*nodes, last])
    return model


def test_constants_joined_to_one_image_s_features_are_repeated(tmp_path):
    row = np.array([[3.0]], np.float32)
    square = np.random.default_rng(2).standard_normal((5, 4)).astype(np.float32)
    joined = helper.make_node("Concat", ["row", "flat"], ["joined"], axis=1)
    model = between(
        joined, helper.make_node("MatMul", ["joined", "square"], ["other"]), row=row, square=square
    )
    path = saved(model, tmp_path)
    assert described(model, tmp_path)["own"]["batch"] is None
    images = (PHOTO / 255 - 0.5) / 0.25
    (given,) = run(copied(path, asked(path)), {"images": images})
    expected = [run(path, {"pixel values": image[None]})[0][0] for image in images]
    np.testing.assert_allclose(given, expected, rtol=1e-5, atol=1e-6)


def bound_to_one() -> onnx.ModelProto:
    """A graph that drops the batch and puts it back: it works for one image alone."""
    dropped = helper.make_node("Squeeze", ["flat", "zero"], ["dropped"])
    back = helper.make_node("Unsqueeze", ["dropped", "zero"], ["other"])
    return between(dropped, back, zero=np.array([0], np.int64))


def test_a_graph_bound_to_its_batch_is_taken_at_that_batch_alone(tmp_path):
    facts = described(bound_to_one(), tmp_path)
    assert facts["own"]["batch"] == 1
    assert "takes 1 image at a time, and so does what ships" in facts["notes"][0]
    said = refusal(bound_to_one(), tmp_path, batch_size=4)
    assert "takes 1 image at a time" in said
    assert "--batch-size 1" in said


@pytest.mark.parametrize("channels", ["RGB", "BGR"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.UINT8])
def test_layout_channels_and_bytes_are_the_file_s_own(tmp_path, channels, layout, kind):
    said = {"range": 255, "mean": [0, 0, 0], "std": [1, 1, 1], "channels": channels}
    path = saved(net(layout=layout, kind=kind), tmp_path)
    preprocess = prepared({**SAID, **said}).preprocess
    images = (PHOTO / np.float32(255) - np.float32(0)) / np.float32(preprocess.std[0])
    (given,) = run(copied(path, asked(path, **said)), {"images": images})
    theirs = PHOTO[:, ::-1] if channels == "BGR" else PHOTO
    theirs = theirs.transpose(0, 2, 3, 1) if layout == "NHWC" else theirs
    dtype = np.uint8 if kind == TensorProto.UINT8 else np.float32
    (expected,) = run(path, {"pixel values": np.ascontiguousarray(theirs.astype(dtype))})
    np.testing.assert_allclose(given, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("ending", [("Softmax",), ("Softmax", "Identity"), ("Sigmoid",)])
def test_scores_are_read_before_a_last_softmax_or_sigmoid(tmp_path, ending):
    path = saved(net(ending=ending), tmp_path)
    facts = described(net(ending=ending), tmp_path)
    assert f"ends in a {ending[0]}" in facts["notes"][0]
    images = (PHOTO / 255 - 0.5) / 0.25
    written = own_onnx.write_copy(asked(path), tmp_path / "copy.onnx")
    assert written["probability"] == ending[0].lower()
    (scores,) = run(tmp_path / "copy.onnx", {"images": images})
    (expected,) = run(path, {"pixel values": images})
    np.testing.assert_allclose(probabilities(scores, written["probability"]), expected, atol=1e-6)


def test_a_softmax_over_the_images_is_no_ending_and_refused(tmp_path):
    model = net(ending=("Softmax",))
    model.graph.node[-1].attribute.append(helper.make_attribute("axis", 0))
    assert "by itself than beside others" in refusal(model, tmp_path)


def test_the_reference_is_the_file_itself(tmp_path):
    path = saved(net(ending=("Softmax",), batch=2), tmp_path)
    answers = own_onnx.open_own(asked(path)).runner(1)
    images = (PHOTO / 255 - 0.5) / 0.25
    scores = answers(images)  # five images, two at a time
    assert scores.shape == (5, 3)
    (expected,) = run(path, {"pixel values": images[:2]})
    np.testing.assert_allclose(probabilities(scores[:2], "softmax"), expected, atol=1e-6)


@pytest.mark.parametrize("names", [("images", "scores"), ("scores", "images")])
def test_names_of_the_file_may_be_ours(tmp_path, names):
    path = saved(net(layout="NHWC", names=names), tmp_path)
    images = (PHOTO / 255 - 0.5) / 0.25
    (given,) = run(copied(path, asked(path)), {"images": images})
    (expected,) = run(path, {names[0]: np.ascontiguousarray(images.transpose(0, 2, 3, 1))})
    np.testing.assert_allclose(given, expected, rtol=1e-5, atol=1e-6)


def test_a_second_output_is_left_out_once_the_scores_are_named(tmp_path):
    model = net()
    model.graph.output.append(helper.make_tensor_value_info("flat", TensorProto.FLOAT, ["N", 4]))
    assert "has 2 outputs (logits (?, 3), flat (?, 4))" in refusal(model, tmp_path)
    assert described(model, tmp_path, output="logits")["own"]["output"] == "logits"
    said = refusal(model, tmp_path, output="flat")
    assert "gives 4 scores and --labels holds 3 labels" in said


def test_nobody_s_paths_are_in_the_copy(tmp_path):
    path = saved(net(), tmp_path)
    assert b"secret" in path.read_bytes()
    assert b"secret" not in copied(path, asked(path)).read_bytes()


def test_external_data_travels_into_the_copy(tmp_path):
    path = tmp_path / "net.onnx"
    onnx.save_model(net(), str(path), save_as_external_data=True, location="net.data", size_threshold=0)
    images = (PHOTO / 255 - 0.5) / 0.25
    (expected,) = run(path, {"pixel values": images})
    copy = copied(path, asked(path))
    (tmp_path / "net.data").unlink()
    np.testing.assert_allclose(run(copy, {"images": images})[0], expected, rtol=1e-5, atol=1e-6)


def test_large_weights_are_written_beside_the_copy(tmp_path, monkeypatch):
    images = (PHOTO / 255 - 0.5) / 0.25
    for module in (onnx_run, onnx_file):
        monkeypatch.setattr(module, "ONE_FILE_LIMIT", 256)
    big = changed("w", np.ones((4, 3, 4, 4), np.float32))
    big.graph.initializer.append(numpy_helper.from_array(np.ones((600,), np.float32), "more"))
    big.graph.node.append(helper.make_node("ReduceMean", ["more"], ["one"], keepdims=0))
    big.graph.node[-2].output[0] = "plain"
    big.graph.node.append(helper.make_node("Mul", ["plain", "one"], ["logits"]))
    (expected,) = run(saved(big, tmp_path), {"pixel values": images})
    copy = copied(tmp_path / "net.onnx", asked(tmp_path / "net.onnx"))
    assert copy.with_name("copy.onnx.data").stat().st_size >= 2400
    np.testing.assert_allclose(run(copy, {"images": images})[0], expected, rtol=1e-5, atol=1e-6)


# --- what it costs --------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", ["N", 1, 4])
def test_costs_are_those_of_one_image(tmp_path, batch):
    facts = described(net(batch=batch, sides=("H", "W")), tmp_path)
    assert (facts["macs"], facts["parameters"]) == (MACS, PARAMETERS)
    assert facts["activations"] == 8 * 8 * 4 + len(CLASSES)


def test_what_does_not_depend_on_the_images_costs_nothing(tmp_path):
    model = net()
    for name in ("left", "right"):
        big = np.ones((64, 64), np.float32)
        model.graph.initializer.append(numpy_helper.from_array(big, name))
    model.graph.node.insert(0, helper.make_node("MatMul", ["left", "right"], ["product"]))
    model.graph.node.insert(1, helper.make_node("ReduceMean", ["product"], ["mean"], keepdims=0))
    gemm = model.graph.node[-1]
    gemm.output[0] = "plain"
    model.graph.node.append(helper.make_node("Add", ["plain", "mean"], ["logits"]))
    assert described(model, tmp_path)["macs"] == MACS


# --- what is refused ------------------------------------------------------------------------------


def with_input(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """The scores also depend on another input."""
    model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]))
    model.graph.node[-1].output[0] = "plain"
    model.graph.node.append(helper.make_node("Mul", ["plain", name], ["logits"]))
    return model


def test_several_inputs_are_refused_unless_only_one_matters(tmp_path):
    model = with_input(net(), "temperature")
    assert "has 2 inputs (pixel values (?, 3, 32, 32), temperature (1)): in" in refusal(model, tmp_path)
    assert "also asks for temperature" in refusal(model, tmp_path, input="pixel values")
    unused = net()
    unused.graph.input.append(helper.make_tensor_value_info("unused", TensorProto.FLOAT, [1]))
    assert described(unused, tmp_path, input="pixel values")["own"]["input"] == "pixel values"
    assert 'has no input "image"' in refusal(net(), tmp_path, input="image")


def test_weights_listed_as_inputs_are_no_inputs(tmp_path):
    model = net()
    for tensor in model.graph.initializer:
        info = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        model.graph.input.append(info)
    assert described(model, tmp_path)["own"]["input"] == "pixel values"


def test_what_is_no_classifier_of_square_images_is_refused(tmp_path):
    assert "takes images of 32 × 48 px" in refusal(net(sides=(32, 48)), tmp_path)
    assert "image_size = 48" in refusal(net(sides=(48, 48)), tmp_path)
    maps = net()
    del maps.graph.output[:]
    maps.graph.output.append(helper.make_tensor_value_info("relu", TensorProto.FLOAT, ["N", 4, 8, 8]))
    assert "gives relu (B, 4, 8, 8), not one row of scores" in refusal(maps, tmp_path)
    assert "gives 3 scores and --labels holds 2 labels" in refusal(net(), tmp_path, classes=2)
    grey = net()
    grey.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 1
    assert "no image of three channels" in refusal(grey, tmp_path)
    text = net()
    text.graph.input[0].type.tensor_type.elem_type = TensorProto.STRING
    assert "takes string as pixel values" in refusal(text, tmp_path)


def test_an_unclear_layout_is_asked_for(tmp_path):
    model = net(sides=("H", "W"))
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "C"
    assert 'say layout = "NCHW" or "NHWC"' in refusal(model, tmp_path)
    assert described(model, tmp_path, layout="NCHW")["own"]["layout"] == "NCHW"
    assert "no image of three channels in NHWC" in refusal(net(), tmp_path, layout="NHWC")


def changed(name: str, value: np.ndarray) -> onnx.ModelProto:
    model = net()
    for tensor in model.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(value, name))
    return model


def test_numbers_and_types_that_cannot_be_measured_are_refused(tmp_path):
    nan, infinite = np.full(4, np.nan, np.float32), np.full(4, np.inf, np.float32)
    assert "not finite (NaN or infinity) in b" in refusal(changed("b", nan), tmp_path)
    assert "not finite (NaN or infinity) in b" in refusal(changed("b", infinite), tmp_path)
    half = net()
    half.graph.initializer.append(numpy_helper.from_array(np.ones(1, np.float16), "h"))
    assert "16-bit floating-point numbers: export the model in float32" in refusal(half, tmp_path)
    quantised = net()
    quantised.graph.node.append(helper.make_node("QLinearConv", ["x"] * 8, ["y"]))
    assert "is quantised (QLinearConv)" in refusal(quantised, tmp_path)
    ready = net(ending=("Softmax", "Relu"))
    assert "gives probabilities (they sum to 1)" in refusal(ready, tmp_path)


def test_graphs_in_training_mode_are_refused(tmp_path):
    noisy = net()
    noisy.graph.node[-1].output[0] = "plain"
    for name, value in (("ratio", np.array(0.5, np.float32)), ("training", np.array(True))):
        noisy.graph.initializer.append(numpy_helper.from_array(value, name))
    noisy.graph.node.append(helper.make_node("Dropout", ["plain", "ratio", "training"], ["logits"]))
    assert "evaluation mode (model.eval())" in refusal(noisy, tmp_path)
    mixed = net()
    mixed.graph.node[-1].output[0] = "plain"
    mixed.graph.node.append(helper.make_node("ReduceMean", ["plain"], ["mean"], axes=[0], keepdims=1))
    mixed.graph.node.append(helper.make_node("Sub", ["plain", "mean"], ["logits"]))
    assert "by itself than beside others" in refusal(mixed, tmp_path)
    training = net()
    training.graph.node[0].attribute.append(helper.make_attribute("training_mode", 1))
    assert "was exported for training" in refusal(training, tmp_path)


def test_one_score_is_no_classifier(tmp_path):
    model = net()
    model.graph.node[-1].output[0] = "plain"
    model.graph.node.append(helper.make_node("ReduceMax", ["plain"], ["logits"], axes=[1], keepdims=1))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 1
    assert "gives one score for each image" in refusal(model, tmp_path)


def test_operators_and_opsets_that_no_engine_has_are_named(tmp_path):
    custom = net()
    custom.graph.node.append(helper.make_node("Magic", ["relu"], ["m"], domain="my.company"))
    custom.opset_import.append(helper.make_opsetid("my.company", 1))
    assert "my.company:Magic" in refusal(custom, tmp_path)
    new = net()
    new.opset_import[0].version = 999
    assert "opset 999" in refusal(new, tmp_path)
    missing = net()
    missing.graph.node[0].op_type = "Convolve"
    assert "is not valid ONNX" in refusal(missing, tmp_path)


def external(folder: Path, **entries: str) -> bytes:
    """A net whose first weights are said to be elsewhere."""
    model = net()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    return model.SerializeToString()


@pytest.mark.parametrize("place", ["/etc/passwd", "../secret.data", "a/../../secret.data", ""])
def test_external_data_outside_the_folder_is_never_read(tmp_path, place):
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.data").write_bytes(bytes(4096))
    assert "is not beside it" in refusal(external(folder, location=place), folder)


def test_external_data_that_is_a_link_missing_or_cut_is_refused(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    assert "needs its weights file net.data" in refusal(external(folder, location="net.data"), folder)
    (tmp_path / "secret.data").write_bytes(bytes(4096))
    (folder / "link.data").symlink_to(tmp_path / "secret.data")
    assert "is a link" in refusal(external(folder, location="link.data"), folder)
    os.mkfifo(folder / "pipe.data")
    assert "no plain file" in refusal(external(folder, location="pipe.data"), folder)
    (folder / "net.data").write_bytes(bytes(100))
    cut = external(folder, location="net.data", offset="0", length="768")
    assert "holds less than" in refusal(cut, folder)
    assert "holds less than" in refusal(external(folder, location="net.data", offset="-4"), folder)


@settings(max_examples=150, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), flips=st.integers(0, 3), seed=st.integers(0, 2**32 - 1))
def test_cut_and_damaged_files_give_a_sentence_or_a_whole_model(tmp_path_factory, place, flips, seed):
    data = bytearray(net(ending=("Softmax",)).SerializeToString())
    rng = np.random.default_rng(seed)
    if flips == 0:
        del data[int(place * len(data)) :]
    for where in rng.integers(0, len(data) or 1, flips):
        data[where] ^= 1 << int(rng.integers(8))
    path = tmp_path_factory.mktemp("cut") / "net.onnx"
    path.write_bytes(data)
    facts = own_onnx.describe(msgspec.to_builtins(asked(path)))
    assert ("refused" in facts) or facts["macs"] > 0
    if flips == 0:
        assert "refused" in facts


def test_files_that_are_no_onnx_are_refused(tmp_path):
    assert "is empty" in refusal(b"", tmp_path)
    for data in (b"hello", b"\x89PNG\r\n\x1a\n" + bytes(100), bytes(1000)):
        assert "ONNX" in refusal(data, tmp_path)
    with pytest.raises(InputError, match="cannot be read"):
        open_model(tmp_path / "none.onnx")


def test_a_tensor_with_too_many_bytes_is_damaged(tmp_path):
    model = net()
    model.graph.initializer[0].dims[0] = 3
    assert "damaged tensor" in refusal(model, tmp_path)


# --- preprocess.toml ------------------------------------------------------------------------------


def test_the_example_is_ready_to_edit(tmp_path):
    nets = (net(batch=1), 32, "NCHW"), (net(sides=("H", "W"), layout="NHWC"), 224, "NHWC")
    for model, size, layout in nets:
        path = saved(model, tmp_path)
        text = example(own_onnx.inspect({"file": str(path)}), path.name)
        (tmp_path / "p.toml").write_text(text, encoding="utf-8")
        found = prepared(tmp_path / "p.toml")
        assert (found.preprocess.image_size, found.layout) == (size, layout)
        assert (found.input, found.output) == ("pixel values", "logits")


def test_ranges_and_channel_orders_become_one_form():
    scales = {"range": 255, "mean": [51, 102, 153], "std": [255, 51, 102]}
    theirs = prepared({**SAID, **scales, "channels": "BGR"})
    assert theirs.preprocess.mean == pytest.approx((0.6, 0.4, 0.2))
    assert theirs.preprocess.std == pytest.approx((0.4, 0.2, 1.0))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sizes": 3}, "unknown key 'sizes'"),
        ({"crop_mode": "zoom"}, "crop_mode is 'zoom': use center or squash"),
        ({"range": 2}, "range is 2: use 1"),
        ({"mean": [0.5]}, "mean is \\[0.5\\]: give three numbers"),
        ({"mean": [127, 127, 127]}, "mean is 127, 127, 127: it must be from 0 to 1"),
        ({"std": [0, 0, 0]}, "std is 0, 0, 0: it must be"),
        ({"std": [float("nan")] * 3}, "std is nan"),
        ({"crop": 2}, "crop is 2: it must be"),
        ({"image_size": "big"}, "image_size"),
        ({"image_size": 10**9}, "image_size"),
        ({"input": 3}, "input is 3: give its name"),
        ({"channels": ["RGB"]}, "channels is"),
    ],
)
def test_wrong_keys_and_values_are_named(changes, said):
    with pytest.raises(InputError, match=said):
        prepared({**SAID, **changes})


def test_missing_keys_are_named():
    with pytest.raises(InputError, match="does not say crop, std: say how"):
        prepared({name: value for name, value in SAID.items() if name not in ("crop", "std")})


# --- the source -----------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path) -> Path:
    (tmp_path / "labels.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    saved(net(), tmp_path)
    return tmp_path


def source(place: Path, **changes: object) -> OwnONNX:
    said = {"file": str(place / "net.onnx"), "labels": str(place / "labels.txt"), "preprocess": SAID}
    return OwnONNX(**{**said, **changes})


def test_normalisation_is_asked_for_with_an_example(place, capsys):
    with pytest.raises(NeedsPreprocess, match="does not say how its images are prepared") as found:
        source(place, preprocess=None).check_settings(SearchSettings())
    assert 'input = "pixel values"' in found.value.example
    empty = net()
    del empty.graph.input[:]
    empty.graph.initializer.append(numpy_helper.from_array(PHOTO[:1], "pixel values"))
    with pytest.raises(InputError, match="has no input"):
        source(place, file=str(saved(empty, place, "none.onnx")), preprocess=None).check_settings(
            SearchSettings()
        )
    code = cli.main(["select", "--onnx", str(place / "net.onnx"), "--labels", str(place / "labels.txt")])
    said = capsys.readouterr()
    assert code == 2
    assert said.out == found.value.example
    assert "--preprocess" in said.err


def test_files_and_settings_are_checked_first(place):
    for changes, said in (
        ({"file": str(place)}, "is a folder"),
        ({"file": str(place / "none.onnx")}, "no ONNX file at"),
        ({"accuracy": 0.8}, "may be a fraction"),
        ({"labels": str(place / "none")}, "does not exist"),
    ):
        with pytest.raises(InputError, match=said):
            source(place, **changes).check_settings(SearchSettings())
    with pytest.raises(InputError, match="add onnx to --implementations"):
        source(place).check_settings(SearchSettings(implementations=("timm",)))


def test_labelled_images_must_be_of_the_file_s_classes(place):
    class Two:
        classes, name = ("ash", "elm"), "trees"

    own = source(place)
    own.check(Requirements(), SearchSettings(), None)
    with pytest.raises(InputError, match=r"only .* has beech, oak; only the data has elm"):
        own.check(Requirements(), SearchSettings(), Two())


def test_a_child_that_dies_is_a_sentence(place, monkeypatch):
    def call(*_: object, **__: object) -> object:
        raise sandbox.ChildFailure("reading net.onnx crashed (SIGSEGV)")

    monkeypatch.setattr(sandbox, "call", call)
    with pytest.raises(InputError, match=r"SIGSEGV.*: give another file"):
        source(place, preprocess=None).check_settings(SearchSettings())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--onnx", "net.onnx"], "--onnx needs --labels"),
        (["--preprocess", "p.toml"], "give --onnx FILE too"),
        (["--onnx", "net.onnx", "--weights", "w", "--labels", "l"], "do not go together"),
        (["--onnx", "net.onnx", "--arch", "resnet50", "--labels", "l"], "give --weights FILE too"),
    ],
)
def test_options_that_do_not_go_together_are_refused(arguments, said, capsys):
    assert cli.main(["select", *arguments]) == 2
    assert said in capsys.readouterr().err


# --- the road -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_engine_is_compared_with_the_file_itself(place, monkeypatch):
    monkeypatch.setenv("VITRAIL_CACHE", str(place / "cache"))
    path = saved(net(batch=1, layout="NHWC", ending=("Softmax",)), place)
    photos = sample_photos()
    workload = Workload(threads=1)
    settings = SearchSettings(offline=True)
    with Workshop() as workshop:
        bench = Bench(
            workload=workload,
            photos=photos,
            finder=WeightsFinder(offline=True),
            machine=hardware.facts(),
            fresh=True,
            workshop=workshop,
        )
        context = Context(requirements=Requirements(), settings=settings, bench=bench, download_mib=0)
        own = source(place, accuracy=75.1)
        (candidate,) = own.find(context).candidates
        assert (candidate.name, candidate.trained_with) == ("net.onnx", "onnx")
        assert candidate.accuracy == Accuracy(value=75.1, provenance="declared", source="--accuracy")
        forms = variants([candidate], workload, settings)
        assert {form.runtime for form in forms} == {"onnxruntime", "openvino"}
        for form in forms:
            export = bench.export(form, timeout_s=120)
            assert (export.random_weights, form.implementation) == (False, "onnx")
            parity = bench.parity(bench.subject(form, export), left_s=60)
            assert parity.relative_error < (1e-4 if form.precision == "fp32" else 0.2)
        reference = bench.reference_outputs(forms[0])["scores"]
        task = bench.task(forms[0])
        # The bench shuffles the photos; each has its own row.
        first = task.prepare([decode(bench._parity_photos[0])])["images"]
    (expected,) = run(path, {"pixel values": np.ascontiguousarray(first.transpose(0, 2, 3, 1))})
    given = probabilities(reference[0, :1], "softmax")
    np.testing.assert_allclose(given, expected, rtol=1e-5, atol=1e-6)

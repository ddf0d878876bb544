"""A person's own ONNX file that cannot be a candidate: one sentence with the fix, whatever is wrong."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from own_nets import (
    asked,
    changed,
    described,
    net,
    refusal,
)

from vitrail.errors import InputError
from vitrail.export import own_onnx
from vitrail.export.onnx_file import open_model


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


def test_numbers_and_types_that_cannot_be_measured_are_refused(tmp_path):
    nan, infinite = np.full(4, np.nan, np.float32), np.full(4, np.inf, np.float32)
    assert "not finite (NaN or infinity) in b" in refusal(changed("b", nan), tmp_path)
    assert "not finite (NaN or infinity) in b" in refusal(changed("b", infinite), tmp_path)
    brain = net()
    brain.graph.initializer.append(helper.make_tensor("h", TensorProto.BFLOAT16, [1], [1.0]))
    assert "bfloat16 numbers, which no engine here runs" in refusal(brain, tmp_path)
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

"""A person's own ONNX file is copied so that the copy answers as the file does, run by ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from own_nets import (
    CLASSES,
    MACS,
    PARAMETERS,
    PHOTO,
    SAID,
    SIZE,
    asked,
    between,
    changed,
    copied,
    described,
    halved,
    net,
    refusal,
    run,
    saved,
)

from vitrail.errors import InputError
from vitrail.export import onnx_file, onnx_run, onnx_widen, own_onnx
from vitrail.sources.prepared import prepared
from vitrail.tasks.classify import probabilities


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


def branch(operator: str, output: str) -> onnx.GraphProto:
    """One side of an If, which reads the images and the scores of the graph around it."""
    nodes = [
        helper.make_node("ReduceMean", ["pixel values"], [f"{output}_mean"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Unsqueeze", [f"{output}_mean", "last"], [f"{output}_column"]),
        helper.make_node(operator, ["plain", f"{output}_column"], [output]),
    ]
    made = helper.make_tensor_value_info(output, TensorProto.FLOAT, ["N", 3])
    return helper.make_graph(nodes, operator, [], [made])


def test_branches_and_functions_are_fine(tmp_path):
    model = net()
    model.graph.node[-1].output[0] = "plain"
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "which"))
    model.graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), "last"))
    branches = {"then_branch": branch("Add", "scores"), "else_branch": branch("Sub", "images")}
    model.graph.node.append(helper.make_node("If", ["which"], ["picked"], **branches))
    doubled = [helper.make_node("Add", ["x", "x"], ["y"])]
    opsets = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("mine", "Twice", ["x"], ["y"], doubled, opsets))
    model.opset_import.append(helper.make_opsetid("mine", 1))
    model.graph.node.append(helper.make_node("Twice", ["picked"], ["logits"], domain="mine"))
    path = saved(model, tmp_path)
    images = (PHOTO / 255 - 0.5) / 0.25
    (given,) = run(copied(path, asked(path)), {"images": images})
    (expected,) = run(path, {"pixel values": images})
    np.testing.assert_allclose(given, expected, rtol=1e-5, atol=1e-6)
    assert described(model, tmp_path)["macs"] == MACS


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


# --- 16-bit numbers -------------------------------------------------------------------------------


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("ending", [(), ("Sigmoid",), ("Softmax",)])
def test_a_file_of_16_bit_numbers_is_read_as_float32(tmp_path, ending, inside):
    path = saved(halved(net(ending=ending), inside=inside), tmp_path)
    request = asked(path)
    facts = own_onnx.describe(msgspec.to_builtins(request))
    (note,) = [note for note in facts["notes"] if "16-bit numbers of net.onnx are read as float32" in note]
    assert "precisions are Vitrail's to compare" in note
    found = copied(path, request)
    assert {tensor.data_type for tensor in onnx.load(found).graph.initializer} <= {
        TensorProto.FLOAT,
        TensorProto.INT64,
    }
    # The same net in float32 whose weights were rounded to 16 bits, nothing else.
    rounded = net()
    for tensor in rounded.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            values = numpy_helper.to_array(tensor).astype(np.float16).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    images = (PHOTO / 255 - 0.5) / 0.25
    (scores,) = run(found, {"images": images})
    (expected,) = run(saved(rounded, tmp_path, "rounded.onnx"), {"pixel values": images})
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-5)


def test_nodes_may_stand_in_any_order(tmp_path):
    """As tools write them that append the Casts they insert."""
    model, order = halved(net(ending=("Sigmoid",))), np.random.default_rng(0)
    expected = run(copied(saved(model, tmp_path), asked(tmp_path / "net.onnx")), {"images": PHOTO})
    nodes = [model.graph.node[place] for place in order.permutation(len(model.graph.node))]
    mixed = net()
    mixed.CopyFrom(model)
    del mixed.graph.node[:]
    mixed.graph.node.extend(nodes)
    with pytest.raises(onnx.checker.ValidationError, match="topologically sorted"):
        onnx.checker.check_model(mixed)
    path = saved(mixed, tmp_path, "mixed.onnx")
    assert np.array_equal(run(copied(path, asked(path)), {"images": PHOTO})[0], expected[0])
    cycle = net()
    cycle.graph.node[0].input[0] = cycle.graph.node[-1].output[0]
    assert "is not valid ONNX" in refusal(cycle, tmp_path)


def test_a_widened_file_that_answers_otherwise_is_refused():
    given = np.array([[1.0, -2.0, 3.0]], np.float32)
    onnx_widen.check(given, given * 1.01, Path("net.onnx"))
    for other in (given * 1.1, given * np.float32("nan")):
        with pytest.raises(InputError, match="answers otherwise when its 16-bit numbers"):
            onnx_widen.check(given, other, Path("net.onnx"))


def test_16_bit_numbers_that_are_not_finite_are_refused(tmp_path):
    with np.errstate(over="ignore"):
        said = refusal(halved(changed("b", np.full(4, 1e6, np.float32))), tmp_path)
    assert "not finite (NaN or infinity) in b" in said

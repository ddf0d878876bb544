"""Small ONNX classifiers as exporters write them, made without PyTorch: 3 × 32 × 32 px -> three scores.

And what tests do with them: save, describe, copy, run.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from vitrail.export import own_onnx
from vitrail.export.requests import OwnRequest
from vitrail.sources.prepared import prepared

CLASSES = ("ash", "beech", "oak")
SIZE = 32
MACS = 8 * 8 * 4 * 3 * 4 * 4 + 4 * len(CLASSES)
"""Of one image: a convolution to 4 × 8 × 8, and a linear layer."""
PARAMETERS = 4 * 3 * 4 * 4 + 4 + 4 * len(CLASSES) + len(CLASSES)
PHOTO = np.random.default_rng(1).integers(0, 256, (5, 3, SIZE, SIZE)).astype(np.float32)
"""Pixels from 0 to 255."""
SAID = {
    "image_size": SIZE,
    "crop": 1.0,
    "crop_mode": "center",
    "interpolation": "bilinear",
    "range": 1,
    "mean": [0.5, 0.5, 0.5],
    "std": [0.25, 0.25, 0.25],
}


def net(
    *,
    batch: int | str = "N",
    sides: tuple[int | str, int | str] = (SIZE, SIZE),
    layout: str = "NCHW",
    kind: int = TensorProto.FLOAT,
    ending: tuple[str, ...] = (),
    reshape: tuple[int, int] | None = None,
    names: tuple[str, str] = ("pixel values", "logits"),
    opset: int = 17,
) -> onnx.ModelProto:
    """One classifier; `ending` are operators after the scores, `reshape` a constant in place of Flatten."""
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.standard_normal((4, 3, 4, 4)) / 8,
        "b": rng.standard_normal(4),
        "v": rng.standard_normal((4, len(CLASSES))),
        "c": rng.standard_normal(len(CLASSES)),
    }
    given, output = names
    nodes, name = [], given
    if kind != TensorProto.FLOAT:
        nodes.append(helper.make_node("Cast", [name], ["float"], to=TensorProto.FLOAT))
        name = "float"
    if layout == "NHWC":
        nodes.append(helper.make_node("Transpose", [name], ["turned"], perm=[0, 3, 1, 2]))
        name = "turned"
    constants = [numpy_helper.from_array(value.astype(np.float32), key) for key, value in weights.items()]
    nodes += [
        helper.make_node("Conv", [name, "w", "b"], ["conv"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Relu", ["conv"], ["relu"]),
        helper.make_node("GlobalAveragePool", ["relu"], ["pooled"]),
    ]
    if reshape is None:
        nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"], axis=1))
    else:
        constants.append(numpy_helper.from_array(np.array(reshape, np.int64), "shape"))
        nodes.append(helper.make_node("Reshape", ["pooled", "shape"], ["flat"]))
    steps = ["Gemm", *ending]
    made = [f"step_{number}" for number in range(len(ending))] + [output]
    nodes.append(helper.make_node("Gemm", ["flat", "v", "c"], [made[0]]))
    for operator, before, after in zip(steps[1:], made, made[1:], strict=False):
        nodes.append(helper.make_node(operator, [before], [after]))
    shape = [batch, 3, *sides] if layout == "NCHW" else [batch, *sides, 3]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info(given, kind, shape)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, [batch, len(CLASSES)])],
        constants,
        doc_string="/home/somebody/secret/train.py",
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def between(*nodes: onnx.NodeProto, **weights: np.ndarray) -> onnx.ModelProto:
    """A net for one image with nodes that turn `flat` into `other` before its last layer."""
    model = net(batch=1)
    model.graph.initializer.extend(numpy_helper.from_array(value, key) for key, value in weights.items())
    last = model.graph.node.pop()
    last.input[0] = "other"
    model.graph.node.extend([*nodes, last])
    return model


def halved(model: onnx.ModelProto, *, inside: bool = True) -> onnx.ModelProto:
    """The net with fp16 weights and arithmetic, taking and giving float32 as published files do (`inside`),
    or fp16 as well."""
    half = TensorProto.FLOAT16
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            values = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    given, output = model.graph.input[0], model.graph.output[0]
    if not inside:
        given.type.tensor_type.elem_type = output.type.tensor_type.elem_type = half
        return model
    first, last = model.graph.node[0], model.graph.node[-1]
    first.input[0], last.output[0] = "narrow", "narrow scores"
    model.graph.node.insert(0, helper.make_node("Cast", [given.name], ["narrow"], to=half))
    model.graph.node.append(helper.make_node("Cast", ["narrow scores"], [output.name], to=TensorProto.FLOAT))
    return model


def changed(name: str, value: np.ndarray) -> onnx.ModelProto:
    model = net()
    for tensor in model.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(value, name))
    return model


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

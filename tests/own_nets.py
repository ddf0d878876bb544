"""Small ONNX classifiers as exporters write them, made without PyTorch: 3 × 32 × 32 px -> three scores."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CLASSES = ("ash", "beech", "oak")
SIZE = 32
MACS = 8 * 8 * 4 * 3 * 4 * 4 + 4 * len(CLASSES)
"""Of one image: a convolution to 4 × 8 × 8, and a linear layer."""
PARAMETERS = 4 * 3 * 4 * 4 + 4 + 4 * len(CLASSES) + len(CLASSES)
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

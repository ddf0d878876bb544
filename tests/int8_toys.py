"""Small ONNX graphs to quantise, and inputs for them: numpy and onnx alone."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WIDTH, CLASSES = 8, 5


def weights(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def graph_model(nodes: list, initializers: dict[str, np.ndarray], shape: list, out: list) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, out)],
        [numpy_helper.from_array(value, name) for name, value in initializers.items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    return onnx.shape_inference.infer_shapes(helper.make_model(graph, opset_imports=opsets, ir_version=10))


def linear(weight: np.ndarray) -> onnx.ModelProto:
    nodes = [helper.make_node("MatMul", ["images", "weight"], ["scores"], name="linear")]
    return graph_model(nodes, {"weight": weight}, ["B", weight.shape[0]], ["B", weight.shape[1]])


def convolutions() -> onnx.ModelProto:
    """images (B, 3, 8, 8) -> three convolutions, the second a depthwise one, and a classifier."""
    nodes = [
        helper.make_node("Conv", ["images", "w0", "b0"], ["c0"], name="stem", pads=[1] * 4),
        helper.make_node("Relu", ["c0"], ["r0"], name="relu0"),
        helper.make_node("Conv", ["r0", "w1", "b1"], ["c1"], name="depthwise", pads=[1] * 4, group=WIDTH),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], name="pointwise"),
        helper.make_node("Add", ["c2", "r0"], ["sum"], name="residual"),
        helper.make_node("GlobalAveragePool", ["sum"], ["pool"], name="pool"),
        helper.make_node("Flatten", ["pool"], ["flat"], name="flatten"),
        helper.make_node("Gemm", ["flat", "w3", "b3"], ["scores"], name="head", transB=1),
    ]
    tensors = {
        "w0": weights(0, WIDTH, 3, 3, 3),
        "w1": weights(1, WIDTH, 1, 3, 3),
        "w2": weights(2, WIDTH, WIDTH, 1, 1),
        "w3": weights(3, CLASSES, WIDTH),
        **{f"b{i}": weights(10 + i, CLASSES if i == 3 else WIDTH) for i in range(4)},
    }
    return graph_model(nodes, tensors, ["B", 3, 8, 8], ["B", CLASSES])


def attention() -> onnx.ModelProto:
    """images (B, 6, 8) -> fused attention of two heads between two projections."""
    fused = helper.make_node(
        "MultiHeadAttention",
        ["q", "k", "v"],
        ["mixed"],
        name="attention",
        domain="com.microsoft",
        num_heads=2,
    )
    cuts = [
        helper.make_node("Slice", ["qkv", f"at{i}", f"at{i + 1}", "axis"], [name], name=f"slice_{name}")
        for i, name in enumerate("qkv")
    ]
    nodes = [
        helper.make_node("LayerNormalization", ["images", "gain", "shift"], ["normed"], name="norm"),
        helper.make_node("MatMul", ["normed", "w0"], ["qkv"], name="project"),
        *cuts,
        fused,
        helper.make_node("MatMul", ["mixed", "w1"], ["back"], name="back"),
        helper.make_node("Add", ["back", "images"], ["scores"], name="residual"),
    ]
    tensors = {
        "gain": np.ones(WIDTH, np.float32),
        "shift": np.zeros(WIDTH, np.float32),
        "w0": weights(0, WIDTH, 3 * WIDTH),
        "w1": weights(1, WIDTH, WIDTH),
        "axis": np.array([2]),
        **{f"at{i}": np.array([i * WIDTH]) for i in range(4)},
    }
    return graph_model(nodes, tensors, ["B", 6, WIDTH], ["B", 6, WIDTH])


def pooled() -> onnx.ModelProto:
    """images (B, 6, 8) -> softmax, the mean over the tokens, which keeps no axis, and a classifier."""
    nodes = [
        helper.make_node("LayerNormalization", ["images", "gain", "shift"], ["normed"], name="norm"),
        helper.make_node("Softmax", ["normed"], ["soft"], name="soft"),
        helper.make_node("Add", ["soft", "images"], ["sum"], name="residual"),
        helper.make_node("ReduceMean", ["sum", "axis"], ["mean"], name="mean", keepdims=0),
        helper.make_node("Gemm", ["mean", "w0"], ["scores"], name="head"),
    ]
    tensors = {
        "gain": np.ones(WIDTH, np.float32),
        "shift": np.zeros(WIDTH, np.float32),
        "axis": np.array([1]),
        "w0": weights(0, WIDTH, CLASSES) * np.linspace(0.1, 3, WIDTH, dtype=np.float32)[:, None],
    }
    return graph_model(nodes, tensors, ["B", 6, WIDTH], ["B", CLASSES])


def photos(shape: tuple[int, ...], count: int = 8) -> list[dict[str, np.ndarray]]:
    return [{"images": weights(100 + i, 1, *shape)} for i in range(count)]


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}

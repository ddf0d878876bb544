"""int8: an exported ONNX model with Q/DQ nodes, which every engine reads (docs/decisions/int8.md).

A layer is a node that multiplies by weights (Conv, Gemm, MatMul) or two activations (MatMul). It computes in
int8 where both factors come from a DequantizeLinear.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partialmethod
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from vitrail.export.passes.edit import name_nodes
from vitrail.privacy import import_engine

__all__ = ["quantised_nodes", "quantize", "symmetric", "unsigned"]

LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
BIASED = frozenset({"Conv", "ConvTranspose", "Gemm"})
ATTENTION = frozenset({"Attention", "MultiHeadAttention", "Softmax"})
MOVES = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
"""They move numbers and compute none: what a DequantizeLinear gave is still that behind them."""


def quantize(
    model: onnx.ModelProto, inputs: Sequence[Mapping[str, np.ndarray]], *, kept: Collection[str] = ()
) -> onnx.ModelProto:
    """`model` with its layers in int8; the same arguments give the same bytes.

    `inputs` calibrate the ranges of activations: one mapping a run, input name -> array, of any batch size.
    `kept` names the nodes that stay in higher precision. `model` itself stays as it is.

    Raises:
        ValueError: no inputs, or `kept` names a node that the model does not have.
        ImportError: NNCF is not installed.
    """
    if not inputs:
        raise ValueError("int8 needs photos to calibrate the ranges of activations: none were given")
    prepared = _prepared(model)
    missing = set(kept) - {node.name for node in prepared.graph.node}
    if missing:
        raise ValueError(f"no nodes of the model: {', '.join(sorted(missing))}")
    with _quiet_nncf() as nncf:
        return nncf.quantize(
            prepared,
            nncf.Dataset([dict(arrays) for arrays in inputs]),
            subset_size=len(inputs),
            ignored_scope=nncf.IgnoredScope(names=sorted(kept)),
            **_settings(nncf, prepared),
        )


def quantised_nodes(model: onnx.ModelProto) -> tuple[str, ...]:
    """Names of the layers of `model` that compute in int8, in the graph's order."""
    producers = {name: node for node in model.graph.node for name in node.output}
    return tuple(
        node.name
        for node in model.graph.node
        if node.op_type in LAYERS and all(dequantised(name, producers) for name in node.input[:2])
    )


def unsigned(quantised: onnx.ModelProto) -> onnx.ModelProto:
    """The same function, activations as unsigned integers: the form that ONNX Runtime computes quickly.

    Its kernels want one type for what goes in and what comes out; where they differ it computes in fp32.
    OpenVINO computes this form up to a quarter slower than NNCF's own, which has no zero points to correct.
    """
    result = onnx.ModelProto()
    result.CopyFrom(quantised)
    graph = result.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    changed = set[str]()
    for node in graph.node:
        zero = (
            tensors.get(node.input[2]) if node.op_type == "QuantizeLinear" and len(node.input) > 2 else None
        )
        if zero is not None and zero.data_type == onnx.TensorProto.INT8:
            values = numpy_helper.to_array(zero).astype(np.int16) + 128
            zero.CopyFrom(numpy_helper.from_array(values.astype(np.uint8), zero.name))
            changed.update((node.output[0], zero.name))
    for info in graph.value_info:
        if info.name in changed:
            info.type.tensor_type.elem_type = onnx.TensorProto.UINT8
    return result


def symmetric(quantised: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with activations as signed integers around zero, the only ones that TensorRT has.

    Each range that the photos gave becomes the smallest one around zero that holds it, in 255 levels. What
    was never negative keeps half of its levels; biases that were corrected stay as they are.
    """
    result = onnx.ModelProto()
    result.CopyFrom(quantised)
    graph = result.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    points_of: dict[str, np.ndarray] = {}  # before any was changed: several ranges may share one
    done, changed = set[str](), set[str]()
    for node in graph.node:
        if node.op_type != "QuantizeLinear" or len(node.input) < 3:
            continue
        scale, zero = (tensors[name] for name in node.input[1:3])
        points = points_of.setdefault(zero.name, numpy_helper.to_array(zero))
        signed = points.dtype == np.int8
        if signed and not points.any():
            continue
        changed.update((zero.name, node.output[0]))
        if scale.name in done:
            continue
        limits = np.iinfo(points.dtype)
        steps = np.maximum(points.astype(np.int64) - limits.min, limits.max - points.astype(np.int64))
        wide = numpy_helper.to_array(scale) * (steps / 127.0)
        scale.CopyFrom(numpy_helper.from_array(wide.astype(np.float32), scale.name))
        zero.CopyFrom(numpy_helper.from_array(np.zeros_like(points, np.int8), zero.name))
        done.add(scale.name)
    for info in graph.value_info:
        if info.name in changed:
            info.type.tensor_type.elem_type = onnx.TensorProto.INT8
    return result


def dequantised(name: str, producers: Mapping[str, onnx.NodeProto]) -> onnx.NodeProto | None:
    """The DequantizeLinear that tensor `name` comes from, through nodes that only move numbers."""
    node = producers.get(name)
    while node is not None and node.op_type in MOVES:
        node = producers.get(node.input[0])
    return node if node is not None and node.op_type == "DequantizeLinear" else None


def _settings(nncf: Any, model: onnx.ModelProto) -> dict[str, Any]:
    """What docs/decisions/int8.md found best for each kind of model."""
    parameters = nncf.quantization.advanced_parameters
    advanced = nncf.AdvancedQuantizationParameters(
        # Before depthwise convolutions NNCF would choose a range a channel, no nearer and with fewer kernels.
        activations_quantization_params=parameters.QuantizationParameters(per_channel=False),
        # NNCF's own choice, the mean of each photo's extremes, cuts the extremes of half the photos off.
        activations_range_estimator_params=nncf.quantization.range_estimator.RangeEstimatorParametersSet.MINMAX,
    )
    if any(node.op_type in ATTENTION for node in model.graph.node):
        kind = {"model_type": nncf.ModelType.TRANSFORMER, "preset": nncf.QuantizationPreset.MIXED}
    else:
        kind = {"preset": nncf.QuantizationPreset.PERFORMANCE}
    return {**kind, "advanced_parameters": advanced}


def _prepared(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that NNCF and the engines read rightly; all tensors of `model` keep their names."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    name_nodes(copy.graph)
    _own_biases(copy.graph)
    _keep_dimensions(copy)
    _know_attention(copy.graph)
    return copy


def _own_biases(graph: onnx.GraphProto) -> None:
    """Give each layer a bias of its own: bias correction changes it, and would change what else reads it."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    uses = Counter(name for node in graph.node for name in node.input)
    for node in graph.node:
        bias = node.input[2] if node.op_type in BIASED and len(node.input) > 2 else ""
        if bias in tensors and uses[bias] > 1:
            node.input[2] = f"{bias}/{node.name}"
            own = graph.initializer.add()
            own.CopyFrom(tensors[bias])
            own.name = node.input[2]


def _keep_dimensions(model: onnx.ModelProto) -> None:
    """Write a mean that drops its axes as one that keeps them, and a Squeeze.

    OpenVINO 2026.4 fuses a factor per channel behind the mean (SmoothQuant's) along a wrong axis, where the
    mean drops axes and a quantiser follows: an error of a third, without a word.
    """
    nodes = []
    for node in model.graph.node:
        nodes.append(node)
        keeps = next((attribute for attribute in node.attribute if attribute.name == "keepdims"), None)
        axes = node.input[1] if len(node.input) > 1 else ""  # before opset 18 an attribute; left alone
        if node.op_type != "ReduceMean" or not axes or keeps is None or keeps.i:
            continue
        keeps.i = 1
        result = node.output[0]
        node.output[0] = f"{result}/kept"
        nodes.append(helper.make_node("Squeeze", [node.output[0], axes], [result], f"{node.name}/squeeze"))
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _know_attention(graph: onnx.GraphProto) -> None:
    """Write down the shape of fused attention, which ONNX's shape inference does not know.

    NNCF takes an edge of unknown type for an integer one, and would leave the layer behind it alone.
    """
    shapes = {info.name: info.type.tensor_type for info in (*graph.value_info, *graph.input, *graph.output)}
    for node in graph.node:
        if node.op_type == "MultiHeadAttention" and node.input[0] in shapes and node.output[0] not in shapes:
            query = shapes[node.input[0]]
            known = [dim.dim_param or dim.dim_value or None for dim in query.shape.dim]
            graph.value_info.append(helper.make_tensor_value_info(node.output[0], query.elem_type, known))


@contextmanager
def _quiet_nncf() -> Iterator[Any]:
    """NNCF without reports, log lines and progress bars; what it changes for the process is put back."""
    logger_class, torch_logger = logging.getLoggerClass(), logging.getLogger("torch.utils.cpp_extension")
    silenced, torch_logger.disabled = torch_logger.disabled, True  # it speaks of CUDA where there is none
    try:
        for engine in ("onnxruntime", "openvino"):
            import_engine(engine)  # or NNCF imports it, and it reports
        nncf = import_engine("nncf")
        logger, bars = logging.getLogger("nncf"), import_engine("nncf.common.logging.track_progress").track
        level, init = logger.level, bars.__init__
        logger.setLevel(logging.ERROR)
        bars.__init__ = partialmethod(init, disable=True)
        try:
            yield nncf
        finally:
            bars.__init__ = init
            logger.setLevel(level)
    finally:
        torch_logger.disabled = silenced
        logging.setLoggerClass(logger_class)

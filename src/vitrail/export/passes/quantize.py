"""int8: an exported ONNX model with Q/DQ nodes, which every engine reads (docs/decisions/int8.md).

A layer is a node that multiplies by weights (Conv, Gemm, MatMul) or two activations (MatMul). It computes in
int8 where both factors come from a DequantizeLinear.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partialmethod
from typing import Any

import numpy as np
import onnx
from onnx import helper

from vitrail.privacy import import_engine

__all__ = ["quantised_nodes", "quantize"]

LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
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


def dequantised(name: str, producers: Mapping[str, onnx.NodeProto]) -> onnx.NodeProto | None:
    """The DequantizeLinear that tensor `name` comes from, through nodes that only move numbers."""
    node = producers.get(name)
    while node is not None and node.op_type in MOVES:
        node = producers.get(node.input[0])
    return node if node is not None and node.op_type == "DequantizeLinear" else None


def _settings(nncf: Any, model: onnx.ModelProto) -> dict[str, Any]:
    if any(node.op_type in ATTENTION for node in model.graph.node):
        return {"model_type": nncf.ModelType.TRANSFORMER, "preset": nncf.QuantizationPreset.MIXED}
    return {"preset": nncf.QuantizationPreset.PERFORMANCE}


def _prepared(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose nodes all have names, and whose fused attention has a known shape.

    NNCF takes an edge of unknown type for an integer one, and leaves the layer behind it alone; ONNX's shape
    inference knows no contributed operators.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    names = {node.name for node in copy.graph.node}
    for place, node in enumerate(copy.graph.node):
        if not node.name:
            node.name = f"node_{place}"
            while node.name in names:
                node.name += "_"
            names.add(node.name)
    shapes = {
        info.name: info.type.tensor_type
        for info in (*copy.graph.value_info, *copy.graph.input, *copy.graph.output)
    }
    for node in copy.graph.node:
        if node.op_type == "MultiHeadAttention" and node.input[0] in shapes and node.output[0] not in shapes:
            query = shapes[node.input[0]]
            known = [dim.dim_param or dim.dim_value or None for dim in query.shape.dim]
            copy.graph.value_info.append(
                helper.make_tensor_value_info(node.output[0], query.elem_type, known)
            )
    return copy


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

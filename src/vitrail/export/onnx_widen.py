"""16-bit floating-point numbers of a person's own ONNX file, widened to float32 when it is read.

Published files are often fp16, to be half as large. Every fp16 number is a float32 number, so widening
changes no weight; only the rounding between operators goes, and precisions are then Vitrail's to compare.
That the widened graph answers as the file does, within that rounding, is checked by running both in ONNX
Runtime, which on CPUs rounds to fp16 in fewer places than the file says.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from vitrail.errors import InputError
from vitrail.export.onnx_file import ONE_FILE_LIMIT, constants, graphs, nodes, weight_bytes

__all__ = ["check", "has_halves", "widened"]

FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16}
TYPED = ("to", "dtype")
"""Attributes in which operators name a type: Cast, EyeLike, RandomNormal, …"""
ROUNDING = 0.05
"""Largest relative difference between what the file gives and its widened copy: fp16 keeps eleven bits, and a
deep network adds up what each of its operators rounds."""


def has_halves(model: onnx.ModelProto) -> bool:
    """Whether any number of it is fp16: a constant, an input or output, or what an operator makes."""
    return (
        any(tensor.data_type == TensorProto.FLOAT16 for _, tensor in constants(model))
        or any(value.type.tensor_type.elem_type == TensorProto.FLOAT16 for value in _values(model))
        or any(attribute.i == TensorProto.FLOAT16 for attribute in _typed(model))
    )


def widened(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which all that is fp16 is float32, and what turned one into the other does nothing."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    types = _types(model)
    for node in copy.graph.node:
        if node.op_type == "Cast" and {types.get(name) for name in (*node.input, *node.output)} == FLOATS:
            # No Cast: what ends a graph is looked for behind Identities.
            node.op_type = "Identity"
            del node.attribute[:]
    for _, tensor in constants(copy):
        if tensor.data_type == TensorProto.FLOAT16:
            wide = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(wide, tensor.name))
    for value in _values(copy):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT16:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for attribute in _typed(copy):
        if attribute.i == TensorProto.FLOAT16:
            attribute.i = TensorProto.FLOAT
    return copy


def check(given: np.ndarray, wide: np.ndarray, path: Path) -> None:
    """The file's own answers to some images, and those of its widened copy.

    Raises:
        InputError: they differ by more than rounding.
    """
    exact = given.astype(np.float64)
    difference = float(np.linalg.norm(wide - exact)) / (float(np.linalg.norm(exact)) or 1.0)
    if not difference <= ROUNDING:
        raise InputError(
            f"{path} answers otherwise when its 16-bit numbers are read as float32 (by {difference:.1e}, "
            "relative): export it in float32 (model.float() in PyTorch)."
        )


def _types(model: onnx.ModelProto) -> dict[str, int]:
    """Of the tensors in the outermost graph, as far as they can be inferred."""
    if weight_bytes(model) > ONE_FILE_LIMIT:  # inference serialises the model; a Cast more costs nothing
        return {}
    found = onnx.shape_inference.infer_shapes(model).graph
    values = (*found.input, *found.output, *found.value_info)
    return {value.name: value.type.tensor_type.elem_type for value in values}


def _values(model: onnx.ModelProto) -> Iterator[onnx.ValueInfoProto]:
    for graph in graphs(model.graph):
        yield from (*graph.input, *graph.output, *graph.value_info)


def _typed(model: onnx.ModelProto) -> Iterator[onnx.AttributeProto]:
    for node in nodes(model):
        yield from (attribute for attribute in node.attribute if attribute.name in TYPED)

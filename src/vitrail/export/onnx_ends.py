"""The inputs and outputs of a person's own ONNX file: which are the images and the scores."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import onnx
from onnx import TensorProto

from vitrail.errors import InputError
from vitrail.export.onnx_copy import NUMPY, dependencies
from vitrail.export.onnx_file import required_inputs
from vitrail.export.requests import OwnRequest
from vitrail.words import counted, some_of

__all__ = ["check_alone", "chosen", "read_input", "shape_of", "type_of"]

Layout = Literal["NCHW", "NHWC"]
LAYOUTS: tuple[tuple[Layout, int], ...] = (("NCHW", 1), ("NHWC", 3))
"""Name of a layout, place of its channels."""


def chosen(which: str, asked: str, there: list[onnx.ValueInfoProto], path: Path) -> onnx.ValueInfoProto:
    names = [value.name for value in there]
    if asked:
        if asked not in names:
            raise InputError(f'{path} has no {which} "{asked}": in --preprocess, name {_or(names)}.')
        return there[names.index(asked)]
    there = [value for value in there if value.type.HasField("tensor_type")] or there
    if len(there) != 1:
        listed = ", ".join(f"{value.name} {_said(shape_of(value))}" for value in there) or "none"
        raise InputError(
            f'{path} has {counted(len(there), which)} ({listed}): in --preprocess, say {which} = "NAME".'
        )
    return there[0]


def check_alone(model: onnx.ModelProto, scores: str, name: str, path: Path) -> None:
    """Refuse scores that need other inputs than the images, or not the images at all."""
    _, read = dependencies(model.graph, scores)
    needed = {value.name for value in required_inputs(model.graph)} & read
    if extra := sorted(needed - {name}):
        raise InputError(
            f"{path} also asks for {some_of(extra)} beside the images: export it with these as constants."
        )
    if name not in needed:
        raise InputError(f'{path} computes this output without "{name}": name another input or output.')


def read_input(value: onnx.ValueInfoProto, request: OwnRequest, path: Path) -> tuple[Layout, int | None]:
    """Layout and fixed batch (None: free) of the images.

    Raises:
        InputError: no batch of square colour images of the size that is asked for, or an unclear layout.
    """
    if type_of(value) not in NUMPY:
        kind = TensorProto.DataType.Name(type_of(value)).lower() if type_of(value) else "no tensor"
        raise InputError(
            f"{path} takes {kind} as {value.name}, not images as float32 or uint8: export it with such an "
            "input."
        )
    shape = shape_of(value) or [None] * 4
    if len(shape) != 4:
        raise InputError(f"{path} takes {value.name} {_said(shape)}, not images (B, 3, H, W): export it so.")
    layout = _layout(f"{path} takes {value.name} {_said(shape)}", shape, request.layout)
    first = 2 if layout == "NCHW" else 1
    _check_size(path, shape[first : first + 2], request.preprocess.image_size)
    return layout, shape[0]


def _layout(said: str, shape: list[int | None], asked: Layout | None) -> Layout:
    possible = [name for name, place in LAYOUTS if shape[place] in (3, None)]
    certain = [name for name, place in LAYOUTS if shape[place] == 3]
    if asked in possible:
        return asked
    if asked is not None or not possible:
        raise InputError(
            f"{said}, which is no image of three channels{f' in {asked}' if asked else ''}: give a model for "
            'colour images, with their layout ("NCHW" or "NHWC") in --preprocess.'
        )
    for found in (certain, possible):
        if len(found) == 1:
            return found[0]
    raise InputError(
        f'{said}, in which two sides may be the channels: in --preprocess, say layout = "NCHW" or "NHWC".'
    )


def _check_size(path: Path, sides: list[int | None], size: int) -> None:
    fixed = {side for side in sides if side is not None}
    if fixed <= {size}:
        return
    said = " × ".join("any" if side is None else str(side) for side in sides)
    fix = "export it for square images, which are all that Vitrail prepares"
    if len(fixed) == 1:
        fix = f"say image_size = {fixed.pop()} in --preprocess, and leave --image-size out"
    raise InputError(f"{path} takes images of {said} px, not of {size} × {size}: {fix}.")


def shape_of(value: onnx.ValueInfoProto) -> list[int | None]:
    """The sides of a tensor, None for a free one; []: it is not known how many sides it has."""
    return [side.dim_value if side.dim_value > 0 else None for side in value.type.tensor_type.shape.dim]


def type_of(value: onnx.ValueInfoProto) -> int:
    return int(value.type.tensor_type.elem_type)


def _said(shape: list[int | None]) -> str:
    return f"({', '.join('?' if side is None else str(side) for side in shape)})" if shape else "(?)"


def _or(names: list[str]) -> str:
    return " or ".join(f'"{name}"' for name in names[:5])

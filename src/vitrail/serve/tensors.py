"""A request's own tensors -> rows of the model's inputs, and outputs -> bytes, in the model's process."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np

from vitrail.errors import InputError
from vitrail.serve import shapes, wire
from vitrail.tasks import Arrays

__all__ = ["packed", "rows_of"]

VALUE_BYTES, SPARE_BYTES = 64, 4096
"""A number as text, with the spaces and brackets around it, takes no more."""


def rows_of(given: Sequence[wire.Tensor], payload: memoryview, wanted: Sequence[wire.Tensor]) -> list[Arrays]:
    """Named inputs of one row each.

    Raises:
        InputError: other names, types, shapes or numbers of values than the model takes.
    """
    count = shapes.rows(given, wanted)
    inputs: Arrays = {}
    place = 0
    for tensor in given:
        inputs[tensor.name] = _array(tensor, payload[place : place + tensor.size])
        place += tensor.size
    return [{name: values[i : i + 1] for name, values in inputs.items()} for i in range(count)]


def packed(outputs: Arrays) -> tuple[list[wire.Tensor], list[memoryview]]:
    """What the tensors are, and their bytes."""
    tensors, parts = [], []
    for name, values in outputs.items():
        data = np.ascontiguousarray(values)
        parts.append(data.data.cast("B"))
        tensors.append(
            wire.Tensor(name=name, dtype=str(data.dtype), shape=list(data.shape), size=data.nbytes)
        )
    return tensors, parts


def _array(tensor: wire.Tensor, data: memoryview) -> np.ndarray:
    dtype = np.dtype(tensor.dtype)
    if not tensor.json:
        return np.frombuffer(data, dtype).reshape(tensor.shape)  # the HTTP process compared the sizes
    return _numbers(tensor, data, dtype).reshape(tensor.shape)


def _numbers(tensor: wire.Tensor, data: memoryview, dtype: np.dtype) -> np.ndarray:
    """A JSON array of numbers, flat or nested as its shape says."""
    count = math.prod(tensor.shape)
    # Counted first: decoding holds the interpreter, for seconds where 64 MiB hold nothing but short numbers.
    commas = np.count_nonzero(np.frombuffer(data, np.uint8) == ord(","))
    if commas != count - 1 or len(data) > count * VALUE_BYTES + SPARE_BYTES:
        raise InputError(f"The data of {tensor.name} is not as many numbers as its shape says.")
    try:
        values = np.array(msgspec.json.decode(data))
    except (msgspec.DecodeError, ValueError, RecursionError):
        raise InputError(f"The data of {tensor.name} is not an array of numbers, flat or nested.") from None
    if values.dtype.kind not in "iuf" or values.size != count:
        raise InputError(f"The data of {tensor.name} holds something other than numbers.")
    if dtype.kind == "u" and (values.dtype.kind == "f" or values.min() < 0 or values.max() > 255):
        raise InputError(f"The data of {tensor.name} is uint8: send whole numbers from 0 to 255.")
    return values.astype(dtype)

"""A request's own tensors -> rows of the model's inputs, and outputs -> bytes, in the model's process."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from vitrail.errors import InputError
from vitrail.serve import wire
from vitrail.tasks import Arrays

__all__ = ["rows_of", "said"]


def rows_of(given: Sequence[wire.Tensor], payload: memoryview, wanted: Sequence[wire.Tensor]) -> list[Arrays]:
    """Named inputs of one row each.

    Raises:
        InputError: other names, types, shapes or numbers of values than the model takes.
    """
    inputs: Arrays = {}
    place = 0
    for tensor in given:
        data = payload[place : place + tensor.size]
        place += tensor.size
        inputs[tensor.name] = _array(tensor, data)
    for spec in wanted:
        found = inputs.get(spec.name)
        if found is None:
            raise InputError(f"The input {spec.name} is missing: send {_said(spec)}.")
        if found.dtype != np.dtype(spec.dtype) or list(found.shape[1:]) != spec.shape[1:]:
            raise InputError(
                f"The input {spec.name} is {found.dtype} {list(found.shape)}: send {_said(spec)}."
            )
    if len(inputs) != len(wanted) or len(given) != len(wanted):
        raise InputError(f"The model takes {', '.join(map(_said, wanted))} and nothing else.")
    counts = {len(values) for values in inputs.values()}
    if len(counts) != 1:
        raise InputError("The inputs differ in their number of rows: send as many of each.")
    return [{name: values[i : i + 1] for name, values in inputs.items()} for i in range(counts.pop())]


def said(outputs: Arrays) -> tuple[list[wire.Tensor], list[memoryview]]:
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
    values = _numbers(tensor, data, dtype)
    if values.size != int(np.prod(tensor.shape, dtype=np.int64)):
        raise InputError(f"The input {tensor.name} has {values.size} values for {tensor.shape}.")
    return values.reshape(tensor.shape)


def _numbers(tensor: wire.Tensor, data: memoryview, dtype: np.dtype) -> np.ndarray:
    """A JSON array of numbers, flat or nested as its shape says."""
    try:
        values = np.array(msgspec.json.decode(data))
    except (msgspec.DecodeError, ValueError, RecursionError):
        raise InputError(f"The data of {tensor.name} is not an array of numbers, flat or nested.") from None
    if values.dtype.kind not in "iuf":
        raise InputError(f"The data of {tensor.name} holds something other than numbers.")
    if dtype.kind == "u" and (
        values.dtype.kind == "f" or values.min(initial=0) < 0 or values.max(initial=0) > 255
    ):
        raise InputError(f"The data of {tensor.name} is uint8: send whole numbers from 0 to 255.")
    return values.astype(dtype)


def _said(spec: wire.Tensor) -> str:
    return f"{spec.name} as {spec.dtype} {spec.shape}"

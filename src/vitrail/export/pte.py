"""What the XNNPACK parts of a `.pte` compute in, read from the file itself, without torch or ExecuTorch.

A part is a segment of the program: a header of 30 bytes (`XH00` at byte 4), and a flatbuffer of its graph
(`XN01`), in which every tensor has a type. ExecuTorch has no function that tells it.

Source: backends/xnnpack/serialization/{xnnpack_graph_serialize.py, schema.fbs} of ExecuTorch 1.5.1.
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Stored", "read_stored"]

MAGIC, GRAPH_MAGIC, HEADER = b"XH00", b"XN", 30
TYPES = {
    1: "fp32", 2: "fp16", 3: "int8", 4: "uint8", 5: "int32", 6: "int8", 7: "int32", 8: "int4",
    9: "int8 as needed", 10: "int4", 11: "int8 as needed", 12: "int32", 13: "fp32", 14: "bf16",
}  # fmt: skip
"""XNNDatatype's numbers; a range a channel or a tensor is the same type here."""
QUANTISED = 2
"""XNNQuantizedTensorValue's number in the union XValueUnion."""


@dataclass(frozen=True)
class Stored:
    """Of all parts together."""

    tensors: dict[str, int]
    """Type -> how many tensors have it, activations and weights."""
    weights: dict[str, int]
    """Type -> how many numbers of that type are stored; biases too."""

    @property
    def int8(self) -> bool:
        """Whether layers multiply in int8: weights and activations."""
        return self.weights.get("int8", 0) > 0 and self.tensors.get("int8", 0) > 0


def read_stored(path: Path) -> Stored:
    """Read the types of a program's parts; empty where XNNPACK has none.

    Raises:
        ValueError: a part is damaged.
    """
    data = path.read_bytes()
    tensors, weights = Counter[str](), Counter[str]()
    try:
        for graph in _graphs(data):
            for kind, numbers in _values(_Table(data, graph + _uint(data, graph))):
                tensors[kind] += 1
                weights[kind] += numbers
    except (struct.error, IndexError) as error:
        raise ValueError(f"a part of {path.name} is damaged") from error
    return Stored(tensors=dict(tensors), weights={kind: count for kind, count in weights.items() if count})


def _graphs(data: bytes) -> Iterator[int]:
    """Where the flatbuffers of the parts begin; the same bytes in the middle of weights are none."""
    at = data.find(MAGIC)
    while at >= 0:
        begin = at - len(MAGIC)
        length, graph = struct.unpack_from("<HI", data, at + len(MAGIC)) if at + 10 <= len(data) else (0, 0)
        if begin >= 0 and length == HEADER and data.startswith(GRAPH_MAGIC, begin + graph + 4):
            yield begin + graph
        at = data.find(MAGIC, at + 1)


def _values(graph: _Table) -> Iterator[tuple[str, int]]:
    """(type, numbers that are stored) of every tensor of a graph."""
    for value in graph.tables(2):
        tensor = value.table(1)
        if value.byte(0) == QUANTISED:
            tensor = tensor.table(0)
        kind = tensor.short(0)
        yield TYPES.get(kind, f"type {kind}"), math.prod(tensor.uints(2)) if tensor.uint(3) else 0


class _Table:
    """A table of a flatbuffer: a vtable says where each field is (https://flatbuffers.dev/internals)."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data, self._at = data, at
        self._fields = at - struct.unpack_from("<i", data, at)[0]
        self._size = struct.unpack_from("<H", data, self._fields)[0]

    def _field(self, slot: int) -> int:
        """Where the field's value is; 0: it has its default."""
        place = 4 + 2 * slot
        offset = struct.unpack_from("<H", self._data, self._fields + place)[0] if place < self._size else 0
        return self._at + offset if offset else 0

    def byte(self, slot: int) -> int:
        at = self._field(slot)
        return self._data[at] if at else 0

    def short(self, slot: int) -> int:
        at = self._field(slot)
        return int(struct.unpack_from("<h", self._data, at)[0]) if at else 0

    def uint(self, slot: int) -> int:
        at = self._field(slot)
        return _uint(self._data, at) if at else 0

    def _vector(self, slot: int) -> tuple[int, int]:
        """(where its elements begin, how many)."""
        at = self._field(slot)
        if not at:
            return 0, 0
        at += _uint(self._data, at)
        return at + 4, _uint(self._data, at)

    def uints(self, slot: int) -> tuple[int, ...]:
        at, count = self._vector(slot)
        return struct.unpack_from(f"<{count}I", self._data, at)

    def table(self, slot: int) -> _Table:
        at = self._field(slot)
        if not at:
            raise IndexError(f"no field {slot}")
        return _Table(self._data, at + _uint(self._data, at))

    def tables(self, slot: int) -> Iterator[_Table]:
        at, count = self._vector(slot)
        for place in range(at, at + 4 * count, 4):
            yield _Table(self._data, place + _uint(self._data, place))


def _uint(data: bytes, at: int) -> int:
    return int(struct.unpack_from("<I", data, at)[0])

"""The boxes of HEIF (HEIC and AVIF): what its primary picture consists of, checked before it is decoded.

The decoders trust the sizes in the codecs' own headers and skip missing parts, so both are checked here:
extents must lie in the file, and coded sizes must agree with the boxes.

Sources: ISO/IEC 14496-12 and 23008-12 (boxes), 14496-15 and ITU-T H.265 7.3 (HEVC), the AV1
specification 5.5.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from vitrail.images.limits import Limits

MAX_CODED_BYTES = 16 * 2**20
"""No more bytes of code are decoded: this many take a second, whatever the number of pixels."""

MAX_FILE_BYTES = 32 * 2**20
"""No larger file is read: the decoders copy it several times."""

CODED = {b"hvc1": "HEVC", b"hev1": "HEVC", b"av01": "AV1"}
SLACK = 64
"""Coded pictures are as large as their box says, rounded up to blocks of at most this many pixels."""

HEVC_SPS, AV1_SEQUENCE = 33, 1
Box = tuple[bytes, int, int]
"""Type, and where the content begins and ends."""


class Item(NamedTuple):
    """One item: its type, where its bytes lie, and its properties."""

    kind: bytes
    extents: tuple[tuple[int, int], ...]
    properties: tuple[Box, ...]


def still(data: bytes, limits: Limits) -> tuple[bytes, None]:
    """Return the file without its tracks, so that only the primary picture is read.

    Raises ValueError if the picture is incomplete, larger than its boxes say, or made in a way that is
    not read. The size is left to the decoder, which knows how it is cropped and rotated.
    """
    if len(data) > MAX_FILE_BYTES:
        raise ValueError(f"a file of more than {MAX_FILE_BYTES >> 20} MiB is not read")
    top = {kind: (start, end) for kind, start, end in _boxes(data, 0, len(data), limits)}
    if b"meta" not in top:
        raise ValueError("it has no still picture")
    start, end = top[b"meta"]
    meta = {kind: (a, b) for kind, a, b in _boxes(data, start + 4, end, limits)}
    items, primary, references = _items(data, meta, limits)
    wanted = {
        primary,
        *(source for kind, source, targets in references if kind == b"auxl" and primary in targets),
    }
    for kind, source, targets in references:
        if kind == b"dimg" and source in wanted and items.get(source, _NOTHING).kind == b"grid":
            wanted |= set(targets)
    if items.get(primary, _NOTHING).kind not in (*CODED, b"grid"):
        name = items.get(primary, _NOTHING).kind.decode("latin-1")
        raise ValueError(f"a primary picture of the kind {name!r} is not read")
    _check(data, [items[number] for number in wanted if number in items], limits)
    # Sequences carry their first picture as an item too.
    brands = data[: top[b"ftyp"][1]].replace(b"avis", b"avif").replace(b"msf1", b"mif1")
    rest = data[top[b"ftyp"][1] :]
    if b"moov" in top:
        place = top[b"moov"][0] - 4 - len(brands)
        rest = rest[:place] + b"free" + rest[place + 4 :]
    return brands + rest, None


_NOTHING = Item(b"", (), ())


def _boxes(data: bytes, start: int, end: int, limits: Limits) -> Iterator[Box]:
    """Boxes one after the other; all must lie between `start` and `end`."""
    for _ in range(limits.parts):
        if start + 8 > end:
            return
        size, kind = struct.unpack_from(">I4s", data, start)
        head = 8
        if size == 1 and start + 16 <= end:
            size, head = int.from_bytes(data[start + 8 : start + 16], "big"), 16
        size = end - start if size == 0 else size
        if size < head or start + size > end:
            raise ValueError("the end is missing")
        yield kind, start + head, start + size
        start += size
    raise ValueError(f"it has more than {limits.parts} boxes")


class _Reader:
    """Numbers from a byte range, big endian; reading beyond its end is a ValueError."""

    def __init__(self, data: bytes, start: int, end: int) -> None:
        self.data, self.place, self.end = data, start, end

    def take(self, size: int) -> int:
        if self.place + size > self.end:
            raise ValueError("a box is cut")
        self.place += size
        return int.from_bytes(self.data[self.place - size : self.place], "big")


References = list[tuple[bytes, int, tuple[int, ...]]]


def _items(
    data: bytes, meta: dict[bytes, tuple[int, int]], limits: Limits
) -> tuple[dict[int, Item], int, References]:
    """Items by number, the primary one's number, and (kind, from, to) of the references."""
    if not {b"pitm", b"iinf", b"iloc", b"iprp"} <= set(meta):
        raise ValueError("it has no still picture")
    reader = _Reader(data, *meta[b"pitm"])
    primary = reader.take(4 if reader.take(4) >> 24 else 2)
    start, end = meta[b"iinf"]
    head = 8 if data[start] else 6
    kinds: dict[int, bytes] = {}
    for kind, a, b in _boxes(data, start + head, end, limits):
        if kind == b"infe" and data[a] in (2, 3):
            entry = _Reader(data, a, b)
            number = entry.take(4 if entry.take(4) >> 24 == 3 else 2)
            entry.take(2)
            kinds[number] = entry.take(4).to_bytes(4, "big")
    places = _places(data, meta, limits)
    properties = _properties(data, meta[b"iprp"], limits)
    items = {
        number: Item(kind, places.get(number, ()), properties.get(number, ()))
        for number, kind in kinds.items()
    }
    return items, primary, _references(data, meta.get(b"iref"), limits)


def _places(
    data: bytes, meta: dict[bytes, tuple[int, int]], limits: Limits
) -> dict[int, tuple[tuple[int, int], ...]]:
    """Item -> (offset, length) of its extents, in the file."""
    reader = _Reader(data, *meta[b"iloc"])
    version = reader.take(4) >> 24
    sizes = reader.take(2)
    offset_size, length_size, base_size = sizes >> 12, sizes >> 8 & 15, sizes >> 4 & 15
    index_size = sizes & 15 if version else 0
    extents_of: dict[int, tuple[tuple[int, int], ...]] = {}
    total = 0
    for _ in range(reader.take(4 if version == 2 else 2)):
        number = reader.take(4 if version == 2 else 2)
        method = reader.take(2) & 15 if version else 0
        reader.take(2)
        base = reader.take(base_size)
        if method == 1:
            base += meta.get(b"idat", (len(data), 0))[0]
        count = reader.take(2)
        total += count
        if total > limits.parts or method > 1:
            raise ValueError("its items are in too many or unusual places")
        extents = []
        for _ in range(count):
            reader.take(index_size)
            offset = reader.take(offset_size)
            length = reader.take(length_size)
            extents.append((base + offset, length or len(data) - base - offset))
        extents_of[number] = tuple(extents)
    return extents_of


def _properties(data: bytes, place: tuple[int, int], limits: Limits) -> dict[int, tuple[Box, ...]]:
    """Item -> its property boxes."""
    parts = list(_boxes(data, *place, limits))
    every = [box for kind, a, b in parts if kind == b"ipco" for box in _boxes(data, a, b, limits)]
    properties: dict[int, tuple[Box, ...]] = {}
    for _, a, b in (part for part in parts if part[0] == b"ipma"):
        reader = _Reader(data, a, b)
        flags = reader.take(4)
        for _ in range(reader.take(4)):
            number = reader.take(4 if flags >> 24 else 2)
            wide = flags & 1
            indices = [
                reader.take(2 if wide else 1) & (0x7FFF if wide else 0x7F) for _ in range(reader.take(1))
            ]
            properties[number] = tuple(every[index - 1] for index in indices if 0 < index <= len(every))
    return properties


def _references(data: bytes, place: tuple[int, int] | None, limits: Limits) -> References:
    if place is None:
        return []
    width = 4 if data[place[0]] else 2
    references: References = []
    for kind, a, b in _boxes(data, place[0] + 4, place[1], limits):
        reader = _Reader(data, a, b)
        source = reader.take(width)
        references.append((kind, source, tuple(reader.take(width) for _ in range(reader.take(2)))))
    return references


# --- what will be decoded -----------------------------------------------------------------------


def _check(data: bytes, items: list[Item], limits: Limits) -> None:
    """Extents in the file, no more code than the limit, sizes that agree, no more pixels than the limit."""
    every = [extent for item in items for extent in item.extents]
    if any(length < 1 or start + length > len(data) for start, length in every):
        raise ValueError("the end is missing")
    total = sum(length for _, length in every)
    if total > min(MAX_CODED_BYTES, limits.file_bytes):
        raise ValueError(f"its code of {total >> 20} MiB is more than {MAX_CODED_BYTES >> 20} MiB")
    area = 0
    for item in items:
        if item.kind not in CODED:
            continue
        boxes = [a for kind, a, b in item.properties if kind == b"ispe" and b - a >= 12]
        code = b"".join(data[start : start + length] for start, length in item.extents)
        if not boxes or not code:
            raise ValueError("a part of its picture is missing")
        width, height = struct.unpack_from(">II", data, boxes[0] + 4)
        area += width * height
        hevc = CODED[item.kind] == "HEVC"
        coded = _hevc_sizes(data, item, code, limits) if hevc else _av1_sizes(code, limits)
        if any(across > width + SLACK or down > height + SLACK for across, down in coded):
            raise ValueError("its headers contradict each other")
    # Tiles extend past the edge, and alpha has as many pixels again.
    if area > 4 * limits.pixels:
        raise ValueError(f"its parts have {area:,} pixels, above the limit")


class _Bits:
    """The bits of a header; reading beyond its end is a ValueError."""

    def __init__(self, data: bytes) -> None:
        self.number, self.left = int.from_bytes(data, "big"), 8 * len(data)

    def take(self, count: int) -> int:
        self.left -= count
        if self.left < 0:
            raise ValueError("a codec's header is cut")
        return self.number >> self.left & ((1 << count) - 1)

    def golomb(self) -> int:
        """Unsigned Exp-Golomb (H.265 9.2, and uvlc of AV1)."""
        zeros = 0
        while not self.take(1):
            zeros += 1
            if zeros > 32:
                raise ValueError("a codec's header is damaged")
        return (1 << zeros) - 1 + self.take(zeros)


def _hevc_sizes(data: bytes, item: Item, code: bytes, limits: Limits) -> Iterator[tuple[int, int]]:
    """(width, height) of all sequence parameter sets, in the configuration and in the code itself."""
    configuration = next(((a, b) for kind, a, b in item.properties if kind == b"hvcC"), None)
    if configuration is None or configuration[1] - configuration[0] < 23:
        raise ValueError("a part of its picture is missing")
    start, end = configuration
    reader = _Reader(data, start + 22, end)
    for _ in range(reader.take(1)):
        reader.take(1)
        for _ in range(reader.take(2)):
            length = reader.take(2)
            unit = data[reader.place : reader.place + length]
            reader.take(length)
            if len(unit) > 2 and unit[0] >> 1 & 63 == HEVC_SPS:
                yield _sps_size(unit)
    width, place = (data[start + 21] & 3) + 1, 0
    for _ in range(limits.parts):
        if place + width > len(code):
            return
        length = int.from_bytes(code[place : place + width], "big")
        unit = code[place + width : place + width + min(length, 512)]
        if length < 2 or place + width + length > len(code):
            raise ValueError("the end is missing")
        if unit[0] >> 1 & 63 == HEVC_SPS:
            yield _sps_size(unit)
        place += width + length
    raise ValueError(f"its code has more than {limits.parts} units")


def _sps_size(unit: bytes) -> tuple[int, int]:
    bits = _Bits(unit[2:512].replace(b"\0\0\3", b"\0\0"))
    bits.take(4)
    layers = bits.take(3)
    bits.take(1 + 88 + 8)
    present = [(bits.take(1), bits.take(1)) for _ in range(layers)]
    bits.take(2 * (8 - layers) if layers else 0)
    for profile, level in present:
        bits.take(88 * profile + 8 * level)
    bits.golomb()
    if bits.golomb() == 3:
        bits.take(1)
    return bits.golomb(), bits.golomb()


def _av1_sizes(code: bytes, limits: Limits) -> Iterator[tuple[int, int]]:
    """Largest frame (width, height) of all sequence headers."""
    place, found = 0, False
    for _ in range(limits.parts):
        if place >= len(code):
            break
        head = code[place]
        place += 2 if head & 4 else 1
        length = len(code) - place
        if head & 2:
            length, place = _leb128(code, place)
        if head & 0x80 or place + length > len(code):
            raise ValueError("its code is cut")
        if head >> 3 & 15 == AV1_SEQUENCE:
            found = True
            yield _sequence_size(code[place : place + min(length, 512)])
        place += length
    else:
        raise ValueError(f"its code has more than {limits.parts} units")
    if not found:
        raise ValueError("a part of its picture is missing")


def _leb128(code: bytes, place: int) -> tuple[int, int]:
    value = 0
    for index in range(8):
        if place >= len(code):
            break
        value |= (code[place] & 0x7F) << 7 * index
        place += 1
        if not code[place - 1] & 0x80:
            return value, place
    raise ValueError("its code is cut")


def _sequence_size(header: bytes) -> tuple[int, int]:
    """AV1 5.5.1, up to the frame's largest size."""
    bits = _Bits(header)
    bits.take(4)
    if bits.take(1):
        bits.take(5)
    else:
        delay = _timing(bits)
        display = bits.take(1)
        for _ in range(bits.take(5) + 1):
            bits.take(12)
            if bits.take(5) > 7:
                bits.take(1)
            if delay and bits.take(1):
                bits.take(2 * delay + 1)
            if display and bits.take(1):
                bits.take(4)
    across, down = bits.take(4) + 1, bits.take(4) + 1
    return bits.take(across) + 1, bits.take(down) + 1


def _timing(bits: _Bits) -> int:
    """Read the timing and decoder model; the length of a buffer delay in bits, 0 without a model."""
    if not bits.take(1):
        return 0
    bits.take(64)
    if bits.take(1):
        bits.golomb()
    if not bits.take(1):
        return 0
    delay = bits.take(5) + 1
    bits.take(42)
    return delay

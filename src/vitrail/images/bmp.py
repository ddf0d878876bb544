"""Windows and OS/2 bitmaps. (Pillow takes a dark palette for grey whatever the bits, and runs a Python step
for each run of RLE.)

Source: the BITMAPINFOHEADER family in Microsoft's documentation; fields of less than 8 bits are widened as
in Pillow: value x 255 / largest, rounded down.
"""

from __future__ import annotations

import struct
from typing import NamedTuple, cast

import numpy as np
from PIL import Image

MAX_RLE_BYTES = 2**20
"""No longer run-length code is read: each run is a step in Python, about a second for this many bytes."""

RAW, RLE8, RLE4, FIELDS, ALPHA_FIELDS = 0, 1, 2, 3, 6
DEFAULT_MASKS = {16: (0x7C00, 0x3E0, 0x1F), 32: (0xFF0000, 0xFF00, 0xFF)}
UNPACKED = {
    (16, (0x7C00, 0x3E0, 0x1F)): "BGR;15",
    (16, (0xF800, 0x7E0, 0x1F)): "BGR;16",
    (32, (0xFF0000, 0xFF00, 0xFF)): "BGRX",
}
"""(bits, masks) -> Pillow's name for the layout; others are unpacked here."""
BLOCK_ROWS = 256


class Header(NamedTuple):
    """`height` counts rows, `top_down` says which comes first; `palette` is (entries, 3) RGB, or None."""

    width: int
    height: int
    top_down: bool
    bits: int
    compression: int
    start: int
    masks: tuple[int, int, int]
    palette: np.ndarray | None


def header(data: bytes) -> Header:
    """Read a bitmap's headers and palette. Raises ValueError, saying what is wrong with them."""
    start, length = struct.unpack_from("<10xII", data[:18].ljust(18, b"\0"))
    info = data[14 : 14 + length]
    if length not in (12, 16, 40, 52, 56, 64, 108, 124) or len(info) < length:
        raise ValueError("its header is cut or of an unknown length")
    if length == 12:
        width, height, planes, bits = struct.unpack("<HHHH", info[4:])
        compression = used = 0
    else:
        width, height, planes, bits = struct.unpack("<iiHH", info[4:16])
        compression, used = struct.unpack("<I12xI", info[16:36]) if length >= 40 else (0, 0)
    if planes > 1 or width <= 0 or height in (0, -(2**31)):
        raise ValueError("its header has a size or a number of planes out of range")
    if bits not in _BITS.get(compression, ()) or (length == 64 and compression > RLE4):
        raise ValueError(f"compression {compression} with {bits} bits is not read")
    if height < 0 and compression in (RLE8, RLE4):
        raise ValueError("a run-length code cannot begin at the top")
    fields = compression in (FIELDS, ALPHA_FIELDS)
    after = 14 + length + (12 if compression == FIELDS else 16) * (fields and length == 40)
    masks = (
        struct.unpack_from("<3I", data[:66].ljust(66, b"\0"), 54)
        if fields
        else DEFAULT_MASKS.get(bits, (0, 0, 0))
    )
    if start < after:
        raise ValueError("its pixels begin inside its header")
    palette = _palette(data[after:start], 3 if length == 12 else 4, bits, used) if bits <= 8 else None
    return Header(width, abs(height), height < 0, bits, compression, start, masks, palette)


_BITS = {RAW: (1, 4, 8, 16, 24, 32), RLE8: (8,), RLE4: (4,), FIELDS: (16, 32), ALPHA_FIELDS: (16, 32)}


def _palette(data: bytes, entry: int, bits: int, used: int) -> np.ndarray:
    """(entries, 3) RGB of the palette before the pixels, as many entries as fit and are used."""
    count = min(used or 1 << bits, 1 << bits, len(data) // entry)
    if not count:
        raise ValueError("its palette is missing")
    return np.frombuffer(data, "u1", count * entry).reshape(count, entry)[:, 2::-1]


def read(data: bytes, head: Header) -> Image.Image:
    """Decode a bitmap to mode RGB or P. Raises ValueError for missing pixels and forms that are not read."""
    size = (head.width, head.height)
    if head.compression in (RLE8, RLE4):
        image = Image.fromarray(_runs(data, head))
    else:
        stride = (head.width * head.bits + 31) // 32 * 4
        # The padding of the last row may be missing.
        if len(data) < head.start + stride * (head.height - 1) + (head.width * head.bits + 7) // 8:
            raise ValueError("pixels are missing")
        rows = memoryview(data if len(data) >= head.start + stride * head.height else data + b"\0" * 3)
        rows = rows[head.start : head.start + stride * head.height]
        raw = {1: "P;1", 4: "P;4", 8: "P", 24: "BGR"}.get(head.bits) or UNPACKED.get((head.bits, head.masks))
        if raw is None:
            return Image.fromarray(_fields(rows, head, stride))
        direction = 1 if head.top_down else -1
        mode = "RGB" if head.palette is None else "P"
        image = Image.frombytes(mode, size, rows, "raw", raw, stride, direction)
    if head.palette is not None:
        if cast(tuple[int, int], image.getextrema())[1] >= len(head.palette):
            raise ValueError("a pixel uses an index that the palette lacks")
        image = image if image.mode == "P" else Image.frombytes("P", size, image.tobytes())
        image.putpalette(head.palette.tobytes())
    return image


def _fields(rows: memoryview, head: Header, stride: int) -> np.ndarray:
    """Pixels with their own masks -> uint8 (height, width, 3), some rows at a time."""
    shifts, widest = [], []
    for mask in head.masks:
        shift = (mask & -mask).bit_length() - 1
        if not mask or (mask >> shift) & ((mask >> shift) + 1) or mask >> head.bits:
            raise ValueError("its colour masks are empty, broken or too wide")
        shifts.append(shift)
        widest.append(mask >> shift)
    whole = np.frombuffer(rows, "u1").reshape(head.height, stride)
    levels = np.empty((head.height, head.width, 3), np.uint8)
    for top in range(0, head.height, BLOCK_ROWS):
        block = whole[top : top + BLOCK_ROWS].view(f"<u{head.bits // 8}")[:, : head.width].astype(np.uint64)
        for channel, (shift, largest) in enumerate(zip(shifts, widest, strict=True)):
            value = block >> np.uint64(shift) & np.uint64(largest)
            levels[top : top + BLOCK_ROWS, :, channel] = value * np.uint64(255) // np.uint64(largest)
    return levels if head.top_down else levels[::-1]


def _runs(data: bytes, head: Header) -> np.ndarray:
    """Run-length code -> uint8 indices (height, width); skipped pixels have index 0."""
    code = data[head.start :]
    if len(code) > MAX_RLE_BYTES:
        raise ValueError(f"a run-length code of more than {MAX_RLE_BYTES >> 20} MiB is not read")
    numbers = np.zeros((head.height, head.width), np.uint8)
    narrow, place, x, y = head.compression == RLE4, 0, 0, 0
    while place + 1 < len(code) and y < head.height:
        count, value = code[place], code[place + 1]
        place += 2
        if count:
            end = min(x + count, head.width)
            numbers[y, x:end] = value >> 4 if narrow else value
            if narrow:
                numbers[y, x + 1 : end : 2] = value & 15
            x = end
        elif value == 0:
            x, y = 0, y + 1
        elif value == 1:
            return numbers[::-1]
        elif value == 2:
            if place + 1 >= len(code):
                break
            x, y, place = min(x + code[place], head.width), y + code[place + 1], place + 2
        else:
            length = (value + 1) // 2 if narrow else value
            literal = np.frombuffer(code[place : place + length], np.uint8)
            if len(literal) < length:
                break
            if narrow:
                literal = np.stack([literal >> 4, literal & 15], 1).ravel()
            end = min(x + value, head.width)
            numbers[y, x:end] = literal[: end - x]
            x, place = end, place + length + length % 2
    if y < head.height - 1 or (y == head.height - 1 and x < head.width):
        raise ValueError("pixels are missing")
    return numbers[::-1]

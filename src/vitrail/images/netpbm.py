"""PBM, PGM and PPM, plain and raw. (Pillow's reader takes a Python step for each sample of most forms.)

Sources: the pages pbm(5), pgm(5) and ppm(5) of netpbm.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
from PIL import Image

MAX_PLAIN_BYTES = 32 * 2**20
"""No larger text of numbers is read: parsing this much takes about half a second."""

BLOCK = 2**20

_WHITE = b" \t\r\n\v\f"
_COMMENT = re.compile(rb"#[^\r\n]*")
_SPACE = re.compile(rb"(?:\s|#[^\r\n]*(?:[\r\n]|\Z))+")
_NUMBER = re.compile(rb"\d{1,10}")


class Header(NamedTuple):
    """`form` is the digit after P; pixels start at byte `start`; `largest` is the sample that is white."""

    form: int
    width: int
    height: int
    largest: int
    start: int


def header(data: bytes) -> Header:
    """Read the header of a netpbm file. Raises ValueError, saying what is wrong with it."""
    form, place, numbers = data[1] - ord("0"), 2, []
    for _ in range(2 if form in (1, 4) else 3):
        space = _SPACE.match(data, place)
        number = _NUMBER.match(data, space.end()) if space else None
        if number is None:
            raise ValueError("its header is incomplete")
        numbers.append(int(number[0]))
        place = number.end()
    width, height, largest = (*numbers, 1)[:3]
    if not data[place : place + 1].isspace():
        raise ValueError("its header is incomplete")
    if not 0 < largest < 65536 or not width or not height:
        raise ValueError("its header has a size or a maximum out of range")
    return Header(form, width, height, largest, place + 1)


def read(data: bytes, head: Header) -> Image.Image:
    """Decode a whole netpbm file to mode L or RGB, 0 black and 255 white.

    Samples up to 255 are scaled by the file's maximum and rounded; deeper ones keep their high byte, as in
    a PNG or TIFF. Anything after the first image is ignored. Raises ValueError for missing or wrong samples.
    """
    if head.form < 4 and len(data) > MAX_PLAIN_BYTES:
        raise ValueError(f"plain text of more than {MAX_PLAIN_BYTES >> 20} MiB is not read")
    channels = 3 if head.form in (3, 6) else 1
    shape = (head.height, head.width, channels)
    if head.form == 4:
        row = (head.width + 7) // 8
        packed = _samples(data, head, np.dtype("u1"), head.height * row).reshape(head.height, row)
        levels = (1 - np.unpackbits(packed, axis=1, count=head.width)) * np.uint8(255)
    elif head.form == 1:
        digits = _COMMENT.sub(b"", data[head.start :]).translate(None, _WHITE)[: head.width * head.height]
        if len(digits) < head.width * head.height or digits.strip(b"01"):
            raise ValueError("samples are missing or not 0 or 1")
        levels = (np.frombuffer(digits, "u1") == ord("0")) * np.uint8(255)
    else:
        kind = np.dtype("u1" if head.largest < 256 else ">u2")
        count = head.width * head.height * channels
        samples = _plain(data, head, count) if head.form < 4 else _samples(data, head, kind, count)
        levels = _levels(samples, head.largest)
    return Image.fromarray(np.ascontiguousarray(levels.reshape(shape if channels == 3 else shape[:2])))


def _samples(data: bytes, head: Header, kind: np.dtype, count: int) -> np.ndarray:
    if len(data) - head.start < count * kind.itemsize:
        raise ValueError("samples are missing")
    return np.frombuffer(data, kind, count, head.start)


def _plain(data: bytes, head: Header, count: int) -> np.ndarray:
    """Numbers written as text -> (count,)."""
    text = _COMMENT.sub(b" ", data[head.start :])
    if text.translate(None, b"0123456789" + _WHITE):
        raise ValueError("a sample is not a number")
    if text[-1:].isdigit():
        raise ValueError("no line end follows the last sample, which may be cut")
    values = np.fromstring(text, dtype=np.int64, count=-1, sep=" ")[:count]
    if len(values) < count:
        raise ValueError("samples are missing")
    return values


def _levels(samples: np.ndarray, largest: int) -> np.ndarray:
    """Samples of 0 to `largest` -> uint8 of 0 to 255."""
    if samples.dtype == np.uint8 and largest == 255:
        return samples
    if int(samples.max()) > largest:
        raise ValueError("a sample is above the maximum that the header states")
    every = np.arange(largest + 1, dtype=np.int64)
    table = every * 256 // (largest + 1) if largest > 255 else (every * 255 * 2 + largest) // (2 * largest)
    table, flat = table.astype(np.uint8), samples.ravel()
    levels = np.empty(flat.shape, np.uint8)
    for start in range(0, len(flat), BLOCK):
        # Looking up takes eight bytes a sample.
        levels[start : start + BLOCK] = table[flat[start : start + BLOCK]]
    return levels

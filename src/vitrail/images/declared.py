"""How many pixels an image says it has, from its first bytes: for queues, before anything is decoded.

Only `decode` finds out whether that is true, and it refuses what is larger than its limits.
"""

from __future__ import annotations

import io
import struct

from vitrail.images import bmp, netpbm, tiff
from vitrail.images.containers import jpeg_size, webp_size
from vitrail.images.headers import HEAD_BYTES, recognise
from vitrail.images.limits import LIMITS, SHARE, Limits

__all__ = ["declared_pixels"]

FIRST_BYTES = 64 * 2**10
"""Headers, and the boxes of an AVIF or HEIC that give sizes, are among this many first bytes."""


def declared_pixels(data: bytes, limits: Limits = LIMITS) -> int:
    """Width x height as the header says, at most `limits.pixels`: nothing larger is decoded.

    0: `decode` does not read such a file, and refuses it at once. A file that is read but whose size is not
    where it should be counts as the largest that its kind may have.
    """
    known = recognise(data[:HEAD_BYTES])
    if known is None or not known.reads:
        return 0
    try:
        width, height = _size(known.name, data, limits)
    except (ValueError, struct.error, IndexError, MemoryError):
        return int(limits.pixels * SHARE.get(known.name, 1))
    return min(width * height, limits.pixels)


def _size(kind: str, data: bytes, limits: Limits) -> tuple[int, int]:
    if kind == "JPEG":
        return jpeg_size(data, limits)
    if kind == "PNG":
        return struct.unpack_from(">II", data, 16)
    if kind == "GIF":
        return struct.unpack_from("<HH", data, 6)
    if kind == "WebP":
        return webp_size(data)
    if kind == "TIFF":
        return tiff.size(tiff.read_tags(io.BytesIO(data), limits)[1])
    if kind == "BMP":
        bitmap = bmp.header(data[:FIRST_BYTES])
        return bitmap.width, bitmap.height
    if kind == "PPM":
        picture = netpbm.header(data[:FIRST_BYTES])
        return picture.width, picture.height
    return _largest_item(data[:FIRST_BYTES])


def _largest_item(data: bytes) -> tuple[int, int]:
    """Of the spatial extents (ISO/IEC 23008-12, 6.5.3) of an AVIF's or HEIC's pictures, the largest."""
    found, place = [], data.find(b"ispe")
    while place >= 0 and place + 16 <= len(data):
        found.append(struct.unpack_from(">II", data, place + 8))
        place = data.find(b"ispe", place + 4)
    if not found:
        raise ValueError("its size is not among its first bytes")
    return max(found, key=lambda size: size[0] * size[1])

"""TIFF's compressions, undone by zlib and by the libtiff in Pillow.

libtiff gets a small file made here, with the compressed strips and the few tags that their compression
needs. Lossless compressions know nothing about samples, so it sees them as rows of bytes, one 8-bit sample
each, which Pillow returns unchanged.
"""

from __future__ import annotations

import io
import struct
import zlib
from typing import NamedTuple

from PIL import Image
from PIL import TiffImagePlugin as Tiff


class Lossless(NamedTuple):
    """A compression of bytes: its name, and whether the predictor tag applies to it."""

    name: str
    predicts: bool


LOSSLESS: dict[int, Lossless] = {
    5: Lossless("LZW", True),
    8: Lossless("deflate", True),
    32946: Lossless("deflate", True),
    32773: Lossless("PackBits", False),
    34925: Lossless("LZMA", True),
    50000: Lossless("Zstandard", True),
}
_SHORT, _LONG, _UNDEFINED = 3, 4, 7


def decompress(compression: int, stored: list[bytes], row_bytes: int, rows: list[int]) -> bytes:
    """Chunks of `rows` rows each, all but the last equal -> their bytes in one.

    Raises OSError or ValueError where they are damaged.
    """
    if LOSSLESS[compression].name == "deflate":
        return b"".join(_inflate(data, row_bytes * count) for data, count in zip(stored, rows, strict=True))
    tags = {258: 8, 259: compression, 262: 1, 277: 1}
    return _libtiff("L", (row_bytes, sum(rows)), rows[0], stored, tags)


def _inflate(data: bytes, length: int) -> bytes:
    stream = zlib.decompressobj()
    try:
        plain = stream.decompress(data, length)
        # One more step reaches the checksum if the stream ends with the pixels.
        if not stream.eof:
            stream.decompress(stream.unconsumed_tail, 1)
    except zlib.error as error:
        raise ValueError(str(error)) from None
    if len(plain) < length:
        raise ValueError("pixels are missing")
    return plain


def faxes(
    compression: int, stored: list[bytes], width: int, rows: list[int], reverse: bool, t4: int, t6: int
) -> bytes:
    """CCITT strips -> packed bits, rows padded to bytes, 1 where the code says black or the mode says 1."""
    tags = {258: 1, 259: compression, 262: 1, 266: 2 if reverse else 1, 277: 1}
    tags |= {292: t4} if compression == 3 else {293: t6} if compression == 4 else {}
    return _libtiff("1", (width, sum(rows)), rows[0], stored, tags)


def jpegs(
    chunk: int | tuple[int, int], size: tuple[int, int], photometric: int, tables: bytes, stored: list[bytes]
) -> Image.Image:
    """JPEG strips of `chunk` rows, or tiles -> the picture, mode L or RGB. `tables`: the tag JPEGTables."""
    tags = {258: 8, 259: 7, 262: photometric, 277: 1 if photometric == 1 else 3}
    return _opened(_file(tags, size, chunk, stored, tables))


def _libtiff(
    mode: str, size: tuple[int, int], strip_rows: int, stored: list[bytes], tags: dict[int, int]
) -> bytes:
    image = _opened(_file(tags, size, strip_rows, stored, b""))
    if image.mode != mode or image.size != size:
        raise ValueError("its strips could not be interpreted")
    return image.tobytes()


def _opened(data: bytes) -> Image.Image:
    image = Tiff.TiffImageFile(io.BytesIO(data))
    image.load()
    return image


def _file(
    tags: dict[int, int],
    size: tuple[int, int],
    chunk: int | tuple[int, int],
    stored: list[bytes],
    tables: bytes,
) -> bytes:
    """A little-endian TIFF: header, chunks, JPEG tables, arrays, one directory."""
    place, offsets = 8, []
    for data in stored:
        offsets.append(place)
        place += len(data)
    many = len(stored) > 1
    arrays = struct.pack(f"<{len(stored)}I", *offsets) + struct.pack(f"<{len(stored)}I", *map(len, stored))
    at = place + len(tables)
    first, second = (at, at + 4 * len(stored)) if many else (offsets[0], len(stored[0]))
    entries = [(tag, _SHORT, 1, value) for tag, value in tags.items()]
    entries += [(256, _LONG, 1, size[0]), (257, _LONG, 1, size[1])]
    if isinstance(chunk, tuple):
        entries += [(322, _LONG, 1, chunk[0]), (323, _LONG, 1, chunk[1])]
        entries += [(324, _LONG, len(stored), first), (325, _LONG, len(stored), second)]
    else:
        entries += [
            (278, _LONG, 1, chunk),
            (273, _LONG, len(stored), first),
            (279, _LONG, len(stored), second),
        ]
    if tags[277] == 3:
        at_bits = at + len(arrays)
        arrays += struct.pack("<3H", 8, 8, 8)
        entries = [entry for entry in entries if entry[0] != 258] + [(258, _SHORT, 3, at_bits)]
    if tables:
        entries.append((347, _UNDEFINED, len(tables), place))
    directory = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    head = b"II*\0" + struct.pack("<I", at + len(arrays))
    return b"".join((head, *stored, tables, arrays, struct.pack("<H", len(entries)), directory, b"\0\0\0\0"))

"""TIFF: what its tags say about the samples, and the samples as 8-bit levels.

Pillow decides by a table of tag combinations, and where that is wrong or ignores a tag, pixels are wrong.
Here the tags are read and checked first; Pillow's libtiff only undoes the compression, a few strips at a
time, which it sees as rows of plain bytes (`decompress`). No allocation trusts a number in the file, except
for the picture itself, whose size is known by then.

Source: TIFF revision 6.0, its supplements, and BigTIFF.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from PIL import Image

from vitrail.images.decompress import LOSSLESS, decompress, faxes, jpegs
from vitrail.images.limits import Limits

SUBFILE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER = 254, 256, 257, 258, 259, 262, 266
STRIPS, ORIENTATION, SAMPLES, STRIP_ROWS, STRIP_BYTES, PLANAR = 273, 274, 277, 278, 279, 284
T4_OPTIONS, T6_OPTIONS, PREDICTOR, COLOUR_MAP, TILE_WIDTH, TILE_HEIGHT = 292, 293, 317, 320, 322, 323
TILES, TILE_BYTES, SUB_IFDS, INKS, EXTRA, SAMPLE_FORMAT, JPEG_TABLES = 324, 325, 330, 332, 338, 339, 347
COEFFICIENTS, SUBSAMPLING, BLACK_WHITE, DNG = 529, 530, 532, 50706

GREY_FROM_WHITE, GREY, RGB, PALETTE, CMYK, YCBCR = 0, 1, 2, 3, 5, 6
COLOURS = {GREY_FROM_WHITE: 1, GREY: 1, RGB: 3, PALETTE: 1, CMYK: 4, YCBCR: 3}
"""Photometric interpretation -> its number of samples, not counting extra ones."""
NOT_READ = {4: "a mask", 8: "CIE Lab", 9: "ICC Lab", 10: "ITU Lab", 32844: "LogL", 32845: "LogLuv"}
RAW_SENSOR = (32803, 34892)
FAX, JPEG = (2, 3, 4), 7
FORMATS = {2: "signed", 3: "floating-point", 5: "complex", 6: "complex"}

GROUP_BYTES = 4 * 2**20
"""Strips or tiles are decompressed together up to this many bytes."""

Tags = dict[int, tuple[int, ...]]
"""Tag -> its numbers; a rational gives two."""

_TYPES = {1: "B", 3: "H", 4: "I", 5: "II", 7: "B", 13: "I", 16: "Q", 18: "Q"}
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


@dataclass(frozen=True, kw_only=True)
class Page:
    """The first page: what its tags say, checked. Chunks are strips or tiles; with separate planes, the
    chunks of the first plane come first. `extra` is 1 for premultiplied alpha, 0 for none or what may be
    dropped; `palette` uint8 (2 ** bits, 3)."""

    order: str
    width: int
    height: int
    bits: int
    samples: int
    photometric: int
    compression: int
    separate: bool
    predicted: bool
    reversed_bits: bool
    extra: int
    orientation: int
    chunk: tuple[int, int]
    tiled: bool
    offsets: tuple[int, ...]
    counts: tuple[int, ...]
    palette: np.ndarray | None
    tags: Tags

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of a chunk in one plane."""
        return (self.chunk[0] * (1 if self.separate else self.samples) * self.bits + 7) // 8

    @property
    def work_bytes(self) -> int:
        """Estimated bytes, besides the picture, of the chunks that are decoded together."""
        planes = self.samples if self.separate else 1
        plain = max(GROUP_BYTES, self.row_bytes * self.chunk[1] * planes)
        return plain * (6 if self.bits in (8, 16) else 8 + 64 // self.bits)


# --- tags ---------------------------------------------------------------------------------------


def size(tags: Tags) -> tuple[int, int]:
    """(width, height) of the stored page, not yet rotated. Raises ValueError if there is none."""
    _refuse_raw(tags)
    width, height = _one(tags, WIDTH), _one(tags, HEIGHT)
    if not 0 < width < 2**31 or not 0 < height < 2**31:
        raise ValueError("its size is out of range")
    return width, height


def page(order: str, tags: Tags) -> Page:
    """Check the first page's tags. Raises ValueError if they are damaged or not supported."""
    width, height = size(tags)
    samples, photometric = _one(tags, SAMPLES, 1), _one(tags, PHOTOMETRIC)
    compression = _one(tags, COMPRESSION, 1)
    if not 0 < samples <= 16:
        raise ValueError("its number of samples is out of range")
    if photometric not in COLOURS:
        raise ValueError(
            f"{NOT_READ.get(photometric, f'photometric interpretation {photometric}')} is not read"
        )
    if samples < COLOURS[photometric]:
        raise ValueError("it has fewer samples than colours")
    bits = _bits(tags, samples)
    separate = samples > 1 and _one(tags, PLANAR, 1) == 2
    tiled = TILES in tags
    chunk = (
        (_one(tags, TILE_WIDTH), _one(tags, TILE_HEIGHT))
        if tiled
        else (width, _one(tags, STRIP_ROWS, height))
    )
    chunk = chunk if tiled else (width, min(chunk[1], height))
    offsets, counts = _chunks(tags, tiled, chunk, (width, height), samples if separate else 1)
    if compression == 1 and not tiled and chunk[1] == height:
        row_bytes = (width * (1 if separate else samples) * bits + 7) // 8
        chunk, offsets, counts = _split(offsets, counts, chunk, row_bytes)
    result = Page(
        order=order, width=width, height=height, bits=bits, samples=samples, photometric=photometric,
        compression=compression, separate=separate, predicted=_predicted(tags, compression, bits),
        reversed_bits=_one(tags, FILL_ORDER, 1) == 2, extra=_extra(tags, samples, photometric),
        orientation=_one(tags, ORIENTATION, 1), chunk=chunk, tiled=tiled, offsets=offsets, counts=counts,
        palette=_palette(tags, bits) if photometric == PALETTE else None, tags=tags,
    )  # fmt: skip
    _check_colours(result)
    _check_compression(result)
    return result


def read_tags(file: BinaryIO, limits: Limits) -> tuple[str, Tags]:
    """Byte order ("<" or ">") and tags of the first directory; a repeated tag counts once."""
    end = file.seek(0, 2)
    file.seek(0)
    start = file.read(16)
    order = "<" if start[:2] == b"II" else ">"
    big = start[2:4] in (b"+\0", b"\0+")
    place = struct.unpack(order + ("8xQ" if big else "4xI4x4x"), start.ljust(16, b"\0"))[0]
    if not 8 <= place < end:
        raise ValueError("its directory is missing")
    file.seek(place)
    count = int.from_bytes(file.read(8 if big else 2), "little" if order == "<" else "big")
    entry = struct.Struct(order + ("HHQ8s" if big else "HHI4s"))
    if not 0 < count <= 4096:
        raise ValueError("its directory is empty or has more than 4096 tags")
    table = file.read(count * entry.size)
    if len(table) < count * entry.size:
        raise ValueError("its directory is cut")
    tags: Tags = {}
    for tag, kind, number, value in entry.iter_unpack(table):
        if tag not in tags and tag in _WANTED:
            values = _values(file, order, (tag, kind, number, value), limits, end)
            if values:
                tags[tag] = values
    return order, tags


_WANTED = frozenset({
    SUBFILE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER, STRIPS, ORIENTATION, SAMPLES,
    STRIP_ROWS, STRIP_BYTES, PLANAR, T4_OPTIONS, T6_OPTIONS, PREDICTOR, COLOUR_MAP, TILE_WIDTH, TILE_HEIGHT,
    TILES, TILE_BYTES, SUB_IFDS, INKS, EXTRA, SAMPLE_FORMAT, JPEG_TABLES, COEFFICIENTS, SUBSAMPLING,
    BLACK_WHITE, DNG,
})  # fmt: skip


_LONG = frozenset({STRIPS, STRIP_BYTES, TILES, TILE_BYTES, COLOUR_MAP, JPEG_TABLES})


def _values(
    file: BinaryIO, order: str, entry: tuple[int, int, int, bytes], limits: Limits, end: int
) -> tuple[int, ...]:
    """Numbers of one tag; a rational gives two. Longer ones are elsewhere in the file."""
    tag, kind, number, value = entry
    if kind not in _TYPES:
        raise ValueError(f"a tag has the type {kind}")
    most = 4 * limits.parts if tag in _LONG else 1024
    if number > most:
        raise ValueError(f"tag {tag} holds {number:,} values, more than {most:,}")
    layout = f"{order}{number * len(_TYPES[kind])}{_TYPES[kind][0]}"
    size = struct.calcsize(layout)
    if size > len(value):
        place = int.from_bytes(value, "little" if order == "<" else "big")
        if place + size > end:
            raise ValueError("a tag points beyond the end")
        file.seek(place)
        value = file.read(size)
    return struct.unpack(layout, value[:size])


def _one(tags: Tags, tag: int, default: int | None = None) -> int:
    if tag not in tags and default is None:
        raise ValueError(f"tag {tag} is missing")
    return tags[tag][0] if tag in tags else int(default or 0)


def _refuse_raw(tags: Tags) -> None:
    """Refuse camera RAW files, whose first page is a small preview, or sensor data without colours."""
    kind = _one(tags, SUBFILE, 0)
    if DNG in tags or _one(tags, PHOTOMETRIC, 0) in RAW_SENSOR or (kind & 1 and SUB_IFDS in tags):
        raise ValueError("a camera's RAW file is not read")
    if kind & 5:
        raise ValueError("its first page is a reduced copy or a mask of another one")


def _bits(tags: Tags, samples: int) -> int:
    """Bits of each sample, 1 to 16 unsigned."""
    every = tags.get(BITS, (1,))
    bits = every[0]
    if len(set(every)) > 1 or len(every) not in (1, samples):
        raise ValueError("its samples have different numbers of bits")
    formats = set(tags.get(SAMPLE_FORMAT, (1,)))
    if named := [FORMATS[number] for number in FORMATS if number in formats]:
        raise ValueError(f"its {bits}-bit {named[0]} samples are not read: nothing says which value is white")
    if bits > 16:
        raise ValueError(f"its {bits}-bit samples are not read: nothing says which value is white")
    if not bits or formats - {1, 4}:
        raise ValueError("its sample format or number of bits is out of range")
    return bits


def _predicted(tags: Tags, compression: int, bits: int) -> bool:
    """Whether rows hold differences; the tag has no meaning for other compressions."""
    predictor = _one(tags, PREDICTOR, 1)
    if compression not in LOSSLESS or not LOSSLESS[compression].predicts or predictor == 1:
        return False
    if predictor != 2 or bits not in (8, 16):
        raise ValueError(f"predictor {predictor} with {bits} bits is not read")
    return True


def _extra(tags: Tags, samples: int, photometric: int) -> int:
    extra = samples - COLOURS[photometric]
    kinds = tags.get(EXTRA, ())
    if extra and kinds and kinds[0] == 1:
        if photometric not in (GREY_FROM_WHITE, GREY, RGB):
            raise ValueError("premultiplied alpha with these colours is not read")
        return 1
    return 0


def _palette(tags: Tags, bits: int) -> np.ndarray:
    """uint8 (2 ** bits, 3). Some writers store 8-bit numbers in 16-bit fields, as libtiff also allows."""
    if len(tags.get(COLOUR_MAP, ())) != 3 << bits:
        raise ValueError("its colour map is missing or of the wrong length")
    numbers = np.array(tags[COLOUR_MAP], dtype=np.uint32).reshape(3, -1).T
    return np.ascontiguousarray((numbers >> 8 if numbers.max() > 255 else numbers).astype(np.uint8))


def _chunks(
    tags: Tags, tiled: bool, chunk: tuple[int, int], size: tuple[int, int], planes: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Offsets and byte counts, exactly one for each strip or tile of each plane."""
    if chunk[0] < 1 or chunk[1] < 1 or chunk[0] > 2 * size[0] + 4096 or chunk[1] > 2 * size[1] + 4096:
        raise ValueError("its strips or tiles have a size out of range")
    expected = -(-size[0] // chunk[0]) * -(-size[1] // chunk[1]) * planes
    offsets = tags.get(TILES if tiled else STRIPS, ())
    counts = tags.get(TILE_BYTES if tiled else STRIP_BYTES, ())
    # Tiles may have been written with the tags of strips for their byte counts.
    counts = counts or tags.get(STRIP_BYTES, ())
    if len(offsets) != expected or len(counts) != expected:
        raise ValueError(
            f"it has {len(offsets)} strips or tiles with {len(counts)} lengths instead of {expected}"
        )
    return offsets, counts


def _split(
    offsets: tuple[int, ...], counts: tuple[int, ...], chunk: tuple[int, int], row_bytes: int
) -> tuple[tuple[int, int], tuple[int, ...], tuple[int, ...]]:
    """One plain strip per plane -> strips of some rows, so that the whole is never held twice."""
    width, height = chunk
    if any(count < row_bytes * height for count in counts):
        raise ValueError("pixels are missing")
    rows = min(height, max(1, GROUP_BYTES // row_bytes))
    tops = range(0, height, rows)
    return (
        (width, rows),
        tuple(offset + top * row_bytes for offset in offsets for top in tops),
        tuple(min(rows, height - top) * row_bytes for _ in offsets for top in tops),
    )


def _check_colours(page: Page) -> None:
    if page.photometric == CMYK and _one(page.tags, INKS, 1) != 1:
        raise ValueError("inks other than CMYK are not read")
    if page.photometric != YCBCR:
        return
    plain = page.tags.get(SUBSAMPLING, (2, 2)) == (1, 1)
    usual = _ratios(page.tags.get(COEFFICIENTS, (299, 1000, 587, 1000, 114, 1000)))
    levels = _ratios(page.tags.get(BLACK_WHITE, (0, 1, 255, 1, 128, 1, 255, 1, 128, 1, 255, 1)))
    if not np.allclose(usual, (0.299, 0.587, 0.114), atol=1e-3) or not np.allclose(
        levels, (0, 255, 128, 255, 128, 255)
    ):
        raise ValueError("YCbCr with its own coefficients or levels is not read")
    if page.bits != 8 or (page.compression != JPEG and not plain):
        raise ValueError("subsampled or deep YCbCr without JPEG is not read")


def _ratios(numbers: tuple[int, ...]) -> list[float]:
    return [over / under if under else -1.0 for over, under in zip(numbers[::2], numbers[1::2], strict=False)]


def _check_compression(page: Page) -> None:
    if page.compression in FAX:
        if page.bits != 1 or page.samples != 1 or page.tiled:
            raise ValueError("fax compression of more than one bit, or of tiles, is not read")
    elif page.compression == JPEG:
        usual = page.samples == COLOURS[page.photometric] and page.photometric in (GREY, RGB, YCBCR)
        if page.bits != 8 or page.separate or page.reversed_bits or not usual:
            raise ValueError("JPEG of these samples is not read")
    elif page.compression != 1 and page.compression not in LOSSLESS:
        raise ValueError(f"compression {page.compression} is not read")


# --- samples ------------------------------------------------------------------------------------


def read(file: BinaryIO, page: Page) -> Image.Image:
    """Decode the page to mode L or RGB, not yet rotated. Raises ValueError or OSError if it is damaged."""
    if page.compression == JPEG:
        stored = list(_stored(file, page, range(len(page.offsets))))
        tables = bytes(page.tags.get(JPEG_TABLES, ()))
        chunk = page.chunk if page.tiled else page.chunk[1]
        return jpegs(chunk, (page.width, page.height), page.photometric, tables, stored)
    grey = page.photometric in (GREY_FROM_WHITE, GREY)
    picture = Image.new("L" if grey else "RGB", (page.width, page.height))
    across = -(-page.width // page.chunk[0])
    down = -(-page.height // page.chunk[1])
    planes = page.samples if page.separate else 1
    row_bytes = page.row_bytes
    together = max(1, GROUP_BYTES // (row_bytes * page.chunk[1] * planes))
    for first in range(0, across * down, together):
        group = range(first, min(first + together, across * down))
        rows = [page.chunk[1]] * len(group)
        if not page.tiled and group[-1] == down - 1:
            rows[-1] = page.height - page.chunk[1] * (down - 1)
        stack = [_plane(file, page, group, plane * across * down, rows, row_bytes) for plane in range(planes)]
        levels = _levels(stack[0] if planes == 1 else np.concatenate(stack, axis=2), page)
        top = 0
        for index, count in zip(group, rows, strict=True):
            part = np.ascontiguousarray(levels[top : top + count])
            picture.paste(
                Image.fromarray(part), (index % across * page.chunk[0], index // across * page.chunk[1])
            )
            top += count
    return picture


def _stored(file: BinaryIO, page: Page, indices: range) -> Iterator[bytes]:
    """The bytes of chunks as stored in the file."""
    for index in indices:
        file.seek(page.offsets[index])
        data = file.read(page.counts[index])
        if len(data) < page.counts[index]:
            raise ValueError("its pixels are cut")
        yield data


def _plane(
    file: BinaryIO, page: Page, group: range, before: int, rows: list[int], row_bytes: int
) -> np.ndarray:
    """Samples (all rows of the group, chunk width, samples of the plane) of uint8 or uint16."""
    stored = list(_stored(file, page, range(group.start + before, group.stop + before)))
    if page.compression == 1:
        plain = b"".join(_exactly(data, count * row_bytes) for data, count in zip(stored, rows, strict=True))
        plain = plain.translate(_REVERSED) if page.reversed_bits else plain
    elif page.compression in FAX:
        plain = faxes(page.compression, stored, page.chunk[0], rows, page.reversed_bits,
                      _one(page.tags, T4_OPTIONS, 0), _one(page.tags, T6_OPTIONS, 0))  # fmt: skip
    else:
        if page.reversed_bits:
            stored = [data.translate(_REVERSED) for data in stored]
        plain = decompress(page.compression, stored, row_bytes, rows)
    table = np.frombuffer(plain, np.uint8).reshape(sum(rows), row_bytes)
    return _unpack(table, page)


def _exactly(data: bytes, length: int) -> bytes:
    if len(data) < length:
        raise ValueError("pixels are missing")
    return data[:length]


def _unpack(table: np.ndarray, page: Page) -> np.ndarray:
    """Rows of bytes (R, row bytes) -> samples (R, chunk width, samples of the plane)."""
    samples = 1 if page.separate else page.samples
    count = page.chunk[0] * samples
    shape = (len(table), page.chunk[0], samples)
    if page.bits == 8:
        values = table
    elif page.bits == 16:
        values = table.view(page.order + "u2")
    elif page.bits == 1:
        values = np.unpackbits(table, axis=1, count=count)
    elif page.bits in (2, 4):
        shifts = np.arange(8 - page.bits, -1, -page.bits, dtype=np.uint8)
        values = (table[:, :, None] >> shifts & ((1 << page.bits) - 1)).reshape(len(table), -1)[:, :count]
    else:
        digits = np.unpackbits(table, axis=1, count=count * page.bits).reshape(-1, count, page.bits)
        values = np.zeros(digits.shape[:2], np.uint16)
        for digit in range(page.bits):
            values = values << 1 | digits[:, :, digit]
    values = values.reshape(shape)
    if page.predicted:
        values = np.cumsum(values, axis=1, dtype=np.uint8 if page.bits == 8 else np.uint16)
    return values


def _levels(values: np.ndarray, page: Page) -> np.ndarray:
    """Samples (R, W, S) -> uint8 (R, W) grey or (R, W, 3)."""
    largest = (1 << page.bits) - 1
    if page.palette is not None:
        return page.palette[values[:, :, 0]]
    colours = values[:, :, : COLOURS[page.photometric]]
    if page.extra == 1:
        colours = _straight(colours, values[:, :, COLOURS[page.photometric] :][:, :, :1], largest)
    if page.photometric == GREY_FROM_WHITE:
        colours = largest - colours
    if page.bits > 8:
        colours = colours >> (page.bits - 8)
    elif page.bits < 8:
        colours = np.array([round(value * 255 / largest) for value in range(largest + 1)], np.uint8)[colours]
    levels = np.ascontiguousarray(colours, dtype=np.uint8)
    if page.photometric in (CMYK, YCBCR):
        mode = "CMYK" if page.photometric == CMYK else "YCbCr"
        image = Image.frombytes(mode, (levels.shape[1], levels.shape[0]), levels.tobytes())
        return np.asarray(image.convert("RGB"))
    return levels[:, :, 0] if levels.shape[2] == 1 else levels


def _straight(colours: np.ndarray, alpha: np.ndarray, largest: int) -> np.ndarray:
    """Divide by alpha, as Pillow does: rounded down, at most white, unchanged where fully transparent."""
    wide = colours.astype(np.uint32)
    divided = np.minimum(wide * largest // np.maximum(alpha, 1), largest)
    return np.where(alpha > 0, divided, wide).astype(colours.dtype)

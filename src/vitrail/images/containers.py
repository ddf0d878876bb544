"""Containers cut down to what makes up the first picture, before a decoder sees them.

A file may declare any number of segments, chunks, frames, profiles and texts, of any length. Each function
here walks a container once, in time linear in its size, and returns a small valid file of the same kind that
holds only the first picture and its orientation; so nothing else is ever allocated, inflated or looped over.
Anything that is not such a container, or is incomplete, raises a ValueError that says why.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Iterator
from itertools import islice
from typing import BinaryIO, NamedTuple, cast

from vitrail.images.limits import PASSES, Limits

FIRST_BYTES = 256 * 2**10
"""The segments before a photo's scan fit in this many bytes; if they do not, the whole file is read."""

FIRST_SEGMENTS = 1000
"""A photo's frame header comes among these; profiles and previews take a few hundred at most."""

MAX_EXIF_BYTES = 2**20
"""No larger EXIF or XMP block is searched for an orientation: cameras stay below 64 KiB."""

# --- JPEG (ITU-T T.81, annex B) -----------------------------------------------------------------

_MARKER = re.compile(rb"\xff([\x01-\xfe])")
_AFTER_SCAN = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_START_OF_FRAME = frozenset({0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF})
_ONE_PASS = frozenset({0xC0, 0xC1, 0xC9})
_NOT_READ = {
    0xC3: "lossless",
    0xCB: "lossless",
    0xC5: "hierarchical",
    0xC6: "hierarchical",
    0xC7: "hierarchical",
}
_ALONE = frozenset({0x01, *range(0xD0, 0xD8)})
_TABLE_BYTES = {0xDB: 4 * 2**10, 0xC4: 64 * 2**10, 0xCC: 2**10, 0xDD: 2**10}
_SOI, _EOI, _SOS = 0xD8, 0xD9, 0xDA
_EXIF, _XMP = b"Exif\x00\x00", b"http://ns.adobe.com/xap/1.0/\x00"


class Spliced:
    """A file for reading: some bytes, then a range of another file, which is not copied."""

    def __init__(self, head: bytes, file: BinaryIO, start: int, end: int) -> None:
        self.head, self.file, self.start, self.end = head, file, start, end
        self.place = 0

    def read(self, size: int | None = -1) -> bytes:
        length = len(self.head) + self.end - self.start
        stop = length if size is None or size < 0 else min(length, self.place + size)
        first = self.head[self.place : stop]
        rest = b""
        if stop > len(self.head):
            begin = self.start + max(0, self.place - len(self.head))
            self.file.seek(begin)
            rest = self.file.read(self.start + stop - len(self.head) - begin)
        self.place = max(self.place, stop)
        return first + rest if first else rest

    def seek(self, place: int, whence: int = 0) -> int:
        base = (0, self.place, len(self.head) + self.end - self.start)[whence]
        self.place = max(0, base + place)
        return self.place

    def tell(self) -> int:
        return self.place

    def close(self) -> None:
        """The other file is closed by its opener."""


class Jpeg(NamedTuple):
    """A JPEG cut to its first picture: a file to read it from, (width, height), bytes taken by its
    coefficients, bytes of the file held in memory."""

    stream: BinaryIO
    size: tuple[int, int]
    coefficients: int
    held: int


def jpeg(file: BinaryIO, limits: Limits) -> Jpeg:
    """Cut a JPEG to its first picture.

    Kept are the tables, the frame, the scans, JFIF's and Adobe's segments, which say what the components
    mean, and the first EXIF and XMP. Without its end mark a JPEG is damaged, whatever follows.
    """
    end = file.seek(0, 2)
    file.seek(max(0, end - 2))
    ended = file.read() == b"\xff\xd9"
    file.seek(0)
    start = file.read(FIRST_BYTES)
    if ended and end > FIRST_BYTES:
        # The usual photo: one scan, and nothing after it. (Only an end mark can be the last two bytes.)
        try:
            header = _jpeg_header(start, limits)
        except ValueError:
            header = None
        if header is not None and header.one_pass and b"MPF\x00" not in start[: header.start]:
            stream = Spliced(b"".join(header.kept), file, header.start, end)
            return Jpeg(cast(BinaryIO, stream), header.size, 0, FIRST_BYTES)
    data = start + file.read()
    header = _jpeg_header(data, limits)
    stop = _jpeg_end(data, header, limits)
    whole = b"".join((*header.kept, memoryview(data)[header.start : stop]))
    coefficients = 0 if header.one_pass else _coefficients(header.frame, header.size)
    return Jpeg(io.BytesIO(whole), header.size, coefficients, len(data))


def jpeg_size(data: bytes, limits: Limits) -> tuple[int, int]:
    """(width, height) of a JPEG's frame header. Raises ValueError if it is not among the first segments."""
    for marker, _, segment in islice(_segments(data, limits), FIRST_SEGMENTS):
        if marker in _START_OF_FRAME:
            return _jpeg_size(marker, segment)
    raise ValueError("it has no frame header among its first segments")


class _Header(NamedTuple):
    """What comes before the first scan, which starts at byte `start` and is the only one if `one_pass`."""

    kept: list[bytes]
    frame: bytes
    size: tuple[int, int]
    start: int
    one_pass: bool


def _jpeg_header(data: bytes, limits: Limits) -> _Header:
    kept, size, start, frame = [b"\xff\xd8"], (0, 0), 0, b""
    room = dict(_TABLE_BYTES)
    for marker, place, segment in _segments(data, limits):
        if marker in _START_OF_FRAME:
            if frame:
                raise ValueError("it has two frame headers")
            frame, size = segment, _jpeg_size(marker, segment)
        elif marker in room:
            room[marker] -= len(segment)
            if room[marker] < 0:
                raise ValueError("it declares more tables than an image can use")
        elif marker == _SOS:
            start = place
            break
        elif not _says_something(segment, room):
            continue
        kept.append(segment)
    if not start or not frame:
        raise ValueError("it has no picture")
    _check_components(frame, kept)
    return _Header(kept, frame, size, start, frame[1] in _ONE_PASS and data[start + 4] == frame[9])


def _segments(data: bytes, limits: Limits) -> Iterator[tuple[int, int, bytes]]:
    """(marker, place, whole segment) up to and including the first scan's header."""
    place = 2
    for _ in range(limits.parts):
        match = _MARKER.search(data, place)
        if match is None:
            raise ValueError("the end is missing")
        marker, place = match[1][0], match.end()
        if marker in (_SOI, _EOI):
            raise ValueError("it ends before its picture")
        if marker in _ALONE:
            continue
        length = int.from_bytes(data[place : place + 2], "big")
        if length < 2 or place + length > len(data):
            raise ValueError("a segment is cut")
        yield marker, place - 2, data[place - 2 : place + length]
        place += length
    raise ValueError(f"it has more than {limits.parts} segments")


def _jpeg_size(marker: int, frame: bytes) -> tuple[int, int]:
    """(width, height) of a frame header: FF, marker, length, bits, height, width, components."""
    if marker in _NOT_READ or marker > 0xCB:
        raise ValueError(f"{_NOT_READ.get(marker, 'hierarchical')} JPEG is not read")
    if len(frame) < 10 or len(frame) != 10 + 3 * frame[9]:
        raise ValueError("its frame header is damaged")
    if frame[4] != 8:
        raise ValueError(f"{frame[4]} bits a sample are not read")
    height, width = struct.unpack(">HH", frame[5:9])
    if not height or not width:
        raise ValueError("its size is not in its frame header")
    return width, height


def _says_something(segment: bytes, room: dict[int, int]) -> bool:
    """Whether a non-table segment changes pixels or orientation: JFIF, Adobe, first EXIF and XMP."""
    marker, body = segment[1], segment[4:]
    if marker == 0xE1 and body.startswith(_EXIF):
        # A block above 64 KiB continues in the next segments.
        room[-1] = room.get(-1, 5) - 1
        return room[-1] > 0
    name = {0xE0: b"JFIF", 0xE1: _XMP, 0xEE: b"Adobe"}.get(marker)
    if name is None or not body.startswith(name) or -2 - marker in room:
        return False
    room[-2 - marker] = 0
    return True


def _check_components(frame: bytes, kept: list[bytes]) -> None:
    """Refuse what the decoder would guess: only Adobe's segment says whether four components are inverted."""
    if frame[9] not in (1, 3, 4):
        raise ValueError(f"{frame[9]} components are not read")
    if frame[9] == 4 and not any(segment[1] == 0xEE for segment in kept[1:]):
        raise ValueError("four components without Adobe's segment, which says whether they are inverted")


def _jpeg_end(data: bytes, header: _Header, limits: Limits) -> int:
    """The byte after the first picture's end mark; its scans are counted on the way."""
    width, height = header.size
    most = min(limits.scans, max(1, PASSES * limits.pixels // (width * height)))
    place, scans = header.start, 0
    for _ in range(limits.parts):
        match = _AFTER_SCAN.search(data, place)
        if match is None:
            break
        marker, place = data[match.start() + 1], match.end()
        if marker == _EOI:
            return place
        if marker == _SOI:
            break
        scans += marker == _SOS
        if scans > most:
            raise ValueError(f"it passes over its pixels more than {most} times")
        if marker not in _ALONE:
            place += int.from_bytes(data[place : place + 2], "big")
    raise ValueError("its end mark is missing")


def _coefficients(frame: bytes, size: tuple[int, int]) -> int:
    """Bytes that libjpeg needs for all coefficients of a picture with several scans: two for each."""
    factors = [(frame[11 + 3 * i] >> 4, frame[11 + 3 * i] & 15) for i in range(frame[9])]
    if not all(1 <= across <= 4 and 1 <= down <= 4 for across, down in factors):
        raise ValueError("its sampling factors are out of range")
    most = max(across for across, _ in factors) * max(down for _, down in factors)
    return sum(2 * size[0] * size[1] * across * down // most for across, down in factors)


# --- PNG (ISO/IEC 15948) ------------------------------------------------------------------------

PNG_FORMS = {
    0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)
}  # fmt: skip
"""Colour type -> bits a sample."""
_PNG_TEXTS = (b"Raw profile type exif\x00", b"XML:com.adobe.xmp\x00")


def png(data: bytes, limits: Limits) -> tuple[bytes, tuple[int, int]]:
    """Cut a PNG to its default picture; also its (width, height). Checksums are compared.

    Kept are IHDR, PLTE, the first run of IDAT, as one chunk, and chunks that can hold an orientation.
    """
    view, idat, kept, header = memoryview(data), [], [], b""
    seen: set[bytes] = set()
    run = True
    for name, place, length in _chunks(data, limits):
        body = view[place : place + length]
        if not header and name != b"IHDR":
            raise ValueError("its header is missing")
        # For all chunks: a damaged name could otherwise turn an important chunk into an ignored one.
        if zlib.crc32(body, zlib.crc32(name)) != int.from_bytes(
            data[place + length : place + length + 4], "big"
        ):
            raise ValueError(f"the checksum of {name.decode('latin-1')!r} does not match")
        if name == b"IEND":
            break
        if name == b"IDAT":
            idat += [body] if run else []
            continue
        run = run and not idat
        if name in seen or not _png_needs(name, body):
            continue
        seen.add(name)
        if name == b"IHDR":
            header = bytes(body)
        kept.append(_chunk(name, [body]))
    else:
        raise ValueError("the end is missing")
    size = _png_size(header)
    if not idat or (header[9] == 3) > (b"PLTE" in seen):
        raise ValueError("it has no picture" if not idat else "its palette is missing")
    return b"".join((data[:8], *kept, _chunk(b"IDAT", idat), _chunk(b"IEND", []))), size


def _chunks(data: bytes, limits: Limits) -> Iterator[tuple[bytes, int, int]]:
    """(name, place of the body, its length) of each complete chunk."""
    place = 8
    for _ in range(limits.parts):
        if place + 12 > len(data):
            return
        length, name = struct.unpack_from(">I4s", data, place)
        if place + 12 + length > len(data):
            return
        yield name, place + 8, length
        place += 12 + length
    raise ValueError(f"it has more than {limits.parts} chunks")


def _png_needs(name: bytes, body: memoryview) -> bool:
    if name in (b"IHDR", b"PLTE"):
        return True
    if len(body) > MAX_EXIF_BYTES:
        return False
    return name == b"eXIf" or (
        name in (b"tEXt", b"zTXt", b"iTXt") and bytes(body[:32]).startswith(_PNG_TEXTS)
    )


def _png_size(header: bytes) -> tuple[int, int]:
    if len(header) != 13:
        raise ValueError("its header is damaged")
    width, height, bits, colour, compression, filtering, interlace = struct.unpack(">IIBBBBB", header)
    if bits not in PNG_FORMS.get(colour, ()) or compression or filtering or interlace > 1:
        raise ValueError("its header names a form that PNG does not define")
    if not 0 < width < 2**31 or not 0 < height < 2**31:
        raise ValueError("its header has a size out of range")
    return width, height


def _chunk(name: bytes, parts: list[memoryview]) -> bytes:
    check = zlib.crc32(name)
    for part in parts:
        check = zlib.crc32(part, check)
    return b"".join((struct.pack(">I4s", sum(map(len, parts)), name), *parts, struct.pack(">I", check)))


# --- GIF (GIF89a specification) -----------------------------------------------------------------


def gif(data: bytes, limits: Limits) -> tuple[bytes, tuple[int, int]]:
    """Cut a GIF to its first frame; also (width, height): the screen, or the frame where it is larger."""
    if len(data) < 13:
        raise ValueError("its header is cut")
    place = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    head, control = data[:place], b""
    for _ in range(limits.parts):
        block = data[place : place + 1]
        if block == b"!":
            end = _sub_blocks(data, place + 2, limits)
            if data[place + 1 : place + 3] == b"\xf9\x04":
                # The disposal concerns the next frame, which is never used.
                control = b"!\xf9\x04" + bytes([data[place + 3] & 1]) + data[place + 4 : place + 8]
            place = end
        elif block == b",":
            return _first_frame(data, place, head + control, limits)
        else:
            break
    raise ValueError("it has no picture")


def _first_frame(data: bytes, place: int, before: bytes, limits: Limits) -> tuple[bytes, tuple[int, int]]:
    descriptor = data[place : place + 10]
    if len(descriptor) < 10:
        raise ValueError("its first frame is cut")
    width, height = struct.unpack_from("<HH", before, 6)
    left, top, across, down, flags = struct.unpack("<xHHHHB", descriptor)
    if not across or not down:
        raise ValueError("its first frame has no pixels")
    codes = place + 10 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    if not 1 <= int.from_bytes(data[codes : codes + 1], "big") <= 8:
        raise ValueError("its first frame is cut or not coded as GIF requires")
    end = _sub_blocks(data, codes + 1, limits, whole=False)
    size = max(width, left + across), max(height, top + down)
    return b"".join((before, memoryview(data)[place:end], b"\x00;")), size


def _sub_blocks(data: bytes, place: int, limits: Limits, *, whole: bool = True) -> int:
    """Byte after a chain of sub-blocks; `whole` False: before its end mark, which may be missing."""
    # Full blocks hold 255 bytes; a chain of shorter ones may be as long as `parts`.
    for _ in range(limits.parts + len(data) // 255):
        if place > len(data) or (whole and place == len(data)):
            raise ValueError("the end is missing")
        if place == len(data):
            return place
        if data[place] == 0:
            return place + whole
        place += 1 + data[place]
    raise ValueError(f"it has more than {limits.parts} short blocks")


# --- WebP (RFC 9649) ----------------------------------------------------------------------------


def webp(data: bytes, limits: Limits) -> tuple[bytes, tuple[int, int]]:
    """Cut a WebP to its first frame, EXIF and XMP; also its (width, height)."""
    kept: list[bytes | memoryview] = []
    size: tuple[int, int] | None = None
    seen: set[bytes] = set()
    place, end = 12, 8 + int.from_bytes(data[4:8], "little")
    if end > len(data):
        raise ValueError("the end is missing")
    for _ in range(limits.parts):
        if place + 8 > end:
            break
        name, length = struct.unpack_from("<4sI", data, place)
        after = place + 8 + length + length % 2
        if place + 8 + length > end:
            raise ValueError("the end is missing")
        if (
            name in (b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF", b"EXIF", b"XMP ")
            and name not in seen
        ):
            seen.add(name)
            if size is None:
                size = _webp_size(name, data[place + 8 : place + 18])
            if name not in (b"EXIF", b"XMP ") or length <= MAX_EXIF_BYTES:
                kept.append(memoryview(data)[place:after])
                if after > len(data):
                    kept.append(b"\x00")
        place = after
    else:
        raise ValueError(f"it has more than {limits.parts} chunks")
    if size is None:
        raise ValueError("it has no picture")
    body = b"".join(kept)
    if body[:4] == b"VP8X":
        # Bit 5 announces a colour profile, which was left out.
        body = body[:8] + bytes([body[8] & ~0x20]) + body[9:]
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body, size


def webp_size(data: bytes) -> tuple[int, int]:
    """(width, height) as the first chunk says. Raises ValueError if it says none."""
    size = _webp_size(data[12:16], data[20:30])
    if size is None:
        raise ValueError("its first chunk has no size")
    return size


def _webp_size(name: bytes, payload: bytes) -> tuple[int, int] | None:
    """Container specification (VP8X), RFC 6386 (VP8), RFC 9649 (VP8L)."""
    if len(payload) < 10:
        return None
    if name == b"VP8X":
        return int.from_bytes(payload[4:7], "little") + 1, int.from_bytes(payload[7:10], "little") + 1
    if name == b"VP8L":
        bits = int.from_bytes(payload[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if name == b"VP8 ":
        width, height = int.from_bytes(payload[6:8], "little"), int.from_bytes(payload[8:10], "little")
        return width & 0x3FFF, height & 0x3FFF
    return None

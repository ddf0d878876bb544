"""What an image file says of itself in its first bytes, read without decoding and without Pillow."""

from __future__ import annotations

from typing import BinaryIO

MAGIC: dict[bytes, str] = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"BM": "BMP",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"II*\x00": "TIFF",
    b"MM\x00*": "TIFF",
    b"II+\x00": "TIFF",
    b"MM\x00+": "TIFF",
}

PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"


def image_kind(start: bytes) -> str | None:
    """Return the format that a file's first 16 bytes announce, or None for any other file."""
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "WebP"
    return next((kind for magic, kind in MAGIC.items() if start.startswith(magic)), None)


def declared_size(kind: str, file: BinaryIO) -> tuple[int, int] | None:
    """Return (width, height) for the formats whose Pillow reader may allocate pixels on opening.

    Those are WebP (its canvas) and GIF (the area its first frame disposes of). None for the others,
    which can be opened first, and where the header is not understood, which the reader then refuses.
    """
    file.seek(0)
    if kind == "WebP":
        return _webp_size(file.read(30))
    if kind == "GIF":
        return _gif_size(file)
    return None


def _webp_size(start: bytes) -> tuple[int, int] | None:
    """WebP container specification and RFC 6386 (VP8), RFC 9649 (VP8L, VP8X)."""
    chunk, payload = start[12:16], start[20:]
    if len(payload) < 10:
        return None
    if chunk == b"VP8X":
        return int.from_bytes(payload[4:7], "little") + 1, int.from_bytes(payload[7:10], "little") + 1
    if chunk == b"VP8L":
        bits = int.from_bytes(payload[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if chunk == b"VP8 ":
        width, height = int.from_bytes(payload[6:8], "little"), int.from_bytes(payload[8:10], "little")
        return width & 0x3FFF, height & 0x3FFF
    return None


def _gif_size(file: BinaryIO) -> tuple[int, int] | None:
    """Logical screen or first frame, whichever reaches further (GIF89a specification, 18 and 20)."""
    head = file.read(13)
    if len(head) < 13:
        return None
    width, height = int.from_bytes(head[6:8], "little"), int.from_bytes(head[8:10], "little")
    if head[10] & 0x80:
        file.seek(3 << (head[10] & 7) + 1, 1)
    while (block := file.read(1)) not in (b"", b";"):
        if block == b"!":
            file.seek(1, 1)
            while length := file.read(1):
                if length == b"\x00":
                    break
                file.seek(length[0], 1)
        elif block == b",":
            place = file.read(8)
            left, top, across, down = (int.from_bytes(place[i : i + 2], "little") for i in (0, 2, 4, 6))
            return max(width, left + across), max(height, top + down)
    return width, height


def png_is_whole(file: BinaryIO) -> bool:
    """True if the PNG has its IEND chunk; the file's position is left where it was.

    Pillow is content with complete pixel data, so a file cut in its last bytes would pass.
    """
    position = file.tell()
    try:
        end = file.seek(0, 2)
        file.seek(max(0, end - len(PNG_END)))
        if file.read() == PNG_END:
            return True
        # Something follows the image, or its end is missing: walk the chunks.
        file.seek(8)
        while len(head := file.read(8)) == 8:
            if head[4:] == b"IEND":
                return len(file.read(4)) == 4
            file.seek(int.from_bytes(head[:4], "big") + 4, 1)
        return False
    finally:
        file.seek(position)

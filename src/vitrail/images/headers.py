"""What a file's first bytes say it is, read without decoding and without Pillow."""

from __future__ import annotations

import re
from typing import NamedTuple

HEAD_BYTES = 512
"""This many first bytes of a file are enough for `recognise`."""

READ: tuple[str, ...] = ("JPEG", "PNG", "WebP", "GIF", "TIFF", "BMP", "AVIF", "HEIF", "PPM")
"""The kinds that `decode` reads, by the names from `recognise`. PPM stands for all of netpbm's
PBM, PGM and PPM; HEIF for HEIC and other HEVC in HEIF."""

MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\x00\x10\x00\x00\x00CR", "Canon RAW (CR2)"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"II+\x00\x08\x00\x00\x00", "TIFF"),
    (b"MM\x00+\x00\x08\x00\x00", "TIFF"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\x00\x00\x00\x0cJXL \r\n\x87\n", "JPEG XL"),
    (b"\x00\x00\x00\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\xff\xd8\xf7", "JPEG-LS"),
    (b"II\xbc\x01", "JPEG XR"),
    (b"8BPS\x00\x01", "Photoshop (PSD)"),
    (b"8BPS\x00\x02", "Photoshop (PSB)"),
    (b"gimp xcf", "GIMP (XCF)"),
    (b"IIRO", "Olympus RAW (ORF)"),
    (b"IIRS", "Olympus RAW (ORF)"),
    (b"MMOR", "Olympus RAW (ORF)"),
    (b"IIU\x00", "Panasonic RAW (RW2)"),
    (b"FUJIFILMCCD-RAW", "Fujifilm RAW (RAF)"),
    (b"FOVb", "Sigma RAW (X3F)"),
    (b"\x00MRM", "Minolta RAW (MRW)"),
    (b"II\x1a\x00\x00\x00HEAPCCDR", "Canon RAW (CRW)"),
    (b"\x76\x2f\x31\x01", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"#?RGBE", "Radiance HDR"),
    (b"SDPX", "DPX"),
    (b"XPDS", "DPX"),
    (b"DDS \x7c\x00\x00\x00", "DDS"),
    (b"qoif", "QOI"),
    (b"FLIF", "FLIF"),
    (b"BPG\xfb", "BPG"),
    (b"farbfeld", "farbfeld"),
    (b"icns", "Apple icon (ICNS)"),
    (b"\x8aMNG\r\n\x1a\n", "MNG"),
    (b"\x8bJNG\r\n\x1a\n", "JNG"),
    (b"P7\n", "PAM"),
    (b"Pf\n", "PFM"),
    (b"PF\n", "PFM"),
    (b"SIMPLE  =", "FITS"),
    (b"\x59\xa6\x6a\x95", "Sun raster"),
    (b"/* XPM */", "XPM"),
    (b"\xd7\xcd\xc6\x9a", "WMF"),
    (b"AT&TFORM", "DjVu"),
)
"""First bytes -> kind. What needs more than a prefix is in `_structured`."""

HEIF_BRANDS: dict[bytes, str] = {
    b"avif": "AVIF",
    b"avis": "AVIF",
    **dict.fromkeys((b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs"), "HEIF"),
    b"crx ": "Canon RAW (CR3)",
    b"avci": "HEIF with H.264",
    b"avcs": "HEIF with H.264",
    b"jpeg": "HEIF with JPEG",
    b"jpgs": "HEIF with JPEG",
    b"j2ki": "HEIF with JPEG 2000",
    b"j2is": "HEIF with JPEG 2000",
    b"vvic": "HEIF with H.266",
    b"vvis": "HEIF with H.266",
}
"""Brands of the HEIF container (ISO/IEC 23008-12) that say which codec is inside."""

BMP_HEADERS = (12, 16, 40, 52, 56, 64, 108, 124)
_NETPBM = re.compile(rb"P[1-6](\s*#[^\r\n]*[\r\n])*\s+(#|\d)|P[1-6]\s*#")
_SVG = re.compile(rb"\A(\xef\xbb\xbf)?\s*(<\?xml|<!--|<!DOCTYPE\s+svg|<svg[\s:>]).*", re.DOTALL)


class Recognised(NamedTuple):
    """A kind of image file: its `name`, and whether `decode` `reads` it."""

    name: str
    reads: bool


def recognise(head: bytes) -> Recognised | None:
    """Return the kind of image that starts with `head`, or None if it does not look like an image.

    `head`: the first `HEAD_BYTES` bytes of a file, or all of a shorter one. Only these bytes
    decide; that a kind is recognised does not mean that the file is whole.
    """
    name = next((kind for magic, kind in MAGIC if head.startswith(magic)), None) or _structured(head)
    return None if name is None else Recognised(name, name in READ)


def image_kind(head: bytes) -> str | None:
    """Return the kind of a file that `decode` reads, from its first `HEAD_BYTES` bytes, else None."""
    known = recognise(head)
    return known.name if known is not None and known.reads else None


def _structured(head: bytes) -> str | None:
    """The kinds that no fixed prefix identifies."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    if head[4:8] == b"ftyp":
        return _heif(head)
    if head[:2] == b"BM" and (len(head) < 18 or int.from_bytes(head[14:18], "little") in BMP_HEADERS):
        return "BMP"
    if _NETPBM.match(head):
        return "PPM"
    if head[:4] in (b"\x00\x00\x01\x00", b"\x00\x00\x02\x00") and _icon(head):
        return "icon (ICO)" if head[2] == 1 else "cursor (CUR)"
    if head[:1] == b"\x0a" and head[1:2] in b"\x00\x02\x03\x04\x05" and head[2:3] == b"\x01":
        return "PCX" if head[3:4] in (b"\x01", b"\x02", b"\x04", b"\x08") else None
    if head[:2] == b"\x01\xda" and head[2:3] in (b"\x00", b"\x01") and head[3:4] in (b"\x01", b"\x02"):
        return "SGI"
    if head[128:132] == b"DICM":
        return "DICOM"
    if head[:4] == b"\x01\x00\x00\x00" and head[40:44] == b" EMF":
        return "EMF"
    if head[:11] == b"%!PS-Adobe-" and b"EPSF" in head[:32]:
        return "EPS"
    return "SVG" if _SVG.match(head) and b"<svg" in head else None


def _heif(head: bytes) -> str | None:
    """The codec that a HEIF's brands name: the major one first, then the compatible ones in order."""
    end = min(int.from_bytes(head[:4], "big"), len(head))
    brands = [head[8:12], *(head[i : i + 4] for i in range(16, end - 3, 4))]
    named = next((HEIF_BRANDS[brand] for brand in brands if brand in HEIF_BRANDS), None)
    return named or ("HEIF of unknown codec" if {b"mif1", b"msf1", b"mif2"} & set(brands) else None)


def _icon(head: bytes) -> bool:
    """Whether an icon's first directory entry is valid: a count, a reserved zero, a place after it."""
    count, place = int.from_bytes(head[4:6], "little"), int.from_bytes(head[18:22], "little")
    return 0 < count < 1024 and head[9:10] == b"\x00" and place >= 6 + 16 * count

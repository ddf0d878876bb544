"""Which files look like images, which of them are read, and what the newly read kinds become."""

from __future__ import annotations

import io
import re
import struct
import sys

import imagecodecs
import numpy as np
import pillow_heif
import pytest
import tifffile
from PIL import Image

from vitrail.errors import InputError, MissingExtraError
from vitrail.images.decode import decode
from vitrail.images.headers import HEAD_BYTES, READ, image_kind, recognise
from vitrail.install import here

RNG = np.random.default_rng(11)
# Smooth, so that lossy coding changes it by a few levels only.
PIXELS = np.stack([*np.meshgrid(np.arange(64) * 4, np.arange(48) * 5), np.full((48, 64), 90)], -1)
PIXELS = PIXELS.astype(np.uint8)


def saved(file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, file_format, **options)
    return buffer.getvalue()


def heic(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    pillow_heif.from_pillow(image).save(buffer, quality=-1, chroma=444, **options)
    return buffer.getvalue()


def tiff() -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, PIXELS)
    return buffer.getvalue()


def ftyp(major: bytes, *compatible: bytes) -> bytes:
    return struct.pack(">I", 16 + 4 * len(compatible)) + b"ftyp" + major + b"\0" * 4 + b"".join(compatible)


WRITTEN = {
    "JPEG": saved("JPEG"), "PNG": saved("PNG"), "WebP": saved("WEBP"), "GIF": saved("GIF"), "TIFF": tiff(),
    "BMP": saved("BMP"), "AVIF": saved("AVIF"), "HEIF": heic(Image.fromarray(PIXELS)), "PPM": saved("PPM"),
    "JPEG 2000": saved("JPEG2000"), "JPEG XL": imagecodecs.jpegxl_encode(PIXELS), "icon (ICO)": saved("ICO"),
    "JPEG XR": imagecodecs.jpegxr_encode(PIXELS), "QOI": imagecodecs.qoi_encode(PIXELS), "DDS": saved("DDS"),
    "PCX": saved("PCX"), "SGI": saved("SGI"), "EPS": saved("EPS"), "Apple icon (ICNS)": saved("ICNS"),
    "Radiance HDR": imagecodecs.rgbe_encode(PIXELS.astype("f4"), header=True),
    "PFM": b"Pf\n2 2\n-1.0\n" + b"\0" * 16,
}  # fmt: skip
"""Files of independent writers."""

HEADS = {
    "SVG": [b"<svg xmlns='http://www.w3.org/2000/svg'/>",
            b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- x -->\n<svg>"],
    "Photoshop (PSD)": [b"8BPS\0\1" + b"\0" * 20],
    "Canon RAW (CR2)": [b"II*\0\x10\0\0\0CR\2\0"],
    "Canon RAW (CR3)": [ftyp(b"crx ", b"crx ", b"isom")],
    "Olympus RAW (ORF)": [b"IIRO\x08\0\0\0"],
    "Panasonic RAW (RW2)": [b"IIU\0\x18\0\0\0"],
    "Fujifilm RAW (RAF)": [b"FUJIFILMCCD-RAW 0201"],
    "OpenEXR": [b"\x76\x2f\x31\x01\2\0\0\0"],
    "DICOM": [b"\0" * 128 + b"DICM"],
    "AVIF": [ftyp(b"avif", b"mif1"), ftyp(b"mif1", b"mif1", b"avif", b"miaf")],
    "HEIF": [ftyp(b"heic", b"mif1"), ftyp(b"mif1", b"mif1", b"heic"), ftyp(b"msf1", b"hevc")],
    "HEIF with H.264": [ftyp(b"avci", b"mif1")],
    "HEIF of unknown codec": [ftyp(b"mif1", b"abcd")],
    "PPM": [b"P6 3 4 255\n", b"P4\n# made by hand\n3 4\n", b"P1#c\n1 1 0"],
    "PAM": [b"P7\nWIDTH 4\n"],
}  # fmt: skip

OTHER = [
    b"", b"a text", b"BMW is a car maker, not a bitmap", b"P1 is a parameter", b"P5", b"%PDF-1.7", b"PK\3\4",
    b"RIFF\0\0\0\0WAVEfmt ", b"<html><body><svg></svg>",
    b"<?xml version='1.0'?><rss/>", b"\0\0\1\0", b"\0" * 600,
    ftyp(b"isom", b"mp42"), ftyp(b"qt  "), b"\x93NUMPY\1\0", b"\x7fELF",
]  # fmt: skip


@pytest.mark.parametrize("name", WRITTEN)
def test_each_kind_is_recognised_by_content(name):
    known = recognise(WRITTEN[name][:HEAD_BYTES])
    assert known == (name, name in READ)
    assert image_kind(WRITTEN[name][:HEAD_BYTES]) == (name if name in READ else None)


@pytest.mark.parametrize("name", HEADS)
def test_heads_tell_their_kind(name):
    for head in HEADS[name]:
        known = recognise(head)
        assert known is not None
        assert known.name == name


@pytest.mark.parametrize("head", OTHER)
def test_other_files_do_not_look_like_images(head):
    assert recognise(head) is None


@pytest.mark.parametrize("name", [name for name in WRITTEN if name not in READ])
def test_a_kind_that_is_not_read_is_refused_by_its_name(name):
    with pytest.raises(InputError) as error:
        decode(WRITTEN[name])
    assert f"is {name}, which is not read: convert it" in str(error.value)


@pytest.mark.parametrize("name", READ)
def test_each_kind_that_is_said_to_be_read_is(name):
    image = decode(WRITTEN[name])
    assert (image.mode, image.size) == ("RGB", (64, 48))
    # Palettes and 4:2:0 lose most.
    assert np.abs(np.asarray(image).astype(int) - PIXELS).mean() < (8 if name == "GIF" else 4)


def test_heic_is_turned_once_and_shows_its_primary_image():
    """HEIF turns by a box of its own; an EXIF orientation beside it is not applied again."""
    other, picture = (pillow_heif.from_pillow(Image.fromarray(part)) for part in (255 - PIXELS, PIXELS))
    other.add_from_pillow(picture.to_pillow())
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    other.save(
        buffer,
        quality=-1,
        chroma=444,
        save_all=True,
        primary_index=1,
        exif=exif.tobytes(),
    )
    turned = decode(buffer.getvalue())
    assert turned.size == (48, 64)
    assert np.abs(np.asarray(turned).astype(int) - np.rot90(PIXELS, -1)).mean() < 3
    assert np.array_equal(np.asarray(decode(turned)), np.asarray(turned))


def test_heic_without_its_reader_gives_the_install_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(MissingExtraError, match=re.escape(here('pip install "vitrail[heif]"'))) as error:
        decode(WRITTEN["HEIF"])
    assert "The given data is HEIC" in str(error.value)


# --- netpbm -------------------------------------------------------------------------------------


def expected(samples: np.ndarray, largest: int) -> np.ndarray:
    """8-bit levels of netpbm samples: rounded up to 255, the high byte above."""
    if largest > 255:
        return samples.astype(int) * 256 // (largest + 1)
    return np.floor(samples.astype(int) * 255 / largest + 0.5).astype(int)


@pytest.mark.parametrize("largest", [1, 2, 15, 100, 255, 256, 1023, 4095, 65535])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("plain", [True, False])
def test_netpbm_is_scaled_by_its_maximum(largest, channels, plain):
    samples = RNG.integers(0, largest + 1, (5, 7, channels))
    samples[0, 0], samples[0, 1] = 0, largest
    digit = {(1, True): 2, (3, True): 3, (1, False): 5, (3, False): 6}[channels, plain]
    head = b"P%d # a comment\n7\n5 %d\n" % (digit, largest)
    body = (
        b" ".join(b"%d" % value for value in samples.ravel()) + b"\n# the end"
        if plain
        else samples.astype("u1" if largest < 256 else ">u2").tobytes()
    )
    result = np.asarray(decode(head + body))
    assert np.array_equal(result, np.broadcast_to(expected(samples, largest), (5, 7, 3)))
    assert result.min() == 0
    assert result.max() == 255
    if plain and largest == 255:
        assert np.array_equal(result, np.asarray(Image.open(io.BytesIO(head + body)).convert("RGB")))
    for cut in (11, 18) if plain else (1, 2):
        with pytest.raises(InputError, match=r"samples are missing|may be cut"):
            decode(head + body[:-cut])


@pytest.mark.parametrize("plain", [True, False])
def test_bitmaps_are_black_where_they_are_1(plain):
    ink = RNG.integers(0, 2, (6, 11))
    body = "".join(map(str, ink.ravel())).encode() if plain else np.packbits(ink, axis=1).tobytes()
    data = b"P%d\n11 6\n" % (1 if plain else 4) + body
    assert np.array_equal(np.asarray(decode(data))[..., 0], (1 - ink) * 255)
    assert np.array_equal(np.asarray(decode(data)), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize(
    "data",
    [
        b"P5 4 4 255", b"P5 4 4 0\n" + b"\0" * 16, b"P5 4 4 70000\n" + b"\0" * 32, b"P5 0 4 255\n",
        b"P2 2 1 9 3 10\n", b"P2 2 1 9 3 x\n", b"P2 2 1 9 3 -1\n", b"P1 2 1 0 2",
        b"P2 2 1 9 3 99999999999999999999999\n",
        b"P6 99999999999 2 255\n", b"P6 2 2 255\n123",
    ],
)  # fmt: skip
def test_damaged_netpbm_is_one_sentence(data):
    with pytest.raises(InputError) as error:
        decode(data)
    assert "truncated, damaged or an unusual PPM" in str(error.value)


def test_large_netpbm_is_refused_by_its_header():
    with pytest.raises(InputError, match="above the limit"):
        decode(b"P6 50000 50000 255\n")

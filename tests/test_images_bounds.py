"""What a file declares costs nothing: segments, chunks, texts, profiles, frames, scans, runs."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import time
import zlib

import images
import numpy as np
import pillow_heif
import pytest
from PIL import Image

from vitrail.errors import InputError
from vitrail.images import decode as decoding
from vitrail.images import heif
from vitrail.images.decode import decode
from vitrail.images.limits import LIMITS, Limits

Y, X = np.mgrid[:90, :120]
PIXELS = np.stack([X * 2, Y * 2, (X * 5 + Y * 3) % 256], -1).astype(np.uint8)
PHOTO = Image.fromarray(PIXELS)


def saved(file_format: str, image: Image.Image = PHOTO, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


JPEG, PNG, GIF, WEBP = (saved(kind) for kind in ("JPEG", "PNG", "GIF", "WEBP"))


def as_pillow(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def after_header(data: bytes, *chunks: bytes) -> bytes:
    return data[:33] + b"".join(chunks) + data[33:]


def webp_chunk(name: bytes, body: bytes) -> bytes:
    return name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def webp_file(*chunks: bytes) -> bytes:
    body = b"".join(chunks)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def bmp(
    rows: bytes, width: int, height: int, bits: int, compression: int = 0, palette: bytes = b"",
    masks: bytes = b"", header: int = 40, used: int = 0,
) -> bytes:  # fmt: skip
    if header == 12:
        info = struct.pack("<IHHHH", 12, width, height, 1, bits)
    else:
        info = struct.pack(
            "<IiiHHIIIIII", header, width, height, 1, bits, compression, len(rows), 0, 0, used, 0
        )
        info += (masks if header > 40 else b"").ljust(header - 40, b"\0") + (masks if header == 40 else b"")
    start = 14 + len(info) + len(palette)
    return b"BM" + struct.pack("<IHHI", start + len(rows), 0, 0, start) + info + palette + rows


# --- the time that a declaration takes -----------------------------------------------------------

ICC_SEGMENT = b"\xff\xe2\x00\x20ICC_PROFILE\0\1\2" + b"\0" * 16
PHOTOSHOP_SEGMENT = b"\xff\xed\x00\x20Photoshop 3.0\0" + b"8BIM" * 4
EXIF_SEGMENT = b"\xff\xe1\x00\xd0Exif\0\0" + b"\0" * 200
ZIPPED_ZEROS = zlib.compress(b"\0" * 2**27, 9)
GIF_COMMENT = b"!\xfe" + (b"\xff" + b"c" * 255) * 400 + b"\0"
HARMLESS = {
    "60,000 EXIF segments": (JPEG, JPEG[:2] + EXIF_SEGMENT * 60_000 + JPEG[2:]),
    "ICC segments": (JPEG, JPEG[:2] + ICC_SEGMENT * 60_000 + JPEG[2:]),
    "photoshop segments": (JPEG, JPEG[:2] + PHOTOSHOP_SEGMENT * 50_000 + JPEG[2:]),
    "fill bytes": (JPEG, JPEG[:2] + b"\xff" * 2**22 + JPEG[2:]),
    "comments after the picture": (JPEG, JPEG + b"\xff\xfe\x00\x10" + b"c" * 2**22),
    "text bombs": (PNG, after_header(PNG, chunk(b"zTXt", b"k\0\0" + ZIPPED_ZEROS) * 40)),
    "a text of 64 MiB": (PNG, after_header(PNG, chunk(b"iTXt", b"k\0\1\0\0\0" + ZIPPED_ZEROS))),
    "a profile bomb": (PNG, after_header(PNG, chunk(b"iCCP", b"p\0\0" + ZIPPED_ZEROS))),
    "60,000 chunks": (PNG, after_header(PNG, chunk(b"prVt", b"x" * 60) * 60_000)),
    "empty image chunks": (PNG, PNG[: PNG.index(b"IDAT") - 4] + chunk(b"IDAT", b"") * 60_000
                           + PNG[PNG.index(b"IDAT") - 4 :]),
    "GIF comments": (GIF, GIF[:13] + GIF[13:781] + GIF_COMMENT * 60 + GIF[781:]),
    "GIF frames": (GIF, GIF[:-1] + b",\0\0\0\0\1\0\1\0\0\2\2\x4c\1\0" * 300_000 + b";"),
    "WebP chunks": (WEBP, webp_file(WEBP[12:], webp_chunk(b"JUNK", b"x" * 100) * 60_000)),
}  # fmt: skip


@pytest.mark.parametrize("name", HARMLESS)
def test_what_does_not_make_the_picture_is_left_out(name):
    plain, laden = HARMLESS[name]
    start = time.process_time()
    result = np.asarray(decode(laden))
    # Reading each byte once is what it takes; the quadratic forms took minutes.
    assert time.process_time() - start < 2
    assert np.array_equal(result, as_pillow(plain))


def jpeg_scans(count: int) -> bytes:
    """A progressive JPEG whose last scan stands there `count` times more."""
    data = saved("JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * (count + 1) + data[-2:]


def tables(marker: int, body: bytes, count: int) -> bytes:
    return JPEG[:2] + (b"\xff" + bytes([marker]) + struct.pack(">H", 2 + len(body)) + body) * count + JPEG[2:]


REFUSED = {
    "JPEG segments": (JPEG[:2] + b"\xff\xfe\x00\x02" * 70_000 + JPEG[2:], "more than 65536 segments"),
    "JPEG scans": (jpeg_scans(400), "passes over its pixels more than 100 times"),
    "quantisation tables": (tables(0xDB, (b"\0" + b"\1" * 64) * 900, 20), "more tables than an image can"),
    "Huffman tables": (tables(0xC4, b"\0" + b"\0" * 16, 5_000), "more tables than an image can use"),
    "PNG chunks": (after_header(PNG, chunk(b"prVt", b"") * 70_000), "more than 65536 chunks"),
    "a PNG chunk of 4 GB": (PNG[: PNG.index(b"IDAT") - 4] + b"\xff\xff\xff\xfe" + PNG[PNG.index(b"IDAT") :],
                            "the end is missing"),
    "GIF extensions": (GIF[:13] + GIF[13:781] + b"!\xfe\0" * 70_000 + GIF[781:], "no picture"),
    "GIF blocks of one byte": (GIF[:-2] + b"\1\0" * 2**17 + b"\0;", "short blocks"),
    "WebP chunks": (webp_file(webp_chunk(b"JUNK", b"") * 70_000, WEBP[12:]), "more than 65536 chunks"),
    "a long run-length code": (bmp(b"\1\1" * 2**20, 120, 90, 8, 1, b"\0" * 1024), "more than 1 MiB"),
    "a bitmap's palette": (bmp(b"", 8, 8, 8, used=2**31), "palette is missing"),
    "a picture of rows of one pixel": (
        PNG[:8] + chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 48 * 2**20, 1, 0, 0, 0, 0)) + PNG[33:],
        "MiB to decode, above the limit of 512 MiB",
    ),
    "a plain PPM": (b"P3 3000 3000 255\n" + b"1 " * 2**25, "plain text of more than 32 MiB"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_left_out_has_a_limit(name):
    data, reason = REFUSED[name]
    start = time.process_time()
    with pytest.raises(InputError) as error:
        decode(data)
    assert reason in str(error.value)
    assert time.process_time() - start < 2


def test_the_limits_are_the_callers():
    many = after_header(PNG, chunk(b"prVt", b"") * 100)
    assert decode(many).size == (120, 90)
    for limits, reason in [
        (Limits(parts=50), "more than 50 chunks"),
        (Limits(file_bytes=1000), "larger than 0 MiB"),
        (Limits(pixels=120 * 90 - 1), "120 x 90 pixels, above the limit"),
        (Limits(memory_bytes=10_000), "above the limit of 0 MiB"),
    ]:
        with pytest.raises(InputError, match=reason):
            decode(many, limits=limits)
    assert decode(jpeg_scans(150), limits=Limits(scans=200)).size == (120, 90)
    with pytest.raises(InputError, match="more than 11 times"):
        decode(jpeg_scans(20), limits=Limits(pixels=120 * 90 - 1 + 1, scans=11))


def test_one_files_lack_of_memory_is_that_files_error(monkeypatch, tmp_path):
    path = tmp_path / "large.png"
    path.write_bytes(PNG)

    def nothing_left(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(decoding, "_cut", nothing_left)
    with pytest.raises(InputError, match=r"large\.png needs more memory than is available"):
        decode(path)


# --- what stays, stays right --------------------------------------------------------------------


def test_a_progressive_jpeg_and_one_of_several_scans_are_pillows():
    for options in ({"progressive": True}, {"subsampling": 0, "quality": 98}, {"optimize": True}):
        data = saved("JPEG", **options)
        assert np.array_equal(np.asarray(decode(data)), as_pillow(data))
        assert np.array_equal(np.asarray(decode(data + b"\0" * 999)), as_pillow(data))
    exif = Image.Exif()
    exif[0x0112] = 3
    for options in (
        {"icc_profile": b"p" * 90_000},
        {"exif": exif, "comment": b"c"},
        {"restart_marker_blocks": 2},
    ):
        data = saved("JPEG", **options)
        expected = np.rot90(as_pillow(data), 2) if "exif" in options else as_pillow(data)
        assert np.array_equal(np.asarray(decode(data)), expected)


def test_a_large_jpeg_is_read_without_a_copy_and_stays_the_same(tmp_path):
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (500, 700, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 8
    for options in ({}, {"icc_profile": b"p" * 400_000}, {"exif": exif}):
        data = saved("JPEG", noise, quality=95, **options)
        assert len(data) > 1.2 * 2**18
        path = tmp_path / "large.jpg"
        path.write_bytes(data)
        expected = np.rot90(as_pillow(data)) if "exif" in options else as_pillow(data)
        for source in (data, path):
            assert np.array_equal(np.asarray(decode(source)), expected)
            assert decode(source, short_side=60).size in ((175, 125), (125, 175))
        for bad in (data[:-1], data[:300_000], data[:300_000] + b"\0" * (len(data) - 300_000)):
            with pytest.raises(InputError, match=r"end mark is missing|truncated"):
                decode(bad)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 0.99])
def test_a_jpeg_cut_and_filled_with_zeros_is_damaged(options, share):
    """Zeros are a valid code: without its end mark the picture would pass, wrong from the cut on."""
    data = saved("JPEG", **options)
    cut = int(len(data) * share)
    filled = data[:cut] + b"\0" * (len(data) - cut)
    for bad in (filled, filled + JPEG):
        with pytest.raises(InputError, match=r"end mark is missing|truncated"):
            decode(bad)


def test_the_end_mark_of_a_thumbnail_or_of_another_picture_does_not_count():
    both = saved("MPO", save_all=True, append_images=[PHOTO])
    assert np.array_equal(np.asarray(decode(both)), as_pillow(both))
    first_end = both.index(b"\xff\xd9\xff\xd8")
    cut = both[: first_end - 900] + b"\0" * 902 + both[first_end + 2 :]
    with pytest.raises(InputError, match="end mark is missing"):
        decode(cut)


def test_four_components_without_adobes_segment_may_be_either_sign():
    data = saved("JPEG", PHOTO.convert("CMYK"))
    assert np.abs(np.asarray(decode(data)).astype(int) - PIXELS).mean() < 12
    place = data.index(b"\xff\xee")
    length = int.from_bytes(data[place + 2 : place + 4], "big") + 2
    with pytest.raises(InputError, match="whether they are inverted"):
        decode(data[:place] + data[place + length :])


def test_a_text_cannot_change_how_a_png_is_read():
    """Pillow keeps texts beside the facts: one called "interlace" makes it read rows as passes."""
    for key in (b"interlace", b"transparency", b"bbox", b"exif", b"icc_profile"):
        data = after_header(PNG, chunk(b"tEXt", key + b"\0" + b"1"))
        assert np.array_equal(np.asarray(decode(data)), PIXELS)


def test_a_png_whose_checksum_does_not_fit_is_damaged():
    place = PNG.index(b"IDAT") + 40
    data = PNG[:place] + bytes([PNG[place] ^ 1]) + PNG[place + 1 :]
    with pytest.raises(InputError, match="the checksum of 'IDAT' does not match"):
        decode(data)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = saved("PNG", exif=exif)
    assert decode(turned).size == (90, 120)
    # Under another name the orientation would be lost without a word.
    with pytest.raises(InputError, match="the checksum of 'eXIg' does not match"):
        decode(turned.replace(b"eXIf", b"eXIg"))


@pytest.mark.parametrize("place", ["before", "after"])
def test_orientation_is_found_where_a_png_may_have_it(place):
    exif = Image.Exif()
    exif[0x0112] = 6
    raw = exif.tobytes()
    raw = raw[6:] if raw.startswith(b"Exif") else raw
    profile = b"\nexif\n%8d\n" % (len(raw) + 6) + (b"Exif\0\0" + raw).hex().encode() + b"\n"
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6"/></x:xmpmeta>'
    for extra in (
        chunk(b"eXIf", raw),
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(profile)),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp),
    ):
        data = after_header(PNG, extra) if place == "before" else PNG[:-12] + extra + PNG[-12:]
        assert np.array_equal(np.asarray(decode(data)), np.rot90(PIXELS, -1))


def test_a_number_beyond_the_palette_is_damage():
    palette = PHOTO.quantize(200)
    data = saved("PNG", palette)
    assert np.array_equal(np.asarray(decode(data)), np.asarray(palette.convert("RGB")))
    place = data.index(b"PLTE")
    length = int.from_bytes(data[place - 4 : place], "big")
    short = data[: place - 4] + chunk(b"PLTE", data[place + 4 : place + 4 + 30]) + data[place + length + 8 :]
    with pytest.raises(InputError, match="that the palette lacks"):
        decode(short)


# --- forms of PNG -------------------------------------------------------------------------------

PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def png_of(samples: np.ndarray, bits: int, colour: int, interlaced: bool, palette: bytes = b"") -> bytes:
    """Samples (H, W, S) -> a PNG with filter 0, in Adam7 passes if `interlaced` (ISO/IEC 15948, 8.2)."""
    rows = b""
    for left, top, across, down in PASSES if interlaced else ((0, 0, 1, 1),):
        for line in samples[top::down, left::across]:
            if not line.size:
                continue
            digits = "".join(f"{int(value):0{bits}b}" for value in line.ravel())
            digits += "0" * (-len(digits) % 8)
            rows += b"\0" + bytes(int(digits[i : i + 8], 2) for i in range(0, len(digits), 8))
    head = struct.pack(">IIBBBBB", samples.shape[1], samples.shape[0], bits, colour, 0, 0, interlaced)
    body = chunk(b"IHDR", head) + (chunk(b"PLTE", palette) if palette else b"")
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


PNG_FORMS = [
    (bits, colour) for colour, every in {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16),
                                         6: (8, 16)}.items() for bits in every
]  # fmt: skip


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (5, 3), (17, 13)])
@pytest.mark.parametrize(("bits", "colour"), PNG_FORMS)
def test_each_form_of_png_has_its_known_pixels(bits, colour, size, interlaced):
    count = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    rng = np.random.default_rng(bits * 10 + colour)
    samples = rng.integers(0, 1 << bits, (size[1], size[0], count))
    palette = rng.integers(0, 256, (1 << bits, 3)).astype(np.uint8) if colour == 3 else None
    data = png_of(samples, bits, colour, interlaced, b"" if palette is None else palette.tobytes())
    if palette is not None:
        expected = palette[samples[:, :, 0]]
    else:
        colours = samples[:, :, : 1 if count < 3 else 3]
        expected = colours >> 8 if bits == 16 else colours * 255 // ((1 << bits) - 1)
    assert np.array_equal(np.asarray(decode(data)), np.broadcast_to(expected, (size[1], size[0], 3)))


# --- forms of BMP -------------------------------------------------------------------------------


@pytest.mark.parametrize("header", [12, 40, 108, 124])
@pytest.mark.parametrize("bits", [1, 4, 8])
@pytest.mark.parametrize("kind", ["colours", "dark greys", "black and white", "few"])
def test_palette_bitmaps(bits, header, kind):
    """Palettes in which entry i is grey level i make Pillow read one byte a pixel, whatever the bits."""
    width, height, entries = 13, 7, (1 << bits) if kind != "few" else (1 << bits) - 1
    rng = np.random.default_rng(bits)
    numbers = rng.integers(0, entries, (height, width))
    palette = rng.integers(0, 256, (entries, 3))
    if kind == "dark greys":
        palette = np.repeat(np.arange(entries)[:, None], 3, 1)
    elif kind == "black and white":
        palette = np.where(np.arange(entries)[:, None] % 2, [255] * 3, [0] * 3)
    rows = b""
    for line in numbers[::-1]:
        digits = "".join(f"{value:0{bits}b}" for value in line)
        rows += int(digits.ljust(-(-len(digits) // 32) * 32, "0"), 2).to_bytes(
            -(-len(digits) // 32) * 4, "big"
        )
    stored = b"".join(bytes(map(int, colour[::-1])) + (b"" if header == 12 else b"\0") for colour in palette)
    data = bmp(rows, width, height, bits, palette=stored, header=header, used=0 if header == 12 else entries)
    assert np.array_equal(np.asarray(decode(data)), palette[numbers])


@pytest.mark.parametrize("top_down", [False, True])
@pytest.mark.parametrize(
    ("bits", "masks"),
    [(16, None), (24, None), (32, None), (16, (0xF800, 0x7E0, 0x1F)), (16, (0xF00, 0xF0, 0xF)),
     (32, (0xFF, 0xFF00, 0xFF0000)), (32, (0x3FF00000, 0xFFC00, 0x3FF)),
     (32, (0xFF000000, 0xFF0000, 0xFF00))],
)  # fmt: skip
@pytest.mark.parametrize("header", [40, 56, 108])
def test_bitmaps_of_masks(bits, masks, header, top_down):
    width, height = 11, 6
    values = np.random.default_rng(bits).integers(0, 1 << bits, (height, width))
    used = (
        masks or {16: (0x7C00, 0x3E0, 0x1F), 24: (0xFF0000, 0xFF00, 0xFF), 32: (0xFF0000, 0xFF00, 0xFF)}[bits]
    )
    expected = np.stack(
        [(values & mask) // (mask & -mask) * 255 // (mask // (mask & -mask)) for mask in used], -1
    )
    rows = b""
    for line in values if top_down else values[::-1]:
        stored = b"".join(int(value).to_bytes(bits // 8, "little") for value in line)
        rows += stored + b"\0" * (-len(stored) % 4)
    packed = struct.pack("<3I", *masks) if masks else b""
    data = bmp(
        rows, width, -height if top_down else height, bits, 3 if masks else 0, masks=packed, header=header
    )
    assert np.array_equal(np.asarray(decode(data)), expected)
    with pytest.raises(InputError, match="pixels are missing"):
        decode(data[:-5])


def test_run_length_codes():
    palette = np.random.default_rng(0).integers(0, 256, (256, 3))
    stored = b"".join(bytes(map(int, colour[::-1])) + b"\0" for colour in palette)
    # Bottom row: five of 7, literals 1 2 3 (padded), end of line; skip 2 right; one of 9; end of picture.
    code = b"\5\7\0\3\1\2\3\0\0\0\0\2\2\0\1\x09\0\0\x08\4\0\1"
    data = bmp(code, 8, 3, 8, 1, stored)
    numbers = np.array([[4] * 8, [0, 0, 9, 0, 0, 0, 0, 0], [7, 7, 7, 7, 7, 1, 2, 3]])
    assert np.array_equal(np.asarray(decode(data)), palette[numbers])
    # Four bits: five of 1 2 in turn; literals 3 4 5.
    code = b"\5\x12\0\3\x34\x50\0\1"
    assert np.array_equal(
        np.asarray(decode(bmp(code, 8, 1, 4, 2, stored[:64]))), palette[[[1, 2, 1, 2, 1, 3, 4, 5]]]
    )
    with pytest.raises(InputError, match="pixels are missing"):
        decode(bmp(b"\5\7\0\0", 8, 3, 8, 1, stored))


@pytest.mark.parametrize(
    "data",
    [
        bmp(b"\0" * 64, 4, 4, 32, 3, masks=struct.pack("<3I", 0, 0, 0)),
        bmp(b"\0" * 64, 4, 4, 32, 3, masks=struct.pack("<3I", 0xF0F, 0xFF, 0xFF)),
        bmp(b"\0" * 64, 4, 4, 2, palette=b"\0" * 16), bmp(b"\0" * 64, 4, 4, 8, 4), bmp(b"\0" * 64, 0, 4, 24),
        bmp(b"\0" * 64, 4, 4, 64), bmp(b"\xff" * 64, 4, 4, 8, palette=b"\0" * 16, used=4),
    ],
)  # fmt: skip
def test_other_bitmaps_are_refused(data):
    with pytest.raises(InputError, match="BMP"):
        decode(data)


# --- memory, in a process of its own --------------------------------------------------------------


@pytest.mark.slow
def test_the_largest_pictures_stay_within_the_limit_of_memory(tmp_path):
    """The way of decoding that takes most, at the default limit of pixels, turned; peak growth in MiB.
    (`fuzz/images.py --largest` measures all.)"""
    script = (
        "import resource, sys\n"
        "from vitrail.images.decode import decode\n"
        "decode(sys.argv[2])\n"
        "open('/proc/self/clear_refs', 'w').write('5')\n"
        "status = lambda: dict(line.split(':') for line in open('/proc/self/status'))\n"
        "read = lambda name: int(status()[name].split()[0])\n"
        "before = read('VmRSS')\n"
        "image = decode(sys.argv[1])\n"
        "print((read('VmHWM') - before) // 1024)\n"
    )
    side = int(LIMITS.pixels**0.5) - 8
    exif = Image.Exif()
    exif[0x0112] = 6
    flat = Image.new("RGB", (side, side), (90, 120, 30))
    (tmp_path / "small.png").write_bytes(PNG)
    for name, file_format, options in [
        ("progressive", "JPEG", {"progressive": True, "subsampling": 0, "exif": exif}),
    ]:
        path = tmp_path / name
        flat.save(path, file_format, **options)
        command = [sys.executable, "-c", script, str(path), str(tmp_path / "small.png")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert int(done.stdout) <= LIMITS.memory_bytes >> 20, (name, done.stdout)


# --- HEIF ---------------------------------------------------------------------------------------


def heic(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    pillow_heif.from_pillow(image).save(buffer, quality=70, **options)
    return buffer.getvalue()


def test_tiles_that_are_missing_are_damage():
    """libheif leaves them blank."""
    data = heic(Image.fromarray(np.tile(PIXELS, (2, 2, 1))), tile_size=64)
    whole = np.asarray(decode(data))
    assert whole.shape == (180, 240, 3)
    for share in (0.4, 0.7, 0.99):
        with pytest.raises(InputError, match="the end is missing"):
            decode(data[: int(len(data) * share)])


@pytest.mark.parametrize("kind", ["AVIF", "HEIF"])
def test_coded_pictures_larger_than_their_box_are_refused(kind):
    """Decoders allocate by the codec's own header: a box of 64 x 64 could hide any size."""
    image = Image.new("RGB", (700, 500), (9, 99, 199))
    data = saved("AVIF", image) if kind == "AVIF" else heic(image)
    assert decode(data).size == (700, 500)
    box = data.index(b"ispe") + 8
    small = data[:box] + struct.pack(">II", 64, 64) + data[box + 8 :]
    with pytest.raises(InputError, match="its headers contradict each other"):
        decode(small)
    with pytest.raises(InputError, match="above the limit"):
        decode(data, limits=Limits(pixels=700 * 500))


def test_the_code_of_a_picture_is_bounded(monkeypatch):
    monkeypatch.setattr(heif, "MAX_CODED_BYTES", 100)
    with pytest.raises(InputError, match="its code of"):
        decode(saved("AVIF"))


def test_a_sequence_shows_its_still_picture():
    frames = saved("AVIF", save_all=True, append_images=[Image.new("RGB", PHOTO.size)])
    assert b"moov" in frames
    assert np.array_equal(np.asarray(decode(frames)), as_pillow(frames))


@pytest.mark.parametrize("header", ["reduced", "full", "full with timing"])
def test_the_sizes_in_av1_headers_are_read(header):
    """Bits by the specification, 5.5.1: a frame of at most 1234 x 567."""
    start = "000" + {"reduced": "11" + "0" * 5}.get(header, "00")
    if header == "full":
        start += "0" + "0" + "00000" + "0" * 12 + "01000" + "0"
    if header == "full with timing":
        start += "1" + "0" * 64 + "1" + "00101" + "1" + "00011" + "0" * 32 + "0" * 10
        start += "1" + "00001" + ("0" * 12 + "00100" + "1" + "0000" * 2 + "0" + "1" + "0101") * 2
    bits = start + f"{10:04b}{9:04b}{1233:011b}{566:010b}"
    bits += "0" * (-len(bits) % 8)
    data = int(bits, 2).to_bytes(len(bits) // 8, "big")
    unit = bytes([0x0A, len(data)]) + data
    assert list(heif._av1_sizes(b"\x12\x00" + unit, LIMITS)) == [(1234, 567)]


# --- a sample of the campaign -------------------------------------------------------------------


def test_a_sample_of_mutated_images():
    """`fuzz/images.py` runs 20,000 and more, in a process that may die; here some hundred of them."""
    cases = images.Cases(seed=11)
    judged = [cases.judge(index) for index in range(400)]
    # Time and memory of this process are measured by the campaign, where nothing else runs in it.
    assert [case for case in judged if case["verdict"] in ("foreign exception", "wrong")] == []
    assert {case["verdict"] for case in judged} >= {"decoded", "refused"}

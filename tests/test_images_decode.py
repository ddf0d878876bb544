"""Opening untrusted images: what each kind becomes, and what is refused with one sentence."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps

from vitrail.errors import InputError
from vitrail.images.decode import decode, frame_of
from vitrail.images.limits import LIMITS, Limits

ORIENTATION = 0x0112


def gradient(width: int, height: int) -> Image.Image:
    """An image in which every corner differs, so that no turn or flip goes unseen."""
    y, x = np.mgrid[:height, :width]
    channels = [x * 255 // max(width - 1, 1), y * 255 // max(height - 1, 1), (x * 7 + y * 13) % 256]
    return Image.fromarray(np.stack(channels, -1).astype(np.uint8))


def encoded(image: Image.Image, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def pixels(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def one_sentence(error: pytest.ExceptionInfo[InputError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert text.endswith(".")
    return text


PHOTO = gradient(61, 43)
FILES = {
    "jpeg": encoded(PHOTO, "JPEG"),
    "jpeg progressive": encoded(PHOTO, "JPEG", progressive=True),
    "jpeg of two pictures": encoded(PHOTO, "MPO", save_all=True, append_images=[ImageOps.invert(PHOTO)]),
    "png": encoded(PHOTO, "PNG"),
    "apng": encoded(PHOTO, "PNG", save_all=True, append_images=[ImageOps.invert(PHOTO)]),
    "webp": encoded(PHOTO, "WEBP"),
    "webp lossless": encoded(PHOTO, "WEBP", lossless=True),
    "webp animated": encoded(
        PHOTO, "WEBP", lossless=True, save_all=True, append_images=[ImageOps.invert(PHOTO)]
    ),
    "bmp": encoded(PHOTO, "BMP"),
    "gif": encoded(PHOTO, "GIF"),
    "gif animated": encoded(PHOTO, "GIF", save_all=True, append_images=[ImageOps.invert(PHOTO)]),
    "tiff": encoded(PHOTO, "TIFF"),
    "tiff lzw": encoded(PHOTO, "TIFF", compression="tiff_lzw"),
    "tiff pages": encoded(PHOTO, "TIFF", save_all=True, append_images=[ImageOps.invert(PHOTO)]),
}
LOSSLESS = ["png", "apng", "webp lossless", "webp animated", "bmp", "tiff", "tiff lzw", "tiff pages"]


# --- formats and sources ------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_each_format_equals_pillow_and_shows_the_first_frame(name):
    result = pixels(decode(FILES[name]))
    reference = np.asarray(Image.open(io.BytesIO(FILES[name])).convert("RGB"))
    assert np.array_equal(result, reference)
    assert np.abs(result - np.asarray(PHOTO).astype(int)).mean() < 30
    if name in LOSSLESS:
        assert np.array_equal(result, np.asarray(PHOTO))


def test_all_sources_of_one_image_agree(tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(FILES["png"])
    data, array = FILES["png"], np.asarray(PHOTO)
    for source in (path, str(path), data, bytearray(data), memoryview(data), PHOTO, array):
        assert np.array_equal(pixels(decode(source)), array)
    assert np.array_equal(pixels(decode(np.dstack([array, array[..., :1]]))), array)
    assert np.array_equal(pixels(decode(array[..., 0])), array[..., [0, 0, 0]])
    assert np.array_equal(pixels(decode(array[::2, ::-3])), array[::2, ::-3])


def test_the_file_suffix_does_not_matter(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(FILES["png"])
    assert np.array_equal(pixels(decode(path)), np.asarray(PHOTO))


def test_an_array_is_copied():
    array = np.zeros((4, 4, 3), np.uint8)
    image = decode(array)
    array[:] = 255
    assert pixels(image).max() == 0


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4), np.uint16),
        np.zeros((3, 8, 8), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros(4, np.uint8),
    ],
)
def test_other_arrays_are_refused(array):
    with pytest.raises(InputError) as error:
        decode(array)
    assert str(array.shape) in one_sentence(error)


@pytest.mark.parametrize("source", [None, 3, ["a.jpg"], object()])
def test_other_types_are_refused(source):
    with pytest.raises(InputError, match="pass a path"):
        decode(source)


# --- colour modes -------------------------------------------------------------------------------


def test_transparency_is_dropped_as_pillow_drops_it():
    alpha = gradient(61, 43).convert("L")
    rgba = PHOTO.copy()
    rgba.putalpha(alpha)
    assert np.array_equal(pixels(decode(encoded(rgba, "PNG"))), np.asarray(PHOTO))
    grey = PHOTO.convert("L")
    la = Image.merge("LA", (grey, alpha))
    assert np.array_equal(pixels(decode(encoded(la, "PNG"))), np.asarray(grey.convert("RGB")))
    for image in (rgba, la, PHOTO.convert("PA"), PHOTO.convert("P")):
        assert np.array_equal(pixels(decode(image)), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("transparency", [3, bytes(range(256))])
def test_palette_transparency_neither_warns_nor_changes_colours(transparency):
    palette = PHOTO.quantize(256)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = decode(encoded(palette, "PNG", transparency=transparency))
    assert np.array_equal(pixels(result), np.asarray(palette.convert("RGB")))


def test_a_given_palette_image_keeps_its_transparency():
    image = Image.open(io.BytesIO(encoded(PHOTO.quantize(16), "PNG", transparency=3)))
    decode(image)
    assert (image.mode, image.info["transparency"]) == ("P", 3)


@pytest.mark.parametrize("mode", ["1", "L", "CMYK", "YCbCr", "HSV", "RGBX", "La", "RGBa"])
def test_modes_equal_pillow(mode):
    source = {"La": PHOTO.convert("LA"), "RGBa": PHOTO.convert("RGBA")}.get(mode, PHOTO)
    image = source.convert(mode)
    straight = image.convert({"La": "LA", "RGBa": "RGBA"}.get(mode, mode))
    assert np.array_equal(pixels(decode(image)), np.asarray(straight.convert("RGB")))


@pytest.mark.parametrize("short_side", [None, 8])
def test_cmyk_jpeg(short_side):
    big = PHOTO.resize((305, 215), Image.Resampling.BICUBIC)
    result = decode(encoded(big.convert("CMYK"), "JPEG", quality=98), short_side=short_side)
    assert (result.width < 305) == bool(short_side)
    expected = np.asarray(big.resize(result.size, Image.Resampling.BOX)).astype(int)
    assert np.abs(pixels(result) - expected).mean() < 8


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
@pytest.mark.parametrize("byte_order", ["<u2", ">u2"])
def test_16_bit_grey_is_scaled_and_not_clipped(file_format, byte_order):
    deep = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    image = Image.frombytes("I;16" if byte_order == "<u2" else "I;16B", (256, 256), deep.astype(byte_order))
    expected = np.repeat((deep >> 8)[..., None], 3, axis=2)
    assert np.array_equal(pixels(decode(image)), expected)
    if byte_order == "<u2" or file_format == "TIFF":
        assert np.array_equal(pixels(decode(encoded(image, file_format))), expected)


def test_8_bit_grey_saved_with_16_bits_comes_back_exactly():
    grey = np.asarray(PHOTO.convert("L"))
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    assert np.array_equal(pixels(decode(encoded(deep, "PNG")))[..., 1], grey)


def png(width: int, height: int, bits: int, colour: int, rows: bytes) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


def test_16_bit_rgb_png_keeps_the_high_byte():
    deep = np.random.default_rng(0).integers(0, 65536, (5, 7, 3)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in deep)
    assert np.array_equal(pixels(decode(png(7, 5, 16, 2, rows))), deep >> 8)


def test_12_bit_grey_tiff_uses_its_own_white():
    # Two samples of 12 bits in three bytes: 0xFFF (white) and 0x800.
    body = bytes([0xFF, 0xF8, 0x00])
    tags = [(256, 3, 2), (257, 3, 1), (258, 3, 12), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1)]
    tags += [(278, 3, 1), (279, 4, 3)]
    entries = b"".join(
        struct.pack("<HHI", tag, kind, 1)
        + struct.pack("<HH" if kind == 3 else "<I", *([value, 0][: 5 - kind]))
        for tag, kind, value in tags
    )
    data = (
        b"II*\0" + struct.pack("<I", 12) + body + b"\0" + struct.pack("<H", len(tags)) + entries + b"\0" * 4
    )
    assert pixels(decode(data))[0, :, 0].tolist() == [255, 128]


@pytest.mark.parametrize("mode", ["I", "F"])
def test_32_bit_grey_is_refused_because_its_white_is_unknown(mode):
    image = PHOTO.convert("L").convert(mode)
    for source in (image, encoded(image, "TIFF")):
        with pytest.raises(InputError, match="32-bit") as error:
            decode(source)
        one_sentence(error)


# --- orientation --------------------------------------------------------------------------------


def with_orientation(image: Image.Image, file_format: str, orientation: int, **options: object) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return encoded(image, file_format, exif=exif, **options)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientation_equals_pillow_and_is_applied_once(file_format, orientation):
    data = with_orientation(PHOTO, file_format, orientation)
    reference = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    result = decode(data)
    assert np.array_equal(pixels(result), np.asarray(reference))
    assert np.array_equal(pixels(decode(result)), np.asarray(reference))
    assert np.array_equal(pixels(decode(ImageOps.exif_transpose(result))), np.asarray(reference))
    # The same image opened by the caller: turned too, and left as it was.
    opened = Image.open(io.BytesIO(data))
    assert np.array_equal(pixels(decode(opened)), np.asarray(reference))
    if file_format != "TIFF":
        assert opened.getexif().get(ORIENTATION) == orientation


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0"])
@pytest.mark.filterwarnings("ignore")
def test_a_broken_exif_block_counts_as_absent(exif):
    assert decode(encoded(PHOTO, "JPEG", exif=exif)).size == PHOTO.size


# --- scaled JPEG decoding -----------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    width=st.integers(1, 420),
    height=st.integers(1, 420),
    short_side=st.integers(1, 120),
    orientation=st.integers(1, 8),
)
def test_scaled_decoding_keeps_twice_the_side_and_knows_the_whole_photo(
    width, height, short_side, orientation
):
    full = gradient(width, height)
    data = with_orientation(full, "JPEG", orientation, quality=95)
    whole, scaled = decode(data), decode(data, short_side=short_side)
    frame = frame_of(scaled)
    assert frame.size == whole.size == frame_of(whole).size
    assert min(scaled.size) >= min(min(whole.size), 2 * short_side)
    left, top, right, bottom = frame.box
    assert 0 <= left < right <= scaled.width
    assert 0 <= top < bottom <= scaled.height
    # libjpeg adds less than one pixel; the scale is the same both ways.
    assert scaled.width - (right - left) < 1
    assert scaled.height - (bottom - top) < 1
    assert (right - left) / whole.width == pytest.approx((bottom - top) / whole.height)
    if 4 * short_side <= min(whole.size):
        assert scaled.width < whole.width


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_ragged_edge_turns_with_the_image(orientation):
    # 401 x 297 halves to 201 x 149: half of the stored last column and row is filling.
    data = with_orientation(gradient(401, 297), "JPEG", orientation)
    scaled = decode(data, short_side=70)
    stored = Image.new("L", (201, 149), 255)
    stored.paste(0, (200, 0, 201, 149))
    stored.paste(0, (0, 148, 201, 149))
    stored.getexif()[ORIENTATION] = orientation
    ragged = np.asarray(ImageOps.exif_transpose(stored)) == 0
    left, top, right, bottom = frame_of(scaled).box
    assert scaled.size == ragged.shape[::-1]
    assert (left == 0.5) == ragged[:, 0].all()
    assert (scaled.width - right == 0.5) == ragged[:, -1].all()
    assert (top == 0.5) == ragged[0].all()
    assert (scaled.height - bottom == 0.5) == ragged[-1].all()


def test_only_files_are_scaled_and_a_cropped_image_forgets_the_frame():
    big = gradient(800, 600)
    assert decode(big, short_side=50).size == (800, 600)
    assert decode(encoded(big, "PNG"), short_side=50).size == (800, 600)
    scaled = decode(encoded(big, "JPEG"), short_side=50)
    assert scaled.size == (134, 100) or scaled.size == (200, 150)
    cropped = scaled.crop((0, 0, 50, 40))
    assert frame_of(cropped) == ((50, 40), (0, 0, 50, 40))


@pytest.mark.parametrize("short_side", [0, -5])
def test_a_short_side_below_one_is_refused(short_side):
    with pytest.raises(InputError):
        decode(FILES["jpeg"], short_side=short_side)


# --- bombs --------------------------------------------------------------------------------------


def webp_lossless_header(width: int, height: int) -> bytes:
    body = b"\x2f" + struct.pack("<I", (width - 1) | (height - 1) << 14) + b"\0" * 20
    return b"RIFF" + struct.pack("<I", 12 + len(body)) + b"WEBPVP8L" + struct.pack("<I", len(body)) + body


def webp_extended_header(width: int, height: int) -> bytes:
    sizes = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    return (
        b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<I", 10) + b"\0" * 4 + sizes + b"\0" * 4
    )


BOMBS = {
    "png": png(50_000, 50_000, 8, 2, b""),
    "bmp": FILES["bmp"].replace(struct.pack("<ii", 61, 43), struct.pack("<ii", 50_000, 50_000), 1),
    "gif screen": b"GIF89a" + struct.pack("<HH", 50_000, 50_000) + b"\0\0\0,\0\0\0\0\1\0\1\0\0\2\0",
    # A small screen whose first frame is huge and to be cleared afterwards.
    "gif frame": b"GIF89a\x0a\0\x0a\0\x80\0\0" + b"\0" * 6 + b"!\xf9\x04\x08\0\0\0\0,\0\0\0\0"
    + struct.pack("<HH", 50_000, 50_000) + b"\0\x02\x02\x4c\x01\0;",
    "webp lossless": webp_lossless_header(16_383, 16_383),
    "webp extended": webp_extended_header(50_000, 50_000),
    "webp lossy": b"RIFF\x30\0\0\0WEBPVP8 \x20\0\0\0\0\0\0\x9d\x01\x2a\xff\x3f\xff\x3f" + b"\0" * 30,
    "jpeg": FILES["jpeg"].replace(struct.pack(">HH", 43, 61), struct.pack(">HH", 50_000, 50_000), 1),
    "tiff": FILES["tiff"]
    .replace(struct.pack("<HHII", 256, 4, 1, 61), struct.pack("<HHII", 256, 4, 1, 50_000))
    .replace(struct.pack("<HHII", 257, 4, 1, 43), struct.pack("<HHII", 257, 4, 1, 50_000)),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_by_size(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InputError, match="above the limit") as error:
            decode(BOMBS[name])
    assert ("16383" if name in ("webp lossless", "webp lossy") else "50000") in one_sentence(error)


def test_bombs_are_refused_without_allocating():
    """In a process that may take only 256 MiB more than it has, and with Pillow's own limit off."""
    script = (
        "import resource, sys, PIL.Image, vitrail.images.decode as d\n"
        "from vitrail.errors import InputError\n"
        "PIL.Image.MAX_IMAGE_PIXELS = None\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, used + 2**28))\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for line in sys.stdin:\n"
        "    try: d.decode(bytes.fromhex(line))\n"
        "    except InputError as error: assert 'above the limit' in str(error), error\n"
        "    else: raise SystemExit('accepted')\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    stdin = "\n".join(data.hex() for data in BOMBS.values())
    done = subprocess.run([sys.executable, "-c", script], input=stdin, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 32 * 1024, "KiB grown while refusing"


@pytest.mark.parametrize("source", ["png", "image", "array"])
def test_the_limit_is_exact_and_the_callers(source):
    given_source = {"png": FILES["png"], "image": PHOTO, "array": np.asarray(PHOTO)}[source]
    assert decode(given_source, limits=Limits(pixels=61 * 43)).size == (61, 43)
    with pytest.raises(InputError, match="61 x 43"):
        decode(given_source, limits=Limits(pixels=61 * 43 - 1))


def test_no_process_wide_setting_is_used_or_changed(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    for name in ("jpeg", "png", "bmp", "tiff"):
        assert decode(FILES[name]).size == (61, 43)
    # Where a reader asks Pillow's limit by itself, the sentence says so.
    with pytest.raises(InputError, match="MAX_IMAGE_PIXELS allows"):
        decode(FILES["webp"])
    assert Image.MAX_IMAGE_PIXELS == 10
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False
    assert 50_000_000 < LIMITS.pixels < 100_000_000


def test_pillows_leniency_is_refused(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    for source in (FILES["jpeg"], Image.open(io.BytesIO(FILES["jpeg"]))):
        with pytest.raises(InputError, match="LOAD_TRUNCATED_IMAGES"):
            decode(source)


# --- damage -------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Truncated File Read", "ignore:Corrupt EXIF data")
@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_refused_or_lacks_no_pixel(name):
    """Cut anywhere; only later frames, an end mark or padding may be missing from what is accepted."""
    data, whole = FILES[name], pixels(decode(FILES[name]))
    cuts = sorted({*range(1, len(data), 1 + len(data) // 150), *range(len(data) - 16, len(data))})
    accepted = []
    for cut in cuts:
        try:
            result = decode(data[:cut])
        except InputError:
            continue
        assert np.array_equal(pixels(result), whole)
        accepted.append(len(data) - cut)
    if name in ("jpeg of two pictures", "gif animated", "tiff pages"):
        return
    # The padding of BMP's last row; GIF's final mark.
    assert max(accepted, default=0) <= {"bmp": 1, "gif": 2}.get(name, 0)


def test_a_png_with_something_after_its_end_is_whole():
    assert decode(FILES["png"] + b"appended").size == (61, 43)
    with pytest.raises(InputError, match="end is missing"):
        decode(FILES["png"][:-12])


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(sorted(FILES)),
    damage=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=6),
    short_side=st.sampled_from([None, 4]),
)
def test_flipped_bytes_give_an_image_or_one_sentence(name, damage, short_side):
    data = bytearray(FILES[name])
    for place, value in damage:
        data[min(int(place * len(data)), len(data) - 1)] = value
    try:
        image = decode(bytes(data), short_side=short_side, limits=Limits(pixels=1_000_000))
    except InputError as error:
        lines = str(error).splitlines()
    else:
        lines = [""]
        assert image.mode == "RGB"
        assert 0 < image.width * image.height <= 1_000_000
    assert len(lines) == 1


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        (
            "notes.jpg",
            b"this is text, not an image",
            "not a JPEG, PNG, WebP, GIF, TIFF, BMP, AVIF, HEIC or PPM image",
        ),
        (
            "drawing.png",
            b"<svg xmlns='http://www.w3.org/2000/svg'/>",
            "is SVG, which is not read: convert it",
        ),
        ("icon.bmp", encoded(PHOTO, "ICO"), "convert it"),
        ("short.jpg", b"\xff\xd8\xff", "truncated"),
        ("empty.png", b"", "is empty"),
    ],
)
def test_files_that_are_no_images(tmp_path, name, content, expected):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=expected) as error:
        decode(path)
    assert name in one_sentence(error)


def test_paths_that_are_no_files(tmp_path):
    (tmp_path / "broken.jpg").symlink_to(tmp_path / "gone.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    for path, expected in [
        (tmp_path, "is a folder"),
        (tmp_path / "missing.jpg", "does not exist"),
        (tmp_path / "broken.jpg", "does not exist"),
        (tmp_path / "pipe.jpg", "not a regular file"),
        (str(tmp_path / "nul\0.jpg"), "check the path"),
        (tmp_path / ("n" * 300), "check the path"),
    ]:
        with pytest.raises(InputError, match=expected) as error:
            decode(path)
        assert str(path) in one_sentence(error)
    with pytest.raises(InputError, match="bytes are empty"):
        decode(b"")


def test_a_file_without_read_permission(tmp_path):
    """Permission bits do not stop root, so the child gives root up before it decodes."""
    path = tmp_path / "secret.png"
    path.write_bytes(FILES["png"])
    path.chmod(0)
    tmp_path.chmod(0o755)
    script = (
        "import os, sys\n"
        "from vitrail.errors import InputError\n"
        "from vitrail.images.decode import decode\n"
        "decode(bytes.fromhex(sys.stdin.read()))\n"
        "if os.getuid() == 0:\n"
        "    os.chdir(os.path.dirname(sys.argv[1])); os.setuid(65534)\n"
        "try: decode('secret.png')\n"
        "except InputError as error: print(error)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, str(path)], input=FILES["png"].hex(), capture_output=True, text=True
    )
    assert "secret.png may not be read: give yourself read permission." in run.stdout, run.stderr


def test_a_decoded_file_is_closed(tmp_path):
    path = tmp_path / "a.gif"
    path.write_bytes(FILES["gif animated"])
    before = len(os.listdir("/proc/self/fd"))
    kept = [decode(path) for _ in range(20)]
    assert len(kept) == 20
    assert len(os.listdir("/proc/self/fd")) <= before + 2


def test_limits_of_megapixels_let_larger_pictures_in_and_nothing_beyond():
    """A picture of 60 megapixels is above the default limit and takes what the raised one allows."""
    from vitrail.images.limits import Limits

    wide = Image.new("L", (10_000, 6_000), 128)
    target = io.BytesIO()
    wide.save(target, "PNG")
    with pytest.raises(InputError, match="--max-megapixels"):
        decode(target.getvalue())
    assert decode(target.getvalue(), limits=Limits.of_megapixels(60)).size == (10_000, 6_000)
    with pytest.raises(InputError, match="above the limit of 59,000,000"):
        decode(target.getvalue(), limits=Limits.of_megapixels(59))

"""The only place where an untrusted image is opened.

Whatever the source, the result is an upright RGB image of 8 bits a channel. What each kind of image
becomes (alpha, palette, CMYK, 16 bit, animation) is described in docs/images.md.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, cast

import numpy as np
from PIL import AvifImagePlugin, ExifTags, Image, ImageFile
from PIL import GifImagePlugin as Gif
from PIL import JpegImagePlugin as Jpeg
from PIL import PngImagePlugin as Png
from PIL import TiffImagePlugin as Tiff
from PIL import WebPImagePlugin as WebP

from vitrail.errors import InputError, MissingExtraError
from vitrail.images import bmp, containers, heif, netpbm, tiff
from vitrail.images.headers import HEAD_BYTES, recognise
from vitrail.images.limits import LIMITS, SHARE, Limits

SCALED_MARGIN = 2
"""A scaled JPEG keeps its short side at least this many times the requested one (docs/images.md)."""

# The readers are called directly, not through Image.open: they accept one format each, and the pixel
# limit is then this module's own instead of Pillow's process-wide setting.
READERS: dict[str, type[ImageFile.ImageFile]] = {
    "JPEG": Jpeg.JpegImageFile,
    "PNG": Png.PngImageFile,
    "WebP": WebP.WebPImageFile,
    "GIF": Gif.GifImageFile,
    "AVIF": AvifImagePlugin.AvifImageFile,
}

CUT: dict[str, Callable[[bytes, Limits], tuple[bytes, tuple[int, int] | None]]] = {
    "PNG": containers.png,
    "GIF": containers.gif,
    "WebP": containers.webp,
    "AVIF": heif.still,
    "HEIF": heif.still,
}
OWN: dict[str, Any] = {"BMP": bmp, "PPM": netpbm}

BYTES_A_PIXEL = {"WebP": 16}
"""Bytes per pixel that decoding takes at its peak, where that exceeds a picture's 4."""

ROW_BYTES = 16

HEIF_INSTALL = 'pip install "vitrail[heif]"'
ACCEPTED = "JPEG, PNG, WebP, GIF, TIFF, BMP, AVIF, HEIC or PPM"

TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what turns the stored image upright (orientation 1 is upright)."""

LABEL_MODES = ("1", "L", "P", "I;16", "I")
"""Modes with one number a pixel; which of the last two 16 bits are depends on Pillow's version."""
PNG_BITS_AT = 24
"""Where a PNG says its bits a sample: after the signature, IHDR's length and name, width and height."""

PREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}
UNSCALED = ("I", "F")
_FRAME = "vitrail_frame"

Box = tuple[float, float, float, float]

Refusal = Literal["missing", "unreadable", "not a file", "empty", "too large", "unsupported", "damaged"]
"""Why a file is no image that can be used, in a word."""


class ImageError(InputError):
    """An image that cannot be used; `reason` says why in a word, the message in a sentence."""

    def __init__(self, reason: Refusal, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Frame(NamedTuple):
    """Where the photo lies in a decoded image.

    `size` is the (width, height) of the photo in the file, upright; `box` is the region (left, top,
    right, bottom) of the decoded image that it fills. They differ only after scaled decoding: libjpeg
    rounds the scaled size up, so the last column and row may be only partly filled.
    """

    size: tuple[int, int]
    box: Box


def decode(
    source: Any, *, short_side: int | None = None, limits: Limits = LIMITS, name: str | None = None
) -> Image.Image:
    """Return `source` as an upright RGB image.

    `source`: a path (`str`, `Path`), the bytes of a file, a PIL image, or a uint8 array of shape
    (H, W) grey, (H, W, 3) RGB or (H, W, 4) RGBA. Files may be of the kinds in `headers.READ`; of several
    frames or pages the first is used, of a HEIC the primary one. An upright RGB image is returned
    unchanged.

    `short_side`: pixels of the short side that the caller will resize to. A JPEG is then decoded at
    1/2, 1/4 or 1/8 of its size where that leaves at least `SCALED_MARGIN` times as many.

    `limits`: how much the image may ask for, compared with what its file declares before any pixel is
    decoded.

    `name`: what errors call bytes whose file is known.

    Raises `InputError`, naming the source and the fix, for anything that is not such an image; for a file or
    its bytes it is an `ImageError`, or a `MissingExtraError` where HEIC needs one.
    """
    if short_side is not None and short_side < 1:
        raise InputError(f"short_side is {short_side}: give a number of pixels from 1.")
    try:
        return _decode(source, short_side, limits, name)
    except MemoryError:
        said = name or (source if isinstance(source, (str, Path)) else "The given image")
        raise ImageError(
            "too large", f"{said} needs more memory than is available: make it smaller or leave it out."
        ) from None


def _decode(source: Any, short_side: int | None, limits: Limits, name: str | None) -> Image.Image:
    if isinstance(source, Image.Image):
        return _from_image(source, limits)
    if isinstance(source, np.ndarray):
        return _from_array(source, limits)
    if isinstance(source, (bytes, bytearray, memoryview)):
        if not len(source):
            raise ImageError(
                "empty",
                f"{name} is empty: replace it or leave it out."
                if name
                else "The given bytes are empty: pass the whole content of an image file.",
            )
        said = name or "The given data"
        _check_bytes(said, len(source), limits)
        return _from_file(io.BytesIO(source), said, short_side, limits)
    if isinstance(source, (str, Path)):
        with open_file(source, limits) as file:
            return _from_file(file, str(source), short_side, limits)
    raise InputError(
        f"An image of type {type(source).__name__} is not supported: "
        "pass a path, bytes, a PIL image or a uint8 NumPy array."
    )


def decode_labels(path: str | Path, *, limits: Limits = LIMITS) -> np.ndarray:
    """The values that a PNG mask stores, upright (H, W), uint8 or uint16: indices or grey levels, no colours.

    Of a palette these are the indices, and of grey with 1, 2 or 4 bits the stored numbers: 0 or 1, 0 to 3,
    0 to 15.

    Raises `ImageError`, naming the file and the fix, for anything that is not such a PNG, or is beyond the
    limits.
    """
    name = str(path)
    _refuse_leniency()
    with open_file(path, limits) as file:
        known = recognise(file.read(HEAD_BYTES))
        if known is None or known.name != "PNG":
            said = known.name if known else "not an image"
            raise ImageError("unsupported", f"{name} is {said}: save the mask as PNG, which loses nothing.")
        file.seek(0)
        try:
            image, _ = _opened("PNG", file, name, None, limits)
            method = TRANSPOSE.get(_orientation(image))
            values = np.asarray(image if method is None else image.transpose(method))
        except (InputError, MemoryError):
            raise
        except Exception as error:
            raise _damaged(name, "PNG", error) from None
        file.seek(PNG_BITS_AT)
        bits = file.read(1)[0]
    if image.mode not in LABEL_MODES:
        raise ImageError(
            "unsupported",
            f"{name} is a {image.mode} image, whose pixels are colours: save the mask with one value a "
            "pixel, as grey or palette PNG.",
        )
    if image.mode == "L" and bits < 8:
        # Pillow stretches these to 0 to 255.
        values = values // (255 // (2**bits - 1))
    return values.astype(np.uint8 if bits <= 8 else np.uint16)


def frame_of(image: Image.Image) -> Frame:
    """Return where the photo lies in a decoded image: all of it, unless it was decoded scaled."""
    known = image.info.get(_FRAME)
    if known is not None and known[0] == image.size:
        return known[1]
    width, height = image.size
    return Frame((width, height), (0.0, 0.0, float(width), float(height)))


# --- sources ------------------------------------------------------------------------------------


def open_file(path: str | Path, limits: Limits) -> BinaryIO:
    """Open a regular, non-empty file within the limits; anything else is an `ImageError`."""
    try:
        facts = os.stat(path)
        if stat.S_ISDIR(facts.st_mode):
            raise ImageError("not a file", f"{path} is a folder: give the image files in it.")
        if not stat.S_ISREG(facts.st_mode):
            raise ImageError("not a file", f"{path} is not a regular file: give an image file.")
        if facts.st_size == 0:
            raise ImageError("empty", f"{path} is empty: replace it or leave it out.")
        _check_bytes(str(path), facts.st_size, limits)
        return open(path, "rb")
    except FileNotFoundError:
        raise ImageError("missing", f"{path} does not exist: check the path.") from None
    except PermissionError:
        raise ImageError("unreadable", f"{path} may not be read: give yourself read permission.") from None
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise ImageError(
            "unreadable", f"{path!s} cannot be opened ({_reason(error)}): check the path."
        ) from None


def _from_array(array: np.ndarray, limits: Limits) -> Image.Image:
    """uint8 (H, W), (H, W, 3) or (H, W, 4) -> RGB image that shares no memory with the array."""
    shaped = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if array.dtype != np.uint8 or not shaped or 0 in array.shape:
        raise InputError(
            f"An array of shape {array.shape} and type {array.dtype} is not an image: "
            "pass uint8 of shape (H, W), (H, W, 3) or (H, W, 4)."
        )
    _check_pixels("The given array", (array.shape[1], array.shape[0]), limits.pixels)
    if array.ndim == 2:
        return Image.fromarray(array).convert("RGB")
    return Image.fromarray(np.ascontiguousarray(array[..., :3]))


def _from_image(image: Image.Image, limits: Limits) -> Image.Image:
    """A PIL image -> RGB, upright; the given one is loaded but not changed."""
    name = "The given PIL image"
    if 0 in image.size:
        raise InputError(f"{name} has no pixels: pass one with a width and a height.")
    _check_pixels(name, image.size, limits.pixels)
    _refuse_leniency()
    try:
        image.load()
    except MemoryError:
        raise
    except Exception as error:
        raise _damaged(name, getattr(image, "format", None) or "image", error) from None
    return _upright_rgb(image, name)


def _from_file(file: BinaryIO, name: str, short_side: int | None, limits: Limits) -> Image.Image:
    """The path of untrusted bytes: kind, size from the header, pixels, upright RGB."""
    _refuse_leniency()
    known = recognise(file.read(HEAD_BYTES))
    if known is None:
        raise ImageError("unsupported", f"{name} is not a {ACCEPTED} image: convert it or leave it out.")
    if not known.reads:
        raise ImageError(
            "unsupported",
            f"{name} is {known.name}, which is not read: convert it to JPEG or PNG, or leave it out.",
        )
    file.seek(0)
    try:
        if known.name == "TIFF":
            return _from_tiff(file, name, limits)
        if known.name in OWN:
            return _own(known.name, file.read(), name, limits)
        image, frame = _opened(known.name, file, name, short_side, limits)
        return _upright_rgb(image, name, frame, ours=True)
    except (InputError, MemoryError):
        raise
    except Image.DecompressionBombError:
        # Some readers also check Pillow's process-wide limit, which may have been set below ours.
        raise ImageError(
            "too large",
            f"{name} has more pixels than this process's PIL.Image.MAX_IMAGE_PIXELS allows: make it smaller.",
        ) from None
    except Exception as error:
        # Readers raise almost any exception for damaged bytes, not only OSError.
        raise _damaged(name, known.name, error) from None


def _opened(
    kind: str, file: BinaryIO, name: str, short_side: int | None, limits: Limits
) -> tuple[Image.Image, Frame | None]:
    """Cut the file to what makes up its first picture, then let Pillow's reader for that kind load it."""
    reader = _reader(kind, name)
    stream, size, work_bytes, held = _cut(kind, file, limits)
    if size is not None:
        _check_pixels(name, size, int(limits.pixels * SHARE.get(kind, 1)))
        _check_memory(name, kind, size, held, work_bytes, limits)
    image = reader(stream)
    _check_pixels(name, image.size, int(limits.pixels * SHARE.get(kind, 1)))
    if size is not None and image.size != size:
        raise ValueError("its headers contradict each other")
    frame = _scale(image, short_side) if isinstance(image, Jpeg.JpegImageFile) and short_side else None
    image.load()
    if image.mode == "P" and kind == "PNG" and image.palette is not None:
        _, largest = cast(tuple[int, int], image.getextrema())
        if largest >= len(image.palette.palette) // 3:
            raise ValueError("a pixel uses an index that the palette lacks")
    # Rotating and converting need the space.
    image.fp = None
    stream.close()
    return image, frame


def _cut(kind: str, file: BinaryIO, limits: Limits) -> tuple[BinaryIO, tuple[int, int] | None, int, int]:
    """A file with only the first picture, its (width, height), working bytes besides it, bytes of it held."""
    if kind == "JPEG":
        return containers.jpeg(file, limits)
    data, size = CUT[kind](file.read(), limits)
    # libwebp's reader copies the file, and so does libwebp.
    return io.BytesIO(data), size, 3 * len(data) if kind == "WebP" else 0, len(data)


def _own(kind: str, data: bytes, name: str, limits: Limits) -> Image.Image:
    """Bitmaps and netpbm, which Vitrail reads itself."""
    module = OWN[kind]
    head = module.header(data)
    size = (head.width, head.height)
    _check_pixels(name, size, limits.pixels)
    _check_memory(name, kind, size, len(data), 0, limits)
    image: Image.Image = module.read(data, head)
    return image if image.mode == "RGB" else image.convert("RGB")


def _from_tiff(file: BinaryIO, name: str, limits: Limits) -> Image.Image:
    order, tags = tiff.read_tags(file, limits)
    size = tiff.size(tags)
    _check_pixels(name, size, limits.pixels)
    page = tiff.page(order, tags)
    _check_memory(name, "TIFF", size, 0, page.work_bytes, limits)
    image = tiff.read(file, page)
    image = image if image.mode == "RGB" else image.convert("RGB")
    method = TRANSPOSE.get(page.orientation)
    image = image if method is None else image.transpose(method)
    image.info = {}
    return image


def _reader(kind: str, name: str) -> type[ImageFile.ImageFile]:
    """The reader for a kind. HEIF's is not Pillow's own; importing it registers nothing."""
    if kind != "HEIF":
        return READERS[kind]
    try:
        from pillow_heif import HeifImageFile
    except ImportError:
        raise MissingExtraError(f"{name} is HEIC, and pillow-heif, which reads it,", HEIF_INSTALL) from None
    return HeifImageFile


def _scale(image: Jpeg.JpegImageFile, short_side: int) -> Frame | None:
    """Make libjpeg decode fewer pixels if enough remain; must precede `load`."""
    full = image.size
    least = SCALED_MARGIN * short_side
    if min(full) // least < 2:
        return None
    answer = image.draft(None, (least, least))
    return None if answer is None or image.size == full else Frame(full, answer[1])


# --- pixels -------------------------------------------------------------------------------------


def _upright_rgb(
    image: Image.Image, name: str, frame: Frame | None = None, *, ours: bool = False
) -> Image.Image:
    """Convert to RGB and apply the EXIF orientation; `image` is loaded, and unchanged unless `ours`."""
    method, stored = TRANSPOSE.get(_orientation(image)), image.size
    try:
        rgb = _rgb(image, name, _grey_bits(image))
        if ours and rgb is not image:
            image.close()
        if method is not None:
            rgb = rgb.transpose(method)
            frame = _turn(frame, method, stored) if frame else None
    except (InputError, MemoryError):
        raise
    except Exception as error:
        raise _damaged(name, f"{image.mode} image", error) from None
    if rgb is not image:
        # The orientation is used up and removed, so that nothing applies it twice.
        rgb.info = {}
    if frame is not None:
        rgb.info[_FRAME] = (rgb.size, frame)
    return rgb


def _rgb(image: Image.Image, name: str, grey_bits: int) -> Image.Image:
    """Convert any mode to RGB as `Image.convert` does, except deep grey, which is scaled not clipped."""
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16") or (image.mode == "I" and grey_bits):
        high_byte = np.asarray(image) >> (grey_bits - 8)
        return Image.fromarray(high_byte.astype(np.uint8)).convert("RGB")
    if image.mode in UNSCALED:
        raise ImageError(
            "unsupported",
            f"{name} has 32-bit grey pixels whose black and white are not stated: "
            "save it with 8 or 16 bits a channel.",
        )
    if "transparency" in image.info:
        # Pillow would convert, and warn about, a transparent colour that RGB cannot hold.
        image = image.copy()
        image.info = {}
    if image.mode in PREMULTIPLIED:
        image = image.convert(PREMULTIPLIED[image.mode])
    return image.convert("RGB")


def _grey_bits(image: Image.Image) -> int:
    """Bits a sample of deep grey has: 16, in some TIFFs 12; 0 where mode I says nothing about it."""
    if isinstance(image, Tiff.TiffImageFile) and image.tag_v2.get(Tiff.BITSPERSAMPLE) == (12,):
        return 12
    # PNG has at most 16 bits, but older Pillow opens its deep grey in mode I.
    return 16 if image.mode != "I" or isinstance(image, Png.PngImageFile) else 0


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; an unreadable EXIF block counts as absent."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:
        return 1
    return value if isinstance(value, int) else 1


def _turn(frame: Frame, method: Image.Transpose, stored: tuple[int, int]) -> Frame:
    """Rotate a frame as `Image.transpose(method)` rotates an image of the `stored` (width, height)."""
    (width, height), (x0, y0, x1, y1) = stored, frame.box
    across, down = (width - x1, width - x0), (height - y1, height - y0)
    moved: dict[Image.Transpose, tuple[tuple[float, float], tuple[float, float]]] = {
        Image.Transpose.FLIP_LEFT_RIGHT: (across, (y0, y1)),
        Image.Transpose.ROTATE_180: (across, down),
        Image.Transpose.FLIP_TOP_BOTTOM: ((x0, x1), down),
        Image.Transpose.TRANSPOSE: ((y0, y1), (x0, x1)),
        Image.Transpose.ROTATE_270: (down, (x0, x1)),
        Image.Transpose.TRANSVERSE: (down, across),
        Image.Transpose.ROTATE_90: ((y0, y1), across),
    }
    xs, ys = moved[method]
    swaps = method in (
        Image.Transpose.TRANSPOSE,
        Image.Transpose.ROTATE_270,
        Image.Transpose.TRANSVERSE,
        Image.Transpose.ROTATE_90,
    )
    size = (frame.size[1], frame.size[0]) if swaps else frame.size
    return Frame(size, (xs[0], ys[0], xs[1], ys[1]))


# --- refusals -----------------------------------------------------------------------------------


def _check_pixels(name: str, size: tuple[int, int], max_pixels: int) -> None:
    if size[0] * size[1] > max_pixels:
        raise ImageError(
            "too large",
            f"{name} has {size[0]} x {size[1]} pixels, above the limit of {max_pixels:,}: make it smaller, "
            "or raise the limit (--max-megapixels, Limits).",
        )


def _check_bytes(name: str, count: int, limits: Limits) -> None:
    if count > limits.file_bytes:
        raise ImageError(
            "too large", f"{name} is larger than {limits.file_bytes >> 20} MiB: make it smaller."
        )


def _check_memory(
    name: str, kind: str, size: tuple[int, int], held_bytes: int, work_bytes: int, limits: Limits
) -> None:
    """Compare the most expensive step with the limit: cutting (the file twice), decoding (file, picture,
    work) or rotating (two pictures)."""
    pixels = size[0] * size[1]
    # Besides its pixels a picture has a pointer, and padding, for each row.
    stored, turned = ROW_BYTES * size[1], 4 * pixels + ROW_BYTES * max(size)
    decoding = held_bytes + pixels * BYTES_A_PIXEL.get(kind, 4) + stored + work_bytes
    needed = max(2 * held_bytes, decoding, 4 * pixels + stored + turned)
    if needed > limits.memory_bytes:
        raise ImageError(
            "too large",
            f"{name} would take {needed >> 20} MiB to decode, above the limit of "
            f"{limits.memory_bytes >> 20} MiB: make it smaller.",
        )


def _refuse_leniency() -> None:
    """With this Pillow switch set elsewhere, truncated files would pass as whole ones."""
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise InputError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set, so damaged images would pass: set it to False."
        )


def _damaged(name: str, kind: str, error: Exception) -> ImageError:
    return ImageError(
        "damaged",
        f"{name} is truncated, damaged or an unusual {kind} ({_reason(error)}): "
        "save it again as JPEG or PNG, or leave it out.",
    )


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text.splitlines()[0][:120].rstrip(".")

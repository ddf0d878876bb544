"""The only place where an untrusted image is opened.

Whatever the source, the result is an upright RGB image of 8 bits a channel. What each kind of image
becomes (alpha, palette, CMYK, 16 bit, animation) is written in docs/images.md.
"""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import AvifImagePlugin, BmpImagePlugin, ExifTags, Image, ImageFile
from PIL import GifImagePlugin as Gif
from PIL import JpegImagePlugin as Jpeg
from PIL import PngImagePlugin as Png
from PIL import TiffImagePlugin as Tiff
from PIL import WebPImagePlugin as WebP

from vitrail.errors import InputError, MissingExtraError
from vitrail.images import netpbm
from vitrail.images.headers import HEAD_BYTES, declared_size, png_is_whole, recognise

MAX_PIXELS = 256 * 2**20 // 3
"""Largest width x height that is decoded unless asked otherwise: 256 MiB as 8-bit RGB."""

MAX_FILE_BYTES = 2**30
"""No larger file is read; a photo within the pixel cap stays far below it."""

SCALED_MARGIN = 2
"""A scaled JPEG keeps its short side at least this many times the asked one (docs/images.md)."""

# The readers are called directly, not through Image.open: they accept one format each, and the pixel
# cap is then this module's alone instead of Pillow's process-wide setting.
READERS: dict[str, type[ImageFile.ImageFile]] = {
    "JPEG": Jpeg.JpegImageFile,
    "PNG": Png.PngImageFile,
    "WebP": WebP.WebPImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "GIF": Gif.GifImageFile,
    "TIFF": Tiff.TiffImageFile,
    "AVIF": AvifImagePlugin.AvifImageFile,
}

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

PREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}
UNSCALED = ("I", "F")
_FRAME = "vitrail_frame"

Box = tuple[float, float, float, float]


class Frame(NamedTuple):
    """Where the photo lies in a decoded image.

    `size` is the (width, height) of the photo in the file, upright; `box` is the region (left, top,
    right, bottom) that it fills of the decoded image. They differ only after scaled decoding: libjpeg
    rounds the scaled size up, so the last column and row may be filled only in part.
    """

    size: tuple[int, int]
    box: Box


def decode(source: Any, *, short_side: int | None = None, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Return `source` as an upright RGB image.

    `source`: a path (`str`, `Path`), the bytes of a file, a PIL image, or a uint8 array of shape
    (H, W) grey, (H, W, 3) RGB or (H, W, 4) RGBA. Files may be of the kinds in `headers.READ`; of several
    frames or pages the first is taken, of a HEIC the primary one. An RGB image that is upright is
    returned as it is.

    `short_side`: pixels of the short side that the caller will resize to. A JPEG is then decoded at
    1/2, 1/4 or 1/8 of its size where that leaves at least `SCALED_MARGIN` times as many.

    `max_pixels`: largest width x height, compared with the file's header before any pixel is decoded.

    Raises `InputError`, naming the source and the fix, for whatever is not such an image.
    """
    if short_side is not None and short_side < 1:
        raise InputError(f"short_side is {short_side}: give a number of pixels from 1.")
    if isinstance(source, Image.Image):
        return _from_image(source, max_pixels)
    if isinstance(source, np.ndarray):
        return _from_array(source, max_pixels)
    if isinstance(source, (bytes, bytearray, memoryview)):
        if not len(source):
            raise InputError("The given bytes are empty: pass the whole content of an image file.")
        return _from_file(io.BytesIO(source), "The given data", short_side, max_pixels)
    if isinstance(source, (str, Path)):
        with _open(source) as file:
            return _from_file(file, str(source), short_side, max_pixels)
    raise InputError(
        f"An image of type {type(source).__name__} is not supported: "
        "pass a path, bytes, a PIL image or a uint8 NumPy array."
    )


def frame_of(image: Image.Image) -> Frame:
    """Return where the photo lies in a decoded image: all of it, unless it was decoded scaled."""
    known = image.info.get(_FRAME)
    if known is not None and known[0] == image.size:
        return known[1]
    width, height = image.size
    return Frame((width, height), (0.0, 0.0, float(width), float(height)))


# --- sources ------------------------------------------------------------------------------------


def _open(path: str | Path) -> BinaryIO:
    """Open a regular, non-empty file; anything else is an `InputError`."""
    try:
        facts = os.stat(path)
        if stat.S_ISDIR(facts.st_mode):
            raise InputError(f"{path} is a folder: give the image files in it.")
        if not stat.S_ISREG(facts.st_mode):
            raise InputError(f"{path} is not a regular file: give an image file.")
        if facts.st_size == 0:
            raise InputError(f"{path} is empty: replace it or leave it out.")
        if facts.st_size > MAX_FILE_BYTES:
            raise InputError(f"{path} is larger than {MAX_FILE_BYTES >> 20} MiB: make it smaller.")
        return open(path, "rb")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: check the path.") from None
    except PermissionError:
        raise InputError(f"{path} may not be read: give yourself read permission.") from None
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"{path!s} cannot be opened ({_reason(error)}): check the path.") from None


def _from_array(array: np.ndarray, max_pixels: int) -> Image.Image:
    """uint8 (H, W), (H, W, 3) or (H, W, 4) -> RGB image that shares no memory with the array."""
    shaped = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if array.dtype != np.uint8 or not shaped or 0 in array.shape:
        raise InputError(
            f"An array of shape {array.shape} and type {array.dtype} is not an image: "
            "pass uint8 of shape (H, W), (H, W, 3) or (H, W, 4)."
        )
    _check_pixels("The given array", (array.shape[1], array.shape[0]), max_pixels)
    if array.ndim == 2:
        return Image.fromarray(array).convert("RGB")
    return Image.fromarray(np.ascontiguousarray(array[..., :3]))


def _from_image(image: Image.Image, max_pixels: int) -> Image.Image:
    """A PIL image -> RGB, upright; the given one is loaded but not changed."""
    name = "The given PIL image"
    if 0 in image.size:
        raise InputError(f"{name} has no pixels: pass one with a width and a height.")
    _check_pixels(name, image.size, max_pixels)
    _refuse_leniency()
    try:
        image.load()
    except MemoryError:
        raise
    except Exception as error:
        raise _damaged(name, getattr(image, "format", None) or "image", error) from None
    return _upright_rgb(image, name)


def _from_file(file: BinaryIO, name: str, short_side: int | None, max_pixels: int) -> Image.Image:
    """The decoding road of untrusted bytes: kind, size from the header, pixels, upright RGB."""
    _refuse_leniency()
    known = recognise(file.read(HEAD_BYTES))
    if known is None:
        raise InputError(f"{name} is not a {ACCEPTED} image: convert it or leave it out.")
    if not known.reads:
        raise InputError(
            f"{name} is {known.name}, which is not read: convert it to JPEG or PNG, or leave it out."
        )
    kind = known.name
    if kind == "PPM":
        return _from_netpbm(file, name, max_pixels)
    reader = _reader(kind, name)
    try:
        # Some of Pillow's readers allocate the canvas when they open: look at the header first.
        size = declared_size(kind, file)
        if size is not None:
            _check_pixels(name, size, max_pixels)
        file.seek(0)
        image = reader(file)
        _check_pixels(name, image.size, max_pixels)
        if isinstance(image, Png.PngImageFile) and not png_is_whole(file):
            raise OSError("the end is missing")
        frame = _scale(image, short_side) if isinstance(image, Jpeg.JpegImageFile) and short_side else None
        image.load()
    except (InputError, MemoryError):
        raise
    except Image.DecompressionBombError:
        # Some readers also ask Pillow's process-wide limit, which someone may have set below ours.
        raise InputError(
            f"{name} has more pixels than this process's PIL.Image.MAX_IMAGE_PIXELS allows: make it smaller."
        ) from None
    except Exception as error:
        # Readers answer damaged bytes with almost any exception, not only OSError.
        raise _damaged(name, kind, error) from None
    return _upright_rgb(image, name, frame)


def _from_netpbm(file: BinaryIO, name: str, max_pixels: int) -> Image.Image:
    """The same road for PBM, PGM and PPM, which Vitrail reads itself."""
    file.seek(0)
    data = file.read()
    try:
        head = netpbm.header(data)
        _check_pixels(name, (head.width, head.height), max_pixels)
        if head.form < 4 and len(data) > netpbm.MAX_PLAIN_BYTES:
            raise ValueError(f"plain text of more than {netpbm.MAX_PLAIN_BYTES >> 20} MiB is not read")
        return netpbm.read(data, head).convert("RGB")
    except InputError:
        raise
    except ValueError as error:
        raise _damaged(name, "netpbm image", error) from None


def _reader(kind: str, name: str) -> type[ImageFile.ImageFile]:
    """The reader of a kind. HEIF's is not Pillow's own; importing it registers nothing."""
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


def _upright_rgb(image: Image.Image, name: str, frame: Frame | None = None) -> Image.Image:
    """Apply the EXIF orientation, then convert to RGB; `image` is loaded and left as it is."""
    upright = image
    method = TRANSPOSE.get(_orientation(image))
    if method is not None:
        upright = image.transpose(method)
        frame = _turn(frame, method, image.size) if frame else None
    try:
        rgb = _rgb(upright, name, _grey_bits(image))
    except (InputError, MemoryError):
        raise
    except Exception as error:
        raise _damaged(name, f"{image.mode} image", error) from None
    if rgb is not image:
        # The orientation is used up: nobody may find it again and turn the image twice.
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
        raise InputError(
            f"{name} has 32-bit grey pixels whose black and white are not stated: "
            "save it with 8 or 16 bits a channel."
        )
    if "transparency" in image.info:
        # Pillow would translate, and warn about, a transparent colour that RGB cannot hold.
        image = image.copy()
        image.info = {}
    if image.mode in PREMULTIPLIED:
        image = image.convert(PREMULTIPLIED[image.mode])
    return image.convert("RGB")


def _grey_bits(image: Image.Image) -> int:
    """Bits a sample of deep grey has: 16, in some TIFFs 12; 0 where mode I says nothing about it."""
    if isinstance(image, Tiff.TiffImageFile) and image.tag_v2.get(Tiff.BITSPERSAMPLE) == (12,):
        return 12
    # PNG ends at 16 bits, but older Pillow opens its deep grey in mode I.
    return 16 if image.mode != "I" or isinstance(image, Png.PngImageFile) else 0


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; an EXIF block that cannot be read counts as absent."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:
        return 1
    return value if isinstance(value, int) else 1


def _turn(frame: Frame, method: Image.Transpose, stored: tuple[int, int]) -> Frame:
    """Turn a frame as `Image.transpose(method)` turns an image of the `stored` (width, height)."""
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
        raise InputError(
            f"{name} has {size[0]} x {size[1]} pixels, above the limit of {max_pixels:,}: make it smaller."
        )


def _refuse_leniency() -> None:
    """With this Pillow switch set by someone else, truncated files would pass as whole ones."""
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise InputError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set, so damaged images would pass: set it to False."
        )


def _damaged(name: str, kind: str, error: Exception) -> InputError:
    return InputError(
        f"{name} is truncated, damaged or an unusual {kind} ({_reason(error)}): "
        "save it again as JPEG or PNG, or leave it out."
    )


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text.splitlines()[0][:120].rstrip(".")

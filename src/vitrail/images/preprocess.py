"""From a decoded photo to a model's input: the only preprocessing, equal to timm's evaluation transform.

Shapes: B batch, C = 3 channels, S `preprocess.image_size`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import get_args

import numpy as np
from PIL import Image

from vitrail.errors import InputError
from vitrail.images.decode import Box, frame_of
from vitrail.limits import whole
from vitrail.vocabulary import Pixels, Preprocess, TensorSpec

RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
SUPPORT = {"bicubic": 2.0, "bilinear": 1.0}
"""Radius of the filter in output pixels (in source pixels when enlarging)."""

CROP_MODES = ("center", "squash", "letterbox")

LONGEST = 32
"""Photos longer than this ratio of sides are not resized whole: that could take any amount of memory."""

# Steps of the additive sequence over three dimensions: powers of 1/x with x**4 = x + 1. Its points fill
# the cube evenly, and unlike a random generator's they are the same in every NumPy version.
STEPS = (0.8191725133961645, 0.6710436067037893, 0.5497004779019703)


@lru_cache(maxsize=64)
def check_preprocess(preprocess: Preprocess) -> None:
    """Refuse preprocessing that no weights were trained with.

    Raises:
        InputError: a value out of range, named.
    """
    whole("image_size", preprocess.image_size, "image_size")
    # Published weights have crops from 0.875, means from 0 to 0.5 and deviations from 0.14 to 1; a deviation
    # of 1/255 feeds a network the raw bytes.
    ranges = {"crop": (0.1, 1.0, (preprocess.crop,)), "mean": (0.0, 1.0, preprocess.mean)}
    ranges["std"] = (0.001, 10.0, preprocess.std)
    for name, (least, most, values) in ranges.items():
        if not all(least <= value <= most for value in values):
            shown = ", ".join("huge" if abs(value) >= 1e300 else f"{value:g}" for value in values)
            raise InputError(f"{name} is {shown}: it must be from {least:g} to {most:g}.")
    if preprocess.pixels not in get_args(Pixels):
        raise InputError(f"pixels is {preprocess.pixels!r}: use {' or '.join(get_args(Pixels))}.")
    if preprocess.interpolation not in RESAMPLING or preprocess.crop_mode not in CROP_MODES:
        raise InputError(
            f"interpolation is {preprocess.interpolation!r} and crop_mode {preprocess.crop_mode!r}: use "
            f"{' or '.join(RESAMPLING)}, and center or squash."
        )
    whole_photo = (preprocess.crop, preprocess.interpolation) == (1.0, "bilinear")
    if preprocess.crop_mode == "letterbox" and not whole_photo:
        raise InputError(
            f"crop is {preprocess.crop:g} and interpolation {preprocess.interpolation}: a letterboxed photo "
            "is whole and resized bilinearly (crop 1, bilinear)."
        )


def resized_short_side(preprocess: Preprocess) -> int:
    """Pixels of the short side after resizing, before the crop; the `short_side` of `decode`.

    Raises:
        InputError: as `check_preprocess`.
    """
    check_preprocess(preprocess)
    return math.floor(preprocess.image_size / preprocess.crop)


def to_pixels(image: Image.Image, preprocess: Preprocess) -> np.ndarray:
    """Resize and centre-crop a decoded photo to uint8 (S, S, 3).

    The steps are timm's (torchvision's `Resize` and `CenterCrop`), down to where each truncates or rounds.
    Resizing only what the crop keeps, with `resize(box=...)`, would save up to half the time but would not be
    equal: Pillow decides from the sizes which direction comes first, and clips to 8 bits in between.
    """
    assert preprocess.crop_mode != "letterbox", "images/letterbox.py does that"
    _check_mode(image)
    target = resized_short_side(preprocess)
    size = preprocess.image_size
    (width, height), box = frame_of(image)
    if preprocess.crop_mode == "squash":
        resized_w = resized_h = target
    elif width <= height:
        resized_w, resized_h = target, int(target * height / width)
    else:
        resized_w, resized_h = int(target * width / height), target
    left, top = round((resized_w - size) / 2), round((resized_h - size) / 2)
    if max(resized_w, resized_h) > LONGEST * target:
        x0, y0, x1, y1 = box
        step_x, step_y = (x1 - x0) / resized_w, (y1 - y0) / resized_h
        kept = (
            x0 + left * step_x,
            y0 + top * step_y,
            x0 + (left + size) * step_x,
            y0 + (top + size) * step_y,
        )
        return np.array(_resize_region(image, kept, preprocess))
    resized = image.resize((resized_w, resized_h), RESAMPLING[preprocess.interpolation], box=box)
    return np.array(resized.crop((left, top, left + size, top + size)))


def image_spec(name: str, preprocess: Preprocess) -> TensorSpec:
    """The tensor that `prepare_batch` makes: float32 (B, 3, S, S), or uint8 (B, S, S, 3)."""
    size = preprocess.image_size
    if preprocess.pixels == "uint8":
        return TensorSpec(name=name, shape=("B", size, size, 3), dtype="uint8")
    return TensorSpec(name=name, shape=("B", 3, size, size))


def prepare(image: Image.Image, preprocess: Preprocess) -> np.ndarray:
    """Return the model's input for one decoded photo, as `image_spec` without its B, C-contiguous."""
    return np.asarray(prepare_batch([image], preprocess)[0])


def prepare_batch(images: Sequence[Image.Image], preprocess: Preprocess) -> np.ndarray:
    """Return the model's input for B decoded photos, as `image_spec`, C-contiguous."""
    check_preprocess(preprocess)
    out = _empty(len(images), preprocess)
    for image, slot in zip(images, out, strict=True):
        _write(to_pixels(image, preprocess), preprocess, slot)
    return out


def _empty(count: int, preprocess: Preprocess) -> np.ndarray:
    spec = image_spec("images", preprocess)
    return np.empty((count, *(int(side) for side in spec.shape[1:])), spec.dtype)


def crops(image: Image.Image, preprocess: Preprocess, count: int) -> np.ndarray:
    """Return `count` views of one photo for parity, as `image_spec`.

    The first is the evaluation crop. The others are squares of 1/2 to all of the short side at evenly
    spread positions, every second one mirrored; the same photo gives the same views everywhere.
    """
    if count < 1:
        raise InputError(f"{count} crops of a photo were requested: request at least 1.")
    check_preprocess(preprocess)
    out = _empty(count, preprocess)
    _write(to_pixels(image, preprocess), preprocess, out[0])
    x0, y0, x1, y1 = frame_of(image).box
    for k in range(1, count):
        scale, across, down = ((0.5 + k * step) % 1.0 for step in STEPS)
        side = min(x1 - x0, y1 - y0) * (0.5 + 0.5 * scale)
        left, top = x0 + across * (x1 - x0 - side), y0 + down * (y1 - y0 - side)
        pixels = np.asarray(_resize_region(image, (left, top, left + side, top + side), preprocess))
        _write(pixels[:, ::-1] if k % 2 else pixels, preprocess, out[k])
    return out


def _check_mode(image: Image.Image) -> None:
    if image.mode != "RGB":
        raise InputError(f"A {image.mode} image cannot be preprocessed: pass it through decode first.")


def _resize_region(image: Image.Image, box: Box, preprocess: Preprocess) -> Image.Image:
    """Resize the region `box` of an RGB image to S x S.

    Pillow keeps box coordinates in float32, so the region is first cut out, with all pixels that its filter
    taps reach: then the coordinates are small however large the image is.
    """
    size, support = preprocess.image_size, SUPPORT[preprocess.interpolation]
    reach_x = math.ceil(support * max((box[2] - box[0]) / size, 1.0)) + 1
    reach_y = math.ceil(support * max((box[3] - box[1]) / size, 1.0)) + 1
    left, top = max(math.floor(box[0]) - reach_x, 0), max(math.floor(box[1]) - reach_y, 0)
    right = min(math.ceil(box[2]) + reach_x, image.width)
    bottom = min(math.ceil(box[3]) + reach_y, image.height)
    region = image.crop((left, top, right, bottom))
    # Rounding may push an edge past the image by the last bit, which Pillow refuses.
    inside = (
        max(box[0] - left, 0.0),
        max(box[1] - top, 0.0),
        min(box[2] - left, region.width),
        min(box[3] - top, region.height),
    )
    return region.resize((size, size), RESAMPLING[preprocess.interpolation], box=inside)


@lru_cache(maxsize=64)
def _scale_and_bias(preprocess: Preprocess) -> tuple[np.ndarray, np.ndarray]:
    """(x / 255 - mean) / std as x * scale + bias; both float32 (3, 1, 1)."""
    mean, std = (
        np.array(values, np.float64).reshape(3, 1, 1) for values in (preprocess.mean, preprocess.std)
    )
    return (1.0 / (255.0 * std)).astype(np.float32), (-mean / std).astype(np.float32)


def _write(pixels: np.ndarray, preprocess: Preprocess, out: np.ndarray) -> None:
    """uint8 (S, S, 3) -> `out`: the same, or normalised float32 (3, S, S), without a temporary."""
    if preprocess.pixels == "uint8":
        out[...] = pixels
        return
    scale, bias = _scale_and_bias(preprocess)
    np.multiply(pixels.transpose(2, 0, 1), scale, out=out)
    np.add(out, bias, out=out)

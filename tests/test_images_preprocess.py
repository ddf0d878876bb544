"""Preprocessing against timm's own evaluation transform, on real photos and on awkward sizes."""

from __future__ import annotations

import importlib.util
import io
import math
from pathlib import Path

import numpy as np
import pytest
import timm.data
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vitrail.errors import InputError
from vitrail.images.decode import decode
from vitrail.images.preprocess import crops, prepare, prepare_batch, resized_short_side, to_pixels
from vitrail.vocabulary import Preprocess

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def photo(package: str, file: str) -> Image.Image:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return decode(Path(spec.origin).parent / file)


CHINA = photo("sklearn", "datasets/images/china.jpg")
CHELSEA = photo("skimage", "data/chelsea.png")
HUBBLE = photo("skimage", "data/hubble_deep_field.jpg")
IHC = photo("skimage", "data/ihc.png")


def timm_pixels(image: Image.Image, preprocess: Preprocess) -> np.ndarray:
    """What timm's transform makes of the photo before normalising: int (S, S, 3)."""
    transform = timm.data.create_transform(
        input_size=(3, preprocess.image_size, preprocess.image_size),
        interpolation=preprocess.interpolation,
        crop_pct=preprocess.crop,
        crop_mode=preprocess.crop_mode,
        normalize=False,
        is_training=False,
    )
    tensor = transform(image)
    assert tensor.dtype == torch.uint8
    return tensor.permute(1, 2, 0).numpy().astype(int)


def difference(image: Image.Image, preprocess: Preprocess) -> int:
    """Largest distance to timm in grey levels."""
    return int(np.abs(to_pixels(image, preprocess).astype(int) - timm_pixels(image, preprocess)).max())


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("crop_mode", ["center", "squash"])
@pytest.mark.parametrize(
    ("size", "crop"), [(224, 0.875), (240, 0.882), (256, 0.9), (224, 0.95), (384, 1.0), (95, 0.89)]
)
def test_equals_timm_on_photos(size, crop, crop_mode, interpolation):
    preprocess = Preprocess(image_size=size, crop=crop, crop_mode=crop_mode, interpolation=interpolation)
    for image in (CHINA, CHELSEA.transpose(Image.Transpose.ROTATE_90), IHC, HUBBLE.crop((3, 5, 704, 336))):
        assert difference(image, preprocess) == 0


@settings(max_examples=100, deadline=None)
@given(
    width=st.integers(10, 300),
    height=st.integers(10, 300),
    size=st.integers(1, 150),
    crop=st.sampled_from([0.5, 0.8, 0.875, 0.882, 0.9, 0.95, 0.965, 1.0]),
    crop_mode=st.sampled_from(["center", "squash"]),
    interpolation=st.sampled_from(["bicubic", "bilinear"]),
    seed=st.integers(0, 9),
)
def test_equals_timm_on_noise_of_any_size(width, height, size, crop, crop_mode, interpolation, seed):
    """Black and white noise overshoots everywhere: the hardest case for two-pass filters of 8 bits."""
    noise = np.random.default_rng(seed).integers(0, 2, (height, width, 3), dtype=np.uint8) * 255
    preprocess = Preprocess(image_size=size, crop=crop, crop_mode=crop_mode, interpolation=interpolation)
    assert difference(Image.fromarray(noise), preprocess) == 0


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1), (2, 3), (5, 4), (224, 224), (256, 256), (255, 257)])
@pytest.mark.parametrize("crop", [0.875, 1.0])
def test_tiny_and_exactly_fitting_images_equal_timm(size, crop):
    image = CHELSEA.resize(size)
    for crop_mode in ("center", "squash"):
        assert difference(image, Preprocess(image_size=224, crop=crop, crop_mode=crop_mode)) == 0


@pytest.mark.parametrize("shape", [(4000, 11), (11, 4000), (60_001, 7), (45, 17_000)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_very_long_photos_equal_timm_without_being_resized_whole(shape, interpolation):
    image = CHINA.resize(shape, Image.Resampling.BICUBIC)
    for crop_mode in ("center", "squash"):
        preprocess = Preprocess(image_size=24, crop_mode=crop_mode, interpolation=interpolation)
        assert difference(image, preprocess) <= 1


def test_a_line_of_pixels_needs_no_giant_resize():
    """Resized whole, this one would have 256 x 16 million pixels."""
    line = Image.fromarray(np.full((1, 65_000, 3), 77, np.uint8))
    assert (to_pixels(line, Preprocess(image_size=224)) == 77).all()


@pytest.mark.parametrize("mean_std", [IMAGENET, {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}])
def test_the_model_input_equals_timms(mean_std):
    preprocess = Preprocess(image_size=224, **mean_std)
    transform = timm.data.create_transform(
        input_size=(3, 224, 224), interpolation="bicubic", crop_pct=0.875, is_training=False, **mean_std
    )
    ours = prepare(CHINA, preprocess)
    assert (ours.shape, ours.dtype, ours.flags.c_contiguous) == ((3, 224, 224), np.float32, True)
    # A grey level is at least 0.0078 here: nothing but float32 rounding may differ.
    assert np.abs(ours - transform(CHINA).numpy()).max() < 2e-6


def test_a_batch_is_its_photos():
    preprocess = Preprocess(image_size=64, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    batch = prepare_batch([CHINA, CHELSEA, IHC], preprocess)
    assert (batch.shape, batch.dtype, batch.flags.c_contiguous) == ((3, 3, 64, 64), np.float32, True)
    for image, row in zip((CHINA, CHELSEA, IHC), batch, strict=True):
        assert np.array_equal(row, prepare(image, preprocess))
    assert prepare_batch([], preprocess).shape == (0, 3, 64, 64)


def test_pixels_are_the_callers_own():
    before = np.asarray(CHELSEA).copy()
    for size in (300, 64):
        pixels = to_pixels(CHELSEA, Preprocess(image_size=size, crop=1.0))
        assert (pixels.shape, pixels.dtype) == ((size, size, 3), np.uint8)
        pixels[:] = 0
    assert np.array_equal(np.asarray(CHELSEA), before)


def test_crops_start_with_the_evaluation_crop_and_differ_from_each_other():
    preprocess = Preprocess(image_size=96)
    views = crops(CHINA, preprocess, 24)
    assert (views.shape, views.dtype, views.flags.c_contiguous) == ((24, 3, 96, 96), np.float32, True)
    assert np.array_equal(views[0], prepare(CHINA, preprocess))
    assert np.array_equal(views, crops(CHINA, preprocess, 24))
    assert np.array_equal(views[:5], crops(CHINA, preprocess, 5))
    apart = np.abs(views[:, None] - views[None]).mean((2, 3, 4)) + np.eye(24) * 9
    assert apart.min() > 0.1


def test_crops_vary_position_scale_and_flip():
    """The photo's own coordinates as colours tell where each view was taken."""
    y, x = np.mgrid[:400, :600]
    image = Image.fromarray(np.stack([x * 255 / 599, y * 255 / 399, x * 0], -1).astype(np.uint8))
    plain = Preprocess(image_size=64, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    views = crops(image, plain, 40)[1:]
    across, down = views[:, 0] * 599, views[:, 1] * 399
    mirrored = across[:, 0, 0] > across[:, 0, -1]
    assert mirrored.tolist() == [k % 2 == 1 for k in range(1, 40)]
    width = (across.max((1, 2)) - across.min((1, 2))) / 63 * 64
    height = (down.max((1, 2)) - down.min((1, 2))) / 63 * 64
    assert np.abs(width - height).max() < 8
    assert width.min() > 190
    assert width.max() < 410
    assert width.max() - width.min() > 150
    assert across.mean((1, 2)).std() > 40
    assert down.mean((1, 2)).std() > 20


@settings(max_examples=30, deadline=None)
@given(width=st.integers(1, 90), height=st.integers(1, 90), count=st.integers(1, 12))
def test_crops_of_any_photo_stay_inside_it(width, height, count):
    grey = Image.fromarray(np.full((height, width, 3), 200, np.uint8))
    plain = Preprocess(image_size=16, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    views = crops(grey, plain, count)
    assert views.shape == (count, 3, 16, 16)
    assert np.abs(views * 255 - 200).max() < 1e-3


@pytest.mark.parametrize("quality", [85, 95])
@pytest.mark.parametrize("orientation", [1, 6, 7])
def test_scaled_decoding_changes_little(quality, orientation):
    """Photos with detail down to the pixel, cut to odd sides, at the smallest sides where scaling starts.

    That is the worst case: larger files are left with more than twice the pixels that are needed.
    """
    means, largest = [], []
    for image in (CHINA, CHELSEA, HUBBLE, IHC):
        cut = image.crop((0, 0, image.width - 3, image.height - 5))
        exif = Image.Exif()
        exif[0x0112] = orientation
        buffer = io.BytesIO()
        cut.save(buffer, "JPEG", quality=quality, exif=exif)
        for divisor in (4, 8, 16):
            preprocess = Preprocess(image_size=int(min(cut.size) / divisor * 0.875))
            short_side = resized_short_side(preprocess)
            full, scaled = decode(buffer.getvalue()), decode(buffer.getvalue(), short_side=short_side)
            assert scaled.width < full.width
            change = np.abs(to_pixels(full, preprocess).astype(int) - to_pixels(scaled, preprocess))
            means.append(change.mean())
            largest.append(change.max())
    print(f"scaled decoding: mean {np.mean(means):.2f}, worst photo {max(means):.2f}, max {max(largest)}")
    assert np.mean(means) < 1.0
    assert max(means) < 1.6
    assert max(largest) <= 20


def test_scaled_decoding_of_a_large_photo_is_within_a_grey_level():
    buffer = io.BytesIO()
    CHINA.resize((2999, 2001), Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=92)
    preprocess = Preprocess(image_size=224)
    scaled = decode(buffer.getvalue(), short_side=resized_short_side(preprocess))
    assert scaled.size == (1500, 1001)
    change = prepare(decode(buffer.getvalue()), preprocess) - prepare(scaled, preprocess)
    levels = np.abs(change * 255 * np.array(preprocess.std).reshape(3, 1, 1))
    print(f"large photo: mean {levels.mean():.3f}, max {levels.max():.1f}")
    assert levels.mean() < 0.5
    assert levels.max() < 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop": 0.0}, "crop is 0: it must be from 0.1 to 1"),
        ({"crop": 1.01}, "crop is 1.01"),
        ({"crop": -1.0}, "crop is -1"),
        ({"crop": 1e-4}, "crop is 0.0001"),
        ({"crop": math.nan}, "crop is nan"),
        ({"image_size": 0}, "image_size is 0"),
        ({"image_size": 10**6}, "image_size is 1000000"),
        ({"mean": (0.5, 0.5, 124.0)}, "mean is 0.5, 0.5, 124"),
        ({"std": (0.5, 0.0, 0.5)}, "std is 0.5, 0, 0.5"),
        ({"std": (0.5, 0.5, -0.5)}, "std is 0.5, 0.5, -0.5"),
        ({"interpolation": "nearest"}, "interpolation is 'nearest'"),
        ({"crop_mode": "border"}, "crop_mode 'border'"),
    ],
)
def test_impossible_preprocessing_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        prepare(CHINA, Preprocess(**{"image_size": 224, **changes}))


def test_an_image_that_was_not_decoded_is_refused():
    with pytest.raises(InputError, match="through decode"):
        prepare(CHINA.convert("L"), Preprocess(image_size=32))
    with pytest.raises(InputError, match="at least 1"):
        crops(CHINA, Preprocess(image_size=32), 0)

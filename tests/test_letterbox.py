"""A photo in a square and masks back, against transformers' processor and torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import Sam2ImageProcessor
from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

from vitrail.errors import InputError
from vitrail.images.letterbox import Letterbox, letterbox

PHOTOS = [(40, 60), (60, 40), (64, 64), (200, 33), (1, 300), (123, 124)]


def photo(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def theirs():
    return SamImageProcessorPil(
        size={"longest_edge": 64}, pad_size={"height": 64, "width": 64}, mask_size={"longest_edge": 16},
        mask_pad_size={"height": 16, "width": 16},
    )  # fmt: skip


@pytest.mark.parametrize("size", [size for size in PHOTOS if min(size) > 1])
def test_the_input_equals_transformers(theirs, size):
    image = photo(*size)
    expected = theirs(image, return_tensors="np")
    found, frame = letterbox(image, 64)
    assert frame.photo == size
    assert frame.resized == tuple(expected["reshaped_input_sizes"][0])
    np.testing.assert_allclose(found, expected["pixel_values"][0], atol=2e-6)
    assert found.dtype == np.float32


@pytest.mark.parametrize("size", PHOTOS)
def test_masks_come_back_as_torch_interpolates_them(size):
    frame = Letterbox(side=64, photo=size)
    masks = np.random.default_rng(1).standard_normal((2, 3, 16, 16))
    h, w = frame.resized
    expected = F.interpolate(torch.from_numpy(masks), (64, 64), mode="bilinear")[..., :h, :w]
    expected = F.interpolate(expected, size, mode="bilinear").numpy()
    found = frame.scores(masks)
    assert found.shape == (2, 3, *size)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    np.testing.assert_allclose(frame.scores(masks.astype(np.float32)), expected, atol=1e-5)


@pytest.mark.parametrize("size", PHOTOS)
def test_a_squashed_photo_equals_transformers_sam_2(size):
    image = photo(*size)
    expected = Sam2ImageProcessor(size={"height": 64, "width": 64})(image, return_tensors="np")
    found, frame = letterbox(image, 64, squashed=True)
    assert frame.resized == (64, 64)
    # torchvision rounds to whole levels otherwise than Pillow.
    np.testing.assert_allclose(found, expected["pixel_values"][0], atol=1.01 / 255 / 0.224)
    corners = np.array([[0, 0], [size[1], size[0]], [size[1] / 2, size[0] / 4]])
    assert frame.points(corners).tolist() == [[0, 0], [64, 64], [32, 16]]
    masks = np.random.default_rng(1).standard_normal((2, 16, 16))
    wanted = F.interpolate(torch.from_numpy(masks)[None], size, mode="bilinear")[0].numpy()
    np.testing.assert_allclose(frame.scores(masks), wanted, atol=1e-12)
    clear = np.abs(wanted[0]) > 1e-5
    assert np.array_equal(frame.inside(masks[0])[clear], wanted[0][clear] > 0)


def test_masks_equal_transformers(theirs):
    masks = torch.randn(1, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    frame = Letterbox(side=64, photo=(40, 60))
    (expected,) = theirs.post_process_masks([masks], [frame.photo], [frame.resized])
    assert np.array_equal(frame.scores(masks.numpy()) > 0, expected.numpy())


def test_a_rectangle_comes_back_to_its_place():
    """To one pixel, over random shapes: what was drawn into the square's quarter is found in the photo."""
    rng = np.random.default_rng(2)
    for _ in range(1000):
        frame = Letterbox(side=256, photo=tuple(int(n) for n in rng.integers(20, 400, 2)))
        height, width = frame.photo
        left, top = rng.integers(0, width // 2), rng.integers(0, height // 2)
        right, bottom = (
            rng.integers(left + width // 3, width + 1),
            rng.integers(top + height // 3, height + 1),
        )
        x0, y0, x1, y1 = frame.boxes(np.array([left, top, right, bottom]))
        # Exact signed distances to the edges stay linear through both interpolations, inside the photo.
        centres = np.arange(256) + 0.5
        across = np.minimum(centres - x0, x1 - centres)
        down = np.minimum(centres - y0, y1 - centres)
        inside = frame.scores(np.minimum(across[None], down[:, None])) > 0
        wanted = np.zeros((height, width), bool)
        wanted[top:bottom, left:right] = True
        rows, columns = np.nonzero(inside.any(1))[0], np.nonzero(inside.any(0))[0]
        found = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        slack = max(1.0, 1.0 / min(frame.resized[0] / height, frame.resized[1] / width))
        assert np.abs(found - [left, top, right, bottom]).max() <= slack, (frame, found)


def test_points_and_boxes_are_scaled_as_transformers_does():
    frame = Letterbox(side=64, photo=(30, 60))
    assert np.allclose(frame.points(np.array([[60, 30], [15, 3]])), [[64, 32], [16, 3.2]])
    assert np.allclose(frame.boxes(np.array([[0, 0, 30, 15]])), [[0, 0, 32, 16]])


@pytest.mark.parametrize("point", [(-1, 3), (61, 3), (3, 31), (float("nan"), 3)])
def test_a_point_outside_the_photo_is_refused(point):
    with pytest.raises(InputError, match="outside the photo of 60 × 30 pixels: give x from 0 to 60"):
        Letterbox(side=64, photo=(30, 60)).points(np.array([[1, 1], point]))


@pytest.mark.parametrize("box", [(5, 5, 5, 9), (9, 5, 5, 9), (0, 9, 4, 9)])
def test_an_empty_box_is_refused(box):
    with pytest.raises(InputError, match="is empty: give left, top, right and bottom"):
        Letterbox(side=64, photo=(30, 60)).boxes(np.array([box]))


def test_only_rgb_is_taken():
    with pytest.raises(InputError, match="A L image cannot be preprocessed"):
        letterbox(Image.new("L", (4, 4)), 8)

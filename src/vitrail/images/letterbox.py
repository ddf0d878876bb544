"""A whole photo in a square, and back: what models that answer with masks are fed, and where masks belong.

The longest side is resized to the square's, keeping the proportions; the rest, at the bottom and right, is
filled with zeros after normalising, the mean colour. Points and boxes of the photo are scaled alike; masks
lose the filling and take the photo's size again. Equal to Meta's segment-anything (ResizeLongestSide and
Sam.postprocess_masks) and transformers' SamImageProcessor.

Or the photo is squashed: both sides become the square's, nothing is filled, and masks take the photo's size
at once. Equal to Meta's sam2 (SAM2Transforms) and transformers' Sam2Processor.

Shapes: S side of the square, h w the photo, resized; H W the photo; Y X a mask as the model gives it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from vitrail.errors import InputError
from vitrail.images.decode import frame_of
from vitrail.images.interpolate import along

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "Letterbox", "letterbox"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Letterbox:
    """Where a photo of some size lies in a square."""

    side: int
    """S."""
    photo: tuple[int, int]
    """(H, W)."""
    squashed: bool = False
    """Whether it fills the square and has lost its proportions."""

    @property
    def resized(self) -> tuple[int, int]:
        """(h, w), at least one pixel each."""
        if self.squashed:
            return self.side, self.side
        scale = self.side / max(self.photo)
        height, width = (max(1, int(side * scale + 0.5)) for side in self.photo)
        return height, width

    def points(self, points: np.ndarray) -> np.ndarray:
        """(x, y) in pixels of the photo (…, 2) -> in pixels of the square, float64.

        Raises:
            InputError: a point outside the photo, or not finite.
        """
        points = np.asarray(points, np.float64)
        (height, width), (h, w) = self.photo, self.resized
        # Written so that NaN is outside.
        outside = ~((points >= 0) & (points <= (width, height))).all(-1)
        if outside.any():
            x, y = points[outside][0]
            raise InputError(
                f"The point ({x:g}, {y:g}) lies outside the photo of {width} × {height} pixels: give x from "
                f"0 to {width} and y from 0 to {height}."
            )
        return points * (w / width, h / height)

    def boxes(self, boxes: np.ndarray) -> np.ndarray:
        """(left, top, right, bottom) in pixels of the photo (…, 4) -> in pixels of the square, float64.

        Raises:
            InputError: a corner outside the photo, or an empty box.
        """
        corners = np.asarray(boxes, np.float64).reshape(*np.shape(boxes)[:-1], 2, 2)
        scaled = self.points(corners)
        empty = (corners[..., 1, :] <= corners[..., 0, :]).any(-1)
        if empty.any():
            shown = ", ".join(f"{value:g}" for value in corners[empty][0].ravel())
            raise InputError(
                f"The box ({shown}) is empty: give left, top, right and bottom, with right > left and bottom "
                "> top."
            )
        return scaled.reshape(np.shape(boxes))

    def scores(self, masks: np.ndarray) -> np.ndarray:
        """The model's scores (…, Y, X) of the square -> of the photo (…, H, W), bilinear; > 0 is inside."""
        if not self.squashed:
            h, w = self.resized
            masks = along(along(masks, self.side, axis=-2, end=h), self.side, axis=-1, end=w)
        height, width = self.photo
        return along(along(masks, height, axis=-2), width, axis=-1)

    def inside(self, scores: np.ndarray) -> np.ndarray:
        """Where scores (Y, X) of the square, resized as by `scores`, are above 0: boolean (H, W).

        Resizing is linear, so each axis takes one product with a matrix, and where a score and all around it
        are not above 0 nothing between them is: only the rest is computed.
        """
        mask = np.zeros(self.photo, bool)
        rows, columns = (np.flatnonzero((scores > 0).any(axis)) for axis in (1, 0))
        if not len(rows):
            return mask
        y = _reach(self.rows_of(len(scores)), rows)
        x = _reach(self.columns_of(scores.shape[1]), columns)
        down = self.rows_of(len(scores))[y]
        across = self.columns_of(scores.shape[1])[x]
        mask[y, x] = down @ scores @ across.T > 0
        return mask

    def rows_of(self, count: int) -> np.ndarray:
        """How much each of `count` rows of scores gives to each row of the photo, float32 (H, count)."""
        return _weights(count, self._steps[0], self.photo[0])

    def columns_of(self, count: int) -> np.ndarray:
        """The same of columns, (W, count)."""
        return _weights(count, self._steps[1], self.photo[1])

    @property
    def _steps(self) -> tuple[tuple[int, int] | None, ...]:
        """Of each axis: to which side scores are resized first, and how much is kept of it."""
        return tuple(None if self.squashed else (self.side, kept) for kept in self.resized)


@lru_cache(maxsize=16)
def _weights(count: int, first: tuple[int, int] | None, size: int) -> np.ndarray:
    """One axis of scores at the square's side and cut, if so, then at the photo's size, as a matrix
    (size, count)."""
    scores = np.eye(count, dtype=np.float32)
    if first is not None:
        side, kept = first
        scores = along(scores, side, axis=-2, end=kept)
    return along(scores, size, axis=-2)


def _reach(weights: np.ndarray, places: np.ndarray) -> slice:
    """The rows of `weights` that any of the scores at `places` gives to: from the first to the last."""
    found = np.flatnonzero(weights[:, places[0] : places[-1] + 1].any(axis=1))
    return slice(int(found[0]), int(found[-1]) + 1) if len(found) else slice(0, 0)


def letterbox(
    image: Image.Image,
    side: int,
    *,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
    squashed: bool = False,
) -> tuple[np.ndarray, Letterbox]:
    """A decoded photo as a model's input, float32 (3, S, S), and where it lies in there.

    `squashed` gives up its proportions.

    Raises:
        InputError: the image is not RGB.
    """
    if image.mode != "RGB":
        raise InputError(f"A {image.mode} image cannot be preprocessed: pass it through decode first.")
    (width, height), box = frame_of(image)
    frame = Letterbox(side=side, photo=(height, width), squashed=squashed)
    h, w = frame.resized
    pixels_hw3 = np.asarray(image.resize((w, h), Image.Resampling.BILINEAR, box=box), np.float32)
    square_3SS = np.zeros((3, side, side), np.float32)
    normalised_hw3 = (pixels_hw3 / 255 - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    square_3SS[:, :h, :w] = normalised_hw3.transpose(2, 0, 1)
    return square_3SS, frame

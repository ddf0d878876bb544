"""A whole photo in a square, and back: what models that answer with masks are fed, and where masks belong.

The longest side is resized to the square's, keeping the proportions; the rest, at the bottom and right, is
filled with zeros after normalising, the mean colour. Points and boxes of the photo are scaled alike; masks
lose the filling and take the photo's size again. Equal to Meta's segment-anything (ResizeLongestSide and
Sam.postprocess_masks) and transformers' SamImageProcessor.

Shapes: S side of the square, h w the photo, resized; H W the photo; Y X a mask as the model gives it.
"""

from __future__ import annotations

from dataclasses import dataclass

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

    @property
    def resized(self) -> tuple[int, int]:
        """(h, w), at least one pixel each."""
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
        h, w = self.resized
        in_square = along(along(masks, self.side, axis=-2, end=h), self.side, axis=-1, end=w)
        height, width = self.photo
        return along(along(in_square, height, axis=-2), width, axis=-1)


def letterbox(
    image: Image.Image,
    side: int,
    *,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
) -> tuple[np.ndarray, Letterbox]:
    """A decoded photo as a model's input, float32 (3, S, S), and where it lies in there.

    Raises:
        InputError: the image is not RGB.
    """
    if image.mode != "RGB":
        raise InputError(f"A {image.mode} image cannot be preprocessed: pass it through decode first.")
    (width, height), box = frame_of(image)
    frame = Letterbox(side=side, photo=(height, width))
    h, w = frame.resized
    pixels_hw3 = np.asarray(image.resize((w, h), Image.Resampling.BILINEAR, box=box), np.float32)
    square_3SS = np.zeros((3, side, side), np.float32)
    normalised_hw3 = (pixels_hw3 / 255 - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    square_3SS[:, :h, :w] = normalised_hw3.transpose(2, 0, 1)
    return square_3SS, frame

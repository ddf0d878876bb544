"""Masks as pictures: labels with a palette, alpha as grey, a photo cut out.

Shapes: H W the photo.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from vitrail.masks.overlay import colours

__all__ = ["cut_out", "of_alpha", "of_inside", "of_labels"]


def of_labels(labels: np.ndarray, classes: int) -> Image.Image:
    """Numbers of classes (H, W) as they are, in colours: a palette image, or 16-bit grey of more than 256."""
    if labels.dtype != np.uint8:
        return Image.fromarray(labels.astype(np.uint16))
    image = Image.fromarray(labels)
    image.putpalette([value for colour in colours(classes) for value in colour])
    return image


def of_inside(mask: np.ndarray) -> Image.Image:
    """0 where (H, W) is 0 or false, 255 elsewhere, in grey."""
    return Image.fromarray(((mask > 0) * 255).astype(np.uint8))


def of_alpha(alpha: np.ndarray) -> Image.Image:
    """Shares from 0 to 1 (H, W) as grey from 0 to 255."""
    return Image.fromarray(np.rint(255 * alpha).astype(np.uint8))


def cut_out(photo: Image.Image, alpha: np.ndarray) -> Image.Image:
    """An RGB photo with alpha (H, W) from 0 to 1, as RGBA; the given one is unchanged."""
    cut = photo.copy()
    cut.putalpha(of_alpha(alpha))
    return cut

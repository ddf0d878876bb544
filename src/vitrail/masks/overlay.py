"""Masks drawn over a photo: each in a colour of its own, with a contour.

Only pixels of a mask are painted. Shapes: n masks, H W the photo.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
from PIL import Image

__all__ = ["colours", "overlay"]

Colour = tuple[int, int, int]

GOLDEN = 0.618_033_988_749_895
"""The golden ratio's turn: hues that follow each other so lie far apart, however many there are."""
LIGHTNESS = (0.5, 0.75, 0.3, 0.65, 0.4)
"""In turn: hues 8, 13 or 21 places apart nearly meet, and differ in this."""


def colours(count: int) -> tuple[Colour, ...]:
    """RGB in [0, 255] for `count` masks; the first do not depend on how many follow."""
    return tuple(_colour(i) for i in range(count))


def _colour(i: int) -> Colour:
    red, green, blue = colorsys.hls_to_rgb(i * GOLDEN % 1.0, LIGHTNESS[i % len(LIGHTNESS)], 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)


def overlay(
    photo: Image.Image,
    masks: Sequence[np.ndarray] | np.ndarray,
    *,
    colour: Sequence[Colour] | None = None,
    opacity: float = 0.45,
    contour: int = 2,
) -> Image.Image:
    """The photo with boolean masks (H, W) over it, later ones over earlier ones; the given one is unchanged.

    Args:
        colour: RGB of each mask; None: `colours`.
        opacity: share of the colour inside, in [0, 1].
        contour: width in pixels of the edge in the full colour: pixels of the mask within so many steps (up,
            down, left, right) of a pixel outside or of the photo's edge. 0: none.

    Raises:
        ValueError: the photo is not RGB, a mask is not boolean or of another size, the colours are fewer than
            the masks, or a value is out of range.
    """
    if photo.mode != "RGB":
        raise ValueError(f"a {photo.mode} image is not drawn on: pass it through decode first")
    if not 0 <= opacity <= 1 or contour < 0:
        raise ValueError(f"opacity {opacity} and contour {contour} are out of range")
    paints = colours(len(masks)) if colour is None else colour
    if len(paints) < len(masks):
        raise ValueError(f"{len(paints)} colours for {len(masks)} masks")
    pixels_HW3 = np.array(photo)
    for mask, paint in zip(masks, paints, strict=False):
        if mask.shape != pixels_HW3.shape[:2] or mask.dtype != bool:
            raise ValueError(f"a mask {mask.dtype} {mask.shape} for a photo {pixels_HW3.shape[:2]}")
        _paint(pixels_HW3, mask, np.array(paint), opacity, contour)
    return Image.fromarray(pixels_HW3)


def _paint(pixels_HW3: np.ndarray, mask: np.ndarray, paint: np.ndarray, opacity: float, contour: int) -> None:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return
    # Nothing but its box: a photo may have a hundred small objects.
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    inside, part_hw3 = mask[box], pixels_HW3[box]
    part_hw3[inside] = np.rint((1 - opacity) * part_hw3[inside] + opacity * paint)
    part_hw3[inside & ~_eroded(inside, contour)] = paint


def _eroded(mask: np.ndarray, steps: int) -> np.ndarray:
    """Pixels whose neighbours within so many steps are all inside; beyond the array is outside."""
    for _ in range(steps):
        if not mask.any():
            break
        padded = np.pad(mask, 1)
        mask = mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask

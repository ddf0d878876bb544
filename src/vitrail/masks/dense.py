"""A model's scores for each pixel -> labels or alpha at a photo's size.

Scores are resized, then decided: an edge lies where the interpolated scores say, not in steps of the map.
Done in blocks of rows: the scores of 150 classes at a photo's size would take gigabytes.

Shapes: K classes, h w the model's map, H W the photo.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from vitrail.images.interpolate import along
from vitrail.images.limits import LIMITS

__all__ = ["alpha", "inside_at", "labels", "probability"]

AT_ONCE = 1 << 23
"""Values of one block, 32 MiB."""


def labels(scores_Khw: np.ndarray, size: tuple[int, int], threshold: float | None = None) -> np.ndarray:
    """The number of each pixel's class, uint8 (uint16 of more than 256 classes) (H, W).

    `threshold`: of a single map; where its scores lie above is 1, elsewhere 0. None: the best of K.

    Raises:
        ValueError: the size has no pixels or more than a photo may have.
    """
    found = np.empty(_checked(size), np.uint8 if len(scores_Khw) <= 256 else np.uint16)
    for rows, part_KrW in _blocks(scores_Khw, size):
        found[rows] = part_KrW.argmax(axis=0) if threshold is None else part_KrW[0] > threshold
    return found


def alpha(scores_hw: np.ndarray, size: tuple[int, int], *, logits: bool) -> np.ndarray:
    """How much each pixel belongs inside, float32 (H, W) in [0, 1]. Raises ValueError as `labels`."""
    found = np.empty(_checked(size), np.float32)
    for rows, part_1rW in _blocks(scores_hw[None], size):
        found[rows] = probability(part_1rW[0]) if logits else np.clip(part_1rW[0], 0, 1)
    return found


def inside_at(*, logits: bool) -> float:
    """The threshold of a single map."""
    return 0.0 if logits else 0.5


def probability(logits: np.ndarray) -> np.ndarray:
    """The sigmoid, float32, without overflow."""
    return np.asarray(np.exp(-np.logaddexp(np.float32(0), -logits)), np.float32)


def _checked(size: tuple[int, int]) -> tuple[int, int]:
    height, width = size
    if height < 1 or width < 1 or height * width > LIMITS.pixels:
        raise ValueError(f"{width} × {height} pixels are no size of a photo")
    return height, width


def _blocks(scores_Khw: np.ndarray, size: tuple[int, int]) -> Iterator[tuple[slice, np.ndarray]]:
    """(rows, their scores (K, rows, W))."""
    (count, _, w), (height, width) = scores_Khw.shape, size
    each = max(1, AT_ONCE // (count * max(w, width)))
    for begin in range(0, height, each):
        end = min(begin + each, height)
        tall = along(scores_Khw, height, axis=-2, begin=begin, end=end)
        yield slice(begin, end), along(tall, width, axis=-1)

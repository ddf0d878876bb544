"""A model's scores for each pixel -> labels or alpha at a photo's size.

Scores are resized, then decided: an edge lies where the interpolated scores say, not in steps of the map.
A photo is large and most of it lies within one class, so labels are computed cell by cell of the map: where
the same class leads at all four corners of a cell it leads everywhere between them, because what is
interpolated between the corners are the differences too, and only the other cells are interpolated.

Shapes: K classes, h w the model's map, H W the photo.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from vitrail.images.interpolate import along, between
from vitrail.images.limits import LIMITS

__all__ = ["alpha", "inside_at", "labels", "probability"]

AT_ONCE = 1 << 18
"""Values of one block, 1 MiB: what is larger does not stay in a core's cache."""
SLACK = 1e-5
"""More than rounding changes of a difference of interpolated scores, as a share of the largest score."""


def labels(scores_Khw: np.ndarray, size: tuple[int, int], threshold: float | None = None) -> np.ndarray:
    """The number of each pixel's class, uint8 (uint16 of more than 256 classes) (H, W).

    `threshold`: of a single map; where its scores lie above is 1, elsewhere 0. None: the best of K.

    Raises:
        ValueError: the size has no pixels or more than a photo may have.
    """
    height, width = _checked(size)
    dtype = np.uint8 if len(scores_Khw) <= 256 else np.uint16
    cells_hw, settled_hw = _cells(scores_Khw, threshold)
    rows, row_shares = between(scores_Khw.shape[1], height)
    columns, column_shares = between(scores_Khw.shape[2], width)
    found = cells_hw.astype(dtype).take(columns, 1).take(rows, 0)
    lowest_hw = _lowest(scores_Khw)
    for row, open_w in enumerate(~settled_hw):
        begin, end = np.searchsorted(rows, (row, row + 1))
        places = np.flatnonzero(open_w[columns])
        if begin == end or not len(places):
            continue
        after = min(row + 1, len(settled_hw) - 1)
        kept = _possible(scores_Khw[:, [row, after]], lowest_hw[row], open_w)
        above_kw, below_kw = scores_Khw[kept, row], scores_Khw[kept, after]
        left, share = columns[places], column_shares[places].astype(scores_Khw.dtype)
        right = np.minimum(left + 1, scores_Khw.shape[2] - 1)
        each = max(1, AT_ONCE // (len(kept) * len(places)))
        for first in range(begin, end, each):
            last = min(first + each, end)
            down = row_shares[first:last, None].astype(scores_Khw.dtype)
            tall_krw = above_kw[:, None] + (below_kw - above_kw)[:, None] * down
            part_krP = tall_krw[..., left]
            part_krP += (tall_krw[..., right] - part_krP) * share
            best = kept[part_krP.argmax(0)] if threshold is None else part_krP[0] > threshold
            found[first:last, places] = best
    return found


def alpha(scores_hw: np.ndarray, size: tuple[int, int], *, logits: bool) -> np.ndarray:
    """How much each pixel belongs inside, float32 (H, W) in [0, 1]. Raises ValueError as `labels`."""
    found = np.empty(_checked(size), np.float32)
    for rows, part_rW in _blocks(scores_hw, size):
        found[rows] = probability(part_rW) if logits else np.clip(part_rW, 0, 1)
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


def _blocks(scores_hw: np.ndarray, size: tuple[int, int]) -> Iterator[tuple[slice, np.ndarray]]:
    """(rows, their scores (rows, W))."""
    (_, w), (height, width) = scores_hw.shape, size
    each = max(1, AT_ONCE // max(w, width))
    for begin in range(0, height, each):
        end = min(begin + each, height)
        tall = along(scores_hw, height, axis=-2, begin=begin, end=end)
        yield slice(begin, end), along(tall, width, axis=-1)


# --- cells: (y, x) lies between the pixels (y, x) and (y + 1, x + 1) of the map, or at its edge -----------


def _cells(scores_Khw: np.ndarray, threshold: float | None) -> tuple[np.ndarray, np.ndarray]:
    """The number of the class at each cell's corner (y, x), and whether all of the cell is of it; (h, w)."""
    slack = SLACK * max(float(np.abs(scores_Khw).max()), abs(threshold or 0.0))
    if threshold is not None:
        best_hw = scores_Khw[0] > threshold
        sure_hw = np.abs(scores_Khw[0] - threshold) > slack
    else:
        best_hw = scores_Khw.argmax(0)
        sure_hw = np.ones(best_hw.shape, bool)
        if len(scores_Khw) > 1:
            two_2hw = np.partition(scores_Khw, -2, axis=0)[-2:]
            sure_hw = two_2hw[1] - two_2hw[0] > slack
    for axis in (0, 1):
        after = np.minimum(np.arange(best_hw.shape[axis]) + 1, best_hw.shape[axis] - 1)
        sure_hw = sure_hw & sure_hw.take(after, axis)
        sure_hw &= best_hw == best_hw.take(after, axis)
    return best_hw, sure_hw


def _lowest(scores_Khw: np.ndarray) -> np.ndarray:
    """What the best class has at least anywhere in each cell (h, w): the most that one has at all corners."""
    least = scores_Khw
    for axis in (1, 2):
        after = np.minimum(np.arange(least.shape[axis]) + 1, least.shape[axis] - 1)
        least = np.minimum(least, least.take(after, axis))
    slack = SLACK * float(np.abs(scores_Khw).max())
    return np.asarray(least.max(0) - slack)


def _possible(corners_K2w: np.ndarray, lowest_w: np.ndarray, open_w: np.ndarray) -> np.ndarray:
    """Numbers of the classes that may be the best somewhere in the open cells of a row."""
    most_Kw = corners_K2w.max(1)
    after = np.minimum(np.arange(most_Kw.shape[1]) + 1, most_Kw.shape[1] - 1)
    most_Kw = np.maximum(most_Kw, most_Kw[:, after])
    return np.flatnonzero((most_Kw >= lowest_w)[:, open_w].any(1))

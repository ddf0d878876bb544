"""Linear interpolation of arrays, as models' authors resize the maps that they answer with.

Without antialiasing: between pixels' centres, as torch's `interpolate(align_corners=False)` does it.
"""

from __future__ import annotations

import numpy as np

__all__ = ["along", "between"]


def between(count: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Where each of `size` places of the result lies among `count`: the one before it, and the share, in
    [0, 1), of the way to the next; at the edges 0. int64 and float64 (size,)."""
    places = np.clip((np.arange(size) + 0.5) * (count / size) - 0.5, 0, count - 1)
    before = places.astype(np.int64)
    return before, places - before


def along(values: np.ndarray, size: int, *, axis: int, begin: int = 0, end: int | None = None) -> np.ndarray:
    """One axis, -2 or -1, resized to `size`; of the result, the places from `begin` to `end` (None: all)."""
    count = values.shape[axis]
    before, shares = (each[begin:end] for each in between(count, size))
    after = np.minimum(before + 1, count - 1)
    share = shares.astype(values.dtype)
    share = share[:, None] if axis == -2 else share
    first = values.take(before, axis)
    first += (values.take(after, axis) - first) * share
    return first

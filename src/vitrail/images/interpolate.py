"""Linear interpolation of arrays, as models' authors resize the maps that they answer with.

Without antialiasing: between pixels' centres, as torch's `interpolate(align_corners=False)` does it.
"""

from __future__ import annotations

import numpy as np

__all__ = ["along"]


def along(values: np.ndarray, size: int, *, axis: int, begin: int = 0, end: int | None = None) -> np.ndarray:
    """One axis, -2 or -1, resized to `size`; of the result, the places from `begin` to `end` (None: all)."""
    count = values.shape[axis]
    kept = np.arange(begin, size if end is None else end)
    places = np.clip((kept + 0.5) * (count / size) - 0.5, 0, count - 1)
    before = places.astype(np.int64)
    after = np.minimum(before + 1, count - 1)
    share = (places - before).astype(values.dtype)
    share = share[:, None] if axis == -2 else share
    first = values.take(before, axis)
    first += (values.take(after, axis) - first) * share
    return first

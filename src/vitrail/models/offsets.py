"""Swin's relative positions: offsets of query and key within a window, and tables with a row for each.

Computed on the CPU, never stored with weights and never traced, like everything in `windows.py`.

Shapes: m a window's side, M its tokens, T = (2mh - 1)(2mw - 1) offsets, H heads.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from vitrail.errors import InputError

__all__ = ["fit_table", "log_coordinates", "relative_index", "resample_offsets", "window_of_index"]


def relative_index(window: tuple[int, int]) -> Tensor:
    """(M, M): row of the offset table, (2mh-1)(2mw-1) long, for query minus key (Liu et al. 2021, eq. 4)."""
    row, column = (axis.reshape(-1) for axis in np.mgrid[: window[0], : window[1]])
    down = row[:, None] - row[None, :] + window[0] - 1
    right = column[:, None] - column[None, :] + window[1] - 1
    return torch.from_numpy((down * (2 * window[1] - 1) + right).astype(np.int64))


def log_coordinates(window: tuple[int, int], reference: tuple[int, int]) -> Tensor:
    """(T, 2): the offsets on a logarithmic scale, sign(o) log₂(1 + |o|) / log₂ 8.

    o = 8 · offset / (reference - 1), where `reference` is the window the model was trained with (Liu et al.
    2022, §3.3). In fp32, as in the published models, whatever the dtype of the weights.
    """
    steps = [
        torch.arange(-(m - 1), m, dtype=torch.float32, device="cpu") / max(r - 1, 1)
        for m, r in zip(window, reference, strict=True)
    ]
    offset_T2 = 8 * torch.cartesian_prod(*steps)
    return torch.sign(offset_T2) * torch.log2(offset_T2.abs() + 1) / math.log2(8)


def resample_offsets(old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """(T', T): the matrix that makes an offset table for the window `new` from one for `old`.

    The old entries are placed at geometrically growing distances that end at the new window's edge, so that
    small offsets, which matter most, keep their values; linear in between (BEiT's scheme, as in timm).
    """
    if old == new:
        return torch.eye((2 * old[0] - 1) * (2 * old[1] - 1), device="cpu")
    down, right = (_resample_axis(a, b) for a, b in zip(old, new, strict=True))
    return torch.from_numpy(np.kron(down, right).astype(np.float32))


def window_of_index(index: Tensor) -> tuple[int, int] | None:
    """(rows, columns) of the window of a file's `relative_position_index`, (M, M) or (M · M); None: it is not
    the index of any window."""
    tokens = math.isqrt(index.numel())
    found = index.reshape(-1)
    for rows in range(1, tokens + 1):
        window = (rows, tokens // rows)
        if tokens % rows == 0 and torch.equal(found.long().cpu(), relative_index(window).reshape(-1)):
            return window
    return None


def fit_table(table_TH: Tensor, window: tuple[int, int], old: tuple[int, int] | None = None) -> Tensor:
    """A file's offset table, (T, H), fitted to this window; `old` is the file's own window. If unknown, it is
    assumed to be square, unless no square window's table has that length.

    Raises:
        InputError: an `old` of another length, or a length that is both this oblong window's and a square's.
    """
    rows = len(table_TH)
    if old is not None and (2 * old[0] - 1) * (2 * old[1] - 1) != rows:
        raise InputError(
            f"A table of {rows} offsets is not of windows of {old[0]} × {old[1]} tokens: give the window "
            "that the weights were trained with."
        )
    if old is None:
        side = math.isqrt(rows)
        square = side * side == rows and side % 2 == 1
        if square and window[0] != window[1] and (2 * window[0] - 1) * (2 * window[1] - 1) == rows:
            raise InputError(
                f"A table of {rows} offsets is of this model's windows of {window[0]} × {window[1]} tokens "
                f"or of {(side + 1) // 2} × {(side + 1) // 2}: say which by load_weights(…, window={window}) "
                f"or window={(side + 1) // 2}."
            )
        if not square:
            return table_TH
        old = ((side + 1) // 2,) * 2
    if old == window:
        return table_TH
    matrix_TT = resample_offsets(old, window).to(table_TH.device)
    return (matrix_TT @ table_TH.float()).to(table_TH.dtype)


def _resample_axis(old: int, new: int) -> np.ndarray:
    """(2 new - 1, 2 old - 1): linear interpolation between geometrically spaced points."""
    points = _geometric(old - 1, new - 1)
    wanted = np.arange(-(new - 1), new, dtype=np.float64)
    if len(points) == 1:
        return np.ones((len(wanted), 1))
    left = (np.searchsorted(points, wanted, side="right") - 1).clip(0, len(points) - 2)
    share = ((wanted - points[left]) / (points[left + 1] - points[left])).clip(0, 1)
    matrix = np.zeros((len(wanted), len(points)))
    lines = np.arange(len(wanted))
    matrix[lines, left] = 1 - share
    matrix[lines, left + 1] += share
    return matrix


def _geometric(steps: int, reach: int) -> np.ndarray:
    """Positions -p … 0 … p of 2 · steps + 1 points: 1, 1 + q, 1 + q + q² …, the last at about `reach`."""
    low, high = 1.01, 1.5
    q = low
    while high - low > 1e-6:
        q = (low + high) / 2
        if (1 - q**steps) / (1 - q) > reach:
            high = q
        else:
            low = q
    side = np.cumsum(q ** np.arange(steps))
    return np.concatenate([-side[::-1], [0.0], side])

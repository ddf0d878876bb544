"""Swin's bookkeeping: which token is in which window, and what it may attend to there.

Everything here follows from a few integers (map size, window) and is computed on the CPU with NumPy, never
stored with weights and never traced: a plan's tensors are constants of the model's graph.

*Window order*: the tokens of a map sorted so that each window's M tokens lie together, (nW · M) slots. Slots
beyond the map's edge are padding; their content is arbitrary, and no real token attends to it. There are two
orders per stage, regular and shifted by half a window (Liu et al. 2021, §3.2), over the same padded map, so
that each is a permutation of the other. Windows with the same mask are consecutive (a *run*), unmasked
ones first: on a large map nearly all windows share one mask or have none.

Shapes: h w tokens of a map, M tokens of a window, nW windows, N = nW · M slots, K distinct masks, T offsets.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitrail.models.offsets import log_coordinates, relative_index, resample_offsets

__all__ = [
    "Order",
    "Runs",
    "StagePlan",
    "StageTables",
    "TablesBySize",
    "image_tables",
    "merge_index",
    "plan_stage",
    "window_and_shift",
]

SIZES_KEPT = 8
"""Image sizes whose tables a model keeps."""

ACROSS = -100.0
"""Added to the score between tokens that only the cyclic shift brought together. The published weights were
trained with this number, not with minus infinity, and in v2 (scores up to ±116) the difference shows."""


Runs = tuple[tuple[int, int, int], ...]
"""(first window, end, mask): which windows have which mask."""


@dataclass(frozen=True)
class Order:
    """One of a stage's two window orders."""

    place_N: Tensor
    """Position of each slot in the padded map, row by row."""
    real_N: Tensor
    """Whether the slot is a token of the map."""
    masks_KMM: Tensor
    """The distinct masks, added to the scores; the first is all zeros if any window has no mask."""
    runs: Runs
    masked: bool
    """Whether any window has a mask."""
    filling_N: Tensor | None
    """Slots that hold no token and are attended to as zeros; None: there are none."""


@dataclass(frozen=True)
class StagePlan:
    """Where the tokens of one stage are, for one map size."""

    size: tuple[int, int]
    """The map, (h, w) tokens."""
    window: tuple[int, int]
    shift: tuple[int, int]
    padded: tuple[int, int]
    regular: Order
    shifted: Order
    """The same as `regular` if the map is one window."""
    to_shifted_N: Tensor
    """Slot in the regular order of each slot of the shifted order: one gather moves the map."""
    to_regular_N: Tensor
    slot_regular_hw: Tensor
    """Slot of each token of the map, row by row."""
    slot_shifted_hw: Tensor

    @property
    def tokens(self) -> int:
        """M, the tokens of a window."""
        return self.window[0] * self.window[1]

    @property
    def windows(self) -> int:
        """nW, the windows of the padded map."""
        return self.regular.runs[-1][1]

    @property
    def moves(self) -> bool:
        """Whether the two orders differ."""
        return any(self.shift)

    def slot_hw(self, shifted: bool) -> Tensor:
        """Slot of each token of the map, row by row, in one of the orders."""
        return self.slot_shifted_hw if shifted else self.slot_regular_hw

    @property
    def has_padding(self) -> bool:
        """Whether the map is not a multiple of the window."""
        return self.padded != self.size


@dataclass(frozen=True)
class StageTables:
    """Everything one stage derives from the image size."""

    plan: StagePlan
    offset_MM: Tensor
    """Row of the offset table for each query and key."""
    resample_TT: Tensor | None
    """v1: the matrix that makes this window's offset table from the learned one; None: it fits as it is."""
    coordinates_T2: Tensor | None
    """v2: log-spaced offsets."""
    enter_regular_N4: Tensor
    """Slots of the previous stage, in regular order, that each slot is merged from; in the first stage
    (N, 1), raster positions of the patches."""
    enter_shifted_N4: Tensor
    exists_N4: Tensor | None
    """Whether those tokens exist; None: all do."""

    def to(self, device: torch.device | str) -> StageTables:
        """The same with its tensors on another device."""
        return _moved(self, device)


class TablesBySize:
    """A model's tables for the image sizes and devices it used most recently.

    Args:
        patch: side of a patch in pixels.
        window, built, pretrained, fixed: as `image_tables` takes them.
    """

    def __init__(
        self,
        patch: int,
        window: tuple[int, int],
        built: tuple[tuple[int, int], ...],
        pretrained: tuple[int, ...] | None,
        fixed: bool,
    ) -> None:
        self.patch, self.window, self.built, self.pretrained = patch, window, built, pretrained
        self.fixed = fixed
        self.by_size: dict[tuple[int, int, str], tuple[StageTables, ...]] = {}

    def has(self, height: int, width: int, device: torch.device | str = "cpu") -> bool:
        """Whether the tables exist already."""
        return (height, width, str(device)) in self.by_size

    def at(self, height: int, width: int, device: torch.device | str = "cpu") -> tuple[StageTables, ...]:
        """The tables per stage for an image of this many pixels; made now if they do not exist."""
        key = (height, width, str(device))
        if key not in self.by_size:
            while len(self.by_size) >= SIZES_KEPT:
                del self.by_size[next(iter(self.by_size))]
            grid = (-(-height // self.patch), -(-width // self.patch))
            # Even if made under inference_mode, they must work in a later training step.
            with torch.inference_mode(False):
                tables = image_tables(grid, self.window, self.built, self.pretrained, self.fixed)
                self.by_size[key] = tuple(stage.to(device) for stage in tables)
        return self.by_size[key]


def image_tables(
    grid: tuple[int, int],
    window: tuple[int, int],
    built: tuple[tuple[int, int], ...],
    pretrained: tuple[int, ...] | None,
    fixed: bool,
) -> tuple[StageTables, ...]:
    """The tables of all stages for a grid of (h, w) patches.

    Args:
        grid: patches of the image.
        window: largest window.
        built: per stage, the window the learned offset table is for (v1).
        pretrained: per stage, the window that v2's log scale refers to, 0 for the stage's own; None for v1.
        fixed: as `SwinConfig.fixed_windows`.
    """
    tables: list[StageTables] = []
    size = grid
    for index, table_window in enumerate(built):
        plan = plan_stage(size, window, fixed=fixed)
        if tables:
            before = tables[-1].plan
            enter, exists = merge_index(before.size, before.slot_regular_hw, plan)
            enter_shifted, _ = merge_index(before.size, before.slot_shifted_hw, plan)
        else:
            enter, exists = _raster(plan), torch.ones(1, dtype=torch.bool, device="cpu")
            enter_shifted = enter
        coordinates = None
        if pretrained is not None:
            side = pretrained[index]
            coordinates = log_coordinates(plan.window, (side, side) if side else plan.window)
        fits = pretrained is not None or table_window == plan.window
        tables.append(
            StageTables(
                plan=plan,
                offset_MM=relative_index(plan.window),
                resample_TT=None if fits else resample_offsets(table_window, plan.window),
                coordinates_T2=coordinates,
                enter_regular_N4=enter,
                enter_shifted_N4=enter_shifted,
                exists_N4=None if bool(exists.all()) else exists,
            )
        )
        size = (-(-size[0] // 2), -(-size[1] // 2))
    return tuple(tables)


def _raster(plan: StagePlan) -> Tensor:
    """(N, 1): raster position of each slot in regular order; padding gets an arbitrary token's."""
    row_N, column_N = np.divmod(plan.regular.place_N.numpy(), plan.padded[1])
    height, width = plan.size
    return _tensor(row_N.clip(max=height - 1) * width + column_N.clip(max=width - 1))[:, None]


def window_and_shift(size: int, window: int, *, fixed: bool = False) -> tuple[int, int]:
    """The window and its shift along one axis: a map no larger than the window is one window, unshifted,
    unless windows are `fixed`."""
    return (size, 0) if size <= window and not fixed else (window, window // 2)


def plan_stage(size: tuple[int, int], window: tuple[int, int], *, fixed: bool = False) -> StagePlan:
    """The window orders of an (h, w) map cut into windows of at most `window`, padded at bottom and right.

    `fixed` as `SwinConfig.fixed_windows`.
    """
    axes = [window_and_shift(s, w, fixed=fixed) for s, w in zip(size, window, strict=True)]
    kept = (axes[0][0], axes[1][0])
    shift = (axes[0][1], axes[1][1])
    padded = (math.ceil(size[0] / kept[0]) * kept[0], math.ceil(size[1] / kept[1]) * kept[1])
    regular = _order(size, kept, padded, (0, 0), fixed)
    shifted = _order(size, kept, padded, shift, fixed) if any(shift) else regular
    slot_regular = _inverse(regular.place_N)
    slot_shifted = _inverse(shifted.place_N)
    on_map = _tensor(np.arange(padded[0] * padded[1]).reshape(padded)[: size[0], : size[1]].reshape(-1))
    return StagePlan(
        size=size,
        window=kept,
        shift=shift,
        padded=padded,
        regular=regular,
        shifted=shifted,
        to_shifted_N=slot_regular[shifted.place_N],
        to_regular_N=slot_shifted[regular.place_N],
        slot_regular_hw=slot_regular[on_map],
        slot_shifted_hw=slot_shifted[on_map],
    )


def _order(
    size: tuple[int, int],
    window: tuple[int, int],
    padded: tuple[int, int],
    shift: tuple[int, int],
    fixed: bool,
) -> Order:
    rows_wm, row_region_wm = _axis(size[0], window[0], padded[0], shift[0])
    columns_wm, column_region_wm = _axis(size[1], window[1], padded[1], shift[1])
    real = (row_region_wm >= 0)[:, None, :, None] & (column_region_wm >= 0)[None, :, None, :]
    if fixed:
        # Padding is part of the map then.
        row_region_wm = _axis(padded[0], window[0], padded[0], shift[0])[1]
        column_region_wm = _axis(padded[1], window[1], padded[1], shift[1])[1]
    masks: dict[bytes, int] = {}
    kinds: list[np.ndarray] = []
    kind_ij = np.empty((len(rows_wm), len(columns_wm)), dtype=np.int64)
    seen: dict[tuple[bytes, bytes], int] = {}
    for i, row_region in enumerate(row_region_wm):
        for j, column_region in enumerate(column_region_wm):
            pattern = (row_region.tobytes(), column_region.tobytes())
            if pattern not in seen:
                mask_MM = _mask(row_region, column_region)
                seen[pattern] = masks.setdefault(mask_MM.tobytes(), len(masks))
                if len(masks) > len(kinds):
                    kinds.append(mask_MM)
            kind_ij[i, j] = seen[pattern]
    # The unmasked windows first, then by mask; within a run, row by row.
    rank = sorted(range(len(kinds)), key=lambda kind: (bool(kinds[kind].any()), kind))
    new_kind = np.argsort(rank)
    kind_W = new_kind[kind_ij.reshape(-1)]
    windows_W = np.argsort(kind_W, kind="stable")
    kind_W = kind_W[windows_W]
    place = rows_wm[:, None, :, None] * padded[1] + columns_wm[None, :, None, :]
    ends = [*np.flatnonzero(np.diff(kind_W)) + 1, len(kind_W)]
    starts = [0, *ends[:-1]]
    tokens = window[0] * window[1]
    real_N = torch.from_numpy(real.reshape(-1, tokens)[windows_W].reshape(-1))
    return Order(
        place_N=_tensor(place.reshape(-1, tokens)[windows_W].reshape(-1)),
        real_N=real_N,
        masks_KMM=torch.from_numpy(np.stack([kinds[k] for k in rank])),
        runs=tuple((int(a), int(b), int(kind_W[a])) for a, b in zip(starts, ends, strict=True)),
        masked=any(bool(kind.any()) for kind in kinds),
        filling_N=~real_N if fixed and not bool(real_N.all()) else None,
    )


def _axis(size: int, window: int, padded: int, shift: int) -> tuple[np.ndarray, np.ndarray]:
    """Along one axis, (windows, m): each slot's position, and its region: 0, 1 wrapped around, -1 padding."""
    step = np.arange(padded) + shift
    position = step % padded
    region = np.where(position >= size, -1, step // padded)
    return position.reshape(-1, window), region.reshape(-1, window)


def _mask(row_region_m: np.ndarray, column_region_m: np.ndarray) -> np.ndarray:
    """(M, M), query by key, to be added to the scores of one window.

    Real tokens never see padding. Padding sees everything: its results are never read, and a row of only
    minus infinity would give NaN.
    """
    region_M = (row_region_m[:, None] * 2 + column_region_m[None, :]).reshape(-1)
    padding_M = ((row_region_m < 0)[:, None] | (column_region_m < 0)[None, :]).reshape(-1)
    mask_MM = np.where(region_M[:, None] != region_M[None, :], np.float32(ACROSS), np.float32(0))
    mask_MM[:, padding_M] = -np.inf
    mask_MM[padding_M, :] = 0
    return mask_MM


def merge_index(size: tuple[int, int], slot_hw: Tensor, following: StagePlan) -> tuple[Tensor, Tensor]:
    """Patch merging and the move to the next stage's regular order as one gather.

    Returns the slots, (N', 4), of the 2 × 2 tokens that each slot of the next stage is made of, in the order
    (row, column) = (0, 0), (1, 0), (0, 1), (1, 1), and (N', 4) whether they exist: an odd map is padded at
    the bottom and right with zeros, as the published models do.
    """
    place_N = following.regular.place_N.numpy()
    row_N, column_N = np.divmod(place_N, following.padded[1])
    real_N = following.regular.real_N.numpy()
    parts, exist = [], []
    for column_step in (0, 1):
        for row_step in (0, 1):
            row, column = 2 * row_N + row_step, 2 * column_N + column_step
            there = (row < size[0]) & (column < size[1])
            parts.append(
                np.where(there, np.minimum(row, size[0] - 1) * size[1] + column.clip(max=size[1] - 1), 0)
            )
            # A padding slot may hold anything: it needs no zeros.
            exist.append(there | ~real_N)
    return slot_hw[_tensor(np.stack(parts, 1).reshape(-1))].view(-1, 4), torch.from_numpy(np.stack(exist, 1))


def _moved(record: Any, device: torch.device | str) -> Any:
    changed = {}
    for field in fields(record):
        value = getattr(record, field.name)
        if isinstance(value, Tensor):
            changed[field.name] = value.to(device)
        elif isinstance(value, (Order, StagePlan)):
            changed[field.name] = _moved(value, device)
    return replace(record, **changed)


def _inverse(permutation_N: Tensor) -> Tensor:
    inverse_N = torch.empty_like(permutation_N)
    inverse_N[permutation_N] = torch.arange(len(permutation_N), device="cpu")
    return inverse_N


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64))

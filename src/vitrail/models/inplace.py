"""Inference on CPUs: results overwrite tensors no longer needed, and work is split into parts.

On a CPU memory traffic dominates: every allocation of a large tensor maps new pages, while a part that fits
the cache never leaves it. On a GPU launches dominate, and parts multiply them. So everything here does the
ordinary thing unless `in_place` holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor

__all__ = ["add", "bounds", "by_rows", "in_place", "inferring", "parts"]

ROWS_BYTES = 24 * 1024 * 1024
"""Largest hidden activation of an MLP: 4 × D features of 2048 tokens at D = 768, fp32.
Smaller parts save little more and cost time: 5 % of ViT-B at batch 8 with 4 MiB."""


def inferring() -> bool:
    """Whether torch runs eagerly and without gradients, so that nothing records the computation."""
    return not (torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.compiler.is_exporting())


def in_place(x: Tensor) -> bool:
    """Whether working on this tensor in place and in parts is allowed, and faster."""
    return inferring() and x.device.type == "cpu"


def add(x: Tensor, branch: Tensor) -> Tensor:
    """x + branch, for a caller that owns `x` and no longer needs it."""
    return x.add_(branch) if in_place(x) else x + branch


def by_rows(function: Callable[[Tensor], Tensor], x: Tensor, *, features: int) -> Tensor:
    """function(x) in parts, for a function of separate rows (…, D) that holds `features` numbers per row."""
    if not in_place(x):
        return function(x)
    rows = max(1, ROWS_BYTES // (features * x.element_size()))
    flat_ND = x.reshape(-1, x.shape[-1])
    count = len(flat_ND)
    if count <= rows:
        return function(x)
    ends = bounds(count, rows)
    first_ND = function(flat_ND[: ends[1]])
    out_ND = first_ND.new_empty(count, first_ND.shape[-1])
    out_ND[: ends[1]] = first_ND
    for start, end in pairwise(ends[1:]):
        out_ND[start:end] = function(flat_ND[start:end])
    return out_ND.view(*x.shape[:-1], -1)


def parts(batch: int, count: int, at_once: int) -> Iterator[tuple[slice, slice]]:
    """Cut (batch, count) into pieces of about `at_once`: several whole images, or equal parts of each one."""
    for first, last in pairwise(bounds(batch, max(1, at_once // count))):
        for start, end in pairwise(bounds(count, at_once)):
            yield slice(first, last), slice(start, end)


def bounds(count: int, most: int) -> list[int]:
    """Boundaries of equal parts of at most `most` each; a short last part would be slow."""
    pieces = -(-count // most)
    return [i * count // pieces for i in range(pieces + 1)]

"""Swin's inference on CPUs: whole blocks over a few windows at a time, in place.

Everything in a block is local to a window, so q, k, v, the scores and the MLP's hidden features never exist
for a whole map. The formulas stay in `swin.py`: this file only decides which windows are processed when, and
where results are written. The stream stays in regular order throughout; a shifted block gathers its windows
and writes them back.

Shapes: B batch, N slots of a map in window order (W windows × M tokens), D width, P numbers of a patch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from torch import Tensor, nn

from vitrail.models.inplace import parts
from vitrail.models.linear import linear
from vitrail.models.windows import Order, Runs, StageTables

__all__ = ["stages_in_place"]

CHUNK_BYTES = 16 * 1024 * 1024
"""Bytes of hidden features of the MLP held at a time, …"""
CHUNK_TOKENS = (2048, 8192)
"""… between these numbers of tokens: fewer slow down matrix products, more do not fit the cache."""


class Embedding(Protocol):
    """The part of `swin.PatchEmbedding` used here."""

    proj: nn.Conv2d

    @property
    def norm(self) -> nn.LayerNorm: ...


class Block(Protocol):
    """The part of `swin.Block` used here."""

    shifts: bool
    hidden: int

    def order(self, tables: StageTables) -> Order: ...
    def bias(self, tables: StageTables, x_BND: Tensor) -> Tensor: ...
    def attention_branch(
        self, x_BND: Tensor, bias_KHMM: Tensor, runs: Runs, filling_N: Tensor | None = None
    ) -> Tensor: ...
    def mlp_branch(self, x_BND: Tensor) -> Tensor: ...


class Stage(Protocol):
    """The part of `swin.Stage` used here."""

    def all_blocks(self) -> Iterable[Block]: ...
    def enter(self, x_BND: Tensor, slots_N4: Tensor, exists_N4: Tensor | None) -> Tensor: ...


def stages_in_place(
    patch_embed: Embedding, stages: Iterable[Stage], images_BCHW: Tensor, tables: tuple[StageTables, ...]
) -> Iterator[tuple[Tensor, StageTables, bool]]:
    """After each stage: its stream, its tables, and False: the stream is never in shifted order."""
    x_BND = _embed(patch_embed, images_BCHW, tables[0].enter_regular_N4.view(-1))
    for stage, table in zip(stages, tables, strict=True):
        if table is not tables[0]:
            x_BND = _enter(stage, x_BND, table)
        for block in stage.all_blocks():
            _run(block, x_BND, table)
        yield x_BND, table, False


def _embed(patch_embed: Embedding, images_BCHW: Tensor, raster_N: Tensor) -> Tensor:
    """The patches as rows of pixels, gathered and projected a few windows at a time."""
    batch, channels, height, width = images_BCHW.shape
    weight_DP = patch_embed.proj.weight.flatten(1)
    p = patch_embed.proj.kernel_size[0]
    patches_BhwP = (
        images_BCHW.reshape(batch, channels, height // p, p, width // p, p)
        .permute(0, 2, 4, 1, 3, 5)
        .reshape(batch, -1, channels * p * p)
    )
    x_BND = patches_BhwP.new_empty(batch, len(raster_N), len(weight_DP))
    for images, part in parts(batch, len(raster_N), CHUNK_TOKENS[1]):
        rows_BNP = patches_BhwP[images].index_select(1, raster_N[part])
        x_BND[images, part] = patch_embed.norm(linear(rows_BNP, weight_DP, patch_embed.proj.bias))
    return x_BND


def _enter(stage: Stage, x_BND: Tensor, table: StageTables) -> Tensor:
    slots_N4, exists_N4 = table.enter_regular_N4, table.exists_N4
    batch, width = len(x_BND), x_BND.shape[-1]
    merged_BND = x_BND.new_empty(batch, len(slots_N4), 2 * width)
    for images, part in parts(batch, len(slots_N4), _tokens_at_once(4 * width, x_BND)):
        exists = None if exists_N4 is None else exists_N4[part]
        merged_BND[images, part] = stage.enter(x_BND[images], slots_N4[part], exists)
    return merged_BND


def _run(block: Block, x_BND: Tensor, table: StageTables) -> None:
    """Run a block on the stream, in place."""
    plan, order = table.plan, block.order(table)
    bias_KHMM = block.bias(table, x_BND)
    at_once = max(1, _tokens_at_once(block.hidden, x_BND) // plan.tokens)
    for images, windows in parts(len(x_BND), plan.windows, at_once):
        stream_BND = x_BND[images]
        slots = slice(windows.start * plan.tokens, windows.stop * plan.tokens)
        runs = _within(order.runs, windows)
        filling_N = None if order.filling_N is None else order.filling_N[slots]
        if not (block.shifts and plan.moves):
            _add(block, stream_BND[:, slots], bias_KHMM, runs, filling_N)
            continue
        # Every slot is in only one window, so parts can be written back immediately.
        slots_N = plan.to_shifted_N[slots]
        part_BND = stream_BND.index_select(1, slots_N)
        _add(block, part_BND, bias_KHMM, runs, filling_N)
        stream_BND.index_copy_(1, slots_N, part_BND)


def _add(block: Block, x_BND: Tensor, bias_KHMM: Tensor, runs: Runs, filling_N: Tensor | None) -> None:
    x_BND += block.attention_branch(x_BND, bias_KHMM, runs, filling_N)
    x_BND += block.mlp_branch(x_BND)


def _within(runs: Runs, windows: slice) -> Runs:
    """The parts of the runs that lie within these windows."""
    cut = [(max(start, windows.start), min(end, windows.stop), mask) for start, end, mask in runs]
    return tuple(run for run in cut if run[0] < run[1])


def _tokens_at_once(features: int, x: Tensor) -> int:
    """Tokens whose widest features fill CHUNK_BYTES, within CHUNK_TOKENS."""
    fewest, most = CHUNK_TOKENS
    return min(most, max(fewest, CHUNK_BYTES // (features * x.element_size())))

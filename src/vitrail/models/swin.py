"""Swin Transformer, version 1 (Liu et al. 2021, arXiv:2103.14030) and 2 (Liu et al. 2022, arXiv:2111.09883).

    image ─ 4 × 4 patches ─► stage 1 ─ merge 2 × 2 ─► stage 2 ─ merge ─► stage 3 ─ merge ─► stage 4 ─► mean
                             stride 4                 8                  16                 32         ─► head

Attention stays within windows of M = m × m tokens, so its cost grows with the image, not with its square.
Every second block shifts the windows by m/2, which joins neighbours; the shift is cyclic, and a mask keeps
apart what only the wrapping brought together.

              v1                                       v2
    block     x + f(norm(x))                           x + norm(f(x))       ("res-post-norm")
    scores    q kᵀ / √d + bias                         τ cos(q, k) + bias,  τ = exp(min(logit_scale, ln 100))
    bias      learned table of relative positions      16 σ(MLP(log-spaced relative positions))
    merging   reduce(norm([x₀₀ x₁₀ x₀₁ x₁₁]))          norm(reduce([x₀₀ x₁₀ x₀₁ x₁₁]))

The residual stream lives in *window order* (see `windows.py`): moving to the shifted windows and back is one
gather each, nothing is rolled, partitioned and reversed.

Two ways through the same weights give the same numbers. Training, torch.compile and export take the whole map
at once. Inference takes whole blocks over a few windows at a time, in place: everything in a block is local
to a window, so neither q, k, v nor the MLP's hidden features nor the scores of the map ever exist.

Shapes: B batch, N slots of a map in window order (W windows × M tokens), D width, H heads, d head width,
K distinct masks, T relative offsets, h w tokens of a map.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitrail.errors import InputError
from vitrail.models.attention import attend, check_kernel
from vitrail.models.layers import DropPath, Mlp, check_images, drop_path_rates, inferring
from vitrail.models.linear import linear
from vitrail.models.windows import (
    Order,
    Runs,
    StageTables,
    fit_table,
    image_tables,
    parts,
    window_and_shift,
    window_of_index,
    within,
)
from vitrail.weights.dialects import Dialect, Unclear
from vitrail.weights.dialects.swin import DERIVED, DIALECTS

__all__ = ["VARIANTS", "Swin", "SwinConfig"]

MAX_LOGIT_SCALE = math.log(100.0)
CPB_HIDDEN = 512
"""Hidden features of v2's MLP of relative positions."""

CHUNK_BYTES = 16 * 1024 * 1024
"""Hidden features of the MLP that inference holds at a time, …"""
CHUNK_TOKENS = (2048, 8192)
"""… within these numbers of tokens: with fewer, matrix products lose speed; more do not fit the cache."""

FOLDED_BIAS = 1 << 20
"""Numbers up to which an exported block adds one tensor (bias and masks of all its windows) to the scores.
On large maps that constant would outgrow the weights: there windows with the same mask are taken together."""

SIZES_KEPT = 8
"""Image sizes whose tables a model remembers."""


@dataclass(frozen=True, kw_only=True)
class SwinConfig:
    """One Swin model; see `VARIANTS`."""

    version: int = 1
    image_size: tuple[int, int] = (224, 224)
    """(H, W) the tables are prepared for; `forward` takes other sizes too."""
    trained_size: tuple[int, int] | None = None
    """(H, W) the published weights were trained at, for the warning."""
    window: int | tuple[int, int] = 7
    pretrained_window: tuple[int, ...] = (0, 0, 0, 0)
    """v2: per stage, the window whose offsets span the log scale; 0: the window itself."""
    patch_size: int = 4
    """Side of a patch in pixels; each stage after the first merges 2 × 2 of what it gets."""
    width: int = 96
    """D of stage 1; it doubles with each stage."""
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (3, 6, 12, 24)
    mlp_ratio: float = 4.0
    drop_path: float = 0.1
    num_classes: int = 1000
    channels: int = 3
    attention: str = "auto"

    @property
    def windows(self) -> tuple[int, int]:
        """The window as (rows, columns)."""
        return self.window if isinstance(self.window, tuple) else (self.window, self.window)

    @property
    def stride(self) -> int:
        """Pixels between the tokens of the last stage."""
        return self.patch_size << (len(self.depths) - 1)


_T = SwinConfig()
_S = SwinConfig(depths=(2, 2, 18, 2))
_B = SwinConfig(depths=(2, 2, 18, 2), width=128, heads=(4, 8, 16, 32))
_L = SwinConfig(depths=(2, 2, 18, 2), width=192, heads=(6, 12, 24, 48))


def _at(base: SwinConfig, version: int, window: int, size: int, before: tuple[int, ...] = ()) -> SwinConfig:
    return replace(
        base,
        version=version,
        window=window,
        image_size=(size, size),
        trained_size=(size, size),
        pretrained_window=before or (0,) * len(base.depths),
    )


VARIANTS: dict[str, SwinConfig] = {
    "swin_tiny_patch4_window7_224": _at(_T, 1, 7, 224),
    "swin_small_patch4_window7_224": _at(_S, 1, 7, 224),
    "swin_base_patch4_window7_224": _at(_B, 1, 7, 224),
    "swin_large_patch4_window7_224": _at(_L, 1, 7, 224),
    "swin_base_patch4_window12_384": _at(_B, 1, 12, 384),
    "swin_large_patch4_window12_384": _at(_L, 1, 12, 384),
    "swinv2_tiny_window8_256": _at(_T, 2, 8, 256),
    "swinv2_small_window8_256": _at(_S, 2, 8, 256),
    "swinv2_base_window8_256": _at(_B, 2, 8, 256),
    "swinv2_tiny_window16_256": _at(_T, 2, 16, 256),
    "swinv2_small_window16_256": _at(_S, 2, 16, 256),
    "swinv2_base_window16_256": _at(_B, 2, 16, 256),
    "swinv2_base_window12_192": replace(_at(_B, 2, 12, 192), num_classes=21841),
    "swinv2_large_window12_192": replace(_at(_L, 2, 12, 192), num_classes=21841),
    "swinv2_base_window12to16_192to256": _at(_B, 2, 16, 256, (12, 12, 12, 6)),
    "swinv2_large_window12to16_192to256": _at(_L, 2, 16, 256, (12, 12, 12, 6)),
    "swinv2_base_window12to24_192to384": _at(_B, 2, 24, 384, (12, 12, 12, 6)),
    "swinv2_large_window12to24_192to384": _at(_L, 2, 24, 384, (12, 12, 12, 6)),
    # Ours, for small images and training from scratch; nobody publishes weights of them.
    "swin_nano_patch2_window7_28": SwinConfig(
        image_size=(28, 28), patch_size=2, width=32, depths=(2, 6), heads=(2, 4), num_classes=10
    ),
}


class WindowAttention(nn.Module):
    """Attention of each window's tokens among themselves, with a bias for their relative position."""

    def __init__(self, config: SwinConfig, width: int, heads: int, window: tuple[int, int]) -> None:
        super().__init__()
        self.version, self.heads, self.window, self.kernel = config.version, heads, window, config.attention
        self.qkv = nn.Linear(width, 3 * width, bias=config.version == 1)
        self.proj = nn.Linear(width, width)
        if config.version == 1:
            offsets = (2 * window[0] - 1) * (2 * window[1] - 1)
            self.relative_position_bias_table = nn.Parameter(torch.zeros(offsets, heads))
            return
        self.logit_scale = nn.Parameter(torch.full((heads, 1, 1), math.log(10.0)))
        self.cpb_mlp = nn.Sequential(
            nn.Linear(2, CPB_HIDDEN), nn.ReLU(), nn.Linear(CPB_HIDDEN, heads, bias=False)
        )
        # Keys have no bias: adding the same to every key's score changes no softmax (of v1, not of cosines,
        # but so it was trained).
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))

    def position_bias(self, tables: StageTables, order: Order, dtype: torch.dtype) -> Tensor:
        """(K, H, M, M): relative position bias plus each of the order's masks."""
        if self.version == 1:
            bias_TH: Tensor = self.relative_position_bias_table
            if tables.resample_TT is not None:
                bias_TH = (tables.resample_TT @ bias_TH.float()).to(bias_TH.dtype)
        else:
            assert tables.coordinates_T2 is not None
            bias_TH = 16 * torch.sigmoid(self.cpb_mlp(tables.coordinates_T2.to(self.logit_scale.dtype)))
        tokens = tables.plan.tokens
        bias_HMM = bias_TH.T.index_select(1, tables.offset_MM.view(-1)).view(-1, tokens, tokens)
        if not order.masked:
            return bias_HMM[None].to(dtype)
        return (bias_HMM + order.masks_KMM[:, None].to(bias_TH.dtype)).to(dtype)

    def project(self, x_BND: Tensor) -> Tensor:
        """Queries, keys and values side by side, (B, N, 3D)."""
        bias: Tensor = self.qkv.bias
        if self.version == 2:
            bias = torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))
        return linear(x_BND, self.qkv.weight, bias)

    def attend(self, qkv_BN3: Tensor, bias_KHMM: Tensor, runs: Runs) -> Tensor:
        """(B, N, 3D) -> (B, N, D) for the windows of runs that follow one another."""
        tokens, first, end = bias_KHMM.shape[-1], runs[0][0], runs[-1][1]
        width = qkv_BN3.shape[-1] // 3
        # Only the batch is left to -1: a number of windows left open keeps engines from folding the rest.
        parts = qkv_BN3.reshape(-1, end - first, tokens, 3, self.heads, width // self.heads)
        q_BWHMd, k_BWHMd, v_BWHMd = parts.permute(3, 0, 1, 4, 2, 5).unbind(0)
        scale = None
        if self.version == 2:
            sharpness_H11 = self.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp().to(q_BWHMd.dtype)
            q_BWHMd = q_BWHMd * (sharpness_H11 / _length(q_BWHMd))
            k_BWHMd = k_BWHMd / _length(k_BWHMd)
            scale = 1.0
        if torch.compiler.is_exporting() and len(runs) > 1 and bias_KHMM[0].numel() * end <= FOLDED_BIAS:
            mask_W = [mask for start, stop, mask in runs for _ in range(start, stop)]
            bias_WHMM = torch.stack([bias_KHMM[mask] for mask in mask_W])
            return self._mix(q_BWHMd, k_BWHMd, v_BWHMd, bias_WHMM, scale)
        outs_BND = []
        for start, stop, mask in runs:
            q, k, v = (t[:, start - first : stop - first] for t in (q_BWHMd, k_BWHMd, v_BWHMd))
            outs_BND.append(self._mix(q, k, v, bias_KHMM[mask : mask + 1], scale))
        return outs_BND[0] if len(runs) == 1 else torch.cat(outs_BND, dim=1)

    def _mix(
        self, q_BWHMd: Tensor, k_BWHMd: Tensor, v_BWHMd: Tensor, bias: Tensor, scale: float | None
    ) -> Tensor:
        """Attention of windows under one bias, (1, H, M, M), or one each, (W, H, M, M); as (B, W · M, D)."""
        _, windows, heads, tokens, depth = q_BWHMd.shape
        if torch.compiler.is_exporting():
            # Engines recognise the written-out form, and in five dimensions nothing but the batch is open.
            kernel = "naive" if self.kernel == "auto" else self.kernel
            out_BWHMd = attend(q_BWHMd, k_BWHMd, v_BWHMd, bias=bias, scale=scale, kernel=kernel)
            return out_BWHMd.transpose(2, 3).reshape(-1, windows * tokens, heads * depth)
        q, k, v = (t.flatten(0, 1) for t in (q_BWHMd, k_BWHMd, v_BWHMd))
        out_BHMd = attend(q, k, v, bias=bias, scale=scale, kernel=self.kernel)
        return out_BHMd.transpose(1, 2).reshape(-1, windows * tokens, heads * depth)

    def forward(self, x_BND: Tensor, bias_KHMM: Tensor, runs: Runs) -> Tensor:
        """(B, N, D) -> (B, N, D), N = the tokens of the runs' windows."""
        mixed_BND = self.attend(self.project(x_BND), bias_KHMM, runs)
        return linear(mixed_BND, self.proj.weight, self.proj.bias)


class Block(nn.Module):
    """Attention within windows, then an MLP, each added to the residual stream."""

    def __init__(
        self,
        config: SwinConfig,
        width: int,
        heads: int,
        window: tuple[int, int],
        *,
        shifts: bool,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.version, self.shifts = config.version, shifts
        self.norm1 = nn.LayerNorm(width)
        self.attn = WindowAttention(config, width, heads, window)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, int(width * config.mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def order(self, tables: StageTables) -> Order:
        """The window order this block works in."""
        return tables.plan.shifted if self.shifts else tables.plan.regular

    def forward(self, x_BND: Tensor, tables: StageTables) -> Tensor:
        """(B, N, D) -> (B, N, D), already in this block's order."""
        order = self.order(tables)
        bias_KHMM = self.attn.position_bias(tables, order, x_BND.dtype)
        if self.version == 1:
            x_BND = x_BND + self.drop_path(self.attn(self.norm1(x_BND), bias_KHMM, order.runs))
            return x_BND + self.drop_path(self.mlp(self.norm2(x_BND)))
        x_BND = x_BND + self.drop_path(self.norm1(self.attn(x_BND, bias_KHMM, order.runs)))
        return x_BND + self.drop_path(self.norm2(self.mlp(x_BND)))

    def in_place(self, x_BND: Tensor, tables: StageTables) -> None:
        """The same on a stream that is kept in regular order, a few windows at a time."""
        plan, order = tables.plan, self.order(tables)
        bias_KHMM = self.attn.position_bias(tables, order, x_BND.dtype)
        at_once = max(1, _rows(self.mlp.fc1.out_features, x_BND) // plan.tokens)
        for images, windows in parts(len(x_BND), plan.windows, at_once):
            stream_BND = x_BND[images]
            slots = slice(windows.start * plan.tokens, windows.stop * plan.tokens)
            runs = within(order.runs, windows)
            if not (self.shifts and plan.moves):
                self._add(stream_BND[:, slots], bias_KHMM, runs)
                continue
            # Every slot is in one window only, so chunks may be written back as they come.
            slots_N = plan.to_shifted_N[slots]
            part_BND = stream_BND.index_select(1, slots_N)
            self._add(part_BND, bias_KHMM, runs)
            stream_BND.index_copy_(1, slots_N, part_BND)

    def _add(self, x_BND: Tensor, bias_KHMM: Tensor, runs: Runs) -> None:
        if self.version == 1:
            x_BND += self.attn(_norm(self.norm1, x_BND), bias_KHMM, runs)
            x_BND += self._mlp(_norm(self.norm2, x_BND))
        else:
            x_BND += _norm(self.norm1, self.attn(x_BND, bias_KHMM, runs))
            x_BND += _norm(self.norm2, self._mlp(x_BND))

    def _mlp(self, x_BND: Tensor) -> Tensor:
        hidden = linear(x_BND, self.mlp.fc1.weight, self.mlp.fc1.bias, gelu=True)
        return linear(hidden, self.mlp.fc2.weight, self.mlp.fc2.bias)


def _norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """The norm, in bf16 on CPUs with its factors in fp32: that kernel is a third faster, not less exact."""
    if x.dtype is torch.bfloat16 and x.device.type == "cpu":
        return F.layer_norm(x, norm.normalized_shape, norm.weight.float(), norm.bias.float(), norm.eps)
    normed: Tensor = norm(x)
    return normed


class PatchMerging(nn.Module):
    """Four neighbours side by side, (…, 4D), reduced to (…, 2D)."""

    def __init__(self, version: int, width: int) -> None:
        super().__init__()
        self.version = version
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)
        self.norm = nn.LayerNorm(4 * width if version == 1 else 2 * width)

    def forward(self, four_BND: Tensor) -> Tensor:
        """(B, N', 4D) -> (B, N', 2D)."""
        if self.version == 1:
            return linear(self.norm(four_BND), self.reduction.weight, None)
        return self.norm(linear(four_BND, self.reduction.weight, None))


class PatchEmbedding(nn.Module):
    """Each patch of p × p pixels through one linear map, then a norm."""

    def __init__(self, channels: int, width: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(channels, width, patch_size, patch_size)
        self.norm = nn.LayerNorm(width)

    def whole(self, images_BCHW: Tensor, raster_N: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, N, D): the patches at these positions, counted row by row."""
        x_BND = self.proj(images_BCHW).flatten(2).transpose(1, 2)
        embedded_BND: Tensor = self.norm(x_BND.index_select(1, raster_N))
        return embedded_BND

    def by_parts(self, images_BCHW: Tensor, raster_N: Tensor) -> Tensor:
        """The same, the patches as rows of pixels gathered and projected a few windows at a time."""
        batch, channels, height, width = images_BCHW.shape
        p = self.patch_size
        patches_BhwP = (
            images_BCHW.reshape(batch, channels, height // p, p, width // p, p)
            .permute(0, 2, 4, 1, 3, 5)
            .reshape(batch, -1, channels * p * p)
        )
        weight_DP = self.proj.weight.flatten(1)
        x_BND = patches_BhwP.new_empty(batch, len(raster_N), len(weight_DP))
        for images, part in parts(batch, len(raster_N), CHUNK_TOKENS[1]):
            rows_BNP = patches_BhwP[images].index_select(1, raster_N[part])
            x_BND[images, part] = _norm(self.norm, linear(rows_BNP, weight_DP, self.proj.bias))
        return x_BND


class Head(nn.Module):
    """The classifier, under the name the weights have."""

    def __init__(self, features: int, num_classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(features, num_classes) if num_classes else nn.Identity()
        if isinstance(self.fc, nn.Linear):
            nn.init.trunc_normal_(self.fc.weight, std=0.02)
            nn.init.zeros_(self.fc.bias)

    def forward(self, features_BD: Tensor) -> Tensor:
        """(B, D) -> (B, K)."""
        scores_BK: Tensor = self.fc(features_BD)
        return scores_BK


class Stage(nn.Module):
    """The move to this stage's windows (with merging, except in the first), then its blocks."""

    def __init__(self, config: SwinConfig, index: int, drop_paths: list[float]) -> None:
        super().__init__()
        width = config.width << index
        stride = config.patch_size << index
        rows, columns = (
            window_and_shift(-(-size // stride), w)[0]
            for size, w in zip(config.image_size, config.windows, strict=True)
        )
        self.window = (rows, columns)
        self.downsample = PatchMerging(config.version, width // 2) if index else nn.Identity()
        self.blocks = nn.ModuleList(
            Block(
                config,
                width,
                config.heads[index],
                self.window,
                shifts=bool(b % 2),
                drop_path=drop_paths[b],
            )
            for b in range(config.depths[index])
        )

    def all_blocks(self) -> Iterator[Block]:
        """The blocks, in their order."""
        return cast("Iterator[Block]", iter(self.blocks))

    def enter(self, x_BND: Tensor, tables: StageTables, slots_N4: Tensor, part: slice) -> Tensor:
        """From the stage before to some slots of this one: gathered four by four and merged."""
        four_BND = x_BND.index_select(1, slots_N4[part].reshape(-1))
        four_BND = four_BND.view(-1, len(range(*part.indices(len(slots_N4)))), 4 * x_BND.shape[-1])
        if tables.exists_N4 is not None:
            exists_ND = tables.exists_N4[part].repeat_interleave(x_BND.shape[-1], dim=1)
            four_BND = four_BND * exists_ND.to(four_BND.dtype)
        merged: Tensor = self.downsample(four_BND)
        return merged

    def forward(self, x_BND: Tensor, tables: StageTables) -> tuple[Tensor, bool]:
        """The blocks over the whole map, from regular order; and whether it ends in shifted order."""
        shifted = False
        for block in self.all_blocks():
            if tables.plan.moves and block.shifts != shifted:
                move = tables.plan.to_shifted_N if block.shifts else tables.plan.to_regular_N
                x_BND, shifted = x_BND.index_select(1, move), block.shifts
            x_BND = block(x_BND, tables)
        return x_BND, shifted


class Swin(nn.Module):
    """Images (B, C, H, W) of any size -> class scores (B, K)."""

    DIALECTS: ClassVar[tuple[Dialect, ...]] = DIALECTS
    head_prefix: ClassVar[tuple[str, ...]] = ("head.fc",)

    def __init__(self, config: SwinConfig) -> None:
        super().__init__()
        _check(config)
        self.config = config
        rates = drop_path_rates(config.drop_path, sum(config.depths))
        starts = [sum(config.depths[:i]) for i in range(len(config.depths))]
        self.patch_embed = PatchEmbedding(config.channels, config.width, config.patch_size)
        self.layers = nn.ModuleList(Stage(config, i, rates[start:]) for i, start in enumerate(starts))
        self.features = config.width << (len(config.depths) - 1)
        self.norm = nn.LayerNorm(self.features)
        self.head = Head(self.features, config.num_classes)
        self._initialise()
        self._tables: dict[tuple[int, int, str], tuple[StageTables, ...]] = {}
        self.prepare(*config.image_size)

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            if isinstance(module, WindowAttention) and module.version == 1:
                nn.init.trunc_normal_(module.relative_position_bias_table, std=0.02)
            if isinstance(module, Block) and module.version == 2:
                # Every block starts as the identity (Liu et al. 2022, §A.1).
                for norm in (module.norm1, module.norm2):
                    nn.init.zeros_(norm.weight)

    def reset_head(self, num_classes: int) -> None:
        """A new classifier; 0 classes: none, the scores are the features."""
        self.config = replace(self.config, num_classes=num_classes)
        self.head = Head(self.features, num_classes).to(self.norm.weight)

    @property
    def stage_windows(self) -> tuple[tuple[int, int], ...]:
        """(rows, columns) of each stage's window at the config's image size."""
        return tuple(stage.window for stage in self._all_stages())

    @property
    def pads(self) -> bool:
        """Whether windows are padded at the config's image size: there the peers' results differ."""
        self.prepare(*self.config.image_size)
        return any(stage.plan.has_padding for stage in self._tables[(*self.config.image_size, "cpu")])

    def prepare(self, height: int, width: int, device: torch.device | str = "cpu") -> None:
        """Compute what the model derives from an image size. `forward` does so by itself, except while it is
        being compiled or exported at a size it was not built for: then call this before.

        Warns where accuracy is known to fall: the weights saw one resolution, v1's position table one window.

        Raises:
            InputError: smaller than the stride of the last stage.
        """
        key = (height, width, str(device))
        if key in self._tables:
            return
        _check_size(self.config, height, width)
        while len(self._tables) >= SIZES_KEPT:
            del self._tables[next(iter(self._tables))]
        config = self.config
        # Made under inference_mode too, they must serve a later training step.
        with torch.inference_mode(False):
            tables = image_tables(
                (-(-height // config.patch_size), -(-width // config.patch_size)),
                config.windows,
                self.stage_windows,
                config.pretrained_window if config.version == 2 else None,
            )
            self._tables[key] = tuple(stage.to(device) for stage in tables)

    def _tables_for(self, images_BCHW: Tensor) -> tuple[StageTables, ...]:
        height, width = int(images_BCHW.shape[-2]), int(images_BCHW.shape[-1])
        key = (height, width, str(images_BCHW.device))
        if key in self._tables:
            return self._tables[key]
        if not (torch.compiler.is_compiling() or torch.compiler.is_exporting()):
            self.prepare(height, width, images_BCHW.device)
            return self._tables[key]
        if (height, width, "cpu") in self._tables:
            return tuple(t.to(images_BCHW.device) for t in self._tables[height, width, "cpu"])
        raise InputError(
            f"Swin cannot be compiled or exported at {height} × {width} before its tables are there: "
            f"build it with image_size=({height}, {width}), or call model.prepare({height}, {width})."
        )

    def _all_stages(self) -> Iterator[Stage]:
        return cast("Iterator[Stage]", iter(self.layers))

    def _patches(self, images_BCHW: Tensor) -> Tensor:
        """Images padded at the bottom and right to whole patches (with zeros, the mean colour)."""
        height, width = int(images_BCHW.shape[-2]), int(images_BCHW.shape[-1])
        p = self.config.patch_size
        if height % p or width % p:
            return F.pad(images_BCHW, (0, -width % p, 0, -height % p))
        return images_BCHW

    def _stages(self, images_BCHW: Tensor) -> Iterator[tuple[Tensor, StageTables, bool]]:
        """After each stage: its stream, tables and whether that is in shifted order."""
        check_images(images_BCHW, self.config.channels)
        tables = self._tables_for(images_BCHW)
        if inferring():
            return self._stages_in_place(self._patches(images_BCHW), tables)
        return self._stages_whole(self._patches(images_BCHW), tables)

    def _stages_whole(
        self, images_BCHW: Tensor, tables: tuple[StageTables, ...]
    ) -> Iterator[tuple[Tensor, StageTables, bool]]:
        x_BND = self.patch_embed.whole(images_BCHW, tables[0].enter_regular_N4.view(-1))
        shifted = False
        for stage, table in zip(self._all_stages(), tables, strict=True):
            if table is not tables[0]:
                slots_N4 = table.enter_shifted_N4 if shifted else table.enter_regular_N4
                x_BND = stage.enter(x_BND, table, slots_N4, slice(None))
            x_BND, shifted = stage(x_BND, table)
            yield x_BND, table, shifted

    def _stages_in_place(
        self, images_BCHW: Tensor, tables: tuple[StageTables, ...]
    ) -> Iterator[tuple[Tensor, StageTables, bool]]:
        x_BND = self.patch_embed.by_parts(images_BCHW, tables[0].enter_regular_N4.view(-1))
        for stage, table in zip(self._all_stages(), tables, strict=True):
            if table is not tables[0]:
                slots_N4 = table.enter_regular_N4
                merged_BND = x_BND.new_empty(len(x_BND), len(slots_N4), 2 * x_BND.shape[-1])
                at_once = _rows(4 * x_BND.shape[-1], x_BND)
                for images, part in parts(len(x_BND), len(slots_N4), at_once):
                    merged_BND[images, part] = stage.enter(x_BND[images], table, slots_N4, part)
                x_BND = merged_BND
            for block in stage.all_blocks():
                block.in_place(x_BND, table)
            yield x_BND, table, False

    def forward_pyramid(self, images_BCHW: Tensor) -> list[Tensor]:
        """The maps after each stage, (B, D · 2ˢ, ⌈H/4⌉ / 2ˢ …) at strides 4, 8, 16, 32, without a norm.

        The last one is what `norm` is applied to for classification.
        """
        maps = []
        for x_BND, table, shifted in self._stages(images_BCHW):
            slot_hw = table.plan.slot_shifted_hw if shifted else table.plan.slot_regular_hw
            map_BND = x_BND.index_select(1, slot_hw)
            maps.append(map_BND.transpose(1, 2).reshape(-1, x_BND.shape[-1], *table.plan.size))
        return maps

    def forward_features(self, images_BCHW: Tensor) -> Tensor:
        """(B, D): the mean of the last map's tokens after the last norm; what the head sees."""
        *_, (x_BND, table, shifted) = self._stages(images_BCHW)
        if table.plan.has_padding:
            x_BND = x_BND.index_select(
                1, table.plan.slot_shifted_hw if shifted else table.plan.slot_regular_hw
            )
        pooled_BD: Tensor = self.norm(x_BND).mean(1)
        return pooled_BD

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Class scores, (B, K).

        Raises:
            InputError: not (B, C, H, W), another number of channels, an empty batch, an image smaller than
                the last stage's stride.
        """
        scores_BK: Tensor = self.head(self.forward_features(images_BCHW))
        return scores_BK

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Which parameters are of which layer, as timm's functions of layer-wise learning rates ask."""
        blocks = (
            r"^layers\.(\d+)"
            if coarse
            else [
                (r"^layers\.(\d+)\.downsample", (0,)),
                (r"^layers\.(\d+)\.\w+\.(\d+)", None),
                (r"^norm", (99999,)),
            ]
        )
        return {"stem": r"^patch_embed", "blocks": blocks}

    def no_weight_decay(self) -> set[str]:
        """Patterns of parameters that are no matrices, though they look like some."""
        return {"*relative_position_bias_table", "*cpb_mlp*", "*logit_scale"}

    def adapt_weights(
        self,
        state_dict: Mapping[str, Tensor],
        *,
        image_size: tuple[int, int] | None = None,
        window: tuple[int, int] | None = None,
    ) -> dict[str, Tensor]:
        """Tensors under our names, fitted to this model: v1's position tables resampled to its windows, v2's
        joint q, k, v bias taken apart. The file's window is the one given, else the one its
        `relative_position_index` is of, else a square one, or the model's own where the table is no square's.

        Raises:
            Unclear: a table that could be of the model's own oblong window as well as of a square one.
        """
        result = {name: value for name, value in state_dict.items() if not name.endswith(DERIVED)}
        for name, module in self.named_modules():
            if not isinstance(module, WindowAttention):
                continue
            joint = result.pop(f"{name}.qkv.bias", None) if module.version == 2 else None
            if joint is not None:
                result[f"{name}.q_bias"], _, result[f"{name}.v_bias"] = joint.chunk(3)
            key = f"{name}.relative_position_bias_table"
            table_TH = result.get(key)
            if module.version == 1 and table_TH is not None:
                index = state_dict.get(f"{name}.relative_position_index")
                own = window or (None if index is None or index.is_meta else window_of_index(index))
                try:
                    result[key] = fit_table(table_TH, module.window, own)
                except InputError as error:
                    raise Unclear(str(error), result) from None
        return result


def _length(x: Tensor) -> Tensor:
    """The Euclidean length of the last dimension's vectors, never 0."""
    length: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(1e-12)
    return length


def _rows(features: int, x: Tensor) -> int:
    """Tokens of a chunk whose widest features fill CHUNK_BYTES, within CHUNK_TOKENS."""
    fewest, most = CHUNK_TOKENS
    return min(most, max(fewest, CHUNK_BYTES // (features * x.element_size())))


def _check(config: SwinConfig) -> None:
    check_kernel(config.attention)
    if config.version not in (1, 2):
        raise InputError(f"Swin has the versions 1 and 2, not {config.version}.")
    if min(config.windows) < 1:
        raise InputError(f"A window has at least 1 × 1 tokens, not {config.window}.")
    stages = len(config.depths)
    if len(config.heads) != stages or (config.version == 2 and len(config.pretrained_window) != stages):
        raise InputError(
            f"Give one number of heads (and in v2 one pretrained window) per stage: depths has {stages}."
        )
    for index, heads in enumerate(config.heads):
        if (config.width << index) % heads:
            raise InputError(
                f"Stage {index + 1} cannot divide its width {config.width << index} among {heads} heads: "
                "its width must be divisible by their number."
            )
    _check_size(config, *config.image_size)


def _check_size(config: SwinConfig, height: int, width: int) -> None:
    if min(height, width) < config.stride:
        raise InputError(
            f"The images are {height} × {width} pixels, less than one token of the last stage: "
            f"give at least {config.stride} × {config.stride}."
        )
    trained = config.trained_size
    if trained is None:
        return
    growth = max(height / trained[0], width / trained[1])
    limit = 1.25 if config.version == 1 else 2.0
    if growth > limit or min(height / trained[0], width / trained[1]) < 0.5:
        warnings.warn(
            f"These weights were trained at {trained[0]} × {trained[1]}; at {height} × {width} expect lower "
            "accuracy unless they are fine-tuned there.",
            stacklevel=4,
        )

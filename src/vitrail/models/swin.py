"""Swin Transformer, version 1 (Liu et al. 2021, arXiv:2103.14030) and 2 (Liu et al. 2022, arXiv:2111.09883).

    image ─ 4 × 4 patches ─► stage 1 ─ merge 2 × 2 ─► stage 2 ─ merge ─► stage 3 ─ merge ─► stage 4 ─► mean
                             stride 4                 8                  16                 32         ─► head

Attention stays within windows of M = m × m tokens, so its cost grows with the image, not with its square.
Every second block shifts the windows by m/2, which connects neighbours; the shift is cyclic, and a mask
separates tokens that only the wrap-around brought together.

              v1                                       v2
    block     x + f(norm(x))                           x + norm(f(x))       ("res-post-norm")
    scores    q kᵀ / √d + bias                         τ cos(q, k) + bias,  τ = exp(min(logit_scale, ln 100))
    bias      learned table of relative positions      16 σ(MLP(log-spaced relative positions))
    merging   reduce(norm([x₀₀ x₁₀ x₀₁ x₁₁]))          norm(reduce([x₀₀ x₁₀ x₀₁ x₁₁]))

The residual stream lives in *window order* (see `windows.py`): moving to the shifted windows and back is one
gather each; nothing is rolled, partitioned and reversed.

Inference on CPUs runs these modules on a few windows at a time, in place (`swin_inplace.py`), since
everything in a block is local to a window. Everywhere else the whole map is processed at once.

Shapes: B batch, N slots of a map in window order (W windows × M tokens), D width, H heads, d head width,
K distinct masks, T relative offsets, h w tokens of a map.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitrail.errors import InputError
from vitrail.models.inplace import in_place
from vitrail.models.layers import DropPath, LayerNorm, Mlp, check_images, drop_path_rates
from vitrail.models.linear import Linear, linear
from vitrail.models.offsets import fit_table, window_of_index
from vitrail.models.swin_config import VARIANTS, SwinConfig, check, check_size
from vitrail.models.swin_inplace import stages_in_place
from vitrail.models.window_attention import attend_windows
from vitrail.models.windows import Order, Runs, StageTables, TablesBySize, window_and_shift
from vitrail.weights.dialects import Dialect, Unclear
from vitrail.weights.dialects.swin import DERIVED, DIALECTS

__all__ = ["VARIANTS", "Swin", "SwinConfig"]

MAX_LOGIT_SCALE = math.log(100.0)
CPB_HIDDEN = 512
"""Hidden features of v2's MLP of relative positions."""


class WindowAttention(nn.Module):
    """Attention among the tokens of each window, with a bias for their relative positions."""

    def __init__(self, config: SwinConfig, width: int, heads: int, window: tuple[int, int]) -> None:
        super().__init__()
        self.version, self.heads, self.window, self.kernel = config.version, heads, window, config.attention
        self.qkv = Linear(width, 3 * width, bias=config.version == 1)
        self.proj = Linear(width, width)
        if config.version == 1:
            offsets = (2 * window[0] - 1) * (2 * window[1] - 1)
            self.relative_position_bias_table = nn.Parameter(torch.zeros(offsets, heads))
            return
        self.logit_scale = nn.Parameter(torch.full((heads, 1, 1), math.log(10.0)))
        self.cpb_mlp = nn.Sequential(
            nn.Linear(2, CPB_HIDDEN), nn.ReLU(), nn.Linear(CPB_HIDDEN, heads, bias=False)
        )
        # Keys have no bias: the same term in every key's score does not change a softmax (in v1; with v2's
        # cosines it would, but v2 was trained like this).
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
        if self.version == 1:
            return cast("Tensor", self.qkv(x_BND))
        bias = torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))
        return linear(x_BND, self.qkv.weight, bias)

    def attend(self, qkv_BN3: Tensor, bias_KHMM: Tensor, runs: Runs) -> Tensor:
        """(B, N, 3D) -> (B, N, D) for the windows of consecutive runs.

        v1: softmax(q kᵀ / √d + bias) v (Liu et al. 2021, eq. 4). v2: τ cos(q, k) in place of q kᵀ / √d (Liu
        et al. 2022, eq. 2).
        """
        tokens, windows = bias_KHMM.shape[-1], runs[-1][1] - runs[0][0]
        width = qkv_BN3.shape[-1] // 3
        # Only the batch is -1: an open number of windows would keep engines from folding constants.
        parts = qkv_BN3.reshape(-1, windows, tokens, 3, self.heads, width // self.heads)
        q_BWHMd, k_BWHMd, v_BWHMd = parts.permute(3, 0, 1, 4, 2, 5).unbind(0)
        scale = None
        if self.version == 2:
            sharpness_H11 = self.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp().to(q_BWHMd.dtype)
            q_BWHMd = q_BWHMd * (sharpness_H11 / _length(q_BWHMd))
            k_BWHMd = k_BWHMd / _length(k_BWHMd)
            scale = 1.0
        return attend_windows(q_BWHMd, k_BWHMd, v_BWHMd, bias_KHMM, runs, scale=scale, kernel=self.kernel)

    def forward(self, x_BND: Tensor, bias_KHMM: Tensor, runs: Runs) -> Tensor:
        """(B, N, D) -> (B, N, D), N = the tokens of the runs' windows."""
        return cast("Tensor", self.proj(self.attend(self.project(x_BND), bias_KHMM, runs)))


class Block(nn.Module):
    """Attention within windows, then an MLP, each added to the residual stream."""

    def __init__(
        self, config: SwinConfig, stage: int, window: tuple[int, int], *, shifts: bool, drop_path: float
    ) -> None:
        super().__init__()
        width = config.width << stage
        self.version, self.shifts = config.version, shifts
        self.hidden = int(width * config.mlp_ratio)
        self.norm1 = LayerNorm(width)
        self.attn = WindowAttention(config, width, config.heads[stage], window)
        self.norm2 = LayerNorm(width)
        self.mlp = Mlp(width, self.hidden)
        self.drop_path = DropPath(drop_path)

    def order(self, tables: StageTables) -> Order:
        """The window order this block uses."""
        return tables.plan.shifted if self.shifts else tables.plan.regular

    def bias(self, tables: StageTables, x_BND: Tensor) -> Tensor:
        """(K, H, M, M): the term added to the scores, in the stream's dtype."""
        return self.attn.position_bias(tables, self.order(tables), x_BND.dtype)

    def attention_branch(
        self, x_BND: Tensor, bias_KHMM: Tensor, runs: Runs, filling_N: Tensor | None = None
    ) -> Tensor:
        """attention(norm1 x) in v1, norm1(attention x) in v2, for the windows of these runs.

        `filling_N` says which of their slots are attended to as zeros, whatever they hold.
        """
        x_BND = self.norm1(x_BND) if self.version == 1 else x_BND
        if filling_N is not None:
            x_BND = x_BND.masked_fill(filling_N[:, None], 0.0)
        x_BND = self.attn(x_BND, bias_KHMM, runs)
        return x_BND if self.version == 1 else cast("Tensor", self.norm1(x_BND))

    def mlp_branch(self, x_BND: Tensor) -> Tensor:
        """mlp(norm2 x) in v1, norm2(mlp x) in v2."""
        if self.version == 1:
            return cast("Tensor", self.mlp(self.norm2(x_BND)))
        return cast("Tensor", self.norm2(self.mlp(x_BND)))

    def forward(self, x_BND: Tensor, tables: StageTables) -> Tensor:
        """x + attention, then x + MLP (Liu et al. 2021, eq. 3); (B, N, D), already in this block's order."""
        bias_KHMM, order = self.bias(tables, x_BND), self.order(tables)
        branch_BND = self.attention_branch(x_BND, bias_KHMM, order.runs, order.filling_N)
        x_BND = x_BND + self.drop_path(branch_BND)
        return x_BND + self.drop_path(self.mlp_branch(x_BND))


class PatchMerging(nn.Module):
    """Four neighbours concatenated, (B, N, 2D), reduced to (B, N, D); D is the next stage's width."""

    def __init__(self, version: int, width: int) -> None:
        super().__init__()
        self.version = version
        self.reduction = Linear(2 * width, width, bias=False)
        self.norm = nn.LayerNorm(2 * width if version == 1 else width)

    def forward(self, four_BND: Tensor) -> Tensor:
        """reduction(norm x) in v1, norm(reduction x) in v2."""
        if self.version == 1:
            return cast("Tensor", self.reduction(self.norm(four_BND)))
        return cast("Tensor", self.norm(self.reduction(four_BND)))


class PatchEmbedding(nn.Module):
    """Each patch of p × p pixels through one linear map, then a norm."""

    def __init__(self, channels: int, width: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch_size, patch_size)
        self.norm = LayerNorm(width)

    def forward(self, images_BCHW: Tensor, raster_N: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, N, D): the patches at these raster positions."""
        x_BND = self.proj(images_BCHW).flatten(2).transpose(1, 2)
        embedded_BND: Tensor = self.norm(x_BND.index_select(1, raster_N))
        return embedded_BND


class Head(nn.Module):
    """The classifier, in a module of its own because the weights name it so."""

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
    """Moves the map to this stage's windows (merging patches, except in the first), then runs its blocks."""

    def __init__(self, config: SwinConfig, index: int, drop_paths: list[float]) -> None:
        super().__init__()
        stride = config.patch_size << index
        rows, columns = (
            window_and_shift(-(-size // stride), w, fixed=config.fixed_windows)[0]
            for size, w in zip(config.image_size, config.windows, strict=True)
        )
        self.window = (rows, columns)
        self.downsample = PatchMerging(config.version, config.width << index) if index else nn.Identity()
        self.blocks = nn.ModuleList(
            Block(config, index, self.window, shifts=bool(b % 2), drop_path=drop_paths[b])
            for b in range(config.depths[index])
        )

    def all_blocks(self) -> Iterator[Block]:
        """The blocks in order."""
        return cast("Iterator[Block]", iter(self.blocks))

    def enter(self, x_BND: Tensor, slots_N4: Tensor, exists_N4: Tensor | None) -> Tensor:
        """From the previous stage to slots of this one: gathered four by four and merged."""
        width = x_BND.shape[-1]
        four_BND = x_BND.index_select(1, slots_N4.reshape(-1)).view(-1, len(slots_N4), 4 * width)
        if exists_N4 is not None:
            exists_ND = exists_N4.repeat_interleave(width, dim=1)
            four_BND = four_BND * exists_ND.to(four_BND.dtype)
        merged_BND: Tensor = self.downsample(four_BND)
        return merged_BND

    def forward(self, x_BND: Tensor, tables: StageTables) -> tuple[Tensor, bool]:
        """Run the blocks on the whole map, from regular order; True if it ends in shifted order."""
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
        check(config)
        self.config = config
        rates = drop_path_rates(config.drop_path, sum(config.depths))
        starts = [sum(config.depths[:i]) for i in range(len(config.depths))]
        self.patch_embed = PatchEmbedding(config.channels, config.width, config.patch_size)
        self.layers = nn.ModuleList(Stage(config, i, rates[start:]) for i, start in enumerate(starts))
        self.features = config.width << (len(config.depths) - 1)
        self.norm = nn.LayerNorm(self.features)
        self.head = Head(self.features, config.num_classes)
        self._initialise()
        self._tables = TablesBySize(
            config.patch_size,
            config.windows,
            self.stage_windows,
            config.pretrained_window if config.version == 2 else None,
            config.fixed_windows,
        )
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
        """Replace the classifier; with 0 classes the model returns features."""
        self.config = replace(self.config, num_classes=num_classes)
        self.head = Head(self.features, num_classes).to(self.norm.weight)

    def _apply(self, fn: Any, recurse: bool = True) -> Swin:
        """As every module's. The tables of the model's own size follow the weights: compiled code cannot make
        them, and would copy them to the device at every call."""
        super()._apply(fn, recurse)
        self._tables.at(*self.config.image_size, self.norm.weight.device)
        return self

    @property
    def stage_windows(self) -> tuple[tuple[int, int], ...]:
        """(rows, columns) of each stage's window at the config's image size."""
        return tuple(stage.window for stage in self._all_stages())

    @property
    def pads(self) -> bool:
        """Whether windows are padded at the config's image size: others' results then differ."""
        return any(stage.plan.has_padding for stage in self._tables.at(*self.config.image_size))

    def prepare(self, height: int, width: int, device: torch.device | str = "cpu") -> None:
        """Compute what the model derives from an image size. `forward` does this itself, except while it is
        being compiled or exported at a size it was not built for: call this first then.

        Warns where accuracy is known to drop: the weights saw one resolution, v1's position table one window.

        Raises:
            InputError: smaller than the stride of the last stage.
        """
        if not self._tables.has(height, width, device):
            check_size(self.config, height, width)
            self._tables.at(height, width, device)

    def _tables_for(self, images_BCHW: Tensor) -> tuple[StageTables, ...]:
        height, width = int(images_BCHW.shape[-2]), int(images_BCHW.shape[-1])
        device = images_BCHW.device
        if not (torch.compiler.is_compiling() or torch.compiler.is_exporting()):
            self.prepare(height, width, device)
        if self._tables.has(height, width, device):
            return self._tables.at(height, width, device)
        if self._tables.has(height, width):
            return tuple(stage.to(device) for stage in self._tables.at(height, width))
        raise InputError(
            f"Swin cannot be compiled or exported at {height} × {width} before its tables exist: "
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
        """After each stage: its stream, its tables, and whether the stream is in shifted order."""
        check_images(images_BCHW, self.config.channels)
        tables = self._tables_for(images_BCHW)
        images_BCHW = self._patches(images_BCHW)
        if in_place(images_BCHW):
            return stages_in_place(self.patch_embed, self._all_stages(), images_BCHW, tables)
        return self._stages_whole(images_BCHW, tables)

    def _stages_whole(
        self, images_BCHW: Tensor, tables: tuple[StageTables, ...]
    ) -> Iterator[tuple[Tensor, StageTables, bool]]:
        x_BND = self.patch_embed(images_BCHW, tables[0].enter_regular_N4.view(-1))
        shifted = False
        for stage, table in zip(self._all_stages(), tables, strict=True):
            if table is not tables[0]:
                slots_N4 = table.enter_shifted_N4 if shifted else table.enter_regular_N4
                x_BND = stage.enter(x_BND, slots_N4, table.exists_N4)
            x_BND, shifted = stage(x_BND, table)
            yield x_BND, table, shifted

    def forward_pyramid(self, images_BCHW: Tensor) -> list[Tensor]:
        """The maps after each stage, (B, D · 2ˢ, ⌈H/4⌉ / 2ˢ …) at strides 4, 8, 16, 32, without a norm.

        For classification, `norm` is applied to the last one.
        """
        maps = []
        for x_BND, table, shifted in self._stages(images_BCHW):
            map_BND = x_BND.index_select(1, table.plan.slot_hw(shifted))
            maps.append(map_BND.transpose(1, 2).reshape(-1, x_BND.shape[-1], *table.plan.size))
        return maps

    def forward_features(self, images_BCHW: Tensor) -> Tensor:
        """(B, D): the mean of the last map's tokens after the last norm, which is the head's input."""
        *_, (x_BND, table, shifted) = self._stages(images_BCHW)
        if table.plan.has_padding:
            x_BND = x_BND.index_select(1, table.plan.slot_hw(shifted))
        pooled_BD: Tensor = self.norm(x_BND).mean(1)
        return pooled_BD

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Class scores, (B, K).

        Raises:
            InputError: not (B, C, H, W), the wrong number of channels, an empty batch, or an image smaller
                than the last stage's stride.
        """
        scores_BK: Tensor = self.head(self.forward_features(images_BCHW))
        return scores_BK

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Which parameters belong to which layer, as timm's layer-wise learning rates expect."""
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
        """Patterns of two-dimensional parameters that are not weight matrices."""
        return {"*relative_position_bias_table", "*cpb_mlp*", "*logit_scale"}

    def adapt_weights(
        self,
        state_dict: Mapping[str, Tensor],
        *,
        image_size: tuple[int, int] | None = None,
        window: tuple[int, int] | None = None,
    ) -> dict[str, Tensor]:
        """Tensors under our names, fitted to this model: v1's position tables resampled to its windows, v2's
        joint q, k, v bias split. The file's window is the one given, else that of its
        `relative_position_index`, else square, or the model's own if no square window has such a table.

        Raises:
            Unclear: a table that could belong to the model's own oblong window or to a square one.
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
    """The Euclidean norm over the last dimension, never 0."""
    length: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(1e-12)
    return length

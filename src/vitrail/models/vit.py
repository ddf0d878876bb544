"""The Vision Transformer: an image as a sequence of patches (Dosovitskiy et al. 2021).

    patches_BND = conv(images)                        one linear map of each P × P patch, eq. 1
    x_BND       = [class; registers; patches] + positions
    x_BND       = x + attention(norm1 x)              eq. 2, repeated `depth` times
    x_BND       = x + mlp(norm2 x)                    eq. 3
    features_BD = pool(norm x)                        the class token, a mean, or attention pooling; eq. 4
    scores_BK   = head(features)

Every later addition is a field of `ViTConfig`: CLIP's norm before the blocks, DeiT-3's and DINOv2's
LayerScale and registers, SwiGLU, SigLIP's attention pooling, QK-norm. Parameter names are timm's.

Shapes: B batch, C channels, H W pixels, h w patches (the grid), N tokens (prefix + h·w), D width, K classes,
in attention also H heads, d = D / H, F hidden features of the MLP.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import isqrt
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitrail.errors import InputError
from vitrail.models.attention import attend
from vitrail.models.choices import check_kernel
from vitrail.models.inplace import add, by_rows
from vitrail.models.layers import DropPath, LayerScale, Mlp, check_images, drop_path_rates
from vitrail.models.linear import Linear
from vitrail.models.vit_config import VARIANTS, ViTConfig, check_whole_patches
from vitrail.weights.dialects import Dialect, Unclear
from vitrail.weights.dialects.vit import DIALECTS, settle

__all__ = ["VARIANTS", "Attention", "Block", "ViT", "ViTConfig", "resample_positions"]


class Attention(nn.Module):
    """Self-attention of H heads: (B, N, D) -> (B, N, D); queries, keys and values from one matrix."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        qkv_bias: bool = True,
        qk_norm: bool = False,
        norm_eps: float = 1e-6,
        attention: str = "auto",
    ) -> None:
        super().__init__()
        self.heads, self.attention = heads, check_kernel(attention)
        self.scale: float | None = None
        """What scores are multiplied by; None: 1/√d of the queries that `queries_keys_values` gives."""
        self.qkv = Linear(width, 3 * width, bias=qkv_bias)
        self.q_norm = nn.LayerNorm(width // heads, eps=norm_eps) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(width // heads, eps=norm_eps) if qk_norm else nn.Identity()
        self.proj = Linear(width, width)

    def forward(self, x_BND: Tensor, *, causal: bool = False) -> Tensor:
        return self.attend_to(*self.queries_keys_values(x_BND), causal=causal)

    def attend_to(
        self,
        q_BHNd: Tensor,
        k_BHNd: Tensor,
        v_BHNd: Tensor,
        *,
        bias: Tensor | None = None,
        causal: bool = False,
    ) -> Tensor:
        """The output projection of what the heads gather, (B, N, D); `bias` is added to the scores."""
        out_BHNd = attend(
            q_BHNd, k_BHNd, v_BHNd, bias=bias, causal=causal, scale=self.scale, kernel=self.attention
        )
        return self.proj(out_BHNd.transpose(1, 2).flatten(2))

    def weights(self, x_BND: Tensor) -> Tensor:
        """softmax(q kᵀ / √d), (B, H, N, N): how much each token (row) attends to each token."""
        q_BHNd, k_BHNd, _ = self.queries_keys_values(x_BND)
        scale = q_BHNd.shape[-1] ** -0.5 if self.scale is None else self.scale
        return (q_BHNd @ k_BHNd.transpose(-2, -1) * scale).softmax(-1)

    def queries_keys_values(self, x_BND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, N, D) -> three times (B, H, N, d)."""
        qkv_BN3Hd = self.qkv(x_BND).unflatten(-1, (3, self.heads, -1))
        # Views only: the kernels read strided heads, and a copy would cost as much memory as the projection.
        q_BHNd, k_BHNd, v_BHNd = qkv_BN3Hd.permute(2, 0, 3, 1, 4).unbind(0)
        return self.q_norm(q_BHNd), self.k_norm(k_BHNd), v_BHNd


class Block(nn.Module):
    """One pre-norm transformer block, (B, N, D) -> (B, N, D); `causal` hides later tokens (text).

    `attn` replaces the plain self-attention; what it would be made of is then ignored.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        mlp_width: int | None = None,
        gated: bool = False,
        activation: str = "gelu",
        layer_scale: float | None = None,
        qkv_bias: bool = True,
        qk_norm: bool = False,
        norm_eps: float = 1e-6,
        drop_path: float = 0.0,
        attention: str = "auto",
        attn: Attention | None = None,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=norm_eps)
        self.attn = attn or Attention(
            width, heads, qkv_bias=qkv_bias, qk_norm=qk_norm, norm_eps=norm_eps, attention=attention
        )
        self.ls1 = nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)
        self.norm2 = nn.LayerNorm(width, eps=norm_eps)
        self.mlp = Mlp(width, mlp_width or 4 * width, activation=activation, gated=gated)
        self.ls2 = nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)
        self.drop_path = DropPath(drop_path)

    def forward(self, x_BND: Tensor, *, causal: bool = False) -> Tensor:
        """x + attention(norm1 x), eq. 2, then x + mlp(norm2 x), eq. 3."""
        x_BND = x_BND + self.drop_path(self.ls1(self.attn(self.norm1(x_BND), causal=causal)))
        return self.second_half(x_BND)

    def second_half(self, x_BND: Tensor) -> Tensor:
        """x + mlp(norm2 x), eq. 3, for a caller that owns `x` and no longer needs it."""
        # The MLP of norm2 x, added to x; inference on CPUs does it with less memory.
        hidden = self.mlp.hidden
        return add(x_BND, self.drop_path(self.ls2(by_rows(self.mlp, self.norm2(x_BND), features=hidden))))


class AttentionPool(nn.Module):
    """(B, N, D) -> (B, D): one learned query attends to all tokens, then an MLP (Zhai et al. 2022, "MAP")."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        width = config.width
        self.heads, self.attention = config.heads, config.attention
        self.latent = nn.Parameter(torch.zeros(1, 1, width))
        self.q = Linear(width, width)
        self.kv = Linear(width, 2 * width)
        self.proj = Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.mlp = Mlp(width, config.mlp_width or 4 * width, activation=config.activation)

    def forward(self, x_BND: Tensor, *, bias: Tensor | None = None) -> Tensor:
        """`bias` is added to the scores, (B, H, 1, N) or what broadcasts to it."""
        query_1HNd = self.q(self.latent).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        kv_BN2Hd = self.kv(x_BND).unflatten(-1, (2, self.heads, -1))
        k_BHNd, v_BHNd = kv_BN2Hd.permute(2, 0, 3, 1, 4).unbind(0)
        query_BHNd = query_1HNd.expand(x_BND.shape[0], -1, -1, -1)
        pooled_BHNd = attend(query_BHNd, k_BHNd, v_BHNd, bias=bias, kernel=self.attention)
        pooled_BND = self.proj(pooled_BHNd.transpose(1, 2).flatten(2))
        return (pooled_BND + self.mlp(self.norm(pooled_BND)))[:, 0]


class PatchEmbed(nn.Module):
    """(B, C, H, W) -> (B, h·w, D): each patch through the same linear map, row by row."""

    def __init__(self, channels: int, width: int, patch_size: int, *, bias: bool) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch_size, stride=patch_size, bias=bias)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return self.proj(images_BCHW).flatten(2).transpose(1, 2)


class ViT(nn.Module):
    """A Vision Transformer of any size; with `num_classes=0` a backbone whose forward returns features.

    New weights are drawn as in timm: truncated normal of deviation 0.02 for matrices and positions, 1e-6
    for the class token and the registers, zero biases; PyTorch's own for the patch projection.
    """

    DIALECTS: ClassVar[tuple[Dialect, ...]] = DIALECTS
    head_prefix: ClassVar[tuple[str, ...]] = ("head",)

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = c = config
        rows = c.grid[0] * c.grid[1] + (c.prefix_tokens if c.position_covers_prefix else 0)
        self.patch_embed = PatchEmbed(c.channels, c.width, c.patch_size, bias=not c.pre_norm)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, c.width)) if c.class_token else None
        self.reg_token = (
            nn.Parameter(torch.zeros(1, c.register_tokens, c.width)) if c.register_tokens else None
        )
        self.pos_embed = nn.Parameter(torch.zeros(1, rows, c.width))
        self.norm_pre = nn.LayerNorm(c.width, eps=c.norm_eps) if c.pre_norm else nn.Identity()
        self.blocks = nn.ModuleList(_block(c, rate) for rate in drop_path_rates(c.drop_path, c.depth))
        self.norm = nn.Identity() if c.norm_after_pool else nn.LayerNorm(c.width, eps=c.norm_eps)
        self.attn_pool = AttentionPool(c) if c.pool == "map" else None
        self.fc_norm = nn.LayerNorm(c.width, eps=c.norm_eps) if c.norm_after_pool else nn.Identity()
        self.head: nn.Module = _head(c)
        _initialise(self)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K) scores; (B, D) features if the model has no head.

        Raises:
            InputError: not a batch of images, wrong channels, or a size that is not a whole number of
                patches.
        """
        return self.head(self.forward_features(images_BCHW))

    def forward_features(self, images_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D) pooled features, the head's input."""
        return self.fc_norm(self._pool(self.forward_tokens(images_BCHW)))

    def forward_tokens(self, images_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, N, D): class token, registers, then the patches row by row, after `norm`."""
        x_BND = self.embed(images_BCHW)
        for block in self.blocks:
            x_BND = block(x_BND)
        return self.norm(x_BND)

    def forward_intermediates(
        self, images_BCHW: Tensor, indices: Sequence[int] | None = None, *, norm: bool = False
    ) -> list[Tensor]:
        """(B, D, h, w) of the patches after each of the blocks `indices` (negative: from the end; None: all).

        With `norm` the last norm is applied to each. Blocks after the last requested one are not run.

        Raises:
            InputError: as `forward`, or a block that does not exist.
        """
        depth = len(self.blocks)
        wanted = [self._block_index(i) for i in (range(depth) if indices is None else indices)]
        h, w = (side // self.config.patch_size for side in images_BCHW.shape[-2:])
        x_BND = self.embed(images_BCHW)
        found: dict[int, Tensor] = {}
        for i, block in enumerate(self.blocks[: max(wanted, default=-1) + 1]):
            x_BND = block(x_BND)
            if i in wanted:
                patches_BND = (self.norm(x_BND) if norm else x_BND)[:, self.config.prefix_tokens :]
                found[i] = patches_BND.transpose(1, 2).unflatten(2, (h, w)).contiguous()
        return [found[i] for i in sorted(found)]

    def attention_maps(self, images_BCHW: Tensor) -> list[Tensor]:
        """softmax(q kᵀ / √d) of every block, (B, H, N, N) each: for small images only."""
        x_BND, maps = self.embed(images_BCHW), []
        for block in self.blocks:
            assert isinstance(block, Block)
            maps.append(block.attn.weights(block.norm1(x_BND)))
            x_BND = block(x_BND)
        return maps

    def reset_head(self, num_classes: int) -> None:
        """Replace the classifier with a new one for `num_classes`; 0 removes it."""
        self.config = replace(self.config, num_classes=num_classes)
        like = self.pos_embed
        self.head = _head(self.config).to(like.device, like.dtype)
        _initialise_linear(self.head)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Which parameters belong to which layer, as timm's layer-wise learning rates expect."""
        return {
            "stem": r"^cls_token|reg_token|pos_embed|patch_embed|norm_pre",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))],
        }

    def no_weight_decay(self) -> set[str]:
        """Multi-dimensional parameters that are not weight matrices."""
        return {"pos_embed", "cls_token", "reg_token", "attn_pool.latent"}

    def adapt_weights(
        self,
        state_dict: dict[str, Tensor],
        *,
        image_size: tuple[int, int] | None = None,
        window: tuple[int, int] | None = None,
    ) -> dict[str, Tensor]:
        """Translated tensors, converted to this model where that takes arithmetic; the dict is not changed.

        Position tables of another grid are resampled to this model's. The number of rows does not determine
        the grid: it is that of `image_size`, if given; else square, or the model's own if the number of rows
        is not a square.

        Raises:
            Unclear: a number of rows that fits no grid, or fits both the model's own oblong grid and a
                square one.
        """
        c = self.config
        state = settle(
            state_dict,
            registers=c.register_tokens,
            covers_prefix=c.position_covers_prefix,
            head_bias=c.head_bias,
        )
        if "pos_embed" in state:
            state["pos_embed"] = self._fitted_positions(state, image_size)
        return state

    def embed(self, images_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, N, D): the first block's input."""
        check_images(images_BCHW, self.config.channels)
        height, width = images_BCHW.shape[-2:]
        check_whole_patches(height, width, self.config.patch_size)
        patch = self.config.patch_size
        positions_1ND = self._positions((height // patch, width // patch))
        patches_BND = self.patch_embed(images_BCHW)
        prefix = [
            token.expand(images_BCHW.shape[0], -1, -1)
            for token in (self.cls_token, self.reg_token)
            if token is not None
        ]
        if self.config.position_covers_prefix:
            x_BND = torch.cat([*prefix, patches_BND], 1) + positions_1ND
        else:
            x_BND = torch.cat([*prefix, patches_BND + positions_1ND], 1)
        return self.norm_pre(x_BND)

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        if grid == self.config.grid:
            return self.pos_embed
        return resample_positions(self.pos_embed, self.config.grid, grid, prefix=self._prefix_rows)

    def _pool(self, x_BND: Tensor) -> Tensor:
        if self.config.pool == "token":
            return x_BND[:, 0]
        patches_BND = x_BND[:, self.config.prefix_tokens :]
        return patches_BND.mean(1) if self.attn_pool is None else self.attn_pool(patches_BND)

    @property
    def _prefix_rows(self) -> int:
        return self.config.prefix_tokens if self.config.position_covers_prefix else 0

    def _block_index(self, index: int) -> int:
        depth = len(self.blocks)
        if not -depth <= index < depth:
            raise InputError(f"There is no block {index}: the model has blocks 0 to {depth - 1}.")
        return index % depth

    def _fitted_positions(self, state: dict[str, Tensor], image_size: tuple[int, int] | None) -> Tensor:
        table_1ND, own = state["pos_embed"], self.config.grid
        grid = self._grid_of(table_1ND.shape[1], image_size, state)
        if grid == own:
            return table_1ND
        return resample_positions(table_1ND, grid, own, prefix=self._prefix_rows)

    def _grid_of(
        self, rows: int, image_size: tuple[int, int] | None, state: dict[str, Tensor]
    ) -> tuple[int, int]:
        """(h, w), the grid of a table with this many rows."""
        patch, (h, w) = self.config.patch_size, self.config.grid
        count = rows - self._prefix_rows
        side = isqrt(max(count, 0))
        square = side > 0 and side * side == count
        if image_size is not None:
            given = image_size[0] // patch, image_size[1] // patch
            if given[0] * given[1] == count:
                return given
            raise Unclear(
                f"The position table has {count} rows of patches and images of {image_size[0]} × "
                f"{image_size[1]} pixels have {given[0] * given[1]}: give the image_size that the weights "
                "were trained with.",
                state,
            )
        if square and count == h * w and h != w:
            raise Unclear(
                f"The position table has {count} rows, of this model's {h} × {w} patches or of {side} "
                f"× {side}: say which by load_weights(…, image_size={side * patch}) or "
                f"image_size=({h * patch}, {w * patch}), the pixels that the weights were trained with.",
                state,
            )
        if square or count == h * w:
            return (side, side) if square else (h, w)
        raise Unclear(
            f"The position table has {rows} rows; {self._prefix_rows} belong to the tokens before the "
            "patches, and the rest is no square grid: say load_weights(…, image_size=(HEIGHT, WIDTH)), the "
            "pixels that the weights were trained with.",
            state,
        )


def resample_positions(
    table_1ND: Tensor, old: tuple[int, int], new: tuple[int, int], *, prefix: int
) -> Tensor:
    """A position table of the grid `old` (h, w), resampled to the grid `new`; its first `prefix` rows stay.

    Bicubic with antialiasing, in float32, as timm does; the table's dtype is kept.
    """
    grid_1Dhw = table_1ND[:, prefix:].float().transpose(1, 2).unflatten(2, old)
    grid_1Dhw = F.interpolate(grid_1Dhw, size=new, mode="bicubic", antialias=True)
    rows_1ND = grid_1Dhw.flatten(2).transpose(1, 2).to(table_1ND.dtype)
    return torch.cat([table_1ND[:, :prefix], rows_1ND], 1)


def _block(config: ViTConfig, drop_path: float) -> Block:
    return Block(
        config.width,
        config.heads,
        mlp_width=config.mlp_width,
        gated=config.mlp == "swiglu",
        activation=config.activation,
        layer_scale=config.layer_scale,
        qkv_bias=config.qkv_bias,
        qk_norm=config.qk_norm,
        norm_eps=config.norm_eps,
        drop_path=drop_path,
        attention=config.attention,
    )


def _head(config: ViTConfig) -> nn.Module:
    if config.num_classes == 0:
        return nn.Identity()
    return Linear(config.width, config.num_classes, bias=config.head_bias)


def _initialise(model: ViT) -> None:
    if model.config.sincos_start:
        with torch.no_grad():
            model.pos_embed[0, model._prefix_rows :] = _sincos_positions(
                model.config.grid, model.config.width
            )
    else:
        nn.init.trunc_normal_(model.pos_embed, std=0.02)
    for token in (model.cls_token, model.reg_token):
        if token is not None:
            nn.init.normal_(token, std=1e-6)
    if model.attn_pool is not None:
        nn.init.trunc_normal_(model.attn_pool.latent, std=model.config.width**-0.5)
    for module in model.modules():
        _initialise_linear(module)


def _sincos_positions(grid: tuple[int, int], width: int, temperature: float = 100.0) -> Tensor:
    """(h · w, D): sines and cosines of the column, then of the row, at D / 4 frequencies from 1 down.

    Wavelengths grow to 2π times the temperature; maps of a few patches a side need none of 10,000.
    """
    rate_F = temperature ** -(torch.arange(width // 4) / (width // 4))
    row_N, column_N = (place.flatten() for place in torch.meshgrid(*map(torch.arange, grid), indexing="ij"))
    angles = (place_N[:, None] * rate_F for place_N in (column_N, row_N))
    return torch.cat([part for angle_NF in angles for part in (angle_NF.sin(), angle_NF.cos())], dim=1)


def _initialise_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)

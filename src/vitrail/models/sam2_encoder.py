"""SAM 2's image encoder: Hiera, a ViT in four resolutions, and a pyramid that brings them to one width.

    x_BhwD    = conv 7 × 7, stride 4 (images) + positions
    x_BhwD    = shortcut(x) + attention(norm1 x)        in windows, a few blocks over the whole map
    x_BhwD    = x + mlp(norm2 x)
    map_s     = x after stage s, strides 4, 8, 16, 32
    level_3   = conv 1 × 1(map_3)                       and so for each map;
    level_2   = conv 1 × 1(map_2) + level_3, enlarged   the embedding, stride 16

The first block of a later stage takes the largest query of each 2 × 2, so that its output is a quarter of its
input; its shortcut is the largest of 2 × 2 of a linear map of norm1 x. Positions are a small table,
enlarged, plus one that repeats in every window (Bolya et al. 2023, "Window attention is bugged",
arXiv:2311.05613, §4). Sources: Ryali et al. 2023, "Hiera", arXiv:2306.00989, §3; Ravi et al. 2024, "SAM 2",
arXiv:2408.00714, §D.1.

Shapes: B images, C channels, H W pixels, h w tokens of a map, D features of a stage, E width of the pyramid;
in attention G windows of all images, r c rows and columns of one, M = r · c, A heads, d width of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitrail.errors import InputError
from vitrail.models.attention import attend
from vitrail.models.inplace import add, by_rows
from vitrail.models.layers import Mlp, check_images
from vitrail.models.linear import Linear
from vitrail.models.sam2_config import PATCH, HieraConfig, SAM2Config
from vitrail.models.sam_encoder import from_windows, to_windows

__all__ = ["Hiera", "ImageEncoder", "Pyramid"]


class PooledAttention(nn.Module):
    """Self-attention within windows (G, r, c, D) -> (G, r, c, D'); with `pool` (G, r/2, c/2, D'), one query
    for each 2 × 2 tokens."""

    def __init__(self, before: int, after: int, heads: int, *, pool: bool, attention: str) -> None:
        super().__init__()
        self.heads, self.pool, self.attention = heads, pool, attention
        self.qkv = Linear(before, 3 * after)
        self.proj = Linear(after, after)

    def forward(self, x_GrcD: Tensor) -> Tensor:
        q_GrcD, k_GrcD, v_GrcD = self.qkv(x_GrcD).chunk(3, -1)
        if self.pool:
            q_GrcD = _largest(q_GrcD)
        q_GAMd, k_GAMd, v_GAMd = (
            x.flatten(1, 2).unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (q_GrcD, k_GrcD, v_GrcD)
        )
        out_GAMd = attend(q_GAMd, k_GAMd, v_GAMd, kernel=self.attention)
        out_GMD: Tensor = self.proj(out_GAMd.transpose(1, 2).flatten(2))
        return out_GMD.unflatten(1, q_GrcD.shape[1:3])


class HieraBlock(nn.Module):
    """(B, h, w, D) -> (B, h, w, D'), or half as many rows and columns with `pool`.

    Args:
        before, after: D and D'.
        heads: A.
        window: side of a window in tokens, before pooling; None: the whole map is one.
        pool: whether it begins a stage of half the resolution.
        norm_eps: of both norms.
        attention: one of `choices.KERNELS`.
    """

    def __init__(
        self,
        before: int,
        after: int,
        heads: int,
        *,
        window: int | None,
        pool: bool,
        norm_eps: float,
        attention: str,
    ) -> None:
        super().__init__()
        self.window, self.pool = window, pool
        self.norm1 = nn.LayerNorm(before, eps=norm_eps)
        self.attn = PooledAttention(before, after, heads, pool=pool, attention=attention)
        self.norm2 = nn.LayerNorm(after, eps=norm_eps)
        self.mlp = Mlp(after, 4 * after)
        self.proj = Linear(before, after) if before != after else None

    def forward(self, x_BhwD: Tensor) -> Tensor:
        normed_BhwD = self.norm1(x_BhwD)
        shortcut_BhwD = x_BhwD if self.proj is None else self.proj(normed_BhwD)
        if self.pool:
            shortcut_BhwD = _largest(shortcut_BhwD)
        if self.window is None:
            read_BhwD = self.attn(normed_BhwD)
        else:
            windows_GrcD = self.attn(to_windows(normed_BhwD, (self.window, self.window)))
            read_BhwD = from_windows(windows_GrcD, (shortcut_BhwD.shape[1], shortcut_BhwD.shape[2]))
        x_BhwD = shortcut_BhwD + read_BhwD
        return add(x_BhwD, by_rows(self.mlp, self.norm2(x_BhwD), features=self.mlp.hidden))


def _largest(x_BhwD: Tensor) -> Tensor:
    """(B, h, w, D) -> (B, h/2, w/2, D): the largest of each 2 × 2."""
    return F.max_pool2d(x_BhwD.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)


class PatchEmbed(nn.Module):
    """(B, C, H, W) -> (B, h, w, D): overlapping patches of 7 × 7, one every four pixels."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, 7, stride=PATCH, padding=3)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        patches_BDhw: Tensor = self.proj(images_BCHW)
        return patches_BDhw.permute(0, 2, 3, 1)


class Hiera(nn.Module):
    """Images -> the maps (B, D, h, w) of its four stages, finest first."""

    def __init__(self, config: SAM2Config, trunk: HieraConfig) -> None:
        super().__init__()
        self.depths = trunk.depths
        self.patch_embed = PatchEmbed(config.channels, trunk.width)
        self.pos_embed = nn.Parameter(torch.zeros(1, trunk.width, *trunk.background))
        self.pos_embed_window = nn.Parameter(torch.zeros(1, trunk.width, *(trunk.windows[0],) * 2))
        self.blocks = nn.ModuleList(_blocks(config, trunk))
        for table in (self.pos_embed, self.pos_embed_window):
            nn.init.trunc_normal_(table, std=0.02)

    def forward(self, images_BCHW: Tensor) -> list[Tensor]:
        x_BhwD = self.patch_embed(images_BCHW)
        x_BhwD = x_BhwD + self.positions(x_BhwD.shape[1], x_BhwD.shape[2])
        maps = []
        remaining = iter(self.blocks)
        for depth in self.depths:
            for _ in range(depth):
                x_BhwD = next(remaining)(x_BhwD)
            maps.append(x_BhwD.permute(0, 3, 1, 2))
        return maps

    def positions(self, height: int, width: int) -> Tensor:
        """(h, w, D) of a map of this size, which whole windows divide.

        The table is enlarged by two products with matrices: as an operator it takes OpenVINO minutes, when it
        reads the graph.
        """
        table_Drc = self.pos_embed[0]
        down_hr = _bicubic(table_Drc.shape[1], height, table_Drc)
        across_wc = _bicubic(table_Drc.shape[2], width, table_Drc)
        whole_Dhw = (down_hr @ table_Drc.to(down_hr.dtype) @ across_wc.T).to(table_Drc.dtype)
        side = self.pos_embed_window.shape[-1]
        repeated_Dhw = self.pos_embed_window[0].tile(1, height // side, width // side)
        return (whole_Dhw + repeated_Dhw).permute(1, 2, 0)


def _bicubic(before: int, after: int, like: Tensor) -> Tensor:
    """(after, before), at least in fp32: how much each of `before` rows gives to each of `after`."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    rows_rr = torch.eye(before, dtype=dtype, device=like.device)
    return F.interpolate(rows_rr[None, :, :, None], (after, 1), mode="bicubic")[0, :, :, 0].T


def _blocks(config: SAM2Config, trunk: HieraConfig) -> list[HieraBlock]:
    blocks: list[HieraBlock] = []
    before, window = trunk.width, trunk.windows[0]
    for stage, (depth, after) in enumerate(zip(trunk.depths, trunk.widths, strict=True)):
        for i in range(depth):
            block = HieraBlock(
                before,
                after,
                trunk.heads << stage,
                window=None if len(blocks) in trunk.global_blocks else window,
                pool=stage > 0 and i == 0,
                norm_eps=config.norm_eps,
                attention=config.attention,
            )
            blocks.append(block)
            before, window = after, trunk.windows[stage]
    return blocks


class Lateral(nn.Module):
    """A map's 1 × 1 convolution, under the name that it has in Meta's files."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, 1)

    def forward(self, x_BDhw: Tensor) -> Tensor:
        level_BEhw: Tensor = self.conv(x_BDhw)
        return level_BEhw


class Pyramid(nn.Module):
    """Maps of four stages -> levels (B, E, h, w) at strides 4, 8 and 16; `convs` begins with the coarsest.

    The coarsest map adds to the level at stride 16 alone; the finer two are for the edges of masks.
    """

    def __init__(self, config: SAM2Config) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            Lateral(width, config.embed_width) for width in reversed(config.trunk.widths)
        )

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        coarsest, embedding, half, quarter = (
            conv(x_BDhw) for conv, x_BDhw in zip(self.convs, reversed(maps), strict=True)
        )
        return quarter, half, embedding + F.interpolate(coarsest, scale_factor=2.0, mode="nearest")


class ImageEncoder(nn.Module):
    """Images (B, C, H, W) of the config's size -> the pyramid's levels, once per image.

    Args:
        config: the model's.
        trunk: images -> four maps (B, D, h, w), finest first, of the config's widths; None: a new one.
    """

    def __init__(self, config: SAM2Config, *, trunk: nn.Module | None = None) -> None:
        super().__init__()
        self.config = config
        self.trunk = _trunk(config) if trunk is None else trunk
        self.neck = Pyramid(config)

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, E, 4h, 4w), (B, E, 2h, 2w) and (B, E, h, w).

        Raises:
            InputError: not a batch of images, wrong channels, or not of the config's size.
        """
        check_images(images_BCHW, self.config.channels)
        height, width = self.config.image_size
        if tuple(images_BCHW.shape[-2:]) != (height, width):
            raise InputError(
                f"This SAM 2 takes images of {height} × {width} pixels, not {images_BCHW.shape[-2]} × "
                f"{images_BCHW.shape[-1]}: resize the photo to it, both sides."
            )
        levels: tuple[Tensor, Tensor, Tensor] = self.neck(self.trunk(images_BCHW))
        return levels


def _trunk(config: SAM2Config) -> nn.Module:
    if isinstance(config.trunk, HieraConfig):
        return Hiera(config, config.trunk)
    # timm takes seconds to import, and only EdgeTAM needs it.
    from vitrail.models.sam2_repvit import RepViT

    return RepViT(config.trunk, config.channels)

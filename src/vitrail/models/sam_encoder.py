"""SAM's image encoder: a ViT whose blocks attend within windows, a few of them to the whole map.

    x_BND     = patches + positions                     as in a ViT, without a class token
    x_BND     = x + attention(norm1 x)                  in windows of m × m tokens, or of the whole map
    x_BND     = x + mlp(norm2 x)
    map_BEhw  = norm(conv 3 × 3(norm(conv 1 × 1(x))))   the neck

The layout is ViTDet's (Li et al. 2022, "Exploring plain ViT backbones", arXiv:2203.16527, §3), the relative
positions MViTv2's (Li et al. 2022, arXiv:2112.01526, eq. 4). Windows never move: information crosses them
in the global blocks alone.

Shapes: B images, C channels, H W pixels, h w tokens of the map, N = h · w, D width, E width of the result;
in attention B also counts windows, r c rows and columns of one, M = r · c, P = r + c, A heads, d = D / A.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitrail.errors import InputError
from vitrail.models.layers import LayerNorm2d, check_images, drop_path_rates
from vitrail.models.sam_config import SAMConfig
from vitrail.models.vit import Attention, Block, PatchEmbed

__all__ = ["ImageEncoder", "RelativeAttention", "from_windows", "to_windows"]


class RelativeAttention(Attention):
    """Self-attention in windows, or over the whole map, with decomposed relative positions.

        score(i, j) = qᵢ kⱼ / √d + qᵢ · R_h[rowᵢ − rowⱼ] + qᵢ · R_w[columnᵢ − columnⱼ]

    The last two terms depend on j by its row and its column only. So for a whole map they are written as
    further features: queries get their r + c terms, keys the one-hot codes of row and column, and one product
    of the two gives the whole score. No M × M bias exists, and kernels that hold no scores can be used.
    Windows are short, and an ordinary bias is quicker there: whole attentions of ViT-B at 1024 pixels on two
    cores take 0.69 of the time in fp32 (1.13 in bf16); for the whole map 0.95 (1.32).

    Args:
        grid: (h, w), tokens of the map.
        window: side of a window in tokens; None: the whole map is one.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        grid: tuple[int, int],
        window: int | None,
        attention: str = "auto",
    ) -> None:
        super().__init__(width, heads, attention=attention)
        self.grid = grid
        self.tile = rows, columns = grid if window is None else (window, window)
        self.scale = (width // heads) ** -0.5
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * rows - 1, width // heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * columns - 1, width // heads))

    def forward(self, x_BND: Tensor, *, causal: bool = False) -> Tensor:
        """(B, N, D), row by row -> the same; `causal` holds within windows."""
        if self.tile == self.grid:
            return super().forward(x_BND, causal=causal)
        windows_BrcD = to_windows(x_BND.unflatten(1, self.grid), self.tile)
        q_BAMd, k_BAMd, v_BAMd = super().queries_keys_values(windows_BrcD.flatten(1, 2))
        of_rows_BAMr, of_columns_BAMc = self._terms(q_BAMd).split(self.tile, -1)
        bias_BAMM = (of_rows_BAMr[..., :, None] + of_columns_BAMc[..., None, :]).flatten(-2)
        out_BMD = self.attend_to(q_BAMd, k_BAMd, v_BAMd, bias=bias_BAMM, causal=causal)
        return from_windows(out_BMD.unflatten(1, self.tile), self.grid).flatten(1, 2)

    def queries_keys_values(self, x_BMD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, M, D) -> queries and keys (B, A, M, d + P) that give the whole scores, values (B, A, M, d)."""
        q_BAMd, k_BAMd, v_BAMd = super().queries_keys_values(x_BMD)
        assert self.scale is not None
        q_BAMP = torch.cat((q_BAMd, self._terms(q_BAMd) / self.scale), -1)
        places_BAMP = _places(self.tile, k_BAMd).expand(*k_BAMd.shape[:2], -1, -1)
        return q_BAMP, torch.cat((k_BAMd, places_BAMP), -1), v_BAMd

    def _terms(self, q_BAMd: Tensor) -> Tensor:
        """(B, A, M, P): what each query adds to the scores of each row and of each column."""
        q_BArcd = q_BAMd.unflatten(2, self.tile)
        of_rows_BArcr = q_BArcd @ _by_offset(self.rel_pos_h)
        of_columns_BAcrc = q_BArcd.transpose(2, 3) @ _by_offset(self.rel_pos_w)
        return torch.cat((of_rows_BArcr, of_columns_BAcrc.transpose(2, 3)), -1).flatten(2, 3)


def to_windows(x_BhwD: Tensor, tile: tuple[int, int]) -> Tensor:
    """(B, h, w, D) -> (B · windows, r, c, D). Incomplete windows are filled with zeros, which are attended
    to: the published weights were trained so."""
    (h, w), (rows, columns) = x_BhwD.shape[1:3], tile
    x_BhwD = F.pad(x_BhwD, (0, 0, 0, -w % columns, 0, -h % rows))
    down, across = -(-h // rows), -(-w // columns)
    x_BarbcD = x_BhwD.reshape(-1, down, rows, across, columns, x_BhwD.shape[-1])
    return x_BarbcD.transpose(2, 3).reshape(-1, rows, columns, x_BhwD.shape[-1])


def from_windows(x_BrcD: Tensor, grid: tuple[int, int]) -> Tensor:
    """The inverse of `to_windows`, without the filling: (B · windows, r, c, D) -> (B, h, w, D)."""
    (h, w), (rows, columns) = grid, x_BrcD.shape[1:3]
    down, across = -(-h // rows), -(-w // columns)
    x_BabrcD = x_BrcD.reshape(-1, down, across, rows, columns, x_BrcD.shape[-1])
    x_BhwD = x_BabrcD.transpose(2, 3).reshape(-1, down * rows, across * columns, x_BrcD.shape[-1])
    return x_BhwD[:, :h, :w]


def _places(tile: tuple[int, int], like: Tensor) -> Tensor:
    """(M, P), P = r + c: one-hot codes of each token's row and column."""
    rows, columns = tile
    row_rr, column_cc = (torch.eye(side, dtype=like.dtype, device=like.device) for side in tile)
    codes = row_rr[:, None].expand(-1, columns, -1), column_cc[None].expand(rows, -1, -1)
    return torch.cat(codes, -1).flatten(0, 1)


def _by_offset(table_Td: Tensor) -> Tensor:
    """(2n − 1, d), by offsets from 1 − n to n − 1 -> (n queries, d, n keys)."""
    n = (len(table_Td) + 1) // 2
    place_n = torch.arange(n, device=table_Td.device)
    offsets_nn = place_n[:, None] - place_n[None] + n - 1
    return table_Td[offsets_nn].transpose(1, 2)


class ImageEncoder(nn.Module):
    """Images (B, C, H, W) of the config's size -> embeddings (B, E, h, w), once per image."""

    def __init__(self, config: SAMConfig) -> None:
        super().__init__()
        self.config = c = config
        self.patch_embed = PatchEmbed(c.channels, c.width, c.patch_size, bias=True)
        self.pos_embed = nn.Parameter(torch.zeros(1, c.grid[0] * c.grid[1], c.width))
        self.blocks = nn.ModuleList(
            _block(c, i, rate) for i, rate in enumerate(drop_path_rates(c.drop_path, c.depth))
        )
        self.neck = nn.Sequential(
            nn.Conv2d(c.width, c.embed_width, 1, bias=False),
            LayerNorm2d(c.embed_width, eps=c.norm_eps),
            nn.Conv2d(c.embed_width, c.embed_width, 3, padding=1, bias=False),
            LayerNorm2d(c.embed_width, eps=c.norm_eps),
        )
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, E, h, w).

        Raises:
            InputError: not a batch of images, wrong channels, or not of the config's size.
        """
        check_images(images_BCHW, self.config.channels)
        height, width = self.config.image_size
        if tuple(images_BCHW.shape[-2:]) != (height, width):
            raise InputError(
                f"This SAM takes images of {height} × {width} pixels, not {images_BCHW.shape[-2]} × "
                f"{images_BCHW.shape[-1]}: resize the photo to fit and pad it (vitrail.images.letterbox)."
            )
        x_BND = self.patch_embed(images_BCHW) + self.pos_embed
        for block in self.blocks:
            x_BND = block(x_BND)
        embeddings_BEhw: Tensor = self.neck(x_BND.transpose(1, 2).unflatten(2, self.config.grid))
        return embeddings_BEhw


def _block(c: SAMConfig, index: int, drop_path: float) -> Block:
    window = None if index in c.global_blocks else c.window
    attn = RelativeAttention(c.width, c.heads, grid=c.grid, window=window, attention=c.attention)
    return Block(c.width, c.heads, mlp_width=c.mlp_width, norm_eps=c.norm_eps, drop_path=drop_path, attn=attn)

"""SAM's mask decoder: a few tokens and the image embedding attend to each other, then give masks.

    tokens = [IoU; single; M masks; prompts]                     learned, but for the prompts
    image  = embedding + dense prompt

    two-way block, twice        tokens among themselves; tokens to image; MLP of tokens; image to tokens
    a last attention            tokens to image
    masks                       each mask token through an MLP of its own, times the upscaled image
    IoU                         an MLP of the IoU token: how good each mask is

Positions (the tokens as they came, Fourier features of the map) are added to queries and keys in every
attention, never to values. Source: Kirillov et al. 2023, arXiv:2304.02643, §A, figure 14.

Shapes: B images, P prompts of each, G = B · P, T = 2 + M + N' tokens, E width, h w the image embedding,
S = h · w, Y X = 4h 4w, F = E / 8, A heads, d width of a head.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitrail.models.attention import attend
from vitrail.models.layers import LayerNorm2d
from vitrail.models.linear import Linear
from vitrail.models.sam_config import PromptableConfig

__all__ = ["MaskDecoder", "MaskTokens", "ReluMlp", "TwoWayTransformer"]

LAST_NORM_EPS = 1e-5


class CrossAttention(nn.Module):
    """Queries (G, T, E) read keys and values (G, S, E) -> (G, T, E), on E / `downsampling` features."""

    def __init__(self, config: PromptableConfig, *, downsampling: int) -> None:
        super().__init__()
        self.heads, self.attention = config.decoder_heads, config.attention
        inner = config.embed_width // downsampling
        self.q_proj = Linear(config.embed_width, inner)
        self.k_proj = Linear(config.embed_width, inner)
        self.v_proj = Linear(config.embed_width, inner)
        self.out_proj = Linear(inner, config.embed_width)

    def forward(self, q_GTE: Tensor, k_GSE: Tensor, v_GSE: Tensor) -> Tensor:
        q_GATd, k_GASd, v_GASd = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project, x in ((self.q_proj, q_GTE), (self.k_proj, k_GSE), (self.v_proj, v_GSE))
        )
        out_GATd = attend(q_GATd, k_GASd, v_GASd, kernel=self.attention)
        out_GTE: Tensor = self.out_proj(out_GATd.transpose(1, 2).flatten(2))
        return out_GTE


class ReluMlp(nn.Module):
    """(…, D) -> (…, D'): linear layers of these widths with ReLU between them."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Linear(before, after) for before, after in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            x = layer(F.relu(x) if i else x)
        return x


class TwoWayBlock(nn.Module):
    """Tokens and image (G, S, E), both updated; norms come after each sum. `first` replaces the tokens by
    their self-attention, without positions: they are their own."""

    def __init__(self, config: PromptableConfig, *, first: bool) -> None:
        super().__init__()
        width, eps = config.embed_width, config.two_way_norm_eps
        downsampling = config.attention_downsampling
        self.first = first
        self.self_attn = CrossAttention(config, downsampling=1)
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.cross_attn_token_to_image = CrossAttention(config, downsampling=downsampling)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = ReluMlp(width, config.decoder_mlp_width, width)
        self.norm3 = nn.LayerNorm(width, eps=eps)
        self.norm4 = nn.LayerNorm(width, eps=eps)
        self.cross_attn_image_to_token = CrossAttention(config, downsampling=downsampling)

    def forward(
        self, tokens_GTE: Tensor, image_GSE: Tensor, places_GTE: Tensor, positions_SE: Tensor
    ) -> tuple[Tensor, Tensor]:
        if self.first:
            tokens_GTE = self.self_attn(tokens_GTE, tokens_GTE, tokens_GTE)
        else:
            q_GTE = tokens_GTE + places_GTE
            tokens_GTE = tokens_GTE + self.self_attn(q_GTE, q_GTE, tokens_GTE)
        tokens_GTE = self.norm1(tokens_GTE)
        k_GSE = image_GSE + positions_SE
        read_GTE = self.cross_attn_token_to_image(tokens_GTE + places_GTE, k_GSE, image_GSE)
        tokens_GTE = self.norm2(tokens_GTE + read_GTE)
        tokens_GTE = self.norm3(tokens_GTE + self.mlp(tokens_GTE))
        read_GSE = self.cross_attn_image_to_token(k_GSE, tokens_GTE + places_GTE, tokens_GTE)
        return tokens_GTE, self.norm4(image_GSE + read_GSE)


class TwoWayTransformer(nn.Module):
    """Tokens (G, T, E) and an image (G, S, E) -> the same, after attending to each other."""

    def __init__(self, config: PromptableConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TwoWayBlock(config, first=i == 0) for i in range(config.decoder_depth))
        self.final_attn_token_to_image = CrossAttention(config, downsampling=config.attention_downsampling)
        self.norm_final_attn = nn.LayerNorm(config.embed_width, eps=LAST_NORM_EPS)

    def forward(self, tokens_GTE: Tensor, image_GSE: Tensor, positions_SE: Tensor) -> tuple[Tensor, Tensor]:
        places_GTE = tokens_GTE
        for layer in self.layers:
            tokens_GTE, image_GSE = layer(tokens_GTE, image_GSE, places_GTE, positions_SE)
        read_GTE = self.final_attn_token_to_image(
            tokens_GTE + places_GTE, image_GSE + positions_SE, image_GSE
        )
        return self.norm_final_attn(tokens_GTE + read_GTE), image_GSE


class MaskTokens(nn.Module):
    """What the decoders of SAM and SAM 2 share: learned tokens that read the image and draw masks.

    Args:
        config: the model's.
        transformer: as `TwoWayTransformer`; None: a new one.
    """

    def __init__(self, config: PromptableConfig, *, transformer: nn.Module | None = None) -> None:
        super().__init__()
        width, count = config.embed_width, config.masks + 1
        self.transformer = TwoWayTransformer(config) if transformer is None else transformer
        self.iou_token = nn.Embedding(1, width)
        self.mask_tokens = nn.Embedding(count, width)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(width, width // 4, 2, stride=2),
            LayerNorm2d(width // 4, eps=config.norm_eps),
            nn.GELU(),
            nn.ConvTranspose2d(width // 4, width // 8, 2, stride=2),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(
            ReluMlp(width, width, width, width // 8) for _ in range(count)
        )
        hidden = [config.iou_width] * (config.iou_depth - 1)
        self.iou_prediction_head = ReluMlp(width, *hidden, count)

    def attended(
        self,
        learned_KE: Tensor,
        image_BEhw: Tensor,
        positions_Ehw: Tensor,
        sparse_BPNE: Tensor,
        dense_BPEhw: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The learned tokens, then the prompts', (G, K + N', E), and the image (G, E, h, w), after the
        transformer."""
        batch, prompts = sparse_BPNE.shape[:2]
        learned_BPKE = learned_KE.expand(batch, prompts, -1, -1)
        tokens_GTE = torch.cat((learned_BPKE, sparse_BPNE), 2).flatten(0, 1)
        image_BPEhw = (image_BEhw[:, None] + dense_BPEhw).expand(-1, prompts, -1, -1, -1)
        image_GSE = image_BPEhw.flatten(3).flatten(0, 1).transpose(1, 2)
        positions_SE = positions_Ehw.flatten(1).T
        tokens_GTE, image_GSE = self.transformer(tokens_GTE, image_GSE, positions_SE)
        return tokens_GTE, image_GSE.transpose(1, 2).unflatten(2, image_BEhw.shape[-2:])

    def drawn(self, tokens_GTE: Tensor, upscaled_GFYX: Tensor) -> Tensor:
        """Masks (G, 1 + M, Y, X): each of the first 1 + M tokens through its MLP, times the image."""
        weights_GMF = torch.stack(
            [mlp(tokens_GTE[:, i]) for i, mlp in enumerate(self.output_hypernetworks_mlps)], 1
        )
        return (weights_GMF @ upscaled_GFYX.flatten(2)).unflatten(2, upscaled_GFYX.shape[-2:])


class MaskDecoder(MaskTokens):
    """Image embeddings and encoded prompts -> masks and how good each is thought to be."""

    def forward(
        self, image_BEhw: Tensor, positions_Ehw: Tensor, sparse_BPNE: Tensor, dense_BPEhw: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Masks (B, P, 1 + M, Y, X) and their IoUs (B, P, 1 + M); the first is the one of a clear prompt."""
        batch, prompts = sparse_BPNE.shape[:2]
        learned_KE = torch.cat((self.iou_token.weight, self.mask_tokens.weight))
        tokens_GTE, image_GEhw = self.attended(
            learned_KE, image_BEhw, positions_Ehw, sparse_BPNE, dense_BPEhw
        )
        masks_GMYX = self.drawn(tokens_GTE[:, 1:], self.output_upscaling(image_GEhw))
        ious_GM = self.iou_prediction_head(tokens_GTE[:, 0])
        return masks_GMYX.unflatten(0, (batch, prompts)), ious_GM.unflatten(0, (batch, prompts))

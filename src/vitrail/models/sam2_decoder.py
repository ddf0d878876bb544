"""SAM 2's mask decoder: SAM's, with the pyramid's finer levels and a token that says if there is an object.

    tokens = [object; IoU; single; M masks; prompts]
    image  = gelu(norm(up(image) + half))        twice as large, plus the level at stride 8
    image  = gelu(up(image) + quarter)           and the level at stride 4
    IoU    = sigmoid of an MLP of its token
    object = an MLP of its token: above 0, the prompt means something

Source: Ravi et al. 2024, arXiv:2408.00714, §D.1, figure 9.

Shapes: B images, P prompts of each, G = B · P, M masks, N' tokens of a prompt, E width, h w the image
embedding, Y X = 4h 4w.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitrail.models.sam2_config import SAM2Config
from vitrail.models.sam_decoder import MaskTokens, ReluMlp

__all__ = ["Features", "FineMaskDecoder", "clear"]


class Features(NamedTuple):
    """What is kept of an image for all of its prompts."""

    embeddings_BEhw: Tensor
    half: Tensor
    """(B, E / 4, 2h, 2w)."""
    quarter: Tensor
    """(B, E / 8, 4h, 4w)."""


class FineMaskDecoder(MaskTokens):
    """An image's features and encoded prompts -> masks, how good each is thought to be, and if there is one.

    Args:
        config: the model's.
        transformer: as `TwoWayTransformer`; None: a new one.
    """

    def __init__(self, config: SAM2Config, *, transformer: nn.Module | None = None) -> None:
        super().__init__(config, transformer=transformer)
        width = config.embed_width
        self.obj_score_token = nn.Embedding(1, width)
        self.pred_obj_score_head = ReluMlp(width, width, width, 1)
        self.conv_s0 = nn.Conv2d(width, width // 8, 1)
        self.conv_s1 = nn.Conv2d(width, width // 4, 1)

    def forward(
        self, features: Features, positions_Ehw: Tensor, sparse_BPNE: Tensor, dense_BPEhw: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Masks (B, P, 1 + M, Y, X), their IoUs (B, P, 1 + M) and scores of an object (B, P, 1)."""
        batch, prompts = sparse_BPNE.shape[:2]
        learned_KE = torch.cat((self.obj_score_token.weight, self.iou_token.weight, self.mask_tokens.weight))
        tokens_GTE, image_GEhw = self.attended(
            learned_KE, features.embeddings_BEhw, positions_Ehw, sparse_BPNE, dense_BPEhw
        )
        masks_GMYX = self.drawn(tokens_GTE[:, 2:], self._upscaled(image_GEhw, features, prompts))
        ious_GM = self.iou_prediction_head(tokens_GTE[:, 1]).sigmoid()
        objects_G1 = self.pred_obj_score_head(tokens_GTE[:, 0])
        masks_BPMYX, ious_BPM, objects_BP1 = (
            x.unflatten(0, (batch, prompts)) for x in (masks_GMYX, ious_GM, objects_G1)
        )
        return masks_BPMYX, ious_BPM, objects_BP1

    def _upscaled(self, image_GEhw: Tensor, features: Features, prompts: int) -> Tensor:
        """(G, E, h, w) -> (G, E / 8, Y, X)."""
        enlarge, norm, _, enlarge_again, _ = self.output_upscaling
        half, quarter = (
            x[:, None].expand(-1, prompts, -1, -1, -1).flatten(0, 1)
            for x in (features.half, features.quarter)
        )
        x = F.gelu(norm(enlarge(image_GEhw) + half))
        return F.gelu(enlarge_again(x) + quarter)


def clear(masks_BPMYX: Tensor, ious_BPM: Tensor, config: SAM2Config) -> tuple[Tensor, Tensor]:
    """The answer to a clear prompt, (B, P, 1, Y, X) and (B, P, 1), out of all 1 + M masks and IoUs.

    It is the first mask, where that is stable: where its outline would hardly move if scores rose or fell a
    little. Otherwise it is the one of the others that is thought best.
    """
    delta = config.stability_delta
    single_BP1YX, others_BPMYX = masks_BPMYX[:, :, :1], masks_BPMYX[:, :, 1:]
    inside_BP1, touched_BP1 = ((single_BP1YX > edge).sum((-2, -1)) for edge in (delta, -delta))
    # Where no pixel is inside either way there is nothing that could move.
    stable_BP1 = (touched_BP1 == 0) | (inside_BP1 / touched_BP1.clamp(min=1) >= config.least_stability)
    best_BP1 = ious_BPM[:, :, 1:].argmax(-1, keepdim=True)
    best_BP1YX = others_BPMYX.gather(2, best_BP1[..., None, None].expand_as(single_BP1YX))
    masks_BP1YX = torch.where(stable_BP1[..., None, None], single_BP1YX, best_BP1YX)
    ious_BP1 = torch.where(stable_BP1, ious_BPM[:, :, :1], ious_BPM[:, :, 1:].gather(2, best_BP1))
    return masks_BP1YX, ious_BP1

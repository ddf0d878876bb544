"""CLIPScore: how well a picture and a text agree, without a reference (Hessel et al. 2021).

    CLIPScore = 2.5 · max(cos(image, text), 0)                                          (section 3)

Shapes: B pairs, C channels, H W pixels, L tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vitrail.models.clip import CLIP
from vitrail.weights.finite import check_outputs

__all__ = ["Score", "clip_score"]

WEIGHT = 2.5
"""w in the paper: it stretches the cosines of ViT-B/32, which rarely exceed 0.4, to about 0 to 1."""


class Score(NamedTuple):
    """How well each of B pairs agrees."""

    clip_score_B: Tensor
    """0 to 2.5, rarely above 1."""
    cosine_B: Tensor
    """−1 to 1."""


def clip_score(model: CLIP, images_BCHW: Tensor, tokens_BL: Tensor) -> Score:
    """CLIPScore and raw cosine of each image with the text in the same row.

    Scores from different models cannot be compared; the paper's are from OpenAI's ViT-B/32, with
    "A photo depicts " before each text.

    Raises:
        InputError: as `CLIP.forward`, or embeddings that are not finite.
    """
    assert len(images_BCHW) == len(tokens_BL)
    with torch.inference_mode():
        image_BE, text_BE = model.encode_image(images_BCHW), model.encode_text(tokens_BL)
        cosine_B = (image_BE.float() * text_BE.float()).sum(-1)
    check_outputs(cosine_B, "this model", "embeddings")
    return Score(WEIGHT * cosine_B.clamp(min=0), cosine_B)

"""Token merging as a pass: `models/merging.py` on a plain ViT, or on a zero-shot classifier's image tower."""

from __future__ import annotations

from torch import nn

from vitrail.models.clip import ZeroShotClassifier
from vitrail.models.merging import merge_tokens
from vitrail.models.vit import ViT


def apply(model: nn.Module, number: int) -> nn.Module | None:
    """The model with `number` tokens merged after each block; None: it is no ViT of ours."""
    if isinstance(model, ViT):
        return merge_tokens(model, number)
    if isinstance(model, ZeroShotClassifier) and isinstance(model.image, ViT):
        setattr(model, "image", merge_tokens(model.image, number))  # noqa: B010 - declared as what it was
        return model
    return None

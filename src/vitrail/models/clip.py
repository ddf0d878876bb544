"""CLIP: images and texts in one space (Radford et al. 2021, figure 3); SigLIP, its variant with a bias.

    image_BE  = normalise(image tower(images))         our ViT, with the projection as its head
    text_TE   = normalise(text tower(tokens))
    scores_BT = scale · image_BE text_TEᵀ [+ bias]

CLIP applies a softmax over the texts to a row of scores, SigLIP a sigmoid to each score (Zhai et al. 2023,
section 3.2), which needs the bias. SigLIP's image tower pools by attention.

Shapes: B images, T texts, C channels, H W pixels, L tokens, E width of the shared embedding.
"""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitrail.errors import InputError
from vitrail.models.clip_config import VARIANTS, CLIPConfig
from vitrail.models.text import TextTransformer
from vitrail.models.vit import ViT
from vitrail.weights.dialects import Dialect, Unclear
from vitrail.weights.dialects.clip import DIALECTS, OPENAI_FACTS

__all__ = ["CLIP", "VARIANTS", "CLIPConfig", "Embeddings", "ZeroShotClassifier", "similarity"]


class Embeddings(NamedTuple):
    """CLIP's output for a batch of images and a batch of texts."""

    image_BE: Tensor
    """Of length 1."""
    text_TE: Tensor
    """Of length 1."""
    scale: Tensor
    """Scalar, clamped."""
    bias: Tensor | None = None
    """Scalar (SigLIP)."""


class CLIP(nn.Module):
    """Two towers and a scale; the towers are given or built from the config.

    Args:
        config: the model's.
        image, text: towers to use, of the sizes in the config; None: new ones.
    """

    DIALECTS: ClassVar[tuple[Dialect, ...]] = DIALECTS
    head_prefix: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self, config: CLIPConfig, *, image: ViT | None = None, text: TextTransformer | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.image = ViT(config.image) if image is None else image
        self.text = TextTransformer(config.text) if text is None else text
        if self.image.config != config.image or self.text.config != config.text:
            raise InputError(
                "The towers do not match the config: build them from config.image and config.text."
            )
        self.logit_scale = nn.Parameter(torch.tensor(config.scale))
        self.logit_bias = None if config.bias is None else nn.Parameter(torch.tensor(config.bias))

    def forward(self, images_BCHW: Tensor, tokens_TL: Tensor) -> Embeddings:
        """(B, C, H, W) and (T, L) -> embeddings of length 1, the scale and the bias; `similarity` joins them.

        Raises:
            InputError: as `encode_image` and `encode_text`.
        """
        # A copy: hooks that training sets on a model's outputs would otherwise stay on the parameter.
        bias = None if self.logit_bias is None else self.logit_bias.clone()
        return Embeddings(self.encode_image(images_BCHW), self.encode_text(tokens_TL), self.scale(), bias)

    def encode_image(self, images_BCHW: Tensor, *, normalize: bool = True) -> Tensor:
        """(B, C, H, W) -> (B, E), of length 1 if `normalize`.

        Raises:
            InputError: as `ViT.forward`.
        """
        image_BE = self.image(images_BCHW)
        return F.normalize(image_BE, dim=-1) if normalize else image_BE

    def encode_text(self, tokens_TL: Tensor, *, normalize: bool = True) -> Tensor:
        """(T, L) int64 -> (T, E), of length 1 if `normalize`.

        Raises:
            InputError: as `TextTransformer.forward`.
        """
        text_TE = self.text(tokens_TL)
        return F.normalize(text_TE, dim=-1) if normalize else text_TE

    def scale(self) -> Tensor:
        """exp(logit_scale), at most the config's `max_scale`; a scalar."""
        return self.logit_scale.exp().clamp(max=self.config.max_scale or math.inf)

    def adapt_weights(
        self,
        state_dict: dict[str, Tensor],
        *,
        image_size: tuple[int, int] | None = None,
        window: tuple[int, int] | None = None,
    ) -> dict[str, Tensor]:
        """Translated tensors, reshaped to this model; the dict is not changed.

        Raises:
            Unclear: as `ViT.adapt_weights`.
        """
        state = {name: value for name, value in state_dict.items() if name not in OPENAI_FACTS}
        for name in ("logit_scale", "logit_bias"):
            if name in state and state[name].numel() == 1:
                state[name] = state[name].reshape(())
        image = {name: state.pop(name) for name in list(state) if name.startswith("image.")}
        image = {name.removeprefix("image."): tensor for name, tensor in image.items()}
        try:
            image = self.image.adapt_weights(image, image_size=image_size)
        except Unclear as error:
            whole = state | {f"image.{name}": tensor for name, tensor in error.state.items()}
            raise Unclear(str(error), whole) from None
        return state | {f"image.{name}": tensor for name, tensor in image.items()}


def similarity(image_BE: Tensor, text_TE: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """scale · image_BE text_TEᵀ + bias, (B, T): a row's softmax (CLIP) or each one's sigmoid (SigLIP)."""
    scores_BT = scale * image_BE @ text_TE.T
    return scores_BT if bias is None else scores_BT + bias


class ZeroShotClassifier(nn.Module):
    """(B, 3, H, W) -> logits (B, K): image tower, length 1, one linear layer; no text tower.

    Shares the image tower's tensors with the CLIP it was made from.
    """

    def __init__(self, image: ViT, weight_KE: Tensor, bias_K: Tensor | None) -> None:
        super().__init__()
        self.image = image
        classes, width = weight_KE.shape
        self.head = nn.Linear(width, classes, bias=bias_K is not None)
        self.head.load_state_dict({"weight": weight_KE} | ({} if bias_K is None else {"bias": bias_K}))

    @property
    def probability(self) -> str:
        """`sigmoid` for SigLIP, which is trained to judge each class independently; else `softmax`."""
        return "softmax" if self.head.bias is None else "sigmoid"

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """(B, C, H, W), preprocessed -> (B, K) logits.

        Raises:
            InputError: as `ViT.forward`.
        """
        return self.head(F.normalize(self.image(images_BCHW), dim=-1))

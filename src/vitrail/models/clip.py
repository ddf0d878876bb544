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
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitrail.errors import InputError
from vitrail.models.text import TextConfig, TextTransformer
from vitrail.models.vit import ViT, ViTConfig
from vitrail.weights.dialects import Dialect, Unclear
from vitrail.weights.dialects.clip import DIALECTS, OPENAI_FACTS

__all__ = ["CLIP", "VARIANTS", "CLIPConfig", "Embeddings", "ZeroShotClassifier", "similarity"]

INITIAL_SCALE = math.log(1 / 0.07)
MAX_SCALE = 100.0
"""CLIP's training clamps the scale here (section 2.5)."""


@dataclass(frozen=True, kw_only=True)
class CLIPConfig:
    """Both towers, and how their embeddings are compared.

    Raises:
        InputError: towers with embeddings of different widths.
    """

    image: ViTConfig
    """`num_classes` is E, or 0 if the pooled features are the embedding (SigLIP)."""
    text: TextConfig
    scale: float = INITIAL_SCALE
    """Initial logarithm of the scale."""
    max_scale: float | None = MAX_SCALE
    """Upper bound of the scale (not of its logarithm); None: no bound. SigLIP's weights exceed 100: 112.3 in
    ViT-SO400M-14-SigLIP-384 (mlfoundations/open_clip#746)."""
    bias: float | None = None
    """Initial bias of the scores (SigLIP); None: no bias."""

    def __post_init__(self) -> None:
        width = self.image.num_classes or self.image.width
        if width != self.text.embed_width:
            raise InputError(
                f"The image tower gives {width} features and the text tower {self.text.embed_width}: "
                "they are compared, so give both the same width."
            )

    @property
    def embed_width(self) -> int:
        """E."""
        return self.text.embed_width

    @property
    def image_size(self) -> tuple[int, int]:
        return self.image.image_size

    @property
    def channels(self) -> int:
        return self.image.channels

    @property
    def num_classes(self) -> int:
        """0: CLIP compares with texts and has no classes of its own."""
        return 0

    @property
    def attention(self) -> str:
        return self.image.attention

    def overridden(
        self,
        *,
        image_size: tuple[int, int] | None = None,
        num_classes: int | None = None,
        attention: str | None = None,
        **others: Any,
    ) -> CLIPConfig:
        """The same model with a different image size, kernel (of both towers) or other fields.

        Raises:
            InputError: `num_classes` is given.
        """
        if num_classes:
            raise InputError("CLIP has no classifier: leave num_classes out.")
        image, text = others.pop("image", self.image), others.pop("text", self.text)
        if image_size is not None:
            image = replace(image, image_size=image_size)
        if attention is not None:
            image, text = replace(image, attention=attention), replace(text, attention=attention)
        return replace(self, image=image, text=text, **others)


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


def _quick(config: CLIPConfig) -> CLIPConfig:
    return replace(
        config,
        image=replace(config.image, activation="quick_gelu"),
        text=replace(config.text, activation="quick_gelu"),
    )


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


def _clip(
    image: dict[str, Any], text: dict[str, Any], embed_width: int, *, patch: int, size: int = 224
) -> CLIPConfig:
    return CLIPConfig(
        image=ViTConfig(
            **image,
            patch_size=patch,
            image_size=(size, size),
            num_classes=embed_width,
            head_bias=False,
            pre_norm=True,
            norm_eps=1e-5,
        ),
        text=TextConfig(**text, embed_width=embed_width),
    )


def _siglip(
    image: dict[str, Any],
    text: dict[str, Any],
    *,
    patch: int,
    size: int,
    vocabulary: str,
    context_length: int = 64,
) -> CLIPConfig:
    return CLIPConfig(
        image=ViTConfig(
            **image,
            patch_size=patch,
            image_size=(size, size),
            num_classes=0,
            class_token=False,
            pool="map",
        ),
        text=TextConfig(
            **text,
            **VOCABULARIES[vocabulary],
            embed_width=text["width"],
            context_length=context_length,
            causal=False,
            pool="last",
            projection_bias=True,
            norm_eps=1e-6,
        ),
        scale=math.log(10.0),
        max_scale=None,
        bias=-10.0,
    )


BASE: dict[str, Any] = {"width": 768, "depth": 12, "heads": 12}
LARGE: dict[str, Any] = {"width": 1024, "depth": 24, "heads": 16}
HUGE: dict[str, Any] = {"width": 1280, "depth": 32, "heads": 16}
GIANT: dict[str, Any] = {"width": 1408, "depth": 40, "heads": 16, "mlp_width": 6144}
BIG_GIANT: dict[str, Any] = {"width": 1664, "depth": 48, "heads": 16, "mlp_width": 8192}
SO400M: dict[str, Any] = {"width": 1152, "depth": 27, "heads": 16, "mlp_width": 4304}

NANO: dict[str, Any] = {"width": 192, "depth": 6, "heads": 3}

TEXT_192: dict[str, Any] = {"width": 192, "depth": 4, "heads": 3, "context_length": 32}
TEXT_512: dict[str, Any] = {"width": 512, "depth": 12, "heads": 8}
TEXT_768: dict[str, Any] = {"width": 768, "depth": 12, "heads": 12}
TEXT_1024: dict[str, Any] = {"width": 1024, "depth": 24, "heads": 16}
TEXT_1280: dict[str, Any] = {"width": 1280, "depth": 32, "heads": 20}

VOCABULARIES: dict[str, dict[str, Any]] = {
    "c4-en": {"tokenizer": "timm/ViT-B-16-SigLIP", "vocab_size": 32_000, "pad_id": 1},
    # SigLIP 2: Gemma's vocabulary, and a GELU by tanh.
    "gemma": {
        "tokenizer": "timm/ViT-B-16-SigLIP2",
        "vocab_size": 256_000,
        "pad_id": 0,
        "activation": "gelu_tanh",
    },
}

_OF_64 = _clip(NANO, TEXT_192, 192, patch=8, size=64)

VARIANTS: dict[str, CLIPConfig] = {
    "ViT-B-32": _clip(BASE, TEXT_512, 512, patch=32),
    "ViT-B-32-256": _clip(BASE, TEXT_512, 512, patch=32, size=256),
    "ViT-B-32-quickgelu": _quick(_clip(BASE, TEXT_512, 512, patch=32)),
    "ViT-B-16": _clip(BASE, TEXT_512, 512, patch=16),
    "ViT-B-16-quickgelu": _quick(_clip(BASE, TEXT_512, 512, patch=16)),
    "ViT-L-14": _clip(LARGE, TEXT_768, 768, patch=14),
    "ViT-L-14-quickgelu": _quick(_clip(LARGE, TEXT_768, 768, patch=14)),
    "ViT-L-14-336": _clip(LARGE, TEXT_768, 768, patch=14, size=336),
    "ViT-L-14-336-quickgelu": _quick(_clip(LARGE, TEXT_768, 768, patch=14, size=336)),
    "ViT-H-14": _clip(HUGE, TEXT_1024, 1024, patch=14),
    "ViT-H-14-quickgelu": _quick(_clip(HUGE, TEXT_1024, 1024, patch=14)),
    "ViT-g-14": _clip(GIANT, TEXT_1024, 1024, patch=14),
    "ViT-bigG-14": _clip(BIG_GIANT, TEXT_1280, 1280, patch=14),
    "ViT-B-16-SigLIP": _siglip(BASE, BASE, patch=16, size=224, vocabulary="c4-en"),
    "ViT-B-16-SigLIP-256": _siglip(BASE, BASE, patch=16, size=256, vocabulary="c4-en"),
    "ViT-B-16-SigLIP-384": _siglip(BASE, BASE, patch=16, size=384, vocabulary="c4-en"),
    "ViT-B-16-SigLIP-512": _siglip(BASE, BASE, patch=16, size=512, vocabulary="c4-en"),
    "ViT-L-16-SigLIP-256": _siglip(LARGE, LARGE, patch=16, size=256, vocabulary="c4-en"),
    "ViT-L-16-SigLIP-384": _siglip(LARGE, LARGE, patch=16, size=384, vocabulary="c4-en"),
    "ViT-SO400M-14-SigLIP": _siglip(
        SO400M, SO400M, patch=14, size=224, vocabulary="c4-en", context_length=16
    ),
    "ViT-B-16-SigLIP2": _siglip(BASE, BASE, patch=16, size=224, vocabulary="gemma"),
    "ViT-B-16-SigLIP2-256": _siglip(BASE, BASE, patch=16, size=256, vocabulary="gemma"),
    "ViT-L-16-SigLIP2-256": _siglip(LARGE, LARGE, patch=16, size=256, vocabulary="gemma"),
    "ViT-SO400M-14-SigLIP2": _siglip(SO400M, SO400M, patch=14, size=224, vocabulary="gemma"),
    # Ours, to be trained from scratch on small images; no weights are published. The second compares by
    # sigmoids, with SigLIP's initial scale and bias, but reads CLIP's tokens.
    "ViT-nano-8-64": _OF_64,
    "ViT-nano-8-64-sigmoid": replace(_OF_64, scale=math.log(10.0), max_scale=None, bias=-10.0),
}
"""By open_clip's names, except ours. A name implies the activation: OpenAI's weights need `-quickgelu`."""

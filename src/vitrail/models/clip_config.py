"""What distinguishes one CLIP or SigLIP from another, and all variants as a literal table."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from vitrail.errors import InputError
from vitrail.models.choices import ACTIVATIONS, check_choice, check_heads, check_kernel
from vitrail.models.vit_config import BASE, GIANT, GIGANTIC, HUGE, LARGE, SO400M, ViTConfig
from vitrail.text.tokenizer import TokenizerConfig

__all__ = ["VARIANTS", "CLIPConfig", "TextConfig"]

TEXT_POOLS = ("end", "last")
INITIAL_SCALE = math.log(1 / 0.07)
MAX_SCALE = 100.0
"""CLIP's training clamps the scale here (section 2.5)."""


@dataclass(frozen=True, kw_only=True)
class TextConfig(TokenizerConfig):
    """Everything that distinguishes one text tower from another; the tokenizer's part is `TokenizerConfig`.

    Raises:
        InputError: fields that contradict each other.
    """

    width: int
    """D."""
    depth: int
    """Number of blocks."""
    heads: int
    embed_width: int
    """E."""
    mlp_width: int | None = None
    """Hidden features of the MLP; None: 4 × width."""
    activation: str = "gelu"
    """gelu, gelu_tanh or quick_gelu: what the weights were trained with."""
    causal: bool = True
    """Each token sees only itself and earlier ones."""
    pool: str = "end"
    """end: at the end token, the highest token number of a row; last: at the last position."""
    projection_bias: bool = False
    norm_eps: float = 1e-5
    attention: str = "auto"
    """One of `choices.KERNELS`."""

    def __post_init__(self) -> None:
        check_heads(self.width, self.heads)
        check_choice("pooling", self.pool, TEXT_POOLS)
        check_choice("activation", self.activation, ACTIVATIONS)
        check_kernel(self.attention)

    @property
    def any_length(self) -> bool:
        """Whether rows may be cut after the end token, because nothing after it is ever read."""
        return self.causal and self.pool == "end"


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


def _quick(config: CLIPConfig) -> CLIPConfig:
    return replace(
        config,
        image=replace(config.image, activation="quick_gelu"),
        text=replace(config.text, activation="quick_gelu"),
    )


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
    "ViT-bigG-14": _clip(GIGANTIC, TEXT_1280, 1280, patch=14),
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

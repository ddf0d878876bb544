"""What distinguishes one Vision Transformer from another, and all variants as a literal table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vitrail.errors import InputError
from vitrail.models.choices import ACTIVATIONS, check_choice, check_heads, check_kernel

__all__ = ["VARIANTS", "ViTConfig", "check_whole_patches"]

POOLS = ("token", "avg", "map")
MLPS = ("plain", "swiglu")


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """Everything that distinguishes one Vision Transformer from another.

    Raises:
        InputError: fields that contradict each other, or an image that is not a whole number of patches.
    """

    width: int
    """D, features of a token."""
    depth: int
    """Number of blocks."""
    heads: int
    """Attention heads; each sees D / heads features."""
    patch_size: int = 16
    """P, side of a patch in pixels."""
    image_size: tuple[int, int] = (224, 224)
    """(H, W) that the position table is made for; for other sizes it is resampled."""
    num_classes: int = 1000
    """K; 0: no head, the model returns the pooled features."""
    channels: int = 3
    mlp: str = "plain"
    """plain: two layers with `activation`; swiglu: gated, both matrices of the gate packed in fc1."""
    mlp_width: int | None = None
    """F, outputs of fc1 (with swiglu, of both halves); None: 4 × width."""
    activation: str = "gelu"
    """gelu, gelu_tanh or quick_gelu: what the weights were trained with."""
    class_token: bool = True
    register_tokens: int = 0
    """Extra learned tokens whose output is unused (Darcet et al. 2024); they follow the class token."""
    position_covers_prefix: bool = True
    """Class and register tokens have rows in the position table (timm: not no_embed_class)."""
    pre_norm: bool = False
    """A norm before the blocks, and patches projected without bias (CLIP)."""
    pool: str = "token"
    """token: the class token; avg: mean over the patches; map: attention pooling (SigLIP)."""
    norm_after_pool: bool = False
    """The last norm comes after the pooling, not before (timm: fc_norm)."""
    layer_scale: float | None = None
    """Initial value of the factors on each branch; None: no factors."""
    qkv_bias: bool = True
    qk_norm: bool = False
    """Queries and keys are normalised per head (Dehghani et al. 2023, ViT-22B)."""
    norm_eps: float = 1e-6
    head_bias: bool = True
    drop_path: float = 0.0
    """In training: share of the samples that skip the last block's branches; grows linearly from 0."""
    sincos_start: bool = False
    """Positions are initialised with sines and cosines (Beyer et al. 2022, arXiv:2205.01580) and stay
    trainable: small models on few images learn positions sooner."""
    attention: str = "auto"
    """One of `choices.KERNELS`."""

    def __post_init__(self) -> None:
        check_heads(self.width, self.heads)
        check_choice("pooling", self.pool, POOLS)
        check_choice("MLP", self.mlp, MLPS)
        check_choice("activation", self.activation, ACTIVATIONS)
        if self.pool == "token" and not self.class_token:
            raise InputError("Pooling by the class token needs class_token=True: set it, or pool='avg'.")
        check_kernel(self.attention)
        check_whole_patches(*self.image_size, self.patch_size)

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w), patches along each side of an image of `image_size`."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def prefix_tokens(self) -> int:
        """Tokens before the patches: the class token and the registers."""
        return int(self.class_token) + self.register_tokens


def check_whole_patches(height: int, width: int, patch: int) -> None:
    """Refuse an image that is not a whole number of patches.

    Raises:
        InputError: with the nearest size that is.
    """
    if height % patch == 0 and width % patch == 0 and height > 0 and width > 0:
        return

    def nearest(side: int) -> int:
        return max(1, round(side / patch)) * patch

    raise InputError(
        f"An image of {height} × {width} pixels is not a whole number of patches of {patch}: resize or crop "
        f"it, nearest is {nearest(height)} × {nearest(width)}."
    )


TINY: dict[str, Any] = {"width": 192, "depth": 12, "heads": 3}
SMALL: dict[str, Any] = {"width": 384, "depth": 12, "heads": 6}
MEDIUM: dict[str, Any] = {"width": 512, "depth": 12, "heads": 8}
BASE: dict[str, Any] = {"width": 768, "depth": 12, "heads": 12}
LARGE: dict[str, Any] = {"width": 1024, "depth": 24, "heads": 16}
SO400M: dict[str, Any] = {"width": 1152, "depth": 27, "heads": 16, "mlp_width": 4304}
HUGE: dict[str, Any] = {"width": 1280, "depth": 32, "heads": 16}
GIANT: dict[str, Any] = {"width": 1408, "depth": 40, "heads": 16, "mlp_width": 6144}
GIGANTIC: dict[str, Any] = {"width": 1664, "depth": 48, "heads": 16, "mlp_width": 8192}

DEIT3: dict[str, Any] = {"position_covers_prefix": False, "layer_scale": 1e-6}
DINOV2: dict[str, Any] = {"patch_size": 14, "image_size": (518, 518), "layer_scale": 1e-5, "num_classes": 0}
DINOV2_REG: dict[str, Any] = {**DINOV2, "register_tokens": 4, "position_covers_prefix": False}
DINOV2_GIANT: dict[str, Any] = {"width": 1536, "depth": 40, "heads": 24, "mlp": "swiglu", "mlp_width": 8192}
CLIP: dict[str, Any] = {"pre_norm": True, "norm_eps": 1e-5}
QUICK: dict[str, Any] = {**CLIP, "activation": "quick_gelu"}
SIGLIP: dict[str, Any] = {"class_token": False, "pool": "map", "num_classes": 0}
SIGLIP2: dict[str, Any] = {**SIGLIP, "activation": "gelu_tanh"}
REG_GAP: dict[str, Any] = {
    "class_token": False,
    "pool": "avg",
    "norm_after_pool": True,
    "position_covers_prefix": False,
    "layer_scale": 1e-5,
    "image_size": (256, 256),
}

NANO: dict[str, Any] = {
    "width": 128,
    "depth": 6,
    "heads": 2,
    "num_classes": 10,
    "class_token": False,
    "pool": "avg",
    "norm_after_pool": True,
    "sincos_start": True,
}

VARIANTS: dict[str, ViTConfig] = {
    # Steiner et al. 2022 (AugReg) and Dosovitskiy et al. 2021; Zhai et al. 2022 from giant on.
    "vit_tiny_patch16_224": ViTConfig(**TINY),
    "vit_tiny_patch16_384": ViTConfig(**TINY, image_size=(384, 384)),
    "vit_small_patch32_224": ViTConfig(**SMALL, patch_size=32),
    "vit_small_patch32_384": ViTConfig(**SMALL, patch_size=32, image_size=(384, 384)),
    "vit_small_patch16_224": ViTConfig(**SMALL),
    "vit_small_patch16_384": ViTConfig(**SMALL, image_size=(384, 384)),
    "vit_small_patch8_224": ViTConfig(**SMALL, patch_size=8, num_classes=0),
    "vit_base_patch32_224": ViTConfig(**BASE, patch_size=32),
    "vit_base_patch32_384": ViTConfig(**BASE, patch_size=32, image_size=(384, 384)),
    "vit_base_patch16_224": ViTConfig(**BASE),
    "vit_base_patch16_384": ViTConfig(**BASE, image_size=(384, 384)),
    "vit_base_patch16_224_miil": ViTConfig(**BASE, qkv_bias=False, num_classes=11221),
    "vit_base_patch8_224": ViTConfig(**BASE, patch_size=8),
    "vit_large_patch32_224": ViTConfig(**LARGE, patch_size=32, num_classes=0),
    "vit_large_patch32_384": ViTConfig(**LARGE, patch_size=32, image_size=(384, 384)),
    "vit_large_patch16_224": ViTConfig(**LARGE),
    "vit_large_patch16_384": ViTConfig(**LARGE, image_size=(384, 384)),
    "vit_large_patch14_224": ViTConfig(**LARGE, patch_size=14),
    "vit_huge_patch14_224": ViTConfig(**HUGE, patch_size=14, num_classes=0),
    "vit_giant_patch14_224": ViTConfig(**GIANT, patch_size=14),
    "vit_gigantic_patch14_224": ViTConfig(**GIGANTIC, patch_size=14),
    # Touvron et al. 2021 (DeiT) and 2022 (DeiT III).
    "deit_tiny_patch16_224": ViTConfig(**TINY),
    "deit_small_patch16_224": ViTConfig(**SMALL),
    "deit_base_patch16_224": ViTConfig(**BASE),
    "deit_base_patch16_384": ViTConfig(**BASE, image_size=(384, 384)),
    "deit3_small_patch16_224": ViTConfig(**SMALL, **DEIT3),
    "deit3_small_patch16_384": ViTConfig(**SMALL, **DEIT3, image_size=(384, 384)),
    "deit3_medium_patch16_224": ViTConfig(**MEDIUM, **DEIT3),
    "deit3_base_patch16_224": ViTConfig(**BASE, **DEIT3),
    "deit3_base_patch16_384": ViTConfig(**BASE, **DEIT3, image_size=(384, 384)),
    "deit3_large_patch16_224": ViTConfig(**LARGE, **DEIT3),
    "deit3_large_patch16_384": ViTConfig(**LARGE, **DEIT3, image_size=(384, 384)),
    "deit3_huge_patch14_224": ViTConfig(**HUGE, **DEIT3, patch_size=14),
    # Oquab et al. 2024 (DINOv2), Darcet et al. 2024 (registers).
    "vit_small_patch14_dinov2": ViTConfig(**SMALL, **DINOV2),
    "vit_base_patch14_dinov2": ViTConfig(**BASE, **DINOV2),
    "vit_large_patch14_dinov2": ViTConfig(**LARGE, **DINOV2),
    "vit_giant_patch14_dinov2": ViTConfig(**DINOV2_GIANT, **DINOV2),
    "vit_small_patch14_reg4_dinov2": ViTConfig(**SMALL, **DINOV2_REG),
    "vit_base_patch14_reg4_dinov2": ViTConfig(**BASE, **DINOV2_REG),
    "vit_large_patch14_reg4_dinov2": ViTConfig(**LARGE, **DINOV2_REG),
    "vit_giant_patch14_reg4_dinov2": ViTConfig(**DINOV2_GIANT, **DINOV2_REG),
    # Radford et al. 2021 (CLIP) and its fine-tuned image towers; quickgelu: as OpenAI trained.
    "vit_medium_patch32_clip_224": ViTConfig(**MEDIUM, **CLIP, patch_size=32, num_classes=512),
    "vit_medium_patch16_clip_224": ViTConfig(**MEDIUM, **CLIP, num_classes=512),
    "vit_base_patch32_clip_224": ViTConfig(**BASE, **CLIP, patch_size=32),
    "vit_base_patch32_clip_256": ViTConfig(
        **BASE, **CLIP, patch_size=32, image_size=(256, 256), num_classes=512
    ),
    "vit_base_patch32_clip_384": ViTConfig(**BASE, **CLIP, patch_size=32, image_size=(384, 384)),
    "vit_base_patch32_clip_448": ViTConfig(**BASE, **CLIP, patch_size=32, image_size=(448, 448)),
    "vit_base_patch16_clip_224": ViTConfig(**BASE, **CLIP),
    "vit_base_patch16_clip_384": ViTConfig(**BASE, **CLIP, image_size=(384, 384)),
    "vit_large_patch14_clip_224": ViTConfig(**LARGE, **CLIP, patch_size=14),
    "vit_large_patch14_clip_336": ViTConfig(**LARGE, **CLIP, patch_size=14, image_size=(336, 336)),
    "vit_huge_patch14_clip_224": ViTConfig(**HUGE, **CLIP, patch_size=14),
    "vit_huge_patch14_clip_336": ViTConfig(**HUGE, **CLIP, patch_size=14, image_size=(336, 336)),
    "vit_giant_patch14_clip_224": ViTConfig(**GIANT, **CLIP, patch_size=14, num_classes=1024),
    "vit_gigantic_patch14_clip_224": ViTConfig(**GIGANTIC, **CLIP, patch_size=14, num_classes=1280),
    "vit_base_patch32_clip_quickgelu_224": ViTConfig(**BASE, **QUICK, patch_size=32, num_classes=512),
    "vit_base_patch16_clip_quickgelu_224": ViTConfig(**BASE, **QUICK, num_classes=512),
    "vit_large_patch14_clip_quickgelu_224": ViTConfig(**LARGE, **QUICK, patch_size=14, num_classes=768),
    "vit_large_patch14_clip_quickgelu_336": ViTConfig(
        **LARGE, **QUICK, patch_size=14, image_size=(336, 336), num_classes=768
    ),
    "vit_huge_patch14_clip_quickgelu_224": ViTConfig(**HUGE, **QUICK, patch_size=14, num_classes=1024),
    # Zhai et al. 2023 (SigLIP), Tschannen et al. 2025 (SigLIP 2).
    "vit_base_patch32_siglip_256": ViTConfig(**BASE, **SIGLIP2, patch_size=32, image_size=(256, 256)),
    "vit_base_patch16_siglip_224": ViTConfig(**BASE, **SIGLIP),
    "vit_base_patch16_siglip_256": ViTConfig(**BASE, **SIGLIP, image_size=(256, 256)),
    "vit_base_patch16_siglip_384": ViTConfig(**BASE, **SIGLIP, image_size=(384, 384)),
    "vit_base_patch16_siglip_512": ViTConfig(**BASE, **SIGLIP, image_size=(512, 512)),
    "vit_large_patch16_siglip_256": ViTConfig(**LARGE, **SIGLIP, image_size=(256, 256)),
    "vit_large_patch16_siglip_384": ViTConfig(**LARGE, **SIGLIP, image_size=(384, 384)),
    "vit_large_patch16_siglip_512": ViTConfig(**LARGE, **SIGLIP2, image_size=(512, 512)),
    "vit_so400m_patch14_siglip_224": ViTConfig(**SO400M, **SIGLIP, patch_size=14),
    "vit_so400m_patch14_siglip_378": ViTConfig(**SO400M, **SIGLIP, patch_size=14, image_size=(378, 378)),
    "vit_so400m_patch16_siglip_256": ViTConfig(**SO400M, **SIGLIP2, image_size=(256, 256)),
    "vit_so400m_patch16_siglip_384": ViTConfig(**SO400M, **SIGLIP2, image_size=(384, 384)),
    "vit_so400m_patch16_siglip_512": ViTConfig(**SO400M, **SIGLIP2, image_size=(512, 512)),
    # Registers with average pooling, trained by timm.
    "vit_medium_patch16_reg1_gap_256": ViTConfig(**MEDIUM, **REG_GAP, register_tokens=1),
    "vit_medium_patch16_reg4_gap_256": ViTConfig(**MEDIUM, **REG_GAP, register_tokens=4),
    "vit_base_patch16_reg4_gap_256": ViTConfig(**{**BASE, **REG_GAP, "layer_scale": None}, register_tokens=4),
    # Ours, for small images and training from scratch; no weights are published.
    "vit_nano_patch4_28": ViTConfig(**{**NANO, "width": 96}, patch_size=4, image_size=(28, 28)),
    "vit_nano_patch16_224": ViTConfig(**NANO),
}
"""By timm's names without the weights' tag."""

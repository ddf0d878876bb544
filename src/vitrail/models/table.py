"""Our own models: name -> "module:class"; the module's VARIANTS says what a name means.

A literal table that imports nothing, so that `select` can read it without importing torch.
"""

from __future__ import annotations

__all__ = ["MODELS", "OWN", "TWO_TOWERS"]

_VIT = (
    "vit_tiny_patch16_224",
    "vit_tiny_patch16_384",
    "vit_small_patch32_224",
    "vit_small_patch32_384",
    "vit_small_patch16_224",
    "vit_small_patch16_384",
    "vit_small_patch8_224",
    "vit_base_patch32_224",
    "vit_base_patch32_384",
    "vit_base_patch16_224",
    "vit_base_patch16_384",
    "vit_base_patch16_224_miil",
    "vit_base_patch8_224",
    "vit_large_patch32_224",
    "vit_large_patch32_384",
    "vit_large_patch16_224",
    "vit_large_patch16_384",
    "vit_large_patch14_224",
    "vit_huge_patch14_224",
    "vit_giant_patch14_224",
    "vit_gigantic_patch14_224",
    "deit_tiny_patch16_224",
    "deit_small_patch16_224",
    "deit_base_patch16_224",
    "deit_base_patch16_384",
    "deit3_small_patch16_224",
    "deit3_small_patch16_384",
    "deit3_medium_patch16_224",
    "deit3_base_patch16_224",
    "deit3_base_patch16_384",
    "deit3_large_patch16_224",
    "deit3_large_patch16_384",
    "deit3_huge_patch14_224",
    "vit_small_patch14_dinov2",
    "vit_base_patch14_dinov2",
    "vit_large_patch14_dinov2",
    "vit_giant_patch14_dinov2",
    "vit_small_patch14_reg4_dinov2",
    "vit_base_patch14_reg4_dinov2",
    "vit_large_patch14_reg4_dinov2",
    "vit_giant_patch14_reg4_dinov2",
    "vit_medium_patch32_clip_224",
    "vit_medium_patch16_clip_224",
    "vit_base_patch32_clip_224",
    "vit_base_patch32_clip_256",
    "vit_base_patch32_clip_384",
    "vit_base_patch32_clip_448",
    "vit_base_patch16_clip_224",
    "vit_base_patch16_clip_384",
    "vit_large_patch14_clip_224",
    "vit_large_patch14_clip_336",
    "vit_huge_patch14_clip_224",
    "vit_huge_patch14_clip_336",
    "vit_giant_patch14_clip_224",
    "vit_gigantic_patch14_clip_224",
    "vit_base_patch32_clip_quickgelu_224",
    "vit_base_patch16_clip_quickgelu_224",
    "vit_large_patch14_clip_quickgelu_224",
    "vit_large_patch14_clip_quickgelu_336",
    "vit_huge_patch14_clip_quickgelu_224",
    "vit_base_patch32_siglip_256",
    "vit_base_patch16_siglip_224",
    "vit_base_patch16_siglip_256",
    "vit_base_patch16_siglip_384",
    "vit_base_patch16_siglip_512",
    "vit_large_patch16_siglip_256",
    "vit_large_patch16_siglip_384",
    "vit_large_patch16_siglip_512",
    "vit_so400m_patch14_siglip_224",
    "vit_so400m_patch14_siglip_378",
    "vit_so400m_patch16_siglip_256",
    "vit_so400m_patch16_siglip_384",
    "vit_so400m_patch16_siglip_512",
    "vit_medium_patch16_reg1_gap_256",
    "vit_medium_patch16_reg4_gap_256",
    "vit_base_patch16_reg4_gap_256",
)

_OWN_VIT = ("vit_nano_patch4_28", "vit_nano_patch16_224")
_OWN_SWIN = ("swin_nano_patch2_window7_28",)
_OWN_CLIP = ("ViT-nano-8-64", "ViT-nano-8-64-sigmoid")

_SWIN = (
    "swin_tiny_patch4_window7_224",
    "swin_small_patch4_window7_224",
    "swin_base_patch4_window7_224",
    "swin_large_patch4_window7_224",
    "swin_base_patch4_window12_384",
    "swin_large_patch4_window12_384",
    "swinv2_tiny_window8_256",
    "swinv2_small_window8_256",
    "swinv2_base_window8_256",
    "swinv2_tiny_window16_256",
    "swinv2_small_window16_256",
    "swinv2_base_window16_256",
    "swinv2_base_window12_192",
    "swinv2_large_window12_192",
    "swinv2_base_window12to16_192to256",
    "swinv2_large_window12to16_192to256",
    "swinv2_base_window12to24_192to384",
    "swinv2_large_window12to24_192to384",
)

_CLIP = (
    "ViT-B-32",
    "ViT-B-32-256",
    "ViT-B-32-quickgelu",
    "ViT-B-16",
    "ViT-B-16-quickgelu",
    "ViT-L-14",
    "ViT-L-14-quickgelu",
    "ViT-L-14-336",
    "ViT-L-14-336-quickgelu",
    "ViT-H-14",
    "ViT-H-14-quickgelu",
    "ViT-g-14",
    "ViT-bigG-14",
    "ViT-B-16-SigLIP",
    "ViT-B-16-SigLIP-256",
    "ViT-B-16-SigLIP-384",
    "ViT-B-16-SigLIP-512",
    "ViT-L-16-SigLIP-256",
    "ViT-L-16-SigLIP-384",
    "ViT-SO400M-14-SigLIP",
    "ViT-B-16-SigLIP2",
    "ViT-B-16-SigLIP2-256",
    "ViT-L-16-SigLIP2-256",
    "ViT-SO400M-14-SigLIP2",
)


OWN = (*_OWN_VIT, *_OWN_SWIN, *_OWN_CLIP)
"""Small models of our own, to be trained from scratch."""

TWO_TOWERS = frozenset((*_CLIP, *_OWN_CLIP))
"""Models with an image and a text tower, under open_clip's names: not classifiers by themselves."""

MODELS: dict[str, str] = {
    **dict.fromkeys((*_VIT, *_OWN_VIT), "vitrail.models.vit:ViT"),
    **dict.fromkeys((*_SWIN, *_OWN_SWIN), "vitrail.models.swin:Swin"),
    **dict.fromkeys(sorted(TWO_TOWERS), "vitrail.models.clip:CLIP"),
}

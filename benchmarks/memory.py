"""Is the predicted peak memory right? Every point is predicted, then measured in a process of its own.

    python benchmarks/memory.py [--only TEXT] [--save [HARDWARE]]

The points were fixed before any rule of the prediction was tuned (this table was committed before
`vitrail.models.memory` existed) and are not chosen by what they show.
"""

from __future__ import annotations

VIT_S, VIT_B = "vit_small_patch16_224", "vit_base_patch16_224"
SWIN_T, SWIN_B = "swin_tiny_patch4_window7_224", "swin_base_patch4_window7_224"
SWINV2_T, CLIP = "swinv2_tiny_window8_256", "ViT-B-32"

# (model, implementation, image size, batch size, precision, attention, training)
POINTS: tuple[tuple[str, str, int, int, str, str, bool], ...] = (
    (VIT_S, "vitrail", 224, 1, "fp32", "fused", False),
    (VIT_S, "vitrail", 224, 32, "fp32", "fused", False),
    (VIT_S, "vitrail", 512, 8, "fp32", "naive", False),
    (VIT_S, "vitrail", 1024, 1, "fp32", "naive", False),
    (VIT_S, "vitrail", 1024, 4, "bf16", "auto", False),
    (VIT_B, "vitrail", 224, 1, "fp32", "auto", False),
    (VIT_B, "vitrail", 224, 8, "fp32", "auto", False),
    (VIT_B, "vitrail", 224, 8, "fp32", "naive", False),
    (VIT_B, "vitrail", 224, 32, "bf16", "auto", False),
    (VIT_B, "vitrail", 384, 8, "bf16", "fused", False),
    (VIT_B, "vitrail", 512, 2, "bf16", "naive", False),
    (VIT_B, "vitrail", 512, 4, "fp32", "naive", False),
    (VIT_B, "vitrail", 512, 4, "fp32", "fused", False),
    (VIT_B, "vitrail", 1024, 1, "fp32", "naive", False),
    (VIT_B, "vitrail", 1024, 1, "fp32", "fused", False),
    (VIT_B, "vitrail", 1024, 1, "fp32", "auto", False),
    (VIT_B, "vitrail", 1024, 1, "bf16", "fused", False),
    (VIT_B, "timm", 224, 16, "fp32", "naive", False),
    (VIT_B, "timm", 512, 4, "fp32", "fused", False),
    (SWIN_T, "vitrail", 224, 1, "fp32", "auto", False),
    (SWIN_T, "vitrail", 224, 32, "fp32", "auto", False),
    (SWIN_T, "vitrail", 224, 8, "bf16", "auto", False),
    (SWIN_T, "vitrail", 512, 8, "fp32", "auto", False),
    (SWIN_T, "vitrail", 1024, 1, "fp32", "auto", False),
    (SWIN_T, "vitrail", 1024, 4, "bf16", "auto", False),
    (SWIN_B, "vitrail", 224, 8, "fp32", "naive", False),
    (SWIN_B, "vitrail", 1024, 1, "fp32", "fused", False),
    (SWIN_B, "vitrail", 1024, 1, "fp32", "naive", False),
    (SWIN_B, "vitrail", 1024, 2, "bf16", "auto", False),
    (SWIN_T, "timm", 224, 16, "fp32", "fused", False),
    (SWIN_T, "timm", 448, 4, "fp32", "naive", False),
    (SWINV2_T, "vitrail", 256, 1, "fp32", "auto", False),
    (SWINV2_T, "vitrail", 256, 16, "fp32", "auto", False),
    (SWINV2_T, "vitrail", 512, 4, "bf16", "auto", False),
    (SWINV2_T, "vitrail", 1024, 1, "fp32", "auto", False),
    (CLIP, "vitrail", 224, 1, "fp32", "auto", False),
    (CLIP, "vitrail", 224, 32, "fp32", "auto", False),
    (CLIP, "vitrail", 448, 8, "bf16", "auto", False),
    ("convnext_tiny", "timm", 224, 1, "fp32", "auto", False),
    ("convnext_tiny", "timm", 224, 16, "fp32", "auto", False),
    ("convnext_tiny", "timm", 512, 4, "fp32", "auto", False),
    ("convnext_tiny", "timm", 1024, 1, "bf16", "auto", False),
    ("efficientnet_b0", "timm", 224, 32, "fp32", "auto", False),
    ("efficientnet_b0", "timm", 1024, 1, "fp32", "auto", False),
    ("resnet50", "timm", 224, 32, "fp32", "auto", False),
    ("resnet50", "timm", 1024, 2, "fp32", "auto", False),
    ("resnet50", "timm", 512, 4, "bf16", "auto", False),
    ("mobilenetv3_large_100", "timm", 224, 32, "fp32", "auto", False),
    ("mobilenetv3_large_100", "timm", 1024, 4, "fp32", "auto", False),
    (VIT_S, "vitrail", 224, 8, "fp32", "auto", True),
    (VIT_S, "vitrail", 224, 32, "bf16", "auto", True),
    (VIT_S, "vitrail", 512, 2, "fp32", "naive", True),
    (VIT_S, "vitrail", 512, 2, "fp32", "fused", True),
    (VIT_B, "vitrail", 224, 4, "fp32", "auto", True),
    (VIT_B, "vitrail", 224, 8, "bf16", "auto", True),
    (SWIN_T, "vitrail", 224, 8, "fp32", "auto", True),
    (SWIN_T, "vitrail", 224, 16, "bf16", "auto", True),
    (SWIN_T, "vitrail", 512, 2, "fp32", "auto", True),
    (SWINV2_T, "vitrail", 256, 4, "fp32", "auto", True),
    (CLIP, "vitrail", 224, 16, "fp32", "auto", True),
    ("convnext_tiny", "timm", 224, 8, "fp32", "auto", True),
    ("resnet50", "timm", 224, 8, "fp32", "auto", True),
    ("resnet50", "timm", 224, 16, "bf16", "auto", True),
    ("efficientnet_b0", "timm", 224, 8, "fp32", "auto", True),
)

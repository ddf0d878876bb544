"""EdgeTAM's trunk: timm's RepViT in the place of SAM 2's Hiera (Zhou et al. 2025, arXiv:2501.07256, §4.1).

RepViT is convolutions alone (Wang et al. 2024, arXiv:2307.09283): a fraction of Hiera's work, for phones.
"""

from __future__ import annotations

import timm
from torch import Tensor, nn

from vitrail.models.sam2_config import RepViTConfig

__all__ = ["RepViT"]


class RepViT(nn.Module):
    """Images (B, C, H, W) -> the maps (B, D, h, w) of its four stages, strides 4 to 32."""

    def __init__(self, config: RepViTConfig, channels: int = 3) -> None:
        super().__init__()
        self.body = timm.create_model(config.name, pretrained=False, features_only=True, in_chans=channels)

    def forward(self, images_BCHW: Tensor) -> list[Tensor]:
        maps: list[Tensor] = self.body(images_BCHW)
        return maps

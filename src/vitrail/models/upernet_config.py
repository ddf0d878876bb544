"""What distinguishes one UPerNet from another, and all variants as a literal table."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from vitrail.errors import InputError
from vitrail.models import swin_config
from vitrail.models.swin_config import SwinConfig

__all__ = ["VARIANTS", "UPerNetConfig"]


@dataclass(frozen=True, kw_only=True)
class UPerNetConfig:
    """One model: a Swin without its classifier, and the heads on its stages.

    Raises:
        InputError: fields that contradict each other.
    """

    backbone: SwinConfig
    """Its `num_classes` is 0."""
    num_classes: int = 150
    """K: classes of a pixel; those of ADE20K by default."""
    head_width: int = 512
    """E: channels of the pyramid pooling, the FPN and the head."""
    pool_scales: tuple[int, ...] = (1, 2, 3, 6)
    """Sides of the grids that the last map is averaged to."""
    auxiliary: bool = True
    """A second head on the third stage (the last but one), for training only."""
    auxiliary_width: int = 256
    auxiliary_depth: int = 1
    """Its number of 3 × 3 convolutions."""
    auxiliary_concat: bool = False
    """Whether its input is given to its classifier too."""

    def __post_init__(self) -> None:
        if self.backbone.num_classes:
            raise InputError("UPerNet's backbone has no classifier: give it num_classes=0.")
        if self.num_classes < 2:
            raise InputError(f"A pixel has at least two classes to be of, not {self.num_classes}: give more.")
        if len(self.backbone.depths) < 2 or min(self.pool_scales, default=0) < 1 or self.auxiliary_depth < 1:
            raise InputError(
                "UPerNet needs a backbone of two stages or more, pool_scales of at least 1, and one or more "
                "auxiliary convolutions."
            )

    @property
    def image_size(self) -> tuple[int, int]:
        return self.backbone.image_size

    @property
    def attention(self) -> str:
        return self.backbone.attention

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each stage's map."""
        return tuple(self.backbone.width << stage for stage in range(len(self.backbone.depths)))

    def overridden(
        self, *, image_size: tuple[int, int] | None = None, attention: str | None = None, **others: Any
    ) -> UPerNetConfig:
        """The same model with another image size, kernel or other fields.

        Raises:
            InputError: fields that contradict each other.
        """
        backbone = others.pop("backbone", self.backbone)
        if image_size is not None:
            backbone = replace(backbone, image_size=image_size)
        if attention is not None:
            backbone = replace(backbone, attention=attention)
        return replace(self, backbone=backbone, **others)


def _on(name: str, window: int, size: int = 512) -> UPerNetConfig:
    """On a Swin of that name; it was trained for classes at another size, and then for masks at this one."""
    swin = replace(
        swin_config.VARIANTS[name],
        window=window,
        fixed_windows=True,
        image_size=(size, size),
        trained_size=None,
        num_classes=0,
    )
    return UPerNetConfig(backbone=swin)


VARIANTS: dict[str, UPerNetConfig] = {
    "upernet_swin_tiny": _on("swin_tiny_patch4_window7_224", 7),
    "upernet_swin_small": _on("swin_small_patch4_window7_224", 7),
    "upernet_swin_base": _on("swin_base_patch4_window12_384", 12),
    "upernet_swin_large": _on("swin_large_patch4_window12_384", 12),
    # Ours, to be trained from scratch on a CPU; no weights are published. Windows divide all of its maps.
    "upernet_swin_nano": UPerNetConfig(
        backbone=SwinConfig(
            image_size=(256, 256), window=4, width=32, depths=(2, 2, 4, 2), heads=(1, 2, 4, 8), num_classes=0
        ),
        num_classes=11,
        head_width=96,
        auxiliary_width=64,
    ),
}
"""By the names of the repositories on the hub (openmmlab), except ours."""

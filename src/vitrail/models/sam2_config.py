"""What distinguishes one SAM 2 from another in image mode, and all variants as a literal table."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from vitrail.errors import InputError
from vitrail.models.choices import check_heads
from vitrail.models.sam_config import PromptableConfig

__all__ = ["VARIANTS", "HieraConfig", "RepViTConfig", "SAM2Config"]

PATCH = 4
"""Stride of the first of four maps; each of the others halves it."""


@dataclass(frozen=True, kw_only=True)
class HieraConfig:
    """SAM 2's trunk: four stages, each with twice the features and heads of the one before.

    Raises:
        InputError: fields that contradict each other.
    """

    width: int
    """D of the first stage."""
    depths: tuple[int, int, int, int]
    """Blocks of each stage."""
    heads: int
    """Of the first stage."""
    windows: tuple[int, int, int, int] = (8, 4, 14, 7)
    """Side of a window in tokens, by stage; the first block of a stage has the window of the one before."""
    global_blocks: tuple[int, ...]
    """Blocks, counted through all stages, that attend to the whole map."""
    background: tuple[int, int] = (7, 7)
    """Size of the position table that is enlarged to the whole map; a second one repeats in each window."""

    def __post_init__(self) -> None:
        check_heads(self.width, self.heads)
        if min(self.depths) < 1 or not all(0 <= block < sum(self.depths) for block in self.global_blocks):
            raise InputError(
                f"depths are {self.depths} and global_blocks {self.global_blocks}: a stage has at least one "
                f"block, and there are blocks 0 to {sum(self.depths) - 1}."
            )
        if min(self.windows) < 2 or any(side % 2 for side in self.windows[:3]):
            raise InputError(
                f"windows are {self.windows}: those of the first three stages are halved by the next stage, "
                "give even numbers."
            )

    @property
    def widths(self) -> tuple[int, ...]:
        """D of each stage."""
        return tuple(self.width << stage for stage in range(4))


@dataclass(frozen=True, kw_only=True)
class RepViTConfig:
    """EdgeTAM's trunk: one of timm's RepViTs, whose four maps have SAM 2's strides."""

    name: str
    """timm's."""
    widths: tuple[int, int, int, int]
    """Channels of its maps."""


@dataclass(frozen=True, kw_only=True)
class SAM2Config(PromptableConfig):
    """One model: image encoder, prompt encoder and mask decoder. Photos are squashed into `image_size`.

    Raises:
        InputError: fields that contradict each other.
    """

    crop_mode: ClassVar[Literal["letterbox", "squash"]] = "squash"

    trunk: HieraConfig | RepViTConfig
    two_way_norm_eps: float = 1e-5
    closes_boxes: bool = True
    stability_delta: float = 0.05
    """A mask's stability is the IoU of what scores above and what scores below zero by this much …"""
    least_stability: float = 0.98
    """… and a clear prompt's mask that has less gives way to the best of the others."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.trunk, HieraConfig):
            return
        side, window = self.image_size[0] // PATCH, self.trunk.windows[0]
        if side % window:
            raise InputError(
                f"Images of {self.image_size[0]} pixels give {side} × {side} tokens, which do not divide "
                f"into windows of {window}: choose a multiple of {PATCH * window} pixels."
            )

    @property
    def family(self) -> str:
        return "SAM 2"

    @property
    def stride(self) -> int:
        """16: the embedding is the third map."""
        return 4 * PATCH

    @property
    def whole(self) -> int:
        """32: the fourth map's stride."""
        return 8 * PATCH


_TINY = HieraConfig(width=96, depths=(1, 2, 7, 2), heads=1, global_blocks=(5, 7, 9))

VARIANTS: dict[str, SAM2Config] = {
    "sam2_hiera_tiny": SAM2Config(trunk=_TINY),
    "sam2_hiera_small": SAM2Config(trunk=replace(_TINY, depths=(1, 2, 11, 2), global_blocks=(7, 10, 13))),
    "sam2_hiera_base_plus": SAM2Config(
        trunk=HieraConfig(
            width=112, depths=(2, 3, 16, 3), heads=2, global_blocks=(12, 16, 20), background=(14, 14)
        )
    ),
    "sam2_hiera_large": SAM2Config(
        trunk=HieraConfig(
            width=144, depths=(2, 6, 36, 4), heads=2, windows=(8, 4, 16, 8), global_blocks=(23, 33, 43)
        )
    ),
    "edgetam": SAM2Config(trunk=RepViTConfig(name="repvit_m1", widths=(48, 96, 192, 384))),
    # Ours, to try the road on a CPU; no weights are published.
    "sam2_hiera_nano": SAM2Config(
        image_size=(256, 256),
        trunk=HieraConfig(width=32, depths=(1, 1, 2, 1), heads=1, windows=(8, 4, 8, 4), global_blocks=(3,)),
        embed_width=64,
        decoder_heads=4,
        decoder_mlp_width=256,
        iou_width=64,
    ),
}
"""SAM 2's by timm's names of their trunks, for the files of 2.0 and 2.1, which differ in video alone."""

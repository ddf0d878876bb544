"""What distinguishes one Segment Anything model from another, and all variants as a literal table."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from vitrail.errors import InputError
from vitrail.models.choices import check_heads, check_kernel

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["VARIANTS", "PromptableConfig", "SAMConfig"]


@dataclass(frozen=True, kw_only=True)
class PromptableConfig(ABC):
    """What the prompt encoder and the mask decoder are made of; SAM and SAM 2 add their image encoders.

    Raises:
        InputError: fields that contradict each other.
    """

    crop_mode: ClassVar[Literal["letterbox", "squash"]] = "letterbox"
    """How photos become squares (images/letterbox.py)."""

    image_size: tuple[int, int] = (1024, 1024)
    """(H, W), a square."""
    channels: int = 3
    norm_eps: float = 1e-6
    """Of all norms but the decoder's that other fields name."""
    two_way_norm_eps: float = 1e-6
    """Of the norms in the decoder's two-way blocks; the last norm after them has 1e-5."""
    closes_boxes: bool = False
    """Whether a token that is not a point also follows boxes, and not points alone."""
    embed_width: int = 256
    """E: width of the image embedding, of prompts and of the mask decoder."""
    mask_channels: int = 16
    """Channels of a mask prompt before its last convolution."""
    decoder_depth: int = 2
    """Number of two-way blocks."""
    decoder_heads: int = 8
    decoder_mlp_width: int = 2048
    attention_downsampling: int = 2
    """The decoder's cross-attention works on E divided by this."""
    masks: int = 3
    """M: masks for an ambiguous prompt; one more is for prompts that are not."""
    iou_width: int = 256
    """Hidden features of the head that predicts how good each mask is."""
    iou_depth: int = 3
    """Its number of layers."""
    attention: str = "auto"
    """One of `choices.KERNELS`, for the image encoder and the decoder."""

    def __post_init__(self) -> None:
        check_kernel(self.attention)
        check_heads(self.embed_width, self.decoder_heads)
        check_heads(self.embed_width // self.attention_downsampling, self.decoder_heads)
        height, width = self.image_size
        if height != width or height % self.whole:
            raise InputError(
                f"{self.family}'s images are squares of whole patches of {self.whole} pixels, not {height} × "
                f"{width}: choose one; photos of other shapes are fitted to it."
            )
        if self.embed_width % 8 or self.mask_channels % 4:
            raise InputError(
                f"embed_width is {self.embed_width} and mask_channels {self.mask_channels}: give multiples "
                "of 8 and of 4."
            )
        if min(self.masks, self.decoder_depth) < 1 or self.iou_depth < 2:
            raise InputError(
                f"{self.family} needs at least one mask, one two-way block and two layers in its IoU head."
            )

    @property
    @abstractmethod
    def family(self) -> str:
        """What messages call the architecture."""

    @property
    @abstractmethod
    def stride(self) -> int:
        """Pixels of a side of one token of the image embedding."""

    @property
    def whole(self) -> int:
        """What the sides of an image are multiples of, in pixels."""
        return self.stride

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w), tokens of the image embedding."""
        return self.image_size[0] // self.stride, self.image_size[1] // self.stride

    @property
    def mask_size(self) -> tuple[int, int]:
        """(4h, 4w), pixels of masks, as prompts and as outputs."""
        return 4 * self.grid[0], 4 * self.grid[1]

    @property
    def num_classes(self) -> int:
        """0: the masks have no classes."""
        return 0

    def overridden(self, *, num_classes: int | None = None, **others: Any) -> Self:
        """The same model with other fields.

        Raises:
            InputError: `num_classes` is given, or fields that contradict each other.
        """
        if num_classes:
            raise InputError(f"{self.family} has no classifier: leave num_classes out.")
        return replace(self, **others)


@dataclass(frozen=True, kw_only=True)
class SAMConfig(PromptableConfig):
    """One model: image encoder, prompt encoder and mask decoder. Photos are resized to fit `image_size` and
    padded at the bottom and right.

    In the decoder Meta's code has `two_way_norm_eps` 1e-5, transformers and the files it publishes 1e-6.

    Raises:
        InputError: fields that contradict each other.
    """

    patch_size: int = 16
    width: int
    """D of the image encoder."""
    depth: int
    """Its number of blocks."""
    heads: int
    mlp_width: int | None = None
    """Hidden features of its MLPs; None: 4 × width."""
    window: int = 14
    """Side of a window in tokens; blocks in `global_blocks` attend to the whole map."""
    global_blocks: tuple[int, ...]
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_heads(self.width, self.heads)
        if not all(0 <= block < self.depth for block in self.global_blocks) or self.window < 1:
            raise InputError(
                f"global_blocks are {self.global_blocks} and the window {self.window}: there are blocks 0 to "
                f"{self.depth - 1}, and a window has at least 1 × 1 tokens."
            )

    @property
    def family(self) -> str:
        return "SAM"

    @property
    def stride(self) -> int:
        return self.patch_size


_BASE = SAMConfig(width=768, depth=12, heads=12, global_blocks=(2, 5, 8, 11))

VARIANTS: dict[str, SAMConfig] = {
    "sam_vit_base": _BASE,
    "sam_vit_large": replace(_BASE, width=1024, depth=24, heads=16, global_blocks=(5, 11, 17, 23)),
    "sam_vit_huge": replace(_BASE, width=1280, depth=32, heads=16, global_blocks=(7, 15, 23, 31)),
    # Ours, to be trained from scratch on a CPU; no weights are published. Windows divide its map.
    "sam_vit_nano": SAMConfig(
        image_size=(256, 256),
        patch_size=8,
        width=192,
        depth=6,
        heads=3,
        window=8,
        global_blocks=(2, 5),
        embed_width=128,
        decoder_heads=4,
        decoder_mlp_width=512,
        iou_width=128,
    ),
}
"""By the names of the repositories on the hub, except ours."""

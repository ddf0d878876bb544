"""What distinguishes one Swin Transformer from another, and all variants as a literal table."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

from vitrail.errors import InputError
from vitrail.models.choices import check_kernel

__all__ = ["VARIANTS", "SwinConfig", "check", "check_size"]


@dataclass(frozen=True, kw_only=True)
class SwinConfig:
    """One Swin model; see `VARIANTS`."""

    version: int = 1
    image_size: tuple[int, int] = (224, 224)
    """(H, W) that tables are prepared for; `forward` takes other sizes too."""
    trained_size: tuple[int, int] | None = None
    """(H, W) that the published weights were trained at, for the warning."""
    window: int | tuple[int, int] = 7
    pretrained_window: tuple[int, ...] = (0, 0, 0, 0)
    """v2: per stage, the window whose offsets span the log scale; 0: the window itself."""
    patch_size: int = 4
    """Side of a patch in pixels; each stage after the first merges 2 × 2 tokens."""
    width: int = 96
    """D of stage 1; it doubles with each stage."""
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (3, 6, 12, 24)
    fixed_windows: bool = False
    """Windows that a map does not fill are filled with zeros, which are attended to, and shift even if they
    are the only one. So dense models were trained (mmsegmentation, transformers' backbone); otherwise
    padding is hidden, and windows shrink to the map."""
    mlp_ratio: float = 4.0
    drop_path: float = 0.1
    num_classes: int = 1000
    channels: int = 3
    attention: str = "auto"

    @property
    def windows(self) -> tuple[int, int]:
        """The window as (rows, columns)."""
        return self.window if isinstance(self.window, tuple) else (self.window, self.window)

    @property
    def stride(self) -> int:
        """Pixels between the tokens of the last stage."""
        return self.patch_size << (len(self.depths) - 1)


_T = SwinConfig()
_S = SwinConfig(depths=(2, 2, 18, 2))
_B = SwinConfig(depths=(2, 2, 18, 2), width=128, heads=(4, 8, 16, 32))
_L = SwinConfig(depths=(2, 2, 18, 2), width=192, heads=(6, 12, 24, 48))


def _at(base: SwinConfig, version: int, window: int, size: int, before: tuple[int, ...] = ()) -> SwinConfig:
    return replace(
        base,
        version=version,
        window=window,
        image_size=(size, size),
        trained_size=(size, size),
        pretrained_window=before or (0,) * len(base.depths),
    )


VARIANTS: dict[str, SwinConfig] = {
    "swin_tiny_patch4_window7_224": _at(_T, 1, 7, 224),
    "swin_small_patch4_window7_224": _at(_S, 1, 7, 224),
    "swin_base_patch4_window7_224": _at(_B, 1, 7, 224),
    "swin_large_patch4_window7_224": _at(_L, 1, 7, 224),
    "swin_base_patch4_window12_384": _at(_B, 1, 12, 384),
    "swin_large_patch4_window12_384": _at(_L, 1, 12, 384),
    "swinv2_tiny_window8_256": _at(_T, 2, 8, 256),
    "swinv2_small_window8_256": _at(_S, 2, 8, 256),
    "swinv2_base_window8_256": _at(_B, 2, 8, 256),
    "swinv2_tiny_window16_256": _at(_T, 2, 16, 256),
    "swinv2_small_window16_256": _at(_S, 2, 16, 256),
    "swinv2_base_window16_256": _at(_B, 2, 16, 256),
    "swinv2_base_window12_192": replace(_at(_B, 2, 12, 192), num_classes=21841),
    "swinv2_large_window12_192": replace(_at(_L, 2, 12, 192), num_classes=21841),
    "swinv2_base_window12to16_192to256": _at(_B, 2, 16, 256, (12, 12, 12, 6)),
    "swinv2_large_window12to16_192to256": _at(_L, 2, 16, 256, (12, 12, 12, 6)),
    "swinv2_base_window12to24_192to384": _at(_B, 2, 24, 384, (12, 12, 12, 6)),
    "swinv2_large_window12to24_192to384": _at(_L, 2, 24, 384, (12, 12, 12, 6)),
    # Ours, for small images and training from scratch; no weights are published.
    "swin_nano_patch2_window7_28": SwinConfig(
        image_size=(28, 28), patch_size=2, width=32, depths=(2, 6), heads=(2, 4), num_classes=10
    ),
}


def check(config: SwinConfig) -> None:
    """Refuse impossible configs; warn as `check_size` does.

    Raises:
        InputError: fields that contradict each other.
    """
    check_kernel(config.attention)
    if config.version not in (1, 2):
        raise InputError(f"Swin has versions 1 and 2, not {config.version}.")
    if min(config.windows) < 1:
        raise InputError(f"A window has at least 1 × 1 tokens, not {config.window}.")
    stages = len(config.depths)
    if len(config.heads) != stages or (config.version == 2 and len(config.pretrained_window) != stages):
        raise InputError(
            f"Give one number of heads (and in v2 one pretrained window) per stage: depths has {stages}."
        )
    for index, heads in enumerate(config.heads):
        if (config.width << index) % heads:
            raise InputError(
                f"Stage {index + 1} cannot divide its width {config.width << index} among {heads} heads: "
                "its width must be divisible by their number."
            )
    check_size(config, *config.image_size)


def check_size(config: SwinConfig, height: int, width: int) -> None:
    """Warn where accuracy is known to drop: the weights saw one resolution, v1's position table one window.

    Raises:
        InputError: smaller than the stride of the last stage.
    """
    if min(height, width) < config.stride:
        raise InputError(
            f"The images are {height} × {width} pixels, less than one token of the last stage: "
            f"give at least {config.stride} × {config.stride}."
        )
    trained = config.trained_size
    if trained is None:
        return
    growth = max(height / trained[0], width / trained[1])
    limit = 1.25 if config.version == 1 else 2.0
    if growth > limit or min(height / trained[0], width / trained[1]) < 0.5:
        warnings.warn(
            f"These weights were trained at {trained[0]} × {trained[1]}; at {height} × {width} expect lower "
            "accuracy unless they are fine-tuned there.",
            stacklevel=4,
        )

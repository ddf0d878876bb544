"""UPerNet: a class for every pixel, from all resolutions of a pyramid (Xiao et al. 2018, arXiv:1807.10221).

    maps        Swin's stages at strides 4, 8, 16, 32, a norm on each
    pooling     the last map averaged to 1 × 1, 2 × 2, 3 × 3 and 6 × 6 cells, each enlarged again and put
                beside it: what the scene is (Zhao et al. 2017, "PSPNet", arXiv:1612.01105, §3.2)
    FPN         from coarse to fine, each map plus the enlarged one before it (Lin et al. 2017,
                arXiv:1612.03144, §3)
    fusion      all four at the finest map's size, side by side, 3 × 3, 1 × 1: scores of K classes
    auxiliary   a small head on the third map, whose loss helps training (FCN, Long et al. 2015)

Names of the heads' weights are transformers'. Everything that enlarges is bilinear, between pixels' centres.

Shapes: B images, C channels, H W pixels, h w a stage's map, D its channels, E `head_width`, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitrail.errors import InputError
from vitrail.models.layers import LayerNorm2d
from vitrail.models.swin import Swin
from vitrail.models.upernet_config import VARIANTS, UPerNetConfig
from vitrail.weights.dialects import Dialect, Unclear
from vitrail.weights.dialects.upernet import DIALECTS

__all__ = ["VARIANTS", "ClassScores", "ScoreMaps", "UPerNet", "UPerNetConfig"]


class ClassScores(NamedTuple):
    """Scores of every pixel, for training."""

    scores_BKHW: Tensor
    auxiliary_BKHW: Tensor | None
    """None: the model has no auxiliary head."""


class ConvNormReLU(nn.Module):
    """(B, D, h, w) -> (B, E, h, w): relu(batch_norm(conv x)), the size kept."""

    def __init__(self, before: int, after: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, kernel, padding=kernel // 2, bias=False)
        self.batch_norm = nn.BatchNorm2d(after)

    def forward(self, x_BDhw: Tensor) -> Tensor:
        return F.relu(self.batch_norm(self.conv(x_BDhw)))


class Head(nn.Module):
    """The maps of all stages, finest first -> scores (B, K, h, w) at the finest map's size."""

    def __init__(self, config: UPerNetConfig) -> None:
        super().__init__()
        *finer, last = config.widths
        width = config.head_width
        self.classifier = nn.Conv2d(width, config.num_classes, 1)
        self.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(scale), ConvNormReLU(last, width, 1))
            for scale in config.pool_scales
        )
        self.bottleneck = ConvNormReLU(last + len(config.pool_scales) * width, width, 3)
        self.lateral_convs = nn.ModuleList(ConvNormReLU(before, width, 1) for before in finer)
        self.fpn_convs = nn.ModuleList(ConvNormReLU(width, width, 3) for _ in finer)
        self.fpn_bottleneck = ConvNormReLU(len(config.widths) * width, width, 3)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        *finer, last_BDhw = maps
        pooled = [_enlarged(pool(last_BDhw), last_BDhw) for pool in self.psp_modules]
        merged_BEhw = self.bottleneck(torch.cat([last_BDhw, *pooled], 1))
        fused = [merged_BEhw]
        for i in reversed(range(len(finer))):
            lateral_BEhw = self.lateral_convs[i](finer[i])
            merged_BEhw = lateral_BEhw + _enlarged(merged_BEhw, lateral_BEhw)
            fused.insert(0, self.fpn_convs[i](merged_BEhw))
        same_size = [fused[0], *(_enlarged(x_BEhw, fused[0]) for x_BEhw in fused[1:])]
        scores_BKhw: Tensor = self.classifier(self.fpn_bottleneck(torch.cat(same_size, 1)))
        return scores_BKhw


class AuxiliaryHead(nn.Module):
    """One stage's map -> scores (B, K, h, w)."""

    def __init__(self, config: UPerNetConfig) -> None:
        super().__init__()
        before, width = config.widths[-2], config.auxiliary_width
        self.convs = nn.Sequential(
            *(ConvNormReLU(width if i else before, width, 3) for i in range(config.auxiliary_depth))
        )
        self.conv_cat = ConvNormReLU(before + width, width, 3) if config.auxiliary_concat else None
        self.classifier = nn.Conv2d(width, config.num_classes, 1)

    def forward(self, map_BDhw: Tensor) -> Tensor:
        x_BEhw = self.convs(map_BDhw)
        if self.conv_cat is not None:
            x_BEhw = self.conv_cat(torch.cat((map_BDhw, x_BEhw), 1))
        scores_BKhw: Tensor = self.classifier(x_BEhw)
        return scores_BKhw


class UPerNet(nn.Module):
    """Images (B, C, H, W) of any size -> scores of every pixel (B, K, H, W).

    Args:
        config: the model's.
        backbone: a Swin of the config's `backbone`, e.g. with trained weights; None: a new one.
    """

    DIALECTS: ClassVar[tuple[Dialect, ...]] = DIALECTS
    head_prefix: ClassVar[tuple[str, ...]] = ("decode_head.classifier", "auxiliary_head.classifier")

    def __init__(self, config: UPerNetConfig, *, backbone: Swin | None = None) -> None:
        super().__init__()
        self.config = config
        self.backbone = Swin(config.backbone) if backbone is None else backbone
        if self.backbone.config != config.backbone:
            raise InputError("The backbone does not match the config: build it from config.backbone.")
        # The last stage's norm is the backbone's own.
        self.norms = nn.ModuleList(LayerNorm2d(width) for width in config.widths[:-1])
        self.decode_head = Head(config)
        self.auxiliary_head = AuxiliaryHead(config) if config.auxiliary else None

    def forward(self, images_BCHW: Tensor, *, both: bool = False) -> Tensor | ClassScores:
        """(B, C, H, W) -> (B, K, H, W); the auxiliary head is run only for `both`, as `forward_both`.

        Raises:
            InputError: as `Swin.forward`.
        """
        if both:
            return self.forward_both(images_BCHW)
        return _enlarged(self.forward_maps(images_BCHW), images_BCHW)

    def forward_maps(self, images_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K, ⌈H/4⌉, ⌈W/4⌉): the scores before they are enlarged to the images' size.

        Raises:
            InputError: as `Swin.forward`.
        """
        maps_BKhw: Tensor = self.decode_head(self.pyramid(images_BCHW))
        return maps_BKhw

    def forward_both(self, images_BCHW: Tensor) -> ClassScores:
        """The scores of both heads, for a loss.

        Raises:
            InputError: as `Swin.forward`.
        """
        maps = self.pyramid(images_BCHW)
        scores_BKHW = _enlarged(self.decode_head(maps), images_BCHW)
        if self.auxiliary_head is None:
            return ClassScores(scores_BKHW, None)
        return ClassScores(scores_BKHW, _enlarged(self.auxiliary_head(maps[-2]), images_BCHW))

    def pyramid(self, images_BCHW: Tensor) -> list[Tensor]:
        """The normalised maps of all stages, finest first: (B, D, ⌈H/4⌉, …), (B, 2D, …), …

        Raises:
            InputError: as `Swin.forward`.
        """
        *finer, last_BDhw = self.backbone.forward_pyramid(images_BCHW)
        last_BhwD = self.backbone.norm(last_BDhw.permute(0, 2, 3, 1))
        return [
            *(norm(map_BDhw) for norm, map_BDhw in zip(self.norms, finer, strict=True)),
            last_BhwD.permute(0, 3, 1, 2),
        ]

    def reset_head(self, num_classes: int) -> None:
        """Replace the classifiers of both heads.

        Raises:
            InputError: fewer than two classes.
        """
        self.config = replace(self.config, num_classes=num_classes)
        for head in (self.decode_head, self.auxiliary_head):
            if head is not None:
                old = head.classifier
                head.classifier = nn.Conv2d(old.in_channels, num_classes, 1).to(old.weight)

    def adapt_weights(
        self,
        state_dict: Mapping[str, Tensor],
        *,
        image_size: tuple[int, int] | None = None,
        window: tuple[int, int] | None = None,
    ) -> dict[str, Tensor]:
        """Translated tensors, fitted to this model; the dict is not changed. Without an auxiliary head, that
        of a file is left out.

        Raises:
            Unclear: as `Swin.adapt_weights`.
        """
        state = dict(state_dict)
        if self.auxiliary_head is None:
            state = {name: value for name, value in state.items() if not name.startswith("auxiliary_head.")}
        before = "backbone."
        swin = {n.removeprefix(before): state.pop(n) for n in list(state) if n.startswith(before)}
        try:
            swin = self.backbone.adapt_weights(swin, image_size=image_size, window=window)
        except Unclear as error:
            whole = state | {before + name: value for name, value in error.state.items()}
            raise Unclear(str(error), whole) from None
        # Counters that a file may lack: nothing depends on them.
        counters = {n: v for n, v in self.state_dict().items() if n.endswith("num_batches_tracked")}
        return counters | state | {before + name: value for name, value in swin.items()}


class ScoreMaps(nn.Module):
    """A UPerNet without its last enlargement: whoever reads its masks enlarges them to their photo's size."""

    def __init__(self, model: UPerNet) -> None:
        super().__init__()
        self.model = model

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """As `UPerNet.forward_maps`."""
        return self.model.forward_maps(images_BCHW)


def _enlarged(x_BDhw: Tensor, like: Tensor) -> Tensor:
    """Resized to the size of another map, or of the images."""
    return F.interpolate(x_BDhw, size=like.shape[-2:], mode="bilinear", align_corners=False)

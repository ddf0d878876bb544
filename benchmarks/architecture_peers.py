"""The peers of our architectures, built by their own libraries: name and image size -> module.

Everything runs in evaluation mode with random values; ours holds the very values of timm's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import timm
import torch
from torch import Tensor, nn

from vitrail import models

CLASSES = 1000


@dataclass(frozen=True, kw_only=True)
class Case:
    """One architecture; names as each library calls it."""

    vitrail: str
    timm: str
    torchvision: str | None
    transformers: Callable[[int], nn.Module]
    sizes: tuple[int, int]
    """The published one, and about 1024 px where windows divide the map."""


class Scores(nn.Module):
    """transformers' models answer with a record: this takes the tensor a user wants from it."""

    def __init__(self, model: nn.Module, field: str, **arguments: object) -> None:
        super().__init__()
        self.model, self.field, self.arguments = model, field, arguments

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return getattr(self.model(images_BCHW, **self.arguments), self.field)


def _vit_base(size: int) -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(image_size=224, num_labels=CLASSES)
    resized = {"interpolate_pos_encoding": True} if size != 224 else {}
    return Scores(ViTForImageClassification(config), "logits", **resized)


def _swin(width: int, depths: tuple[int, ...], heads: tuple[int, ...]) -> Callable[[int], nn.Module]:
    def build(size: int) -> nn.Module:
        from transformers import SwinConfig, SwinForImageClassification

        config = SwinConfig(
            image_size=size,
            embed_dim=width,
            depths=depths,
            num_heads=heads,
            window_size=7,
            num_labels=CLASSES,
        )
        return Scores(SwinForImageClassification(config), "logits")

    return build


def _swinv2_tiny(size: int) -> nn.Module:
    from transformers import Swinv2Config, Swinv2ForImageClassification

    config = Swinv2Config(image_size=size, window_size=8, num_labels=CLASSES)
    return Scores(Swinv2ForImageClassification(config), "logits")


def _clip_base(size: int) -> nn.Module:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(image_size=224, patch_size=32, projection_dim=512, hidden_act="gelu")
    resized = {"interpolate_pos_encoding": True} if size != 224 else {}
    return Scores(CLIPVisionModelWithProjection(config), "image_embeds", **resized)


_SWIN = "swin_{}_patch4_window7_224"
CASES = {
    "ViT-B": Case(
        vitrail="vit_base_patch16_224", timm="vit_base_patch16_224", torchvision="vit_b_16",
        transformers=_vit_base, sizes=(224, 1024),
    ),
    "Swin-T": Case(
        vitrail=_SWIN.format("tiny"), timm=_SWIN.format("tiny"), torchvision="swin_t",
        transformers=_swin(96, (2, 2, 6, 2), (3, 6, 12, 24)), sizes=(224, 1120),
    ),
    "Swin-S": Case(
        vitrail=_SWIN.format("small"), timm=_SWIN.format("small"), torchvision="swin_s",
        transformers=_swin(96, (2, 2, 18, 2), (3, 6, 12, 24)), sizes=(224, 1120),
    ),
    "Swin-B": Case(
        vitrail=_SWIN.format("base"), timm=_SWIN.format("base"), torchvision="swin_b",
        transformers=_swin(128, (2, 2, 18, 2), (4, 8, 16, 32)), sizes=(224, 1120),
    ),
    "SwinV2-T": Case(
        vitrail="swinv2_tiny_window8_256", timm="swinv2_tiny_window8_256", torchvision="swin_v2_t",
        transformers=_swinv2_tiny, sizes=(256, 1024),
    ),
    "CLIP-B/32": Case(
        vitrail="vit_base_patch32_clip_224", timm="vit_base_patch32_clip_224", torchvision=None,
        transformers=_clip_base, sizes=(224, 1024),
    ),
}  # fmt: skip


def build(case: str, library: str, size: int) -> nn.Module | None:
    """The module, (B, 3, size, size) -> (B, …); None: the library has no such model."""
    which = CASES[case]
    classes = 512 if case == "CLIP-B/32" else CLASSES
    if library in ("timm", "vitrail"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            theirs = timm.create_model(which.timm, num_classes=classes, img_size=size)
        if library == "timm":
            model: nn.Module = theirs
        else:
            model = models.build(which.vitrail, image_size=size, num_classes=classes)
            models.load_weights(model, theirs.state_dict())
    elif library == "torchvision":
        if which.torchvision is None:
            return None
        import torchvision

        resized = {"image_size": size} if case == "ViT-B" else {}
        model = torchvision.models.get_model(which.torchvision, **resized)
    else:
        model = which.transformers(size)
    return model.eval().requires_grad_(False)

"""What an export is made from: the candidate's module, in the implementation that the variant names."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import nn

from vitrail import models
from vitrail.export.onnx import ExportMismatch
from vitrail.models import timm
from vitrail.models.labels import labels
from vitrail.vocabulary import Implementation

__all__ = ["Source", "check", "module"]


class Source(Protocol):
    """The part of an export's or a reference's request that names the module."""

    @property
    def architecture(self) -> str: ...
    @property
    def implementation(self) -> Implementation: ...
    @property
    def labels(self) -> str: ...
    @property
    def weights(self) -> str | None: ...


def module(source: Source, image_size: int) -> nn.Module:
    """The module in evaluation mode, (B, 3, image_size, image_size) -> (B, K); random weights are timm's.

    Raises:
        InputError: weights that do not fit, or an image size that the architecture cannot take.
    """
    if source.implementation == "timm":
        return _of_timm(source, image_size)
    model = models.build(source.architecture, image_size=image_size, num_classes=len(labels(source.labels)))
    models.load_weights(model, source.weights or _of_timm(source, image_size).state_dict())
    return model.requires_grad_(False)


def check(model: nn.Module, source: Source, image_size: int, tolerance: float) -> None:
    """Same weights, same numbers: our module against timm's, on one batch of noise.

    Not where the image does not divide into windows: there timm lets padding take part in attention and our
    module does not, so the two differ by design.

    Raises:
        ExportMismatch: they differ by more than `tolerance` (relative).
    """
    if source.implementation == "timm" or getattr(model, "pads", False):
        return
    noise = np.random.default_rng(0).standard_normal((1, 3, image_size, image_size), dtype=np.float32)
    with torch.inference_mode():
        ours = model(torch.from_numpy(noise))
        theirs = _of_timm(source, image_size)(torch.from_numpy(noise))
    difference = float((ours - theirs).norm() / theirs.norm().clamp(min=1e-30))
    if not difference <= tolerance:
        raise ExportMismatch(
            f"our {source.architecture} differs from timm's by {difference:.1e} (relative) with these "
            "weights; choose timm's code with --implementations timm"
        )


def _of_timm(source: Source, image_size: int) -> nn.Module:
    weights = None if source.weights is None else Path(source.weights)
    classes = len(labels(source.labels))
    return timm.build(source.architecture, image_size=image_size, classes=classes, weights=weights)

"""The cost and preprocess of a user's own weights, from the name of their architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from vitrail.errors import InputError
from vitrail.models import factory, timm
from vitrail.models.sam import SAM
from vitrail.models.sam2 import SAM2
from vitrail.profiling.cost import count


def describe(payload: dict[str, Any]) -> dict[str, Any]:
    """Facts of an architecture for a candidate: timm's preprocess, parameters, MACs, activations.

    Payload: `architecture` (timm's name; its tag decides the preprocess), `classes`, `weights` (a file that
    must fit it) and `image_size` in pixels (None: timm's). A user's mistake comes back as
    `{"refused": sentence}`. Runs in a child of measure/sandbox.py.
    """
    try:
        return _describe(
            str(payload["architecture"]), int(payload["classes"]), payload["image_size"], payload["weights"]
        )
    except InputError as error:
        return {"refused": str(error)}


def describe_promptable(payload: dict[str, Any]) -> dict[str, Any]:
    """The same of a model of ours that takes prompts; the cost is that of its first stage.

    Payload: `architecture` and `weights` (a file that must fit it).
    """
    with torch.device("meta"):
        model = factory.build(str(payload["architecture"]))
    try:
        factory.fitting(model, Path(payload["weights"]))
    except InputError as error:
        return {"refused": str(error)}
    assert isinstance(model, SAM | SAM2)
    side = model.config.image_size[0]
    cost = count(model.stages()["encode"], side)
    return {
        "image_size": side,
        "crop_mode": model.config.crop_mode,
        "parameters": sum(p.numel() for p in model.parameters()),
        "macs": cost.macs,
        "activations": cost.activations,
    }


def _describe(name: str, classes: int, image_size: int | None, weights: str) -> dict[str, Any]:
    architecture = name.split(".")[0]
    timm.check_known(architecture)
    preprocess = timm.published_preprocess(name)
    size = image_size or preprocess["image_size"]
    with torch.device("meta"):
        model = timm.build(architecture, image_size=size, classes=classes, weights=None)
    timm.fitted(model, architecture, Path(weights), image_size=size, classes=classes)
    cost = count(model, size)
    return {
        "preprocess": preprocess,
        "parameters": cost.parameters,
        "macs": cost.macs,
        "activations": cost.activations,
    }

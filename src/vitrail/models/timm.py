"""timm's architectures under one contract: candidate and weights path -> evaluation-mode module."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from vitrail.errors import InputError
from vitrail.models import checkpoints

__all__ = ["build"]


def build(
    architecture: str, *, image_size: int, classes: int, weights: Path | None, seed: int = 0
) -> nn.Module:
    """Build a timm model that maps (B, 3, H, W) to (B, K) scores.

    Args:
        architecture: timm's name without the tag.
        image_size: H = W in pixels; models whose tables depend on it are built for it.
        classes: K.
        weights: file to load; None leaves the random initialisation of `seed`.
        seed: for the random initialisation, applied to a forked generator.

    Raises:
        InputError: unknown architecture, an image size it cannot take, or weights that do not fit.
    """
    if not timm.is_model(architecture):
        raise InputError(f"timm has no architecture {architecture!r}: `vitrail models` lists what there is.")
    arguments: dict[str, Any] = {"pretrained": False, "num_classes": classes}
    if _takes_image_size(architecture):
        arguments["img_size"] = image_size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model: nn.Module = timm.create_model(architecture, **arguments)
        except (AssertionError, ValueError, RuntimeError) as error:
            raise InputError(f"{architecture} cannot be built for {image_size} px: {error}.") from None
    if weights is not None:
        checkpoints.load_into(model, checkpoints.read_state_dict(weights), source=str(weights))
    return model.eval().requires_grad_(False)


def _takes_image_size(architecture: str) -> bool:
    """Whether the built model has parameters or tables that depend on the image size."""
    config = timm.get_pretrained_cfg(architecture, allow_unregistered=False)
    fixed = bool(config is not None and getattr(config, "fixed_input_size", False))
    if not fixed:
        return False
    entry = timm.model_entrypoint(architecture)
    return any(p.kind is inspect.Parameter.VAR_KEYWORD for p in inspect.signature(entry).parameters.values())


def describe(payload: dict[str, object]) -> dict[str, object]:
    """Facts of an architecture for a candidate: its own preprocess, parameters, MACs, activations.

    Payload: `architecture` (timm's name) and `classes`. Runs in a child of measure/sandbox.py.
    """
    from vitrail.models.cost import count

    architecture = str(payload["architecture"])
    if not timm.is_model(architecture):
        raise InputError(f"timm has no architecture {architecture!r}: `vitrail models` lists what there is")
    config: Any = timm.get_pretrained_cfg(architecture)
    size = int((config.test_input_size or config.input_size)[-1])
    classes = int(str(payload["classes"]))
    with torch.device("meta"):
        cost = count(build(architecture, image_size=size, classes=classes, weights=None), size)
    preprocess = {
        "image_size": size,
        "crop": config.test_crop_pct or config.crop_pct,
        "interpolation": config.interpolation
        if config.interpolation in ("bicubic", "bilinear")
        else "bicubic",
        "mean": tuple(config.mean),
        "std": tuple(config.std),
    }
    return {
        "preprocess": preprocess,
        "parameters": cost.parameters,
        "macs": cost.macs,
        "activations": cost.activations,
    }

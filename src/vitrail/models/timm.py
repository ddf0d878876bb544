"""timm's architectures under one contract: candidate and weights path -> evaluation-mode module."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from vitrail.errors import InputError
from vitrail.models import advice, factory
from vitrail.models.registry import MODELS, TWO_TOWERS
from vitrail.weights import checkpoints
from vitrail.weights.names import spellings
from vitrail.weights.stated import read_stated

__all__ = ["build", "classes_in", "fitted", "is_ours"]

INTERPOLATIONS, CROP_MODES = ("bicubic", "bilinear"), ("center", "squash")


def build(
    architecture: str,
    *,
    image_size: int,
    classes: int,
    weights: Path | None,
    seed: int = 0,
    drop_path: float = 0.0,
) -> nn.Module:
    """Build a timm model that maps (B, 3, H, W) to (B, K) scores.

    Args:
        architecture: timm's name without the tag.
        image_size: H = W in pixels; models whose tables depend on it are built for it.
        classes: K.
        weights: file to load; None leaves the random initialisation of `seed`.
        seed: for the random initialisation, applied to a forked generator.
        drop_path: for training, if the architecture has it.

    Raises:
        InputError: an unknown architecture, an image size it cannot take, or weights that do not fit.
    """
    check_known(architecture)
    arguments: dict[str, Any] = {"pretrained": False, "num_classes": classes}
    if drop_path:
        arguments["drop_path_rate"] = drop_path
    if _takes_image_size(architecture):
        arguments["img_size"] = image_size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model: nn.Module = timm.create_model(architecture, **arguments)
        except TypeError as error:
            if not drop_path:
                raise
            raise InputError(f"{architecture} has no drop path ({error}): leave it out.") from None
        except (AssertionError, ValueError, RuntimeError) as error:
            raise InputError(f"{architecture} cannot be built for {image_size} px: {error}.") from None
    if weights is not None:
        found = fitted(model, architecture, weights, image_size=image_size, classes=classes)
        model.load_state_dict(found, strict=False)
    return model.eval().requires_grad_(False)


def fitted(
    model: nn.Module, architecture: str, weights: Path, *, image_size: int, classes: int
) -> dict[str, torch.Tensor]:
    """A file's tensors in the names of timm's model, which may be on the meta device.

    If we have a model of that name, the file is read like in `factory.load_weights`: its names are timm's, so
    both accept the same files, in all dialects. Otherwise timm's filters convert it.

    Raises:
        InputError: the file cannot be read, holds NaN or infinity, or does not fit.
    """
    if is_ours(architecture):
        with torch.device("meta"):
            ours = factory.build(architecture, image_size=image_size, num_classes=classes)
        try:
            return factory.fitting(ours, weights)
        except factory.Unfit as error:
            fix = error.fix if error.head is None else checkpoints.HEAD_FIXES[error.head]
            raise InputError(f"{weights} does not fit {architecture}: {error.why}; {fix}.") from None
    state, stated = checkpoints.read_state_dict(weights), read_stated(weights)
    if stated is not None and _differs(stated.architecture, architecture):
        raise InputError(
            f"{stated.source} says the weights next to it are of {stated.architecture}, not of "
            f"{architecture}: name that architecture (--arch)."
        )
    try:
        return checkpoints.fitted(model, state, source=str(weights))
    except checkpoints.Unfit as error:
        instead = None if error.head else advice.fitting_name(state, stated, None)
        if instead is None:
            raise
        fix = advice.name_instead(instead, None)
        raise InputError(f"{weights} does not fit {architecture}: {error.why}; {fix} (--arch).") from None


def _differs(stated: str | None, architecture: str) -> bool:
    """Whether timm knows both and builds them with different functions; old names are fine."""
    if stated is None or not timm.is_model(stated):
        return False
    return timm.model_entrypoint(stated) is not timm.model_entrypoint(architecture)


HEADS = ("head", "head.fc", "classifier", "fc", "_fc")
"""Names of the classifier in timm's models, in other libraries' files and in original repositories."""


def classes_in(architecture: str, given: Mapping[str, torch.Tensor]) -> int:
    """K of the classifier in the file of a timm architecture; 0: it has none."""
    config: Any = timm.get_pretrained_cfg(architecture, allow_unregistered=False)
    named = getattr(config, "classifier", None)
    own = (named,) if isinstance(named, str) else tuple(named or ())
    for spelling in spellings(given):
        found = (spelling.get(f"{head}.weight") for head in (*own, *HEADS))
        classes = next((len(weight) for weight in found if weight is not None and weight.ndim > 1), 0)
        if classes:
            return classes
    return 0


def is_ours(architecture: str) -> bool:
    """Whether we also have a classifier of that name, whose tensors have timm's names."""
    return architecture in MODELS and architecture not in TWO_TOWERS


def _takes_image_size(architecture: str) -> bool:
    """Whether the built model has parameters or tables that depend on the image size."""
    config = timm.get_pretrained_cfg(architecture, allow_unregistered=False)
    fixed = bool(config is not None and getattr(config, "fixed_input_size", False))
    if not fixed:
        return False
    entry = timm.model_entrypoint(architecture)
    return any(p.kind is inspect.Parameter.VAR_KEYWORD for p in inspect.signature(entry).parameters.values())


def published_preprocess(name: str) -> dict[str, Any]:
    """The fields of a `Preprocess` from timm's record of that name (without a tag: of its default one).

    Raises:
        InputError: an unknown tag, or a preprocessing that Vitrail does not offer.
    """
    try:
        config: Any = timm.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError as error:
        raise InputError(f"{error} Name the architecture without a tag, or with one of timm's.") from None
    if config.interpolation not in INTERPOLATIONS or config.crop_mode not in CROP_MODES:
        raise InputError(
            f"{name} is prepared with {config.interpolation} interpolation and crop mode {config.crop_mode}, "
            f"and only {', '.join(INTERPOLATIONS + CROP_MODES)} are offered: choose another architecture."
        )
    return {
        "image_size": int((config.test_input_size or config.input_size)[-1]),
        "crop": config.test_crop_pct or config.crop_pct,
        "crop_mode": config.crop_mode,
        "interpolation": config.interpolation,
        "mean": tuple(config.mean),
        "std": tuple(config.std),
    }


def check_known(architecture: str) -> None:
    """Raise an InputError, naming the nearest names, unless timm has this architecture."""
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "`vitrail models` lists some that it has."
        raise InputError(f"timm has no architecture {architecture!r}: {hint}")

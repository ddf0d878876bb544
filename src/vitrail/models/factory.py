"""Builds our models by name, and loads weights files into them."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitrail.errors import InputError
from vitrail.models import advice
from vitrail.models.facts import contradiction
from vitrail.models.registry import looked_up
from vitrail.weights import checkpoints
from vitrail.weights.checkpoints import Unfit
from vitrail.weights.dialects import Unclear
from vitrail.weights.finite import check_weights
from vitrail.weights.naming import NotWhole, in_our_names, is_head
from vitrail.weights.stated import read_stated

__all__ = ["Unfit", "build", "fitting", "load_weights"]


def build(
    name: str,
    *,
    image_size: int | tuple[int, int] | None = None,
    num_classes: int | None = None,
    **overrides: Any,
) -> nn.Module:
    """A model by its name, with random values, in evaluation mode.

    Args:
        name: timm's without a tag (`vit_base_patch16_224`); for CLIP, open_clip's (`ViT-B-32`).
        image_size: pixels, a number or (H, W), that tables are made for; None: the default of the name.
        num_classes: K; 0: no head, the model returns features; None: the default of the name.
        overrides: fields of the model's config, e.g. `attention="naive"` or `drop_path=0.1`.

    Raises:
        InputError: an unknown name or field, or a value that the architecture cannot have.
    """
    kind, config = looked_up(name)
    changes = dict(overrides)
    if image_size is not None:
        changes["image_size"] = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if num_classes is not None:
        changes["num_classes"] = num_classes
    _check_fields(name, config, changes)
    # CLIP's image size and kernel are fields of its towers.
    changed = config.overridden(**changes) if hasattr(config, "overridden") else None
    model: nn.Module = kind(changed or dataclasses.replace(config, **changes))
    return model.eval()


def load_weights(
    model: nn.Module,
    weights: str | Path | Mapping[str, Tensor],
    *,
    replace_head: bool = False,
    image_size: int | tuple[int, int] | None = None,
    window: int | tuple[int, int] | None = None,
) -> None:
    """Load all of a file's tensors into a model of ours, or none.

    The dialect (timm, torchvision, Hugging Face transformers, the original repositories, …) is read off the
    keys; position and bias tables of another size are resampled to the model's. Whatever else the file states
    about its model (`facts.py`) must be true of this one.

    Args:
        model: from `build`; one on the meta device takes over the file's tensors.
        weights: safetensors, or a torch file that holds tensors only; or a state dict.
        replace_head: leave the file's classifier out and keep the model's own.
        image_size: pixels, a number or (H, W), that a ViT's position table in the file is made for; None:
            deduced from its rows, unless they fit both the model's own oblong grid and a square one.
        window: tokens, a number or (rows, columns), that Swin v1's tables in the file are made for; None: as
            `image_size`.

    Raises:
        InputError: the file cannot be read, holds NaN or infinity, or does not fit; the message lists
            missing, unexpected and differently shaped tensors, or a fact, and the model that would fit, if
            any.
    """
    mapped = fitting(model, weights, replace_head=replace_head, image_size=image_size, window=window)
    own = model.state_dict()
    if any(value.is_meta for value in own.values()):
        # Assigned tensors would keep the file's dtype.
        model.load_state_dict({k: v.to(own[k].dtype) for k, v in mapped.items()}, assign=True)
    else:
        model.load_state_dict(mapped)


def fitting(
    model: nn.Module,
    weights: str | Path | Mapping[str, Tensor],
    *,
    replace_head: bool = False,
    image_size: int | tuple[int, int] | None = None,
    window: int | tuple[int, int] | None = None,
) -> dict[str, Tensor]:
    """The tensors that `load_weights` would load, in the model's names and shapes; the model is not changed.

    Raises:
        InputError: as `load_weights`; an `Unfit` where the tensors are another model's.
    """
    stated = None
    if isinstance(weights, Mapping):
        source, given = "The state dict", dict(weights)
    else:
        source, given = str(weights), checkpoints.read_state_dict(Path(weights))
        stated = read_stated(Path(weights))
    named = _named(model, given, source)
    if image_size is None and stated is not None:
        image_size = stated.image_size
    mapped = _adapted(model, named, source, image_size=_pair(image_size), window=_pair(window))
    check_weights(mapped, given, source, _dtype(model))
    if replace_head:
        # After the check: even a discarded head, if damaged, is a sign of a damaged file.
        own_head = {key: value for key, value in model.state_dict().items() if is_head(model, key)}
        mapped = {key: value for key, value in mapped.items() if not is_head(model, key)} | own_head
    why = checkpoints.mismatch(model, mapped)
    if why:
        head = advice.about_head(model, mapped)
        if head is not None:
            raise Unfit(source, model, why, head[1], head=head[0])
        raise Unfit(source, model, why, advice.name_instead(advice.fitting_name(given, stated, model), model))
    found = contradiction(model, named, stated)
    if found is not None:
        instead = advice.fitting_name(given, stated, model)
        fix = found.fix if instead is None else advice.name_instead(instead, model)
        raise Unfit(source, model, found.said, fix)
    return mapped


def _named(model: nn.Module, given: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    try:
        return in_our_names(model, given)
    except NotWhole as error:
        raise InputError(f"{source} {error}.") from None


def _adapted(
    model: nn.Module, named: dict[str, Tensor], source: str, **sizes: tuple[int, int] | None
) -> dict[str, Tensor]:
    adapt: Any = model.adapt_weights
    try:
        adapted: dict[str, Tensor] = adapt(named, **sizes)
    except Unclear as error:
        # Weights of another model: missing and unexpected tensors say more than its position table.
        own = model.state_dict()
        tables = {key for key in own if key.endswith(("pos_embed", "relative_position_bias_table"))}
        if checkpoints.mismatch(model, {**error.state, **{key: own[key] for key in tables}}):
            return error.state
        raise InputError(f"{source} does not fit {type(model).__name__}: {error}") from None
    return adapted


def _dtype(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters()), torch.float32)


def _pair(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    return (size, size) if isinstance(size, int) else size


def _check_fields(name: str, config: Any, changes: Mapping[str, Any]) -> None:
    fields = {field.name for field in dataclasses.fields(config)} | {"image_size", "num_classes", "attention"}
    unknown = sorted(changes.keys() - fields)
    if unknown:
        near = difflib.get_close_matches(unknown[0], fields, n=2) or sorted(fields)
        raise InputError(f"{name} has no field {unknown[0]!r}: did you mean {' or '.join(near)}?")
    size = changes.get("image_size")
    if size is not None and (len(size) != 2 or not all(isinstance(n, int) and n > 0 for n in size)):
        raise InputError(f"{size} is not an image size: give a number of pixels, or (height, width).")
    classes = changes.get("num_classes")
    if classes is not None and (not isinstance(classes, int) or classes < 0):
        raise InputError(f"{classes} is not a number of classes: give 1 or more, or 0 for features.")

"""Advice for weights that do not fit a model of ours; following it must work."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vitrail.errors import InputError
from vitrail.models.facts import contradiction
from vitrail.models.registry import MODELS, SEGMENTERS, looked_up
from vitrail.models.sam2_config import HieraConfig, RepViTConfig
from vitrail.weights.checkpoints import Head, mismatch
from vitrail.weights.naming import NotWhole, in_our_names, is_head
from vitrail.weights.stated import Stated

__all__ = ["about_head", "fitting_name", "name_instead"]


def about_head(model: nn.Module, mapped: Mapping[str, Tensor]) -> tuple[Head, str] | None:
    """How the classifier differs and what to do, if nothing else differs; None: something else does.

    Args:
        model: one of ours.
        mapped: the file's tensors, adapted to it.
    """
    own = model.state_dict()
    wrong = (own.keys() ^ mapped.keys()) | {
        key for key in own.keys() & mapped.keys() if own[key].shape != mapped[key].shape
    }
    if not wrong or not all(is_head(model, key) for key in wrong):
        return None
    head = {key: value for key, value in mapped.items() if is_head(model, key)}
    if not head:
        return "none", "only the head differs: build the model with num_classes=0 (the file has no head)"
    weight = next(iter(head.values()))
    # Masks' classifiers are convolutions.
    if weight.ndim == 2 and weight.shape[1] != (width := _features(model)):
        double = " (DINOv2's, of the class token and the mean of the patches)"
        return "other", (
            f"only the head differs: the file's reads {weight.shape[1]} features"
            f"{double if weight.shape[1] == 2 * width else ''} and this model gives {width}, so it cannot be "
            "kept: load with replace_head=True"
        )
    if len(head) == 2 and {key.rpartition(".")[2] for key in head} == {"weight", "bias"}:
        return "classes", (
            f"only the head differs: build the model with num_classes={len(weight)}, or load with "
            "replace_head=True"
        )
    return "other", "only the head differs: load with replace_head=True"


def name_instead(found: tuple[str, tuple[int, int]] | None, model: nn.Module | None) -> str:
    """The advice to use another model, by its name, and by its image size if that differs."""
    if found is None:
        return "none of Vitrail's own models has these tensors: name the architecture they were trained with"
    name, size = found
    own: Any = getattr(model, "config", None)
    at = "" if own is None or own.image_size == size else " at its own {} × {} pixels".format(*size)
    return f"they are the weights of {name}: name that model{at}"


def fitting_name(
    given: Mapping[str, Tensor], stated: Stated | None, requested: nn.Module | None
) -> tuple[str, tuple[int, int]] | None:
    """Our model (and its image size) whose tensors, except the head's, all have these shapes, and that
    contradicts nothing the file states. Among several, the one most similar to the requested model in what
    the file leaves open.
    """
    best: tuple[tuple[bool, ...], str, tuple[int, int]] | None = None
    for name, model, named in _plausible(given):
        if not _fits(model, named, stated):
            continue
        rank = _likeness(model, named, requested)
        if best is None or rank > best[0]:
            config: Any = model.config
            best = rank, name, config.image_size
    return None if best is None else best[1:]


def _plausible(given: Mapping[str, Tensor]) -> Iterator[tuple[str, nn.Module, dict[str, Tensor]]]:
    """Our models on the meta device with the file's patch size and depth, each with the file in its names."""
    translated: dict[type[nn.Module], dict[str, Tensor] | None] = {}
    for name in (*MODELS, *SEGMENTERS):
        kind, config = looked_up(name)
        if kind not in translated:
            with torch.device("meta"):
                first = kind(config)
            try:
                translated[kind] = in_our_names(first, given)
            except (NotWhole, RuntimeError):
                translated[kind] = None
        named = translated[kind]
        if named is None or not _same_outline(config, named):
            continue
        with torch.device("meta"):
            yield name, kind(config), named


def _same_outline(config: Any, named: Mapping[str, Tensor]) -> bool:
    """A cheap check before building a model: the patch projection, and the number of blocks."""
    if hasattr(config, "trunk"):
        return _same_trunk(config.trunk, named)
    image, before = _image_part(config)
    patches = named.get(f"{before}patch_embed.proj.weight")
    if patches is None or patches.shape != (image.width, image.channels, *(image.patch_size,) * 2):
        return False
    if hasattr(image, "depths"):
        last = len(image.depths) - 1
        return f"{before}layers.{last}.blocks.{image.depths[-1] - 1}.norm1.weight" in named
    return f"{before}blocks.{image.depth - 1}.norm1.weight" in named


def _same_trunk(trunk: HieraConfig | RepViTConfig, named: Mapping[str, Tensor]) -> bool:
    if isinstance(trunk, RepViTConfig):
        return any(name.startswith("image_encoder.trunk.body.") for name in named)
    positions = named.get("image_encoder.trunk.pos_embed")
    last = f"image_encoder.trunk.blocks.{sum(trunk.depths) - 1}.norm1.weight"
    return positions is not None and positions.shape[1] == trunk.width and last in named


def _image_part(config: Any) -> tuple[Any, str]:
    """The config of the part that reads images, and what its tensors' names begin with."""
    if hasattr(config, "image"):
        return config.image, "image."
    if hasattr(config, "backbone"):
        return config.backbone, "backbone."
    return config, "image_encoder." if hasattr(config, "global_blocks") else ""


def _fits(model: nn.Module, named: Mapping[str, Tensor], stated: Stated | None) -> bool:
    adapt: Any = model.adapt_weights
    try:
        adapted: dict[str, Tensor] = adapt(dict(named))
    except (InputError, RuntimeError, KeyError, ValueError):
        return False
    own = {key: value for key, value in model.state_dict().items() if is_head(model, key)}
    body = {key: value for key, value in adapted.items() if not is_head(model, key)}
    return mismatch(model, body | own) is None and contradiction(model, named, stated) is None


def _likeness(model: nn.Module, named: Mapping[str, Tensor], requested: nn.Module | None) -> tuple[bool, ...]:
    config: Any = model.config
    other: Any = getattr(requested, "config", None)
    own = model.state_dict()
    as_it_stands = all(value.shape == own[key].shape for key, value in named.items() if key in own)
    return (
        type(model) is type(requested),
        _activation(config) == _activation(other),
        as_it_stands,
        config.image_size == getattr(other, "image_size", None),
    )


def _activation(config: Any) -> str | None:
    found: str | None = getattr(getattr(config, "image", config), "activation", None)
    return found


def _features(model: nn.Module) -> int:
    config: Any = model.config
    found: int = config.width << (len(config.depths) - 1) if hasattr(config, "depths") else config.width
    return found

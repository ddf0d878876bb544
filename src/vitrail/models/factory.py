"""Names -> models of our own, and weights files -> their values."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitrail.errors import InputError
from vitrail.models import checkpoints, dialects
from vitrail.models.table import MODELS

__all__ = ["build", "load_weights"]


def build(
    name: str,
    *,
    image_size: int | tuple[int, int] | None = None,
    num_classes: int | None = None,
    **overrides: Any,
) -> nn.Module:
    """A model by its name, with random values, in evaluation mode.

    Args:
        name: timm's without a tag (`vit_base_patch16_224`), for CLIP open_clip's (`ViT-B-32`).
        image_size: pixels, a number or (H, W); None: the name's own. Tables are made for it.
        num_classes: K; 0: no head, the model gives features; None: the name's own.
        overrides: fields of the model's config, e.g. `attention="naive"` or `drop_path=0.1`.

    Raises:
        InputError: an unknown name or field, or a value that the architecture cannot have.
    """
    kind, config = _looked_up(name)
    changes = dict(overrides)
    if image_size is not None:
        changes["image_size"] = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if num_classes is not None:
        changes["num_classes"] = num_classes
    _check_fields(name, config, changes)
    # CLIP's size and kernel belong to its towers.
    changed = config.overridden(**changes) if hasattr(config, "overridden") else None
    model: nn.Module = kind(changed or dataclasses.replace(config, **changes))
    return model.eval()


def load_weights(
    model: nn.Module, weights: str | Path | Mapping[str, Tensor], *, replace_head: bool = False
) -> None:
    """Load all of a file's tensors into a model of ours, or none.

    The dialect (timm, torchvision, Hugging Face transformers, the original repositories, …) is read off the
    keys; position and bias tables of another size are resampled to the model's.

    Args:
        model: from `build`; on the meta device too, it then holds the file's tensors.
        weights: safetensors, or a torch file that holds tensors only; or a state dict.
        replace_head: leave the file's classifier out and keep the model's own.

    Raises:
        InputError: the file cannot be read, or it does not fit: missing, unexpected and differently shaped
            tensors in groups, and the model they do fit, where we have it.
    """
    if isinstance(weights, Mapping):
        source, state_dict = "The state dict", dict(weights)
    else:
        source, state_dict = str(weights), checkpoints.read_state_dict(Path(weights))
    mapped = _in_our_names(model, state_dict, source)
    if replace_head:
        own_head = {key: value for key, value in model.state_dict().items() if _is_head(model, key)}
        mapped = {key: value for key, value in mapped.items() if not _is_head(model, key)} | own_head
    problem = checkpoints.mismatch(model, mapped)
    if problem:
        raise InputError(
            f"{source} does not fit {type(model).__name__}: {problem}; {_advice(model, mapped, state_dict)}."
        )
    own = model.state_dict()
    if any(value.is_meta for value in own.values()):
        # Assigned tensors would bring the file's dtype along.
        model.load_state_dict({k: v.to(own[k].dtype) for k, v in mapped.items()}, assign=True)
    else:
        model.load_state_dict(mapped)


def _looked_up(name: str) -> tuple[type[nn.Module], Any]:
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"we have {', '.join(list(MODELS)[:3])}, …"
        if "." in name and name.split(".")[0] in MODELS:
            hint = f"name it without its tag, {name.split('.')[0]}."
        raise InputError(f"Vitrail has no model {name!r} of its own: {hint}")
    module_name, _, class_name = MODELS[name].partition(":")
    module = importlib.import_module(module_name)
    return getattr(module, class_name), module.VARIANTS[name]


def _check_fields(name: str, config: Any, changes: Mapping[str, Any]) -> None:
    fields = {field.name for field in dataclasses.fields(config)} | {"image_size", "num_classes", "attention"}
    unknown = sorted(changes.keys() - fields)
    if unknown:
        near = difflib.get_close_matches(unknown[0], fields, n=2) or sorted(fields)
        raise InputError(f"{name} has no field {unknown[0]!r}: did you mean {' or '.join(near)}?")
    size = changes.get("image_size")
    if size is not None and (len(size) != 2 or not all(isinstance(n, int) and n > 0 for n in size)):
        raise InputError(f"{size} is no image size: give a number of pixels, or (height, width).")
    classes = changes.get("num_classes")
    if classes is not None and (not isinstance(classes, int) or classes < 0):
        raise InputError(f"{classes} is no number of classes: give 1 or more, or 0 for features.")


def _in_our_names(model: nn.Module, state_dict: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    model_dialects: tuple[dialects.Dialect, ...] = getattr(model, "DIALECTS", ())
    dialect = dialects.detect(state_dict, model_dialects)
    try:
        named = state_dict if dialect is None else dialects.translate(state_dict, dialect)
    except ValueError as error:
        assert dialect is not None
        raise InputError(f"{source} looks like {dialect.name} and is not whole: {error}.") from None
    adapt: Any = model.adapt_weights
    adapted: dict[str, Tensor] = adapt(named)
    return adapted


def _is_head(model: nn.Module, key: str) -> bool:
    prefixes: tuple[str, ...] = getattr(model, "head_prefix", ())
    return any(key.startswith(prefix) for prefix in prefixes)


def _advice(model: nn.Module, mapped: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    own = model.state_dict()
    wrong = set(own.keys() ^ mapped.keys()) | {
        k for k in own.keys() & mapped.keys() if own[k].shape != mapped[k].shape
    }
    if all(_is_head(model, key) for key in wrong):
        classes = next((len(v) for k, v in mapped.items() if _is_head(model, k)), None)
        found = f"num_classes={classes}" if classes else "num_classes=0 (the file has no head)"
        return f"only the head differs: build the model with {found}, or load with replace_head=True"
    name = _fitting_name(given)
    return (
        f"they are the weights of {name}: build that"
        if name
        else ("build the model that the weights were trained with")
    )


def _fitting_name(state_dict: Mapping[str, Tensor]) -> str | None:
    """The first of our models whose keys and shapes, but for the head's, are the given ones."""
    for name in MODELS:
        with torch.device("meta"):
            model = build(name)
        try:
            named = _in_our_names(model, dict(state_dict), "")
        except (InputError, RuntimeError, KeyError, ValueError):
            continue
        own = {k: v.shape for k, v in model.state_dict().items() if not _is_head(model, k)}
        if own == {k: v.shape for k, v in named.items() if not _is_head(model, k)}:
            return name
    return None

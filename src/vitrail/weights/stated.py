"""Reads the config file next to a weights file: `config.json` or `open_clip_config.json`.

Models with identical tensors can differ in what no tensor shows: the activation, the number of heads,
SwinV2's window. Repositories of transformers, timm and open_clip state it in a file next to the weights,
which is read if the weights file has the name used in such repositories.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitrail.errors import InputError

__all__ = ["Stated", "read_stated"]

BESIDE = {
    "model.safetensors": "config.json",
    "pytorch_model.bin": "config.json",
    "open_clip_model.safetensors": "open_clip_config.json",
    "open_clip_pytorch_model.bin": "open_clip_config.json",
}
"""Names of weights files in repositories -> their config file. For other files a config may be unrelated."""

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "silu": "silu",
    "swish": "silu",
}

DEFAULTS = {"clip": "quick_gelu", "siglip": "gelu_pytorch_tanh"}
"""Default of `hidden_act` in transformers, by the first word of the model type; otherwise gelu."""


@dataclass(frozen=True, kw_only=True)
class Stated:
    """What the file states about the model; None: nothing."""

    source: str
    """Path of the file."""
    architecture: str | None = None
    """timm's name."""
    activation: str | None = None
    """Of the image tower, as named in `choices.ACTIVATIONS`."""
    text_activation: str | None = None
    heads: int | None = None
    text_heads: int | None = None
    image_size: tuple[int, int] | None = None
    """(H, W) that position tables are made for."""
    window: int | None = None
    """Of a Swin."""
    pretrained_window: tuple[int, ...] | None = None
    """Of a SwinV2, as `SwinConfig` has it."""


def read_stated(path: Path) -> Stated | None:
    """What the repository's config states about the weights at `path`; None: no such file, or nothing stated.

    Raises:
        InputError: that file cannot be read as JSON.
    """
    name = BESIDE.get(path.name)
    if name is None or not (path.parent / name).is_file():
        return None
    file = path.parent / name
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(
            f"{file}, which describes the weights next to it, cannot be read as JSON ({error}): fetch "
            "it again, or take the weights file out of its folder."
        ) from None
    if not isinstance(found, dict):
        return None
    try:
        if name != "config.json":
            return _open_clip(str(file), found)
        return _transformers(str(file), found) if "model_type" in found else _timm(str(file), found)
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise InputError(
            f"{file}, which describes the weights next to it, is not as its library writes it "
            f"({type(error).__name__}: {error}): fetch it again, or take the weights file out of its folder."
        ) from None


def _transformers(source: str, found: Mapping[str, Any]) -> Stated:
    kind = str(found["model_type"])
    image = found.get("vision_config") or found
    text = found.get("text_config") or {}
    both = "vision_config" in found
    sizes = image.get("pretrained_window_sizes")
    swin = kind.startswith("swin")
    return Stated(
        source=source,
        activation=_hidden_act(kind, image),
        text_activation=_hidden_act(kind, text) if both else None,
        heads=None if swin else _number(image.get("num_attention_heads")),
        text_heads=_number(text.get("num_attention_heads")),
        image_size=_pair(image.get("image_size")),
        window=_number(image.get("window_size")),
        pretrained_window=None if sizes is None else tuple(int(size) for size in sizes),
    )


def _hidden_act(kind: str, part: Mapping[str, Any]) -> str | None:
    default = DEFAULTS.get(kind.split("_")[0], "gelu")
    return ACTIVATIONS.get(str(part.get("hidden_act", default)))


def _timm(source: str, found: Mapping[str, Any]) -> Stated | None:
    name = found.get("architecture")
    return Stated(source=source, architecture=name) if isinstance(name, str) else None


def _open_clip(source: str, found: Mapping[str, Any]) -> Stated | None:
    config = found.get("model_cfg")
    if not isinstance(config, dict):
        return None
    image, text = config["vision_cfg"], config["text_cfg"]
    plain = "quick_gelu" if config.get("quick_gelu") else "gelu"
    tanh = (text.get("act_kwargs") or {}).get("approximate") == "tanh"
    of_timm = "timm_model_name" in image
    return Stated(
        source=source,
        activation=None if of_timm else plain,
        text_activation="gelu_tanh" if tanh else plain,
        heads=None if of_timm or "width" not in image else image["width"] // image.get("head_width", 64),
        text_heads=_number(text.get("heads")),
        image_size=_pair(image.get("image_size")),
    )


def _number(value: Any) -> int | None:
    return None if value is None else int(value)


def _pair(value: Any) -> tuple[int, int] | None:
    if value is None:
        return None
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[1]))

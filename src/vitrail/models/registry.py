"""The names of our models, and the class and config of each.

Importing this module does not import torch, so that `select` can ask whether we have a model.
"""

from __future__ import annotations

import difflib
import importlib
from typing import TYPE_CHECKING, Any

from vitrail.errors import InputError
from vitrail.models import clip_config, sam2_config, sam_config, swin_config, upernet_config, vit_config

if TYPE_CHECKING:
    from torch import nn

__all__ = ["MODELS", "OF_IMAGES", "OWN", "PROMPTABLE", "SEGMENTERS", "TWO_TOWERS", "looked_up"]

TWO_TOWERS = clip_config.VARIANTS
"""Models with an image and a text tower, under open_clip's names: not classifiers by themselves."""

MODELS: dict[str, str] = {
    **dict.fromkeys(vit_config.VARIANTS, "vitrail.models.vit:ViT"),
    **dict.fromkeys(swin_config.VARIANTS, "vitrail.models.swin:Swin"),
    **dict.fromkeys(clip_config.VARIANTS, "vitrail.models.clip:CLIP"),
}
"""name -> "module:class"; the module's `VARIANTS` holds the config."""

PROMPTABLE: dict[str, str] = {
    **dict.fromkeys(sam_config.VARIANTS, "vitrail.models.sam:SAM"),
    **dict.fromkeys(sam2_config.VARIANTS, "vitrail.models.sam2:SAM2"),
}
"""The same for models that answer prompts: with two `stages()`, and `facts()` that their task needs."""

SEGMENTERS: dict[str, str] = {
    **PROMPTABLE,
    **dict.fromkeys(upernet_config.VARIANTS, "vitrail.models.upernet:UPerNet"),
}
"""The same for models that give masks. A table of its own: all that asks `MODELS` wants scores or vectors
of an image."""

OF_IMAGES: dict[str, str] = {
    **MODELS,
    **dict.fromkeys(upernet_config.VARIANTS, "vitrail.models.upernet:UPerNet"),
}
"""Those of both tables that take images and nothing else."""

OWN = (
    "vit_nano_patch4_28",
    "vit_nano_patch16_224",
    "swin_nano_patch2_window7_28",
    "ViT-nano-8-64",
    "ViT-nano-8-64-sigmoid",
    "upernet_swin_nano",
    "sam_vit_nano",
)
"""Small models that only Vitrail has, to be trained from scratch."""


def looked_up(name: str) -> tuple[type[nn.Module], Any]:
    """The class and config of a name.

    Raises:
        InputError: we have no such model; the message names the nearest.
    """
    known = {**MODELS, **SEGMENTERS}
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"we have {', '.join(list(MODELS)[:3])}, …"
        if "." in name and name.split(".")[0] in known:
            hint = f"name it without its tag, {name.split('.')[0]}."
        raise InputError(f"Vitrail has no model {name!r} of its own: {hint}")
    module_name, _, class_name = known[name].partition(":")
    module = importlib.import_module(module_name)
    return getattr(module, class_name), module.VARIANTS[name]

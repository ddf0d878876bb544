"""Looks up the class and config of one of our models' names."""

from __future__ import annotations

import difflib
import importlib
from typing import Any

from torch import nn

from vitrail.errors import InputError
from vitrail.models.table import MODELS

__all__ = ["looked_up"]


def looked_up(name: str) -> tuple[type[nn.Module], Any]:
    """The class and config of a name.

    Raises:
        InputError: we have no such model; the message names the nearest.
    """
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"we have {', '.join(list(MODELS)[:3])}, …"
        if "." in name and name.split(".")[0] in MODELS:
            hint = f"name it without its tag, {name.split('.')[0]}."
        raise InputError(f"Vitrail has no model {name!r} of its own: {hint}")
    module_name, _, class_name = MODELS[name].partition(":")
    module = importlib.import_module(module_name)
    return getattr(module, class_name), module.VARIANTS[name]

"""Models: our own architectures, timm's under one contract, weights files, and what a model costs.

`build` and `load_weights` are the public part. They are loaded on first use, so that importing this package
does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__all__ = ["build", "load_weights"]

if TYPE_CHECKING:
    from vitrail.models.factory import build, load_weights


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("vitrail.models.factory"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

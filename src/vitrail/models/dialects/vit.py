"""The names of Vision Transformers in other codebases -> ours (timm's)."""

from __future__ import annotations

from vitrail.models.dialects import Dialect

DIALECTS: tuple[Dialect, ...] = ()

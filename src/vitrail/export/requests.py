"""What the exporting process is asked to do, as JSON between the processes."""

from __future__ import annotations

from typing import Any

import msgspec

from vitrail.vocabulary import Implementation

__all__ = ["BuildRequest", "ExportRequest", "HeadRequest", "ModuleRequest", "ReferenceRequest"]


class ModuleRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Which module to build; `weights` None means random weights of a fixed seed."""

    architecture: str
    implementation: Implementation
    labels: str
    """Name of a label set, or path of a file with one label per line."""
    weights: str | None
    threads: int


class ExportRequest(ModuleRequest, frozen=True, kw_only=True):
    """What to export."""

    image_size: int
    folder: str
    task: str = "classify"
    """`embed`: without the classifier, (B, 3, S, S) -> (B, D) features."""
    compare: bool = True
    """Compare our module with timm's for the same weights."""

    @property
    def features(self) -> bool:
        """Whether the classifier is left out."""
        return self.task == "embed"


class ReferenceRequest(ModuleRequest, frozen=True, kw_only=True):
    """Which outputs of the fp32 eager reference to compute, and for how long at most."""

    task: dict[str, Any]
    """As `tasks.pack` gives it."""
    photos: list[str]
    crops_per_photo: int
    seconds: float
    minimum: int
    target: str

    @property
    def features(self) -> bool:
        """Whether the classifier is left out."""
        return bool(self.task["facts"]["name"] == "embed")


class BuildRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Which engine's files to build from an export's graph."""

    folder: str
    """Of the export."""
    runtime: str
    target: str
    """The folder to make."""


class HeadRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A linear classifier to replace a model's own; `weights` and `labels` are the model's."""

    architecture: str
    image_size: int
    labels: str
    weights: str
    head: str
    """`.npz` with `weight` (K, D) and `bias` (K)."""
    target: str
    """The safetensors file to write: all weights, including the new classifier."""
    threads: int

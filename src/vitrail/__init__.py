"""Vitrail: from requirements to a verified, deployable vision model.

The public API. Names are looked up when they are first used: importing vitrail imports no engine, and
only `select` needs the workbench (torch).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from vitrail.version import __version__

__all__ = [
    "Accuracy",
    "Candidate",
    "ClaimError",
    "ClassNames",
    "Clicked",
    "Comparison",
    "Encoded",
    "InputError",
    "MissingExtraError",
    "OwnCLIP",
    "OwnONNX",
    "OwnWeights",
    "Prediction",
    "Predictor",
    "Requirements",
    "SearchSettings",
    "Segmentation",
    "Selection",
    "TrainedRuns",
    "Variant",
    "VitrailError",
    "Watcher",
    "Workload",
    "__version__",
    "compare",
    "load",
    "select",
]

if TYPE_CHECKING:
    from vitrail.comparison import Comparison, compare
    from vitrail.errors import ClaimError, InputError, MissingExtraError, VitrailError
    from vitrail.predict import Clicked, Encoded, Prediction, Predictor, Segmentation, load
    from vitrail.selection.select import Watcher, select
    from vitrail.sources.own import OwnWeights
    from vitrail.sources.own_onnx import OwnONNX
    from vitrail.sources.trained import TrainedRuns
    from vitrail.sources.zero_shot import ClassNames, OwnCLIP
    from vitrail.vocabulary import (
        Accuracy,
        Candidate,
        Requirements,
        SearchSettings,
        Selection,
        Variant,
        Workload,
    )

_PLACES = {
    "vitrail.errors": ("ClaimError", "InputError", "MissingExtraError", "VitrailError"),
    "vitrail.vocabulary": (
        "Accuracy",
        "Candidate",
        "Requirements",
        "SearchSettings",
        "Selection",
        "Variant",
        "Workload",
    ),
    "vitrail.comparison": ("Comparison", "compare"),
    "vitrail.predict": ("Clicked", "Encoded", "Prediction", "Predictor", "Segmentation", "load"),
    "vitrail.selection.select": ("Watcher", "select"),
    "vitrail.sources.own": ("OwnWeights",),
    "vitrail.sources.own_onnx": ("OwnONNX",),
    "vitrail.sources.trained": ("TrainedRuns",),
    "vitrail.sources.zero_shot": ("ClassNames", "OwnCLIP"),
}
_MODULE_OF = {name: module for module, names in _PLACES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(importlib.import_module(_MODULE_OF[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

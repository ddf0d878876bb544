"""One image's result as JSON, by task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

__all__ = ["AGREEMENT", "RESULTS", "agree", "as_json", "error_json"]


def _labels(result: Any) -> dict[str, Any]:
    return {"labels": result.top}


def _vector(result: Any) -> dict[str, Any]:
    return {"vector": result.tolist()}  # each float32 as the double of the same value


RESULTS: dict[str, Callable[[Any], dict[str, Any]]] = {"classify": _labels, "embed": _vector}
"""Task -> what `finish` gave for one image, as plain data."""


AGREEMENT = {"classify": "share of the same best label", "embed": "cosine of the vectors"}
"""Task -> what `agree` gives."""


def as_json(task: str, result: Any) -> bytes:
    """What `finish` gave for one image."""
    return msgspec.json.encode(RESULTS[task](result))


def error_json(code: str, message: str) -> bytes:
    """In the place of a result: why the image has none."""
    return msgspec.json.encode({"error": {"code": code, "message": message}})


def agree(task: str, ours: dict[str, Any], theirs: dict[str, Any]) -> float | None:
    """How two models' results for one image agree: 1 or 0 for the best label, the cosine of two vectors.

    None: one of them has no result, or the vectors have different widths.
    """
    if "error" in ours or "error" in theirs:
        return None
    if task == "classify":
        return float(ours["labels"][0]["label"] == theirs["labels"][0]["label"])
    a, b = ours["vector"], theirs["vector"]
    if len(a) != len(b):
        return None
    norms = sum(x * x for x in a) ** 0.5 * sum(y * y for y in b) ** 0.5
    return sum(x * y for x, y in zip(a, b, strict=True)) / norms if norms else None

"""How far the results of two models for one image agree, by task; the process that passes answers on asks."""

from __future__ import annotations

from typing import Any

from vitrail.masks import rle
from vitrail.serve.forms import PROMPTABLE, SEGMENT

__all__ = ["AGREEMENT", "agree"]

LEAST = 0.001
"""Share of a photo: what is smaller on both sides is no mask."""

AGREEMENT = {
    "classify": "share of the same best label",
    "embed": "cosine of the vectors",
    SEGMENT: "mean IoU of the masks",
    PROMPTABLE: "IoU of the masks",
}
"""Task -> what `agree` gives."""


def agree(task: str, ours: dict[str, Any], theirs: dict[str, Any]) -> float | None:
    """How two models' results for one image agree, as `AGREEMENT` says.

    None: one of them has no result, or the vectors have different widths.
    """
    if "error" in ours or "error" in theirs:
        return None
    if task == "classify":
        return float(ours["labels"][0]["label"] == theirs["labels"][0]["label"])
    if task in (SEGMENT, PROMPTABLE):
        return _same_masks(ours, theirs)
    a, b = ours["vector"], theirs["vector"]
    if len(a) != len(b):
        return None
    norms = sum(x * x for x in a) ** 0.5 * sum(y * y for y in b) ** 0.5
    return sum(x * y for x, y in zip(a, b, strict=True)) / norms if norms else None


def _same_masks(ours: dict[str, Any], theirs: dict[str, Any]) -> float:
    """The mean IoU over the labels that either has, or of the one mask without; 1 where neither has one."""
    a, b = ({mask.get("label"): mask for mask in side["masks"]} for side in (ours, theirs))
    labels = {mask.get("label") for mask in (*a.values(), *b.values()) if mask["share"] >= LEAST}
    ious = [_iou(a[label], b[label]) if label in a and label in b else 0.0 for label in labels]
    return sum(ious) / len(ious) if ious else 1.0


def _iou(one: dict[str, Any], other: dict[str, Any]) -> float:
    a, b = rle.from_coco(one["mask"]), rle.from_coco(other["mask"])
    both = rle.overlap(a, b)
    return both / (a.area + b.area - both)

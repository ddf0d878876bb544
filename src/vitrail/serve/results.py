"""One image's result as JSON or as a PNG, by task; and how far the results of two models agree."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from vitrail.images.decode import decode
from vitrail.images.limits import Limits
from vitrail.masks import pictures, rle
from vitrail.tasks.promptable import Clicked
from vitrail.tasks.segment import Segmentation, numbered

__all__ = [
    "AGREEMENT",
    "CUTOUT",
    "FORMS",
    "JSON",
    "PNG",
    "PROMPTABLE",
    "RESULTS",
    "SEGMENT",
    "Seen",
    "agree",
    "as_json",
    "as_png",
    "error_json",
]

SEGMENT, PROMPTABLE = "segment", "promptable"
JSON, PNG, CUTOUT = "json", "png", "cutout"
FORMS = (JSON, PNG, CUTOUT)
"""What an answer may be: JSON; the map of labels, or of a cut-out its alpha; the photo cut out."""
LEAST = 0.001
"""Share of a photo: what is smaller on both sides is no mask."""
QUICK = 1
"""zlib's level: a photo of twelve megapixels takes half a second, and more than two at the usual level."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a model that takes prompts says of a photo."""

    image: str
    """By which later prompts name it."""
    size: tuple[int, int]
    """(H, W)."""
    clicked: Clicked | None
    """None: there was no prompt."""


def _labels(result: Any) -> dict[str, Any]:
    return {"labels": result.top}


def _vector(result: Any) -> dict[str, Any]:
    return {"vector": result.tolist()}  # each float32 as the double of the same value


def _masks(result: Segmentation) -> dict[str, Any]:
    labels = result.labels()
    found = rle.of_labels(labels)
    masks = [
        {
            "label": name,
            "index": number,
            "share": found[number].area / labels.size,
            "box": found[number].box,
            "mask": found[number].coco(),
        }
        for name, number in numbered(result.classes)
        if number in found
    ]
    return {"size": labels.shape, "masks": masks}


def _clicks(result: Seen) -> dict[str, Any]:
    said: dict[str, Any] = {"size": result.size, "image_id": result.image, "masks": []}
    if result.clicked is not None:
        runs = rle.encode(result.clicked.mask)
        height, width = result.size
        said["masks"] = [
            {
                "iou": result.clicked.iou,
                "share": runs.area / (height * width),
                "box": runs.box,
                "mask": runs.coco(),
            }
        ]
    return said


RESULTS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "classify": _labels,
    "embed": _vector,
    SEGMENT: _masks,
    PROMPTABLE: _clicks,
}
"""Task -> what `finish` gave for one image, as plain data."""


AGREEMENT = {
    "classify": "share of the same best label",
    "embed": "cosine of the vectors",
    SEGMENT: "mean IoU of the masks",
    PROMPTABLE: "IoU of the masks",
}
"""Task -> what `agree` gives."""


def as_json(task: str, result: Any) -> bytes:
    """What `finish` gave for one image."""
    return msgspec.json.encode(RESULTS[task](result))


def as_png(form: str, result: Segmentation | Seen, data: bytes | memoryview, limits: Limits) -> bytes:
    """What `finish` gave for one photo as a PNG of its size.

    Args:
        form: `PNG` or `CUTOUT`.
        result: with the photo's size, and a prompt's answer.
        data: the photo's file, for the pixels of `CUTOUT`.
        limits: what the photo may ask for.

    Raises:
        InputError: `CUTOUT` of a model that tells classes apart.
    """
    if isinstance(result, Seen):
        assert result.clicked is not None
        mask = result.clicked.mask
        inside = pictures.of_inside(mask)
        image = (
            inside if form == PNG else pictures.cut_out(decode(data, limits=limits), mask.astype(np.float32))
        )
    elif form == CUTOUT:
        image = pictures.cut_out(decode(data, limits=limits), result.alpha())
    elif result.single:
        image = pictures.of_alpha(result.alpha())
    else:
        image = pictures.of_labels(result.labels(), len(result.classes))
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=QUICK)
    return file.getvalue()


def error_json(code: str, message: str) -> bytes:
    """In the place of a result: why the image has none."""
    return msgspec.json.encode({"error": {"code": code, "message": message}})


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

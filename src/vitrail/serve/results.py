"""One image's result as JSON or as a PNG, by task."""

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
from vitrail.serve.forms import CUTOUT, PNG, PROMPTABLE, SEGMENT
from vitrail.tasks.promptable import Clicked
from vitrail.tasks.segment import Segmentation, numbered

__all__ = [
    "RESULTS",
    "Seen",
    "as_json",
    "as_png",
    "error_json",
]

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

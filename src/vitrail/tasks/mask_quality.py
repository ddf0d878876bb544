"""Masks of labelled photos -> mean IoU with its interval over photos, and the IoU of each class."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from vitrail.masks.iou import ClassIous, iou, mean_interval
from vitrail.vocabulary import Figure, Quality

__all__ = ["IGNORED", "MEAN_IOU", "OF_CLASS", "quality"]

MEAN_IOU, OF_CLASS = "mean IoU", "IoU"
OUTSIDE = "outside"
IGNORED = -1
"""The label of pixels that are not judged."""


def quality(
    pairs: Iterable[tuple[np.ndarray, np.ndarray]], classes: Sequence[str], *, split: str, data: str
) -> Quality:
    """The figures of (true, found) labels, integer (H, W) each.

    Of K classes: pixels are counted over all photos, divided for each class, and averaged. Of one (a
    cut-out, 1 inside): the IoU of each photo is averaged; where nothing is inside on both sides it is 1.

    Raises:
        ValueError: labels that do not belong together.
        InputError: no photo, or none with a pixel that is judged.
    """
    names = tuple(classes) if len(classes) > 1 else (OUTSIDE, classes[0])
    if OUTSIDE in names[1:]:
        names = ("", *names[1:])
    counted = ClassIous(names, ignore=IGNORED)
    each: list[float] = []
    for truth, found in pairs:
        counted.add(truth.astype(np.int64), found.astype(np.int64))
        if len(classes) == 1:
            judged = truth != IGNORED
            each.append(iou(judged & (truth == 1), judged & (found == 1), empty=1.0))
    result = counted.result()
    value, interval = (result.value, result.interval) if len(classes) > 1 else _mean(each)
    pixels = np.array(result.confusion)
    right = 100 * float(np.trace(pixels) / pixels.sum())
    return Quality(
        split=split,
        data=data,
        images=result.photos,
        figures=(
            Figure(
                metric=MEAN_IOU,
                value=100 * value,
                interval=None if interval is None else (100 * interval[0], 100 * interval[1]),
                images=result.photos,
            ),
            Figure(metric="pixel accuracy", value=right, images=result.photos),
            *(
                Figure(metric=OF_CLASS, value=100 * found.iou, images=found.photos, label=found.name)
                for found in result.classes
                if found.name in classes
            ),
        ),
    )


def _mean(each: Sequence[float]) -> tuple[float, tuple[float, float] | None]:
    return float(np.mean(each)), mean_interval(each)

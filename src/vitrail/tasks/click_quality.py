"""Masks that one click found -> mean IoU with what was clicked on, with its interval over photos."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from vitrail.errors import InputError
from vitrail.masks.iou import grouped_mean_interval, iou
from vitrail.masks.rle import RunLengths
from vitrail.tasks.mask_quality import MEAN_IOU
from vitrail.vocabulary import Figure, Quality

__all__ = ["FOUND", "ClickTruth", "Judged", "quality"]

FOUND = "found"
"""Share of the objects whose mask has an IoU of at least `FOUND_FROM`."""
FOUND_FROM = 0.5


@dataclass(frozen=True, kw_only=True)
class ClickTruth:
    """One object of a labelled photo."""

    photo: str
    """What its photo is known by: objects of one photo are no independent evidence."""
    runs: RunLengths
    """Its mask at the photo's size."""
    click: tuple[float, float]
    """(x, y) in the photo's pixels, inside of it."""

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the photo."""
        return self.runs.size


Judged: TypeAlias = "tuple[ClickTruth, np.ndarray]"
"""An object, and the boolean mask (H, W) that was found for it."""


def quality(judged: Iterable[Judged], *, split: str, data: str) -> Quality:
    """Mean IoU over objects; photos are drawn for its interval, with all of their objects.

    Raises:
        InputError: there is no object.
    """
    photos: defaultdict[str, list[float]] = defaultdict(list)
    for truth, found in judged:
        photos[truth.photo].append(iou(found, truth.runs.mask()))
    if not photos:
        raise InputError("None of these photos holds an object to click on: give photos with masks.")
    each = np.concatenate(list(photos.values()))
    interval = grouped_mean_interval([(sum(ious), len(ious)) for ious in photos.values()])
    return Quality(
        split=split,
        data=data,
        images=len(photos),
        figures=(
            Figure(
                metric=MEAN_IOU,
                value=100 * float(each.mean()),
                interval=None if interval is None else (100 * interval[0], 100 * interval[1]),
                images=len(photos),
            ),
            Figure(metric=FOUND, value=100 * float((each >= FOUND_FROM).mean()), images=len(photos)),
        ),
    )

"""Scores of labelled images -> top-1 accuracy with its interval, recalls, confusion matrix, calibration.

Shapes: n images, K classes. The intervals are of a share: n independent images, of which k are right.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import NormalDist

import numpy as np

from vitrail.tasks.agreement import softmax
from vitrail.vocabulary import Figure, Quality, Table

__all__ = ["calibration_error", "classify", "expected_share", "share_interval", "shares_differ"]

TOP_1, CALIBRATION = "top-1", "calibration error"
BINS = 15
"""Bins of the calibration error, as in Guo et al. 2017."""


def classify(
    scores: np.ndarray, labels: Sequence[int], classes: Sequence[str], *, split: str, data: str
) -> Quality:
    """How scores (n, K) agree with the labels (n), class indices in [0, K).

    Top-1 accuracy, balanced accuracy (mean of the recalls), each class's recall, and the expected calibration
    error. A class without an image is left out of the recalls and of the balanced accuracy.

    Raises:
        ValueError: no images, other shapes, or scores that are not finite.
    """
    truth, count = np.asarray(labels), len(classes)
    if not len(truth) or scores.shape != (len(truth), count) or not np.isfinite(scores).all():
        raise ValueError(f"scores {scores.shape} for {len(truth)} labels of {count} classes, or not finite")
    named = scores.argmax(axis=1)
    confusion = np.zeros((count, count), dtype=int)
    np.add.at(confusion, (truth, named), 1)
    recalls = tuple(
        _share("recall", int(row[i]), int(row.sum()), label=label)
        for i, (label, row) in enumerate(zip(classes, confusion, strict=True))
        if row.any()
    )
    images, right = len(truth), int(np.trace(confusion))
    low, high = share_interval(right, images)
    balanced = float(np.mean([recall.value for recall in recalls]))
    error = 100.0 * calibration_error(softmax(scores.astype(np.float64)), truth)
    counts = tuple(tuple(int(n) for n in row) for row in confusion)
    return Quality(
        split=split,
        data=data,
        images=images,
        figures=(
            replace(_share(TOP_1, right, images), interval=(100.0 * low, 100.0 * high)),
            Figure(metric="balanced accuracy", value=balanced, images=images),
            *recalls,
            Figure(metric=CALIBRATION, value=error, unit="points", images=images),
        ),
        tables=(Table(name="confusion", labels=tuple(classes), counts=counts),),
    )


def _share(metric: str, right: int, images: int, *, label: str = "") -> Figure:
    return Figure(metric=metric, value=100.0 * right / images, images=images, label=label, share=True)


def calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error of (n, K) probabilities: how far confidence is from the share that is right.

    Source: Guo et al., On Calibration of Modern Neural Networks, 2017, eq. 3; bins of equal width.
    """
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [
        abs(float(right[place == b].mean()) - float(confidence[place == b].mean()))
        * float((place == b).mean())
        for b in np.unique(place)
    ]
    return float(sum(gaps))


def share_interval(right: int, images: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a share (Wilson 1927), in [0, 1].

    Raises:
        ValueError: no images, or more right ones than there are.
    """
    if not 0 <= right <= images or images < 1:
        raise ValueError(f"{right} of {images} is no share")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share, scale = right / images, 1 + z * z / images
    middle = share + z * z / (2 * images)
    half = z * math.sqrt(share * (1 - share) / images + z * z / (4 * images**2))
    return max((middle - half) / scale, 0.0), min((middle + half) / scale, 1.0)


def expected_share(right: int, images: int, new_images: int, confidence: float = 0.95) -> tuple[float, float]:
    """Prediction interval of the share of `new_images` further images that will be right, in [0, 1].

    Both samples' noise is in it: beta-binomial under Jeffreys' prior, the smallest and largest counts
    that leave at most half of what remains outside on their side.

    Raises:
        ValueError: no images on one side, or more right ones than there are.
    """
    if not 0 <= right <= images or images < 1 or new_images < 1:
        raise ValueError(f"{right} of {images}, and {new_images} new ones, is no prediction")
    a, b = right + 0.5, images - right + 0.5
    log_beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    logs = np.array(
        [
            math.lgamma(new_images + 1)
            - math.lgamma(k + 1)
            - math.lgamma(new_images - k + 1)
            + math.lgamma(k + a)
            + math.lgamma(new_images - k + b)
            - math.lgamma(new_images + a + b)
            - log_beta
            for k in range(new_images + 1)
        ]
    )
    below = np.cumsum(np.exp(logs))
    tail = (1 - confidence) / 2
    low = int(np.searchsorted(below, tail))
    high = int(np.searchsorted(below, 1 - tail))
    return low / new_images, min(high, new_images) / new_images


def shares_differ(right_a: np.ndarray, right_b: np.ndarray, z: float = 3.0) -> bool:
    """Whether a is more accurate than b on the same images, beyond their noise: boolean (n) each.

    Paired, as the images are the same: the mean difference against `z` of its standard errors. z = 3
    (one-sided error 0.13 %) leaves room for looking at many rivals several times.
    """
    difference = right_a.astype(float) - right_b.astype(float)
    if len(difference) < 2:
        return False
    error = float(difference.std(ddof=1)) / math.sqrt(len(difference))
    # Where no image tells the two apart the error is zero and so is the difference.
    return float(difference.mean()) > z * error

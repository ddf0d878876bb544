"""Whether an export's masks are the reference's: the same numbers, and the same answer for each pixel.

docs/measurement.md, Parity of masks, says where the bounds come from. Shapes: P photos, C crops, K classes,
h w the model's map.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from vitrail.masks import agreement as masks
from vitrail.masks.dense import inside_at
from vitrail.tasks import Bounds, Comparison, agreement
from vitrail.tasks.agreement import BOUNDS, CHANGED, MIN_DECIDED_PHOTOS, softmax
from vitrail.vocabulary import Figure, Parity

__all__ = ["MASK_BOUNDS", "Reading", "checks", "compare", "lost", "view_checks"]

MARGIN = 0.1
"""A pixel is clear if the reference's best answer leads the next by this much in probability."""
TIED = 0.001
"""A pixel has no answer to be kept if the reference's best two are as close as this: rounding decides."""
STEADY = 0.8
"""A photo is decided if its masks without the pixels that are not clear have this IoU with those that have
them all: no change of a probability by less than half of `MARGIN` can then move the IoU below."""
LEAST_SHARE = 0.001
"""Of a map's pixels: what is smaller on both sides is no mask."""

LEAST_IOU = {"fp32": 0.999, "tf32": 0.99, "fp16": 0.99, "bf16": 0.95, "int8": 0.9, CHANGED: 0.7}
MASK_BOUNDS: dict[str, Bounds] = {
    precision: replace(bounds, mask_iou=LEAST_IOU[precision]) for precision, bounds in BOUNDS.items()
}


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How scores (K, h, w) say what a pixel is."""

    logits: bool
    """Whether scores are logits; if not, they are probabilities."""
    single: bool
    """Whether there is one map, of what is inside."""

    def labels(self, scores: np.ndarray) -> np.ndarray:
        """Numbers of classes (h, w); of a single map 1 inside, 0 outside."""
        if self.single:
            return (scores[0] > inside_at(logits=self.logits)).astype(np.int64)
        return np.asarray(scores.argmax(axis=0))

    def clear(self, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of each class (its number as in `labels`), pixels that are clearly its own, and that may be."""
        if self.single:
            below, above = self._leads(-MARGIN), self._leads(MARGIN)
            counted = [scores[0] <= below, scores[0] >= above, scores[0] < above, scores[0] > below]
            own_and_near = np.array([np.count_nonzero(each) for each in counted])
            return own_and_near[:2], own_and_near[2:]
        shares = self._probabilities(scores)
        best = shares.max(axis=0)
        near = shares > best - MARGIN
        own = np.where(near.sum(axis=0) == 1, shares.argmax(axis=0), -1)
        return (
            np.bincount(own[own >= 0], minlength=len(shares)),
            np.count_nonzero(near, axis=(1, 2)),
        )

    def _tied(self, scores: np.ndarray) -> np.ndarray:
        """Pixels (h, w) whose best two answers are as close as `TIED`."""
        if self.single:
            return np.asarray((scores[0] > self._leads(-TIED)) & (scores[0] < self._leads(TIED)))
        best = np.partition(self._probabilities(scores), -2, axis=0)[-2:]
        return np.asarray(best[1] - best[0] < TIED)

    def _leads(self, by: float) -> float:
        """Of a single map, the score at which inside leads outside by this much in probability."""
        return 2 * math.atanh(by) if self.logits else (1 + by) / 2

    def _probabilities(self, scores: np.ndarray) -> np.ndarray:
        """Of each class, (K, h, w)."""
        return np.moveaxis(softmax(np.moveaxis(scores, 0, -1)), -1, 0) if self.logits else scores

    def steady(self, scores: np.ndarray) -> bool:
        """Whether the masks are clear. Nothing inside is no mask, and so not clear."""
        labels = self.labels(scores)
        clear, possible = self.clear(scores)
        sizes = np.bincount(labels.ravel(), minlength=len(clear))
        counted = sizes >= LEAST_SHARE * labels.size
        if self.single:
            counted[0] = False
        return bool(counted.any()) and float((clear[counted] / possible[counted]).mean()) >= STEADY

    def agreement(self, reference: np.ndarray, scores: np.ndarray) -> masks.PhotoAgreement:
        """The masks of one view, those of the reference first; pixels that are tied in it agree."""
        first = 1 if self.single else 0
        count = 2 if self.single else len(scores)
        before, after = self.labels(reference), self.labels(scores)
        if (before != after).any():
            after = np.where(self._tied(reference), before, after)
        return masks.of_labels(before, after, count, first=first, least=LEAST_SHARE)


@dataclass(frozen=True)
class _Seen:
    """All views of all photos: (P, C) each."""

    iou: np.ndarray
    changed: np.ndarray
    steady: np.ndarray
    cosine: float
    error: float

    def photos(self, least: float) -> tuple[np.ndarray, np.ndarray]:
        """(P,) which photos are decided, and which of these agree."""
        decided = np.asarray(self.steady.any(axis=1))
        return decided, decided & np.asarray(((self.iou >= least) | ~self.steady).all(axis=1))


def _seen(reference: np.ndarray, outputs: np.ndarray, reading: Reading) -> _Seen:
    """View by view: maps in float64 of all photos at once would take gigabytes."""
    photos, crops = reference.shape[:2]
    found = [
        [
            (reading.agreement(a, b), reading.steady(a), *agreement.of_row(a.ravel(), b.ravel()))
            for a, b in zip(reference[p], outputs[p], strict=True)
        ]
        for p in range(photos)
    ]
    rows = [view for photo in found for view in photo]
    cosines, errors = agreement.together(np.array([view[2:] for view in rows]))
    each = [(view[0].iou, view[0].changed, view[1]) for view in rows]
    iou, changed, steady = (np.array(values).reshape(photos, crops) for values in zip(*each, strict=True))
    return _Seen(iou, changed, steady, float(cosines.min()), float(errors.max()))


def compare(reference: np.ndarray, outputs: np.ndarray, precision: str, reading: Reading) -> Parity:
    """Judge float32 scores (P, C, K, h, w) against the reference's of the same shape.

    Raises:
        ValueError: the shapes differ.
    """
    if reference.shape != outputs.shape:
        raise ValueError(f"reference {reference.shape} and outputs {outputs.shape} differ in shape")
    photos, bounds = len(reference), MASK_BOUNDS[precision]
    if not np.isfinite(outputs).all():
        return agreement.refused(photos, "outputs are not finite")
    seen = _seen(reference, outputs, reading)
    assert bounds.mask_iou is not None
    decided, agreeing = seen.photos(bounds.mask_iou)
    said = f"mask (IoU of at least {bounds.mask_iou:g})"
    counts = int(decided.sum()), int(agreeing.sum())
    answer, reason = agreement.judged(bounds, seen.cosine, seen.error, *counts, said)
    if answer == "pass" and counts[0] < MIN_DECIDED_PHOTOS:
        answer, reason = "not assessed", _too_few(counts[0], photos)
    lost_each = 100 * (1 - seen.iou.mean(axis=1))
    least, changed = seen.iou.min(axis=1), seen.changed.mean(axis=1)
    return Parity(
        answer=answer,
        cosine=seen.cosine,
        relative_error=seen.error,
        photos=photos,
        decided=counts[0],
        agreeing=counts[1],
        loss=float(lost_each.mean()),
        loss_bound=_loss_bound(lost_each, decided, agreeing, precision),
        reason=reason,
        # The least IoU; of several the one where most changes.
        worst=str(min(range(photos), key=lambda p: (least[p], -changed[p]))),
        figures=(
            Figure(metric="least IoU with the reference", value=100 * float(least.min()), images=photos),
            Figure(metric="mean IoU with the reference", value=100 * float(seen.iou.mean()), images=photos),
            Figure(metric="changed pixels", value=100 * float(seen.changed.mean()), images=photos),
        ),
    )


def _loss_bound(lost: np.ndarray, decided: np.ndarray, agreeing: np.ndarray, precision: str) -> float | None:
    """As of answers, and never below what the photos themselves show (one-sided 95 %).

    An answer that changes is rare and costs much; masks lose a little on every photo.
    """
    assumed = agreement.loss_bound(lost, decided, agreeing, precision)
    if assumed is None:  # too few photos
        return None
    return max(assumed, float(lost.mean()) + agreement.ONE_SIDED * float(lost.std(ddof=1)) / len(lost) ** 0.5)


def checks(reference: np.ndarray, outputs: np.ndarray, bounds: Bounds, reading: Reading) -> list[Comparison]:
    """Cosine, relative error and masks of scores (P, K, h, w), against an artifact's bounds."""
    return view_checks(reference[:, None], outputs[:, None], bounds, reading)


def view_checks(
    reference: np.ndarray, outputs: np.ndarray, bounds: Bounds, reading: Reading
) -> list[Comparison]:
    """The same of several views of each photo, (P, C, K, h, w)."""
    seen = _seen(reference, outputs, reading)
    limit = bounds.mask_iou if bounds.mask_iou is not None else LEAST_IOU[CHANGED]
    decided, agreeing = (int(each.sum()) for each in seen.photos(limit))
    kept = Comparison(
        name="masks of fp32",
        holds=agreement.agree_enough(decided, agreeing, bounds.agreement),
        observed=float(seen.iou.min()),
        limit=limit,
        reason=f"{agreeing} of {decided} decided photos keep their masks (least IoU {seen.iou.min():.4f})",
    )
    return [*agreement.numbers(seen.cosine, seen.error, bounds), kept]


def lost(reference: np.ndarray, outputs: np.ndarray, reading: Reading) -> float:
    """What scores (n, K, h, w) lose, in points: 100 less the mean IoU of their masks with the reference's."""
    if not np.isfinite(outputs).all():
        return 100.0
    each = [reading.agreement(a, b).iou for a, b in zip(reference, outputs, strict=True)]
    return 100.0 * (1.0 - float(np.mean(each)))


def _too_few(decided: int, photos: int) -> str:
    return (
        f"only {decided} of {photos} photos have clear masks, {MIN_DECIDED_PHOTOS} needed: give photos of "
        "what the model knows"
    )

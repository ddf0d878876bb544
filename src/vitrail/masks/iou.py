"""Intersection over union: of two masks, of many, and its mean over classes with an interval over photos.

Shapes: n masks or photos, H W a mask, K classes. All figures are shares in [0, 1], in float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from vitrail.errors import InputError

__all__ = ["ClassIou", "ClassIous", "MeanIou", "grouped_mean_interval", "iou", "ious", "mean_interval"]

DRAWS = 2000
"""Sets of photos that are drawn for an interval."""
DRAWN_AT_ONCE = 250
"""Of those; with 5,000 photos they take 20 MB."""
LEAST_PHOTOS = 8
"""Fewer photos, drawn again and again, say nothing about other photos."""
IGNORE = 255
"""The label of pixels that are not judged, as in Pascal VOC, Cityscapes and ADE20K."""


def iou(one: np.ndarray, other: np.ndarray, *, empty: float = 0.0) -> float:
    """IoU of two boolean masks of the same shape; `empty` where neither has a pixel (pycocotools says 0).

    Raises:
        ValueError: not boolean, or the shapes differ.
    """
    if one.shape != other.shape:
        raise ValueError(f"masks {one.shape} and {other.shape} differ in shape")
    return float(ious(one.reshape(1, 1, -1), other.reshape(1, 1, -1), empty=empty)[0, 0])


def ious(
    found: np.ndarray, truth: np.ndarray, *, crowd: Sequence[bool] | None = None, empty: float = 0.0
) -> np.ndarray:
    """IoU of each of n masks with each of m: boolean (n, H, W) and (m, H, W) -> (n, m).

    Args:
        crowd: (m) which of `truth` are crowds. Of those, what `found` leaves out is no fault: the overlap is
            divided by the area of `found` alone, as COCO does it.
        empty: where there is nothing to divide by.

    Raises:
        ValueError: not boolean, or the shapes or numbers differ.
    """
    if {found.dtype, truth.dtype} != {np.dtype(bool)}:
        raise ValueError(f"masks are boolean, not {found.dtype} and {truth.dtype}")
    if found.ndim != 3 or truth.ndim != 3 or found.shape[1:] != truth.shape[1:]:
        raise ValueError(f"masks {found.shape} and {truth.shape} are not (n, H, W) and (m, H, W)")
    if crowd is not None and len(crowd) != len(truth):
        raise ValueError(f"{len(crowd)} values of crowd for {len(truth)} masks")
    # Row by row: n × m masks at once would not fit. Counting is exact, unlike a product in float32.
    both = np.array(
        [[np.count_nonzero(mask & other) for other in truth] for mask in found], np.float64
    ).reshape(len(found), len(truth))
    found_areas = np.count_nonzero(found, axis=(1, 2))[:, None]
    truth_areas = np.count_nonzero(truth, axis=(1, 2))[None]
    either = found_areas + truth_areas - both
    if crowd is not None:
        either = np.where(np.asarray(crowd, bool)[None], found_areas, either)
    return np.divide(both, either, out=np.full(both.shape, empty), where=either > 0)


# --- classes --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ClassIou:
    """How well one class is found."""

    name: str
    iou: float
    pixels: int
    """That are of this class, over all photos."""
    photos: int
    """In which it is, or was said to be."""


@dataclass(frozen=True, kw_only=True)
class MeanIou:
    """How well classes are found, pixels counted over all photos."""

    value: float
    """Mean of the classes' IoU."""
    interval: tuple[float, float] | None
    """95 %, over photos; None below `LEAST_PHOTOS`."""
    classes: tuple[ClassIou, ...]
    absent: tuple[str, ...]
    """Classes that are in no photo and were said of none: left out."""
    photos: int
    ignored: int
    """Pixels that were not judged."""
    confusion: tuple[tuple[int, ...], ...]
    """(K, K) pixels: rows are what is, columns what was said."""


class ClassIous:
    """Label maps, photo by photo, counted until `result` is asked for.

    Args:
        classes: K names; labels are their places.
        ignore: the label of pixels that are not judged; None: there is none.

    Raises:
        ValueError: no classes, or `ignore` is the label of one.
    """

    def __init__(self, classes: Sequence[str], *, ignore: int | None = IGNORE) -> None:
        if not classes or (ignore is not None and 0 <= ignore < len(classes)):
            raise ValueError(f"{len(classes)} classes, and the label {ignore} to be ignored")
        self.classes, self.ignore = tuple(classes), ignore
        self.confusion = np.zeros((len(classes), len(classes)), np.int64)
        self.ignored = 0
        # Of each photo only what an interval needs: K × K numbers a photo would be too many.
        self._both: list[np.ndarray] = []
        self._either: list[np.ndarray] = []

    def add(self, truth: np.ndarray, found: np.ndarray) -> None:
        """Count one photo: integer labels (H, W) that are, and that were said.

        Raises:
            ValueError: the shapes differ, labels are not integers, or one that counts is none of the classes.
        """
        if truth.shape != found.shape or {truth.dtype.kind, found.dtype.kind} - set("iu"):
            raise ValueError(
                f"labels {truth.dtype} {truth.shape} and {found.dtype} {found.shape} do not belong together"
            )
        judged = np.full(truth.shape, True) if self.ignore is None else truth != self.ignore
        labels, said = truth[judged].astype(np.int64), found[judged].astype(np.int64)
        count = len(self.classes)
        for values, whose in ((labels, "labels"), (said, "outputs")):
            if values.size and not 0 <= values.min() <= values.max() < count:
                raise ValueError(f"{whose} from {values.min()} to {values.max()} for {count} classes")
        table = np.bincount(labels * count + said, minlength=count * count).reshape(count, count)
        self.confusion += table
        self.ignored += int(truth.size - labels.size)
        both = table.diagonal()
        self._both.append(both)
        self._either.append(table.sum(0) + table.sum(1) - both)

    def result(self) -> MeanIou:
        """The figures of all photos so far.

        Raises:
            InputError: no photo, or none with a pixel that is judged.
        """
        if not self.confusion.any():
            raise InputError("No pixel is judged: give photos with masks that are not ignored everywhere.")
        both, either = np.array(self._both), np.array(self._either)
        shares = _shares(both.sum(0), either.sum(0))
        present = np.flatnonzero(either.sum(0))
        return MeanIou(
            value=float(np.nanmean(shares)),
            interval=_mean_iou_interval(both, either),
            classes=tuple(
                ClassIou(
                    name=self.classes[k],
                    iou=float(shares[k]),
                    pixels=int(self.confusion[k].sum()),
                    photos=int(np.count_nonzero(either[:, k])),
                )
                for k in present
            ),
            absent=tuple(name for k, name in enumerate(self.classes) if k not in present),
            photos=len(both),
            ignored=self.ignored,
            confusion=tuple(tuple(int(pixels) for pixels in row) for row in self.confusion),
        )


def _shares(both: np.ndarray, either: np.ndarray) -> np.ndarray:
    """both / either (…, K), NaN for a class that is absent."""
    return np.divide(both, either, out=np.full(both.shape, np.nan), where=either > 0)


# --- intervals over photos ------------------------------------------------------------------------


def mean_interval(values: Sequence[float] | np.ndarray, *, seed: int = 0) -> tuple[float, float] | None:
    """95 % interval of the mean of one figure a photo (n); None below `LEAST_PHOTOS`.

    Percentile bootstrap (Efron 1979). Of few photos it is somewhat too narrow (docs/masks.md).
    """
    figures = np.asarray(values, np.float64)
    if len(figures) < LEAST_PHOTOS:
        return None
    return _middle(np.concatenate([times @ figures / len(figures) for times in _drawn(len(figures), seed)]))


def grouped_mean_interval(
    photos: Sequence[tuple[float, int]], *, seed: int = 0
) -> tuple[float, float] | None:
    """The same of a mean over objects, of which a photo has several: (sum, number) of each photo.

    A photo is drawn with all of its objects: they are seen under one light, by one camera.
    """
    if len(photos) < LEAST_PHOTOS:
        return None
    sums, counts = np.asarray(photos, np.float64).T
    return _middle(np.concatenate([(times @ sums) / (times @ counts) for times in _drawn(len(sums), seed)]))


def _mean_iou_interval(both: np.ndarray, either: np.ndarray, seed: int = 0) -> tuple[float, float] | None:
    """The same of the mean IoU, from the pixels (n, K) of each photo.

    A mean IoU is no mean over photos, so photos are drawn and everything is counted again. A class that is
    in none of those drawn is left out of that draw.
    """
    if len(both) < LEAST_PHOTOS:
        return None
    # Float64 holds such counts exactly, and its matrix product is the fast one.
    both, either = both.astype(np.float64), either.astype(np.float64)
    shares = np.concatenate([_shares(times @ both, times @ either) for times in _drawn(len(both), seed)])
    # A draw may hold only photos without a judged pixel.
    shares = shares[~np.isnan(shares).all(1)]
    return _middle(np.nanmean(shares, axis=1))


def _drawn(count: int, seed: int) -> Iterator[np.ndarray]:
    """How often each of `count` photos is drawn, `DRAWS` times (…, count), in parts."""
    rng = np.random.default_rng(seed)
    for _ in range(0, DRAWS, DRAWN_AT_ONCE):
        yield rng.multinomial(count, np.full(count, 1 / count), size=DRAWN_AT_ONCE).astype(np.float64)


def _middle(means: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)

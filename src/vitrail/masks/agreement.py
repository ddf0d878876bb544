"""Whether an export's masks are the reference's, photo by photo: their IoU, and the pixels that change.

What `tasks/agreement.py` is for scores of classes. Shapes: P photos, each with its own (…, H, W).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vitrail.masks.iou import iou

__all__ = ["MaskAgreement", "PhotoAgreement", "compare", "of_labels"]


@dataclass(frozen=True, kw_only=True)
class PhotoAgreement:
    """The masks of one photo."""

    iou: float
    """Least IoU of its masks, in [0, 1]; 1 where both sides are empty."""
    changed: float
    """Share of its pixels that change sides, over all its masks, in [0, 1]."""
    finite: bool = True
    """Whether the outputs are; if not, no pixel agrees."""


@dataclass(frozen=True, kw_only=True)
class MaskAgreement:
    """The masks of all photos."""

    photos: tuple[PhotoAgreement, ...]
    iou: float
    """Mean of the photos'."""
    least_iou: float
    """Of the worst photo."""
    changed: float
    """Share of all pixels."""
    worst: int
    """The photo with the least IoU; of several the one where most changes, then the first."""


def compare(
    reference: Sequence[np.ndarray], outputs: Sequence[np.ndarray], *, threshold: float = 0.0
) -> MaskAgreement:
    """Compare maps of logits (threshold 0) or probabilities (0.5), one array (…, H, W) a photo.

    Inside is > `threshold`, on both sides alike. Leading axes are several masks of one photo.

    Raises:
        ValueError: no photos, the numbers or shapes differ, a map is empty, or the reference is not finite.
    """
    if not len(reference) or len(reference) != len(outputs):
        raise ValueError(f"{len(reference)} maps of the reference and {len(outputs)} outputs")
    photos = tuple(
        _photo(place, one, other, threshold)
        for place, (one, other) in enumerate(zip(reference, outputs, strict=True))
    )
    # Worst first: a tuple orders by IoU, then by how much changes.
    worst = min(range(len(photos)), key=lambda place: (photos[place].iou, -photos[place].changed))
    pixels = np.array([one.size for one in reference])
    return MaskAgreement(
        photos=photos,
        iou=float(np.mean([photo.iou for photo in photos])),
        least_iou=photos[worst].iou,
        changed=float(np.average([photo.changed for photo in photos], weights=pixels)),
        worst=worst,
    )


def of_labels(
    reference: np.ndarray, found: np.ndarray, count: int, *, first: int = 0, least: float = 0.0
) -> PhotoAgreement:
    """Compare label maps (H, W), numbers of `count` classes: the IoU is the mean over the classes there are.

    Args:
        first: the first class that counts: 1 leaves out what is outside.
        least: share of the pixels below which, on both sides, a class is not there.

    Raises:
        ValueError: the shapes differ, or there are no pixels.
    """
    if reference.shape != found.shape or not reference.size:
        raise ValueError(f"labels {reference.shape} and {found.shape} do not belong together")
    pairs = np.bincount((reference * count + found).ravel(), minlength=count * count)
    table = pairs.reshape(count, count)
    both, was, now = table.diagonal()[first:], table.sum(1)[first:], table.sum(0)[first:]
    there = np.maximum(was, now) >= max(least * reference.size, 1)
    shares = both[there] / (was + now - both)[there]
    changed = 1 - table.diagonal().sum() / reference.size
    return PhotoAgreement(iou=float(shares.mean()) if there.any() else 1.0, changed=float(changed))


def _photo(place: int, reference: np.ndarray, outputs: np.ndarray, threshold: float) -> PhotoAgreement:
    if reference.shape != outputs.shape or reference.ndim < 2 or not reference.size:
        raise ValueError(
            f"photo {place}: reference {reference.shape}, outputs {outputs.shape}: not (…, H, W)"
        )
    if not np.isfinite(reference).all():
        raise ValueError(f"photo {place}: the reference is not finite")
    if not np.isfinite(outputs).all():
        return PhotoAgreement(iou=0.0, changed=1.0, finite=False)
    was, now = reference > threshold, outputs > threshold
    pairs = zip(was.reshape(-1, *was.shape[-2:]), now.reshape(-1, *now.shape[-2:]), strict=True)
    return PhotoAgreement(
        iou=min(iou(one, other, empty=1.0) for one, other in pairs),
        changed=float(np.count_nonzero(was != now) / was.size),
    )

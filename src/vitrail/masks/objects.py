"""Photos with the masks of single objects, for models that are asked for one thing at a time.

COCO's instances are objects as they stand. PNG masks number classes, so there an object is a connected piece
of one class: two things of a class that touch count as one.

Shapes: H W the photo.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from vitrail.data.records import Example
from vitrail.errors import InputError
from vitrail.masks import rle
from vitrail.masks.coco import Instances, read_coco
from vitrail.masks.dataset import DrawnDataset, coco_file, divided, photos_of
from vitrail.masks.folder import LabelledPhoto, LabelledPhotos, read_folder
from vitrail.masks.iou import IGNORE
from vitrail.masks.rle import RunLengths
from vitrail.store import digest_of, sha256_file
from vitrail.words import shown

__all__ = ["ObjectDataset", "Objects", "interior", "load", "pieces"]

OBJECT = "object"
"""The only class of such data: what an object is called does not matter."""
SPECK = 16
"""Pixels below which a piece of a PNG mask is what a brush left over."""


@dataclass(frozen=True, kw_only=True)
class Objects:
    """The objects of one photo."""

    size: tuple[int, int]
    """(H, W)."""
    digest: str
    """Of what is drawn."""
    runs: Callable[[], tuple[RunLengths, ...]]
    """Their masks at the photo's size; none is empty."""


@dataclass(frozen=True, kw_only=True)
class ObjectDataset(DrawnDataset):
    """Photos that show at least one object."""

    drawn: Mapping[str, Objects]
    bare: int
    """Photos without an object: they are in no split."""

    def truth(self, example: Example) -> tuple[RunLengths, ...]:
        """The masks of its objects, at least one. Raises InputError if they cannot be read any more."""
        return self.drawn[example.path].runs()

    def doubts(self) -> tuple[str, ...]:
        """Counts of what is wrong with the files, and of photos that show nothing."""
        if not self.bare:
            return super().doubts()
        shows, are = ("photo shows", "is") if self.bare == 1 else ("photos show", "are")
        return (*super().doubts(), f"{self.bare:,} {shows} no object and {are} not used")


def load(path: str | Path) -> ObjectDataset:
    """Read photos with objects, decode each photo once, and split them by content.

    `path` is a COCO file beside its photos, a folder with one such file, or a folder of photos with PNG masks
    as `read_folder` takes it. Crowds are no objects; neither are class 0 of PNG masks, what is not judged
    (255), nor pieces of fewer than 16 pixels.

    Raises:
        InputError: it is none of these, its masks are of another size than their photos, or there are fewer
            than 3 distinct photos with an object.
    """
    annotations = coco_file(Path(path), first=True)
    if annotations is not None:
        photos = read_coco(annotations, photos_of(annotations))
        drawn, found = _of_coco(photos), photos.found
    else:
        labelled = read_folder(path)
        drawn, found = _of_folder(labelled), labelled.found
    shown_ones = {photo: objects for photo, objects in drawn.items() if objects is not None}
    bare = len(drawn) - len(shown_ones)
    if not shown_ones:
        raise InputError(f"No photo of {shown(str(path))} shows an object: draw masks of some.")
    return divided(Path(path), (OBJECT,), shown_ones, found, partial(ObjectDataset, bare=bare))


def _of_coco(found: Instances) -> dict[str, Objects | None]:
    drawn: dict[str, Objects | None] = {}
    for photo in found.photos:
        each = [one for one in photo.instances if not one.crowd and one.runs().area]
        drawn[photo.path] = (
            Objects(
                size=photo.size,
                digest=digest_of([str(one.drawn) for one in each]),
                runs=lambda each=tuple(each): tuple(one.runs() for one in each),  # type: ignore[misc]
            )
            if each
            else None
        )
    return drawn


def _of_folder(found: LabelledPhotos) -> dict[str, Objects | None]:
    both = found.kind == "inside and outside"
    drawn: dict[str, Objects | None] = {}
    for photo in found.photos:
        runs = partial(_pieces_of, photo, both)
        there = Objects(size=photo.size, digest=sha256_file(Path(photo.mask_path)), runs=runs)
        drawn[photo.path] = there if runs() else None
    return drawn


def _pieces_of(photo: LabelledPhoto, both: bool) -> tuple[RunLengths, ...]:
    """`both`: values say inside and outside, so that 255 is inside."""
    values = photo.labels()
    found = rle.of_labels(pieces(values > 0 if both else np.where(values == IGNORE, 0, values)))
    return tuple(runs for number, runs in found.items() if number and runs.area >= SPECK)


def pieces(values: np.ndarray) -> np.ndarray:
    """Whole numbers or booleans (H, W) -> int64 (H, W): connected pieces of equal values, numbered from 1 in
    the order of their first pixels; 0 stays 0. Pixels that touch at a corner are connected."""
    height, width = values.shape
    edged = np.zeros((height, width + 2), np.int64)
    edged[:, 1:-1] = values
    # Runs of equal values, in reading order; their places count the edge columns, so that no run wraps.
    flat = edged.ravel()
    bounds = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1, [len(flat)]])
    inside = flat[bounds[:-1]] != 0
    begins, ends = bounds[:-1][inside], bounds[1:][inside]
    kinds = flat[begins]
    # Those of the row above that touch a run, corners included: [first, last).
    first = np.searchsorted(ends, begins - (width + 2), side="left")
    last = np.searchsorted(begins, ends - (width + 2), side="right")
    root = list(range(len(begins)))
    for run in np.flatnonzero(last > first).tolist():
        for above in range(first[run], last[run]):
            if kinds[above] == kinds[run]:
                a, b = _root(root, above), _root(root, run)
                root[max(a, b)] = min(a, b)
    _, numbers = np.unique([_root(root, run) for run in range(len(root))], return_inverse=True)
    of_runs = np.zeros(len(bounds) - 1, np.int64)
    of_runs[inside] = numbers + 1
    return np.repeat(of_runs, np.diff(bounds)).reshape(height, width + 2)[:, 1:-1]


def _root(root: list[int], run: int) -> int:
    while root[run] != run:
        root[run] = root[root[run]]
        run = root[run]
    return run


def interior(mask: np.ndarray) -> tuple[int, int]:
    """(x, y) of the pixel of a boolean mask (H, W) that is farthest from all pixels outside; what lies beyond
    the picture is outside. Of several the first, row by row.

    This is where papers click for "one click", the maximum of the distance transform (Kirillov et al. 2023,
    arXiv:2304.02643, §D.1).

    Raises:
        ValueError: the mask is empty.
    """
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    if not len(rows):
        raise ValueError("an empty mask has no pixel to click on")
    top, left = int(rows[0]), int(columns[0])
    cut = np.pad(mask[top : rows[-1] + 1, left : columns[-1] + 1], 1)
    y, x = np.unravel_index(_squared_distances(cut).argmax(), cut.shape)
    return left + int(x) - 1, top + int(y) - 1


def _squared_distances(mask: np.ndarray) -> np.ndarray:
    """int64 (H, W): the squared distance of each pixel to the nearest one outside; the border is outside."""
    above = np.zeros(mask.shape, np.int64)
    for row in range(1, len(mask)):
        above[row] = np.where(mask[row], above[row - 1] + 1, 0)
    below = np.zeros_like(above)
    for row in range(len(mask) - 2, -1, -1):
        below[row] = np.where(mask[row], below[row + 1] + 1, 0)
    of_column = np.minimum(above, below) ** 2
    found = of_column.copy()
    # A column k away can only help while k is below the largest distance that is left.
    for k in range(1, mask.shape[1]):
        if k * k >= found.max():
            break
        np.minimum(found[:, k:], of_column[:, :-k] + k * k, out=found[:, k:])
        np.minimum(found[:, :-k], of_column[:, k:] + k * k, out=found[:, :-k])
    return found

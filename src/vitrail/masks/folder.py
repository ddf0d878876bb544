"""Folders of photos with PNG masks of the same name: a class, or inside and outside, for each pixel."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from vitrail.errors import InputError
from vitrail.images.decode import decode_labels
from vitrail.images.find import images_in
from vitrail.masks.coco import decoded
from vitrail.masks.iou import IGNORE
from vitrail.words import counted, shown, some_of

__all__ = ["LabelledPhoto", "LabelledPhotos", "read_folder"]

PHOTO_FOLDERS = ("images", "photos")
MASK_FOLDERS = ("masks", "labels")

Kind = Literal["inside and outside", "classes"]


@dataclass(frozen=True, kw_only=True)
class LabelledPhoto:
    """A photo and its mask."""

    path: str
    mask_path: str
    size: tuple[int, int]
    """(H, W) of the mask."""

    def image(self) -> Image.Image:
        """The decoded photo. Raises InputError if it cannot be read, or is not of the mask's size."""
        return decoded(self.path, self.size, f"its mask {shown(self.mask_path)}")

    def labels(self) -> np.ndarray:
        """The values of the mask, uint8 or uint16 (H, W). Raises InputError if it cannot be read any more."""
        return decode_labels(self.mask_path)


@dataclass(frozen=True, kw_only=True)
class LabelledPhotos:
    """A data set of photos with a value for each pixel."""

    name: str
    photos: tuple[LabelledPhoto, ...]
    kind: Kind
    """Whether values are 0 outside and one other inside, or numbers of classes."""
    values: tuple[int, ...]
    """All that occur in masks, without `IGNORE` where they are classes."""
    found: str
    """What was recognised, in a sentence."""


def read_folder(photos: str | Path, masks: str | Path | None = None) -> LabelledPhotos:
    """Photos and the PNG masks with the same name before the ending (`cat.jpg`, `cat.png`).

    `masks`: the folder of masks; None: if `photos` holds the folders `images` or `photos` and `masks` or
    `labels`, those, else masks lie beside the photos, which are then of other kinds than PNG. Every mask is
    read; photos are not opened yet.

    Masks whose values are 0 and 1, or 0 and 255, say what is inside; any others are numbers of classes, and
    255 is then not judged.

    Raises:
        InputError: no photos, a photo without a mask or a mask without a photo, two of the same name, or a
            mask that is no PNG with one value a pixel; the message names the file and the fix.
    """
    photo_folder, mask_folder = _folders(Path(photos), None if masks is None else Path(masks))
    pairs = _pairs(photo_folder, mask_folder)
    found, values = [], set[int]()
    for path, mask_path in pairs:
        labels = decode_labels(mask_path)
        values |= set(np.unique(labels).tolist())
        found.append(LabelledPhoto(path=path, mask_path=mask_path, size=(labels.shape[0], labels.shape[1])))
    # Ones alone could be a class, but then nothing would be told apart.
    kind: Kind = "inside and outside" if values <= {0, 1} or values <= {0, 255} else "classes"
    if kind == "classes":
        values.discard(IGNORE)
    return LabelledPhotos(
        name=Path(photos).resolve().name,
        photos=tuple(found),
        kind=kind,
        values=tuple(sorted(values)),
        found=_said(Path(photos), len(found), kind, sorted(values)),
    )


def _folders(photos: Path, masks: Path | None) -> tuple[Path, Path]:
    for folder in (photos, masks):
        if folder is not None and not folder.is_dir():
            raise InputError(f"{shown(str(folder))} is not a folder: check the path.")
    if masks is not None:
        return photos, masks
    inner = [
        [photos / name for name in names if (photos / name).is_dir()]
        for names in (PHOTO_FOLDERS, MASK_FOLDERS)
    ]
    if inner[0] and inner[1]:
        if len(inner[0]) > 1 or len(inner[1]) > 1:
            several = ", ".join(folder.name for folders in inner for folder in folders)
            raise InputError(
                f"{shown(str(photos))} holds {several}: say which folders hold the photos and the masks."
            )
        return inner[0][0], inner[1][0]
    return photos, photos


def _pairs(photos: Path, masks: Path) -> list[tuple[str, str]]:
    """(photo, mask), sorted by the photo's name."""
    pictures, pngs = images_in(photos), [path for path in images_in(masks) if _is_png(path)]
    if photos == masks:
        pictures = [path for path in pictures if not _is_png(path)]
    elif others := sorted(set(images_in(masks)) - set(pngs)):
        raise InputError(f"The mask {shown(others[0])} is not a PNG: save it as one, which loses nothing.")
    of_photo, of_mask = _by_stem(pictures), _by_stem(pngs)
    if not of_photo:
        raise InputError(f"{shown(str(photos))} holds no photos: give a folder with photos and PNG masks.")
    for one, other, what, lacks in (
        (of_photo, of_mask, "photo", "mask"),
        (of_mask, of_photo, "mask", "photo"),
    ):
        alone = sorted(one[stem] for stem in one.keys() - other.keys())
        if alone:
            named = shown(some_of([os.path.basename(path) for path in alone]))
            where = masks if lacks == "mask" else photos
            raise InputError(
                f"{counted(len(alone), what)} of {shown(os.path.dirname(alone[0]))} without a {lacks} of the "
                f"same name in {shown(str(where))}: {named}: add what is missing, or move them away."
            )
    return [(path, of_mask[stem]) for stem, path in sorted(of_photo.items())]


def _is_png(path: str) -> bool:
    return path.lower().endswith(".png")


def _by_stem(paths: Sequence[str]) -> Mapping[str, str]:
    stems: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        stems[Path(path).stem].append(path)
    for several in stems.values():
        if len(several) > 1:
            raise InputError(
                f"{shown(several[0])} and {shown(several[1])} have the same name but for the ending: "
                "rename one."
            )
    return {stem: path for stem, (path,) in stems.items()}


def _said(folder: Path, photos: int, kind: Kind, values: Sequence[int]) -> str:
    """E.g. `photos: 12 photos with PNG masks of classes, 5 values from 0 to 7`."""
    if kind == "inside and outside":
        what = f"of what is inside ({max(values)}) and outside (0)" if any(values) else "without an object"
    elif not values:
        what = "without a pixel that is judged"
    else:
        span = f"from {values[0]} to {values[-1]}"
        what = f"of classes, {counted(len(values), 'value')} {span} ({IGNORE} is not judged)"
    return f"{shown(str(folder))}: {counted(photos, 'photo')} with PNG masks {what}."

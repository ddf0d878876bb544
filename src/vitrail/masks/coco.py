"""COCO's instance annotations: a JSON file and the photos it lists -> photos with the masks of their objects.

Masks are made when asked for: a data set's together would not fit in memory. Format: cocodataset.org, Data
format, object detection.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

import msgspec
import numpy as np
from PIL import Image

from vitrail.errors import InputError
from vitrail.images.decode import decode, frame_of
from vitrail.images.limits import LIMITS
from vitrail.masks.rle import RunLengths, fill, from_coco
from vitrail.words import counted, shown, some_of

__all__ = ["Instance", "InstancePhoto", "Instances", "decoded", "read_coco"]

MAX_BYTES = 2 * 2**30
"""Of the JSON file: COCO's largest has 0.5 GB."""

Outlines = tuple[tuple[float, ...], ...]


class _Photo(msgspec.Struct):
    id: int
    file_name: str
    height: int
    width: int


class _Category(msgspec.Struct):
    id: int
    name: str


class _Runs(msgspec.Struct):
    size: tuple[int, int]
    counts: list[int] | str


class _Annotation(msgspec.Struct):
    image_id: int
    category_id: int
    segmentation: list[list[float]] | _Runs | None = None
    iscrowd: int = 0


class _File(msgspec.Struct):
    images: list[_Photo]
    annotations: list[_Annotation]
    categories: list[_Category]


@dataclass(frozen=True, kw_only=True)
class Instance:
    """One object, or a crowd of them."""

    label: int
    """The place of its class."""
    crowd: bool
    """Whether it is many that nobody told apart."""
    size: tuple[int, int]
    """(H, W) of the photo."""
    drawn: Outlines | RunLengths
    where: str
    """Its place in the file, for errors."""

    def runs(self) -> RunLengths:
        """Its mask as run lengths. A thin outline may hold no pixel.

        Raises:
            InputError: an outline or run lengths that are none; names the file and the place.
        """
        if isinstance(self.drawn, RunLengths):
            return self.drawn
        try:
            return fill(self.drawn, self.size)
        except InputError as error:
            raise InputError(f"{self.where}: {error}") from None

    def mask(self) -> np.ndarray:
        """Boolean (H, W). Raises as `runs`."""
        return self.runs().mask()


@dataclass(frozen=True, kw_only=True)
class InstancePhoto:
    """A photo and its objects; there may be none."""

    path: str
    size: tuple[int, int]
    """(H, W), as the file of annotations says."""
    instances: tuple[Instance, ...]

    def image(self) -> Image.Image:
        """The decoded photo. Raises InputError if it cannot be read, or is of another size."""
        return decoded(self.path, self.size, "its annotations")


@dataclass(frozen=True, kw_only=True)
class Instances:
    """A data set of photos with the masks of objects."""

    name: str
    classes: tuple[str, ...]
    """In the order of their ids."""
    ids: tuple[int, ...]
    """Of the classes, in the file; they may have gaps."""
    photos: tuple[InstancePhoto, ...]
    found: str
    """What was recognised, in a sentence."""


def read_coco(annotations: str | Path, photos: str | Path) -> Instances:
    """The photos of a COCO file of instance annotations; `photos` is the folder where its file names start.

    Annotations are outlines, run lengths (text or numbers) or crowds; ids may have gaps. All photos must be
    there, and are not opened yet.

    Raises:
        InputError: anything that is no such file, or contradicts itself or the folder; the message names the
            file, the place and the fix.
    """
    source = shown(str(annotations))
    file = _parsed(annotations, source)
    if not file.images or not file.categories:
        raise InputError(f"{source} lists no {'categories' if file.images else 'images'}: add them.")
    _unique((photo.id for photo in file.images), source, "images")
    _unique((category.id for category in file.categories), source, "categories")
    categories = sorted(file.categories, key=lambda category: category.id)
    _unique((category.name for category in categories), source, "categories", "name")
    labels = {category.id: label for label, category in enumerate(categories)}
    paths = _paths(file.images, Path(photos), source)
    objects = _objects(file, labels, source)
    found = tuple(
        InstancePhoto(path=path, size=(photo.height, photo.width), instances=tuple(objects[photo.id]))
        for photo, path in zip(file.images, paths, strict=True)
    )
    return Instances(
        name=Path(annotations).stem,
        classes=tuple(category.name for category in categories),
        ids=tuple(labels),
        photos=found,
        found=_said(source, categories, found),
    )


def decoded(path: str, size: tuple[int, int], what: str) -> Image.Image:
    """A photo whose size must be (H, W), as `what` says. Raises InputError if it is not or cannot be read."""
    image = decode(path)
    width, height = frame_of(image).size
    if (height, width) != size:
        # Cameras store photos lying and say so in EXIF, which annotators may have overlooked.
        turned = ", which is the photo not turned upright" if (width, height) == size else ""
        raise InputError(
            f"{shown(path)} has {width} × {height} pixels, but {what} {size[1]} × {size[0]}{turned}: "
            "make the two the same."
        )
    return image


# --- the file -------------------------------------------------------------------------------------


def _parsed(path: str | Path, source: str) -> _File:
    try:
        if os.path.getsize(path) > MAX_BYTES:
            raise InputError(f"{source} is larger than {MAX_BYTES >> 20} MiB: split it.")
        return msgspec.json.decode(Path(path).read_bytes(), type=_File)
    except msgspec.ValidationError as error:
        what, _, place = str(error).partition(" - at `$")
        at = f" at {place.rstrip('`').lstrip('.')}" if place else ""
        raise InputError(f"{source} is no COCO file of instances ({what}{at}): correct it there.") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{source} is not valid JSON ({error}): export it again.") from None
    except OSError as error:
        raise InputError(f"{source} cannot be read ({error.strerror}): check the path.") from None


def _unique(values: Iterable[int | str], source: str, where: str, what: str = "id") -> None:
    twice = [value for value, times in Counter(values).items() if times > 1]
    if twice:
        said = shown(repr(twice[0]))
        raise InputError(f"{source} has several {where} with the {what} {said}: give each its own.")


def _paths(photos: list[_Photo], folder: Path, source: str) -> list[str]:
    """Of all photos, which must be below the folder."""
    if not folder.is_dir():
        raise InputError(f"{shown(str(folder))} is not a folder: give the one with the photos of {source}.")
    paths, missing = [], []
    for i, photo in enumerate(photos):
        at, name = f"{source}, images[{i}]", shown(repr(photo.file_name))
        parts = PureWindowsPath(photo.file_name)
        # Names of both systems: a file may have been written on another.
        if not photo.file_name or parts.anchor or ".." in parts.parts or "\0" in photo.file_name:
            raise InputError(f"{at}: the file name {name} leaves the folder: give a path below it.")
        if photo.height < 1 or photo.width < 1 or photo.height * photo.width > LIMITS.pixels:
            raise InputError(
                f"{at}: {photo.width} × {photo.height} pixels are no size of a photo (up to "
                f"{LIMITS.pixels:,} pixels): correct width and height."
            )
        path = folder / photo.file_name
        if not os.path.isfile(path):  # unlike Path.is_file, of a name that is too long too
            missing.append(f"{name} (images[{i}])")
        paths.append(str(path))
    if missing:
        raise InputError(
            f"{source} lists {counted(len(missing), 'photo')} that {shown(str(folder))} does not hold: "
            f"{some_of(missing)}: add them, or remove them from the file."
        )
    return paths


def _objects(file: _File, labels: Mapping[int, int], source: str) -> dict[int, list[Instance]]:
    """Image ids -> their objects."""
    sizes = {photo.id: (photo.height, photo.width) for photo in file.images}
    objects: dict[int, list[Instance]] = {id: [] for id in sizes}
    for i, annotation in enumerate(file.annotations):
        where = f"{source}, annotations[{i}]"
        if annotation.image_id not in sizes:
            raise InputError(f"{where}: there is no image {annotation.image_id}: add it, or remove this.")
        if annotation.category_id not in labels:
            raise InputError(
                f"{where}: there is no category {annotation.category_id}: add it, or remove this."
            )
        if annotation.iscrowd not in (0, 1):
            raise InputError(f"{where}: iscrowd is {annotation.iscrowd}: give 0 or 1.")
        size = sizes[annotation.image_id]
        objects[annotation.image_id].append(
            Instance(
                label=labels[annotation.category_id],
                crowd=annotation.iscrowd == 1,
                size=size,
                drawn=_drawn(annotation.segmentation, size, where),
                where=where,
            )
        )
    return objects


def _drawn(
    segmentation: list[list[float]] | _Runs | None, size: tuple[int, int], where: str
) -> Outlines | RunLengths:
    if isinstance(segmentation, _Runs):
        if segmentation.size != size:
            height, width = segmentation.size
            raise InputError(
                f"{where}: the mask has {width} × {height} pixels, its photo {size[1]} × {size[0]}: encode "
                "it at the photo's size, as [height, width]."
            )
        try:
            return from_coco({"size": size, "counts": segmentation.counts})
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
    if not segmentation:
        raise InputError(f"{where}: segmentation is empty: draw the object's mask, or remove this.")
    for outline in segmentation:
        if len(outline) < 6 or len(outline) % 2:
            raise InputError(
                f"{where}: an outline of {counted(len(outline), 'number')} is not x, y of at least 3 points: "
                "complete or remove it."
            )
    return tuple(tuple(outline) for outline in segmentation)


def _said(source: str, categories: list[_Category], photos: tuple[InstancePhoto, ...]) -> str:
    """E.g. `a.json: COCO instances, 3 photos with 4 objects and 1 crowd of 2 classes, ids 1 to 90; …`."""
    every = [instance for photo in photos for instance in photo.instances]
    crowds = sum(instance.crowd for instance in every)
    bare = sum(not photo.instances for photo in photos)
    runs = sum(isinstance(instance.drawn, RunLengths) for instance in every)
    seen = {instance.label for instance in every}
    unseen = [category.name for label, category in enumerate(categories) if label not in seen]
    parts = [
        f"{source}: COCO instances, {counted(len(photos), 'photo')}",
        f" ({bare} without an object)" if bare else "",
        f" with {counted(len(every) - crowds, 'object')}",
        f" and {counted(crowds, 'crowd')}" if crowds else "",
        f" of {counted(len(categories), 'class', 'classes')}, ids {categories[0].id} to {categories[-1].id}",
        f"; {len(every) - runs} drawn as outlines, {runs} as run lengths",
        f"; no photo shows {shown(some_of(unseen))}" if unseen else "",
    ]
    return "".join(parts) + "."

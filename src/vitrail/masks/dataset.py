"""Photos with masks of the user's own as a labelled data set: recognised, split by content, read when needed.

A folder of photos with PNG masks, or COCO annotations; the classes are those of the model that is judged.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec
import numpy as np

from vitrail.data.examine import Look, examine
from vitrail.data.records import Broken, Conflict, Copy, Dataset, Example
from vitrail.data.splits import FRACTIONS, LEAST, assign
from vitrail.errors import InputError
from vitrail.masks.coco import InstancePhoto, Instances, read_coco
from vitrail.masks.folder import MASK_FOLDERS, PHOTO_FOLDERS, LabelledPhoto, LabelledPhotos, read_folder
from vitrail.masks.iou import IGNORE
from vitrail.store import digest_of, sha256_file
from vitrail.words import counted, shown, some_of

__all__ = ["IGNORED", "DrawnDataset", "MaskDataset", "coco_file", "divided", "load", "named", "photos_of"]

Divided = TypeVar("Divided", bound="DrawnDataset")

IGNORED = -1
"""The label of pixels that are not judged."""
BACKGROUND = ("background", "__background__")
"""Names that a class may have of which COCO's files draw nothing: what no object covers."""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """The mask of one photo."""

    size: tuple[int, int]
    """(H, W)."""
    digest: str
    """Of what is drawn."""
    labels: Callable[[], np.ndarray]
    """int16 (H, W): numbers of classes (of a single class 1 inside, 0 outside), or `IGNORED`."""


class Marked(Protocol):
    """What a photo is drawn with."""

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""

    @property
    def digest(self) -> str:
        """Of what is drawn."""


@dataclass(frozen=True, kw_only=True)
class DrawnDataset(Dataset):
    """Photos on which something is drawn; the label of an example says nothing."""

    drawn: Mapping[str, Marked]
    """By the photo's path."""

    def answer(self, example: Example) -> str:
        """The digest of its mask."""
        return self.drawn[example.path].digest

    def doubts(self) -> tuple[str, ...]:
        """Counts of what is wrong with the files: those not used, and those that count once."""
        broken = f", the first: {self.broken[0].reason}" if self.broken else ""
        problems = (
            (len(self.broken), "photo is not used", "photos are not used", broken),
            (len(self.copies), "photo is a copy and counts once", "photos are copies and count once", ""),
            (
                len(self.conflicts),
                "photo has different masks and is left out",
                "photos have different masks and are left out",
                "",
            ),
        )
        return tuple(counted(count, one, many) + more for count, one, many, more in problems if count)


@dataclass(frozen=True, kw_only=True)
class MaskDataset(DrawnDataset):
    """Photos with masks."""

    drawn: Mapping[str, Drawn]

    def truth(self, example: Example) -> np.ndarray:
        """Labels (H, W). Raises InputError if a mask cannot be read any more."""
        return self.drawn[example.path].labels()


def load(path: str | Path, classes: Sequence[str]) -> MaskDataset:
    """Read photos with masks, decode each photo once, and split them by content.

    `path` is a folder as `read_folder` takes it, a COCO file beside its photos, or a folder with one such
    file. `classes`: K names in the order of the model's maps; one: a cut-out.

    Raises:
        InputError: it is none of these, its masks are of other classes or of another size than their photos,
            or there are fewer than 3 distinct photos.
    """
    annotations = coco_file(Path(path))
    if annotations is not None:
        photos = read_coco(annotations, photos_of(annotations))
        drawn, found = _of_coco(photos, classes), photos.found
    else:
        labelled = read_folder(path)
        drawn, found = _of_folder(labelled, classes), labelled.found
    return divided(Path(path), tuple(classes), drawn, found, MaskDataset)


def named(path: str | Path) -> tuple[str, ...] | None:
    """The classes that the data itself names: what no object covers, then COCO's categories in their order.

    None: its masks are PNG files, which only number them.

    Raises:
        InputError: a COCO file that cannot be read.
    """
    annotations = coco_file(Path(path))
    if annotations is None:
        return None
    classes = read_coco(annotations, photos_of(annotations)).classes
    return tuple(classes) if set(BACKGROUND) & set(classes) else (BACKGROUND[0], *classes)


# --- what is there --------------------------------------------------------------------------------


def coco_file(path: Path, *, first: bool = False) -> Path | None:
    """The COCO file that is meant; None: masks are PNG files.

    Args:
        path: a file, or a folder that may hold one.
        first: in a folder that has both, the file goes before PNG masks.

    Raises:
        InputError: several files.
    """
    if path.is_file() or path.suffix.lower() == ".json":
        return path
    files = sorted(path.glob("*.json")) if path.is_dir() else []
    if not files or (not first and any((path / name).is_dir() for name in MASK_FOLDERS)):
        return None
    if len(files) > 1:
        raise InputError(
            f"{shown(str(path))} holds {counted(len(files), 'JSON file')} "
            f"({some_of([file.name for file in files])}): name the one with the annotations."
        )
    return files[0]


def photos_of(annotations: Path) -> Path:
    """Where the photos of a COCO file are: beside it, or in a folder called as they usually are."""
    beside = annotations.parent
    stem = annotations.stem.removeprefix("instances_")
    names = _first_names(annotations)
    for folder in (beside, *(beside / name for name in (*PHOTO_FOLDERS, stem)), beside.parent / stem):
        if names and (folder / names[0]).is_file():
            return folder
    return beside


class _Named(msgspec.Struct):
    file_name: str


class _Names(msgspec.Struct):
    images: list[_Named]


def _first_names(annotations: Path) -> list[str]:
    try:
        return [each.file_name for each in msgspec.json.decode(annotations.read_bytes(), type=_Names).images]
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError):
        return []  # the reader says what is wrong


# --- labels ---------------------------------------------------------------------------------------


def _of_folder(found: LabelledPhotos, classes: Sequence[str]) -> dict[str, Drawn]:
    """Raises InputError for values that are none of the classes."""
    where, count = shown(found.name), len(classes)
    two = found.kind == "inside and outside"
    if count == 1 and not two:
        raise InputError(
            f"The masks of {where} hold {counted(len(found.values), 'value')} from {found.values[0]} to "
            f"{found.values[-1]}, numbers of classes, and the model cuts out one thing ({classes[0]}): save "
            "them with 0 outside and 255 inside."
        )
    if count > 2 and two and 255 in found.values:
        raise InputError(
            f"The masks of {where} hold 0 and 255, which says only what is inside, and the model has "
            f"{count} classes: save them with the number of each pixel's class."
        )
    largest = 1 if two and count <= 2 else max(found.values, default=0)
    if largest >= max(count, 2):
        raise InputError(
            f"The masks of {where} hold values up to {largest}, and --labels names {count} classes, numbered "
            f"from 0: give masks of these classes ({IGNORE} is not judged)."
        )
    turn = _inside if two and count <= 2 else partial(_numbers, ignores=count <= IGNORE)
    return {
        photo.path: Drawn(
            size=photo.size,
            digest=sha256_file(Path(photo.mask_path)),
            labels=partial(_read, photo, turn),
        )
        for photo in found.photos
    }


def _read(photo: LabelledPhoto, turn: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    return turn(photo.labels())


def _inside(values: np.ndarray) -> np.ndarray:
    return (values > 0).astype(np.int16)


def _numbers(values: np.ndarray, *, ignores: bool) -> np.ndarray:
    labels = values.astype(np.int16)
    if ignores:
        labels[values == IGNORE] = IGNORED
    return labels


def _of_coco(found: Instances, classes: Sequence[str]) -> dict[str, Drawn]:
    """Raises InputError for categories that are none of the classes."""
    place = {name: number for number, name in enumerate(classes)}
    if len(classes) == 1:
        # The only class by its name, or else whatever is drawn.
        named = classes[0] in found.classes
        numbers = [1 if name == classes[0] or not named else 0 for name in found.classes]
        rest = 0
    else:
        if missing := [name for name in found.classes if name not in place]:
            raise InputError(
                f"{found.name} has categories that --labels does not name ({some_of(missing)}): give "
                "annotations of the model's classes, under the same names."
            )
        numbers = [place[name] for name in found.classes]
        rest = next((place[name] for name in BACKGROUND if name in place), IGNORED)
    return {
        photo.path: Drawn(
            size=photo.size,
            digest=digest_of([[each.label, str(each.drawn)] for each in photo.instances]),
            labels=partial(_painted, photo, numbers, rest),
        )
        for photo in found.photos
    }


def _painted(photo: InstancePhoto, numbers: Sequence[int], rest: int) -> np.ndarray:
    """Later objects over earlier ones, crowds before all."""
    labels = np.full(photo.size, rest, np.int16)
    for instance in sorted(photo.instances, key=lambda each: not each.crowd):
        if numbers[instance.label] or len(numbers) > 1:
            labels[instance.mask()] = numbers[instance.label]
    return labels


# --- splits ---------------------------------------------------------------------------------------


def divided(
    path: Path,
    classes: tuple[str, ...],
    drawn: Mapping[str, Marked],
    found: str,
    kind: Callable[..., Divided],
) -> Divided:
    """A data set of the kind: each photo decoded once, copies counted once, splits by content.

    Raises:
        InputError: fewer than 3 distinct photos, or what is drawn is of another size than its photo.
    """
    seen = examine(drawn)
    broken = tuple(Broken(path=path, reason=look) for path, look in seen.items() if isinstance(look, str))
    by_digest: dict[str, list[str]] = defaultdict(list)
    for photo, look in seen.items():
        if isinstance(look, Look):
            _check_size(photo, look, drawn[photo])
            by_digest[look.digest].append(photo)
    conflicts = [
        Conflict(digest=digest, paths=tuple(same), labels=tuple(drawn[each].digest for each in same))
        for digest, same in by_digest.items()
        if len({drawn[each].digest for each in same}) > 1
    ]
    usable = {digest: by_digest[digest] for digest in by_digest.keys() - {c.digest for c in conflicts}}
    if len(usable) < LEAST:
        first = f"; the first that cannot be read: {broken[0].reason}" if broken else ""
        raise InputError(
            f"{shown(str(path))} has {counted(len(usable), 'usable distinct photo')} with masks: give at "
            f"least {LEAST}, one each for train, validation and test{first}"
            + ("" if first.endswith(".") else ".")
        )
    splits = assign(usable, {}, FRACTIONS)
    examples = [
        Example(path=same[0], label=0, digest=digest, split=splits[digest]) for digest, same in usable.items()
    ]
    copies = [
        Copy(path=other, original=same[0], straddles=False) for same in usable.values() for other in same[1:]
    ]
    content = sorted([each.digest, drawn[each.path].digest, each.split] for each in examples)
    return kind(
        name=path.resolve().name,
        classes=classes,
        examples=tuple(sorted(examples, key=lambda each: each.path)),
        broken=broken,
        copies=tuple(sorted(copies, key=lambda each: each.path)),
        conflicts=tuple(conflicts),
        given=(),
        digest=digest_of([list(classes), content]),
        found=found.rstrip("."),
        drawn=drawn,
    )


def _check_size(photo: str, look: Look, drawn: Marked) -> None:
    width, height = look.size
    if (height, width) != drawn.size:
        raise InputError(
            f"{shown(photo)} has {width} × {height} pixels, but its mask {drawn.size[1]} × {drawn.size[0]}: "
            "make the two the same."
        )

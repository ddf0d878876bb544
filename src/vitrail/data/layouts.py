"""Which folders of labelled images are classes and which are splits.

Public data sets are laid out as DIR/CLASS, DIR/SPLIT/CLASS or DIR/CLASS/SPLIT, often inside a folder without
meaning (`images/`, the archive's name, the same name twice), next to folders of annotations. The recognised
layout is reported; an ambiguous one is refused, naming the option that decides it (docs/data.md).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NoReturn

from vitrail.data.records import LAYOUTS, Broken, Layout, Split
from vitrail.data.splits import SPLIT_NAMES
from vitrail.errors import InputError
from vitrail.images import find

__all__ = ["ClassFolder", "RecognisedLayout", "recognise", "split_names"]

FILLERS = frozenset((
    "set", "sets", "data", "dataset", "split", "folder", "image", "images", "img", "imgs", "sample",
    "samples",
))  # fmt: skip
"""Words without meaning next to a split's: `train_set`, `Training Data`."""

HOLDERS = frozenset((
    "image", "images", "img", "imgs", "jpg", "jpeg", "jpegs", "jpegimages", "png", "pngs", "data",
    "photos", "pictures",
))  # fmt: skip
"""Folders that hold the images of their parent folder, and are not classes."""

COMPANIONS = frozenset((
    "annotation", "annotations", "label", "labels", "mask", "masks", "ground", "truth", "groundtruth",
    "segmentation", "segmentations", "trimaps", "bboxes", "xml", "xmls", "json", "heatmaps", "depth",
))  # fmt: skip
"""Folders of files that accompany images, possibly images too (masks), and are not classes."""

_PART = re.compile(r"(.*?)(part|batch|fold|chunk|shard)s?[-_ ]*\d+", re.IGNORECASE)
MOVE = "move it into the folder of its class"
DEEPEST = 8
"""At most this many nested folders are entered that have nothing next to them."""


@dataclass(frozen=True, kw_only=True)
class ClassFolder:
    """A folder whose images, including those below it, are of one class, and of one split if it says so."""

    label: str
    folder: str
    split: Split | None = None


@dataclass(frozen=True, kw_only=True)
class RecognisedLayout:
    """What the folders are. `root`: where classes or splits start; `splits`: folder name to split."""

    layout: Layout
    root: str
    classes: tuple[ClassFolder, ...]
    splits: Mapping[str, Split]
    unplaced: tuple[Broken, ...] = ()
    """Images without a class."""
    ignored: tuple[str, ...] = ()
    """Folders without images next to those that were entered."""


def recognise(root: Path, layout: Layout | None = None) -> RecognisedLayout:
    """Say what the folders of `root` are, or treat them as what `layout` says they are.

    Raises:
        InputError: without `layout`, ambiguous folders; with it, folders that do not match it; a split layout
            without train, a class without images; a folder that cannot be listed.
    """
    if layout is not None and layout not in LAYOUTS:
        raise InputError(f"layout is {layout!r}: choose {', '.join(LAYOUTS[:-1])} or {LAYOUTS[-1]}.")
    top = _Folder(str(root))
    if layout == "class":
        return _classes(top)
    if layout == "split/class":
        return _splits(top)
    if layout == "class/split":
        return _class_splits(top)
    return _guessed(*_entered(top))


def split_names(names: Sequence[str]) -> dict[str, Split]:
    """The folder names that name a split, ignoring whatever surrounds the word in all of them.

    `seg_train` and `seg_test`; `train2017`; `Training Data`; not `train station`.
    """
    words = {name: _words(name) for name in names}
    common = set.intersection(*words.values()) if len(names) > 1 else set()
    if any(own <= common for own in words.values()):
        common = set()
    rest = {name: own - common - FILLERS for name, own in words.items()}
    return {
        name: SPLIT_NAMES[next(iter(own))]
        for name, own in rest.items()
        if len(own) == 1 and own <= SPLIT_NAMES.keys()
    }


def _words(name: str) -> set[str]:
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)  # TrainSet
    return {word.casefold() for word in re.findall(r"[^\W\d_]+", apart)}


class _Folder:
    """A folder and its contents, listed on demand."""

    def __init__(self, path: str) -> None:
        self.path, self.name = path, os.path.basename(path)

    @cached_property
    def inner(self) -> list[_Folder]:
        return [_Folder(os.path.join(self.path, name)) for name in find.subfolders(self.path)]

    @cached_property
    def images(self) -> list[str]:
        """Images directly in it."""
        return find.images_in(self.path)

    @cached_property
    def filled(self) -> list[_Folder]:
        """Folders in it that hold images."""
        return [folder for folder in self.inner if find.holds_images(folder.path)]

    @cached_property
    def splits(self) -> dict[str, Split]:
        return split_names([folder.name for folder in self.filled])

    @property
    def holds_parts(self) -> bool:
        """Whether it has both train and a held-out split."""
        return "train" in self.splits.values() and len(set(self.splits.values())) > 1

    def unplaced(self, reason: str) -> list[Broken]:
        return [Broken(path=path, reason=reason) for path in find.images_below(self.path)]


# --- the three layouts --------------------------------------------------------------------------


def _classes(top: _Folder, ignored: Iterable[str] = ()) -> RecognisedLayout:
    classes, passed = _class_folders(top)
    return RecognisedLayout(
        layout="class",
        root=top.path,
        classes=tuple(classes),
        splits={},
        unplaced=tuple(_beside(top.images, "the class folders")),
        ignored=(*ignored, *passed),
    )


def _splits(top: _Folder, ignored: Iterable[str] = ()) -> RecognisedLayout:
    """Train must have classes; anything else without classes is unplaced, even a folder of another name."""
    if "train" not in top.splits.values():
        names = ", ".join(folder.name for folder in top.filled) or "nothing"
        missing = os.path.join(top.path, "train")
        raise InputError(f"{top.path} has no train folder with images next to {names}: add {missing}.")
    classes: list[ClassFolder] = []
    unplaced, passed = _beside(top.images, "the splits' folders"), list(ignored)
    for folder in top.filled:
        split, held = top.splits.get(folder.name), _held(folder)
        if split is None and held.filled:
            names = " and ".join(top.splits)
            _ambiguous(
                f"{top.path}: the folder {folder.name}, next to {names}, has the "
                f"unknown split {folder.name!r}: name it train, validation or test, or move it out",
                "class",
            )
        if split is None or not held.filled:
            unplaced += folder.unplaced(f"it has no class folder in {folder.path}: {MOVE}, or leave it out")
            continue
        unplaced += _beside(held.images, "the class folders")
        more, empty = _class_folders(held, split)
        classes, passed = classes + more, passed + empty
    if not any(each.split == "train" for each in classes):
        shown = ", ".join(top.splits)
        _ambiguous(
            f"{top.path} has images in {shown} and no class folders in train: put them into one folder per "
            "class",
            "class",
        )
    return RecognisedLayout(
        layout="split/class",
        root=top.path,
        classes=tuple(classes),
        splits=top.splits,
        unplaced=tuple(unplaced),
        ignored=tuple(passed),
    )


def _class_splits(top: _Folder, ignored: Iterable[str] = ()) -> RecognisedLayout:
    classes: list[ClassFolder] = []
    splits: dict[str, Split] = {}
    unplaced = _beside(top.images, "the class folders")
    for folder in top.filled:
        unknown = [inner.name for inner in folder.filled if inner.name not in folder.splits]
        if unknown or not folder.filled:
            what = f"the unknown split {unknown[0]!r}" if unknown else "no folders of splits"
            _ambiguous(
                f"The class folder {folder.path} has {what}: name it train, validation or test", "class"
            )
        unplaced += _beside(folder.images, "the splits' folders of its class")
        splits |= folder.splits
        classes += [
            ClassFolder(label=folder.name, folder=inner.path, split=folder.splits[inner.name])
            for inner in folder.filled
        ]
    return RecognisedLayout(
        layout="class/split",
        root=top.path,
        classes=tuple(classes),
        splits=splits,
        unplaced=tuple(unplaced),
        ignored=tuple(ignored),
    )


def _beside(images: Iterable[str], what: str) -> list[Broken]:
    return [Broken(path=path, reason=f"it lies next to {what}: {MOVE}") for path in images]


def _class_folders(folder: _Folder, split: Split | None = None) -> tuple[list[ClassFolder], list[str]]:
    """The classes in a folder, and folders in it that hold annotations but no images."""
    empty = [inner for inner in folder.inner if inner not in folder.filled]
    passed = [inner.path for inner in empty if _words(inner.name) & COMPANIONS]
    wrong = next((inner.path for inner in empty if inner.path not in passed), None)
    if wrong is not None:
        raise InputError(f"The class folder {wrong} holds no images: add some or remove the folder.")
    folders = [ClassFolder(label=inner.name, folder=inner.path, split=split) for inner in folder.filled]
    return folders, passed


# --- recognising --------------------------------------------------------------------------------


def _guessed(top: _Folder, ignored: Sequence[str]) -> RecognisedLayout:
    named, others = set(top.splits), [folder for folder in top.filled if folder.name not in top.splits]
    if named and (not others or top.holds_parts):
        return _splits(top, ignored)
    vehicles = set(top.splits.values()) == {"train"} and all(
        folder.images for folder in top.filled if folder.name in named
    )
    if named and not vehicles:
        _ambiguous(
            f"{top.path} has {' and '.join(sorted(named))} next to {others[0].name}: these are either "
            "splits, and then the others do not belong there, or classes",
            "class",
        )
    _refuse_no_classes(top)
    if len(top.filled) == 1 and _words(top.filled[0].name) <= HOLDERS and not top.filled[0].filled:
        return _without_classes(top)
    split = [folder for folder in top.filled if folder.holds_parts]
    if not split:
        return _classes(top, ignored)
    plain = [folder for folder in top.filled if folder.images or len(folder.splits) < len(folder.filled)]
    bare = [folder for folder in top.filled if not folder.filled]
    if plain or bare:
        odd = (plain or bare)[0]
        _ambiguous(
            f"{split[0].path} has folders of splits and {odd.path} has other things in it: either "
            "lay out all classes alike",
            "class",
            "class/split",
        )
    return _class_splits(top, ignored)


def _without_classes(top: _Folder) -> RecognisedLayout:
    unplaced = top.unplaced(f"it lies in no class folder: {MOVE}")
    return RecognisedLayout(layout="class", root=top.path, classes=(), splits={}, unplaced=tuple(unplaced))


def _refuse_no_classes(top: _Folder) -> None:
    """Folders whose names say that they are not classes."""
    words = {folder.name: _words(folder.name) for folder in top.filled}
    companions = [name for name, own in words.items() if own & COMPANIONS]
    holders = [name for name, own in words.items() if own and own <= HOLDERS]
    if companions and holders:
        _ambiguous(
            f"{top.path} has {holders[0]} and {companions[0]}, which look like images and what belongs "
            "to them, not like classes: put the images into one folder per class",
            "class",
        )
    parts = [_PART.fullmatch(folder.name) for folder in top.filled]
    if len(parts) > 1 and len({part and part[1] for part in parts}) == 1 and None not in parts:
        names = f"{top.filled[0].name} and {top.filled[1].name}"
        _ambiguous(
            f"{top.path} has {names}, which look like parts of one set, not like classes: put the images "
            "into one folder per class",
            "class",
        )


def _entered(top: _Folder) -> tuple[_Folder, list[str]]:
    """The first folder below `top` with several folders, and the folders without images passed on the way."""
    ignored: list[str] = []
    for _ in range(DEEPEST):
        if top.images or len(top.filled) != 1 or top.splits or not top.filled[0].filled:
            break
        beside = [folder.path for folder in top.inner if folder is not top.filled[0]]
        if not all(_has_files(path) for path in beside):  # an empty folder may be a class
            break
        ignored += beside
        top = top.filled[0]
    return top, ignored


def _held(folder: _Folder) -> _Folder:
    """The folder that holds a split's classes: itself, or a folder inside it without a meaning of its own."""
    for _ in range(DEEPEST):
        if folder.images or len(folder.filled) != 1:
            break
        (only,) = folder.filled
        if only.name.casefold() != folder.name.casefold() and only.name.casefold() not in HOLDERS:
            break
        folder = only
    return folder


def _has_files(folder: str) -> bool:
    return any(files for _, _, files in os.walk(folder))


def _ambiguous(problem: str, *layouts: Layout) -> NoReturn:
    meant = " or ".join(f"--layout {layout}" for layout in layouts)
    when = "if these folders are the classes, " if layouts[1:] == () else ""
    raise InputError(f"{problem}; or, {when}say {meant}.")

"""A labelled data set once it has been read: frozen records, no I/O."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal, get_args

from vitrail.vocabulary import Layout
from vitrail.words import counted

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
"""What the folders of DIR are, starting with the outermost."""


@dataclass(frozen=True, kw_only=True)
class ListedImage:
    """An image as its folder or manifest lists it, before anything is opened.

    `path` is absolute; `split` is None where none is named; `place` names the row in messages.
    """

    path: str
    label: str
    split: Split | None = None
    place: str = ""


@dataclass(frozen=True, kw_only=True)
class Broken:
    """An image that belongs to no split, and why; `path` is absolute."""

    path: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Listing:
    """Everything a folder or manifest lists: its rows, and files without a class, which cannot be rows.

    `found` describes how it is laid out.
    """

    name: str
    rows: tuple[ListedImage, ...]
    unplaced: tuple[Broken, ...] = ()
    found: str = ""


@dataclass(frozen=True, kw_only=True)
class Example:
    """An image of one split: absolute path, index into the classes, sha256 of the file's bytes."""

    path: str
    label: int
    digest: str
    split: Split


@dataclass(frozen=True, kw_only=True)
class Copy:
    """A file that is byte-equal to the example at `original`, with the same label.

    `straddles`: the data has the two in different splits; the one that is kept is in test rather than
    validation, in validation rather than train.
    """

    path: str
    original: str
    straddles: bool


@dataclass(frozen=True, kw_only=True)
class Conflict:
    """Byte-equal files with different labels: nobody can tell which is right, so none is in a split.

    `paths` are absolute and correspond to `labels` (names), one each.
    """

    digest: str
    paths: tuple[str, ...]
    labels: tuple[str, ...]


_LAID_OUT = {
    "class": "one folder per class",
    "split/class": "a folder per split with one folder per class",
    "class/split": "one folder per class with a folder per split",
}


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A labelled data set whose every example has been decoded once.

    `classes`: K names in the order of the labels. `examples`: each distinct image once, sorted by path.
    `given`: the splits that the data names itself; the others were made by content hash. `digest`: sha256
    over the sorted (digest, label name, split), regardless of the files' names and copies. `found`: a
    description of how the data is laid out, so that the user can check it.
    """

    name: str
    classes: tuple[str, ...]
    examples: tuple[Example, ...]
    broken: tuple[Broken, ...]
    copies: tuple[Copy, ...]
    conflicts: tuple[Conflict, ...]
    given: tuple[Split, ...]
    digest: str
    found: str = ""

    @property
    def duplicates(self) -> int:
        """Count of files that are byte-equal to an example with the same label and therefore left out."""
        return len(self.copies)

    @property
    def laid_out(self) -> str:
        """`found` for people: what the folders are."""
        for layout, words in _LAID_OUT.items():
            if re.match(rf"{layout}(?![/\w])", self.found):
                return words + self.found.removeprefix(layout)
        return self.found

    def of(self, split: Split) -> tuple[Example, ...]:
        """The examples of one split, sorted by path."""
        return tuple(example for example in self.examples if example.split == split)

    def truth(self, example: Example) -> Any:
        """What a model should say of an example: the number of its class."""
        return example.label

    def answer(self, example: Example) -> str:
        """The same as a text that records hold: the name of its class."""
        return self.classes[example.label]

    def doubts(self) -> tuple[str, ...]:
        """Counts of what is wrong with the files: those not used, and those that count once."""
        first = self.broken[0].path if self.broken else ""
        problems = (
            (len(self.broken), "image is not used", "images are not used", f", the first: {first}"),
            (len(self.copies), "file is a copy and counts once", "files are copies and count once", ""),
            (
                len(self.conflicts),
                "image has different labels and is left out",
                "images have different labels and are left out",
                "",
            ),
        )
        said = [counted(count, one, many) + more for count, one, many, more in problems if count]
        return tuple(f"{text} (`vitrail data` lists them)" for text in said)

    def counts(self) -> dict[str, dict[Split, int]]:
        """Examples per class name and split; every class and split is present."""
        table: dict[str, dict[Split, int]] = {name: dict.fromkeys(SPLITS, 0) for name in self.classes}
        for example in self.examples:
            table[self.classes[example.label]][example.split] += 1
        return table

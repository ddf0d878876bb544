"""Images with texts: a manifest (CSV or Parquet) with columns path, text and, optionally, split, category.

An image may have several texts, one per row. As with labelled images, paths stay inside the manifest's
folder, each image is decoded once, and equal files are one image (with the texts of all), in one split.
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vitrail.data import manifest
from vitrail.data.examine import Look, examine
from vitrail.data.listing import MANIFESTS
from vitrail.data.read import PRECEDENCE, broken_of, class_name, class_names
from vitrail.data.records import SPLITS, Broken, Conflict, Copy, ListedImage, Split
from vitrail.data.splits import assign
from vitrail.errors import InputError
from vitrail.store import digest_of
from vitrail.words import counted

__all__ = ["Pair", "Pairs", "load"]

REQUIRED, OPTIONAL = ("path", "text"), ("split", "category")
COLUMNS = "path,text[,split][,category]"
FRACTIONS = (0.8, 0.1, 0.1)
"""Shares of train, validation and test, where the manifest names no splits."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One image and all its texts: absolute path, sha256 of the file, split, category if it has one."""

    path: str
    digest: str
    texts: tuple[str, ...]
    split: Split
    category: str | None


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Images with texts, every image decoded once.

    `pairs`: each distinct image once, sorted by path. `categories`: their names, sorted; empty without such a
    column. `copies`: files equal to another one, which also gets their texts. `conflicts`: equal files of
    several categories; the image then has none. `digest`: sha256 over the sorted (digest, texts, split,
    category).
    """

    name: str
    pairs: tuple[Pair, ...]
    categories: tuple[str, ...]
    broken: tuple[Broken, ...]
    copies: tuple[Copy, ...]
    conflicts: tuple[Conflict, ...]
    given: tuple[Split, ...]
    digest: str

    def of(self, split: Split) -> tuple[Pair, ...]:
        """The images of one split, sorted by path."""
        return tuple(pair for pair in self.pairs if pair.split == split)


@dataclass(frozen=True, kw_only=True)
class _Line(ListedImage):
    """A row of the manifest; its label is the category, empty for none."""

    text: str


def load(path: str | Path) -> Pairs:
    """Read a manifest of images and texts, decode each image once, and split them by content.

    A column `split` gives every row's split; if it names no validation, that is taken from train, and test
    stays as it is. Without the column: 80 % train, 10 % validation, 10 % test.

    Raises:
        InputError: a manifest that cannot be read or lacks a column, a row without a text or whose path leads
            outside the manifest's folder, categories that differ in case alone, no readable image, or none to
            train on or to validate with.
        MissingExtraError: a Parquet manifest without pyarrow.
    """
    root = Path(path)
    lines = list(_lines(root))
    labelled = [line for line in lines if line.label]
    categories = class_names(labelled)
    seen = examine(line.path for line in lines)
    looks = {p: look for p, look in seen.items() if isinstance(look, Look)}
    broken = broken_of(lines, seen)
    if not looks:
        first = next(iter(broken.values())).reason
        raise InputError(f"No image of {path} can be read ({len(seen)} tried); the first: {first}")
    groups = _groups([line for line in lines if line.path in looks], looks)
    splits = _splits(groups, root)
    pairs = tuple(sorted((_pair(d, g, splits[d]) for d, g in groups.items()), key=lambda pair: pair.path))
    return Pairs(
        name=root.stem,
        pairs=pairs,
        categories=categories,
        broken=tuple(sorted(broken.values(), key=lambda item: item.path)),
        copies=_copies(groups),
        conflicts=_conflicts(groups),
        given=tuple(split for split in SPLITS if any(line.split == split for line in lines)),
        digest=_digest(pairs),
    )


def _lines(path: Path) -> Iterator[_Line]:
    suffix = path.suffix.lower()
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise InputError(f"{path} {what}: give a manifest, CSV or Parquet, with the columns {COLUMNS}.")
    if suffix not in MANIFESTS:
        raise InputError(
            f"{path} does not end in {', '.join(MANIFESTS)}: give a manifest with the columns {COLUMNS}."
        )
    read = manifest.csv_cells if suffix == ".csv" else manifest.parquet_cells
    for place, file, cells in manifest.checked(path, read(path, REQUIRED, OPTIONAL), REQUIRED):
        yield _Line(
            path=file,
            text=unicodedata.normalize("NFC", cells["text"]).strip(),
            label=cells.get("category", "").strip(),
            split=manifest.split_of(cells["split"], place) if "split" in cells else None,
            place=place,
        )


def _groups(lines: Sequence[_Line], looks: Mapping[str, Look]) -> dict[str, list[_Line]]:
    """Rows by their image's content, those first whose split is kept."""
    groups: dict[str, list[_Line]] = defaultdict(list)
    for line in sorted(lines, key=lambda line: (PRECEDENCE[line.split], line.path)):
        groups[looks[line.path].digest].append(line)
    return groups


def _splits(groups: Mapping[str, Sequence[_Line]], path: Path) -> dict[str, Split]:
    named = {digest: group[0].split for digest, group in groups.items() if group[0].split is not None}
    if not named:
        splits = assign(groups, {}, FRACTIONS)
    else:
        held_out = "validation" in named.values()
        splits = assign(groups, named, (FRACTIONS[0], 0.0 if held_out else FRACTIONS[1], 0.0))
    counts = {split: sum(given == split for given in splits.values()) for split in SPLITS}
    if not counts["train"] or not counts["validation"]:
        lacking = "train" if not counts["train"] else "validation"
        images = counted(len(groups), "usable distinct image")
        raise InputError(
            f"{path} has {images} and none of them is left for {lacking}: add some, or give rows that split."
        )
    return splits


def _categories(group: Sequence[_Line]) -> list[str]:
    return list(dict.fromkeys(class_name(line.label) for line in group if line.label))


def _pair(digest: str, group: Sequence[_Line], split: Split) -> Pair:
    categories = _categories(group)
    return Pair(
        path=group[0].path,
        digest=digest,
        texts=tuple(dict.fromkeys(line.text for line in group)),
        split=split,
        category=categories[0] if len(categories) == 1 else None,
    )


def _copies(groups: Mapping[str, Sequence[_Line]]) -> tuple[Copy, ...]:
    copies: dict[str, Copy] = {}
    for first, *others in groups.values():
        for line in others:
            straddles = line.split != first.split
            if line.path != first.path or straddles:
                copies[line.path] = Copy(path=line.path, original=first.path, straddles=straddles)
    return tuple(sorted(copies.values(), key=lambda copy: copy.path))


def _conflicts(groups: Mapping[str, Sequence[_Line]]) -> tuple[Conflict, ...]:
    return tuple(
        Conflict(
            digest=digest,
            paths=tuple(line.path for line in group if line.label),
            labels=tuple(class_name(line.label) for line in group if line.label),
        )
        for digest, group in groups.items()
        if len(_categories(group)) > 1
    )


def _digest(pairs: Sequence[Pair]) -> str:
    content = sorted([pair.digest, sorted(pair.texts), pair.split, pair.category or ""] for pair in pairs)
    return digest_of(content)

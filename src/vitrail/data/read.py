"""From a folder or manifest to a `Dataset`: classes, contents, splits."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vitrail.data import listing
from vitrail.data.examine import Look, examine
from vitrail.data.records import SPLITS, Broken, Conflict, Copy, Dataset, Example, Layout, ListedImage, Split
from vitrail.data.splits import FRACTIONS, LEAST, assign, check_fractions
from vitrail.errors import InputError
from vitrail.store import digest_of
from vitrail.words import counted, is_utf8, utf8

# Which of the copies spread over splits is kept: held-out images must not be learned from.
PRECEDENCE: dict[Split | None, int] = {"test": 0, "validation": 1, "train": 2, None: 3}


def load(
    path: str | Path, *, fractions: Sequence[float] = FRACTIONS, layout: Layout | None = None
) -> Dataset:
    """Read the labelled images of a folder or manifest, decode each once, and split them by content.

    `fractions`: the shares of train, validation and test, for the splits that the data does not name; those
    are taken from train. `layout`: what the folders are, `class`, `split/class` or `class/split`; None:
    recognise it. docs/data.md describes the layouts.

    Raises InputError for data that cannot be used: nothing readable, one class only, two classes with
    the same name, a class without at least one image in each split; MissingExtraError without pyarrow where
    the format needs it.
    """
    return read(path, fractions=fractions, layout=layout).dataset


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A data set, and what was read from each readable file, including copies and conflicts, by path."""

    dataset: Dataset
    looks: Mapping[str, Look]


def read(
    path: str | Path, *, fractions: Sequence[float] = FRACTIONS, layout: Layout | None = None
) -> Reading:
    """Like `load`, but keep what was read from the files; raises the same."""
    shares = check_fractions(fractions)
    listed = listing.list_images(path, layout)
    classes = _classes(listed.rows)
    seen = examine(row.path for row in listed.rows)
    looks = {p: look for p, look in seen.items() if isinstance(look, Look)}
    broken = broken_of(listed.rows, seen)
    if not looks:
        first = next(iter(broken.values())).reason
        raise InputError(f"No image of {path} can be read ({len(seen)} tried); the first: {first}")
    groups, conflicts = _groups([row for row in listed.rows if row.path in looks], looks)
    given = tuple(split for split in SPLITS if any(row.split == split for row in listed.rows))
    try:
        splits = _splits(groups, given, shares, classes)
    except _TooFew as error:
        raise _with_reasons(error, listed.rows, broken, conflicts) from None
    examples, copies = _examples(groups, splits, {name: label for label, name in enumerate(classes)})
    dataset = Dataset(
        name=listed.name,
        classes=classes,
        examples=examples,
        broken=tuple(sorted([*broken.values(), *listed.unplaced], key=lambda item: item.path)),
        copies=copies,
        conflicts=conflicts,
        given=given,
        digest=_digest(examples, classes),
        found=listed.found,
    )
    return Reading(dataset=dataset, looks=looks)


# --- classes --------------------------------------------------------------------------------------


def class_name(label: str) -> str:
    """A label as it is shown and compared: composed Unicode (NFC), without surrounding blanks."""
    return unicodedata.normalize("NFC", label).strip()


def _classes(rows: Iterable[ListedImage]) -> tuple[str, ...]:
    """The K names, sorted; InputError for a single class or for two that differ only in case or blanks."""
    names = class_names(rows)
    if len(names) == 1:
        raise InputError(f"There is only one class, {names[0]!r}: give images of at least two classes.")
    return names


def class_names(rows: Iterable[ListedImage]) -> tuple[str, ...]:
    """The names of the rows' labels, sorted; InputError for two that differ only in case or blanks."""
    spellings: dict[str, ListedImage] = {}
    for row in rows:
        if not is_utf8(row.label):
            where = utf8(row.place or row.path)
            raise InputError(f"The class {utf8(row.label)} ({where}) is not UTF-8: rename it.")
        if not class_name(row.label):
            raise InputError(f"{row.place or row.path} has a class without a name: name it.")
        same = unicodedata.normalize("NFC", class_name(row.label).casefold())
        first = spellings.setdefault(same, row)
        if first.label != row.label:
            where = f" ({first.place or first.path}; {row.place or row.path})"
            raise InputError(
                f"The classes {first.label!r} and {row.label!r} have the same name{where}: "
                "write them the same way, or give them different names."
            )
    return tuple(sorted(class_name(row.label) for row in spellings.values()))


# --- contents -------------------------------------------------------------------------------------


def _groups(
    rows: Sequence[ListedImage], looks: Mapping[str, Look]
) -> tuple[dict[str, dict[str, list[ListedImage]]], tuple[Conflict, ...]]:
    """Rows by class name and digest, the one to keep first; digests with several labels separately."""
    by_digest: dict[str, list[ListedImage]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: (PRECEDENCE[row.split], row.path)):
        by_digest[looks[row.path].digest].append(row)
    groups: dict[str, dict[str, list[ListedImage]]] = defaultdict(dict)
    conflicts = []
    for digest, equal in sorted(by_digest.items(), key=lambda item: item[1][0].path):
        labels = tuple(class_name(row.label) for row in equal)
        if len(set(labels)) > 1:
            conflicts.append(Conflict(digest=digest, paths=tuple(row.path for row in equal), labels=labels))
        else:
            groups[labels[0]][digest] = equal
    return groups, tuple(conflicts)


def broken_of(rows: Iterable[ListedImage], seen: Mapping[str, Look | str]) -> dict[str, Broken]:
    """What cannot be read, by path; the reason starts with the manifest's row if there is one."""
    places = {row.path: f"{row.place}: " for row in reversed(list(rows)) if row.place}
    return {
        path: Broken(path=path, reason=places.get(path, "") + look)
        for path, look in seen.items()
        if isinstance(look, str)
    }


# --- splits ---------------------------------------------------------------------------------------


def _splits(
    groups: Mapping[str, Mapping[str, list[ListedImage]]],
    given: Sequence[Split],
    shares: Sequence[float],
    classes: Sequence[str],
) -> dict[str, Split]:
    """The split of every digest; InputError for a class that cannot have an image in each."""
    held_out = {split for split in given if split != "train"}
    shares = [0.0 if split in held_out else share for split, share in zip(SPLITS, shares, strict=True)]
    splits: dict[str, Split] = {}
    for name in classes:
        images = groups.get(name, {})
        named = {digest: rows[0].split for digest, rows in images.items() if rows[0].split is not None}
        own = assign(images, named, shares)
        for split in SPLITS:
            if split not in own.values():
                raise _too_few(name, split, len(images), bool(held_out))
        splits.update(own)
    return splits


class _TooFew(InputError):
    """A class that cannot have an image in each split."""

    def __init__(self, name: str, problem: str, fix: str) -> None:
        super().__init__(f"The class {name!r} has {problem}: {fix}.")
        self.name, self.problem, self.fix = name, problem, fix


def _too_few(name: str, split: Split, count: int, given: bool) -> _TooFew:
    if not given:
        images = counted(count, "usable distinct image") if count else "no usable distinct images"
        fix = f"give it at least {LEAST}, one each for train, validation and test"
        return _TooFew(name, images, fix)
    problem = f"no usable image left for {split}"
    return _TooFew(name, problem, "add some, or leave the split to Vitrail")


def _with_reasons(
    error: _TooFew, rows: Iterable[ListedImage], broken: Mapping[str, Broken], conflicts: Iterable[Conflict]
) -> InputError:
    """The same error with the class's unusable files, which are often the reason."""
    reasons = []
    own = dict.fromkeys(r.path for r in rows if class_name(r.label) == error.name and r.path in broken)
    if own:
        first = broken[next(iter(own))].reason.rstrip(".")
        reasons.append(f"{counted(len(own), 'file')} that cannot be read, the first: {first}")
    shared = [conflict for conflict in conflicts if error.name in conflict.labels]
    if shared:
        files = sum(label == error.name for conflict in shared for label in conflict.labels)
        pairs = list(zip(shared[0].paths, shared[0].labels, strict=True))
        mine = next(path for path, label in pairs if label == error.name)
        other = next((path, label) for path, label in pairs if label != error.name)
        reasons.append(
            f"{counted(files, 'file')} equal to a file of another class, so nobody can tell which is right, "
            f"the first: {mine} is {other[0]} of {other[1]!r}; remove the wrong ones"
        )
    if not reasons:
        return error
    return InputError(
        f"The class {error.name!r} has {error.problem}: {error.fix}. It has {', and '.join(reasons)}."
    )


def _examples(
    groups: Mapping[str, Mapping[str, list[ListedImage]]],
    splits: Mapping[str, Split],
    labels: Mapping[str, int],
) -> tuple[tuple[Example, ...], tuple[Copy, ...]]:
    """One example per distinct image, the other files as its copies; both sorted by path."""
    examples, copies = [], []
    for name, images in groups.items():
        for digest, (first, *others) in images.items():
            examples.append(Example(path=first.path, label=labels[name], digest=digest, split=splits[digest]))
            copies += [
                Copy(path=row.path, original=first.path, straddles=row.split != first.split) for row in others
            ]
    return (
        tuple(sorted(examples, key=lambda example: example.path)),
        tuple(sorted(copies, key=lambda copy: copy.path)),
    )


def _digest(examples: Sequence[Example], classes: Sequence[str]) -> str:
    content = sorted([example.digest, classes[example.label], example.split] for example in examples)
    return digest_of(content)

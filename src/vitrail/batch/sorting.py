"""`--sort-into DIR`: a link to each image in a folder per label, made from the results on disk.

    OUT/sorted/<DIR>/<id>.json   the links that DIR has for a shard: {folder: [name, ...]}

That record is written before the links, and what it has and the results have not any more is removed first:
an image whose shard was done again with another answer is in one folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import unicodedata
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from vitrail.batch import write
from vitrail.batch.commit import SORTED, Folder
from vitrail.batch.records import Shard
from vitrail.errors import InputError
from vitrail.store import atomic_write, canonical_json, sweep, writing
from vitrail.words import utf8

__all__ = ["check_target", "folder_names", "sort_into"]

NOTE = ".vitrail-sorted.json"
"""In DIR: whose links these are."""
LONGEST = 200
"""Bytes of a folder's name; file systems allow 255."""


def check_target(directory: str, out: str) -> None:
    """Raise InputError unless DIR is new, empty, or was filled by the job of this OUT."""
    path = Path(os.path.abspath(directory))
    if path == Path(os.path.abspath(out)):
        raise InputError(f"--sort-into {directory} is the folder of --out: choose another.")
    if path.exists() and not path.is_dir():
        raise InputError(f"--sort-into {directory} is a file: name a folder.")
    if not path.is_dir():
        return
    with writing(path):
        names = [entry.name for entry in os.scandir(path)]
    try:
        ours = json.loads((path / NOTE).read_bytes()).get("out") == os.path.abspath(out)
    except (OSError, ValueError, AttributeError):
        ours = False
    if names and not ours:
        raise InputError(f"--sort-into {directory} holds other files: choose an empty or new folder.")


def folder_names(groups: Sequence[str]) -> dict[str, str]:
    """A folder for each label, all different, whatever the labels hold."""
    found: dict[str, str] = {}
    taken: set[str] = set()
    for group in dict.fromkeys(groups):
        name = base = _safe(group)
        number = 2
        while name.casefold() in taken:  # some file systems do not tell case
            name, number = f"{base}_{number}", number + 1
        taken.add(name.casefold())
        found[group] = name
    return found


def sort_into(
    directory: str, folder: Folder, shards: Iterable[Shard], column: str, groups: Sequence[str], root: str
) -> int:
    """Make the links that are not there yet, and remove those that a shard had before it was done again;
    return how many results have one.

    Raises:
        InputError: a link cannot be made, or something else has its name.
    """
    target = Path(os.path.abspath(directory))
    names, count = folder_names(groups), 0
    record = folder.path / SORTED / hashlib.sha256(os.fsencode(target)).hexdigest()[:16]
    with writing(target):
        target.mkdir(parents=True, exist_ok=True)
    with writing(record):
        record.mkdir(parents=True, exist_ok=True)
        sweep(record)
    atomic_write(target / NOTE, json.dumps({"out": str(folder.path)}).encode("ascii"))
    for shard in shards:
        place, found = folder.results_file(shard.id), list[_Link]()
        if place.exists():
            given = {utf8(one.name): one.name for one in shard.inputs}  # the table holds escapes
            found = [
                (names[group], given[path]) for path, group in write.read_columns(place, ("path", column))
            ]
        _update(target, record / f"{shard.id}.json", set(found), root)
        count += len(found)
    return count


_Link = tuple[str, str]
"""The label's folder, and the image's name below the root."""


def _update(target: Path, record: Path, links: set[_Link], root: str) -> None:
    before = _recorded(record)
    for folder, name in before - links:
        link = target / folder / _below(root, name)
        if link.is_symlink() and os.readlink(link) == _source(root, name):
            with writing(link):
                link.unlink()
    if before != links:
        by_folder: dict[str, list[str]] = {}
        for folder, name in sorted(links):
            by_folder.setdefault(folder, []).append(name)
        atomic_write(record, canonical_json(by_folder))
    for folder, name in sorted(links):
        _link(target / folder / _below(root, name), _source(root, name))


def _recorded(record: Path) -> set[_Link]:
    with suppress(OSError, ValueError, AttributeError):  # none, or damaged: only what is new is known
        return {(folder, name) for folder, names in json.loads(record.read_bytes()).items() for name in names}
    return set()


def _link(link: Path, source: str) -> None:
    with writing(link):
        try:
            os.symlink(source, link)
        except FileNotFoundError:
            link.parent.mkdir(parents=True, exist_ok=True)
            os.symlink(source, link)
        except FileExistsError:
            if not link.is_symlink() or os.readlink(link) != source:
                raise


def _source(root: str, name: str) -> str:
    """Without `..`, which behind a link is another folder than it seems, the path as short as it can be."""
    path = os.path.join(root, name)
    return path if ".." in path.split("/") else os.path.normpath(path)


def _below(root: str, name: str) -> str:
    """Where an image is in its label's folder: as below the root.

    A path that leads up may seem to be that of another image: its last part gets a digest.
    """
    path = os.path.relpath(os.path.join(root, name), root)
    parts = [part for part in path.split("/") if part != ".."]
    if ".." in name.split("/") or path.startswith("../"):
        stem, ending = os.path.splitext(parts[-1])
        parts[-1] = f"{stem}~{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}{ending}"
    return "/".join(parts)


def _safe(label: str) -> str:
    letters = ("_" if sign == "/" or unicodedata.category(sign)[0] == "C" else sign for sign in label)
    name = "".join(letters).strip()
    name = name.encode("utf-8", "replace")[:LONGEST].decode("utf-8", "ignore")
    return f"_{name}" if not name or name.startswith(".") else name

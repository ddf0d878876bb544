"""`--sort-into DIR`: a link to each image in a folder per label, made from the results on disk."""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from vitrail.batch import write
from vitrail.batch.commit import Folder
from vitrail.batch.records import Shard
from vitrail.errors import InputError
from vitrail.store import atomic_write, writing
from vitrail.words import utf8

__all__ = ["check_target", "folder_names", "sort_into"]

NOTE = ".vitrail-sorted.json"
"""In DIR: whose links these are."""
LONGEST = 200
"""Bytes of a folder's name; file systems allow 255."""


def check_target(directory: str, out: str) -> None:
    """Raise InputError unless DIR is new, empty, or was filled by the job of this OUT."""
    path = Path(os.path.abspath(directory))
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
    """Make the links that are not there yet; return how many results have one.

    Raises:
        InputError: a link cannot be made, or something else has its name.
    """
    target = Path(os.path.abspath(directory))
    names, count = folder_names(groups), 0
    with writing(target):
        target.mkdir(parents=True, exist_ok=True)
    atomic_write(target / NOTE, json.dumps({"out": str(folder.path)}).encode("ascii"))
    for shard in shards:
        place = folder.results_file(shard.id)
        if not place.exists():
            continue
        given = {utf8(one.name): one.name for one in shard.inputs}  # the table holds escapes
        for path, group in write.read_columns(place, ("path", column)):
            name = given[path]
            _link(target / names[group] / _below(name), os.path.normpath(os.path.join(root, name)))
            count += 1
    return count


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


def _below(name: str) -> str:
    """Where an image is in its label's folder: as below the root, whatever leads up left out."""
    parts = [part for part in name.split("/") if part not in ("", ".", "..")]
    return "/".join(parts)


def _safe(label: str) -> str:
    letters = ("_" if sign == "/" or unicodedata.category(sign)[0] == "C" else sign for sign in label)
    name = "".join(letters).strip()
    name = name.encode("utf-8", "replace")[:LONGEST].decode("utf-8", "ignore")
    return f"_{name}" if not name or name.startswith(".") else name

"""What there is to do: a folder, a pattern, a manifest (CSV or Parquet), or a URL of one of these.

A source is listed once, as a stream: of a local folder's files none is held. Names are relative to its root.
"""

from __future__ import annotations

import fnmatch
import glob
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from vitrail.batch import manifests
from vitrail.batch.files import Files, LocalFiles, RemoteFiles, filesystem, is_url
from vitrail.batch.formats import Format
from vitrail.batch.records import Input, OwnColumn
from vitrail.errors import InputError
from vitrail.images import find

__all__ = ["Source", "open_source"]

MANIFESTS = (".csv", ".parquet", ".pq")
WANTED = "give a folder of images, a pattern, a manifest (.csv, .parquet) or a URL of one"


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where inputs come from, and where they are read."""

    name: str
    """An absolute path or pattern, or a URL: the same from wherever it was given."""
    files: Files
    listed: Callable[[], Iterator[Input]]
    """Each call lists anew, in the order of the disk or of the manifest."""
    columns: tuple[OwnColumn, ...] = ()
    ordered: bool = False
    """Whether the order says something: a manifest's."""


def open_source(
    text: str,
    *,
    root: str | None = None,
    format: Format = "parquet",
    taken: tuple[str, ...] = (),
    leave_out: tuple[str, ...] = (),
) -> Source:
    """The source that `text` names.

    Args:
        text: a folder, a pattern (`*`, `?`, `[...]`, `**`), a manifest, an image, or a URL.
        root: what a manifest's paths are relative to, and stay below; None: the manifest's own folder.
        format: of the results; but Parquet, none holds dates or decimals, and these become text.
        taken: names of columns that a manifest's own may not have.
        leave_out: folders that are not entered: what the job itself writes.

    Raises:
        InputError: there is no such thing, or its first line or schema is no manifest's.
        MissingExtraError: fsspec or pyarrow is not installed.
    """
    if not text:
        raise InputError(f"SOURCE is empty: {WANTED}.")
    if text.lower().endswith(MANIFESTS) and not _is_folder(text):
        return _manifest(text, root, format, taken)
    if root is not None:
        raise InputError("--root is about the paths of a manifest: leave it out.")
    if is_url(text):
        return _remote(text)
    if glob.has_magic(text) and not os.path.lexists(text):
        return _pattern(os.path.abspath(text), leave_out)
    path = os.path.abspath(text)
    if os.path.isdir(path):
        return _folder(path, leave_out)
    if not os.path.lexists(path):
        raise InputError(f"{text} does not exist: {WANTED}.")
    folder, name = os.path.split(path)
    return Source(name=path, files=LocalFiles(folder), listed=lambda: iter([Input(name)]))


def _is_folder(text: str) -> bool:
    return not is_url(text) and os.path.isdir(text)


# --- this machine -------------------------------------------------------------------------------


def _folder(path: str, leave_out: tuple[str, ...]) -> Source:
    def listed() -> Iterator[Input]:
        unlistable: list[OSError] = []
        for name in find.walk_images(path, leave_out=_within(leave_out), unlistable=unlistable.append):
            yield Input(name)
        yield from _said(path, unlistable)

    return Source(name=path, files=LocalFiles(path), listed=listed)


def _said(root: str, unlistable: list[OSError]) -> Iterator[Input]:
    """Folders that cannot be listed, as inputs: reading them says why they have no result."""
    for error in unlistable:
        name = os.path.relpath(error.filename, root)
        if name == ".":
            raise InputError(f"{root} cannot be listed ({error.strerror}): make it readable.")
        yield Input(name)


def _pattern(pattern: str, leave_out: tuple[str, ...]) -> Source:
    """The folders that a pattern matches give their images; of the files, those that look like one."""
    root, rest = _fixed(pattern)
    if not os.path.isdir(root):
        raise InputError(f"{root} does not exist: {WANTED}.")

    def listed() -> Iterator[Input]:
        unlistable: list[OSError] = []
        matching = _Matching(root, tuple(rest.split("/")), _within(leave_out), unlistable.append)
        yield from map(Input, matching.names())
        yield from _said(root, unlistable)

    return Source(name=pattern, files=LocalFiles(root), listed=listed)


_Rest = tuple[str, ...]
"""What is left of a pattern, folder by folder; nothing: all that is below."""


class _Matching:
    """The names below a root that match a pattern. Unlike `glob`, it enters linked folders once, holds no
    folder's files, and says which folders cannot be listed.

    A folder may be reached with several rests of the pattern (`**` is any number of folders) and by several
    links: for each rest it is entered once, and each of its files is given once.
    """

    def __init__(
        self,
        root: str,
        parts: _Rest,
        excluded: Callable[[str], bool],
        unlistable: Callable[[OSError], None],
    ) -> None:
        self.root, self.parts = root, parts
        self.excluded, self.unlistable = excluded, unlistable
        self.entered: dict[str, set[_Rest]] = {}

    def names(self) -> Iterator[str]:
        """In the order of the disk."""
        waiting = [("", _rests(self.parts))]
        while waiting:
            folder, rests = waiting.pop()
            path = os.path.join(self.root, folder) if folder else self.root
            real = os.path.realpath(path)
            before = self.entered.get(real, set())
            rests = rests - before
            if not rests or self.excluded(real):
                continue
            self.entered[real] = before | rests
            inner: list[str] = []
            for entry in self._entries(path):
                if find.is_hidden(entry.name):
                    continue
                if find.is_folder(entry):
                    inner.append(entry.name)
                    continue
                wanted = _takes(rests, entry.name) and not _takes(before, entry.name)
                if wanted and find.looks_like_image(entry.path):
                    yield os.path.join(folder, entry.name)
            # The order decides which of two links to one folder is entered.
            for name in sorted(inner, reverse=True):
                below = {left for rest in rests for left in self._behind(rest, name)}
                waiting.append((os.path.join(folder, name), below))

    def _behind(self, rest: _Rest, name: str) -> set[_Rest]:
        """What is left of the pattern in a folder below."""
        if not rest:
            return {()}
        if rest[0] == "**":
            return _rests(rest)
        if not fnmatch.fnmatchcase(name, rest[0]):
            return set()
        if len(rest) > 1:
            return _rests(rest[1:])
        return set() if "**" in self.parts else {()}  # behind `**` files match by themselves

    def _entries(self, path: str) -> Iterator[os.DirEntry[str]]:
        try:
            with os.scandir(path) as entries:
                yield from entries
        except OSError as error:
            self.unlistable(error)


def _rests(parts: _Rest) -> set[_Rest]:
    """The rest, and what is left of it where a leading `**` stands for no folder."""
    if parts == ("**",):
        return {()}
    return {parts} | (_rests(parts[1:]) if parts[0] == "**" else set())


def _takes(rests: set[_Rest], name: str) -> bool:
    """Whether a file is what a pattern ends in."""
    return any(not rest or (len(rest) == 1 and fnmatch.fnmatchcase(name, rest[0])) for rest in rests)


def _fixed(pattern: str) -> tuple[str, str]:
    """`/a/b/*/c*.jpg` -> `/a/b`, `*/c*.jpg`."""
    parts = pattern.split("/")
    first = next(k for k, part in enumerate(parts) if glob.has_magic(part))
    return "/".join(parts[:first]) or "/", "/".join(parts[first:])


def _within(folders: tuple[str, ...]) -> Callable[[str], bool]:
    """Whether a path without links is one of the folders or below it."""
    real = tuple(os.path.realpath(folder) for folder in folders)
    return lambda path: any(path == one or path.startswith(os.path.join(one, "")) for one in real)


# --- object stores ------------------------------------------------------------------------------


def _remote(url: str) -> Source:
    """Objects below a URL, or matching it, whose names are an image's: heads of objects are not read."""
    fs, path = filesystem(url)
    magic = glob.has_magic(path)
    root = _fixed(path)[0] if magic else path.rstrip("/")
    if not magic and not _exists(fs, path, url):
        raise InputError(f"{url} does not exist: {WANTED}.")
    if not magic and fs.isfile(path):
        root, _, name = path.rpartition("/")
        return Source(name=url, files=RemoteFiles(fs, root), listed=lambda: iter([Input(name)]))
    files = RemoteFiles(fs, root)

    def listed() -> Iterator[Input]:
        begin = len(files.path) + 1
        for found in _objects(fs, path, magic=magic):
            name = found[begin:]
            if find.called_image(name) and not any(map(find.is_hidden, name.split("/"))):
                yield Input(name)

    return Source(name=url, files=files, listed=listed)


def _exists(fs: Any, path: str, url: str) -> bool:
    try:
        return bool(fs.exists(path))
    except Exception as error:  # every store raises its own kinds
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise InputError(f"{url} cannot be listed ({reason}): check the credentials.") from None


def _objects(fs: Any, path: str, *, magic: bool) -> Iterator[str]:
    if magic:
        yield from fs.glob(path)
        return
    for folder, _, names in fs.walk(path, on_error="raise"):
        yield from (f"{folder.rstrip('/')}/{name}" for name in names)


# --- manifests ----------------------------------------------------------------------------------


def _manifest(text: str, root: str | None, format: Format, taken: tuple[str, ...]) -> Source:
    name = text if is_url(text) else os.path.abspath(text)
    fs, path = filesystem(text) if is_url(text) else (None, name)
    if not (os.path.isfile(path) if fs is None else _exists(fs, path, text)):
        raise InputError(f"{text} does not exist: {WANTED}.")
    table = manifests.open_manifest(fs, path, said=text, textual=format != "parquet", taken=taken)
    return Source(
        name=name,
        files=_root(root, fs, path),
        listed=table.inputs,
        columns=table.columns,
        ordered=True,
    )


def _root(root: str | None, fs: Any, manifest: str) -> Files:
    if root is None:
        folder = str(PurePosixPath(manifest).parent)
        return LocalFiles(folder, confined=True) if fs is None else RemoteFiles(fs, folder)
    if is_url(root):
        return RemoteFiles(*filesystem(root))
    if not os.path.isdir(root):
        raise InputError(f"--root {root} is no folder: name the one that the manifest's paths start from.")
    return LocalFiles(os.path.abspath(root), confined=True)

"""Files written whole or not at all: atomic files and folders, digests, and records saved as they arrive.

A write goes to a temporary name next to its target, is fsynced, then renamed; the folder is fsynced last,
so after a crash a reader sees either the old content or the new. File system errors that a user can fix
(disk full, no permission) become one sentence.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from vitrail.errors import InputError

__all__ = [
    "TEMPORARY",
    "RecordStore",
    "atomic_folder",
    "atomic_write",
    "cache_dir",
    "canonical_json",
    "check_room",
    "check_target",
    "digest_of",
    "fsync_path",
    "sha256_file",
    "sweep",
    "swept",
    "writing",
]

_FULL = {errno.ENOSPC, errno.EDQUOT}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
TEMPORARY = ".vitrail-"
# Where locks do not work: a live writer finishes within minutes, so older leftovers may be removed.
_STALE_S = 24 * 3600.0


# --- errors ---------------------------------------------------------------------------------------


def _explain(error: OSError, path: Path) -> InputError:
    if error.errno in _FULL:
        return InputError(f"No space left on the disk for {path}: free some space or choose another place.")
    if error.errno in _FORBIDDEN:
        return InputError(f"No permission to write {path}: choose another place or change its permissions.")
    if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENOTEMPTY):
        return InputError(
            f"Cannot write {path}: a file or folder of that name is in the way; choose another place."
        )
    return InputError(f"Cannot write {path} ({error.strerror or error}): choose another place.")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn every OSError of the block into an InputError that says what is wrong with writing `path`."""
    try:
        yield
    except OSError as error:
        raise _explain(error, path) from error


# --- digests --------------------------------------------------------------------------------------


def canonical_json(value: object) -> bytes:
    """One spelling per JSON value: sorted keys, no blanks, ASCII only; the input of every digest here.

    Raises:
        ValueError: not a finite number.
        TypeError: something JSON cannot hold, or a key that is not a string (`1` and `"1"` would collide).
    """
    _check_keys(value)
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.encode("ascii")


def digest_of(value: object) -> str:
    """sha256 of a JSON value, however its keys are ordered. Raises as `canonical_json`."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def _check_keys(value: object) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"key {key!r} is not a string")
            _check_keys(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _check_keys(item)


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


# --- atomic writes --------------------------------------------------------------------------------


def atomic_write(path: Path | str, data: bytes) -> None:
    """Write a file so that a reader sees the old content or `data`, whatever happens in between.

    A link is followed; a device or pipe (`/dev/null`, `/dev/stdout`) is written to directly.

    Raises:
        InputError: the file cannot be written; nothing is left behind.
    """
    path = Path(path)
    with writing(path):
        if _is_special(path):
            path.write_bytes(data)
            return
        target = Path(os.path.realpath(path))
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, "is a folder")
        temporary = target.parent / f"{TEMPORARY}{secrets.token_hex(8)}.tmp"
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        fsync_path(target.parent)


def _is_special(path: Path) -> bool:
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


@contextmanager
def atomic_folder(target: Path | str, *, overwrite: bool = False) -> Iterator[Path]:
    """Fill a temporary sibling folder in the block; it takes `target`'s name when the block ends well.

    On any exception (an interrupt too) none of it is left behind. A replaced folder is first renamed, then
    restored if the new one cannot take its place, or else removed. Missing parents are created. An empty
    folder may always be replaced.

    Raises:
        InputError: `target` exists and `overwrite` is false, or it cannot be written.
    """
    place = Path(os.path.realpath(target))
    check_target(target, overwrite=overwrite)
    temporary = place.parent
    held: int | None = None
    parents = [parent for parent in place.parents if not parent.exists()]
    try:
        with writing(place):
            temporary, held = _new_folder(place.parent)
            sweep(place.parent)
        try:
            yield temporary
        except OSError as error:
            # A file the caller cannot read is not a target that cannot be written: pass it on unchanged.
            if error.errno in _FULL or str(error.filename or "").startswith(str(temporary)):
                raise _explain(error, place) from error
            raise
        with writing(place):
            _fsync_tree(temporary)
            _swap(temporary, place, overwrite=overwrite)
            fsync_path(place.parent)
    except BaseException:
        if held is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        for parent in parents:  # innermost first
            with suppress(OSError):
                parent.rmdir()
        raise
    finally:
        if held is not None:
            os.close(held)


def _new_folder(parent: Path) -> tuple[Path, int]:
    """A new folder, and a handle whose lock shows, while it is open, that the writer is alive."""
    while True:
        folder = parent / f"{TEMPORARY}{secrets.token_hex(8)}.partial"
        os.makedirs(folder)
        with suppress(FileNotFoundError):  # swept before it was locked
            handle = os.open(folder, os.O_RDONLY)
            try:
                with suppress(OSError):  # a file system without locks: there only age decides
                    fcntl.flock(handle, fcntl.LOCK_EX)
                if folder.exists():
                    return folder, handle
            except BaseException:
                os.close(handle)
                raise
            os.close(handle)


def _swap(temporary: Path, place: Path, *, overwrite: bool) -> None:
    if not (overwrite and place.exists()):
        os.rename(temporary, place)  # replaces nothing but an empty folder
        return
    aside = place.parent / f"{TEMPORARY}{secrets.token_hex(8)}.replaced"
    os.rename(place, aside)
    try:
        os.rename(temporary, place)
    except BaseException:
        os.rename(aside, place)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def check_name(target: Path | str) -> None:
    """An empty name would mean the current folder, which nobody asked for. Raises InputError."""
    if target == "":
        raise InputError("The name of the folder to write is empty: give one.")


def check_target(target: Path | str, *, overwrite: bool = False) -> None:
    """Raise now what would stop `atomic_folder(target)` later, before any work is done.

    Raises:
        InputError: `target` is empty or exists, or its nearest existing parent is no folder or not writable.
    """
    check_name(target)
    target = Path(target)
    place = Path(os.path.realpath(target))
    if os.path.lexists(place) and not place.is_dir():
        raise InputError(f"{target} is a file, not a folder: choose another name.")
    with writing(target):
        if place.is_dir() and not overwrite and any(place.iterdir()):
            raise InputError(f"{target} already exists: choose another name, or replace it with --overwrite.")
        parent = next(p for p in place.parents if os.path.lexists(p))
        probe = parent / f"{TEMPORARY}{secrets.token_hex(8)}.probe"
        os.mkdir(probe)
        os.rmdir(probe)


def check_room(place: Path | str, least_mib: float) -> None:
    """Refuse before any work if the disk is too full for it.

    Raises:
        InputError: the disk for `place` has less than `least_mib` free.
    """
    there = Path(os.path.realpath(place))
    existing = next(p for p in (there, *there.parents) if p.is_dir())
    free = shutil.disk_usage(existing).free / 2**20
    if free < least_mib:
        raise InputError(
            f"Only {free:.0f} MiB are free for {place}, and at least {least_mib:.0f} are needed: "
            "free some space or choose another place."
        )


def fsync_path(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _fsync_tree(folder: Path) -> None:
    for root, _, files in os.walk(folder, topdown=False):
        for name in files:
            fsync_path(Path(root, name))
        fsync_path(Path(root))


@contextmanager
def swept(folder: Path) -> Iterator[None]:
    """Sweep `folder` if the work in it fails: a child ended by SIGKILL cannot clean up after itself."""
    try:
        yield
    except BaseException:
        sweep(folder)
        raise


def sweep(folder: Path) -> None:
    """Remove what dead writers left in `folder`: at once where locks work, else after a day.

    Safe while other processes write. Folders set aside by a replacement are never touched.
    """
    for path in folder.glob(f"{TEMPORARY}*"):
        with suppress(OSError):
            if path.suffix == ".partial":
                _remove_abandoned(path)
            elif path.suffix == ".tmp" and _is_stale(path):
                path.unlink()


def _remove_abandoned(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:  # its writer is alive
        return
    except OSError:
        if _is_stale(folder):
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(handle)


def _is_stale(path: Path) -> bool:
    return time.time() - path.lstat().st_mtime >= _STALE_S


# --- records --------------------------------------------------------------------------------------


def cache_dir() -> Path:
    """Folder for measurements and exports: `VITRAIL_CACHE`, else the platform's cache folder."""
    if chosen := os.environ.get("VITRAIL_CACHE"):
        return Path(chosen).expanduser()
    from platformdirs import user_cache_path

    return Path(user_cache_path("vitrail"))


class RecordStore:
    """JSON records under JSON keys, one file each, safe for concurrent writers and a kill at any time.

    A file holds its key, the record and the digest of both. A file that is damaged, truncated or under a
    wrong name counts as absent and is listed in `damaged`. The last writer of a key wins.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self._swept = False
        self.damaged: list[Path] = []
        """Damaged files seen so far, each once."""

    def get(self, key: Mapping[str, object]) -> dict[str, object] | None:
        """The record stored under an equal key, or None."""
        path = self._path(key)
        entry = self._read(path)
        return None if entry is None else entry[1]

    def put(self, key: Mapping[str, object], record: Mapping[str, object]) -> None:
        """Store `record` under `key` (both JSON values; tuples come back as lists).

        Raises:
            InputError: the folder cannot be written.
            TypeError, ValueError: key or record is not JSON, or holds a number that is not finite.
        """
        body = {"key": dict(key), "record": dict(record)}
        digest = digest_of(body)
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            if not self._swept:
                sweep(self.folder)
                self._swept = True
        atomic_write(self._path(key), canonical_json({**body, "sha256": digest}))

    def entries(self) -> Iterator[tuple[dict[str, object], dict[str, object]]]:
        """All intact (key, record) pairs, in the order of their file names."""
        for path in sorted(self.folder.glob("*.json")):
            entry = self._read(path)
            if entry is not None:
                yield entry

    def _path(self, key: Mapping[str, object]) -> Path:
        return self.folder / f"{digest_of(dict(key))}.json"

    def _read(self, path: Path) -> tuple[dict[str, object], dict[str, object]] | None:
        try:
            entry = json.loads(path.read_bytes())
            body = {"key": entry["key"], "record": entry["record"]}
            whole = digest_of(body) == entry["sha256"]
            if whole and isinstance(body["record"], dict) and self._path(body["key"]) == path:
                return body["key"], body["record"]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            pass
        if path not in self.damaged:
            self.damaged.append(path)
        return None

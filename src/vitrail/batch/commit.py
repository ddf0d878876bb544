"""The folder of a job on disk: its lock, its facts, and shards that are there whole or not at all.

    OUT/job.json             what the job is: everything that changes results
    OUT/list/                the inputs, in files that are never changed
    OUT/results/part-<id>.*  a row for each input with a result
    OUT/errors/part-<id>.*   a row for each input without
    OUT/done/<id>.json       the marker: both files of the shard are complete, with their digests
    OUT/summary.json         written when all is done

Files are written under a temporary name, fsynced and renamed, the marker last: a shard without a whole
marker, or whose files are not what it says, counts as not done and is done again. What replaces a committed
shard is first written whole, to done/<id>.next, so that a kill leaves the old rows or the new ones.

Nothing is removed that a job did not write: an OUT that holds anything else is refused.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from vitrail.batch.encoded import Encoded
from vitrail.batch.formats import Format
from vitrail.batch.records import Committed
from vitrail.errors import InputError
from vitrail.store import TEMPORARY, atomic_write, canonical_json, fsync_path, sha256_file, writing

__all__ = ["JOB_FILE", "LIST", "SORTED", "SUMMARY_FILE", "Folder", "locked"]

JOB_FILE, SUMMARY_FILE, LOCK_FILE = "job.json", "summary.json", ".lock"
LIST, RESULTS, ERRORS, DONE = "list", "results", "errors", "done"
SORTED = "sorted"
FOLDERS = (LIST, RESULTS, ERRORS, DONE)
SCHEMA_VERSION = 2
NEXT = ".next"
_UNFINISHED = re.compile(rf"{re.escape(TEMPORARY)}[0-9a-f]+\.(tmp|sqlite)")
_LISTED = re.compile(r"[0-9]{4,}\.jsonl")


class Folder:
    """The folder of a job that this process has locked."""

    def __init__(self, path: Path, format: Format) -> None:
        self.path = path
        self.format = format

    # --- the job ----------------------------------------------------------------------------------

    def job(self) -> dict[str, Any] | None:
        """What `job.json` holds; None before the job has begun.

        Raises:
            InputError: it is damaged, or of a newer Vitrail.
        """
        place = self.path / JOB_FILE
        try:
            found = json.loads(place.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            found = None
        if not isinstance(found, dict) or "fingerprint" not in found:
            raise InputError(f"{place} is damaged: restore it, or choose another --out.")
        if found.get("schema_version") != SCHEMA_VERSION:
            raise InputError(f"{place} was written by another version of Vitrail: choose another --out.")
        return found

    def clear(self) -> None:
        """Folders without a list, before the job has begun: one that never did may have left its own."""
        with writing(self.path):
            for name in FOLDERS:
                (self.path / name).mkdir(exist_ok=True)
            for path in _matching(self.path / LIST, _LISTED):
                path.unlink()

    def begin(self, job: Mapping[str, Any]) -> None:
        """Write `job.json`: from now on the job can be continued."""
        atomic_write(self.path / JOB_FILE, _pretty({"schema_version": SCHEMA_VERSION, **job}))

    def remove_leftovers(self) -> None:
        """Remove what a killed run left half-written, and the summary, which is no longer true; end what it
        had begun to replace."""
        with writing(self.path):
            (self.path / SUMMARY_FILE).unlink(missing_ok=True)
            for name in ("", *FOLDERS):
                for path in _matching(self.path / name, _UNFINISHED):
                    path.unlink(missing_ok=True)
        for place in (self.path / DONE).glob(f"*{NEXT}"):
            with suppress(msgspec.MsgspecError):  # somebody damaged it: the marker says what is whole
                self.commit(msgspec.msgpack.decode(place.read_bytes(), type=Encoded))
            with writing(place):
                place.unlink()

    def end(self, summary: Mapping[str, Any]) -> None:
        """Write `summary.json`: from now on the job is complete."""
        atomic_write(self.path / SUMMARY_FILE, _pretty(dict(summary)))

    # --- shards -----------------------------------------------------------------------------------

    def results_file(self, shard: str) -> Path:
        """Where a shard's rows are."""
        return self.path / RESULTS / f"part-{shard}.{self.format}"

    def errors_file(self, shard: str) -> Path:
        """Where a shard's failures are."""
        return self.path / ERRORS / f"part-{shard}.{self.format}"

    def commit(self, encoded: Encoded) -> Committed:
        """Write a shard's two files, then its marker.

        Raises:
            InputError: the disk is full, or it cannot be written.
        """
        shard, results, errors = encoded.shard, encoded.results, encoded.errors
        for path, data in ((self.results_file(shard), results), (self.errors_file(shard), errors)):
            if data is not None:
                atomic_write(path, data)
            elif path.exists():  # left by a run whose shard was damaged, or is tried again
                with writing(path):
                    path.unlink()
                    fsync_path(path.parent)
        committed = Committed(
            shard=shard,
            results=encoded.rows,
            errors=encoded.failed,
            failed_at=encoded.failed_at,
            results_sha256=None if results is None else hashlib.sha256(results).hexdigest(),
            errors_sha256=None if errors is None else hashlib.sha256(errors).hexdigest(),
        )
        atomic_write(self._marker(shard), canonical_json(msgspec.to_builtins(committed)))
        return committed

    def replace(self, encoded: Encoded) -> Committed:
        """As `commit`, for a shard whose rows must not be lost: killed meanwhile, it is the old one, or
        becomes the new one when the job goes on."""
        place = self.path / DONE / f"{encoded.shard}{NEXT}"
        atomic_write(place, msgspec.msgpack.encode(encoded))
        committed = self.commit(encoded)
        with writing(place):
            place.unlink()
        return committed

    def results_of(self, committed: Committed) -> bytes | None:
        """The rows of a shard as they were committed; None: it has none.

        Raises:
            InputError: they are not the same any more.
        """
        path = self.results_file(committed.shard)
        if committed.results_sha256 is None:
            return None
        with suppress(OSError):
            data = path.read_bytes()
            if hashlib.sha256(data).hexdigest() == committed.results_sha256:
                return data
        raise InputError(f"{path} was changed while the job was at work: run the same command again.")

    def committed(self, shard: str) -> Committed | None:
        """What was committed of a shard; None if it has no marker, or not all is as it says."""
        try:
            found = msgspec.json.decode(self._marker(shard).read_bytes(), type=Committed)
        except (OSError, msgspec.MsgspecError, ValueError):
            return None
        expected = (
            (self.results_file(shard), found.results_sha256),
            (self.errors_file(shard), found.errors_sha256),
        )
        intact = found.shard == shard and all(_digest(path) == digest for path, digest in expected)
        return found if intact else None

    def was_committed(self, shard: str) -> bool:
        """Whether there is a marker, intact or not."""
        return self._marker(shard).exists()

    def withdraw(self, shard: str) -> None:
        """Remove a shard's marker, so that it is done again."""
        with writing(self._marker(shard)):
            self._marker(shard).unlink(missing_ok=True)
            fsync_path(self.path / DONE)

    def _marker(self, shard: str) -> Path:
        return self.path / DONE / f"{shard}.json"


@contextmanager
def locked(out: str | Path, format: Format) -> Iterator[Folder]:
    """The folder of a job, for this process alone; made if it does not exist.

    If the block fails before the job has begun, nothing is left behind.

    Raises:
        InputError: another job is at work there, it holds something else, or it cannot be written.
    """
    path = Path(os.path.abspath(out))
    made = _make(path)
    try:
        handle = _lock(path)
        try:
            yield Folder(path, format)
        finally:
            if not (path / JOB_FILE).exists():
                _clear(path)
            os.close(handle)
    except BaseException:
        for folder in made:
            with suppress(OSError):
                folder.rmdir()
        raise


def _make(path: Path) -> list[Path]:
    """Make the folder and its parents; those made, the innermost first."""
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file, not a folder: choose another --out.")
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
        foreign = None if (path / JOB_FILE).exists() else next(_foreign(path), None)
    if foreign is not None:
        raise InputError(f"{path} holds other files ({foreign}): choose an empty or new --out.")
    return missing


def _foreign(path: Path) -> Iterator[str]:
    """What no job leaves that never began: it leaves its lock, an unfinished list, and empty folders."""
    locked_before = _is_lock(path / LOCK_FILE)
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.name in FOLDERS and locked_before and entry.is_dir(follow_symlinks=False):
                ours = _matching(Path(entry.path), _UNFINISHED, *([_LISTED] if entry.name == LIST else []))
                names = {one.name for one in ours}
                yield from (f"{entry.name}/{one}" for one in os.listdir(entry.path) if one not in names)
            elif not (_UNFINISHED.fullmatch(entry.name) or (entry.name == LOCK_FILE and locked_before)):
                yield entry.name


def _is_lock(path: Path) -> bool:
    """Whether it is a job's: what `_take` writes, or nothing yet."""
    try:
        with open(path, "rb") as file:
            return file.read(100).startswith(b"process ") or not path.stat().st_size
    except OSError:
        return False


def _matching(folder: Path, *patterns: re.Pattern[str]) -> list[Path]:
    """The files directly in a folder whose names match; none if there is no folder."""
    try:
        with os.scandir(folder) as entries:
            return [Path(e.path) for e in entries if any(one.fullmatch(e.name) for one in patterns)]
    except FileNotFoundError:
        return []


def _lock(path: Path) -> int:
    """A handle that holds the lock until it is closed."""
    while True:
        with writing(path):
            handle = os.open(path / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _take(handle, path)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), os.stat(path / LOCK_FILE)):
                    return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # a job that never began has just removed its file


def _take(handle: int, path: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(handle, 100, 0).decode("ascii", "replace").strip()
        raise InputError(
            f"Another job is writing {path} ({holder or 'its process is unknown'}): wait until it ends, or "
            "choose another --out."
        ) from None
    except OSError as error:
        raise InputError(
            f"{path} is on a file system without locks ({error.strerror}), so that two jobs could write it: "
            "choose an --out on another one."
        ) from None
    with writing(path):
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {os.uname().nodename}\n".encode(), 0)


def _clear(path: Path) -> None:
    """Remove what a job that never began has made; what was there before stays."""
    for entry in [*_matching(path, _UNFINISHED), *_matching(path / LIST, _UNFINISHED, _LISTED)]:
        with suppress(OSError):
            entry.unlink()
    for name in FOLDERS:
        with suppress(OSError):  # not empty: something else was put there meanwhile
            (path / name).rmdir()
    with suppress(OSError):
        (path / LOCK_FILE).unlink()


def _digest(path: Path) -> str | None:
    """sha256 of a file; None: there is none."""
    try:
        return sha256_file(path)
    except FileNotFoundError:
        return None
    except OSError:
        return ""


def _pretty(value: dict[str, Any]) -> bytes:
    return json.dumps(value, indent=2, allow_nan=False).encode("ascii") + b"\n"

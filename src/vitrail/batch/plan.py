"""The list of a job's inputs, cut into shards; it only ever grows.

    OUT/list/<number>.jsonl     one listing's new inputs: a line [id, [[name, cells], ...]] for each shard,
                                and a last line {"shards": S, "inputs": N}

A shard's id is the digest of its inputs. Listing again adds what is not in the list yet, in shards of its
own, so that no shard ever changes. Sorting and finding what is known is SQLite's, in a file: memory stays
flat.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from itertools import islice
from pathlib import Path
from typing import Any

from vitrail.batch.commit import LIST
from vitrail.batch.records import Input, Listed, Shard
from vitrail.batch.sources import Source
from vitrail.errors import InputError
from vitrail.store import TEMPORARY, fsync_path, writing

__all__ = ["count", "extend", "files", "shards"]

ID_LETTERS = 24
"""Of a shard's digest: 96 bits."""
STEP = 10_000
"""Inputs between two reports of progress."""


def shards(out: Path) -> Iterator[Shard]:
    """All shards of a job, in the order of the list.

    Raises:
        InputError: the list is damaged.
    """
    for path in _files(out):
        yield from _shards(path)


def count(out: Path) -> tuple[int, int]:
    """Shards and inputs of a job."""
    found = [_end(path) for path in _files(out)]
    return sum(shards for shards, _ in found), sum(inputs for _, inputs in found)


def files(out: Path, known: int = 0) -> int:
    """How many files the list has, none of which may be gone: its inputs would be listed again.

    Args:
        out: the job's folder.
        known: how many there were at the latest.

    Raises:
        InputError: one is gone.
    """
    found = _files(out)
    names = {path.name for path in found}
    for number in range(1, max(known, len(found)) + 1):
        if _name(number) not in names:
            raise InputError(
                f"{out / LIST / _name(number)}, part of the job's list of inputs, is gone: put it back, or "
                "begin again with another --out."
            )
    return len(found)


def extend(
    out: Path, source: Source, shard_size: int, *, progress: Callable[[int], None] = lambda listed: None
) -> Listed:
    """List the source, and add what is new to the job's list, all of it or nothing.

    Args:
        out: the job's folder.
        source: lists its inputs.
        shard_size: inputs of one new shard.
        progress: called now and then with the inputs listed so far.

    Raises:
        InputError: the source cannot be listed, or the list cannot be written.
    """
    place = out / LIST / f"{TEMPORARY}{secrets.token_hex(8)}.sqlite"
    try:
        with closing(sqlite3.connect(place, isolation_level=None)) as table:
            _prepare(table)
            _note_known(table, out)
            _note_listed(table, source, progress)
            _write(out, table, shard_size)
            return _counts(table)
    except sqlite3.Error as error:
        raise InputError(
            f"The list of inputs cannot be sorted in {place.parent} ({error}): free some space there and in "
            "the folder for temporary files."
        ) from None
    finally:
        with suppress(OSError):
            place.unlink(missing_ok=True)


# --- sorting and finding ------------------------------------------------------------------------


def _prepare(table: sqlite3.Connection) -> None:
    """The file is thrown away, so nothing in it needs to survive a crash."""
    for statement in (
        "PRAGMA journal_mode = OFF",
        "PRAGMA synchronous = OFF",
        "PRAGMA cache_size = -65536",
        "PRAGMA temp_store = FILE",
        "CREATE TABLE inputs (id BLOB PRIMARY KEY, place BLOB, line TEXT, seen INTEGER) WITHOUT ROWID",
        "BEGIN",
    ):
        table.execute(statement)


def _note_known(table: sqlite3.Connection, out: Path) -> None:
    lines = (_line(given) for shard in shards(out) for given in shard.inputs)
    table.executemany("INSERT INTO inputs VALUES (?, NULL, NULL, 0)", ((_key(line),) for line in lines))


def _note_listed(table: sqlite3.Connection, source: Source, progress: Callable[[int], None]) -> None:
    def rows() -> Iterator[tuple[bytes, bytes, str]]:
        for number, given in enumerate(source.listed()):
            line = _line(given)
            place = number.to_bytes(8, "big") if source.ordered else os.fsencode(given.name)
            if number % STEP == 0:
                progress(number)
            yield _key(line), place, line

    table.executemany(
        "INSERT INTO inputs VALUES (?, ?, ?, 1) ON CONFLICT (id) DO UPDATE SET seen = seen + 1", rows()
    )


def _counts(table: sqlite3.Connection) -> Listed:
    row = table.execute(
        "SELECT coalesce(sum(line IS NOT NULL), 0), coalesce(sum(line IS NULL), 0), "
        "coalesce(sum(seen = 0), 0), coalesce(sum(max(seen - 1, 0)), 0) FROM inputs"
    ).fetchone()
    new, known, gone, repeated = map(int, row)
    return Listed(new=new, known=known, gone=gone, repeated=repeated)


def _line(given: Input) -> str:
    return json.dumps([given.name, given.cells], separators=(",", ":"))


def _key(line: str) -> bytes:
    """What makes an input: its name and its own values."""
    return hashlib.sha256(line.encode("ascii")).digest()[:16]


# --- files --------------------------------------------------------------------------------------


def _write(out: Path, table: sqlite3.Connection, shard_size: int) -> None:
    lines = (
        line for (line,) in table.execute("SELECT line FROM inputs WHERE line IS NOT NULL ORDER BY place")
    )
    first = next(lines, None)
    if first is None:
        return
    place = out / LIST / _name(len(_files(out)) + 1)
    temporary = out / LIST / f"{TEMPORARY}{secrets.token_hex(8)}.tmp"
    with writing(place):
        try:
            with open(temporary, "x", encoding="ascii") as file:
                shard_count = inputs = 0
                for part in _parts([first], lines, shard_size):
                    file.write(f'["{_shard_id(part)}",[{",".join(part)}]]\n')
                    shard_count, inputs = shard_count + 1, inputs + len(part)
                file.write(json.dumps({"shards": shard_count, "inputs": inputs}) + "\n")
                file.flush()
                os.fsync(file.fileno())
            os.rename(temporary, place)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        fsync_path(place.parent)


def _parts(begin: list[str], rest: Iterable[str], size: int) -> Iterator[list[str]]:
    rest = iter(rest)
    part = begin + list(islice(rest, size - len(begin)))
    while part:
        yield part
        part = list(islice(rest, size))


def _shard_id(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode("ascii")).hexdigest()[:ID_LETTERS]


def _files(out: Path) -> list[Path]:
    found = (path for path in (out / LIST).glob("*.jsonl") if path.stem.isdecimal())
    return sorted(found, key=lambda path: int(path.stem))


def _name(number: int) -> str:
    return f"{number:04}.jsonl"


def _shards(path: Path) -> Iterator[Shard]:
    found = inputs = 0
    with _reading(path) as file:
        for line in file:
            entry = _parsed(path, line)
            if isinstance(entry, dict):
                if entry != {"shards": found, "inputs": inputs}:
                    break
                return
            shard, parts = entry
            given = tuple(Input(name, tuple(cells)) for name, cells in parts)
            if _shard_id(map(_line, given)) != shard:
                break
            found, inputs = found + 1, inputs + len(given)
            yield Shard(shard, given)
    raise _damaged(path)


def _end(path: Path) -> tuple[int, int]:
    """The counts in a file's last line."""
    with _reading(path) as file:
        file.seek(max(0, path.stat().st_size - 200))
        last = file.read().splitlines()[-1:] or [b""]
    entry = _parsed(path, last[0])
    if not isinstance(entry, dict) or set(entry) != {"shards", "inputs"}:
        raise _damaged(path)
    return int(entry["shards"]), int(entry["inputs"])


def _reading(path: Path) -> Any:
    try:
        return open(path, "rb")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): check its permissions.") from None


def _parsed(path: Path, line: bytes) -> Any:
    try:
        entry = json.loads(line)
    except ValueError:
        raise _damaged(path) from None
    if isinstance(entry, dict) or (isinstance(entry, list) and len(entry) == 2):
        return entry
    raise _damaged(path)


def _damaged(path: Path) -> InputError:
    return InputError(f"{path}, the job's list of inputs, is damaged: begin again with another --out.")

"""Batch jobs for tests: small images, the command, and the rows that it wrote."""

from __future__ import annotations

from pathlib import Path

import artifacts
import pyarrow.parquet as pq

from vitrail.cli import main

COUNT = 20
"""Images of `make_originals` that can be read; one more is cut off."""
SHARD = 6


def make_originals(folder: Path) -> Path:
    """A folder of images, one of them damaged."""
    artifacts.make_photos(folder, COUNT)
    (folder / "cut.png").write_bytes((folder / "photo0.png").read_bytes()[:300])
    return folder


def batch(winner, source, out, *options) -> int:
    """`vitrail batch` in this process, in small shards, on one thread."""
    command = ["batch", winner, str(source), "--out", str(out), "--shard-size", str(SHARD), "--threads", "1"]
    return main([*command, *map(str, options)])


def rows(out, kind="results") -> list[dict]:
    """All rows of a finished Parquet job, by path."""
    found = [row for part in sorted((Path(out) / kind).glob("*.parquet")) for row in read(part)]
    return sorted(found, key=lambda row: row["path"])


def read(part: Path) -> list[dict]:
    """The rows of one file."""
    return pq.ParquetFile(part).read().to_pylist()

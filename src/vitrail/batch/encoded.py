"""A finished shard as the bytes of its two files, ready to be committed by whoever has the folder."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from vitrail.batch.records import Finished
from vitrail.batch.write import Layout, encode

__all__ = ["Encoded", "Tables", "encoded"]

Tables = tuple[Layout, Layout]
"""Of results and of errors."""


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Both files of a shard; None: it has no such rows."""

    shard: str
    results: bytes | None
    errors: bytes | None
    rows: int
    failed: dict[str, int]
    """Failed inputs by reason."""


def encoded(finished: Finished, tables: Tables) -> Encoded:
    """The files of a shard."""
    results, errors = (
        encode(table, rows) if rows else None
        for table, rows in zip(tables, (finished.results, finished.errors), strict=True)
    )
    failed = Counter(str(row["reason"]) for row in finished.errors)
    return Encoded(
        shard=finished.shard,
        results=results,
        errors=errors,
        rows=len(finished.results),
        failed=dict(sorted(failed.items())),
    )

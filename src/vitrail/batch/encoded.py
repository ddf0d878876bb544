"""A finished shard as the bytes of its two files, ready to be committed by whoever has the folder."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from vitrail.batch.records import Committed, Finished
from vitrail.batch.write import Layout, encode, interleaved

__all__ = ["Encoded", "Tables", "encoded", "with_retried"]

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
    failed_at: tuple[int, ...]
    """Which of the shard's inputs they are."""


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
        failed_at=tuple(finished.failed_at),
    )


def with_retried(before: Committed, kept: bytes | None, again: Encoded, tables: Tables) -> Encoded:
    """A shard whose failed inputs were tried again: its rows as they were, and those that `again` adds.

    Args:
        before: what was committed.
        kept: its file of results.
        again: a shard of the inputs at `before.failed_at` alone.
        tables: both layouts.
    """
    still = {before.failed_at[k] for k in again.failed_at}
    tried = set(before.failed_at)
    inputs = before.results + len(tried)
    from_again = [k in tried for k in range(inputs) if k not in still]
    return Encoded(
        shard=again.shard,
        results=interleaved(tables[0], kept, again.results, from_again),
        errors=again.errors,
        rows=before.results + again.rows,
        failed=again.failed,
        failed_at=tuple(sorted(still)),
    )

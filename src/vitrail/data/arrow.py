"""pyarrow, which reads and writes Parquet: an extra, and slow to import."""

from __future__ import annotations

from typing import Any

from vitrail.errors import MissingExtraError

INSTALL = 'pip install "vitrail[parquet]"'


def import_pyarrow(what: str) -> tuple[Any, Any]:
    """The modules pyarrow and pyarrow.parquet, or MissingExtraError with the install line."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtraError(f"pyarrow, which {what[0].lower()}{what[1:]} needs,", INSTALL) from None
    return pyarrow, pyarrow.parquet

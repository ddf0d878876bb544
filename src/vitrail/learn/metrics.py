"""metrics.csv of a training run."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vitrail import store

__all__ = ["Metrics"]


class Metrics:
    """One row per entry, a column for each figure seen so far.

    Args:
        path: of the file; its content up to `step` is kept.
        step: rows of later steps will be written again and are removed, as is a row that was cut off.
    """

    def __init__(self, path: Path, step: int) -> None:
        self._path = path
        columns, rows = _read(path)
        self._columns = columns or ["step"]
        self._write(row for row in rows if row["step"].isdigit() and int(row["step"]) <= step)

    def append(self, step: int, figures: Mapping[str, float]) -> None:
        """Add a row.

        Raises:
            OSError: it cannot be written.
        """
        if not set(figures) <= set(self._columns):
            _, rows = _read(self._path)
            self._columns += [name for name in figures if name not in self._columns]
            self._write(rows)
        with open(self._path, "a", newline="") as file:
            csv.DictWriter(file, self._columns).writerow({"step": step, **figures})

    def _write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, self._columns)
        writer.writeheader()
        writer.writerows(rows)
        store.atomic_write(self._path, text.getvalue().encode())


def _read(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and rows; anything after the last line end is from a write that failed."""
    if not path.is_file():
        return [], []
    text = path.read_text("utf-8")
    reader = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1]))
    return list(reader.fieldnames or []), list(reader)

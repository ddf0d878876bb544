"""Manifests: a CSV or Parquet table with the columns path, label and, optionally, split.

Paths are relative to the manifest's folder and stay inside it, links followed: a manifest that came with
someone else's data must not reach the rest of the disk.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from vitrail.data.arrow import import_pyarrow
from vitrail.data.records import ListedImage, Listing, Split
from vitrail.data.splits import split_name
from vitrail.errors import InputError

REQUIRED = ("path", "label")
OPTIONAL = "split"

Cells = tuple[str, Mapping[str, str]]
"""A row's place, and its cells by column."""


def read_csv(path: Path) -> Listing:
    """Rows of a comma-separated table in UTF-8 whose first line names the columns.

    Raises InputError for missing columns, and for a row without a label, without a path, with an empty or
    unknown split, or whose path leads outside the folder; it names the line.
    """
    return _listing(path, csv_cells(path, REQUIRED, (OPTIONAL,)))


def read_parquet(path: Path) -> Listing:
    """Rows of a Parquet table with the same columns; labels may be numbers. Raises as `read_csv` does.

    Raises MissingExtraError without pyarrow.
    """
    return _listing(path, parquet_cells(path, REQUIRED, (OPTIONAL,)))


def csv_cells(path: Path, required: Sequence[str], optional: Sequence[str]) -> list[Cells]:
    """The rows of a CSV table: each one's place, and its cells by column.

    Raises InputError for a file that is not CSV, or lacks a required column; it names the line.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, None)
            if header is None:
                raise InputError(
                    f"{path} is empty: its first line names the columns {_named(required, optional)}."
                )
            columns = _columns(path, header, required, optional)
            # Cells that a short row lacks are empty; a row without any cell is a blank line.
            rows = (row for row in reader if row)
            return [
                (f"{path} line {reader.line_num}", {n: "".join(row[i : i + 1]) for n, i in columns.items()})
                for row in rows
            ]
    except PermissionError:
        raise InputError(f"{path} may not be read: give yourself read permission.") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text: save the manifest as UTF-8.") from None
    except csv.Error as error:
        raise InputError(f"{path} line {reader.line_num} is not CSV ({error}): fix its quotes.") from None


def parquet_cells(path: Path, required: Sequence[str], optional: Sequence[str]) -> list[Cells]:
    """The same for a Parquet table; numbers become their digits. Raises MissingExtraError without pyarrow."""
    pyarrow, parquet = import_pyarrow("A Parquet manifest")
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if any(str(kind).startswith("struct<bytes: ") for kind in file.schema_arrow.types):
                raise InputError(
                    f"{path} embeds its images, but a manifest names their files: load it with Hugging Face "
                    "`datasets` and give the folder that its `save_to_disk` writes."
                )
            columns = _columns(path, names, required, optional)
            chosen = [names[index] for index in columns.values()]
            table = file.read(columns=chosen).rename_columns(list(columns))
        # Arrow trusts the lengths and offsets in a file; using damaged ones ends the process.
        table.validate(full=True)
        cells = [{name: _text(value) for name, value in row.items()} for row in table.to_pylist()]
    except (OSError, UnicodeDecodeError, pyarrow.ArrowException) as error:
        reason = _first_line(error)
        raise InputError(f"{path} cannot be read as Parquet ({reason}): write it again.") from None
    return [(f"{path} row {number}", row) for number, row in enumerate(cells, start=1)]


def _text(value: object) -> str:
    """A cell as text: integers of any kind as their digits, null and NaN as empty, like an empty CSV cell."""
    if value is None or value != value:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:160].rstrip(".")


# --- rows -----------------------------------------------------------------------------------------


def _named(required: Sequence[str], optional: Sequence[str]) -> str:
    return ",".join(required) + "".join(f"[,{name}]" for name in optional)


def _columns(
    path: Path, header: Sequence[str], required: Sequence[str], optional: Sequence[str]
) -> dict[str, int]:
    """Position of each column that is used; case and blanks in the header do not matter."""
    columns = [name.strip().casefold() for name in header]
    missing = [name for name in required if name not in columns]
    if missing:
        raise InputError(
            f"{path} has no column {' and no column '.join(missing)}, "
            f"only {', '.join(map(repr, header[:8]))}: "
            f"name the columns {_named(required, optional)}, with commas between them."
        )
    wanted = [name for name in (*required, *optional) if name in columns]
    twice = [name for name in wanted if columns.count(name) > 1]
    if twice:
        raise InputError(f"{path} has the column {twice[0]} twice: keep one.")
    return {name: columns.index(name) for name in wanted}


def _listing(path: Path, table: Iterable[Cells]) -> Listing:
    rows = tuple(_rows(path, table))
    return Listing(name=path.stem, rows=rows)


def _rows(path: Path, table: Iterable[Cells]) -> Iterator[ListedImage]:
    for place, file, cells in checked(path, table, REQUIRED):
        split = split_of(cells[OPTIONAL], place) if OPTIONAL in cells else None
        yield ListedImage(path=file, label=cells["label"], split=split, place=place)


def checked(
    path: Path, table: Iterable[Cells], required: Sequence[str]
) -> Iterator[tuple[str, str, Mapping[str, str]]]:
    """Each row's place, the absolute path of its image, and its cells.

    Raises InputError for a table without rows, an empty cell of a required column, and a path that leads
    outside the manifest's folder.
    """
    folder, place = path.absolute().parent, ""
    inside = os.path.realpath(folder)
    for place, cells in table:
        for name in required:
            if not cells[name].strip():
                raise InputError(f"{place} has no {name}: fill it in or remove the row.")
        yield place, _resolve(folder, inside, cells["path"], place), cells
    if not place:
        raise InputError(f"{path} lists no images: add a row for each image below its header.")


def split_of(text: str, place: str) -> Split:
    """An empty cell is never guessed: a row left out by mistake would change the held-out splits."""
    if not text.strip():
        raise InputError(
            f"{place} has no split, but every row must have one or none: name it train, validation or test, "
            "or remove the column split."
        )
    return split_name(text, place)


def _resolve(folder: Path, inside: str, text: str, place: str) -> str:
    """The absolute path of a row's image; InputError if it leads outside the folder, links followed."""
    path = os.path.normpath(folder / text.strip())
    try:
        real = os.path.realpath(folder / text.strip())
    except (OSError, ValueError) as error:
        raise InputError(f"{place} has an invalid path ({error}): correct it.") from None
    if not real.startswith(inside.rstrip(os.sep) + os.sep):
        raise InputError(
            f"{place} points outside the manifest's folder ({text.strip()}): "
            "move the image into that folder, or the manifest into one above both."
        )
    return path

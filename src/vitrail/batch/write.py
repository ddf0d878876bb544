"""Rows as bytes of Parquet, JSON lines or CSV, and the two columns back that sorting images needs.

Text that is not UTF-8 (bytes in file names) is written with escapes (`words.utf8`): no format can hold it.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitrail.batch.formats import Format
from vitrail.batch.manifests import restored
from vitrail.batch.records import OwnColumn
from vitrail.data.arrow import import_pyarrow
from vitrail.tasks import Column
from vitrail.words import utf8

__all__ = ["Layout", "check_installed", "column_names", "encode", "interleaved", "layouts", "read_columns"]

PATH, DIGEST, ARTIFACT, REASON, MESSAGE = "path", "sha256", "artifact", "reason", "error"
KEY = b"vitrail"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The columns of a table, in order, and how it is stored."""

    columns: tuple[Column | OwnColumn, ...]
    format: Format
    metadata: Mapping[str, str]
    """What Parquet keeps beside the rows."""


def layouts(
    answers: Sequence[Column], own: Sequence[OwnColumn], format: Format, metadata: Mapping[str, str]
) -> tuple[Layout, Layout]:
    """The tables of results and of errors."""

    def text(*names: str) -> tuple[Column, ...]:
        return tuple(Column(name=name, kind="text") for name in names)

    def layout(*columns: Column | OwnColumn) -> Layout:
        return Layout(columns=columns, format=format, metadata=metadata)

    results = layout(*text(PATH, DIGEST), *answers, *own, *text(ARTIFACT))
    return results, layout(*text(PATH, REASON, MESSAGE), *own, *text(ARTIFACT))


def column_names(answers: Sequence[Column]) -> tuple[str, ...]:
    """Names that a manifest's own columns may not have."""
    flat = [name for column in answers for name in _names(column)]
    return (PATH, DIGEST, ARTIFACT, REASON, MESSAGE, *(column.name for column in answers), *flat)


def check_installed(format: Format) -> None:
    """Raise MissingExtraError unless this format can be written here; called before any work."""
    if format == "parquet":
        import_pyarrow("A Parquet table (--format jsonl and csv need nothing)")


def encode(layout: Layout, rows: Sequence[Mapping[str, Any]]) -> bytes:
    """All of a file: the rows have a value for each column."""
    return _ENCODERS[layout.format](layout, rows)


def interleaved(
    layout: Layout, one: bytes | None, other: bytes | None, from_other: Sequence[bool]
) -> bytes | None:
    """The rows of two files of `encode` in one, as they are written; None: no rows.

    `from_other` says for each row of the result in turn whether it is the next one of `other`.
    """
    if one is None or other is None:
        return one or other
    return _INTERLEAVED[layout.format](layout, one, other, from_other)


def _woven(one: Iterable[Any], other: Iterable[Any], from_other: Sequence[bool]) -> list[Any]:
    ones, others = iter(one), iter(other)
    return [next(others if chosen else ones) for chosen in from_other]


def read_columns(path: Path, names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """The text of some columns, row by row, of a file that `encode` made."""
    if path.suffix == ".parquet":
        _, parquet = import_pyarrow("Parquet")
        table = parquet.read_table(path, columns=list(names))
        yield from zip(*(table.column(name).to_pylist() for name in names), strict=True)
    elif path.suffix == ".csv":
        with open(path, encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                yield tuple(row[name] for name in names)
    else:
        with open(path, encoding="utf-8") as file:
            for line in file:
                entry = json.loads(line)
                yield tuple(entry[name] for name in names)


# --- Parquet ------------------------------------------------------------------------------------


def _parquet(layout: Layout, rows: Sequence[Mapping[str, Any]]) -> bytes:
    return _stored(layout, _table(layout, rows))


def _parquet_interleaved(layout: Layout, one: bytes, other: bytes, from_other: Sequence[bool]) -> bytes:
    arrow, parquet = import_pyarrow("Parquet")
    # Parquet has its own names for the inside of lists; the tables get back those that they were made with.
    schema = _table(layout, ()).schema
    tables = [parquet.ParquetFile(arrow.BufferReader(data)).read().cast(schema) for data in (one, other)]
    first = tables[0].num_rows
    order = _woven(range(first), range(first, first + tables[1].num_rows), from_other)
    return _stored(layout, arrow.concat_tables(tables).take(order).combine_chunks())


def _table(layout: Layout, rows: Sequence[Mapping[str, Any]]) -> Any:
    arrow, _ = import_pyarrow("Parquet")
    table = arrow.table({column.name: _array(arrow, column, rows) for column in layout.columns})
    return table.replace_schema_metadata({KEY: json.dumps(dict(layout.metadata)).encode("ascii")})


def _stored(layout: Layout, table: Any) -> bytes:
    arrow, parquet = import_pyarrow("Parquet")
    sink = arrow.BufferOutputStream()
    # Numbers neither repeat nor compress: dictionaries and compression would only cost time.
    texts = [c.name for c in layout.columns if isinstance(c, OwnColumn) or c.kind == "text"]
    compression = {name: "zstd" if name in texts else "none" for name in table.column_names}
    repeated = [name for name in texts if name not in (PATH, DIGEST) and _is_flat_text(arrow, table, name)]
    parquet.write_table(table, sink, use_dictionary=repeated, compression=compression)
    return bytes(sink.getvalue())


def _is_flat_text(arrow: Any, table: Any, name: str) -> bool:
    return bool(arrow.types.is_string(table.schema.field(name).type))


def _array(arrow: Any, column: Column | OwnColumn, rows: Sequence[Mapping[str, Any]]) -> Any:
    values = [row[column.name] for row in rows]
    if isinstance(column, OwnColumn):
        return restored(arrow, column, _clean(values))
    if column.kind == "text":
        kind = arrow.string() if column.length is None else arrow.list_(arrow.string())
        return arrow.array(_clean(values), kind)
    kind = arrow.float32() if column.kind == "float32" else arrow.float64()
    if column.length is None:
        return arrow.array(values, kind)
    flat = np.asarray(values, column.kind).reshape(-1)
    return arrow.FixedSizeListArray.from_arrays(arrow.array(flat, kind), column.length)


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return utf8(value)
    return [_clean(item) for item in value] if isinstance(value, (list, tuple)) else value


# --- JSON lines ---------------------------------------------------------------------------------


def _jsonl(layout: Layout, rows: Sequence[Mapping[str, Any]]) -> bytes:
    lines = [
        json.dumps(
            {column.name: _finite(_clean(_plain(row[column.name]))) for column in layout.columns},
            ensure_ascii=False,
            allow_nan=False,
        )
        for row in rows
    ]
    return "".join(f"{line}\n" for line in lines).encode("utf-8")


def _jsonl_interleaved(_: Layout, one: bytes, other: bytes, from_other: Sequence[bool]) -> bytes:
    lines = _woven(one.splitlines(keepends=True), other.splitlines(keepends=True), from_other)
    return b"".join(lines)


def _plain(value: Any) -> Any:
    """float32 as the shortest decimals that mean it: 0.1, not 0.10000000149011612."""
    if isinstance(value, np.ndarray):
        return [float(text) for text in value.astype(str)] if value.dtype == np.float32 else value.tolist()
    return value


def _finite(value: Any) -> Any:
    """NaN and infinity, which a manifest's own numbers may be, are null in JSON."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list) else value


# --- CSV ----------------------------------------------------------------------------------------


def _csv(layout: Layout, rows: Sequence[Mapping[str, Any]]) -> bytes:
    return _csv_of(layout, _csv_rows(layout, rows))


def _csv_interleaved(layout: Layout, one: bytes, other: bytes, from_other: Sequence[bool]) -> bytes:
    tables = [csv.reader(io.StringIO(data.decode("utf-8"), newline="")) for data in (one, other)]
    for table in tables:
        next(table)
    return _csv_of(layout, _woven(tables[0], tables[1], from_other))


def _csv_of(layout: Layout, rows: Iterable[Sequence[Any]]) -> bytes:
    lines = _Lines()
    writer = csv.writer(lines, lineterminator="\r\n")
    writer.writerow([name for column in layout.columns for name in _names(column)])
    writer.writerows(rows)
    return "".join(lines).encode("utf-8")


class _Lines(list[str]):
    """A file for `csv.writer`, which quotes in cells what its lines end in: here both line breaks, while the
    lines end as everywhere on Unix."""

    def write(self, line: str) -> None:
        self.append(line.removesuffix("\r\n") + "\n")


def _csv_rows(layout: Layout, rows: Sequence[Mapping[str, Any]]) -> Iterator[list[Any]]:
    for row in rows:
        cells: list[Any] = []
        for column in layout.columns:
            value = _clean(_plain(row[column.name]))
            if isinstance(column, Column) and column.length is not None:
                cells += value
            else:
                cells.append(_cell(value))
        yield cells


def _names(column: Column | OwnColumn) -> list[str]:
    """A list is as many columns: `labels_1`, `labels_2` …"""
    if isinstance(column, OwnColumn) or column.length is None:
        return [column.name]
    return [f"{column.name}_{k}" for k in range(1, column.length + 1)]


def _cell(value: Any) -> Any:
    return json.dumps(_finite(value), ensure_ascii=False) if isinstance(value, (list, dict)) else value


_ENCODERS = {"parquet": _parquet, "jsonl": _jsonl, "csv": _csv}
_INTERLEAVED = {"parquet": _parquet_interleaved, "jsonl": _jsonl_interleaved, "csv": _csv_interleaved}

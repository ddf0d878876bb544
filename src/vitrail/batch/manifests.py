"""Manifests of a batch job, read as a stream: a column `path`, and whatever else, which every row keeps."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from vitrail.batch.records import Input, OwnColumn
from vitrail.data.arrow import import_pyarrow
from vitrail.errors import InputError

__all__ = ["Manifest", "open_manifest", "restored"]

PATH = "path"
ROWS = 8192
"""Read of a Parquet manifest at a time."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Its own columns, and its rows as inputs."""

    columns: tuple[OwnColumn, ...]
    inputs: Callable[[], Iterator[Input]]


def open_manifest(fs: Any, path: str, *, said: str, textual: bool, taken: Sequence[str]) -> Manifest:
    """Read the names of the columns now, the rows later.

    Args:
        fs: of fsspec; None: a file of this machine.
        path: in it.
        said: what errors call it.
        textual: dates and decimals become text, for formats that cannot hold them.
        taken: names that own columns may not have: they get `manifest_` before theirs.

    Raises:
        InputError: it cannot be read, has no column `path`, two of one name, or one that cannot be kept.
        MissingExtraError: it is Parquet, and pyarrow is not installed.
    """

    def opened() -> Any:
        try:
            return open(path, "rb") if fs is None else fs.open(path, "rb")
        except PermissionError:
            raise InputError(f"{said} may not be read: give yourself read permission.") from None
        except OSError as error:
            raise InputError(f"{said} cannot be read ({error.strerror or error}): check it.") from None

    kind = _Csv if path.lower().endswith(".csv") else _Parquet
    table: _Csv | _Parquet = kind(opened, said, textual)
    place, others = _path_column(said, table.names)
    named = _own_names([table.names[k] for k in others], taken, said)
    columns = tuple(table.column(k, name) for k, name in zip(others, named, strict=True))
    return Manifest(columns=columns, inputs=lambda: table.rows(place, others))


def _path_column(said: str, names: Sequence[str]) -> tuple[int, list[int]]:
    """Which column is the path, and which are the others; blanks and case do not matter for the first."""
    found = [k for k, name in enumerate(names) if name.strip().casefold() == PATH]
    if not found:
        shown = ", ".join(map(repr, names[:8])) or "none"
        raise InputError(f"{said} has no column {PATH}, only {shown}: call the one of the images {PATH}.")
    if len(found) > 1:
        raise InputError(f"{said} has the column {PATH} twice: keep one.")
    return found[0], [k for k in range(len(names)) if k != found[0]]


def _own_names(names: Sequence[str], taken: Sequence[str], said: str) -> list[str]:
    found = [f"manifest_{name}" if name in taken else name for name in names]
    for k, name in enumerate(found):
        if not name.strip():
            raise InputError(f"{said} has a column without a name: name it or remove it.")
        if name in found[:k]:
            raise InputError(f"{said} has the column {name!r} twice: rename one.")
    return found


# --- CSV ----------------------------------------------------------------------------------------


class _Csv:
    """A comma-separated table in UTF-8 whose first line names the columns; every cell is text."""

    def __init__(self, opened: Callable[[], Any], said: str, textual: bool) -> None:
        self._opened, self._said = opened, said
        lines = self._lines()
        self.names: list[str] = next(lines, (0, []))[1]
        lines.close()
        if not self.names:
            raise InputError(f"{said} is empty: its first line names the columns, one of them {PATH}.")

    def column(self, place: int, name: str) -> OwnColumn:
        """Text."""
        return OwnColumn(name=name, source=self.names[place])

    def rows(self, place: int, others: Sequence[int]) -> Iterator[Input]:
        """Cells that a short row lacks are empty; a blank line is no row."""
        lines = self._lines()
        next(lines)
        for number, row in lines:
            if len(row) > len(self.names):
                raise InputError(
                    f"{self._said} line {number} has {len(row)} cells for {len(self.names)} columns: quote "
                    "what contains a comma."
                )
            cells = row + [""] * (len(self.names) - len(row))
            yield Input(cells[place].strip(), tuple(cells[k] for k in others))

    def _lines(self) -> Any:
        with self._opened() as binary:
            reader = csv.reader(io.TextIOWrapper(binary, "utf-8-sig", newline=""), strict=True)
            try:
                yield from ((reader.line_num, row) for row in reader if row)
            except UnicodeDecodeError:
                raise InputError(f"{self._said} is not UTF-8 text: save the manifest as UTF-8.") from None
            except csv.Error as error:
                raise InputError(
                    f"{self._said} line {reader.line_num} is not CSV ({error}): fix its quotes."
                ) from None


# --- Parquet ------------------------------------------------------------------------------------


class _Parquet:
    """A Parquet table; its types are kept, stored as what JSON holds."""

    def __init__(self, opened: Callable[[], Any], said: str, textual: bool) -> None:
        self._arrow, self._parquet = import_pyarrow("A Parquet manifest")
        self._opened, self._said, self._textual = opened, said, textual
        with self._guarded(), opened() as binary, self._parquet.ParquetFile(binary) as file:
            self._schema = file.schema_arrow
        self.names: list[str] = list(self._schema.names)
        for name, kind in zip(self.names, self._schema.types, strict=True):
            if name.strip().casefold() == PATH and not _is_plain(self._arrow, _value_type(self._arrow, kind)):
                raise InputError(f"{said} has paths of {kind}: store them as text.")

    def column(self, place: int, name: str) -> OwnColumn:
        """With its type. Raises InputError for one whose values JSON does not hold."""
        kind = _value_type(self._arrow, self._schema.field(place).type)
        if not _is_kept(self._arrow, kind):
            raise InputError(
                f"{self._said} has the column {name!r} of {kind}, which is not kept: remove it, or store it "
                "as text or numbers."
            )
        if self._textual and _is_text_elsewhere(self._arrow, kind):
            kind = self._arrow.string()
        schema = self._arrow.schema([self._arrow.field(name, kind)]).serialize().to_pybytes()
        return OwnColumn(
            name=name,
            source=self.names[place],
            type=str(kind),
            arrow=base64.b64encode(schema).decode("ascii"),
        )

    def rows(self, place: int, others: Sequence[int]) -> Iterator[Input]:
        """Row after row; a null path is empty."""
        names = [self.names[k] for k in (place, *others)]
        with self._guarded(), self._opened() as binary, self._parquet.ParquetFile(binary) as file:
            for batch in file.iter_batches(ROWS, columns=names):
                # Arrow trusts the lengths and offsets in a file; using damaged ones ends the process.
                batch.validate(full=True)
                paths, *cells = (self._plain(batch.column(name)) for name in names)
                for path, *row in zip(paths, *cells, strict=True):
                    yield Input(str("" if path is None else path).strip(), tuple(row))

    def _plain(self, column: Any) -> list[Any]:
        kind = _value_type(self._arrow, column.type)
        if kind != column.type:
            column = column.dictionary_decode()
        if _is_text_elsewhere(self._arrow, kind) and (self._textual or self._arrow.types.is_decimal(kind)):
            column = column.cast(self._arrow.string())
        elif self._arrow.types.is_temporal(kind):
            column = column.cast(_ticks(self._arrow, kind))
        values: list[Any] = column.to_pylist()
        return values

    def _guarded(self) -> _Guard:
        return _Guard(self._said, (OSError, UnicodeDecodeError, self._arrow.ArrowException))


class _Guard:
    """What a damaged Parquet file raises, as one sentence."""

    def __init__(self, said: str, wrong: tuple[type[Exception], ...]) -> None:
        self._said, self._wrong = said, wrong

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, self._wrong) and not isinstance(error, InputError):
            reason = (str(error) or type(error).__name__).splitlines()[0][:160].rstrip(".")
            raise InputError(f"{self._said} cannot be read as Parquet ({reason}): write it again.") from None


def restored(arrow: Any, column: OwnColumn, values: list[Any]) -> Any:
    """An Arrow array of what `_Parquet` stored as plain values, in the manifest's type; text for CSV."""
    if column.arrow is None:
        return arrow.array(values, arrow.string())
    kind = arrow.ipc.read_schema(arrow.py_buffer(base64.b64decode(column.arrow))).field(0).type
    if arrow.types.is_decimal(kind):
        return arrow.array(values, arrow.string()).cast(kind)
    if arrow.types.is_temporal(kind):
        return arrow.array(values, _ticks(arrow, kind)).cast(kind)
    return arrow.array(values, kind)


def _value_type(arrow: Any, kind: Any) -> Any:
    return kind.value_type if arrow.types.is_dictionary(kind) else kind


def _ticks(arrow: Any, kind: Any) -> Any:
    """The whole numbers that dates and times are."""
    return arrow.int32() if kind.bit_width == 32 else arrow.int64()


def _is_text_elsewhere(arrow: Any, kind: Any) -> bool:
    return bool(arrow.types.is_temporal(kind) or arrow.types.is_decimal(kind))


def _is_kept(arrow: Any, kind: Any) -> bool:
    types = arrow.types
    if types.is_interval(kind):
        return False
    return bool(types.is_temporal(kind) or types.is_decimal(kind) or _is_plain(arrow, kind))


def _is_plain(arrow: Any, kind: Any) -> bool:
    """Whether Python's values of it are JSON's, at any depth."""
    types = arrow.types
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _is_plain(arrow, kind.value_type)
    if types.is_struct(kind):
        return all(_is_plain(arrow, field.type) for field in kind)
    simple = types.is_boolean(kind) or types.is_integer(kind) or types.is_null(kind)
    texts = types.is_string(kind) or types.is_large_string(kind)
    return bool(simple or texts or types.is_float32(kind) or types.is_float64(kind))

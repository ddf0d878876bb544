"""Vectors with their names and origin, and the Parquet file that stores them.

The file has one row for each image or text: `path` or `text` (string) and `embedding` (fixed-size list of
float32). The schema's metadata holds one JSON document under the key `vitrail` (docs/embeddings.md), with
digests over names, vectors and itself: a damaged file is refused, not searched.

Shapes: N rows, D dimension.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal, cast

import msgspec
import numpy as np

from vitrail import store
from vitrail.embeddings.embedder import Embedder, Origin
from vitrail.errors import InputError, MissingExtraError, VitrailError
from vitrail.version import __version__
from vitrail.words import is_utf8, utf8, utf8_all

__all__ = ["Skipped", "VectorTable", "check_installed", "embed", "read_table", "write_table"]

SCHEMA_VERSION = 1
KEY = b"vitrail"
INSTALL = 'pip install "vitrail[search]"'
COLUMNS: dict[str, str] = {"image": "path", "text": "text"}
CHUNK = 64
"""Inputs handed to an embedder at a time; progress is reported in these steps."""

ROW_GROUP = 16_384
"""Rows written and read at a time."""

Content = Literal["image", "text"]


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """An image or text that has no vector, and why."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True, eq=False)
class VectorTable:
    """N named vectors of one origin.

    Raises:
        InputError: the numbers of names and vectors differ, or vectors are not finite, not of length 1 or not
            of the origin's dimension.
    """

    content: Content
    names: tuple[str, ...]
    """The images' paths, or the texts themselves."""
    vectors_ND: np.ndarray
    """float32, rows of length 1."""
    origin: Origin
    broken: tuple[Skipped, ...] = ()
    """What could not be embedded."""
    digest: str = field(init=False)
    """sha256 over names and vectors."""

    def __post_init__(self) -> None:
        shape, rows, width = self.vectors_ND.shape, len(self.names), self.origin.dimension
        if self.vectors_ND.dtype != np.float32 or shape != (rows, width):
            raise InputError(
                f"{rows} names with vectors of shape {shape} ({self.vectors_ND.dtype}) are not a table: give "
                f"float32 of shape ({rows}, {width})."
            )
        # NaN compares as false.
        lengths = np.einsum("nd,nd->n", self.vectors_ND, self.vectors_ND)
        if rows and not np.all(np.abs(lengths - 1) < 1e-3):
            row = int(np.argmin(np.abs(lengths - 1) < 1e-3))
            raise InputError(
                f"The vector of {self.names[row]} is not of length 1: divide each vector by its length."
            )
        object.__setattr__(self, "digest", _digest(self.names, self.vectors_ND))


def embed(
    embedder: Embedder,
    names: Sequence[str],
    content: Content,
    *,
    progress: Callable[[int], None] | None = None,
) -> VectorTable:
    """Vectors of all images (paths) or texts; what cannot be embedded is listed in `broken`.

    If the embedder itself fails, the vectors made until then are kept and all other inputs count as broken.

    Args:
        embedder: what makes the vectors.
        names: paths of images, or texts.
        content: which of the two.
        progress: called now and then with the number done.

    Raises:
        InputError: none of them can be embedded, or they are texts and the model reads none.
        VitrailError: the embedder fails before it has made any vector.
    """
    embedded: list[str] = []
    rows: list[np.ndarray] = []
    broken: list[Skipped] = []
    each = embedder.images_each if content == "image" else embedder.texts_each
    waiting = iter(names)
    while chunk := list(islice(waiting, CHUNK)):
        try:
            outcomes = list(each(chunk))
        except InputError:
            raise
        except VitrailError as error:
            if not rows:
                raise
            reason = f"not embedded, because the model failed: {error}"
            broken += [Skipped(name=utf8(name), reason=utf8(reason)) for name in (*chunk, *waiting)]
            break
        for name, outcome in zip(chunk, outcomes, strict=True):
            if isinstance(outcome, InputError):
                broken.append(Skipped(name=utf8(name), reason=utf8(str(outcome))))
            elif not is_utf8(name):
                reason = f"{utf8(name)} is not UTF-8, which Parquet requires: rename it."
                broken.append(Skipped(name=utf8(name), reason=reason))
            else:
                embedded.append(name)
                rows.append(outcome)
        if progress is not None:
            progress(len(embedded) + len(broken))
    if not rows:
        first = f"; the first: {broken[0].reason}" if broken else ": give at least one."
        raise InputError(f"No {content} could be embedded ({len(names)} tried){first}")
    return VectorTable(
        content=content,
        names=tuple(embedded),
        vectors_ND=np.stack(rows),
        origin=embedder.origin,
        broken=tuple(broken),
    )


def write_table(table: VectorTable, path: str | Path) -> None:
    """Write the table as Parquet, atomically.

    Raises:
        InputError: the file cannot be written.
        MissingExtraError: pyarrow is not installed.
    """
    arrow, parquet = _arrow()
    values = arrow.array(np.ascontiguousarray(table.vectors_ND).reshape(-1))
    facts: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "vitrail": __version__,
        "content": table.content,
        "normalised": True,
        "digest": table.digest,
        "origin": utf8_all(msgspec.to_builtins(table.origin)),
        "broken": msgspec.to_builtins(table.broken),
    }
    facts["checksum"] = _checksum(facts)
    column = COLUMNS[table.content]
    embedding = arrow.FixedSizeListArray.from_arrays(values, table.origin.dimension)
    rows = arrow.table({column: arrow.array(table.names, arrow.string()), "embedding": embedding})
    rows = rows.replace_schema_metadata({KEY: msgspec.json.encode(facts)})
    sink = arrow.BufferOutputStream()
    # Vectors neither repeat nor compress: dictionaries and compression would only cost time.
    parquet.write_table(
        rows,
        sink,
        row_group_size=ROW_GROUP,
        use_dictionary=False,
        compression={column: "zstd", "embedding": "none"},
    )
    # A view: a copy may not fit in memory.
    store.atomic_write(path, cast("bytes", memoryview(sink.getvalue())))


def read_table(path: str | Path) -> VectorTable:
    """Read what `write_table` wrote, and check that it is intact.

    Raises:
        InputError: the file does not exist, is not Parquet, was not made by `vitrail embed` or by a later
            version of it, or is damaged.
        MissingExtraError: pyarrow is not installed.
    """
    arrow, parquet = _arrow()
    if not Path(path).is_file():
        raise InputError(f"There is no index at {path}: make one with `vitrail embed INPUT --out {path}`.")
    again = "make it again with `vitrail embed`"
    # Damage shows as any of these; pyarrow's errors derive from ValueError, OSError and KeyError.
    wrong: tuple[type[Exception], ...] = (arrow.ArrowException, msgspec.MsgspecError, OSError, ValueError)
    wrong += (KeyError, TypeError, AttributeError, OverflowError)
    try:
        file = parquet.ParquetFile(path)
    except wrong as error:
        raise InputError(f"{path} is not a whole Parquet file ({_short(error)}): {again}.") from None
    with file:
        facts = _facts(path, file.schema_arrow.metadata or {})
        try:
            table = _table(file, facts)
            whole = table.digest == facts["digest"] and _checksum(facts) == facts["checksum"]
        except wrong as error:  # InputError, which VectorTable raises, is a ValueError
            raise InputError(f"{path} is damaged ({_short(error)}): {again}.") from None
        except MemoryError:
            raise InputError(
                f"{path} says that it holds {file.metadata.num_rows} vectors, more than fit in memory: "
                "use a larger machine, or split what it was made from."
            ) from None
    if not whole:
        raise InputError(f"{path} is damaged (its content was changed): {again}.")
    return table


def _table(file: Any, facts: dict[str, Any]) -> VectorTable:
    """The rows of an open Parquet file, read in parts so that memory never holds them twice."""
    origin = msgspec.convert(facts["origin"], Origin)
    column = COLUMNS[facts["content"]]
    vectors_ND = np.empty((file.metadata.num_rows, origin.dimension), np.float32)
    names: list[str] = []
    for batch in file.iter_batches(ROW_GROUP, columns=[column, "embedding"]):
        rows = batch["embedding"].flatten().to_numpy(zero_copy_only=False)
        begin = len(names)
        names += batch[column].to_pylist()
        vectors_ND[begin : len(names)] = rows.reshape(batch.num_rows, origin.dimension)
    if len(names) != len(vectors_ND):
        raise ValueError(f"{len(names)} of {len(vectors_ND)} rows are there")
    return VectorTable(
        content=facts["content"],
        names=tuple(names),
        vectors_ND=vectors_ND,
        origin=origin,
        broken=msgspec.convert(facts["broken"], tuple[Skipped, ...]),
    )


def _facts(path: str | Path, metadata: dict[bytes, bytes]) -> dict[str, Any]:
    if KEY not in metadata:
        raise InputError(f"{path} was not made by `vitrail embed`: make an index with that first.")
    try:
        facts = msgspec.json.decode(metadata[KEY], type=dict[str, Any])
    # DecodeError for JSON, ValueError for bytes that are not UTF-8.
    except (msgspec.DecodeError, ValueError):
        raise InputError(f"{path} is damaged (its metadata): make it again with `vitrail embed`.") from None
    if facts.get("schema_version") != SCHEMA_VERSION:
        raise InputError(
            f"{path} is of schema version {facts.get('schema_version')} and this is Vitrail {__version__}, "
            f"which reads {SCHEMA_VERSION}: make it again with `vitrail embed`."
        )
    return facts


def _checksum(facts: dict[str, Any]) -> str:
    """sha256 of the metadata without the checksum itself; `digest` does not cover it."""
    said = {name: value for name, value in facts.items() if name != "checksum"}
    return store.digest_of(said)


def _digest(names: Sequence[str], vectors_ND: np.ndarray) -> str:
    digest = hashlib.sha256(store.canonical_json(list(names)))
    digest.update(np.ascontiguousarray(vectors_ND, "<f4").data)
    return digest.hexdigest()


def _short(error: Exception) -> str:
    return (" ".join(str(error).split()).split(". ")[0] or type(error).__name__)[:160].rstrip(".")


def check_installed() -> None:
    """Raise MissingExtraError unless tables can be written here; called before hours of embedding."""
    _arrow()


def _arrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtraError("pyarrow, which reads and writes Parquet,", INSTALL) from None
    return pyarrow, pyarrow.parquet

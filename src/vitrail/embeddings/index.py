"""Search by cosine: exact up to a stated number of vectors, through a neighbourhood graph above it.

The graph is HNSW (Malkov and Yashunin 2018, algorithms 1 to 5), built by the usearch library once for each
table, cached under the table's digest, and memory-mapped from there.

Shapes: N vectors, Q queries, D dimension.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitrail import store
from vitrail.embeddings.embedder import Embedder, Origin
from vitrail.embeddings.vectors import INSTALL, Content, VectorTable, read_table
from vitrail.errors import InputError, MissingExtraError
from vitrail.hardware import usable_cores
from vitrail.limits import whole

__all__ = ["EXACT_UP_TO", "Hit", "Index"]

EXACT_UP_TO = 1_000_000
"""Up to this many vectors, a query is compared with each (docs/decisions/vector-index.md)."""

CONNECTIVITY, EXPANSION_ADD, EXPANSION_SEARCH = 16, 128, 256
"""The paper's M, efConstruction and ef. The last is four times the library's default, for higher recall."""


@dataclass(frozen=True, kw_only=True)
class Hit:
    """An image or text that a search found."""

    name: str
    score: float
    """Cosine of the angle between it and the query, -1 to 1."""
    row: int
    """Its row in the table, from 0."""


class Index:
    """A searchable table.

    Args:
        table: what to search.
        exact_up_to: tables with more rows are searched through a graph.

    Raises:
        InputError: the table has no rows.
    """

    def __init__(self, table: VectorTable, *, exact_up_to: int = EXACT_UP_TO) -> None:
        if not table.names:
            raise InputError("The table has no rows: embed at least one image or text.")
        self.table = table
        self.exact = len(table.names) <= exact_up_to
        """Whether the hits are certain to be the nearest."""
        self._graph: Any = None

    @classmethod
    def read(cls, path: str | Path, *, exact_up_to: int = EXACT_UP_TO) -> Index:
        """The index of a file that `vitrail embed` wrote; errors as `read_table` and `Index`."""
        return cls(read_table(path), exact_up_to=exact_up_to)

    @classmethod
    def build(
        cls,
        vectors_ND: np.ndarray,
        names: tuple[str, ...],
        origin: Origin,
        *,
        content: Content = "image",
        exact_up_to: int = EXACT_UP_TO,
    ) -> Index:
        """An index of float32 (N, D) vectors of length 1; errors as `VectorTable`."""
        table = VectorTable(content=content, names=names, vectors_ND=vectors_ND, origin=origin)
        return cls(table, exact_up_to=exact_up_to)

    def __len__(self) -> int:
        return len(self.table.names)

    def check(self, embedder: Embedder) -> None:
        """Raise InputError unless the embedder's vectors can be compared with this index's."""
        if embedder.digest != self.table.origin.digest:
            raise InputError(
                f"The index was made by {_described(self.table.origin)} and the query by "
                f"{_described(embedder.origin)}, whose vectors cannot be compared: use one model for both."
            )

    def search(self, queries_QD: np.ndarray, *, top: int = 10) -> list[list[Hit]]:
        """The `top` nearest rows of each query, best first, ties by row; all rows if there are fewer.

        Args:
            queries_QD: float32 (Q, D) or one query (D,), of length 1.
            top: from 1 to a million.

        Raises:
            InputError: `top` out of range, or queries of another dimension or not of length 1.
            MissingExtraError: usearch is not installed.
        """
        whole("top", top)
        queries_QD = np.atleast_2d(np.ascontiguousarray(queries_QD, np.float32))
        width = self.table.origin.dimension
        if queries_QD.ndim != 2 or queries_QD.shape[1] != width:
            raise InputError(
                f"Queries of shape {queries_QD.shape} do not fit: give vectors of {width} numbers."
            )
        # NaN compares as false.
        if not np.all(np.abs(np.linalg.norm(queries_QD, axis=1) - 1) < 1e-3):
            raise InputError("A query is not of length 1: divide each vector by its length.")
        if not len(queries_QD):
            return []
        rows_QK = self._nearest(queries_QD, min(top, len(self)))
        return [self._hits(query, rows) for query, rows in zip(queries_QD, rows_QK, strict=True)]

    def _nearest(self, queries_QD: np.ndarray, top: int) -> list[np.ndarray]:
        """Rows of each query, in any order; the graph may miss some and return fewer."""
        usearch = _usearch()
        threads = usable_cores()
        if self.exact:
            found = usearch.search(
                self.table.vectors_ND, queries_QD, top, metric="ip", exact=True, threads=threads
            )
        else:
            if self._graph is None:
                self._graph = _graph_of(self.table)
            # The library never looks at fewer than `expansion_search`, nor finds more than it looks at.
            self._graph.expansion_search = max(EXPANSION_SEARCH, 2 * top)
            found = self._graph.search(queries_QD, top, threads=threads)
        if len(queries_QD) == 1:  # the library then drops the first dimension
            return [np.asarray(found.keys, np.int64)]
        return [
            np.asarray(keys[:count], np.int64) for keys, count in zip(found.keys, found.counts, strict=True)
        ]

    def _hits(self, query_D: np.ndarray, rows: np.ndarray) -> list[Hit]:
        # In float64: the library's distance is 1 - cosine in float32, which blurs small cosines.
        scores = self.table.vectors_ND[rows].astype(np.float64) @ query_D.astype(np.float64)
        scores = np.clip(scores, -1.0, 1.0)  # lengths are 1 only up to float32 rounding
        order = np.lexsort((rows, -scores))
        return [Hit(name=self.table.names[rows[i]], score=float(scores[i]), row=int(rows[i])) for i in order]


def _graph_of(table: VectorTable) -> Any:
    """The table's graph, from the cache or newly built.

    Raises:
        InputError: the cache cannot be written.
    """
    usearch = _usearch()
    name = f"{table.digest}-{CONNECTIVITY}-{EXPANSION_ADD}.usearch"
    path = store.cache_dir() / "indexes" / name
    rows, width = table.vectors_ND.shape
    if path.is_file():
        # A damaged graph, or one of an unreadable version, is rebuilt.
        with contextlib.suppress(Exception):
            graph = usearch.Index.restore(str(path), view=True)
            if graph is not None and (len(graph), graph.ndim) == (rows, width):
                return graph
    graph = usearch.Index(
        ndim=width,
        metric="ip",
        dtype="f32",
        connectivity=CONNECTIVITY,
        expansion_add=EXPANSION_ADD,
        expansion_search=EXPANSION_SEARCH,
    )
    graph.add(np.arange(rows), table.vectors_ND, threads=usable_cores())
    with store.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".vitrail-{secrets.token_hex(8)}.tmp")
        try:
            graph.save(str(temporary))
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    return graph


def _described(origin: Origin) -> str:
    return f"{origin.model} (weights {str(origin.weights.sha256)[:12]}, digest {origin.digest[:12]})"


def _usearch() -> Any:
    try:
        import usearch.index
    except ImportError:
        raise MissingExtraError("usearch, which searches vectors,", INSTALL) from None
    return usearch.index

"""Images and texts as vectors: what makes them, the file that stores them, and the search over them.

    photos ──Embedder──► VectorTable ──write_table──► OUT.parquet ──Index.read──► Index ──search──► Hits

Vectors are float32 of length 1, so the product of two is the cosine of the angle between them. Code that
runs models lives above (`vitrail.zeroshot.embed`); nothing here imports one.
"""

from __future__ import annotations

from vitrail.embeddings.embedder import Embedder, Origin
from vitrail.embeddings.index import EXACT_UP_TO, Hit, Index
from vitrail.embeddings.vectors import Skipped, VectorTable, embed, read_table, write_table

__all__ = [
    "EXACT_UP_TO",
    "Embedder",
    "Hit",
    "Index",
    "Origin",
    "Skipped",
    "VectorTable",
    "embed",
    "read_table",
    "write_table",
]

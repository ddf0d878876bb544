"""Near duplicates: images whose thumbnails are the same picture except for brightness and contrast.

The measure is the correlation (Pearson's r) of two grey thumbnails. It compares all pairs, exactly, as one
matrix product in blocks. docs/data.md says how it compares with difference hashes.

Letters: N images, D pixels of a thumbnail.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vitrail.data.records import Example

if TYPE_CHECKING:
    import numpy as np

ALIKE = 0.97
"""Correlation from which two images count as near duplicates (docs/data.md: what it finds and misses)."""

MOST_SHOWN = 200
"""Number of pairs kept, the most alike first; all are counted."""

BLOCK = 2048


@dataclass(frozen=True, kw_only=True)
class NearPair:
    """Two examples and the correlation of their thumbnails, `ALIKE` to 1."""

    first: Example
    second: Example
    correlation: float

    @property
    def straddles(self) -> bool:
        """Whether the two are in different splits."""
        return self.first.split != self.second.split


@dataclass(frozen=True, kw_only=True)
class Near:
    """Counts over all pairs of examples, and the pairs most alike.

    `straddling`: pairs in different splits; `held_out`: images of validation or test that are in such a pair;
    `mislabelled`: pairs with different labels.
    """

    pairs: int
    images: int
    straddling: int
    held_out: int
    mislabelled: int
    closest: tuple[NearPair, ...]


def near_duplicates(examples: Sequence[Example], thumbnails: Sequence[bytes]) -> Near:
    """Compare every two examples by their thumbnails (uint8, all of one size, one per example)."""
    import numpy as np

    unit_ND = _normalised(thumbnails)
    label_N = np.array([example.label for example in examples])
    split_N = np.unique([example.split for example in examples], return_inverse=True)[1]
    alike_N, leaked_N = np.zeros((2, len(examples)), dtype=bool)
    pairs = straddling = mislabelled = 0
    closest: list[tuple[float, int, int]] = []
    for start in range(0, len(examples), BLOCK):
        for other in range(start, len(examples), BLOCK):
            rows, columns, values = _alike(unit_ND, start, other)
            apart = split_N[rows] != split_N[columns]
            pairs += len(rows)
            straddling += int(apart.sum())
            mislabelled += int((label_N[rows] != label_N[columns]).sum())
            alike_N[rows] = alike_N[columns] = True
            leaked_N[rows[apart]] = leaked_N[columns[apart]] = True
            best = np.argsort(-values, kind="stable")[:MOST_SHOWN]
            places = rows[best].tolist(), columns[best].tolist()
            block = zip((-values[best]).tolist(), *places, strict=True)
            closest = heapq.nsmallest(MOST_SHOWN, [*closest, *block])
    held_out = sum(bool(leaked) and e.split != "train" for leaked, e in zip(leaked_N, examples, strict=True))
    nearest = tuple(
        NearPair(first=examples[i], second=examples[j], correlation=min(1.0, -value))
        for value, i, j in closest
    )
    return Near(
        pairs=pairs,
        images=int(alike_N.sum()),
        straddling=straddling,
        held_out=held_out,
        mislabelled=mislabelled,
        closest=nearest,
    )


def _normalised(thumbnails: Sequence[bytes]) -> np.ndarray:
    """float32 (N, D), each row with mean 0 and norm 1, so that products are correlations; rows without any
    contrast are 0, because nothing can be said about them."""
    import numpy as np

    grey_ND = np.frombuffer(b"".join(thumbnails), dtype=np.uint8).reshape(len(thumbnails), -1)
    centred_ND = grey_ND.astype(np.float32)
    centred_ND -= centred_ND.mean(axis=1, keepdims=True)
    norm_N1 = np.linalg.norm(centred_ND, axis=1, keepdims=True)
    return centred_ND / np.maximum(norm_N1, 1e-3)


def _alike(unit_ND: np.ndarray, start: int, other: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs (i, j), i < j, of two blocks that are alike, and their correlations."""
    import numpy as np

    product = unit_ND[start : start + BLOCK] @ unit_ND[other : other + BLOCK].T
    rows, columns = np.nonzero(product >= ALIKE)
    values = product[rows, columns]
    rows, columns = rows + start, columns + other
    ordered = rows < columns
    return rows[ordered], columns[ordered], values[ordered]

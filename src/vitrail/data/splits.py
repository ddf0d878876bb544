"""The words for splits; and splitting by content: it depends on bytes and class, never on names or order.

A class's distinct digests are sorted by sha256(salt + digest), which is as good as shuffling them, and the
sorted list is cut by the fractions. An added image moves each cut by at most one place, so it
changes the split of at most one other image per cut.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise

from vitrail.data.records import SPLITS, Split
from vitrail.errors import InputError

FRACTIONS = (0.6, 0.2, 0.2)
# The words that Hugging Face `datasets` recognises as splits (its data_files.py), and "development".
SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "development": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
LEAST = len(SPLITS)
"""Distinct images a class needs: one in each split."""

# Part of every recorded split: another salt would split all data sets differently.
_SALT = b"vitrail.data/1 "


def split_name(text: str, place: str) -> Split:
    """Return the split that a data set names; InputError, naming the place, for an unknown one."""
    known = SPLIT_NAMES.get(text.strip().casefold())
    if known is None:
        raise InputError(f"{place} has the unknown split {text!r}: name it train, validation or test.")
    return known


def check_fractions(fractions: Sequence[float]) -> tuple[float, float, float]:
    """Return the shares of train, validation and test; InputError unless three above 0 that sum to 1."""
    values = tuple(float(value) for value in fractions)
    proper = len(values) == LEAST and all(0 < value < 1 for value in values)
    if not proper or abs(math.fsum(values) - 1) > 1e-6:
        shown = ", ".join(f"{value:g}" for value in values)
        raise InputError(
            f"The fractions {shown} do not split data: give three above 0 that sum to 1, "
            "for train, validation and test."
        )
    return values[0], values[1], values[2]


def assign(
    digests: Collection[str], given: Mapping[str, Split], fractions: Sequence[float]
) -> dict[str, Split]:
    """Return the split of each distinct digest (hexadecimal sha256) of one class.

    `given`: the splits that the data set names, for all of `digests` or for none of them (empty). A share of
    0 in `fractions` means that this split is given; the others are taken from what is given as train.
    If there are at least as many images as shares above 0, every such split gets one.
    """
    kept: dict[str, Split] = {digest: split for digest, split in given.items() if split != "train"}
    pool = sorted((digest for digest in digests if digest not in kept), key=_rank)
    wanted = [(split, share) for split, share in zip(SPLITS, fractions, strict=True) if share > 0]
    parts = _cut(pool, [share for _, share in wanted])
    for (split, _), part in zip(wanted, parts, strict=True):
        kept.update(dict.fromkeys(part, split))
    return kept


def _rank(digest: str) -> bytes:
    return hashlib.sha256(_SALT + digest.encode("ascii")).digest()


def _cut(pool: Sequence[str], shares: Sequence[float]) -> list[Sequence[str]]:
    """Cut a list by shares (scaled to sum to 1), each part at least one long if the list allows it."""
    total, count = math.fsum(shares), len(pool)
    bounds, so_far = [0], 0.0
    for index, share in enumerate(shares, start=1):
        so_far += share / total
        # Leave room for one in this part, and for one in each part that follows.
        end = max(bounds[-1] + 1, min(round(count * so_far), count - (len(shares) - index)))
        bounds.append(min(end, count))
    return [pool[start:stop] for start, stop in pairwise(bounds)]

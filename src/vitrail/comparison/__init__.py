"""Two selections side by side: what moved beyond noise, which winner changed and why. Nothing is measured.

The rule that calls a figure moved is explained, with its error rates, in docs/measurement.md.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping
from pathlib import Path

from vitrail.comparison import figures, question
from vitrail.comparison.figures import MEMORY_TOLERANCE, Taken
from vitrail.comparison.records import (
    COMPARED,
    MOVED,
    Change,
    Comparison,
    Difference,
    Pair,
    Ratio,
    Regression,
    Side,
    Standing,
    Value,
    Winners,
    WinnerState,
)
from vitrail.document import from_document
from vitrail.errors import InputError
from vitrail.vocabulary import LedgerEntry, Selection
from vitrail.words import counted

__all__ = [
    "COMPARED",
    "MEMORY_TOLERANCE",
    "MOVED",
    "Change",
    "Comparison",
    "Difference",
    "Pair",
    "Ratio",
    "Regression",
    "Side",
    "Standing",
    "Value",
    "Winners",
    "compare",
]

ALL_SHIFTED = 3
"""From so many variants on, a shift that all of them share is pointed out."""
SHIFT = 0.03
"""Beyond the two launches' 2 x 1.5 % that a single pair may show."""


def compare(a: Selection | str | os.PathLike[str], b: Selection | str | os.PathLike[str]) -> Comparison:
    """Compare two selections, or two documents that `vitrail select --json` wrote.

    Live selections hold their calls, which gives narrower intervals than a document's figures.

    Raises:
        InputError: a file that is no selection, or two selections of which no figure can be compared.
    """
    left, right = _side(a, "A"), _side(b, "B")
    if left.selection.task != right.selection.task:
        raise InputError(
            f"{left.source} is about {left.selection.task} and {right.source} about {right.selection.task}: "
            "compare selections of one task."
        )
    ours, theirs = (_considered(one.selection) for one in (left, right))
    names = [name for name in ours if name in theirs]
    pairs = tuple(_pair(ours[name], theirs[name], left.selection, right.selection) for name in names)
    _refuse_the_incomparable(left, right, pairs)
    return Comparison(
        a=left,
        b=right,
        differences=question.asked(left.selection, right.selection),
        elsewhere=(elsewhere := question.elsewhere(left, right)),
        notes=_shared_shift(pairs, same_machine=all(each.what != "machine" for each in elsewhere)),
        winners=_winners(left.selection, right.selection),
        pairs=pairs,
        only_a=tuple(_standing(name, ours) for name in ours if name not in theirs),
        only_b=tuple(_standing(name, theirs) for name in theirs if name not in ours),
    )


def _side(given: Selection | str | os.PathLike[str], name: str) -> Side:
    if isinstance(given, Selection):
        return question.side(name, given)
    try:
        data = Path(given).read_bytes()
    except OSError as error:
        raise InputError(f"{given} cannot be read ({error.strerror}): check the path.") from None
    recorded = from_document(data, str(given))
    if not recorded.complete:
        raise InputError(
            f"{given} holds figures that someone wrote down, not a selection: "
            "make one of it with `vitrail select --from FILE --json FILE`."
        )
    return question.side(str(given), recorded.selection)


def _considered(selection: Selection) -> Mapping[str, LedgerEntry]:
    return {entry.variant.name: entry for entry in selection.ledger}


def _pair(one: LedgerEntry, two: LedgerEntry, a: Selection, b: Selection) -> Pair:
    left = Taken(side="A", entry=one, workload=a.workload)
    right = Taken(side="B", entry=two, workload=b.workload)
    return Pair(
        name=one.variant.name,
        reference=one.variant.reference or two.variant.reference,
        notes=_notes(one, two),
        changes=figures.changes(left, right),
    )


def _notes(one: LedgerEntry, two: LedgerEntry) -> tuple[str, ...]:
    """What differs about the variant itself."""
    weights = [entry.variant.candidate.weights.sha256 for entry in (one, two)]
    notes = []
    if None not in weights and weights[0] != weights[1]:
        there, here = (str(digest)[:12] for digest in weights)
        notes.append(f"its weights are other ones (sha256 {there} in A, {here} in B)")
    settings = [entry.variant.settings for entry in (one, two)]
    if settings[0] != settings[1]:
        notes.append("its engine settings differ")
    failure = two.observation.failure
    if failure is not None and one.observation.failure is None and one.observation.latency:
        notes.append(f"gave no figures in B: {failure}")
    return tuple(notes)


def _refuse_the_incomparable(a: Side, b: Side, pairs: tuple[Pair, ...]) -> None:
    """Raise if there is no figure at all that both sides have under the same conditions."""
    if not pairs:
        raise InputError(
            f"no variant is in both {a.source} and {b.source}: "
            "select with the same --models, --runtimes and --precisions."
        )
    changes = [change for pair in pairs for change in pair.changes]
    if any(change.state in COMPARED for change in changes):
        return
    refused = next((change for change in changes if change.state == "incomparable"), None)
    if refused is not None:
        raise InputError(
            f"no figure of {a.source} and {b.source} can be compared ({refused.reason}): "
            "select again with the same workload."
        )
    raise InputError(
        f"no variant has figures in both {a.source} and {b.source}: select with a longer --budget."
    )


def _shared_shift(pairs: tuple[Pair, ...], *, same_machine: bool) -> tuple[str, ...]:
    """A note if the latencies of all variants are longer, or all shorter: one cause, perhaps the machine."""
    if not same_machine:
        return ()
    first = [next((c for c in pair.changes if c.unit == "ms" and c.ratio), None) for pair in pairs]
    ratios = [change.ratio.value for change in first if change is not None and change.ratio is not None]
    if len(ratios) < ALL_SHIFTED or not (min(ratios) > 1 + SHIFT or max(ratios) < 1 / (1 + SHIFT)):
        return ()
    middle, word = statistics.median(ratios), "longer" if ratios[0] > 1 else "shorter"
    return (
        f"the latencies of all {counted(len(ratios), 'variant')} are {word} in B ({middle:.2f} times A's in "
        "the median): one cause, perhaps the machine at another hour; select both again, one right after the "
        "other, to tell",
    )


def _winners(a: Selection, b: Selection) -> Winners:
    state: WinnerState = "same" if a.selected == b.selected else "changed"
    if a.selected is None or b.selected is None:
        state = "none" if a.selected == b.selected else "none in A" if a.selected is None else "none in B"
    return Winners(
        state=state,
        a=a.selected,
        b=b.selected,
        a_in_b=None if a.selected is None else _standing(a.selected, _considered(b)),
        b_in_a=None if b.selected is None else _standing(b.selected, _considered(a)),
    )


def _standing(name: str, entries: Mapping[str, LedgerEntry]) -> Standing:
    entry = entries.get(name)
    if entry is None:
        return Standing(name=name, place="absent", reasons=())
    return Standing(name=name, place=entry.status, reasons=entry.reasons)

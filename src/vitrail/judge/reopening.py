"""Recorded variants that were never measured, under another question: which could change the answer.

A search skips variants for reasons (selection/prune.py, selection/order.py, sources/probe.py) that
depend on the question. The figure in the reason says whether it still holds; if it does not, nothing is
known about the variant, and the ledger says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from vitrail.judge.evidence import ALLOWANCE_POINTS
from vitrail.judge.standing import never_measured
from vitrail.vocabulary import LedgerEntry, Observation, Requirements, Selection, Workload
from vitrail.words import some_of

PEAK = "at the engine's peak"
PEAK_FACTOR = 2.0
"""An engine's peak is itself measured: a bound from it rules a variant out only beyond twice the limit."""
ENDED = "the recorded search ended before it"
_LAST_WORDS = (ENDED, "probe: at ", "not probed within the budget", "not measured within the budget")
_FOR_GOOD = ("probe: ", "its weights are not at hand")


@dataclass(frozen=True, kw_only=True)
class Question:
    """The question: requirements, and the parts of the workload that recorded figures are judged under."""

    requirements: Requirements
    workload: Workload

    def same_as(self, other: Question) -> bool:
        """Whether nothing that decides has changed."""
        return self.requirements == other.requirements and self.same_latency(other)

    def same_latency(self, other: Question) -> bool:
        """Whether the same percentile of the same scope is judged."""
        mine, theirs = self.workload, other.workload
        return (mine.latency_scope, mine.percentile) == (theirs.latency_scope, theirs.percentile)


def reopen(
    observations: Iterable[Observation], before: Question, now: Question, *, won_before: bool
) -> tuple[Observation, ...]:
    """The observations; for each that was never measured, whether its reason still holds.

    `won_before`: the recorded winner still meets all limits, so what could not beat it still cannot.
    """
    return tuple(
        each
        if each.variant.reference or not never_measured(each)
        else _reopened(each, before, now, won_before=won_before)
        for each in observations
    )


def _reopened(observation: Observation, before: Question, now: Question, *, won_before: bool) -> Observation:
    reason = observation.pruned or ENDED
    if before.same_as(now):
        return replace(observation, pruned=reason)
    if reason.startswith(_LAST_WORDS):
        why = reason
    elif reason.startswith(_FOR_GOOD) or _holds(reason, before, now, won_before=won_before):
        return observation
    else:
        why = f"left out for a reason that no longer holds ({reason})"
    return replace(observation, pruned=f"{NEVER}: {why}")


NEVER = "never measured"


def _holds(reason: str, before: Question, now: Question, *, won_before: bool) -> bool:
    was, asked = before.requirements, now.requirements
    factor = PEAK_FACTOR if PEAK in reason else 1.0
    kind = reason.partition(":")[0]
    if kind == "license":
        return asked.license == was.license
    if kind == "accuracy" or reason.endswith("beyond its noise"):
        return _stricter(asked.min_accuracy, was.min_accuracy, up=True)
    if kind == "no accuracy known":
        return asked.min_accuracy is not None
    if kind == "latency":
        least, limit = _figure(reason, "ms"), asked.whole_ms
        return before.same_latency(now) and limit is not None and least is not None and least > factor * limit
    if kind == "throughput":
        most, rate = _figure(reason, "images/s"), asked.min_throughput
        return rate is not None and most is not None and most * factor < rate
    if kind == "memory":
        mib, room = _figure(reason, "MiB"), asked.max_memory_mib
        return room is not None and mib is not None and mib > room
    return won_before and asked.objective == was.objective and before.same_latency(now)


def _stricter(now: float | None, before: float | None, *, up: bool) -> bool:
    return now is not None and before is not None and (now >= before if up else now <= before)


def _figure(reason: str, unit: str) -> float | None:
    match = re.search(rf"(\d+(?:\.\d+)?) {re.escape(unit)}", reason)
    return float(match[1]) if match else None


def lacking(selection: Selection) -> tuple[str, ...]:
    """What was never measured and could change the winner, as one sentence; empty: nothing could."""
    able = [entry for entry in selection.ledger if _could_win(entry, selection)]
    if not able:
        return ()
    names = some_of([entry.variant.name for entry in able])
    were = "was" if len(able) == 1 else "were"
    return (
        f"{names} {were} never measured under this question and could change the answer: "
        "ask again without --from",
    )


def _could_win(entry: LedgerEntry, selection: Selection) -> bool:
    seen, winner = entry.observation, selection.winner
    if (
        entry.status != "not measured"
        or not seen.weights_at_hand
        or not (seen.pruned or "").startswith(NEVER)
    ):
        return False
    matters = selection.requirements.min_accuracy is not None
    if seen.accuracy is None:  # unknown at this size, or not measured on the user's own images
        return not matters or "prob" in (seen.pruned or "")
    if (
        winner is None
        or selection.requirements.objective != "accuracy"
        or winner.observation.accuracy is None
    ):
        return True
    hope = ALLOWANCE_POINTS if seen.accuracy.provenance == "measured" else 0.0
    return seen.accuracy.value + hope >= winner.observation.accuracy.value

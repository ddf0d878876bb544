"""Why each variant has its place, in one to three short sentences."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from vitrail.judge.ranking import CRITERIA, UPWARDS, figure
from vitrail.vocabulary import Objective, Observation, Requirements, Status, Verdict, Workload
from vitrail.words import counted

REASONS = 3
UNITS = {"accuracy": "points of accuracy", "latency": "ms", "throughput": "images/s", "memory": "MiB"}
MOST: dict[Objective, str] = {
    "accuracy": "most accurate",
    "latency": "fastest",
    "throughput": "highest throughput",
    "memory": "smallest",
}


def reasons_of(
    observation: Observation,
    status: Status,
    blocked: Sequence[Verdict],
    ranked: Sequence[Observation],
    tied: Collection[str],
    would_win: bool,
    requirements: Requirements,
    workload: Workload,
) -> tuple[str, ...]:
    """`ranked`: what meets all, the winner first; `tied`: names that the objective cannot tell from it."""
    if status == "reference":
        return ("reference: measured and shown, never shipped",)
    if status == "selected":
        return (_won(ranked, tied, requirements.objective),)
    if status == "meets":
        if observation.variant.name in tied:
            return (_tie(observation, ranked[0], requirements, workload),)
        return (_behind(observation, ranked[0], requirements, workload),)
    if observation.failure is not None:
        return (observation.failure,)
    if status == "not measured":
        return (_why_not_measured(observation),)
    lines = [_line(verdict) for verdict in blocked if verdict.answer == "fail"]
    if not observation.weights_at_hand:
        lines.append("would win if its weights were at hand" if would_win else "its weights are not at hand")
    if status != "rejected":
        missing_weights = not observation.weights_at_hand
        lines += [_line(v) for v in blocked if not (missing_weights and v.requirement == "parity")]
    return _advised_once(tuple(dict.fromkeys(lines))[:REASONS])


def _advised_once(lines: tuple[str, ...]) -> tuple[str, ...]:
    """What more time would decide is advised once, at the end, and not beside each verdict."""
    bare = tuple(_BUDGET.sub("", line) for line in lines)
    return bare if bare == lines else (*bare[:-1], f"{bare[-1]} → needs a longer --budget")


_BUDGET = re.compile(r"[:;] raise --budget( for more calls)?$")


def _why_not_measured(observation: Observation) -> str:
    why = observation.pruned or "no figure was taken"
    return why if observation.weights_at_hand else f"{why}; its weights are not at hand"


def _line(verdict: Verdict) -> str:
    return verdict.reason if verdict.admit is None else f"{verdict.reason} → needs {verdict.admit}"


def _won(ranked: Sequence[Observation], tied: Collection[str], objective: Objective) -> str:
    if len(ranked) == 1:
        return "the only one that meets all"
    if not tied:
        return f"{MOST[objective]} of {len(ranked)} that meet all"
    others = counted(len(tied), "other")
    return f"{MOST[objective]} of {len(ranked)} that meet all, in a tie with {others}: {_RULE[objective]}"


_RULE: dict[Objective, str] = {
    "accuracy": "the higher figure was taken",
    "latency": "the more accurate was taken",
    "throughput": "the more accurate was taken",
    "memory": "the more accurate was taken",
}


def _tie(
    observation: Observation, winner: Observation, requirements: Requirements, workload: Workload
) -> str:
    objective = requirements.objective
    text = f"meets all, a tie with the winner in {objective}"
    for criterion in CRITERIA[objective]:
        if criterion == objective and objective != "accuracy":
            continue
        if (behind := _difference(observation, winner, criterion, workload)) > 0:
            return f"{text}: {_amount(behind, criterion)}"
    return f"{text}: equal in all, the name decides"


def _behind(
    observation: Observation, winner: Observation, requirements: Requirements, workload: Workload
) -> str:
    """By how much a variant that meets all lost, in the first criterion in which it is worse."""
    for criterion in CRITERIA[requirements.objective]:
        if (behind := _difference(observation, winner, criterion, workload)) > 0:
            return f"meets all, {_amount(behind, criterion)} than the winner"
    return "meets all, equal to the winner: the name decides"


def _difference(observation: Observation, winner: Observation, criterion: str, workload: Workload) -> float:
    own, best = figure(observation, criterion, workload), figure(winner, criterion, workload)
    if own is None or best is None:
        return 0.0
    return best - own if criterion in UPWARDS else own - best


def _amount(behind: float, criterion: str) -> str:
    return f"{behind:.3g} {UNITS[criterion]} {'less' if criterion in UPWARDS else 'more'}"

"""Why each variant is where it is in the ledger, in one to three short sentences."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from vitrail.judge.ranking import CRITERIA, UPWARDS, adds, figure
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
        return (_won(ranked, tied, requirements.objective, workload),)
    if status == "meets":
        if observation.variant.name in tied:
            return (_tie(observation, ranked[0], requirements, workload),)
        return (_behind(observation, ranked[0], requirements, workload),)
    if observation.failure is not None:
        return (observation.failure,)
    if status == "not measured":
        return (_why_not_measured(observation),)
    failed = [verdict for verdict in blocked if verdict.answer == "fail"]
    # What several of them need is one option, which stands with the last.
    said_later = [verdict.admit in (v.admit for v in failed[i + 1 :]) for i, verdict in enumerate(failed)]
    lines = [v.reason if later else _line(v) for v, later in zip(failed, said_later, strict=True)]
    if not observation.weights_at_hand:
        lines.append("would win if its weights were at hand" if would_win else "its weights are not at hand")
    if status != "rejected":
        missing_weights = not observation.weights_at_hand
        lines += [_line(v) for v in blocked if not (missing_weights and v.requirement == "parity")]
    return _advised_once(tuple(dict.fromkeys(lines))[:REASONS], advise=observation.weights_at_hand)


def _advised_once(lines: tuple[str, ...], *, advise: bool) -> tuple[str, ...]:
    """Advise more time once, at the end, rather than with each verdict.

    Not at all where weights are missing: no budget provides them.
    """
    bare = tuple(_BUDGET.sub("", line) for line in lines)
    return bare if bare == lines or not advise else (*bare[:-1], f"{bare[-1]} → needs a longer --budget")


_BUDGET = re.compile(r"[:;] raise --budget( for more calls)?$")


def _why_not_measured(observation: Observation) -> str:
    why, lacks = observation.pruned or "no figure was taken", "its weights are not at hand"
    return why if observation.weights_at_hand or lacks in why else f"{why}; {lacks}"


def _line(verdict: Verdict) -> str:
    return verdict.reason if verdict.admit is None else f"{verdict.reason} → needs {verdict.admit}"


def _won(
    ranked: Sequence[Observation], tied: Collection[str], objective: Objective, workload: Workload
) -> str:
    if len(ranked) == 1:
        return "the only one that meets all"
    if not tied:
        return f"{MOST[objective]} of {len(ranked)} that meet all"
    others = [each for each in ranked if each.variant.name in tied]
    criteria = [_decided_by(each, ranked[0], objective, workload) for each in others]
    taken = " or ".join(dict.fromkeys(_TAKEN[criterion] for criterion in criteria))
    of = f"{MOST[objective]} of {len(ranked)} that meet all"
    return f"{of}, in a tie with {counted(len(others), 'other')}: {taken} was taken"


PLAIN = "plainness"

_TAKEN = {
    "accuracy": "the more accurate",
    "latency": "the faster",
    "throughput": "the one with more images/s",
    "memory": "the one with less memory",
    "name": "the first by name",
    PLAIN: "the one without what does not pay",
}


def _decided_by(
    observation: Observation, winner: Observation, objective: Objective, workload: Workload
) -> str:
    """The criterion in which the winner is ahead of one that ties with it; `name` if there is none, `PLAIN`
    if the other one only has more passes or settings.

    The objective cannot separate them, unless it is accuracy: then the figures differ, perhaps by chance.
    If they are equal, latency could not separate them either.
    """
    if objective != "memory" and adds(observation.variant, winner.variant):
        return PLAIN
    for criterion in CRITERIA[objective]:
        apart = criterion != "latency" if objective == "accuracy" else criterion != objective
        if apart and _difference(observation, winner, criterion, workload) > 0:
            return criterion
    return "name"


def _tie(
    observation: Observation, winner: Observation, requirements: Requirements, workload: Workload
) -> str:
    objective = requirements.objective
    text = f"meets all, a tie with the winner in {objective}"
    criterion = _decided_by(observation, winner, objective, workload)
    if criterion == PLAIN:
        return f"{text}: its passes or settings do not pay"
    if criterion == "name":
        return f"{text}: equal in all, the name decides"
    return f"{text}: {_amount(_difference(observation, winner, criterion, workload), criterion)}"


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

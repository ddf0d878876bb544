"""Measurements x requirements -> verdicts, ledger, Selection. Pure: the same input gives the same answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from vitrail.errors import InputError
from vitrail.judge.answers import latency_figures, likely, verdicts
from vitrail.judge.evidence import (
    ALLOWANCE_POINTS,
    accuracy,
    accuracy_before_measuring,
    as_if_at_hand,
    observe,
    throughput,
)
from vitrail.judge.ranking import CRITERIA, UPWARDS, distance, figure, front, miss, rank, told_apart
from vitrail.measure import latency
from vitrail.vocabulary import (
    LedgerEntry,
    Observation,
    Requirements,
    Selection,
    Status,
    Verdict,
    Workload,
)

__all__ = [
    "ALLOWANCE_POINTS",
    "accuracy",
    "accuracy_before_measuring",
    "as_if_at_hand",
    "distance",
    "judge",
    "latency_figures",
    "observe",
    "rank",
    "throughput",
    "told_apart",
    "verdicts",
]

NEAREST = 3
REASONS = 3
UNITS = {"accuracy": "points of accuracy", "latency": "ms", "throughput": "images/s", "memory": "MiB"}
MOST = {
    "accuracy": "most accurate",
    "latency": "fastest",
    "throughput": "highest throughput",
    "memory": "smallest",
}
ORDER: dict[Status, int] = {"selected": 0, "feasible": 1, "undecided": 2, "rejected": 3, "reference": 4}


def judge(
    observations: Iterable[Observation],
    requirements: Requirements,
    workload: Workload,
    *,
    hardware: Mapping[str, object],
    shipping: bool = True,
    seconds: float = 0.0,
    created: str = "",
    notes: Sequence[str] = (),
    method: Mapping[str, object] | None = None,
) -> Selection:
    """Choose among what was observed, and say of every variant why it won or lost.

    `shipping=False` (recorded figures: it decides, nothing ships): a parity that is not assessed and a
    license that is not stated are reported but do not stand in the way.

    Raises:
        InputError: measurements of different environments, or two observations of one variant.
    """
    observations = sorted(
        (_asked(each, workload) for each in observations), key=lambda each: each.variant.name
    )
    _refuse_mixtures(observations)
    judged = {each.variant.name: verdicts(each, requirements, workload) for each in observations}
    blocking = {
        each.variant.name: _blocking(each, judged[each.variant.name], shipping=shipping)
        for each in observations
    }
    _demand_the_objective(observations, blocking, requirements, workload)
    status = {
        name: _status(each, judged[name], blocking[name])
        for each in observations
        if (name := each.variant.name)
    }
    feasible = [each for each in observations if status[each.variant.name] == "feasible"]
    hopeful = [
        each for each in observations if _only_lacks_weights(each, blocking[each.variant.name], workload)
    ]
    ranked = rank(feasible, requirements.objective, workload)
    winner = ranked[0] if ranked else None
    if winner is not None:
        status[winner.variant.name] = "selected"
    first = rank([*feasible, *hopeful], requirements.objective, workload)[:1]
    would_win = first[0].variant.name if first and first[0] is not winner else None
    entries = []
    for each in observations:
        name = each.variant.name
        reasons = _reasons(
            each, status[name], blocking[name], winner, len(ranked), name == would_win, requirements, workload
        )
        entries.append(
            LedgerEntry(
                observation=each,
                status=status[name],
                verdicts=judged[name],
                reasons=reasons,
                would_win=name == would_win,
            )
        )
    place = {each.variant.name: index for index, each in enumerate(ranked)}
    entries.sort(key=lambda e: (ORDER[e.status], place.get(e.variant.name, 0), _miss_key(e), e.variant.name))
    return Selection(
        requirements=requirements,
        workload=workload,
        hardware=dict(hardware),
        ledger=tuple(entries),
        selected=winner.variant.name if winner else None,
        front=front([e.observation for e in entries if _could_ship(e)], workload),
        nearest=() if winner else _nearest(entries),
        seconds=seconds,
        created=created,
        notes=tuple(notes),
        method=dict(method or {}),
    )


def _asked(observation: Observation, workload: Workload) -> Observation:
    """The observation with figures at the asked percentile, taken from its calls if it has them."""
    measurement = observation.measurement
    if measurement is None or measurement.workload.percentile == workload.percentile:
        return observation
    at = workload.percentile
    return replace(
        observation,
        request=latency.figures(measurement.blocks, "request", at),
        model=latency.figures(measurement.blocks, "model", at),
    )


def _refuse_mixtures(observations: Sequence[Observation]) -> None:
    names = [each.variant.name for each in observations]
    if twice := next((a for a, b in pairwise(names) if a == b), None):
        raise InputError(f"{twice} was given twice: keep one record of each variant.")
    places = {
        (where.hardware, where.vitrail, where.photos)
        for each in observations
        if (where := each.measurement.environment if each.measurement else each.environment) is not None
    }
    if len(places) > 1:
        raise InputError(
            "The figures come from different environments (machine, method or photos): measure all in one."
        )


# --- status ---------------------------------------------------------------------------------------


def _blocking(observation: Observation, own: Sequence[Verdict], *, shipping: bool) -> list[Verdict]:
    """The verdicts that keep the variant from winning, fails first."""
    unstated = () if shipping else ("parity", "license")
    blocks = [
        verdict
        for verdict in own
        if verdict.answer != "pass"
        and not (verdict.answer == "not assessed" and verdict.requirement in unstated)
    ]
    if not observation.confirmed and observation.weights_at_hand and _measured(observation):
        reason = "screened in one launch, no finals: raise --budget if it should win"
        blocks.append(
            Verdict(
                requirement="finals",
                answer="undecided",
                observed=None,
                limit=None,
                margin=None,
                reason=reason,
            )
        )
    order = ("fail", "undecided", "not assessed")
    return sorted(blocks, key=lambda verdict: order.index(verdict.answer))


def _demand_the_objective(
    observations: Sequence[Observation],
    blocking: Mapping[str, list[Verdict]],
    requirements: Requirements,
    workload: Workload,
) -> None:
    """Block who has no figure for the objective, if somebody who could win has one; else the next criterion
    ranks. Who could not win anyway has no say: leaving it out must not change the winner."""
    objective = requirements.objective
    figures = {each.variant.name: figure(each, objective, workload) for each in observations}
    able = [e for e in observations if _status(e, (), blocking[e.variant.name]) == "feasible"]
    if all(figures[each.variant.name] is None for each in able):
        return
    reason = f"{objective} not assessed: no figure to rank by"
    for name, found in figures.items():
        if found is None and not any(objective in verdict.requirement for verdict in blocking[name]):
            blocking[name].append(
                Verdict(
                    requirement=objective,
                    answer="not assessed",
                    observed=None,
                    limit=None,
                    margin=None,
                    reason=reason,
                )
            )


def _status(observation: Observation, own: Sequence[Verdict], blocking: Sequence[Verdict]) -> Status:
    if observation.variant.reference:
        return "reference"
    if observation.failure is not None or (observation.pruned is not None and not _measured(observation)):
        return "rejected"
    if any(verdict.answer == "fail" for verdict in own):
        return "rejected"
    return "undecided" if blocking or not observation.weights_at_hand else "feasible"


def _measured(observation: Observation) -> bool:
    return observation.request is not None or observation.model is not None


def _only_lacks_weights(observation: Observation, blocking: Sequence[Verdict], workload: Workload) -> bool:
    """Whether weights at hand, and then parity and the finals, are all that is missing."""
    if observation.weights_at_hand or observation.variant.reference or observation.failure is not None:
        return False
    return all(
        (v.requirement == "parity" and v.answer == "not assessed") or likely(observation, v, workload)
        for v in blocking
    )


def _could_ship(entry: LedgerEntry) -> bool:
    seen = entry.observation
    refuted = any(v.requirement == "parity" and v.answer == "fail" for v in entry.verdicts)
    return entry.status != "reference" and seen.failure is None and seen.weights_at_hand and not refuted


def _miss_key(entry: LedgerEntry) -> tuple[float, float]:
    return miss(entry.verdicts) or (float("inf"), float("inf"))


def _nearest(entries: Sequence[LedgerEntry]) -> tuple[str, ...]:
    """Names of the variants with the smallest total relative miss, best first."""
    misses = [
        (total, e.variant.name) for e in entries if _could_ship(e) and (total := miss(e.verdicts)) is not None
    ]
    return tuple(name for _, name in sorted(misses)[:NEAREST])


# --- reasons --------------------------------------------------------------------------------------


def _reasons(
    observation: Observation,
    status: Status,
    blocking: Sequence[Verdict],
    winner: Observation | None,
    feasible: int,
    would_win: bool,
    requirements: Requirements,
    workload: Workload,
) -> tuple[str, ...]:
    """One to three short sentences."""
    if status == "reference":
        return ("reference: measured and shown, never shipped",)
    if status == "selected":
        others = (
            f"of {feasible} that hold all requirements" if feasible > 1 else "the only one that holds all"
        )
        return (f"{MOST[requirements.objective]} {others}" if feasible > 1 else others,)
    if status == "feasible":
        assert winner is not None
        return (_behind(observation, winner, requirements, workload),)
    if observation.failure is not None:
        return (observation.failure,)
    lines = [_line(verdict) for verdict in blocking if verdict.answer == "fail"]
    if not observation.weights_at_hand:
        lines.append("would win if its weights were at hand" if would_win else "its weights are not at hand")
    if status == "rejected" and observation.pruned is not None and not lines:
        return (observation.pruned,)
    if status != "rejected":
        missing_weights = not observation.weights_at_hand
        lines += [_line(v) for v in blocking if not (missing_weights and v.requirement == "parity")]
    return tuple(dict.fromkeys(lines))[:REASONS]


def _line(verdict: Verdict) -> str:
    return verdict.reason if verdict.admit is None else f"{verdict.reason} → needs {verdict.admit}"


def _behind(
    observation: Observation, winner: Observation, requirements: Requirements, workload: Workload
) -> str:
    """By how much a feasible variant lost, in the first criterion in which it is worse."""
    for criterion in CRITERIA[requirements.objective]:
        own, best = figure(observation, criterion, workload), figure(winner, criterion, workload)
        if own is None or best is None:
            continue
        behind = best - own if criterion in UPWARDS else own - best
        if behind > 0:
            sign = "less" if criterion in UPWARDS else "more"
            return f"holds all, {behind:.3g} {UNITS[criterion]} {sign} than the winner"
    return "holds all, equal to the winner: the name decides"

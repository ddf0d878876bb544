"""Measurements x requirements -> verdicts, ledger, Selection. Pure: the same input gives the same answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from vitrail.errors import InputError
from vitrail.judge.answers import latency_at, latency_figures, verdicts
from vitrail.judge.evidence import (
    ALLOWANCE_POINTS,
    accuracy,
    accuracy_before_measuring,
    as_if_at_hand,
    observe,
    stages_of,
    throughput,
)
from vitrail.judge.ranking import distance, distinguishable, front, rank, ties, within_uncertainty
from vitrail.judge.reasons import reasons_of
from vitrail.judge.reopening import Question, lacking, reopen
from vitrail.judge.standing import (
    blocking,
    could_ship,
    demand_the_objective,
    miss_key,
    nearest,
    only_lacks_weights,
    provisional,
    status_of,
)
from vitrail.measure import latency
from vitrail.vocabulary import (
    LedgerEntry,
    Observation,
    Requirements,
    Selection,
    Status,
    Workload,
)

__all__ = [
    "ALLOWANCE_POINTS",
    "Question",
    "accuracy",
    "accuracy_before_measuring",
    "as_if_at_hand",
    "distance",
    "distinguishable",
    "judge",
    "lacking",
    "latency_at",
    "latency_figures",
    "observe",
    "rank",
    "reopen",
    "throughput",
    "verdicts",
    "within_uncertainty",
]

ORDER: tuple[Status, ...] = ("selected", "meets", "undecided", "not measured", "rejected", "reference")


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
    """Choose among the observed variants, and say why each one won or lost.

    `shipping=False` (recorded figures: a decision, but nothing ships): a parity that is not assessed and a
    license that is not stated are reported but do not block a variant.

    Raises:
        InputError: measurements of different environments, or two observations of one variant.
    """
    observations = sorted(
        (_at_percentile(each, workload) for each in observations), key=lambda each: each.variant.name
    )
    _refuse_mixtures(observations)
    judged = {each.variant.name: verdicts(each, requirements, workload) for each in observations}
    blocked = {
        each.variant.name: blocking(each, judged[each.variant.name], shipping=shipping)
        for each in observations
    }
    demand_the_objective(observations, blocked, requirements, workload)
    status = {each.variant.name: status_of(each, blocked[each.variant.name]) for each in observations}
    able = [each for each in observations if status[each.variant.name] == "meets"]
    hopeful = [each for each in observations if only_lacks_weights(each, blocked[each.variant.name])]
    ranked = rank(able, requirements.objective, workload)
    winner = ranked[0] if ranked else None
    if winner is not None:
        status[winner.variant.name] = "selected"
    first = rank([*able, *hopeful], requirements.objective, workload)[:1]
    would_win = first[0].variant.name if first and first[0] is not winner else None
    tied = ties(ranked, requirements.objective, workload)
    entries = [
        LedgerEntry(
            observation=each,
            status=status[name],
            verdicts=judged[name],
            reasons=reasons_of(
                each, status[name], blocked[name], ranked, tied, name == would_win, requirements, workload
            ),
            would_win=name == would_win,
            tie=name in tied,
        )
        for each in observations
        if (name := each.variant.name)
    ]
    place = {each.variant.name: index for index, each in enumerate(ranked)}
    entries.sort(
        key=lambda e: (ORDER.index(e.status), place.get(e.variant.name, 0), miss_key(e), e.variant.name)
    )
    leader = None if winner else provisional(observations, requirements, workload)
    return Selection(
        requirements=requirements,
        workload=workload,
        hardware=dict(hardware),
        ledger=tuple(entries),
        selected=winner.variant.name if winner else None,
        front=front([e.observation for e in entries if could_ship(e)], workload),
        nearest=() if winner else nearest(entries),
        provisional=leader.variant.name if leader else None,
        seconds=seconds,
        created=created,
        notes=tuple(notes),
        method=dict(method or {}),
    )


def _at_percentile(observation: Observation, workload: Workload) -> Observation:
    """The observation with figures at the workload's percentile, computed from its calls if it has them."""
    measurement = observation.measurement
    if measurement is None or measurement.workload.percentile == workload.percentile:
        return observation
    at = workload.percentile
    figures = latency.by_stage(measurement.blocks, at, stages_of(observation.variant))
    return replace(observation, latency=figures)


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

"""What follows from a variant's verdicts: its status, whether it could ship, would win, or leads for now."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from vitrail.judge.answers import verdicts
from vitrail.judge.evidence import accuracy_before_measuring
from vitrail.judge.ranking import figure, miss, rank
from vitrail.vocabulary import LedgerEntry, Observation, Requirements, Status, Verdict, Workload

NEAREST = 3


def blocking(observation: Observation, own: Sequence[Verdict], *, shipping: bool) -> list[Verdict]:
    """The verdicts that keep the variant from winning, fails first."""
    unstated = () if shipping else ("parity", "license")
    blocks = [
        verdict
        for verdict in own
        if verdict.answer != "pass"
        and not (verdict.answer == "not assessed" and verdict.requirement in unstated)
    ]
    if not observation.confirmed and observation.weights_at_hand and timed(observation):
        taken = observation.measurement
        if taken is None or len({block.launch for block in taken.blocks}) == 1:
            blocks.append(_open("finals", "undecided", "screened in one launch, no finals: raise --budget"))
        elif not any(verdict.answer == "undecided" for verdict in blocks):  # which would be the reason
            blocks.append(_open("finals", "undecided", "not confirmed in a new launch: raise --budget"))
    order = ("fail", "undecided", "not assessed")
    return sorted(blocks, key=lambda verdict: order.index(verdict.answer))


def demand_the_objective(
    observations: Sequence[Observation],
    blocked: Mapping[str, list[Verdict]],
    requirements: Requirements,
    workload: Workload,
) -> None:
    """Block variants without a figure for the objective if one that could win has it; otherwise the next
    criterion ranks. A variant that cannot win has no influence: leaving it out must not change the winner."""
    objective = requirements.objective
    figures = {each.variant.name: figure(each, objective, workload) for each in observations}
    able = [e for e in observations if status_of(e, blocked[e.variant.name]) == "meets"]
    if all(figures[each.variant.name] is None for each in able):
        return
    reason = f"{objective} not assessed: no figure to rank by"
    for name, value in figures.items():
        if value is None and not any(objective in verdict.requirement for verdict in blocked[name]):
            blocked[name].append(_open(objective, "not assessed", reason))


def status_of(observation: Observation, blocked: Sequence[Verdict]) -> Status:
    """The variant's status, before the winner is chosen from those that meet all limits."""
    if observation.variant.reference:
        return "reference"
    if observation.failure is not None or any(verdict.answer == "fail" for verdict in blocked):
        return "rejected"
    if never_measured(observation) and (blocked or observation.pruned is not None):
        return "not measured"
    return "undecided" if blocked or not observation.weights_at_hand else "meets"


def timed(observation: Observation) -> bool:
    """Whether there is a latency of any stage."""
    return bool(observation.latency)


def never_measured(observation: Observation) -> bool:
    """Whether nothing at all was observed of the variant; published facts are not observations."""
    seen = (observation.memory, observation.throughput, observation.parity, observation.quality)
    return not timed(observation) and all(each is None for each in seen) and observation.failure is None


def only_lacks_weights(observation: Observation, blocked: Sequence[Verdict]) -> bool:
    """Whether only weights at hand, and then parity, are missing: every other verdict is a pass."""
    if observation.weights_at_hand or observation.variant.reference or observation.failure is not None:
        return False
    return timed(observation) and all(
        verdict.requirement == "parity" and verdict.answer == "not assessed" for verdict in blocked
    )


def provisional(
    observations: Iterable[Observation], requirements: Requirements, workload: Workload
) -> Observation | None:
    """The best by the objective that may still turn out to meet all limits; None: nothing leads.

    Its weights are at hand, it was measured, no verdict fails, and none lacks a fact. What more launches
    would settle may be undecided if the figure itself meets the limit. Parity may be open if no photo was
    compared yet; a lower precision then counts with the highest accuracy that it may keep.
    """
    leading = []
    for each in observations:
        if each.variant.reference or each.failure or not each.weights_at_hand or not timed(each):
            continue
        compared = each.parity is not None
        if each.accuracy is None and not compared:
            each = replace(each, accuracy=accuracy_before_measuring(each.variant))
        if figure(each, requirements.objective, workload) is None and requirements.objective != "accuracy":
            continue
        if all(_still_open(v, compared) for v in verdicts(each, requirements, workload)):
            leading.append(each)
    known = [each for each in leading if figure(each, requirements.objective, workload) is not None]
    ranked = rank(known or leading, requirements.objective, workload)
    return ranked[0] if ranked else None


def _still_open(verdict: Verdict, compared: bool) -> bool:
    if verdict.answer == "pass":
        return True
    if verdict.requirement == "parity":
        return verdict.answer == "not assessed" and not compared
    return verdict.answer == "undecided" and verdict.margin is not None and verdict.margin >= 0


def could_ship(entry: LedgerEntry) -> bool:
    """Whether nothing but limits keeps the variant from shipping."""
    seen = entry.observation
    refuted = any(v.requirement == "parity" and v.answer == "fail" for v in entry.verdicts)
    return entry.status != "reference" and seen.failure is None and seen.weights_at_hand and not refuted


def miss_key(entry: LedgerEntry) -> tuple[float, float]:
    """Sort key: the smallest miss first, unknown ones last."""
    return miss(entry.verdicts) or (float("inf"), float("inf"))


def nearest(entries: Sequence[LedgerEntry]) -> tuple[str, ...]:
    """Names of the variants with the smallest total relative miss, best first."""
    misses = [
        (total, e.variant.name) for e in entries if could_ship(e) and (total := miss(e.verdicts)) is not None
    ]
    return tuple(name for _, name in sorted(misses)[:NEAREST])


def _open(requirement: str, answer: str, reason: str) -> Verdict:
    assert answer in ("undecided", "not assessed")
    return Verdict(
        requirement=requirement,
        answer="undecided" if answer == "undecided" else "not assessed",
        observed=None,
        limit=None,
        margin=None,
        reason=reason,
    )

"""Which of several variants is better: the order under an objective, the Pareto front, the nearest misses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from vitrail import stats
from vitrail.judge.answers import latency_figures, throughput_figure
from vitrail.vocabulary import Objective, Observation, Variant, Verdict, Workload

CRITERIA: dict[Objective, tuple[str, ...]] = {
    "accuracy": ("accuracy", "latency", "memory"),
    "latency": ("latency", "accuracy", "memory"),
    "throughput": ("throughput", "accuracy", "latency", "memory"),
    "memory": ("memory", "accuracy", "latency"),
}
UPWARDS = ("accuracy", "throughput")
LICENSE_MISS = 1.0
"""A license that is not admitted counts as missing a limit by 100 %."""


def figure(observation: Observation, criterion: str, workload: Workload) -> float | None:
    """The value of one criterion: accuracy in %, latency in ms, throughput in images/s, memory in MiB."""
    if criterion == "accuracy":
        return observation.accuracy.value if observation.accuracy else None
    if criterion == "memory":
        return observation.memory.peak if observation.memory else None
    if criterion == "throughput":
        return throughput_figure(observation, workload)
    figures = latency_figures(observation, workload)
    return figures.judged.value if figures else None


def rank(observations: Iterable[Observation], objective: Objective, workload: Workload) -> list[Observation]:
    """Best first. Ties in one criterion are broken by the next one, and finally by name.

    In latency and throughput, variants that cannot be distinguished from the best of those left are equal to
    it; of equals that differ by passes or settings alone, the one without is better. A missing figure is
    worse than any.
    """
    left = sorted(observations, key=lambda each: each.variant.name)
    ordered = []
    while left:
        group = left
        for criterion in CRITERIA[objective]:
            group = _best(group, criterion, workload)
            if criterion in ("latency", "throughput"):
                group = _plainest(group)
        ordered.append(group[0])
        left = [each for each in left if each is not group[0]]
    return ordered


def _best(group: list[Observation], criterion: str, workload: Workload) -> list[Observation]:
    """The members equal to the best in one criterion, in their order."""
    known = [(value, each) for each in group if (value := figure(each, criterion, workload)) is not None]
    if len(group) == 1 or not known:
        return group
    pick = max if criterion in UPWARDS else min
    best_value, best = pick(known, key=lambda pair: pair[0])
    if criterion in ("accuracy", "memory"):
        return [each for value, each in known if value == best_value]
    return [
        each
        for value, each in known
        if value == best_value or not distinguishable(best, each, value, best_value, workload, criterion)
    ]


def _plainest(group: list[Observation]) -> list[Observation]:
    """Without those that only add passes or settings to another member: what does not pay is left out."""
    return [
        each
        for each in group
        if not any(adds(each.variant, other.variant) for other in group if other is not each)
    ]


def adds(variant: Variant, plain: Variant) -> bool:
    """Whether it is `plain` with more passes or settings."""
    more = {*variant.passes, *variant.settings}
    less = {*plain.passes, *plain.settings}
    return less < more and replace(variant, passes=plain.passes, settings=plain.settings) == plain


def ties(ranked: Sequence[Observation], objective: Objective, workload: Workload) -> frozenset[str]:
    """Names, other than the winner's, that the objective cannot distinguish from the best of `ranked`.

    By accuracy, figures measured on images may be within each other's uncertainty; equal figures tie where
    latency, which decides between them, cannot distinguish them either.
    """
    if not ranked:
        return frozenset()
    winner = ranked[0]
    group = list(ranked)
    if objective != "accuracy":
        group = _best(group, CRITERIA[objective][0], workload)
        if objective == "memory":
            group = _best(group, "accuracy", workload)
    else:
        equal = [each for each in group if figure(each, "accuracy", workload) == _value(winner)]
        group = [each for each in group if within_uncertainty(winner, each)]
        group += [each for each in _best(equal, "latency", workload) if each not in group]
    return frozenset(each.variant.name for each in group) - {winner.variant.name}


def _value(observation: Observation) -> float | None:
    return observation.accuracy.value if observation.accuracy else None


def within_uncertainty(best: Observation, other: Observation) -> bool:
    """Whether two unequal accuracies, both measured on images, may be equal at 95 %: as proportions if they
    are shares of images, else by their intervals."""
    one, two = best.accuracy, other.accuracy
    if one is None or two is None or one.value == two.value:
        return False
    if not (one.images and two.images and one.provenance == two.provenance == "measured"):
        return False
    if not all(each.quality is None or each.quality.main.share for each in (best, other)):
        return bool(one.interval and two.interval and one.interval[0] <= two.interval[1])
    return stats.proportions_overlap(one.value / 100, one.images, two.value / 100, two.images)


def distinguishable(
    best: Observation,
    other: Observation,
    value: float,
    best_value: float,
    workload: Workload,
    criterion: str = "latency",
) -> bool:
    """Whether the evidence shows that two latencies (or throughputs) differ; bare numbers differ if unequal.

    The paired medians alone are not enough: the figure used for ranking must differ too, so neither of the
    two may lie in the other's interval.
    """
    intervals = [_interval(each, workload, criterion) for each in (best, other)]
    known = [each for each in intervals if each is not None]
    if len(known) == 2:
        (low, high), (other_low, other_high) = known
        if high < other_low or other_high < low:
            return True
    if best.measurement is not None and other.measurement is not None:
        blocks = [
            [b for b in each.measurement.blocks if b.scope == workload.latency_scope]
            for each in (best, other)
            if each.measurement is not None
        ]
        inside = [
            edges[0] <= figure <= edges[1]
            for edges, figure in zip(intervals, (value, best_value), strict=True)
            if edges is not None
        ]
        if any(inside):
            return False
        ratio = stats.ratio_interval(blocks[0], blocks[1])
        return bool((ratio is not None and ratio.differs) or stats.medians_differ(blocks[0], blocks[1]))
    return len(known) < 2 and best.measurement is None and other.measurement is None and value != best_value


def _interval(observation: Observation, workload: Workload, criterion: str) -> tuple[float, float] | None:
    """The interval of the figure used for ranking: the judged percentile's, or that of images/s."""
    if criterion == "throughput":
        if observation.measurement is None:
            return None
        blocks = [b for b in observation.measurement.blocks if b.scope == workload.latency_scope]
        mean = stats.mean_latency_interval(blocks)
        at_once = 1e3 * stats.images_at_once(blocks, workload.batch_size)
        return None if mean is None else (at_once / mean[2], at_once / mean[1])
    figures = latency_figures(observation, workload)
    return figures.judged.interval if figures else None


def distance(observation: Observation, top: Observation, objective: Objective) -> float | None:
    """How far behind `top`, as a ratio >= 1 or slightly below; None: too different to tie, or not known.

    The measured scope's medians stand in for latency and throughput. By accuracy only equal figures can
    tie, and then latency decides.
    """
    if objective == "memory":
        own, best = observation.memory, top.memory
        return own.peak / best.peak if own and best else None
    if objective == "accuracy" and (
        observation.accuracy is None
        or top.accuracy is None
        or observation.accuracy.value != top.accuracy.value
    ):
        return None
    own_ms, best_ms = _median(observation), _median(top)
    return own_ms / best_ms if own_ms and best_ms else None


def _median(observation: Observation) -> float | None:
    measurement = observation.measurement
    scope = measurement.workload.latency_scope if measurement else "request"
    figures = observation.latency.get(scope)
    return figures.p50 if figures else None


def front(observations: Sequence[Observation], workload: Workload) -> tuple[str, ...]:
    """Names that no other beats in accuracy, judged latency and memory at once, fastest first.

    Variants without accuracy or latency are left out; an unknown memory counts as infinite.
    """
    points = []
    for each in observations:
        accuracy, latency, memory = (figure(each, name, workload) for name in CRITERIA["accuracy"])
        if accuracy is not None and latency is not None:
            cost = (latency, -accuracy, float("inf") if memory is None else memory)
            points.append((cost, each.variant.name))
    return tuple(
        name
        for cost, name in sorted(points)
        if not any(
            other != cost and all(o <= c for o, c in zip(other, cost, strict=True)) for other, _ in points
        )
    )


def miss(verdicts: Iterable[Verdict]) -> tuple[int, float] | None:
    """(limits not assessed, total relative miss of the others); None: parity fails, nothing is known."""
    total, unknown, known = 0.0, 0, 0
    for verdict in verdicts:
        if verdict.requirement == "parity":
            if verdict.answer == "fail":
                return None
        elif verdict.requirement == "license":
            total += LICENSE_MISS if verdict.answer == "fail" else 0.0
        elif verdict.margin is None or not isinstance(verdict.limit, (int, float)):
            unknown += 1
        else:
            known += 1
            if verdict.answer != "pass":
                total += max(0.0, -verdict.margin / verdict.limit) if verdict.limit else 1.0
    return (unknown, total) if known else None

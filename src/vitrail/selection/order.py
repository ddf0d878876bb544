"""What to measure first, and what can no longer win: predictions order, floors prune.

A prediction is the variant's work (its arithmetic at the engine's peak plus the bytes it moves) times the
ratio of measured latency to work seen so far for its family, else for its engine. It only orders. What
rejects is a floor: the arithmetic at the peak; the work at the best ratio that a relative of
similar size reached; what the same model took on an engine with a higher peak. A variant is
still believed to be `SAFETY` times faster than that.
"""

from __future__ import annotations

from collections import defaultdict
from statistics import median

from vitrail.selection.prune import (
    Peaks,
    accuracy_bound,
    accuracy_ceiling,
    floor_ms,
    macs,
    memory_floor_mib,
)
from vitrail.vocabulary import Observation, Requirements, Variant, Workload

PRIOR_RATIO = 2.0
"""Latency over floor before anything was measured; big transformers sit at 1.2, small CNNs far above."""

BYTES_PER_MS = 6e6
"""Bytes an engine writes per ms, for the activations' part of the prediction (about 6 GB/s)."""

FIT = 1.25
"""A prediction up to this multiple of the limit counts as likely to fit."""

SAFETY = 2.0
"""How much faster than its floor a variant is still believed to be able to run."""

RELATED = 4.0
"""Up to this ratio of work, one member of a family tells of another: ratios fall as models grow."""


class LatencyModel:
    """Predicts and bounds the model-scope latency of variants from the ones measured so far."""

    def __init__(self, workload: Workload, peaks: Peaks) -> None:
        self._workload = workload
        self.batch_size = workload.batch_size
        self._peaks = peaks
        self._by_family: dict[tuple[str, str, str], list[tuple[float, float]]] = defaultdict(list)
        """(work, ratio) of the members measured, by family, runtime and precision."""
        self._by_engine: dict[tuple[str, str], list[float]] = defaultdict(list)
        self._of_candidate: dict[tuple[str, str, int], list[tuple[float, float]]] = defaultdict(list)
        """(engine's peak, latency) of a candidate's variants, by `_code_of`."""
        self._closest: dict[tuple[str, str], float] = {}
        self._beside_percentile = self._beside_mean = float("inf")
        """The least that these figures lay above the model's median: decoding, preparing, the tail."""

    def observe(self, variant: Variant, latency_ms: float, *, judged_ms: float, mean_ms: float) -> None:
        """Learn from a measured median of the model scope, and the judged scope's percentile and mean."""
        self._beside_percentile = min(self._beside_percentile, max(judged_ms - latency_ms, 0.0))
        self._beside_mean = min(self._beside_mean, max(mean_ms - latency_ms, 0.0))
        engine, work = (variant.runtime, variant.precision), self._work_ms(variant)
        self._by_family[(variant.candidate.family, *engine)].append((work, latency_ms / work))
        self._by_engine[engine].append(latency_ms / work)
        self._of_candidate[_code_of(variant)].append((self._peak(variant), latency_ms))
        floor = floor_ms(variant, self._workload, self._peaks)
        if floor:
            self._closest[engine] = min(self._closest.get(engine, 1.0), latency_ms / floor)

    def predict_ms(self, variant: Variant) -> float:
        """Expected latency in ms: an order of magnitude at first, closer once its family is known."""
        engine = (variant.runtime, variant.precision)
        family = [ratio for _, ratio in self._by_family.get((variant.candidate.family, *engine), ())]
        ratios = family or self._by_engine.get(engine)
        return self._work_ms(variant) * (median(ratios) if ratios else PRIOR_RATIO)

    def floor_ms(self, variant: Variant) -> float:
        """A latency in ms that the variant hardly beats: by its peak, its family, its faster siblings."""
        engine, work = (variant.runtime, variant.precision), self._work_ms(variant)
        floor = floor_ms(variant, self._workload, self._peaks) or 0.0
        # An engine that beat its peak shows that the peak was measured too low.
        floor *= self._closest.get(engine, 1.0)
        family = [
            ratio
            for other, ratio in self._by_family.get((variant.candidate.family, *engine), ())
            if 1 / RELATED <= other / work <= RELATED
        ]
        siblings = [
            latency
            for peak, latency in self._of_candidate.get(_code_of(variant), ())
            if peak > self._peak(variant) > 0
        ]
        return max(floor, work * min(family, default=0.0), *siblings)

    def least_ms(self, variant: Variant) -> tuple[float, float]:
        """Least judged percentile and mean that are believed possible, in ms."""
        least = self.floor_ms(variant) / SAFETY
        if not self._by_engine:
            return least, least
        return least + self._beside_percentile / SAFETY, least + self._beside_mean / SAFETY

    def _peak(self, variant: Variant) -> float:
        return self._peaks.get(variant.runtime, {}).get(variant.precision, 0.0)

    def _work_ms(self, variant: Variant) -> float:
        floor = floor_ms(variant, self._workload, self._peaks)
        if floor is None:
            floor = 2 * macs(variant) * self._workload.batch_size / 1e8
        scale = (variant.image_size / variant.candidate.preprocess.image_size) ** 2
        moved = variant.candidate.activations * scale * self._workload.batch_size
        width = 2.0 if variant.precision in ("bf16", "fp16") else 4.0
        return floor + moved * width / BYTES_PER_MS


def rank_key(variant: Variant, requirements: Requirements, model: LatencyModel) -> tuple[float, ...]:
    """Sort key, smallest first: what is likely to win, then what could, each by the objective."""
    predicted = model.predict_ms(variant)
    limits = [requirements.max_latency_ms] if requirements.max_latency_ms is not None else []
    if requirements.min_throughput is not None:
        limits.append(1000 * model.batch_size / requirements.min_throughput)
    unlikely = float(any(predicted > FIT * limit for limit in limits))
    accuracy = accuracy_bound(variant)
    by_accuracy = -(accuracy if accuracy is not None else 0.0)
    order = {
        # What will hardly fit goes from small to large: the small ones tell of their relatives.
        "accuracy": (predicted,) if unlikely else (by_accuracy, _loses_accuracy(variant), predicted),
        "latency": (predicted, by_accuracy),
        "throughput": (predicted, by_accuracy),
        "memory": (memory_floor_mib(variant), predicted),
    }[requirements.objective]
    return (unlikely, *order)


def _loses_accuracy(variant: Variant) -> float:
    return 0.0 if variant.precision == "fp32" else 1.0


def cannot_beat(
    variant: Variant,
    rival: Observation,
    objective: str,
    model: LatencyModel,
    *,
    memory_baseline: float,
    photos: int,
) -> str | None:
    """Why the variant cannot win against a contender, whatever measuring it would show; None: it could."""
    ceiling = accuracy_ceiling(variant, photos)
    name = rival.variant.name
    if objective == "accuracy" and rival.accuracy is not None:
        lossy = variant.precision != "fp32"
        if ceiling is None or ceiling < rival.accuracy.value or (lossy and ceiling == rival.accuracy.value):
            most = "no known accuracy" if ceiling is None else f"at most {ceiling:.1f} % top-1"
            return f"{most}, {name} has {rival.accuracy.value:.1f} %"
    by_time = objective in ("latency", "throughput") or (objective == "accuracy" and rival.accuracy is None)
    if by_time and (timed := rival.latency.get("model")) is not None:
        least = model.floor_ms(variant) / SAFETY
        if least > timed.p50:
            return f"unlikely to be below {least:.1f} ms by its lower bound, {name} takes {timed.p50:.1f} ms"
    if objective == "memory" and rival.memory is not None:
        needed = memory_baseline + memory_floor_mib(variant)
        if needed > rival.memory.peak:
            return f"at least {needed:.0f} MiB with its weights, {name} takes {rival.memory.peak:.0f} MiB"
    return None


def cannot_fit(
    variant: Variant, requirements: Requirements, workload: Workload, model: LatencyModel
) -> str | None:
    """Why the variant cannot hold its limits of time, going by measured relatives; None: it could."""
    percentile, mean = model.least_ms(variant)
    limit, rate = requirements.max_latency_ms, requirements.min_throughput
    if limit is not None and percentile > limit:
        return f"latency: unlikely to be below {percentile:.0f} ms, by its arithmetic and its relatives"
    if rate is not None and 1000 * workload.batch_size / mean < rate:
        most = 1000 * workload.batch_size / mean
        return f"throughput: unlikely to be above {most:.0f} images/s, by its arithmetic and its relatives"
    return None


def _code_of(variant: Variant) -> tuple[str, str, int]:
    """What variants share that differ by engine and precision alone."""
    return variant.candidate.name, variant.implementation, variant.image_size

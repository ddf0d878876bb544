"""What to measure first, and what can no longer win: predictions order, bounds prune.

A prediction is the variant's floor times the ratio of measured latency to floor seen so far for its
family (else for its engine), so the search learns the machine while it measures. Predictions never
reject: only a bound that holds whatever the measurement would say does.
"""

from __future__ import annotations

from collections import defaultdict
from statistics import median

from vitrail.selection.prune import Peaks, accuracy_bound, accuracy_ceiling, floor_ms, macs, memory_floor_mib
from vitrail.vocabulary import Observation, Requirements, Variant, Workload

PRIOR_RATIO = 2.0
"""Latency over floor before anything was measured; big transformers sit at 1.2, small CNNs far above."""

BYTES_PER_MS = 6e6
"""Bytes an engine writes per ms, for the activations' part of the prediction (about 6 GB/s)."""

FIT = 1.25
"""A prediction up to this multiple of the limit counts as likely to fit."""

CEILING_SAFETY = 1.5
"""How much closer to its floor an unmeasured variant may come than the closest measured one."""


class LatencyModel:
    """Predicts the model-scope latency of variants from the ones measured so far."""

    def __init__(self, workload: Workload, peaks: Peaks) -> None:
        self._workload = workload
        self._peaks = peaks
        self._by_family: dict[tuple[str, str, str], list[float]] = defaultdict(list)
        self._by_engine: dict[tuple[str, str], list[float]] = defaultdict(list)
        self._closest: dict[tuple[str, str], float] = {}

    def observe(self, variant: Variant, latency_ms: float) -> None:
        """Learn from a measured median of the model scope."""
        ratio = latency_ms / self._work_ms(variant)
        engine = (variant.runtime, variant.precision)
        self._by_family[(variant.candidate.family, *engine)].append(ratio)
        self._by_engine[engine].append(ratio)
        floor = floor_ms(variant, self._workload, self._peaks)
        if floor:
            self._closest[engine] = min(self._closest.get(engine, float("inf")), latency_ms / floor)

    def predict_ms(self, variant: Variant) -> float:
        """Expected latency in ms: an order of magnitude at first, closer once its family is known."""
        engine = (variant.runtime, variant.precision)
        ratios = self._by_family.get((variant.candidate.family, *engine)) or self._by_engine.get(engine)
        return self._work_ms(variant) * (median(ratios) if ratios else PRIOR_RATIO)

    def lower_bound_ms(self, variant: Variant) -> float:
        """A latency the variant is not believed to beat: no engine here came that close to its floor."""
        floor = floor_ms(variant, self._workload, self._peaks)
        if floor is None:
            return 0.0
        closest = self._closest.get((variant.runtime, variant.precision))
        return floor if closest is None else max(floor, floor * closest / CEILING_SAFETY)

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
    limit = requirements.max_latency_ms
    unlikely = float(limit is not None and predicted > FIT * limit)
    accuracy = accuracy_bound(variant)
    by_accuracy = -(accuracy if accuracy is not None else 0.0)
    order = {
        "accuracy": (by_accuracy, _loses_accuracy(variant), predicted),
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
    if objective in ("latency", "throughput") and rival.model is not None:
        least = model.lower_bound_ms(variant)
        if least > rival.model.p50:
            return f"at least {least:.1f} ms by its arithmetic, {name} takes {rival.model.p50:.1f} ms"
    if objective == "memory" and rival.memory is not None:
        needed = memory_baseline + memory_floor_mib(variant)
        if needed > rival.memory.peak:
            return f"at least {needed:.0f} MiB with its weights, {name} takes {rival.memory.peak:.0f} MiB"
    return None

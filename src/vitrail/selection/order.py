"""What to measure first, and what can no longer win: predictions order, floors and evidence prune.

A prediction is a variant's work, times what its family, its engine and precision, the form of its graph and
its siblings were seen to make of theirs (`learn.py`). It only orders. What rejects is a bound:

- the arithmetic at the engine's own peak, which a variant is still believed to beat `SAFETY` times;
- the prediction less what it may be off: that goes by how close its relatives are, and by how far off
  predictions have been so far.
"""

from __future__ import annotations

import math
from collections.abc import Hashable

from vitrail.selection.learn import Effects
from vitrail.selection.prune import (
    Peaks,
    accuracy_ceiling,
    floor_ms,
    macs,
    memory_floor_mib,
)
from vitrail.vocabulary import Observation, Requirements, Variant, Workload

PRIOR_RATIO = 2.0
"""Latency over work before anything was measured; big transformers sit at 1.2, small CNNs far above."""

UNKNOWN_PEAK = 100.0
"""GFLOP/s of an engine whose peak could not be measured."""

GAINED = 0.5
"""The part, as an exponent, of an engine's higher peak that is expected of a model at first."""

BYTES_PER_MS = 6e6
"""Bytes an engine writes per ms, for the activations' part of the prediction (about 6 GB/s)."""

FIT = 1.25
"""A prediction up to this multiple of the limit counts as likely to fit."""

TINY_MS = 1e-6
"""Of a graph whose arithmetic could not be counted: a logarithm needs a number."""

SAFETY = 2.0
"""How much faster than its arithmetic at the peak a variant is still believed to be able to run."""

NOISE = 0.12
"""Of a measured latency, as the standard deviation of its logarithm."""

LOSES = {"fp32": 0, "tf32": 1, "bf16": 1, "fp16": 1, "int8": 2}
"""Precisions by how much of the accuracy each may lose."""

SPREAD = {
    "all": 1.0,
    "all by size": 0.15,
    "engine": 0.5,
    "engine by size": 0.15,
    "family": 0.4,
    "family on engine": 0.3,
    "code": 0.2,
    "code on runtime": 0.08,
    "code on engine": 0.15,
    "form": 0.1,
    "form on engine": 0.1,
    "form of code": 0.1,
}
"""Prior standard deviations of what moves the logarithm of a latency beside the work: what each member of
these groups has of its own. By size: per factor e of work."""


class LatencyModel:
    """Predicts and bounds the model-scope latency of variants from the ones measured so far."""

    def __init__(self, workload: Workload, peaks: Peaks) -> None:
        self._workload = workload
        self.batch_size, self.scope = workload.batch_size, workload.latency_scope
        self.clients = workload.concurrency
        self._peaks = peaks
        full = [engine["fp32"] for engine in peaks.values() if engine.get("fp32")]
        self._full = max(full, default=UNKNOWN_PEAK)
        """GFLOP/s of fp32 that work is expressed in."""
        self._effects = Effects(NOISE)
        self._known: dict[str, tuple[float, float]] = {}
        """What `_logarithms` gave by variant, since the last observation."""
        self._closest: dict[tuple[str, str], float] = {}
        self._host_ms = math.inf
        """The least that anything took beside the model: decoding, preparing."""

    def observe(self, variant: Variant, latency_ms: float, *, host_ms: float = 0.0) -> None:
        """Learn from a measured median of the model scope, and what the judged scope takes beside it.

        Nothing is learnt from the tail: on a busy machine that of one variant would rule out all others.
        """
        self._host_ms = min(self._host_ms, max(host_ms, 0.0))
        self._effects.observe(self._features(variant), math.log(latency_ms / self._work_ms(variant)))
        self._known.clear()
        engine, floor = _engine(variant), floor_ms(variant, self._workload, self._peaks)
        if floor:
            self._closest[engine] = min(self._closest.get(engine, 1.0), latency_ms / floor)

    def predict_ms(self, variant: Variant) -> float:
        """Expected latency in ms: an order of magnitude at first, closer once relatives are known."""
        mean, _ = self._logarithms(variant)
        return math.exp(mean)

    def least_model_ms(self, variant: Variant) -> float:
        """A latency in ms that the variant is not believed to beat, by its arithmetic or its relatives."""
        floor = floor_ms(variant, self._workload, self._peaks) or 0.0
        # An engine that beat its peak shows that the peak was measured too low.
        floor *= self._closest.get(_engine(variant), 1.0) / SAFETY
        if not len(self._effects):
            return floor
        _, least = self._logarithms(variant)
        return max(floor, math.exp(least))

    def least_ms(self, variant: Variant) -> float:
        """The least latency of the judged scope that is believed possible, in ms."""
        host_ms = self._host_ms / SAFETY if len(self._effects) else 0.0
        return self.least_model_ms(variant) + host_ms

    def _logarithms(self, variant: Variant) -> tuple[float, float]:
        """Logarithms of the latency in ms: what is expected, and the least that is believed possible."""
        name = variant.name
        if name not in self._known:
            ratio, least = self._effects.predict(self._features(variant))
            work = math.log(self._work_ms(variant))
            self._known[name] = work + ratio, work + least
        return self._known[name]

    def _features(self, variant: Variant) -> dict[Hashable, float]:
        candidate, engine, form = variant.candidate, _engine(variant), (variant.passes, variant.settings)
        code = candidate.name, variant.implementation, variant.image_size
        size = math.log(max(self._macs_ms(variant, self._full), TINY_MS))
        groups: dict[str, tuple[Hashable, float]] = {
            "all": ((), 1.0),
            "all by size": ((), size),
            "engine": (engine, 1.0),
            "engine by size": (engine, size),
            "family": (candidate.family, 1.0),
            "family on engine": ((candidate.family, engine), 1.0),
            "code": (code, 1.0),
            "code on runtime": ((code, variant.runtime), 1.0),
            "code on engine": ((code, engine), 1.0),
        }
        if any(form):
            groups |= {
                "form": (form, 1.0),
                "form on engine": ((form, engine), 1.0),
                "form of code": ((form, code), 1.0),
            }
        return {(group, member): SPREAD[group] * amount for group, (member, amount) in groups.items()}

    def _macs_ms(self, variant: Variant, gflops: float) -> float:
        """Of the whole batch, at so many GFLOP/s."""
        return 2 * macs(variant) * self._workload.batch_size / (gflops * 1e6)

    def _work_ms(self, variant: Variant) -> float:
        """What a latency is expected to be before anything was measured."""
        own = self._peaks.get(variant.runtime, {}).get(variant.precision) or UNKNOWN_PEAK
        gain = (own / self._full) ** GAINED
        scale = (variant.image_size / variant.candidate.preprocess.image_size) ** 2
        moved = variant.candidate.activations * scale * self._workload.batch_size
        work_ms = self._macs_ms(variant, self._full) + 4 * moved / BYTES_PER_MS
        return PRIOR_RATIO * max(work_ms, TINY_MS) / gain


def rank_key(
    variant: Variant, requirements: Requirements, model: LatencyModel, *, photos: int
) -> tuple[float, ...]:
    """Sort key, smallest first: what is likely to win, then what could, each by the objective.

    `photos` is how many there are to measure the loss of a lower precision on.
    """
    predicted = model.predict_ms(variant)
    unlikely = float(not likely_to_fit(variant, requirements, model))
    accuracy = accuracy_ceiling(variant, photos)
    by_accuracy = -(accuracy if accuracy is not None else 0.0)
    order = {
        # What will hardly fit goes from small to large: the small ones tell of their relatives.
        "accuracy": (predicted,) if unlikely else (by_accuracy, LOSES[variant.precision], predicted),
        "latency": (predicted, by_accuracy),
        "throughput": (predicted, by_accuracy),
        "memory": (memory_floor_mib(variant), predicted),
    }[requirements.objective]
    return (unlikely, *order)


def likely_to_fit(variant: Variant, requirements: Requirements, model: LatencyModel) -> bool:
    """Whether the prediction is within, or little above, the limits of time.

    A client among n is expected to wait for the calls of all of them; that is no bound, so it only orders.
    """
    predicted = model.predict_ms(variant)
    limits = [requirements.whole_ms / model.clients] if requirements.whole_ms is not None else []
    if requirements.min_throughput is not None:
        limits.append(1000 * model.batch_size / requirements.min_throughput)
    return all(predicted <= FIT * limit for limit in limits)


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
        value = rival.accuracy.value
        # What it loses is above 0, so a lower precision does not reach fp32's figure.
        behind = LOSES[variant.precision] > LOSES[rival.variant.precision] == 0
        if ceiling is None or ceiling < value or (behind and ceiling == value):
            most = "no known accuracy" if ceiling is None else f"at most {ceiling:.1f} % top-1"
            return f"{most}, {name} has {value:.1f} %"
    # By accuracy, latency decides between equal figures.
    equal = rival.accuracy is None or rival.accuracy.value == ceiling
    by_time = objective in ("latency", "throughput") or (objective == "accuracy" and equal)
    if by_time and (timed := rival.latency.get(model.scope)) is not None:
        # Of the judged scope: a form that takes pixels saves work beside the model.
        least = model.least_ms(variant)
        if least > timed.p50:
            return f"unlikely to be below {least:.1f} ms by its lower bound, {name} takes {timed.p50:.1f} ms"
    if objective == "throughput" and rival.throughput is not None:
        reach = 1000 * model.batch_size / model.least_ms(variant)
        if model.clients > 1 and reach < rival.throughput:  # the engine takes one call at a time
            had = f"{name} has {rival.throughput:.1f}"
            return f"unlikely to be above {reach:.1f} images/s by its lower bound, {had}"
    if objective == "memory" and rival.memory is not None:
        needed = memory_baseline + memory_floor_mib(variant)
        if needed > rival.memory.peak:
            return f"at least {needed:.0f} MiB with its weights, {name} takes {rival.memory.peak:.0f} MiB"
    return None


def cannot_fit(
    variant: Variant, requirements: Requirements, workload: Workload, model: LatencyModel
) -> str | None:
    """Why the variant cannot hold its limits of time, going by measured relatives; None: it could.

    Clients change neither bound: no request is shorter than its own call, and the engine takes one at a time.
    """
    least, limit, rate = model.least_ms(variant), requirements.whole_ms, requirements.min_throughput
    if limit is not None and least > limit:
        return f"latency: unlikely to be below {least:.0f} ms, by its arithmetic and its relatives"
    if rate is not None and 1000 * workload.batch_size / least < rate:
        most = 1000 * workload.batch_size / least
        return f"throughput: unlikely to be above {most:.0f} images/s, by its arithmetic and its relatives"
    return None


def _engine(variant: Variant) -> tuple[str, str]:
    return variant.runtime, variant.precision

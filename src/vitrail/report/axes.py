"""Axes of the figures: what range they show, where their ticks stand, and what lies beyond them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["NARROW", "WIDE", "Axis", "Canvas", "accuracy_range", "latency_range"]

LOG_FROM = 6.0
"""A latency axis is logarithmic from this ratio of its ends on."""
REACH = 2.0
"""So many times beyond the slowest or fastest figure an interval may widen the axis; the rest is an arrow."""


@dataclass(frozen=True)
class Canvas:
    """The size of a figure and of its margins, in the units of its viewBox (pixels at full size)."""

    width: float
    height: float
    left: float = 52
    right: float = 22
    top: float = 46
    bottom: float = 52

    @property
    def edge(self) -> float:
        """The right end of the plot."""
        return self.width - self.right

    @property
    def floor(self) -> float:
        """The lower end of the plot."""
        return self.height - self.bottom


WIDE = Canvas(760, 450)
NARROW = Canvas(340, 400, left=46, right=12)
"""About as wide as a telephone, so that text keeps its size there."""


@dataclass(frozen=True)
class Axis:
    """Maps [low, high] to [start, end] pixels, linearly or by the logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            value, low, high = math.log(value), math.log(low), math.log(high)
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def clamped(self, value: float) -> float:
        """The place of `value`, or the end of the axis that it lies beyond."""
        return self(min(max(value, self.low), self.high))

    def beyond(self, value: float) -> int:
        """-1: below the axis, 1: above it, 0: on it."""
        return (value > self.high) - (value < self.low)

    def ticks(self, most: int = 9) -> list[float]:
        """Round values inside the range: 1, 2, 5 × 10ⁿ (fewer over many decades) on a log axis, else even
        steps; at most `most` of them."""
        if self.log:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            for digits in ((1, 2, 5), (1, 3), (1,)):
                steps = [m * 10.0**n for n in range(first, last + 1) for m in digits]
                inside = [tick for tick in steps if self.low <= tick <= self.high]
                if len(inside) <= most:
                    return inside
            return inside[:: math.ceil(len(inside) / most)]
        raw = (self.high - self.low) / min(6, most - 1)
        scale = 10.0 ** math.floor(math.log10(raw))
        step = next(m * scale for m in (1, 2, 2.5, 5, 10) if m * scale >= raw * (1 - 1e-9))
        first = math.ceil(self.low / step)
        return [k * step for k in range(first, math.floor(self.high / step) + 1)]


def latency_range(
    values: Sequence[float],
    intervals: Sequence[tuple[float, float]],
    whole: Sequence[tuple[float, float]],
    limit: float | None,
) -> tuple[float, float, bool]:
    """(low, high, logarithmic) of the latency axis, in ms.

    Args:
        values: the latencies that must be on the axis, at least one, all above 0.
        intervals: theirs; one that reaches far beyond all values does not stretch the axis.
        whole: intervals that are shown from end to end, however wide.
        limit: shown where it is near.
    """
    low, high = min(values), max(values)
    edges = list(itertools.chain.from_iterable(intervals))
    near = [edge for edge in edges if low / REACH <= edge <= high * REACH]
    kept = [edge for edge in itertools.chain.from_iterable(whole) if edge > 0 and math.isfinite(edge)]
    low, high = min([low, *near, *kept]), max([high, *near, *kept])
    if limit and low / 4 <= limit <= high * 4:
        low, high = min(low, limit), max(high, limit)
    if high / low > LOG_FROM:
        pad = (high / low) ** 0.07
        return low / pad, high * pad, True
    pad = max((high - low) * 0.08, high * 0.03)
    return max(0.0, low - pad), high + pad, False


def accuracy_range(values: Sequence[float], least: float | None) -> tuple[float, float]:
    """(low, high) of the accuracy axis, in %; the limit `least` is shown where it is near."""
    low, high = min(values), max(values)
    span = max(high - low, 1.0)
    if least is not None and low - 2 * span <= least <= high + 2 * span:
        low, high = min(low, least), max(high, least)
    pad = max((high - low) * 0.1, 0.5)
    top = min(100.0, high + pad)
    return max(0.0, min(low - pad, top - 1)), top

"""Ratios of blocks that were timed side by side, and shares with their bounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vitrail import stats
from vitrail.vocabulary import Block


def ratio(slow_ms: Sequence[float], quick_ms: Sequence[float]) -> dict[str, float] | None:
    """How many times as quick the second is, with a 95 % interval; None below six rounds.

    The interval takes into account that another start of the same files may differ a little.
    """
    found = stats.ratio_interval(_blocks(slow_ms), _blocks(quick_ms))
    if found is None:
        return None
    return {"ratio": found.value, "low": found.low, "high": found.high, "rounds": found.rounds}


def _blocks(medians_ms: Sequence[float]) -> list[Block]:
    return [
        Block(launch=0, scope="model", samples_ms=(value,), speed_before_ms=0.0, speed_after_ms=0.0)
        for value in medians_ms
    ]


def geometric_mean(values: Sequence[float]) -> float:
    """Of positive numbers."""
    return float(np.exp(np.mean(np.log(values))))


def at_most(count: int, of: int) -> float:
    """The one-sided 95 % upper bound of a share (Clopper and Pearson), in [0, 1]."""
    return 1.0 if count >= of else stats.share_at_most(count, of, (1.0, 0.0))


def paired_loss(right: np.ndarray, right_then: np.ndarray) -> dict[str, Any]:
    """Points lost on the same images (n,), with the 95 % interval of a mean of paired differences."""
    lost = 100.0 * (right.astype(float) - right_then)
    half = 1.96 * float(lost.std(ddof=1)) / len(lost) ** 0.5
    mean = float(lost.mean())
    return {
        "images": len(lost),
        "before": 100 * float(right.mean()),
        "after": 100 * float(right_then.mean()),
        "lost": mean,
        "interval": [mean - half, mean + half],
        "only_before_right": int((right & ~right_then).sum()),
        "only_after_right": int((right_then & ~right).sum()),
    }

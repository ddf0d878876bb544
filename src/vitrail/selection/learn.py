"""A sum of effects, learnt one observation at a time: recursive least squares with priors.

A value is the sum of its features' effects. Each effect is believed to lie around 0 until observations say
otherwise, so that few of them move it little. What the next observation was predicted to be, and how far off
that was, tells how far the predictions can be trusted.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping

import numpy as np
from numpy.typing import NDArray

Features = Mapping[Hashable, float]
"""An effect's key -> how much of it there is, in units of the effect's prior standard deviation."""

TRUSTED = 8.0
"""As many observations as the prior spread counts for, against that of the predictions' errors."""
DEVIATIONS, BEYOND = 3.0, 1.25
"""A value is believed to lie at most so many standard deviations below its prediction, and not further than
this multiple of the furthest that one was seen to lie."""


class Effects:
    """Predicts a value from its features; the same observations in the same order give the same answers.

    Args:
        noise: standard deviation of an observation around the sum of its effects.
    """

    def __init__(self, noise: float) -> None:
        self._noise = noise * noise
        self._place: dict[Hashable, int] = {}
        self._mean: NDArray[np.float64] = np.zeros(0)
        self._covariance: NDArray[np.float64] = np.zeros((0, 0))
        self._errors, self._count = TRUSTED, TRUSTED
        self._furthest = 0.0
        """The most that a value lay below its prediction, in the standard deviations expected of it."""

    def __len__(self) -> int:
        return round(self._count - TRUSTED)

    def observe(self, features: Features, value: float) -> None:
        """Learn from one value."""
        for key in features:
            self._place.setdefault(key, len(self._place))
        self._grow()
        row = np.zeros(len(self._place))
        for key, amount in features.items():
            row[self._place[key]] = amount
        spread = self._covariance @ row
        variance = float(row @ spread) + self._noise
        error = value - float(row @ self._mean)
        self._errors += error * error / variance
        self._furthest = max(self._furthest, -error / math.sqrt(variance))
        self._count += 1.0
        self._mean += spread * (error / variance)
        self._covariance -= np.outer(spread, spread) / variance

    def predict(self, features: Features) -> tuple[float, float]:
        """The expected value, and the least that is believed possible."""
        known = [(self._place[key], amount) for key, amount in features.items() if key in self._place]
        places = np.array([place for place, _ in known], dtype=np.intp)
        row = np.array([amount for _, amount in known])
        variance = self._noise + sum(
            amount * amount for key, amount in features.items() if key not in self._place
        )
        variance += float(row @ self._covariance[np.ix_(places, places)] @ row)
        mean = float(row @ self._mean[places])
        # Errors smaller than expected are no reason for more trust: the next family may be the odd one.
        usual = DEVIATIONS * math.sqrt(max(self._errors / self._count, 1.0))
        return mean, mean - max(usual, BEYOND * self._furthest) * math.sqrt(variance)

    def _grow(self) -> None:
        """Make room for new effects, each with its prior: mean 0, standard deviation 1."""
        old, new = len(self._mean), len(self._place)
        if new > old:
            self._mean = np.concatenate([self._mean, np.zeros(new - old)])
            covariance = np.eye(new)
            covariance[:old, :old] = self._covariance
            self._covariance = covariance

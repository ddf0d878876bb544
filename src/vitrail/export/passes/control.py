"""Accuracy control: the int8 layers that cost most stay in higher precision (docs/decisions/int8.md)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from vitrail.export.passes.costs import costs
from vitrail.export.passes.quantize import quantised_nodes
from vitrail.export.passes.revert import revert

__all__ = ["LARGEST_OF_THE_LAST", "Controlled", "control", "spare_the_last"]

LARGEST_OF_THE_LAST = 0.1
"""Relative error of the outputs that the last layer alone may add in int8. All together may add 0.25
(tasks/agreement.py). EfficientNet-Lite0's own head adds 0.007, a random ViT-B's 0.045, a probe's on textile
images 1.4."""


@dataclass(frozen=True)
class Controlled:
    """The quantised model that keeps the fewest layers, of those whose drop is within the limit."""

    model: onnx.ModelProto
    kept: tuple[str, ...]
    """Layers in higher precision, the costliest first."""
    tried: tuple[tuple[int, float], ...]
    """(number of layers kept, measured drop), in the order they were tried."""
    holds: bool
    """False: no number of layers brought the drop within the limit; `model` is that with the lowest drop."""

    @property
    def drop(self) -> float:
        """The measured drop of `model`."""
        return dict(self.tried)[len(self.kept)]


def spare_the_last(
    model: onnx.ModelProto, quantised: onnx.ModelProto, inputs: Sequence[Mapping[str, np.ndarray]]
) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """`quantised` with its last layer as it was where int8 there breaks the outputs, and that layer's name.

    A head that was fitted to standardised features multiplies what hardly varies by thousands, and one scale
    for all features rounds that away; the head is too small to be worth the trouble in int8.
    """
    last = quantised_nodes(quantised)[-1:]
    if not last or costs(model, quantised, inputs, last)[last[0]] <= LARGEST_OF_THE_LAST:
        return quantised, ()
    return revert(model, quantised, last), last


def control(
    model: onnx.ModelProto,
    quantised: onnx.ModelProto,
    inputs: Sequence[Mapping[str, np.ndarray]],
    drop: Callable[[onnx.ModelProto], float],
    max_drop: float,
) -> Controlled:
    """Keep as few layers of `quantised` in higher precision as bring `drop` down to `max_drop`.

    `model` is the float model that `quantised` was made of, `inputs` a few photos that rank the layers. The
    search doubles the number kept until the limit holds, then halves the interval: it assumes that the drop
    falls as more are kept. At least one layer stays int8. `drop` is called about 2 log2(k) times for k kept.
    """
    search = _Search(model, quantised, drop, max_drop)
    if search.holds(0):
        return search.answer(0, holds=True)
    search.rank(inputs)
    most = len(search.ranked) - 1
    low, high = 0, 1
    while high < most and not search.holds(high):
        low, high = high, 2 * high
    high = min(high, most)
    if high <= low or not search.holds(high):
        return search.answer(min(search.tried, key=lambda count: (search.tried[count], count)), holds=False)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if search.holds(middle) else (middle, high)
    return search.answer(high, holds=True)


class _Search:
    def __init__(
        self,
        model: onnx.ModelProto,
        quantised: onnx.ModelProto,
        drop: Callable[[onnx.ModelProto], float],
        max_drop: float,
    ) -> None:
        self.model, self.quantised, self.drop, self.max_drop = model, quantised, drop, max_drop
        self.ranked = quantised_nodes(quantised)
        self.tried: dict[int, float] = {}

    def rank(self, inputs: Sequence[Mapping[str, np.ndarray]]) -> None:
        found = costs(self.model, self.quantised, inputs)
        self.ranked = tuple(sorted(self.ranked, key=lambda layer: -found[layer]))

    def holds(self, count: int) -> bool:
        if count not in self.tried:
            self.tried[count] = self.drop(self.at(count))
        return self.tried[count] <= self.max_drop

    def at(self, count: int) -> onnx.ModelProto:
        return revert(self.model, self.quantised, self.ranked[:count]) if count else self.quantised

    def answer(self, count: int, *, holds: bool) -> Controlled:
        return Controlled(self.at(count), self.ranked[:count], tuple(self.tried.items()), holds)

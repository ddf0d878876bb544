"""The search on a simulated grid that is larger than one hour can record: 33 models, 11 variants of each.

    python benchmarks/selection_simulated.py [--seed N] [--sets N]

Latencies are drawn: a variant's work, times what its family, engine and precision, model and form have of
their own. The spreads are about those of the recorded grids; int8 and bf16 gain from a third to all of what
their peaks promise, more on some families than on others. The last line of standard output is one JSON
document, as of `selection.py replay`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import random

from replay import Recording
from selection import SETS, summary
from selection_grid import FACTS, Grid, candidates, grid_variants

from vitrail.selection.prune import floor_ms
from vitrail.vocabulary import Memory, Variant, Workload

PEAKS = {
    "openvino": {"fp32": 280.0, "bf16": 1400.0, "int8": 2500.0},
    "onnxruntime": {"fp32": 290.0, "int8": 2400.0},
}
WORKLOAD = Workload(threads=2)
LAUNCHES, CALLS = 3, 24
FORM_OF_PIXELS_MS = 0.6
"""What a request saves whose graph takes pixels."""


class Draws:
    """Effects of groups, each drawn once."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._drawn: dict[object, float] = {}

    def __call__(self, spread: float, *group: object) -> float:
        if group not in self._drawn:
            self._drawn[group] = self._random.gauss(0.0, spread)
        return self._drawn[group]

    def between(self, low: float, high: float) -> float:
        return self._random.uniform(low, high)


def invented(seed: int) -> Grid:
    """A grid without a recording; the same seed gives the same one."""
    draws = Draws(seed)
    found = grid_variants(candidates())
    recordings = {variant.name: _recording(variant, draws) for variant in found}
    header = {"peaks": PEAKS, "machine": f"simulated, seed {seed}", "date": ""}
    return Grid(header, recordings, found)


def model_ms(variant: Variant, draws: Draws) -> float:
    """Its median: of the fp32 work and the part of its engine's gain that it gets."""
    family, code, engine = variant.candidate.family, variant.candidate.name, variant.runtime
    full = floor_ms(_in_fp32(variant), WORKLOAD, PEAKS)
    assert full is not None
    gain = math.log(PEAKS[engine][variant.precision] / PEAKS[engine]["fp32"])
    part = min(max(0.55 + draws(0.2, family, engine, variant.precision), 0.0), 0.95)
    logarithm = (
        math.log(2.2 * full + variant.candidate.activations / 4e6)
        - part * gain
        + draws(0.3, family)
        + draws(0.2, family, engine)
        + draws(0.1, code)
        + draws(0.1, code, engine, variant.precision)
        + draws(0.07, code, variant.passes, engine)
    )
    return max(math.exp(logarithm), floor_ms(variant, WORKLOAD, PEAKS) or 0.0) + 0.2


def _in_fp32(variant: Variant) -> Variant:
    return dataclasses.replace(variant, precision="fp32")


def _recording(variant: Variant, draws: Draws) -> Recording:
    own, host = model_ms(variant, draws), 5.0 - FORM_OF_PIXELS_MS * ("uint8" in variant.passes)
    samples = []
    for _ in range(LAUNCHES):
        launch = own * draws.between(0.97, 1.03)
        calls = [launch * draws.between(0.98, 1.06) for _ in range(CALLS)]
        samples.append(
            {"model": calls, "request": [call + host * draws.between(0.95, 1.1) for call in calls]}
        )
    million, giga = variant.candidate.parameters / 1e6, variant.candidate.macs / 1e9
    weight = {"fp32": 4.0, "bf16": 2.0, "int8": 1.0}[variant.precision]
    return Recording(
        export_s=6.0 + million / 8,
        made_s=10.0 + 6 * giga if variant.precision == "int8" else 1.5 * bool(variant.passes),
        reference_s=4.0 + 2 * giga,
        parity_s=1.0 + 0.1 * own,
        launch_s=(0.7 + million / 100,) * LAUNCHES,
        samples=tuple(samples),
        memory=Memory(peak=90 + weight * million, steady=90 + weight * million, above_baseline=10 + million),
        facts=FACTS,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sets", type=int, default=len(SETS), help="about so many of the sets, evenly")
    arguments = parser.parse_args()
    print(json.dumps(summary(invented(arguments.seed), SETS[:: max(len(SETS) // arguments.sets, 1)])))


if __name__ == "__main__":
    main()

"""How often the claimed loss of a lower precision is below the true one: `loss_bound` on simulated photos.

    python benchmarks/loss_bound.py [--runs 1500]

Every decided photo changes its answer with one probability and then loses 10 points or more, about 26 on
average; others are near-ties that lose little. A claim counts only where parity passes. The last stdout line
is one JSON document. No hardware is timed.
"""

from __future__ import annotations

import argparse
import json

import numpy as np

from vitrail import stats
from vitrail.judge import ALLOWANCE_POINTS
from vitrail.tasks.agreement import BOUNDS, agree_enough, loss_bound

PHOTOS = (30, 100, 300, 600)
CHANGED = (0.0, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.10)
NEAR_TIES, NEAR_TIE_POINTS = 0.1, 0.3


def costs(rng: np.random.Generator, count: int) -> np.ndarray:
    """What changed photos lose, in points."""
    return np.clip(rng.beta(2, 6, count) * 100, 10, 100)


MEAN_COST = float(costs(np.random.default_rng(1), 1_000_000).mean())


def simulate(precision: str, photos: int, changed: float, runs: int, seed: int = 0) -> dict[str, float]:
    """Shares of runs that pass parity, and that pass with a claim below the true loss; by how many points."""
    rng = np.random.default_rng(seed)
    true = changed * MEAN_COST + (1 - changed) * NEAR_TIES * NEAR_TIE_POINTS
    passed, short = 0, []
    for _ in range(runs):
        changes = rng.random(photos) < changed
        lost = np.where(rng.random(photos) < NEAR_TIES, NEAR_TIE_POINTS, 0.0)
        lost[changes] = costs(rng, int(changes.sum()))
        claim = loss_bound(lost, np.ones(photos, bool), ~changes, precision)
        assert claim is not None
        if photos < stats.PHOTOS_FOR_LOSS_BOUND:
            claim = max(claim, ALLOWANCE_POINTS)
        if agree_enough(photos, photos - int(changes.sum()), BOUNDS[precision].agreement):
            passed += 1
            short += [true - claim] if claim < true else []
    return {
        "true_points": true,
        "passes": passed / runs,
        "claims_too_little": len(short) / runs,
        "by_points": float(np.mean(short)) if short else 0.0,
    }


def main() -> None:
    """Print a line for each case, and all of them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1500)
    runs = parser.parse_args().runs
    rows = []
    for precision in ("bf16", "int8"):
        for photos in PHOTOS:
            for changed in CHANGED:
                # With 600 photos each bound is drawn, which takes some ms.
                few = runs if photos < stats.PHOTOS_FOR_LOSS_BOUND else runs // 10
                row = simulate(precision, photos, changed, few)
                print(precision, photos, changed, {name: round(value, 3) for name, value in row.items()})
                rows.append(
                    {"precision": precision, "photos": photos, "changed": changed, "runs": few, **row}
                )
    print(json.dumps({"benchmark": "loss_bound", "rows": rows}))


if __name__ == "__main__":
    main()

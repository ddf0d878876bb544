"""Error rates of the limit test and of comparisons, through the real schedule on a simulated machine.

    python benchmarks/error_rates.py [--runs 200] [--only clients]

Every run is `screen` then `finals` of one subject at p95 against a limit set at a known distance from
the true percentile over launches. The last stdout line is one JSON document. No hardware is timed.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from simulated import Machine, SimulatedSubject, true_percentile

from vitrail import stats
from vitrail.measure import latency

SERIES = {
    "independent": {},
    "heavy spread": {"sigma": 0.15},
    "AR(0.5)": {"rho": 0.5},
    "AR(0.9)": {"rho": 0.9},
    "outliers 4 %": {"outliers": 0.04},
    "launches differ 1.5 %": {"launch_sigma": 0.015},
    "launches differ 5 %": {"launch_sigma": 0.05},
    "episodes 10 %": {"episodes": 0.10},
    "8 clients": {"clients": 8, "median_ms": 5.0},
    "8 clients, heavy spread": {"clients": 8, "median_ms": 5.0, "sigma": 0.3},
    "8 clients, stalls": {"clients": 8, "median_ms": 5.0, "outliers": 0.008, "outlier_times": 20.0},
}
DRIFT = {"drift 1 % in 10 s": 0.001}
STAGES_MS = {"encode": 60.0, "prompt": 5.0}
STAGED = {
    "stages": {},
    "stages, heavy spread": {"sigma": 0.15},
    "stages, AR(0.9)": {"rho": 0.9},
    "stages, launches differ 1.5 %": {"launch_sigma": 0.015},
}
"""Two limits at the same time; launches differ in each stage independently."""
CURVE = (0.7, 0.8, 0.9, 0.95, 0.98, 1.0, 1.02, 1.05, 1.1, 1.3)
"""True percentile / limit."""


def decide(
    limit_ms: float, seed: int, drift: float = 0.0, **subject
) -> tuple[str, int, float, latency.Outcome]:
    """(answer, judged calls, simulated seconds, outcome) of screen + finals."""
    machine = Machine(seed=seed, drift_per_s=drift)
    one = SimulatedSubject(machine, **subject)
    plan = latency.Plan(limit_ms=limit_ms, clients=one.clients)
    first = latency.screen(one, plan, clock=machine.clock)
    if not first.contender:
        return first.answer, _calls(first), machine.now, first
    last = latency.finals(
        [one], plan, rng=random.Random(seed), clock=machine.clock, prior={one.name: first.blocks}
    )[one.name]
    return last.answer, _calls(last), machine.now, last


def staged(runs: int, only: str) -> dict[str, dict[str, dict[str, float]]]:
    """Shares of answers with a limit on each of two stages: both at their percentile, one of them at 80 %."""
    table = {}
    for name, subject in STAGED.items():
        if only not in name:
            continue
        true = {s: true_percentile(95, scope=s, stages_ms=STAGES_MS, **subject) for s in STAGES_MS}
        shares = {
            "both at the limit": {"encode": 1.0, "prompt": 1.0},
            "prompt at the limit": {"encode": 0.8, "prompt": 1.0},
            "both at 80 %": {"encode": 0.8, "prompt": 0.8},
        }
        table[name] = {
            kind: _staged(
                {s: true[s] / share[s] for s in true}, max(runs // 4, 1) if "80" in kind else runs, subject
            )
            for kind, share in shares.items()
        }
        print(f"{name:30} {table[name]}", flush=True)
    return table


def _staged(limits: dict[str, float], runs: int, subject: dict[str, float]) -> dict[str, float]:
    found = []
    for seed in range(runs):
        machine = Machine(seed=seed)
        one = SimulatedSubject(machine, median_ms=65.0, stages_ms=STAGES_MS, **subject)
        plan = latency.Plan(stages=tuple(limits), stage_limits_ms=tuple(limits.items()))
        outcome = latency.screen(one, plan, clock=machine.clock)
        if outcome.contender:
            rng, prior = random.Random(seed), {one.name: outcome.blocks}
            outcome = latency.finals([one], plan, rng=rng, clock=machine.clock, prior=prior)[one.name]
        found.append(outcome.answer)
    return {answer: round(found.count(answer) / runs, 4) for answer in ("pass", "fail", "undecided")}


def _calls(outcome: latency.Outcome) -> int:
    return sum(len(b.samples_ms) for b in outcome.blocks if b.scope == "request")


def rates(true_ms: float, share: float, runs: int, drift: float = 0.0, **subject) -> dict[str, float]:
    """Shares of answers when the true percentile is `share` of the limit."""
    results = [decide(true_ms / share, seed, drift, **subject) for seed in range(runs)]
    covered = [
        state.lower <= true_ms <= state.upper
        for _, _, _, outcome in results
        if (
            state := stats.LimitTest(percentile=95).evaluate(
                [b for b in outcome.blocks if b.scope == "request"]
            )
        )
        and state.interval
    ]
    return {
        **{a: sum(r[0] == a for r in results) / runs for a in ("pass", "fail", "undecided")},
        "calls_median": float(np.median([r[1] for r in results])),
        "calls_p90": float(np.quantile([r[1] for r in results], 0.9)),
        "seconds_median": round(float(np.median([r[2] for r in results])), 1),
        "interval_covers": round(sum(covered) / len(covered), 3) if covered else None,
    }


def comparisons(runs: int) -> dict[str, dict[str, float]]:
    """A/A and a 10 % slowdown at the cheapest design: one launch each, 12 interleaved rounds."""
    table = {}
    alone = {name: subject for name, subject in SERIES.items() if "clients" not in subject}
    for name, subject in (alone | {"noise 3 % between launches": {"launch_sigma": 0.03}}).items():
        seen = {"a_a_differs": 0, "slowdown_seen": 0}
        for seed in range(runs):
            for key, factor in (("a_a_differs", 1.0), ("slowdown_seen", 1.1)):
                machine = Machine(seed=seed)
                pair = [
                    SimulatedSubject(machine, n, 20 * f, request_extra_ms=2 * f, **subject)
                    for n, f in (("a", factor), ("b", 1.0))
                ]
                sessions = [one.launch(1) for one in pair]
                rounds = [[s.block("request", 12) for s in sessions] for _ in range(12)]
                ratio = stats.ratio_interval([r[0] for r in rounds], [r[1] for r in rounds])
                seen[key] += ratio.differs if factor == 1 else ratio.low > 1
        table[name] = {key: count / runs for key, count in seen.items()}
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--only", metavar="TEXT", default="", help="only the series whose name has this")
    args = parser.parse_args()
    runs, boundary, clear = args.runs, {}, {}
    for name, subject in SERIES.items():
        if args.only not in name:
            continue
        true_ms = true_percentile(95, **subject)
        boundary[name] = rates(true_ms, 1.0, runs, **subject)
        clear[name] = rates(true_ms, 0.8, max(runs // 4, 1), **subject)
        print(f"{name:24} at the limit {boundary[name]}\n{'':24} at 80 % {clear[name]}", flush=True)
    stages = staged(runs, args.only)
    if args.only:
        print(json.dumps({"runs": runs, "boundary": boundary, "clear": clear, "stages": stages}))
        return
    still = true_percentile(95)
    for name, drift in DRIFT.items():
        boundary[name] = rates(still, 1.0, runs, drift)
        print(f"{name:24} limit = percentile at the start {boundary[name]}", flush=True)
    curve = {str(share): rates(still, share, max(runs // 4, 1)) for share in CURVE}
    for share, row in curve.items():
        print(f"true / limit {share:5} {row}", flush=True)
    compared = comparisons(runs)
    for name, row in compared.items():
        print(f"{name:28} {row}")
    result = {
        "runs": runs,
        "boundary": boundary,
        "clear": clear,
        "stages": stages,
        "curve": curve,
        "comparisons": compared,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

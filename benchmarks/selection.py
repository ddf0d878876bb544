"""Does the search find what an exhaustive search finds, in a quarter of its time?

    python benchmarks/selection.py replay    26 requirement sets on a recorded grid, in simulated time
    python benchmarks/selection.py curves    the same sets under budgets of 30 s to 10 min
    python benchmarks/selection.py first     the demo's question on this machine, twice, with an empty cache
    python benchmarks/selection.py live      one of the sets on the real road, cold cache

Weights that are not at hand count as available and parity as passed: both are marked in the result. The
last line of standard output is one JSON document.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from replay import Clock, Recording, ReplayBench
from selection_grid import SETTINGS, AvailableBench, Grid, calibration, read_grid, today

from vitrail import hardware, judge, stats
from vitrail.images.photos import sample_photos
from vitrail.measure.peaks import known_peaks
from vitrail.runtimes import RUNTIMES
from vitrail.selection.prune import ruled_out
from vitrail.selection.search import Search
from vitrail.vocabulary import Requirements, Workload
from vitrail.weights.find import WeightsFinder

RESULTS = Path(__file__).parent / "results"
GRID = RESULTS / "forms-grid-intel-amx-2cores-2026-11-28.jsonl"
USUAL_MS = 10.9
"""A machine on which the middle one of the models takes so long in OpenVINO fp32 gets the limits as they are
written; another one's are longer or shorter in proportion."""


def _set(name: str, scope: str = "request", percentile: float = 95.0, **limits: object) -> dict[str, object]:
    return {"name": name, "scope": scope, "percentile": percentile, "limits": limits}


SETS = (
    _set("15 ms", max_latency_ms=15.0),
    _set("20 ms", max_latency_ms=20.0),
    _set("25 ms", max_latency_ms=25.0),
    _set("30 ms", max_latency_ms=30.0),
    _set("40 ms", max_latency_ms=40.0),
    _set("50 ms, at least 75 %", max_latency_ms=50.0, min_accuracy=75.0),
    _set("75 ms", max_latency_ms=75.0),
    _set("100 ms", max_latency_ms=100.0),
    _set("200 ms", max_latency_ms=200.0),
    _set("no limit at all"),
    _set("model 5 ms", scope="model", max_latency_ms=5.0),
    _set("model 10 ms", scope="model", max_latency_ms=10.0),
    _set("model 20 ms", scope="model", max_latency_ms=20.0),
    _set("model 40 ms, p50", scope="model", percentile=50.0, max_latency_ms=40.0),
    _set("20 ms in 200 MiB", max_latency_ms=20.0, max_memory_mib=200.0),
    _set("50 ms in 300 MiB", max_latency_ms=50.0, max_memory_mib=300.0),
    _set("at least 40 images/s", min_throughput=40.0),
    _set("at least 80 images/s", min_throughput=80.0),
    _set("fastest from 75 %", objective="latency", min_accuracy=75.0),
    _set("fastest from 78 %", objective="latency", min_accuracy=78.0),
    _set("fastest from 80 %", objective="latency", min_accuracy=80.0),
    _set("fastest from 83 %", objective="latency", min_accuracy=83.0),
    _set("fastest model from 82 %", scope="model", objective="latency", min_accuracy=82.0),
    _set("smallest from 77 %", objective="memory", min_accuracy=77.0, max_latency_ms=100.0),
    _set("smallest from 82 %", objective="memory", min_accuracy=82.0),
    _set("most images/s from 80 %", objective="throughput", min_accuracy=80.0),
)


def asked(one: dict, grid: Grid) -> tuple[Requirements, Workload]:
    limits, pace = dict(one["limits"]), grid.middle_ms("openvino fp32") / USUAL_MS
    if "max_latency_ms" in limits:
        limits["max_latency_ms"] *= pace
    if "min_throughput" in limits:
        limits["min_throughput"] /= pace
    workload = Workload(threads=2, latency_scope=one["scope"], percentile=one["percentile"])
    return Requirements(license=("any",), **limits), workload


# --- replaying ------------------------------------------------------------------------------------


def search(grid: Grid, one: dict, **settings: object):
    """One search in simulated time; returns its seconds, selection, models exported and the search."""
    requirements, workload = asked(one, grid)
    clock = Clock()
    bench = ReplayBench(grid.recordings, workload, clock)
    looked = Search(
        requirements=requirements,
        settings=dataclasses.replace(SETTINGS, **settings),
        bench=bench,
        peaks=grid.peaks,
        variants=grid.variants,
        clock=clock,
    )
    selection = judge.judge(looked.run(), requirements, workload, hardware={})
    return clock.now, selection, bench.exports, looked


def replay(path: Path) -> dict:
    """All sets on a recorded grid."""
    return summary(read_grid(path), SETS)


def summary(grid: Grid, sets: Sequence[dict]) -> dict:
    """What the sets' searches lose against exhaustive ones, and what they save."""
    rows = [_compare(grid, one) for one in sets]
    spent, exhaustive = sum(r["seconds"] for r in rows), sum(r["exhaustive_seconds"] for r in rows)
    return {
        "candidates": len({variant.candidate.name for variant in grid.variants}),
        "variants": len(grid.variants),
        "without_anything_to_rewrite": sum(each.nothing is not None for each in grid.recordings.values()),
        "sets": len(sets),
        "regret": {
            "accuracy_points": max(r["accuracy_regret"] for r in rows),
            "objective_percent": max(r["objective_regret_percent"] for r in rows),
        },
        "false_prunes": sum(r["false_prunes"] for r in rows),
        "fraction_of_exhaustive_time": round(spent / exhaustive, 3),
        "fraction_worst_set": max(r["fraction"] for r in rows),
        "fraction_mean_of_sets": round(sum(r["fraction"] for r in rows) / len(rows), 3),
        "weights": "those not at hand were random and count as available",
        "parity": "counted in time, assumed to pass",
        "machine": grid.header["machine"],
        "recorded": grid.header["date"],
        "per_set": rows,
    }


def _compare(grid: Grid, one: dict) -> dict:
    seconds, selection, exports, looked = search(grid, one)
    full_seconds, full, full_exports, _ = search(grid, one, exhaustive=True)
    wrong = false_prunes(grid, one, selection, full)
    row = {
        "set": one["name"],
        "selected": selection.selected,
        "exhaustive_selected": full.selected,
        "accuracy_regret": _regret(selection, full, "accuracy"),
        "objective_regret_percent": _objective_regret(selection, full),
        "false_prunes": len(wrong),
        "seconds": round(seconds, 1),
        "exhaustive_seconds": round(full_seconds, 1),
        "fraction": round(seconds / full_seconds, 3),
        "measured": sum(trial.measurement is not None for trial in looked.trials.values()),
        "exports": len(exports),
        "exhaustive_exports": len(full_exports),
    }
    print(
        f"{row['set']:26} {row['fraction']:6.1%} of {full_seconds:6.0f} s  "
        f"{len(exports)}/{len(full_exports)} exports  {row['selected']}"
        + (
            ""
            if row["selected"] == row["exhaustive_selected"]
            else f"  <- exhaustive: {row['exhaustive_selected']}"
        )
    )
    return row


BUDGETS_S = (30, 60, 120, 300, 600)


def curves(path: Path) -> dict:
    """For each budget: how many sets end with a winner, when the first one is confirmed, and its regret.

    Regret is against the exhaustive winner without a budget: points of accuracy, or % of the objective.
    Exports take the time of the recording, when each was a process of its own; today's take about half.
    """
    grid = read_grid(path)
    full = {one["name"]: search(grid, one, exhaustive=True)[1] for one in SETS}
    answerable = [one for one in SETS if full[one["name"]].winner is not None]
    rows = [_under(grid, answerable, full, budget) for budget in BUDGETS_S]
    for row in rows:
        print(
            f"{row['budget_s']:4} s  {row['with_a_winner']}/{row['sets']} with a winner, {row['optimal']} of "
            f"them the best; first after {row['first_winner_s_median']} s (median)"
        )
    return {"sets": len(answerable), "budgets": rows, "recorded": grid.header["date"]}


def _under(grid: Grid, sets: list[dict], full: dict, budget_s: float) -> dict:
    firsts, points, percents, optimal, shares = [], [], [], 0, []
    for one in sets:
        seconds, selection, _, looked = search(grid, one, budget_s=float(budget_s))
        if selection.winner is None:
            continue
        firsts.append(seconds if looked.first_winner_s is None else looked.first_winner_s)
        shares.append(firsts[-1] <= budget_s / 3)
        best = full[one["name"]]
        points.append(_regret(selection, best, "accuracy"))
        percents.append(_objective_regret(selection, best))
        optimal += selection.selected == best.selected or points[-1] == percents[-1] == 0
    found = len(firsts)
    return {
        "budget_s": budget_s,
        "sets": len(sets),
        "with_a_winner": found,
        "optimal": optimal,
        "first_winner_s_median": round(stats.percentile(firsts, 50), 1) if found else None,
        "first_winner_s_worst": round(max(firsts), 1) if found else None,
        "confirmed_within_a_third": sum(shares),
        "accuracy_regret_mean_points": round(sum(points) / found, 2) if found else None,
        "objective_regret_mean_percent": round(sum(percents) / found, 2) if found else None,
    }


def _figure(entry, objective: str, workload) -> float:
    value = judge.ranking.figure(entry.observation, objective, workload)
    assert value is not None
    return value


def _regret(selection, full, criterion: str) -> float:
    """Points of accuracy that the search gave away; only where accuracy is the objective."""
    if full.winner is None or selection.requirements.objective != criterion:
        return 0.0
    if selection.winner is None:
        return math.inf
    best = _figure(full.winner, criterion, full.workload)
    return round(max(best - _figure(selection.winner, criterion, full.workload), 0.0), 3)


def _objective_regret(selection, full) -> float:
    """How much worse than the exhaustive winner in %, by the exhaustive search's figures."""
    objective = selection.requirements.objective
    if full.winner is None or objective == "accuracy":
        return 0.0
    if selection.winner is None:
        return math.inf
    same = next(e for e in full.ledger if e.variant.name == selection.selected)
    own, best = (_figure(e, objective, full.workload) for e in (same, full.winner))
    worse = best / own - 1 if objective == "throughput" else own / best - 1
    return round(100 * max(worse, 0.0), 2)


def false_prunes(grid: Grid, one: dict, selection, full) -> list[str]:
    """Variants dropped without measuring that hold all requirements and beat the search's winner.

    Dropped as hopeless: judged by the exhaustive search. Dropped by facts, which the exhaustive search drops
    too: judged by all their recorded calls.
    """
    requirements, workload = asked(one, grid)
    pruned = {e.variant.name for e in selection.ledger if e.observation.pruned is not None}
    entries = [
        e for e in full.ledger if e.status in ("selected", "meets") and e.variant.name != selection.selected
    ]
    mine = [selection.winner.observation] if selection.winner else []
    ranked = judge.rank([*(e.observation for e in entries), *mine], requirements.objective, workload)
    better = [each.variant.name for each in ranked]
    if mine:
        better = better[: better.index(selection.selected)]
    wrong = [name for name in better if name in pruned]
    for variant in grid.variants:
        recording = grid.recordings[variant.name]
        reason = ruled_out(variant, requirements, workload, grid.peaks, 15) or ""
        by_a_bound = reason.startswith(("latency", "throughput", "memory")) and recording.samples
        if by_a_bound and _holds(recording, requirements, workload):
            wrong.append(variant.name)
    return wrong


def _holds(recording: Recording, requirements: Requirements, workload: Workload) -> bool:
    calls = [s for launch in recording.samples for s in launch[workload.latency_scope]]
    limit, least = requirements.max_latency_ms, requirements.min_throughput
    fast = limit is None or stats.percentile(calls, workload.percentile) <= limit
    many = least is None or 1000 * len(calls) / sum(calls) >= least
    small = requirements.max_memory_mib is None or recording.memory.peak <= requirements.max_memory_mib
    return fast and many and small


# --- the real road --------------------------------------------------------------------------------


def live(path: Path, name: str) -> dict:
    """One set on the real road with a cold cache, beside what the replay of that set said."""
    one = next(each for each in SETS if each["name"] == name)
    grid = read_grid(path)
    full_seconds, full, _, _ = search(grid, one, exhaustive=True)
    requirements, workload = asked(one, grid)
    machine = hardware.facts(table=RUNTIMES)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["VITRAIL_CACHE"] = cache
        begin = time.monotonic()
        peaks = known_peaks(machine, hardware.usable_cores(), workload.device)
        bench = AvailableBench(
            workload=workload,
            photos=sample_photos(),
            finder=WeightsFinder(offline=True),
            machine=machine,
            calibration=calibration(),
            fresh=True,
        )
        looked = Search(
            requirements=requirements,
            settings=SETTINGS,
            bench=bench,
            peaks=peaks,
            variants=grid.variants,
            report=lambda step: print(f"[{step.done}] {step.entry.variant.name}", file=sys.stderr),
        )
        observations = looked.run()
        seconds = time.monotonic() - begin
    selection = judge.judge(observations, requirements, workload, hardware={})
    return {
        "set": name,
        "selected": selection.selected,
        "exhaustive_selected": full.selected,
        "seconds": round(seconds, 1),
        "fraction_of_exhaustive_time": round(seconds / full_seconds, 3),
        "measured": sum(e.observation.measurement is not None for e in selection.ledger),
    }


DEMO = ("--models", "tf_efficientnet_lite[012]*", "--min-accuracy", "70", "--objective", "latency",
        "--max-latency", "40ms", "--offline", "--fresh")  # fmt: skip
DEMO_BUDGETS_S = (30, 60)


def first(repeats: int = 2) -> dict:
    """Seconds from the command to its first confirmed winner, and what is selected, with an empty cache."""
    rows = []
    for budget in DEMO_BUDGETS_S:
        for _ in range(repeats):
            with tempfile.TemporaryDirectory() as folder:
                begin = time.monotonic()
                done = subprocess.run(
                    [
                        sys.executable,
                        "-m",
                        "vitrail",
                        "select",
                        *DEMO,
                        "--budget",
                        f"{budget}s",
                        "--json",
                        "-",
                    ],
                    env={**os.environ, "VITRAIL_CACHE": str(Path(folder) / "cache")},
                    stdout=subprocess.PIPE,
                )
                seconds = time.monotonic() - begin
            selection = json.loads(done.stdout)
            row = {
                "budget_s": budget,
                "first_winner_s": selection["method"]["first_winner_s"],
                "seconds": round(seconds, 1),
                "selected": selection["selected"],
            }
            rows.append(row)
            print(row)
    return {"machine": hardware.one_line(hardware.facts(table=RUNTIMES)), "date": today(), "runs": rows}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=("replay", "curves", "first", "live"))
    parser.add_argument("--grid", type=Path, default=GRID, help="a grid that selection_grid.py recorded")
    parser.add_argument("--set", default="20 ms", help="the requirement set of `live`")
    arguments = parser.parse_args()
    if arguments.part == "replay":
        result = replay(arguments.grid)
    elif arguments.part == "curves":
        result = curves(arguments.grid)
    elif arguments.part == "first":
        result = first()
    else:
        result = live(arguments.grid, arguments.set)
    print(json.dumps(result))


if __name__ == "__main__":
    main()

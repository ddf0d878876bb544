"""Does the search find what an exhaustive search finds, in a quarter of its time?

    python benchmarks/selection.py record    one exhaustive grid on this machine, resumable (about 40 minutes)
    python benchmarks/selection.py replay    24 requirement sets on the recorded grid, in simulated time
    python benchmarks/selection.py curves    the same sets under budgets of 30 s to 10 min
    python benchmarks/selection.py first     the demo's question on this machine, twice, with an empty cache
    python benchmarks/selection.py live      one of the sets on the real road, cold cache

Weights that are not at hand count as available and parity as passed: both are marked in the result. The
last line of standard output is one JSON document.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec
from replay import PASSED, Clock, Recording, ReplayBench

from vitrail import catalog, hardware, judge, stats
from vitrail.export.bench import Bench
from vitrail.export.variants import variants
from vitrail.images.photos import sample_photos
from vitrail.measure.peaks import known_peaks
from vitrail.measure.sandbox import ChildFailure
from vitrail.runtimes import RUNTIMES
from vitrail.selection.prune import ruled_out
from vitrail.selection.search import Search
from vitrail.vocabulary import Requirements, RunnerFacts, SearchSettings, Variant, Workload
from vitrail.weights.find import Located, WeightsFinder

RESULTS = Path(__file__).parent / "results"
LAUNCHES = 3
REQUEST_S, MODEL_S = 1.2, 0.4
"""Time of calls per launch and scope."""
EXPORT_TIMEOUT_S = 600.0

MODELS = (
    "resnet50.tv2_in1k",
    "vit_tiny_*", "vit_small_*", "vit_base_patch16_224.*", "vit_base_patch32_clip_*",
    "deit3_small_*", "deit3_medium_*",
    "swin_tiny_*", "swinv2_tiny_*",
    "convnext_atto.*", "convnext_nano.*", "convnext_tiny.*",
    "tf_efficientnetv2_b0.*", "tf_efficientnetv2_b3.*", "tf_efficientnetv2_s.*",
    "tf_efficientnet_lite[012]*",
    "mobilenetv3_*", "mobilenetv4_conv_small*", "mobilenetv4_conv_medium*",
    "mobilevit_xs*", "mobilevit_s.*",  "mobilevitv2_100*",
    "efficientvit_m4*", "efficientvit_m5*", "efficientvit_b0*", "efficientvit_b1*", "efficientvit_l1*",
    "fastvit_t8*", "fastvit_sa12*",
)  # fmt: skip


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


NOTHING = RunnerFacts(runtime="", version="", precision="", threads=0, graphs=())


class AvailableBench(Bench):
    """The real bench, with random weights standing in for all that are not at hand."""

    def weights(self, candidate):
        found = super().weights(candidate)
        return found or Located(Path("random"), dataclasses.replace(candidate.weights, sha256="random"))

    def weights_file(self, located):
        return None if located.path == Path("random") else super().weights_file(located)

    def parity(self, subject, left_s):
        super().parity(subject, left_s)  # its time counts, its answer means nothing on random weights
        return PASSED


def asked(one: dict) -> tuple[Requirements, Workload]:
    requirements = Requirements(license=("any",), **one["limits"])
    return requirements, Workload(
        threads=hardware.usable_cores(), latency_scope=one["scope"], percentile=one["percentile"]
    )


# The grid was recorded with timm's code for all architectures.
SEARCH = SearchSettings(
    models=MODELS, runtimes=("openvino", "onnxruntime"), implementations=("timm",), budget_s=1e6, fresh=True
)


def grid_variants() -> tuple[Variant, ...]:
    return variants(catalog.find(MODELS), Workload(), SEARCH)


# --- recording ------------------------------------------------------------------------------------


def record(path: Path) -> None:
    """Measure every variant of the grid and append it to `path`; what is there already is not repeated."""
    done = set(read_grid(path)) if path.exists() else set()
    machine = hardware.facts(table=RUNTIMES)
    workload = Workload(threads=hardware.usable_cores())
    with tempfile.TemporaryDirectory() as cache:
        os.environ["VITRAIL_CACHE"] = cache
        peaks = known_peaks(machine, hardware.usable_cores(), workload.device)
        bench = AvailableBench(
            workload=workload, photos=sample_photos(), finder=WeightsFinder(offline=True), machine=machine
        )
        if not path.exists():
            header = {"machine": machine, "peaks": peaks, "photos": sample_photos().evidence, "date": today()}
            _append(path, header)
        for candidate in catalog.find(MODELS):
            todo = [v for v in grid_variants() if v.candidate == candidate and v.name not in done]
            if todo:
                _record_candidate(bench, todo, path)


def _record_candidate(bench: AvailableBench, todo: list[Variant], path: Path) -> None:
    begin = time.monotonic()
    failure = None
    try:
        bench.export(todo[0], EXPORT_TIMEOUT_S)
    except ChildFailure as error:
        failure = str(error)
    export_s = time.monotonic() - begin
    for variant in todo:
        row = {"variant": variant.name, "export_s": export_s, "failure": failure}
        if failure is None:
            row |= _record_variant(bench, variant)
        _append(path, row)
        print(f"{variant.name:70} export {export_s:5.1f} s {row.get('failure') or ''}", file=sys.stderr)
    shutil.rmtree(bench._export_folder(todo[0]), ignore_errors=True)  # a grid of exports fills a disk


def _record_variant(bench: AvailableBench, variant: Variant) -> dict:
    subject = bench.subject(variant, bench.export(variant, EXPORT_TIMEOUT_S))
    launch_s, samples = [], []
    try:
        for number in range(1, LAUNCHES + 1):
            begin = time.monotonic()
            launch = subject.launch(number)
            launch_s.append(time.monotonic() - begin)
            samples.append({"request": _calls(launch, "request"), "model": _calls(launch, "model")})
            launch.close()
        begin = time.monotonic()
        bench.parity(subject, math.inf)
        parity_s = time.monotonic() - begin
    except ChildFailure as error:
        return {"failure": str(error)}
    return {
        "parity_s": parity_s,
        "launch_s": launch_s,
        "samples": samples,
        "memory": msgspec.to_builtins(subject.seen.memory),
        "facts": msgspec.to_builtins(subject.seen.facts),
    }


def _calls(launch, scope: str) -> list[float]:
    seconds = REQUEST_S if scope == "request" else MODEL_S
    first = list(launch.block(scope, 3).samples_ms)
    left = round(1000 * seconds / stats.percentile(first, 50)) - len(first)
    more = launch.block(scope, min(max(left, 5), 60)).samples_ms
    return [round(sample, 3) for sample in (*first, *more)]


def _append(path: Path, row: dict) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(row, separators=(",", ":")) + "\n")


# --- replaying ------------------------------------------------------------------------------------


def read_rows(path: Path) -> list[dict]:
    with path.open() as file:
        return [json.loads(line) for line in file if line.endswith("\n")]


def read_grid(path: Path) -> dict[str, Recording]:
    rows = [row for row in read_rows(path) if "variant" in row]
    models: dict[str, list[dict]] = {}
    for row in rows:
        models.setdefault(row["variant"].split()[0], []).append(row)
    for variants_of in models.values():
        _split_parity([row for row in variants_of if row["failure"] is None])
    return {row["variant"]: _recording(row) for row in rows}


def _split_parity(rows: list[dict]) -> None:
    """The first variant of a model also paid for the fp32 reference; the others tell what comparing takes."""
    if rows:
        compare = min(row["parity_s"] for row in rows)
        reference = max(rows[0]["parity_s"] - compare, 0.0)
        rows[0]["parity_s"] = compare
        for row in rows:
            row["reference_s"] = reference


def _recording(row: dict) -> Recording:
    plain = {key: row.get(key) for key in ("export_s", "failure")}
    if row["failure"] is None:
        plain |= {
            key: row[key] for key in ("reference_s", "parity_s", "launch_s", "samples", "memory", "facts")
        }
    else:
        nothing = {"peak": 0.0}
        facts = msgspec.to_builtins(NOTHING)
        plain |= {
            "reference_s": 0.0,
            "parity_s": 0.0,
            "launch_s": [],
            "samples": [],
            "memory": nothing,
            "facts": facts,
        }
    return msgspec.convert(plain, Recording)


def search(grid, peaks, one: dict, *, exhaustive: bool):
    """One search in simulated time; returns its seconds, selection and models exported."""
    requirements, workload = asked(one)
    clock = Clock()
    bench = ReplayBench(grid, workload, clock)
    looked = Search(
        requirements=requirements,
        settings=dataclasses.replace(SEARCH, exhaustive=exhaustive),
        bench=bench,
        peaks=peaks,
        variants=[v for v in grid_variants() if v.name in grid],
        clock=clock,
    )
    observations = looked.run()
    selection = judge.judge(observations, requirements, workload, hardware={})
    return clock.now, selection, bench.exports


def replay(path: Path) -> dict:
    grid = read_grid(path)
    header = read_rows(path)[0]
    rows = [_compare(grid, header["peaks"], one) for one in SETS]
    spent, exhaustive = sum(r["seconds"] for r in rows), sum(r["exhaustive_seconds"] for r in rows)
    return {
        "candidates": len({name.split("@")[0] for name in grid}),
        "variants": len(grid),
        "sets": len(SETS),
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
        "machine": header["machine"],
        "recorded": header["date"],
        "per_set": rows,
    }


def _compare(grid, peaks, one: dict) -> dict:
    seconds, selection, exports = search(grid, peaks, one, exhaustive=False)
    full_seconds, full, full_exports = search(grid, peaks, one, exhaustive=True)
    row = {
        "set": one["name"],
        "selected": selection.selected,
        "exhaustive_selected": full.selected,
        "accuracy_regret": _regret(selection, full, "accuracy"),
        "objective_regret_percent": _objective_regret(selection, full),
        "false_prunes": len(false_prunes(grid, peaks, one, selection, full)),
        "seconds": round(seconds, 1),
        "exhaustive_seconds": round(full_seconds, 1),
        "fraction": round(seconds / full_seconds, 3),
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
    grid, peaks = read_grid(path), read_rows(path)[0]["peaks"]
    full = {one["name"]: search(grid, peaks, one, exhaustive=True)[1] for one in SETS}
    answerable = [one for one in SETS if full[one["name"]].winner is not None]
    rows = [_under(grid, peaks, answerable, full, budget) for budget in BUDGETS_S]
    for row in rows:
        print(
            f"{row['budget_s']:4} s  {row['with_a_winner']}/{row['sets']} with a winner, {row['optimal']} of "
            f"them the best; first after {row['first_winner_s_median']} s (median)"
        )
    return {"sets": len(answerable), "budgets": rows, "recorded": read_rows(path)[0]["date"]}


def _under(grid, peaks, sets: list[dict], full: dict, budget_s: float) -> dict:
    firsts, points, percents, optimal, shares = [], [], [], 0, []
    for one in sets:
        requirements, workload = asked(one)
        clock = Clock()
        looked = Search(
            requirements=requirements,
            settings=dataclasses.replace(SEARCH, budget_s=budget_s),
            bench=ReplayBench(grid, workload, clock),
            peaks=peaks,
            variants=[v for v in grid_variants() if v.name in grid],
            clock=clock,
        )
        selection = judge.judge(looked.run(), requirements, workload, hardware={})
        if selection.winner is None:
            continue
        first = getattr(looked, "first_winner_s", None)
        firsts.append(clock.now if first is None else first)
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


def false_prunes(grid, peaks, one: dict, selection, full) -> list[str]:
    """Variants dropped without measuring that hold all requirements and beat the search's winner.

    Dropped as hopeless: judged by the exhaustive search. Dropped by facts, which the exhaustive search drops
    too: judged by all their recorded calls.
    """
    requirements, workload = asked(one)
    pruned = {e.variant.name for e in selection.ledger if e.observation.pruned is not None}
    feasible = [e for e in full.ledger if e.status in ("selected", "meets")]
    order = [
        each.variant.name
        for each in judge.rank([e.observation for e in feasible], requirements.objective, workload)
    ]
    place = order.index(selection.selected) if selection.selected in order else len(order)
    wrong = [name for name in order[:place] if name in pruned and name != selection.selected]
    by_facts = [v for v in grid_variants() if v.name in grid and not grid[v.name].failure]
    for variant in by_facts:
        reason = ruled_out(variant, requirements, workload, peaks, 15) or ""
        if reason.startswith(("latency", "throughput", "memory")) and _holds(
            grid[variant.name], requirements, workload
        ):
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
    grid, peaks = read_grid(path), read_rows(path)[0]["peaks"]
    _, full, _ = search(grid, peaks, one, exhaustive=True)
    full_seconds, _, _ = search(grid, peaks, one, exhaustive=True)
    requirements, workload = asked(one)
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
            fresh=True,
        )
        looked = Search(
            requirements=requirements,
            settings=SEARCH,
            bench=bench,
            peaks=peaks,
            variants=grid_variants(),
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


def today() -> str:
    return datetime.datetime.now(datetime.timezone.utc).date().isoformat()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=("record", "replay", "curves", "first", "live"))
    parser.add_argument(
        "--grid", type=Path, default=RESULTS / "selection-grid.jsonl", help="where the grid is"
    )
    parser.add_argument("--set", default="20 ms", help="the requirement set of `live`")
    arguments = parser.parse_args()
    if arguments.part == "record":
        record(arguments.grid)
        result = {"grid": str(arguments.grid), "variants": len(read_grid(arguments.grid))}
    elif arguments.part == "replay":
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

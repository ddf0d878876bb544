"""Does the method tell the truth? Five checks on this machine, with real weights and real engines.

    python benchmarks/truth.py [--quick] [--only PART ...] [--save [HARDWARE]]

Progress goes to stderr, a summary to stdout; the last stdout line is one JSON document. What each part
shows: benchmarks/README.md. Exit code 1 if a target is missed (with --quick the numbers are too few to say).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
MODEL = "tf_efficientnet_lite0.pypi"
SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Amounts:
    """How much of each part is done."""

    pairs: int = 200
    slow_pairs: int = 200
    fresh_runs: int = 2
    fresh_questions: tuple[str, ...] = ("accuracy", "latency")
    fresh_budget_s: float = 90.0
    repeats: int = 9
    repeat_s: float = 3.0
    seeds: int = 50
    sizes: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0, 10.0)


QUICK = Amounts(
    pairs=6,
    slow_pairs=6,
    fresh_questions=("latency",),
    fresh_budget_s=45.0,
    repeats=3,
    repeat_s=1.0,
    seeds=10,
    sizes=(0.3, 3.0),
)


class Setting:
    """The export that the parts share, made in a cache of its own."""

    def __init__(self, scope: str, precision: str) -> None:
        from vitrail import catalog, hardware
        from vitrail.export.bench import Bench
        from vitrail.images.photos import sample_photos
        from vitrail.runtimes import RUNTIMES
        from vitrail.vocabulary import Workload
        from vitrail.weights.find import WeightsFinder

        self.machine = hardware.facts(table=RUNTIMES)
        self.precision = precision
        self.candidate = catalog.find([MODEL])[0]
        self.bench = Bench(
            workload=Workload(threads=hardware.usable_cores(), latency_scope=scope),
            photos=sample_photos(),
            finder=WeightsFinder(offline=True),
            machine=self.machine,
            fresh=True,
        )

    def subject(self, precision: str | None = None) -> Any:
        """A new subject of the one OpenVINO export."""
        from vitrail.vocabulary import Variant

        variant = Variant(
            candidate=self.candidate,
            image_size=self.candidate.preprocess.image_size,
            runtime="openvino",
            precision=precision or self.precision,
        )
        return self.bench.subject(variant, self.bench.export(variant, timeout_s=300.0))

    def precisions(self) -> tuple[str, ...]:
        """Those that OpenVINO really runs on this CPU."""
        from vitrail.measure.sandbox import ChildFailure

        able = []
        for precision in ("fp32", "bf16"):
            try:
                self.subject(precision).launch(0).close()
            except ChildFailure as error:
                say("setting", f"no {precision} here: {error}")
            else:
                able.append(precision)
        return tuple(able)


def say(part: str, text: str) -> None:
    """One progress line."""
    print(f"[{part}] {text}", file=sys.stderr, flush=True)


# --- the parts ------------------------------------------------------------------------------------


def _aa(setting: Setting, amounts: Amounts, tell: Callable[[str], None]) -> Any:
    import truth_timing

    return truth_timing.a_a(setting.bench, setting.subject, pairs=amounts.pairs, say=tell)


def _slowdown(setting: Setting, amounts: Amounts, tell: Callable[[str], None]) -> Any:
    import truth_timing

    return truth_timing.slowdown(
        setting.bench, setting.subject, pairs=amounts.slow_pairs, share=0.10, say=tell
    )


def _fresh(setting: Setting, amounts: Amounts, tell: Callable[[str], None]) -> Any:
    import truth_timing

    return truth_timing.fresh(
        runs=amounts.fresh_runs, questions=amounts.fresh_questions, budget_s=amounts.fresh_budget_s, say=tell
    )


def _benchmark_app(setting: Setting, amounts: Amounts, tell: Callable[[str], None]) -> Any:
    import truth_timing

    subjects = {precision: setting.subject(precision) for precision in setting.precisions()}
    return truth_timing.benchmark_app(
        setting.bench, subjects, repeats=amounts.repeats, seconds=amounts.repeat_s, say=tell
    )


def _corruption(setting: Setting, amounts: Amounts, tell: Callable[[str], None]) -> Any:
    import truth_corruption

    subjects = {precision: setting.subject(precision) for precision in setting.precisions()}
    return truth_corruption.corruption(
        setting.bench, subjects, seeds=amounts.seeds, sizes=amounts.sizes, say=tell
    )


PARTS = {
    "aa": _aa,
    "slowdown": _slowdown,
    "fresh": _fresh,
    "benchmark_app": _benchmark_app,
    "corruption": _corruption,
}


# --- the whole ------------------------------------------------------------------------------------


def run(names: Sequence[str], amounts: Amounts, *, scope: str, precision: str, quick: bool) -> dict[str, Any]:
    """All asked parts; a part that breaks is reported and does not stop the others."""
    setting = Setting(scope, precision)
    document: dict[str, Any] = {
        "benchmark": "truth",
        "schema_version": SCHEMA_VERSION,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "quick": quick,
        "command": {"parts": list(names), "scope": scope, "precision": precision, "model": MODEL},
        "hardware": setting.machine,
        "versions": _versions(),
        "parts": {},
    }
    for name in names:
        begin, load = time.monotonic(), os.getloadavg()[0]
        try:
            summary, raw = PARTS[name](setting, amounts, lambda text, part=name: say(part, text))
        except Exception as error:
            say(name, f"broke: {type(error).__name__}: {error}")
            summary, raw = {"met": False, "broke": f"{type(error).__name__}: {error}"}, []
        seconds = round(time.monotonic() - begin, 1)
        document["parts"][name] = {**summary, "seconds": seconds, "load_before": load, "raw": raw}
    document["met"] = all(part["met"] for part in document["parts"].values())
    return document


def _versions() -> dict[str, str]:
    from vitrail import __version__, runtimes
    from vitrail.export.bench import METHOD_VERSION
    from vitrail.export.work import toolchain

    return {"vitrail": __version__, "method": METHOD_VERSION, **toolchain(), **runtimes.installed()}


def without_raw(document: dict[str, Any]) -> dict[str, Any]:
    """The document as it is printed: raw results stay in the saved file."""
    parts = {name: {k: v for k, v in part.items() if k != "raw"} for name, part in document["parts"].items()}
    return {**document, "parts": parts}


def lines(document: dict[str, Any]) -> list[str]:
    """The summary for people: one paragraph a part."""
    text = []
    for name, part in document["parts"].items():
        state = "met" if part["met"] else "MISSED"
        text.append(f"{name}: {state}{' (quick)' if document['quick'] else ''}, {part['seconds']:.0f} s")
        text += [f"    {line}" for line in _told(name, part)]
    return text


def _told(name: str, part: dict[str, Any]) -> list[str]:
    if "broke" in part:
        return [part["broke"]]
    told = [f"target: {part['target']}"]
    if name == "aa":
        low, high = part["share_interval"]
        spread = part["launch_spread"]
        told.append(f"{part['false_differences']} of {part['pairs']} told apart: {part['share']:.1%}")
        told.append(f"95 % interval [{low:.1%}, {high:.1%}]; by the ratio alone {part['by_ratio']}")
        told.append(f"launches of one export differ by {spread:.2%} (sd); assumed 1.5 %" if spread else "")
    elif name == "slowdown":
        low, high = part["share_interval"]
        told.append(f"{part['seen']} of {part['pairs']} seen: {part['share']:.1%} [{low:.1%}, {high:.1%}]")
        told.append(f"injected {part['injected']:.0%}, measured {part['ratio_median'] - 1:.1%} (median)")
    elif name == "fresh":
        told += [f"{objective}: {' | '.join(map(str, w))}" for objective, w in part["winners"].items()]
    elif name == "benchmark_app":
        for precision, row in part["medians"].items():
            ours, theirs = row["ours_ms"], row["benchmark_app_ms"]
            told.append(f"{precision}: ours {ours:.3f} ms, benchmark_app {theirs:.2f} ms: {row['ratio']:.3f}")
    else:
        told.append(f"{part['refused']} of {part['seeds']} refused at 3 times the bound")
        for curve in (part, *part["others"].values()):
            told.append(f"{curve['precision']}, bound {curve['bound']:g}:")
            for size, row in curve["curve"].items():
                told.append(f"{size:>6} x bound: {row['refused']} of {row['of']} refused")
    return [line for line in told if line]


def save(document: dict[str, Any], hardware: str) -> Path:
    """Write the document with all raw results, one a line, under a name that says hardware and date."""
    cpu, parts = document["hardware"]["cpu"], document["parts"]
    said = hardware or f"{cpu['model'] or cpu['architecture']} {cpu['usable_cores']}cores"
    some = [] if len(parts) == len(PARTS) else list(parts)
    if document["command"]["scope"] != "model":
        some.append(document["command"]["scope"])
    name = re.sub(r"[^a-z0-9]+", "-", " ".join(["truth", *some, said]).lower()).strip("-")
    marked = {key: {**part, "raw": f"@{key}"} for key, part in parts.items()}
    text = json.dumps({**document, "parts": marked}, indent=1)
    for key, part in parts.items():
        rows = ",\n".join(json.dumps(_rounded(row)) for row in part["raw"])
        text = text.replace(f'"@{key}"', f"[\n{rows}\n]")
    RESULTS.mkdir(exist_ok=True)
    target = RESULTS / f"{name}-{document['created'][:10]}.json"
    target.write_text(text + "\n", encoding="utf-8")
    return target


def _rounded(value: Any) -> Any:
    """Floats with six digits, all the way down."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list) else value


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--quick", action="store_true", help="a few of each, to see that it runs")
    parser.add_argument("--scope", choices=("model", "request"), default="model", help="of aa and slowdown")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of aa and slowdown")
    parser.add_argument("--pairs", type=int, help="of aa and slowdown; default 200")
    parser.add_argument(
        "--save",
        nargs="?",
        const="",
        metavar="HARDWARE",
        help="keep all raw results in benchmarks/results/; HARDWARE names the file (default: the CPU)",
    )
    args = parser.parse_args()
    amounts = QUICK if args.quick else Amounts()
    if args.pairs:
        amounts = Amounts(**{**vars(amounts), "pairs": args.pairs, "slow_pairs": args.pairs})
    with tempfile.TemporaryDirectory() as cache:
        # Exports and records of the benchmark never mix with the user's.
        os.environ["VITRAIL_CACHE"] = cache
        document = run(args.only, amounts, scope=args.scope, precision=args.precision, quick=args.quick)
    if args.save is not None:
        say("truth", f"saved {save(document, args.save)}")
    print("\n".join(lines(document)))
    print(json.dumps(without_raw(document)))
    return 0 if document["met"] or args.quick else 1


if __name__ == "__main__":
    sys.exit(main())

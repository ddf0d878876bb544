"""What optimising gives: exact forms against peers, int8 against peaks, and what int8 costs in answers.

    python benchmarks/optimize.py panel|int8|lite0|finetuned ... --work DIR [--photos DIR] [--prepare]
                                  [--minutes M] [--models NAME ...] [--batch N ...] [--peers DIR]
                                  [--textile DIR] [--trained RUN] [--fresh]

Exports and what is measured are kept in `--work`: a run that was ended goes on where it was, and `--prepare`
makes all files without timing anything. Progress goes to stderr; the last stdout line is one JSON document.
Needs an idle machine. How to read it: benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

SECTIONS = ("panel", "int8", "lite0", "finetuned")
SCHEMA_VERSION = 1
SECONDS = (2.0, 20.0)
"""Of timing a model at one batch size, at least and at most; how much of it there is, `--minutes` says."""
LOADING_S = 25.0
"""Assumed of a model at one batch size, beside its timing."""
SHARE = 4
"""One in so many of `--photos` calibrates, and does not judge."""


def say(words: str) -> None:
    """A line of progress."""
    print(words, file=sys.stderr, flush=True)


class Run:
    """Arguments, what they lead to, and the results kept from before."""

    def __init__(self, args: argparse.Namespace) -> None:
        import optimize_forms as forms

        from vitrail.images.photos import evenly_spaced, sample_photos

        self.args, self.work = args, args.work
        photos = (
            sorted(str(each) for each in args.photos.glob("*"))
            if args.photos
            else list(sample_photos().paths)
        )
        self.calibrating = evenly_spaced(photos, max(len(photos) // SHARE, min(len(photos), 10)))
        self.judging = [photo for photo in photos if photo not in set(self.calibrating)] or photos
        self.kitchen = forms.Kitchen(self.work, args.threads, self.calibrating)
        self.end = time.monotonic() + 60 * args.minutes

    def kept(self, name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """A result measured now, unless it is there; one that fails says why and does not stop others."""
        file = self.work / "results" / f"{name}.json"
        if file.is_file() and not self.args.fresh:
            found: dict[str, Any] = json.loads(file.read_text())
            return found
        begin = time.monotonic()
        try:
            found = measure()
        except Exception as error:  # whatever an engine or a peer does
            say(f"{name} failed: {error}")
            return {"failed": f"{type(error).__name__}: {error}"}
        found["took_s"] = round(time.monotonic() - begin, 1)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(found))
        return found

    def each(
        self, section: str, names: Sequence[str], measure: Callable[[str, int, float], dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """Every model at every batch size, the time that is left shared among them; [] out of time."""
        rows, units = [], [(name, batch) for name in names for batch in self.args.batch]
        for place, (name, batch) in enumerate(units):
            left = self.end - time.monotonic()
            if left <= 0:
                say(f"{section}: out of time, {len(units) - place} left for another run")
                break
            seconds = min(max(left / (len(units) - place) - LOADING_S, SECONDS[0]), SECONDS[1])
            found = self.kept(f"{section}-{name}-b{batch}", lambda: measure(name, batch, seconds))  # noqa: B023
            rows.append({"model": name, "batch": batch, **found})
        return rows


def panel(run: Run) -> dict[str, Any]:
    """See optimize_panel.py."""
    import optimize_panel as section

    names = run.args.models or section.MODELS
    if run.args.prepare:
        for name in names:
            for batch in run.args.batch:
                section.prepare(name, batch, run.kitchen)
                say(f"prepared {name} batch {batch}")
        return {}

    def measure(name: str, batch: int, seconds: float) -> dict[str, Any]:
        found = section.measure(name, batch, run.kitchen, seconds)
        say(section.line({"model": name, "batch": batch, **found}))
        return found

    rows = run.each("panel", names, measure)
    good = [row for row in rows if "failed" not in row]
    return {"rows": rows, "summary": section.summary(good), "lines": [section.line(row) for row in good]}


def int8(run: Run) -> dict[str, Any]:
    """See optimize_int8.py."""
    import optimize_int8 as section
    import optimize_peers as peers

    names = run.args.models or section.MODELS
    if run.args.prepare:
        for name in names:
            for batch in run.args.batch:
                section.task(name, batch, run.kitchen, 0.0, run.args.peers)
                say(f"prepared int8 {name} batch {batch}")
        return {}

    def measure(name: str, batch: int, seconds: float) -> dict[str, Any]:
        found = section.measure(name, batch, run.kitchen, seconds, run.args.peers)
        say(section.line({"model": name, "batch": batch, **found}))
        return found

    rows = run.each("int8", names, measure)
    good = [row for row in rows if "failed" not in row]
    versions = peers.versions(run.args.peers, peers.DISTRIBUTIONS) if run.args.peers else {}
    return {
        "rows": rows,
        "summary": section.summary(good),
        "peers": versions,
        "lines": [section.line(row) for row in good],
    }


def lite0(run: Run) -> dict[str, Any]:
    """See optimize_lite0.py."""
    import optimize_lite0 as section

    if run.args.prepare:
        section.prepare(run.kitchen)
        say("prepared lite0")
        return {}
    found = run.kept("lite0", lambda: section.measure(run.kitchen, run.judging, SECONDS[1]))
    return {**found, "lines": [] if "failed" in found else section.lines(found)}


def finetuned(run: Run) -> dict[str, Any]:
    """See optimize_finetuned.py."""
    import optimize_finetuned as section

    args, asked = run.args, []
    if args.textile:
        asked.append(("textile", str(args.textile), ("--models", "tf_efficientnet_lite0.pypi")))
    if args.trained:
        from vitrail.learn import trained

        asked.append(("trained", trained.read(args.trained).data, ("--trained", str(args.trained))))
    rows = []
    for name, data, which in asked:
        for runtime in ("openvino", "onnxruntime"):

            def measure() -> dict[str, Any]:
                return section.measure(name, data, which, run.work, args.budget, runtime)  # noqa: B023

            rows.append({"data": name, **run.kept(f"finetuned-{name}-{runtime}", measure)})
    return {"rows": rows, "lines": [section.line(row) for row in rows if "failed" not in row]}


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sections", nargs="+", choices=SECTIONS)
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="exports and results")
    parser.add_argument("--photos", type=Path, metavar="DIR", help="natural photos; default: the samples")
    parser.add_argument("--minutes", type=float, default=25.0, help="for the sections panel and int8")
    parser.add_argument("--models", nargs="+", metavar="NAME", help="timm's names; default: all of a section")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8], metavar="N")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--peers", type=Path, metavar="DIR", help="holds packages that only peers need")
    parser.add_argument("--textile", type=Path, metavar="DIR", help="a folder of labelled images to probe")
    parser.add_argument("--trained", type=Path, metavar="RUN", help="a folder of `vitrail train`")
    parser.add_argument("--budget", default="3m", help="of each selection of `finetuned`")
    parser.add_argument("--fresh", action="store_true", help="measure again what is kept")
    parser.add_argument("--prepare", action="store_true", help="only make the files")
    return parser.parse_args()


def main() -> int:
    """Run from the command line."""
    args = parsed()
    args.work = args.work.resolve()
    os.environ["VITRAIL_CACHE"] = str(args.work / "cache")
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(args.work / "inductor")
    from vitrail import hardware, runtimes

    run = Run(args)
    document: dict[str, Any] = {
        "benchmark": "optimize",
        "schema_version": SCHEMA_VERSION,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "hardware": hardware.facts(table=runtimes.RUNTIMES),
        "threads": args.threads,
        "load_before": os.getloadavg(),
        "photos": {"calibrating": len(run.calibrating), "judging": len(run.judging)},
    }
    try:
        for name in args.sections:
            found = {"panel": panel, "int8": int8, "lite0": lite0, "finetuned": finetuned}[name](run)
            print("\n".join(found.pop("lines", ())))
            document[name] = found
            if "summary" in found:
                print(json.dumps(found["summary"], indent=1))
    finally:
        run.kitchen.close()
    print(json.dumps(document))
    return 0


if __name__ == "__main__":
    sys.exit(main())

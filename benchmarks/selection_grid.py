"""Records and reads a grid of variants: what each export, launch and call took, on one machine.

    python benchmarks/selection_grid.py FILE    resumable: start it again (an hour on an idle machine)

The candidates below in all engines and precisions, as they are exported and as the passes rewrite them; a
row of JSON each. Weights that are not at hand are random, int8 is calibrated on the sample photos: both are
fine for times, and say nothing of accuracy.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
from replay import PASSED, Recording, graph_of

from vitrail import catalog, hardware, stats
from vitrail.export.bench import Bench
from vitrail.export.calibration import Calibration
from vitrail.export.exports import NothingToRewrite
from vitrail.export.variants import forms, variants
from vitrail.images.photos import sample_photos
from vitrail.measure.peaks import known_peaks
from vitrail.measure.sandbox import ChildFailure
from vitrail.runtimes import RUNTIMES
from vitrail.vocabulary import Candidate, Memory, RunnerFacts, SearchSettings, Variant, Workload
from vitrail.weights.find import Located, WeightsFinder

LAUNCHES = 2
REQUEST_S, MODEL_S = 0.5, 0.25
"""Time of calls per launch and scope."""
EXPORT_TIMEOUT_S = 600.0
REFERENCE_S, COMPARE_S, COMPARE_CALLS = 6.0, 1.0, 96
"""What parity takes where that was not recorded: in an earlier grid its reference took about so long."""
MOST_GMACS = 6.0

NOTHING = "nothing: "
FACTS = RunnerFacts(runtime="recorded", version="", precision="", threads=2, graphs=())

# One code for all architectures, so that what differs is the graph.
SETTINGS = SearchSettings(
    runtimes=("openvino", "onnxruntime"), implementations=("timm",), budget_s=1e6, fresh=True
)


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


def candidates() -> list[Candidate]:
    """Small enough to be exported in seconds; large and small in turn, as a recording may be cut off."""
    found = [each for each in catalog.find(("*",)) if each.macs <= MOST_GMACS * 1e9]
    found.sort(key=lambda each: each.macs)
    half = len(found) // 2
    pairs = [each for pair in zip(found[:half], found[half:], strict=False) for each in pair]
    return sorted([*pairs, *found[2 * half :]], key=lambda each: "pypi" not in each.name)


def grid_variants(found: Sequence[Candidate]) -> tuple[Variant, ...]:
    """All that may be in a grid, plain ones first."""
    every = forms(SETTINGS, Workload(), quality=False)
    made = variants(found, Workload(), SETTINGS, int8=True, forms=every)
    return tuple(sorted(made, key=lambda each: (len(each.passes), each.precision == "int8")))


def calibration() -> Calibration:
    """Of int8, where only its time matters."""
    photos = sample_photos()
    return Calibration(photos=photos.paths, digest=photos.digest, source="the sample photos")


def record(path: Path, minutes: float) -> None:
    """Measure the grid's variants and append them to `path`; what is there already is not repeated."""
    done = {row["variant"] for row in read_rows(path) if "variant" in row} if path.exists() else set()
    machine = hardware.facts(table=RUNTIMES)
    workload, photos = Workload(threads=hardware.usable_cores()), sample_photos()
    until = time.monotonic() + 60 * minutes
    with tempfile.TemporaryDirectory() as cache:
        os.environ["VITRAIL_CACHE"] = cache
        bench = AvailableBench(
            workload=workload,
            photos=photos,
            finder=WeightsFinder(offline=True),
            machine=machine,
            calibration=calibration(),
        )
        if not path.exists():
            peaks = [known_peaks(machine, hardware.usable_cores(), "cpu", fresh=True) for _ in range(3)]
            best = {
                runtime: {name: max(each[runtime][name] for each in peaks) for name in of}
                for runtime, of in peaks[0].items()
            }
            header = {"machine": machine, "peaks": best, "photos": photos.evidence, "date": today()}
            _append(path, header | {"load_before": os.getloadavg()[0], "launches": LAUNCHES})
        for candidate in candidates():
            todo = [v for v in grid_variants([candidate]) if v.name not in done]
            if todo and time.monotonic() < until:
                _record_candidate(bench, todo, path)
        bench.close()


def _record_candidate(bench: AvailableBench, todo: list[Variant], path: Path) -> None:
    failed: dict[object, str] = {}
    """By passes that have nothing to do, and by graph and engine: what came instead."""
    for variant in todo:
        graph = variant.passes, variant.precision == "int8"
        row: dict[str, object] = {"variant": variant.name}
        begin = time.monotonic()
        reason = failed.get(variant.passes) or failed.get((graph, variant.runtime))
        if reason is None:
            try:
                export = bench.export(variant, EXPORT_TIMEOUT_S)
                row["export_s"] = round(time.monotonic() - begin, 3)
                row |= _record_variant(bench, variant, export)
            except NothingToRewrite as error:
                reason = failed[variant.passes] = f"{NOTHING}{error}"
                row["export_s"] = round(time.monotonic() - begin, 3)
            except ChildFailure as error:
                reason = failed[graph, variant.runtime] = str(error)
                row["export_s"] = round(time.monotonic() - begin, 3)
        row["failure"] = reason
        _append(path, row)
        print(f"{variant.name:70} {row.get('export_s', 0.0):6.1f} s {reason or ''}", file=sys.stderr)
    shutil.rmtree(bench._export_folder(todo[0]), ignore_errors=True)  # a grid of exports fills a disk


def _record_variant(bench: AvailableBench, variant: Variant, export) -> dict:
    subject = bench.subject(variant, export)
    launch_s, samples = [], []
    for number in range(1, LAUNCHES + 1):
        begin = time.monotonic()
        launch = subject.launch(number)
        launch_s.append(round(time.monotonic() - begin, 3))
        samples.append({"request": _calls(launch, "request"), "model": _calls(launch, "model")})
        launch.close()
    return {
        "launch_s": launch_s,
        "samples": samples,
        "memory": msgspec.to_builtins(subject.seen.memory),
    }


def _calls(launch, scope: str) -> list[float]:
    seconds = REQUEST_S if scope == "request" else MODEL_S
    first = list(launch.block(scope, 3).samples_ms)
    left = round(1000 * seconds / stats.percentile(first, 50)) - len(first)
    more = launch.block(scope, min(max(left, 4), 30)).samples_ms
    return [round(sample, 2) for sample in (*first, *more)]


def _append(path: Path, row: dict) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(row, separators=(",", ":")) + "\n")


def read_rows(path: Path) -> list[dict]:
    with path.open() as file:
        return [json.loads(line) for line in file if line.endswith("\n")]


@dataclasses.dataclass(frozen=True)
class Grid:
    """A recorded grid, as a bench replays it."""

    header: dict
    recordings: dict[str, Recording]
    variants: tuple[Variant, ...]

    @property
    def peaks(self) -> dict:
        return self.header["peaks"]

    def middle_ms(self, engine: str) -> float:
        """The median over the models of what a call takes as exported, in ms, for `runtime precision`."""
        taken = [
            stats.percentile([s for launch in recording.samples for s in launch["model"]], 50)
            for name, recording in self.recordings.items()
            if name.endswith(engine) and recording.samples
        ]
        return stats.percentile(taken, 50)


def read_grid(path: Path) -> Grid:
    """The grid at `path`, of this form or of the older one without graphs of their own."""
    header, *rows = read_rows(path)
    found = {variant.name: variant for variant in grid_variants(catalog.find(("*",)))}
    groups: dict[tuple[str, int], list[dict]] = {}
    for row in rows:
        variant = found[row["variant"]]
        groups.setdefault((variant.candidate.name, variant.image_size), []).append(row)
    recordings: dict[str, Recording] = {}
    for group in groups.values():
        recordings |= _recordings(group, found)
    return Grid(header, recordings, tuple(found[row["variant"]] for row in rows))


def _recordings(rows: list[dict], found: dict[str, Variant]) -> dict[str, Recording]:
    """Of one model: its first row paid for the export, the first of each graph for making that."""
    made: dict[object, float] = {}
    for row in rows:
        graph = graph_of(found[row["variant"]])
        made[graph] = max(made.get(graph, 0.0), row.get("export_s", 0.0))
    compared = [row["parity_s"] for row in rows if "parity_s" in row]
    reference_s = max(compared[0] - min(compared), 0.0) if compared else REFERENCE_S
    recordings = {}
    for row in rows:
        samples = row.get("samples", [])
        calls = [s for launch in samples for s in launch["model"]]
        assumed = COMPARE_S + COMPARE_CALLS * stats.percentile(calls, 50) / 1000 if calls else 0.0
        graph = graph_of(found[row["variant"]])
        failure = row["failure"] or ""
        nothing = failure.startswith(NOTHING)
        recordings[row["variant"]] = Recording(
            export_s=made[graph_of(found[row["variant"]].plain, int8=False)],
            made_s=made[graph] if any(graph) else 0.0,
            reference_s=reference_s,
            parity_s=min(compared) if row is rows[0] and compared else row.get("parity_s", assumed),
            launch_s=tuple(row.get("launch_s", ())),
            samples=tuple(samples),
            memory=msgspec.convert(row.get("memory", {"peak": 0.0}), Memory),
            facts=FACTS,
            failure=None if nothing else row["failure"],
            nothing=failure.removeprefix(NOTHING) if nothing else None,
        )
    return recordings


def today() -> str:
    return datetime.datetime.now(datetime.timezone.utc).date().isoformat()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("grid", type=Path, help="where the grid is, or will be")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no model after so many")
    arguments = parser.parse_args()
    record(arguments.grid, arguments.minutes)


if __name__ == "__main__":
    main()

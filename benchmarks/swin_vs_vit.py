"""ViT-B/16 against Swin-B on this machine: memory and time at 224 px, at 1024 px, and in between.

    python benchmarks/swin_vs_vit.py [--quick] [--work DIR] [--save [HARDWARE]]

Every point is a process of its own, so that no point inherits another's memory. With `--work` the finished
points and the exports stay there, and the same command goes on where it was. Weights are random: neither time
nor memory depends on them; the accuracies are the catalogue's. Progress goes to stderr, a summary to stdout;
the last stdout line is one JSON document. How to read it: benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
SCHEMA_VERSION = 1
VIT, SWIN = "vit_base_patch16_224", "swin_base_patch4_window7_224"
TINY_VIT, TINY_SWIN = "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"
SIZES = (224, 384, 512, 768, 1024, 1280, 1536)
NAIVE_SIZES = (224, 384, 512, 768, 1024)
"""The written-out attention of a larger ViT takes minutes and most of the memory of such machines."""
LIMIT_MIB = 20_000
TIMEOUT_S = 300.0


@dataclass(frozen=True, kw_only=True)
class Point:
    """What one child measures."""

    part: str
    """growth or throughput."""
    model: str
    size: int
    batch: int = 1
    precision: str = "fp32"
    attention: str = "auto"
    runtime: str = "eager"
    """eager or openvino."""
    launch: int = 0
    seconds: float = 3.0
    """Time for repeated calls after the first; at least two are made."""

    @property
    def key(self) -> str:
        return "/".join(str(value) for value in asdict(self).values())


def points(*, quick: bool) -> list[Point]:
    """All of them, in the order in which they are measured: the two models take turns."""
    vit, swin = (TINY_VIT, TINY_SWIN) if quick else (VIT, SWIN)
    sizes, naive = ((224, 384), (224,)) if quick else (SIZES, NAIVE_SIZES)
    seconds = 0.2 if quick else 3.0
    found = [
        Point(part="throughput", model=model, size=224, batch=8, launch=launch, seconds=seconds, **how)
        for launch in range(1 if quick else 2)
        for how in (
            {"precision": "fp32"},
            {"precision": "bf16"},
            {"precision": "bf16", "runtime": "openvino"},
        )
        for model in (vit, swin)
    ]
    for size in sizes:
        growth = {"part": "growth", "size": size, "seconds": seconds}
        found += [Point(model=vit, **growth), Point(model=swin, **growth)]
        if size in naive:
            found.append(Point(model=vit, attention="naive", **growth))
    return found


# --- in the child ---------------------------------------------------------------------------------


def measure_here(payload: dict[str, Any]) -> dict[str, Any]:
    """One point in this fresh process: times of calls in ms and, of eager runs, memory in MiB.

    `run_mib` is the peak during the first call over what was resident with model and image loaded:
    activations, and some tens of MiB of code and buffers that the kernels take when first used.
    """
    point = Point(**payload["point"])
    if point.runtime == "openvino":
        return {"ms": _openvino_times(point, Path(payload["exports"]), payload["threads"])}
    import torch

    from vitrail import footprint
    from vitrail.models import build
    from vitrail.profiling import malloc

    torch.set_num_threads(payload["threads"])
    torch.manual_seed(0)
    dtype = torch.bfloat16 if point.precision == "bf16" else torch.float32
    model = build(point.model, image_size=point.size, attention=point.attention).to(dtype)
    images = torch.rand(point.batch, 3, point.size, point.size).to(dtype)
    gc.collect()
    malloc.give_back()
    loaded = footprint.resident_mib()
    footprint.restart_peak()
    with torch.inference_mode():
        begin = time.perf_counter()
        model(images)
        first = time.perf_counter() - begin
        peak = footprint.peak_mib()
        times = _times(lambda: model(images), point.seconds)
    return {
        "ms": times,
        "first_ms": first * 1e3,
        "loaded_mib": loaded,
        "peak_mib": peak,
        "run_mib": peak - loaded,
    }


def _times(call: Callable[[], Any], seconds: float) -> list[float]:
    """Milliseconds of each call; at least two, then until the time is over."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 2 or time.perf_counter() < end:
        begin = time.perf_counter()
        call()
        times.append((time.perf_counter() - begin) * 1e3)
    return times


def _openvino_times(point: Point, exports: Path, threads: int) -> list[float]:
    """Times of the export, through the runner that is shipped; it refuses another precision than asked."""
    import engines
    import numpy as np

    runner = engines.load(
        _export_folder(exports, point),
        "openvino",
        size=point.size,
        batch=point.batch,
        precision=point.precision,
        threads=threads,
    )
    images = np.random.default_rng(0).random((point.batch, 3, point.size, point.size), dtype=np.float32)
    for _ in range(2):
        runner.run({engines.INPUT: images})
    times = _times(lambda: runner.run({engines.INPUT: images}), point.seconds)
    runner.close()
    return times


def export_here(payload: dict[str, Any]) -> None:
    """Write the point's ONNX and OpenVINO files."""
    import engines
    import torch

    from vitrail.models import build

    point = Point(**payload["point"])
    torch.manual_seed(0)
    model = build(point.model, image_size=point.size)
    folder = _export_folder(Path(payload["exports"]), point)
    folder.mkdir(parents=True)
    engines.write(model, folder, point.size)


def _export_folder(exports: Path, point: Point) -> Path:
    return exports / f"{point.model}-{point.size}"


# --- the parent -----------------------------------------------------------------------------------


class Machine:
    """Children for points; finished ones are kept in a file and not measured again."""

    def __init__(self, work: Path, threads: int) -> None:
        self.work, self.threads = work, threads
        self._kept = work / "points.jsonl"
        self._known: dict[str, dict[str, Any]] = {}
        if self._kept.exists():
            rows = map(json.loads, self._kept.read_text(encoding="utf-8").splitlines())
            self._known = {Point(**row["point"]).key: row for row in rows}

    def measure(self, point: Point) -> dict[str, Any]:
        """The row of a point: itself, what the child found, and the load before it."""
        from vitrail.measure.sandbox import ChildFailure

        if point.key not in self._known:
            if point.runtime == "openvino" and not _export_folder(self.work, point).exists():
                say(f"exporting {point.model}")
                self._child("export_here", point)
            row: dict[str, Any] = {"point": asdict(point), "load_before": round(os.getloadavg()[0], 2)}
            try:
                row |= self._child("measure_here", point)
            except ChildFailure as failure:
                row["failed"] = str(failure)
            with self._kept.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            self._known[point.key] = row
        return self._known[point.key]

    def _child(self, function: str, point: Point) -> Any:
        from vitrail.measure import sandbox

        payload = {"point": asdict(point), "exports": str(self.work), "threads": self.threads}
        return sandbox.call(
            f"swin_vs_vit:{function}", payload, timeout_s=TIMEOUT_S, memory_mib=LIMIT_MIB, name=point.model
        )


def facts(model: str) -> dict[str, Any]:
    """Published accuracies of all catalogued weights of an architecture; parameters and MACs counted here."""
    import torch

    from vitrail import catalog
    from vitrail.models import build
    from vitrail.profiling import cost

    with torch.device("meta"):
        counted = cost.count(build(model), 224)
    return {
        "parameters": counted.parameters,
        "macs_224": counted.macs,
        "published": [
            {"weights": c.name, "image_size": c.preprocess.image_size, "top1": c.accuracy.value,
             "source": c.accuracy.source}
            for c in catalog.candidates()
            if c.architecture == model and c.accuracy is not None
        ],
    }  # fmt: skip


def predicted(model: str, sizes: Sequence[int]) -> Iterator[dict[str, Any]]:
    """What `vitrail memory` predicts for the written-out attention where it was not run."""
    from vitrail.measure.sandbox import ChildFailure
    from vitrail.profiling.memory import MemorySetup, predict

    for size in sizes:
        try:
            answer = predict(MemorySetup(model=model, image_size=size, attention="naive"))["predicted_mib"]
        except ChildFailure as failure:
            yield {"model": model, "size": size, "failed": str(failure)}
            continue
        run = sum(answer[role] for role in ("input", "activations", "attention", "allowance"))
        yield {"model": model, "size": size, "run_mib": run, "total_mib": answer["total"]}


def run(work: Path, *, quick: bool) -> dict[str, Any]:
    """All points, as the document."""
    from vitrail import hardware
    from vitrail.runtimes import RUNTIMES

    machine = hardware.facts(table=RUNTIMES)
    bench = Machine(work, hardware.usable_cores())
    begin, rows, asked = time.monotonic(), [], points(quick=quick)
    for number, point in enumerate(asked, start=1):
        rows.append(bench.measure(point))
        say(f"[{number}/{len(asked)}] {_described(rows[-1])}")
    models = (TINY_VIT, TINY_SWIN) if quick else (VIT, SWIN)
    beyond = (512,) if quick else tuple(s for s in SIZES if s not in NAIVE_SIZES)
    return {
        "benchmark": "swin_vs_vit",
        "schema_version": SCHEMA_VERSION,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "quick": quick,
        "seconds": round(time.monotonic() - begin, 1),
        "hardware": machine,
        "models": {model: facts(model) for model in models},
        "throughput": list(_throughput(rows)),
        "growth": list(_growth(rows)),
        "predicted_naive": list(predicted(models[0], beyond)),
        "points": rows,
    }


def _throughput(rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Images/s at the median of all launches' calls, and that median of each launch."""
    groups: dict[tuple[Any, ...], list[list[float]]] = {}
    for row in rows:
        point = row["point"]
        if point["part"] == "throughput" and "ms" in row:
            key = (point["model"], point["runtime"], point["precision"], point["batch"])
            groups.setdefault(key, []).append(row["ms"])
    for (model, runtime, precision, batch), launches in groups.items():
        median = statistics.median(ms for times in launches for ms in times)
        yield {
            "model": model,
            "runtime": runtime,
            "precision": precision,
            "batch": batch,
            "median_ms": median,
            "images_per_s": 1e3 * batch / median,
            "launch_medians_ms": [statistics.median(times) for times in launches],
        }


def _growth(rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for row in rows:
        point = row["point"]
        if point["part"] == "growth":
            known = {name: row[name] for name in ("run_mib", "peak_mib", "failed") if name in row}
            ms = {"median_ms": statistics.median(row["ms"])} if "ms" in row else {}
            yield {name: point[name] for name in ("model", "size", "attention")} | ms | known


def lines(document: dict[str, Any]) -> list[str]:
    """The summary for people."""
    told = []
    for model, known in document["models"].items():
        said = ", ".join(f"{p['weights'].split('.')[1]} {p['top1']:.1f} %" for p in known["published"])
        size = f"{known['parameters'] / 1e6:.1f} M, {known['macs_224'] / 1e9:.1f} GMACs"
        told.append(f"{model}: {size}; published {said}")
    told += [
        f"{each['model']:<30} 224 px batch {each['batch']} {each['runtime']} {each['precision']}: "
        f"{each['images_per_s']:.1f} images/s"
        for each in document["throughput"]
    ]
    return told + [
        f"{each['model']:<30} {each['size']:>4} px fp32 {each['attention']:<5} "
        + (each.get("failed") or f"{each['median_ms']:>8.0f} ms  +{each['run_mib']:.0f} MiB")
        for each in document["growth"]
    ]


def _described(row: dict[str, Any]) -> str:
    point = row["point"]
    name = f"{point['model']} {point['size']} px {point['runtime']} {point['precision']} {point['attention']}"
    return f"{name}: " + (row.get("failed") or f"{statistics.median(row['ms']):.0f} ms")


def save(document: dict[str, Any], hardware: str) -> Path:
    """Write the document, a point a line, under a name that says hardware and date."""
    cpu = document["hardware"]["cpu"]
    said = hardware or f"{cpu['model'] or cpu['architecture']} {cpu['usable_cores']}cores"
    name = re.sub(r"[^a-z0-9]+", "-", f"swin-vs-vit {said}".lower()).strip("-")
    rows = ",\n".join(json.dumps(row) for row in document["points"])
    text = json.dumps({**document, "points": "@points"}, indent=1).replace('"@points"', f"[\n{rows}\n]")
    RESULTS.mkdir(exist_ok=True)
    target = RESULTS / f"{name}-{document['created'][:10]}.json"
    target.write_text(text + "\n", encoding="utf-8")
    return target


def say(words: str) -> None:
    """A line of progress."""
    print(words, file=sys.stderr, flush=True)


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny models and sizes, to see that it runs")
    parser.add_argument(
        "--work", type=Path, help="keep exports and finished points here, and go on from them"
    )
    parser.add_argument(
        "--save", nargs="?", const="", metavar="HARDWARE", help="keep it in benchmarks/results/"
    )
    args = parser.parse_args()
    # Children import this file by its name.
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")])
    )
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        document = run(work, quick=args.quick)
    if args.save is not None:
        say(f"saved {save(document, args.save)}")
    print("\n".join(lines(document)))
    print(json.dumps({key: value for key, value in document.items() if key != "points"}))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Are our architectures faster and leaner than their peers, with the same weights, threads and inputs?

    python benchmarks/architectures.py [--part eager memory exported] [--only NAME ...] [--seconds 12]
                                       [--save [HARDWARE]] [--quick]

eager     ours, timm's, torchvision's and transformers', in one process, taking turns in random order
memory    the same, each in a process of its own: peak above the loaded model
exported  ours and timm's through the same exporter, each engine's two runners taking turns

Ratios are peer / ours of medians: above 1 ours is faster, or takes less. The last line of standard output
is one JSON document.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import engines
import numpy as np
import torch
from architecture_peers import CASES, build

from vitrail import footprint, hardware
from vitrail.export import work
from vitrail.measure import sandbox
from vitrail.profiling import malloc

RESULTS = Path(__file__).parent / "results"
LIBRARIES = ("vitrail", "timm", "torchvision", "transformers")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
ENGINES = (("openvino", "fp32"), ("openvino", "bf16"), ("onnxruntime", "fp32"))
THREADS = hardware.usable_cores()
MIB = 2**20


def settings(case: str) -> list[tuple[int, int]]:
    """(image size, batch size)"""
    small, large = CASES[case].sizes
    return [(small, 1), (small, 8), (large, 1)]


def in_turns(calls: dict[str, Callable[[], object]], seconds: float, least: int = 3) -> dict[str, float]:
    """Median time of each in ms; every round calls all of them once, in random order."""
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    order, end = list(calls), time.perf_counter() + seconds
    generator = random.Random(0)
    while len(times[order[0]]) < least or time.perf_counter() < end:
        generator.shuffle(order)
        for name in order:
            begin = time.perf_counter()
            calls[name]()
            times[name].append((time.perf_counter() - begin) * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def eager(case: str, seconds: float) -> list[dict[str, object]]:
    rows = []
    for size in CASES[case].sizes:
        built = {name: model for name in LIBRARIES if (model := build(case, name, size)) is not None}
        for precision, dtype in DTYPES.items():
            on = {name: model.to(dtype) for name, model in built.items()}
            for image_size, batch in settings(case):
                if image_size != size:
                    continue
                images = torch.randn(batch, 3, size, size).to(dtype)
                with torch.inference_mode():
                    calls = {name: partial(model, images) for name, model in on.items()}
                    apart = _difference(on["vitrail"](images), on["timm"](images))
                    times = in_turns(calls, seconds)
                rows.append(_row(case, size, batch, precision, times, "ms", difference=apart))
        del built, on
        gc.collect()
    return rows


def memory(case: str) -> list[dict[str, object]]:
    size, rows = CASES[case].sizes[1], []
    for precision in DTYPES:
        peaks = {}
        for name in LIBRARIES:
            if name == "torchvision" and CASES[case].torchvision is None:
                continue
            payload = {"case": case, "library": name, "size": size, "precision": precision}
            answer = sandbox.call("architectures:peak", payload, timeout_s=300, memory_mib=12_000)
            peaks[name] = float(answer["mib"])
        rows.append(_row(case, size, 1, precision, peaks, "mib"))
    return rows


def peak(payload: dict[str, object]) -> dict[str, float]:
    """In a child: the highest resident memory of one call above that of the loaded model, in MiB."""
    torch.set_num_threads(THREADS)
    dtype = DTYPES[str(payload["precision"])]
    size = int(str(payload["size"]))
    model = build(str(payload["case"]), str(payload["library"]), size)
    assert model is not None
    model = model.to(dtype)
    images = torch.randn(1, 3, size, size).to(dtype)
    with torch.inference_mode():
        _warm_up(dtype)
        gc.collect()
        # Building ours frees a copy of timm's: what malloc kept of it must not serve the call for nothing.
        malloc.give_back()
        footprint.restart_peak()
        before = footprint.peak_mib()
        model(images)
    return {"mib": footprint.peak_mib() - before}


def _warm_up(dtype: torch.dtype) -> None:
    """Kernels load their code and threads their stacks at the first call: that is no model's memory."""
    x = torch.randn(1, 4, 64, 64).to(dtype)
    torch.nn.functional.scaled_dot_product_attention(x, x, x)
    torch.nn.functional.conv2d(x, torch.zeros(4, 4, 4, 4, dtype=dtype), stride=4)
    torch.nn.functional.layer_norm(torch.nn.functional.gelu(x @ x), (64,)).softmax(-1)


def exported(case: str, seconds: float) -> list[dict[str, object]]:
    rows = []
    for size in CASES[case].sizes:
        with tempfile.TemporaryDirectory() as folder:
            for name in ("vitrail", "timm"):
                model = build(case, name, size)
                assert model is not None
                (Path(folder) / name).mkdir()
                engines.write(model, Path(folder) / name, size)
                del model
            for image_size, batch in settings(case):
                if image_size == size:
                    rows += [
                        _engine(case, Path(folder), size, batch, engine, precision, seconds)
                        for engine, precision in ENGINES
                    ]
    return rows


def _engine(
    case: str, folder: Path, size: int, batch: int, engine: str, precision: str, seconds: float
) -> dict[str, object]:
    runners = {
        name: engines.load(
            folder / name, engine, size=size, batch=batch, precision=precision, threads=THREADS
        )
        for name in ("vitrail", "timm")
    }
    images = np.random.default_rng(0).standard_normal((batch, 3, size, size), dtype=np.float32)
    inputs = {engines.INPUT: images}
    outputs = {name: torch.from_numpy(r.run(inputs)[engines.OUTPUT]) for name, r in runners.items()}
    times = in_turns({n: (lambda r=runner: r.run(inputs)) for n, runner in runners.items()}, seconds, least=5)
    for runner in runners.values():
        runner.close()
    apart = _difference(outputs["vitrail"], outputs["timm"])
    return _row(case, size, batch, precision, times, "ms", engine=engine, difference=apart)


def _difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours.float() - theirs.float()).norm() / theirs.float().norm())


def _row(
    case: str, size: int, batch: int, precision: str, values: dict[str, float], unit: str, **more: object
) -> dict[str, object]:
    peers = {name: value for name, value in values.items() if name != "vitrail"}
    best = min(peers, key=lambda name: peers[name])
    row: dict[str, object] = {
        "model": case, "image_size": size, "batch_size": batch, "precision": precision, **more,
        unit: {name: round(value, 2) for name, value in values.items()},
        "best_peer": best, "ratio": round(peers[best] / values["vitrail"], 3),
    }  # fmt: skip
    print(json.dumps(row), file=sys.stderr, flush=True)
    return row


def summary(found: dict[str, list[dict[str, object]]]) -> dict[str, object]:
    """The least and the median ratio of each group that the aims speak of."""
    groups: dict[str, list[float]] = {}
    for part, rows in found.items():
        for row in rows:
            family = "Swin" if str(row["model"]).startswith("Swin") else "ViT"
            large = "large" if row["image_size"] == CASES[str(row["model"])].sizes[1] else "small"
            engine = f" {row['engine']}" if "engine" in row else ""
            groups.setdefault(f"{part}{engine} {family} {large} {row['precision']}", []).append(
                float(str(row["ratio"]))
            )
    return {
        name: {"least": min(ratios), "median": round(statistics.median(ratios), 3), "rows": len(ratios)}
        for name, ratios in groups.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", nargs="+", default=["eager", "memory", "exported"], help="parts to run")
    parser.add_argument("--only", nargs="+", choices=tuple(CASES), default=list(CASES), metavar="NAME")
    parser.add_argument("--seconds", type=float, default=12.0, help="time for each row's rounds")
    parser.add_argument("--quick", action="store_true", help="a fifth of a second a row: to see that it runs")
    parser.add_argument("--save", nargs="?", const="this-machine", metavar="HARDWARE")
    arguments = parser.parse_args()
    seconds = 0.2 if arguments.quick else arguments.seconds
    torch.set_num_threads(THREADS)
    # Children import this file.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    parts: dict[str, Callable[[str], list[dict[str, object]]]] = {
        "eager": lambda case: eager(case, seconds),
        "memory": memory,
        "exported": lambda case: exported(case, seconds),
    }
    found = {part: [row for case in arguments.only for row in parts[part](case)] for part in arguments.part}
    document = {
        "threads": THREADS, "load_before": Path("/proc/loadavg").read_text().split()[0],
        "date": datetime.date.today().isoformat(), "machine": hardware.facts(), "toolchain": work.toolchain(),
        "summary": summary(found), "rows": found,
    }  # fmt: skip
    if arguments.save:
        name = f"architectures-{'-'.join(arguments.part)}-{arguments.save}-{document['date']}.json"
        (RESULTS / name).write_text(json.dumps(document, indent=1) + "\n")
    for name, ratios in document["summary"].items():
        print(
            f"{name:44s} least {ratios['least']:.2f}  median {ratios['median']:.2f}  ({ratios['rows']} rows)"
        )
    print(json.dumps(document))


if __name__ == "__main__":
    main()

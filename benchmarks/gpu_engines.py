"""The section of gpu.py that measures Vitrail's engines on the device, by its own command.

The article's table: Swin-B, batch 32, eager, mixed precision, then each engine that ships. Weights are
random, which changes no time; parity is measured where they are not (`vitrail optimize` on a real model).
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from gpu_timing import Setting

from vitrail import runtimes

MODEL = "swin_base_patch4_window7_224.ms_in1k"
SMALL = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
BATCH = 32
END_S = 6.0
"""Kept for the end of the section."""
LEFT_OUT = ("pytorch-compiled", "pytorch-aot")
"""They take a minute to compile; the section `compiled` has the first."""


def names(device: str) -> list[str]:
    """The engines that are installed and run on the device, references first."""
    there = runtimes.installed()
    kept = [
        name
        for name, row in runtimes.RUNTIMES.items()
        if name in there and row.on(device) and name not in LEFT_OUT
    ]
    return sorted(kept, key=lambda name: not runtimes.RUNTIMES[name].reference)


def engines(here: Setting) -> None:
    """A row for each engine, precision and pass: ms of the model with its copies, over eager fp32."""
    out = Path(here.folder) / "engines.json"
    model, batch, size = (SMALL, 2, 64) if here.small else (MODEL, BATCH, 224)
    asked = ["pytorch", "onnxruntime"] if here.small else names(here.device)
    command = [sys.executable, "-m", "vitrail", "optimize", model, "--random-weights"]
    command += ["--device", here.device, "--batch-size", str(batch), "--image-size", str(size)]
    command += ["--runtimes", *asked, "--passes", "none", *(["--precisions", "fp32"] if here.small else [])]
    command += ["--budget", f"{max(here.left_s - END_S, 5.0):.0f}s", "--offline", "--json", str(out)]
    here.row(kind="asked", command=command[1:], installed=runtimes.installed())
    begin = time.monotonic()
    made = subprocess.run(command, capture_output=True, text=True, timeout=max(here.left_s - 1.0, 1.0))
    seconds = time.monotonic() - begin
    here.row(kind="printed", code=made.returncode, seconds=seconds, printed=made.stdout[-6000:])
    if not out.is_file():
        raise RuntimeError(f"ended with code {made.returncode}: {made.stderr[-600:]}")
    for row in rows(json.loads(out.read_text())):
        here.row(kind="engine", batch=batch, **row)


def rows(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The document's rows, fastest first: each with its figures, or why it has none."""
    variants = document["variants"]
    base = next((v for v in variants if (v["runtime"], v["precision"]) == ("pytorch", "fp32")), None)
    eager = ms(base) if base else None
    found = []
    for variant in sorted(variants, key=lambda each: ms(each) or float("inf")):
        took = ms(variant)
        row = {
            "runtime": variant["runtime"],
            "precision": variant["precision"],
            "settings": variant["settings"],
            "ms": took,
            "over_eager": eager / took if eager and took else None,
            "memory_mib": variant["memory_mib"],
            "flags": variant["flags"],
            "engine": variant["engine"],
            "made": variant["made"],
            "why": variant["failure"] or "; ".join(variant["reasons"]),
        }
        times = f"{row['over_eager']:.2f} × eager fp32" if row["over_eager"] else row["why"]
        shown = "not measured" if took is None else f"{took:8.2f} ms"
        found.append({**row, "said": f"{row['runtime']:<17} {row['precision']:<5} {shown}, {times}"})
    return found


def ms(variant: dict[str, Any]) -> float | None:
    """The median of the model alone; None: it was not measured."""
    figures = (variant["latency_ms"] or {}).get("model")
    return None if figures is None else float(figures["p50"])

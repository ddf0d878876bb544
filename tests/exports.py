"""Exports for tests: the graph of a classifier, its files for every engine, and its scores."""

from __future__ import annotations

from pathlib import Path

import engines
import numpy as np
from engines import graph_of
from torch import nn

from vitrail import runtimes
from vitrail.export import onnx, work


def write(model: nn.Module, folder: Path, size: int, classes: int, *, openvino: bool = True) -> None:
    """The ONNX file and what OpenVINO builds of it."""
    onnx.write_onnx(model, graph_of(size, classes), folder / work.ONNX_FILE)
    if openvino:
        build(folder)


def build(folder: Path) -> None:
    """OpenVINO's files."""
    work.build({"folder": str(folder), "runtime": "openvino", "target": str(folder / "openvino")})


def load(
    folder: Path,
    runtime: str,
    *,
    batch: int,
    size: int,
    classes: int,
    precision: str = "fp32",
    threads: int = 2,
) -> runtimes.Runner:
    """One engine with the export in `folder`."""
    return engines.load(
        folder, runtime, size=size, batch=batch, precision=precision, threads=threads, classes=classes
    )


def scores(runner: runtimes.Runner, images: np.ndarray) -> np.ndarray:
    """float32 (B, K) of float32 (B, 3, H, W)."""
    return runner.run({"images": images})["scores"]

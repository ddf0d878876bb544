"""Exports for tests: the graph of a classifier, its files for every engine, and its scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import nn

from vitrail import runtimes
from vitrail.export import onnx, work
from vitrail.vocabulary import Graph, Target, TensorSpec


def graph_of(size: int, classes: int, entry: str = work.ONNX_FILE) -> Graph:
    """images (B, 3, size, size) -> scores (B, classes)."""
    return Graph(
        entry=entry,
        inputs=(TensorSpec(name="images", shape=("B", 3, size, size)),),
        outputs=(TensorSpec(name="scores", shape=("B", classes)),),
    )


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
    engine = runtimes.RUNTIMES[runtime]
    return runtimes.load(
        folder / runtime if engine.builds else folder,
        graph_of(size, classes, engine.files[0]),
        Target(runtime=runtime, precision=precision),
        sizes={"B": batch},
        threads=threads,
    )


def scores(runner: runtimes.Runner, images: np.ndarray) -> np.ndarray:
    """float32 (B, K) of float32 (B, 3, H, W)."""
    return runner.run({"images": images})["scores"]

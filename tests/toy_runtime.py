"""An engine in one file: NumPy runs the small network of artifacts.py. `test_toys.py` gives it its row."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from artifacts import numpy_scores

from vitrail.runtimes import Arrays
from vitrail.vocabulary import Graph, RunnerFacts, Target


class ToyRunner:
    """Runs on one thread, whatever the batch."""

    def __init__(self, facts: RunnerFacts) -> None:
        self.facts = facts

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """The network without an engine."""
        return {"scores": numpy_scores(inputs["images"]).astype(np.float32)}

    def close(self) -> None:
        """Nothing to free."""


def build(onnx: Path, folder: Path) -> None:
    """The network is known here: the file only says that it was built, and of what."""
    (folder / "toy.txt").write_text(onnx.name)


def load(path: Path, graph: Graph, target: Target, *, threads: int, settings: dict[str, str]) -> ToyRunner:
    """What `build` wrote."""
    assert path.read_text() == "model.onnx"
    facts = RunnerFacts(
        runtime="toy", version=np.__version__, precision=target.precision, threads=threads, graphs=(graph,)
    )
    return ToyRunner(facts)


def probe(n: int, target: Target, threads: int) -> float:
    """Seconds of one product of n x n matrices."""
    square = np.ones((n, n), np.float32)
    begin = time.perf_counter()
    square @ square
    return time.perf_counter() - begin


def memory(device: str) -> tuple[float, float]:
    """Peak and present MiB on a device with memory of its own."""
    return 12.5, 11.0

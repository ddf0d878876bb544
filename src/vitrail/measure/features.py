"""Outputs of many images through an export, inside a process of its own, by the pipeline of `predict`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from vitrail import runtimes, tasks
from vitrail.errors import InputError
from vitrail.predict import Predictor
from vitrail.vocabulary import Graph, Target


class FeaturesRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Which export on which images; `out` is the `.npy` file to write."""

    folder: str
    graph: Graph
    target: Target
    batch_size: int
    threads: int
    task: dict[str, Any]
    """As `tasks.pack` gives it; its graph has one output."""
    images: list[str]
    out: str


def extract(payload: dict[str, Any]) -> dict[str, float]:
    """Save float32 (n, D) outputs of the images in their order; returns ms of the engine alone per image.

    Raises:
        InputError: an image that cannot be decoded.
    """
    request = msgspec.convert(payload, FeaturesRequest)
    (output,) = request.graph.outputs
    runner = _Timed(
        runtimes.load(
            Path(request.folder),
            request.graph,
            request.target,
            sizes={"B": request.batch_size},
            threads=request.threads,
        )
    )
    rows: list[np.ndarray] = []
    done = 0
    with Predictor(runner, tasks.unpack(request.task), workers=request.threads) as predictor:
        for slots, outputs in predictor.outputs(request.images):
            for path, slot in zip(request.images[done:], slots, strict=False):
                if slot is not None:
                    raise InputError(f"{path}: {slot}")
            done += len(slots)
            assert outputs is not None
            rows.append(outputs[output.name])
    features = np.concatenate(rows).astype(np.float32)
    with open(request.out, "wb") as out:
        np.save(out, features.reshape(len(features), -1), allow_pickle=False)
    # The first call pays for what is set up lazily.
    seconds = runner.seconds[1:] or runner.seconds
    return {"ms": float(np.median(seconds)) / request.batch_size * 1e3}


class _Timed:
    """A runner that notes how long each call took."""

    def __init__(self, runner: runtimes.Runner) -> None:
        self._runner, self.facts = runner, runner.facts
        self.seconds: list[float] = []

    def run(self, inputs: runtimes.Arrays) -> dict[str, np.ndarray]:
        """As the runner."""
        begin = time.perf_counter()
        outputs = self._runner.run(inputs)
        self.seconds.append(time.perf_counter() - begin)
        return outputs

    def close(self) -> None:
        """As the runner."""
        self._runner.close()

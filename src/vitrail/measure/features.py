"""Outputs of many images through an export, in a separate process, by the pipeline of `predict`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from vitrail import runtimes, tasks
from vitrail.predict import MOST_WORKERS, Predictor
from vitrail.vocabulary import Graph, Target

TIMED_CALLS = 3


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
    runner = runtimes.load(
        Path(request.folder),
        request.graph,
        request.target,
        sizes={"B": request.batch_size},
        threads=request.threads,
    )
    workers = min(request.threads, MOST_WORKERS)
    with Predictor(runner, tasks.unpack(request.task), workers=workers) as predictor:
        rows = predictor.all_outputs(request.images)[output.name].astype(np.float32)
        ms = _alone_ms(predictor, request.images[: request.batch_size]) / request.batch_size
    with open(request.out, "wb") as out:
        np.save(out, rows.reshape(len(rows), -1), allow_pickle=False)
    return {"ms": ms}


def _alone_ms(predictor: Predictor, images: list[str]) -> float:
    """Milliseconds of one batch in the engine while nothing is decoded: the median of a few."""
    inputs, seconds = predictor.prepare(images), []
    for _ in range(TIMED_CALLS):
        begin = time.perf_counter()
        predictor.run(inputs)
        seconds.append(time.perf_counter() - begin)
    return float(np.median(seconds)) * 1e3

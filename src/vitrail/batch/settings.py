"""How the engine and the decoding threads are set for a job: by what was asked, and by a short measurement.

They change the speed, and the last digits of results: a job keeps the engine's settings to its end.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from vitrail.artifact import Artifact
from vitrail.errors import VitrailError
from vitrail.hardware import usable_cores
from vitrail.images.limits import Limits
from vitrail.predict import MOST_WORKERS, Predictor, from_artifact
from vitrail.runtimes import side_by_side
from vitrail.runtimes.parts import IMAGES

__all__ = ["MEASURED_FROM", "Settings", "candidates", "measured", "open_predictor", "single", "usual"]

MEASURED_FROM = 5000
"""Inputs from which on a measurement of some seconds pays."""
SAMPLE = 48
"""Images of one measurement."""
LONGEST_S = 6.0
"""No further setting is tried after so long."""
BATCH = 8
SIDE_BY_SIDE = 2
"""Images of a batch for each thread of the engine, where each image has a stream of its own."""
WORTH = 1.03
"""How much faster another setting must be than the artifact's own."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Of the engine and the threads that decode."""

    threads: int
    batch_size: int
    workers: int
    engine: dict[str, str] = field(default_factory=dict)

    def kept(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def usual(artifact: Artifact, *, threads: int | None, workers: int | None, remote: bool) -> Settings:
    """Without a measurement: all cores, more threads where reading waits, and single images side by side
    where the engine can: in one call each layer waits for a thread that a decoder has displaced.
    """
    workload = artifact.manifest.evidence.workload
    cores = usable_cores()
    most = min(4 * cores, 4 * MOST_WORKERS) if remote else min(cores, MOST_WORKERS)
    plain = Settings(
        threads=threads or cores,
        batch_size=workload.batch_size,
        workers=most if workers is None else workers,
    )
    return _side_by_side(artifact, plain) if plain.batch_size == 1 else plain


def _side_by_side(artifact: Artifact, plain: Settings) -> Settings:
    """Several images at a time, a stream of the engine for each thread; `plain` where it cannot."""
    variant, (graph,) = artifact.manifest.variant, artifact.manifest.graphs
    if plain.threads == 1 or not side_by_side(variant, graph):
        return plain
    batch_size = max(plain.batch_size, SIDE_BY_SIDE * plain.threads)
    return replace(plain, batch_size=batch_size, engine={IMAGES: "1"})


def single(artifact: Artifact, *, threads: int | None, workers: int | None) -> Settings:
    """For a task of a cluster, which runs as many as it has cores: one thread, which also decodes."""
    batch_size = artifact.manifest.evidence.workload.batch_size
    return Settings(threads=threads or 1, batch_size=batch_size, workers=workers or 0)


def open_predictor(artifact: Artifact, settings: Settings, limits: Limits) -> Predictor:
    """The artifact loaded as the settings say. Raises as `predict.from_artifact`."""
    return from_artifact(
        artifact,
        threads=settings.threads,
        batch_size=settings.batch_size,
        workers=settings.workers,
        settings=settings.engine,
        limits=limits,
        many=True,
    )


def candidates(artifact: Artifact, base: Settings, *, fixed_workers: bool) -> Iterator[Settings]:
    """Settings worth a try, the usual one first: a batch in one call, single images side by side, and more
    threads for decoding."""
    plain = replace(base, batch_size=max(BATCH, base.batch_size), engine={})
    more = () if fixed_workers else (replace(base, workers=base.workers + max(base.workers // 2, 1)),)
    seen: list[Settings] = []
    for each in (base, plain, _side_by_side(artifact, plain), *more):
        if each not in seen:
            seen.append(each)
            yield each


def measured(
    artifact: Artifact, choices: Iterator[Settings], images: Sequence[bytes], limits: Limits
) -> tuple[Settings, list[dict[str, Any]]]:
    """The fastest of the choices on some images of the job, and what each of them reached.

    Decoding, preparing and running overlap as in the job. The first choice is taken unless another is clearly
    faster, and no further one is tried after some seconds.
    """
    begin = time.perf_counter()
    if not images:
        return next(choices), []
    best: tuple[Settings, float] | None = None
    rows: list[dict[str, Any]] = []
    for settings in choices:
        if best is not None and time.perf_counter() - begin > LONGEST_S:
            break
        try:
            rate = _rate(artifact, settings, images, limits)
        except VitrailError:
            if best is None:
                raise
            continue  # this engine cannot do it, e.g. for a fixed batch
        rows.append({**settings.kept(), "images_per_second": round(rate, 1)})
        if best is None or rate > best[1] * WORTH:
            best = (settings, rate)
    assert best is not None
    return best[0], rows


def _rate(artifact: Artifact, settings: Settings, images: Sequence[bytes], limits: Limits) -> float:
    with open_predictor(artifact, settings, limits) as predictor:
        for _ in predictor.outputs(images[: predictor.batch_size]):  # the first call allocates
            pass
        begin = time.perf_counter()
        for _ in predictor.outputs(images):
            pass
        return len(images) / (time.perf_counter() - begin)

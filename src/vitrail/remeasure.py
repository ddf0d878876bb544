"""Measures an artifact again in new processes, the way it was measured before it shipped."""

from __future__ import annotations

import dataclasses
import os
import random
from collections.abc import Callable
from pathlib import Path

from vitrail import hardware, judge
from vitrail.artifact import Artifact
from vitrail.errors import ClaimError
from vitrail.images.photos import PhotoSet, digest_of, photo_folder
from vitrail.measure import quiet
from vitrail.measure.latency import Plan, finals
from vitrail.measure.launch import ExportSubject
from vitrail.stats import LAUNCHES_TO_PASS
from vitrail.version import __version__
from vitrail.vocabulary import (
    Environment,
    Export,
    Measurement,
    Observation,
    Requirements,
    Workload,
)

__all__ = ["measure_artifact"]

MOST_SECONDS = 60.0
CALLS_PER_LAUNCH = 100
LAUNCHES = 5
"""Two more than a limit needs: with three launches the interval of the median is wider than the change that
`verify` promises to detect."""
PATIENCE_S = 5.0


def measure_artifact(
    artifact: Artifact,
    requirements: Requirements,
    workload: Workload,
    *,
    launches: int = LAUNCHES,
    patience_s: float = PATIENCE_S,
    tell: Callable[[quiet.BusyReading], None] = lambda _: None,
) -> Observation:
    """Launch the artifact's export again until the requirements are decided, for at most a minute of calls.

    The photos are the workload's folder if it exists on this machine, else the artifact's own. If the machine
    is busy, wait for up to `patience_s` and call `tell`; figures taken on a busy machine are flagged.

    Raises:
        InputError: the photos cannot be used.
        ClaimError: the export no longer runs.
    """
    manifest = artifact.manifest
    workload = dataclasses.replace(workload, threads=workload.threads or hardware.usable_cores())
    assert workload.threads is not None
    photos = _photos(artifact, workload)
    subject = ExportSubject(
        variant=manifest.variant,
        export=Export(
            folder=str(artifact.model_folder),
            files=tuple(graph.entry for graph in manifest.graphs),
            graphs=manifest.graphs,
        ),
        workload=workload,
        task=artifact.task,
        photos=photos,
        threads=workload.threads,
    )
    plan = Plan(
        scope=workload.latency_scope,
        percentile=workload.percentile,
        limit_ms=requirements.max_latency_ms,
        stages=artifact.task.stages,
        stage_limits_ms=requirements.max_stage_latency_ms,
        min_throughput=requirements.min_throughput,
        batch_size=workload.batch_size,
        clients=workload.concurrency,
        final_s=MOST_SECONDS,
        launches=launches,
        max_launches=min(2 * launches, launches + LAUNCHES_TO_PASS),
        final_calls=CALLS_PER_LAUNCH * launches,
    )
    before = quiet.wait(patience_s, tell)
    outcome = finals([subject], plan, rng=random.Random(0))[subject.name]
    seen = subject.seen
    if outcome.failure is not None or seen.facts is None or seen.memory is None:
        raise ClaimError(f"{artifact.path} is intact but does not run: {outcome.failure}.")
    measurement = Measurement(
        variant=manifest.name,
        workload=workload,
        environment=_environment(artifact, photos, workload.device),
        facts=seen.facts,
        blocks=outcome.blocks,
        memory=seen.memory,
        parity=None,
        load_s=seen.load_s,
        warm_up_calls=seen.warm_up_calls,
        flags=(*before.flags, *outcome.flags),
    )
    return judge.observe(
        manifest.variant,
        measurement,
        latency_answer=outcome.latency_answer,
        stage_answers=outcome.stage_answers,
    )


def _photos(artifact: Artifact, workload: Workload) -> PhotoSet:
    if workload.images is not None and os.path.isdir(workload.images):
        return photo_folder(workload.images)
    paths = tuple(str(Path(photo).absolute()) for photo in artifact.photos)
    return PhotoSet(
        name="artifact", paths=paths, digest=digest_of(paths), evidence="the artifact's own photos"
    )


def _environment(artifact: Artifact, photos: PhotoSet, device: str) -> Environment:
    return Environment(
        hardware=hardware.fingerprint(hardware.facts(device=device)),
        engine=artifact.manifest.variant.runtime,
        vitrail=__version__,
        photos=photos.digest,
    )

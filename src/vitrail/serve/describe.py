"""What a model's process says of its artifact: for `/v1/models`, the page and the metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from vitrail.artifact import Artifact
from vitrail.artifact.records import Evidence
from vitrail.hardware import one_line
from vitrail.vocabulary import Graph, RunnerFacts

__all__ = ["describe", "digest_of", "promise_ms", "row_pixels"]


def digest_of(path: Path) -> str:
    """The digest that an artifact's manifest ends with; `open_artifact` has compared it."""
    manifest = msgspec.json.decode((path / "manifest.json").read_bytes(), type=dict[str, Any])
    return str(manifest["digest"])


def promise_ms(evidence: Evidence) -> float | None:
    """The latency that it was selected for, where that is of whole requests."""
    if evidence.workload.latency_scope != "request":
        return None
    return evidence.requirements.whole_ms


def row_pixels(graph: Graph) -> int:
    """Pixels of one image as the graph takes it."""
    sides = sorted((int(side) for side in graph.inputs[0].shape[1:]), reverse=True)
    return sides[0] * sides[1] if len(sides) > 1 else 1


def describe(artifact: Artifact, facts: RunnerFacts) -> dict[str, Any]:
    """Plain data: the model, its engine, its evidence. No path of this machine is in it."""
    manifest = artifact.manifest
    evidence, variant = manifest.evidence, manifest.variant
    about: dict[str, Any] = {
        "artifact": manifest.name,
        "created": manifest.created,
        "task": artifact.task.name,
        "runtime": f"{facts.runtime} {facts.version}",
        "precision": facts.precision,
        "threads": facts.threads,
        "image_size": variant.image_size,
        "license": variant.candidate.weights.license,
        "evidence": _evidence(evidence, artifact.task.metric),
    }
    labels = getattr(artifact.task, "labels", None)
    if labels is not None:
        about["classes"] = len(labels)
    return about


def _evidence(evidence: Evidence, metric: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        "percentile": evidence.workload.percentile,
        "scope": evidence.workload.latency_scope,
    }
    if evidence.accuracy is not None:
        accuracy = evidence.accuracy
        found["accuracy"] = {
            "metric": f"{metric} in %",
            "value": accuracy.value,
            "provenance": accuracy.provenance,
            "source": accuracy.source,
        }
    figures = evidence.latency.get(evidence.workload.latency_scope)
    if figures is not None:
        found["latency_ms"] = figures.judged.value
        found["batch_size"] = evidence.workload.batch_size
        found["clients"] = evidence.workload.concurrency
    if evidence.memory is not None:
        found["memory_mib"] = evidence.memory.peak
    if evidence.hardware:
        try:
            found["machine"] = one_line({"engines": {}, "gpus": [], **evidence.hardware})
        except (KeyError, TypeError):  # facts that an older Vitrail wrote
            found["machine"] = None
    return found

"""Checks that a manifest's values are complete, in range and consistent (docs/artifact.md).

Digests detect damage. They do not detect a missing or absurd value in a manifest that somebody wrote by
hand or with another program: it would load and answer differently from what was measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

from vitrail.artifact.records import Evidence, Manifest
from vitrail.errors import InputError
from vitrail.images.preprocess import check_preprocess
from vitrail.requirements import check
from vitrail.vocabulary import (
    Candidate,
    Preprocess,
    Requirements,
    RunnerFacts,
    TensorSpec,
    Variant,
    Workload,
)

DECIDING: dict[tuple[str, ...], type] = {
    ("variant",): Variant,
    ("variant", "candidate"): Candidate,
    ("variant", "candidate", "preprocess"): Preprocess,
    ("evidence", "requirements"): Requirements,
    ("evidence", "workload"): Workload,
}
"""Records that decide what an artifact answers or how it is verified: a file must state all of their fields,
even those with a default in Python. The task's own values are checked by its file in tasks/."""

SINCE_2 = {
    ("probability",),
    ("variant", "candidate", "trained_with"),
    ("evidence", "requirements", "min_recall"),
    ("evidence", "workload", "data"),
}
"""Values that the first manifests of schema 1 left out; a missing one means the default."""
SINCE_3 = {("variant", "candidate", "task")}
SINCE_5 = "pixels"
"""A value of `Preprocess`; before, every graph took normalised pixels."""
SINCE_6 = ("evidence", "workload", "concurrency")
"""Before, there was one client."""

SINCE_7 = ("evidence", "requirements", "min_iou")
"""Before, there was no such limit."""
SINCE_8 = ("evidence", "run")
"""Before, all were."""
SINCE_9 = ("evidence", "requirements", "max_stage_latency_ms")
"""Before, requests were one step."""

LARGEST = 1e15
"""Bound of any figure; nothing measured comes near it."""


def check_complete(document: Mapping[str, Any], where: str) -> None:
    """Refuse a manifest, of any schema, that leaves out a value that decides answers.

    Raises:
        InputError: naming the value.
    """
    version = document.get("schema_version")
    needed = [(*path, field.name) for path, kind in DECIDING.items() for field in fields(kind)]
    if type(version) is int and version in (1, 2):
        prepared: tuple[str, ...] = ("preprocess",)
        needed = [("probability",), *(path for path in needed if path not in SINCE_3)]
    else:
        prepared = ("task", "preprocess")
        needed = [("task", "name"), *needed]
    needed.append(SINCE_8)
    needed = [*((*prepared, field.name) for field in fields(Preprocess)), *needed]
    written = version if type(version) is int else math.inf
    for path in needed:
        if (
            (written == 1 and path in SINCE_2)
            or (written < 5 and path[-1] == SINCE_5)
            or (written < 6 and path == SINCE_6)
            or (written < 7 and path == SINCE_7)
            or (written < 8 and path == SINCE_8)
            or (written < 9 and path == SINCE_9)
        ):
            continue
        value: Any = document
        for name in path:
            if not isinstance(value, Mapping) or name not in value:
                raise InputError(f"{where} does not say {'.'.join(path)}: write the artifact again.")
            value = value[name]


def check_values(manifest: Manifest, where: str) -> None:
    """Refuse a manifest with a value out of range, or with values that contradict each other.

    Raises:
        InputError: naming the first broken rule.
    """
    try:
        check_preprocess(manifest.variant.candidate.preprocess)
        check(manifest.evidence.requirements, manifest.evidence.workload)
    except InputError as error:
        raise InputError(f"{where} is not valid: {error}") from None
    for rule, holds in _rules(manifest):
        if not holds:
            raise InputError(f"{where} is not valid ({rule}): write the artifact again.")


def _rules(manifest: Manifest) -> Iterator[tuple[str, bool]]:
    """(rule, whether it holds)."""
    variant = manifest.variant
    candidate = variant.candidate
    yield "schema_version is 1 or more", manifest.schema_version >= 1
    yield "name is the variant's", manifest.name == variant.name and manifest.name.isprintable()
    yield "a reference variant is never shipped", not variant.reference
    yield "task is the candidate's", manifest.task.get("name") == candidate.task
    yield "parameters and macs are counts", all(0 <= n <= LARGEST for n in _counts(candidate))
    entries = [graph.entry for graph in manifest.graphs]
    yield "graphs have entries in folder", bool(manifest.folder) and bool(entries) and all(entries)
    yield from _graph_rules(manifest)
    photos = manifest.reference.photos
    yield "reference.photos names each photo once", 0 < len(photos) == len(set(photos))
    bounds = manifest.reference.bounds
    yield "reference.bounds.cosine is above 0 and at most 1", 0 < bounds.cosine <= 1
    yield "reference.bounds.relative_error is above 0 and below 1", 0 < bounds.relative_error < 1
    yield "reference.bounds.agreement is from 0 to 1", 0 <= bounds.agreement <= 1
    yield "reference.bounds.mask_iou is from 0 to 1", bounds.mask_iou is None or 0 <= bounds.mask_iou <= 1
    yield from _evidence_rules(manifest.evidence)
    yield from _run_rules(manifest)
    facts = manifest.evidence.facts
    if facts is not None:
        yield from _facts_rules(facts, manifest)


def _counts(candidate: Candidate) -> tuple[int, ...]:
    return candidate.parameters, candidate.macs, candidate.activations, candidate.public_weights


def _evidence_rules(evidence: Evidence) -> Iterator[tuple[str, bool]]:
    for stage, figures in evidence.latency.items():
        seen = (figures.p50, figures.p95, figures.p99, figures.judged.value)
        yield f"evidence.latency.{stage} is of times above 0", all(map(_figure, seen)) and figures.calls >= 1
    memory = evidence.memory
    yield "evidence.memory.peak is above 0", memory is None or _figure(memory.peak)
    yield "evidence.throughput is above 0", evidence.throughput is None or _figure(evidence.throughput)


def _run_rules(manifest: Manifest) -> Iterator[tuple[str, bool]]:
    """What was never run has no outputs of its own, and nothing that only running it could tell."""
    evidence = manifest.evidence
    if evidence.run:
        return
    yield "what was not run has no own_outputs", not manifest.reference.own_outputs
    told = (evidence.facts, evidence.environment, evidence.parity, manifest.measurement)
    yield "what was not run has no figures", not evidence.figures and all(each is None for each in told)


def _figure(value: float) -> bool:
    return 0 < value <= LARGEST and math.isfinite(value)


def _graph_rules(manifest: Manifest) -> Iterator[tuple[str, bool]]:
    specs = [spec for graph in manifest.graphs for spec in (*graph.inputs, *graph.outputs)]
    sides = [side for spec in specs for side in spec.shape]
    yield "graphs have inputs and outputs", all(g.inputs and g.outputs for g in manifest.graphs)
    yield (
        "graphs have sizes of 1 to 1,000,000, or letters",
        all(s.isidentifier() if isinstance(s, str) else 1 <= s <= 1_000_000 for s in sides),
    )
    outputs = {spec.name for spec in manifest.graphs[-1].outputs} if manifest.graphs else set()
    for name in ("fp32_outputs", *(["own_outputs"] if manifest.evidence.run else [])):
        yield f"reference.{name} are the last graph's", set(getattr(manifest.reference, name)) == outputs


def _facts_rules(facts: RunnerFacts, manifest: Manifest) -> Iterator[tuple[str, bool]]:
    variant = manifest.variant
    same = (facts.runtime, facts.precision) == (variant.runtime, variant.precision)
    yield "evidence.facts are of the variant's engine and precision", same
    names = [graph.name for graph in manifest.graphs]
    yield "evidence.facts.graphs are the manifest's", [graph.name for graph in facts.graphs] == names
    for place, (ours, theirs) in enumerate(zip(manifest.graphs, facts.graphs, strict=False)):
        for which in ("inputs", "outputs"):
            # What runs once for each prompt, of any size, may be loaded for all sizes.
            fits = _fits(getattr(ours, which), getattr(theirs, which), opened=place > 0)
            yield f"evidence.facts.graphs have the manifest's {which}", fits
    yield "evidence.facts.threads is from 1 to 65536", 1 <= facts.threads <= 65_536


def _fits(declared: Sequence[TensorSpec], loaded: Sequence[TensorSpec], *, opened: bool) -> bool:
    """Whether the loaded tensors are the ones in the manifest, each letter standing for one number or, where
    sizes may be `opened`, for itself."""
    sizes: dict[str, int | str] = {}
    for a, b in zip(declared, loaded, strict=False):
        for letter, number in zip(a.shape, b.shape, strict=False):
            if isinstance(number, str) and not (opened and letter == number):
                return False
            if letter != number and not isinstance(letter, str):
                return False
            if isinstance(letter, str) and sizes.setdefault(letter, number) != number:
                return False
    shapes = [(a.name, a.dtype, len(a.shape)) for a in declared]
    return shapes == [(b.name, b.dtype, len(b.shape)) for b in loaded]

"""What a manifest says must be all there, in range, and of one mind (docs/artifact.md).

The digests find damage. They do not find a manifest that was written by hand or by another program with a
value missing or absurd, which would load and answer otherwise than what was measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from vitrail.artifact.records import Evidence, Manifest
from vitrail.errors import InputError
from vitrail.images.preprocess import check_preprocess
from vitrail.limits import whole
from vitrail.requirements import check
from vitrail.vocabulary import (
    Candidate,
    LatencyFigures,
    Preprocess,
    Requirements,
    RunnerFacts,
    Variant,
    Workload,
)

DECIDING: dict[tuple[str, ...], type] = {
    ("preprocess",): Preprocess,
    ("variant",): Variant,
    ("variant", "candidate"): Candidate,
    ("variant", "candidate", "preprocess"): Preprocess,
    ("evidence", "requirements"): Requirements,
    ("evidence", "workload"): Workload,
}
"""Records that decide what an artifact answers or how it is verified: none of their fields has a default in a
file, whatever the record has in Python."""

SCHEMA_2 = {
    ("probability",),
    ("variant", "candidate", "trained_with"),
    ("evidence", "requirements", "min_recall"),
    ("evidence", "workload", "data"),
}
"""What schema 1 came to write only after its first manifests, which mean the default."""

LARGEST = 1e15
"""Of any figure: beyond it nothing was measured."""


def check_complete(document: Mapping[str, Any], version: int, where: str) -> None:
    """Refuse a manifest that leaves out a value which decides answers.

    Raises:
        InputError: which one.
    """
    needed = [("probability",), *((*path, f.name) for path, kind in DECIDING.items() for f in fields(kind))]
    for path in needed:
        if version == 1 and path in SCHEMA_2:
            continue
        found: Any = document
        for name in path:
            if not isinstance(found, Mapping) or name not in found:
                raise InputError(f"{where} does not say {'.'.join(path)}: write the artifact again.")
            found = found[name]


def check_values(manifest: Manifest, where: str) -> None:
    """Refuse a manifest with a value out of its range, or with two that contradict each other.

    Raises:
        InputError: the first such.
    """
    try:
        check_preprocess(manifest.preprocess)
        check_preprocess(manifest.variant.candidate.preprocess)
        check(manifest.evidence.requirements, manifest.evidence.workload)
        whole("classes", manifest.classes)
    except InputError as error:
        raise InputError(f"{where} is not valid: {error}") from None
    for rule, holds in _rules(manifest):
        if not holds:
            raise InputError(f"{where} is not valid ({rule}): write the artifact again.")


def _rules(manifest: Manifest) -> Iterator[tuple[str, bool]]:
    """(what must hold, whether it does)."""
    variant, preprocess = manifest.variant, manifest.preprocess
    candidate = variant.candidate
    usual = {f.name: getattr(candidate.preprocess, f.name) for f in fields(Preprocess)}
    usual["image_size"] = variant.image_size
    yield "schema_version is 1 or more", manifest.schema_version >= 1
    yield "name is the variant's", manifest.name == variant.name and manifest.name.isprintable()
    yield "a reference variant is never shipped", not variant.reference
    yield "preprocess is the candidate's at the variant's image size", preprocess == Preprocess(**usual)
    yield "parameters and macs are counts", all(0 <= n <= LARGEST for n in _counts(candidate))
    yield "entry is a file of folder", bool(manifest.folder) and bool(manifest.entry)
    photos = manifest.reference.photos
    yield "reference.photos names each photo once", 0 < len(photos) == len(set(photos))
    bounds = manifest.reference.bounds
    yield "reference.bounds.cosine is above 0 and at most 1", 0 < bounds.cosine <= 1
    yield "reference.bounds.relative_error is above 0 and below 1", 0 < bounds.relative_error < 1
    yield "reference.bounds.agreement is from 0 to 1", 0 <= bounds.agreement <= 1
    yield from _evidence_rules(manifest.evidence)
    facts = manifest.evidence.facts
    if facts is not None:
        yield from _facts_rules(facts, manifest)


def _counts(candidate: Candidate) -> tuple[int, ...]:
    return candidate.parameters, candidate.macs, candidate.activations, candidate.public_weights


def _evidence_rules(evidence: Evidence) -> Iterator[tuple[str, bool]]:
    for name in ("request", "model"):
        figures: LatencyFigures | None = getattr(evidence, name)
        if figures is not None:
            seen = (figures.p50, figures.p95, figures.p99, figures.judged.value)
            yield f"evidence.{name} is of times above 0", all(map(_figure, seen)) and figures.calls >= 1
    memory = evidence.memory
    yield "evidence.memory.peak is above 0", memory is None or _figure(memory.peak)
    yield "evidence.throughput is above 0", evidence.throughput is None or _figure(evidence.throughput)
    accuracy = evidence.accuracy
    yield "evidence.accuracy.value is a percentage", accuracy is None or 0 <= accuracy.value <= 100
    for name in ("classification", "test"):
        known = getattr(evidence, name)
        yield f"evidence.{name}.accuracy is a percentage", known is None or 0 <= known.accuracy <= 100


def _figure(value: float) -> bool:
    return 0 < value <= LARGEST and math.isfinite(value)


def _facts_rules(facts: RunnerFacts, manifest: Manifest) -> Iterator[tuple[str, bool]]:
    size, variant = manifest.preprocess.image_size, manifest.variant
    same = (facts.runtime, facts.precision) == (variant.runtime, variant.precision)
    yield "evidence.facts are of the variant's engine and precision", same
    batch = facts.input_shape[:1]
    yield "evidence.facts.input_shape is (B, 3, S, S)", facts.input_shape == (*batch, 3, size, size)
    yield "evidence.facts.output_shape is (B, K)", facts.output_shape == (*batch, manifest.classes)
    yield "evidence.facts.threads is from 1 to 65536", 1 <= facts.threads <= 65_536

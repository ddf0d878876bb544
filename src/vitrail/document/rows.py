"""A ledger entry ↔ the flat row that stands for it. Keys that a record names alike are taken by name."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar, cast, get_args

from vitrail import vocabulary as v
from vitrail.document.schema import MeasuredDoc, VariantDoc, WeightsDoc

_Kind = TypeVar("_Kind")


def taken(kind: type[_Kind], *records: object, **given: object) -> _Kind:
    """A `kind` whose fields are `given`, or those of the first of `records` that has them; none is a bug."""
    fields = getattr(kind, "__struct_fields__", None) or [f.name for f in dataclasses.fields(cast(Any, kind))]
    for name in set(fields) - set(given):
        given[name] = getattr(next(record for record in records if hasattr(record, name)), name)
    return kind(**given)


def row_of(entry: v.LedgerEntry) -> VariantDoc:
    """The entry as a row; what is not known is null there, and 0 or "" in the records."""
    seen, variant, candidate = entry.observation, entry.variant, entry.variant.candidate
    measurement, memory, weights = seen.measurement, seen.memory, candidate.weights
    at_hand, license_name = seen.weights_at_hand, weights.license or None
    return taken(
        VariantDoc,
        entry,
        seen,
        variant,
        candidate,
        model=candidate.name,
        weights=taken(WeightsDoc, weights, at_hand=at_hand, license=license_name),
        preprocess=candidate.preprocess if candidate.preprocess.image_size else None,
        parameters=candidate.parameters or None,
        macs=candidate.macs or None,
        activations=candidate.activations or None,
        image_size=variant.image_size or None,
        runtime=variant.runtime or None,
        precision=variant.precision or None,
        settings=dict(variant.settings),
        weights_accuracy=candidate.accuracy,
        # Stages that can be limited are named even where they were not timed.
        latency_ms={**dict.fromkeys(get_args(v.Scope)), **seen.latency} if seen.latency else None,
        memory_mib=memory.peak if memory else None,
        memory_steady_mib=memory.steady if memory else None,
        memory_above_baseline_mib=memory.above_baseline if memory else None,
        engine=seen.facts or (measurement.facts if measurement else None),
        environment=seen.environment or (measurement.environment if measurement else None),
        measured=_measured(measurement) if measurement else None,
        random_weights=seen.random_weights or (measurement is not None and measurement.random_weights),
    )


def _measured(measurement: v.Measurement) -> MeasuredDoc:
    blocks = measurement.blocks
    return taken(
        MeasuredDoc,
        measurement,
        launches=len({block.launch for block in blocks}),
        blocks=len(blocks),
        steal_s=sum(block.steal_s for block in blocks),
        involuntary_switches=sum(block.involuntary_switches for block in blocks),
    )


def entry_of(row: VariantDoc, *, trained: bool) -> v.LedgerEntry:
    """The row as an entry without raw blocks; `trained`: its weights were trained here."""
    memory = None
    if row.memory_mib is not None:
        above = row.memory_above_baseline_mib
        memory = v.Memory(peak=row.memory_mib, steady=row.memory_steady_mib, above_baseline=above)
    observation = taken(
        v.Observation,
        row,
        variant=_variant(row, trained=trained),
        latency={stage: figures for stage, figures in (row.latency_ms or {}).items() if figures},
        memory=memory,
        facts=row.engine,
        measurement=None,
        stage_answers={},
        throughput_answer=None,
        weights_at_hand=row.weights.at_hand,
    )
    return taken(v.LedgerEntry, row, observation=observation)


def _variant(row: VariantDoc, *, trained: bool) -> v.Variant:
    size = row.image_size or 0
    candidate = taken(
        v.Candidate,
        row,
        name=row.model,
        weights=taken(v.Weights, row.weights, license=row.weights.license or ""),
        preprocess=row.preprocess or v.Preprocess(image_size=size),
        accuracy=row.weights_accuracy,
        parameters=row.parameters or 0,
        macs=row.macs or 0,
        activations=row.activations or 0,
        trained_with=row.implementation if trained else None,
    )
    return taken(
        v.Variant,
        row,
        candidate=candidate,
        image_size=size,
        runtime=row.runtime or "",
        precision=row.precision or "",
        settings=tuple(row.settings.items()),
    )

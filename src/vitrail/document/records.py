"""The checked document → the vocabulary's records."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar, cast

from vitrail import vocabulary as v
from vitrail.document import schema

_Record = TypeVar("_Record")


def selection_of(document: schema.Document) -> v.Selection:
    """The recorded selection; its observations carry figures but no raw blocks."""
    trained = {training.candidate for training in document.trainings}
    ledger = tuple(
        _record(v.LedgerEntry, row, observation=_observation(row, trained=row.model in trained))
        for row in document.variants
    )
    return _record(v.Selection, document, ledger=ledger)


def _record(kind: type[_Record], struct: object, **given: object) -> _Record:
    """The vocabulary's `kind` with the fields of the same name of `struct`, or `given` ones."""
    names = [field.name for field in dataclasses.fields(cast(Any, kind))]
    return kind(**{name: given[name] if name in given else getattr(struct, name) for name in names})


def _observation(row: schema.VariantDoc, *, trained: bool) -> v.Observation:
    memory = None
    if row.memory_mib is not None:
        above = row.memory_above_baseline_mib
        memory = v.Memory(peak=row.memory_mib, steady=row.memory_steady_mib, above_baseline=above)
    return _record(
        v.Observation,
        row,
        variant=_variant(row, trained=trained),
        latency={stage: figures for stage, figures in (row.latency_ms or {}).items() if figures},
        memory=memory,
        facts=row.engine,
        measurement=None,
        throughput_answer=None,
        weights_at_hand=row.weights.at_hand,
    )


def _variant(row: schema.VariantDoc, *, trained: bool) -> v.Variant:
    size = row.image_size or 0
    candidate = _record(
        v.Candidate,
        row,
        name=row.model,
        weights=_record(v.Weights, row.weights, license=row.weights.license or ""),
        preprocess=row.preprocess or v.Preprocess(image_size=size),
        accuracy=row.weights_accuracy,
        parameters=row.parameters or 0,
        macs=row.macs or 0,
        activations=row.activations or 0,
        trained_with=row.implementation if trained else None,
    )
    return _record(
        v.Variant,
        row,
        candidate=candidate,
        image_size=size,
        runtime=row.runtime or "",
        precision=row.precision or "",
        settings=tuple(row.settings.items()),
    )

"""The checked document → the vocabulary's records."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, TypeVar, cast

from vitrail import vocabulary as v
from vitrail.document import schema

_Record = TypeVar("_Record")


def selection_of(document: schema.Document) -> v.Selection:
    """The recorded selection; its observations carry figures but no raw blocks."""
    trainings = tuple(_training(row) for row in document.trainings)
    trained = {training.candidate for training in trainings}
    ledger = tuple(
        _record(
            v.LedgerEntry,
            row,
            observation=_observation(row, row.implementation if row.model in trained else None),
            verdicts=tuple(_record(v.Verdict, verdict) for verdict in row.verdicts),
        )
        for row in document.variants
    )
    return _record(
        v.Selection,
        document,
        requirements=_record(v.Requirements, document.requirements),
        workload=_record(v.Workload, document.workload),
        ledger=ledger,
        settings=_maybe(v.SearchSettings, document.settings),
        test=_classification(document.test),
        trainings=trainings,
    )


def _record(kind: type[_Record], struct: object, **given: object) -> _Record:
    """The vocabulary's `kind` with the fields of the same name of `struct`, or `given` ones."""
    names = [field.name for field in dataclasses.fields(cast(Any, kind))]
    return kind(**{name: given[name] if name in given else getattr(struct, name) for name in names})


def _maybe(kind: type[_Record], struct: object | None) -> _Record | None:
    return None if struct is None else _record(kind, struct)


def _training(row: schema.TrainingDoc) -> v.Training:
    return _record(v.Training, row, history=tuple(_record(v.TrainingEpoch, epoch) for epoch in row.history))


def _variant(row: schema.VariantDoc, trained_with: str | None) -> v.Variant:
    size = row.image_size or 0
    candidate = _record(
        v.Candidate,
        row,
        name=row.model,
        weights=_record(v.Weights, row.weights, license=row.weights.license or ""),
        preprocess=_maybe(v.Preprocess, row.preprocess) or v.Preprocess(image_size=size),
        accuracy=_maybe(v.Accuracy, row.weights_accuracy),
        parameters=row.parameters or 0,
        macs=row.macs or 0,
        activations=row.activations or 0,
        trained_with=trained_with,
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


def _observation(row: schema.VariantDoc, trained_with: str | None) -> v.Observation:
    scopes = row.latency_ms
    return _record(
        v.Observation,
        row,
        variant=_variant(row, trained_with),
        accuracy=_maybe(v.Accuracy, row.accuracy),
        request=_figures(scopes.request if scopes else None),
        model=_figures(scopes.model if scopes else None),
        memory=_memory(row),
        parity=_parity(row.parity),
        classification=_classification(row.classification),
        facts=_facts(row.engine),
        environment=_maybe(v.Environment, row.environment),
        measurement=None,
        throughput_answer=None,
        weights_at_hand=row.weights.at_hand,
    )


def _figures(row: schema.LatencyDoc | None) -> v.LatencyFigures | None:
    if row is None:
        return None
    return _record(v.LatencyFigures, row, judged=_record(v.JudgedLatency, row.judged))


def _memory(row: schema.VariantDoc) -> v.Memory | None:
    if row.memory_mib is None:
        return None
    return v.Memory(
        peak=row.memory_mib, steady=row.memory_steady_mib, above_baseline=row.memory_above_baseline_mib
    )


def _parity(row: schema.ParityDoc | None) -> v.Parity | None:
    if row is None:
        return None
    # null stands for a figure that was not a finite number
    cosine = math.nan if row.cosine is None else row.cosine
    error = math.nan if row.relative_error is None else row.relative_error
    return _record(v.Parity, row, cosine=cosine, relative_error=error)


def _classification(row: schema.ClassificationDoc | None) -> v.Classification | None:
    if row is None:
        return None
    recalls = tuple(_record(v.Recall, recall) for recall in row.recalls)
    return _record(v.Classification, row, recalls=recalls)


def _facts(row: schema.EngineDoc | None) -> v.RunnerFacts | None:
    if row is None:
        return None
    graphs = tuple(_graph(graph) for graph in row.graphs)
    return _record(v.RunnerFacts, row, graphs=graphs, details=tuple(row.details.items()))


def _graph(row: schema.GraphDoc) -> v.Graph:
    inputs, outputs = (
        tuple(_record(v.TensorSpec, spec) for spec in specs) for specs in (row.inputs, row.outputs)
    )
    return _record(v.Graph, row, inputs=inputs, outputs=outputs)

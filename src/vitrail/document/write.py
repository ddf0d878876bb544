"""Selection → document. Keys of the document that a record names alike are copied by name."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from vitrail import vocabulary as v
from vitrail.document import schema
from vitrail.version import __version__
from vitrail.words import utf8


def to_document(selection: v.Selection) -> dict[str, Any]:
    """The selection as the documented JSON object (plain dicts, lists, text, numbers, booleans, None)."""
    document = _fields(
        schema.Document,
        selection,
        schema_version=schema.SCHEMA_VERSION,
        vitrail=__version__,
        requirements=_fields(schema.RequirementsDoc, selection.requirements),
        workload=_fields(schema.WorkloadDoc, selection.workload),
        settings=_maybe(schema.SettingsDoc, selection.settings),
        test=_classification(selection.test),
        trainings=[_training(training) for training in selection.trainings],
        variants=[_variant(entry) for entry in selection.ledger],
    )
    return _plain(document)


def to_json_bytes(selection: v.Selection) -> bytes:
    """The document as indented UTF-8 JSON that ends with a newline."""
    return msgspec.json.format(msgspec.json.encode(to_document(selection)), indent=2) + b"\n"


def _fields(kind: type[msgspec.Struct], record: object, **given: object) -> dict[str, Any]:
    """The keys of `kind`, each `given` or taken from `record`; a key that neither has is a bug."""
    return {key: given[key] if key in given else getattr(record, key) for key in kind.__struct_fields__}


def _maybe(kind: type[msgspec.Struct], record: object | None, **given: object) -> dict[str, Any] | None:
    return None if record is None else _fields(kind, record, **given)


def _variant(entry: v.LedgerEntry) -> dict[str, Any]:
    variant, candidate = entry.variant, entry.variant.candidate
    weights = candidate.weights
    preprocess = candidate.preprocess if candidate.preprocess.image_size else None
    described = {
        "model": candidate.name,
        "weights": _fields(
            schema.WeightsDoc,
            weights,
            at_hand=entry.observation.weights_at_hand,
            license=weights.license or None,
        ),
        "preprocess": _maybe(schema.PreprocessDoc, preprocess),
        "weights_accuracy": _maybe(schema.AccuracyDoc, candidate.accuracy),
        "settings": dict(variant.settings),
        "verdicts": [_fields(schema.VerdictDoc, verdict) for verdict in entry.verdicts],
    }
    for key in ("architecture", "family", "task", "labels", "note", "public_weights"):
        described[key] = getattr(candidate, key)
    for key in ("parameters", "macs", "activations"):
        described[key] = getattr(candidate, key) or None
    for key in ("image_size", "runtime", "precision"):
        described[key] = getattr(variant, key) or None
    for key in ("name", "implementation", "passes", "reference"):
        described[key] = getattr(variant, key)
    return _fields(schema.VariantDoc, entry, **described, **_evidence(entry.observation))


def _evidence(observation: v.Observation) -> dict[str, Any]:
    """The keys of a variant that say what was observed."""
    measurement, memory = observation.measurement, observation.memory
    facts = observation.facts or (measurement.facts if measurement else None)
    environment = observation.environment or (measurement.environment if measurement else None)
    return {
        "accuracy": _maybe(schema.AccuracyDoc, observation.accuracy),
        "latency_ms": _latency(observation),
        "latency_answer": observation.latency_answer,
        "confirmed": observation.confirmed,
        "throughput": observation.throughput,
        "memory_mib": memory.peak if memory else None,
        "memory_steady_mib": memory.steady if memory else None,
        "memory_above_baseline_mib": memory.above_baseline if memory else None,
        "parity": _maybe(schema.ParityDoc, observation.parity),
        "classification": _classification(observation.classification),
        "engine": _engine(facts),
        "environment": _maybe(schema.EnvironmentDoc, environment),
        "measured": _measured(measurement) if measurement else None,
        "random_weights": observation.random_weights
        or (measurement is not None and measurement.random_weights),
        "failure": observation.failure,
        "pruned": observation.pruned,
        "flags": observation.flags,
    }


def _engine(facts: v.RunnerFacts | None) -> dict[str, Any] | None:
    if facts is None:
        return None
    graphs = [
        _fields(
            schema.GraphDoc,
            graph,
            inputs=[_fields(schema.TensorDoc, spec) for spec in graph.inputs],
            outputs=[_fields(schema.TensorDoc, spec) for spec in graph.outputs],
        )
        for graph in facts.graphs
    ]
    return _fields(schema.EngineDoc, facts, graphs=graphs, details=dict(facts.details))


def _classification(seen: v.Classification | None) -> dict[str, Any] | None:
    recalls = [_fields(schema.RecallDoc, recall) for recall in seen.recalls] if seen else []
    return _maybe(schema.ClassificationDoc, seen, recalls=recalls)


def _training(training: v.Training) -> dict[str, Any]:
    history = [_fields(schema.EpochDoc, epoch) for epoch in training.history]
    return _fields(schema.TrainingDoc, training, history=history)


def _latency(observation: v.Observation) -> dict[str, Any] | None:
    def scope(figures: v.LatencyFigures | None) -> dict[str, Any] | None:
        judged = _fields(schema.JudgedDoc, figures.judged) if figures else None
        return _maybe(schema.LatencyDoc, figures, judged=judged)

    if observation.request is None and observation.model is None:
        return None
    return {"request": scope(observation.request), "model": scope(observation.model)}


def _measured(measurement: v.Measurement) -> dict[str, Any]:
    blocks = measurement.blocks
    return {
        "load_s": measurement.load_s,
        "warm_up_calls": measurement.warm_up_calls,
        "launches": len({block.launch for block in blocks}),
        "blocks": len(blocks),
        "steal_s": sum(block.steal_s for block in blocks),
        "involuntary_switches": sum(block.involuntary_switches for block in blocks),
    }


def _plain(value: Any) -> Any:
    """JSON has no NaN or infinity: such a figure becomes null, and a missing figure is a failure.

    Nor has it text that is no UTF-8, which a path may be: such bytes are escaped.
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return utf8(value)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value

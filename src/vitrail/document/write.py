"""Selection → document. Keys of the document that a record names alike are taken by name."""

from __future__ import annotations

import math
from typing import Any, TypeVar, get_args

import msgspec

from vitrail import vocabulary as v
from vitrail.document import schema
from vitrail.version import __version__
from vitrail.words import utf8

_Doc = TypeVar("_Doc", bound=msgspec.Struct)


def to_document(selection: v.Selection) -> dict[str, Any]:
    """The selection as the documented JSON object (plain dicts, lists, text, numbers, booleans, None)."""
    document = _of(
        schema.Document,
        selection,
        schema_version=schema.SCHEMA_VERSION,
        vitrail=__version__,
        variants=tuple(map(_variant, selection.ledger)),
    )
    plain: dict[str, Any] = _plain(msgspec.to_builtins(document))
    return plain


def to_json_bytes(selection: v.Selection) -> bytes:
    """The document as indented UTF-8 JSON that ends with a newline."""
    return msgspec.json.format(msgspec.json.encode(to_document(selection)), indent=2) + b"\n"


def _of(kind: type[_Doc], *records: object, **given: object) -> _Doc:
    """The keys of `kind`, each `given` or of the first record that has it; one that none has is a bug."""
    for key in set(kind.__struct_fields__) - set(given):
        given[key] = getattr(next(record for record in records if hasattr(record, key)), key)
    return kind(**given)


def _variant(entry: v.LedgerEntry) -> schema.VariantDoc:
    seen, variant, candidate = entry.observation, entry.variant, entry.variant.candidate
    measurement, memory, weights = seen.measurement, seen.memory, candidate.weights
    unknown = {key: getattr(candidate, key) or None for key in ("parameters", "macs", "activations")}
    unknown |= {key: getattr(variant, key) or None for key in ("image_size", "runtime", "precision")}
    return _of(
        schema.VariantDoc,
        entry,
        seen,
        variant,
        candidate,
        model=candidate.name,
        weights=_of(
            schema.WeightsDoc, weights, at_hand=seen.weights_at_hand, license=weights.license or None
        ),
        preprocess=candidate.preprocess if candidate.preprocess.image_size else None,
        settings=dict(variant.settings),
        weights_accuracy=candidate.accuracy,
        latency_ms=_latency(seen),
        memory_mib=memory.peak if memory else None,
        memory_steady_mib=memory.steady if memory else None,
        memory_above_baseline_mib=memory.above_baseline if memory else None,
        engine=seen.facts or (measurement.facts if measurement else None),
        environment=seen.environment or (measurement.environment if measurement else None),
        measured=_measured(measurement) if measurement else None,
        random_weights=seen.random_weights or (measurement is not None and measurement.random_weights),
        **unknown,
    )


def _latency(seen: v.Observation) -> dict[str, v.LatencyFigures | None] | None:
    """By stage; those that can be limited are named even where they were not timed."""
    return {**dict.fromkeys(get_args(v.Scope)), **seen.latency} if seen.latency else None


def _measured(measurement: v.Measurement) -> schema.MeasuredDoc:
    blocks = measurement.blocks
    return _of(
        schema.MeasuredDoc,
        measurement,
        launches=len({block.launch for block in blocks}),
        blocks=len(blocks),
        steal_s=sum(block.steal_s for block in blocks),
        involuntary_switches=sum(block.involuntary_switches for block in blocks),
    )


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

"""A document or hand-written figures → records that can be judged again."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterable
from typing import Any, get_args

import msgspec

from vitrail import vocabulary as v
from vitrail.document import messages, schema
from vitrail.document.older import upgraded, upgraded_row
from vitrail.document.rows import entry_of, taken
from vitrail.errors import InputError

JsonObject = dict[str, Any]

DECLARED_LATENCY = "declared latency: one number without calls, taken as the judged percentile"
_EXAMPLE = '{"model": "swin_tiny", "accuracy": 81.4, "latency_ms": 28.0}'
_NEEDED = {"model": '"swin_tiny"', "accuracy": "81.4", "latency_ms": "28.0"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recorded:
    """What a file of recorded figures holds; enough to judge again under other requirements."""

    source: str
    selection: v.Selection
    """As far as the file holds it."""
    observations: tuple[v.Observation, ...]
    """Its variants' without raw blocks and without `latency_answer`, which belongs to the recorded limit."""
    complete: bool
    """Whether it is the answer to a question that it states; else it is figures that a person wrote down."""
    stated: frozenset[str]
    """Fields of the workload that the file states; what a hand-written one leaves out is unknown."""


def from_document(data: bytes | str | JsonObject | list[Any], source: str) -> Recorded:
    """Read a document, or a hand-written list (or `{"variants": [...]}`) of recorded figures.

    A hand-written record needs only `model`, `accuracy` (%, provenance `declared`) and
    `latency_ms` (stands for both stages at the judged percentile, with 0 calls). What it leaves out
    is unstated: runtime and precision "", image size 0, license "". `source` names the file in
    messages. Raises InputError, naming the place, for anything that is neither.
    """
    if isinstance(data, (bytes, str)):
        data = _parse(data, source)
    if isinstance(data, list):
        data = {"variants": data}
    if not isinstance(data, dict) or not isinstance(data.get("variants"), list) or not data["variants"]:
        raise InputError(
            f'{source} holds no recorded variants: give a list of objects, or {{"variants": [...]}}, '
            f"each such as {_EXAMPLE}."
        )
    if "schema_version" in data:
        _check_version(data["schema_version"], source)
    _refuse_nonfinite(data, (), data, source)
    try:
        full = _complete(data, source)
        document = msgspec.convert(full, schema.Document)
    except msgspec.ValidationError as error:
        raise InputError(messages.explain(str(error), data, source)) from None
    for index, row in enumerate(document.variants):
        if row.task not in v.TASKS:
            place = f"{source}: {messages.place(data, index)}"
            raise InputError(f"{place}: unknown task {row.task!r}: use {' or '.join(v.TASKS)}.")
    _refuse_unknown(full, msgspec.to_builtins(document), (), data, source)
    trained = {training.candidate for training in document.trainings}
    ledger = tuple(entry_of(row, trained=row.model in trained) for row in document.variants)
    selection = taken(v.Selection, document, ledger=ledger)
    _refuse_duplicates(selection, source)
    observations = (entry.observation for entry in selection.ledger)
    return Recorded(
        source=source,
        selection=selection,
        observations=tuple(dataclasses.replace(each, latency_answer=None) for each in observations),
        complete={"schema_version", "requirements"} <= set(data),
        stated=frozenset(full.get("workload", ())),
    )


# --- what msgspec does not check ----------------------------------------------------------------


def _parse(data: bytes | str, source: str) -> Any:
    try:
        # "-sig": editors on Windows put a byte order mark first
        return msgspec.json.decode(data.decode("utf-8-sig") if isinstance(data, bytes) else data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{source} is not valid JSON ({error}): correct it or record it again.") from None


def _check_version(version: object, source: str) -> None:
    newest = schema.SCHEMA_VERSION
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise InputError(f"{source}: schema_version must be a whole number from 1 to {newest}.")
    if version > newest:
        raise InputError(
            f"{source} has schema_version {version}, newer than the {newest} that this Vitrail reads: update "
            "Vitrail (pip install -U vitrail) or record it again."
        )


def _refuse_nonfinite(value: Any, keys: tuple[str | int, ...], data: JsonObject, source: str) -> None:
    for key, item in _items(value):
        if isinstance(item, float) and not math.isfinite(item):
            place = messages.path((*keys, key), data)
            raise InputError(f"{source}: {place} is {item}: give a finite number, or null for none.")
        if isinstance(item, (dict, list)):
            _refuse_nonfinite(item, (*keys, key), data, source)


def _refuse_unknown(
    given: Any, known: Any, keys: tuple[str | int, ...], data: JsonObject, source: str
) -> None:
    """Refuse a key of `given` that was not taken over into `known`, its checked form."""
    for key, item in _items(given):
        if isinstance(given, dict) and key not in known:
            raise _unknown(key, known, f"{source}: {messages.path(keys, data) or 'the document'}")
        if isinstance(item, (dict, list)):
            _refuse_unknown(item, known[key], (*keys, key), data, source)


def _items(value: Any) -> Iterable[tuple[Any, Any]]:
    return value.items() if isinstance(value, dict) else enumerate(value)


def _unknown(key: str, known: Iterable[str], place: str) -> InputError:
    near = difflib.get_close_matches(key, known, 1)
    hint = f'did you mean "{near[0]}"?' if near else "remove it."
    return InputError(f'{place} has the unknown key "{key}": {hint}')


# --- what a hand-written file says in short -----------------------------------------------------


def _complete(data: JsonObject, source: str) -> JsonObject:
    workload = data.get("workload")
    asked = workload.get("percentile") if isinstance(workload, dict) else None
    percentile = v.Workload.percentile if asked is None else asked
    rows = [
        _complete_row(row, f"{source}: {messages.place(data, i)}", percentile, f"$.variants[{i}]")
        for i, row in enumerate(data["variants"])
    ]
    return {**upgraded(data), "variants": rows}


def _complete_row(row: Any, place: str, percentile: object, at: str) -> JsonObject:
    if not isinstance(row, dict):
        raise InputError(f"{place} is {messages.kind(row)}: give an object such as {_EXAMPLE}.")
    for key, example in _NEEDED.items():
        if key not in row:
            raise InputError(f'{place} lacks "{key}": add it, e.g. "{key}": {example}.')
    full = {"architecture": str(row["model"]).partition(".")[0], **upgraded_row(row, at)}
    full["accuracy"] = _complete_accuracy(row["accuracy"], place)
    full["latency_ms"] = _complete_latency(row["latency_ms"], percentile, place)
    if _is_number(row["latency_ms"]) and isinstance(flags := row.get("flags", []), list):
        full["flags"] = [*flags, DECLARED_LATENCY]
    if isinstance(parity := row.get("parity"), dict):
        lost = {key: math.nan for key in schema.NOT_FINITE if parity.get(key, 0) is None}
        full["parity"] = {**parity, **lost}
    return full


def _complete_accuracy(value: Any, place: str) -> Any:
    if _is_number(value):
        value = {"value": value}
    if not isinstance(value, dict):
        return value
    given: Any = value.get("value")
    if "provenance" not in value and _is_number(given) and 0 < given <= 1:
        raise InputError(f"{place}: accuracy {given:g} looks like a fraction: give it in %, e.g. 81.4.")
    return {"provenance": "declared", **value}


def _complete_latency(value: Any, percentile: object, place: str) -> Any:
    """A plain number stands for every percentile of the stages it is given for."""
    if isinstance(value, str):
        raise InputError(f"{place}: latency_ms is text: give milliseconds as a number, e.g. 28.0.")
    judged = get_args(v.Scope)
    if _is_number(value):
        value = dict.fromkeys(judged, value)
    if not isinstance(value, dict):
        return value
    full: JsonObject = {**dict.fromkeys(judged), **value}
    for stage, ms in full.items():
        if _is_number(ms):
            if stage not in (*judged, *v.STAGES):
                # A measured stage may have any name; a declared one is there to be judged.
                raise _unknown(stage, (*judged, *v.STAGES), f"{place}: latency_ms")
            if ms <= 0:
                raise InputError(f"{place}: latency_ms is {ms:g}: give milliseconds above 0, e.g. 28.0.")
            known = {"percentile": percentile, "value": ms, "interval": None}
            full[stage] = {"p50": ms, "p95": ms, "p99": ms, "judged": known, "calls": 0}
    return full


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _refuse_duplicates(selection: v.Selection, source: str) -> None:
    seen: dict[str, int] = {}
    for number, entry in enumerate(selection.ledger, start=1):
        first = seen.setdefault(entry.variant.name, number)
        if first != number:
            raise InputError(
                f"{source}: variants {first} and {number} are both {entry.variant.name}: tell them apart "
                "by image_size, runtime or precision, or remove one."
            )

"""A document or hand-written figures → records that can be judged again."""

from __future__ import annotations

import dataclasses
import difflib
import math
from typing import Any

import msgspec

from vitrail import vocabulary as v
from vitrail.document import messages, schema
from vitrail.document.older import upgraded_facts
from vitrail.document.records import selection_of
from vitrail.errors import InputError

JsonObject = dict[str, Any]

DECLARED_LATENCY = "declared latency: one number without calls, taken as the judged percentile"
_EXAMPLE = '{"model": "swin_tiny", "accuracy": 81.4, "latency_ms": 28.0}'
_NEEDED = {"model": '"swin_tiny"', "accuracy": "81.4", "latency_ms": "28.0"}

_SCREENED = "screened in one launch"

# What a key stands for that a hand-written file leaves out.
_UNSTATED_DOCUMENT: JsonObject = {
    "schema_version": schema.SCHEMA_VERSION,
    "vitrail": "",
    "created": "",
    "seconds": 0.0,
    "hardware": {},
    "method": {},
    "settings": None,
    "arguments": [],
    "selected": None,
    "provisional": None,
    "lacks": [],
    "front": [],
    "nearest": [],
    "notes": [],
    "test": None,
    "expected_test": None,
    "trainings": [],
}
_UNSTATED_VARIANT: JsonObject = {
    **dict.fromkeys(schema.VariantDoc.__struct_fields__),  # null, unless said otherwise here
    "name": "",
    "family": "",
    "task": "classify",
    "labels": "imagenet-1k",
    "note": "",
    "public_weights": 0,
    "implementation": "timm",
    "passes": [],
    "settings": {},
    "reference": False,
    "status": "undecided",
    "would_win": False,
    "tie": False,
    "confirmed": True,
    "reasons": [],
    "verdicts": [],
    "random_weights": False,
    "flags": [],
}
_UNSTATED_WEIGHTS: JsonObject = {
    "source": "file",
    "reference": "",
    "tag": "",
    "revision": None,
    "sha256": None,
    "license": None,
    "at_hand": True,
}
_UNSTATED_ACCURACY: JsonObject = {"provenance": "declared", "source": "", "images": None, "interval": None}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recorded:
    """What a file of recorded figures holds; enough to judge again under other requirements."""

    source: str
    observations: tuple[v.Observation, ...]
    """Without raw blocks and without `latency_answer`, which belongs to the recorded limit."""
    workload: v.Workload
    requirements: v.Requirements | None = None
    """None: a hand-written file that does not say."""
    hardware: dict[str, object] = dataclasses.field(default_factory=dict)
    method: dict[str, object] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    created: str = ""
    selection: v.Selection | None = None
    """The recorded selection itself, as far as a document holds it; None: a hand-written file."""
    stated: frozenset[str] = frozenset()
    """Fields of `workload` that the file states; what a hand-written one leaves out is unknown."""


def from_document(data: bytes | str | JsonObject | list[Any], source: str) -> Recorded:
    """Read a document, or a hand-written list (or `{"variants": [...]}`) of recorded figures.

    A hand-written record needs only `model`, `accuracy` (% top-1, provenance `declared`) and
    `latency_ms` (stands for both scopes at the judged percentile, with 0 calls). What it leaves out
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
    if written_by_vitrail := "schema_version" in data:
        _check_version(data["schema_version"], source)
    _refuse_nonfinite(data, (), data, source)
    try:
        document = msgspec.convert(_complete(data, source), schema.Document)
    except msgspec.ValidationError as error:
        raise InputError(messages.explain(str(error), data, source)) from None
    selection = selection_of(document)
    _refuse_duplicates(selection, source)
    observations = (entry.observation for entry in selection.ledger)
    return Recorded(
        source=source,
        observations=tuple(dataclasses.replace(each, latency_answer=None) for each in observations),
        workload=selection.workload,
        requirements=selection.requirements if "requirements" in data else None,
        hardware=selection.hardware,
        method=selection.method,
        notes=selection.notes,
        created=selection.created,
        selection=selection if written_by_vitrail else None,
        stated=frozenset(data.get("workload", ())),
    )


# --- before the schema --------------------------------------------------------------------------


def _parse(data: bytes | str, source: str) -> Any:
    try:
        # "-sig": editors on Windows put a byte order mark first
        text = data.decode("utf-8-sig") if isinstance(data, bytes) else data
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{source} is not valid JSON ({error}): correct it or record it again.") from None


def _check_version(version: object, source: str) -> None:
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise InputError(
            f"{source}: schema_version must be a whole number from 1 to {schema.SCHEMA_VERSION}."
        )
    if version > schema.SCHEMA_VERSION:
        raise InputError(
            f"{source} has schema_version {version}, newer than the {schema.SCHEMA_VERSION} that this "
            "Vitrail reads: update Vitrail (pip install -U vitrail) or record it again."
        )


def _refuse_nonfinite(value: Any, keys: tuple[str | int, ...], data: JsonObject, source: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        place = messages.path(keys, data)
        raise InputError(f"{source}: {place} is {value}: give a finite number, or null for none.")
    items: Any = ()
    if isinstance(value, (dict, list)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        _refuse_nonfinite(item, (*keys, key), data, source)


# --- filling in what a hand-written file leaves out, so that one schema checks both kinds -------


def _complete(data: JsonObject, source: str) -> JsonObject:
    workload = {**dataclasses.asdict(v.Workload()), **_object(data, "workload", source)}
    requirements = {**dataclasses.asdict(v.Requirements()), **_object(data, "requirements", source)}
    percentile = workload["percentile"]
    rows = [
        _complete_row(row, messages.place(data, i), percentile, source)
        for i, row in enumerate(data["variants"])
    ]
    if isinstance(settings := data.get("settings"), dict):  # versions up to 4 knew one task
        data = {**data, "settings": {"task": "classify", **settings}}
    given = {"workload": workload, "requirements": requirements, "variants": rows}
    return {**_UNSTATED_DOCUMENT, **data, **given}


def _object(data: JsonObject, key: str, source: str) -> JsonObject:
    value = data.get(key, {})
    if not isinstance(value, dict):
        raise InputError(f"{source}: {key} must be an object, not {messages.kind(value)}.")
    return value


def _complete_row(row: Any, place: str, percentile: object, source: str) -> JsonObject:
    if not isinstance(row, dict):
        raise InputError(f"{source}: {place} is {messages.kind(row)}: give an object such as {_EXAMPLE}.")
    for key, example in _NEEDED.items():
        if key not in row:
            raise InputError(f'{source}: {place} lacks "{key}": add it, e.g. "{key}": {example}.')
    for key in row:
        if key not in schema.VariantDoc.__struct_fields__:
            near = difflib.get_close_matches(str(key), schema.VariantDoc.__struct_fields__, 1)
            hint = f'did you mean "{near[0]}"?' if near else "remove it."
            raise InputError(f'{source}: {place} has the unknown key "{key}": {hint}')
    full = {**_UNSTATED_VARIANT, "architecture": str(row["model"]).partition(".")[0], **row}
    if full["status"] == "feasible":  # the word of versions up to 3
        full["status"] = "meets"
    if "confirmed" not in row and isinstance(full["reasons"], list):  # older versions said it in words only
        full["confirmed"] = not any(str(reason).startswith(_SCREENED) for reason in full["reasons"])
    if isinstance(engine := row.get("engine"), dict):  # versions up to 4 had shapes without names
        full["engine"] = upgraded_facts(engine)
    if isinstance(parity := row.get("parity"), dict):
        full["parity"] = {"worst": "", **parity}
    weights = row.get("weights", {})
    full["weights"] = {**_UNSTATED_WEIGHTS, **weights} if isinstance(weights, dict) else weights
    full["accuracy"] = _complete_accuracy(row["accuracy"], place, source)
    full["latency_ms"] = _complete_latency(row["latency_ms"], percentile, place, source)
    if _is_number(row["latency_ms"]) and isinstance(full["flags"], list):
        full["flags"] = [*full["flags"], DECLARED_LATENCY]
    return full


def _complete_accuracy(value: Any, place: str, source: str) -> Any:
    if _is_number(value):
        value = {"value": value}
    if not isinstance(value, dict):
        return value
    given: Any = value.get("value")
    if "provenance" not in value and _is_number(given) and 0 < given <= 1:
        raise InputError(
            f"{source}: {place}: accuracy {given:g} looks like a fraction: give it in %, e.g. 81.4."
        )
    return {**_UNSTATED_ACCURACY, **value}


def _complete_latency(value: Any, percentile: object, place: str, source: str) -> Any:
    """A plain number stands for every percentile of the scopes it is given for."""
    if isinstance(value, str):
        raise InputError(f"{source}: {place}: latency_ms is text: give milliseconds as a number, e.g. 28.0.")
    if _is_number(value):
        value = {"request": value, "model": value}
    if not isinstance(value, dict):
        return value
    full: JsonObject = {"request": None, "model": None, **value}
    for scope in ("request", "model"):
        if _is_number(ms := full[scope]):
            if ms <= 0:
                raise InputError(
                    f"{source}: {place}: latency_ms is {ms:g}: give milliseconds above 0, e.g. 28.0."
                )
            judged = {"percentile": percentile, "value": ms, "interval": None}
            full[scope] = {"p50": ms, "p95": ms, "p99": ms, "judged": judged, "calls": 0}
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

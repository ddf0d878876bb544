"""Converts manifests of schemas 1 to 7 to the current schema."""

from __future__ import annotations

from typing import Any

from vitrail.document.older import graph_of, upgraded_facts, upgraded_quality, with_one_client

JsonObject = dict[str, Any]


def upgraded(document: JsonObject) -> JsonObject:
    """The document in the current form, except for its `schema_version`; a current one is returned unchanged.

    Missing values stay missing, so that the checks that follow name them.
    """
    version = document.get("schema_version")
    if type(version) is not int or not 1 <= version < 8:
        return document
    if version > 5:
        return _as_run(document)
    old = _with_task(document) if version < 3 else document
    if isinstance(evidence := old.get("evidence"), dict):
        new = evidence if version > 3 else _by_figure(evidence)
        old = {**old, "evidence": with_one_client(new)}
    return _as_run(old)


def _as_run(document: JsonObject) -> JsonObject:
    """Before schema 8 nothing was written that had not been run."""
    evidence = document.get("evidence")
    return {**document, "evidence": {**evidence, "run": True}} if isinstance(evidence, dict) else document


def upgraded_measurement(document: JsonObject) -> JsonObject:
    """A raw measurement of schema 1 to 3."""
    new = dict(document)
    if isinstance(facts := new.get("facts"), dict):
        new["facts"] = upgraded_facts(facts)
    new["quality"] = upgraded_quality(new.pop("classification", None))
    return new


def _by_figure(evidence: JsonObject) -> JsonObject:
    new = dict(evidence)
    stages = {stage: new.pop(stage, None) for stage in ("request", "model")}
    new["latency"] = {stage: figures for stage, figures in stages.items() if figures is not None}
    new["quality"] = upgraded_quality(new.pop("classification", None))
    new["test"] = upgraded_quality(new.get("test"))
    if isinstance(facts := new.get("facts"), dict):
        new["facts"] = upgraded_facts(facts)
    return new


def _with_task(document: JsonObject) -> JsonObject:
    """Schema 1 and 2 knew one classifier with one graph."""
    old = dict(document)
    size = _within(old, "preprocess", "image_size")
    classes = old.get("classes")
    preprocess, labels = old.pop("preprocess", None), old.pop("labels", None)
    old["task"] = {
        "name": "classify",
        "preprocess": preprocess,
        "classes": old.pop("classes", None),
        "labels": labels,
        "probability": old.pop("probability", "softmax"),
    }
    old["graphs"] = [graph_of(["B", 3, size, size], ["B", classes], old.pop("entry", None))]
    reference = old.get("reference")
    if isinstance(reference, dict):
        named = {key: {"scores": reference.get(key)} for key in ("fp32_outputs", "own_outputs")}
        old["reference"] = {**reference, **named}
    return old


def _within(document: JsonObject, *keys: str) -> Any:
    found: Any = document
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    return found

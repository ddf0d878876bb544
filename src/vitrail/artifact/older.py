"""Converts manifests of schemas 1 and 2 (one classifier with one graph) to the current schema."""

from __future__ import annotations

from typing import Any

from vitrail.document.older import graph_of, upgraded_facts

JsonObject = dict[str, Any]


def upgraded(document: JsonObject) -> JsonObject:
    """The document in the current form, except for its `schema_version`; a current one is returned unchanged.

    Missing values stay missing, so that the checks that follow name them.
    """
    version = document.get("schema_version")
    if type(version) is not int or version not in (1, 2):
        return document
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
    facts = _within(old, "evidence", "facts")
    if isinstance(facts, dict):
        old["evidence"] = {**old["evidence"], "facts": upgraded_facts(facts)}
    return old


def _within(document: JsonObject, *keys: str) -> Any:
    found: Any = document
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    return found

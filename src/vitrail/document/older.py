"""What an engine said before graphs had names: one input of images, one output of scores."""

from __future__ import annotations

from typing import Any

JsonObject = dict[str, Any]


def upgraded_facts(facts: JsonObject) -> JsonObject:
    """An engine's facts with the shapes of its one input and output as a graph."""
    if "graphs" in facts:
        return facts
    new = {"device": "cpu", **facts}
    new["graphs"] = [graph_of(new.pop("input_shape", None), new.pop("output_shape", None), "")]
    return new


def graph_of(taken: object, given: object, entry: object) -> JsonObject:
    """The one graph of a classifier, as JSON."""
    return {
        "name": "model",
        "entry": entry,
        "inputs": [{"name": "images", "shape": taken, "dtype": "float32"}],
        "outputs": [{"name": "scores", "shape": given, "dtype": "float32"}],
    }

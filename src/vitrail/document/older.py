"""What older documents and artifacts say in another form, in today's; today's form stays as it is."""

from __future__ import annotations

from typing import Any

JsonObject = dict[str, Any]

_SCREENED = "screened in one launch"


def upgraded(document: JsonObject) -> JsonObject:
    """A document, but for its rows."""
    return {**document, "test": upgraded_quality(document.get("test"))}


def upgraded_row(row: JsonObject) -> JsonObject:
    """One variant of a document."""
    new = dict(row)
    if row.get("status") == "feasible":  # the word of versions up to 3, which said `confirmed` in words only
        new["status"] = "meets"
    if "confirmed" not in row and isinstance(reasons := row.get("reasons"), list):
        new["confirmed"] = not any(str(reason).startswith(_SCREENED) for reason in reasons)
    if isinstance(engine := row.get("engine"), dict):
        new["engine"] = upgraded_facts(engine)
    if "classification" in row:  # of versions up to 5
        new["quality"] = upgraded_quality(new.pop("classification"))
    return new


def upgraded_facts(facts: JsonObject) -> JsonObject:
    """An engine's facts: `details` are pairs (up to document 5 an object), shapes are a graph's (up to 4)."""
    new = {"device": "cpu", **facts}
    if isinstance(details := facts.get("details"), dict):
        new["details"] = [list(pair) for pair in details.items()]
    if "graphs" in facts:
        return new
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


def upgraded_quality(seen: Any) -> Any:
    """A `classification` as the figures that it holds, named; what is in another form, as it is."""
    if not isinstance(seen, dict) or "figures" in seen:
        return seen
    images = seen.get("images")
    recalls = [each for each in _list(seen.get("recalls")) if isinstance(each, dict)]
    top_1 = {"interval": seen.get("interval"), "share": True}
    # A class without images has no recall, and so its name is not known.
    named = iter(recalls)
    labels = [
        next(named, {}).get("label", "") if any(_list(row)) else "" for row in _list(seen.get("confusion"))
    ]
    return {
        "split": seen.get("split"),
        "data": seen.get("data"),
        "images": images,
        "figures": [
            {**_figure("top-1", seen.get("accuracy"), images), **top_1},
            _figure("balanced accuracy", seen.get("balanced_accuracy"), images),
            *({**_figure("recall", None, None), **each, "share": True} for each in recalls),
            {**_figure("calibration error", seen.get("calibration_error"), images), "unit": "points"},
        ],
        "tables": [{"name": "confusion", "labels": labels, "counts": seen.get("confusion")}],
    }


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _figure(metric: str, value: object, images: object) -> JsonObject:
    new: JsonObject = {"metric": metric, "value": value, "unit": "%", "interval": None, "images": images}
    return {**new, "label": "", "share": False}

"""What older documents and artifacts say in another form, in today's; today's form stays as it is."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from vitrail.vocabulary import Count, Percent

JsonObject = dict[str, Any]

_SCREENED = "screened in one launch"


class _Recall(msgspec.Struct, forbid_unknown_fields=True):
    label: str
    value: Percent
    images: Count


class _Classification(msgspec.Struct, forbid_unknown_fields=True):
    """What documents up to version 5, and artifacts up to schema 3, said of labelled images."""

    split: str
    data: str
    images: Count
    accuracy: Percent
    interval: tuple[float, float] | None
    balanced_accuracy: Percent
    recalls: tuple[_Recall, ...]
    confusion: tuple[tuple[Count, ...], ...]
    calibration_error: Annotated[float, msgspec.Meta(ge=0, le=100)]


def upgraded(document: JsonObject) -> JsonObject:
    """A document, but for its rows. Raises msgspec.ValidationError as `upgraded_quality`."""
    new = {**document, "test": upgraded_quality(document.get("test"), "$.test")}
    # A file that a person wrote states no more than it says.
    return with_one_client(new) if "schema_version" in document else new


def with_one_client(holder: JsonObject) -> JsonObject:
    """What holds a `workload` from before there were several clients; today's form as it is."""
    workload = holder.get("workload")
    return {**holder, "workload": {"concurrency": 1, **workload}} if isinstance(workload, dict) else holder


def upgraded_row(row: JsonObject, at: str) -> JsonObject:
    """One variant of a document, whose path is `at`. Raises msgspec.ValidationError as `upgraded_quality`."""
    new = dict(row)
    if row.get("status") == "feasible":  # the word of versions up to 3, which said `confirmed` in words only
        new["status"] = "meets"
    if "confirmed" not in row and isinstance(reasons := row.get("reasons"), list):
        new["confirmed"] = not any(str(reason).startswith(_SCREENED) for reason in reasons)
    if isinstance(engine := row.get("engine"), dict):
        new["engine"] = upgraded_facts(engine)
    if "classification" in row and "quality" not in row:  # of versions up to 5
        new["quality"] = upgraded_quality(new.pop("classification"), f"{at}.classification")
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


def upgraded_quality(seen: Any, at: str = "$") -> Any:
    """A `classification` as the figures that it holds, named; today's form, or none, as it is.

    Raises:
        msgspec.ValidationError: it is neither; the message names the place below `at`.
    """
    if not isinstance(seen, dict) or "figures" in seen:
        return seen
    try:
        old = msgspec.convert(seen, _Classification)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$")
        raise msgspec.ValidationError(f"{what} - at `{at}{where.rstrip('`')}`") from None
    # A class without images has no recall, and so its name is not known.
    named = iter(old.recalls)
    labels = [recall.label if any(row) and (recall := next(named, None)) else "" for row in old.confusion]
    return {
        "split": old.split,
        "data": old.data,
        "images": old.images,
        "figures": [
            {**_figure("top-1", old.accuracy, old.images), "interval": old.interval, "share": True},
            _figure("balanced accuracy", old.balanced_accuracy, old.images),
            *(
                {**_figure("recall", each.value, each.images), "label": each.label, "share": True}
                for each in old.recalls
            ),
            {**_figure("calibration error", old.calibration_error, old.images), "unit": "points"},
        ],
        "tables": [{"name": "confusion", "labels": labels, "counts": old.confusion}],
    }


def _figure(metric: str, value: object, images: object) -> JsonObject:
    new: JsonObject = {"metric": metric, "value": value, "unit": "%", "interval": None, "images": images}
    return {**new, "label": "", "share": False}

"""The OpenAPI side of requests that are read by hand."""

from __future__ import annotations

from typing import Any

from vitrail.serve.forms import FORMS, JSON
from vitrail.serve.refusals import CODES

__all__ = ["ACTIVATE", "BODY", "INFER", "PICTURE", "SCHEMAS", "parameters", "responses"]

_BINARY = {"type": "string", "format": "binary"}
_STRING, _NUMBER, _INTEGER = {"type": "string"}, {"type": "number"}, {"type": "integer"}


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _array(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "One image as it is, or a form with a file for each of several.",
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"image": {"type": "array", "items": _BINARY}},
                    "required": ["image"],
                }
            },
            **{kind: {"schema": _BINARY} for kind in ("image/*", "application/octet-stream")},
        },
    }
}

PICTURE: dict[str, Any] = {"image/png": {"schema": _BINARY}}
"""What a 200 may hold beside JSON."""

PROMPTED: dict[str, Any] = {
    "requestBody": {
        **BODY["requestBody"],
        "description": "Photos; of a model that takes prompts one photo with the prompt in the address, or "
        "JSON with the image_id of an earlier answer and the prompt.",
        "content": {
            **BODY["requestBody"]["content"],
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "image_id": _STRING,
                        "points": _array(_array(_NUMBER)),
                        "box": _array(_NUMBER),
                    },
                    "required": ["image_id"],
                }
            },
        },
    }
}
"""Of /v1/segment."""

ACTIVATE: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "The name of an artifact in the folder of --allow-activate.",
        "content": {
            "application/json": {
                "schema": {"type": "object", "properties": {"artifact": _STRING}, "required": ["artifact"]}
            }
        },
    }
}

_PARAMETERS: dict[str, dict[str, Any]] = {
    "model": {
        "name": "model",
        "in": "query",
        "schema": _STRING,
        "description": "Which model; needed where several are for this task.",
    },
    "top": {
        "name": "top",
        "in": "query",
        "schema": {"type": "integer", "minimum": 1, "maximum": 1_000_000, "default": 5},
        "description": "How many labels of each image.",
    },
    "as": {
        "name": "as",
        "in": "query",
        "schema": {"type": "string", "enum": list(FORMS), "default": JSON},
        "description": "Of one photo: png for its map of class numbers, or for the alpha of what is cut out; "
        "cutout for the photo with that alpha.",
    },
    "points": {
        "name": "points",
        "in": "query",
        "schema": _STRING,
        "description": "[[x, y, 1], [x, y, 0]], pixels of the photo: 1 inside the object, 0 outside. Of a "
        "model that takes prompts.",
    },
    "box": {
        "name": "box",
        "in": "query",
        "schema": _STRING,
        "description": "[left, top, right, bottom] around the object.",
    },
}
_DEADLINE = {
    "name": "X-Deadline-Ms",
    "in": "header",
    "schema": {"type": "integer", "minimum": 1},
    "description": "Give the request up after so many milliseconds, at most the server's own deadline.",
}


_UNUSABLE = _object(error=_object(code=_STRING, message=_STRING))
_TENSOR = _object(name=_STRING, datatype=_STRING, shape=_array(_INTEGER))
INFER: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "JSON; with Inference-Header-Content-Length, binary tensors follow it.",
        "content": {
            "application/json": {
                "schema": _object(
                    inputs=_array(
                        {
                            **_object(name=_STRING, datatype=_STRING, shape=_array(_INTEGER)),
                            "additionalProperties": True,
                        }
                    )
                )
            },
            "application/octet-stream": {"schema": _BINARY},
        },
    }
}


_SIZE = {"type": "array", "items": _INTEGER, "minItems": 2, "maxItems": 2, "description": "Height and width."}
_MASK = _object(
    label=_STRING,
    index=_INTEGER,
    share=_NUMBER,
    box={"type": "array", "items": _INTEGER, "minItems": 4, "maxItems": 4},
    mask={**_object(size=_SIZE, counts=_STRING), "description": "COCO's run lengths."},
)


_OF_MASK = ("share", "box", "mask")


def _results(one: dict[str, Any], **timing: Any) -> dict[str, Any]:
    return _object(
        model=_STRING,
        version=_STRING,
        request_id=_STRING,
        timing_ms=_object(wait=_NUMBER, prepare=_NUMBER, run=_NUMBER, **timing),
        results=_array({"oneOf": [one, _UNUSABLE]}),
    )


SCHEMAS: dict[str, dict[str, Any]] = {
    "Error": _object(
        error=_object(code={"type": "string", "enum": list(CODES)}, message=_STRING, request_id=_STRING)
    ),
    "Classified": _results(
        _object(labels=_array(_object(label=_STRING, index=_INTEGER, probability=_NUMBER)))
    ),
    "Embedded": _results(_object(vector=_array(_NUMBER))),
    "Segmented": _results(_object(size=_SIZE, masks=_array(_MASK)), finish=_NUMBER),
    "Prompted": _results(
        _object(
            size=_SIZE,
            image_id=_STRING,
            masks=_array(_object(iou=_NUMBER, **{name: _MASK["properties"][name] for name in _OF_MASK})),
        ),
        finish=_NUMBER,
    ),
    "Activated": _object(name=_STRING, version=_STRING, previous=_STRING),
    "Models": _object(models=_array({"type": "object"})),
    "Error2": _object(error=_STRING, code={"type": "string", "enum": list(CODES)}, request_id=_STRING),
    "Server": _object(name=_STRING, version=_STRING, extensions=_array(_STRING)),
    "Live": _object(live={"type": "boolean"}),
    "IsReady": {**_object(ready={"type": "boolean"}), "additionalProperties": True},
    "Model": _object(
        name=_STRING,
        versions=_array(_STRING),
        platform=_STRING,
        inputs=_array(_TENSOR),
        outputs=_array(_TENSOR),
    ),
    "Inferred": _object(model_name=_STRING, model_version=_STRING, outputs=_array(_TENSOR)),
}
"""Schemas that `responses` refers to."""


def parameters(*names: str) -> list[dict[str, Any]]:
    """Query parameters by name, and the deadline's header."""
    return [*(_PARAMETERS[name] for name in names), _DEADLINE]


def responses(*schemas: str, v2: bool = False, also: dict[str, Any] | None = None) -> dict[str, Any]:
    """Arguments of a route: 200 with one of these schemas, and every status that a refusal may have.

    `also`: what a 200 may hold beside JSON.
    """
    error = {
        "description": "Refused",
        "content": {"application/json": {"schema": _ref("Error2" if v2 else "Error")}},
    }
    refused = dict.fromkeys(sorted(set(CODES.values())), error)
    schema = {"oneOf": list(map(_ref, schemas))} if len(schemas) > 1 else _ref(schemas[0])
    good = {"description": "Done", "content": {"application/json": {"schema": schema}, **(also or {})}}
    return {"responses": {200: good, **refused}}

"""Prompts of requests: points and a box, in an address beside a photo or in JSON about one sent before.

Whether they lie in the photo is found out where the photo's size is known.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from vitrail.serve.refusals import Refusal

__all__ = ["JSON_TYPE", "NAMES", "in_json", "in_query"]

JSON_TYPE = "application/json"
NAMES = ("points", "box")
MOST_BYTES = 64 << 10
"""Of a prompt as JSON: as much as an address may have."""
POINTS = (
    "points are no list such as [[x, y, 1], [x, y, 0]]: give pixels of the photo, 1 inside the object or 0"
)
BOX = "box is no list such as [left, top, right, bottom]: give pixels of the photo"
SENT = 'Send {"image_id": "…", "points": [[x, y, 1]], "box": [left, top, right, bottom]}, or one of the two'

Number = int | float


class _Again(msgspec.Struct, forbid_unknown_fields=True):
    image_id: str
    points: msgspec.Raw = msgspec.Raw()
    box: msgspec.Raw = msgspec.Raw()


def in_query(parameters: Mapping[str, str]) -> dict[str, Any]:
    """The options of a prompt; {}: there is none.

    Raises:
        Refusal: `points` or `box` is not as it should be.
    """
    return _prompt(*(parameters.get(name, "").encode() for name in NAMES))


def in_json(body: bytes) -> tuple[str, dict[str, Any]]:
    """A photo's id, and the options of a prompt about it.

    Raises:
        Refusal: the body is not as it should be.
    """
    if len(body) > MOST_BYTES:
        raise Refusal("too_large", f"The prompt is larger than {MOST_BYTES >> 10} KiB: send fewer points.")
    try:
        asked = msgspec.json.decode(body, type=_Again)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refusal("bad_request", f"The prompt is not understood ({str(error)[:200]}). {SENT}.") from None
    return asked.image_id, _prompt(bytes(asked.points), bytes(asked.box))


def _prompt(points: bytes, box: bytes) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if points and points != b"null":
        given = _decoded(points, list[list[Number]], POINTS)
        if any(len(point) not in (2, 3) for point in given):
            raise Refusal("bad_request", f"The {POINTS}.")
        found["points"] = [point[:2] for point in given]
        found["labels"] = [point[2] if len(point) == 3 else 1 for point in given]
    if box and box != b"null":
        found["box"] = _decoded(box, list[Number], BOX)
    return found


def _decoded(text: bytes, kind: Any, said: str) -> Any:
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Refusal("bad_request", f"The {said}.") from None

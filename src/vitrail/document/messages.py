"""Messages about a document, with the place as a person would count it: `variant 3 (swin_tiny): accuracy`."""

from __future__ import annotations

import re
from typing import Any, get_args

from vitrail import vocabulary as v

_KINDS = {
    "float": "a number",
    "int": "a whole number",
    "str": "text",
    "bool": "true or false",
    "array": "a list",
    "list": "a list",
    "object": "an object",
    "dict": "an object",
    "null": "null",
}
"""Types as msgspec and Python name them."""
_CHOICES: dict[str, Any] = {
    "objective": v.Objective,
    "latency_scope": v.Scope,
    "source": v.WeightsSource,
    "interpolation": v.Interpolation,
    "provenance": v.Provenance,
    "answer": v.Answer,
    "latency_answer": v.Answer,
    "precision": v.Precision,
    "status": v.Status,
    "layout": v.Layout,
}


def kind(value: object) -> str:
    """What sort of JSON value this is, in words."""
    return _KINDS.get(type(value).__name__, "null")


def place(data: dict[str, Any], index: int) -> str:
    """`variant 3 (swin_tiny)` for index 2."""
    row = data["variants"][index]
    model = row.get("model") if isinstance(row, dict) else None
    return f"variant {index + 1} ({model})" if isinstance(model, str) else f"variant {index + 1}"


def path(keys: tuple[str | int, ...], data: dict[str, Any]) -> str:
    """`("variants", 2, "latency_ms", "request")` → `variant 3 (swin_tiny): latency_ms.request`."""
    head: list[str] = []
    if len(keys) > 1 and keys[0] == "variants" and isinstance(keys[1], int):
        head, keys = [place(data, keys[1])], keys[2:]
    dotted = "".join(f"[{key + 1}]" if isinstance(key, int) else f".{key}" for key in keys).lstrip(".")
    return ": ".join([*head, *([dotted] if dotted else [])])


def explain(message: str, data: dict[str, Any], source: str) -> str:
    """msgspec's message in the document's words."""
    what, _, where = message.partition(" - at `$")
    found = re.findall(r"\[(\d+)\]|\.([^.\[`]+)", where.replace("[...]", ""))
    keys = tuple(int(index) if index else key for index, key in found)
    what = re.sub(
        r"`([\w |]+)`", lambda match: " or ".join(_KINDS.get(k, k) for k in match[1].split(" | ")), what
    )
    if keys and what.startswith("Invalid enum value") and keys[-1] in _CHOICES:
        what += f": choose {' or '.join(get_args(_CHOICES[str(keys[-1])]))}"
    named = f"{path(keys, data)}: " if keys else ""
    return f"{source}: {named}{what[:1].lower()}{what[1:]}; docs/document.md shows each key."

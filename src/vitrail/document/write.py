"""Selection → document."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from vitrail.document import schema
from vitrail.document.rows import row_of, taken
from vitrail.version import __version__
from vitrail.vocabulary import Selection
from vitrail.words import utf8


def to_document(selection: Selection) -> dict[str, Any]:
    """The selection as the documented JSON object (plain dicts, lists, text, numbers, booleans, None)."""
    document = taken(
        schema.Document,
        selection,
        schema_version=schema.SCHEMA_VERSION,
        vitrail=__version__,
        variants=tuple(map(row_of, selection.ledger)),
    )
    plain: dict[str, Any] = _plain(msgspec.to_builtins(document))
    return plain


def to_json_bytes(selection: Selection) -> bytes:
    """The document as indented UTF-8 JSON that ends with a newline."""
    return msgspec.json.format(msgspec.json.encode(to_document(selection)), indent=2) + b"\n"


def _plain(value: Any) -> Any:
    """JSON has no NaN or infinity: such a figure becomes null, and a missing figure is a failure.

    Nor has it text that is no UTF-8, which a path may be: such bytes are escaped.
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return utf8(value)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value

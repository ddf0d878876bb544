"""Selection ↔ the versioned JSON document that `--json` writes and `select --from` reads.

docs/document.md explains the document, docs/selection.schema.json is its JSON Schema. Raw samples
stay in the store; the document holds the figures that are needed to judge again.
"""

from vitrail.document.read import DECLARED_LATENCY, Recorded, from_document
from vitrail.document.schema import SCHEMA_VERSION, json_schema
from vitrail.document.write import to_document, to_json_bytes

__all__ = [
    "DECLARED_LATENCY",
    "SCHEMA_VERSION",
    "Recorded",
    "from_document",
    "json_schema",
    "to_document",
    "to_json_bytes",
]

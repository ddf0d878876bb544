"""What answers about masks may look like, and which tasks give them; the process that only passes answers on
needs no more of it."""

from __future__ import annotations

__all__ = ["CUTOUT", "FORMS", "JSON", "PNG", "PROMPTABLE", "SEGMENT"]

SEGMENT, PROMPTABLE = "segment", "promptable"
JSON, PNG, CUTOUT = "json", "png", "cutout"
FORMS = (JSON, PNG, CUTOUT)
"""What an answer may be: JSON; the map of labels, or of a cut-out its alpha; the photo cut out."""

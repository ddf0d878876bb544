"""Masks: how they are stored, compared, judged, drawn and read from the user's own data (docs/masks.md)."""

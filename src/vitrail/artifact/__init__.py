"""The folder that ships: export, manifest with evidence and digests, reference photos (docs/artifact.md)."""

from __future__ import annotations

from vitrail.artifact.bundle import (
    Artifact,
    Bundle,
    TextTower,
    check_target,
    evidence_of,
    open_artifact,
    write,
)
from vitrail.artifact.manifest import SCHEMA_VERSION
from vitrail.artifact.records import NOT_RUN, NOT_TIMED, Evidence, FileEntry, Manifest, Reference

__all__ = [
    "NOT_RUN",
    "NOT_TIMED",
    "SCHEMA_VERSION",
    "Artifact",
    "Bundle",
    "Evidence",
    "FileEntry",
    "Manifest",
    "Reference",
    "TextTower",
    "check_target",
    "evidence_of",
    "open_artifact",
    "write",
]

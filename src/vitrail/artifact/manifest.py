"""The manifest: everything an artifact says about itself, as JSON (docs/artifact.md)."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from vitrail.artifact.older import upgraded
from vitrail.artifact.records import Manifest
from vitrail.artifact.values import check_complete, check_values
from vitrail.errors import InputError
from vitrail.store import digest_of

FORMAT = "vitrail-artifact"
SCHEMA_VERSION = 9
"""Schema 2 states every value that decides answers; 1 left out some, which then have their defaults.

Schema 3 has `task` and `graphs` instead of one classifier's values. Schema 4 names stages and figures:
`latency` for `request` and `model`, `quality` for `classification`. Schema 5 says of which form pixels are
that a graph takes, schema 6 under how many clients it was measured, schema 7 has limits of masks, schema 8
says whether the files were run. Older schemas can be read."""
MANIFEST_FILE = "manifest.json"


def encode(manifest: Manifest) -> bytes:
    """`manifest.json` as bytes: indented JSON that ends with its own digest."""
    document: dict[str, Any] = msgspec.to_builtins(manifest)
    document["digest"] = digest(document)
    return json.dumps(document, indent=2, allow_nan=False).encode("ascii") + b"\n"


def digest(document: dict[str, Any]) -> str:
    """SHA-256 of the manifest's canonical JSON (sorted keys, no spaces, ASCII) without its `digest`."""
    body = {key: value for key, value in document.items() if key != "digest"}
    return digest_of(body)


def decode(data: bytes, where: str) -> Manifest:
    """Read `manifest.json`; `where` names it in errors.

    Raises:
        InputError: not JSON, not a manifest, of a newer schema, edited, or with fields that are missing, of
            the wrong type, out of range, or contradictory.
    """
    document = _parse(data, where)
    if document.get("format") != FORMAT:
        raise InputError(f"{where} is not the manifest of a Vitrail artifact: name a folder vitrail wrote.")
    version = document.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        shown = version if version < 10**9 else "of a huge number"
        raise InputError(
            f"{where} has schema {shown} and this Vitrail reads up to {SCHEMA_VERSION}: upgrade vitrail "
            "(pip install --upgrade vitrail)."
        )
    claimed = document.get("digest")
    if claimed is None or claimed != _digest_or_none(document):
        raise InputError(f"{where} was changed after it was written: restore it or write the artifact again.")
    check_complete(document, where)
    try:
        manifest = msgspec.convert(upgraded(document), Manifest)
    except (msgspec.ValidationError, OverflowError) as error:
        raise InputError(f"{where} is not valid ({error}): write the artifact again.") from None
    check_values(manifest, where)
    return manifest


def _parse(data: bytes, where: str) -> dict[str, Any]:
    try:
        document = json.loads(data, object_pairs_hook=_without_twins)
        # A lone surrogate is not a character: no file system or terminal accepts it.
        json.dumps(document, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise InputError(f"{where} is not a JSON document: restore it or write the artifact again.")
    return document


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Parsers disagree on which of two equal keys counts.
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key appears twice")
    return found


def _digest_or_none(document: dict[str, Any]) -> str | None:
    # Python's json reads NaN and Infinity, but they are not JSON and have no canonical form.
    try:
        return digest(document)
    except (ValueError, RecursionError):
        return None

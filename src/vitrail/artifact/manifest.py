"""The manifest: all an artifact says about itself, as frozen records and as JSON (docs/artifact.md)."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import msgspec

from vitrail.artifact.values import check_complete, check_values
from vitrail.errors import InputError
from vitrail.store import canonical_json
from vitrail.vocabulary import (
    Accuracy,
    Classification,
    Environment,
    LatencyFigures,
    Memory,
    Parity,
    Preprocess,
    Requirements,
    RunnerFacts,
    Training,
    Variant,
    Verdict,
    Workload,
)

FORMAT = "vitrail-artifact"
SCHEMA_VERSION = 2
"""2: every value that decides answers is there; 1 left some out, which then mean their default."""
MANIFEST_FILE = "manifest.json"
Probability: TypeAlias = Literal["softmax", "sigmoid"]
"""How scores become probabilities: over all classes, or each by itself (SigLIP)."""


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """One file of the artifact: content digest and size in bytes."""

    sha256: str
    size: int


@dataclass(frozen=True, kw_only=True)
class ParityBounds:
    """What the outputs must hold against the fp32 eager reference, with the precision's meaning."""

    cosine: float
    """Smallest cosine similarity of one photo's scores."""
    relative_error: float
    """Largest ||scores - reference|| / ||reference|| of one photo."""
    agreement: float
    """Smallest share of decided photos that keep the reference's top-1."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Why this variant was selected: what was asked, what was observed, where, and each verdict."""

    requirements: Requirements
    workload: Workload
    accuracy: Accuracy | None = None
    request: LatencyFigures | None = None
    model: LatencyFigures | None = None
    throughput: float | None = None
    memory: Memory | None = None
    parity: Parity | None = None
    classification: Classification | None = None
    """On the validation split of the user's labelled images."""
    test: Classification | None = None
    """On the test split, which no choice has looked at."""
    expected_test: tuple[float, float] | None = None
    """95 % prediction interval in % for `test.accuracy`, from the validation split alone."""
    training: Training | None = None
    """How the weights came about, where they were trained here."""
    verdicts: tuple[Verdict, ...] = ()
    facts: RunnerFacts | None = None
    """What the engine did when the figures were taken."""
    environment: Environment | None = None
    hardware: dict[str, Any] = field(default_factory=dict)
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Photos with their outputs, for checking the artifact without torch; paths inside the artifact."""

    photos: tuple[str, ...]
    fp32_outputs: str
    """`.npy`, float32 (photos, K): the fp32 eager reference's scores of each photo's evaluation crop."""
    own_outputs: str
    """`.npy`, float32 (photos, K): what this artifact's export gave when it was written."""
    bounds: ParityBounds


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """All that `manifest.json` holds, its own digest aside."""

    format: str
    schema_version: int
    vitrail: str
    """Version of Vitrail that wrote the artifact."""
    created: str
    """UTC time, ISO 8601."""
    name: str
    """`Variant.name`."""
    variant: Variant
    preprocess: Preprocess
    classes: int
    """K, the number of labels."""
    labels: str
    """UTF-8 text file inside the artifact, one label a line, line i for class i - 1."""
    folder: str
    """Folder of the export inside the artifact."""
    entry: str
    """File inside `folder` that the engine loads."""
    probability: Probability = "softmax"
    """The first manifests of schema 1 do not say it."""
    toolchain: tuple[tuple[str, str], ...]
    """(library, version) of everything that made the export."""
    evidence: Evidence
    measurement: str | None
    """JSON file inside the artifact: the raw measurement with every sample; None: not kept."""
    reference: Reference
    files: dict[str, FileEntry]
    """Every file of the artifact but the manifest, by its path with `/` between the parts."""


def encode(manifest: Manifest) -> bytes:
    """`manifest.json` as bytes: indented JSON that ends with the manifest's own digest."""
    document: dict[str, Any] = msgspec.to_builtins(manifest)
    document["digest"] = digest(document)
    return json.dumps(document, indent=2, allow_nan=False).encode("ascii") + b"\n"


def digest(document: dict[str, Any]) -> str:
    """SHA-256 of the manifest's canonical JSON (sorted keys, no blanks, ASCII) without its `digest`."""
    body = {key: value for key, value in document.items() if key != "digest"}
    return hashlib.sha256(canonical_json(body)).hexdigest()


def decode(data: bytes, where: str) -> Manifest:
    """Read `manifest.json`; `where` names it in errors.

    Raises:
        InputError: not JSON, not a manifest, of a newer schema, edited, or with fields that are missing, of a
            wrong type, out of range, or in contradiction.
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
    try:
        manifest = msgspec.convert(document, Manifest)
    except (msgspec.ValidationError, OverflowError) as error:
        raise InputError(f"{where} is not valid ({error}): write the artifact again.") from None
    check_complete(document, manifest.schema_version, where)
    check_values(manifest, where)
    return manifest


def _parse(data: bytes, where: str) -> dict[str, Any]:
    try:
        document = json.loads(data, object_pairs_hook=_without_twins)
        # A lone surrogate is no character: no file system or terminal takes it.
        json.dumps(document, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise InputError(f"{where} is not a JSON document: restore it or write the artifact again.")
    return document


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Of a key that stands twice, readers take the one or the other.
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice")
    return found


def _digest_or_none(document: dict[str, Any]) -> str | None:
    # NaN and Infinity are read by Python's json but are no JSON: they have no canonical form.
    try:
        return digest(document)
    except (ValueError, RecursionError):
        return None

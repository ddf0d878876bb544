"""What a manifest holds, as frozen records (docs/artifact.md)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vitrail.tasks import Bounds
from vitrail.vocabulary import (
    Accuracy,
    Environment,
    Graph,
    LatencyFigures,
    Memory,
    Parity,
    Quality,
    Requirements,
    RunnerFacts,
    Training,
    Variant,
    Verdict,
    Workload,
)

NOT_RUN = "built here, not run: no figures are claimed"
NOT_TIMED = "run on its reference photos, not timed: no figures of speed, memory or accuracy are claimed"
"""Flags of an artifact that `vitrail export` wrote, for people: `Evidence.run` and `figures` decide."""


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """One file of the artifact: content digest and size in bytes."""

    sha256: str
    size: int


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Why this variant was selected: the requirements, the figures, the environment, and each verdict."""

    requirements: Requirements
    workload: Workload
    accuracy: Accuracy | None = None
    latency: dict[str, LatencyFigures] = field(default_factory=dict)
    """By stage, e.g. `request` and `model`."""
    throughput: float | None = None
    memory: Memory | None = None
    parity: Parity | None = None
    quality: Quality | None = None
    """On the validation split of the user's labelled images."""
    test: Quality | None = None
    """On the test split, which no decision has used."""
    expected_test: tuple[float, float] | None = None
    """95 % prediction interval in % for the main figure of `test`, from the validation split alone."""
    training: Training | None = None
    """How the weights were trained, if they were trained here."""
    verdicts: tuple[Verdict, ...] = ()
    facts: RunnerFacts | None = None
    """What the engine did when the figures were taken."""
    environment: Environment | None = None
    hardware: dict[str, Any] = field(default_factory=dict)
    run: bool = True
    """Whether the engine has run these files, if only on the reference photos."""
    flags: tuple[str, ...] = ()

    @property
    def figures(self) -> bool:
        """Whether anything is claimed of speed, memory or accuracy."""
        claimed = (self.accuracy, self.throughput, self.memory, self.quality, self.test)
        return bool(self.latency or self.verdicts) or any(each is not None for each in claimed)


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Photos and their outputs, for checking the artifact without torch; paths inside the artifact."""

    photos: tuple[str, ...]
    fp32_outputs: dict[str, str]
    """{output: `.npy`}, float32 (photos, ...): the fp32 eager reference's output for each photo."""
    own_outputs: dict[str, str]
    """{output: `.npy`}, float32 (photos, ...): this artifact's output when it was written; {} where it was
    not run (`Evidence.run`)."""
    bounds: Bounds


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything `manifest.json` holds, except its own digest."""

    format: str
    schema_version: int
    vitrail: str
    """Version of Vitrail that wrote the artifact."""
    created: str
    """UTC time, ISO 8601."""
    name: str
    """`Variant.name`."""
    variant: Variant
    task: dict[str, Any]
    """The task: `name`, and what its class in tasks/ stores."""
    folder: str
    """Folder of the export inside the artifact."""
    graphs: tuple[Graph, ...]
    """What the engine loads: names and shapes; `entry` is a file inside `folder`."""
    toolchain: tuple[tuple[str, str], ...]
    """(library, version) of everything used to make the export."""
    evidence: Evidence
    measurement: str | None
    """JSON file inside the artifact: the raw measurement with every sample; None: not stored."""
    reference: Reference
    files: dict[str, FileEntry]
    """Every file of the artifact except the manifest, by its `/`-separated path."""

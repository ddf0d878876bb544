"""What a batch job is made of: frozen records, no I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from vitrail.images.decode import Refusal

Reason = Literal[Refusal, "outside", "changed", "no answer"]
"""Why an input has no result: what decoding says, a path that leads out of the root, a file that changes as
often as it is read, a model whose numbers are not finite."""

SHARD_SIZE = 1024
"""Inputs that are committed together: what a killed job does again."""


@dataclass(frozen=True)
class Input:
    """One image to do, as it was listed.

    `name` is its path below the source's root, as the manifest writes it if there is one; bytes that are not
    UTF-8 are lone surrogates (PEP 383). `cells` are the values of the manifest's own columns.
    """

    name: str
    cells: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Shard:
    """Inputs that are done and committed together; `id` is made of their content."""

    id: str
    inputs: tuple[Input, ...]


@dataclass(frozen=True, kw_only=True)
class OwnColumn:
    """A column of the manifest that every row keeps."""

    name: str
    """In the results."""
    source: str
    """In the manifest."""
    type: str = "text"
    """For people."""
    arrow: str | None = None
    """Arrow's serialised schema of this one column, in base64; None: text."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why an input has no result."""

    reason: Reason
    message: str


@dataclass(frozen=True, kw_only=True)
class Finished:
    """All of one shard: a row or a failure for each input, in the inputs' order.

    `results` and `errors` hold dicts by column; together they are as many as the inputs. `failed_at` are the
    places of those with errors.
    """

    shard: str
    results: list[dict[str, Any]]
    errors: list[dict[str, Any]]
    failed_at: list[int]


@dataclass(frozen=True, kw_only=True)
class Committed:
    """What the marker of a shard says: its two files as they were written; None: the shard has none."""

    shard: str
    results: int
    errors: dict[str, int]
    """Failed inputs by reason."""
    failed_at: tuple[int, ...]
    """Which of the shard's inputs they are, from 0."""
    results_sha256: str | None
    errors_sha256: str | None

    @property
    def failed(self) -> int:
        """Inputs without a result."""
        return sum(self.errors.values())


@dataclass(frozen=True, kw_only=True)
class Listed:
    """What a listing found, in inputs."""

    new: int
    """Not in the job before."""
    known: int
    """In the job before."""
    gone: int
    """Of those, the ones that are listed no more: they stay in the job."""
    repeated: int
    """Listed again with all the same values: each counts once."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """How a run of a job ended."""

    out: str
    artifact: str
    digest: str
    inputs: int
    """All of the job, earlier runs included; so are `results` and `errors`."""
    results: int
    errors: dict[str, int]
    done_now: int
    """Inputs that this run has done."""
    shards: int
    shards_redone: int
    """Shards that were damaged."""
    retried: int
    """Inputs that had failed and were tried again."""
    listed: Listed
    seconds: float
    """Of this run's work, without listing and loading."""
    listing_seconds: float
    loading_seconds: float
    stages: dict[str, float] = field(default_factory=dict)
    """Seconds of this run by stage: `read` and `decode` summed over their threads, `model` and `finish` in
    one thread, `write` in another."""
    busy: dict[str, float] = field(default_factory=dict)
    """Share of its own threads' time in which each stage was at work: `read`, `decode`, `model`, `write`."""
    held_back_by: str | None = None
    """The busiest stage."""
    settings: dict[str, Any] = field(default_factory=dict)
    tried: tuple[dict[str, Any], ...] = ()
    """What the measurement of settings found, if there was one."""
    notes: tuple[str, ...] = ()

    @property
    def failed(self) -> int:
        """Inputs without a result."""
        return sum(self.errors.values())

    @property
    def images_per_second(self) -> float | None:
        """Of this run; None if it had nothing to do."""
        return self.done_now / self.seconds if self.done_now and self.seconds > 0 else None

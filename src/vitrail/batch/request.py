"""What is asked of a job, what a job is, and how the two are told apart."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import msgspec

from vitrail.artifact import Artifact
from vitrail.batch import sorting
from vitrail.batch.formats import FORMATS, Format
from vitrail.batch.records import SHARD_SIZE
from vitrail.batch.sources import Source
from vitrail.errors import InputError
from vitrail.images.limits import LIMITS, Limits
from vitrail.runtimes import RUNTIMES, version
from vitrail.tasks import Task
from vitrail.version import __version__

__all__ = [
    "Request",
    "Silent",
    "Watcher",
    "check_same",
    "check_sorting",
    "fingerprint",
    "full_options",
    "made_with",
    "moved",
]

ARTIFACT, COLUMNS = "ARTIFACT", "columns of the manifest"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked of a job."""

    artifact: str
    source: str
    out: str
    format: Format = FORMATS[0]
    options: Mapping[str, Any] = field(default_factory=dict)
    """The task's, e.g. `top`; those left out are as the task has them."""
    root: str | None = None
    """What a manifest's paths start from; None: its folder."""
    sort_into: str | None = None
    shard_size: int = SHARD_SIZE
    threads: int | None = None
    workers: int | None = None
    limits: Limits = LIMITS
    retry_errors: bool = False
    """Inputs that failed are tried again."""
    ray: str | None = None
    """Address of a Ray cluster, or `auto`; None: the work is done here."""


class Watcher(Protocol):
    """Is told how a job goes; `batch.progress.Progress` is one."""

    def say(self, text: str) -> None:
        """What begins now."""

    def listing(self, listed: int) -> None:
        """Inputs listed so far."""

    def begin(self, total: int, before: int, held_back: Any) -> None:
        """The work on inputs begins."""

    def tick(self, done: int, failed: int) -> None:
        """So many more are done."""


class Silent:
    """A watcher that shows nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def listing(self, listed: int) -> None:
        """Nothing."""

    def begin(self, total: int, before: int, held_back: Any) -> None:
        """Nothing."""

    def tick(self, done: int, failed: int) -> None:
        """Nothing."""


def full_options(task: Task, asked: Mapping[str, Any], said: str) -> dict[str, Any]:
    """The task's options for a table, those asked for first.

    Raises:
        InputError: one of another task, or a task that has no table: its answers are to prompts.
    """
    if task.stages:
        raise InputError(
            f"{said} answers prompts, and a batch has none: use vitrail segment with --point, --box "
            "or --everything."
        )
    for name in asked:
        if name not in task.table_options:
            option = name.replace("_", "-")
            raise InputError(
                f"--{option} says nothing about {said}, whose task is {task.name}: leave it out."
            )
    return {**task.table_options, **asked}


def check_sorting(request: Request, task: Task, source: Source) -> None:
    """Raise InputError where images cannot be sorted into folders, or not into this one."""
    if request.sort_into is None:
        return
    if task.sorted_by is None:
        raise InputError(
            f"--sort-into says nothing about {request.artifact}, whose task is {task.name}: leave it out."
        )
    if source.files.remote:
        raise InputError("--sort-into links files of this machine, and SOURCE is a URL: leave it out.")
    sorting.check_target(request.sort_into, request.out)


# --- what a job is ------------------------------------------------------------------------------


def fingerprint(request: Request, source: Source, options: Mapping[str, Any], digest: str) -> dict[str, Any]:
    """Everything that changes results, in words that an error may use."""
    limits = request.limits
    facts = {
        "SOURCE": source.name,
        "--root": source.files.root if request.root is not None else None,
        ARTIFACT: digest,
        "--format": request.format,
        **{f"--{name.replace('_', '-')}": value for name, value in options.items()},
        "--max-megapixels": None if limits == LIMITS else limits.pixels // 1_000_000,
        COLUMNS: msgspec.to_builtins(source.columns),
    }
    found: dict[str, Any] = json.loads(json.dumps(facts))  # as it is read again
    return found


def check_same(job: Mapping[str, Any], asked: Mapping[str, Any], request: Request, out: Path) -> None:
    """Raise InputError if what is asked of OUT is not what it was begun with; it names the difference."""
    was = job["fingerprint"]
    names = [name for name in dict.fromkeys([*was, *asked]) if was.get(name) != asked.get(name)]
    if names:
        said = "; ".join(_difference(name, was.get(name), asked.get(name)) for name in names)
        raise InputError(
            f"{out} belongs to a job that differs: {said}. Repeat its options, or choose another --out."
        )
    threads = job["settings"]["threads"]
    if request.threads not in (None, threads):
        raise InputError(
            f"{out} belongs to a job with --threads {threads}, and others may change the last digits: leave "
            "--threads out, or choose another --out."
        )


def made_with(artifact: Artifact) -> dict[str, str]:
    """The versions that results come from."""
    runtime = artifact.manifest.variant.runtime
    return {"vitrail": __version__, "engine": f"{RUNTIMES[runtime].label} {version(runtime)}"}


def moved(job: Mapping[str, Any], artifact: Artifact) -> list[str]:
    """What is of another version than when the job began."""
    return [
        f"begun with {name} {job.get(name)}, continued with {value}"
        for name, value in made_with(artifact).items()
        if job.get(name) != value
    ]


def _difference(name: str, was: Any, now: Any) -> str:
    """`--top 5 then, 3 now`."""
    if name == ARTIFACT:
        return f"another artifact (sha256 {str(was)[:12]} then, {str(now)[:12]} now)"
    if name == COLUMNS:
        return "the manifest has other columns"
    return f"{name} {_said(was)} then, {_said(now)} now"


def _said(value: Any) -> str:
    return "not given" if value is None else str(value)

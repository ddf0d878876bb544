"""Where the time of a run goes, and its summary as JSON."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import msgspec

from vitrail.batch import progress
from vitrail.batch.records import Summary
from vitrail.batch.shard import Stages

__all__ = ["Timed", "document"]


@dataclass(kw_only=True)
class Timed:
    """The clock of a run, and how busy its stages are."""

    shards: int
    inputs: int
    before: int
    """Inputs that earlier runs have done."""
    workers: int
    """Threads that read and decode; 0: the one that runs the model does it."""
    in_turn: bool
    """Whether each image is read, decoded and run by one thread."""
    work: Stages | None = None
    begun: float = 0.0
    seconds: float = 0.0
    elsewhere: float = 0.0
    """Seconds of all tasks on a cluster together; 0: the work is done here."""

    def start(self, work: Stages) -> None:
        """The work begins."""
        self.work, self.begun = work, time.perf_counter()

    def add(self, stages: dict[str, float], seconds: float) -> None:
        """What a task elsewhere took."""
        assert self.work is not None
        for name, value in stages.items():
            self.work.add(name, value)
        self.elsewhere += seconds

    def stop(self) -> None:
        """The work is done."""
        self.seconds = time.perf_counter() - self.begun

    def stages(self) -> dict[str, float]:
        """Seconds by stage."""
        return {} if self.work is None else self.work.read()

    def busy(self) -> dict[str, float]:
        """As `progress.busy`; empty if there was nothing to do."""
        if self.work is None:
            return {}
        elapsed = self.seconds or time.perf_counter() - self.begun
        return progress.busy(self.stages(), self.workers, self.elsewhere or elapsed, elapsed)

    def held_back(self) -> tuple[str, float] | None:
        """As `progress.held_back`."""
        return progress.held_back(self.busy(), in_turn=self.in_turn)


def document(summary: Summary) -> dict[str, Any]:
    """A summary as JSON."""
    found: dict[str, Any] = msgspec.to_builtins(summary)
    rate = summary.images_per_second
    return {
        "schema_version": 1,
        **found,
        "failed": summary.failed,
        "images_per_second": None if rate is None else round(rate, 2),
    }

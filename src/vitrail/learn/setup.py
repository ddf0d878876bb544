"""What to train, on what, where; and who knows how each task is learned. Nothing here imports torch."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from vitrail import hardware
from vitrail.learn.recipe import Recipe
from vitrail.limits import whole
from vitrail.vocabulary import Layout

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from vitrail.data import Dataset
    from vitrail.learn.start import Start
    from vitrail.learn.train import LabelledTraining
    from vitrail.weights.find import WeightsFinder

__all__ = ["LEARNED", "FinetuneSetup", "Learned", "Learner", "Machine", "learner_of"]


class Learned(NamedTuple):
    """A task that can be learned."""

    by: str
    """Its `Learner`, as `module:class`."""
    recipe: str
    """The recipe where none is named."""


LEARNED: dict[str, Learned] = {
    "classify": Learned("vitrail.learn.classify:Classes", "light"),
    "segment": Learned("vitrail.learn.segment:Masks", "masks"),
    "promptable": Learned("vitrail.learn.promptable:Clicks", "promptable"),
}
"""By the names of `tasks.TASKS`."""


class Learner(Protocol):
    """How one task is learned; made from a `FinetuneSetup`."""

    def dataset(self) -> Dataset:
        """The person's data. Raises InputError if it cannot be used, or options do not go with the task."""

    def start(self, dataset: Dataset, finder: WeightsFinder) -> Start:
        """The model before its first step. Raises InputError as `start.starting`."""

    def training(self, start: Start, dataset: Dataset, note: Callable[[str], None]) -> LabelledTraining:
        """The model with its images and loss. Raises InputError for images that cannot be read."""


def learner_of(setup: FinetuneSetup) -> Learner:
    """The learner of the setup's task."""
    module, _, kind = LEARNED[setup.task].by.partition(":")
    made: Learner = getattr(importlib.import_module(module), kind)(setup)
    return made


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where a run takes place.

    Raises:
        InputError: a number out of its range.
    """

    accelerator: str = "auto"
    """cpu, cuda or auto."""
    processes: int = 1
    """On each node: one per GPU, or several on a CPU."""
    nodes: int = 1
    strategy: str = "auto"
    """ddp, fsdp or auto (ddp if there are several processes)."""
    threads: int | None = None
    """For each process on a CPU; None: the usable cores, shared among the processes."""
    workers: int | None = None
    """Processes that prepare images, for each training process; None: on a CPU none, because the step itself
    uses every core; on GPUs the cores, shared among the processes."""

    def __post_init__(self) -> None:
        for name in ("processes", "nodes", "threads", "workers"):
            value = getattr(self, name)
            if value is not None:
                whole(name, value)

    def threads_each(self) -> int:
        """Threads of each process on a CPU."""
        return self.threads or max(1, hardware.usable_cores() // self.processes)

    def workers_each(self, fabric: Fabric) -> int:
        """Processes that prepare images, for each training process."""
        if self.workers is not None:
            return self.workers
        return 0 if fabric.device.type == "cpu" else max(1, hardware.usable_cores() // self.processes)


@dataclass
class FinetuneSetup:
    """What to train on what.

    Args:
        task: what is learned, a name of `LEARNED`.
        data: labelled images, as for `select --data`.
        model: name of a candidate, an architecture, or a model of ours.
        recipe: from `load_recipe`.
        out: the run's folder; an existing run is resumed.
        layout: what the folders of `data` are; None: recognise it.
        labels: file with one class a line, for data that only numbers them.
        image_size, weights, from_scratch: as in `start.starting`.
        checkpoint_every: steps, in addition to the end of each epoch.
        extend: continue the finished run to the recipe's epochs.
    """

    data: str
    model: str
    recipe: Recipe
    out: Path
    task: str = "classify"
    layout: Layout | None = None
    labels: Path | None = None
    image_size: int | None = None
    weights: Path | None = None
    from_scratch: bool = False
    checkpoint_every: int | None = None
    extend: bool = False
    machine: Machine = field(default_factory=Machine)

"""What every source of candidates has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from vitrail import data
from vitrail.artifact import TextTower
from vitrail.data import Dataset, Layout
from vitrail.export.bench import Bench
from vitrail.vocabulary import Candidate, Requirements, SearchSettings, Training, Workload

__all__ = ["Context", "Found", "Source"]


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a source has for one selection."""

    candidates: tuple[Candidate, ...] = ()
    excluded: Mapping[str, str] = field(default_factory=dict)
    """Candidate's name -> why nothing of it needs to be measured."""
    notes: tuple[str, ...] = ()
    trainings: tuple[Training, ...] = ()
    """How the weights that were trained here came about."""
    towers: Mapping[str, TextTower] = field(default_factory=dict)
    """Candidate's name -> the CLIP that its head of class names was made with."""
    why_none: str = ""
    """A sentence with the fix, where no candidate is left to measure."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """The selection that a source finds candidates for."""

    requirements: Requirements
    settings: SearchSettings
    bench: Bench
    """With the workload, the photos and the labelled images."""
    download_mib: float
    """What may be downloaded in all."""
    left_s: Callable[[], float] = lambda: float("inf")
    """What is left of the budget."""
    note: Callable[[str], None] = lambda _: None
    doing: Callable[[str], None] = lambda _: None
    """Called when something begins that may last over a second."""

    @property
    def dataset(self) -> Dataset | None:
        """The person's labelled images; None: there are none."""
        return self.bench.dataset

    @property
    def workload(self) -> Workload:
        """Under what load candidates will be measured."""
        return self.bench.workload


class Source(ABC):
    """Where candidates come from: a table, a file, a training run, a list of class names."""

    option: ClassVar[str] = ""
    """The option of the command line that names it, for messages."""
    tasks: ClassVar[tuple[str, ...]] = ("classify",)
    """What its candidates can be for."""
    answers: ClassVar[str] = ""
    """How its heads come to answer the person's own classes, e.g. "zero-shot"; empty: they answer what the
    weights were trained for, so that labelled images give them a new head (`probe.py`)."""

    @property
    def alone(self) -> bool:
        """Whether the catalogue takes part beside it only where globs say so."""
        return True

    @property
    def keeps_catalogue_out(self) -> bool:
        """Whether the catalogue cannot take part beside it without labelled images: other classes."""
        return bool(self.answers)

    def licenses(self) -> tuple[str, ...]:
        """Licenses that the person stated for its weights."""
        return ()

    def matches(self, glob: str) -> bool:
        """Whether a glob of `SearchSettings.models` names something of this source."""
        return False

    def check_settings(self, settings: SearchSettings) -> None:
        """Refuse, before anything is read, settings that do not go with this source. Raises InputError."""
        return

    def labelled_images(self, layout: Layout | None) -> tuple[str, Dataset] | None:
        """Labelled images of its own, with their place: taken where the person names none.

        Raises:
            InputError: they are gone, or are no longer what they were.
        """
        return None

    def read_labelled(self, place: str, settings: SearchSettings) -> Dataset:
        """The labelled images that the person names, as this source's task needs them. Raises InputError."""
        return data.load(place, layout=settings.layout)

    def check(self, requirements: Requirements, settings: SearchSettings, dataset: Dataset | None) -> None:
        """Refuse, before anything is measured, what does not go with the labelled images or their absence.

        Raises:
            InputError: with the fix.
        """
        return

    @abstractmethod
    def find(self, context: Context) -> Found:
        """The candidates, described as far as that needs no measuring.

        Raises:
            InputError: what the person named cannot be used.
        """

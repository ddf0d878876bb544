"""Training runs as candidates: on which labelled images they are judged, and whether these may judge them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from vitrail import data
from vitrail.data import Dataset, Layout
from vitrail.errors import InputError
from vitrail.learn.outlook import outlook
from vitrail.learn.setup import LEARNED
from vitrail.learn.trained import Trained, candidate_of, read, training_of
from vitrail.masks import dataset as mask_data
from vitrail.masks import objects
from vitrail.sources.source import Context, Found, Source
from vitrail.vocabulary import Candidate, Requirements, SearchSettings
from vitrail.words import counted, some_of

__all__ = ["TrainedRuns", "check_against"]

SHOWN = 5
"""Names in a message; more are counted."""


@dataclass(frozen=True)
class TrainedRun:
    """One training run."""

    folder: str
    record: Trained
    candidate: Candidate


@dataclass(frozen=True)
class TrainedRuns(Source):
    """What `vitrail train` left in these folders."""

    folders: Sequence[str | Path]
    option: ClassVar[str] = "trained"
    tasks: ClassVar[tuple[str, ...]] = tuple(LEARNED)
    answers: ClassVar[str] = "its trained weights"

    @cached_property
    def runs(self) -> tuple[TrainedRun, ...]:
        """The runs, in the order they were named.

        Raises:
            InputError: no folder, one that holds no whole run, or two runs of one name.
        """
        if not self.folders:
            raise InputError("No training run is named: give its folder, or leave the source out.")
        records = [(str(folder), read(folder)) for folder in self.folders]
        runs = tuple(TrainedRun(folder, record, candidate_of(folder, record)) for folder, record in records)
        first: dict[str, TrainedRun] = {}
        for run in runs:
            other = first.setdefault(run.candidate.name, run)
            if other is not run:
                raise InputError(
                    f"The runs {other.folder} and {run.folder} are both named {run.candidate.name}: name one "
                    "of them only, or train one under another name."
                )
        return runs

    def licenses(self) -> tuple[str, ...]:
        """What the runs' records say. Raises InputError as `runs` does."""
        return tuple(run.record.license for run in self.runs)

    def labelled_images(self, layout: Layout | None) -> tuple[str, Dataset]:
        """What the runs were trained on.

        Raises:
            InputError: it is gone, has changed, or is not the same for all runs.
        """
        first = self.runs[0]
        digests = {run.record.data_digest for run in self.runs}
        if len(digests) > 1:
            raise InputError(
                f"The runs {' and '.join(run.folder for run in self.runs)} were trained on different data: "
                "say with --data DIR on which labelled images to compare them."
            )
        place = next((run.record.data for run in self.runs if Path(run.record.data).exists()), None)
        if place is None:
            raise InputError(
                f"The data of {first.folder} is no longer at {first.record.data}: say with --data DIR "
                "where the labelled images are."
            )
        dataset = self._loaded(place, layout)
        if dataset.digest not in digests:
            raise InputError(
                f"The labelled images at {place} have changed since {first.folder} was trained: "
                f"say which ones to judge it on with --data DIR (--data {place} if these are meant)."
            )
        return place, dataset

    def read_labelled(self, place: str, settings: SearchSettings) -> Dataset:
        """Images by class, or photos with masks or objects. Raises InputError as their readers."""
        return self._loaded(place, settings.layout)

    def _loaded(self, place: str, layout: Layout | None) -> Dataset:
        first = self.runs[0].record
        if first.task == "classify":
            return data.load(place, layout=layout)
        if layout is not None:
            raise InputError(f"--layout is about folders of classes: leave it out of --task {first.task}.")
        return objects.load(place) if first.task == "promptable" else mask_data.load(place, first.classes)

    def check_settings(self, settings: SearchSettings) -> None:
        """Refuse another task, runs whose masks have other classes, and implementations without a run's own.

        Raises:
            InputError: also as `runs` does.
        """
        for run in self.runs:
            if run.record.task != settings.task:
                raise InputError(
                    f"{run.folder} was trained with --task {run.record.task}, and --task {settings.task} is "
                    f"asked for: give --task {run.record.task}, or another run."
                )
            if run.record.task == "segment" and run.record.classes != self.runs[0].record.classes:
                raise InputError(
                    f"The masks of {self.runs[0].folder} and {run.folder} have different classes, or in "
                    "another order: name one of them only."
                )
            code = run.record.implementation
            if settings.implementations and code not in settings.implementations:
                raise InputError(
                    f"{run.folder} was trained with {code}'s code: add {code} to --implementations, or leave "
                    "that option out."
                )

    def check(self, requirements: Requirements, settings: SearchSettings, dataset: Dataset | None) -> None:
        """Refuse labelled images that may not judge a run (`check_against`)."""
        if dataset is not None:
            for run in self.runs:
                check_against(run.folder, run.record, dataset)

    def find(self, context: Context) -> Found:
        """The runs' candidates. Raises InputError for weights that changed since they were read."""
        for run in self.runs:
            located = context.bench.weights(run.candidate)
            assert located is not None, "a file's weights are at hand or raise"
            if located.weights.sha256 != run.candidate.weights.sha256:
                raise InputError(
                    f"The weights of {run.folder} changed just now: wait for its training to end."
                )
        return Found(
            candidates=tuple(run.candidate for run in self.runs),
            notes=tuple(note for run in self.runs for note in _doubts(run, context.dataset)),
            trainings=tuple(training_of(run.record, run.candidate.name) for run in self.runs),
        )


def check_against(folder: str, record: Trained, dataset: Dataset) -> None:
    """Check that labelled images may judge a run.

    Raises:
        InputError: other classes, or the run has seen images that would judge it.
    """
    own, theirs = set(record.classes), set(dataset.classes)
    if own != theirs:
        parts = [("only the run has", sorted(own - theirs)), ("only the data has", sorted(theirs - own))]
        said = "; ".join(f"{who} {some_of(names, SHOWN)}" for who, names in parts if names)
        raise InputError(
            f"{folder} was not trained on the classes of {dataset.name} ({said}): give the data it was "
            "trained on, or train again on this."
        )
    seen = set(record.seen)
    counts = {
        split: sum(example.digest in seen for example in dataset.of(split))
        for split in data.SPLITS
        if split != "train"
    }
    if any(counts.values()):
        said = " and ".join(f"{count} of its {split} images" for split, count in counts.items() if count)
        raise InputError(
            f"{folder} was trained on {said} of {dataset.name}, so they cannot judge it (the split changed "
            "since): train again, or give the data as it was."
        )


def _doubts(run: TrainedRun, dataset: Dataset | None) -> Iterator[str]:
    """What rules nothing out, but the person should know."""
    name, record = run.candidate.name, run.record
    if not record.finished:
        yield f"the training of {name} is not finished ({counted(record.epochs, 'epoch')} done)"
    elif (found := outlook(record)) is not None:
        fix = {
            "more epochs": f"continue its training (vitrail train … --epochs {2 * record.epochs} --extend)",
            "more images": "label more images",
        }[found.helps]
        yield f"{name} {found.why}: {fix}"
    if dataset is not None and record.data_digest != dataset.digest:
        yield (
            f"{name} was trained on other images or another split than this data has; none "
            "that it has seen is in validation or test"
        )

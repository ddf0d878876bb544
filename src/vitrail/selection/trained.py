"""Training runs as candidates: on which labelled images they are judged, and whether these may judge them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vitrail import data
from vitrail.catalog.clip import Published
from vitrail.data import Dataset, Layout
from vitrail.errors import InputError
from vitrail.learn.outlook import outlook
from vitrail.learn.trained import Trained, candidate_of, read, training_of
from vitrail.selection.bench import Bench
from vitrail.selection.named import asked_candidates, measured_first
from vitrail.selection.own import OwnWeights
from vitrail.vocabulary import Candidate, SearchSettings, Training, Workload
from vitrail.words import counted
from vitrail.zeroshot.candidates import Names, OwnCLIP, matching

__all__ = ["Runs", "beside", "check_against", "data_of", "measured_runs", "notes_of", "read_runs"]

SHOWN = 5
"""Names in a message; more are counted."""


@dataclass(frozen=True, kw_only=True)
class Runs:
    """Training runs, in the order they were named: folders, records and candidates go together."""

    folders: tuple[str, ...] = ()
    records: tuple[Trained, ...] = ()
    candidates: tuple[Candidate, ...] = ()

    @property
    def trainings(self) -> tuple[Training, ...]:
        """How each came about, for the selection's document and report."""
        pairs = zip(self.candidates, self.records, strict=True)
        return tuple(training_of(record, candidate.name) for candidate, record in pairs)


def read_runs(folders: Sequence[str | Path], settings: SearchSettings) -> Runs:
    """The runs of these folders, checked as far as that needs no images.

    Raises:
        InputError: a folder that holds no whole run, two runs of one name, or a run whose implementation is
            not among the asked ones.
    """
    found = [(str(folder), read(folder)) for folder in folders]
    runs = Runs(
        folders=tuple(folder for folder, _ in found),
        records=tuple(record for _, record in found),
        candidates=tuple(candidate_of(folder, record) for folder, record in found),
    )
    first: dict[str, str] = {}
    for folder, record, candidate in zip(runs.folders, runs.records, runs.candidates, strict=True):
        other = first.setdefault(candidate.name, folder)
        if other != folder or runs.folders.count(folder) > 1:
            raise InputError(
                f"The runs {other} and {folder} are both named {candidate.name}: name one of them only, or "
                "train one under another name."
            )
        if settings.implementations and record.implementation not in settings.implementations:
            raise InputError(
                f"{folder} was trained with {record.implementation}'s code: add {record.implementation} to "
                "--implementations, or leave that option out."
            )
    return runs


def data_of(
    runs: Runs, workload: Workload, layout: Layout | None = None
) -> tuple[Workload, Dataset | None, tuple[str, ...]]:
    """The labelled images of this selection, with the workload that names them, and a note where none did.

    Without `workload.data` the runs' own data set is taken, if it still is what they were trained on.

    Raises:
        InputError: no data set was named and the runs' own is gone, has changed, or is not the same for all;
            or the data set does not go with a run (`check_against`).
    """
    if not runs.records:
        return workload, None if workload.data is None else data.load(workload.data, layout=layout), ()
    notes: tuple[str, ...] = ()
    if workload.data is not None:
        dataset = data.load(workload.data, layout=layout)
    else:
        place, dataset = _own_data(runs, layout)
        workload = replace(workload, data=place)
        notes = (f"no labelled images were named: those that the training used, {place}, are used again",)
    for folder, record in zip(runs.folders, runs.records, strict=True):
        check_against(folder, record, dataset)
    return workload, dataset, notes


def beside(
    runs: Runs,
    own: OwnWeights | OwnCLIP | None,
    names: Names | None,
    settings: SearchSettings,
    *,
    with_data: bool,
) -> tuple[tuple[Candidate, ...], tuple[Published, ...]]:
    """The other candidates, as `asked_candidates`; runs are alone unless others are asked for."""
    if runs.records and own is None and not settings.models:
        return (), () if names is None else matching(())
    return asked_candidates(own, names, settings, with_data=with_data)


def measured_runs(runs: Runs, bench: Bench, settings: SearchSettings) -> tuple[Candidate, ...]:
    """The runs' candidates with their accuracy on the validation images.

    Raises:
        InputError: weights that changed since they were read, or that cannot be exported or run.
    """
    for folder, candidate in zip(runs.folders, runs.candidates, strict=True):
        located = bench.weights(candidate)
        assert located is not None, "a file's weights are at hand or raise"
        if located.weights.sha256 != candidate.weights.sha256:
            raise InputError(f"The weights of {folder} changed just now: wait for its training to end.")
    return tuple(measured_first(c, bench, settings, "its trained weights") for c in runs.candidates)


def _own_data(runs: Runs, layout: Layout | None) -> tuple[str, Dataset]:
    digests = {record.data_digest for record in runs.records}
    if len(digests) > 1:
        raise InputError(
            f"The runs {' and '.join(runs.folders)} were trained on different data: say with --data DIR on "
            "which labelled images to compare them."
        )
    place = next((r.data for r in runs.records if Path(r.data).exists()), None)
    if place is None:
        raise InputError(
            f"The data of {runs.folders[0]} is no longer at {runs.records[0].data}: say with --data DIR "
            "where the labelled images are."
        )
    dataset = data.load(place, layout=layout)
    if dataset.digest not in digests:
        raise InputError(
            f"The labelled images at {place} are not those that {runs.folders[0]} was trained on any more: "
            f"name the ones to judge it on with --data DIR (--data {place} if these are meant)."
        )
    return place, dataset


def check_against(folder: str, record: Trained, dataset: Dataset) -> None:
    """Whether these labelled images can judge the run.

    Raises:
        InputError: other classes, or the run has seen images that would judge it.
    """
    own, theirs = set(record.classes), set(dataset.classes)
    if own != theirs:
        parts = [("only the run has", sorted(own - theirs)), ("only the data has", sorted(theirs - own))]
        said = "; ".join(f"{who} {_listed(names)}" for who, names in parts if names)
        raise InputError(
            f"{folder} was trained on other classes than {dataset.name} has ({said}): give the data it was "
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


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def notes_of(runs: Runs, dataset: Dataset | None) -> tuple[str, ...]:
    """Doubts about the runs that rule nothing out."""
    notes = []
    for candidate, record in zip(runs.candidates, runs.records, strict=True):
        if not record.finished:
            done = counted(record.epochs, "epoch")
            notes.append(f"the training of {candidate.name} is not finished ({done} done)")
        elif (found := outlook(record)) is not None:
            fix = {
                "more epochs": f"train it on (vitrail train … --epochs {2 * record.epochs} --extend)",
                "more images": "label more images",
            }[found.helps]
            notes.append(f"{candidate.name} {found.why}: {fix}")
        if dataset is not None and record.data_digest != dataset.digest:
            notes.append(
                f"{candidate.name} was trained on other images or another split than this data has; none "
                "that it has seen is in validation or test"
            )
    return tuple(notes)

"""The sources of one selection: which take part, whose labelled images count, and what they find together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vitrail import data
from vitrail.data import Dataset, Layout
from vitrail.errors import InputError
from vitrail.sources.catalogue import Catalogue
from vitrail.sources.measured import Measured
from vitrail.sources.probe import Probe
from vitrail.sources.source import Context, Found, Source
from vitrail.vocabulary import SearchSettings, Workload

__all__ = ["arranged", "check_task", "gather", "labelled_images"]


def check_task(sources: Sequence[Source], task: str) -> None:
    """Raise an InputError for a source whose candidates have classes, where the task has none."""
    for source in sources:
        if task not in source.tasks:
            raise InputError(
                f"--{source.option} is about classes, and --task {task} gives vectors: leave it out."
            )


def labelled_images(
    sources: Sequence[Source], workload: Workload, layout: Layout | None
) -> tuple[Workload, Dataset | None, tuple[str, ...]]:
    """The labelled images of this selection, with the workload that names them, and a note where none did.

    Raises:
        InputError: they cannot be read, or a source's own are not to be used (`Source.labelled_images`).
    """
    if workload.data is not None:
        return workload, data.load(workload.data, layout=layout), ()
    for source in sources:
        if (own := source.labelled_images(layout)) is not None:
            place, dataset = own
            note = f"no labelled images were given: those of the training, {place}, are used"
            return replace(workload, data=place), dataset, (note,)
    return workload, None, ()


def arranged(
    given: Sequence[Source], settings: SearchSettings, dataset: Dataset | None
) -> tuple[Source, ...]:
    """The sources that take part, as they are asked for candidates.

    The catalogue joins what the person gave where globs name it, or nothing else stands alone. Without
    labelled images its heads cannot answer the person's classes, so it stays out where another source's do.
    With labelled images, heads that were trained for other classes are replaced by probes.
    """
    sources = list(given)
    asked = bool(settings.models) or not any(source.alone for source in given)
    if asked and not (dataset is None and any(source.answers for source in given)):
        sources.append(Catalogue(elsewhere=lambda glob: any(source.matches(glob) for source in given)))
    if dataset is None:
        return tuple(sources)
    backbones = tuple(source for source in sources if not source.answers)
    # What the person named comes first: a mistake in it shows before anything is probed.
    others = tuple(Measured(source) for source in sources if source.answers)
    return (*others, Probe(backbones)) if backbones else others


def gather(sources: Sequence[Source], context: Context) -> Found:
    """What all sources find, together.

    Raises:
        InputError: a source refuses what the person named, or there is nothing to measure.
    """
    parts = [source.find(context) for source in sources]
    found = Found(
        candidates=tuple(candidate for part in parts for candidate in part.candidates),
        excluded={name: why for part in parts for name, why in part.excluded.items()},
        notes=tuple(note for part in parts for note in part.notes),
        trainings=tuple(training for part in parts for training in part.trainings),
        towers={name: tower for part in parts for name, tower in part.towers.items()},
    )
    if all(candidate.name in found.excluded for candidate in found.candidates):
        # The last source is the one that others only accompany: the catalogue, or its probes.
        raise InputError(next(part.why_none for part in reversed(parts) if part.why_none))
    return found

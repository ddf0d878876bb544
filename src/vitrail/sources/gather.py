"""The sources of one selection: which take part, whose labelled images count, and what they find together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from vitrail import tasks
from vitrail.data import Dataset
from vitrail.errors import InputError
from vitrail.sources.catalogue import Catalogue
from vitrail.sources.measured import measured
from vitrail.sources.probe import Probe
from vitrail.sources.source import Context, Found, Source
from vitrail.vocabulary import SearchSettings, Workload

__all__ = ["Part", "arranged", "check_task", "find", "gather", "labelled_images"]

PUBLISHED = "its published weights"
NOTHING = "No candidate is left to measure: name other models with --models."


@dataclass(frozen=True)
class Part:
    """A source, and what it found."""

    source: Source
    found: Found


def check_task(sources: Sequence[Source], task: str) -> None:
    """Raise an InputError for a source whose candidates are not for the task, or none where one is needed."""
    for source in sources:
        if task not in source.tasks:
            what = f"--{source.option}" if source.option else "what is given"
            why = "is about classes, and" if task == "embed" else "gives no masks, as"
            has = "has none" if task == "embed" else "needs them"
            raise InputError(f"{what} {why} --task {task} {has}: leave it out.")
    if not sources and task not in Catalogue.tasks:
        raise InputError(
            f"No model of the catalogue is for --task {task}: give your own with --onnx FILE, --labels FILE "
            "and --preprocess TOML, or --trained RUN."
        )


def labelled_images(
    sources: Sequence[Source], workload: Workload, settings: SearchSettings
) -> tuple[Workload, Dataset | None, tuple[str, ...]]:
    """The labelled images of this selection, with the workload that names them, and a note where none did.

    Raises:
        InputError: they cannot be read, or a source's own are not to be used (`Source.labelled_images`).
    """
    if workload.data is not None:
        reader = sources[0] if sources else Catalogue()
        return workload, reader.read_labelled(workload.data, settings), ()
    for source in sources:
        if (own := source.labelled_images(settings.layout)) is not None:
            place, dataset = own
            note = f"no labelled images were given: those of the training, {place}, are used"
            return replace(workload, data=place), dataset, (note,)
    return workload, None, ()


def arranged(
    given: Sequence[Source], settings: SearchSettings, dataset: Dataset | None
) -> tuple[Source, ...]:
    """The sources that take part.

    The catalogue joins what the person gave where globs name it, or nothing else stands alone. Without
    labelled images its heads cannot answer the person's classes, so it stays out where another source's do.
    """
    asked = bool(settings.models) or not any(source.alone for source in given)
    if asked and not (dataset is None and any(source.keeps_catalogue_out for source in given)):
        return (*given, Catalogue(elsewhere=lambda glob: any(source.matches(glob) for source in given)))
    return tuple(given)


def find(sources: Sequence[Source], context: Context) -> tuple[Part, ...]:
    """What each source finds, in their order; nothing is measured yet.

    Raises:
        InputError: a source refuses what the person named, or two candidates have one name.
    """
    # The catalogue comes last in the order, and is the quickest to refuse what it does not know.
    found = [Part(source, source.find(context)) for source in reversed(sources)][::-1]
    names = Counter(candidate.name for part in found for candidate in part.found.candidates)
    for name, count in names.items():
        if count > 1:
            raise InputError(f"Two candidates are named {name}: rename the weights file, or narrow --models.")
    return tuple(found)


def gather(parts: Sequence[Part], context: Context) -> Found:
    """All candidates together, with labelled images as they answer the person's classes.

    Then those whose heads do are measured as they are, and the others get heads of their own by a probe.

    Raises:
        InputError: a candidate that the person named cannot be run, or there is nothing to measure.
    """
    if context.dataset is None:
        found = [part.found for part in parts]
    elif tasks.known(context.settings.task).stages:  # a prompt has no classes, so nothing needs a new head
        found = [_at_hand(part, context) for part in parts]
    else:
        found = [measured(part.found, part.source.answers, context) for part in parts if part.source.answers]
        backbones = [part.found for part in parts if not part.source.answers]
        if backbones:
            found.append(Probe(together(backbones)).find(context))
    everything = together(found)
    if all(candidate.name in everything.excluded for candidate in everything.candidates):
        # The last one is what others only accompany: the catalogue, or its probes.
        raise InputError(next((part.why_none for part in reversed(found) if part.why_none), NOTHING))
    return everything


def _at_hand(part: Part, context: Context) -> Found:
    """What a source found, measured where there are weights: those of the others are only timed."""
    there = [each for each in part.found.candidates if context.bench.weights(each) is not None]
    others = [each for each in part.found.candidates if each not in there]
    found = measured(replace(part.found, candidates=tuple(there)), part.source.answers or PUBLISHED, context)
    return replace(found, candidates=(*found.candidates, *others))


def together(parts: Sequence[Found]) -> Found:
    """Several sources' as one, in their order."""
    return Found(
        candidates=tuple(candidate for part in parts for candidate in part.candidates),
        excluded={name: why for part in parts for name, why in part.excluded.items()},
        notes=tuple(note for part in parts for note in part.notes),
        trainings=tuple(training for part in parts for training in part.trainings),
        towers={name: tower for part in parts for name, tower in part.towers.items()},
    )

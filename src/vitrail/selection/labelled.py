"""The user's labelled images in a selection: checked before it, timed on, and tested on after it."""

from __future__ import annotations

import math
from dataclasses import replace

from vitrail import data
from vitrail.errors import InputError
from vitrail.images.photos import MAX_PHOTOS, PhotoSet, digest_of, evenly_spaced, photo_folder, sample_photos
from vitrail.selection.search import Search
from vitrail.tasks import accuracy
from vitrail.vocabulary import Figure, Requirements, Selection, Workload
from vitrail.words import counted

FAR_POINTS = 10.0

__all__ = ["calibrated", "check_classes", "described", "doubts", "photos_of", "tested"]


def tested(selection: Selection, search: Search, requirements: Requirements) -> Selection:
    """The selection with the winner's answers on the test split, beside what validation makes likely.

    No choice has looked at these images, and none does now: what they say is written down, and where they
    contradict a limit that validation held, a note says so.

    Raises:
        ChildFailure: the winner's export, which ran before, fails now.
    """
    winner = selection.winner
    seen = winner.observation.quality if winner is not None else None
    if winner is None or seen is None:
        return selection
    export = search.bench.export(winner.variant, timeout_s=300.0)
    found = search.bench.quality(winner.variant, export, "test")
    missed, main, expected = [], found.main, None
    least = requirements.min_accuracy
    if least is not None and main.interval is not None and main.interval[0] < least:
        missed.append(_too_few(main, "accuracy", least, main.interval))
    for asked in requirements.least:
        figure = found.figure(asked.metric, asked.label)
        between = _between(figure)
        if figure is not None and between is not None and between[0] < asked.value:
            missed.append(_too_few(figure, asked.of, asked.value, between))
    if main.share:
        low, high = accuracy.expected_share(seen.main.right, seen.main.images, main.images)
        expected = (100 * low, 100 * high)
        if not low <= main.value / 100 <= high:
            missed.append(
                f"the test accuracy of {main.value:.1f} % is outside the "
                f"{expected[0]:.1f} to {expected[1]:.1f} % expected from the validation images"
            )
    return replace(selection, test=found, expected_test=expected, notes=(*missed, *selection.notes))


def _between(figure: Figure | None) -> tuple[float, float] | None:
    """The 95 % interval of a figure; None: there is none."""
    if figure is None or not figure.share:
        return None if figure is None else figure.interval
    low, high = accuracy.share_interval(figure.right, figure.images)
    return 100 * low, 100 * high


def _too_few(figure: Figure, name: str, least: float, interval: tuple[float, float]) -> str:
    return (
        f"{counted(figure.images, 'test image is', 'test images are')} too few to show at 95 % that "
        f"the {name} reaches {least:g} %: {figure.value:.1f} % [{interval[0]:.1f}, {interval[1]:.1f}]"
    )


def calibrated(selection: Selection) -> Selection:
    """The selection with a note where the winner's probabilities are far from what they say.

    Far is twice what chance alone would show on so few images, and 10 points at least.
    """
    winner = selection.winner or selection.leader
    seen = winner.observation.quality if winner is not None else None
    error = seen.figure(accuracy.CALIBRATION) if seen is not None else None
    if seen is None or error is None:
        return selection
    right = seen.main.value / 100
    # Mean absolute error of the bins' shares where each image is right by its true chance, at most.
    chance = 100 * math.sqrt(2 / math.pi * right * (1 - right) * accuracy.BINS / error.images)
    if error.value <= max(FAR_POINTS, 2 * chance):
        return selection
    note = (
        f"its probabilities are {error.value:.1f} points off on {seen.split} images (calibration "
        "error): they rank answers but are not probabilities of being right"
    )
    return replace(selection, notes=(note, *selection.notes))


def described(dataset: data.Dataset) -> str:
    """One line on the labelled images."""
    counts = ", ".join(f"{len(dataset.of(split))} {split}" for split in data.SPLITS)
    found = f" · {dataset.laid_out}" if dataset.found else ""
    return f"{dataset.name}: {counted(len(dataset.classes), 'class', 'classes')}, {counts}{found}"


def doubts(dataset: data.Dataset | None) -> tuple[str, ...]:
    """What is wrong with the labelled images, counted."""
    return () if dataset is None else dataset.doubts()


def check_classes(requirements: Requirements, dataset: data.Dataset | None) -> None:
    for asked in requirements.least:
        if dataset is None:
            raise InputError(
                f"{asked.option} is about your own classes: give labelled images with --data DIR."
            )
        if asked.label and asked.label not in dataset.classes:
            known = " or ".join(dataset.classes)
            raise InputError(f"{asked.option}: {asked.label!r} is not a class of the data: use {known}.")


def photos_of(workload: Workload, dataset: data.Dataset | None) -> PhotoSet:
    """What timing and parity use: the folder that was named, else the validation images, else the samples."""
    if workload.images is not None:
        return photo_folder(workload.images)
    if dataset is None:
        return sample_photos()
    everything = [example.path for example in dataset.of("validation")]
    paths = evenly_spaced(everything, MAX_PHOTOS)
    some = f"{len(paths)} of its {len(everything)}" if len(paths) < len(everything) else f"its {len(paths)}"
    return PhotoSet(
        name=dataset.name,
        paths=tuple(paths),
        digest=digest_of(paths),
        evidence=f"timing and parity on {some} validation images",
    )

"""Every object of labelled photos, asked for with one click: the quality of what answers prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vitrail import tasks
from vitrail.data import Dataset, Example, Split
from vitrail.masks.objects import interior
from vitrail.masks.rle import RunLengths
from vitrail.measure.launch import Launch
from vitrail.tasks.click_quality import ClickTruth

__all__ = ["answered"]


def answered(
    launch: Launch, dataset: Dataset, split: Split, task: tasks.Task, mib: float
) -> Iterator[tasks.Answered]:
    """Outputs of a launched export (n, ...) for n objects, with these, part by part of at most so many MiB.

    Raises:
        ChildFailure: the export fails.
    """
    most = max(tasks.fitting(task, mib), 1)
    waiting: list[tuple[str, list[ClickTruth]]] = []
    for example in dataset.of(split):
        truths = objects_of(example, dataset.truth(example))
        if waiting and sum(len(each) for _, each in waiting) + len(truths) > most:
            yield _asked(launch, waiting)
            waiting = []
        waiting.append((example.path, truths))
    if waiting:
        yield _asked(launch, waiting)


def objects_of(example: Example, masks: Sequence[RunLengths]) -> list[ClickTruth]:
    """A photo's objects, each with the pixel to click on: the one that is farthest from its edge."""
    found = []
    for runs in masks:
        x, y = interior(runs.mask())
        found.append(ClickTruth(photo=example.path, runs=runs, click=(float(x), float(y))))
    return found


def _asked(launch: Launch, waiting: Sequence[tuple[str, list[ClickTruth]]]) -> tasks.Answered:
    outputs = launch.clicked(
        [(path, [truth.click for truth in truths]) for path, truths in waiting],
    )
    return outputs, [truth for _, truths in waiting for truth in truths]

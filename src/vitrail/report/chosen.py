"""The winner's figures beside what was asked of them, and how it does on the user's labelled images.

Without a winner, the provisional best's.
"""

from __future__ import annotations

from dataclasses import dataclass

from vitrail.report import phrases
from vitrail.vocabulary import Observation, Requirements, Selection
from vitrail.words import counted

MOST_CONFUSED = 20
"""Up to so many classes the confusion matrix is drawn."""

UPRIGHT_FROM = 60
"""From so many letters in a row on, the names above the matrix stand upright."""


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One figure of the winner beside its limit; `share` of the limit that is used, in %."""

    name: str
    value: str
    unit: str
    detail: str
    limit: str
    share: float | None


def tiles(selection: Selection) -> list[Tile]:
    """A card for each figure of the winner that can be limited, and for each recall that was asked about."""
    winner, asked = selection.winner or selection.leader, selection.requirements
    if winner is None:
        return []
    seen, shown = winner.observation, []
    if seen.accuracy is not None:
        limit = f"≥ {asked.min_accuracy:g} %" if asked.min_accuracy is not None else ""
        detail = (phrases.accuracy(winner) or "").partition(" ")[2]  # without the value, which stands above
        shown.append(Tile(name="top-1 accuracy", value=f"{seen.accuracy.value:.4g}", unit="%",
                          detail=detail, limit=limit, share=None))  # fmt: skip
    shown += _recalls(seen, asked)
    if figures := phrases.judged_figures(winner, selection.workload):
        value, interval = figures.judged.value, figures.judged.interval
        detail = (
            f"[{phrases.number(interval[0])}, {phrases.number(interval[1])}]" if interval else "no interval"
        )
        name = f"p{figures.judged.percentile:g} latency, {selection.workload.latency_scope}"
        shown.append(_limited(name, value, "ms", detail, asked.max_latency_ms))
    if seen.memory is not None:
        shown.append(_limited("peak memory", seen.memory.peak, "MiB", "load included", asked.max_memory_mib))
    if seen.throughput is not None:
        limit = f"≥ {phrases.number(asked.min_throughput)} /s" if asked.min_throughput is not None else ""
        shown.append(Tile(name="throughput", value=phrases.number(seen.throughput), unit="images/s",
                          detail=f"batch {selection.workload.batch_size}", limit=limit,
                          share=None))  # fmt: skip
    return shown


def _recalls(seen: Observation, asked: Requirements) -> list[Tile]:
    """The judged recalls: those of the validation split, whatever the test split said afterwards."""
    classification = seen.classification
    found = {recall.label: recall for recall in classification.recalls} if classification else {}
    return [
        Tile(
            name=f"recall of {label}",
            value=f"{found[label].value:.4g}",
            unit="%",
            detail=f"measured on {counted(found[label].images, 'image')} of that class",
            limit=f"≥ {least:g} %",
            share=None,
        )
        for label, least in asked.min_recall
        if label in found
    ]


def _limited(name: str, value: float, unit: str, detail: str, limit: float | None) -> Tile:
    return Tile(
        name=name,
        value=phrases.number(value),
        unit=unit,
        detail=detail,
        limit=f"≤ {phrases.number(limit)} {unit}" if limit else "",
        share=min(100.0, 100 * value / limit) if limit else None,
    )


# --- the user's own images ------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TaskSummary:
    """How the winner does on the user's labelled images: the test split where it was looked at."""

    headline: str
    detail: str
    split: str
    classes: tuple[TaskRow, ...]
    confusion: bool
    """Whether there are few enough classes for the matrix."""
    upright: bool
    """Whether the names above its columns stand upright, because they are long or many."""


@dataclass(frozen=True, kw_only=True)
class TaskRow:
    """One true class: its images, its recall, and how often each class was named (count, share in %)."""

    label: str
    images: int
    recall: str
    named: tuple[tuple[int, float], ...]


def task(selection: Selection) -> TaskSummary | None:
    """None where there are no labelled images."""
    winner = selection.winner or selection.leader
    seen = selection.test or (winner.observation.classification if winner else None)
    if seen is None:
        return None
    labels = [recall.label for recall in seen.recalls]
    filled = [row for row in seen.confusion if sum(row)]
    rows = tuple(
        TaskRow(
            label=recall.label,
            images=recall.images,
            recall=f"{recall.value:.1f}",
            named=tuple((count, 100 * count / sum(row)) for count in row),
        )
        for recall, row in zip(seen.recalls, filled, strict=True)
    )
    low, high = seen.interval
    headline = phrases.tested(selection) or (
        f"{seen.accuracy:.1f} % of {counted(seen.images, 'validation image')} [{low:.1f}, {high:.1f}]"
    )
    few = len(labels) <= MOST_CONFUSED and len(labels) == len(seen.confusion)
    return TaskSummary(
        headline=headline,
        detail=phrases.task(seen),
        split=seen.split,
        classes=rows,
        confusion=few,
        upright=sum(len(label) + 4 for label in labels) > UPRIGHT_FROM,
    )

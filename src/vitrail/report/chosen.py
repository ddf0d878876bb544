"""The winner's figures beside what was asked of them, and how it does on the user's labelled images.

Without a winner, the provisional best's.
"""

from __future__ import annotations

from dataclasses import dataclass

from vitrail.report import phrases
from vitrail.vocabulary import LatencyFigures, Observation, Requirements, Selection, Stage
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
        name = phrases.metric_name(selection.task)
        shown.append(Tile(name=name, value=f"{seen.accuracy.value:.4g}", unit="%",
                          detail=detail, limit=limit, share=None))  # fmt: skip
    shown += _least(seen, asked)
    if figures := phrases.judged_figures(winner, selection.workload):
        shown.append(_latency(figures, selection.workload.latency_scope, asked.max_latency_ms))
    limits = dict(asked.max_stage_latency_ms)
    shown += [_latency(f, stage, limits[stage]) for stage, f in phrases.limited_stages(winner, asked)]
    if seen.memory is not None:
        detail = f"load included{phrases.beside_engine(winner)}"
        shown.append(_limited("peak memory", seen.memory.peak, "MiB", detail, asked.max_memory_mib))
    if seen.throughput is not None:
        limit = f"≥ {phrases.number(asked.min_throughput)} /s" if asked.min_throughput is not None else ""
        shown.append(Tile(name="throughput", value=phrases.number(seen.throughput), unit="images/s",
                          detail=phrases.load(selection.workload), limit=limit,
                          share=None))  # fmt: skip
    return shown


def _least(seen: Observation, asked: Requirements) -> list[Tile]:
    """The judged figures of classes, of the validation split, whatever the test split said afterwards."""
    if seen.quality is None:
        return []
    found = [(each, seen.quality.figure(each.metric, each.label)) for each in asked.least]
    return [
        Tile(
            name=each.of,
            value=f"{figure.value:.4g}",
            unit="%",
            detail=f"measured on {counted(figure.images, 'image')}{' of that class' if each.label else ''}",
            limit=f"≥ {each.value:g} %",
            share=None,
        )
        for each, figure in found
        if figure is not None
    ]


def _latency(figures: LatencyFigures, stage: Stage, limit: float | None) -> Tile:
    value, interval = figures.judged.value, figures.judged.interval
    detail = f"[{phrases.number(interval[0])}, {phrases.number(interval[1])}]" if interval else "no interval"
    return _limited(f"p{figures.judged.percentile:g} latency, {stage}", value, "ms", detail, limit)


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
    metric: str
    """What is known of each class, e.g. `recall`."""
    classes: tuple[TaskRow, ...]
    confusion: bool
    """Whether there is a matrix of few enough classes to show."""
    upright: bool
    """Whether the names above its columns stand upright, because they are long or many."""


@dataclass(frozen=True, kw_only=True)
class TaskRow:
    """One true class: its images, its figure, and how often each class was named (count, share in %)."""

    label: str
    images: int
    value: str
    named: tuple[tuple[int, float], ...]


def task(selection: Selection) -> TaskSummary | None:
    """None where there are no labelled images."""
    winner = selection.winner or selection.leader
    seen = selection.test or (winner.observation.quality if winner else None)
    if seen is None:
        return None
    of_classes = [figure for figure in seen.figures if figure.label]
    metric = of_classes[0].metric if of_classes else ""
    of_classes = [figure for figure in of_classes if figure.metric == metric]
    table = next(iter(seen.tables), None)
    counts = dict(zip(table.labels, table.counts, strict=True)) if table else {}
    labels = [figure.label for figure in of_classes]
    rows = tuple(
        TaskRow(
            label=figure.label,
            images=figure.images,
            value=f"{figure.value:.1f}",
            named=_shares(counts.get(figure.label, ())),
        )
        for figure in of_classes
    )
    return TaskSummary(
        headline=phrases.tested(selection) or phrases.headline(seen.main, "validation image"),
        detail=phrases.beside(seen),
        split=seen.split,
        metric=metric,
        classes=rows,
        confusion=table is not None and table.labels == tuple(labels) and len(labels) <= MOST_CONFUSED,
        upright=sum(len(label) + 4 for label in labels) > UPRIGHT_FROM,
    )


def _shares(row: tuple[int, ...]) -> tuple[tuple[int, float], ...]:
    return tuple((count, 100 * count / max(sum(row), 1)) for count in row)

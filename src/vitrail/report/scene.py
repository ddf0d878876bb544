"""What the figure of latency against accuracy shows, and where: axes, points, the front and the names."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

from vitrail.report import labels, phrases
from vitrail.report.axes import WIDE, Axis, Canvas, accuracy_range, latency_range
from vitrail.report.labels import Box, Wanted
from vitrail.vocabulary import LatencyFigures, LedgerEntry, Selection

__all__ = ["LimitName", "Point", "Scene", "look", "off_the_axes", "scene"]

NAMED = (28, 20, 14)
"""Letters of a name in the figure, at most; the shorter ones where there is no room."""


@dataclass(frozen=True)
class Point:
    """A variant that has both figures; (x, y) is on the edge of the plot where a figure is beyond it."""

    entry: LedgerEntry
    figures: LatencyFigures
    ms: float
    top1: float
    x: float
    y: float
    beyond: tuple[int, int] = (0, 0)
    """(-1 left, 1 right; -1 under, 1 over) the plot."""


@dataclass(frozen=True)
class Scene:
    """What one figure shows and where."""

    frame: Canvas
    x: Axis
    y: Axis
    points: tuple[Point, ...]
    """The last is drawn on top."""
    front: tuple[Point, ...]
    """The steps of the front, from the fastest on."""
    limits: tuple[LimitName, ...]
    names: tuple[labels.Label, ...] = ()


@dataclass(frozen=True)
class LimitName:
    """The words at a limit that is on its axis."""

    text: str
    anchor: str
    x: float
    y: float
    box: Box
    """The room that they take."""


def look(entry: LedgerEntry) -> str:
    """CSS classes of an entry's mark: its status, and whether its weights are not at hand (hollow)."""
    hollow = phrases.is_random(entry) or not entry.observation.weights_at_hand
    return entry.status.replace(" ", "-") + (" hollow" if hollow else "")


def scene(selection: Selection, frame: Canvas = WIDE) -> Scene | None:
    """Axes, points and names; None where no variant has both an accuracy and a latency."""
    figures = _figures(selection)
    if not figures:
        return None
    x_axis, y_axis = _axes(selection, figures, frame)
    points = [
        Point(
            entry=entry,
            figures=latency,
            ms=latency.judged.value,
            top1=top1,
            x=x_axis.clamped(latency.judged.value),
            y=y_axis.clamped(top1),
            beyond=(x_axis.beyond(latency.judged.value), y_axis.beyond(top1)),
        )
        for entry, latency, top1 in figures
    ]
    # what matters most is drawn last, on top
    points.sort(key=lambda p: (-_rank(p.entry), p.entry.would_win))
    limits = _limit_names(selection, frame, x_axis, y_axis)
    bare = Scene(frame, x_axis, y_axis, tuple(points), _steps(selection, points), tuple(limits))
    return replace(bare, names=tuple(_names(selection, bare)))


def off_the_axes(selection: Selection) -> list[str]:
    """The variants that stand at the edge of the figure, because they would have stretched it."""
    shown = scene(selection)
    return [
        f"{point.entry.variant.name}: {phrases.number(point.ms)} ms, {point.top1:.4g} %"
        for point in (shown.points if shown else ())
        if any(point.beyond)
    ]


def _figures(selection: Selection) -> list[tuple[LedgerEntry, LatencyFigures, float]]:
    return [
        (entry, latency, entry.observation.accuracy.value)
        for entry in phrases.measured(selection)
        if (latency := phrases.judged_figures(entry, selection.workload))
        and latency.judged.value > 0
        and entry.observation.accuracy
    ]


def _axes(
    selection: Selection, figures: list[tuple[LedgerEntry, LatencyFigures, float]], frame: Canvas
) -> tuple[Axis, Axis]:
    """Ranges by what could ship: references are measured and shown, but do not stretch the axes."""
    own = [figure for figure in figures if figure[0].status != "reference"] or figures
    intervals = [latency.judged.interval for _, latency, _ in own if latency.judged.interval]
    alone = len(own) == 1
    whole = [
        latency.judged.interval
        for entry, latency, _ in own
        if latency.judged.interval and (alone or entry.status == "selected")
    ]
    asked = selection.requirements
    low, high, log = latency_range(
        [latency.judged.value for _, latency, _ in own], intervals, whole, asked.max_latency_ms
    )
    least, most = accuracy_range([top1 for *_, top1 in own], asked.min_accuracy)
    return (
        Axis(low, high, frame.left, frame.edge, log),
        Axis(least, most, frame.floor, frame.top),
    )


def _rank(entry: LedgerEntry) -> int:
    return phrases.STATUSES.index(entry.status)


def _steps(selection: Selection, points: list[Point]) -> tuple[Point, ...]:
    """The part of the front that these two axes show."""
    steps: list[Point] = []
    for point in sorted(points, key=lambda p: (p.ms, -p.top1)):
        better = not steps or point.top1 > steps[-1].top1
        if point.entry.variant.name in selection.front and better:
            steps.append(point)
    return tuple(steps) if len(steps) > 1 else ()


def _names(selection: Selection, shown: Scene) -> list[labels.Label]:
    """Names of the winner, of what would win, leads or is nearest, and of the front as drawn."""
    named = {*(p.entry.variant.name for p in shown.front), *selection.nearest, selection.provisional}
    wanted = [
        point
        for point in reversed(shown.points)
        if point.entry.status == "selected" or point.entry.would_win or point.entry.variant.name in named
    ]
    marks = [Box(p.x - 7, p.y - 7, p.x + 7, p.y + 7) for p in shown.points]
    marks += [_ring(p) for p in wanted if p.entry.status == "selected"]
    marks += [limit.box for limit in shown.limits]
    asked = [
        Wanted(
            point.x,
            point.y,
            _texts(point, wanted),
            kind=look(point.entry),
            bold=point.entry.status == "selected",
            reach=14.0 if point.entry.status == "selected" else 9.0,
        )
        for point in wanted
    ]
    return labels.place(asked, marks, _lines(selection, shown), shown.frame)


def _ring(point: Point) -> Box:
    return Box(point.x - 12, point.y - 12, point.x + 12, point.y + 12)


def _texts(point: Point, wanted: list[Point]) -> tuple[str, ...]:
    """Forms of a name, the longest first; the precision where the architecture stands more than once."""
    variant = point.entry.variant
    name = variant.candidate.architecture
    same = [p for p in wanted if p.entry.variant.candidate.architecture == name]
    told = f" {variant.precision}" if len(same) > 1 else ""
    if len({p.entry.variant.precision for p in same}) < len(same):
        told = f" {variant.runtime}{told}"
    if point.entry.would_win:
        told += " would win"
    forms = [f"{_cut(name, most)}{told}" for most in NAMED]
    return tuple(dict.fromkeys((*forms, _cut(name, NAMED[-1]))))


def _cut(name: str, most: int) -> str:
    """Shortened in its middle: what tells models of a family apart stands at the end of a name."""
    tail = most // 2
    return name if len(name) <= most else f"{name[: most - 1 - tail]}…{name[-tail:]}"


def _lines(selection: Selection, shown: Scene) -> list[Box]:
    """Front, limits and intervals, as boxes."""
    frame, asked = shown.frame, selection.requirements
    boxes = []
    for a, b in itertools.pairwise(shown.front):
        boxes.append(Box(a.x, a.y - 1, b.x, a.y + 1))
        boxes.append(Box(b.x - 1, b.y, b.x + 1, a.y))
    if asked.max_latency_ms is not None and not shown.x.beyond(asked.max_latency_ms):
        x = shown.x(asked.max_latency_ms)
        boxes.append(Box(x - 4, frame.top, x + 4, frame.floor))
    if asked.min_accuracy is not None and not shown.y.beyond(asked.min_accuracy):
        y = shown.y(asked.min_accuracy)
        boxes.append(Box(frame.left, y - 4, frame.edge, y + 4))
    for point in shown.points:
        if point.figures.judged.interval is not None:
            low, high = (shown.x.clamped(edge) for edge in point.figures.judged.interval)
            boxes.append(Box(low, point.y - 3, high, point.y + 3))
    return boxes


def _limit_names(selection: Selection, frame: Canvas, x_axis: Axis, y_axis: Axis) -> list[LimitName]:
    limit, least, found = selection.requirements.max_latency_ms, selection.requirements.min_accuracy, []
    latency_x = None
    if limit is not None and not x_axis.beyond(limit):
        latency_x = x_axis(limit)
        text = f"≤ {phrases.number(limit)} ms"
        half = labels.width_of(text, bold=True) / 2
        x = min(max(latency_x, half), frame.width - half)
        box = Box(x - half, frame.top - 22, x + half, frame.top - 4)
        found.append(LimitName(text, "middle", x, frame.top - 8, box))
    if least is not None and not y_axis.beyond(least):
        y, text = y_axis(least), f"≥ {least:g} %"
        width = labels.width_of(text, bold=True)
        end = frame.edge
        if latency_x is not None and end - width < latency_x < end:
            end = latency_x - 4
        # under its line; above it where the plot ends there
        top = y if y + labels.LINE + 4 <= frame.floor else y - labels.LINE - 4
        box = Box(end - width, top, end, top + labels.LINE + 4)
        found.append(LimitName(text, "end", end - 2, top + 14, box))
    return found

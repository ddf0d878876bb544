"""Latency against accuracy as inline SVG: variants, intervals, the front, the limits and what they admit.

Colours are CSS classes of page.css, so the figure follows light, dark and print.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from markupsafe import Markup, escape

from vitrail.report import phrases
from vitrail.vocabulary import LatencyFigures, LedgerEntry, Selection

WIDTH, HEIGHT = 760, 450
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 22, 46, 52
_CHAR, _LINE = 7.4, 15  # of a name, on the generous side: fonts differ, and names must never touch
SHAPES = ("circle", "square", "triangle", "diamond")


@dataclass(frozen=True)
class Axis:
    """Maps [low, high] to [start, end] pixels, linearly or by the logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            value, low, high = math.log(value), math.log(low), math.log(high)
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values inside the range: 1, 2, 5 × 10ⁿ on a log axis, else even steps."""
        if self.log:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            steps = (m * 10.0**n for n in range(first, last + 1) for m in (1, 2, 5))
            return [tick for tick in steps if self.low <= tick <= self.high]
        raw = (self.high - self.low) / 6
        scale = 10.0 ** math.floor(math.log10(raw))
        step = next(m * scale for m in (1, 2, 2.5, 5, 10) if m * scale >= raw)
        first = math.ceil(self.low / step)
        return [k * step for k in range(first, math.floor(self.high / step) + 1)]


@dataclass(frozen=True)
class Point:
    """A variant that has both figures."""

    entry: LedgerEntry
    figures: LatencyFigures
    ms: float
    top1: float
    x: float
    y: float


@dataclass(frozen=True)
class Box:
    """A rectangle that labels keep clear of."""

    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: Box) -> float:
        """Shared area in square pixels."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(0.0, width) * max(0.0, height)


def shapes(selection: Selection) -> dict[str, str]:
    """The marker of each runtime; runtimes beyond the fourth share the last one."""
    runtimes = dict.fromkeys(entry.variant.runtime for entry in phrases.measured(selection))
    return {name: SHAPES[min(i, len(SHAPES) - 1)] for i, name in enumerate(runtimes)}


def scatter(selection: Selection) -> Markup:
    """The figure; empty where no variant has both an accuracy and a latency."""
    figures = [
        (entry, latency, entry.observation.accuracy.value)
        for entry in phrases.measured(selection)
        if (latency := phrases.judged_figures(entry, selection.workload)) and entry.observation.accuracy
    ]
    figures = [each for each in figures if each[1].judged.value > 0]
    if not figures:
        return Markup("")
    x_axis, y_axis = _axes(selection, [f.judged.value for _, f, _ in figures], [a for *_, a in figures])
    points = [
        Point(entry, f, f.judged.value, top1, x_axis(f.judged.value), y_axis(top1))
        for entry, f, top1 in figures
    ]
    # what matters most is drawn last, on top
    points.sort(key=lambda p: (p.entry.status == "selected", p.entry.would_win, p.entry.status == "meets"))
    boxes: list[Box] = []
    parts = [
        *_grid(selection, x_axis, y_axis),
        *_limits(selection, x_axis, y_axis, boxes),
        _front(selection, points, boxes),
        *(_interval(point, x_axis) for point in points),
        *(_mark(point, shapes(selection)[point.entry.variant.runtime]) for point in points),
        *_labels(selection, points, boxes),
    ]
    title = f"Latency against top-1 accuracy of {phrases.counted(len(points), 'measured variant')}"
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, title, Markup("").join(parts)
    )


def _axes(selection: Selection, ms: list[float], top1: list[float]) -> tuple[Axis, Axis]:
    low, high = min(ms), max(ms)
    limit = selection.requirements.max_latency_ms
    if limit and low / 4 <= limit <= high * 4:
        low, high = min(low, limit), max(high, limit)
    log = high / low > 6
    pad = (high / low) ** 0.07 if log else max((high - low) * 0.08, high * 0.03)
    x_low, x_high = (low / pad, high * pad) if log else (max(0.0, low - pad), high + pad)
    a_low, a_high = min(top1), max(top1)
    least, span = selection.requirements.min_accuracy, max(a_high - a_low, 1.0)
    if least is not None and a_low - 2 * span <= least <= a_high + 2 * span:
        a_low, a_high = min(a_low, least), max(a_high, least)
    y_pad = max((a_high - a_low) * 0.1, 0.5)
    y_high = min(100.0, a_high + y_pad)
    x_axis = Axis(x_low, x_high, _LEFT, WIDTH - _RIGHT, log)
    return x_axis, Axis(max(0.0, min(a_low - y_pad, y_high - 1)), y_high, HEIGHT - _BOTTOM, _TOP)


def _grid(selection: Selection, x_axis: Axis, y_axis: Axis) -> list[Markup]:
    workload = selection.workload
    bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
    parts = []
    for tick in x_axis.ticks():
        x = x_axis(tick)
        parts.append(_line("grid", x, _TOP, x, bottom))
        parts.append(_text("tick", x, bottom + 18, f"{tick:g}", "middle"))
    for tick in y_axis.ticks():
        y = y_axis(tick)
        parts.append(_line("grid", _LEFT, y, right, y))
        parts.append(_text("tick", _LEFT - 8, y + 4, f"{tick:g}", "end"))
    scale = ", log scale" if x_axis.log else ""
    judged = f"p{workload.percentile:g} latency, {workload.latency_scope}, batch {workload.batch_size}"
    name = f"{judged} (ms{scale}) →"
    parts.append(_text("axis", right, HEIGHT - 10, name, "end"))
    parts.append(_text("axis", 8, 14, "↑ top-1 accuracy (%)", "start"))
    return parts


def _limits(selection: Selection, x_axis: Axis, y_axis: Axis, boxes: list[Box]) -> list[Markup]:
    """The limits as lines and the region that holds both as a tint; an axis without a limit is all in."""
    asked = selection.requirements
    bottom, right, parts = HEIGHT - _BOTTOM, WIDTH - _RIGHT, []
    edge_x, edge_y = float(right), float(bottom)
    if asked.max_latency_ms is not None:
        edge_x = x_axis(min(max(asked.max_latency_ms, x_axis.low), x_axis.high))
    if asked.min_accuracy is not None:
        edge_y = y_axis(min(max(asked.min_accuracy, y_axis.low), y_axis.high))
    if (asked.max_latency_ms, asked.min_accuracy) != (None, None):
        rect = '<rect class="fits" x="{}" y="{}" width="{:.1f}" height="{:.1f}"/>'
        parts.append(Markup(rect).format(_LEFT, _TOP, edge_x - _LEFT, edge_y - _TOP))
    if asked.max_latency_ms is not None and x_axis.low <= asked.max_latency_ms <= x_axis.high:
        parts.append(_line("limit", edge_x, _TOP, edge_x, bottom))
        text = f"≤ {phrases.number(asked.max_latency_ms)} ms"
        parts.append(_text("limit-name", edge_x, _TOP - 8, text, "middle"))
        boxes.append(Box(edge_x - 2, _TOP, edge_x + 2, bottom))
    if asked.min_accuracy is not None and y_axis.low <= asked.min_accuracy <= y_axis.high:
        parts.append(_line("limit", _LEFT, edge_y, right, edge_y))
        text = f"≥ {asked.min_accuracy:g} %"
        width = _CHAR * len(text) + 6
        end = edge_x - 4 if right - width < edge_x < right else right
        parts.append(_text("limit-name", end - 2, edge_y + 15, text, "end"))
        boxes.append(Box(end - width, edge_y, end, edge_y + _LINE + 4))
        boxes.append(Box(_LEFT, edge_y - 2, right, edge_y + 2))
    return parts


def _front(selection: Selection, points: list[Point], boxes: list[Box]) -> Markup:
    """The part of the front that these two axes show, as steps."""
    steps: list[Point] = []
    for point in sorted(points, key=lambda p: (p.ms, -p.top1)):
        better = not steps or point.top1 > steps[-1].top1
        if point.entry.variant.name in selection.front and better:
            steps.append(point)
    if len(steps) < 2:
        return Markup("")
    for a, b in itertools.pairwise(steps):
        boxes.append(Box(a.x, a.y - 1, b.x, a.y + 1))
        boxes.append(Box(b.x - 1, b.y, b.x + 1, a.y))
    path = f"M{steps[0].x:.1f} {steps[0].y:.1f}" + "".join(f"H{p.x:.1f}V{p.y:.1f}" for p in steps[1:])
    return Markup('<path class="front" d="{}"/>').format(path)


def _kind(entry: LedgerEntry) -> str:
    random = " random" if phrases.is_random(entry) else ""
    return f"{'would' if entry.would_win else entry.status}{random}"


def _interval(point: Point, x_axis: Axis) -> Markup:
    """A bar with a cap where the interval ends, and an arrow where it goes on past the axis."""
    if point.figures.judged.interval is None:
        return Markup("")
    low, high = point.figures.judged.interval
    left, right = x_axis(max(low, x_axis.low)), x_axis(min(high, x_axis.high))
    y = point.y
    path = f"M{left:.1f} {y:.1f}H{right:.1f}"
    path += f"M{left + 4:.1f} {y - 4:.1f}l-4 4l4 4" if low < x_axis.low else f"M{left:.1f} {y - 3:.1f}v6"
    path += f"M{right - 4:.1f} {y - 4:.1f}l4 4l-4 4" if high > x_axis.high else f"M{right:.1f} {y - 3:.1f}v6"
    return Markup('<path class="interval {}" d="{}"/>').format(_kind(point.entry), path)


def marker(shape: str, x: float, y: float, r: float) -> Markup:
    """The bare SVG element of a marker with about the area of a circle of radius `r`."""
    if shape == "circle":
        return Markup('<circle cx="{:.1f}" cy="{:.1f}" r="{:.1f}"/>').format(x, y, r)
    if shape == "square":
        s = r * 0.9
        path = f"M{x - s:.1f} {y - s:.1f}h{2 * s:.1f}v{2 * s:.1f}h{-2 * s:.1f}z"
    elif shape == "triangle":
        path = f"M{x:.1f} {y - 1.25 * r:.1f}l{1.15 * r:.1f} {2 * r:.1f}h{-2.3 * r:.1f}z"
    else:
        s = r * 1.25
        path = f"M{x:.1f} {y - s:.1f}l{s:.1f} {s:.1f}l{-s:.1f} {s:.1f}l{-s:.1f} {-s:.1f}z"
    return Markup('<path d="{}"/>').format(path)


def _mark(point: Point, shape: str) -> Markup:
    entry = point.entry
    chosen = entry.status == "selected"
    title = "\n".join(
        part
        for part in (
            entry.variant.name,
            f"{entry.status}: {'; '.join(entry.reasons)}",
            phrases.milliseconds(point.figures) + (", random weights" if phrases.is_random(entry) else ""),
            f"top-1 {phrases.accuracy(entry)}",
        )
        if part
    )
    ring = Markup('<circle class="ring" cx="{:.1f}" cy="{:.1f}" r="11"/>').format(point.x, point.y)
    return Markup('<g class="mark {}"><title>{}</title>{}{}</g>').format(
        _kind(entry), title, ring if chosen else "", marker(shape, point.x, point.y, 6 if chosen else 5)
    )


# --- labels -------------------------------------------------------------------------------------


def _labels(selection: Selection, points: list[Point], boxes: list[Box]) -> list[Markup]:
    """Names of the winner, of what would win and of the front, each where it covers nothing.

    A name for which there is no free place is left out: its marker's title and the table still say it.
    """
    wanted = [
        p
        for p in reversed(points)
        if p.entry.status == "selected" or p.entry.would_win or p.entry.variant.name in selection.front
    ]
    taken = [*boxes, *(Box(p.x - 7, p.y - 7, p.x + 7, p.y + 7) for p in points)]
    names: list[Box] = []
    parts = []
    for point in wanted:
        text = _short(point, wanted)
        place = _free_place(point, _CHAR * len(text), [*taken, *names], names)
        if place is None:
            continue
        box, far = place
        names.append(box)
        if far:
            parts.append(_line("leader", point.x, point.y, *_end(point, box)))
        parts.append(_name(point, box, text))
    return parts


def _name(point: Point, box: Box, text: str) -> Markup:
    """Anchored at the side that faces the point: a wider font than expected grows away from it."""
    kind = f"name {_kind(point.entry)}"
    if box.left >= point.x:
        return _text(kind, box.left + 2, box.bottom - 4, text, "start")
    if box.right <= point.x:
        return _text(kind, box.right - 2, box.bottom - 4, text, "end")
    return _text(kind, (box.left + box.right) / 2, box.bottom - 4, text, "middle")


def _short(point: Point, wanted: list[Point]) -> str:
    variant = point.entry.variant
    same = [p for p in wanted if p.entry.variant.candidate.architecture == variant.candidate.architecture]
    name = variant.candidate.architecture
    name = name if len(name) <= 28 else name[:27] + "…"
    return f"{name} {variant.precision}" if len(same) > 1 else name


def _free_place(point: Point, width: float, taken: list[Box], names: list[Box]) -> tuple[Box, bool] | None:
    """The nearest place around the point that covers nothing; True: far, so it needs a leader.

    A leader may cross marks and lines, but no other name.
    """
    width += 4
    for distance in (9, 22, 36, 52, 70, 90, 112):
        far = distance > 9
        left, right = -distance - width, float(distance)
        over, under = -distance - float(_LINE), float(distance)
        around = [(right, -_LINE / 2), (left, -_LINE / 2), (-width / 2, over), (-width / 2, under)]
        around += [(right, over), (right, under), (left, over), (left, under)]
        around += [(-width / 4, over), (-width / 4, under), (-width * 3 / 4, over), (-width * 3 / 4, under)]
        for dx, dy in around:
            box = Box(point.x + dx, point.y + dy, point.x + dx + width, point.y + dy + _LINE)
            inside_x = box.left >= _LEFT + 2 and box.right <= WIDTH - 4
            inside = inside_x and box.top >= _TOP and box.bottom <= HEIGHT - _BOTTOM - 2
            if not inside or any(box.overlap(other) for other in taken):
                continue
            if not far or not any(_crosses(point, box, name) for name in names):
                return box, far
    return None


def _end(point: Point, box: Box) -> tuple[float, float]:
    """Where a leader from the point meets the name in `box`."""
    x = min(max(point.x, box.left), box.right)
    y = box.bottom - 2 if box.bottom < point.y else box.top + 2 if box.top > point.y else point.y
    return x, y


def _crosses(point: Point, box: Box, name: Box) -> bool:
    x, y = _end(point, box)
    along = (k / 24 for k in range(25))
    spots = ((point.x + t * (x - point.x), point.y + t * (y - point.y)) for t in along)
    return any(name.left <= a <= name.right and name.top <= b <= name.bottom for a, b in spots)


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(
        kind, x1, y1, x2, y2
    )


def _text(kind: str, x: float, y: float, text: str, anchor: str) -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(
        kind, x, y, anchor, escape(text)
    )

"""Latency against accuracy as inline SVG: variants, intervals, the front, the limits and what they admit.

One colour for one status, hollow for "the weights are not at hand", one shape for one runtime; the better a
status, the larger its mark, so that colour is never alone. Colours are CSS classes of page.css, so the
figure follows light, dark and print.
"""

from __future__ import annotations

from markupsafe import Markup, escape

from vitrail.report import labels, phrases
from vitrail.report.axes import NARROW, WIDE, Axis, Canvas
from vitrail.report.scene import Point, Scene, look, scene
from vitrail.vocabulary import Selection
from vitrail.words import counted

__all__ = ["both", "legend", "marker", "scatter", "shapes"]

SHAPES = ("circle", "square", "triangle", "diamond")
RADII = {"selected": 6.0, "meets": 5.5, "undecided": 5.0, "rejected": 4.0, "reference": 4.5}
"""Of the mark of each status; the others have the smallest."""


def both(selection: Selection) -> Markup:
    """The figure for a wide page and for a telephone, of which the style sheet shows one."""
    return scatter(selection, WIDE) + scatter(selection, NARROW)


def scatter(selection: Selection, frame: Canvas = WIDE) -> Markup:
    """The figure; empty where no variant has both an accuracy and a latency."""
    shown = scene(selection, frame)
    if shown is None:
        return Markup("")
    forms = shapes(selection)
    parts = [
        *_grid(selection, shown),
        *_limits(selection, shown),
        _front(shown),
        *(_interval(point, shown.x) for point in shown.points),
        *(_mark(point, forms[point.entry.variant.runtime]) for point in shown.points),
        *(part for label in shown.names for part in _name(label)),
    ]
    svg = '<svg class="{}" viewBox="0 0 {:g} {:g}" role="img"><title>{}</title><desc>{}</desc>{}</svg>'
    return Markup(svg).format(
        "narrow" if frame is NARROW else "wide",
        frame.width,
        frame.height,
        f"Latency against {phrases.metric_name(selection.task)} of "
        f"{counted(len(shown.points), 'measured variant')}",
        _described(shown),
        Markup("").join(parts),
    )


def shapes(selection: Selection) -> dict[str, str]:
    """The marker of each runtime; runtimes beyond the fourth share the last one."""
    runtimes = dict.fromkeys(entry.variant.runtime for entry in phrases.measured(selection))
    return {name: SHAPES[min(i, len(SHAPES) - 1)] for i, name in enumerate(runtimes)}


# --- drawing ------------------------------------------------------------------------------------


def _grid(selection: Selection, shown: Scene) -> list[Markup]:
    workload, frame = selection.workload, shown.frame
    parts = []
    for tick in shown.x.ticks(most=max(4, int((frame.edge - frame.left) / 44))):
        x = shown.x(tick)
        parts.append(_line("grid", x, frame.top, x, frame.floor))
        parts.append(_text("tick", x, frame.floor + 18, f"{tick:g}", "middle"))
    for tick in shown.y.ticks():
        y = shown.y(tick)
        parts.append(_line("grid", frame.left, y, frame.edge, y))
        parts.append(_text("tick", frame.left - 8, y + 4, f"{tick:g}", "end"))
    scale = ", log scale" if shown.x.log else ""
    judged = f"p{workload.percentile:g} latency, {workload.latency_scope}, {phrases.load(workload)}"
    parts.append(_text("axis", frame.edge, frame.height - 10, f"{judged} (ms{scale}) →", "end"))
    parts.append(_text("axis", 8, 14, f"↑ {phrases.metric_name(selection.task)} (%)", "start"))
    return parts


def _limits(selection: Selection, shown: Scene) -> list[Markup]:
    """The limits as lines and the region that meets both as a tint; an axis without a limit is all in."""
    asked, frame, parts = selection.requirements, shown.frame, []
    edge_x, edge_y = frame.edge, frame.floor
    if asked.max_latency_ms is not None:
        edge_x = shown.x.clamped(asked.max_latency_ms)
    if asked.min_accuracy is not None:
        edge_y = shown.y.clamped(asked.min_accuracy)
    if (asked.max_latency_ms, asked.min_accuracy) != (None, None):
        rect = '<rect class="fits" x="{:g}" y="{:g}" width="{:.1f}" height="{:.1f}"/>'
        size = (edge_x - frame.left, edge_y - frame.top)
        parts.append(Markup(rect).format(frame.left, frame.top, *size))
    if asked.max_latency_ms is not None and not shown.x.beyond(asked.max_latency_ms):
        parts.append(_line("limit", edge_x, frame.top, edge_x, frame.floor))
    if asked.min_accuracy is not None and not shown.y.beyond(asked.min_accuracy):
        parts.append(_line("limit", frame.left, edge_y, frame.edge, edge_y))
    parts += [_text("limit-name", name.x, name.y, name.text, name.anchor) for name in shown.limits]
    return parts


def _front(shown: Scene) -> Markup:
    if not shown.front:
        return Markup("")
    first, *rest = shown.front
    path = f"M{first.x:.1f} {first.y:.1f}" + "".join(f"H{p.x:.1f}V{p.y:.1f}" for p in rest)
    return Markup('<path class="front" d="{}"/>').format(path)


def _interval(point: Point, x_axis: Axis) -> Markup:
    """A bar with a cap where the interval ends, and an arrow where it goes on past the axis."""
    if point.figures.judged.interval is None or point.beyond[0]:
        return Markup("")
    low, high = point.figures.judged.interval
    left, right = x_axis.clamped(low), x_axis.clamped(high)
    y = point.y
    path = f"M{left:.1f} {y:.1f}H{right:.1f}"
    path += f"M{left + 4:.1f} {y - 4:.1f}l-4 4l4 4" if low < x_axis.low else f"M{left:.1f} {y - 3:.1f}v6"
    path += f"M{right - 4:.1f} {y - 4:.1f}l4 4l-4 4" if high > x_axis.high else f"M{right:.1f} {y - 3:.1f}v6"
    return Markup('<path class="interval {}" d="{}"/>').format(look(point.entry), path)


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
    title = "\n".join(
        part
        for part in (
            entry.variant.name,
            f"{entry.status}: {'; '.join(entry.reasons)}",
            phrases.milliseconds(point.figures) + (", random weights" if phrases.is_random(entry) else ""),
            phrases.named_accuracy(entry),
        )
        if part
    )
    ring = Markup('<circle class="ring" cx="{:.1f}" cy="{:.1f}" r="11"/>').format(point.x, point.y)
    radius = RADII.get(entry.status, 4.0)
    return Markup('<g class="mark {}"><title>{}</title>{}{}{}</g>').format(
        look(entry),
        title,
        ring if entry.status == "selected" else "",
        marker(shape, point.x, point.y, radius),
        _onwards(point),
    )


def _onwards(point: Point) -> Markup:
    """Chevrons beside a mark at the edge: its figures are further out."""
    across, up = point.beyond
    path = f"M{point.x + 7 * across:.1f} {point.y - 4:.1f}l{4 * across} 4l{-4 * across} 4" if across else ""
    path += f"M{point.x - 4:.1f} {point.y - 7 * up:.1f}l4 {-4 * up}l4 {4 * up}" if up else ""
    return Markup('<path class="onwards" d="{}"/>').format(path) if path else Markup("")


def _name(label: labels.Label) -> list[Markup]:
    anchor, x = label.anchor
    parts = [_line("leader", *label.leader)] if label.leader else []
    return [*parts, _text(f"name {label.wanted.kind}", x, label.box.bottom - 4, label.text, anchor)]


def _described(shown: Scene) -> str:
    """The figure in words: how many stand how, who won, and the limits drawn."""
    counts = [(status, sum(p.entry.status == status for p in shown.points)) for status in phrases.STATUSES]
    said = [f"{', '.join(f'{count} {status}' for status, count in counts if count)}."]
    said += [
        f"Selected: {p.entry.variant.name} at {phrases.number(p.ms)} ms and {p.top1:.4g} %."
        for p in shown.points
        if p.entry.status == "selected"
    ]
    if shown.limits:
        said.append(f"Limits: {phrases.listed([name.text for name in shown.limits])}.")
    return " ".join(said)


def legend(selection: Selection) -> list[list[tuple[str, str, Markup]]]:
    """(classes of the mark, words, its SVG element in a 16 × 16 box): colours first, then what forms mean."""
    shown = scene(selection)
    entries = [point.entry for point in shown.points] if shown else []
    colours, meant = [], []
    for status in phrases.STATUSES:
        if any(entry.status == status for entry in entries):
            mark = marker("circle", 8, 8, RADII.get(status, 4.0))
            colours.append((status.replace(" ", "-"), status, mark))
    runtimes = {entry.variant.runtime for entry in entries}
    forms = {runtime: form for runtime, form in shapes(selection).items() if runtime in runtimes}
    if len(forms) > 1:
        for runtime, form in forms.items():
            meant.append(("form", runtime or "runtime not stated", marker(form, 8, 8, 5)))
    if any("hollow" in look(entry) for entry in entries):
        meant.append(("form hollow", "hollow: weights not at hand", marker("circle", 8, 8, 5)))
    return [colours, meant]


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(
        kind, x1, y1, x2, y2
    )


def _text(kind: str, x: float, y: float, text: str, anchor: str) -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(
        kind, x, y, anchor, escape(text)
    )

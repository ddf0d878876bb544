"""Learning curves as inline SVG: losses and accuracy over the epochs, one figure each.

Lines differ by dash and marker, not by colour alone; colours are CSS classes of page.css, so the figures
follow light, dark and print. A figure is about as wide as a telephone, so that its text can be read there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from vitrail import tasks
from vitrail.report.axes import Axis
from vitrail.report.figure import marker
from vitrail.vocabulary import Selection, Training, TrainingEpoch
from vitrail.words import counted

__all__ = ["Curve", "Shown", "shown"]

WIDTH, HEIGHT = 340, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 30, 40
FEW = 30
"""Up to so many epochs a marker has its full size; beyond, markers would hide the line."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One series: (epoch, value) where a value was taken."""

    name: str
    kind: str
    """CSS class: `train` or `validation`."""
    shape: str
    """Of the marker."""
    points: tuple[tuple[int, float], ...]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A figure and what its lines mean: (CSS class, words, mark in a 32 × 16 box)."""

    svg: Markup
    legend: tuple[tuple[str, str, Markup], ...]


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A training run as the report shows it."""

    candidate: str
    said: str
    curves: tuple[Curve, ...]


def shown(selection: Selection) -> list[Shown]:
    """The training runs of a selection, in its order."""
    metric = tasks.known(selection.task).metric_name
    return [
        Shown(candidate=training.candidate, said=_said(training), curves=_curves(training, metric))
        for training in selection.trainings
    ]


def _said(training: Training) -> str:
    """`recipe light, from tf_efficientnet_lite0.pypi, 12 epochs in 4.1 min, best 94.2 % at epoch 9`."""
    begun = "from random values" if training.start == "random" else f"from {training.start}"
    parts = [f"recipe {training.recipe}", begun]
    epochs = counted(training.epochs, "epoch")
    if training.history:
        epochs += f" in {_duration(training.history[-1].seconds)}"
    parts.append(epochs if training.finished else f"{epochs}, not finished")
    measured = [epoch for epoch in training.history if epoch.accuracy is not None]
    if measured:
        best = max(measured, key=lambda epoch: (epoch.accuracy or 0.0, -epoch.epoch))
        weights = " (averaged weights)" if best.averaged else ""
        parts.append(f"best {best.accuracy:.1f} % of the validation images at epoch {best.epoch}{weights}")
    return ", ".join(parts)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 3600 else f"{seconds / 3600:.3g} h"


def _curves(training: Training, metric: str) -> tuple[Curve, ...]:
    """The figures of what was taken; a run without a finished epoch has none."""
    history = training.history
    losses = (
        Line(name="training", kind="train", shape="circle", points=_points(history, "train_loss")),
        Line(
            name="validation", kind="validation", shape="square", points=_points(history, "validation_loss")
        ),
    )
    accuracy = Line(name="validation", kind="validation", shape="square", points=_points(history, "accuracy"))
    figures = (("loss", "", losses), (metric, "%", (accuracy,)))
    return tuple(
        _curve(training.candidate, what, unit, taken)
        for what, unit, lines in figures
        if (taken := [line for line in lines if line.points])
    )


def _points(history: Sequence[TrainingEpoch], name: str) -> tuple[tuple[int, float], ...]:
    values = ((epoch.epoch, getattr(epoch, name)) for epoch in history)
    return tuple((epoch, value) for epoch, value in values if value is not None and math.isfinite(value))


def _curve(candidate: str, what: str, unit: str, lines: Sequence[Line]) -> Curve:
    x_axis, y_axis = _axes(lines, percent=unit == "%")
    taken = [epoch for line in lines for epoch, _ in line.points]
    parts = [
        *_grid(what, unit, (min(taken), max(taken)), x_axis, y_axis),
        *(_line(line, unit, x_axis, y_axis) for line in lines),
    ]
    svg = Markup(
        '<svg viewBox="0 0 {} {}" role="img"><title>{}</title><desc>{}</desc>{}</svg>'
    ).format(WIDTH, HEIGHT, f"{what} of {candidate} over its epochs", _described(lines, unit),
             Markup("").join(parts))  # fmt: skip
    return Curve(svg=svg, legend=tuple((line.kind, f"{what}, {line.name}", _key(line)) for line in lines))


def _described(lines: Sequence[Line], unit: str) -> str:
    """The figure in words: where each line begins, ends and is best."""
    said = []
    for line in lines:
        (first, begin), (last, end) = line.points[0], line.points[-1]
        pick = max if unit else min
        best_epoch, best = pick(line.points, key=lambda point: point[1])
        extreme = "highest" if unit else "lowest"
        said.append(
            f"{line.name}: {begin:.4g}{unit and ' ' + unit} after epoch {first}, "
            f"{end:.4g} after epoch {last}, {extreme} {best:.4g} after epoch {best_epoch}"
        )
    return "; ".join(said) + "."


def _axes(lines: Sequence[Line], *, percent: bool) -> tuple[Axis, Axis]:
    epochs = [epoch for line in lines for epoch, _ in line.points]
    values = [value for line in lines for _, value in line.points]
    low, high = min(values), max(values)
    pad = max((high - low) * 0.08, 1.0 if percent else abs(high) * 0.02, 1e-6)
    y_low = low - pad if percent or low < 0 else max(0.0, low - pad)
    y_high = high + pad
    if percent:
        y_low, y_high = max(0.0, y_low), min(100.0, y_high)
    x_low, x_high = float(min(epochs)), float(max(epochs))
    if x_low == x_high:  # one epoch stands in the middle
        x_low, x_high = x_low - 1, x_high + 1
    return (
        Axis(x_low, x_high, _LEFT + 8, WIDTH - _RIGHT - 8),
        Axis(y_low, y_high, HEIGHT - _BOTTOM, _TOP),
    )


def _grid(what: str, unit: str, epochs: tuple[int, int], x_axis: Axis, y_axis: Axis) -> list[Markup]:
    bottom, right, parts = HEIGHT - _BOTTOM, WIDTH - _RIGHT, []
    for tick in y_axis.ticks():
        y = y_axis(tick)
        line = '<line class="grid" x1="{}" y1="{:.1f}" x2="{}" y2="{:.1f}"/>'
        parts.append(Markup(line).format(_LEFT, y, right, y))
        parts.append(_text("tick", _LEFT - 6, y + 4, f"{tick:g}", "end"))
    for tick in dict.fromkeys(round(tick) for tick in x_axis.ticks()):
        if epochs[0] <= tick <= epochs[1]:
            parts.append(_text("tick", x_axis(tick), bottom + 17, f"{tick}", "middle"))
    parts.append(_text("axis", right, HEIGHT - 4, "epoch →", "end"))
    parts.append(_text("axis", 4, 14, f"↑ {what}{f' ({unit})' if unit else ''}", "start"))
    return parts


def _line(line: Line, unit: str, x_axis: Axis, y_axis: Axis) -> Markup:
    spots = [(epoch, value, x_axis(epoch), y_axis(value)) for epoch, value in line.points]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for *_, x, y in spots)
    radius, many = (4.0, "") if len(spots) <= FEW else (1.7, " many")
    point = '<g class="point"><title>{}</title>{}</g>'
    marks = Markup("").join(
        Markup(point).format(
            f"epoch {epoch}, {line.name}: {value:.4g}{f' {unit}' if unit else ''}",
            marker(line.shape, x, y, radius),
        )
        for epoch, value, x, y in spots
    )
    curve = '<g class="curve {}{}"><path class="run" d="{}"/>{}</g>'
    return Markup(curve).format(line.kind, many, path, marks)


def _key(line: Line) -> Markup:
    return Markup('<path class="run" d="M2 8H30"/><g class="point">{}</g>').format(
        marker(line.shape, 16, 8, 4)
    )


def _text(kind: str, x: float, y: float, text: str, anchor: str) -> Markup:
    element = '<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>'
    return Markup(element).format(kind, x, y, anchor, text)

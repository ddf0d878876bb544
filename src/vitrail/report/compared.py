"""The terminal's view of a comparison of two selections, and its JSON document."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, TextIO

from vitrail import words
from vitrail.comparison import MOVED, Change, Comparison, Pair, Side, Standing, Value
from vitrail.report import phrases
from vitrail.report.setting import setting
from vitrail.report.terminal import columns, line, styled
from vitrail.words import counted, some_of

__all__ = ["SCHEMA_VERSION", "show", "summary", "to_document"]

SCHEMA_VERSION = 1
_ORDER = ("worse", "better", "changed", "doubtful", "unmoved", "incomparable", "only A", "only B")
_STYLES = {
    "WINNER": "bold",
    "DIFFERS": "yellow",
    "WORSE": "bold red",
    "OPEN": "bold yellow",
    "worse": "red",
    "better": "green",
    "changed": "yellow",
    "doubtful": "yellow",
    "unmoved": "dim",
    "refused": "dim",
    "rest": "dim",
    "only": "dim",
    "NOTE": "dim",
}
_LOST = {
    "selected": "the winner",
    "meets": "meets all limits",
    "undecided": "not shown to meet the limits",
    "not measured": "not measured",
    "rejected": "rejected",
    "reference": "a reference, never shipped",
    "absent": "not considered",
}


def summary(comparison: Comparison, *, tolerance: float | None = None, everything: bool = False) -> str:
    """The comparison as plain text, one fact a line; with `tolerance` (a share) also what breaks it.

    First what was asked differently and where, then the winners, then a table of what moved (or, with
    `everything`, of all figures), then one line each for what did not, what could not be compared, and what
    is on one side alone.
    """
    a, b = comparison.a, comparison.b
    lines = [line("A", _side(a)), line("B", _side(b))]
    if not comparison.differences:
        lines.append(line("", _asked_the_same(comparison)))
    lines += [line("DIFFERS", f"{d.what}: {d.a} in A, {d.b} in B") for d in comparison.differences]
    lines += [line("NOTE", f"{d.what}: {d.a} in A, {d.b} in B") for d in comparison.elsewhere]
    lines += _winners(comparison)
    lines += _table(comparison, everything=everything)
    lines += [] if everything else _counted(comparison)
    lines += _notes(comparison)
    lines += [line("NOTE", note) for note in comparison.notes]
    lines += _one_side("A", comparison.only_a) + _one_side("B", comparison.only_b)
    if tolerance is not None:
        worse, unclear = comparison.regressions(tolerance), comparison.open_regressions(tolerance)
        lines += [line("WORSE", f"{each.what}: {each.reason}") for each in worse]
        lines += [line("OPEN", f"{each.what}: {each.reason}") for each in unclear]
        if not worse:
            lines.append(f"nothing is shown to be more than {100 * tolerance:g} % worse")
    return "\n".join(map(words.shown, lines)) + "\n"


def show(
    comparison: Comparison, file: TextIO, *, tolerance: float | None = None, everything: bool = False
) -> None:
    """Write `summary` to `file`, with colour only where that is a terminal."""
    styled(summary(comparison, tolerance=tolerance, everything=everything), file, _STYLES)


def to_document(comparison: Comparison, tolerance: float | None = None) -> dict[str, Any]:
    """The comparison as plain JSON data, without the selections themselves."""
    plain = {
        field.name: getattr(comparison, field.name)
        for field in dataclasses.fields(comparison)
        if field.name not in ("a", "b", "pairs")
    }
    gate = None
    if tolerance is not None:
        gate = {
            "tolerance_percent": 100 * tolerance,
            "regressions": comparison.regressions(tolerance),
            "open": comparison.open_regressions(tolerance),
        }
    return {
        "schema_version": SCHEMA_VERSION,
        "a": _described(comparison.a),
        "b": _described(comparison.b),
        **plain,
        "variants": comparison.pairs,
        "fail_on_regression": gate,
    }


def _described(side: Side) -> dict[str, Any]:
    seen = side.selection
    return {
        "source": side.source,
        "created": seen.created,
        "hardware": seen.hardware,
        "engines": side.engines,
        "vitrail": side.method,
        "requirements": seen.requirements,
        "workload": seen.workload,
        "selected": seen.selected,
    }


# --- lines ----------------------------------------------------------------------------------------


def _side(side: Side) -> str:
    seen = side.selection
    machine = setting(seen).machine.partition(" with ")[0] or str(
        seen.hardware.get("cpu", "an unknown machine")
    )
    versions = ", ".join((*side.engines, *(f"vitrail {version}" for version in side.method)))
    return "   ".join(filter(None, (side.source, seen.created, machine, versions)))


def _asked_the_same(comparison: Comparison) -> str:
    differ = [each.what for each in comparison.elsewhere]
    if differ:
        return f"asked the same, with another {phrases.listed(differ)}"
    known = comparison.a.machines and comparison.b.machines
    return "asked the same, on one machine" if known else "asked the same"


def _winners(comparison: Comparison) -> list[str]:
    won = comparison.winners
    said = {
        "same": f"the same: {won.a}",
        "changed": f"changed: {won.a} → {won.b}",
        "none in B": f"{won.a} in A, none in B",
        "none in A": f"none in A, {won.b} in B",
        "none": "none in A, none in B",
    }[won.state]
    lines = [line("WINNER", said)]
    if won.state in ("same", "none"):
        return lines
    stands = [("B", won.a_in_b), ("A", won.b_in_a)]
    lines += [line("", _stands(one, side)) for side, one in stands if one is not None]
    for side, seen in (("A", comparison.a.selection), ("B", comparison.b.selection)):
        if seen.leader is not None:
            lines.append(line("", f"in {side}, {seen.leader.variant.name} leads, not proven"))
    if comparison.differences:
        lines.append(line("", "the two questions differ (above), which may be why"))
    return lines


def _stands(one: Standing, side: str) -> str:
    why = "; ".join(one.reasons)
    # A judge's reason for a runner-up begins with its place.
    said = why if one.place == "meets" and why else f"{_LOST[one.place]}{f': {why}' if why else ''}"
    return f"in {side}, {one.name}: {said}"


def _table(comparison: Comparison, *, everything: bool) -> list[str]:
    states = _ORDER if everything else (*MOVED, "doubtful")
    shown = [(pair, change) for pair in _winners_first(comparison) for change in pair.changes]
    shown = [one for one in shown if one[1].state in states]
    shown.sort(key=lambda one: _ORDER.index(one[1].state))
    if not shown:
        return []
    head = ["variant", "figure", "A", "B", "B / A", ""]
    rows = [[pair.name, *_cells(change)] for pair, change in shown]
    names = ["refused" if change.state == "incomparable" else change.state for _, change in shown]
    return [line(word, row) for word, row in zip(["", *names], columns([head, *rows]), strict=True)]


def _winners_first(comparison: Comparison) -> list[Pair]:
    won = (comparison.winners.a, comparison.winners.b)
    return sorted(comparison.pairs, key=lambda pair: pair.name not in won)


def _cells(change: Change) -> list[str]:
    ratio = change.ratio
    times = f"{ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]" if ratio else ""
    if ratio and ratio.low == ratio.high:
        times = f"{ratio.value:.3f}"
    figure = f"{change.figure}, {change.unit}" if change.unit else change.figure
    return [figure, _value(change.a), _value(change.b), times, change.reason]


def _value(value: Value | None) -> str:
    if value is None:
        return ""
    said = value.value if isinstance(value.value, str) else f"{value.value:.4g}"
    if value.interval is not None:
        said += f" [{phrases.number(value.interval[0])}, {phrases.number(value.interval[1])}]"
    return f"{said} {value.said}".strip()


def _counted(comparison: Comparison) -> list[str]:
    """One line for the unmoved, one for each reason not to compare, one for figures of one side."""
    unmoved = [(p, c) for p in comparison.pairs for c in p.changes if c.state == "unmoved"]
    lines = []
    if unmoved:
        of = counted(len({pair.name for pair, _ in unmoved}), "variant")
        did = counted(len(unmoved), "figure")
        lines.append(line("unmoved", f"{did} of {of} did not move beyond noise"))
    lines += [line("refused", text) for text in _grouped(comparison, "incomparable")]
    for state, other in (("only A", "B"), ("only B", "A")):
        alone = [(p, c) for p in comparison.pairs for c in p.changes if c.state == state]
        of = counted(len({pair.name for pair, _ in alone}), "variant")
        if alone:
            lines.append(line(state, f"{counted(len(alone), 'figure')} of {of}: not measured in {other}"))
    return lines


def _notes(comparison: Comparison) -> list[str]:
    groups: dict[str, list[str]] = {}
    for pair in comparison.pairs:
        for note in pair.notes:
            groups.setdefault(note, []).append(pair.name)
    return [line("NOTE", f"{some_of(names)}: {note}") for note, names in groups.items()]


def _grouped(comparison: Comparison, state: str) -> list[str]:
    groups: dict[str, list[str]] = {}
    for pair in comparison.pairs:
        for change in pair.changes:
            if change.state == state:
                groups.setdefault(f"{change.figure}: {change.reason}", []).append(pair.name)
    by_variants: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for said, names in groups.items():
        figure, _, reason = said.partition(": ")
        by_variants.setdefault((reason, tuple(names)), []).append(figure)
    return [
        f"{phrases.listed(figures)} of {some_of(names)}: {reason}"
        for (reason, names), figures in by_variants.items()
    ]


def _one_side(side: str, standings: Iterable[Standing]) -> list[str]:
    names = [one.name for one in standings]
    return [line(f"only {side}", f"considered in {side} alone: {some_of(names)}")] if names else []

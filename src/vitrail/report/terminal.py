"""The terminal's view of a selection: one line while each variant is measured, a summary at the end."""

from __future__ import annotations

import math
import textwrap
from typing import TextIO

from vitrail.report import phrases
from vitrail.vocabulary import LedgerEntry, Selection, Workload

_STYLES = {"SELECTED": "bold green", "NOTHING": "bold red", "NEAREST": "yellow", "WOULD WIN": "cyan",
           "TEST": "bold",           "LOST": "dim", "NOTE": "dim"}  # fmt: skip
_INDENT = 11


def summary(
    selection: Selection,
    *,
    artifact: str | None = None,
    report: str | None = None,
    rivals: int = 5,
) -> str:
    """The result as plain text, one fact a line; `artifact` and `report` are the paths written, if any."""
    lines = _won(selection) if selection.winner else _nothing_fits(selection)
    lines += _would_win(selection)
    shown = phrases.rivals(selection, rivals) if selection.winner else _nearest(selection)
    if selection.winner:
        lines += _table("LOST", [_lost_row(entry) for entry in shown])
    groups = [f"{count} {reason}" for reason, count in phrases.others(selection, shown)]
    lines += _wrapped("LOST", "also: " + " · ".join(groups)) if groups else []
    lines += [_line("NOTE", note) for note in selection.notes]
    if last := written(artifact, report):
        lines.append(last)
    return "\n".join(lines) + "\n"


def show(
    selection: Selection,
    file: TextIO,
    *,
    artifact: str | None = None,
    report: str | None = None,
) -> None:
    """Write `summary` to `file`, with colour only where that is a terminal."""
    text = summary(selection, artifact=artifact, report=report)
    if not file.isatty():
        file.write(text)
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(file=file, highlight=False, soft_wrap=True)
    for line in text.splitlines():
        styled = Text(line)
        for word, style in _STYLES.items():
            if line.startswith(word):
                styled.stylize(style, 0, None if style == "dim" else _INDENT)
        console.print(styled)


def progress_line(
    done: int,
    total: int,
    entry: LedgerEntry,
    best: LedgerEntry | None,
    left_s: float,
    workload: Workload,
    width: int = 110,
) -> str:
    """`[ 6/41] convnext_tiny openvino bf16   p95 21–22 ms  pass          best …   2:10 left`.

    `entry` is what was just measured, `best` what leads; cut to `width` columns so that it is one line.
    """
    variant = entry.variant
    name = f"{variant.candidate.architecture} {variant.runtime} {variant.precision}"
    room = 36 if width >= 100 else 22
    head = f"[{done:>{len(str(total))}}/{total}] {name:<{room}.{room}}  {_range(entry, workload):<17} "
    head += f"{_answer(entry):<13}"
    leader = f"best {best.variant.candidate.architecture}" if best else "nothing fits yet"
    seconds = max(0, math.ceil(left_s))
    clock = f"{seconds // 60}:{seconds % 60:02} left"
    room = width - len(head) - len(clock) - 3
    if room >= 16:
        head += f"{leader if len(leader) <= room else leader[: room - 1] + '…':<{room}}"
    return f"{head[: max(0, width - len(clock) - 2)]}  {clock}"


def _range(entry: LedgerEntry, workload: Workload) -> str:
    figures = phrases.judged_figures(entry, workload)
    if figures is None:
        return "no figure"
    judged = figures.judged
    if judged.interval is None:
        return f"p{judged.percentile:g} {phrases.number(judged.value)} ms"
    low, high = (phrases.number(edge) for edge in judged.interval)
    return f"p{judged.percentile:g} {low}–{high} ms" if low != high else f"p{judged.percentile:g} {low} ms"


def _answer(entry: LedgerEntry) -> str:
    """The least favourable answer so far, as far as measuring can tell."""
    if entry.observation.failure:
        return "failed"
    answers = {verdict.answer for verdict in entry.verdicts}
    if "fail" not in answers and phrases.is_random(entry):
        return "timed only"
    return next((a for a in ("fail", "undecided", "not assessed", "pass") if a in answers), "")


def _line(word: str, text: str) -> str:
    return f"{word:<{_INDENT - 1}} {text}"


def _wrapped(word: str, text: str) -> list[str]:
    # figures and names stay on one line for whoever searches the text; only counts are wrapped
    first, *rest = textwrap.wrap(text, 96, break_on_hyphens=False)
    return [_line(word, first), *(" " * _INDENT + line for line in rest)]


def _table(word: str, rows: list[tuple[str, str]]) -> list[str]:
    width = max((len(name) for name, _ in rows), default=0)
    return [_line(word, f"{name:<{width}}  {text}".rstrip()) for name, text in rows]


def _won(selection: Selection) -> list[str]:
    winner = selection.winner
    assert winner is not None
    lines = [_line("SELECTED", f"{winner.variant.name}   {_facts(winner, selection.workload)}")]
    if selection.test is not None:
        lines += [_line("TEST", str(phrases.tested(selection))), _line("", phrases.task(selection.test))]
    return lines


def _facts(entry: LedgerEntry, workload: Workload) -> str:
    figures, memory = phrases.judged_figures(entry, workload), entry.observation.memory
    said = []
    if figures is not None:
        mark = ", random weights" if phrases.is_random(entry) else ""
        said.append(f"{phrases.milliseconds(figures)} {workload.latency_scope}{mark}")
    if top1 := phrases.accuracy(entry):
        said.append(f"top-1 {top1}")
    if memory is not None:
        said.append(f"{phrases.number(memory.peak)} MiB")
    return "   ".join(said)


def _lost_row(entry: LedgerEntry) -> tuple[str, str]:
    return entry.variant.name, phrases.reasons(entry)


def _nearest(selection: Selection) -> list[LedgerEntry]:
    by_name = {entry.variant.name: entry for entry in selection.ledger}
    return [by_name[name] for name in selection.nearest if name in by_name]


def _nothing_fits(selection: Selection) -> list[str]:
    asked = phrases.listed(phrases.limits(selection.requirements, selection.workload))
    rows = [_lost_row(entry) for entry in _nearest(selection)]
    why = f"no variant was shown to hold {asked or 'what was asked'}"
    if not rows:  # nothing came near a limit or failed one: what is missing is evidence
        why = "no variant has all the evidence that a winner needs"
    lines = [_line("NOTHING", f"fits: {why}"), *_table("NEAREST", rows)]
    if not rows:
        # Without limits nothing is near: what is missing is evidence, so that is what is said.
        open_ones = [entry for entry in selection.ledger if entry.status == "undecided"]
        lines += _table("UNDECIDED", [_lost_row(entry) for entry in open_ones[:3]])
    return lines


def _would_win(selection: Selection) -> list[str]:
    return [
        _line(
            "WOULD WIN",
            f"{entry.variant.name} if its weights were at hand   {_facts(entry, selection.workload)}",
        )
        for entry in selection.ledger
        if entry.would_win
    ]


def written(artifact: str | None, report: str | None) -> str:
    """The last line: what was written where, and what to do next; empty if nothing was."""
    said = [f"{artifact.rstrip('/')}/ written, verified"] if artifact else []
    said += [report] if report else []
    said += [f"next: vitrail predict {artifact.rstrip('/')} IMAGE"] if artifact else []
    return " · ".join(said)

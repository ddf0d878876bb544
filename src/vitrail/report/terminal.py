"""The terminal's view of a selection: one line while each variant is measured, a summary at the end."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TextIO

from vitrail import tasks, words
from vitrail.report import optimised, phrases
from vitrail.vocabulary import LatencyFigures, LedgerEntry, Selection, Stage, Workload
from vitrail.words import NOT_AT_HAND

_STYLES = {
    "SELECTED": "bold green",
    "NOTHING": "bold red",
    "PROVISIONAL": "bold yellow",
    "LACKS": "bold yellow",
    "FAILED": "yellow",
    "DOUBT": "yellow",
    "TEST": "bold",
    "best": "bold green",
    "baseline": "bold",
    "no parity": "dim",
    "reference": "dim",
    "tie": "cyan",
    "would win": "cyan",
    "undecided": "yellow",
    "unmeasured": "dim",
    "no weights": "dim",
    "rejected": "dim",
    "rest": "dim",
    "NOTE": "dim",
}
_INDENT = 11
_WORDS = {"selected": "winner", "not measured": "unmeasured", phrases.NO_WEIGHTS: "no weights"}
"""What stands before a row of the table, where the status itself is not the word."""


def summary(
    selection: Selection,
    *,
    artifact: str | None = None,
    report: str | None = None,
    few: int = 6,
) -> str:
    """The result as plain text, one fact a line; `artifact` and `report` are the paths written, if any.

    First what was selected (or leads, or that nothing does), then a table of the `few` that matter (of an
    optimisation, all forms that were measured), then one line that counts the rest, then what is to be known
    beside it.
    """
    bars = optimised.table(selection)
    shown = [bar.entry for bar in bars] or phrases.few(selection, few)
    lines = _won(selection) if selection.winner else _nothing_meets_all(selection)
    lines += [line("", brings)] if (brings := optimised.headline(selection)) else []
    lines += [line("LACKS", lack) for lack in selection.lacks]
    if bars:
        lines += _forms(selection, bars)
    elif len(shown) > 1 or not (selection.winner or selection.leader):
        lines += _table(selection, shown)
    groups = [f"{count} {reason}" for reason, count in phrases.others(selection, shown)]
    lines += [line("rest", " · ".join(groups))] if groups else []
    lines += [line("FAILED", failure) for failure in _failures(selection, shown)]
    notes = selection.notes
    if phrases.without_weights(selection):  # then they stand above
        notes = tuple(note for note in notes if not note.startswith(NOT_AT_HAND))
    lines += [line("NOTE", note) for note in notes]
    if last := written(artifact, report):
        lines.append(last)
    return "\n".join(map(words.shown, lines)) + "\n"


def show(
    selection: Selection,
    file: TextIO,
    *,
    artifact: str | None = None,
    report: str | None = None,
) -> None:
    """Write `summary` to `file`, with colour only where that is a terminal."""
    styled(summary(selection, artifact=artifact, report=report), file, _STYLES)


def styled(text: str, file: TextIO, styles: Mapping[str, str]) -> None:
    """Write lines, each in the style of the word that it begins with, where `file` is a terminal."""
    if not file.isatty():
        file.write(text)
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(file=file, highlight=False, soft_wrap=True)
    for each in text.splitlines():
        shown = Text(each)
        for word, style in styles.items():
            if each.startswith(word):
                shown.stylize(style, 0, None if style == "dim" else _INDENT)
        console.print(shown)


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
    leader = f"best {best.variant.candidate.architecture}" if best else "nothing meets all yet"
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


def line(word: str, text: str) -> str:
    """A word in the gutter, and a text beside it."""
    return f"{word:<{_INDENT - 1}} {text}"


def _table(selection: Selection, shown: list[LedgerEntry]) -> list[str]:
    """A row for each entry: its place, name, figures, and why it has that place."""
    load = selection.workload
    latency, metric = f"p{load.percentile:g} ms {phrases.scope(load)}", phrases.metric(selection.task)
    stages = [stage for stage, _ in selection.requirements.max_stage_latency_ms]
    of_stages = [f"p{load.percentile:g} ms {stage}" for stage in stages]
    head = ["variant", latency, *of_stages, f"{metric} %", "MiB", ""]
    # Of what leads, the reasons stand above the table.
    whys = ["" if entry is selection.leader else phrases.reasons(entry) for entry in shown]
    rows = [
        [entry.variant.name, *_cells(entry, load, stages), why]
        for entry, why in zip(shown, whys, strict=True)
    ]
    words = [phrases.word(entry) for entry in shown]
    if selection.winner is None and selection.leader is not None:
        words[0] = "leads"
    gutters = [_WORDS.get(word, word) for word in words]
    return [line(word, row) for word, row in zip(["", *gutters], columns([head, *rows]), strict=True)]


def _forms(selection: Selection, bars: list[optimised.Bar]) -> list[str]:
    """A row for each form of an optimised model, slowest first."""
    load = selection.workload
    other = "request" if load.latency_scope == "model" else "model"
    head = ["", f"p{load.percentile:g} ms {phrases.scope(load)}", "speed-up", "passes, settings"]
    head += [f"ms {other}", "parity", f"{phrases.metric(selection.task)} %", "MiB", "file MiB", "made s"]
    rows = [
        [b.form, b.ms, b.speed_up, b.pays, b.request, b.parity, b.accuracy, b.memory, b.size, b.made]
        for b in bars
    ]
    gutters = ["", *(_WORDS.get(bar.place, bar.place) for bar in bars)]
    return [line(word, row) for word, row in zip(gutters, columns([head, *rows]), strict=True)]


def columns(rows: list[list[str]]) -> list[str]:
    """Rows of cells, the head first, as aligned lines; a column with nothing below its head is left out."""
    used = [any(row[i] for row in rows[1:]) for i in range(len(rows[0]))]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    kept = [
        [cell.ljust(width) for cell, width, use in zip(row, widths, used, strict=True) if use] for row in rows
    ]
    return ["  ".join(cells).rstrip() for cells in kept]


def _cells(entry: LedgerEntry, workload: Workload, stages: Sequence[Stage]) -> list[str]:
    """Latencies with their intervals, accuracy with its provenance, memory; empty where not known."""
    figures = phrases.judged_figures(entry, workload)
    top1 = entry.observation.accuracy
    latency = _bare(figures)
    if latency and phrases.is_random(entry):
        latency += " random weights"
    of_stages = [_bare(entry.observation.latency.get(stage)) for stage in stages]
    accuracy = f"{top1.value:.4g} {top1.provenance}" if top1 else ""
    return [latency, *of_stages, accuracy, phrases.peak(entry)]


def _bare(figures: LatencyFigures | None) -> str:
    """`9.1 [8.8, 9.4]`: what stands below a head that says the rest."""
    return phrases.milliseconds(figures).partition(" ")[2].replace(" ms", "") if figures else ""


def _won(selection: Selection) -> list[str]:
    winner = selection.winner
    assert winner is not None
    lines = [line("SELECTED", f"{winner.variant.name}   {_facts(winner, selection)}")]
    lines += [line("DOUBT", doubt) for doubt in phrases.doubts(winner)]
    if selection.test is not None:
        lines += [line("TEST", str(phrases.tested(selection))), line("", phrases.beside(selection.test))]
    return lines


def _facts(entry: LedgerEntry, selection: Selection) -> str:
    figures = phrases.judged_figures(entry, selection.workload)
    stages = phrases.limited_stages(entry, selection.requirements)
    said = [f"{phrases.milliseconds(of)} {stage}" for stage, of in stages]
    if figures is not None:
        said.insert(0, f"{phrases.milliseconds(figures)} {phrases.scope(selection.workload)}")
    if said and phrases.is_random(entry):
        said[-1] += ", random weights"
    if accuracy := phrases.named_accuracy(entry):
        said.append(accuracy)
    if memory := phrases.peak(entry, "MiB"):
        said.append(memory)
    return "   ".join(said)


def _nothing_meets_all(selection: Selection) -> list[str]:
    asked = phrases.listed(phrases.limits(selection.requirements, selection.workload, selection.task))
    why = f"no variant was shown to meet {asked or 'what was asked'}"
    if missing := phrases.without_weights(selection):
        why = "of no model the weights are at hand"
        return [line("NOTHING", f"is selected: {why}"), *(line("", each) for each in missing)]
    if not selection.nearest:  # nothing came near a limit or failed one: what is missing is evidence
        why = "no variant has all the evidence that a winner needs"
    lines = [line("NOTHING", f"is selected: {why}")]
    if leader := selection.leader:
        lines.append(line("PROVISIONAL", f"{leader.variant.name}   {_facts(leader, selection)}"))
        lines.append(line("", f"not proven: {'; '.join(leader.reasons)}"))
        lines += [line("DOUBT", doubt) for doubt in phrases.doubts(leader)]
    return lines


def _failures(selection: Selection, shown: list[LedgerEntry]) -> list[str]:
    """Why variants beside those shown could not be exported or run: each reason once, with one it stopped."""
    first: dict[str, str] = {}
    for entry in selection.ledger:
        failure = entry.observation.failure
        if failure is not None and entry not in shown and not phrases.is_random(entry):
            first.setdefault(" ".join(failure.split()), entry.variant.name)
    return [f"{name}   {reason}" for reason, name in first.items()]


def written(
    artifact: str | None, report: str | None, task: str = "classify", *, out: str | None = None
) -> str:
    """The last line: what was written where, and what to do next; empty if nothing was.

    `out`: where an artifact was asked for, which says that there is none.
    """
    said = [f"{artifact.rstrip('/')}/ written, verified"] if artifact else []
    said += [report if artifact else f"report: {report}"] if report else []
    said += [f"nothing was written to {out.rstrip('/')}/"] if out and not artifact else []
    if artifact:
        folder = artifact.rstrip("/")
        first = tasks.known(task).shell.splitlines()[0]
        names = {"photo": "IMAGE", "photos": "PHOTOS", "index": "FILE.parquet"}
        said.append(f"next: {first.format(folder=folder, **names)}")
    return " · ".join(said)

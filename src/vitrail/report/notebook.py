"""A selection as a small table for notebooks, the whole ledger folded below it."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from markupsafe import Markup

from vitrail.report import phrases
from vitrail.report.decision import decision, notes
from vitrail.vocabulary import LedgerEntry, Selection
from vitrail.words import counted

# Notebooks bring their own light or dark page and their own table styles, and some drop <style>: every rule
# stands on the element that it is for, and nothing sets a colour.
_CELL = (
    "padding:.2em .8em .2em 0;text-align:left;vertical-align:top;white-space:normal;overflow-wrap:anywhere"
)
_FIXED = "padding:.2em .8em .2em 0;text-align:left;vertical-align:top;white-space:nowrap"
_BOX = "overflow-x:auto;max-width:100%"


def show_in_notebooks() -> None:
    """Have a running IPython (Jupyter, Colab) show each `Selection` as this table; without one do nothing."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    if shell is not None:
        shell.display_formatter.formatters["text/html"].for_type(Selection, selection_table_html)


def selection_table_html(selection: Selection, rows: int = 12) -> str:
    """The decision, the winner, what would win and the closest rivals; then notes and ledger, folded.

    Neither script nor style sheet nor anything from outside; names are escaped.
    """
    winner = selection.winner
    shown = [winner] if winner else []
    shown += [entry for entry in selection.ledger if entry.would_win]
    shown += phrases.rivals(selection, max(0, rows - len(shown)))
    counts = " · ".join(f"{count} {reason}" for reason, count in phrases.others(selection, shown))
    said = notes(selection)
    parts = [
        Markup('<p style="max-width:60em">{}</p>').format(decision(selection)),
        _table(shown, selection) if shown else "",
        Markup('<p style="opacity:.75">also: {}</p>').format(counts) if counts else "",
        _folded(counted(len(said), "note"), _list(said)) if said else "",
    ]
    if len(selection.ledger) > len(shown):
        title = f"Ledger: all {counted(len(selection.ledger), 'variant')}"
        parts.append(_folded(title, _table(selection.ledger, selection)))
    return str(Markup("<div>{}</div>").format(Markup("").join(parts)))


def _folded(title: str, inside: Markup) -> Markup:
    text = '<details style="margin:.4em 0"><summary style="cursor:pointer">{}</summary>{}</details>'
    return Markup(text).format(title, inside)


def _list(items: Sequence[Markup]) -> Markup:
    inside = Markup("").join(Markup("<li>{}</li>").format(item) for item in items)
    return Markup('<ul style="max-width:60em">{}</ul>').format(inside)


def _table(entries: Sequence[LedgerEntry], selection: Selection) -> Markup:
    columns = ("", "variant", f"{phrases.metric(selection.task)} %", "latency", "MiB", "why")
    head = Markup("").join(
        Markup('<th scope="col" style="{}">{}</th>').format(_FIXED, name) for name in columns
    )
    body = Markup("").join(_row(entry, selection) for entry in entries)
    table = '<div style="{}"><table><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>'
    return Markup(table).format(_BOX, head, body)


def _row(entry: LedgerEntry, selection: Selection) -> Markup:
    figures = phrases.judged_figures(entry, selection.workload)
    random = ", random weights" if phrases.is_random(entry) else ""
    status = "would win" if entry.would_win else entry.status
    cells = (
        (_FIXED, Markup("<b>{}</b>").format(status) if entry is selection.winner else status),
        (_CELL + ";min-width:12em", entry.variant.name),
        (_CELL, phrases.accuracy(entry) or "–"),
        (_CELL, f"{phrases.milliseconds(figures)}{random}" if figures else "–"),
        (_FIXED, phrases.peak(entry) or "–"),
        (_CELL + ";min-width:14em", phrases.reasons(entry)),
    )
    filled = (Markup('<td style="{}">{}</td>').format(style, cell) for style, cell in cells)
    return Markup("<tr>{}</tr>").format(Markup("").join(filled))

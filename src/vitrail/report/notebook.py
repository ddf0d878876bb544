"""A selection as a small table for notebooks (`Selection._repr_html_`)."""

from __future__ import annotations

from markupsafe import Markup

from vitrail.report import phrases
from vitrail.vocabulary import LedgerEntry, Selection

_COLUMNS = ("", "variant", "top-1 %", "latency", "MiB", "why")
# Notebooks bring their own light or dark page, so nothing here sets a colour.
_LEFT = "text-align:left;vertical-align:top"


def selection_table_html(selection: Selection, rows: int = 12) -> str:
    """The winner, what would win, and the closest rivals; one line counts the rest. Names are escaped."""
    winner = selection.winner
    shown = [winner] if winner else []
    shown += [entry for entry in selection.ledger if entry.would_win]
    shown += phrases.rivals(selection, max(0, rows - len(shown)))
    head = Markup("").join(
        Markup('<th scope="col" style="{}">{}</th>').format(_LEFT, name) for name in _COLUMNS
    )
    body = Markup("").join(_row(entry, selection) for entry in shown)
    rest = phrases.others(selection, shown)
    said = winner.variant.name if winner else "nothing fits"
    caption = Markup('<caption style="text-align:left">Selected: <b>{}</b></caption>').format(said)
    counts = " · ".join(f"{count} {reason}" for reason, count in rest)
    foot = Markup('<tfoot><tr><td></td><td colspan="5" style="{}">also: {}</td></tr></tfoot>')
    table = Markup("<table>{}<thead><tr>{}</tr></thead><tbody>{}</tbody>{}</table>")
    return str(table.format(caption, head, body, foot.format(_LEFT, counts) if rest else ""))


def _row(entry: LedgerEntry, selection: Selection) -> Markup:
    figures, memory = phrases.judged_figures(entry, selection.workload), entry.observation.memory
    random = ", random weights" if phrases.is_random(entry) else ""
    cells = (
        "would win" if entry.would_win else entry.status,
        entry.variant.name,
        phrases.accuracy(entry) or "–",
        f"{phrases.milliseconds(figures)}{random}" if figures else "–",
        phrases.number(memory.peak) if memory else "–",
        phrases.reasons(entry),
    )
    filled = (Markup('<td style="{}">{}</td>').format(_LEFT, cell) for cell in cells)
    return Markup("<tr>{}</tr>").format(Markup("").join(filled))

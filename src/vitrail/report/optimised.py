"""One model in every form, slowest first: what each brings over the baseline, in words and as bars."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath

from vitrail.report import phrases
from vitrail.report.scene import look
from vitrail.runtimes import RUNTIMES
from vitrail.vocabulary import LedgerEntry, Parity, Selection, SpeedUp

__all__ = ["Bar", "baseline", "headline", "table"]


HOLDS = "holds"
"""Of a form that holds what was asked, and is not the best."""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One form: a row of the table, and its bar."""

    entry: LedgerEntry
    place: str
    """`baseline`, `best`, `tie`, `holds`, `reference`, or why it does not ship: `no parity`, `rejected` …"""
    look: str
    """CSS classes of its bar."""
    form: str
    """Engine, precision, passes and settings."""
    ms: str
    speed_up: str
    """`3.9× [3.8, 4.0]`; `no faster`, where that is within noise."""
    pays: str
    """What its passes and settings bring over the form without; "": it has none."""
    request: str
    parity: str
    accuracy: str
    memory: str
    size: str
    made: str
    share: float
    """Of the slowest, in %."""
    low: float
    high: float
    """The interval's ends, in the same %; equal: none is known."""


def table(selection: Selection) -> list[Bar]:
    """A bar for each form that was measured, slowest first; none where nothing was optimised."""
    if not selection.speed_ups:
        return []
    entries = [e for e in phrases.measured(selection) if phrases.judged_figures(e, selection.workload)]
    slowest = max(_high(entry, selection) for entry in entries)
    return [_bar(entry, selection, slowest) for entry in sorted(entries, key=lambda e: -_ms(e, selection))]


def baseline(selection: Selection) -> str:
    """`Variant.name` of what the others are compared with."""
    return selection.speed_ups[0].over


def headline(selection: Selection) -> str:
    """`3.9× [3.8, 4.0] as fast as PyTorch eager fp32`; "" where nothing was selected."""
    best = next((bar for bar in table(selection) if bar.place == "best"), None)
    if best is None:
        return ""
    over = _form(next(e for e in selection.ledger if e.variant.name == baseline(selection)))
    kind, _, ratio = best.speed_up.rpartition(": ")
    return f"{kind} than {over}: {ratio}" if kind else f"{ratio} as fast as {over}"


def _bar(entry: LedgerEntry, selection: Selection, slowest: float) -> Bar:
    seen, name = entry.observation, entry.variant.name
    figures = phrases.judged_figures(entry, selection.workload)
    assert figures is not None
    low, high = figures.judged.interval or (figures.judged.value,) * 2
    over = {each.over: each for each in selection.speed_ups if each.variant == name}
    plain = next((each for where, each in over.items() if where != baseline(selection)), None)
    other = seen.latency.get("request" if selection.workload.latency_scope == "model" else "model")
    return Bar(
        entry=entry,
        place=(place := _place(entry, selection)),
        look=_look(place, entry),
        form=_form(entry),
        ms=phrases.milliseconds(figures).partition(" ")[2].replace(" ms", ""),
        speed_up=_times(over.get(baseline(selection))) if name != baseline(selection) else "1×",
        pays=_pays(entry, plain, over.get(baseline(selection))),
        request=phrases.number(other.p50) if other else "",
        parity=_parity(entry, selection),
        accuracy=f"{seen.accuracy.value:.4g} {seen.accuracy.provenance}" if seen.accuracy else "",
        memory=phrases.peak(entry),
        size=phrases.number(seen.made.mib) if seen.made else "",
        made=f"{seen.made.seconds:.0f}" if seen.made and seen.made.seconds else "",
        share=100 * figures.judged.value / slowest,
        low=100 * low / slowest,
        high=100 * high / slowest,
    )


def _ms(entry: LedgerEntry, selection: Selection) -> float:
    figures = phrases.judged_figures(entry, selection.workload)
    assert figures is not None
    return figures.judged.value


def _high(entry: LedgerEntry, selection: Selection) -> float:
    """The end of its interval, or its figure."""
    figures = phrases.judged_figures(entry, selection.workload)
    interval = figures.judged.interval if figures else None
    return interval[1] if interval else _ms(entry, selection)


def _form(entry: LedgerEntry) -> str:
    variant = entry.variant
    label = RUNTIMES[variant.runtime].label if variant.runtime in RUNTIMES else variant.runtime
    settings = (f"{name}={value}" for name, value in variant.settings)
    return " ".join([label, variant.precision, *variant.passes, *settings])


def _place(entry: LedgerEntry, selection: Selection) -> str:
    if entry.variant.name == baseline(selection):
        return "baseline"
    if entry.status == "selected":
        return "best"
    if entry.would_win:
        return "would win"
    if any(v.requirement == "parity" and v.answer == "fail" for v in entry.verdicts):
        return "no parity"
    # Beside a winner, what had no finals lacks nothing but speed.
    holds = entry.status == "undecided" and all(verdict.answer == "pass" for verdict in entry.verdicts)
    return HOLDS if holds and selection.winner else phrases.word(entry)


def _look(place: str, entry: LedgerEntry) -> str:
    """The bar's CSS classes."""
    return "meets" if place == HOLDS else look(entry)


def _times(found: SpeedUp | None) -> str:
    if found is None:
        return ""
    if found.interval is None:
        return f"about {found.times:.2f}×"
    low, high = found.interval
    text = f"{found.times:.2f}× [{low:.2f}, {high:.2f}]"
    if low <= 1 <= high:
        return f"no faster: {text}"
    return text if high >= 1 else f"slower: {text}"


def _pays(entry: LedgerEntry, plain: SpeedUp | None, over: SpeedUp | None) -> str:
    """Where the form without is the baseline itself, the speed-up says it."""
    if not (entry.variant.passes or entry.variant.settings):
        return ""
    found = plain or over
    if found is None or found.interval is None:
        return "not known"
    low, high = found.interval
    if low > 1:
        return f"pays: {found.times:.2f}× [{low:.2f}, {high:.2f}]"
    return f"does not pay: {found.times:.2f}× [{low:.2f}, {high:.2f}]"


def _parity(entry: LedgerEntry, selection: Selection) -> str:
    if phrases.is_random(entry):
        return "random weights"
    parity = entry.observation.parity
    if parity is None:
        is_reference = entry.variant.name == baseline(selection) and entry.variant.reference
        return "the reference" if is_reference else "not compared"
    return f"{parity.answer} {parity.agreeing}/{parity.decided}{_worst(parity)}"


def _worst(parity: Parity) -> str:
    if not parity.worst:
        return ""
    name = PurePath(parity.worst).name
    if parity.figures:
        return f", worst {name} {parity.figures[0].value:.3g} {parity.figures[0].unit}"
    return f", worst {name} {parity.relative_error:.1g}"

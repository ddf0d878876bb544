"""The decision in two sentences, and what else is to be known as a list of notes."""

from __future__ import annotations

from markupsafe import Markup

from vitrail import tasks
from vitrail.report import phrases
from vitrail.report.typeset import options_as_code, sentence, spelled, tight
from vitrail.vocabulary import LedgerEntry, Selection
from vitrail.words import counted

__all__ = ["decision", "evidence_in_short", "limits", "notes"]


def decision(selection: Selection) -> Markup:
    """Two sentences in plain language: what won against which limits, and on which evidence."""
    said = _won(selection) if selection.winner else _nothing(selection)
    return tight(Markup(" ").join(said))


def notes(selection: Selection) -> list[Markup]:
    """What qualifies the decision, one item each."""
    found = []
    for entry in selection.ledger:
        if entry.would_win:
            text = "<strong>{}</strong> would win if its weights were at hand: {}."
            said = evidence_in_short(entry, selection)
            found.append(tight(Markup(text).format(spelled(entry.variant.name), said)))
    found += [sentence(lack) for lack in selection.lacks]
    if (best := selection.winner or selection.leader) is not None:
        found += [sentence(f"doubt about its figures: {doubt}") for doubt in phrases.doubts(best)]
    near = _nearest(selection)
    for entry in near if selection.leader is not None else near[1:]:
        if entry is selection.leader:
            continue
        text = Markup("<strong>{}</strong> is near: {}.")
        reasons = options_as_code(phrases.reasons(entry).rstrip("."))
        found.append(tight(text.format(spelled(entry.variant.name), reasons)))
    return [*found, *(sentence(note) for note in selection.notes)]


def evidence_in_short(entry: LedgerEntry, selection: Selection) -> str:
    """`top-1 77.5 published, p95 12.3 ms [11.9, 12.7] from 360 calls and 259 MiB peak memory`."""
    figures = phrases.judged_figures(entry, selection.workload)
    parts = []
    if accuracy := phrases.named_accuracy(entry):
        parts.append(accuracy)
    if figures is not None:
        calls = f"from {counted(figures.calls, 'call')}" if figures.calls else "as declared"
        random = ", with random weights" if phrases.is_random(entry) else ""
        parts.append(f"{phrases.milliseconds(figures)} {calls}{random}")
    stages = phrases.limited_stages(entry, selection.requirements)
    parts += [f"{stage} {phrases.milliseconds(of)}" for stage, of in stages]
    if memory := phrases.peak(entry, "MiB peak memory"):
        parts.append(memory)
    return phrases.listed(parts) or "no figures"


def limits(selection: Selection) -> list[str]:
    """What was asked, in short: `p95 ≤ 50 ms`, `top-1 ≥ 75 %`; the page says elsewhere what is meant."""
    asked, said = selection.requirements, []
    if asked.max_latency_ms is not None:
        said.append(f"p{selection.workload.percentile:g} ≤ {phrases.number(asked.max_latency_ms)} ms")
    said += [
        f"{stage} p{selection.workload.percentile:g} ≤ {phrases.number(limit)} ms"
        for stage, limit in asked.max_stage_latency_ms
    ]
    if asked.min_accuracy is not None:
        said.append(f"{phrases.metric(selection.task)} ≥ {asked.min_accuracy:g} %")
    said += [f"{each.of} ≥ {each.value:g} %" for each in asked.least]
    if asked.max_memory_mib is not None:
        said.append(f"peak memory ≤ {phrases.number(asked.max_memory_mib)} MiB")
    if asked.min_throughput is not None:
        said.append(f"throughput ≥ {phrases.number(asked.min_throughput)} images/s")
    if asked.license != ("any",):
        names = " or ".join(asked.license)
        said.append(f"{'an' if names[:1] in 'aeiou' else 'a'} {names} license")
    return said


def _counts(selection: Selection) -> str:
    models = len({entry.variant.candidate.name for entry in selection.ledger})
    return f"{counted(len(selection.ledger), 'variant')} of {counted(models, 'model')}"


def _won(selection: Selection) -> list[Markup]:
    winner = selection.winner
    assert winner is not None
    asked = phrases.listed(limits(selection))
    name, goal = spelled(winner.variant.name), phrases.goal(selection)
    has, tied = f"has {goal}", sum(entry.tie for entry in selection.ledger)
    if tied and selection.requirements.objective == "accuracy":
        has += f" (in a tie with {counted(tied, 'other')})"
    elif tied:  # its figure need not be the best of them
        has = f"is the most accurate of {tied + 1} that tie for {goal}"
    among = f"among those that meet {asked}" if asked else "of all that have the evidence"
    first = Markup("Of {}, <strong>{}</strong> {} {}.").format(_counts(selection), name, has, among)
    if len(selection.ledger) == 1:
        held = f"meets {asked}" if asked else "has the evidence that a winner needs"
        first = Markup("<strong>{}</strong>, the only variant considered, {}.").format(name, held)
    parity = winner.observation.parity
    kept = "whether its outputs equal the fp32 reference’s is not known here"
    if parity is not None:
        share = f"{parity.agreeing} of {parity.decided} decided photos"
        what = tasks.known(winner.variant.candidate.task).kept
        kept = f"its outputs keep the fp32 reference’s {what} on {share}"
    figures = evidence_in_short(winner, selection)
    return [first, Markup("Its evidence: {}; {}.").format(figures, kept)]


def _nothing(selection: Selection) -> list[Markup]:
    asked = phrases.listed(limits(selection))
    first = Markup("None of {} was shown to meet {}.").format(_counts(selection), asked or "what was asked")
    if selection.leader is not None:
        leader = selection.leader
        text = Markup("The best so far, not proven, is <strong>{}</strong>: {}; {}.")
        figures, lacks = evidence_in_short(leader, selection), phrases.reasons(leader)
        return [first, text.format(spelled(leader.variant.name), figures, options_as_code(lacks.rstrip(".")))]
    nearest = _nearest(selection)[:1]
    if missing := phrases.without_weights(selection):
        text = Markup("Of no model the weights are at hand: {}.")
        return [first, text.format(options_as_code("; ".join(missing).rstrip(".")))]
    if not nearest:
        return [first, Markup("None has all the evidence that a winner needs.")]
    entry = nearest[0]
    text = Markup("The nearest is <strong>{}</strong>: {}").format(
        spelled(entry.variant.name), options_as_code("; ".join(entry.reasons).rstrip("."))
    )
    needs = phrases.admission(entry)
    if needs and "→ needs" not in text:
        weights = " and its weights" if phrases.is_random(entry) else ""
        text += Markup("; it needs {}{}").format(options_as_code(needs), weights)
    return [first, text + Markup(".")]


def _nearest(selection: Selection) -> list[LedgerEntry]:
    by_name = {entry.variant.name: entry for entry in selection.ledger}
    return [by_name[name] for name in selection.nearest if name in by_name]

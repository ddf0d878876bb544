"""One self-contained HTML file about a selection: it works from disk, asks nothing of a network, and
reads without JavaScript. Names and reasons come from outside, so everything is escaped."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from vitrail.report import again, chosen, curves, figure, optimised, phrases
from vitrail.report.decision import decision, notes
from vitrail.report.scene import look, off_the_axes
from vitrail.report.setting import setting
from vitrail.report.typeset import options_as_code, spelled
from vitrail.report.worst import worst_photo
from vitrail.vocabulary import Accuracy, LatencyFigures, LedgerEntry, Selection, Verdict
from vitrail.words import counted

_HERE = Path(__file__).parent
_SIGNS = {"pass": "✓", "fail": "✕", "undecided": "?", "not assessed": "–"}


@dataclass(frozen=True, kw_only=True)
class LedgerRow:
    """A ledger entry as the table shows it. `sort` holds what each column sorts by ("": no figure, last)."""

    entry: LedgerEntry
    details: tuple[str, ...]
    """What tells the variant from others of its architecture, apart from the engine."""
    status: str
    sort: dict[str, str]
    accuracy: Accuracy | None
    latency: LatencyFigures | None
    stages: tuple[tuple[str, float], ...]
    """(stage, ms at the judged percentile) of stages with a limit of their own."""
    chips: tuple[tuple[Verdict, str, str], ...]
    """(verdict, sign, name)"""
    random: bool
    reasons: str
    evidence: tuple[tuple[str, str], ...]


def render(selection: Selection, *, artifact: str | None = None) -> str:
    """The report as HTML text (UTF-8).

    Args:
        artifact: name of the folder beside the report to which the winner (or, where that was asked for, the
            provisional best) is written; None: nothing is.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        number=phrases.number,
        peak=phrases.peak,
        beside=phrases.beside_engine,
        look=look,
        spelled=spelled,
        coded=options_as_code,
    )
    template = environment.get_template("page.html.j2")
    order = {status: i for i, status in enumerate(phrases.PLACES)}
    rows = sorted((_row(entry, selection) for entry in selection.ledger), key=lambda row: _order(row, order))
    return template.render(
        selection=selection,
        css=Markup((_HERE / "page.css").read_text(encoding="utf-8")),
        js=Markup((_HERE / "page.js").read_text(encoding="utf-8")),
        decision=decision(selection),
        notes=notes(selection),
        tiles=chosen.tiles(selection),
        worst=worst_photo(selection),
        use=again.use(artifact, selection.task) if artifact else None,
        figure=figure.both(selection),
        legend=figure.legend(selection),
        outside=off_the_axes(selection),
        rows=rows,
        metric=phrases.metric(selection.task),
        bars=optimised.table(selection),
        brings=optimised.headline(selection),
        task=chosen.task(selection),
        trainings=curves.shown(selection),
        statuses=[(s, sum(row.status == s for row in rows)) for s in phrases.PLACES],
        setting=setting(selection),
        toml=again.requirements_toml(selection.requirements, selection.workload, selection.settings),
        command=again.command(selection.arguments),
    )


# --- the ledger ---------------------------------------------------------------------------------


def _order(row: LedgerRow, order: dict[str, int]) -> tuple[float, ...]:
    accuracy = row.accuracy.value if row.accuracy else 0.0
    return (order[row.status], row.latency is None, not row.entry.would_win, -accuracy)


def _row(entry: LedgerEntry, selection: Selection) -> LedgerRow:
    seen, variant = entry.observation, entry.variant
    latency = phrases.judged_figures(entry, selection.workload)
    status = phrases.place(entry)
    rank = phrases.PLACES.index(status)
    passed = sum(verdict.answer == "pass" for verdict in entry.verdicts)
    sort: dict[str, Any] = {
        "status": rank,
        "model": variant.name,
        "engine": f"{variant.runtime} {variant.precision}",
        "accuracy": seen.accuracy.value if seen.accuracy else "",
        "latency": latency.judged.value if latency else "",
        "throughput": "" if seen.throughput is None else seen.throughput,
        "memory": seen.memory.peak if seen.memory else "",
        "verdicts": passed,
    }
    name, architecture = variant.candidate.name, variant.candidate.architecture
    tag = name[len(architecture) :].lstrip(".") if name.startswith(architecture) else name
    size = f"{variant.image_size} px" if variant.image_size else ""
    implementation = "" if variant.implementation == "timm" else variant.implementation
    return LedgerRow(
        entry=entry,
        details=tuple(part for part in (tag, size, implementation) if part),
        status=status,
        sort={key: str(value) for key, value in sort.items()},
        accuracy=seen.accuracy,
        latency=latency,
        stages=tuple(
            (stage, figures.judged.value)
            for stage, figures in phrases.limited_stages(entry, selection.requirements)
        ),
        chips=tuple(
            (verdict, _SIGNS[verdict.answer], phrases.LABELS.get(verdict.requirement, verdict.requirement))
            for verdict in entry.verdicts
        ),
        random=phrases.is_random(entry),
        reasons=phrases.reasons(entry) or "no reason recorded",
        evidence=tuple(_evidence(entry)),
    )


def _evidence(entry: LedgerEntry) -> list[tuple[str, str]]:
    """Everything that is known of a variant, as (name, text)."""
    seen, candidate = entry.observation, entry.variant.candidate
    weights, found = candidate.weights, []
    found += [(f"latency, {stage}", _percentiles(figures)) for stage, figures in seen.latency.items()]
    if seen.accuracy is not None:
        found.append(("accuracy", _with_source(seen.accuracy)))
    if candidate.accuracy is not None:
        found.append(("accuracy of the weights", _with_source(candidate.accuracy)))
    origin = " ".join(part for part in (weights.source, weights.reference, weights.revision or "") if part)
    at_hand = "" if seen.weights_at_hand else ", not at hand"
    found.append(("weights", f"{origin}{at_hand}; license {weights.license or 'not stated'}"))
    if weights.sha256:
        found.append(("sha256", weights.sha256))
    if candidate.parameters:
        found.append(
            ("size", f"{candidate.parameters / 1e6:.3g} M parameters, {candidate.macs / 1e9:.3g} GMACs")
        )
    if seen.memory is not None:
        parts = {
            "peak": seen.memory.peak,
            "steady": seen.memory.steady,
            "above baseline": seen.memory.above_baseline,
        }
        said = [f"{name} {phrases.number(mib)}" for name, mib in parts.items() if mib is not None]
        found.append(("memory", f"{', '.join(said)} MiB{phrases.beside_engine(entry)}"))
    if seen.quality is not None and (beside := phrases.beside(seen.quality)):
        found.append((f"{seen.quality.split} images", beside))
    if seen.parity is not None:
        p = seen.parity
        numbers = f"cosine {p.cosine:.6g}, relative error {p.relative_error:.2g}{phrases.parity_figures(p)}"
        agree = f"{p.agreeing} of {p.decided} decided photos agree ({counted(p.photos, 'photo')})"
        loss = "" if p.loss is None else f", loss {p.loss:.2g} points"
        found.append(("parity", f"{p.answer}: {numbers}, {agree}{loss}. {p.reason}"))
        if p.worst:
            found.append(("differs most on", p.worst))
    if seen.rewriting is not None:
        found += phrases.rewritten(seen.rewriting)
    facts = seen.facts or (seen.measurement.facts if seen.measurement else None)
    if facts is not None:
        specs = [spec for graph in facts.graphs for spec in graph.inputs]
        shape = ", ".join("×".join(map(str, spec.shape)) for spec in specs)
        details = "".join(f", {name} {value}" for name, value in facts.details)
        head = f"{facts.runtime} {facts.version}, {facts.precision}"
        found.append(("engine says", f"{head}, {counted(facts.threads, 'thread')}, input {shape}{details}"))
    if entry.variant.settings:
        found.append(("settings", ", ".join(f"{name} {value}" for name, value in entry.variant.settings)))
    environment = seen.environment or (seen.measurement.environment if seen.measurement else None)
    if environment is not None:
        found.append(("taken on", f"hardware {environment.hardware}, photos {environment.photos}"))
    flags = seen.flags or (seen.measurement.flags if seen.measurement else ())
    if flags:
        found.append(("doubts", "; ".join(flags)))
    if candidate.note:
        found.append(("note", candidate.note))
    return found


def _percentiles(figures: LatencyFigures) -> str:
    spread = ", ".join(f"{name} {phrases.number(getattr(figures, name))}" for name in ("p50", "p95", "p99"))
    calls = counted(figures.calls, "call") if figures.calls else "declared"
    return f"{spread} ms; judged {phrases.milliseconds(figures)}; {calls}"


def _with_source(figure: Accuracy) -> str:
    return phrases.one_accuracy(figure) + (f"; {figure.source}" if figure.source else "")

"""One self-contained HTML file about a selection: it works from disk, asks nothing of a network, and
reads without JavaScript. Names and reasons come from outside, so everything is escaped."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from vitrail.report import chosen, curves, figure, phrases
from vitrail.vocabulary import (
    Accuracy,
    LatencyFigures,
    LedgerEntry,
    Requirements,
    Selection,
    Verdict,
    Workload,
)

_HERE = Path(__file__).parent
_SIGNS = {"pass": "✓", "fail": "✕", "undecided": "?", "not assessed": "–"}


@dataclass(frozen=True, kw_only=True)
class Row:
    """A ledger entry as the table shows it. `sort` holds what each column sorts by ("": no figure, last)."""

    entry: LedgerEntry
    details: tuple[str, ...]
    """What tells the variant from others of its architecture, apart from the engine."""
    status: str
    sort: dict[str, str]
    accuracy: Accuracy | None
    latency: LatencyFigures | None
    chips: tuple[tuple[Verdict, str, str], ...]
    """(verdict, sign, name)"""
    random: bool
    reasons: str
    evidence: tuple[tuple[str, str], ...]


def render(selection: Selection) -> str:
    """The report as HTML text (UTF-8)."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(number=phrases.number, toml=requirements_toml, wbr=Markup("_<wbr>"))
    template = environment.get_template("page.html.j2")
    order = {status: i for i, status in enumerate(phrases.STATUSES)}
    rows = sorted((_row(entry, selection) for entry in selection.ledger), key=lambda row: _order(row, order))
    return template.render(
        selection=selection,
        css=Markup((_HERE / "page.css").read_text(encoding="utf-8")),
        js=Markup((_HERE / "page.js").read_text(encoding="utf-8")),
        decision=decision(selection),
        tiles=chosen.tiles(selection),
        figure=figure.scatter(selection),
        legend=_legend(selection),
        rows=rows,
        task=chosen.task(selection),
        trainings=curves.shown(selection),
        statuses=[(s, sum(row.status == s for row in rows)) for s in phrases.STATUSES],
        hardware=_facts(selection.hardware),
        method=_facts(selection.method),
    )


# --- the decision -------------------------------------------------------------------------------


def decision(selection: Selection) -> Markup:
    """One paragraph in plain language: what was asked, what won on which evidence, and the doubts."""
    asked = phrases.listed(phrases.limits(selection.requirements, selection.workload))
    models = phrases.counted(len({e.variant.candidate.name for e in selection.ledger}), "model")
    variants = phrases.counted(len(selection.ledger), "variant")
    live = phrases.measured(selection)
    recorded = any(entry.observation.measurement is None for entry in live)
    were = "have recorded figures" if recorded else "were measured"
    if len(live) == 1:
        were = "has recorded figures" if recorded else "was measured"
    sentences = [
        Markup("You asked for {}{}.").format(
            phrases.OBJECTIVES[selection.requirements.objective],
            f" among variants with {asked}" if asked else "",
        ),
        Markup("Of {} in {}, {} {}.").format(models, variants, len(live), were),
        *(_won(selection) if selection.winner else _nothing(selection)),
    ]
    for entry in selection.ledger:
        if entry.would_win:
            text = "<strong>{}</strong> would win if its weights were at hand: {}."
            sentences.append(
                Markup(text).format(entry.variant.name, _evidence_in_short(entry, selection.workload))
            )
    sentences += [Markup("Note: {}.").format(note.rstrip(".")) for note in selection.notes]
    return Markup(" ").join(sentences)


def _won(selection: Selection) -> list[Markup]:
    winner = selection.winner
    assert winner is not None
    won = Markup("<strong>{}</strong> wins: it holds every limit, with {}.")
    said = [won.format(winner.variant.name, _evidence_in_short(winner, selection.workload))]
    parity = winner.observation.parity
    if parity is None:
        said.append(Markup("Whether its outputs equal the fp32 reference is not known here."))
    else:
        text = "Its outputs keep the fp32 reference’s answer on {} of {} decided photos."
        said.append(Markup(text).format(parity.agreeing, parity.decided))
    return said


def _nothing(selection: Selection) -> list[Markup]:
    said = [Markup("<strong>Nothing fits:</strong> no variant was shown to hold every limit.")]
    by_name = {entry.variant.name: entry for entry in selection.ledger}
    nearest = [by_name[name] for name in selection.nearest if name in by_name]
    if nearest:
        text = "The nearest is <strong>{}</strong>: {}."
        said.append(Markup(text).format(nearest[0].variant.name, "; ".join(nearest[0].reasons)))
    for i, entry in enumerate(nearest[:3]):
        if needs := phrases.admission(entry):
            what = "it" if i == 0 else Markup("<strong>{}</strong>").format(entry.variant.name)
            weights = ", with its weights at hand," if phrases.is_random(entry) else ""
            said.append(Markup("<code>{}</code>{} would admit {}.").format(needs, weights, what))
    return said


def _evidence_in_short(entry: LedgerEntry, workload: Workload) -> str:
    figures, memory = phrases.judged_figures(entry, workload), entry.observation.memory
    parts = []
    if top1 := phrases.accuracy(entry):
        parts.append(f"top-1 {top1}")
    if figures is not None:
        calls = f"from {figures.calls} calls" if figures.calls else "as declared"
        random = ", with random weights" if phrases.is_random(entry) else ""
        parts.append(f"{phrases.milliseconds(figures)} {calls}{random}")
    if memory is not None:
        parts.append(f"{phrases.number(memory.peak)} MiB peak memory")
    return phrases.listed(parts) or "no figures"


# --- the ledger ---------------------------------------------------------------------------------


def _order(row: Row, order: dict[str, int]) -> tuple[float, ...]:
    accuracy = row.accuracy.value if row.accuracy else 0.0
    return (order[row.status], row.latency is None, not row.entry.would_win, -accuracy)


def _row(entry: LedgerEntry, selection: Selection) -> Row:
    seen, variant = entry.observation, entry.variant
    latency = phrases.judged_figures(entry, selection.workload)
    rank = phrases.STATUSES.index(entry.status)
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
    return Row(
        entry=entry,
        details=tuple(part for part in (tag, size, implementation) if part),
        status=entry.status,
        sort={key: str(value) for key, value in sort.items()},
        accuracy=seen.accuracy,
        latency=latency,
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
    for name, figures in (("request", seen.request), ("model", seen.model)):
        if figures is not None:
            found.append((f"latency, {name}", _percentiles(figures)))
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
        found.append(("memory", ", ".join(said) + " MiB"))
    if seen.classification is not None:
        own = seen.classification
        found.append((f"{own.split} images", phrases.task(own)))
    if seen.parity is not None:
        p = seen.parity
        numbers = f"cosine {p.cosine:.6g}, relative error {p.relative_error:.2g}"
        agree = f"{p.agreeing} of {p.decided} decided photos agree ({p.photos} photos)"
        loss = "" if p.loss is None else f", loss {p.loss:.2g} points"
        found.append(("parity", f"{p.answer}: {numbers}, {agree}{loss}. {p.reason}"))
    facts = seen.facts or (seen.measurement.facts if seen.measurement else None)
    if facts is not None:
        shape = "×".join(str(side) for side in facts.input_shape)
        details = "".join(f", {name} {value}" for name, value in facts.details)
        head = f"{facts.runtime} {facts.version}, {facts.precision}"
        found.append(
            ("engine says", f"{head}, {phrases.counted(facts.threads, 'thread')}, input {shape}{details}")
        )
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
    calls = f"{figures.calls} calls" if figures.calls else "declared"
    return f"{spread} ms; judged {phrases.milliseconds(figures)}; {calls}"


def _with_source(figure: Accuracy) -> str:
    return phrases.one_accuracy(figure) + (f"; {figure.source}" if figure.source else "")


def _legend(selection: Selection) -> list[tuple[str, str, Markup]]:
    """(class of the mark, words, its SVG element in a 16 × 16 box) for what the figure shows."""
    entries = phrases.measured(selection)
    words = {"selected": "selected", "meets": "meets all", "undecided": "undecided", "rejected": "rejected",
             "reference": "reference"}  # fmt: skip
    found = []
    for status, text in words.items():
        if any(e.status == status and not phrases.is_random(e) for e in entries):
            found.append((status, text, figure.marker("circle", 8, 8, 5)))
    if any(phrases.is_random(e) for e in entries):
        found.append(("rejected random", "random weights", figure.marker("circle", 8, 8, 5)))
    if any(e.would_win for e in entries):
        found.append(("would random", "would win with its weights", figure.marker("circle", 8, 8, 5)))
    for runtime, shape in figure.shapes(selection).items():
        found.append(("shape", runtime or "runtime not stated", figure.marker(shape, 8, 8, 5)))
    return found


# --- facts and the requirement set --------------------------------------------------------------


def _facts(facts: dict[str, object]) -> list[tuple[str, str]]:
    """A nested object as (name, text) pairs, two levels deep, without what is not known."""
    found = []
    for key, value in facts.items():
        inner = value.items() if isinstance(value, dict) else [("", value)]
        for name, item in inner:
            if (text := _plain(item)) != "":
                found.append((f"{key} {name}".replace("_", " ").strip(), text))
    return found


def _plain(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        pairs = ((str(key).replace("_", " "), _plain(item)) for key, item in value.items())
        return ", ".join(f"{key} {text}" for key, text in pairs if text)
    if isinstance(value, (list, tuple)):
        joint = "; " if any(isinstance(item, dict) for item in value) else ", "
        return joint.join(_plain(item) for item in value) or "none"
    return str(value)


def requirements_toml(requirements: Requirements, workload: Workload) -> str:
    """The question as a file for `vitrail select FILE`; a limit or option that was not given is left out."""
    lines: list[tuple[str, str | int | None]] = [
        ("max-latency", _unit(requirements.max_latency_ms, "ms")),
        ("min-accuracy", _unit(requirements.min_accuracy, "%")),
        ("data", workload.data),
        ("max-memory", _unit(requirements.max_memory_mib, "MiB")),
        ("min-throughput", _unit(requirements.min_throughput, "/s")),
        ("objective", requirements.objective),
        ("percentile", _unit(workload.percentile, "")),
        ("latency-scope", workload.latency_scope),
        ("batch-size", workload.batch_size),
        ("threads", workload.threads),
        ("image-size", workload.image_size),
        ("device", workload.device),
        ("images", workload.images),
    ]
    text = [f"{key} = {_toml(value)}" for key, value in lines if value is not None]
    if requirements.min_recall:
        recalls = (_toml(f"{label}={least:g}") for label, least in requirements.min_recall)
        text.append(f"min-recall = [{', '.join(recalls)}]")
    text.append(f"license = [{', '.join(_toml(name) for name in requirements.license)}]")
    return "\n".join(text) + "\n"


def _unit(value: float | None, unit: str) -> str | None:
    return None if value is None else f"{int(value) if value == int(value) else value!r}{unit}"


def _toml(value: str | int) -> str:
    if isinstance(value, int):
        return str(value)
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    plain = "".join(c if c >= " " and c != "\x7f" else f"\\u{ord(c):04x}" for c in escaped)
    return f'"{plain}"'

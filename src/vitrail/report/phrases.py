"""The words and numbers that the terminal, the HTML report and the notebook share."""

from __future__ import annotations

import math
from collections import Counter

from vitrail import tasks
from vitrail.runtimes import RUNTIMES
from vitrail.vocabulary import (
    LEAST,
    STAGES,
    Accuracy,
    Figure,
    LatencyFigures,
    LedgerEntry,
    Parity,
    Quality,
    Requirements,
    Rewriting,
    Selection,
    Verdict,
    Workload,
)
from vitrail.words import NOT_AT_HAND, counted

STATUSES = ("selected", "meets", "undecided", "not measured", "rejected", "reference")
NO_WEIGHTS = "no weights at hand"
PLACES = ("selected", "meets", "undecided", NO_WEIGHTS, "not measured", "rejected", "reference")
"""The statuses as a ledger shows them: what no evidence helps, only weights, stands apart."""
LABELS = {
    "max_latency": "latency",
    **{f"max_latency.{stage}": f"latency of {stage}" for stage in STAGES},
    "min_accuracy": "accuracy",
    **LEAST,
    "max_memory": "memory",
    "min_throughput": "throughput",
    "license": "license",
    "parity": "parity",
}
OBJECTIVES = {
    "accuracy": "the highest {metric}",
    "latency": "the lowest latency",
    "throughput": "the highest throughput",
    "memory": "the least memory",
}
_FAILED = {
    "max_latency": "over the latency limit",
    **{f"max_latency.{stage}": f"over the latency limit of {stage}" for stage in STAGES},
    "min_accuracy": "below the accuracy limit",
    **{name: f"below a {metric} limit" for name, metric in LEAST.items()},
    "max_memory": "over the memory limit",
    "min_throughput": "below the throughput limit",
    "license": "license not accepted",
    "parity": "outputs differ from the reference",
}
_RULED_OUT = {
    "latency": "hardly fast enough",
    "throughput": "hardly enough images/s",
    "memory": "its weights alone need more memory",
    "accuracy": "not accurate enough",
    "license": "license not accepted",
}
"""What facts said of a variant that was not measured, by the first word of the reason."""


def number(value: float) -> str:
    """Three significant digits without an exponent: 9.1, 41.9, 104, 1230."""
    if not math.isfinite(value):
        return str(value)
    if value == 0 or abs(value) < 0.001:
        return f"{value:.1g}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def peak(entry: LedgerEntry, unit: str = "") -> str:
    """`259`, with a unit `259 MiB`, of a process with more in it `259 MiB with PyTorch`; "": not known."""
    memory = entry.observation.memory
    return "" if memory is None else f"{number(memory.peak)}{unit and ' ' + unit}{beside_engine(entry)}"


def beside_engine(entry: LedgerEntry) -> str:
    """What a figure of memory is of, unless it is the engine's process: ` with PyTorch`, ` on the GPU`."""
    if entry.observation.memory is not None and entry.observation.memory.process is not None:
        return " on the GPU"
    engine = RUNTIMES.get(entry.variant.runtime)
    return f" with {engine.loads}" if engine is not None and engine.loads else ""


def milliseconds(figures: LatencyFigures) -> str:
    """`p95 9.1 ms [8.8, 9.4]` at the judged percentile."""
    judged = figures.judged
    text = f"p{judged.percentile:g} {number(judged.value)} ms"
    if judged.interval is not None:
        text += f" [{number(judged.interval[0])}, {number(judged.interval[1])}]"
    return text


def judged_figures(entry: LedgerEntry, workload: Workload) -> LatencyFigures | None:
    """The latency in the scope that is judged."""
    return entry.observation.latency.get(workload.latency_scope)


def accuracy(entry: LedgerEntry) -> str | None:
    """`76.4 estimated (76.9 published)`: the variant's, and its weights' if that is of another kind.

    Two measured figures of one head differ by its precision alone: the ledger's evidence has the other one.
    """
    own, weights = entry.observation.accuracy, entry.variant.candidate.accuracy
    if own is None:
        return None
    text = one_accuracy(own)
    if weights is not None and weights.provenance != own.provenance:
        text += f" ({weights.value:.4g} {weights.provenance})"
    return text


def named_accuracy(entry: LedgerEntry) -> str | None:
    """`top-1 77.5 published`: with the name that the task gives it."""
    said = accuracy(entry)
    return said and f"{metric(entry.variant.candidate.task)} {said}"


def one_accuracy(figure: Accuracy) -> str:
    """`84.2 measured on 500 images [82.9, 85.4]`."""
    text = f"{figure.value:.4g} {figure.provenance}"
    if figure.images is not None:
        text += f" on {counted(figure.images, 'image')}"
    if figure.interval is not None:
        text += f" [{figure.interval[0]:.4g}, {figure.interval[1]:.4g}]"
    return text


def is_random(entry: LedgerEntry) -> bool:
    """Timed with random weights."""
    seen = entry.observation
    return seen.random_weights or (seen.measurement is not None and seen.measurement.random_weights)


def parity_figures(parity: Parity) -> str:
    """What a task says of a comparison beside its numbers: `, least IoU … 97.1 %`; "" where nothing is."""
    return "".join(f", {each.metric} {each.value:.4g} {each.unit}" for each in parity.figures)


def metric(task: str) -> str:
    """What an accuracy of this task is, e.g. `top-1`."""
    return tasks.known(task).metric


def metric_name(task: str) -> str:
    """The same in full, e.g. `top-1 accuracy`."""
    return tasks.known(task).metric_name


def load(workload: Workload) -> str:
    """How much is asked at once, e.g. `batch 1` or `batch 1 from 8 clients`."""
    clients = f" from {workload.concurrency} clients" if workload.concurrency > 1 else ""
    return f"batch {workload.batch_size}{clients}"


def scope(workload: Workload) -> str:
    """What was timed in short, e.g. `model`, `request` or `request, 8 clients`."""
    clients = f", {workload.concurrency} clients" if workload.concurrency > 1 else ""
    return f"{workload.latency_scope}{clients}"


def limited_stages(entry: LedgerEntry, requirements: Requirements) -> list[tuple[str, LatencyFigures]]:
    """(stage, its latency) of the stages with a limit of their own, as far as they were timed."""
    seen = entry.observation.latency
    return [(stage, seen[stage]) for stage, _ in requirements.max_stage_latency_ms if stage in seen]


def judged_stage(workload: Workload, task: str) -> str:
    """What was timed, e.g. `a whole request (decode, preprocess, run, top-k)`."""
    whole = workload.latency_scope == "request"
    return f"a whole request ({tasks.known(task).request})" if whole else "the model alone"


def goal(selection: Selection) -> str:
    """What was optimised, e.g. `the lowest latency`."""
    return OBJECTIVES[selection.requirements.objective].format(metric=metric_name(selection.task))


def limits(requirements: Requirements, workload: Workload, task: str) -> list[str]:
    """The limits as phrases, for `among the variants with …`."""
    said = []
    if requirements.max_latency_ms is not None:
        said.append(
            f"p{workload.percentile:g} latency of {judged_stage(workload, task)} of at most "
            f"{number(requirements.max_latency_ms)} ms at {load(workload)}"
        )
    said += [
        f"p{workload.percentile:g} latency of {stage} ({STAGES[stage]}) of at most {number(limit)} ms"
        for stage, limit in requirements.max_stage_latency_ms
    ]
    if requirements.min_accuracy is not None:
        said.append(f"{metric_name(task)} of at least {requirements.min_accuracy:g} %")
    said += [f"{asked.of} of at least {asked.value:g} %" for asked in requirements.least]
    if requirements.max_memory_mib is not None:
        said.append(f"peak memory of at most {number(requirements.max_memory_mib)} MiB")
    if requirements.min_throughput is not None:
        said.append(f"throughput of at least {number(requirements.min_throughput)} images/s")
    if requirements.license != ("any",):
        names = " or ".join(requirements.license)
        said.append(f"{'an' if names[:1] in 'aeiou' else 'a'} {names} license of the weights")
    return said


def tested(selection: Selection) -> str | None:
    """`94.2 % of 359 untouched images [91.2, 96.1], expected 91.6 to 97.8`; None: there was no test."""
    test = selection.test
    if test is None:
        return None
    text = headline(test.main, "untouched image")
    if selection.expected_test is not None:
        text += ", expected {:.1f} to {:.1f}".format(*selection.expected_test)
    return text


def headline(main: Figure, noun: str) -> str:
    """`94.2 % of 359 untouched images [91.2, 96.1]`; what is no share of images is named."""
    value = f"{main.value:.1f} {main.unit}"
    value = f"{value} of" if main.share else f"{main.metric} {value} on"
    text = f"{value} {counted(main.images, noun)}"
    return f"{text} [{main.interval[0]:.1f}, {main.interval[1]:.1f}]" if main.interval else text


def beside(seen: Quality) -> str:
    """`balanced accuracy 93.9 %, weakest recall 8 83.3 %, calibration error 3.0 points`."""
    said: dict[str, str] = {}
    for figure in sorted(seen.figures[1:], key=lambda figure: figure.value):  # of classes, the weakest
        name = f"weakest {figure.metric} {figure.label}" if figure.label else figure.metric
        said.setdefault(figure.metric, f"{name} {figure.value:.1f} {figure.unit}")
    return ", ".join(said[name] for name in dict.fromkeys(figure.metric for figure in seen.figures[1:]))


def listed(parts: list[str]) -> str:
    """`a, b and c`."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}" if parts else ""


def failing(entry: LedgerEntry) -> list[Verdict]:
    """The verdicts that keep the variant from winning."""
    return [verdict for verdict in entry.verdicts if verdict.answer != "pass"]


def admission(entry: LedgerEntry) -> str | None:
    """The options that the variant needs at least, each laxer than what was asked; None: no verdict fails,
    or no option helps. What is undecided or was never taken needs evidence, which no option stands for."""
    options = [verdict.admit for verdict in entry.verdicts if verdict.answer == "fail"]
    if not options or any(option is None for option in options):
        return None
    return " ".join(dict.fromkeys(option for option in options if option is not None))


def reasons(entry: LedgerEntry) -> str:
    """Why the variant has its place, and what would admit it (a judge's reasons say so themselves)."""
    said = "; ".join(entry.reasons)
    needs = admission(entry) if entry.status == "rejected" else None
    if needs is None or "→ needs" in said:
        return said
    return f"{said} → needs {needs}{' and its weights' if is_random(entry) else ''}"


def doubts(entry: LedgerEntry) -> tuple[str, ...]:
    """What casts doubt on the variant's figures: noise while it was timed, drift, a number without calls."""
    seen = entry.observation
    return seen.flags or (seen.measurement.flags if seen.measurement else ())


def measured(selection: Selection) -> list[LedgerEntry]:
    """The entries with a latency of any stage."""
    return [e for e in selection.ledger if e.observation.latency]


def shortfall(entry: LedgerEntry) -> float:
    """How far the variant misses its limits, as a sum of fractions of each limit; inf: cannot be said."""
    total = 0.0
    for verdict in failing(entry):
        if verdict.answer == "undecided":
            continue
        if verdict.margin is None or not isinstance(verdict.limit, (int, float)) or verdict.limit <= 0:
            return math.inf
        total += max(0.0, -verdict.margin / verdict.limit)
    return total


def rivals(selection: Selection, count: int = 5) -> list[LedgerEntry]:
    """The closest losers, one variant a candidate: what meets all first, then what misses by the least.

    Ties are all there: they are no losers, whichever candidate they are of.
    """
    rank = {"meets": 0, "undecided": 1, "rejected": 2}
    lost = [
        entry
        for entry in measured(selection)
        if entry.status in rank and not entry.would_win and (not is_random(entry) or _fails(entry))
    ]

    def closeness(entry: LedgerEntry) -> tuple[float, ...]:
        top1 = entry.observation.accuracy
        latency = judged_figures(entry, selection.workload)
        return (
            rank[entry.status],
            0.0 if entry.status == "meets" else shortfall(entry),
            -(top1.value if top1 else 0.0),
            latency.judged.value if latency else math.inf,
        )

    winner = selection.winner
    shown: dict[str, LedgerEntry] = {}
    for entry in sorted(lost, key=closeness):
        if entry.tie or winner is None or entry.variant.candidate.name != winner.variant.candidate.name:
            shown.setdefault(entry.variant.name if entry.tie else entry.variant.candidate.name, entry)
    return sorted(shown.values(), key=lambda entry: not entry.tie)[:count]


def few(selection: Selection, count: int = 6) -> list[LedgerEntry]:
    """The few variants that matter: the winner or what leads, what would win, ties, the closest losers."""
    first = [each for each in (selection.winner, selection.leader) if each is not None]
    first += [entry for entry in selection.ledger if entry.would_win]
    if selection.winner is not None:
        rest = rivals(selection, count)
    else:
        by_name = {entry.variant.name: entry for entry in selection.ledger}
        rest = [by_name[name] for name in selection.nearest if name in by_name]
        # What was never measured is near by published facts alone: counted, unless there is nothing else.
        seen = [entry for entry in rest if entry.status != "not measured"]
        rest = seen or ([] if first else rest)
        # Without limits nothing is near: what is missing is evidence, so that is what is said.
        rest = rest or [entry for entry in selection.ledger if entry.status == "undecided"]
    named = {entry.variant.name for entry in first}
    return [*first, *(entry for entry in rest if entry.variant.name not in named)][:count]


def word(entry: LedgerEntry) -> str:
    """One word for the variant's place: its status, unless it ties, would win, or only lacks its weights."""
    return "tie" if entry.tie else "would win" if entry.would_win else place(entry)


def place(entry: LedgerEntry) -> str:
    """The entry's status, in which those that no evidence helps, only weights, stand apart."""
    open_ = entry.status in ("undecided", "not measured")
    return NO_WEIGHTS if open_ and lacks_weights(entry) else entry.status


def lacks_weights(entry: LedgerEntry) -> bool:
    """Whether its weights were looked for and are not at hand, and no other fact had ruled it out."""
    seen = entry.observation
    if entry.status == "not measured":
        return not seen.weights_at_hand and (seen.pruned or "").startswith("its weights")
    return not seen.weights_at_hand or is_random(entry)


def without_weights(selection: Selection) -> list[str]:
    """Where weights are all that is missing: what to do for them, from the notes. Else nothing."""
    considered = [entry for entry in selection.ledger if entry.status != "reference"]
    seen = [entry for entry in considered if entry.observation.weights_at_hand and measured_or_failed(entry)]
    if selection.winner or selection.leader or seen or not any(map(lacks_weights, considered)):
        return []
    return [
        note.removeprefix(f"{NOT_AT_HAND} for ") for note in selection.notes if note.startswith(NOT_AT_HAND)
    ]


def measured_or_failed(entry: LedgerEntry) -> bool:
    """Whether anything was tried with the variant."""
    seen = entry.observation
    return bool(seen.latency or seen.failure)


def _fails(entry: LedgerEntry) -> bool:
    return any(verdict.answer == "fail" for verdict in entry.verdicts)


def others(selection: Selection, shown: list[LedgerEntry]) -> list[tuple[str, int]]:
    """(reason, how many) for all that is neither the winner nor in `shown`, most frequent first."""
    names = {entry.variant.name for entry in shown} | {selection.selected}
    groups = Counter(_group(entry) for entry in selection.ledger if entry.variant.name not in names)
    return groups.most_common()


def _group(entry: LedgerEntry) -> str:
    seen = entry.observation
    if entry.status == "reference":
        return "timed as a reference only"
    if seen.failure is not None:
        return "could not be exported or run"
    if entry.status == "not measured":
        return NO_WEIGHTS if lacks_weights(entry) else _why_not_measured(seen.pruned)
    for verdict in entry.verdicts:
        if verdict.answer == "fail":
            return _FAILED.get(verdict.requirement, f"{verdict.requirement} not met")
    if lacks_weights(entry):
        return NO_WEIGHTS
    return {"meets": "meeting all, but not the best"}.get(entry.status, entry.status)


def _why_not_measured(pruned: str | None) -> str:
    if pruned is None:
        return "not measured"
    again = pruned.removeprefix("never measured: ")
    kind = again.partition(" (" if again != pruned else ":")[0]
    return f"{'never' if again != pruned else 'not'} measured: {_RULED_OUT.get(kind, kind)}"


def rewritten(what: Rewriting) -> list[tuple[str, str]]:
    """What was done to a graph, as (name, text)."""
    found = []
    if what.places:
        places = ", ".join(f"{name} ({counted(count, 'place')})" for name, count in what.places)
        found.append(("passes", places))
    if what.calibration is not None:
        said = f"calibrated on {counted(what.calibration_photos, 'photo')}, {what.calibrated_on}"
        if what.kept or what.tried:
            said += f"; {counted(len(what.kept), 'layer')} kept in higher precision"
        if what.tried:
            tried = ", ".join(f"{layers}: {drop:.2g}" for layers, drop in what.tried)
            said += f" (points lost with so many: {tried})"
        found.append(("int8", said))
    elif what.kept:
        found.append(("fp16", f"{counted(len(what.kept), 'node')} kept in fp32"))
    return found

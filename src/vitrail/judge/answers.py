"""Observation x Requirements -> one Verdict per requirement. A missing figure is never a pass."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vitrail import stats, tasks
from vitrail.catalog.licenses import admits
from vitrail.judge.evidence import decided_photos_agree, stages_of, throughput
from vitrail.measure import latency
from vitrail.vocabulary import (
    LEAST,
    STAGES,
    Answer,
    Block,
    LatencyFigures,
    Least,
    Observation,
    Parity,
    Requirements,
    Stage,
    Verdict,
    Workload,
)
from vitrail.words import counted

MORE = "raise --budget for more calls"
QUIETER = "ask again when the machine is quiet"
ADVICE = (MORE, QUIETER)
"""Advice for `undecided`: what more time would settle, and what it would not."""

MANY_BEYOND = 8
"""With this many calls expected beyond the percentile, a clear case of independent calls is decided."""
LAUNCHES_DIFFER = 1.05
"""Ratio of the slowest launch's median to the fastest's from which the launches are named as the cause."""


def verdicts(observation: Observation, requirements: Requirements, workload: Workload) -> tuple[Verdict, ...]:
    """License, the requested limits, and parity, each with its margin and what would admit the variant."""
    answers = [
        _license(observation, requirements),
        _accuracy(observation, requirements),
        *(_least(observation, asked) for asked in requirements.least),
        *_latencies(observation, requirements, workload),
        _memory(observation, requirements),
        _throughput(observation, requirements, workload),
        _parity(observation),
    ]
    return tuple(verdict for verdict in answers if verdict is not None)


def latency_figures(
    observation: Observation, workload: Workload, stage: Stage | None = None
) -> LatencyFigures | None:
    """Figures of a stage (None: the judged scope) at the workload's percentile; None when not known."""
    stage = stage or workload.latency_scope
    measurement = observation.measurement
    if measurement is not None and _other_load(observation, workload) is not None:
        return None
    figures = observation.latency.get(stage)
    if figures is not None and figures.judged.percentile == workload.percentile:
        return figures
    return latency_at(observation, stage, workload.percentile)


def latency_at(observation: Observation, stage: Stage, percentile: float) -> LatencyFigures | None:
    """One stage's figures at any percentile, from the calls; None where they were not kept."""
    measurement = observation.measurement
    if measurement is None:
        return None
    return latency.figures(measurement.blocks, stage, percentile, stages_of(observation.variant))


def throughput_figure(observation: Observation, workload: Workload) -> float | None:
    """Images/s of the judged scope; None when not known for this workload."""
    measurement = observation.measurement
    if measurement is None:
        return observation.throughput
    if _other_load(observation, workload) is not None:
        return None
    return throughput(measurement.blocks, workload.latency_scope, workload.batch_size)


def _other_load(observation: Observation, workload: Workload) -> str | None:
    """How the measurement's load differs from the requested one, or None."""
    assert observation.measurement is not None
    seen = observation.measurement.workload
    for name in ("batch_size", "concurrency", "threads", "device"):
        there, asked = getattr(seen, name), getattr(workload, name)
        # threads None means all usable cores, which the measurement resolved to a number.
        if asked is not None and there is not None and there != asked:
            return f"measured with {name} {there}, not the requested {asked}"
    return None


# --- one requirement each -------------------------------------------------------------------------


def _license(observation: Observation, requirements: Requirements) -> Verdict:
    held = observation.variant.candidate.weights.license
    asked = " ".join(requirements.license)
    if not held and "any" not in requirements.license:
        return _missing("license", asked, "the license is not stated")
    admitted, reason = admits(requirements.license, held)
    laxer = "any" if held == "unknown" else ",".join((*requirements.license, held))
    option = None if admitted else f"--license {shlex.quote(laxer)}"
    answer: Answer = "pass" if admitted else "fail"
    return Verdict(
        requirement="license",
        answer=answer,
        observed=held,
        limit=asked,
        margin=None,
        reason=reason,
        admit=option,
    )


def _accuracy(observation: Observation, requirements: Requirements) -> Verdict | None:
    least = requirements.min_accuracy
    if least is None:
        return None
    accuracy = observation.accuracy
    if accuracy is None:
        variant = observation.variant
        other_size = variant.image_size != variant.candidate.preprocess.image_size
        why = f"no accuracy is known at {variant.image_size} px" if other_size else "none can be claimed"
        if not other_size and observation.parity is None and variant.candidate.accuracy is not None:
            why = f"what {variant.precision or 'its precision'} loses is not known before parity"
        return _missing("min_accuracy", least, _unmeasured(observation) or why)
    margin = accuracy.value - least
    metric = tasks.known(observation.variant.candidate.task).metric
    text = f"{metric} {number(accuracy.value)} % {accuracy.provenance}"
    return _numeric(
        "min_accuracy",
        "pass" if margin >= 0 else "fail",
        accuracy.value,
        least,
        margin,
        f"{text}: {_room(margin, '', 'point')}",
        _option("--min-accuracy", accuracy.value, least, up=False),
    )


def _least(observation: Observation, asked: Least) -> Verdict:
    """A limit of a figure on the user's labelled images."""
    seen = observation.quality.figure(asked.metric, asked.label) if observation.quality else None
    name = f"{asked.label}=" if asked.label else ""
    if seen is None:
        why = _unmeasured(observation) or f"no {asked.of} was measured"
        return _missing(asked.requirement, f"{name}{asked.value:g}", why)
    margin = seen.value - asked.value
    text = f"{asked.of} {number(seen.value)} % of {counted(seen.images, 'image')}"
    option = _option(asked.option, seen.value, asked.value, up=False)
    return _numeric(
        asked.requirement,
        "pass" if margin >= 0 else "fail",
        seen.value,
        asked.value,
        margin,
        f"{text}: {_room(margin, '', 'point')}",
        option and option.replace(" ", f" {shlex.quote(asked.label)}=" if asked.label else " "),
    )


def _latencies(observation: Observation, requirements: Requirements, workload: Workload) -> list[Verdict]:
    """A verdict for each limit; `admit` names all of them, with those that fail as lax as it takes."""
    limits = requirements.latency_limits(workload.latency_scope)
    found = [_latency(observation, stage, limit, workload) for stage, limit in limits]
    failing = [verdict for verdict, _ in found if verdict.answer == "fail"]
    admitted = [
        f"{stage}={text}" if stage in STAGES else text
        for (stage, limit), (verdict, needed) in zip(limits, found, strict=True)
        for text in [f"{limit:.12g}ms" if verdict.answer != "fail" else needed or ""]
    ]
    helps = failing and all(needed for verdict, needed in found if verdict.answer == "fail")
    option = f"--max-latency {','.join(admitted)}" if helps else None
    return [replace(v, admit=option) if v.answer == "fail" else v for v, _ in found]


def _latency(
    observation: Observation, stage: Stage, limit: float, workload: Workload
) -> tuple[Verdict, str | None]:
    """The verdict on one limit, and the least that would admit the variant, e.g. `62ms`."""
    name, requirement = f"p{workload.percentile:g}", "max_latency"
    if stage in STAGES:
        name, requirement = f"{stage} {name}", f"max_latency.{stage}"
    figures = latency_figures(observation, workload, stage)
    if figures is None:
        return _missing(requirement, limit, _why_no_latency(observation, workload, stage)), None
    value, interval = figures.judged.value, figures.judged.interval
    answer = _latency_answer(observation, figures, stage, limit, workload)
    margin = limit - value
    shown = f" [{number(interval[0])}, {number(interval[1])}]" if interval else ""
    reason = f"{name} {number(value)}{shown} ms: {_room(margin, 'ms')}"
    # A limit below the interval's upper end would not give a pass.
    needed = max(value, interval[1]) if interval else value
    option = _option("--max-latency", needed, limit, up=True, unit="ms")
    if answer == "undecided":
        taken = observation.measurement
        blocks = [b for b in taken.blocks if b.scope == stage] if taken else []
        why = undecided_because(blocks, figures, limit, workload.percentile)
        reason = f"{name} {number(value)}{shown} ms, limit {number(limit)}: {why}"
    verdict = _numeric(requirement, answer, value, limit, margin, reason, None)
    return verdict, option and option.partition(" ")[2]


def undecided_because(
    blocks: Sequence[Block], figures: LatencyFigures, limit: float, percentile: float
) -> str:
    """What evidence is missing to judge the limit, and how to get it.

    `blocks`: those of the judged scope; none where only figures are on record.
    """
    interval, calls = figures.judged.interval, counted(figures.calls, "call")
    state = stats.LimitTest(percentile=percentile).evaluate(blocks)
    if state is None:  # recorded figures, without their calls
        if interval is None:
            return f"{calls} do not decide; {MORE}"
        few = "too few launches to pass"
        return f"{few if interval[1] <= limit else 'within its uncertainty of the limit'}; {MORE}"
    medians = stats.launch_medians(blocks).values()
    differ = max(medians) / min(medians)
    if state.passed_by_calls is not None and state.passed_by_calls <= limit:
        if state.launches < stats.LAUNCHES_TO_PASS:
            made = counted(state.launches, "launch", "launches")
            return f"{made} of the {stats.LAUNCHES_TO_PASS} that a pass needs; {MORE}"
        if state.upper is not None and state.upper <= limit:
            return f"the confirming launch did not confirm it; {QUIETER}"
        return f"the medians of its launches differ by {100 * (differ - 1):.0f} %; {QUIETER}"
    many = state.calls / stats.clients(blocks) * (1 - percentile / 100) >= MANY_BEYOND
    if figures.judged.value <= limit and state.upper is None and many:
        if differ > LAUNCHES_DIFFER:
            return f"the medians of its launches differ by {100 * (differ - 1):.0f} %; {QUIETER}"
        return f"its {calls} fall into fast and slow phases and say no more than a few would; {QUIETER}"
    return f"within its uncertainty of the limit; {MORE}" if interval else f"{calls} do not decide; {MORE}"


def _latency_answer(
    observation: Observation, figures: LatencyFigures, stage: Stage, limit: float, workload: Workload
) -> Answer:
    """The schedule's answer, else the limit test on the blocks, else the interval, else the bare number."""
    of_stages = observation.stage_answers
    if (said := of_stages.get(stage) if stage in STAGES else observation.latency_answer) is not None:
        return said
    if observation.measurement is not None:
        blocks = [b for b in observation.measurement.blocks if b.scope == stage]
        limits = 1 + len(stages_of(observation.variant))
        state = stats.LimitTest(percentile=workload.percentile, limits=limits).evaluate(blocks, limit)
        return state.answer if state else "not assessed"
    if figures.calls == 0:  # a declared number
        return "pass" if figures.judged.value <= limit else "fail"
    if figures.judged.interval is None:
        return "undecided"
    lower, upper = figures.judged.interval
    return "pass" if upper <= limit else "fail" if limit < lower else "undecided"


def _why_no_latency(observation: Observation, workload: Workload, stage: Stage) -> str:
    if observation.measurement is not None:
        return _other_load(observation, workload) or f"no calls in scope {stage}"
    figures = observation.latency.get(stage)
    if figures is not None:
        return f"recorded at p{figures.judged.percentile:g}, not the requested p{workload.percentile:g}"
    return _unmeasured(observation) or f"no latency in scope {stage}"


def _memory(observation: Observation, requirements: Requirements) -> Verdict | None:
    limit = requirements.max_memory_mib
    if limit is None:
        return None
    if observation.memory is None:
        return _missing("max_memory", limit, _unmeasured(observation) or "no memory figure")
    peak = observation.memory.peak
    reason = f"memory {number(peak)} MiB: {_room(limit - peak, 'MiB')}"
    answer: Answer = "pass" if peak <= limit else "fail"
    option = _option("--max-memory", peak, limit, up=True, unit="MiB", digits=0)
    return _numeric("max_memory", answer, peak, limit, limit - peak, reason, option)


def _throughput(observation: Observation, requirements: Requirements, workload: Workload) -> Verdict | None:
    least = requirements.min_throughput
    if least is None:
        return None
    value = throughput_figure(observation, workload)
    if value is None:
        measured = observation.measurement is not None
        why = _other_load(observation, workload) if measured else _unmeasured(observation)
        return _missing("min_throughput", least, why or "no throughput figure")
    answer: Answer = "pass" if value >= least else "fail"
    supported: float | None = value
    if observation.measurement is not None:
        blocks = [b for b in observation.measurement.blocks if b.scope == workload.latency_scope]
        answer = observation.throughput_answer or stats.throughput_answer(blocks, workload.batch_size, least)
        interval = stats.mean_latency_interval(blocks)
        at_once = stats.images_at_once(blocks, workload.batch_size)
        supported = 1000 * at_once / interval[2] if interval else None
    reason = f"{number(value)} images/s: {_room(value - least, 'images/s')}"
    if answer == "undecided":
        reason = f"{number(value)} images/s: within its uncertainty of the required {number(least)}; {MORE}"
    option = None if supported is None else _option("--min-throughput", supported, least, up=False)
    return _numeric("min_throughput", answer, value, least, value - least, reason, option)


def _worst(parity: Parity) -> str:
    """Which photo differs most, and by how much in the task's own measure."""
    if not parity.worst:
        return ""
    by = f", by {parity.relative_error:.2g}"
    if parity.figures:
        first = parity.figures[0]
        by = f": {first.metric} {number(first.value)} {first.unit}"
    return f"; {Path(parity.worst).name} differs most{by}"


def _parity(observation: Observation) -> Verdict:
    parity = observation.parity
    if parity is None:
        why = "not recorded" if observation.measurement is None else "not compared with the reference yet"
        why = why if observation.weights_at_hand else "its weights are not at hand"
        return _missing("parity", None, _unmeasured(observation) or why)
    text = f"cosine {parity.cosine:.6f}, {parity.agreeing} of {parity.decided} decided photos agree"
    worst = _worst(parity)
    answer, reason = parity.answer, f"{parity.reason or text}{worst}"
    lower_precision = observation.variant.precision not in ("fp32", "")
    if (
        answer == "pass"
        and lower_precision
        and observation.variant.exact
        and parity.loss is not None
        and parity.loss_bound is None
        and not decided_photos_agree(parity)
    ):
        answer = "not assessed"
        reason = f"{text}: {stats.PHOTOS_FOR_LOSS_BOUND} photos would measure the loss"
    return Verdict(
        requirement="parity",
        answer=answer,
        observed=parity.cosine,
        limit=None,
        margin=None,
        reason=f"parity: {reason}" if answer != "pass" else reason,
    )


# --- words ----------------------------------------------------------------------------------------


def _unmeasured(observation: Observation) -> str | None:
    if observation.failure is not None:
        return observation.failure
    return observation.pruned


def _missing(requirement: str, limit: float | str | None, reason: str) -> Verdict:
    label = requirement.replace("max_", "").replace("min_", "").replace(".", " of ")
    return Verdict(
        requirement=requirement,
        answer="not assessed",
        observed=None,
        limit=limit,
        margin=None,
        reason=f"{label} not assessed: {reason}",
    )


def _numeric(
    requirement: str,
    answer: Answer,
    observed: float,
    limit: float,
    margin: float,
    reason: str,
    option: str | None,
) -> Verdict:
    return Verdict(
        requirement=requirement,
        answer=answer,
        observed=observed,
        limit=limit,
        margin=margin,
        reason=reason,
        # An undecided verdict lacks evidence; no other limit can replace that.
        admit=option if answer == "fail" else None,
    )


def _room(margin: float, unit: str, noun: str = "") -> str:
    """`11 over the limit` or `3 ms of room`, for upper and lower limits alike."""
    size = number(abs(margin))
    if noun:
        size += f" {noun}" if size == "1" else f" {noun}s"
    elif margin >= 0 or unit != "ms":
        size += f" {unit}"
    if margin >= 0:
        return f"{size} of room"
    return f"{size} over the limit" if unit in ("ms", "MiB") else f"{size} short"


def number(value: float) -> str:
    """Three significant digits, never scientific: 61.3 -> 61.3, 9.412 -> 9.41, 1234.5 -> 1234."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _option(
    flag: str, value: float, limit: float, *, up: bool, unit: str = "", digits: int | None = None
) -> str | None:
    """The flag with `value` rounded to the admitting side; None if no limit laxer than `limit` does."""
    if digits is None:
        digits = 1 if flag == "--min-accuracy" or value < 10 else 0
    scale = 10**digits
    rounded = (math.ceil(value * scale) if up else math.floor(value * scale)) / scale
    # Scaling may have rounded across the value itself.
    if up and rounded < value:
        rounded += 1 / scale
    elif not up and rounded > value:
        rounded -= 1 / scale
    shares = ("--min-accuracy", *(f"--{name.replace('_', '-')}" for name in LEAST))
    least = 1 if flag in shares else 0  # values up to 1 may be meant as fractions
    if rounded <= least or (rounded <= limit if up else rounded >= limit):
        return None
    return f"{flag} {rounded:.{digits}f}{unit}"

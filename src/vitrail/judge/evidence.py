"""Measurement -> Observation: figures of each stage, throughput, and which accuracy may be claimed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from vitrail import stats, tasks
from vitrail.measure import latency
from vitrail.tasks.agreement import MIN_DECIDED_PHOTOS
from vitrail.vocabulary import (
    Accuracy,
    Answer,
    Block,
    Measurement,
    Observation,
    Parity,
    Quality,
    Stage,
    Variant,
)
from vitrail.words import counted

ALLOWANCE_POINTS = 0.5
"""Assumed loss of a lower precision while too few photos measure it."""


def stages_of(variant: Variant) -> tuple[Stage, ...]:
    """The steps of a request that may have limits of their own, beside the whole."""
    return tasks.known(variant.candidate.task).stages


def throughput(blocks: Sequence[Block], scope: Stage, batch_size: int) -> float | None:
    """Images/s: the images under way over the mean latency of all calls of one scope; None without calls."""
    timed = [block for block in blocks if block.scope == scope]
    calls = [sample for block in timed for sample in block.samples_ms]
    return 1000 * stats.images_at_once(timed, batch_size) * len(calls) / sum(calls) if calls else None


def observe(
    variant: Variant,
    measurement: Measurement,
    *,
    max_latency_ms: float | None = None,
    latency_answer: Answer | None = None,
    stage_answers: Mapping[Stage, Answer] | None = None,
    weights_at_hand: bool = True,
    allowance: float = ALLOWANCE_POINTS,
) -> Observation:
    """Everything a measurement says about its variant.

    `latency_answer`: the schedule's own (it knows whether the winner was confirmed); without one it is
    taken from the blocks and `max_latency_ms`. `stage_answers`: the same of stages, by name. `allowance` in
    points.
    """
    stages = stages_of(variant)
    workload, blocks = measurement.workload, measurement.blocks
    at_hand = weights_at_hand and not measurement.random_weights
    if latency_answer in (None, "not assessed") and max_latency_ms is not None:
        judged = [block for block in blocks if block.scope == workload.latency_scope]
        test = stats.LimitTest(percentile=workload.percentile, limits=1 + len(stages))
        state = test.evaluate(judged, max_latency_ms)
        latency_answer = state.answer if state else None
    return Observation(
        variant=variant,
        accuracy=_measured(measurement.quality)
        or accuracy(variant, measurement.parity, at_hand=at_hand, allowance=allowance),
        latency=latency.by_stage(blocks, workload.percentile, stages),
        latency_answer=None if latency_answer == "not assessed" else latency_answer,
        stage_answers=dict(stage_answers or {}),
        throughput=throughput(blocks, workload.latency_scope, workload.batch_size),
        memory=measurement.memory,
        parity=measurement.parity,
        quality=measurement.quality,
        facts=measurement.facts,
        rewriting=measurement.rewriting,
        made=measurement.made,
        measurement=measurement,
        weights_at_hand=at_hand,
        flags=measurement.flags,
    )


def _measured(quality: Quality | None) -> Accuracy | None:
    if quality is None:
        return None
    return Accuracy(
        value=quality.main.value,
        provenance="measured",
        source=f"{quality.split} split of the labelled images",
        images=quality.main.images,
        interval=quality.main.interval,
    )


def accuracy(
    variant: Variant, parity: Parity | None, *, at_hand: bool = True, allowance: float = ALLOWANCE_POINTS
) -> Accuracy | None:
    """Top-1 that may be claimed for the variant, None when nothing supports a figure.

    fp32 keeps the candidate's figure (parity, judged separately, ensures that it is the same function); a
    lower precision keeps it minus the bound on the loss, with few photos at least the allowance. A figure
    belongs to its resolution: at another image size there is none.
    """
    candidate = variant.candidate
    known = candidate.accuracy
    if known is None or variant.image_size != candidate.preprocess.image_size:
        return None
    if not variant.exact:
        return None  # it answers otherwise on purpose: only labelled images can say how well
    if variant.precision == "fp32":
        return known
    if parity is not None and parity.loss_bound is not None:
        return _bounded(known, parity, parity.loss_bound, allowance)
    if parity is None and not at_hand:
        return _estimated(known, allowance, "assumed allowance; not compared on photos")
    if parity is not None and decided_photos_agree(parity):
        text = f"assumed allowance; all {parity.decided} decided photos agree"
        return _estimated(known, allowance, text)
    return None


def accuracy_before_measuring(variant: Variant, *, allowance: float = ALLOWANCE_POINTS) -> Accuracy | None:
    """The most a variant may reach that has seen no photo yet: an upper bound, not evidence."""
    return accuracy(replace(variant, passes=()), None, at_hand=False, allowance=allowance)


def as_if_at_hand(observation: Observation) -> Observation:
    """The observation as it would be judged if its weights were at hand and passed parity."""
    measurement = observation.measurement
    assumed = Parity(
        answer="pass",
        cosine=1.0,
        relative_error=0.0,
        photos=0,
        decided=MIN_DECIDED_PHOTOS,
        agreeing=MIN_DECIDED_PHOTOS,
        loss=None,
        loss_bound=None,
        reason="assumed: the weights are not at hand",
    )
    return replace(
        observation,
        weights_at_hand=True,
        parity=assumed,
        measurement=replace(measurement, random_weights=False) if measurement else None,
    )


def decided_photos_agree(parity: Parity) -> bool:
    """Whether enough photos are decided, and all of them agree, so that the allowance applies."""
    return parity.decided >= MIN_DECIDED_PHOTOS and parity.agreeing == parity.decided


def _bounded(known: Accuracy, parity: Parity, bound: float, allowance: float) -> Accuracy:
    """Less the bound of the loss; with fewer photos than measure it alone, at least the allowance."""
    photos = counted(parity.photos, "photo")
    if parity.photos >= stats.PHOTOS_FOR_LOSS_BOUND:
        return _estimated(known, max(bound, 0.0), f"the one-sided 95 % bound of the loss on {photos}")
    changed = f"{parity.decided - parity.agreeing} of {parity.decided} decided photos changed"
    if bound <= allowance:
        agreed = f"all {parity.decided} decided photos agree"
        said = agreed if parity.agreeing == parity.decided else changed
        return _estimated(known, allowance, f"assumed allowance; {said}")
    return _estimated(known, bound, f"95 % bound from {photos} and what other models lose; {changed}")


def _estimated(known: Accuracy, loss: float, why: str) -> Accuracy:
    source = f"{known.value:g} {known.provenance} less {loss:.2g} points ({why})"
    return Accuracy(value=round(known.value - loss, 4), provenance="estimated", source=source)

"""`select --from RECORDED.json`: judges recorded figures under new requirements. It never ships anything."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from vitrail import catalog, judge, tasks
from vitrail.catalog import check_requirement
from vitrail.document import Recorded, from_document
from vitrail.errors import InputError
from vitrail.requirements import check
from vitrail.vocabulary import (
    LatencyFigures,
    Observation,
    Requirements,
    SearchSettings,
    Selection,
    SpeedUp,
    Workload,
)

__all__ = ["judge_recorded"]

ANEW = ("latency_scope", "percentile")
"""Fields of a workload that may change when recorded figures are judged again."""
PATHS = ("images", "data")


def judge_recorded(
    path: str | os.PathLike[str],
    requirements: Requirements,
    workload: Workload,
    settings: SearchSettings,
    *,
    said: Collection[str] = (),
) -> Selection:
    """Judge the variants of a recorded document again.

    Args:
        path: the document.
        requirements: what to meet now.
        workload: used for the fields named in `said` and those that the document does not state; scope
            and percentile may differ from the recorded ones.
        settings: models, runtimes and precisions choose among the recorded variants.
        said: fields of the workload that the user set; the others are as recorded.

    Raises:
        InputError: a bad requirement, unreadable file, wrong document, settings that match no recorded
            variant, or a different workload.
    """
    check(requirements, workload, settings)
    check_requirement(requirements.license)
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): check the path.") from None
    recorded = from_document(data, str(path))
    workload, assumed = _workload(recorded, workload, said)
    _check_classes(recorded.observations, requirements, path)
    tasks.check_stages(requirements, recorded.selection.task)
    chosen = [_declared_at(each, workload) for each in recorded.observations if _is_chosen(each, settings)]
    if not chosen:
        raise InputError(f"{path} has no such variant: widen --models, --runtimes or --precisions.")
    judged = _judge(chosen, recorded, requirements, workload)
    notes = (
        *recorded.selection.notes,
        *assumed,
        f"judged again from {path}: nothing was measured, nothing ships",
    )
    return dataclasses.replace(
        judged,
        notes=notes,
        trainings=recorded.selection.trainings,
        speed_ups=_among(chosen, recorded.selection.speed_ups),
        settings=settings,
        arguments=("--from", str(path)),
    )


def _among(chosen: Sequence[Observation], speed_ups: Iterable[SpeedUp]) -> tuple[SpeedUp, ...]:
    """Those whose both sides are among the chosen."""
    names = {each.variant.name for each in chosen}
    return tuple(each for each in speed_ups if {each.variant, each.over} <= names)


def _judge(
    chosen: Sequence[Observation], recorded: Recorded, requirements: Requirements, asked: Workload
) -> Selection:
    """The verdicts, and what is missing where a search skipped variants because of its own requirements."""

    def judged(observations: Sequence[Observation]) -> Selection:
        return judge.judge(
            observations,
            requirements,
            asked,
            hardware=recorded.selection.hardware,
            shipping=False,
            created=recorded.selection.created,
            method=recorded.selection.method,
        )

    if not recorded.complete:
        return judged(chosen)
    was = recorded.selection
    before = judge.Question(requirements=was.requirements, workload=was.workload)
    now = judge.Question(requirements=requirements, workload=asked)
    # First without reopening anything: does the recorded winner still stand?
    first = judged(judge.reopen(chosen, before, before, won_before=True))
    won = was.selected
    stands = any(e.variant.name == won and e.status in ("selected", "meets") for e in first.ledger)
    selection = judged(judge.reopen(chosen, before, now, won_before=stands))
    return dataclasses.replace(selection, lacks=judge.lacking(selection))


def _workload(
    recorded: Recorded, workload: Workload, said: Collection[str]
) -> tuple[Workload, tuple[str, ...]]:
    """The workload to judge under, and a note on the fields the record leaves out, which come from `asked`.

    Raises:
        InputError: the workload differs from the recorded one.
    """
    for name in said:
        was = getattr(recorded.selection.workload, name)
        if name in recorded.stated and name not in ANEW and not _same(name, getattr(workload, name), was):
            raise InputError(
                f"{recorded.source} was recorded with {name} {was}: a different one has to be measured."
            )
    unstated = [f.name for f in dataclasses.fields(Workload) if f.name not in recorded.stated]
    taken = {name: getattr(workload, name) for name in {*said, *unstated}}
    asked = dataclasses.replace(recorded.selection.workload, **taken)
    known = {name: value for name in unstated if (value := getattr(asked, name)) is not None}
    shown = [
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in known.items()
    ]
    if not shown:
        return asked, ()
    return asked, (f"{recorded.source} does not state its whole workload: judged as if {', '.join(shown)}",)


def _declared_at(observation: Observation, asked: Workload) -> Observation:
    """A figure declared without calls names no percentile, so it counts for whichever one is judged."""

    def at(figures: LatencyFigures) -> LatencyFigures:
        if figures.calls or len({figures.p50, figures.p95, figures.p99}) > 1:
            return figures
        return dataclasses.replace(
            figures, judged=dataclasses.replace(figures.judged, percentile=asked.percentile)
        )

    latency = {stage: at(figures) for stage, figures in observation.latency.items()}
    return dataclasses.replace(observation, latency=latency)


def _same(field: str, given: object, recorded: object) -> bool:
    """Whether they are equal, or spell the same path: `photos`, `photos/`, `./photos` or a link to it."""
    if field in PATHS and isinstance(given, str) and isinstance(recorded, str):
        return os.path.realpath(given) == os.path.realpath(recorded)
    return given == recorded


def _is_chosen(observation: Observation, settings: SearchSettings) -> bool:
    variant = observation.variant
    models = not settings.models or any(catalog.matches(variant.candidate, glob) for glob in settings.models)
    return (
        models
        and (not settings.runtimes or variant.runtime in settings.runtimes)
        and (not settings.precisions or variant.precision in settings.precisions)
    )


def _check_classes(
    observations: Collection[Observation], requirements: Requirements, path: str | os.PathLike[str]
) -> None:
    """Refuse a limit on a class without recorded figures."""
    seen = [figure for each in observations if each.quality for figure in each.quality.figures]
    for least in requirements.least:
        known = sorted({figure.label for figure in seen if figure.metric == least.metric})
        if least.label not in known:
            what = f"use {' or '.join(known)}." if known else "it was recorded without labelled images."
            raise InputError(
                f"{least.option}: {least.label or 'the mean'!r} is not a class of {path}: {what}"
            )

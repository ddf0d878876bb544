"""`select --from RECORDED.json`: recorded figures under other requirements. It decides, it never ships."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection
from pathlib import Path

from vitrail import judge
from vitrail.catalog import check_requirement
from vitrail.document import from_document
from vitrail.errors import InputError
from vitrail.vocabulary import Observation, Requirements, SearchSettings, Selection, Workload

__all__ = ["judge_recorded"]

ANEW = ("latency_scope", "percentile")
"""Parts of a workload that recorded figures can be judged under anew."""
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
        requirements: what to hold now.
        workload: its fields named in `said` count; scope and percentile may differ from the recorded ones.
        settings: models, runtimes and precisions choose among the recorded variants.
        said: fields of the workload that were asked for; the others are as recorded.

    Raises:
        InputError: unreadable file, wrong document, no recorded variant is asked for, or another load is.
    """
    check_requirement(requirements.license)
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): check the path.") from None
    recorded = from_document(data, str(path))
    asked = dataclasses.replace(recorded.workload, **{name: getattr(workload, name) for name in said})
    for name in said:
        was = getattr(recorded.workload, name)
        if name not in ANEW and not _same(name, getattr(asked, name), was):
            raise InputError(f"{path} was recorded with {name} {was}: another one has to be measured.")
    _check_classes(recorded.observations, requirements, path)
    chosen = [_reopened(each) for each in recorded.observations if _is_asked(each, settings)]
    if not chosen:
        raise InputError(f"{path} has no such variant: widen --models, --runtimes or --precisions.")
    judged = judge.judge(
        chosen,
        requirements,
        asked,
        hardware=recorded.hardware,
        shipping=False,
        created=recorded.created,
        notes=(*recorded.notes, f"judged again from {path}: nothing was measured, nothing ships"),
        method=recorded.method,
    )
    return dataclasses.replace(judged, trainings=recorded.selection.trainings if recorded.selection else ())


def _same(field: str, asked: object, recorded: object) -> bool:
    """Equal, or two spellings of one path: `photos`, `photos/`, `./photos` and a link to it."""
    if field in PATHS and isinstance(asked, str) and isinstance(recorded, str):
        return os.path.realpath(asked) == os.path.realpath(recorded)
    return asked == recorded


def _reopened(observation: Observation) -> Observation:
    """A variant left out under the recorded requirements may fit these: it is not known, not rejected."""
    if observation.pruned is None or observation.request or observation.model:
        return observation
    return dataclasses.replace(observation, pruned=None, flags=(*observation.flags, observation.pruned))


def _is_asked(observation: Observation, settings: SearchSettings) -> bool:
    from fnmatch import fnmatchcase

    variant = observation.variant
    name, architecture = variant.candidate.name.lower(), variant.candidate.architecture.lower()
    models = not settings.models or any(
        fnmatchcase(name, glob.lower()) or fnmatchcase(architecture, glob.lower()) for glob in settings.models
    )
    return (
        models
        and (not settings.runtimes or variant.runtime in settings.runtimes)
        and (not settings.precisions or variant.precision in settings.precisions)
    )


def _check_classes(
    observations: Collection[Observation], requirements: Requirements, path: str | os.PathLike[str]
) -> None:
    """Refuse a recall of a class that no recorded figure is about."""
    known = sorted(
        {r.label for each in observations if each.classification for r in each.classification.recalls}
    )
    for label, _ in requirements.min_recall:
        if label not in known:
            what = f"use {' or '.join(known)}." if known else "it was recorded without labelled images."
            raise InputError(f"--min-recall: {label!r} is no class of {path}: {what}")

"""`select --from RECORDED.json`: recorded figures under other requirements. It decides, it never ships."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from vitrail import judge
from vitrail.document import from_document
from vitrail.errors import InputError
from vitrail.vocabulary import Observation, Requirements, SearchSettings, Selection, Workload

__all__ = ["judge_recorded"]


def judge_recorded(
    path: str | os.PathLike[str], requirements: Requirements, workload: Workload, settings: SearchSettings
) -> Selection:
    """Judge the variants of a recorded document again.

    Scope and percentile are the asked ones; the rest of the workload is what the figures were taken
    under. Of the settings, models, runtimes and precisions choose among the recorded variants.

    Raises:
        InputError: unreadable file, wrong document, or no recorded variant is asked for.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): check the path.") from None
    recorded = from_document(data, str(path))
    asked = dataclasses.replace(
        recorded.workload, latency_scope=workload.latency_scope, percentile=workload.percentile
    )
    chosen = [each for each in recorded.observations if _is_asked(each, settings)]
    if not chosen:
        raise InputError(f"{path} has no such variant: widen --models, --runtimes or --precisions.")
    return judge.judge(
        chosen,
        requirements,
        asked,
        hardware=recorded.hardware,
        shipping=False,
        created=recorded.created,
        notes=(*recorded.notes, f"judged again from {path}: nothing was measured, nothing ships"),
        method=recorded.method,
    )


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

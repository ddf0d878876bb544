"""Candidates that answer the person's classes already, with their accuracy on the labelled images."""

from __future__ import annotations

from dataclasses import replace

from vitrail.errors import InputError
from vitrail.export.variants import at_size, in_floating_point, variants
from vitrail.measure import sandbox
from vitrail.sources.source import Context, Found
from vitrail.vocabulary import Accuracy, Candidate

__all__ = ["measured"]

EXPORT_TIMEOUT_S = 300.0


def measured(found: Found, answers: str, context: Context) -> Found:
    """The candidates with what they reach on the validation split, in place of any published figure.

    `answers` says how they come to answer the classes (`Source.answers`).

    Raises:
        InputError: one of them cannot be exported or run.
    """
    how = f"{answers} on the validation split"
    return replace(found, candidates=tuple(_measured(each, context, how) for each in found.candidates))


def _measured(candidate: Candidate, context: Context, how: str) -> Candidate:
    context.doing(f"answering the validation images with {candidate.name}")
    form = variants([candidate], context.workload, in_floating_point(context.settings))[0]
    try:
        export = context.bench.export(form, timeout_s=EXPORT_TIMEOUT_S)
        seen = context.bench.quality(form, export, "validation")
    except sandbox.ChildFailure as error:
        raise InputError(f"{candidate.name}: {error}") from None
    main = seen.main
    accuracy = Accuracy(
        value=main.value, provenance="measured", source=how, images=main.images, interval=main.interval
    )
    return replace(at_size(candidate, form.image_size), accuracy=accuracy)

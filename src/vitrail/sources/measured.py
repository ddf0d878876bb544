"""Candidates that answer the person's classes already, with their accuracy on the labelled images."""

from __future__ import annotations

from dataclasses import dataclass, replace

from vitrail.errors import InputError
from vitrail.export.variants import at_size, variants
from vitrail.measure import sandbox
from vitrail.sources.source import Context, Found, Source
from vitrail.vocabulary import Accuracy, Candidate

__all__ = ["Measured"]

EXPORT_TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Measured(Source):
    """Another source's candidates, measured on the validation split in place of any published figure."""

    source: Source

    def find(self, context: Context) -> Found:
        """The source's candidates. Raises InputError, beside the source's, for one that cannot be run."""
        found = self.source.find(context)
        how = f"{self.source.answers} on the validation split"
        return replace(found, candidates=tuple(_measured(c, context, how) for c in found.candidates))


def _measured(candidate: Candidate, context: Context, how: str) -> Candidate:
    form = variants([candidate], context.workload, context.settings)[0]
    try:
        export = context.bench.export(form, timeout_s=EXPORT_TIMEOUT_S)
        seen = context.bench.classify(form, export, "validation")
    except sandbox.ChildFailure as error:
        raise InputError(f"{candidate.name}: {error}") from None
    main = seen.main
    accuracy = Accuracy(
        value=main.value, provenance="measured", source=how, images=main.images, interval=main.interval
    )
    return replace(at_size(candidate, form.image_size), accuracy=accuracy)

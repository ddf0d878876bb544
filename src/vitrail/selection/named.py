"""Which candidates a selection begins with: the catalogue's, the user's own, those that names bring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vitrail import catalog, data
from vitrail.catalog.clip import Published
from vitrail.errors import InputError
from vitrail.measure import sandbox
from vitrail.selection.bench import Bench
from vitrail.selection.own import OwnWeights, own_candidate
from vitrail.selection.prune import at_size, variants
from vitrail.vocabulary import Accuracy, Candidate, Requirements, SearchSettings
from vitrail.zeroshot.candidates import Found, Names, OwnCLIP, matching, of_names
from vitrail.zeroshot.hub import Finder
from vitrail.zeroshot.prompts import key

__all__ = ["asked_candidates", "in_order_of", "measured_first", "named", "refuse_unmeasured"]


def asked_candidates(
    own: OwnWeights | OwnCLIP | None, names: Names | None, settings: SearchSettings, *, with_data: bool
) -> tuple[tuple[Candidate, ...], tuple[Published, ...]]:
    """Candidates of the catalogue and of the user, and published CLIPs, as the globs of `models` say.

    Own weights are alone unless globs name others. Without labelled images only class names can make a head
    for other classes than ImageNet's, so the catalogue then takes no part.
    """
    if names is None:
        assert not isinstance(own, OwnCLIP)
        found = of_catalogue(own, settings)
        return tuple(replace(candidate, task=settings.task) for candidate in found), ()
    alone = own is not None and not settings.models
    rows = () if alone else matching(settings.models)
    if alone or not with_data:
        if not rows and own is None:
            raise InputError(
                f"No CLIP matches {' '.join(settings.models)}: name one as open_clip does, ViT-B-32."
            )
        return (), rows
    if not rows:
        return catalog.find(settings.models), rows
    # A glob may be about CLIPs alone, so the catalogue need not know it.
    asked = [c for c in catalog.candidates() if any(catalog.matches(c, glob) for glob in settings.models)]
    return (tuple(asked) if settings.models else catalog.candidates()), rows


def refuse_unmeasured(requirements: Requirements) -> None:
    if requirements.min_accuracy is not None:
        raise InputError(
            "Zero-shot accuracy on your classes is not known before it is measured: give labelled images "
            "with --data DIR, or leave --min-accuracy out."
        )


def in_order_of(names: Names, dataset: data.Dataset) -> Names:
    """The names as the labelled images spell and order them.

    Raises:
        InputError: the two are not the same classes.
    """
    own, theirs = {key(name) for name in names.classes}, {key(name) for name in dataset.classes}
    if own != theirs:
        raise InputError(
            f"--classes and the labelled images name different classes ({', '.join(sorted(own ^ theirs))}): "
            "give the folders' names."
        )
    return replace(names, classes=dataset.classes)


def named(
    names: Names,
    rows: Sequence[Published],
    own: OwnCLIP | None,
    finder: Finder,
    bench: Bench,
    *,
    required: bool,
) -> Found:
    """Zero-shot candidates; without any the others go on alone, if there are others."""
    try:
        return of_names(names, rows, own, finder, threads=bench.threads)
    except InputError as error:
        if required or own is not None:
            raise
        return Found((), (str(error).rstrip("."),))


def measured_first(
    candidate: Candidate, bench: Bench, settings: SearchSettings, how: str = "zero-shot"
) -> Candidate:
    """A candidate that needs no probe, with its accuracy on the validation images in place of ImageNet's.

    `how` it answers is part of the accuracy's source.

    Raises:
        InputError: it cannot be exported or run.
    """
    form = variants([candidate], bench.workload, settings)[0]
    try:
        seen = bench.classify(form, bench.export(form, timeout_s=300.0), "validation")
    except sandbox.ChildFailure as error:
        raise InputError(f"{candidate.name}: {error}") from None
    found = Accuracy(
        value=seen.accuracy,
        provenance="measured",
        source=f"{how} on the validation split",
        images=seen.images,
        interval=seen.interval,
    )
    return replace(at_size(candidate, form.image_size), accuracy=found)


def of_catalogue(own: OwnWeights | None, settings: SearchSettings) -> tuple[Candidate, ...]:
    if own is None:
        return catalog.find(settings.models)
    others = catalog.find(settings.models) if settings.models else ()
    return (own_candidate(own), *others)

"""Class names -> candidates: every CLIP and SigLIP whose weights are at hand, with a head for these names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import msgspec

from vitrail import catalog, store
from vitrail.artifact import TextTower
from vitrail.catalog.clip import RESULTS, Published, all_published
from vitrail.data import Dataset
from vitrail.errors import InputError
from vitrail.measure import sandbox
from vitrail.sources.source import Context, Found, Source
from vitrail.vocabulary import Accuracy, Candidate, Preprocess, Requirements, SearchSettings, Weights
from vitrail.weights.find import WeightsUnavailable, check_file
from vitrail.words import counted
from vitrail.zeroshot.fold import FoldRequest
from vitrail.zeroshot.hub import Finder, bare
from vitrail.zeroshot.prompts import key

__all__ = ["ClassNames", "OwnCLIP", "in_order_of", "matching", "of_names"]

FOLD_TIMEOUT_S = 300.0
FOLD_MEMORY_MIB = 16_384.0
FOLD_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class OwnCLIP:
    """A user's own CLIP weights: the file, open_clip's model name, and the weights it was derived from."""

    file: str
    arch: str
    tag: str | None = None
    license: str = "own"


@dataclass(frozen=True, kw_only=True)
class ClassNames(Source):
    """Classes by their names alone: each CLIP or SigLIP at hand reads them into a head of its own."""

    classes: tuple[str, ...]
    templates: tuple[str, ...]
    """Sentences that the names are put into, one `{}` each."""
    own: OwnCLIP | None = None
    """It is the only one unless globs name others."""
    option: ClassVar[str] = "classes"
    answers: ClassVar[str] = "zero-shot"

    @property
    def alone(self) -> bool:
        """With the person's own weights."""
        return self.own is not None

    def licenses(self) -> tuple[str, ...]:
        """What the user stated of their own weights."""
        return (self.own.license,) if self.own else ()

    def matches(self, glob: str) -> bool:
        """Whether it names published weights."""
        return bool(matching([glob]))

    def check_settings(self, settings: SearchSettings) -> None:
        """Refuse implementations without ours, which alone has these heads. Raises InputError."""
        if settings.implementations and "vitrail" not in settings.implementations:
            raise InputError(
                "Heads of class names run with Vitrail's own code: add vitrail to --implementations, "
                "or leave that option out."
            )
        if self.own is not None:
            check_file(self.own.file)

    def check(self, requirements: Requirements, settings: SearchSettings, dataset: Dataset | None) -> None:
        """Refuse a limit that nothing measures, and globs without a CLIP where only CLIPs take part."""
        if dataset is None and requirements.min_accuracy is not None:
            raise InputError(
                "Zero-shot accuracy on your classes is not known before it is measured: give labelled images "
                "with --data DIR, or leave --min-accuracy out."
            )
        if dataset is None and self.own is None and not matching(settings.models):
            raise InputError(
                f"No CLIP matches {' '.join(settings.models)}: name one as open_clip does, ViT-B-32."
            )

    def find(self, context: Context) -> Found:
        """A candidate for each CLIP at hand; none, with the reason, where others may go on alone."""
        context.doing("reading class names with text towers")
        names = self if context.dataset is None else in_order_of(self, context.dataset)
        globs = context.settings.models
        rows = matching(globs) if globs or self.own is None else ()
        finder = Finder(offline=context.settings.offline, max_download_mib=context.download_mib)
        try:
            return of_names(names, rows, finder, threads=context.bench.threads)
        except InputError as error:
            if self.own is not None:
                raise
            return Found(notes=(str(error).rstrip("."),), why_none=str(error))


def in_order_of(names: ClassNames, dataset: Dataset) -> ClassNames:
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


def matching(globs: Sequence[str]) -> tuple[Published, ...]:
    """The published weights whose `model.tag` or model matches a glob (case ignored); no globs: all."""
    return tuple(
        row
        for row in all_published()
        if not globs or any(catalog.fits(glob, f"{row.model}.{row.tag}", row.model) for glob in globs)
    )


def of_names(names: ClassNames, rows: Sequence[Published], finder: Finder, *, threads: int) -> Found:
    """A candidate for each row whose weights can be found, and for the user's own weights.

    Published figures are for ImageNet's classes: they order the candidates but say nothing of these names.

    Raises:
        InputError: the user's own weights do not fit, a tokenizer cannot read the names, or no weights are
            at hand.
    """
    found: list[Candidate] = []
    missing: list[str] = []
    towers: dict[str, TextTower] = {}

    def add(model: str, tag: str, path: Path, weights: Weights, row: Published | None) -> None:
        found.append(_candidate(names, model, tag, path, weights, row, threads))
        towers[found[-1].name] = TextTower(
            weights=path,
            model=model,
            tag=weights.tag,
            license=weights.license,
            templates=names.templates,
        )

    own = names.own
    if own is not None:
        check_file(own.file)
        digest = store.sha256_file(Path(own.file))
        weights = Weights(
            source="file", reference=own.file, tag=own.tag or "", sha256=digest, license=own.license
        )
        stem = own.tag or Path(own.file).stem
        add(own.arch, stem, Path(own.file), weights, None)
    for row in rows:
        try:
            asked = Weights(source="hub", reference=row.hub, tag=row.tag, license=row.license)
            located = finder.locate(bare(f"{row.model}.{row.tag}", row.model, asked))
        except WeightsUnavailable as error:
            missing.append(str(error))
            continue
        add(row.model, row.tag, located.path, located.weights, row)
    if not found:
        raise InputError(
            f"No CLIP weights are at hand ({missing[0].rstrip('.') if missing else 'none were requested'}): "
            "give a file with --weights FILE --arch ViT-B-32."
        )
    more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
    notes = (f"CLIP weights not at hand{more}: {missing[0]}",) if missing else ()
    return Found(candidates=tuple(found), notes=notes, towers=towers)


def _candidate(
    names: ClassNames, model: str, tag: str, path: Path, weights: Weights, row: Published | None, threads: int
) -> Candidate:
    """The folded classifier as a candidate; made only once for the same weights, names and templates."""
    identity: dict[str, object] = {
        "fold": FOLD_VERSION,
        "weights": weights.sha256,
        "model": model,
        "tag": weights.tag,
        "classes": list(names.classes),
        "templates": list(names.templates),
    }
    folder = store.cache_dir() / "zero-shot"
    records = store.RecordStore(folder)
    digest = store.digest_of(identity)[:24]
    target, labels = folder / f"{digest}.safetensors", folder / f"{digest}.txt"
    facts = records.get(identity)
    if facts is None or not target.is_file():
        facts = _folded(names, model, path, weights, target, threads)
        records.put(identity, facts)
    store.atomic_write(labels, "".join(f"{name}\n" for name in names.classes).encode("utf-8"))
    accuracy = None
    if row is not None and row.accuracy is not None:
        source = f"zero-shot on ImageNet-1k, not on these classes; {RESULTS}"
        accuracy = Accuracy(value=row.accuracy, provenance="published", source=source)
    folded = Weights(source="file", reference=str(target), tag=f"{tag}+zero-shot", license=weights.license)
    return replace(
        bare(f"{model}.{tag}+zero-shot", model, folded),
        preprocess=msgspec.convert(facts["preprocess"], Preprocess),
        accuracy=accuracy,
        parameters=int(str(facts["parameters"])),
        macs=int(str(facts["macs"])),
        activations=int(str(facts["activations"])),
        labels=str(labels),
        trained_with="vitrail",
        note=f"{counted(len(names.classes), 'class name')} in "
        f"{counted(len(names.templates), 'sentence')} each, "
        f"read by the text tower of {weights.reference}",
    )


def _folded(
    names: ClassNames, model: str, path: Path, weights: Weights, target: Path, threads: int
) -> dict[str, object]:
    target.parent.mkdir(parents=True, exist_ok=True)
    request = FoldRequest(
        model=model,
        weights=str(path),
        tag=weights.tag or None,
        tokenizer=None,
        classes=list(names.classes),
        templates=list(names.templates),
        target=str(target),
        threads=threads,
    )
    try:
        facts: dict[str, object] = sandbox.call(
            "vitrail.zeroshot.fold:fold",
            msgspec.to_builtins(request),
            timeout_s=FOLD_TIMEOUT_S,
            memory_mib=FOLD_MEMORY_MIB,
            name=f"reading {path.name} as {model}",
        )
    except sandbox.ChildFailure as error:
        raise InputError(f"{error}: check --weights and --arch.") from None
    if "refused" in facts:
        raise InputError(str(facts["refused"]))
    return facts

"""A person's own weights as a candidate: a file, an architecture, labels, and what they say of it."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from vitrail.catalog import candidates, promptable
from vitrail.data import Dataset
from vitrail.errors import InputError
from vitrail.images.labels import read_labels
from vitrail.masks import objects
from vitrail.measure import sandbox
from vitrail.models.registry import PROMPTABLE
from vitrail.sources.source import Context, Found, Source
from vitrail.units import percent
from vitrail.vocabulary import Accuracy, Candidate, Preprocess, SearchSettings, Weights
from vitrail.weights.find import check_file

__all__ = ["OwnPromptable", "OwnWeights", "own_candidate"]

DESCRIBE_TIMEOUT_S = 120.0
DESCRIBE_MEMORY_MIB = 8192.0


@dataclass(frozen=True, kw_only=True)
class OwnWeights(Source):
    """A weights file of the user's, with what cannot be read from it."""

    option: ClassVar[str] = "weights"
    tasks: ClassVar[tuple[str, ...]] = ("classify", "embed")
    file: str
    arch: str
    labels: str
    """File with one label a line, in the order of the model's outputs."""
    accuracy: float | None = None
    """Top-1 in % as the user declares it."""
    license: str = "own"

    def licenses(self) -> tuple[str, ...]:
        """What the user stated."""
        return (self.license,)

    def check_settings(self, settings: SearchSettings) -> None:
        """Refuse what is not a file, and an accuracy outside (0, 100]. Raises InputError."""
        check_file(self.file)
        if Path(self.file).suffix.lower() == ".onnx":
            raise InputError(f"{self.file} is an ONNX file, not weights: give it with --onnx.")
        if self.accuracy is not None and not 0 < self.accuracy <= 100:
            raise InputError(f"--accuracy {self.accuracy:g} is not a percentage: give a value in (0, 100].")
        if self.accuracy is not None:
            percent(self.accuracy, "--accuracy")  # refuses a fraction

    def find(self, context: Context) -> Found:
        """The one candidate. Raises InputError as `own_candidate` does."""
        return Found(candidates=(replace(own_candidate(self), task=context.settings.task),))


@dataclass(frozen=True, kw_only=True)
class OwnPromptable(Source):
    """A weights file of the user's whose model answers prompts: it has no labels."""

    option: ClassVar[str] = "weights"
    tasks: ClassVar[tuple[str, ...]] = ("promptable",)
    answers: ClassVar[str] = "its own masks"
    file: str
    arch: str
    license: str = "own"

    def licenses(self) -> tuple[str, ...]:
        """What the user stated."""
        return (self.license,)

    def check_settings(self, settings: SearchSettings) -> None:
        """Refuse what is not a file, and an architecture that takes no prompts. Raises InputError."""
        check_file(self.file)
        if self.arch not in PROMPTABLE:
            raise InputError(
                f"{self.arch} takes no prompts: name one of {', '.join(PROMPTABLE)} with --arch."
            )

    def read_labelled(self, place: str, settings: SearchSettings) -> Dataset:
        """Photos with objects to click on."""
        return objects.load(place)

    def find(self, context: Context) -> Found:
        """The one candidate. Raises InputError for weights that cannot be read or do not fit."""
        payload = {"architecture": self.arch, "weights": self.file}
        facts = _asked("vitrail.profiling.describe:describe_promptable", payload, self.file, self.arch)
        tag = _tag(self.file)
        return Found(
            candidates=(
                Candidate(
                    name=f"{self.arch}.{tag}",
                    architecture=self.arch,
                    family="sam" if facts["crop_mode"] == "letterbox" else "sam2",
                    weights=Weights(
                        source="file",
                        reference=str(Path(self.file).absolute()),
                        tag=tag,
                        license=self.license,
                    ),
                    preprocess=promptable.preprocess_of(int(facts["image_size"]), facts["crop_mode"]),
                    accuracy=None,
                    parameters=int(facts["parameters"]),
                    macs=int(facts["macs"]),
                    activations=int(facts["activations"]),
                    labels="",
                    note="the user's own weights",
                    task="promptable",
                ),
            )
        )


def own_candidate(own: OwnWeights) -> Candidate:
    """Describe the user's weights, which must fit the architecture and the labels.

    Preprocess is that of the catalogue's entry of that name (without a tag: the first of that
    architecture), else timm's. A child reads the weights: this process never imports torch.

    Raises:
        InputError: weights or labels that cannot be read or do not fit, an unknown architecture, or an
            accuracy outside (0, 100].
    """
    own.check_settings(SearchSettings())
    classes = len(read_labels(own.labels))
    known = _known(own.arch)
    facts = _described(own, classes, known)
    preprocess = known.preprocess if known else msgspec.convert(facts["preprocess"], Preprocess)
    architecture = own.arch.split(".")[0]
    tag = _tag(own.file)
    return Candidate(
        name=f"{architecture}.{tag}",
        architecture=architecture,
        family=known.family if known else architecture,
        weights=Weights(
            source="file", reference=str(Path(own.file).absolute()), tag=tag, license=own.license
        ),
        preprocess=preprocess,
        accuracy=_declared(own),
        parameters=int(facts["parameters"]),
        macs=int(facts["macs"]),
        activations=int(facts["activations"]),
        labels=str(Path(own.labels).absolute()),
        note="the user's own weights",
    )


def _known(arch: str) -> Candidate | None:
    """The catalogue's entry of that name, or of that architecture where no tag is given."""
    named = (c for c in candidates() if arch in (c.name, c.architecture))
    return next(named, None)


def _described(own: OwnWeights, classes: int, known: Candidate | None) -> dict[str, Any]:
    payload = {
        "architecture": own.arch if known is None else known.architecture,
        "classes": classes,
        "image_size": known.preprocess.image_size if known else None,
        "weights": own.file,
    }
    return _asked("vitrail.profiling.describe:describe", payload, own.file, own.arch)


def _tag(file: str) -> str:
    """A name for weights, of their file's."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", Path(file).stem).strip("-") or "own"


def _asked(function: str, payload: dict[str, Any], file: str, arch: str) -> dict[str, Any]:
    """What a child says of weights. Raises InputError if they cannot be read or do not fit."""
    try:
        facts: dict[str, Any] = sandbox.call(
            function,
            payload,
            timeout_s=DESCRIBE_TIMEOUT_S,
            memory_mib=DESCRIBE_MEMORY_MIB,
            name=f"reading {file} as {arch}",
        )
    except sandbox.ChildFailure as error:
        raise InputError(f"{error}: check --weights and --arch.") from None
    if "refused" in facts:
        raise InputError(facts["refused"])
    return facts


def _declared(own: OwnWeights) -> Accuracy | None:
    if own.accuracy is None:
        return None
    return Accuracy(value=own.accuracy, provenance="declared", source="--accuracy")

"""The one model that `vitrail optimize` is given: a name, a training run, an artifact, weights, or ONNX.

A model keeps its own head. Only one of the catalogue gets another, as in `select`, where labelled images of
other classes than its own are given.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from vitrail import artifact, catalog
from vitrail.artifact import Artifact
from vitrail.data import Dataset
from vitrail.errors import InputError
from vitrail.images.labels import read_labels
from vitrail.learn.trained import TRAINED
from vitrail.sources.own import OwnPromptable, OwnWeights
from vitrail.sources.own_onnx import OwnONNX
from vitrail.sources.source import Context, Found, Source
from vitrail.sources.trained import TrainedRuns
from vitrail.vocabulary import Candidate, Preprocess, Requirements, SearchSettings
from vitrail.weights.find import SUFFIXES
from vitrail.words import some_of

__all__ = ["Named", "OwnHead", "Shipped", "one_model"]

MANIFEST, LABELS = "manifest.json", "labels.txt"
SHOWN = 6
"""Names in a message; more are counted."""


def one_model(
    model: str,
    *,
    arch: str | None = None,
    labels: str | None = None,
    preprocess: str | Path | Mapping[str, object] | None = None,
    accuracy: float | None = None,
    task: str | None = None,
) -> Source:
    """The source of what `model` names.

    Args:
        model: a name or glob of the catalogue that matches one model, the folder of a training run or of an
            artifact, or a file of weights or ONNX.
        arch, labels: of a weights file; `labels` and `preprocess` of an ONNX file.
        accuracy: top-1 in % of a file, as the person declares it.
        task: what it is asked to be for, where the person says so.

    Raises:
        InputError: it is none of these, or lacks what it needs; with the fix.
    """
    path = Path(model)
    suffix = path.suffix.lower()
    described = {"--arch": arch, "--labels": labels, "--preprocess": preprocess, "--accuracy": accuracy}
    if path.is_dir():
        _refuse(described, f"{model} is a folder that says so itself")
        return _folder(path)
    if suffix == ".onnx":
        _refuse({"--arch": arch}, "an ONNX file has its own graph")
        if labels is None:
            raise InputError(
                f"{model} needs --labels FILE, with one label a line in the order of its scores."
            )
        return OwnONNX(file=model, labels=labels, preprocess=preprocess, accuracy=accuracy)
    if suffix in SUFFIXES or path.is_file():
        _refuse({"--preprocess": preprocess}, "weights are prepared for as their --arch says")
        if task == "promptable":
            _refuse({"--labels": labels, "--accuracy": accuracy}, "prompts have no classes")
            if arch is None:
                raise InputError(f"{model} needs --arch NAME, such as sam_vit_base: nothing else says it.")
            return OwnPromptable(file=model, arch=arch)
        if arch is None or labels is None:
            raise InputError(
                f"{model} needs --arch NAME and --labels FILE: without them nothing can be built."
            )
        return OwnHead(file=model, arch=arch, labels=labels, accuracy=accuracy)
    if os.sep in model:
        raise InputError(f"There is no file or folder at {model}: check the path.")
    _refuse(described, f"{model} is a name of the catalogue, which says so itself")
    return Named(name=model)


def _refuse(described: Mapping[str, object], why: str) -> None:
    for option, value in described.items():
        if value is not None:
            raise InputError(f"{option} describes a file: leave it out ({why}).")


def _folder(path: Path) -> Source:
    if (path / TRAINED).is_file():
        return TrainedRuns([path])
    if (path / MANIFEST).is_file():
        shipped = Shipped(path=path, artifact=artifact.open_artifact(path))
        if shipped.task not in Shipped.tasks:
            raise InputError(
                f"{path} is to {shipped.task}: optimise the ONNX file that it was made from, with --task "
                f"{shipped.task}, --labels and --preprocess."
            )
        return shipped
    raise InputError(
        f"{path} is neither a training run ({TRAINED}) nor an artifact ({MANIFEST}): give one of these, a "
        "file, or a name that `vitrail models` lists."
    )


@dataclass(frozen=True, kw_only=True)
class Named(Source):
    """One model of the catalogue."""

    tasks: ClassVar[tuple[str, ...]] = ("classify", "promptable")
    name: str
    """Or a glob that matches one."""

    @property
    def keeps_catalogue_out(self) -> bool:
        """It stands alone."""
        return True

    def check_settings(self, settings: SearchSettings) -> None:
        """Refuse a name that is of none, or of several. Raises InputError, with the choices."""
        self._candidate(settings.task)

    def find(self, context: Context) -> Found:
        """The one. Raises InputError as `check_settings`."""
        task = context.settings.task
        return Found(candidates=(replace(self._candidate(task), task=task),))

    def _candidate(self, task: str) -> Candidate:
        found = catalog.find([self.name], task)
        exact = [each for each in found if each.name == self.name]
        if len(found) > 1 and not exact:
            names = some_of([each.name for each in found], SHOWN)
            raise InputError(
                f"{self.name} is {len(found)} models, and one is optimised: choose one of {names}."
            )
        return (exact or found)[0]


@dataclass(frozen=True, kw_only=True)
class OwnHead(OwnWeights):
    """A person's own weights with the head that they have."""

    answers: ClassVar[str] = "its own head"

    def check(self, requirements: Requirements, settings: SearchSettings, dataset: Dataset | None) -> None:
        """Refuse labelled images of other classes. Raises InputError."""
        check_classes(self.file, read_labels(self.labels), dataset)


@dataclass(frozen=True, kw_only=True)
class Shipped(Source):
    """What an artifact was made from: its weights, or where they are gone, its own ONNX file."""

    tasks: ClassVar[tuple[str, ...]] = ("classify", "embed")
    answers: ClassVar[str] = "its own head"
    path: Path
    artifact: Artifact

    @property
    def task(self) -> str:
        """What the artifact is for."""
        return self._made_from.task

    def licenses(self) -> tuple[str, ...]:
        """What its weights' are."""
        return (self._made_from.weights.license,)

    def check(self, requirements: Requirements, settings: SearchSettings, dataset: Dataset | None) -> None:
        """Refuse labelled images of other classes, or that its head was fitted to. Raises InputError."""
        if dataset is None or self.task != "classify":
            return
        check_classes(str(self.path), read_labels(self.path / LABELS), dataset)
        fitted = set(self.artifact.fitted_images())
        judging = [each for split in ("validation", "test") for each in dataset.of(split)]
        shared = sum(each.digest in fitted for each in judging)
        if shared:
            raise InputError(
                f"{self.path} was fitted to {shared} of the images of {dataset.name} that would judge it "
                "(the split changed since): give the data as it was, or other images."
            )

    def find(self, context: Context) -> Found:
        """The one candidate, and a note on what it is read from.

        Raises:
            InputError: its weights are gone, and it has no fp32 ONNX file of its own.
        """
        candidate, gone = self._made_from, self._gone(context)
        if gone:
            return self._from_onnx(context, gone)
        weights = candidate.weights
        note = f"{self.path} was made from {weights.source} {weights.reference}, which is optimised"
        return Found(candidates=(self._with_labels(candidate),), notes=(note,))

    @property
    def _made_from(self) -> Candidate:
        return self.artifact.manifest.variant.candidate

    def _gone(self, context: Context) -> str:
        """Why the weights that it was made from cannot be used; "": they can."""
        candidate = self._made_from
        weights = candidate.weights
        if candidate.trained_with == "onnx":
            return "it was made from an ONNX file"
        if weights.source == "file" and not Path(weights.reference).is_file():
            return f"{weights.reference} is gone"
        located = context.bench.weights(candidate)
        if located is None:
            return str(context.bench.unavailable(candidate)).rstrip(".")
        changed = weights.sha256 is not None and located.weights.sha256 != weights.sha256
        return f"{weights.reference} is not what it was" if changed else ""

    def _with_labels(self, candidate: Candidate) -> Candidate:
        """With the artifact's own labels where they came from a file, which may be gone."""
        if candidate.task != "classify" or not os.path.isabs(candidate.labels):
            return candidate
        return replace(candidate, labels=str((self.path / LABELS).absolute()))

    def _from_onnx(self, context: Context, gone: str) -> Found:
        variant = self.artifact.manifest.variant
        plain = variant.runtime == "onnxruntime" and variant.precision == "fp32" and not variant.passes
        if not plain or self.task != "classify":
            raise InputError(
                f"The weights of {self.path} cannot be used ({gone}), and it holds no fp32 ONNX file to "
                "start from: give the weights with --arch and --labels."
            )
        if getattr(self.artifact.task, "probability", "softmax") != "softmax":
            raise InputError(
                f"The weights of {self.path} cannot be used ({gone}), and its ONNX file alone does not say "
                "that its probabilities are not of a softmax: give the weights with --arch and --labels."
            )
        known = variant.candidate.accuracy
        source = OwnONNX(
            file=str(self.artifact.model_folder / self.artifact.manifest.graphs[0].entry),
            labels=str(self.path / LABELS),
            preprocess=as_toml(variant.preprocess),
            accuracy=None if known is None else known.value,
            license=variant.candidate.weights.license,
        )
        found = source.find(context)
        note = f"its weights cannot be used ({gone}): the ONNX file of {self.path} is optimised"
        return replace(found, notes=(note, *found.notes))


def as_toml(preprocess: Preprocess) -> dict[str, object]:
    """The keys of `--preprocess` that say the same."""
    names = ("image_size", "crop", "crop_mode", "interpolation")
    said: dict[str, object] = {name: getattr(preprocess, name) for name in names}
    return {**said, "range": 1, "mean": list(preprocess.mean), "std": list(preprocess.std)}


def check_classes(model: str, labels: tuple[str, ...], dataset: Dataset | None) -> None:
    """Raise an InputError for labelled images of other classes than the model's."""
    if dataset is None or set(labels) == set(dataset.classes):
        return
    own, theirs = set(labels), set(dataset.classes)
    only = ((model, sorted(own - theirs)), ("the data", sorted(theirs - own)))
    said = "; ".join(f"only {who} has {some_of(names, SHOWN)}" for who, names in only if names)
    raise InputError(
        f"{model} answers other classes than {dataset.name} has ({said}): give images of exactly its "
        "classes, under these names."
    )

"""A person's own ONNX file as a candidate: what another tool exported, on the road of all candidates."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from vitrail.data import Dataset
from vitrail.errors import InputError
from vitrail.export.requests import OwnGraph, OwnRequest
from vitrail.images.labels import read_labels
from vitrail.masks import dataset as mask_data
from vitrail.measure import sandbox
from vitrail.sources.prepared import Prepared, example, prepared
from vitrail.sources.source import Context, Found, Source
from vitrail.tasks.segment import check_whole_photo
from vitrail.units import percent
from vitrail.vocabulary import Accuracy, Candidate, Requirements, SearchSettings, Weights
from vitrail.words import some_of

__all__ = ["NeedsPreprocess", "OwnONNX"]

READ_TIMEOUT_S = 300.0
READ_MEMORY_MIB = 8192.0
"""Of the process that reads the file, which nobody has checked before."""


class NeedsPreprocess(InputError):
    """The file does not say how its images are prepared; `example` is a TOML file to edit."""

    def __init__(self, message: str, example: str) -> None:
        super().__init__(message)
        self.example = example


@dataclass(frozen=True, kw_only=True)
class OwnONNX(Source):
    """An ONNX file of the user's, with what cannot be read from it."""

    option: ClassVar[str] = "onnx"
    tasks: ClassVar[tuple[str, ...]] = ("classify", "segment")
    answers: ClassVar[str] = "its own head"
    file: str
    labels: str
    """File with one label a line, in the order of the scores."""
    preprocess: str | Path | Mapping[str, object] | None = None
    """A TOML file, or the same keys, that say how images are prepared (docs/command-line.md); None: they are
    asked for."""
    accuracy: float | None = None
    """The task's main figure (top-1, mean IoU) in % as the user declares it."""
    license: str = "own"

    @property
    def keeps_catalogue_out(self) -> bool:
        """No: its classes may be the catalogue's, and whoever names models beside it says so."""
        return False

    def licenses(self) -> tuple[str, ...]:
        """What the user stated."""
        return (self.license,)

    def check_settings(self, settings: SearchSettings) -> None:
        """Refuse what is not a file, and all that can be said without running it.

        Raises:
            NeedsPreprocess: nothing says how its images are prepared.
            InputError: another mistake.
        """
        _check_file(self.file)
        if self.accuracy is not None:
            percent(self.accuracy, "--accuracy")
        if settings.implementations and "onnx" not in settings.implementations:
            raise InputError(
                "--onnx runs the file's own graph: add onnx to --implementations, or leave that option out."
            )
        read_labels(self.labels)
        if self.preprocess is None:
            facts = _in_a_child("inspect", {"file": self.file}, self.file)
            raise NeedsPreprocess(
                f"{self.file} does not say how its images are prepared: write that into a TOML file, and "
                "give it with --preprocess.",
                example(facts, Path(self.file).name, settings.task),
            )
        said = self.prepared
        if settings.task == "segment":
            _check_masks(settings, said, self.preprocess)
        elif said.values is not None:
            raise InputError("values in --preprocess is about masks: give --task segment, or leave it out.")

    @cached_property
    def prepared(self) -> Prepared:
        """What the user says of images and scores. Raises InputError as `prepared.prepared`."""
        assert self.preprocess is not None
        return prepared(self.preprocess)

    def check(self, requirements: Requirements, settings: SearchSettings, dataset: Dataset | None) -> None:
        """Refuse labelled images of other classes than the file's: they could not say how good it is."""
        if dataset is None or settings.task == "segment":  # its masks were read by these labels
            return
        own, theirs = set(read_labels(self.labels)), set(dataset.classes)
        if own != theirs:
            parts = [
                (f"only {self.labels} has", sorted(own - theirs)),
                ("only the data has", sorted(theirs - own)),
            ]
            said = "; ".join(f"{who} {some_of(names)}" for who, names in parts if names)
            raise InputError(
                f"{self.labels} names other classes than {dataset.name} ({said}): give images of exactly "
                "these classes under these names, or declare its --accuracy instead of --data."
            )

    def read_labelled(self, place: str, settings: SearchSettings) -> Dataset:
        """Images by class, or photos with masks of the file's classes. Raises InputError as their readers."""
        if settings.task == "segment":
            return mask_data.load(place, read_labels(self.labels))
        return super().read_labelled(place, settings)

    def find(self, context: Context) -> Found:
        """The one candidate, which the bench reads from the file from now on.

        Raises:
            InputError: the file cannot become a candidate; with the fix.
        """
        said, labels = self.prepared, read_labels(self.labels)
        size = context.workload.image_size or said.preprocess.image_size
        assert context.workload.threads is not None
        request = OwnRequest(
            file=str(Path(self.file).absolute()),
            preprocess=replace(said.preprocess, image_size=size),
            classes=len(labels),
            batch_size=context.workload.batch_size,
            threads=context.workload.threads,
            input=said.input,
            output=said.output,
            layout=said.layout,
            channels=said.channels,
            task=context.settings.task,
            values=said.values,
        )
        context.doing(f"reading {self.file}")
        facts = _in_a_child("describe", msgspec.to_builtins(request), self.file)
        candidate = self._candidate(request, facts)
        context.bench.reads_own(candidate.name, request, msgspec.convert(facts["own"], OwnGraph))
        for note in facts["notes"]:
            context.note(note)
        return Found(candidates=(candidate,), notes=tuple(facts["notes"]))

    def _candidate(self, request: OwnRequest, facts: Mapping[str, Any]) -> Candidate:
        stem = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(self.file).stem).strip("-") or "own"
        # A declared accuracy belongs to the size it was measured at.
        at_home = request.preprocess.image_size == self.prepared.preprocess.image_size
        declared = None if self.accuracy is None or not at_home else self.accuracy
        return Candidate(
            name=f"{stem}.onnx",
            architecture=stem,
            family=stem,
            weights=Weights(source="file", reference=request.file, tag="onnx", license=self.license),
            preprocess=request.preprocess,
            accuracy=None
            if declared is None
            else Accuracy(value=declared, provenance="declared", source="--accuracy"),
            parameters=int(facts["parameters"]),
            macs=int(facts["macs"]),
            activations=int(facts["activations"]),
            labels=str(Path(self.labels).absolute()),
            note="the user's own ONNX file",
            task=request.task,
            trained_with="onnx",
        )


def _check_masks(settings: SearchSettings, said: Prepared, where: object) -> None:
    """Refuse what does not go with masks."""
    if settings.models:
        raise InputError("--models names models of the catalogue, none of which makes masks: leave it out.")
    if settings.layout is not None:
        raise InputError("--layout is about folders of classes: leave it out of --task segment.")
    name = "preprocess" if isinstance(where, Mapping) else str(where)
    check_whole_photo(said.preprocess, name, 'say crop_mode = "squash" and crop = 1.0, and mean it')


def _check_file(file: str) -> None:
    path = Path(file)
    if path.is_dir():
        raise InputError(f"{path} is a folder: give the ONNX file in it.")
    if not path.exists():
        raise InputError(f"There is no ONNX file at {path}: check its name.")
    if not path.is_file():
        raise InputError(f"{path} is no plain file: give an ONNX file.")


def _in_a_child(function: str, payload: Mapping[str, Any], file: str) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = sandbox.call(
            f"vitrail.export.own_onnx:{function}",
            payload,
            timeout_s=READ_TIMEOUT_S,
            memory_mib=READ_MEMORY_MIB,
            name=f"reading {file}",
        )
    except sandbox.ChildFailure as error:
        raise InputError(f"{error}: give another file, or export it again.") from None
    if "refused" in facts:
        raise InputError(facts["refused"])
    return facts

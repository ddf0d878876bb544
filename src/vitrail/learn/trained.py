"""What a training run leaves: its best weights, and a record that says what they are and how they came about.

The record makes the run a candidate like any other. Nothing here imports torch.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec

from vitrail import store
from vitrail.errors import InputError
from vitrail.learn.recipe import Leg
from vitrail.vocabulary import Candidate, Implementation, Preprocess, Training, TrainingEpoch, Weights
from vitrail.words import counted, utf8_all

__all__ = [
    "TRAINED",
    "WEIGHTS",
    "DamagedRecord",
    "Trained",
    "candidate_of",
    "read",
    "training_of",
    "write",
]

TRAINED = "trained.json"
WEIGHTS = "best.safetensors"
LABELS = "labels.txt"
SCHEMA_VERSION = 1


LEAST_CLASSES = {"promptable": 1}
"""Where it is not two: things are told from what is around them, and not from each other."""


class DamagedRecord(InputError):
    """It cannot be read; the run itself may be intact, and writes it again when resumed."""


class Trained(msgspec.Struct, frozen=True, kw_only=True):
    """One training run: the model, what it was trained on and how, and its curve."""

    schema_version: int = SCHEMA_VERSION
    name: str
    """The run's name, e.g. `textile-lite0`."""
    task: str = "classify"
    """What was learned: a name of `tasks.TASKS`."""
    architecture: str
    """timm's name without a tag, or one of ours."""
    family: str
    implementation: Implementation
    """Whose code was trained; other code cannot be expected to read the weights."""
    classes: list[str]
    """K names, in the order of the outputs."""
    preprocess: Preprocess
    parameters: int
    macs: int
    """Multiply-accumulates of one image at `preprocess.image_size`."""
    activations: int
    weights: str = WEIGHTS
    """File in the run's folder, safetensors."""
    sha256: str
    """Of that file."""
    license: str
    start: str
    """`random`, or the reference of the weights that training started from."""
    recipe: str
    recipe_digest: str
    data: str
    """The data set's path as it was given."""
    data_digest: str
    """`Dataset.digest` of it."""
    seen: list[str]
    """sha256 of the content of each image that the weights were trained on."""
    epochs: int
    """Epochs done."""
    finished: bool
    """Whether it reached its end, or the end of the leg before its extension."""
    history: list[TrainingEpoch]
    extended: list[Leg] = []
    """What was done before each extension."""
    guess: float | None = None
    """Loss of a model that only knows how common each class is; None: ln K, all are equally common."""


def read(folder: str | Path) -> Trained:
    """The record of the run in `folder`, after checking its weights' digest.

    Raises:
        InputError: there is no run, its record is damaged or from a newer Vitrail, or its weights are missing
            or not the ones it was written for.
    """
    file = Path(folder) / TRAINED
    try:
        data = file.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            f"{folder} holds no training run ({TRAINED} is missing): "
            "name the folder that `vitrail train` wrote."
        ) from None
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror}): check its permissions.") from None
    trained = _decoded(data, file)
    weights = Path(folder) / trained.weights
    if Path(trained.weights).name != trained.weights or not weights.is_file():
        raise InputError(f"The weights {weights} of this run are missing: put them back, or train again.")
    try:
        digest = store.sha256_file(weights)
    except OSError as error:
        raise InputError(f"{weights} cannot be read ({error.strerror}): check its permissions.") from None
    if digest != trained.sha256:
        raise InputError(
            f"{weights} changed after {TRAINED} was written: put the run's own weights back, or train again."
        )
    return trained


def _decoded(data: bytes, file: Path) -> Trained:
    try:
        document: Any = msgspec.json.decode(data)
        version = document.get("schema_version") if isinstance(document, dict) else None
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise InputError(
                f"{file} has schema_version {version}, newer than the {SCHEMA_VERSION} that this Vitrail "
                "reads: update Vitrail (pip install -U vitrail)."
            )
        trained = msgspec.convert(document, Trained)
    except (msgspec.DecodeError, RecursionError) as error:  # a ValidationError is a DecodeError
        raise DamagedRecord(f"{file} is damaged ({error}): resume the run to write it again.") from None
    least = LEAST_CLASSES.get(trained.task, 2)
    if len(trained.classes) < least or len(set(trained.classes)) < len(trained.classes):
        raise InputError(
            f"{file} is damaged (its classes are not {least} or more different names): train again."
        )
    return trained


def write(folder: str | Path, trained: Trained) -> None:
    """Write the record, whole or not at all. The weights it names must already exist.

    Raises:
        InputError: it cannot be written.
    """
    file = Path(folder) / TRAINED
    with store.writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    plain = utf8_all(msgspec.to_builtins(trained))
    store.atomic_write(file, msgspec.json.format(msgspec.json.encode(plain), indent=1) + b"\n")


def candidate_of(folder: str | Path, trained: Trained | None = None) -> Candidate:
    """The run as a candidate: its weights file, its classes as labels, no accuracy before it is measured.

    The labels are written next to the weights, one per line, unless they are already there. `trained`: the
    result of `read` for the folder, if it was already read.

    Raises:
        InputError: as in `read`, or the labels cannot be written.
    """
    trained = trained or read(folder)
    place = Path(folder).absolute()
    _write_labels(place / LABELS, trained.classes)
    tag = re.sub(r"[^A-Za-z0-9_-]+", "-", trained.name).strip("-") or "trained"
    return Candidate(
        name=f"{trained.architecture}.{tag}",
        architecture=trained.architecture,
        family=trained.family,
        weights=Weights(
            source="file",
            reference=str(place / trained.weights),
            tag=tag,
            sha256=trained.sha256,
            license=trained.license,
        ),
        preprocess=trained.preprocess,
        accuracy=None,
        parameters=trained.parameters,
        macs=trained.macs,
        activations=trained.activations,
        labels=str(place / LABELS),
        task=trained.task,
        trained_with=trained.implementation,
        note=_note(trained),
    )


def training_of(trained: Trained, candidate: str) -> Training:
    """The part of the record that goes into a selection, under the candidate's name."""
    return Training(
        candidate=candidate,
        recipe=trained.recipe,
        start=trained.start,
        epochs=trained.epochs,
        finished=trained.finished,
        history=tuple(trained.history),
    )


def _write_labels(file: Path, classes: list[str]) -> None:
    for name in classes:
        if name != name.strip() or "\n" in name or not name:
            raise InputError(f"The class {name!r} cannot be a line of {file}: rename it and train again.")
    text = "".join(f"{name}\n" for name in classes).encode("utf-8")
    # A finished run may be in a read-only place.
    if not (file.is_file() and file.read_bytes() == text):
        store.atomic_write(file, text)


def _note(trained: Trained) -> str:
    begun = "from random values" if trained.start == "random" else f"from {trained.start}"
    done = counted(trained.epochs, "epoch")
    ends = [str(ended) for _, ended in trained.extended]
    extended = f" (extended after {' and '.join(ends)})" if ends else ""
    open_end = "" if trained.finished else ", not finished"
    return f"trained on {trained.data}, {begun}, recipe {trained.recipe}, {done}{extended}{open_end}"

"""Work on a person's own ONNX file: what it is, the copy that engines get, and what the file itself answers.

Each function is the work of a child of measure/sandbox.py. The reference is the person's file in ONNX Runtime
in fp32, with no changes but one: where it ends in a Softmax or Sigmoid, the scores before that are read.

Shapes: B images, K classes, S image size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from onnx import TensorProto

from vitrail import store
from vitrail.errors import InputError
from vitrail.export import onnx_copy, onnx_widen, own_masks
from vitrail.export.onnx_cost import cost
from vitrail.export.onnx_ends import check_alone, chosen, read_input, shape_of, type_of
from vitrail.export.onnx_file import constants, open_model, required_inputs
from vitrail.export.onnx_run import folded, save, session
from vitrail.export.requests import OwnGraph, OwnRequest
from vitrail.tasks.classify import IMAGES, probabilities
from vitrail.vocabulary import Preprocess
from vitrail.words import counted

__all__ = ["OwnFile", "describe", "inspect", "open_own", "write_copy"]

TOLERANCE = 1e-4
"""Largest relative difference between the copy and the file, in fp32."""
CHECKED_BATCH = 3
"""A batch at which the copy must answer as the file does, image by image."""
SUMS_TO_ONE = 1e-3


@dataclass(frozen=True)
class OwnFile:
    """A person's file, opened and checked, with what is taken from it."""

    path: Path
    model: onnx.ModelProto
    own: OwnGraph
    scores: onnx_copy.Scores
    halves: bool = False
    """Whether its 16-bit numbers were widened."""

    def runner(self, threads: int) -> Callable[[np.ndarray], np.ndarray]:
        """float32 images (B, 3, S, S) -> the file's own scores (B, K), or maps (B, K, h, w).

        Raises:
            InputError: ONNX Runtime cannot run it.
        """
        kind = next(type_of(value) for value in self.model.graph.output if value.name == self.own.output)
        if self.scores.ended_in == "ArgMax":  # its output counts classes, its input scores them
            kind = TensorProto.FLOAT
        run = session(onnx_copy.with_output(self.model, self.scores.tensor, kind), threads, self.path)

        def answers(images: np.ndarray) -> np.ndarray:
            each = self.own.batch or len(images)
            rows = []
            for start in range(0, len(images), each):
                part = images[start : start + each]
                padded = np.concatenate([part, np.repeat(part[:1], each - len(part), axis=0)])
                given = onnx_copy.as_the_file_takes(padded, self.own)
                rows.append(run({self.own.input: given})[: len(part)])
            return onnx_copy.as_the_task_gives(np.concatenate(rows), self.own)

        return answers


def inspect(payload: dict[str, Any]) -> dict[str, Any]:
    """The names and shapes of a file's inputs (images first) and outputs, for an example of what to say.

    Payload: `file`. A person's mistake comes back as `{"refused": sentence}`.
    """
    try:
        model = open_model(Path(payload["file"]))
    except InputError as error:
        return {"refused": str(error)}
    inputs = sorted(required_inputs(model.graph), key=lambda value: len(shape_of(value)) != 4)
    if not inputs:
        return {"refused": f"{payload['file']} has no input: export it with one for images."}
    return {
        "inputs": [[value.name, shape_of(value)] for value in inputs],
        "outputs": [[value.name, shape_of(value)] for value in model.graph.output],
        "uint8": type_of(inputs[0]) == TensorProto.UINT8,
    }


def describe(payload: dict[str, Any]) -> dict[str, Any]:
    """What a candidate says of a file: how it is read, its cost, and notes; payload: a `OwnRequest`.

    A person's mistake comes back as `{"refused": sentence}`.
    """
    request = msgspec.convert(payload, OwnRequest)
    try:
        file = open_own(request)
        own, copy, _ = _copied(file, request)
    except InputError as error:
        return {"refused": str(error)}
    light = folded(copy, own.batch or 1)
    return {
        "own": msgspec.to_builtins(own),
        "notes": list(_notes(file, own, request)),
        **cost(light, own.batch or 1),
    }


def write_copy(request: OwnRequest, target: Path) -> dict[str, Any]:
    """Write the copy; facts for its manifest. Raises InputError as `describe`."""
    file = open_own(request)
    _, copy, difference = _copied(file, request)
    save(copy, target)
    if file.own.maps:
        height, width = file.own.sides
        return {
            "relative_difference": difference,
            "values": file.own.values,
            "height": height,
            "width": width,
        }
    return {
        "relative_difference": difference,
        "probability": file.scores.probability,
        "width": request.classes,
    }


def open_own(request: OwnRequest) -> OwnFile:
    """Open the file and find its images and scores.

    Raises:
        InputError: as `open_model`, or its inputs and outputs are not the task's, of square images.
    """
    path = Path(request.file)
    stored = open_model(path)
    halves = onnx_widen.has_halves(stored)
    model = onnx_widen.widened(stored) if halves else stored
    name = chosen("input", request.input, required_inputs(model.graph), path)
    output = chosen("output", request.output, list(model.graph.output), path)
    dense = request.task == "segment"
    scores = onnx_copy.scores_of(model.graph, output.name, dense=dense)
    check_alone(model, scores.tensor, name.name, path)
    layout, batch = read_input(name, request, path)
    own = OwnGraph(
        input=name.name,
        output=output.name,
        layout=layout,
        channels=request.channels,
        kind=type_of(name),
        batch=batch,
        data=store.digest_of([_digest(tensor) for _, tensor in constants(model)]),
    )
    file = OwnFile(path, model, own, scores, halves)
    if halves:
        _check_widened(file, stored, request)
    if not dense:
        return file
    given = file.runner(request.threads)(_noise(request.preprocess)[:1])
    return replace(file, own=own_masks.placed(given, own, request, scores))


def _check_widened(file: OwnFile, stored: onnx.ModelProto, request: OwnRequest) -> None:
    """Compare the file as it is stored with its numbers in float32, on images of noise.

    Raises:
        InputError: they differ by more than the rounding of 16 bits, or ONNX Runtime cannot run it as it is.
    """
    given = onnx_copy.as_the_file_takes(_noise(request.preprocess)[:1], file.own)
    given = np.concatenate([given] * (file.own.batch or 1))
    kind = next(type_of(value) for value in stored.graph.input if value.name == file.own.input)
    narrow = given.astype(np.float16) if kind == TensorProto.FLOAT16 else given

    def answer(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
        run = session(onnx_copy.with_output(model, file.scores.tensor, None), request.threads, file.path)
        return run({file.own.input: images})

    onnx_widen.check(answer(stored, narrow), answer(file.model, given), file.path)


# --- the copy -------------------------------------------------------------------------------------


def _copied(file: OwnFile, request: OwnRequest) -> tuple[OwnGraph, onnx.ModelProto, float]:
    """The copy, how it came about, and its relative difference to the file.

    A file that takes a fixed number of images gets a copy that takes any, where that answers the same.

    Raises:
        InputError: the file does not answer with these labels, or is bound to another batch.
    """
    images = _noise(request.preprocess)
    expected = _expected(file, images, request)

    def tried(batch: int | None) -> tuple[onnx.ModelProto, float]:
        copy = onnx_copy.normalised(
            file.model, file.own, size=request.preprocess.image_size, classes=request.classes, batch=batch
        )
        run = session(copy, request.threads, file.path)
        each = batch or len(images)
        given = np.concatenate([images] * each)[: max(each, len(images)) // each * each]
        rows = np.concatenate([run({IMAGES: given[i : i + each]}) for i in range(0, len(given), each)])
        return copy, _difference(rows, np.concatenate([expected] * each)[: len(rows)], file.path)

    fixed = file.own.batch
    if fixed is None:
        return file.own, *tried(None)
    try:
        copy, difference = tried(None)
        return msgspec.structs.replace(file.own, batch=None), copy, difference
    except InputError:
        if fixed != request.batch_size:
            raise InputError(
                f"{file.path} takes {counted(fixed, 'image')} at a time and its graph depends on that: "
                f"export it with a dynamic batch, or measure it with --batch-size {fixed}."
            ) from None
    return file.own, *tried(fixed)


def _expected(file: OwnFile, images: np.ndarray, request: OwnRequest) -> np.ndarray:
    """The file's scores of some images, which must be what the task needs, with these labels."""
    run = file.runner(request.threads)
    rows = run(images)
    if not file.own.maps:
        rows = _rows(file, rows, len(images), request)
    if not np.isfinite(rows).all():
        raise InputError(
            f"{file.path} gives scores that are not finite (NaN or infinity) for images of noise: check "
            "mean, std and range in --preprocess, or export it again."
        )
    alone = np.concatenate([run(image[None]).reshape(1, *rows.shape[1:]) for image in images])
    if not _relative(alone, rows) <= TOLERANCE:
        raise InputError(
            f"{file.path} gives an image other scores by itself than beside others: export it in "
            "evaluation mode (model.eval())."
        )
    if file.scores.ended_in:
        _check_ending(file, images, rows, request.threads)
    elif not file.own.maps and (rows >= 0).all() and np.abs(rows.sum(axis=1) - 1).max() < SUMS_TO_ONE:
        raise InputError(
            f"{file.path} gives probabilities (they sum to 1) and does not end in a Softmax, before which "
            "scores could be read: export it without its last step."
        )
    return rows


def _rows(file: OwnFile, given: np.ndarray, count: int, request: OwnRequest) -> np.ndarray:
    """A classifier's scores (B, K). Raises InputError if they are none."""
    shape = f"({', '.join(map(str, ('B', *given.shape[1:])))})"
    if given.ndim < 2 or given.shape[0] != count or any(side != 1 for side in given.shape[2:]):
        maps = given.ndim == 4 and given.shape[0] == count
        fix = "for masks, give --task segment" if maps else "name an output (B, K), or export one"
        raise InputError(
            f"{file.path} gives {file.own.output} {shape}, not one row of scores for each image, as "
            f"classifiers do: {fix}."
        )
    if given.shape[1] == 1:
        raise InputError(f"{file.path} gives one score for each image: export it with one for each class.")
    if given.shape[1] != request.classes:
        raise InputError(
            f"{file.path} gives {counted(given.shape[1], 'score')} and --labels holds "
            f"{counted(request.classes, 'label')}: give one label for each score, in their order."
        )
    return given.reshape(count, -1)


def _check_ending(file: OwnFile, images: np.ndarray, scores: np.ndarray, threads: int) -> None:
    """The probabilities of the scores must be what the file gives."""
    itself = replace(file, scores=onnx_copy.Scores(file.own.output))
    if file.own.maps:
        plain = msgspec.structs.replace(file.own, maps="")
        given = replace(itself, own=plain).runner(threads)(images)
        own_masks.check_ending(file.scores.ended_in, given, scores, file.path)
        return
    given = itself.runner(threads)(images)
    wanted = probabilities(scores, file.scores.probability)
    if not np.abs(given.reshape(wanted.shape) - wanted).max() <= TOLERANCE:
        raise InputError(
            f"{file.path} ends in a {file.scores.ended_in} that is not over the classes: export it without."
        )


def _relative(given: np.ndarray, expected: np.ndarray) -> float:
    wide = expected.astype(np.float64)
    return float(np.linalg.norm(given - wide)) / (float(np.linalg.norm(wide)) or 1.0)


def _difference(given: np.ndarray, expected: np.ndarray, path: Path) -> float:
    difference = _relative(given, expected)
    if not difference <= TOLERANCE:
        raise InputError(
            f"The copy of {path} with the task's names and batches answers otherwise than the file "
            f"(by {difference:.1e}, relative): export it with a dynamic batch."
        )
    return difference


def _notes(file: OwnFile, own: OwnGraph, request: OwnRequest) -> list[str]:
    name = file.path.name
    notes = own_masks.notes(name, own, file.scores, request) if own.maps else []
    if file.halves:
        notes.append(
            f"the 16-bit numbers of {name} are read as float32, which are the same numbers: precisions are "
            "Vitrail's to compare"
        )
    if file.scores.ended_in and not own.maps:
        notes.append(
            f"{name} ends in a {file.scores.ended_in}: its scores are read before it, which changes no answer"
        )
    if file.own.batch is not None and own.batch is None:
        notes.append(
            f"{name} was exported for {counted(file.own.batch, 'image')} at a time: its copy takes any "
            f"number, and gave the same scores at {CHECKED_BATCH}"
        )
    elif own.batch is not None:
        notes.append(
            f"{name} takes {counted(own.batch, 'image')} at a time, and so does what ships: export it with a "
            "dynamic batch for other numbers"
        )
    return notes


def _noise(preprocess: Preprocess) -> np.ndarray:
    """Images of noise as `Preprocess` would make them: what a graph does may depend on their range."""
    size = preprocess.image_size
    pixels = np.random.default_rng(0).integers(0, 256, (CHECKED_BATCH, 3, size, size)).astype(np.float32)
    mean, std = (
        np.array(values, np.float32).reshape(3, 1, 1) for values in (preprocess.mean, preprocess.std)
    )
    return np.asarray((pixels / 255 - mean) / std, np.float32)


def _digest(tensor: onnx.TensorProto) -> str:
    """Of a tensor's values, wherever the file keeps them."""

    return hashlib.sha256(tensor.raw_data or tensor.SerializeToString()).hexdigest()

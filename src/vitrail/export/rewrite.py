"""Graph -> graph: passes, then int8. Runs in the exporting process; a folder appears whole or not at all."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx

from vitrail import store, tasks
from vitrail.errors import VitrailError
from vitrail.export import onnx_run, passes
from vitrail.export.requests import REWRITTEN_FILE, QuantiseRequest, RewriteRequest
from vitrail.images.decode import decode

ONNX_FILE = "model.onnx"
CALIBRATION_CROPS = 1
RANKED_ON = 16
"""Photos on which accuracy control ranks the layers."""
BATCH = 8


class NotTyped(VitrailError):
    """TensorRT would not compute a graph in the precision that it was given."""


class DropTooLarge(VitrailError):
    """No number of layers in higher precision brings the loss within what is allowed."""


def rewrite(request: RewriteRequest) -> dict[str, Any]:
    """Apply what is asked for and write the new graph beside a manifest of what was done.

    Where passes find nothing to do at all, or one finds nothing that is also left out elsewhere, nothing is
    written, and `nothing` names them.
    """
    begin = time.perf_counter()
    model = onnx.load(Path(request.folder) / ONNX_FILE)
    changed = passes.apply(model, request.passes, request.preprocess)
    nothing = [name for name, places in changed.items() if not places]
    twins = [name for name in nothing if passes.known(name).sometimes]  # without it the graph is tried anyway
    if twins or (nothing and len(nothing) == len(changed)):
        return {"nothing": twins or nothing}
    facts: dict[str, Any] = {"places": changed}
    if request.quantise is not None:
        model, facts["int8"] = _quantised(model, request.quantise, request.threads)
    facts["seconds"] = time.perf_counter() - begin
    with store.atomic_folder(Path(request.target), overwrite=True) as folder:
        onnx_run.save(model, folder / ONNX_FILE)
        (folder / REWRITTEN_FILE).write_bytes(msgspec.json.encode(facts))
    return facts


def write_unsigned(int8: Path, folder: Path) -> None:
    """Write the int8 graph in folder `int8` with unsigned activations."""
    from vitrail.export.passes import quantize

    onnx_run.save(quantize.unsigned(onnx.load(int8 / ONNX_FILE)), folder / ONNX_FILE)


def write_typed(
    graph: Path, folder: Path, precision: str, measured: QuantiseRequest | None
) -> tuple[str, ...]:
    """Write the graph in folder `graph` with its precision in its types; names of the nodes left in float32.

    Raises:
        NotTyped: TensorRT would refuse what comes out, or compute it in another precision.
    """
    from vitrail.export.passes import islands, quantize, typed

    model = onnx.load(graph / ONNX_FILE)
    if precision == "int8":
        model = quantize.symmetric(model)
    kept = islands.islands(model, [] if measured is None else calibrating(measured))
    narrow = typed.half(model, kept=kept)
    if found := typed.check(narrow, precision):
        more = f", and {len(found) - 1} more" if len(found) > 1 else ""
        raise NotTyped(f"this graph has no {precision} form for TensorRT: {found[0]}{more}")
    onnx_run.save(narrow, folder / ONNX_FILE)
    return kept


def calibrating(request: QuantiseRequest) -> list[tasks.Arrays]:
    """The named inputs that int8 is calibrated on: a batch for each photo."""
    task = tasks.unpack(request.task)
    views = (task.views(decode(photo), CALIBRATION_CROPS) for photo in request.photos)
    return [next(tasks.batches(view, request.batch or CALIBRATION_CROPS))[0] for view in views]


def _quantised(
    model: onnx.ModelProto, request: QuantiseRequest, threads: int
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    from vitrail.export.passes import control, quantize

    task, inputs = tasks.unpack(request.task), calibrating(request)
    found, spared = control.spare_the_last(model, quantize.quantize(model, inputs), inputs[:RANKED_ON])
    if request.max_drop is None:
        return found, {"photos": len(inputs), "kept": spared, "tried": []}
    drop = _drop(model, task, request, threads)
    held = control.control(model, found, inputs[:RANKED_ON], drop, request.max_drop)
    if not held.holds:
        raise DropTooLarge(
            f"int8 loses {held.drop:.2g} points even with {len(spared) + len(held.kept)} layers in higher "
            "precision, "
            f"{request.max_drop:g} allowed"
        )
    tried = [(len(spared) + count, lost) for count, lost in held.tried]
    return held.model, {"photos": len(inputs), "kept": (*spared, *held.kept), "tried": tried}


def _drop(
    model: onnx.ModelProto, task: tasks.Task, request: QuantiseRequest, threads: int
) -> Callable[[onnx.ModelProto], float]:
    """What a graph loses against this one, in points, as the task counts it."""
    graph = task.graph(ONNX_FILE)
    name, output = graph.inputs[0].name, graph.outputs[0].name
    images = np.concatenate([task.views(decode(photo), 1)[name] for photo in request.judged])
    size = request.batch or BATCH
    reference = {output: outputs(model, name, images, size, threads)}

    def drop(graph: onnx.ModelProto) -> float:
        found = {output: outputs(graph, name, images, size, threads)}
        return task.lost(reference, found, request.labels)

    return drop


def outputs(model: onnx.ModelProto, name: str, images: np.ndarray, size: int, threads: int) -> np.ndarray:
    """The first output (n, ...) of a graph for images (n, ...), `size` at a time, in ONNX Runtime."""
    from vitrail.privacy import import_engine

    ort = import_engine("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    parts = tasks.batches({name: images}, size)
    return np.concatenate([session.run(None, part)[0][:real] for part, real in parts])

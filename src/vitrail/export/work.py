"""Work that needs torch: exports, heads, fp32 references. A process of sandbox.py does one job after another.

Loading torch, timm and the exporter takes as long as exporting a small model, so one process is kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from vitrail import store, tasks
from vitrail.export.requests import (
    BuildRequest,
    ExportRequest,
    HeadRequest,
    OwnRequest,
    ReferenceRequest,
    RewriteRequest,
)
from vitrail.images.labels import read_labels
from vitrail.tasks.classify import IMAGES
from vitrail.vocabulary import Preprocess

MANIFEST = "export.json"
ONNX_FILE, REFERENCE_FILE = "model.onnx", "reference.json"
LABELS_FILE = "labels.txt"
BUILT = "built.json"
"""Beside what an engine built: how long that took."""
EXPORT_VERSION = 4
TYPED_METHOD = "1"
"""Changes whenever the same graph and photos would become another typed graph."""
INT8_METHOD = "2"
"""Changes whenever the same model, photos and libraries would become another int8 graph."""
"""Part of an export's key: raise it when the same weights give different files."""


def export(payload: dict[str, Any]) -> dict[str, Any]:
    """Write one model's graph into a new folder, which appears whole or not at all."""
    import torch

    from vitrail.export import eager, onnx, passes
    from vitrail.weights.labels import labels

    request = msgspec.convert(payload, ExportRequest)
    if request.own is not None:
        return _export_own(request, request.own)
    torch.set_num_threads(request.threads)
    begin = time.perf_counter()
    if tasks.known(request.task).stages:
        return _export_stages(request, begin)
    names = () if request.features else labels(request.labels)
    model = eager.module(request, request.image_size, features=request.features)
    tolerance = onnx.RANDOM_TOLERANCE if request.weights is None else onnx.EXPORT_TOLERANCE
    shape = eager.check(model, request, request.image_size, tolerance)
    changed = passes.applied(model, request.passes)
    if changed is None:
        return {"nothing": request.passes}
    if request.passes:  # which tokens are merged is decided by comparing: rounding may merge others
        tolerance = onnx.RANDOM_TOLERANCE
    facts: dict[str, Any] = {"probability": getattr(model, "probability", "softmax"), "width": shape[-1]}
    if request.task == "segment":
        facts = {"values": "logits", "height": shape[-2], "width": shape[-1]}
    with store.atomic_folder(Path(request.folder), overwrite=True) as folder:
        (folder / LABELS_FILE).write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
        preprocess = Preprocess(image_size=request.image_size)  # the graph needs only its size
        task = tasks.known(request.task).of_export(
            preprocess, facts, lambda name: (folder / name).read_bytes()
        )
        graph = task.graph(ONNX_FILE)
        onnx.write_onnx(changed, graph, folder / ONNX_FILE)
        difference = onnx.check(changed, folder, graph, tolerance=tolerance)
        (folder / REFERENCE_FILE).write_bytes(msgspec.json.encode(request))
        return _write_manifest(folder, request, begin, {"relative_difference": difference, **facts})


def _export_own(request: ExportRequest, own: OwnRequest) -> dict[str, Any]:
    """The same for a person's own ONNX file: a copy with the task's names."""
    from vitrail.export import own_onnx

    begin = time.perf_counter()
    with store.atomic_folder(Path(request.folder), overwrite=True) as folder:
        (folder / LABELS_FILE).write_text(
            "".join(f"{name}\n" for name in read_labels(request.labels)), encoding="utf-8"
        )
        return _write_manifest(folder, request, begin, own_onnx.write_copy(own, folder / ONNX_FILE))


def _export_stages(request: ExportRequest, begin: float) -> dict[str, Any]:
    """The same for a module whose work has stages: a folder with a graph for each."""
    from vitrail.export import eager, onnx

    assert not request.passes, "no pass changes a module of several stages"
    model = eager.module(request, request.image_size)
    stages, facts = eager.stages(model), eager.stage_facts(model)
    tolerance = onnx.RANDOM_TOLERANCE if request.weights is None else onnx.EXPORT_TOLERANCE
    preprocess = Preprocess(image_size=request.image_size)
    task = tasks.known(request.task).of_export(preprocess, facts, lambda name: b"")
    with store.atomic_folder(Path(request.folder), overwrite=True) as folder:
        difference = 0.0
        for graph in task.graphs(ONNX_FILE):
            (folder / graph.entry).parent.mkdir()
            onnx.write_onnx(stages[graph.name], graph, folder / graph.entry)
            found = onnx.check(stages[graph.name], folder, graph, tolerance=tolerance)
            difference = max(difference, found)
            (folder / graph.entry).with_name(REFERENCE_FILE).write_bytes(msgspec.json.encode(request))
        return _write_manifest(folder, request, begin, {"relative_difference": difference, **facts})


def _write_manifest(
    folder: Path, request: ExportRequest, begin: float, facts: dict[str, Any]
) -> dict[str, Any]:
    manifest = {
        "seconds": time.perf_counter() - begin,
        "random_weights": request.weights is None,
        "toolchain": toolchain(),
        **facts,
    }
    (folder / MANIFEST).write_bytes(msgspec.json.encode(manifest))
    return manifest


def build(payload: dict[str, Any]) -> dict[str, Any]:
    """Build one engine's files from an export; the folder appears whole or not at all."""
    from vitrail import runtimes
    from vitrail.export import rewrite

    request = msgspec.convert(payload, BuildRequest)
    begin = time.perf_counter()
    with store.atomic_folder(Path(request.target), overwrite=True) as folder:
        if request.unsigned:
            rewrite.write_unsigned(Path(request.folder), folder)
            return {"seconds": time.perf_counter() - begin}
        if request.typed is not None:
            kept = rewrite.write_typed(Path(request.folder), folder, request.typed, request.measured)
            typed = {"seconds": time.perf_counter() - begin, "kept": list(kept)}
            (folder / BUILT).write_bytes(msgspec.json.encode(typed))
            return typed
        engine = runtimes.builder(request.runtime)
        if request.form is None:
            for stage in request.stages or [""]:
                (folder / stage).mkdir(exist_ok=True)
                engine.build(Path(request.folder) / stage / ONNX_FILE, folder / stage)
        else:
            inputs = [] if request.quantise is None else rewrite.calibrating(request.quantise)
            engine.build(Path(request.folder) / REFERENCE_FILE, folder, request.form, inputs)
        facts = {"seconds": time.perf_counter() - begin}
        (folder / BUILT).write_bytes(msgspec.json.encode(facts))
    return facts


def rewrite(payload: dict[str, Any]) -> dict[str, Any]:
    """See `export/rewrite.py`."""
    from vitrail.export import rewrite

    return rewrite.rewrite(msgspec.convert(payload, RewriteRequest))


def write_head(payload: dict[str, Any]) -> dict[str, Any]:
    """Write a model's weights with another linear classifier, after checking it against the features."""
    import torch
    from safetensors.torch import save_file

    from vitrail.export import eager

    request = msgspec.convert(payload, HeadRequest)
    torch.set_num_threads(request.threads)
    with np.load(request.head, allow_pickle=False) as head:
        model = eager.with_head(request, head["weight"], head["bias"])
    tensors = {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}
    partial = Path(request.target).with_suffix(".partial")
    save_file(tensors, partial)
    partial.replace(request.target)
    return {"tensors": len(tensors)}


def reference_outputs(payload: dict[str, Any]) -> dict[str, Any]:
    """Outputs of the fp32 reference on the photos' crops, saved as named arrays (photos, crops, ...).

    The reference is the eager model, or a person's own ONNX file as it is. Photos are taken in order until
    the time is up, but never fewer than `minimum` of them.
    """
    from vitrail.images.decode import decode

    request = msgspec.convert(payload, ReferenceRequest)
    task = tasks.unpack(request.task)
    answers = _eager(request, task) if request.own is None else _own(request.own, task)
    begin, rows = time.perf_counter(), []
    for photo in _until(request.photos, begin + request.seconds, request.minimum):
        rows.append(answers(task.views(decode(photo), request.crops_per_photo)))
    tasks.write_arrays(request.target, {name: np.stack([row[name] for row in rows]) for name in rows[0]})
    return {"photos": len(rows)}


def _eager(request: ReferenceRequest, task: tasks.Task) -> Callable[[tasks.Arrays], tasks.Arrays]:
    """Named inputs -> the eager model's outputs, which must be finite."""
    import torch

    from vitrail.export import eager
    from vitrail.weights.finite import check_outputs

    torch.set_num_threads(request.threads)
    model = eager.module(request, task.preprocess.image_size, features=request.features)
    run = eager.runner(model, task.graphs(REFERENCE_FILE))

    def answers(inputs: tasks.Arrays) -> tasks.Arrays:
        outputs = run(inputs)
        for name, values in outputs.items():
            check_outputs(torch.from_numpy(values), request.weights or request.architecture, name)
        return outputs

    return answers


def _own(own: OwnRequest, task: tasks.Task) -> Callable[[tasks.Arrays], tasks.Arrays]:
    """Named inputs -> the scores of a person's own ONNX file."""
    from vitrail.export import own_onnx

    run = own_onnx.open_own(own).runner(own.threads)
    (output,) = task.graph(REFERENCE_FILE).outputs
    return lambda inputs: {output.name: run(inputs[IMAGES])}


def toolchain() -> dict[str, str]:
    """Versions of every library involved in making the files."""
    from importlib import metadata

    names = ("torch", "timm", "onnx", "onnxscript", "openvino")
    return {name: metadata.version(name) for name in names}


def quantiser() -> dict[str, str]:
    """The versions of what makes int8, beside `toolchain`."""
    from importlib import metadata

    return {"nncf": metadata.version("nncf"), "method": INT8_METHOD}


def _until(photos: list[str], deadline: float, minimum: int) -> Iterator[str]:
    for count, photo in enumerate(photos):
        if count >= minimum and time.perf_counter() > deadline:
            return
        yield photo


class Jobs:
    """A process's side of `export/workshop.py`: libraries loaded, ready for one job after another."""

    def __init__(self) -> None:
        from vitrail.export import onnx

        onnx.warm_up()

    export = staticmethod(export)
    build = staticmethod(build)
    rewrite = staticmethod(rewrite)
    write_head = staticmethod(write_head)
    reference_outputs = staticmethod(reference_outputs)


def workshop(_: dict[str, Any]) -> Jobs:
    """The object whose methods answer the process's calls."""
    return Jobs()

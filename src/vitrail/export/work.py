"""Work that needs torch: exports, heads, fp32 references. A process of sandbox.py does one job after another.

Loading torch, timm and the exporter takes as long as exporting a small model, so one process is kept.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from vitrail import store, tasks
from vitrail.vocabulary import Implementation, Preprocess

MANIFEST = "export.json"
ONNX_FILE, REFERENCE_FILE = "model.onnx", "reference.json"
LABELS_FILE = "labels.txt"
EXPORT_VERSION = 4
"""Part of an export's key: raise it when the same weights give different files."""


class ExportRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What to export; `weights` None means random weights of a fixed seed."""

    architecture: str
    implementation: Implementation
    image_size: int
    labels: str
    """Name of a label set, or path of a file with one label per line."""
    weights: str | None
    folder: str
    threads: int
    task: str = "classify"
    """`embed`: without the classifier, (B, 3, S, S) -> (B, D) features."""
    compare: bool = True
    """Compare our module with timm's for the same weights."""

    @property
    def features(self) -> bool:
        """Whether the classifier is left out."""
        return self.task == "embed"


class BuildRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Which engine's files to build from an export's graph."""

    folder: str
    """Of the export."""
    runtime: str
    target: str
    """The folder to make."""


class HeadRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A linear classifier to replace a model's own; `weights` and `labels` are the model's."""

    architecture: str
    image_size: int
    labels: str
    weights: str
    head: str
    """`.npz` with `weight` (K, D) and `bias` (K)."""
    target: str
    """The safetensors file to write: all weights, including the new classifier."""
    threads: int


class ReferenceRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Which outputs of the fp32 eager reference to compute, and for how long at most; `weights` as above."""

    architecture: str
    implementation: Implementation
    task: dict[str, Any]
    """As `tasks.pack` gives it."""
    labels: str
    weights: str | None
    photos: list[str]
    crops_per_photo: int
    seconds: float
    minimum: int
    target: str
    threads: int

    @property
    def features(self) -> bool:
        """Whether the classifier is left out."""
        return bool(self.task["facts"]["name"] == "embed")


class Jobs:
    """A process's side of `export/workshop.py`: libraries loaded, ready for one job after another."""

    def __init__(self) -> None:
        from vitrail.export import onnx

        onnx.warm_up()

    def export(self, payload: dict[str, Any]) -> dict[str, Any]:
        """See `export`."""
        return export(payload)

    def build(self, payload: dict[str, Any]) -> dict[str, Any]:
        """See `build`."""
        return build(payload)

    def write_head(self, payload: dict[str, Any]) -> dict[str, Any]:
        """See `write_head`."""
        return write_head(payload)

    def reference_outputs(self, payload: dict[str, Any]) -> dict[str, Any]:
        """See `reference_outputs`."""
        return reference_outputs(payload)


def workshop(_: dict[str, Any]) -> Jobs:
    """The object whose methods answer the process's calls."""
    return Jobs()


def export(payload: dict[str, Any]) -> dict[str, Any]:
    """Write one model's graph into a new folder, which appears whole or not at all."""
    import torch

    from vitrail.export import eager, onnx
    from vitrail.weights.labels import labels

    request = msgspec.convert(payload, ExportRequest)
    torch.set_num_threads(request.threads)
    begin = time.perf_counter()
    names = () if request.features else labels(request.labels)
    model = eager.module(request, request.image_size)
    tolerance = onnx.RANDOM_TOLERANCE if request.weights is None else onnx.EXPORT_TOLERANCE
    width = eager.check(model, request, request.image_size, tolerance)
    facts: dict[str, Any] = {"probability": getattr(model, "probability", "softmax"), "width": width}
    with store.atomic_folder(Path(request.folder), overwrite=True) as folder:
        (folder / LABELS_FILE).write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
        preprocess = Preprocess(image_size=request.image_size)  # the graph needs only its size
        task = tasks.known(request.task).of_export(
            preprocess, facts, lambda name: (folder / name).read_bytes()
        )
        graph = task.graph(ONNX_FILE)
        onnx.write_onnx(model, graph, folder / ONNX_FILE)
        difference = onnx.check(model, folder, graph, tolerance=tolerance)
        (folder / REFERENCE_FILE).write_bytes(msgspec.json.encode(request))
        manifest = {
            "seconds": time.perf_counter() - begin,
            "relative_difference": difference,
            "random_weights": request.weights is None,
            "toolchain": toolchain(),
            **facts,
        }
        (folder / MANIFEST).write_bytes(msgspec.json.encode(manifest))
    return manifest


def build(payload: dict[str, Any]) -> dict[str, Any]:
    """Build one engine's files from an export's ONNX file; the folder appears whole or not at all."""
    from vitrail import runtimes

    request = msgspec.convert(payload, BuildRequest)
    begin = time.perf_counter()
    with store.atomic_folder(Path(request.target), overwrite=True) as folder:
        runtimes.implementation(request.runtime).build(Path(request.folder) / ONNX_FILE, folder)
    return {"seconds": time.perf_counter() - begin}


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
    """Outputs of the fp32 eager model on the photos' crops, saved as named arrays (photos, crops, ...).

    Photos are taken in order until the time is up, but never fewer than `minimum` of them.
    """
    import torch

    from vitrail.export import eager
    from vitrail.images.decode import decode
    from vitrail.weights.finite import check_outputs

    request = msgspec.convert(payload, ReferenceRequest)
    torch.set_num_threads(request.threads)
    task = tasks.unpack(request.task)
    graph = task.graph(REFERENCE_FILE)
    (output,) = graph.outputs
    model = eager.module(request, task.preprocess.image_size)
    begin, rows = time.perf_counter(), []
    with torch.inference_mode():
        for photo in _until(request.photos, begin + request.seconds, request.minimum):
            views = task.views(decode(photo), request.crops_per_photo)
            outputs = model(*(torch.from_numpy(views[spec.name]) for spec in graph.inputs)).float()
            check_outputs(outputs, request.weights or request.architecture, output.name)
            rows.append(outputs.numpy())
    tasks.write_arrays(request.target, {output.name: np.stack(rows)})
    return {"photos": len(rows)}


def toolchain() -> dict[str, str]:
    """Versions of every library involved in making the files."""
    from importlib import metadata

    names = ("torch", "timm", "onnx", "onnxscript", "openvino")
    return {name: metadata.version(name) for name in names}


def _until(photos: list[str], deadline: float, minimum: int) -> Iterator[str]:
    for count, photo in enumerate(photos):
        if count >= minimum and time.perf_counter() > deadline:
            return
        yield photo

"""What needs torch: exports, heads, fp32 references. A process of sandbox.py does one after another.

Loading torch, timm and the exporter takes as long as exporting a small model, so one process stays.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from vitrail import store
from vitrail.vocabulary import Implementation, Preprocess

MANIFEST = "export.json"
ONNX_FILE, IR_FILE, REFERENCE_FILE = "model.onnx", "model.xml", "reference.json"
LABELS_FILE = "labels.txt"
EXPORT_VERSION = 3
"""Part of an export's key: raise it when the files made from the same weights change."""

ENTRIES = {"onnx": ONNX_FILE, "openvino-ir": IR_FILE, "torch": REFERENCE_FILE}
"""The file an engine loads, by the file set it reads (`Runtime.files`)."""

FILE_SETS = {"onnx": (ONNX_FILE, ONNX_FILE + ".data"), "openvino-ir": (IR_FILE, "model.bin"), "torch": ()}
"""Files that ship with each set, where they exist."""


class ExportRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What to export; `weights` None means random weights of a fixed seed."""

    architecture: str
    implementation: Implementation
    image_size: int
    labels: str
    """Name of a label set, or path of a file with one label a line."""
    weights: str | None
    folder: str
    threads: int
    features: bool = False
    """Without the classifier: (B, 3, S, S) -> (B, D) features."""
    compare: bool = True
    """A module of ours with timm's of the same weights."""


class HeadRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A linear classifier to put in the place of a model's own; `weights` and `labels` are the model's."""

    architecture: str
    image_size: int
    labels: str
    weights: str
    head: str
    """`.npz` with `weight` (K, D) and `bias` (K)."""
    target: str
    """The safetensors file to write: all weights, the new classifier among them."""
    threads: int


class ReferenceRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Which scores of the fp32 eager reference to compute, and for how long at most; `weights` as above."""

    architecture: str
    implementation: Implementation
    preprocess: Preprocess
    labels: str
    weights: str | None
    photos: list[str]
    crops_per_photo: int
    seconds: float
    minimum: int
    target: str
    threads: int


class Workshop:
    """A process's side of `selection/workshop.py`: libraries loaded, ready for one job after another."""

    def __init__(self) -> None:
        from vitrail.export import onnx

        onnx.warm_up()

    def export(self, payload: dict[str, Any]) -> dict[str, Any]:
        """See `export`."""
        return export(payload)

    def write_head(self, payload: dict[str, Any]) -> dict[str, Any]:
        """See `write_head`."""
        return write_head(payload)

    def reference_scores(self, payload: dict[str, Any]) -> dict[str, Any]:
        """See `reference_scores`."""
        return reference_scores(payload)


def workshop(_: dict[str, Any]) -> Workshop:
    """What the process answers calls with."""
    return Workshop()


def export(payload: dict[str, Any]) -> dict[str, Any]:
    """Write all file sets of one model into a new folder; the folder appears whole or not at all."""
    import torch

    from vitrail.export import onnx, source
    from vitrail.weights.labels import labels

    request = msgspec.convert(payload, ExportRequest)
    torch.set_num_threads(request.threads)
    begin = time.perf_counter()
    names = () if request.features else labels(request.labels)
    model = source.module(request, request.image_size)
    tolerance = onnx.RANDOM_TOLERANCE if request.weights is None else onnx.EXPORT_TOLERANCE
    source.check(model, request, request.image_size, tolerance)
    with store.atomic_folder(Path(request.folder), overwrite=True) as folder:
        onnx.write_onnx(model, request.image_size, folder / ONNX_FILE)
        difference = onnx.check(model, folder / ONNX_FILE, request.image_size, tolerance=tolerance)
        onnx.write_openvino(folder / ONNX_FILE, folder / IR_FILE)
        (folder / REFERENCE_FILE).write_bytes(msgspec.json.encode(request))
        (folder / LABELS_FILE).write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
        manifest = {
            "seconds": time.perf_counter() - begin,
            "relative_difference": difference,
            "random_weights": request.weights is None,
            "toolchain": toolchain(),
            "probability": getattr(model, "probability", "softmax"),
        }
        (folder / MANIFEST).write_bytes(msgspec.json.encode(manifest))
    return manifest


def write_head(payload: dict[str, Any]) -> dict[str, Any]:
    """Write a model's weights with another linear classifier, after comparing it with its features."""
    import torch
    from safetensors.torch import save_file

    from vitrail.export import source

    request = msgspec.convert(payload, HeadRequest)
    torch.set_num_threads(request.threads)
    with np.load(request.head, allow_pickle=False) as head:
        model = source.with_head(request, head["weight"], head["bias"])
    tensors = {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}
    partial = Path(request.target).with_suffix(".partial")
    save_file(tensors, partial)
    partial.replace(request.target)
    return {"tensors": len(tensors)}


def reference_scores(payload: dict[str, Any]) -> dict[str, Any]:
    """Scores of the fp32 eager model on the photos' crops, saved as float32 (photos, crops, K).

    Photos are taken in order until the time is up, but never fewer than `minimum` of them.
    """
    import torch

    from vitrail.export import source
    from vitrail.images.decode import decode
    from vitrail.images.preprocess import crops
    from vitrail.weights.finite import check_outputs

    request = msgspec.convert(payload, ReferenceRequest)
    torch.set_num_threads(request.threads)
    model = source.module(request, request.preprocess.image_size)
    begin, rows = time.perf_counter(), []
    with torch.inference_mode():
        for photo in _until(request.photos, begin + request.seconds, request.minimum):
            batch = crops(decode(photo), request.preprocess, request.crops_per_photo)
            scores = model(torch.from_numpy(batch)).float()
            check_outputs(scores, request.weights or request.architecture, "scores")
            rows.append(scores.numpy())
    with open(request.target, "wb") as target:
        np.save(target, np.stack(rows), allow_pickle=False)
    return {"photos": len(rows)}


def toolchain() -> dict[str, str]:
    """Versions of every library that takes part in making the files."""
    from importlib import metadata

    names = ("torch", "timm", "onnx", "onnxscript", "openvino")
    return {name: metadata.version(name) for name in names}


def _until(photos: list[str], deadline: float, minimum: int) -> Iterator[str]:
    for count, photo in enumerate(photos):
        if count >= minimum and time.perf_counter() > deadline:
            return
        yield photo

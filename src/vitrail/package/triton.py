"""Triton Inference Server: a model repository of the preprocessing, the model, and an ensemble of both.

Sources: Triton's model configuration, its OpenVINO backend (src/openvino.cc), its ONNX Runtime and Python
backends (docs/decisions/handing-over.md).
"""

from __future__ import annotations

import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from vitrail.errors import InputError
from vitrail.images.decode import decode
from vitrail.images.preprocess import resized_short_side
from vitrail.package import pbtxt
from vitrail.package.order import Order, Tensor, copy_model, openvino_precision, tensors
from vitrail.package.pages import copy_file, write_page
from vitrail.package.pbtxt import Message, Word
from vitrail.package.wheel import add_wheel
from vitrail.words import shown

__all__ = ["write"]

TRITON = "25.11-py3"
"""The release whose OpenVINO backend was read: OpenVINO 2025.4."""
TYPES = {"float32": Word("TYPE_FP32"), "uint8": Word("TYPE_UINT8")}
DEFAULT_ENTRY = {"openvino": "model.xml", "onnxruntime": "model.onnx"}
ENCODED = "image"
"""The ensemble's input: the bytes of an image file."""
LABELS = "labels.txt"
MOST_DELAY_MS = 5.0
"""A request never waits longer than this for others to share its batch."""
LIBRARIES = ("numpy", "pillow", "msgspec")
"""What decoding and preprocessing import."""


def write(folder: Path, order: Order) -> tuple[str, ...]:
    """Write the repository, an image's Dockerfile and a client; notes for the person."""
    ends = tensors(order, "Triton")
    if order.runtime == "onnxruntime" and ends[0].batch is not None:
        raise InputError(
            f"{order.graph.entry} takes {ends[0].batch} images and no other number, which Triton's batching "
            "cannot use: use docker."
        )
    batch = order.max_batch or order.parts.images
    models = folder / "models"
    _preprocessing(models / f"{order.name}_preprocess", order, ends[0], batch)
    _model(models / f"{order.name}_model", order, ends, batch)
    _ensemble(models / order.name, order, ends, batch)
    wheel_version, note = add_wheel(folder, order.wheel)
    copy_file("triton_client.py", folder / "client.py")
    facts = {"name": order.name, "output": ends[1].name, "labels": order.labels is not None}
    facts["probability"] = getattr(order.artifact.task, "probability", None)
    (folder / "client.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    notes = (*([note] if note else []), *_notes(order, batch))
    page = _page(order, ends, batch, wheel_version, notes)
    write_page(folder / "Dockerfile", "triton/Dockerfile", page)
    write_page(folder / "README.md", "triton/README.md", page)
    return notes


def _page(
    order: Order, ends: tuple[Tensor, Tensor], batch: int, wheel: str, notes: tuple[str, ...]
) -> dict[str, Any]:
    return {
        "name": order.name,
        "image": f"{order.name.lower()}-triton",
        "artifact": shown(order.artifact.manifest.name),
        "license": shown(order.artifact.manifest.variant.candidate.weights.license),
        "backend": order.runtime,
        "input": ends[0],
        "output": ends[1],
        "classify": order.labels is not None,
        "batch": batch,
        "triton": TRITON,
        "version": wheel,
        "libraries": " ".join(f"{name}=={version(name)}" for name in LIBRARIES),
        "notes": notes,
    }


def _notes(order: Order, batch: int) -> list[str]:
    notes = []
    measured = order.artifact.manifest.evidence.workload.batch_size
    if order.runtime == "openvino":
        if openvino_precision(order) == "f32":
            notes.append(
                "Triton's OpenVINO backend cannot be asked for fp32: on a CPU with bf16 it computes in bf16, "
                "and the artifact's parity says nothing of that; openvino-model-server and docker keep fp32"
            )
        if batch > 1:
            notes.append(
                f"Triton's OpenVINO backend pads every batch to {batch} images: one alone takes as long"
            )
    if batch != order.parts.images:
        notes.append(f"the figures of the artifact are of batches of {measured}, not of {batch}")
    if order.settings:
        names = ", ".join(order.settings)
        notes.append(f"Triton's backend does not take {names}, with which the artifact was measured")
    return notes


# --- the three models -------------------------------------------------------------------------------


def _preprocessing(folder: Path, order: Order, image: Tensor, batch: int) -> None:
    """Vitrail's own decoding and preprocessing in the Python backend, with a photo to check it on."""
    task = order.artifact.task
    config: Message = {
        "name": f"{order.name}_preprocess",
        "backend": "python",
        "max_batch_size": batch,
        "input": [{"name": ENCODED, "data_type": Word("TYPE_STRING"), "dims": [1]}],
        "output": [_described(image)],
        # One process each: a batch would be decoded one image after another.
        "instance_group": [{"count": order.threads, "kind": Word("KIND_CPU")}],
        "parameters": pbtxt.parameters(
            {
                "preprocess": msgspec.json.encode(task.preprocess).decode(),
                "input": ENCODED,
                "output": image.name,
            }
        ),
    }
    place = _version_folder(folder, config)
    copy_file("triton_model.py", place / "model.py")
    photo = order.artifact.photos[0]
    shutil.copyfile(photo, place / f"photo{photo.suffix}")
    decoded = decode(photo, short_side=resized_short_side(task.preprocess))
    (values,) = task.prepare([decoded]).values()
    np.save(place / "prepared.npy", values, allow_pickle=False)


def _model(folder: Path, order: Order, ends: tuple[Tensor, Tensor], batch: int) -> None:
    config: dict[str, pbtxt.Value] = {
        "name": f"{order.name}_model",
        "backend": order.runtime,
        "max_batch_size": batch,
        "input": [_described(ends[0])],
        "output": [_scores(order, ends[1])],
        "instance_group": [{"count": order.parts.streams, "kind": Word("KIND_CPU")}],
        "dynamic_batching": {"max_queue_delay_microseconds": _delay_us(order) if batch > 1 else 0},
        "parameters": pbtxt.parameters(_engine(order)),
    }
    if order.graph.entry != DEFAULT_ENTRY[order.runtime]:
        config["default_model_filename"] = order.graph.entry
    place = _version_folder(folder, config)
    copy_model(order, place)
    _add_labels(folder, order)


def _ensemble(folder: Path, order: Order, ends: tuple[Tensor, Tensor], batch: int) -> None:
    image, result = ends
    steps: list[Message] = [
        _step(f"{order.name}_preprocess", {ENCODED: ENCODED}, {image.name: "prepared"}),
        _step(f"{order.name}_model", {image.name: "prepared"}, {result.name: result.name}),
    ]
    config: Message = {
        "name": order.name,
        "platform": "ensemble",
        "max_batch_size": batch,
        "input": [{"name": ENCODED, "data_type": Word("TYPE_STRING"), "dims": [1]}],
        "output": [_scores(order, result)],
        "ensemble_scheduling": {"step": steps},
    }
    _version_folder(folder, config)
    _add_labels(folder, order)


def _engine(order: Order) -> dict[str, str]:
    """The backend's parameters, as the artifact was measured."""
    streams = order.parts.streams
    if order.runtime == "onnxruntime":
        return {
            "intra_op_thread_count": str(max(order.threads // streams, 1)),  # each instance has its own
            "inter_op_thread_count": "1",
            "execution_mode": "0",
        }
    found = {
        "INFERENCE_NUM_THREADS": str(order.threads),
        "NUM_STREAMS": str(streams),
        "PERFORMANCE_HINT": "LATENCY",
        # The backend compiles for max_batch_size, and refuses smaller batches that are not padded.
        "ENABLE_BATCH_PADDING": "YES",
        "TARGET_DEVICE": "CPU",
    }
    if openvino_precision(order) == "bf16":
        found["HINT_BF16"] = "YES"
    return found


def _delay_us(order: Order) -> int:
    """How long a request may wait for others: half of what its limit leaves, at most `MOST_DELAY_MS`."""
    evidence = order.artifact.manifest.evidence
    limit, figures = evidence.requirements.max_latency_ms, evidence.latency.get("request")
    if limit is None or figures is None:
        return 0
    return int(1000 * min(max(limit - figures.judged.value, 0.0) / 2, MOST_DELAY_MS))


# --- parts of them ----------------------------------------------------------------------------------


def _described(tensor: Tensor) -> Message:
    return {"name": tensor.name, "data_type": TYPES[tensor.dtype], "dims": list(tensor.shape)}


def _scores(order: Order, tensor: Tensor) -> Message:
    described = _described(tensor)
    return {**described, "label_filename": LABELS} if order.labels is not None else described


def _step(model: str, given: dict[str, str], found: dict[str, str]) -> Message:
    return {
        "model_name": model,
        "model_version": -1,
        "input_map": [{"key": key, "value": value} for key, value in given.items()],
        "output_map": [{"key": key, "value": value} for key, value in found.items()],
    }


def _version_folder(folder: Path, config: Message) -> Path:
    place = folder / "1"
    place.mkdir(parents=True)
    (folder / "config.pbtxt").write_text(pbtxt.text(config), encoding="utf-8")
    return place


def _add_labels(folder: Path, order: Order) -> None:
    if order.labels is not None:
        (folder / LABELS).write_bytes("".join(f"{label}\n" for label in order.labels).encode("utf-8"))

"""OpenVINO Model Server: its configuration, the model, and the client's side of the work.

Sources: the server's docs/parameters.md and src/schema.cpp (docs/decisions/handing-over.md).
"""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath

from vitrail.errors import InputError
from vitrail.package.order import Order, Tensor, copy_model, openvino_precision, tensors
from vitrail.package.pages import copy_file, write_page
from vitrail.words import shown

__all__ = ["write"]

ENTRIES = (".xml", ".onnx")
"""What the server recognises as a model."""


def write(folder: Path, order: Order) -> tuple[str, ...]:
    """Write the configuration, the model and a client; notes for the person."""
    image, result = tensors(order, "OpenVINO Model Server")
    parts = order.parts
    entry = copy_model(order, folder / "models" / order.name / "1")
    if PurePosixPath(entry).suffix not in ENTRIES or "/" in entry:
        raise InputError(
            f"{entry} is no {' or '.join(ENTRIES)} file at the top of the model's folder: use docker."
        )
    for name, data in order.artifact.task.files().items():
        (folder / name).write_bytes(data)
    _write_json(folder / "config.json", {"model_config_list": [{"config": _config(order, image)}]})
    about = {"name": order.name, "input": image.name, "output": result.name, "batch": parts.images}
    _write_json(folder / "client.json", {**about, "task": order.artifact.manifest.task})
    copy_file("model_server_client.py", folder / "client.py")
    notes = _notes(order)
    facts = {
        "name": order.name,
        "artifact": shown(order.artifact.manifest.name),
        "license": shown(order.artifact.manifest.variant.candidate.weights.license),
        "input": image,
        "output": result,
        "batch": parts.images,
        "plugin": _plugin(order),
        "preprocess": order.artifact.task.preprocess,
        "notes": notes,
    }
    write_page(folder / "README.md", "model_server/README.md", facts)
    return notes


def _config(order: Order, image: Tensor) -> dict[str, object]:
    sides = ", ".join(map(str, (order.parts.images, *image.shape)))
    return {
        "name": order.name,
        "base_path": f"models/{order.name}",  # relative to config.json
        "shape": f"({sides})",
        "layout": {image.name: "NCHW" if image.dtype == "float32" else "NHWC"},
        "nireq": order.parts.streams,
        "target_device": "CPU",
        "plugin_config": _plugin(order),
    }


def _plugin(order: Order) -> dict[str, str]:
    """OpenVINO's properties as the artifact was measured."""
    found = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": openvino_precision(order),
        "INFERENCE_NUM_THREADS": str(order.threads),
        "NUM_STREAMS": str(order.parts.streams),
    }
    return {**found, **order.settings} if order.runtime == "openvino" else found


def _notes(order: Order) -> tuple[str, ...]:
    notes = [
        "the server neither decodes nor resizes as the artifact does: its clients must, as client.py shows",
    ]
    if order.runtime != "openvino":
        notes.append(
            "the artifact was measured on ONNX Runtime, and this server runs its ONNX file on OpenVINO: "
            "the figures are not of it"
        )
    return tuple(notes)


def _write_json(path: Path, document: object) -> None:
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")

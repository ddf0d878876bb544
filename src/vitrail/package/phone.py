"""What an app on a phone takes: the model's file, and inputs with which the app checks itself against fp32.

No code of ours is in the app, so each reference photo comes with the tensor that it becomes and the output
that it should give: an app can check the engine on a phone first, and its own preprocessing then.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from vitrail.errors import InputError
from vitrail.images.decode import decode
from vitrail.images.preprocess import resized_short_side
from vitrail.package.order import Order, copy_model
from vitrail.package.pages import write_page
from vitrail.runtimes import RUNTIMES, sized
from vitrail.store import sha256_file
from vitrail.tasks import agreement
from vitrail.tasks.classify import DECIDED_MARGIN
from vitrail.vocabulary import Graph, Preprocess, TensorSpec
from vitrail.words import shown

__all__ = ["APPS", "write"]

APPS = {
    "executorch": "phone/executorch.md",
    "litert": "phone/litert.md",
    "coreml": "phone/coreml.md",
}
"""Engine -> the template that says how an app loads its files. Another engine is a line and a template."""

UNITS = {
    "ALL": "all",
    "CPU_ONLY": "cpuOnly",
    "CPU_AND_GPU": "cpuAndGPU",
    "CPU_AND_NE": "cpuAndNeuralEngine",
}
"""CoreML's setting `compute_units` -> its name in Swift."""

FORMAT, SCHEMA_VERSION = "vitrail-phone", 1
MODEL, CHECK = "model", "check.json"


def write(folder: Path, order: Order) -> tuple[str, ...]:
    """Write the model, check.json with its tensors, and how to load them; notes for the person.

    Raises:
        InputError: the artifact's engine is not in `APPS`, or a file changed meanwhile.
    """
    manifest = order.artifact.manifest
    runtime = manifest.variant.runtime
    if runtime not in APPS:
        *first, last = (RUNTIMES[name].label for name in APPS)
        raise InputError(
            f"{order.artifact.path} runs on {RUNTIMES[runtime].label}, and this is for {', '.join(first)} "
            f"and {last}: make one with --runtimes {' or '.join(APPS)}."
        )
    # CoreML's entry lies in a package, which is a folder that an app takes whole.
    entry = PurePosixPath(copy_model(order, folder / MODEL)).parts[0]
    for name, data in order.artifact.task.files().items():
        (folder / name).write_bytes(data)
    graph = sized(order.graph, {"B": manifest.evidence.workload.batch_size})
    check = _check(order, graph, f"{MODEL}/{entry}", _photos(folder, order, graph))
    (folder / CHECK).write_text(json.dumps(check, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    notes = _notes(order, graph)
    facts = {
        "name": order.name,
        "artifact": shown(manifest.name),
        "license": shown(manifest.variant.candidate.weights.license),
        "label": RUNTIMES[runtime].label,
        "section": APPS[runtime],
        "check": check,
        "entry": entry,
        "stem": Path(entry).stem,
        "suffix": Path(entry).suffix.removeprefix("."),
        "units": UNITS[dict(manifest.variant.settings).get("compute_units", "ALL")],
        "version": "" if manifest.evidence.facts is None else manifest.evidence.facts.version,
        "notes": notes,
    }
    write_page(folder / "README.md", "phone/README.md", facts)
    return notes


def _photos(folder: Path, order: Order, graph: Graph) -> list[dict[str, Any]]:
    """Write each reference photo, the input that it becomes and the outputs; what they are called."""
    artifact = order.artifact
    expected, own = artifact.fp32_outputs(), artifact.own_outputs()
    for kind in ("photos", "inputs", "fp32", *(["here"] if own else [])):
        (folder / kind).mkdir()
    found = []
    for row, photo in enumerate(artifact.photos):
        shutil.copyfile(photo, folder / "photos" / photo.name)
        name = photo.relative_to(artifact.path).as_posix()
        if sha256_file(folder / "photos" / photo.name) != artifact.manifest.files[name].sha256:
            raise InputError(f"{photo} changed while it was copied: try again.")
        prepared = artifact.task.prepare([decode(photo)])
        entry: dict[str, Any] = {
            "image": f"photos/{photo.name}",
            "inputs": _write(folder / "inputs", row, prepared, graph.inputs),
            "fp32": _write(folder / "fp32", row, _row(expected, row), graph.outputs),
        }
        if own:  # empty where the files were never run
            entry["here"] = _write(folder / "here", row, _row(own, row), graph.outputs)
        if order.labels is not None:
            (scores,) = (values[row] for values in expected.values())
            ordered = np.sort(agreement.softmax(scores))
            lead = float(ordered[-1] - ordered[-2]) if len(ordered) > 1 else 1.0
            entry |= {"answer": int(scores.argmax()), "clear": lead >= DECIDED_MARGIN}
        found.append(entry)
    return found


def _row(outputs: dict[str, np.ndarray], row: int) -> dict[str, np.ndarray]:
    return {name: values[row : row + 1] for name, values in outputs.items()}


def _write(
    folder: Path, row: int, arrays: dict[str, np.ndarray], specs: tuple[TensorSpec, ...]
) -> dict[str, str]:
    """Write one image's tensors, repeated to fill the batch; {tensor: its file}."""
    found = {}
    for spec in specs:
        values = np.repeat(arrays[spec.name], int(spec.shape[0]), axis=0)
        assert values.shape == spec.shape, (values.shape, spec.shape)
        name = f"{row:02d}.bin" if len(specs) == 1 else f"{row:02d}-{spec.name}.bin"
        (folder / name).write_bytes(values.astype(np.dtype(spec.dtype).newbyteorder("<")).tobytes())
        found[spec.name] = f"{folder.name}/{name}"
    return found


def _check(order: Order, graph: Graph, model: str, photos: list[dict[str, Any]]) -> dict[str, Any]:
    """The document that an app reads."""
    manifest, task = order.artifact.manifest, order.artifact.task
    bounds = manifest.reference.bounds
    return {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "artifact": manifest.name,
        "license": manifest.variant.candidate.weights.license,
        "engine": manifest.variant.runtime,
        "precision": manifest.variant.precision,
        "model": model,
        "inputs": [_tensor(spec, task.preprocess) for spec in graph.inputs],
        "outputs": [
            {"name": spec.name, "shape": list(spec.shape), "dtype": spec.dtype} for spec in graph.outputs
        ],
        "task": manifest.task["name"],
        "probability": manifest.task.get("probability"),
        "labels": manifest.task.get("labels"),
        "bounds": {
            "cosine": bounds.cosine,
            "relative_error": bounds.relative_error,
            "agreement": bounds.agreement,
            "usual_norm": {
                name: agreement.usual_norm(np.linalg.norm(values, axis=-1))
                for name, values in order.artifact.fp32_outputs().items()
            },
        },
        "photos": photos,
    }


def _tensor(spec: TensorSpec, preprocess: Preprocess) -> dict[str, Any]:
    """An input, and how a photo becomes it, in words and numbers."""
    size, pixels = preprocess.image_size, spec.dtype == "uint8"
    layout = "NCHW" if spec.shape[1] == 3 else "NHWC"
    short = resized_short_side(preprocess)
    center = preprocess.crop_mode == "center"
    resized = f"the shorter side {short}" if center else f"the whole {short} x {short}"
    scaled = "as they are, 0 to 255" if pixels else "each divided by 255, less its mean, divided by its std"
    return {
        "name": spec.name,
        "shape": list(spec.shape),
        "dtype": spec.dtype,
        "bytes": "little-endian, row after row, without a header",
        "layout": layout,
        "channels": "RGB",
        "image_size": size,
        "mean": None if pixels else list(preprocess.mean),
        "std": None if pixels else list(preprocess.std),
        "preparation": f"turn it upright as its EXIF data says; make {resized} pixels "
        f"({preprocess.interpolation}, antialiased, 8 bits a channel); cut {size} x {size} out of its middle"
        f"; red, green, blue {scaled}",
    }


def _notes(order: Order, graph: Graph) -> tuple[str, ...]:
    batch = int(graph.inputs[0].shape[0])
    notes = []
    if order.artifact.manifest.evidence.figures:
        notes.append("its latency and memory were measured on another machine, not on a phone")
    if batch > 1:
        notes.append(f"the model takes {batch} images at once: each .bin holds one photo {batch} times")
    return tuple(notes)

"""What every target is given, and what they all need to know of an artifact."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from vitrail.artifact import Artifact
from vitrail.errors import InputError
from vitrail.hardware import usable_cores
from vitrail.install import extras_of
from vitrail.names import model_name
from vitrail.privacy import import_engine
from vitrail.runtimes import RUNTIMES, SYSTEMS, sized
from vitrail.runtimes.parts import IMAGES, Parts, parts_of
from vitrail.store import sha256_file
from vitrail.vocabulary import Graph, TensorSpec

__all__ = ["Order", "Tensor", "copy_model", "name_of", "openvino_precision", "tensors"]

SERVED = ("onnxruntime", "openvino")
"""Engines that other servers have too."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """An artifact whose files were verified, and how it is wanted."""

    artifact: Artifact
    name: str
    wheel: Path | None
    max_batch: int | None

    @property
    def runtime(self) -> str:
        """Raises InputError for an engine that other servers lack."""
        runtime = self.artifact.manifest.variant.runtime
        if runtime not in SERVED:
            raise InputError(
                f"{self.artifact.path} runs on {RUNTIMES[runtime].label}, which only Vitrail serves: "
                f"{self.instead_of_docker or 'use docker'}."
            )
        return runtime

    @property
    def instead_of_docker(self) -> str:
        """What to do where an image of Docker could not run the engine; "": it can."""
        engine = RUNTIMES[self.artifact.manifest.variant.runtime]
        serve = f"`vitrail serve {self.artifact.path}`"
        if engine.platforms and "linux" not in engine.platforms:
            where = " or ".join(SYSTEMS.get(each, each) for each in engine.platforms)
            return f"run {serve} on {where}{', or use phone' if engine.on_phones else ''}"
        if "cpu" in engine.devices:
            return ""
        extras = extras_of(engine.install)
        installed = f"vitrail[{','.join(['serve', *(extras or ['cuda'])])}] installed"
        then = "" if extras else f" (and then: {engine.install})"
        return (
            f"run {serve} on the machine with the GPU, or in an image of your own from one of NVIDIA's, with "
            f"{installed}{then}"
        )

    @property
    def threads(self) -> int:
        """Of the engine, as measured; where the workload says none: the usable cores."""
        evidence = self.artifact.manifest.evidence
        if evidence.workload.threads is not None:
            return evidence.workload.threads
        return evidence.facts.threads if evidence.facts is not None else usable_cores()

    @property
    def graph(self) -> Graph:
        """The graph with the letter B, under Vitrail's names."""
        (graph,) = self.artifact.manifest.graphs
        return graph

    @property
    def parts(self) -> Parts:
        """How the measured batch is divided into requests of the engine."""
        manifest = self.artifact.manifest
        batch = manifest.evidence.workload.batch_size
        return parts_of(sized(self.graph, {"B": batch}), self.threads, dict(manifest.variant.settings))

    @property
    def settings(self) -> dict[str, str]:
        """The engine's own settings, without those that are Vitrail's."""
        return {name: value for name, value in self.artifact.manifest.variant.settings if name != IMAGES}

    @property
    def labels(self) -> tuple[str, ...] | None:
        """None: the task has none."""
        return getattr(self.artifact.task, "labels", None)


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """An input or output under the name that it has in the model's file, which is how servers address it."""

    name: str
    shape: tuple[int, ...]
    """Without B."""
    dtype: str
    batch: int | None
    """The only B that the file takes; None: any."""


def name_of(artifact: Path, given: str | None) -> str:
    """What clients call the model: the given name, or the folder's.

    Raises:
        InputError: it cannot stand in an address.
    """
    return model_name(artifact.resolve().name if given is None else given, "with --name")


def copy_model(order: Order, folder: Path) -> str:
    """Copy the export into the new `folder`, compare digests, and return the entry's path in it."""
    manifest = order.artifact.manifest
    inside = f"{manifest.folder}/"
    for name, entry in manifest.files.items():
        if not name.startswith(inside):
            continue
        target = folder / name.removeprefix(inside)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(order.artifact.path / name, target)
        if sha256_file(target) != entry.sha256:
            raise InputError(f"{order.artifact.path / name} changed while it was copied: try again.")
    return order.graph.entry


def tensors(order: Order, server: str) -> tuple[Tensor, Tensor]:
    """The input and the output as the model's file names them.

    Raises:
        InputError: the file leaves one without a name, so that no server could address it.
    """
    ports = PORTS[order.runtime](order.artifact.model_folder / order.graph.entry)
    found = []
    for kind, specs, there in zip(
        ("input", "output"), (order.graph.inputs, order.graph.outputs), ports, strict=True
    ):
        if len(specs) != 1 or len(there) != 1 or not there[0][0]:
            raise InputError(
                f"{order.graph.entry} does not have one {kind} with a name, by which {server} would address "
                "it: export the model again, or use docker."
            )
        found.append(_tensor(specs[0], *there[0]))
    return found[0], found[1]


def _tensor(spec: TensorSpec, name: str, batch: int | None) -> Tensor:
    shape = tuple(int(side) for side in spec.shape[1:])
    return Tensor(name=name, shape=shape, dtype=spec.dtype, batch=batch)


Ports: TypeAlias = "list[tuple[str, int | None]]"
"""(name, "" if it has none; fixed B) of each input or output in a file."""


def _openvino_ports(path: Path) -> tuple[Ports, Ports]:
    from vitrail.runtimes.openvino import core

    model = core().read_model(path)
    inputs, outputs = (
        [
            (
                min(port.get_names(), default=""),
                None if port.partial_shape[0].is_dynamic else port.partial_shape[0].get_length(),
            )
            for port in ports
        ]
        for ports in (model.inputs, model.outputs)
    )
    return inputs, outputs


def _onnx_ports(path: Path) -> tuple[Ports, Ports]:
    ort = import_engine("onnxruntime")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    inputs, outputs = (
        [(node.name, node.shape[0] if isinstance(node.shape[0], int) else None) for node in nodes]
        for nodes in (session.get_inputs(), session.get_outputs())
    )
    return inputs, outputs


PORTS = {"openvino": _openvino_ports, "onnxruntime": _onnx_ports}


def openvino_precision(order: Order) -> str:
    """OpenVINO's INFERENCE_PRECISION_HINT as the evidence was taken: `f32` or `bf16`.

    An int8 graph says itself which operations are in int8; the hint is about the rest.
    """
    manifest = order.artifact.manifest
    precision = manifest.variant.precision
    if precision in ("fp32", "bf16"):
        return "bf16" if precision == "bf16" else "f32"
    if precision != "int8":
        raise InputError(f"{order.artifact.path} is {precision}, which OpenVINO's CPU has not: use docker.")
    facts = manifest.evidence.facts
    operations = dict(facts.details).get("operations", "") if facts is not None else ""
    return "bf16" if any(part.startswith("bf16:") for part in operations.split()) else "f32"

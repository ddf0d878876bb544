"""Engines that run an export's files without torch: one table, one file per engine.

Adding an engine is one new file with a `load` function and one line in `RUNTIMES`. The places for the
engines to come are named by their future lines:

    "pytorch-compiled"  export/compiled.py   (reference)      needs torch
    "tensorrt"          runtimes/tensorrt.py                   needs an NVIDIA GPU
    "coreml"            runtimes/coreml.py                     needs macOS
    "executorch"        runtimes/executorch.py                 its Python runtime imports torch

and `int8` is one more precision in an engine's `precisions`, with a quantising pass in export/.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from vitrail.errors import InputError, MissingExtraError, VitrailError
from vitrail.limits import input_bytes, whole
from vitrail.vocabulary import Precision, RunnerFacts

if TYPE_CHECKING:
    import numpy as np

__all__ = ["RUNTIMES", "EngineMismatch", "Runner", "Runtime", "installed", "load", "version"]


class EngineMismatch(VitrailError):
    """The engine does something else than it was asked to (precision, threads or shapes)."""


class Runner(Protocol):
    """A loaded export."""

    facts: RunnerFacts

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Score a batch: float32 (B, 3, H, W) of exactly the loaded shape -> float32 (B, K), a copy."""

    def close(self) -> None:
        """Free the engine's memory."""


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """One engine: how to load it, what it can do, and how to install it."""

    label: str
    loader: str
    """`module:function`, imported only when the engine is used."""
    distribution: str
    """The PyPI distribution whose version is part of every measurement's key."""
    module: str
    install: str
    precisions: tuple[Precision, ...]
    files: str
    """Which of an export's file sets the engine reads: `openvino-ir`, `onnx` or `torch`."""
    settings: tuple[str, ...] = ()
    """Engine options beyond threads and precision that a variant may name: they change the speed alone.
    Others write files, or change the precision behind the checks."""
    reference: bool = False
    """Measured and shown, never shipped."""


RUNTIMES: dict[str, Runtime] = {
    "openvino": Runtime(
        label="OpenVINO",
        loader="vitrail.runtimes.openvino:load",
        distribution="openvino",
        module="openvino",
        install="pip install vitrail",
        precisions=("fp32", "bf16"),
        files="openvino-ir",
        settings=("NUM_STREAMS", "ENABLE_CPU_PINNING", "ENABLE_HYPER_THREADING", "SCHEDULING_CORE_TYPE"),
    ),
    "onnxruntime": Runtime(
        label="ONNX Runtime",
        loader="vitrail.runtimes.onnxruntime:load",
        distribution="onnxruntime",
        module="onnxruntime",
        install="pip install vitrail",
        precisions=("fp32",),
        files="onnx",
        settings=("session.intra_op.allow_spinning",),
    ),
    "pytorch": Runtime(
        label="PyTorch eager",
        loader="vitrail.export.reference:load",
        distribution="torch",
        module="torch",
        install='pip install "vitrail[workbench]"',
        precisions=("fp32", "bf16"),
        files="torch",
        reference=True,
    ),
}


def version(name: str) -> str | None:
    """Version of a runtime's library as its package metadata says it; None if it is not installed."""
    from importlib import metadata

    try:
        return metadata.version(RUNTIMES[name].distribution)
    except metadata.PackageNotFoundError:
        return None


def installed() -> dict[str, str]:
    """Installed runtimes and the versions of their libraries, without importing any of them."""
    versions = {name: version(name) for name in RUNTIMES}
    return {name: found for name, found in versions.items() if found is not None}


def load(
    folder: Path,
    entry: str,
    *,
    runtime: str,
    precision: str,
    batch_size: int,
    image_size: int,
    threads: int,
    settings: Mapping[str, str] | None = None,
) -> Runner:
    """Load an export's file with the engine set as asked, and check that the engine agrees.

    Args:
        folder: the export's (or artifact's) folder.
        entry: file inside `folder` that the engine loads.
        runtime: a name of `RUNTIMES`.
        precision: one of that runtime's precisions.
        batch_size: B; the runner takes exactly this batch.
        image_size: H = W in pixels.
        threads: number of inference threads, >= 1.
        settings: engine options beyond these, as the variant names them.

    Raises:
        InputError: unknown runtime, a precision or setting that it does not have, or a number out of range.
        MissingExtraError: the engine is not installed.
        EngineMismatch: precision, threads or shapes read back differ from what was asked.
    """
    if runtime not in RUNTIMES:
        raise InputError(f"Unknown runtime {runtime!r}: choose one of {', '.join(RUNTIMES)}.")
    engine = RUNTIMES[runtime]
    if precision not in engine.precisions:
        raise InputError(f"{engine.label} has no {precision} here: choose {' or '.join(engine.precisions)}.")
    unknown = [name for name in settings or {} if name not in engine.settings]
    if unknown:
        raise InputError(f"{engine.label} takes no setting {unknown[0]} here: check the settings.")
    if version(runtime) is None:
        raise MissingExtraError(engine.label, engine.install)
    whole("threads", threads)
    input_bytes(batch_size, image_size)
    module, function = engine.loader.split(":")
    runner: Runner = getattr(importlib.import_module(module), function)(
        folder / entry,
        precision=precision,
        batch_size=batch_size,
        image_size=image_size,
        threads=threads,
        settings=dict(settings or {}),
    )
    _check_shapes(runner.facts, batch_size, image_size)
    return runner


def _check_shapes(facts: RunnerFacts, batch_size: int, image_size: int) -> None:
    asked = (batch_size, 3, image_size, image_size)
    if facts.input_shape != asked:
        raise EngineMismatch(f"{facts.runtime} takes input {facts.input_shape}, asked was {asked}.")
    if facts.output_shape[0] != batch_size:
        raise EngineMismatch(
            f"{facts.runtime} gives output {facts.output_shape} for a batch of {batch_size}."
        )

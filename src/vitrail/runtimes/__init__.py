"""Engines that run an export's files without torch: one table, one file per engine.

Adding an engine is one new file and one line in `RUNTIMES`. The file has

    load(path, graph, target, *, threads, settings) -> Runner
    build(onnx, folder)               if the engine reads files other than ONNX
    build(reference, folder, form, calibration)    if it builds them of the module, for one `requests.Form`;
                                      int8 is calibrated on named inputs, a batch for each photo
    probe(n, target, threads)         seconds of one n x n matrix product, for lower bounds on latency; not
                                      of an engine that is measured only where it is named, nor of a GPU's
    memory(device) -> (peak, now)     in MiB, if its devices have memory of their own; a GPU's by default

A graph in int8 says so itself, in pairs of QuantizeLinear and DequantizeLinear (export/passes/quantize.py):
an engine that has it in `precisions` reads them.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Protocol, TypeAlias, runtime_checkable

from vitrail import gpu, hardware
from vitrail.errors import InputError, MissingExtraError, VitrailError
from vitrail.limits import input_bytes, whole
from vitrail.runtimes.parts import IMAGES
from vitrail.vocabulary import Graph, Precision, RunnerFacts, Target, TensorSpec, Variant

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "RUNTIMES",
    "Arrays",
    "Builder",
    "EngineMismatch",
    "Lanes",
    "Runner",
    "Runtime",
    "builder",
    "building",
    "elsewhere",
    "implementation",
    "installed",
    "kind_of",
    "letters",
    "load",
    "memory",
    "missing",
    "side_by_side",
    "sized",
    "version",
]

Arrays: TypeAlias = "Mapping[str, np.ndarray]"
"""Tensors by their names."""


class EngineMismatch(VitrailError):
    """The engine does something other than it was asked to (precision, threads or shapes)."""


class Runner(Protocol):
    """A loaded graph of an export."""

    @property
    def facts(self) -> RunnerFacts:
        """What the engine says it does."""

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Named inputs of exactly the loaded shapes -> named outputs, which are copies."""

    def close(self) -> None:
        """Free the engine's memory."""


@runtime_checkable
class Lanes(Protocol):
    """A runner whose batch is single images side by side (parts.py); callers may also run them one by one."""

    @property
    def lanes(self) -> int:
        """Threads that may be in `run_lane` at once, each with its own number below this; 1: use `run`."""

    def run_lane(self, lane: int, inputs: Arrays) -> dict[str, np.ndarray]:
        """As `run`, for one image, on one thread."""


@dataclass(frozen=True, kw_only=True)
class Builder:
    """What builds an engine's files, where running them does not need it."""

    label: str
    code: str
    """The module that has `build`."""
    distribution: str
    """Its version is part of the key of what it builds."""
    install: str
    """Of the builder and the engine."""


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """One engine: where its code is, what it can do, and how to install it."""

    label: str
    code: str
    """The module that has `load`, imported only when the engine is used."""
    distribution: str
    """The PyPI distribution whose version is part of every measurement's key."""
    module: str
    carried_by: tuple[str, ...] = ()
    """Other distributions that hold the same library, and are installed in its place."""
    install: str
    precisions: Mapping[str, tuple[Precision, ...]]
    """On each kind of device."""
    files: tuple[str, ...]
    """The files the engine reads, first the one that it is given; the others may be absent. () where the
    model runs elsewhere."""
    builds: bool = False
    """Whether these files are built by `build`, from the ONNX file unless it says `of_module`."""
    of_module: bool = False
    """They are built of the module, for one batch: passes that rewrite the ONNX graph do not reach them."""
    compiles: bool = False
    """It compiles C++ for one precision, batch and number of threads: this takes a compiler, and minutes."""
    build_s: float = 0.0
    """Seconds that building of the module is expected to take before it did once; 0: little."""
    plans: bool = False
    """Where it is first loaded, it compiles the graph for that GPU and batch: this takes minutes."""
    typed: bool = False
    """It takes the precision from the types of the graph's tensors alone, and int8 around zero alone."""
    unsigned: bool = False
    """It is quick in int8 where activations are unsigned, and slow where they are not."""
    open_sizes: bool = False
    """It can be loaded with sizes left open, which each call then chooses."""
    settings: tuple[str, ...] = ()
    """Engine options besides threads and precision that a variant may name: they change only the speed.
    `images_per_request` is not the engine's but ours (parts.py).
    Others write files, or change the precision without the checks noticing."""
    sharing: tuple[tuple[str, str], ...] = ()
    """Settings with which waiting threads leave the cores to others, for many images at once."""
    reference: bool = False
    """Measured and shown, never shipped."""
    named_only: bool = False
    """Measured only where `--runtimes` names it; `optimize` measures all references."""
    builder: Builder | None = None
    """None: the engine builds its files itself, in `code`."""
    loads: str = ""
    """A library beside the engine that its process loads: figures of memory hold it, and are said to."""
    platforms: tuple[str, ...] = ()
    """Where it runs, as in `sys.platform`; (): everywhere. Elsewhere its files can only be built."""
    on_phones: bool = False
    """Whether phones have it too, and read the same files."""

    @property
    def devices(self) -> tuple[str, ...]:
        """The kinds of devices it runs on."""
        return tuple(self.precisions)

    def on(self, device: str) -> tuple[Precision, ...]:
        """Its precisions on a device; () where it does not run there."""
        return self.precisions.get(kind_of(device), ())

    @property
    def entry(self) -> str:
        """The file that the engine is given; "": none."""
        return self.files[0] if self.files else ""


SYSTEMS = {"darwin": "macOS", "linux": "Linux", "win32": "Windows"}
"""What people call the platforms."""


def kind_of(device: str) -> str:
    """`cuda` of `cuda:1`."""
    return device.partition(":")[0]


def elsewhere(name: str) -> str:
    """Where an engine runs that does not run on this platform, e.g. "macOS"; "": it may run here."""
    platforms = RUNTIMES[name].platforms
    if not platforms or sys.platform in platforms:
        return ""
    return " or ".join(SYSTEMS.get(each, each) for each in platforms)


RUNTIMES: dict[str, Runtime] = {
    "openvino": Runtime(
        label="OpenVINO",
        code="vitrail.runtimes.openvino",
        distribution="openvino",
        module="openvino",
        install="pip install vitrail",
        precisions={"cpu": ("fp32", "bf16", "int8")},
        files=("model.xml", "model.bin"),
        builds=True,
        open_sizes=True,
        settings=(IMAGES, "ENABLE_CPU_PINNING", "ENABLE_HYPER_THREADING", "SCHEDULING_CORE_TYPE"),
    ),
    "onnxruntime": Runtime(
        label="ONNX Runtime",
        code="vitrail.runtimes.onnxruntime",
        distribution="onnxruntime",
        module="onnxruntime",
        carried_by=("onnxruntime-gpu",),
        install="pip install vitrail",
        precisions={"cpu": ("fp32", "int8")},
        files=("model.onnx", "model.onnx.data"),
        unsigned=True,
        open_sizes=True,
        settings=(IMAGES, "session.intra_op.allow_spinning"),
        sharing=(("session.intra_op.allow_spinning", "0"),),
    ),
    "onnxruntime-cuda": Runtime(
        label="ONNX Runtime CUDA",
        code="vitrail.runtimes.onnxruntime_cuda",
        distribution="onnxruntime-gpu",
        module="onnxruntime",
        install="pip uninstall -y onnxruntime && pip install onnxruntime-gpu",
        precisions={"cuda": ("fp32", "tf32", "fp16")},
        files=("model.onnx", "model.onnx.data"),
        typed=True,
    ),
    "executorch": Runtime(
        label="ExecuTorch",
        code="vitrail.export.executorch",
        distribution="executorch",
        module="torch",  # what its Python runtime loads: the same for all models
        install='pip install "vitrail[executorch]"',
        precisions={"cpu": ("fp32", "int8")},
        files=("model.pte", "lowered.json"),
        builds=True,
        of_module=True,
        build_s=40.0,
        named_only=True,
        loads="PyTorch",
        on_phones=True,
    ),
    "litert": Runtime(
        label="LiteRT",
        code="vitrail.runtimes.litert",
        builder=Builder(
            label="litert-torch",
            code="vitrail.export.litert",
            distribution="litert-torch",
            install='pip install "vitrail[litert,litert-torch]"',
        ),
        distribution="ai-edge-litert",
        module="ai_edge_litert",
        install='pip install "vitrail[litert]"',
        precisions={"cpu": ("fp32", "int8")},
        files=("model.tflite", "converted.json"),
        builds=True,
        of_module=True,
        named_only=True,
        on_phones=True,
    ),
    "tensorrt": Runtime(
        label="TensorRT",
        code="vitrail.runtimes.tensorrt",
        distribution="tensorrt",
        carried_by=("tensorrt-cu13", "tensorrt-cu12"),
        module="tensorrt",
        install='pip install "vitrail[tensorrt]"',
        precisions={"cuda": ("fp32", "tf32", "fp16", "int8")},
        files=("model.onnx", "model.onnx.data"),
        plans=True,
        typed=True,
        named_only=True,
    ),
    "tensorrt-rtx": Runtime(
        label="TensorRT for RTX",
        code="vitrail.runtimes.tensorrt_rtx",
        distribution="onnxruntime-ep-nv-tensorrt-rtx",
        carried_by=("onnxruntime-ep-nv-tensorrt-rtx-cu13", "onnxruntime-ep-nv-tensorrt-rtx-cu12"),
        module="onnxruntime",
        install='pip install "vitrail[tensorrt-rtx]"',
        precisions={"cuda": ("tf32", "fp16", "int8")},  # its provider has no option for TF32, which is on
        files=("model.onnx", "model.onnx.data"),
        plans=True,
        typed=True,
        named_only=True,
    ),
    "coreml": Runtime(
        label="CoreML",
        code="vitrail.export.coreml",
        distribution="coremltools",
        module="coremltools",
        install='pip install "vitrail[coreml]"',
        precisions={"cpu": ("fp16", "fp32")},
        files=(
            "model.mlpackage/Manifest.json",
            "model.mlpackage/Data/com.apple.CoreML/model.mlmodel",
            "model.mlpackage/Data/com.apple.CoreML/weights/weight.bin",
            "converted.json",
        ),
        builds=True,
        of_module=True,
        settings=("compute_units",),
        named_only=True,
        platforms=("darwin",),
        on_phones=True,
    ),
    "pytorch": Runtime(
        label="PyTorch eager",
        code="vitrail.export.reference",
        distribution="torch",
        module="torch",
        install='pip install "vitrail[workbench]"',
        precisions={"cpu": ("fp32", "bf16"), "cuda": ("fp32", "tf32", "bf16", "fp16")},
        files=("reference.json",),
        open_sizes=True,
        reference=True,
    ),
    "pytorch-amp": Runtime(
        label="PyTorch autocast",
        code="vitrail.export.reference",
        distribution="torch",
        module="torch",
        install='pip install "vitrail[workbench]"',
        precisions={"cpu": ("bf16",), "cuda": ("bf16", "fp16")},
        files=("reference.json",),
        open_sizes=True,
        reference=True,
        named_only=True,
    ),
    "pytorch-compiled": Runtime(
        label="PyTorch compiled",
        code="vitrail.export.compiled",
        distribution="torch",
        module="torch",
        install='pip install "vitrail[workbench]"',
        precisions={"cpu": ("fp32", "bf16"), "cuda": ("fp32", "tf32", "bf16", "fp16")},
        files=("reference.json",),
        compiles=True,
        settings=("mode", "freezing"),
        reference=True,
        named_only=True,
    ),
    "pytorch-aot": Runtime(
        label="PyTorch AOTInductor",
        code="vitrail.export.aot",
        distribution="torch",
        module="torch",
        install='pip install "vitrail[workbench]"',
        precisions={"cpu": ("fp32", "bf16")},
        files=("model.pt2", "compiled.json"),
        builds=True,
        of_module=True,
        compiles=True,
        settings=("mode", "freezing"),
        reference=True,
        named_only=True,
    ),
}


def implementation(name: str) -> ModuleType:
    """The module of a runtime in the table; importing it imports the engine."""
    return importlib.import_module(RUNTIMES[name].code)


def builder(name: str) -> ModuleType:
    """The module that builds a runtime's files; importing it imports what that takes."""
    separate = RUNTIMES[name].builder
    return importlib.import_module(RUNTIMES[name].code if separate is None else separate.code)


def side_by_side(variant: Variant, graph: Graph) -> bool:
    """Whether the engine can run a batch as single images, which the variant does not settle by itself."""
    takes = IMAGES in RUNTIMES[variant.runtime].settings and IMAGES not in dict(variant.settings)
    return takes and _has_batch(graph)


def _has_batch(graph: Graph) -> bool:
    return all(spec.shape[0] == "B" for spec in (*graph.inputs, *graph.outputs))


def version(name: str) -> str | None:
    """Version of a runtime's library by its package metadata; None if it is not installed."""
    return hardware.version_of(RUNTIMES[name])


def building(name: str) -> str | None:
    """What builds a runtime's files, and its version; None if it is not installed."""
    separate = RUNTIMES[name].builder
    found = version(name) if separate is None else _version(separate.distribution)
    return None if found is None else f"{name if separate is None else separate.distribution} {found}"


def missing(name: str) -> tuple[str, str] | None:
    """What of making and running a runtime's files is not installed, and its install line; None: nothing."""
    engine, separate = RUNTIMES[name], RUNTIMES[name].builder
    if version(name) is None:
        return engine.label, engine.install if separate is None else separate.install
    if separate is not None and building(name) is None:
        return f"{separate.label}, which makes {engine.label}'s files,", separate.install
    return None


def _version(distribution: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def installed() -> dict[str, str]:
    """Installed runtimes that run on this platform, and the versions of their libraries; none is imported."""
    versions = {name: version(name) for name in RUNTIMES if not elsewhere(name)}
    return {name: found for name, found in versions.items() if found is not None}


def letters(graph: Graph) -> tuple[str, ...]:
    """The sizes of its inputs that are chosen when it is loaded or called."""
    sides = (side for spec in graph.inputs for side in spec.shape)
    return tuple(dict.fromkeys(side for side in sides if isinstance(side, str)))


def sized(graph: Graph, sizes: Mapping[str, int], *, opened: Sequence[str] = ()) -> Graph:
    """The graph with a number for each letter of its shapes, but for those that stay `opened`.

    Raises:
        InputError: a letter that is in neither.
    """

    def fixed(spec: TensorSpec) -> TensorSpec:
        known: Mapping[str, int | str] = {**{letter: letter for letter in opened}, **sizes}
        missing = [side for side in spec.shape if isinstance(side, str) and side not in known]
        if missing:
            raise InputError(f"{graph.name} needs a size for {missing[0]} of {spec.name}: give one.")
        return replace(spec, shape=tuple(known[s] if isinstance(s, str) else s for s in spec.shape))

    return replace(graph, inputs=tuple(map(fixed, graph.inputs)), outputs=tuple(map(fixed, graph.outputs)))


def load(
    folder: Path,
    graph: Graph,
    target: Target,
    *,
    sizes: Mapping[str, int],
    threads: int,
    settings: Mapping[str, str] | None = None,
    opened: Sequence[str] = (),
) -> Runner:
    """Load a graph with the engine set as requested, and check that the engine agrees.

    Args:
        folder: the export's (or artifact's) folder.
        graph: its `entry` is the file inside `folder`; "": the engine needs none.
        target: a runtime of `RUNTIMES` with one of its precisions and one of its devices.
        sizes: a number for each letter of the graph's shapes, e.g. `{"B": 8}`; it takes only these.
        threads: number of inference threads, >= 1.
        settings: further engine options, as the variant names them.
        opened: letters without a number, which each call chooses; of an engine with `open_sizes`.

    Raises:
        InputError: unknown runtime, one that does not run on this platform, a precision, device or setting
            that it does not have, a number out of range, or a letter without one.
        MissingExtraError: the engine is not installed.
        EngineMismatch: device, precision, threads, names or shapes read back differ from the request.
    """
    runtime = target.runtime
    if runtime not in RUNTIMES:
        raise InputError(f"Unknown runtime {runtime!r}: choose one of {', '.join(RUNTIMES)}.")
    engine = RUNTIMES[runtime]
    if there := elsewhere(runtime):
        raise InputError(
            f"{engine.label} runs on {there} and this is {SYSTEMS.get(sys.platform, sys.platform)}: use the "
            "artifact there, where `vitrail verify DIR --measure` checks it."
        )
    offers = ((kind_of(target.device), engine.devices), (target.precision, engine.on(target.device)))
    for asked_for, offered in offers:
        if asked_for not in offered:
            raise InputError(f"{engine.label} has no {asked_for} here: choose {' or '.join(offered)}.")
    unknown = [name for name in settings or {} if name not in engine.settings]
    if unknown:
        raise InputError(f"{engine.label} does not take the setting {unknown[0]} here: check the settings.")
    if version(runtime) is None:
        raise MissingExtraError(engine.label, engine.install)
    if kind_of(target.device) == "cuda":
        gpu.card(target.device)  # refused here in the same words for every engine
    whole("threads", threads)
    if "B" in sizes:
        whole("batch_size", sizes["B"])
    if IMAGES in (settings or {}) and not _has_batch(graph):
        raise InputError(f"{graph.name} has tensors without a batch: run it without the setting {IMAGES}.")
    asked = sized(graph, sizes, opened=opened if engine.open_sizes else ())
    input_bytes([[1 if isinstance(side, str) else side for side in spec.shape] for spec in asked.inputs])
    runner: Runner = implementation(runtime).load(
        folder / graph.entry,
        asked,
        target,
        threads=threads,
        settings=dict(settings or {}),
    )
    if runner.facts.device != target.device:
        raise EngineMismatch(
            f"{engine.label} was asked for {target.device} and runs on {runner.facts.device}."
        )
    _check_shapes(runner.facts, asked)
    return runner


def memory(target: Target) -> tuple[float, float]:
    """Peak and present memory in MiB: of a GPU where it runs there, else of this process."""
    engine = implementation(target.runtime)
    if hasattr(engine, "memory"):
        peak, now = engine.memory(target.device)
        return float(peak), float(now)
    if kind_of(target.device) == "cuda":
        now, _ = gpu.memory_mib(target.device)
        return now, now
    from vitrail import footprint  # psutil: not for every command

    return footprint.peak_mib(), footprint.resident_mib()


def _check_shapes(facts: RunnerFacts, asked: Graph) -> None:
    (loaded,) = facts.graphs
    for which in ("inputs", "outputs"):
        verb = "takes" if which == "inputs" else "gives"
        theirs = {spec.name: spec for spec in getattr(loaded, which)}
        for spec in getattr(asked, which):
            other = theirs.get(spec.name)
            if other is None:
                raise EngineMismatch(f"{facts.runtime} {verb} no {spec.name}, only {', '.join(theirs)}.")
            if (other.shape, other.dtype) != (spec.shape, spec.dtype):
                raise EngineMismatch(
                    f"{facts.runtime} {verb} {spec.name} as {other.dtype} {other.shape}, "
                    f"not the requested {spec.dtype} {spec.shape}."
                )

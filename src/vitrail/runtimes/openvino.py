"""OpenVINO on the CPU: an IR file -> Runner, with precision and threads set and read back.

OpenVINO picks bf16 by itself on CPUs that have it and silently turns an `f16` hint into bf16, so
the hint is always set, read back, and checked against the precision of the compiled operations.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vitrail.errors import InputError
from vitrail.privacy import import_engine
from vitrail.runtimes import Arrays, EngineMismatch
from vitrail.runtimes.matmul import fastest, square
from vitrail.runtimes.names import matched
from vitrail.runtimes.parts import IMAGES, Parts, parts_of
from vitrail.vocabulary import Graph, RunnerFacts, Target, TensorSpec

if TYPE_CHECKING:
    import openvino as ov
else:
    ov = import_engine("openvino")

HINTS = {"fp32": "f32", "bf16": "bf16"}
WHOLE = ("i8", "u8")
"""Operations in int8: where these are asked for, the graph says so itself and the hint is about the rest."""
NAMES = {"f32": "fp32", "bf16": "bf16", "f16": "fp16"}


@functools.cache
def core() -> ov.Core:
    """The process's one OpenVINO core, whose CPU plugin is never unloaded.

    The plugin gives the thread that loads it an alternate signal stack, and unmaps that memory with its last
    user, but withdraws the stack only in the same thread. After a model was dropped in another thread,
    the next handled signal wrote into foreign memory, or ended the process (seen in 2026.4.1).
    """
    return ov.Core()


class OpenVINORunner:
    """A compiled model with its infer requests; `run` is not thread-safe."""

    def __init__(self, compiled: ov.CompiledModel, graph: Graph, parts: Parts, facts: RunnerFacts) -> None:
        inputs = matched(graph.inputs, [_name(port, i) for i, port in enumerate(compiled.inputs)])
        outputs = matched(graph.outputs, [_name(port, i) for i, port in enumerate(compiled.outputs)])
        self._inputs, self._names = list(enumerate(inputs.values())), list(outputs.values())
        self._images = parts.images
        self._requests = [compiled.create_infer_request() for _ in range(parts.requests)]
        self.lanes = parts.lanes
        # Of sizes that stay open the engine has no buffers yet.
        opened = any(isinstance(side, str) for spec in graph.outputs for side in spec.shape)
        self._outputs = [] if opened else self._tensors()
        self.facts = facts

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Named inputs -> named outputs; the engine's own buffers are copied, never aliased."""
        if len(self._requests) == 1:
            return self.run_lane(0, inputs)
        arrays = {name: np.ascontiguousarray(inputs[name]) for _, name in self._inputs}
        for k, request in enumerate(self._requests):
            images = slice(k * self._images, (k + 1) * self._images)
            self._bind(request, {name: values[images] for name, values in arrays.items()})
            request.start_async()
        for request in self._requests:
            request.wait()
        return {name: np.concatenate([part.data for part in parts]) for name, parts in self._parts()}

    def run_lane(self, lane: int, inputs: Arrays) -> dict[str, np.ndarray]:
        """One request's rows; as many threads as there are lanes may be here, each on its own."""
        self._bind(
            self._requests[lane], {name: np.ascontiguousarray(inputs[name]) for _, name in self._inputs}
        )
        self._requests[lane].infer()
        return {name: np.array(parts[lane].data) for name, parts in self._parts()}

    def _tensors(self) -> list[list[ov.Tensor]]:
        """Of each output, the one of each request."""
        return [[request.get_output_tensor(i) for request in self._requests] for i in range(len(self._names))]

    def close(self) -> None:
        """Drop the requests; OpenVINO frees the compiled model with them."""
        del self._requests, self._outputs

    def _bind(self, request: ov.InferRequest, arrays: Arrays) -> None:
        # Binding the array's memory is 0.1 ms faster per call than infer([batch]), and copies nothing.
        for place, name in self._inputs:
            request.set_input_tensor(place, ov.Tensor(arrays[name], shared_memory=True))

    def _parts(self) -> Iterator[tuple[str, list[ov.Tensor]]]:
        return zip(self._names, self._outputs or self._tensors(), strict=True)


def build(onnx: Path, folder: Path) -> None:
    """Convert an ONNX file to OpenVINO's IR in `folder`, its weights left in fp32."""
    passes = import_engine("openvino.passes")
    # Not ov.convert_model: it folds too, but would send telemetry if OpenVINO was imported elsewhere first.
    model = core().read_model(onnx)
    if not any(operation.get_type_name() == "FakeQuantize" for operation in model.get_ops()):
        # In int8 it would turn the weights back into floating point.
        manager = passes.Manager()
        manager.register_pass(passes.ConstantFolding())
        manager.run_passes(model)
    ov.save_model(model, folder / "model.xml", compress_to_fp16=False)


def load(
    path: Path, graph: Graph, target: Target, *, threads: int, settings: dict[str, str]
) -> OpenVINORunner:
    """Read, reshape to the static sizes (9 % faster than dynamic in fp32) and compile."""
    try:
        model = core().read_model(path)
    except Exception as error:  # includes Python's error for a message that is not UTF-8
        raise InputError(
            f"OpenVINO cannot read {path.name}: export it again ({_last_line(error)})."
        ) from None
    names = matched(graph.inputs, [_name(port, i) for i, port in enumerate(model.inputs)])
    parts = parts_of(graph, threads, settings)
    part = parts.part(graph)
    shapes = {
        spec.name: [-1 if isinstance(side, str) else side for side in spec.shape] for spec in part.inputs
    }
    try:
        model.reshape({i: shapes[name] for i, name in enumerate(names.values())})
    except Exception:
        asked = ", ".join(str(tuple(shape)) for shape in shapes.values())
        raise EngineMismatch(f"OpenVINO cannot give {path.name} an input of {asked}.") from None
    config = {
        "INFERENCE_PRECISION_HINT": _hint(target.precision),
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": str(parts.streams),
        "PERFORMANCE_HINT": "LATENCY",
        **{name: value for name, value in settings.items() if name != IMAGES},
    }
    try:
        compiled = core().compile_model(model, "CPU", config)
    except Exception as error:
        raise InputError(
            f"OpenVINO cannot compile {path.name} ({_last_line(error)}): "
            "check the settings, or export it again."
        ) from None
    facts = _facts(compiled, part, target.precision, threads, parts)
    return OpenVINORunner(compiled, part, parts, facts)


def probe(n: int, target: Target, threads: int) -> float:
    """Seconds of one product of n x n matrices; raises ValueError if the engine changes the precision."""
    ops = import_engine("openvino.opset13")
    left = ops.parameter([n, n], np.float32)
    right = ops.constant(square(n))
    factors = [_in_levels(each) for each in (left, right)] if target.precision == "int8" else [left, right]
    model = ov.Model([ops.matmul(*factors, False, True)], [left], "matmul")
    hint = _hint(target.precision)
    config = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": "1"}
    compiled = core().compile_model(model, target.device.upper(), config)
    real = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if real != hint:
        raise ValueError(f"asked for {target.precision}, OpenVINO set {real}")
    if target.precision == "int8" and not _in_int8(_operation_precisions(compiled)):
        raise ValueError("asked for int8, OpenVINO multiplies in floating point")
    request = compiled.create_infer_request()
    values = square(n)
    return fastest(lambda: request.infer([values], share_inputs=True, share_outputs=True))


def _hint(precision: str) -> str:
    """What OpenVINO is told. In int8 it is about the operations that stay: bf16 where the CPU has it."""
    if precision == "int8":
        return "bf16" if "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "f32"
    return HINTS[precision]


def _in_int8(operations: Counter[str]) -> int:
    return sum(operations.get(name, 0) for name in WHOLE)


def _in_levels(values: ov.Output) -> ov.Output:
    """Values as one of 255 levels between -4 and 4: how a graph asks for int8."""
    ops = import_engine("openvino.opset13")
    low, high = (ops.constant(np.float32(edge)) for edge in (-4.0, 4.0))
    return ops.fake_quantize(values, low, high, low, high, 255)


def _facts(
    compiled: ov.CompiledModel, graph: Graph, precision: str, threads: int, parts: Parts
) -> RunnerFacts:
    operations = _operation_precisions(compiled)
    hint = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    real_threads = int(compiled.get_property("INFERENCE_NUM_THREADS"))
    if hint != _hint(precision):
        raise EngineMismatch(f"OpenVINO was asked for {precision} and set {NAMES.get(hint, hint)}.")
    reduced = sum(count for name, count in operations.items() if name in ("bf16", "f16"))
    if precision == "fp32" and reduced:
        raise EngineMismatch(
            f"OpenVINO was asked for fp32 and runs {reduced} operations in a lower precision."
        )
    if precision == "int8" and not _in_int8(operations):
        raise EngineMismatch("OpenVINO was asked for int8 and runs no operation in int8: quantise it again.")
    if precision == "bf16" and not operations.get("bf16"):
        raise EngineMismatch("OpenVINO was asked for bf16 and runs no operation in bf16 on this CPU.")
    if real_threads != threads:
        raise EngineMismatch(f"OpenVINO was asked for {threads} threads and uses {real_threads}.")
    streams = int(compiled.get_property("NUM_STREAMS"))
    if streams != parts.streams:
        raise EngineMismatch(f"OpenVINO was asked for {parts.streams} streams and uses {streams}.")
    loaded = Graph(
        name=graph.name,
        entry=graph.entry,
        inputs=_specs(compiled.inputs, graph.inputs),
        outputs=_specs(compiled.outputs, graph.outputs),
    )
    return RunnerFacts(
        runtime="openvino",
        version=ov.get_version().split("-")[0],
        precision=precision,
        threads=real_threads,
        graphs=(parts.whole(loaded),),
        details=(
            ("operations", " ".join(f"{name}:{count}" for name, count in sorted(operations.items()))),
            ("streams", str(streams)),
            *parts.details,
        ),
    )


def _specs(ports: Sequence[ov.ConstOutput], asked: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    names = matched(asked, [_name(port, i) for i, port in enumerate(ports)])
    said = {spec.name: spec.shape for spec in asked}
    return tuple(
        TensorSpec(
            name=name,
            shape=_shape(port, said.get(name, ())),
            dtype=np.dtype(port.element_type.to_dtype()).name,
        )
        for name, port in zip(names.values(), ports, strict=True)
    )


def _shape(port: ov.ConstOutput, asked: Sequence[int | str]) -> tuple[int | str, ...]:
    """Its sizes; those that are open have the letter that was asked for, or else `?`."""
    found = port.get_partial_shape()
    letters = [*asked, *["?"] * len(found)]
    return tuple(
        side.get_length() if side.is_static else str(letter)
        for side, letter in zip(found, letters, strict=False)
    )


def _name(port: ov.ConstOutput, place: int) -> str:
    names = port.get_names()
    return str(port.get_any_name()) if names else f"#{place}"


def _operation_precisions(compiled: ov.CompiledModel) -> Counter[str]:
    counts: Counter[str] = Counter()
    for operation in compiled.get_runtime_model().get_ops():
        info = operation.get_rt_info()
        if "runtimePrecision" in info:
            value = info["runtimePrecision"]
            counts[value if isinstance(value, str) else value.astype(str)] += 1
    return counts


def _last_line(error: Exception) -> str:
    # The lines before it refer to OpenVINO's own source.
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__

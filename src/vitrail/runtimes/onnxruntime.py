"""ONNX Runtime's CPU provider: an ONNX file -> Runner. It has no bf16 matmul: fp32, or int8 files."""

from __future__ import annotations

import mmap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from vitrail.errors import InputError
from vitrail.privacy import import_engine
from vitrail.runtimes import Arrays, EngineMismatch
from vitrail.runtimes.matmul import MATMUL, fastest, square
from vitrail.runtimes.names import matched
from vitrail.runtimes.parts import IMAGES, Parts, parts_of
from vitrail.vocabulary import Graph, RunnerFacts, Target, TensorSpec

if TYPE_CHECKING:
    import onnxruntime as ort
else:
    ort = import_engine("onnxruntime")

PROVIDER = "CPUExecutionProvider"
KINDS = {"float": "float32", "float16": "float16", "int64": "int64", "int32": "int32", "bool": "bool"}

_Names: TypeAlias = "tuple[dict[str, str], dict[str, str]]"
"""The file's names of inputs and outputs -> the graph's."""


class ONNXRunner:
    """An inference session bound to one static batch, or to the part of it that one request has."""

    def __init__(
        self, session: ort.InferenceSession, names: _Names, parts: Parts, facts: RunnerFacts
    ) -> None:
        self._session = session
        self._inputs, outputs = names
        self._outputs, self._keys = list(outputs), list(outputs.values())
        self._sizes = parts
        self.lanes = parts.lanes
        self._helpers = ThreadPoolExecutor(parts.streams - 1) if parts.streams > 1 else None
        self.facts = facts

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Named inputs -> named outputs, new arrays."""
        if self._sizes.requests == 1:
            return self.run_lane(0, inputs)
        return dict(zip(self._keys, self._in_parts(self._given(inputs)), strict=True))

    def run_lane(self, lane: int, inputs: Arrays) -> dict[str, np.ndarray]:
        """One request's rows, on the calling thread where there are several lanes."""
        return dict(zip(self._keys, self._whole(self._given(inputs)), strict=True))

    def close(self) -> None:
        """Drop the session and the threads that call it."""
        if self._helpers is not None:
            self._helpers.shutdown()
        del self._session

    def _given(self, inputs: Arrays) -> Arrays:
        return {theirs: inputs[ours] for theirs, ours in self._inputs.items()}

    def _whole(self, given: Arrays) -> list[np.ndarray]:
        return list(self._session.run(self._outputs, dict(given)))

    def _in_parts(self, given: Arrays) -> list[np.ndarray]:
        images, parts = self._sizes.images, self._sizes.requests
        found: list[list[np.ndarray]] = [[] for _ in range(parts)]
        left = iter(range(parts))  # each thread takes the next part when it is done with one

        def some() -> None:
            for k in left:
                found[k] = self._whole({name: x[k * images : (k + 1) * images] for name, x in given.items()})

        if self._helpers is None:
            some()
        else:
            others = [self._helpers.submit(some) for _ in range(self._sizes.streams - 1)]
            some()
            for other in others:
                other.result()
        return [np.concatenate(values) for values in zip(*found, strict=True)]


def load(path: Path, graph: Graph, target: Target, *, threads: int, settings: dict[str, str]) -> ONNXRunner:
    """Open a session with the sizes fixed before the graph is optimised."""
    parts = parts_of(graph, threads, settings)
    part = parts.part(graph)
    options = ort.SessionOptions()
    # Calling threads compute too, and the session's own threads are one less than this number.
    options.intra_op_num_threads = threads - parts.streams + 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if not isinstance(part.inputs[0].shape[0], str):
        options.add_free_dimension_override_by_name("batch", parts.images)
    for name, value in settings.items():
        if name != IMAGES:
            options.add_session_config_entry(name, value)
    try:
        session = ort.InferenceSession(str(path), options, providers=[PROVIDER])
    except Exception as error:
        raise InputError(
            f"ONNX Runtime cannot read {path.name}: export it again ({str(error).splitlines()[0]})."
        ) from None
    _check_quantised(path, target.precision)
    names = tensor_names(session, part)
    facts = _facts(session, part, target.precision, threads, parts)
    return ONNXRunner(session, names, parts, facts)


def _check_quantised(path: Path, precision: str) -> None:
    """The file alone says whether it is int8: by its operators' names, which stand in it as text."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        quantised = data.find(b"QuantizeLinear") >= 0
    if quantised != (precision == "int8"):
        really = "int8" if quantised else "fp32"
        raise EngineMismatch(f"ONNX Runtime was asked for {precision}, and {path.name} is {really}.")


def probe(n: int, target: Target, threads: int) -> float:
    """Seconds of one product of n x n matrices: of fp32, or of uint8 by int8."""
    assert target.device == "cpu", target
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(str(MATMUL[target.precision]), options, providers=[PROVIDER])
    inputs = {"a": square(n), "b": square(n)}
    if target.precision == "int8":
        levels = (square(n) * 32).clip(-127, 127).astype(np.int8)
        inputs = {"a": levels.view(np.uint8), "b": levels}
    return fastest(lambda: session.run(None, inputs))


def _facts(
    session: ort.InferenceSession, graph: Graph, precision: str, threads: int, parts: Parts
) -> RunnerFacts:
    providers = session.get_providers()
    if providers != [PROVIDER]:
        raise EngineMismatch(
            f"ONNX Runtime uses {', '.join(providers)} although only {PROVIDER} was asked for."
        )
    real_threads = session.get_session_options().intra_op_num_threads + parts.streams - 1
    if real_threads != threads:
        raise EngineMismatch(f"ONNX Runtime was asked for {threads} threads and uses {real_threads}.")
    return RunnerFacts(
        runtime="onnxruntime",
        version=ort.__version__,
        precision=precision,
        threads=real_threads,
        graphs=(parts.whole(loaded_graph(session, graph)),),
        details=(("provider", PROVIDER), *parts.details),
    )


def tensor_names(session: ort.InferenceSession, graph: Graph) -> _Names:
    """What the file calls the graph's inputs and outputs."""
    return (
        matched(graph.inputs, [node.name for node in session.get_inputs()]),
        matched(graph.outputs, [node.name for node in session.get_outputs()]),
    )


def loaded_graph(session: ort.InferenceSession, graph: Graph) -> Graph:
    """Names and shapes as the session has them, under the graph's names."""
    inputs, outputs = tensor_names(session, graph)
    free = _free_sizes(session, inputs, graph)
    return Graph(
        name=graph.name,
        entry=graph.entry,
        inputs=tuple(_spec(node, inputs, free) for node in session.get_inputs()),
        outputs=tuple(_spec(node, outputs, free) for node in session.get_outputs()),
    )


def _free_sizes(session: ort.InferenceSession, names: dict[str, str], graph: Graph) -> dict[str, int | str]:
    """The sizes that were asked for of a file's free dimensions, by their names in it."""
    # The batch was fixed, but outputs still show its name.
    free = {"batch": graph.inputs[0].shape[0]}
    asked = {spec.name: spec.shape for spec in graph.inputs}
    for node in session.get_inputs():
        for side, size in zip(node.shape, asked.get(names[node.name], ()), strict=False):
            if isinstance(side, str):
                free.setdefault(side, size)
    return free


def _spec(node: ort.NodeArg, names: dict[str, str], free: dict[str, int | str]) -> TensorSpec:
    shape = tuple(free.get(side, side) for side in node.shape)
    kind = node.type.removeprefix("tensor(").removesuffix(")")
    return TensorSpec(name=names[node.name], shape=shape, dtype=KINDS.get(kind, kind))

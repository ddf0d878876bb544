"""ONNX Runtime's CUDA provider: an ONNX file -> Runner, with inputs and outputs bound to the GPU's memory.

A call copies its inputs to the GPU, runs, and copies the outputs back, so that its time is that of a caller
who has arrays and wants arrays. Memory on the GPU is taken once, for the sizes that were asked for. fp32
means products of fp32 numbers; `tf32` lets the matrix units round them to ten bits first, which is ONNX
Runtime's own default. `fp16` is in the file (export/passes/typed.py, which also checks it): the provider
computes in the types that it finds.

Source: https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html (checked against 1.31.1).
"""

from __future__ import annotations

import sys
from collections import Counter
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vitrail import gpu
from vitrail.errors import InputError
from vitrail.privacy import import_engine
from vitrail.runtimes import RUNTIMES, Arrays, EngineMismatch
from vitrail.runtimes.onnxruntime import loaded_graph, tensor_names
from vitrail.vocabulary import Graph, RunnerFacts, Target, TensorSpec
from vitrail.words import first_line

if TYPE_CHECKING:
    import onnxruntime as ort
else:
    ort = import_engine("onnxruntime")

NAME = "onnxruntime-cuda"
FULL = ("out of memory", "Failed to allocate memory", "CUDNN_STATUS_ALLOC_FAILED")
LOST = ("illegal memory access", "device is lost", "has fallen off the bus", "unspecified launch failure")
RECORD = "session.record_ep_graph_assignment_info"


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a session computes, as ONNX Runtime names it."""

    provider: str
    device: str
    number: int
    options: tuple[tuple[str, str], ...] = ()


def place_of(target: Target) -> Place:
    """The CUDA provider on the target's GPU, with TF32 off unless it is asked for."""
    number = gpu.number_of(target.device)
    options = (("device_id", str(number)), ("use_tf32", "1" if target.precision == "tf32" else "0"))
    return Place(provider="CUDAExecutionProvider", device="cuda", number=number, options=options)


class BoundRunner:
    """A session whose tensors stay where it computes; `run` is not thread-safe."""

    def __init__(self, session: ort.InferenceSession, place: Place, facts: RunnerFacts) -> None:
        (graph,) = facts.graphs
        self._session, self._binding = session, session.io_binding()
        self.facts = facts
        self._inputs = {spec.name: _tensor(spec, place) for spec in graph.inputs}
        self._outputs = {spec.name: _tensor(spec, place) for spec in graph.outputs}
        inputs, outputs = tensor_names(session, graph)
        for theirs, ours in inputs.items():
            self._binding.bind_ortvalue_input(theirs, self._inputs[ours])
        for theirs, ours in outputs.items():
            self._binding.bind_ortvalue_output(theirs, self._outputs[ours])

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Named inputs -> named outputs, copies in the process's own memory.

        Raises:
            InputError: the GPU has no memory left, or was lost.
        """
        try:
            for name, value in self._inputs.items():
                value.update_inplace(np.ascontiguousarray(inputs[name]))
            self._session.run_with_iobinding(self._binding)
            return {name: np.array(value.numpy()) for name, value in self._outputs.items()}
        except RuntimeError as error:
            raise refused(error, self.facts.device) from None

    def close(self) -> None:
        """Free the session and its tensors."""
        del self._binding, self._session
        self._inputs.clear()
        self._outputs.clear()


def load(path: Path, graph: Graph, target: Target, *, threads: int, settings: dict[str, str]) -> BoundRunner:
    """Open a session on the target's GPU.

    Raises:
        InputError: this ONNX Runtime has no CUDA provider or cannot load it, the file cannot be read, or the
            GPU has too little memory left.
        EngineMismatch: part of the graph, or another precision, would run than was asked for.
    """
    assert not settings, settings
    place = place_of(target)
    if place.provider not in ort.get_available_providers():
        raise InputError(
            f"The ONNX Runtime installed here has no CUDA provider: `{RUNTIMES[NAME].install}` (one of the "
            "two packages at a time)."
        )
    with redirect_stdout(sys.stderr):  # what it cannot find it prints, and it may not be needed
        ort.preload_dlls()  # CUDA and cuDNN as pip installs them, where the system has none
    return opened(path, graph, target, place, threads)


def opened(path: Path, graph: Graph, target: Target, place: Place, threads: int) -> BoundRunner:
    """A session at a place; raises as `load`."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what fails is raised; what it logs beside that is about the same
    options.add_free_dimension_override_by_name("batch", int(graph.inputs[0].shape[0]))
    options.add_session_config_entry(RECORD, "1")
    try:
        session = ort.InferenceSession(str(path), options, providers=[(place.provider, dict(place.options))])
    except Exception as error:
        if any(sign in str(error) for sign in (*FULL, *LOST)):
            raise refused(error, target.device) from None
        raise InputError(
            f"ONNX Runtime cannot read {path.name}: export it again ({first_line(error)})."
        ) from None
    facts = _facts(session, graph, target, place, threads)
    try:
        return BoundRunner(session, place, facts)
    except RuntimeError as error:
        raise refused(error, target.device) from None


def refused(error: Exception, device: str) -> InputError:
    """One sentence for what CUDA refused."""
    said = str(error)
    if any(sign in said for sign in FULL):
        return InputError(
            f"{device} has too little memory left ({first_line(error)}): end what else uses it, or ask for a "
            "smaller batch or image."
        )
    if any(sign in said for sign in LOST):
        return InputError(
            f"{device} was lost in mid-run ({first_line(error)}): see `nvidia-smi`, and start again."
        )
    return InputError(f"ONNX Runtime refused on {device}: {first_line(error)}.")


def _tensor(spec: TensorSpec, place: Place) -> ort.OrtValue:
    shape = [int(side) for side in spec.shape]
    return ort.OrtValue.ortvalue_from_shape_and_type(shape, np.dtype(spec.dtype), place.device, place.number)


def _facts(
    session: ort.InferenceSession, graph: Graph, target: Target, place: Place, threads: int
) -> RunnerFacts:
    """What the session says of itself: a provider that cannot be loaded is left out without an error."""
    if session.get_providers()[0] != place.provider:
        raise InputError(
            f"ONNX Runtime cannot load {place.provider} here: it needs cuDNN and CUDA of the versions on "
            "https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html, which "
            "`pip install onnxruntime-gpu[cuda,cudnn]` brings."
        )
    given = session.get_provider_options()[place.provider]
    differing = [name for name, value in place.options if given.get(name, value) != value]
    if differing:
        raise EngineMismatch(f"ONNX Runtime was asked for another {differing[0]} than it uses.")
    where = Counter(
        part.ep_name for part in session.get_provider_graph_assignment_info() for _ in part.get_nodes()
    )
    if set(where) - {place.provider}:
        said = ", ".join(f"{name} {nodes}" for name, nodes in where.items())
        raise EngineMismatch(
            f"ONNX Runtime runs a part of the graph elsewhere than on {target.device} (nodes: {said})."
        )
    return RunnerFacts(
        runtime=NAME,
        version=ort.__version__,
        precision=target.precision,
        threads=session.get_session_options().intra_op_num_threads,
        device=target.device,
        graphs=(loaded_graph(session, graph),),
        details=(("provider", place.provider), *place.options, ("nodes", str(sum(where.values())))),
    )

"""TensorRT for RTX through ONNX Runtime's plug-in provider: a typed ONNX file -> Runner.

NVIDIA's TensorRT for GeForce and RTX cards is on PyPI with all its libraries, as a provider that ONNX Runtime
loads when it is told. The provider leaves TF32 on and has no option for it, so that an fp32 graph here is
`tf32`. ONNX Runtime rewrites a graph before a provider sees it; here it is told not to (`OPTIMISED`).

Source: onnxruntime-ep-nv-tensorrt-rtx-cu13 0.5.0 (its README and tensorrt_rtx_provider_options.h) and the API
of onnxruntime 1.32. It has not run on a GPU yet (docs/unverified.md).
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitrail import cards, gpu, runtimes, store
from vitrail.errors import InputError, MissingExtraError
from vitrail.privacy import import_engine
from vitrail.runtimes import Arrays, EngineMismatch
from vitrail.runtimes.onnxruntime import loaded_graph, tensor_names
from vitrail.runtimes.onnxruntime_cuda import refused
from vitrail.vocabulary import Graph, RunnerFacts, Target
from vitrail.words import first_line

if TYPE_CHECKING:
    import onnxruntime as ort
else:
    ort = import_engine("onnxruntime")

NAME, LABEL = "tensorrt-rtx", "TensorRT for RTX"
PLUGIN = "onnxruntime_ep_nv_tensorrt_rtx"
RECORD = "session.record_ep_graph_assignment_info"
OPTIMISED = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
"""ONNX Runtime 1.32's WeightBiasQuantization computes wrong biases for pairs of Q and DQ in float16."""


class PluginRunner:
    """A session of the provider, which copies to and from the GPU by itself; `run` is not thread-safe."""

    def __init__(self, session: ort.InferenceSession, facts: RunnerFacts) -> None:
        (graph,) = facts.graphs
        self._session = session
        self._inputs, outputs = tensor_names(session, graph)
        self._outputs, self._keys = list(outputs), list(outputs.values())
        self.facts = facts

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Named inputs -> named outputs, new arrays.

        Raises:
            InputError: the GPU refused.
        """
        given = {theirs: inputs[ours] for theirs, ours in self._inputs.items()}
        try:
            return dict(zip(self._keys, self._session.run(self._outputs, given), strict=True))
        except Exception as error:  # ONNX Runtime's own have no base but this
            raise refused(error, self.facts.device) from None

    def close(self) -> None:
        """Drop the session."""
        del self._session


def load(path: Path, graph: Graph, target: Target, *, threads: int, settings: dict[str, str]) -> PluginRunner:
    """Open a session of the provider on the target's GPU.

    Raises:
        MissingExtraError: the plug-in is not installed.
        InputError: it cannot be loaded, has no such device, or cannot read the file; the GPU is too old
        EngineMismatch: part of the graph would run elsewhere.
    """
    assert not settings, settings
    card = gpu.card(target.device)
    if refused := cards.unsupported(card.capability):
        raise InputError(f"{card.name}: {refused}")
    provider, devices = _devices(target.device)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = OPTIMISED
    options.add_free_dimension_override_by_name("batch", int(graph.inputs[0].shape[0]))
    options.add_session_config_entry(RECORD, "1")
    options.add_provider_for_devices(devices, {"nv_runtime_cache_path": str(store.cache_dir() / NAME)})
    try:
        session = ort.InferenceSession(str(path), options)
    except Exception as error:
        raise InputError(f"{LABEL} cannot read {path.name}: export it again ({first_line(error)}).") from None
    parts = session.get_provider_graph_assignment_info()
    where = Counter(part.ep_name for part in parts for _ in part.get_nodes())
    if set(where) != {provider}:
        said = ", ".join(f"{name} {nodes}" for name, nodes in where.items()) or "none"
        raise EngineMismatch(f"{LABEL} runs a part of the graph elsewhere than on the GPU (nodes: {said}).")
    facts = RunnerFacts(
        runtime=NAME,
        version=str(runtimes.version(NAME)),
        precision=target.precision,
        threads=session.get_session_options().intra_op_num_threads,
        device=target.device,
        graphs=(loaded_graph(session, graph),),
        details=(
            ("provider", provider),
            ("TF32", "as the provider has it: on"),
            ("nodes", str(sum(where.values()))),
            ("GPU", f"{card.name}, driver {card.driver}"),
        ),
    )
    return PluginRunner(session, facts)


def _devices(device: str) -> tuple[str, list[Any]]:
    """The provider's name and the one device of it that is asked for."""
    try:
        plugin = import_engine(PLUGIN)
    except ModuleNotFoundError:
        raise MissingExtraError(LABEL, runtimes.RUNTIMES[NAME].install) from None
    name = str(plugin.get_ep_name())
    there = [each for each in ort.get_ep_devices() if each.ep_name == name]
    if not there:
        try:
            ort.register_execution_provider_library(name, str(plugin.get_library_path()))
        except Exception as error:
            raise InputError(
                f"{LABEL} cannot be loaded here ({first_line(error)}): see `nvidia-smi`."
            ) from None
        there = [each for each in ort.get_ep_devices() if each.ep_name == name]
    number = gpu.number_of(device)
    if number >= len(there):
        raise InputError(f"{LABEL} takes no {device} here: it wants an RTX card of Turing or later.")
    return name, [there[number]]

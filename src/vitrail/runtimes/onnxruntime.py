"""ONNX Runtime's CPU provider: an ONNX file -> Runner. It has no bf16 matmul, so it runs fp32 only."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from vitrail.errors import InputError
from vitrail.privacy import import_engine
from vitrail.runtimes import Arrays, EngineMismatch
from vitrail.runtimes.matmul import MATMUL, fastest, square
from vitrail.runtimes.names import matched
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
    """An inference session bound to one static batch."""

    def __init__(self, session: ort.InferenceSession, names: _Names, facts: RunnerFacts) -> None:
        self._session = session
        self._inputs, outputs = names
        self._outputs, self._keys = list(outputs), list(outputs.values())
        self.facts = facts

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Named inputs -> named outputs, new arrays."""
        given = {theirs: inputs[ours] for theirs, ours in self._inputs.items()}
        return dict(zip(self._keys, self._session.run(self._outputs, given), strict=True))

    def close(self) -> None:
        """Drop the session."""
        del self._session


def load(path: Path, graph: Graph, target: Target, *, threads: int, settings: dict[str, str]) -> ONNXRunner:
    """Open a session with the sizes fixed before the graph is optimised."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_free_dimension_override_by_name("batch", int(graph.inputs[0].shape[0]))
    for name, value in settings.items():
        options.add_session_config_entry(name, value)
    try:
        session = ort.InferenceSession(str(path), options, providers=[PROVIDER])
    except Exception as error:
        raise InputError(
            f"ONNX Runtime cannot read {path.name}: export it again ({str(error).splitlines()[0]})."
        ) from None
    names = (
        matched(graph.inputs, [node.name for node in session.get_inputs()]),
        matched(graph.outputs, [node.name for node in session.get_outputs()]),
    )
    return ONNXRunner(session, names, _facts(session, names, graph, target.precision, threads))


def probe(n: int, target: Target, threads: int) -> float:
    """Seconds of one product of n x n matrices."""
    assert (target.precision, target.device) == ("fp32", "cpu"), target
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(str(MATMUL), options, providers=[PROVIDER])
    inputs = {"a": square(n), "b": square(n)}
    return fastest(lambda: session.run(None, inputs))


def _facts(
    session: ort.InferenceSession, names: _Names, graph: Graph, precision: str, threads: int
) -> RunnerFacts:
    providers = session.get_providers()
    if providers != [PROVIDER]:
        raise EngineMismatch(
            f"ONNX Runtime uses {', '.join(providers)} although only {PROVIDER} was asked for."
        )
    real_threads = session.get_session_options().intra_op_num_threads
    if real_threads != threads:
        raise EngineMismatch(f"ONNX Runtime was asked for {threads} threads and uses {real_threads}.")
    inputs, outputs = names
    loaded = Graph(
        name=graph.name,
        entry=graph.entry,
        inputs=tuple(_spec(node, inputs, graph) for node in session.get_inputs()),
        outputs=tuple(_spec(node, outputs, graph) for node in session.get_outputs()),
    )
    return RunnerFacts(
        runtime="onnxruntime",
        version=ort.__version__,
        precision=precision,
        threads=real_threads,
        graphs=(loaded,),
        details=(("provider", PROVIDER),),
    )


def _spec(node: ort.NodeArg, names: dict[str, str], graph: Graph) -> TensorSpec:
    # The free dimension was fixed, but outputs still show its letter.
    batch = graph.inputs[0].shape[0]
    shape = tuple(batch if side == "batch" else side for side in node.shape)
    kind = node.type.removeprefix("tensor(").removesuffix(")")
    return TensorSpec(name=names[node.name], shape=shape, dtype=KINDS.get(kind, kind))

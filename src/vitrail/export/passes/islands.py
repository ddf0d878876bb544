"""Which nodes of a graph stay in float32 when the rest becomes float16: measured on photos.

float16 ends at 65504 and has 11 bits. For each node, one run of the fp32 graph gives the largest number that
it reads or writes, and how far its own result moves when what it reads and writes is rounded to float16.
Engines on CPUs tell nothing of this: ONNX Runtime computes float16 in float32 and takes out the Casts
between, so a graph that overflows on a GPU does not here. `rounded` writes the rounding down.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from vitrail.export.passes.edit import name_nodes
from vitrail.export.passes.typed import ALWAYS_FLOAT, LARGEST, kinds
from vitrail.privacy import import_engine

__all__ = ["BY_KIND", "Range", "by_kind", "islands", "ranges", "rounded"]

BY_KIND = frozenset(
    {
        *("Exp", "Log", "Pow", "Reciprocal", "Softplus", "LogSoftmax"),
        *("CumSum", "ReduceSum", "ReduceProd"),
        *("LpNormalization", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare"),
        *("GroupNormalization", "InstanceNormalization", "MeanVarianceNormalization"),
    }
)
"""They leave float16's range with ordinary inputs, or add many numbers up in a precision that ONNX does not
name. Not here, because islands there changed nothing that could be measured (docs/decisions/tensorrt.md):
LayerNormalization, whose statistics ONNX computes in float32 (`stash_type`), Softmax, Gelu, and means."""
MEANS = frozenset({"ReduceMean", "GlobalAveragePool"})
"""Their sums, which an engine may keep in float16, count as numbers that they write."""
ROOM = 4.0
"""Other photos may give numbers this many times as large as those that were measured."""
TINY = "vitrail/tiny"
LARGEST_ERROR = 0.01
"""A node whose own result moves by more than this, relative to its norm, stays in float32."""


@dataclass(frozen=True, kw_only=True)
class Range:
    """What one node does with float32 numbers, over all that was run."""

    node: str
    largest: float
    """The largest magnitude that it reads or writes, a mean's sums included."""
    error: float
    """||result in float16 - result|| / ||result||, of its first result, with exact numbers before it."""

    @property
    def fits(self) -> bool:
        """Whether its numbers are in float16's range, with room for other photos."""
        return self.largest * ROOM <= LARGEST

    @property
    def narrow(self) -> bool:
        """Whether float16 will do."""
        return self.fits and self.error <= LARGEST_ERROR


def by_kind(model: onnx.ModelProto) -> tuple[str, ...]:
    """Names of the nodes that stay in float32 wherever they stand."""
    copy = _named(model)
    return tuple(node.name for node in copy.graph.node if node.op_type in BY_KIND)


def islands(model: onnx.ModelProto, inputs: Sequence[Mapping[str, np.ndarray]]) -> tuple[str, ...]:
    """Names of the nodes of an fp32 (or Q/DQ) graph that stay in float32, in its order.

    Args:
        inputs: one mapping a run, input name -> array; without any, kinds alone decide.
    """
    kinds_alone = by_kind(model)
    if not inputs:
        return kinds_alone
    nodes = _named(model).graph.node
    table = ranges(model, inputs)
    found = {each.node for each in table if not each.narrow} | set(kinds_alone)
    # What such a node reads has lost its digits already where it was written.
    blunt = {each.node for each in table if each.error > LARGEST_ERROR and each.fits}
    reads = {name for node in nodes if node.name in blunt for name in node.input}
    found |= {node.name for node in nodes if reads & set(node.output)}
    return tuple(node.name for node in nodes if node.name in found)


def ranges(model: onnx.ModelProto, inputs: Sequence[Mapping[str, np.ndarray]]) -> tuple[Range, ...]:
    """The table of all nodes that compute with float32, in the graph's order.

    Raises:
        ValueError: no inputs.
    """
    if not inputs:
        raise ValueError("ranges are measured on photos: none were given")
    observed, table = _observed(_named(model))
    ort = import_engine("onnxruntime")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # As it stands: an optimised graph would no longer have each node's results.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(observed.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in observed.graph.output]
    largest: dict[str, float] = dict.fromkeys(names, 0.0)
    for arrays in inputs:
        for name, value in zip(names, session.run(None, dict(arrays)), strict=True):
            number = float(value)
            largest[name] = max(largest[name], number if np.isfinite(number) else np.inf)
    return tuple(
        Range(
            node=node,
            largest=max((largest[name] for name in magnitudes), default=0.0),
            error=largest[error] if error else 0.0,
        )
        for node, magnitudes, error in table
    )


def rounded(typed: onnx.ModelProto) -> onnx.ModelProto:
    """A typed graph for an engine that computes in float32: each float16 tensor is rounded to float16 there.

    What an engine of float16 keeps in float32 inside a node (sums of products, statistics of a norm) is here
    kept in float32 too; it may also keep numbers between nodes that it fuses, and then is nearer to fp32.
    """
    result = onnx.ModelProto()
    result.CopyFrom(typed)
    types = kinds(typed)
    graph, nodes = result.graph, []
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            values = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    for node in typed.graph.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        nodes.append(copy)
        _widen(copy)
        for place, name in enumerate(node.output):
            if types.get(name) == TensorProto.FLOAT16:
                copy.output[place] = f"{name}/exact"
                nodes += _rounding(f"{name}/exact", name)
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]
    return result


def _named(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    name_nodes(copy.graph)
    return copy


def _widen(node: onnx.NodeProto) -> None:
    """Let a node that makes float16 numbers of its own make the same ones in float32."""
    for each in node.attribute:
        if node.op_type == "Cast" and each.name == "to" and each.i == TensorProto.FLOAT16:
            each.i = TensorProto.FLOAT
        if each.type == each.TENSOR and each.t.data_type == TensorProto.FLOAT16:
            values = numpy_helper.to_array(each.t).astype(np.float32)
            each.t.CopyFrom(numpy_helper.from_array(values, each.t.name))


def _rounding(source: str, target: str) -> list[onnx.NodeProto]:
    """float32 -> float16 -> float32."""
    narrow = f"{target}/narrow"
    return [
        helper.make_node("Cast", [source], [narrow], f"{target}/round", to=TensorProto.FLOAT16),
        helper.make_node("Cast", [narrow], [target], f"{target}/rounded", to=TensorProto.FLOAT),
    ]


_Row = tuple[str, list[str], str]
"""(node, outputs of the observed graph with magnitudes, the one with its error or "")"""


def _observed(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[_Row]]:
    """The graph with a twin of each node, rounded, and one number each for magnitudes and errors."""
    types = kinds(model)
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    nodes, measured, table = list(graph.node), dict[str, str](), list[_Row]()
    outputs: list[str] = []

    def magnitude(name: str) -> str:
        if name not in measured:
            measured[name] = f"{name}/largest"
            nodes.append(helper.make_node("Abs", [name], [f"{name}/abs"]))
            nodes.append(helper.make_node("ReduceMax", [f"{name}/abs"], [measured[name]], keepdims=0))
            outputs.append(measured[name])
        return measured[name]

    for node in graph.node:
        floats = [name for name in node.input if types.get(name) == TensorProto.FLOAT]
        made = [name for name in node.output if name and types.get(name) == TensorProto.FLOAT]
        if not made or node.op_type == "Constant":
            continue
        magnitudes = [magnitude(name) for name in (*made, *(n for n in floats if n not in constants))]
        if node.op_type in MEANS:
            magnitudes.append(f"{made[0]}/sum")
            nodes += _largest_sum(node.input[0], made[0], magnitude(node.input[0]), magnitudes[-1])
            outputs.append(magnitudes[-1])
        error = ""
        if node.output[0] in made:
            error = f"{node.output[0]}/error"
            nodes += _twin(node, types, error)
            outputs.append(error)
        table.append((node.name, magnitudes, error))
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:], result.graph.output[:], result.graph.value_info[:]
    result.graph.node.extend(nodes)
    result.graph.initializer.append(numpy_helper.from_array(np.array(1e-30, np.float32), TINY))
    result.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, []) for name in outputs)
    return result, table


def _twin(node: onnx.NodeProto, types: Mapping[str, int], error: str) -> Iterator[onnx.NodeProto]:
    """A copy of the node between roundings, and how far its first result is from the node's own."""
    twin = onnx.NodeProto()
    twin.CopyFrom(node)
    twin.name = f"{node.name}/twin"
    made = node.output[0]
    for place, name in enumerate(node.input):
        fixed = place in ALWAYS_FLOAT.get(node.op_type, ())
        if types.get(name) == TensorProto.FLOAT and not fixed:
            twin.input[place] = f"{node.name}/{place}"
            yield from _rounding(name, twin.input[place])
    for place, name in enumerate(node.output):
        twin.output[place] = f"{name}/twin" if name else ""
    yield twin
    yield from _rounding(f"{made}/twin", f"{made}/near")
    yield helper.make_node("Sub", [f"{made}/near", made], [f"{made}/off"])
    yield helper.make_node("ReduceL2", [f"{made}/off"], [f"{made}/off/norm"], keepdims=0)
    yield helper.make_node("ReduceL2", [made], [f"{made}/norm"], keepdims=0)
    # A result of nothing but zeros has no error, and 0 / 0 would be NaN.
    yield helper.make_node("Sum", [f"{made}/norm", TINY], [f"{made}/norm/some"])
    yield helper.make_node("Div", [f"{made}/off/norm", f"{made}/norm/some"], [error])


def _largest_sum(read: str, made: str, magnitude: str, largest: str) -> Iterator[onnx.NodeProto]:
    """What a sum in place of a mean comes to at most: the largest number times as many as are added up."""
    for name in (read, made):
        yield helper.make_node("Size", [name], [f"{made}/of/{name}"])
    yield helper.make_node("Div", [f"{made}/of/{read}", f"{made}/of/{made}"], [f"{made}/count"])
    yield helper.make_node("Cast", [f"{made}/count"], [f"{made}/many"], to=TensorProto.FLOAT)
    yield helper.make_node("Mul", [magnitude, f"{made}/many"], [largest])

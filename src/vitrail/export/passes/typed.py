"""fp16: an fp32 graph whose types say its precision, with fp32 islands (docs/decisions/tensorrt.md).

TensorRT 11 takes precision from nothing but the types of the graph's tensors. Inputs and outputs keep their
names and their float32; between them activations and weights are float16, and Casts stand around the nodes
that stay in float32 (islands.py says which).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from vitrail.export.passes.edit import attributes, name_nodes
from vitrail.export.passes.quantize import LAYERS, dequantised

__all__ = ["LARGEST", "SMALLEST", "check", "half", "kinds", "wide_nodes"]

LARGEST, SMALLEST = 65504.0, 2.0**-14
"""float16's largest number, and the smallest that keeps all of its 11 bits."""
LOST = 1e-2
"""A constant that float16 changes by more than this, relative to its norm, keeps its node in float32."""
ALWAYS_FLOAT = {"Resize": (1, 2)}
"""Inputs that ONNX wants in float32, or engines read in no other type: a Resize's region and scales."""
DTYPES = {"dtype", "output_dtype"}
"""Attributes that name the type of what a node makes."""


def half(model: onnx.ModelProto, *, kept: Collection[str] = ()) -> onnx.ModelProto:
    """A copy of an fp32 (or Q/DQ) graph in float16; the same arguments give the same bytes.

    `kept` names the nodes that stay in float32, beside those of `wide_nodes`.

    Raises:
        ValueError: `kept` names a node that the graph does not have, or the graph has control flow.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    name_nodes(result.graph)
    for node in result.graph.node:
        if any(each.type in (each.GRAPH, each.GRAPHS) for each in node.attribute):
            raise ValueError(f"{node.name} is a {node.op_type}: a graph with control flow has no fp16 form")
    missing = set(kept) - {node.name for node in result.graph.node}
    if missing:
        raise ValueError(f"no nodes of the model: {', '.join(sorted(missing))}")
    wide = wide_nodes(result) | set(kept)
    _Narrowing(result, _whole_layers(result.graph, wide)).write()
    return result


def kinds(model: onnx.ModelProto) -> dict[str, int]:
    """The type of every tensor, as TensorProto numbers it; what ONNX does not know has its input's."""
    skeleton = onnx.ModelProto()
    skeleton.CopyFrom(model)
    del skeleton.graph.initializer[:]
    given = {value.name for value in skeleton.graph.input}
    # Weights as inputs: their types are all that counts, and a model may not be larger than 2 GiB here.
    for tensor in model.graph.initializer:
        if tensor.name not in given:
            info = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            skeleton.graph.input.append(info)
    del skeleton.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(skeleton).graph
    found = {
        value.name: value.type.tensor_type.elem_type
        for value in (*inferred.input, *inferred.value_info, *inferred.output)
    }
    for node in model.graph.node:
        for name in node.output:
            if not found.get(name) and node.input:
                found[name] = found.get(node.input[0], TensorProto.FLOAT)
    return found


def wide_nodes(model: onnx.ModelProto) -> set[str]:
    """Names of the nodes that cannot be float16, whatever their inputs are."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    lost = {
        name
        for name, tensor in constants.items()
        if tensor.data_type == TensorProto.FLOAT and _is_lost(numpy_helper.to_array(tensor))
    }
    scales = {
        name
        for node in model.graph.node
        if node.op_type in ("QuantizeLinear", "DequantizeLinear")
        for name in node.input[1:2]
        if name in constants and _is_outside(numpy_helper.to_array(constants[name]))
    }
    return {
        node.name for node in model.graph.node if set(node.input) & (lost | scales) or _says_its_type(node)
    }


def _says_its_type(node: onnx.NodeProto) -> bool:
    """Whether it makes a type of its own, or, as a norm, would not compute its variance in float32."""
    found = attributes(node)
    return bool(DTYPES & set(found)) or found.get("stash_type", TensorProto.FLOAT) != TensorProto.FLOAT


def _is_lost(values: np.ndarray) -> bool:
    """Whether float16 cannot hold these numbers."""
    if values.size == 0:
        return False
    wide = values.astype(np.float64)
    if not np.isfinite(wide).all():
        return True
    largest = float(np.abs(wide).max())
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float16).astype(np.float64)
    return largest > LARGEST or float(np.linalg.norm(narrow - wide)) > LOST * float(np.linalg.norm(wide))


def _is_outside(scales: np.ndarray) -> bool:
    """Whether a scale would lose bits: all numbers of its layer would be off by as much."""
    return bool(scales.size and (scales.min() < SMALLEST or scales.max() > LARGEST))


def _whole_layers(graph: onnx.GraphProto, kept: Collection[str]) -> set[str]:
    """`kept`, and what has to have the same type: engines compute a layer in int8 where its DequantizeLinears
    touch it, without a Cast between, and a pair of Q and DQ has one scale."""
    groups: dict[str, set[str]] = {node.name: {node.name} for node in graph.node}
    producers = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        for name in node.input:
            before = producers.get(name)
            if before is None:
                continue
            pair = (before.op_type, node.op_type) == ("QuantizeLinear", "DequantizeLinear")
            if pair or before.op_type == "DequantizeLinear":
                joined = groups[before.name] | groups[node.name]
                for each in joined:
                    groups[each] = joined
    return {each for name in kept for each in groups[name]}


class _Narrowing:
    """One graph on its way to float16: nodes in their order, each Cast before its first reader."""

    def __init__(self, model: onnx.ModelProto, wide: Collection[str]) -> None:
        self.graph, self._wide = model.graph, wide
        self._kinds = kinds(model)
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self._taken = set(self._kinds) | {name for node in self.graph.node for name in node.output}
        self._given = {value.name for value in self.graph.input if value.name not in self._constants}
        self._made: dict[tuple[str, int], str] = {}
        """(tensor of the fp32 graph, type) -> its name in this graph."""
        self._nodes: list[onnx.NodeProto] = []

    def write(self) -> None:
        """Change the graph in place."""
        for name in self._given:
            self._made[name, TensorProto.FLOAT] = name
        for node in list(self.graph.node):
            self._node(node)
        for value in self.graph.output:
            self._give(value.name)
        nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in self._nodes]
        used = {name for node in nodes for name in node.input} | {value.name for value in self.graph.output}
        del self.graph.node[:]
        self.graph.node.extend(nodes)
        del self.graph.value_info[:]  # their types changed; whoever wants them infers them
        stored = [tensor for tensor in self._constants.values() if tensor.name in used]
        stored = [TensorProto.FromString(tensor.SerializeToString()) for tensor in stored]
        del self.graph.initializer[:]
        self.graph.initializer.extend(stored)

    def _node(self, node: onnx.NodeProto) -> None:
        kind = TensorProto.FLOAT if node.name in self._wide else TensorProto.FLOAT16
        for place, name in enumerate(node.input):
            if self._kinds.get(name) == TensorProto.FLOAT:
                fixed = place in ALWAYS_FLOAT.get(node.op_type, ())
                node.input[place] = self._as(name, TensorProto.FLOAT if fixed else kind)
        _set_type(node, kind)
        self._nodes.append(node)
        for place, name in enumerate(node.output):
            if self._kinds.get(name) == TensorProto.FLOAT:
                self._made[name, kind] = node.output[place] = self._name(name, kind)

    def _name(self, name: str, kind: int) -> str:
        """Outputs of the graph keep their names in float32; all else keeps its name whatever it is."""
        if kind == TensorProto.FLOAT or name not in {value.name for value in self.graph.output}:
            return name
        return self._new(f"{name}/fp16")

    def _as(self, name: str, kind: int) -> str:
        """The tensor in a type: as it is, as a constant of that type, or behind a Cast."""
        if (name, kind) in self._made:
            return self._made[name, kind]
        tensor = self._constants.get(name)
        if tensor is not None and kind == TensorProto.FLOAT:
            return name
        made = self._new(f"{name}/{'fp32' if kind == TensorProto.FLOAT else 'fp16'}")
        if tensor is not None:
            values = numpy_helper.to_array(tensor)
            self._constants[made] = numpy_helper.from_array(values.astype(np.float16), made)
        else:
            other = TensorProto.FLOAT if kind == TensorProto.FLOAT16 else TensorProto.FLOAT16
            source = self._made[name, other]
            self._nodes.append(helper.make_node("Cast", [source], [made], f"{made}/cast", to=kind))
        self._made[name, kind] = made
        return made

    def _give(self, name: str) -> None:
        """A float32 output that was computed in float16."""
        if (name, TensorProto.FLOAT16) in self._made and (name, TensorProto.FLOAT) not in self._made:
            source = self._made[name, TensorProto.FLOAT16]
            cast = helper.make_node("Cast", [source], [name], f"{name}/cast", to=TensorProto.FLOAT)
            self._nodes.append(cast)

    def _new(self, base: str) -> str:
        name = base
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name


def _set_type(node: onnx.NodeProto, kind: int) -> None:
    """Let a node that makes numbers of its own make them in this type."""
    for each in node.attribute:
        if node.op_type == "Cast" and each.name == "to" and each.i == TensorProto.FLOAT:
            each.i = kind
        makes = node.op_type in ("Constant", "ConstantOfShape") and each.name == "value"
        if makes and each.t.data_type == TensorProto.FLOAT and kind == TensorProto.FLOAT16:
            values = numpy_helper.to_array(each.t).astype(np.float16)
            each.t.CopyFrom(numpy_helper.from_array(values, each.t.name))


# --- what TensorRT 11 would refuse, or compute in another precision ---------------------------------


def check(model: onnx.ModelProto, precision: str) -> tuple[str, ...]:
    """What in a graph TensorRT 11 would refuse, or compute otherwise than `precision`: a sentence each.

    Args:
        precision: `fp32` (and `tf32`, which is a flag of the builder), `fp16` or `int8`.
    """
    found = [*_edges(model.graph), *_quantisers(model.graph)]
    types = kinds(model)
    halves = sum(kind == TensorProto.FLOAT16 for kind in types.values())
    if precision in ("fp32", "tf32") and halves:
        found.append(f"{halves} tensors are float16: TensorRT would compute them in fp16")
    if precision == "fp16":
        found += _wide_layers(model.graph, types)
    if precision == "int8" and not any(_is_int8(node, _producers(model.graph)) for node in model.graph.node):
        found.append("no layer reads integers: TensorRT would compute all of it in floating point")
    return tuple(found)


def _edges(graph: onnx.GraphProto) -> Iterator[str]:
    taken = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.UINT8, TensorProto.INT32, TensorProto.INT64)
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type not in (*taken, TensorProto.BOOL, TensorProto.INT8):
            kind = TensorProto.DataType.Name(value.type.tensor_type.elem_type).lower()
            yield f"{value.name} is {kind}, which TensorRT does not take: cast it in the graph"


def _quantisers(graph: onnx.GraphProto) -> Iterator[str]:
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        scale = constants.get(node.input[1])
        zero = constants.get(node.input[2]) if len(node.input) > 2 else None
        if scale is None or (len(node.input) > 2 and zero is None):
            yield f"{node.name} computes its scale or zero point: TensorRT wants constants"
            continue
        if not (numpy_helper.to_array(scale) > 0).all():
            yield f"{node.name} has a scale that is not positive"
        yield from _zero(node, zero)


def _zero(node: onnx.NodeProto, zero: TensorProto | None) -> Iterator[str]:
    if zero is None:
        if node.op_type == "QuantizeLinear" and not attributes(node).get("output_dtype"):
            yield f"{node.name} has no zero point, so ONNX makes uint8 of it: TensorRT has int8 alone"
        return
    if zero.data_type == TensorProto.UINT8:
        # The parser only warns, and reads the numbers from 128 on as 127.
        yield f"{node.name} is uint8: TensorRT reads it as int8, cut off at 127"
    elif zero.data_type != TensorProto.INT8:
        kind = TensorProto.DataType.Name(zero.data_type).lower()
        yield f"{node.name} is {kind}: TensorRT has int8 alone"
    elif numpy_helper.to_array(zero).any():
        yield f"{node.name} has a zero point that is not 0: TensorRT quantises symmetrically alone"


def _wide_layers(graph: onnx.GraphProto, types: Mapping[str, int]) -> Iterator[str]:
    layers = [node for node in graph.node if node.op_type in LAYERS]
    wide = [node for node in layers if types.get(node.output[0]) == TensorProto.FLOAT]
    if layers and len(wide) == len(layers):
        yield "no layer is float16: TensorRT would compute all of it in fp32"


def _producers(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    return {name: node for node in graph.node for name in node.output}


def _is_int8(node: onnx.NodeProto, producers: Mapping[str, onnx.NodeProto]) -> bool:
    return node.op_type in LAYERS and all(dequantised(name, producers) for name in node.input[:2])

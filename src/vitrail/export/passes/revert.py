"""int8 layers of a graph back in higher precision."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import onnx

from vitrail.export.passes.quantize import LAYERS, quantised_nodes

__all__ = ["consumers_of", "producers_of", "revert"]


def revert(model: onnx.ModelProto, quantised: onnx.ModelProto, names: Collection[str]) -> onnx.ModelProto:
    """`quantised` with the layers `names` as they are in `model`, the float model that it was made of.

    A layer takes back its float factors and its bias. Pairs of QuantizeLinear and DequantizeLinear go where
    no int8 layer is left behind them; with all layers reverted the result computes what `model` computes.
    """
    result = onnx.ModelProto()
    result.CopyFrom(quantised)
    floats = Floats(model, result)
    for node in result.graph.node:
        if node.name in names:
            floats.restore(node)
    _drop_idle_pairs(result)
    _drop_unused(result)
    return result


class Floats:
    """Puts inputs of `model`'s nodes back into `result`'s."""

    def __init__(self, model: onnx.ModelProto, result: onnx.ModelProto) -> None:
        self.result = result
        self.producers = producers_of(model.graph.node)
        self.consumers = consumers_of(model.graph.node)
        self.tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        self.present = {name for node in result.graph.node for name in node.output}
        self.present.update(info.name for info in result.graph.input)
        self.places = {node.output[0]: node for node in result.graph.node if node.output}
        self.added: set[str] = set()

    def restore(self, node: onnx.NodeProto) -> None:
        """`node` and the bias that is added to its output, as they were."""
        original = self.producers[node.output[0]]
        self._inputs(node, original)
        for after in self.consumers.get(node.output[0], ()):
            if after.op_type == "Add" and any(name in self.tensors for name in after.input):
                self._inputs(self.places[after.output[0]], after)

    def _inputs(self, node: onnx.NodeProto, original: onnx.NodeProto) -> None:
        for place, name in enumerate(original.input):
            node.input[place] = self._constant(name) if name in self.tensors else self._activation(name)

    def _activation(self, name: str) -> str:
        while name and name not in self.present:  # NNCF takes casts away that change no type
            name = self.producers[name].input[0]
        return name

    def _constant(self, name: str) -> str:
        fresh = f"{name}/float"
        if fresh not in self.added:
            self.added.add(fresh)
            tensor = self.result.graph.initializer.add()
            tensor.CopyFrom(self.tensors[name])
            tensor.name = fresh
        return fresh


def producers_of(nodes: Iterable[onnx.NodeProto]) -> dict[str, onnx.NodeProto]:
    return {name: node for node in nodes for name in node.output}


def consumers_of(nodes: Iterable[onnx.NodeProto]) -> dict[str, list[onnx.NodeProto]]:
    found: dict[str, list[onnx.NodeProto]] = {}
    for node in nodes:
        for name in node.input:
            found.setdefault(name, []).append(node)
    return found


def _drop_idle_pairs(model: onnx.ModelProto) -> None:
    """Take out the pairs around reverted layers: no int8 layer is left behind them."""
    nodes = model.graph.node
    producers, consumers = producers_of(nodes), consumers_of(nodes)
    layers = set(quantised_nodes(model))
    idle: dict[str, str] = {}
    for node in nodes:
        if node.op_type != "DequantizeLinear" or node.input[0] not in producers:
            continue
        pair = producers[node.input[0]]
        if not _reaches(node, consumers, layers):
            idle[node.output[0]] = pair.input[0]
    for node in nodes:
        for place, name in enumerate(node.input):
            while name in idle:
                name = idle[name]
            node.input[place] = name


def _reaches(
    node: onnx.NodeProto, consumers: Mapping[str, list[onnx.NodeProto]], layers: Collection[str]
) -> bool:
    """Whether an int8 layer lies behind `node`, before the next float layer."""
    waiting, seen = [node], set[str]()
    while waiting:
        for name in waiting.pop().output:
            for after in consumers.get(name, ()):
                if after.name in layers:
                    return True
                if after.op_type not in LAYERS and after.output[0] not in seen:
                    seen.add(after.output[0])
                    waiting.append(after)
    return False


def _drop_unused(model: onnx.ModelProto) -> None:
    """Take out nodes and constants that no output needs."""
    graph = model.graph
    wanted = {info.name for info in graph.output}
    nodes = []
    for node in reversed(graph.node):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            nodes.append(node)
    kept = [tensor for tensor in graph.initializer if tensor.name in wanted]
    _replace(graph.node, reversed(nodes))
    _replace(graph.initializer, kept)


def _replace(field: Any, values: Iterable[Any]) -> None:
    values = list(values)
    del field[:]
    field.extend(values)

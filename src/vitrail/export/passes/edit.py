"""Reading and changing an ONNX graph in place: what the passes share."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

__all__ = ["Editor", "attributes", "name_nodes"]


class Editor:
    """One model's main graph with its producers, consumers and constants at hand.

    What is added and taken away shows in the model at `finish`; until then the maps are kept true.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = model.graph
        self.nodes = list(model.graph.node)
        self._stored = {tensor.name: tensor for tensor in model.graph.initializer}
        self._arrays: dict[str, np.ndarray] = {}
        self._new: dict[str, np.ndarray] = {}
        self._outputs = {value.name for value in model.graph.output}
        self.producers: dict[str, onnx.NodeProto] = {}
        self.consumers: defaultdict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in self.nodes:
            self._note(node)

    def _note(self, node: onnx.NodeProto) -> None:
        for name in node.output:
            self.producers[name] = node
        for name in node.input:
            self.consumers[name].append(node)

    def constant(self, name: str) -> np.ndarray | None:
        """The value of an initializer or a Constant node; None: it is computed, or kept outside the file."""
        if name in self._new:
            return self._new[name]
        if name not in self._arrays:
            tensor = self._stored.get(name)
            node = self.producers.get(name)
            if tensor is None and node is not None and node.op_type == "Constant":
                tensor = attributes(node).get("value")
            if tensor is None or tensor.data_location == onnx.TensorProto.EXTERNAL:
                return None
            self._arrays[name] = numpy_helper.to_array(tensor)
        return self._arrays[name]

    def is_output(self, name: str) -> bool:
        """Whether the graph gives it out."""
        return name in self._outputs

    def name(self, base: str) -> str:
        """A name that no value of the graph has yet."""
        taken = self.producers.keys() | self.consumers.keys() | self._stored.keys() | self._new.keys()
        taken |= {value.name for value in self.graph.input}
        names = (base, *(f"{base}_{i}" for i in range(1, len(taken) + 2)))
        return next(name for name in names if name not in taken)

    def add_constant(self, base: str, values: np.ndarray) -> str:
        """A new initializer; returns its name."""
        name = self.name(base)
        self._new[name] = values
        self.consumers[name] = []
        return name

    def add(self, op_type: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
        """A new node with one output; `finish` finds its place."""
        node = helper.make_node(op_type, inputs, [output], name=f"{output}_node", **attributes)
        self.nodes.append(node)
        self._note(node)
        return node

    def set_input(self, node: onnx.NodeProto, place: int, name: str) -> None:
        """Let a node read another value; place may be one past its last input."""
        if place < len(node.input):
            self.consumers[node.input[place]].remove(node)
            node.input[place] = name
        else:
            node.input.append(name)
        self.consumers[name].append(node)

    def drop(self, nodes: Collection[onnx.NodeProto]) -> None:
        """Take nodes away; who reads what they made must get it from a new node of the same name."""
        gone = {id(node) for node in nodes}
        for node in nodes:
            for name in node.output:
                self.producers.pop(name, None)
            for name in node.input:
                self.consumers[name] = [user for user in self.consumers[name] if id(user) not in gone]
        self.nodes = [node for node in self.nodes if id(node) not in gone]

    def finish(self) -> None:
        """Write the nodes in an order that can be run, and the constants that somebody reads."""
        nodes = self._ordered()
        used = {name for node in nodes for name in node.input} | self._outputs
        made = used | {name for node in nodes for name in node.output}
        _rewrite(self.graph.node, nodes)
        for name, values in self._new.items():
            self.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        _rewrite(self.graph.initializer, [tensor for tensor in self.graph.initializer if tensor.name in used])
        _rewrite(self.graph.value_info, [value for value in self.graph.value_info if value.name in made])

    def _ordered(self) -> list[onnx.NodeProto]:
        """Each node after those that it reads, else in the order that they had."""
        ordered: list[onnx.NodeProto] = []
        placed: set[int] = set()
        for last in self.nodes:
            pending = [last]
            while pending:
                node = pending[-1]
                first = [self.producers[name] for name in node.input if name in self.producers]
                first = [each for each in first if id(each) not in placed]
                if first:
                    pending.extend(first)
                    continue
                pending.pop()
                if id(node) not in placed:
                    placed.add(id(node))
                    ordered.append(node)
        return ordered


def _rewrite(field: Any, messages: list[Any]) -> None:
    """Let a repeated field have these messages, which may be its own."""
    kept = [type(message).FromString(message.SerializeToString()) for message in messages]
    del field[:]
    field.extend(kept)


def attributes(node: onnx.NodeProto) -> Mapping[str, Any]:
    """A node's attributes as Python values."""
    return {each.name: helper.get_attribute_value(each) for each in node.attribute}


def name_nodes(graph: onnx.GraphProto) -> None:
    """Give each node that has no name one of its own, by its place."""
    names = {node.name for node in graph.node}
    for place, node in enumerate(graph.node):
        if not node.name:
            node.name = f"node_{place}"
            while node.name in names:
                node.name += "_"
            names.add(node.name)

"""What each int8 layer of a graph costs, measured with that layer alone in int8.

The errors that layers add are nearly independent of each other: on EfficientNet-Lite0 the root of the sum of
their squares is within a tenth of the error of all together (docs/decisions/int8.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from vitrail.export.passes.quantize import quantised_nodes
from vitrail.export.passes.revert import producers_of
from vitrail.privacy import import_engine

__all__ = ["costs"]


def costs(
    model: onnx.ModelProto,
    quantised: onnx.ModelProto,
    inputs: Sequence[Mapping[str, np.ndarray]],
    layers: Sequence[str] | None = None,
) -> dict[str, float]:
    """Layer -> relative L2 error of the outputs with it alone in int8, in the order of `layers`.

    `layers`: those to try; None: all of `quantised`, in the graph's order.

    `inputs` are run once and once more for each layer; a few photos are enough. Relative: to the outputs of
    `model`; with several outputs the largest counts. An error that is not a number counts as infinite.
    """
    layers = quantised_nodes(quantised) if layers is None else layers
    session = _session(switched(model, quantised, layers))
    switches = {_switch(place): np.array(False) for place in range(len(layers))}
    outputs = [info.name for info in model.graph.output]
    found: dict[str, float] = dict.fromkeys(layers, 0.0)
    for arrays in inputs:
        expected = session.run(outputs, {**arrays, **switches})
        for place, layer in enumerate(layers):
            answers = session.run(outputs, {**arrays, **switches, _switch(place): np.array(True)})
            error = max(map(_relative, answers, expected))
            found[layer] += error / len(inputs)
    return found


def switched(model: onnx.ModelProto, quantised: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """`model` with a boolean input for each of these layers of `quantised`: whether it computes in int8."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    layers = {name: place for place, name in enumerate(names)}
    numbers = {node.output[0]: layers[node.name] for node in quantised.graph.node if node.name in layers}
    branches = _Branches(model, quantised)
    nodes = []
    for node in model.graph.node:
        place = numbers.get(node.output[0]) if node.output else None
        nodes.append(node if place is None else branches.choice(node, _switch(place)))
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    result.graph.initializer.extend(branches.constants.values())
    result.graph.input.extend(
        helper.make_tensor_value_info(_switch(place), TensorProto.BOOL, []) for place in layers.values()
    )
    return result


class _Branches:
    """If-nodes that compute a layer in int8 or as it was."""

    def __init__(self, model: onnx.ModelProto, quantised: onnx.ModelProto) -> None:
        self.outer = {name for node in model.graph.node for name in node.output}
        self.outer.update(info.name for info in model.graph.input)
        self.producers = producers_of(quantised.graph.node)
        self.order = {node.output[0]: place for place, node in enumerate(quantised.graph.node)}
        self.tensors = {tensor.name: tensor for tensor in quantised.graph.initializer}
        self.constants: dict[str, onnx.TensorProto] = {}

    def choice(self, node: onnx.NodeProto, switch: str) -> onnx.NodeProto:
        output = node.output[0]
        original = onnx.NodeProto()
        original.CopyFrom(node)
        original.output[0] = f"{output}/float"
        chosen = helper.make_node("If", [switch], [output], name=f"{node.name}/choice")
        for name, nodes, result in (
            ("then_branch", self._int8(output), f"{output}/int8"),
            ("else_branch", [original], f"{output}/float"),
        ):
            value = helper.make_tensor_value_info(result, TensorProto.FLOAT, None)
            chosen.attribute.append(
                helper.make_attribute(name, helper.make_graph(nodes, f"{name}/{output}", [], [value]))
            )
        return chosen

    def _int8(self, output: str) -> list[onnx.NodeProto]:
        """The quantised layer with all between it and the tensors of the float model."""
        waiting, found = [self.producers[output]], dict[str, onnx.NodeProto]()
        while waiting:
            node = waiting.pop()
            found[node.output[0]] = node
            waiting += [
                self.producers[name]
                for name in node.input
                if name not in self.outer and name in self.producers and name not in found
            ]
        inner = {name: f"{name}/{output}" for node in found.values() for name in node.output}
        inner[output] = f"{output}/int8"
        return [self._renamed(found[name], inner) for name in sorted(found, key=self.order.__getitem__)]

    def _renamed(self, node: onnx.NodeProto, inner: Mapping[str, str]) -> onnx.NodeProto:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.name = f"{node.name}/int8"
        for place, name in enumerate(node.input):
            copy.input[place] = self._constant(name) if name in self.tensors else inner.get(name, name)
        for place, name in enumerate(node.output):
            copy.output[place] = inner[name]
        return copy

    def _constant(self, name: str) -> str:
        fresh = f"{name}/int8"
        if fresh not in self.constants:
            tensor = onnx.TensorProto()
            tensor.CopyFrom(self.tensors[name])
            tensor.name = fresh
            self.constants[fresh] = tensor
        return fresh


def _switch(place: int) -> str:
    return f"int8/{place}"


def _session(model: onnx.ModelProto) -> Any:
    onnxruntime = import_engine("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _relative(found: np.ndarray, expected: np.ndarray) -> float:
    error = float(np.linalg.norm(found - expected) / max(float(np.linalg.norm(expected)), 1e-30))
    return error if np.isfinite(error) else float("inf")

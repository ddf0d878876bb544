"""What one image costs an ONNX graph: parameters, multiply-accumulates, activations.

Whatever cannot be told counts as nothing, so that a lower bound on latency made of it is never too high.
"""

from __future__ import annotations

import math

import onnx
from onnx import TensorProto, helper, shape_inference

from vitrail.export.onnx_file import constants, names_used

__all__ = ["cost"]

SMALL = 1024
"""Constants of at most this many numbers keep their values, from which shapes may be computed."""


def cost(model: onnx.ModelProto, batch: int = 1) -> dict[str, int]:
    """`parameters`, and `macs` and `activations` of one image of a graph whose first input is images.

    Counted are convolutions and matrix products that depend on the images, outside of If and Loop. `batch` is
    how many images the graph takes at once, if no other number.
    """
    shapes = _shapes(model, batch)
    alive = {model.graph.input[0].name}
    macs = activations = 0
    for node in model.graph.node:
        if not alive & names_used([node]):
            continue  # an engine computes it once, when it loads
        alive.update(node.output)
        each, outputs = _each(node, shapes), shapes.get(node.output[0])
        if each and outputs:
            macs += each * math.prod(outputs)
            activations += math.prod(outputs)
    parameters = {
        name: math.prod(tensor.dims)
        for name, tensor in constants(model)
        if tensor.data_type == TensorProto.FLOAT
    }
    return {
        "parameters": sum(parameters.values()),
        "macs": macs // batch,
        "activations": activations // batch,
    }


def _each(node: onnx.NodeProto, shapes: dict[str, list[int]]) -> int:
    """Multiply-accumulates for one element of the output; 0: not counted."""
    if node.op_type == "Conv":
        return math.prod(shapes.get(node.input[1], [0])[1:])
    if node.op_type in ("MatMul", "Gemm"):
        left = shapes.get(node.input[0])
        turned = any(a.name == "transA" and a.i for a in node.attribute)
        return 0 if not left else left[0] if turned else left[-1]
    return 0


def _shapes(model: onnx.ModelProto, batch: int) -> dict[str, list[int]]:
    """{tensor: its shape for so many images}, of those whose shape is known."""
    light = onnx.ModelProto(ir_version=model.ir_version)
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    graph = light.graph
    graph.name = "light"
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) <= SMALL:
            graph.initializer.append(tensor)
        else:
            graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    for side in graph.input[0].type.tensor_type.shape.dim[:1]:
        side.dim_value = batch
    for value in model.graph.output:
        graph.output.append(onnx.ValueInfoProto(name=value.name))
        graph.output[-1].type.tensor_type.elem_type = value.type.tensor_type.elem_type
    try:
        found = shape_inference.infer_shapes(light, data_prop=True).graph
    except Exception:  # a shape that contradicts another: engines decide whether it matters
        return {}
    shapes: dict[str, list[int]] = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    for value in (*found.input, *found.value_info, *found.output):
        sides = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(side.dim_value > 0 for side in sides):
            shapes[value.name] = [side.dim_value for side in sides]
    return shapes

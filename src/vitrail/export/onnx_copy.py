"""The copy of a person's own ONNX file that engines get: a task's names, float32 images, any batch.

What the copy does to its images before the file's own graph sees them (channels, layout, type),
`as_the_file_takes` does in NumPy for the file itself, so that comparing the two checks the copy.

Shapes: B images, K classes, S image size, h w a map.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import msgspec
import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from vitrail.export.onnx_file import graphs, names_used
from vitrail.export.requests import OwnGraph
from vitrail.tasks.classify import IMAGES, SCORES, Probability
from vitrail.tasks.segment import MASKS

__all__ = [
    "DYNAMIC",
    "NUMPY",
    "Scores",
    "as_the_file_takes",
    "as_the_task_gives",
    "dependencies",
    "normalised",
    "scores_of",
    "with_output",
]

DYNAMIC = "batch"
"""The name of the free dimension, which ONNX Runtime's loader fixes."""
NUMPY: dict[int, type] = {
    TensorProto.FLOAT: np.float32,
    TensorProto.DOUBLE: np.float64,
    TensorProto.UINT8: np.uint8,
}
"""The types that a file's images may have."""
ROUND_SINCE = 11
"""The opset that brought the operator Round."""
Ending: TypeAlias = "tuple[str, dict[str, Any]]"
"""The operator that gives the output its name, with its attributes."""
PRIVATE = ("doc_string", "metadata_props")
"""Fields in which exporters write the paths and source lines of whoever exported."""


@dataclass(frozen=True)
class Scores:
    """Where in a graph the scores are."""

    tensor: str
    ended_in: str = ""
    """The operator after it that only turns scores into answers: Softmax, Sigmoid or, of maps, ArgMax."""

    @property
    def probability(self) -> Probability:
        """How these scores become probabilities."""
        return "sigmoid" if self.ended_in == "Sigmoid" else "softmax"


def scores_of(graph: onnx.GraphProto, output: str, *, dense: bool = False) -> Scores:
    """The tensor behind an output (B, K), before a Softmax over classes or a Sigmoid that ends the graph.

    `dense`: the output has maps, (B, K, h, w) or (B, h, w, K), of which the best class may be taken too.
    """
    made_by = {name: node for node in graph.node for name in node.output}
    name = output
    passing = ("Identity", "Cast") if dense else ("Identity",)
    while (node := made_by.get(name)) is not None and node.op_type in passing:
        name = node.input[0]
    if node is None or node.domain not in ("", "ai.onnx"):
        return Scores(output)
    axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
    over_classes = axis in ((-3, -1, 1, 3) if dense else (-1, 1))
    if node.op_type == "Sigmoid" or (node.op_type == "Softmax" and over_classes):
        return Scores(node.input[0], ended_in=node.op_type)
    if dense and node.op_type == "ArgMax" and over_classes:
        return Scores(node.input[0], ended_in=node.op_type)
    return Scores(output)


def dependencies(graph: onnx.GraphProto, tensor: str) -> tuple[list[onnx.NodeProto], set[str]]:
    """The nodes that make a tensor, in order, and the names of all that they read."""
    needed, kept = {tensor}, []
    for node in reversed(graph.node):
        if needed & set(node.output):
            kept.append(node)
            needed |= names_used([node])
    return kept[::-1], needed


def with_output(model: onnx.ModelProto, tensor: str, kind: int | None = TensorProto.FLOAT) -> onnx.ModelProto:
    """The file as it is, giving one of its tensors; what that does not depend on is left out.

    Args:
        kind: the tensor's type; None: the engine finds out.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    _prune(copy.graph, tensor)
    del copy.graph.output[:]
    copy.graph.output.append(
        onnx.ValueInfoProto(name=tensor)
        if kind is None
        else helper.make_tensor_value_info(tensor, kind, None)
    )
    return copy


def as_the_file_takes(images: np.ndarray, own: OwnGraph) -> np.ndarray:
    """float32 (B, 3, S, S) in the order RGB, as `Preprocess` makes it -> what the file itself takes."""
    if own.channels == "BGR":
        images = images[:, ::-1]
    if own.layout == "NHWC":
        images = images.transpose(0, 2, 3, 1)
    kind = NUMPY[own.kind]
    if kind is np.uint8:
        images = np.floor(images + 0.5)
    return np.ascontiguousarray(images.astype(kind))


def as_the_task_gives(scores: np.ndarray, own: OwnGraph) -> np.ndarray:
    """What the file gives -> (B, K) as it is, or maps as (B, K, h, w)."""
    if own.maps == "NHWC":
        return np.ascontiguousarray(scores.transpose(0, 3, 1, 2))
    return scores[:, None] if own.maps == "NHW" else scores


def normalised(
    model: onnx.ModelProto, own: OwnGraph, *, size: int, classes: int, batch: int | None
) -> onnx.ModelProto:
    """The copy: images (B, 3, S, S) -> scores (B, K) or masks (B, K, h, w), float32; `batch` None: any."""
    scores = scores_of(model.graph, own.output, dense=bool(own.maps)).tensor
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    _prune(copy.graph, scores)
    _strip(copy)
    renamed = _free_names(copy.graph)
    _rename(copy.graph, renamed)
    own = msgspec.structs.replace(own, input=renamed.get(own.input, own.input))
    if batch is None:
        _free_batch(copy.graph, own)
    opset = max(each.version for each in copy.opset_import if each.domain in ("", "ai.onnx"))
    _set_input(copy.graph, own, size, batch, rounds=opset >= ROUND_SINCE)
    scores = renamed.get(scores, scores)
    kind = next(value.type.tensor_type.elem_type for value in model.graph.output if value.name == own.output)
    # NNCF's passes stumble over a Cast that changes nothing where a graph ends.
    ending = ("Cast", {"to": TensorProto.FLOAT}) if kind == TensorProto.DOUBLE else ("Identity", {})
    if own.maps:
        _set_maps(copy.graph, scores, own, classes, batch, ending)
    else:
        _set_output(copy.graph, scores, classes, batch, ending)
    return copy


def _prune(graph: onnx.GraphProto, tensor: str) -> None:
    """Drop what `tensor` does not depend on, and weights that nothing reads."""
    kept, needed = dependencies(graph, tensor)
    del graph.node[:]
    graph.node.extend(kept)
    for field in (graph.initializer, graph.input):
        left = [value for value in field if value.name in needed]
        del field[:]
        field.extend(left)
    weights = {value.name for value in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    del graph.input[:]
    graph.input.extend(inputs)


def _strip(model: onnx.ModelProto) -> None:
    """Drop what only describes: shapes that a free batch makes wrong, and who exported from where."""
    for field in PRIVATE:
        model.ClearField(field)
    described: list[Any] = []
    for graph in graphs(model.graph):
        described += [graph, *graph.node, *graph.initializer, *graph.input, *graph.output]
    for function in model.functions:
        described += [function, *function.node]
    for thing in described:
        for field in (*PRIVATE, "value_info"):
            if field in thing.DESCRIPTOR.fields_by_name:
                thing.ClearField(field)


def _free_names(graph: onnx.GraphProto) -> dict[str, str]:
    """New names for tensors that happen to be called as the task calls its own."""
    taken = {name for inner in graphs(graph) for node in inner.node for name in node.output}
    taken |= {value.name for inner in graphs(graph) for value in (*inner.input, *inner.initializer)}
    renamed = {}
    for name in {IMAGES, SCORES, MASKS} & taken:
        renamed[name] = next(new for i in range(len(taken) + 1) if (new := f"{name}_{i}") not in taken)
    return renamed


def _rename(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    for inner in graphs(graph):
        for value in (*inner.input, *inner.output, *inner.initializer):
            value.name = names.get(value.name, value.name)
        for node in inner.node:
            for field in (node.input, node.output):
                for place, name in enumerate(field):
                    field[place] = names.get(name, name)


def _free_batch(graph: onnx.GraphProto, own: OwnGraph) -> None:
    """Let the graph take any batch where it names the number of images that it was traced with.

    Reshapes keep what comes, and constants that are joined to the features of one image (a class token) are
    repeated for each. Whether the graph then answers the same is for the caller to find out.
    """
    if own.batch is None:
        return
    fixed = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].type == AttributeProto.TENSOR:
            fixed[node.output[0]] = node.attribute[0].t
    alive, made = {own.input}, []
    for number, node in enumerate(graph.node):
        if alive & names_used([node]):
            alive.update(node.output)
            if node.op_type == "Reshape" and node.input[0] in alive and node.input[1] in fixed:
                _free_reshape(graph, node, numpy_helper.to_array(fixed[node.input[1]]), own.batch, number)
            elif node.op_type == "Concat" and own.batch == 1:
                made += _repeated(graph, node, alive, number)
        made.append(node)
    del graph.node[:]
    graph.node.extend(made)


def _free_reshape(
    graph: onnx.GraphProto, node: onnx.NodeProto, target: np.ndarray, batch: int, number: int
) -> None:
    if target.ndim != 1 or len(target) < 2 or target[0] != batch:
        return
    target = target.copy()
    target[0] = 0 if -1 in target[1:] else -1
    node.input[1] = f"vitrail_shape_{number}"
    graph.initializer.append(numpy_helper.from_array(target, node.input[1]))


def _repeated(
    graph: onnx.GraphProto, node: onnx.NodeProto, alive: set[str], number: int
) -> list[onnx.NodeProto]:
    """Nodes that repeat the constants among a Concat's inputs for each image of the others."""
    features = next((name for name in node.input if name in alive), None)
    axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
    if features is None or axis == 0:
        return []
    made = []
    for place, name in enumerate(node.input):
        if name in alive:
            continue
        key = f"vitrail_repeated_{number}_{place}"
        constants = {"first": [0], "second": [1], "end": [np.iinfo(np.int64).max]}
        for part, values in constants.items():
            graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), f"{key}_{part}"))
        made += [
            helper.make_node("Shape", [features], [f"{key}_shape"]),
            helper.make_node("Gather", [f"{key}_shape", f"{key}_first"], [f"{key}_images"]),
            helper.make_node("Shape", [name], [f"{key}_own"]),
            helper.make_node("Slice", [f"{key}_own", f"{key}_second", f"{key}_end"], [f"{key}_rest"]),
            helper.make_node("Concat", [f"{key}_images", f"{key}_rest"], [f"{key}_sides"], axis=0),
            helper.make_node("Expand", [name, f"{key}_sides"], [key]),
        ]
        node.input[place] = key
    return made


def _set_input(graph: onnx.GraphProto, own: OwnGraph, size: int, batch: int | None, *, rounds: bool) -> None:
    steps: list[tuple[str, dict[str, Any], np.ndarray | None]] = []
    if own.channels == "BGR":
        steps.append(("Gather", {"axis": 1}, np.array([2, 1, 0], np.int64)))
    if own.layout == "NHWC":
        steps.append(("Transpose", {"perm": [0, 2, 3, 1]}, None))
    if own.kind == TensorProto.UINT8 and rounds:
        steps.append(("Round", {}, None))  # unlike half more, it is exact in bf16
    elif own.kind == TensorProto.UINT8:
        steps += [("Add", {}, np.array(0.5, np.float32)), ("Floor", {}, None)]
    if own.kind != TensorProto.FLOAT:
        steps.append(("Cast", {"to": own.kind}, None))
    shape = [DYNAMIC if batch is None else batch, 3, size, size]
    del graph.input[:]
    graph.input.append(helper.make_tensor_value_info(IMAGES, TensorProto.FLOAT, shape))
    if not steps:
        _rename(graph, {own.input: IMAGES})
        return
    made, name = [], IMAGES
    for number, (kind, attributes, constant) in enumerate(steps):
        given = [name]
        if constant is not None:
            given.append(f"vitrail_constant_{number}")
            graph.initializer.append(numpy_helper.from_array(constant, given[1]))
        name = own.input if number == len(steps) - 1 else f"vitrail_image_{number}"
        made.append(helper.make_node(kind, given, [name], **attributes))
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*made, *rest])


def _set_output(graph: onnx.GraphProto, scores: str, classes: int, batch: int | None, ending: Ending) -> None:
    """End in `scores` (B, K): also where the file gives (B, K, 1, 1) or float64."""
    # A Flatten that changes nothing costs nothing: engines drop it.
    graph.node.append(helper.make_node("Flatten", [scores], ["vitrail_rows"], axis=1))
    graph.node.append(helper.make_node(ending[0], ["vitrail_rows"], [SCORES], **ending[1]))
    shape = [DYNAMIC if batch is None else batch, classes]
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(SCORES, TensorProto.FLOAT, shape))


def _set_maps(
    graph: onnx.GraphProto, scores: str, own: OwnGraph, classes: int, batch: int | None, ending: Ending
) -> None:
    """End in `masks` (B, K, h, w), however the file lays them out."""
    name = scores
    if own.maps == "NHWC":
        graph.node.append(helper.make_node("Transpose", [name], ["vitrail_maps"], perm=[0, 3, 1, 2]))
        name = "vitrail_maps"
    elif own.maps == "NHW":
        shape = numpy_helper.from_array(np.array([0, 1, *own.sides], np.int64), "vitrail_one_map")
        graph.initializer.append(shape)
        graph.node.append(helper.make_node("Reshape", [name, shape.name], ["vitrail_maps"]))
        name = "vitrail_maps"
    graph.node.append(helper.make_node(ending[0], [name], [MASKS], **ending[1]))
    sides = [DYNAMIC if batch is None else batch, classes, *own.sides]
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(MASKS, TensorProto.FLOAT, sides))

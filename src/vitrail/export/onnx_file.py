"""A person's own ONNX file, opened without trusting it: what it holds, or a sentence with the fix.

Runs in a child of measure/sandbox.py, with that one's limits of time and memory.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import external_data_helper, numpy_helper
from onnx.checker import ValidationError

from vitrail.errors import InputError
from vitrail.words import some_of

__all__ = [
    "ONE_FILE_LIMIT",
    "constants",
    "graphs",
    "names_used",
    "nodes",
    "open_model",
    "required_inputs",
    "weight_bytes",
]

PROTOBUF_LIMIT = 2 << 30
"""What the format can hold in one file, in bytes."""
ONE_FILE_LIMIT = 1_800 * 1024 * 1024
"""Above this size the weights go into a separate file."""
OLDEST_OPSET = 7
"""Before it, arithmetic did not broadcast as it does since, and engines no longer read it."""
STANDARD, MICROSOFT = ("", "ai.onnx", "ai.onnx.ml"), "com.microsoft"
QUANTISED = {
    "ConvInteger",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "MatMulInteger",
    "MatMulNBits",
    "QLinearConv",
    "QLinearMatMul",
    "QuantizeLinear",
}
WEIGHED = {"Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization"}
"""Operators whose constants are weights: infinity, which a mask may hold, is a mistake there."""


def open_model(path: Path) -> onnx.ModelProto:
    """The whole model with its external data, once everything that can be read from the file is in order.

    Raises:
        InputError: not an ONNX file, a damaged one, or one that cannot become a candidate; with the fix.
    """
    model = _parsed(path)
    _load_external(model, path)
    for graph in graphs(model.graph):
        _sort(graph)
    _check_operators(model, path)
    _check_format(model, path)
    _check_numbers(model, path)
    return model


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph, and those inside its If, Loop and Scan."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node or inner.initializer or inner.output:
                    yield from graphs(inner)


def nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """All nodes, those of inner graphs and of the file's own functions among them."""
    for graph in graphs(model.graph):
        yield from graph.node
    for function in model.functions:
        yield from function.node


def constants(model: onnx.ModelProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    """(name of the tensor in the graph, its values) of initialisers and of Constant nodes."""
    for graph in graphs(model.graph):
        yield from ((tensor.name, tensor) for tensor in graph.initializer)
    for node in nodes(model):
        for attribute in node.attribute:
            for tensor in (attribute.t, *attribute.tensors):
                if tensor.data_type:
                    yield (node.output[0] if node.output else ""), tensor


def weight_bytes(model: onnx.ModelProto) -> int:
    """Bytes of all constants that are stored raw, which large ones are."""
    return sum(len(tensor.raw_data) for _, tensor in constants(model))


def required_inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """The graph's inputs, without the weights that old files list among them."""
    given = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in given]


def _parsed(path: Path) -> onnx.ModelProto:
    try:
        size = path.stat().st_size
        if size == 0:
            raise InputError(f"{path} is empty: export the model again.")
        if size >= PROTOBUF_LIMIT:
            raise InputError(
                f"{path} is larger than the 2 GiB that one ONNX file can hold: export it with its weights "
                "as external data."
            )
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): check --onnx.") from None
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError:
        raise InputError(f"{path} is not an ONNX file, or was cut off: export or copy it again.") from None
    if not model.ir_version or not model.graph.node or not model.opset_import:
        raise InputError(f"{path} holds no ONNX graph: export or copy it again.")
    return model


def _sort(graph: onnx.GraphProto) -> None:
    """Put each node behind those that make what it reads, as the format asks and engines do themselves.

    Tools that insert Casts write them at the end. Nodes of a cycle stay where they are: the check finds them.
    """
    made_by = {name: place for place, node in enumerate(graph.node) for name in node.output if name}
    waits = [{made_by[name] for name in names_used([node]) if name in made_by} for node in graph.node]
    if all(place > max(before, default=-1) for place, before in enumerate(waits)):
        return
    readers: dict[int, list[int]] = {}
    for place, before in enumerate(waits):
        for other in before:
            readers.setdefault(other, []).append(place)
    ready = [place for place, before in enumerate(waits) if not before]
    heapq.heapify(ready)  # the first that can be, so that what is in order stays as it is
    order = []
    while ready:
        place = heapq.heappop(ready)
        order.append(graph.node[place])
        for reader in readers.get(place, []):
            waits[reader].discard(place)
            if not waits[reader]:
                heapq.heappush(ready, reader)
    if len(order) == len(graph.node):
        nodes_in_order = [onnx.NodeProto.FromString(node.SerializeToString()) for node in order]
        del graph.node[:]
        graph.node.extend(nodes_in_order)


# --- external data --------------------------------------------------------------------------------


def _load_external(model: onnx.ModelProto, path: Path) -> None:
    folder = Path(os.path.realpath(path.parent))
    outside = [tensor for _, tensor in constants(model) if external_data_helper.uses_external_data(tensor)]
    for tensor in outside:
        _check_place(tensor, folder, path)
    for tensor in outside:
        external_data_helper.load_external_data_for_tensor(tensor, str(folder))
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]


def _check_place(tensor: onnx.TensorProto, folder: Path, path: Path) -> None:
    """Refuse data that lies elsewhere than in a plain file beside the model, or not whole."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    place = Path(location)
    if not location or place.is_absolute() or ".." in place.parts or "\0" in location:
        raise InputError(
            f"{path} keeps weights at {location!r}, which is not beside it: save it again with its external "
            "data in its own folder."
        )
    whole = folder / place
    if not os.path.lexists(whole):
        raise InputError(f"{path} needs its weights file {location}: put that file beside it.")
    if Path(os.path.realpath(whole)) != whole or not whole.is_file():
        raise InputError(
            f"{location}, where {path} keeps weights, is a link or no plain file: copy the file itself there."
        )
    try:
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", 0))
    except ValueError:
        offset = length = -1
    if min(offset, length) < 0 or offset + length > whole.stat().st_size:
        raise InputError(
            f"{location} holds less than {path} says it does: it was cut off or is another model's, so copy "
            "it again."
        )


# --- what is in it --------------------------------------------------------------------------------


def _check_operators(model: onnx.ModelProto, path: Path) -> None:
    own = {(function.domain, function.name) for function in model.functions}
    found = list(nodes(model))
    custom = {
        f"{node.domain}:{node.op_type}"
        for node in found
        if node.domain not in (*STANDARD, MICROSOFT) and (node.domain, node.op_type) not in own
    }
    if custom:
        raise InputError(
            f"{path} uses operators that no engine here has ({some_of(sorted(custom))}): export it with "
            "standard ONNX operators."
        )
    if any(a.name == "training_mode" and a.i for node in found for a in node.attribute):
        raise InputError(f"{path} was exported for training: export it in evaluation mode (model.eval()).")
    kinds = {node.op_type for node in found}
    if kinds & QUANTISED:
        raise InputError(
            f"{path} is quantised ({some_of(sorted(kinds & QUANTISED))}): give the float32 model that it was "
            "made from, because precisions are Vitrail's to compare."
        )
    brain = onnx.TensorProto.BFLOAT16
    values = (*model.graph.input, *model.graph.output)
    if any(tensor.data_type == brain for _, tensor in constants(model)) or any(
        value.type.tensor_type.elem_type == brain for value in values
    ):
        raise InputError(
            f"{path} holds bfloat16 numbers, which no engine here runs as they are: export the model in "
            "float32 (model.float() in PyTorch), because precisions are Vitrail's to compare."
        )


def _check_format(model: onnx.ModelProto, path: Path) -> None:
    opset = max((o.version for o in model.opset_import if o.domain in STANDARD[:2]), default=0)
    newest = onnx.defs.onnx_opset_version()
    if not OLDEST_OPSET <= opset <= newest:
        raise InputError(
            f"{path} is written in opset {opset}, and opsets {OLDEST_OPSET} to {newest} are read here: "
            f"export it again with opset {min(newest, 18)}."
        )
    try:
        if weight_bytes(model) <= ONE_FILE_LIMIT:
            onnx.checker.check_model(model)
        else:
            onnx.checker.check_model(str(path))
    except (ValidationError, ValueError) as error:
        line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        raise InputError(f"{path} is not valid ONNX ({line.rstrip('.')}): export it again.") from None


def _check_numbers(model: onnx.ModelProto, path: Path) -> None:
    weighed = {name for node in nodes(model) if node.op_type in WEIGHED for name in node.input}
    try:
        bad = [
            name or tensor.name for name, tensor in constants(model) if not _in_order(tensor, name in weighed)
        ]
    except (KeyError, TypeError, ValueError) as error:  # a shape or type that does not go with its bytes
        raise InputError(f"{path} holds a damaged tensor ({error}): export or copy it again.") from None
    if bad:
        raise InputError(
            f"{path} holds numbers that are not finite (NaN or infinity) in {some_of(bad)}: fetch the file "
            "again, or export an earlier step of the training."
        )


def _in_order(tensor: onnx.TensorProto, weighed: bool) -> bool:
    if tensor.data_type not in (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16):
        return True
    values = numpy_helper.to_array(tensor)
    if weighed:
        return bool(np.isfinite(values).all())
    return not bool(np.isnan(values).any())


def names_used(found: Iterable[onnx.NodeProto]) -> set[str]:
    """Every tensor that these nodes, or graphs inside them, read."""
    used: set[str] = set()
    for node in found:
        used.update(node.input)
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                used |= names_used(inner.node) | {value.name for value in inner.output}
    return used - {""}  # an optional input that is left out

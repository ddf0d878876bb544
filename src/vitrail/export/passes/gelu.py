"""gelu: GELU behind a linear layer as arithmetic that OpenVINO does not fuse into it, in fp32.

OpenVINO runs a linear layer that has nothing fused into it with MLAS, and one with a GELU as a 1x1
convolution (oneDNN), which takes longer than MLAS and the GELU together
(docs/decisions/exact-rewrites.md). It knows x/2 (1 + erf(x/√2)) in all its spellings, so 1/√2 goes into the
layer: with y = x/√2 from scaled weights and bias, GELU is y (1 + erf(y)) / √2.
"""

from __future__ import annotations

import math

import numpy as np
import onnx

from vitrail.export.passes.edit import Editor, attributes
from vitrail.vocabulary import Preprocess

__all__ = ["apply"]

ROOT = 1.0 / math.sqrt(2.0)


def apply(model: onnx.ModelProto, preprocess: Preprocess) -> int:
    """Rewrite the model in place; the number of GELUs written out."""
    editor = Editor(model)
    count = 0
    for node in list(editor.nodes):
        if node.op_type != "Gelu" or node.domain or attributes(node).get("approximate", b"none") != b"none":
            continue
        weights = _weights(editor, node)
        if not weights:
            continue
        for layer, place in weights:
            values = editor.constant(layer.input[place])
            assert values is not None
            scaled = (values.astype(np.float64) * ROOT).astype(np.float32)
            editor.set_input(layer, place, editor.add_constant(f"{layer.input[place]}_by_root", scaled))
        _written_out(editor, node)
        count += 1
    if count:
        editor.finish()
    return count


def _weights(editor: Editor, gelu: onnx.NodeProto) -> list[tuple[onnx.NodeProto, int]]:
    """The weights and bias of a linear layer that only `gelu` reads, each a node and its input's number."""
    found: list[tuple[onnx.NodeProto, int]] = []
    value = gelu.input[0]
    while len(editor.consumers[value]) == 1 and not editor.is_output(value):
        layer = editor.producers.get(value)
        if layer is None or layer.domain or layer.op_type not in ("Add", "MatMul"):
            break
        stored = [i for i, name in enumerate(layer.input) if _is_float32(editor, name)]
        if len(stored) != 1 or (layer.op_type == "MatMul" and stored != [1]):
            break
        found.append((layer, stored[0]))
        if layer.op_type == "MatMul":
            return found
        value = layer.input[1 - stored[0]]
    return []


def _is_float32(editor: Editor, name: str) -> bool:
    values = editor.constant(name)
    return values is not None and values.dtype == np.float32


def _written_out(editor: Editor, gelu: onnx.NodeProto) -> None:
    scaled, output = gelu.input[0], gelu.output[0]
    root = editor.add_constant(f"{output}_root", np.array(ROOT, np.float32))
    editor.drop([gelu])
    names = [editor.name(f"{output}_{part}") for part in ("erf", "times", "plus")]
    editor.add("Erf", [scaled], names[0])
    editor.add("Mul", [names[0], root], names[1])
    editor.add("Add", [names[1], root], names[2])
    editor.add("Mul", [scaled, names[2]], output)

"""branches: parallel convolutions of one value, scaled and added, become one convolution.

RepVGG, MobileOne, FastViT and their kin add convolutions of several sizes, a BatchNormalization and the value
itself. All of that is linear, so its kernels add up: the smaller ones in the middle of the largest. Factors
of channels behind a convolution (LayerScale) go into its kernel as well.

Shapes: O channels out, I in, g groups, k x k the kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import onnx

from vitrail.export.passes.edit import Editor, attributes
from vitrail.vocabulary import Preprocess

__all__ = ["apply"]

SUMS = frozenset({"Add", "Sub"})
DEPTH = 10
"""Nodes from a sum down to its convolutions: more would be the chain of residuals of a whole model."""
LINEAR = frozenset({"Add", "BatchNormalization", "Conv", "Mul", "Sub"})


@dataclass(frozen=True, kw_only=True)
class _Form:
    """A convolution of a given value, padded so that a stride of 1 keeps the size."""

    kernel: np.ndarray
    """float64 (O, I / g, k, k), k odd."""
    bias: np.ndarray
    """float64 (O,)."""
    group: int
    stride: int
    nodes: tuple[onnx.NodeProto, ...] = ()
    """What it stands for."""
    cost: int
    """Kernel elements of all its convolutions."""

    def scaled(self, factor: np.ndarray, shift: np.ndarray | float = 0.0) -> _Form:
        return replace(
            self,
            kernel=self.kernel * np.broadcast_to(factor, self.bias.shape)[:, None, None, None],
            bias=self.bias * factor + shift,
        )


def apply(model: onnx.ModelProto, preprocess: Preprocess) -> int:
    """Rewrite the model in place; the number of convolutions that took in other nodes."""
    editor = Editor(model)
    gone: set[int] = set()
    count = 0
    for node in reversed(list(editor.nodes)):
        if id(node) in gone or node.op_type not in LINEAR - {"Conv"} or node.domain:
            continue
        found = _merged(editor, node)
        if found is not None:
            source, form = found
            _write(editor, node, source, form)
            gone.update(map(id, form.nodes))
            count += 1
    if count:
        editor.finish()
    return count


def _merged(editor: Editor, root: onnx.NodeProto) -> tuple[str, _Form] | None:
    """What `root` gives as one convolution of one value, if that saves a node and no product is added."""
    for source in dict.fromkeys(_sources(editor, root)):
        form = _form(editor, root.output[0], source)
        if form is None or form.kernel.size > form.cost:
            continue
        inside = {id(node) for node in form.nodes}
        hidden = [node for node in form.nodes if node is not root]
        if not any(node.op_type == "Conv" for node in hidden):
            continue
        if all(_only_read_by(editor, node, inside) for node in hidden):
            return source, form
    return None


def _only_read_by(editor: Editor, node: onnx.NodeProto, inside: set[int]) -> bool:
    name = node.output[0]
    return not editor.is_output(name) and all(id(user) in inside for user in editor.consumers[name])


def _sources(editor: Editor, node: onnx.NodeProto, depth: int = DEPTH) -> Iterator[str]:
    """What the convolutions and normalisations that a sum is made of read, the nearest first."""
    if node.op_type in ("BatchNormalization", "Conv"):
        yield node.input[0]
    if node.op_type == "Conv" or not depth:
        return
    for name in node.input:
        before = editor.producers.get(name)
        if before is not None and before.op_type in LINEAR:
            yield from _sources(editor, before, depth - 1)


def _form(editor: Editor, name: str, source: str, depth: int = DEPTH) -> _Form | None:
    """`name` as a convolution of `source`, or None."""
    node = editor.producers.get(name)
    if node is None or node.op_type not in LINEAR or node.domain or not depth:
        return None
    if node.op_type == "Conv":
        return _of_convolution(editor, node) if node.input[0] == source else None
    if node.op_type == "BatchNormalization":
        return _of_normalisation(editor, node, source, depth - 1)
    left, right = node.input
    value, other = left, _per_channel(editor, right)
    if other is None:
        value, other = right, _per_channel(editor, left)
    if other is None:
        return _of_sum(editor, node, source, depth - 1) if node.op_type in SUMS else None
    form = _form(editor, value, source, depth - 1)
    if form is None or other.size not in (1, form.bias.size):
        return None
    form = replace(form, nodes=(*form.nodes, node))
    if node.op_type == "Mul":
        return form.scaled(other)
    if node.op_type == "Add":
        return form.scaled(np.ones(1), other)
    return form.scaled(np.ones(1), -other) if value == left else form.scaled(-np.ones(1), other)


def _of_convolution(editor: Editor, node: onnx.NodeProto) -> _Form | None:
    kernel = editor.constant(node.input[1])
    bias = editor.constant(node.input[2]) if len(node.input) > 2 else None
    if (
        kernel is None
        or kernel.dtype != np.float32
        or kernel.ndim != 4
        or (len(node.input) > 2 and bias is None)
    ):
        return None
    given = attributes(node)
    side = kernel.shape[2]
    strides = list(given.get("strides", (1, 1)))
    usual = (
        side % 2 == 1
        and kernel.shape[3] == side
        and list(given.get("pads", (0, 0, 0, 0))) == [side // 2] * 4
        and list(given.get("dilations", (1, 1))) == [1, 1]
        and given.get("auto_pad", b"NOTSET") == b"NOTSET"
        and strides[0] == strides[1]
    )
    if not usual:
        return None
    return _Form(
        kernel=kernel.astype(np.float64),
        bias=np.zeros(len(kernel)) if bias is None else bias.astype(np.float64),
        group=given.get("group", 1),
        stride=strides[0],
        nodes=(node,),
        cost=kernel.size,
    )


def _of_normalisation(editor: Editor, node: onnx.NodeProto, source: str, depth: int) -> _Form | None:
    values = [editor.constant(name) for name in node.input[1:]]
    if len(node.output) != 1 or len(values) != 4 or any(value is None for value in values):
        return None
    scale, shift, mean, variance = (np.asarray(value, np.float64) for value in values)
    form = _identity(len(scale)) if node.input[0] == source else _form(editor, node.input[0], source, depth)
    if form is None:
        return None
    factor = scale / np.sqrt(variance + attributes(node).get("epsilon", 1e-5))
    return replace(form.scaled(factor, shift - mean * factor), nodes=(*form.nodes, node))


def _of_sum(editor: Editor, node: onnx.NodeProto, source: str, depth: int) -> _Form | None:
    forms = [None if name == source else _form(editor, name, source, depth) for name in node.input]
    width = next((form.bias.size for form in forms if form is not None), None)
    if width is None:
        return None
    terms = [
        _identity(width) if name == source else form for name, form in zip(node.input, forms, strict=True)
    ]
    left, right = terms
    if left is None or right is None or left.bias.size != right.bias.size or left.stride != right.stride:
        return None
    group = min(left.group, right.group)
    one, other = _grouped(left, group), _grouped(right, group)
    if one is None or other is None or one.shape[1] != other.shape[1]:
        return None
    side = max(one.shape[2], other.shape[2])
    sign = -1.0 if node.op_type == "Sub" else 1.0
    return _Form(
        kernel=_padded(one, side) + sign * _padded(other, side),
        bias=left.bias + sign * right.bias,
        group=group,
        stride=left.stride,
        nodes=(*left.nodes, *right.nodes, node),
        cost=left.cost + right.cost,
    )


def _identity(width: int) -> _Form:
    return _Form(kernel=np.ones((width, 1, 1, 1)), bias=np.zeros(width), group=width, stride=1, cost=width)


def _grouped(form: _Form, group: int) -> np.ndarray | None:
    """The kernel for fewer groups; only one that has a group for each channel can be spread."""
    if form.group == group:
        return form.kernel
    width, each, *sides = form.kernel.shape
    if form.group != width or each != 1:
        return None
    spread = np.zeros((width, width // group, *sides))
    spread[np.arange(width), np.arange(width) % (width // group)] = form.kernel[:, 0]
    return spread


def _padded(kernel: np.ndarray, side: int) -> np.ndarray:
    edge = (side - kernel.shape[2]) // 2
    return np.pad(kernel, ((0, 0), (0, 0), (edge, edge), (edge, edge)))


def _per_channel(editor: Editor, name: str) -> np.ndarray | None:
    """A constant number, or one for each channel of (B, C, H, W), in float64 and flat."""
    values = editor.constant(name)
    if values is None or values.dtype != np.float32:
        return None
    by_channel = values.ndim >= 3 and values.shape[-2:] == (1, 1) and values.size == values.shape[-3]
    return values.astype(np.float64).reshape(-1) if values.size == 1 or by_channel else None


def _write(editor: Editor, root: onnx.NodeProto, source: str, form: _Form) -> None:
    output = root.output[0]
    kernel = editor.add_constant(f"{output}_kernel", form.kernel.astype(np.float32))
    bias = editor.add_constant(f"{output}_bias", form.bias.astype(np.float32))
    side = form.kernel.shape[2]
    editor.drop(form.nodes)
    editor.add(
        "Conv",
        [source, kernel, bias],
        output,
        kernel_shape=[side, side],
        pads=[side // 2] * 4,
        strides=[form.stride] * 2,
        group=form.group,
    )

"""Attention in the exported file: one fused node where torch's exporter writes four.

The exporter decomposes scaled_dot_product_attention into Mul, MatMul, Softmax and MatMul. ONNX Runtime then
holds all N × S scores of each head; its com.microsoft.MultiHeadAttention holds a tile of them. OpenVINO reads
both forms and is as fast and as lean with either. docs/decisions/exported-attention.md has the figures, and
why attention with a bias or a causal mask stays decomposed.

Shapes: B batch, H heads, N query tokens, S key tokens, d head width, P parts packed in one matrix (q, k, v).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from onnx.defs import OpSchema
from onnxscript import ir
from onnxscript import opset18 as op
from onnxscript.function_libs.torch_lib.ops.nn import aten_scaled_dot_product_attention as decomposed
from onnxscript.values import Op, Opset

__all__ = ["translations"]

DOMAIN, NODE = "com.microsoft", "MultiHeadAttention"

Translation = Callable[..., Any]


def translations() -> dict[Callable[..., Any], Translation]:
    """What `torch.onnx.export` takes as its `custom_translation_table`."""
    return {torch.ops.aten.scaled_dot_product_attention.default: _attention}


def _attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """The exporter's own decomposition, or the fused node where that is faster; names are torch's."""
    plain = attn_mask is None and not is_causal and dropout_p == 0.0
    if not (plain and _fits(query, key, value)):
        return decomposed(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
    _, heads, _, width = query.shape
    out = _multi_head_attention()(
        *(_joined(x) for x in (query, key, value)),
        num_heads=heads,
        scale=width**-0.5 if scale is None else scale,
    )
    # The model undoes this transpose at once, and the exporter's optimiser drops the two.
    return op.Transpose(op.Reshape(out, _shape(0, 0, heads, width)), perm=[0, 2, 1, 3])


def _fits(*tensors: Any) -> bool:
    """fp32 (B, H, N, d) with equal B, H and d (keys and values may have another length), H and d numbers."""
    if any(x.dtype != ir.DataType.FLOAT or x.shape is None or len(x.shape) != 4 for x in tensors):
        return False
    (batch, heads, _, width), *others = (x.shape for x in tensors)
    if not (isinstance(heads, int) and isinstance(width, int)):
        return False
    return all((other[0], other[1], other[3]) == (batch, heads, width) for other in others)


def _joined(x_BHNd: Any) -> Any:
    """(B, H, N, d) -> (B, N, H·d), the layout that the fused node reads."""
    part = _part_of_projection(x_BHNd)
    if part is not None:
        return part
    return op.Reshape(_tokens_first(x_BHNd), _shape(0, 0, x_BHNd.shape[1] * x_BHNd.shape[3]))


def _tokens_first(x_BHNd: Any) -> Any:
    """(B, H, N, d) -> (B, N, H, d), moved in front of a norm over d (QK-norm), to meet the projection."""
    part = _part_of_projection(x_BHNd)
    if part is not None:
        return op.Reshape(part, _shape(0, 0, x_BHNd.shape[1], x_BHNd.shape[3]))
    node = x_BHNd.producer()
    if node is not None and node.op_type == "LayerNormalization" and _over_last_axis(node):
        epsilon = node.attributes.get_float("epsilon", 1e-5)
        before_BNHd = _tokens_first(node.inputs[0])
        return op.LayerNormalization(before_BNHd, *node.inputs[1:], axis=-1, epsilon=epsilon)[0]
    return op.Transpose(x_BHNd, perm=[0, 2, 1, 3])


def _over_last_axis(norm: ir.Node) -> bool:
    source, axis = norm.inputs[0], norm.attributes.get_int("axis", -1)
    return source is not None and source.shape is not None and axis in (-1, len(source.shape) - 1)


def _part_of_projection(x_BHNd: Any) -> Any:
    """The (B, N, H·d) columns of the packed projection that `x` was cut from, or None.

    Models make q, k and v by reshaping (B, N, P·H·d) to (B, N, P, H, d), permuting to (P, B, H, N, d) and
    taking one P. In memory that is just a slice of columns, which saves three transposes.
    """
    picked = _picked(x_BHNd)
    if picked is None:
        return None
    permuted, index = picked
    transpose = permuted.producer()
    if transpose is None or transpose.op_type != "Transpose":
        return None
    if list(transpose.attributes.get_ints("perm")) != [2, 0, 3, 1, 4]:
        return None
    split = transpose.inputs[0].producer()
    if split is None or split.op_type != "Reshape":
        return None
    packed, whole = split.inputs[0], split.outputs[0]
    if packed.shape is None or whole.shape is None or len(packed.shape) != 3 or len(whole.shape) != 5:
        return None
    # With B and N in their places, the reshape can only have split the columns.
    if list(packed.shape[:2]) != list(whole.shape[:2]):
        return None
    columns = x_BHNd.shape[1] * x_BHNd.shape[3]
    return op.Slice(packed, _shape(index * columns), _shape((index + 1) * columns), _shape(2))


def _picked(x: Any) -> tuple[Any, int] | None:
    """(values, i) where x is values[i]: how the exporter writes `unbind(0)` and `values[i]`."""
    node = x.producer()
    if node is None:
        return None
    if node.op_type == "Gather" and node.attributes.get_int("axis", 0) == 0:
        index = _constant(node.inputs[1])
        return (node.inputs[0], index) if isinstance(index, int) and index >= 0 else None
    if node.op_type != "Squeeze" or len(node.inputs) != 2 or _constant(node.inputs[1]) != [0]:
        return None
    node = node.inputs[0].producer()
    if node is None or node.op_type != "Slice" or len(node.inputs) != 4 or _constant(node.inputs[3]) != [0]:
        return None
    start, end = _constant(node.inputs[1]), _constant(node.inputs[2])
    if not (isinstance(start, list) and start[0] >= 0 and end == [start[0] + 1]):
        return None
    return node.inputs[0], start[0]


def _constant(value: ir.Value) -> Any:
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy().tolist()


def _shape(*sizes: int) -> Any:
    """A constant vector; 0 in a shape keeps the size that was there."""
    return op.Constant(value_ints=list(sizes))


def _multi_head_attention() -> Op:
    """The contributed operator, for which onnx has no schema: only the inputs and attributes used here.

    Reference: ONNX Runtime, docs/ContribOperators.md, com.microsoft.MultiHeadAttention, since version 1.
    """
    tensors = [OpSchema.FormalParameter(name, "T") for name in ("query", "key", "value", "output")]
    kinds = OpSchema.AttrType
    schema = OpSchema(
        NODE,
        DOMAIN,
        1,
        inputs=tensors[:3],
        outputs=tensors[3:],
        type_constraints=[("T", ["tensor(float)"], "")],
        attributes=[OpSchema.Attribute("num_heads", kinds.INT), OpSchema.Attribute("scale", kinds.FLOAT)],
    )
    return Op(Opset(DOMAIN, 1), NODE, schema)

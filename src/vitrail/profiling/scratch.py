"""What PyTorch's CPU operators allocate for themselves while they run, beside their results.

An operator is one event to a dispatch mode; inside, its kernel may copy, convert or repack. The rules below
say with what, by operator, and are silent where nothing to speak of is needed. Each was found by recording
the calls of malloc during that one operator on an x86 CPU (torch 2.15, oneDNN 3.13, MKL 2024.2), and none
is fitted to a model. Blocks of a few hundred KiB, which matrix kernels take per thread, are left out.

Shapes: N batch, C channels, H W the image, G groups, k kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

__all__ = ["KERNEL_BYTES", "Phase", "kernel", "phases"]

aten = torch.ops.aten

LANES = 16
"""oneDNN keeps channels in groups of this many (nChw16c), the last one padded."""
PLAIN_CHANNELS = 3
"""Up to so many channels its first convolution reads images as they are."""


KERNEL_BYTES = (296_880, 296_880)
"""What oneDNN keeps for each matrix product it has compiled; it compiles one per shape, layout and dtype."""
ONEDNN_LEAST = 16**3
"""Smaller products of bf16 matrices do not go to oneDNN."""


@dataclass(frozen=True)
class Phase:
    """A part of an operator: `early` and `late` come, `early` goes, `outputs` are made, `late` goes."""

    early: tuple[int, ...] = ()
    """Bytes."""
    late: tuple[int, ...] = ()
    """Bytes."""
    outputs: tuple[Tensor, ...] = ()
    role: str = "workspace"


Rule = Callable[[tuple, Mapping[str, Any], Sequence[Tensor]], list[Phase]]


def phases(func: Any, args: tuple, kwargs: Mapping[str, Any], new: Sequence[Tensor]) -> list[Phase]:
    """The phases of one operator; `new` are the results that are allocations. Without a rule: none."""
    rule = _RULES.get(func.overloadpacket if hasattr(func, "overloadpacket") else func)
    return rule(args, kwargs, new) if rule else []


def kernel(func: Any, args: tuple) -> Hashable | None:
    """Which matrix product oneDNN compiles for this operator and keeps from then on; None: it does not."""
    packet = func.overloadpacket
    if packet is getattr(torch.ops.mkldnn, "_linear_pointwise", None):
        rows, weight, bias, activation = args[:4]
        return ("linear", rows.flatten(0, -2).shape, weight.shape, rows.dtype, bias is None, activation)
    if packet not in (aten.mm, aten.bmm, aten.addmm, aten.baddbmm):
        return None
    added = packet in (aten.addmm, aten.baddbmm)
    left, right = args[1:3] if added else args[:2]
    small = prod(left.shape) * right.shape[-1] <= ONEDNN_LEAST
    if left.dtype is not torch.bfloat16 or small or not _onednn_has_bf16():
        return None  # fp32 is MKL's, which compiles nothing
    return ("product", left.shape, left.stride(), right.shape, right.stride(), added)


def _onednn_has_bf16() -> bool:
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _blocked(tensor: Tensor) -> int:
    """Bytes of an image batch in oneDNN's blocked layout."""
    n, c, *space = tensor.shape
    return n * -(-c // LANES) * LANES * prod(space) * tensor.element_size()


def _channels_last(*tensors: Tensor) -> bool:
    """Whether torch would take the channels-last path, where nothing is repacked but the weights."""
    return any(
        t.dim() == 4 and t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous()
        for t in tensors
    )


def _pointwise(weight: Tensor) -> bool:
    return prod(weight.shape[2:]) == 1 and weight.shape[1] > 1


def _accumulators(weight: Tensor, image: Tensor, channels: int) -> tuple[int, ...]:
    """bf16 1 × 1 convolutions sum in fp32: per thread one image of the side that is written."""
    if weight.dtype is torch.float32 or not _pointwise(weight):
        return ()
    padded = -(-channels // LANES) * LANES
    return (torch.get_num_threads() * padded * prod(image.shape[2:]) * 4,)


def _repacked(image: Tensor) -> tuple[int, ...]:
    return () if image.shape[1] <= PLAIN_CHANNELS else (_blocked(image),)


def _convolution(args: tuple, kwargs: Mapping[str, Any], new: Sequence[Tensor]) -> list[Phase]:
    # Both sides in blocked layout, then the result reordered to the plain one.
    image, weight = args[:2]
    output = new[0]
    if image.dim() != 4 or _channels_last(image, weight):
        return [Phase(early=(_bytes(weight),), outputs=(output,))]
    sums = _accumulators(weight, output, output.shape[1])
    return [
        Phase(early=(*sums, *_repacked(image), _bytes(weight)), late=(_blocked(output),), outputs=(output,))
    ]


def _convolution_backward(args: tuple, kwargs: Mapping[str, Any], new: Sequence[Tensor]) -> list[Phase]:
    # convolution_backward(grad, input, weight, bias_sizes, stride, padding, dilation, transposed,
    #                      output_padding, groups, output_mask) -> input's, weight's, bias' gradient
    gradient, image, weight = args[:3]
    mask, depthwise = args[10], weight.shape[1] == 1 and args[9] > 1
    results = iter(new)
    found = []
    last = _channels_last(image, weight)
    if mask[0]:
        outputs = (next(results),)
        sums = _accumulators(weight, image, image.shape[1])
        if last:
            found.append(Phase(early=(_bytes(weight),), outputs=outputs))
        else:
            early = (_blocked(gradient), *sums, _bytes(weight))
            found.append(Phase(early=early, late=(_blocked(image),), outputs=outputs))
    if mask[1]:
        outputs = (next(results),)
        if last or depthwise:  # oneDNN's reference by matrix products: one image unfolded per thread
            unfolded = torch.get_num_threads() * prod(weight.shape[2:]) * prod(gradient.shape[2:]) * 4
            # There bf16 is converted as a whole.
            converted = () if image.dtype is torch.float32 else (2 * _bytes(image), 2 * _bytes(gradient))
            early = (unfolded, *converted) if depthwise else (_bytes(weight),)
            found.append(Phase(early=early, outputs=outputs))
        else:
            early = (_blocked(gradient), *_repacked(image), _bytes(weight))
            found.append(Phase(early=early, outputs=outputs))
    found.append(Phase(outputs=tuple(results)))
    return found


def _contiguous_copy(args: tuple, kwargs: Mapping[str, Any], new: Sequence[Tensor]) -> list[Phase]:
    copied = () if args[0].is_contiguous() else (_bytes(args[0]),)
    return [Phase(late=copied, outputs=tuple(new))]


def _roll(args: tuple, kwargs: Mapping[str, Any], new: Sequence[Tensor]) -> list[Phase]:
    # One dimension after the other.
    steps = len(args[1]) - 1 if len(args) > 1 and not isinstance(args[1], int) else 0
    return [Phase(late=(_bytes(args[0]),) if steps > 0 else (), outputs=tuple(new))]


def _sum_in_fp32(args: tuple, kwargs: Mapping[str, Any], new: Sequence[Tensor]) -> list[Phase]:
    # A mean of bf16 numbers is the mean of an fp32 copy.
    copied = () if args[0].dtype is torch.float32 else (4 * args[0].numel(),)
    return [Phase(outputs=tuple(new), late=copied)]


def _flash(args: tuple, kwargs: Mapping[str, Any], new: Sequence[Tensor]) -> list[Phase]:
    # Per thread a tile of 256, 64 or 32 queries by 512 keys (ATen/native/cpu/FlashAttentionKernel.cpp).
    query, key = args[:2]
    rows, keys = query.shape[-2], key.shape[-2]
    tile = 256 if rows >= 768 else 64 if rows >= 192 else 32
    numbers = min(tile, rows) * (min(512, keys) + 2 + query.shape[-1])
    buffers = torch.get_num_threads() * numbers * (4 if query.dtype is torch.float32 else 6)
    return [Phase(late=(buffers,), outputs=tuple(new), role="attention")]


def _flash_backward(args: tuple, kwargs: Mapping[str, Any], new: Sequence[Tensor]) -> list[Phase]:
    query = args[1]
    tile = 256 * 512
    buffers = 2 * torch.get_num_threads() * tile * (4 if query.dtype is torch.float32 else 6)
    return [Phase(outputs=tuple(new)), Phase(late=(buffers,), role="attention")]


def _batch_norm_backward(args: tuple, kwargs: Mapping[str, Any], new: Sequence[Tensor]) -> list[Phase]:
    # The input's gradient is formed in a buffer of its own.
    return [Phase(late=(_bytes(args[1]),), outputs=tuple(new))]


_RULES: dict[Any, Rule] = {
    aten.convolution: _convolution,
    aten.convolution_backward: _convolution_backward,
    aten.native_layer_norm: _contiguous_copy,
    aten.roll: _roll,
    aten.mean: _sum_in_fp32,
    aten._adaptive_avg_pool2d: _sum_in_fp32,
    aten._scaled_dot_product_flash_attention_for_cpu: _flash,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _flash_backward,
    aten.native_batch_norm_backward: _batch_norm_backward,
}

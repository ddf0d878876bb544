"""What one image costs a model: parameters, multiply-accumulates, activations.

Nothing is computed: the model runs on the meta device, where tensors have shapes but no values, and a
dispatch mode reads the shapes of every convolution and matrix product. It sees the products of attention and
functional calls, which module hooks do not.

Counting rules, the same for all models so that figures are comparable:
- One multiply-accumulate (MAC) is one multiplication with its addition; FLOPs are twice that.
- Only convolutions and matrix products count; norms, activations, softmax, pooling and biases do not.
- Activations are the elements written by `nn.Conv*d` and `nn.Linear` modules (the definition of
  Radosavovic et al., "Designing Network Design Spaces", 2020, with linear layers added).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Counts for a batch of one image."""

    parameters: int
    macs: int
    activations: int


def count(model: nn.Module, image_size: int, channels: int = 3) -> Cost:
    """Count the cost of one forward pass of a (1, `channels`, `image_size`, `image_size`) image.

    The model itself is neither moved nor changed, and may live on any device, the meta device included.
    Raises torch's RuntimeError if the model does not accept that size or its control flow depends on tensor
    values.
    """
    # Shared tensors are listed only once, so tied weights count once.
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    on_meta = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
    written: list[int] = []
    hooks = [
        module.register_forward_hook(lambda _module, _args, output: written.append(output.numel()))
        for module in model.modules()
        if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear))
    ]
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad(), _MacCounter() as counter:
            image = torch.empty(1, channels, image_size, image_size, device="meta")
            torch.func.functional_call(model, on_meta, (image,))
    finally:
        for module, training in modes.items():
            module.training = training
        for hook in hooks:
            hook.remove()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Cost(parameters=parameters, macs=counter.macs, activations=sum(written))


class _MacCounter(TorchDispatchMode):
    """Adds up the MACs of the operators in `_RULES` while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        rule = _RULES.get(func.overloadpacket)
        if rule is not None:
            self.macs += rule(args, output)
        return output


def _convolution(args: tuple, output: Tensor) -> int:
    # convolution(input, weight, bias, stride, padding, dilation, transposed, output_padding, groups)
    image, weight, transposed = args[0], args[1], args[6]
    # A transposed convolution scatters each input element, a plain one gathers for each output element;
    # weight.shape[1:] is (channels per group, *kernel) of the other side in both cases.
    elements = image.numel() if transposed else output.numel()
    return elements * prod(weight.shape[1:])


def _product(left: int) -> Callable[[tuple, Tensor], int]:
    """Rule for a (batched) matrix product whose left factor (..., rows, inner) is argument `left`."""

    def rule(args: tuple, output: Tensor) -> int:
        return output.numel() * args[left].shape[-1]

    return rule


def _attention(args: tuple, output: Any) -> int:
    # q (B, heads, N, d), k (B, heads, S, d), v (B, heads, S, e): q @ k^T, then @ v. A causal mask does
    # not reduce the count, which is of the full products.
    q, k, v = args[:3]
    return prod(q.shape[:-1]) * k.shape[-2] * (q.shape[-1] + v.shape[-1])


_RULES: dict[Any, Callable[[tuple, Any], int]] = {
    aten.convolution: _convolution,
    aten.mm: _product(0),
    aten.addmm: _product(1),
    aten.bmm: _product(0),
    aten.baddbmm: _product(1),
    aten.mv: _product(0),
    aten.addmv: _product(1),
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention: _attention,
    aten._scaled_dot_product_efficient_attention: _attention,
    aten._scaled_dot_product_cudnn_attention: _attention,
    aten._scaled_dot_product_fused_attention_overrideable: _attention,
}

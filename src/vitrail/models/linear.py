"""act(x Wᵀ + b): the only place in Vitrail that chooses a kernel for a linear layer.

On x86 CPUs torch computes fp32 products with MKL, which runs at less than half of the peak on some
processors (196 against 468 GFLOP/s on a 2-core AMD EPYC with AVX-512, torch 2.15) and a tenth slower on
others. oneDNN, which torch also ships and uses for bf16, is fast on all of them, and applies GELU while the
result is in cache. It is used in eager inference, and in fp32 training for the product and the gradient of x;
compilers and exporters see the ordinary operators.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional

__all__ = ["Linear", "linear", "onednn_learns", "onednn_takes"]


class Linear(nn.Linear):
    """`nn.Linear` with the same weights and names, through `linear`."""

    def forward(self, input: Tensor, *, gelu: bool = False) -> Tensor:
        """(…, in) -> (…, out)."""
        return linear(input, self.weight, self.bias, gelu=gelu)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, gelu: bool = False) -> Tensor:
    """x (…, in), weight (out, in), bias (out,) -> (…, out); with `gelu` the exact GELU of it.

    fp32 products stay fp32.
    """
    if onednn_takes(x, weight, bias):
        return _onednn(x, weight, bias, gelu=gelu)
    product: Tensor
    if onednn_learns(x, weight, bias):
        product = _Learning.apply(x, weight, bias)
    else:
        product = functional.linear(x, weight, bias)
    return functional.gelu(product) if gelu else product


def onednn_takes(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    """Whether the product runs on oneDNN's kernel: eager inference on an x86 CPU, no empty tensor."""
    # The device first: on a GPU all time that is spent here is time in which it waits.
    return (
        x.device.type == "cpu"
        and not (_followed() or _learns(x, weight, bias))
        and _onednn_fits(x, weight, bias)
    )


def onednn_learns(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    """Whether it does so with gradients, in fp32; torch's own operator already uses oneDNN for bf16."""
    return (
        x.device.type == "cpu"
        and x.dtype is torch.float32
        and _learns(x, weight, bias)
        and not _followed()
        and _onednn_fits(x, weight, bias)
    )


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None, *, gelu: bool = False) -> Tensor:
    activation, algorithm = ("gelu", "none") if gelu else ("none", "")
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], algorithm)
    return result


class _Learning(torch.autograd.Function):
    """The product on oneDNN, with gradients of any order."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _onednn(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        (gradient,), (x, weight) = gradients, ctx.saved_tensors
        rows = gradient.reshape(-1, gradient.shape[-1])
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_x = linear(gradient, weight.t())
        if ctx.needs_input_grad[1]:
            # Many rows, few features: here oneDNN is slower by half.
            of_weight = rows.t() @ x.reshape(-1, x.shape[-1])
        if ctx.needs_input_grad[2]:
            of_bias = rows.sum(0)
        return of_x, of_weight, of_bias


def _onednn_fits(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    return (
        x.dtype in (torch.float32, torch.bfloat16)
        and weight.dtype is x.dtype
        and x.numel() > 0
        and x.shape[-1] == weight.shape[-1]
        and (bias is None or _plain(bias, weight))
        and not torch.is_autocast_enabled("cpu")
        and _onednn_has(x.dtype)
    )


def _plain(bias: Tensor, weight: Tensor) -> bool:
    # The operator reads the bias as contiguous, whatever its strides.
    return bias.dtype is weight.dtype and bias.shape == weight.shape[:1] and bias.is_contiguous()


def _learns(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _followed() -> bool:
    """Whether anything but backward autograd records the computation: a compiler, a tracer, torch.func."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._are_functorch_transforms_active()
        # Forward mode does not use requires_grad, and the operator would return a zero tangent.
        or forward_ad._current_level >= 0
    )


def _onednn_has(dtype: torch.dtype) -> bool:
    return (
        torch.backends.mkldnn.is_available()
        and torch.backends.mkl.is_available()  # only x86 builds have MKL
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and (dtype is torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )

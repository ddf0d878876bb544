"""act(x Wᵀ + b): the only place in Vitrail that chooses a kernel for a linear layer.

On x86 CPUs torch computes fp32 products with MKL, which runs at less than half of the peak on some
processors (196 against 468 GFLOP/s on a 2-core AMD EPYC with AVX-512, torch 2.15). oneDNN, which torch
carries too and uses for bf16, has no such preference, and applies GELU while the result is still in cache.
It is taken in eager inference; training, compiling and exporting see the ordinary operators.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional

__all__ = ["Linear", "linear", "onednn_takes"]


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
        activation, algorithm = ("gelu", "none") if gelu else ("none", "")
        result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], algorithm)
        return result
    product = functional.linear(x, weight, bias)
    return functional.gelu(product) if gelu else product


def onednn_takes(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    """Whether the product runs on oneDNN's own kernel: eager inference on an x86 CPU, nothing empty."""
    return (
        not _followed(x, weight, bias)
        and x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.bfloat16)
        and weight.dtype is x.dtype
        and x.numel() > 0
        and x.shape[-1] == weight.shape[-1]
        and (bias is None or _plain(bias, weight))
        and not torch.is_autocast_enabled("cpu")
        and _onednn_has(x.dtype)
    )


def _plain(bias: Tensor, weight: Tensor) -> bool:
    # The operator reads the bias as if it were contiguous, whatever its strides say.
    return bias.dtype is weight.dtype and bias.shape == weight.shape[:1] and bias.is_contiguous()


def _followed(*tensors: Tensor | None) -> bool:
    """Whether somebody records what happens: a compiler, a tracer, or autograd in either direction."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or (torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors))
        # Forward mode asks no requires_grad, and the operator would answer with a tangent of zero.
        or forward_ad._current_level >= 0
    )


def _onednn_has(dtype: torch.dtype) -> bool:
    return (
        torch.backends.mkldnn.is_available()
        and torch.backends.mkl.is_available()  # only x86 builds have MKL
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and (dtype is torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )

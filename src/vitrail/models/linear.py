"""x Wᵀ + b: the only place in Vitrail that chooses a kernel for a linear layer.

On x86 CPUs torch computes fp32 products with MKL, which runs at less than half of the peak on some
processors (196 against 468 GFLOP/s on a 2-core AMD EPYC with AVX-512, torch 2.15). oneDNN, which torch
carries too and uses for bf16, has no such preference. Its fp32 kernel is taken in eager inference; training,
compiling and exporting see the ordinary operator.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Linear", "linear", "onednn_takes"]


class Linear(nn.Linear):
    """`nn.Linear` with the same weights and names, through `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """(…, in) -> (…, out)."""
        return linear(input, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (…, in), weight (out, in), bias (out,) -> (…, out); fp32 products stay fp32."""
    if onednn_takes(x, weight):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return functional.linear(x, weight, bias)


def onednn_takes(x: Tensor, weight: Tensor) -> bool:
    """Whether the product runs on oneDNN's fp32 kernel: eager inference on an x86 CPU, nothing empty."""
    return (
        not torch.compiler.is_compiling()
        and x.dtype is torch.float32
        and weight.dtype is torch.float32
        and x.device.type == "cpu"
        and not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))
        and not torch.is_autocast_enabled("cpu")
        and _onednn_is_here()
        and x.numel() > 0
    )


def _onednn_is_here() -> bool:
    return (
        torch.backends.mkldnn.is_available()
        and torch.backends.mkl.is_available()  # only x86 builds have MKL
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )

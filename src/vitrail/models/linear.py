"""y = act(x Wᵀ + b) for eager inference: the one place that chooses a matrix product.

On CPUs torch's own `F.linear` takes MKL for fp32, which is half as fast as oneDNN where MKL's best kernels
are kept from the processor (AMD: 190 against 450 GFLOP/s on 2 Zen 5 cores; on Intel they are equal). Without
gradients we therefore call oneDNN, the library torch itself uses for bf16 and for convolutions, and let it
apply GELU or add the residual while the tile is still in cache.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["linear"]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, *, gelu: bool = False) -> Tensor:
    """(…, C) -> (…, O) by a weight (O, C); with `gelu` the exact GELU of it."""
    if _onednn_serves(x, weight):
        result: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, weight, bias, "gelu" if gelu else "none", [], "none" if gelu else ""
        )
        return result
    y = F.linear(x, weight, bias)
    return F.gelu(y) if gelu else y


def _onednn_serves(x: Tensor, weight: Tensor) -> bool:
    if torch.compiler.is_compiling() or torch.compiler.is_exporting():
        return False
    if torch.is_grad_enabled() or x.device.type != "cpu":
        return False
    return (
        x.dtype == weight.dtype
        and x.dtype in (torch.float32, torch.bfloat16)
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
    )

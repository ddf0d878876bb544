"""Scaled dot-product attention: the only place in Vitrail that chooses a kernel.

Shapes: B batch, H heads, N query tokens, S key tokens, d head width.

    naive      softmax(scale · q kᵀ + bias) v as written (Vaswani et al. 2017, eq. 1); N × S scores in memory
    fused      torch's scaled_dot_product_attention, which picks among the next three by itself
    flash      tiles with a running softmax (Dao et al. 2022): O(N) memory
    efficient  the memory-efficient kernel (Rabe & Staats 2021; GPUs only)
    math       torch's own composition of matrix products, N × S scores in memory
    blocked    blocks of queries through plain matrix products: O(N) memory, faster than fused on CPUs for
               long sequences, forward only

`auto` is blocked where it was measured to be faster (`BLOCKED_FROM`), else fused.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from vitrail.errors import InputError

__all__ = ["KERNELS", "attend", "check_kernel"]

KERNELS = ("auto", "naive", "fused", "flash", "efficient", "math", "blocked")

_BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}

BLOCKED_FROM = 1024
"""Tokens from which blocks of queries beat torch's fused kernel on the CPUs that were measured."""

BLOCK = 64


def check_kernel(kernel: str) -> str:
    """The name itself, if it is one of `KERNELS`.

    Raises:
        InputError: an unknown kernel.
    """
    if kernel not in KERNELS:
        raise InputError(f"There is no attention kernel {kernel!r}: choose one of {', '.join(KERNELS)}.")
    return kernel


def attend(
    q_BHNd: Tensor,
    k_BHSd: Tensor,
    v_BHSd: Tensor,
    *,
    bias: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
    kernel: str = "auto",
) -> Tensor:
    """softmax(scale · q kᵀ + bias) v, as (B, H, N, d).

    `bias` is added to the scores and broadcasts to (B, H, N, S); `causal` hides keys after the query;
    `scale` defaults to 1/√d.

    Raises:
        InputError: an unknown kernel, or one that this device, dtype or shape has not.
    """
    check_kernel(kernel)
    if kernel == "auto":
        kernel = _choose(q_BHNd, k_BHSd, v_BHSd, bias, causal)
    if kernel == "naive":
        return _naive(q_BHNd, k_BHSd, v_BHSd, bias, causal, scale)
    if kernel == "blocked":
        return _blocked(q_BHNd, k_BHSd, v_BHSd, bias, causal, scale)
    if kernel == "fused":
        return scaled_dot_product_attention(
            q_BHNd, k_BHSd, v_BHSd, attn_mask=bias, is_causal=causal, scale=scale
        )
    try:
        with sdpa_kernel(_BACKENDS[kernel]):
            return scaled_dot_product_attention(
                q_BHNd, k_BHSd, v_BHSd, attn_mask=bias, is_causal=causal, scale=scale
            )
    except RuntimeError as error:
        raise InputError(
            f"The attention kernel {kernel!r} is not to be had for {str(q_BHNd.dtype).removeprefix('torch.')} on "
            f"{q_BHNd.device.type} here: use 'auto' or 'fused'; `vitrail attention` says what there is."
        ) from error


def _choose(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, causal: bool) -> str:
    if torch.compiler.is_compiling() or torch.compiler.is_exporting() or q.device.type != "cpu":
        return "fused"
    if causal or bias is not None:
        return "fused"
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        return "fused"
    return "blocked" if k.shape[-2] >= BLOCKED_FROM else "fused"


def _naive(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, causal: bool, scale: float | None) -> Tensor:
    scores_BHNS = (q * (q.shape[-1] ** -0.5 if scale is None else scale)) @ k.transpose(-2, -1)
    if bias is not None:
        scores_BHNS = scores_BHNS + bias
    if causal:
        hidden = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).triu(1)
        scores_BHNS = scores_BHNS.masked_fill(hidden, float("-inf"))
    return scores_BHNS.softmax(-1) @ v


def _blocked(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, causal: bool, scale: float | None
) -> Tensor:
    if causal or bias is not None:
        raise InputError("The attention kernel 'blocked' takes no bias and no causal mask: use 'fused'.")
    out_BHNd = torch.empty_like(q)
    for start in range(0, q.shape[-2], BLOCK):
        part = slice(start, start + BLOCK)
        out_BHNd[..., part, :] = _naive(q[..., part, :], k, v, None, False, scale)
    return out_BHNd

"""Scaled dot-product attention: the only place in Vitrail that chooses a kernel.

Shapes: B batch, H heads, N query tokens, S key tokens, d head width.

    naive      softmax(scale · q kᵀ + bias) v as written (Vaswani et al. 2017, eq. 1); N × S scores in memory
    fused      torch's scaled_dot_product_attention, which picks one of the next three itself
    flash      tiles with a running softmax (Dao et al. 2022): O(N) memory
    efficient  the memory-efficient kernel (Rabe & Staats 2021; GPUs only)
    math       torch's own composition of matrix products, N × S scores in memory
    blocked    blocks of queries through plain matrix products: O(N) memory, faster than fused on CPUs for
               long sequences, forward only

`auto` is blocked where that was measured to be faster (`BLOCKED_FROM`, `BIASED_KEYS`), naive in training
steps on CPUs (`WRITTEN_OUT_KEYS`), else fused.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from vitrail.errors import InputError
from vitrail.models.choices import check_kernel
from vitrail.models.linear import linear

__all__ = ["attend", "choose"]

_BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}

_NO_KERNEL = ("No available kernel", "No viable backend")
"""Torch's messages when no kernel is left to choose; other errors (memory, shapes) have other causes."""

BLOCKED_FROM = {torch.float32: 768, torch.bfloat16: 128}
"""Number of keys from which blocks of queries beat torch's fused kernel on the CPU measured."""

BIASED_KEYS = 160
"""Number of keys up to which bf16 scores with a bias are written out: a Swin's windows, whose rows are too
short to fill the fused kernel's vectors (1.8 times slower at 49 keys, 1.6 at 144, faster at 256)."""

WRITTEN_OUT_KEYS = 256
"""Number of keys up to which a training step on a CPU writes scores out: the backward pass of torch's flash
kernel is slow on short rows, and a trainable bias, such as Swin's, leaves torch only `math`. Speedup over
fused of whole bf16 steps on two cores: ViT of 49 tokens 1.7 (compiled); Swin-T 1.20 (compiled 1.06), ViT-S of
197 tokens 1.33 (compiled 1.27). Longer rows were not measured."""

VECTOR = 16
"""fp32 numbers per vector register."""

ROWS = 192
"""Queries per block where all heads are multiplied at once (bf16): enough for an efficient matrix product."""

SCORES_BYTES = 24 * 2**20
"""Most bytes of scores in memory at once in that case; they fit the last-level cache."""

HEAD_SCORES_BYTES = 4 * 2**20
"""The same where heads are processed one by one (fp32): every allocation of a larger block maps new pages."""


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
        InputError: an unknown kernel, one unavailable for this device, dtype or shape, or a boolean bias.
    """
    check_kernel(kernel)
    if bias is not None and bias.dtype is torch.bool:
        raise InputError("A boolean mask is not a bias: give 0 for visible keys and -inf for hidden ones.")
    if kernel == "auto":
        kernel = choose(q_BHNd, k_BHSd, v_BHSd, bias=bias, causal=causal)
    if kernel == "naive":
        return _naive(q_BHNd, k_BHSd, v_BHSd, bias, causal, _scale(q_BHNd, scale))
    if kernel == "blocked":
        reason = _why_not_blocked(q_BHNd, k_BHSd, v_BHSd, bias, causal)
        if reason:
            raise InputError(f"The attention kernel 'blocked' cannot be used here ({reason}): use 'auto'.")
        if bias is not None:
            return _windows(q_BHNd, k_BHSd, v_BHSd, bias, _scale(q_BHNd, scale))
        return _blocked(q_BHNd, k_BHSd, v_BHSd, _scale(q_BHNd, scale))
    return _torch_kernel(q_BHNd, k_BHSd, v_BHSd, bias, causal, scale, kernel)


def _scale(q: Tensor, scale: float | None) -> float:
    return float(q.shape[-1] ** -0.5) if scale is None else scale


def choose(q: Tensor, k: Tensor, v: Tensor, *, bias: Tensor | None = None, causal: bool = False) -> str:
    """The kernel `auto` uses for these inputs: `blocked`, `fused` or, in training steps, `naive`."""
    if _trains_on_cpu(q, k, v, bias) and k.shape[-2] <= WRITTEN_OUT_KEYS:
        return "naive"
    # In this order: to a compiler the number of keys may be symbolic, and must not be compared.
    if _why_not_blocked(q, k, v, bias, causal):
        return "fused"
    return "blocked" if bias is not None or k.shape[-2] >= BLOCKED_FROM[q.dtype] else "fused"


def _trains_on_cpu(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> bool:
    if torch.compiler.is_exporting() or torch.jit.is_tracing() or q.device.type not in ("cpu", "meta"):
        return False
    return torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v, bias) if t is not None)


def _torch_kernel(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    causal: bool,
    scale: float | None,
    kernel: str,
) -> Tensor:
    """scaled_dot_product_attention, free to choose (`fused`) or restricted to one kernel."""
    if bias is not None:
        # Torch takes a bias or a causal mask, not both, and its flash kernel wants two or four dimensions.
        bias = bias + _unseen(q, k) if causal else bias
        causal, bias = False, bias[(None,) * (4 - bias.dim())]
    if kernel == "fused":
        return scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=causal, scale=scale)
    try:
        with sdpa_kernel(_BACKENDS[kernel]):
            return scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=causal, scale=scale)
    except RuntimeError as error:
        if not str(error).startswith(_NO_KERNEL):
            raise
        raise InputError(
            f"The attention kernel {kernel!r} is not available for {q.dtype} on {q.device.type} with these "
            "shapes: use 'auto' or 'fused'; `vitrail attention` lists the kernels."
        ) from error


def _unseen(q: Tensor, k: Tensor) -> Tensor:
    """(N, S): -inf for keys after the query, else 0."""
    zero = torch.zeros(q.shape[-2], k.shape[-2], dtype=q.dtype, device=q.device)
    hidden = torch.ones_like(zero, dtype=torch.bool).triu(1)
    return zero.masked_fill(hidden, float("-inf"))


def _naive(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, causal: bool, scale: float) -> Tensor:
    scores_BHNS = (q * scale) @ k.transpose(-2, -1)
    if bias is not None:
        scores_BHNS = scores_BHNS + bias
    if causal:
        scores_BHNS = scores_BHNS + _unseen(q, k)
    return scores_BHNS.softmax(-1) @ v


def _why_not_blocked(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, causal: bool) -> str | None:
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return "it only works in eager calls, neither compiled nor exported"
    if causal:
        return "it takes no causal mask"
    if bias is not None and (q.dtype is not torch.bfloat16 or k.shape[-2] > BIASED_KEYS):
        return f"it takes a bias only in bf16 and for at most {BIASED_KEYS} keys"
    if q.device.type not in ("cpu", "meta") or q.dtype not in (torch.float32, torch.bfloat16):
        return "it only works in fp32 and bf16 on CPUs"
    if torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v, bias) if t is not None):
        return "it is forward only, for torch.inference_mode() or torch.no_grad()"
    if torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") is not q.dtype:
        return "autocast asks for a dtype other than the inputs'"
    return None


def _windows(q_BHNd: Tensor, k_BHSd: Tensor, v_BHSd: Tensor, bias: Tensor, scale: float) -> Tensor:
    """Many short sequences with a bias in bf16, the softmax in fp32.

    The keys are padded to whole vectors with masked ones: a row of 49 scores, one window of a Swin, takes
    twice as long as a row of 64.
    """
    filling = -k_BHSd.shape[-2] % VECTOR
    bias = bias.float().expand(*bias.shape[:-1], k_BHSd.shape[-2])
    bias = functional.pad(bias, (0, filling), value=float("-inf"))
    k_GSd, v_GSd = (functional.pad(t, (0, 0, 0, filling)).flatten(0, 1) for t in (k_BHSd, v_BHSd))
    scores_BHNS = torch.bmm(q_BHNd.flatten(0, 1), k_GSd.transpose(1, 2)).unflatten(0, q_BHNd.shape[:2])
    weights_BHNS = torch.add(bias, scores_BHNS, alpha=scale)
    torch.softmax(weights_BHNS, -1, out=weights_BHNS)
    out_GNd = torch.bmm(weights_BHNS.to(v_GSd.dtype).flatten(0, 1), v_GSd)
    return out_GNd.unflatten(0, q_BHNd.shape[:2])


def _blocked(q_BHNd: Tensor, k_BHSd: Tensor, v_BHSd: Tensor, scale: float) -> Tensor:
    # G: batch and heads merged.
    q_GNd = (q_BHNd * scale).flatten(0, 1)
    k_GSd, v_GSd = k_BHSd.flatten(0, 1), v_BHSd.flatten(0, 1)
    out_GNd = q_GNd.new_empty(*q_GNd.shape[:2], v_GSd.shape[-1])
    if q_GNd.dtype is torch.float32:
        for q_Nd, k_Sd, v_Sd, out_Nd in zip(q_GNd, k_GSd, v_GSd, out_GNd, strict=True):
            _head_by_blocks(q_Nd, k_Sd, v_Sd, out_Nd)
    else:
        _heads_by_blocks(q_GNd, k_GSd, v_GSd, out_GNd)
    return out_GNd.unflatten(0, q_BHNd.shape[:2])


def _head_by_blocks(q_Nd: Tensor, k_Sd: Tensor, v_Sd: Tensor, out_Nd: Tensor) -> None:
    """One head at a time: fp32 matrix products are then linear layers, which have the faster kernel."""
    k_Sd, v_dS = k_Sd.contiguous(), v_Sd.T.contiguous()
    rows = min(512, max(64, HEAD_SCORES_BYTES // (4 * max(1, len(k_Sd)))))
    for q_Rd, out_Rd in zip(q_Nd.split(rows), out_Nd.split(rows), strict=True):
        scores_RS = linear(q_Rd, k_Sd)
        torch.softmax(scores_RS, -1, out=scores_RS)
        out_Rd.copy_(linear(scores_RS, v_dS))


def _heads_by_blocks(q_GNd: Tensor, k_GSd: Tensor, v_GSd: Tensor, out_GNd: Tensor) -> None:
    """As many heads at once as fit in one buffer of scores."""
    keys, rows = k_GSd.shape[1], min(ROWS, q_GNd.shape[1])
    group = max(1, SCORES_BYTES // max(1, rows * keys * q_GNd.element_size()))
    for first in range(0, len(q_GNd), group):
        part = slice(first, first + group)
        q, k_GdS, v, out = q_GNd[part], k_GSd[part].transpose(1, 2), v_GSd[part], out_GNd[part]
        buffer = q.new_empty(len(q) * rows * keys)
        for q_GRd, out_GRd in zip(q.split(rows, 1), out.split(rows, 1), strict=True):
            shape = (len(q), q_GRd.shape[1], keys)
            scores_GRS = buffer[: shape[0] * shape[1] * shape[2]].view(shape)
            torch.bmm(q_GRd, k_GdS, out=scores_GRS)
            torch.softmax(scores_GRS, -1, out=scores_GRS)
            out_GRd.copy_(torch.bmm(scores_GRS, v))

"""Attention of many windows at once: one call for each group of windows with the same mask.

Shapes: B batch, W windows, M tokens of a window, H heads, d head width, K distinct masks, D = H · d.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vitrail.models.attention import attend
from vitrail.models.windows import Runs

__all__ = ["attend_windows"]

FOLDED_BIAS = 1 << 20
"""Size up to which an exported block adds one constant (bias and masks of all its windows) to the scores.
On large maps that constant would outgrow the weights, so windows with the same mask share one."""


def attend_windows(
    q_BWHMd: Tensor,
    k_BWHMd: Tensor,
    v_BWHMd: Tensor,
    bias_KHMM: Tensor,
    runs: Runs,
    *,
    scale: float | None,
    kernel: str,
) -> Tensor:
    """softmax(scale · q kᵀ + bias) v within each window, as (B, W · M, D).

    The runs are consecutive and cover the windows; each says which of the K biases its windows use.
    """
    first, end = runs[0][0], runs[-1][1]
    if torch.compiler.is_exporting() and len(runs) > 1 and bias_KHMM[0].numel() * end <= FOLDED_BIAS:
        mask_W = [mask for start, stop, mask in runs for _ in range(start, stop)]
        bias_WHMM = torch.stack([bias_KHMM[mask] for mask in mask_W])
        return _attend(q_BWHMd, k_BWHMd, v_BWHMd, bias_WHMM, scale, kernel)
    outs_BND = []
    for start, stop, mask in runs:
        q, k, v = (t[:, start - first : stop - first] for t in (q_BWHMd, k_BWHMd, v_BWHMd))
        outs_BND.append(_attend(q, k, v, bias_KHMM[mask : mask + 1], scale, kernel))
    return outs_BND[0] if len(runs) == 1 else torch.cat(outs_BND, dim=1)


def _attend(
    q_BWHMd: Tensor, k_BWHMd: Tensor, v_BWHMd: Tensor, bias: Tensor, scale: float | None, kernel: str
) -> Tensor:
    """With one bias for all windows, (1, H, M, M), or one each, (W, H, M, M)."""
    _, windows, heads, tokens, depth = q_BWHMd.shape
    if torch.compiler.is_exporting():
        # Engines recognise the written-out form, and in five dimensions only the batch is open.
        kernel = "naive" if kernel == "auto" else kernel
        out_BWHMd = attend(q_BWHMd, k_BWHMd, v_BWHMd, bias=bias, scale=scale, kernel=kernel)
        return out_BWHMd.transpose(2, 3).reshape(-1, windows * tokens, heads * depth)
    q, k, v = (t.flatten(0, 1) for t in (q_BWHMd, k_BWHMd, v_BWHMd))
    out_BHMd = attend(q, k, v, bias=bias, scale=scale, kernel=kernel)
    return out_BHMd.transpose(1, 2).reshape(-1, windows * tokens, heads * depth)

"""Contrastive losses: which text belongs to which image, within a batch and across processes.

    scores_BN = scale · image_BD text_NDᵀ [+ bias]

InfoNCE (van den Oord et al. 2018, equation 4) asks a softmax which of N candidates belongs to each query;
CLIP's loss (Radford et al. 2021, figure 3) is its mean over both directions; SigLIP's (Zhai et al. 2023,
algorithm 1) asks a sigmoid about each pair by itself, so that no pair waits for the others.

Across processes. With a `group`, each process passes its own B pairs and compares them with all N = W · B
embeddings. It returns *its share*: the mean over its own B pairs. The mean of the shares over the W
processes is the loss of the global batch, and the mean of their gradients, which is what
DistributedDataParallel computes, is the gradient of the global batch: nothing needs multiplying by W. Each
process holds B × N scores, not N × N.

Texts that several images share. A batch of pairs may hold a text twice, or a text that is also right for
another of its images. Such a text is not a negative of that image: with `right` it is left out of that
image's softmax or sum of sigmoids (and the image out of that text's). A pair itself always counts.

Shapes: B pairs of this process, W processes, N = W · B (N = B without a group), D width of the embeddings,
T the largest number of texts of an image.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn import functional as F

from vitrail.errors import InputError

__all__ = ["Right", "clip_loss", "gathered", "info_nce", "siglip_loss"]


class Right(NamedTuple):
    """Which texts are right for which images, by numbers that mean the same in all processes."""

    text_B: Tensor
    """int64: the number of each pair's text."""
    image_BT: Tensor
    """int64: the numbers of all texts of each pair's image, padded with −1."""


def info_nce(
    query_BD: Tensor, key_BD: Tensor, scale: Tensor | float, *, group: dist.ProcessGroup | None = None
) -> Tensor:
    """One direction: key i belongs to query i, all other keys are its negatives.

    Args:
        query_BD, key_BD: embeddings of length 1; this is not checked.
        scale: the inverse temperature itself, not its logarithm (`CLIP.scale()`).
        group: gather the keys across its processes (`torch.distributed.group.WORLD` for all); None: this
            process is alone.

    Returns:
        Scalar, at least fp32: the mean over this process's B queries (see the module's head for a group).

    Raises:
        InputError: embeddings that are not pairs, or a different number of them in another process.
    """
    _check_pairs(query_BD, key_BD, group)
    return _info_nce(query_BD, gathered(key_BD, group), scale, group)


def clip_loss(
    image_BD: Tensor,
    text_BD: Tensor,
    scale: Tensor | float,
    *,
    group: dist.ProcessGroup | None = None,
    right: Right | None = None,
) -> Tensor:
    """CLIP's symmetric loss: the mean of image → text and text → image (Radford et al. 2021, figure 3).

    Arguments, result and errors as in `info_nce`; `right`: which texts are not negatives of which images;
    None: each text is right only for its own image.
    """
    _check_pairs(image_BD, text_BD, group)
    texts_BN, images_BN = _no_negatives(right, group)
    to_text = _info_nce(image_BD, gathered(text_BD, group), scale, group, texts_BN)
    to_image = _info_nce(text_BD, gathered(image_BD, group), scale, group, images_BN)
    return (to_text + to_image) / 2


def siglip_loss(
    image_BD: Tensor,
    text_BD: Tensor,
    scale: Tensor | float,
    bias: Tensor | float,
    *,
    group: dist.ProcessGroup | None = None,
    right: Right | None = None,
) -> Tensor:
    """SigLIP's sigmoid loss: −log σ(z · score) summed over all texts, the mean over the images.

    z is 1 for a pair and −1 for all others. The sum is divided by the number of images, not of pairs (Zhai et
    al. 2023, equation 1 and algorithm 1), so it grows with the batch.

    Args:
        image_BD, text_BD: embeddings of length 1; this is not checked.
        scale: the inverse temperature itself, not its logarithm.
        bias: added to each score; it starts at −10 so that the many negatives do not dominate at first.
        group: gather the texts across its processes; None: this process is alone.
        right: as `clip_loss`.

    Returns:
        Scalar, at least fp32: the mean over this process's B images (see the module's head for a group).

    Raises:
        InputError: as `info_nce`.
    """
    _check_pairs(image_BD, text_BD, group)
    scores_BN = _scores(image_BD, gathered(text_BD, group), scale) + bias
    own_B = _own_places(image_BD, group)
    signs_BN = torch.full_like(scores_BN, -1.0).scatter_(1, own_B[:, None], 1.0)
    losses_BN = -F.logsigmoid(signs_BN * scores_BN)
    texts_BN, _ = _no_negatives(right, group)
    if texts_BN is not None:
        losses_BN = losses_BN.masked_fill(texts_BN, 0.0)
    return losses_BN.sum() / image_BD.shape[0]


def gathered(own_BD: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The embeddings of all processes in rank order, (N, D), with gradients; without a group, only this
    process's.

    Backward sums the gradients that all processes have for this one's embeddings. Every process must call
    it, forward and backward, the same number of times.
    """
    if group is None:
        return own_BD
    everyone_ND: Tensor = _Gather.apply(own_BD, group)
    return everyone_ND


class _Gather(torch.autograd.Function):
    """all_gather whose gradient is reduce-scatter; torch's own `all_gather` cuts the graph."""

    @staticmethod
    def forward(ctx: Any, own_BD: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group, ctx.rows = group, own_BD.shape[0]
        own_BD = own_BD.contiguous()
        parts = [torch.empty_like(own_BD) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, own_BD, group=group)
        return torch.cat(parts)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor, None]:
        # Sum for all processes, then take our own rows: not every backend has a reduce-scatter, and N × D is
        # small next to the scores. Cloned, because autograd may hand the same tensor to others.
        total_ND = grad_ND.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total_ND, group=ctx.group)
        start = dist.get_rank(ctx.group) * ctx.rows
        return total_ND[start : start + ctx.rows], None


def _info_nce(
    query_BD: Tensor,
    key_ND: Tensor,
    scale: Tensor | float,
    group: dist.ProcessGroup | None,
    left_out_BN: Tensor | None = None,
) -> Tensor:
    scores_BN = _scores(query_BD, key_ND, scale)
    if left_out_BN is not None:
        scores_BN = scores_BN.masked_fill(left_out_BN, float("-inf"))
    return F.cross_entropy(scores_BN, _own_places(query_BD, group))


def _no_negatives(
    right: Right | None, group: dist.ProcessGroup | None
) -> tuple[Tensor | None, Tensor | None]:
    """(B, N) bool for images → texts and for texts → images: right too, but not the pair itself."""
    if right is None:
        return None, None
    own_B = _own_places(right.text_B, group)
    text_N, image_NT = _gathered_numbers(right.text_B, group), _gathered_numbers(right.image_BT, group)
    texts_BN = _any_equal(right.image_BT[:, None], text_N[None, :, None])
    images_BN = _any_equal(image_NT[None], right.text_B[:, None, None])
    return texts_BN.scatter_(1, own_B[:, None], False), images_BN.scatter_(1, own_B[:, None], False)


def _any_equal(many_BNT: Tensor, one_BN1: Tensor) -> Tensor:
    """(B, N): whether any along the last axis is equal. Going place by place takes T times less memory."""
    found_BN = many_BNT[..., 0] == one_BN1[..., 0]
    for place in range(1, many_BNT.shape[-1]):
        found_BN |= many_BNT[..., place] == one_BN1[..., 0]
    return found_BN


def _gathered_numbers(own: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    if group is None:
        return own
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, own.contiguous(), group=group)
    return torch.cat(parts)


def _scores(query_BD: Tensor, key_ND: Tensor, scale: Tensor | float) -> Tensor:
    """scale · query keyᵀ, (B, N), in fp32 or better.

    bf16 resolves a cosine to 1/256, which a scale of 100 makes 0.4 of a score; so autocast is kept out.
    """
    dtype = torch.promote_types(query_BD.dtype, torch.float32)
    with torch.autocast(query_BD.device.type, enabled=False):
        return scale * (query_BD.to(dtype) @ key_ND.to(dtype).T)


def _own_places(own_BD: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Where this process's pairs stand among the gathered ones: (B,) int64."""
    rows = own_BD.shape[0]
    rank = 0 if group is None else dist.get_rank(group)
    return torch.arange(rank * rows, (rank + 1) * rows, device=own_BD.device)


def _check_pairs(one_BD: Tensor, other_BD: Tensor, group: dist.ProcessGroup | None) -> None:
    if one_BD.ndim != 2 or one_BD.shape != other_BD.shape or one_BD.shape[0] == 0:
        problem = (
            f"Images and texts come in pairs, as two tensors (B, D) of one shape, not {tuple(one_BD.shape)} "
            f"and {tuple(other_BD.shape)}"
        )
    else:
        problem = None
    if group is None:
        if problem:
            raise InputError(f"{problem}: give each image its text.")
        return
    # All processes must hear of one with bad or fewer pairs: raising in one alone would leave the others
    # waiting for it forever.
    rows = torch.tensor([0 if problem else one_BD.shape[0]], device=one_BD.device)
    counts = [torch.empty_like(rows) for _ in range(dist.get_world_size(group))]
    dist.all_gather(counts, rows, group=group)
    by_process = [int(count) for count in counts]
    if problem:
        raise InputError(f"{problem}: give each image its text.")
    if len(set(by_process)) > 1:
        raise InputError(
            f"The processes have {', '.join(map(str, by_process))} pairs (0: not usable as pairs): "
            "give all the same number, e.g. with drop_last=True in the loader."
        )

"""Token merging for our ViT: fewer tokens after every block, without training (Bolya et al. 2023, "ToMe").

After a block's attention, r patches are merged into those most like them, so that its MLP and all later
blocks have less to do:

    scores_BST  = normalised keys of the even tokens · those of the odd ones     section 3.1, "bipartite"
    each even token has one edge, to the odd token most like it; the r best edges are merged
    x           = the mean of what was merged, weighted by size                  section 3.1
    attention   = softmax(q kᵀ / √d + log size) v                                eq. 1, "proportional"

Class and register tokens neither merge nor are merged into. Even and odd are positions in the sequence, whose
order is that of the authors' code: class token and registers, the even patches that are left, the odd ones.

How many tokens are merged depends on the number of tokens alone, so exported shapes are static. Whole rows
are picked, and sums are small matrix products with zeros and ones: engines are slow at scattering.

Shapes: B batch, N tokens, D width, S even tokens (sources), T odd tokens (targets), M tokens left, R merged,
in attention also H heads, d = D / H.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitrail.errors import InputError
from vitrail.models.vit import Block, ViT

__all__ = [
    "Matching",
    "MergedViT",
    "constant",
    "decreasing",
    "match",
    "merge",
    "merge_tokens",
    "token_counts",
]


def merge_tokens(model: ViT, per_block: int, *, decrease: bool = False) -> nn.Module:
    """The model with `per_block` tokens merged in each block, or with `decrease` nearly as many, but early.

    The weights are the model's own, not copies; the result takes and returns what the model does. Where a
    block has too few tokens left, half of its patches are merged, as in the paper. 0 returns the model.

    Raises:
        InputError: a negative number.
    """
    if per_block < 0:
        raise InputError(f"{per_block} tokens cannot be merged in each block: give 0 (none) or more.")
    if per_block == 0:
        return model
    depth = len(model.blocks)
    return MergedViT(model, decreasing(per_block, depth) if decrease else constant(per_block, depth))


def constant(per_block: int, depth: int) -> list[int]:
    """Tokens to merge in each block: always as many."""
    return [per_block] * depth


def decreasing(per_block: int, depth: int) -> list[int]:
    """From 2 · `per_block` in the first block straight down to none in the last (ToMe's appendix B)."""
    return [int(2 * per_block * (1 - i / max(1, depth - 1))) for i in range(depth)]


def token_counts(tokens: int, prefix: int, schedule: Sequence[int]) -> list[int]:
    """Tokens that each block's attention sees, and last those that are left.

    `tokens` enter the first block; `prefix` of them are never merged.
    """
    counts = [tokens]
    for wanted in schedule:
        counts.append(counts[-1] - min(wanted, (counts[-1] - prefix) // 2))
    return counts


class MergedViT(nn.Module):
    """A ViT that merges `schedule[i]` tokens in block i: (B, C, H, W) -> what the ViT's forward returns."""

    def __init__(self, vit: ViT, schedule: Sequence[int]) -> None:
        super().__init__()
        if len(schedule) != len(vit.blocks):
            raise InputError(
                f"The model has {len(vit.blocks)} blocks and the schedule {len(schedule)} numbers: give one "
                "for each block."
            )
        self.vit, self.schedule = vit, tuple(schedule)
        self.training = vit.training

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K) scores; (B, D) features if the model has no head.

        Raises:
            InputError: as the ViT's forward.
        """
        return self.vit.head(self.forward_features(images_BCHW))

    def forward_features(self, images_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D) pooled features; each token counts as many patches as it stands for."""
        vit, (x_BND, sizes_BN) = self.vit, self.forward_tokens(images_BCHW)
        if vit.config.pool == "token":
            return vit.fc_norm(x_BND[:, 0])
        patches_BND, sizes_BN = (t[:, vit.config.prefix_tokens :] for t in (x_BND, sizes_BN))
        if vit.attn_pool is not None:
            return vit.fc_norm(vit.attn_pool(patches_BND, bias=_proportional(sizes_BN)))
        share_BN = sizes_BN / sizes_BN.sum(1, keepdim=True)
        return vit.fc_norm((share_BN[:, None] @ patches_BND)[:, 0])

    def forward_tokens(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) -> (B, M, D) tokens after `norm` and (B, M), the number of tokens merged in each."""
        x_BND = self.vit.embed(images_BCHW)
        sizes_BN = None
        for block, wanted in zip(self.vit.blocks, self.schedule, strict=True):
            assert isinstance(block, Block)
            x_BND, sizes_BN = _block(block, x_BND, sizes_BN, wanted, prefix=self.vit.config.prefix_tokens)
        sizes_BN = x_BND.new_ones(x_BND.shape[:2]) if sizes_BN is None else sizes_BN
        return self.vit.norm(x_BND), sizes_BN


def _block(
    block: Block, x_BND: Tensor, sizes_BN: Tensor | None, wanted: int, *, prefix: int
) -> tuple[Tensor, Tensor | None]:
    """One block with merging between its attention and its MLP; no sizes: all 1, and nothing to weight."""
    attention = block.attn
    q_BHNd, k_BHNd, v_BHNd = attention.queries_keys_values(block.norm1(x_BND))
    bias = None if sizes_BN is None else _proportional(sizes_BN)
    branch_BND = attention.attend_to(q_BHNd, k_BHNd, v_BHNd, bias=bias)
    x_BND = x_BND + block.drop_path(block.ls1(branch_BND))
    count = min(wanted, (x_BND.shape[1] - prefix) // 2)
    if count > 0:
        x_BND, sizes_BN = merge(x_BND, sizes_BN, match(k_BHNd.mean(1), count, prefix=prefix))
    return block.second_half(x_BND), sizes_BN


def _proportional(sizes_BN: Tensor) -> Tensor:
    """(B, 1, 1, N), added to the scores, eq. 1: a token of size s counts as much as s equal ones."""
    return sizes_BN.log()[:, None, None]


@dataclass(frozen=True)
class Matching:
    """Which tokens stay and which are merged, for each image of the batch."""

    kept_BM: Tensor
    """Positions of the tokens that stay, in the order of the new sequence."""
    merged_BR: Tensor
    """Positions of those that go."""
    into_BR: Tensor
    """The places in the new sequence of the tokens that they are merged into."""


def match(keys_BNd: Tensor, count: int, *, prefix: int) -> Matching:
    """The `count` best edges between tokens at even and at odd positions, section 3.1.

    `keys_BNd` (B, N, d) are compared by their cosines; the first `prefix` tokens have no edges. `count` is at
    most half of the others.
    """
    batch, tokens = keys_BNd.shape[:2]
    positions_N = torch.arange(tokens, device=keys_BNd.device)
    even_S, odd_T = positions_N[prefix + prefix % 2 :: 2], positions_N[prefix + 1 - prefix % 2 :: 2]
    unit_BNd = F.normalize(keys_BNd, dim=-1)
    sources_BSd, targets_BTd = (
        unit_BNd[:, prefix + prefix % 2 :: 2],
        unit_BNd[:, prefix + 1 - prefix % 2 :: 2],
    )
    best_BS, target_BS = (sources_BSd @ targets_BTd.transpose(1, 2)).max(-1)
    # One order for both parts: with two searches, equal scores could be in both or in neither.
    order_BS = best_BS.argsort(dim=-1, descending=True)
    edges_BR, left_B = order_BS[:, :count], order_BS[:, count:].sort(dim=-1).values
    kept_BM = torch.cat(
        [
            positions_N[:prefix].expand(batch, -1),
            even_S[left_B],
            odd_T.expand(batch, -1),
        ],
        dim=1,
    )
    first_target = tokens - count - len(odd_T)
    return Matching(kept_BM, even_S[edges_BR], target_BS.gather(1, edges_BR) + first_target)


def merge(x_BND: Tensor, sizes_BN: Tensor | None, matching: Matching) -> tuple[Tensor, Tensor]:
    """(B, M, D), the mean of what was merged, weighted by size, and (B, M), the sum of the sizes."""
    kept_BM, merged_BR = matching.kept_BM, matching.merged_BR
    places_M = torch.arange(kept_BM.shape[1], device=x_BND.device)
    # One in row m and column r: token r is merged into token m.
    joins_BMR = (places_M[:, None] == matching.into_BR[:, None]).to(x_BND.dtype)
    kept_BMD, merged_BRD = _rows(x_BND, kept_BM), _rows(x_BND, merged_BR)
    if sizes_BN is None:
        new_sizes_BM = 1 + joins_BMR.sum(-1)
        summed_BMD = kept_BMD + joins_BMR @ merged_BRD
    else:
        of_kept_BM, of_merged_BR = sizes_BN.gather(1, kept_BM), sizes_BN.gather(1, merged_BR)
        joins_BMR = joins_BMR * of_merged_BR[:, None]
        new_sizes_BM = of_kept_BM + joins_BMR.sum(-1)
        summed_BMD = kept_BMD * of_kept_BM[..., None] + joins_BMR @ merged_BRD
    return summed_BMD / new_sizes_BM[..., None], new_sizes_BM


def _rows(x_BND: Tensor, positions_BM: Tensor) -> Tensor:
    """(B, M, D): of each image the rows at its positions. Engines pick whole rows of one matrix fastest."""
    batch, tokens, width = x_BND.shape
    start_B = torch.arange(batch, device=x_BND.device)[:, None] * tokens
    return (
        x_BND.reshape(-1, width)
        .index_select(0, (positions_BM + start_B).flatten())
        .unflatten(0, positions_BM.shape)
    )

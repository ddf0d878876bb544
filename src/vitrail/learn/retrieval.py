"""How well images find their texts and texts their images: recall@k, and accuracy by class names.

Shapes: I images, T texts, K classes, P prompts of each, E width, Q queries of one block.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["RECALLED_AT", "Targets", "accuracy", "places", "recalls", "turned"]

Targets = Sequence[Sequence[int]]
"""For each query, the numbers of all right keys; at least one."""

RECALLED_AT = (1, 5)
QUERIES = 1024
"""Queries that are compared with all keys at once."""


def places(query_QE: Tensor, key_KE: Tensor, right: Targets) -> Tensor:
    """For each query, how many wrong keys come before its best right one, (Q,) int64.

    A wrong key with the same score counts as ahead: a model with one embedding for everything finds nothing.
    """
    ranks = []
    for start in range(0, len(query_QE), QUERIES):
        scores_QK = query_QE[start : start + QUERIES] @ key_KE.T
        is_right_QK = torch.zeros_like(scores_QK, dtype=torch.bool)
        for row, numbers in enumerate(right[start : start + QUERIES]):
            is_right_QK[row, list(numbers)] = True
        best_Q1 = scores_QK.masked_fill(~is_right_QK, float("-inf")).amax(1, keepdim=True)
        ranks.append(((scores_QK >= best_Q1) & ~is_right_QK).sum(1))
    return torch.cat(ranks)


def turned(right: Targets, keys: int) -> list[list[int]]:
    """For each key, the queries it is right for."""
    back: list[list[int]] = [[] for _ in range(keys)]
    for query, numbers in enumerate(right):
        for number in numbers:
            back[number].append(query)
    return back


def recalls(image_IE: Tensor, text_TE: Tensor, right: Targets) -> dict[str, float]:
    """Recall@1 and @5 in %, both ways, and `recall_1`, the mean of the two recalls@1.

    Recall@k is the share of queries with a right key among the first k, as with five captions an image
    (Karpathy and Fei-Fei 2015, section 4.1).

    Args:
        image_IE, text_TE: embeddings of length 1; each text once.
        right: for each image its texts; each text belongs to one image or more.
    """
    figures = {}
    ways = {
        "image_to_text": places(image_IE, text_TE, right),
        "text_to_image": places(text_TE, image_IE, turned(right, len(text_TE))),
    }
    for way, before in ways.items():
        for k in RECALLED_AT:
            figures[f"{way}_{k}"] = 100.0 * float((before < k).double().mean())
    figures["recall_1"] = (figures["image_to_text_1"] + figures["text_to_image_1"]) / 2
    return figures


def accuracy(image_IE: Tensor, prompts_KPE: Tensor, label_I: Tensor) -> float:
    """Zero-shot accuracy in %: the nearest mean of a class's prompts (Radford et al. 2021, section 3.1.4)."""
    class_KE = F.normalize(prompts_KPE.mean(1), dim=-1)
    right = (image_IE @ class_KE.T).argmax(1) == label_I
    return 100.0 * float(right.double().mean())

"""The record of a model's tower as a graph: images -> vectors or, of a CLIP, tokens -> vectors."""

from __future__ import annotations

from typing import Literal

import msgspec

from vitrail.text.tokenizer import TokenizerConfig
from vitrail.vocabulary import Graph, Implementation, Preprocess

__all__ = ["MANIFEST", "Content", "Tower"]

Content = Literal["image", "text"]

MANIFEST = "tower.json"
"""Its file, next to the graph's."""


class Tower(msgspec.Struct, frozen=True, kw_only=True):
    """What a folder with one tower holds. B images or texts, S image size, L tokens, D dimension."""

    implementation: Implementation
    preprocess: Preprocess
    graph: Graph
    """images (B, 3, S, S) float32, or tokens (B, L) int64 -> vectors (B, D)."""
    tokenizer: TokenizerConfig | None = None
    """Of the model's text tower, if it has one."""
    sizes: dict[str, int]
    """Bytes of each of the graph's files, which show one that was cut off."""

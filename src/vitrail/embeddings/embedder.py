"""What makes vectors: the protocol of embedders, and the record of which one made a vector.

Shapes: n inputs, D dimension.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

import numpy as np

from vitrail import store
from vitrail.errors import InputError
from vitrail.vocabulary import Implementation, Precision, Preprocess, Weights

__all__ = ["Embedder", "Origin"]


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The model, weights and preprocess that vectors come from."""

    model: str
    """As it was asked for: a catalogue, timm or open_clip name."""
    architecture: str
    implementation: Implementation
    weights: Weights
    """With `sha256`."""
    preprocess: Preprocess
    dimension: int
    """D."""
    reads_text: bool
    """Whether texts go into the same space (CLIP, SigLIP)."""
    tokenizer: str | None = None
    """The tokenizer's file, where the package does not hold it (SigLIP)."""
    tokenizer_sha256: str | None = None
    artifact: str | None = None
    """The artifact that ran the weights; None: the model's own code did."""
    precision: Precision = "fp32"

    @property
    def digest(self) -> str:
        """sha256 over all that decides the numbers: two vectors compare only if this is the same.

        Not over whose code ran the weights, nor where the file lay: neither changes what is computed.
        """
        decisive: dict[str, object] = {
            "architecture": self.architecture,
            "weights": self.weights.sha256,
            "preprocess": asdict(self.preprocess),
            "tokenizer": self.tokenizer_sha256,
        }
        if self.precision != "fp32":
            decisive["precision"] = self.precision
        return hashlib.sha256(store.canonical_json(decisive)).hexdigest()


class Embedder(Protocol):
    """Turns images, and if it `origin.reads_text` texts, into float32 vectors of length 1."""

    @property
    def origin(self) -> Origin:
        """What it runs."""

    @abstractmethod
    def images_each(self, paths: Sequence[str]) -> Iterator[np.ndarray | InputError]:
        """A vector (D,) for each image, or in its place why there is none."""

    @abstractmethod
    def texts_each(self, texts: Sequence[str]) -> Iterator[np.ndarray | InputError]:
        """A vector (D,) for each text, or in its place why there is none.

        Raises:
            InputError: the model reads no texts.
        """

    @property
    def digest(self) -> str:
        """The origin's digest."""
        return self.origin.digest

    def images(self, paths: Sequence[str]) -> np.ndarray:
        """n images as float32 (n, D).

        Raises:
            InputError: an image cannot be used (the first such).
        """
        return self._stacked(self.images_each(paths))

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """n texts as float32 (n, D).

        Raises:
            InputError: a text cannot be used (the first such), or the model reads no texts.
        """
        return self._stacked(self.texts_each(texts))

    def _stacked(self, outcomes: Iterable[np.ndarray | InputError]) -> np.ndarray:
        rows = []
        for outcome in outcomes:
            if isinstance(outcome, InputError):
                raise outcome
            rows.append(outcome)
        return np.stack(rows) if rows else np.empty((0, self.origin.dimension), np.float32)

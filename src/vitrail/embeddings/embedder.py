"""The protocol of embedders, and the record of which model made a vector.

Shapes: n inputs, D dimension.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from vitrail import store
from vitrail.errors import InputError
from vitrail.vocabulary import Implementation, Precision, Preprocess, Weights

if TYPE_CHECKING:
    from vitrail.predict import Predictor

__all__ = ["Embedder", "Origin", "images_through", "of_length_one"]


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The model, weights and preprocess behind a set of vectors."""

    model: str
    """The name as given: from the catalogue, timm or open_clip."""
    architecture: str
    implementation: Implementation
    weights: Weights
    """With `sha256`."""
    preprocess: Preprocess
    dimension: int
    """D."""
    reads_text: bool
    """Whether it also embeds texts, in the same space (CLIP, SigLIP)."""
    tokenizer: str | None = None
    """The tokenizer's file, if it is not part of the package (SigLIP)."""
    tokenizer_sha256: str | None = None
    artifact: str | None = None
    """The artifact that ran the weights; None: the model was named."""
    precision: Precision = "fp32"

    @property
    def digest(self) -> str:
        """sha256 of everything that decides the numbers: two vectors can be compared only if it is equal.

        It leaves out whose code ran the weights and the file's path: neither changes the result.
        """
        decisive: dict[str, object] = {
            "architecture": self.architecture,
            "weights": self.weights.sha256,
            "preprocess": asdict(self.preprocess),
            "tokenizer": self.tokenizer_sha256,
        }
        if self.precision != "fp32":
            decisive["precision"] = self.precision
        return store.digest_of(decisive)


class Embedder(Protocol):
    """Turns images, and texts if `origin.reads_text`, into float32 vectors of length 1."""

    @property
    def origin(self) -> Origin:
        """The model it runs."""

    @abstractmethod
    def images_each(self, paths: Sequence[str]) -> Iterator[np.ndarray | InputError]:
        """A vector (D,) for each image, or the error in its place."""

    @abstractmethod
    def texts_each(self, texts: Sequence[str]) -> Iterator[np.ndarray | InputError]:
        """A vector (D,) for each text, or the error in its place.

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
            InputError: the first image that cannot be used.
        """
        return self._stacked(self.images_each(paths))

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """n texts as float32 (n, D).

        Raises:
            InputError: the first text that cannot be used, or the model reads no texts.
        """
        return self._stacked(self.texts_each(texts))

    def _stacked(self, outcomes: Iterable[np.ndarray | InputError]) -> np.ndarray:
        rows = []
        for outcome in outcomes:
            if isinstance(outcome, InputError):
                raise outcome
            rows.append(outcome)
        return np.stack(rows) if rows else np.empty((0, self.origin.dimension), np.float32)


def images_through(predictor: Predictor, paths: Sequence[str]) -> Iterator[np.ndarray | InputError]:
    """For each image its vector (D,) of length 1, or the reason why there is none."""
    done = 0
    for slots, outputs in predictor.outputs(paths):
        vectors = iter(() if outputs is None else next(iter(outputs.values())))
        for path, slot in zip(paths[done:], slots, strict=False):
            yield of_length_one(next(vectors), path) if slot is None else slot
        done += len(slots)


def of_length_one(vector: np.ndarray, name: str) -> np.ndarray | InputError:
    """float32 (D,) scaled to length 1; an error for one that has no direction."""
    wide = vector.astype(np.float64)
    length = float(np.linalg.norm(wide))
    if not 0 < length < float("inf"):
        return InputError(
            f"The model returns no usable vector for {name}: check that its weights are intact."
        )
    return (wide / length).astype(np.float32)

"""From images to labels: the one path that measuring, predict, batch and serve share.

A request is decode -> preprocess -> run -> top-k; its stages are methods, so that measuring can time the
whole and the model alone. Shapes: B batch, n images at hand, K classes, S image size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from vitrail import runtimes
from vitrail.artifact import Artifact, Probability, open_artifact
from vitrail.errors import ClaimError, InputError
from vitrail.images.decode import decode
from vitrail.images.limits import LIMITS, Limits
from vitrail.images.preprocess import prepare_batch, resized_short_side
from vitrail.limits import whole
from vitrail.vocabulary import Preprocess

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Prediction", "Predictor", "Ranked", "Source", "from_artifact", "load", "probabilities"]

Source: TypeAlias = "str | Path | bytes | bytearray | memoryview | Image.Image | np.ndarray"
"""What one image may be: a path, encoded bytes, a PIL image, or an array as images/decode.py takes it."""


@dataclass(frozen=True)
class Ranked:
    """One label of a prediction, with its class index and its probability in [0, 1]."""

    label: str
    index: int
    probability: float


@dataclass(frozen=True)
class Prediction:
    """The most probable labels of one image, best first."""

    top: tuple[Ranked, ...]

    @property
    def label(self) -> str:
        """The best label."""
        return self.top[0].label

    @property
    def probability(self) -> float:
        """The best label's probability."""
        return self.top[0].probability


class Predictor:
    """A loaded export with its preprocessing and labels. Not thread-safe: one request at a time.

    `probability` says how scores become probabilities: `softmax` over the classes, `sigmoid` of each alone.
    """

    def __init__(
        self,
        runner: runtimes.Runner,
        preprocess: Preprocess,
        labels: Sequence[str],
        probability: Probability = "softmax",
        *,
        limits: Limits = LIMITS,
    ) -> None:
        batch, classes = runner.facts.input_shape[0], runner.facts.output_shape[-1]
        if classes != len(labels):
            raise InputError(
                f"The model scores {classes} classes and {len(labels)} labels are given: fix labels."
            )
        self.runner = runner
        self.preprocess = preprocess
        self.labels = tuple(labels)
        self.probability = probability
        self.limits = limits
        self.batch_size = batch
        # The photo is resized to this side anyway, so a JPEG may be decoded at a lower scale.
        self._short_side = resized_short_side(preprocess)

    def predict(self, sources: Source | Iterable[Source], top: int = 5) -> list[Prediction]:
        """Classify images of any number; one image alone may come without a list.

        Raises:
            InputError: an image cannot be used (the first such), or `top` is out of range.
        """
        predictions = []
        for outcome in self.predict_each(sources, top):
            if isinstance(outcome, InputError):
                raise outcome
            predictions.append(outcome)
        return predictions

    def predict_each(
        self, sources: Source | Iterable[Source], top: int = 5
    ) -> Iterator[Prediction | InputError]:
        """Classify images as `predict` does, but give an image's InputError in its place and go on."""
        waiting = iter(_as_images(sources))
        while chunk := list(islice(waiting, self.batch_size)):
            yield from self._chunk(chunk, top)

    def request(self, sources: Sequence[Source], top: int = 5) -> list[Prediction]:
        """One production request, all of it: decode, preprocess, run, top-k.

        Raises:
            InputError: an image cannot be used, or `top` is out of range.
        """
        return self.rank(self.run(self.prepare(sources)), top)

    def prepare(self, sources: Sequence[Source], *, scaled: bool = True) -> np.ndarray:
        """Decode and preprocess n images -> float32 (n, 3, S, S).

        `scaled=False` decodes JPEG in full where production may decode at a lower scale; the stored
        outputs of an artifact belong to fully decoded photos.
        """
        short_side = self._short_side if scaled else None
        images = [decode(source, short_side=short_side, limits=self.limits) for source in sources]
        return prepare_batch(images, self.preprocess)

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Scores of float32 (n, 3, S, S) -> float32 (n, K), for any n: cut into batches, the last padded."""
        if len(batch) == self.batch_size:
            return self.runner.run(batch)
        scores = [self._padded(batch[i : i + self.batch_size]) for i in range(0, len(batch), self.batch_size)]
        return np.concatenate(scores) if scores else np.empty((0, len(self.labels)), np.float32)

    def rank(self, scores: np.ndarray, top: int = 5) -> list[Prediction]:
        """Probabilities and the `top` best of each row of scores (n, K); equal scores keep the labels' order.

        Raises:
            InputError: `top` is out of range.
            ClaimError: the engine gave scores that are not finite.
        """
        whole("top", top)
        if not np.isfinite(scores).all():
            raise ClaimError("The model gave scores that are not finite: run vitrail verify on the artifact.")
        found = probabilities(scores, self.probability)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :top]
        return [
            Prediction(tuple(Ranked(self.labels[k], int(k), float(row[k])) for k in best))
            for row, best in zip(found, order, strict=True)
        ]

    def close(self) -> None:
        """Free the engine."""
        self.runner.close()

    def __enter__(self) -> Predictor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _chunk(self, sources: list[Source], top: int) -> list[Prediction | InputError]:
        outcomes: list[Any] = []
        images = []
        for source in sources:
            try:
                images.append(decode(source, short_side=self._short_side, limits=self.limits))
                outcomes.append(None)
            except InputError as error:
                outcomes.append(error)
        if images:
            ranked = iter(self.rank(self.run(prepare_batch(images, self.preprocess)), top))
            outcomes = [next(ranked) if outcome is None else outcome for outcome in outcomes]
        return outcomes

    def _padded(self, batch: np.ndarray) -> np.ndarray:
        missing = self.batch_size - len(batch)
        # Repeating a real image keeps the padding inside the range of values the engine was checked with.
        full = np.concatenate([batch, np.repeat(batch[-1:], missing, axis=0)]) if missing else batch
        return self.runner.run(np.ascontiguousarray(full))[: len(batch)]


def probabilities(scores: np.ndarray, kind: Probability) -> np.ndarray:
    """Scores (n, K) -> float64 (n, K): each row's softmax (sums to 1), or the sigmoid of each score alone."""
    wide = scores.astype(np.float64)
    if kind == "sigmoid":
        return np.exp(-np.logaddexp(0.0, -wide))  # no overflow, whatever the sign
    shifted = np.exp(wide - wide.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def _as_images(sources: Source | Iterable[Source]) -> Iterable[Source]:
    single = isinstance(sources, (str, Path, bytes, bytearray, memoryview)) or hasattr(sources, "getbands")
    if isinstance(sources, np.ndarray):
        single = sources.ndim < 4  # (n, H, W, C) is n images
    return [sources] if single else sources  # type: ignore[list-item,return-value]


def load(
    path: Path | str,
    *,
    threads: int | None = None,
    batch_size: int | None = None,
    limits: Limits = LIMITS,
) -> Predictor:
    """Open an artifact, verify all its files, and load it for predicting.

    Args:
        path: the artifact's folder.
        threads: inference threads; None: as the artifact's workload says (all usable cores if it does not).
        batch_size: B the engine is compiled for; None: as the artifact's workload says.
        limits: what one image may ask for.

    Raises:
        InputError: the artifact is damaged, or the arguments are out of range (limits.py).
        MissingExtraError: its engine is not installed.
        EngineMismatch: the engine cannot do here what the artifact says, e.g. bf16 on a CPU without it.
    """
    return from_artifact(open_artifact(path), threads=threads, batch_size=batch_size, limits=limits)


def from_artifact(
    artifact: Artifact,
    *,
    threads: int | None = None,
    batch_size: int | None = None,
    limits: Limits = LIMITS,
) -> Predictor:
    """Load an opened artifact; arguments and errors as `load`."""
    manifest = artifact.manifest
    workload = manifest.evidence.workload
    threads = threads if threads is not None else workload.threads
    batch_size = batch_size if batch_size is not None else workload.batch_size
    engine = runtimes.RUNTIMES.get(manifest.variant.runtime)
    if engine is not None and engine.reference:
        raise InputError(f"{artifact.path} names {engine.label}, which is never shipped: do not use it.")
    runner = runtimes.load(
        artifact.model_folder,
        manifest.entry,
        runtime=manifest.variant.runtime,
        precision=manifest.variant.precision,
        batch_size=batch_size,
        image_size=manifest.preprocess.image_size,
        threads=threads if threads is not None else _usable_cores(),
        settings=dict(manifest.variant.settings),
    )
    return Predictor(runner, manifest.preprocess, artifact.labels(), manifest.probability, limits=limits)


def _usable_cores() -> int:
    from vitrail.hardware import usable_cores

    return usable_cores()

"""Images -> vectors of D numbers, alike where the images are alike.

Shapes: n images, P photos, C crops, D width, S image size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import msgspec
import numpy as np
from PIL import Image

from vitrail.errors import ClaimError
from vitrail.images.preprocess import check_preprocess, crops, image_spec, prepare_batch
from vitrail.limits import whole
from vitrail.tasks import Answered, Arrays, Bounds, Column, Comparison, agreement
from vitrail.vocabulary import Graph, Parity, Preprocess, Stage, TensorSpec

__all__ = ["Embed", "nearest"]

IMAGES, VECTORS = "images", "vectors"


class Facts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an artifact says; no value that decides answers has a default here."""

    name: Literal["embed"]
    preprocess: Preprocess
    width: int
    """D."""


@dataclass(frozen=True, kw_only=True)
class Embed:
    """Embedding with one model's preprocessing. Vectors are as the model gives them, not of unit length."""

    preprocess: Preprocess
    width: int
    name: str = "embed"
    metric: ClassVar[str] = "ImageNet top-1"
    """Of the classifier that was published with these weights: a stand-in for how good the vectors are, which
    nothing here measures."""
    metric_name: ClassVar[str] = "ImageNet top-1 accuracy"
    request: ClassVar[str] = "decode, preprocess, run"
    kept: ClassVar[str] = "nearest neighbour"
    most_views: ClassVar[int] = agreement.MOST_CROPS
    shell: ClassVar[str] = (
        "vitrail embed {photos} --artifact {folder} --out {index}\nvitrail search {index} {photo}"
    )
    python: ClassVar[str] = 'for vector in model.predict(["photo.jpg"]):\n    print(vector.shape)'
    table_options: ClassVar[Mapping[str, Any]] = {}
    sorted_by: ClassVar[str | None] = None
    stages: ClassVar[tuple[Stage, ...]] = ()

    def graph(self, entry: str) -> Graph:
        """images (B, 3, S, S), or uint8 (B, S, S, 3) where the graph normalises, -> vectors (B, D)."""
        return Graph(
            entry=entry,
            inputs=(image_spec(IMAGES, self.preprocess),),
            outputs=(TensorSpec(name=VECTORS, shape=("B", self.width)),),
        )

    def graphs(self, entry: str) -> tuple[Graph, ...]:
        """The one."""
        return (self.graph(entry),)

    def prepare(self, images: Sequence[Image.Image]) -> Arrays:
        """Decoded images -> (n, ...) as `graph` says."""
        return {IMAGES: prepare_batch(images, self.preprocess)}

    def views(self, image: Image.Image, count: int) -> Arrays:
        """`count` crops of one image, the first the one that `prepare` makes."""
        return {IMAGES: crops(image, self.preprocess, count)}

    def finish(self, outputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """One float32 (D) for each image. Raises ClaimError for vectors that are not finite."""
        vectors = outputs[VECTORS]
        if not np.isfinite(vectors).all():
            raise ClaimError(
                "The model gave vectors that are not finite: run vitrail verify on the artifact."
            )
        return list(vectors)

    def columns(self) -> tuple[Column, ...]:
        """The vector."""
        return (Column(name="embedding", kind="float32", length=self.width),)

    def rows(self, outputs: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
        """As `columns`. Raises ClaimError as `finish`."""
        return [{"embedding": vector} for vector in self.finish(outputs)]

    def groups(self) -> tuple[str, ...]:
        """None: vectors have no names."""
        return ()

    def compare(
        self, reference: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray], precision: str
    ) -> Parity:
        """Judge vectors (P, C, D): by cosine, relative error, and whether each crop's nearest one stays.

        Nearest among all other photos' crops of the reference, by cosine; a photo agrees if it does so for
        all its crops whose nearest leads the next by 0.01 (those are decided).
        """
        return agreement.compare(
            reference[VECTORS],
            outputs[VECTORS],
            precision,
            nearest,
            what="nearest neighbour",
            too_few=_too_few,
        )

    def checks(
        self, reference: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray], bounds: Bounds
    ) -> list[Comparison]:
        """Cosine, relative error and nearest neighbours of vectors (P, D)."""
        return agreement.checks(
            reference[VECTORS],
            outputs[VECTORS],
            bounds,
            nearest,
            what="nearest neighbours of fp32",
            said="{agreeing} of {decided} photos with a clear nearest neighbour keep it",
        )

    def bounds(self, precision: str) -> Bounds:
        """What a precision must hold, by its meaning."""
        return agreement.BOUNDS[precision]

    def lost(
        self,
        reference: Mapping[str, np.ndarray],
        outputs: Mapping[str, np.ndarray],
        truths: Sequence[Any] | None,
    ) -> float:
        """Nothing that could be counted in points. Raises ValueError."""
        raise ValueError("vectors have no accuracy that could be lost")

    def score(self, answered: Iterable[Answered], classes: Sequence[str], *, split: str, data: str) -> None:
        """Nothing: class names say nothing about vectors."""

    def facts(self) -> dict[str, Any]:
        """See `Facts`."""
        built: dict[str, Any] = msgspec.to_builtins(
            Facts(name="embed", preprocess=self.preprocess, width=self.width)
        )
        return built

    def files(self) -> dict[str, bytes]:
        """None: all is in the facts."""
        return {}

    @classmethod
    def of_export(
        cls, preprocess: Preprocess, facts: Mapping[str, Any], file: Callable[[str], bytes]
    ) -> Embed:
        """From the width of an export's output."""
        return cls(preprocess=preprocess, width=int(facts["width"]))

    @classmethod
    def read(cls, facts: Mapping[str, Any], file: Callable[[str], bytes]) -> Embed:
        """From an artifact's facts. Raises InputError for a value out of range."""
        said = msgspec.convert(facts, Facts)
        check_preprocess(said.preprocess)
        return cls(preprocess=said.preprocess, width=whole("classes", said.width, "width"))


CLEAR = 0.01
"""By how much in cosine the nearest must lead the next one to be called clear."""


def nearest(reference: np.ndarray, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which photos of (P, C, D) have a clear nearest neighbour, and for which of these it is found again."""
    photos, crops_each = reference.shape[:2]
    if photos < 3:
        return np.zeros(photos, bool), np.zeros(photos, bool)
    owner = np.repeat(np.arange(photos), crops_each)
    before, after = _similarities(reference, owner), _similarities(vectors, owner)
    ordered = np.sort(before, axis=1)
    decided = ordered[:, -1] - ordered[:, -2] >= CLEAR
    agrees = before.argmax(axis=1) == after.argmax(axis=1)
    decided, agrees = decided.reshape(photos, crops_each), agrees.reshape(photos, crops_each)
    counted = decided.any(axis=1)
    return counted, counted & (agrees | ~decided).all(axis=1)


def _similarities(vectors: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """Cosines between all rows; those of one photo with itself count as -1."""
    flat = vectors.reshape(-1, vectors.shape[-1]).astype(np.float64)
    flat = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)
    cosine = flat @ flat.T
    cosine[owner[:, None] == owner[None, :]] = -1.0
    return np.asarray(cosine)


def _too_few(decided: int, photos: int) -> str:
    return f"only {decided} of {photos} photos have a clear nearest neighbour: add photos"

"""Photos -> a class for each pixel, or how much each pixel belongs to one object (a cut-out).

The whole photo is squashed into the model's square, so that each pixel of its map has its place in the photo.
Shapes: n images, P photos, C crops, K classes (1: a single map), S image size, h w the map, H W the photo.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import msgspec
import numpy as np
from PIL import Image

from vitrail.errors import ClaimError, InputError
from vitrail.images.preprocess import check_preprocess, crops, image_spec, prepare_batch
from vitrail.limits import whole
from vitrail.masks import dense, rle
from vitrail.tasks import Answered, Arrays, Bounds, Column, Comparison, mask_parity, mask_quality
from vitrail.tasks.classify import labels_of
from vitrail.tasks.mask_parity import MASK_BOUNDS, Reading
from vitrail.vocabulary import Graph, Parity, Preprocess, Quality, Stage, TensorSpec

__all__ = ["Segment", "Segmentation", "check_whole_photo"]

IMAGES, MASKS = "images", "masks"
LABELS_FILE = "labels.txt"

Values = Literal["logits", "probabilities"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Segmentation:
    """What a model said of one photo; masks are made at the size that is asked for."""

    scores: np.ndarray
    """float32 (K, h, w)."""
    classes: tuple[str, ...]
    """K names."""
    values: Values
    size: tuple[int, int] | None = None
    """(H, W) of the photo; None: not known here."""

    @property
    def single(self) -> bool:
        """Whether it is a cut-out: one map, of what belongs to the object."""
        return len(self.classes) == 1

    def labels(self, size: tuple[int, int] | None = None) -> np.ndarray:
        """The number of each pixel's class, (H, W) uint8 (uint16 of more than 256); of a cut-out 1 inside.

        Raises:
            InputError: no size is given, and the photo's is not known.
            ValueError: the size is none of a photo.
        """
        inside = dense.inside_at(logits=self.values == "logits") if self.single else None
        return dense.labels(self.scores, self._at(size), inside)

    def alpha(self, size: tuple[int, int] | None = None) -> np.ndarray:
        """Of a cut-out: how much each pixel belongs to it, float32 (H, W) in [0, 1].

        Raises:
            InputError: there are several classes, or as `labels`.
        """
        if not self.single:
            raise InputError(f"Of {len(self.classes)} classes there is no one alpha: use labels().")
        return dense.alpha(self.scores[0], self._at(size), logits=self.values == "logits")

    def masks(self, size: tuple[int, int] | None = None) -> dict[str, np.ndarray]:
        """Boolean (H, W) by class, of the classes that are there. Raises as `labels`."""
        found = self.labels(size)
        return {name: found == number for name, number in numbered(self.classes) if (found == number).any()}

    def shares(self, size: tuple[int, int] | None = None) -> dict[str, float]:
        """Share of the pixels in [0, 1] by class, of all classes. Raises as `labels`."""
        found = self.labels(size)
        counts = np.bincount(found.ravel(), minlength=max(len(self.classes), 2))
        return {name: float(counts[number] / found.size) for name, number in numbered(self.classes)}

    def _at(self, size: tuple[int, int] | None) -> tuple[int, int]:
        found = size or self.size
        if found is None:
            raise InputError("The photo's size is not known here: give (height, width).")
        return found


def numbered(classes: Sequence[str]) -> list[tuple[str, int]]:
    """Classes with their numbers in a label map: of a cut-out the only one has 1, what is outside 0."""
    return [(name, number + (len(classes) == 1)) for number, name in enumerate(classes)]


class Facts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an artifact says; no value that decides answers has a default here."""

    name: Literal["segment"]
    preprocess: Preprocess
    classes: int
    """K; 1: a cut-out."""
    labels: str
    """UTF-8 text file of the artifact, one class a line."""
    values: Values
    """Whether scores are logits (a cut-out is inside above 0) or probabilities (above 0.5)."""
    height: int
    """h."""
    width: int
    """w."""


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Masks with one model's preprocessing and classes."""

    preprocess: Preprocess
    labels: tuple[str, ...]
    values: Values
    height: int
    width: int
    name: str = "segment"
    metric: ClassVar[str] = mask_quality.MEAN_IOU
    metric_name: ClassVar[str] = mask_quality.MEAN_IOU
    request: ClassVar[str] = "decode, preprocess, run"
    kept: ClassVar[str] = "masks"
    most_views: ClassVar[int] = 1
    shell: ClassVar[str] = "vitrail segment {folder} {photo} --out masks"
    python: ClassVar[str] = (
        'for found in model.segment(["photo.jpg"]):\n    print(found.shares(), found.labels().shape)'
    )
    table_options: ClassVar[Mapping[str, Any]] = {}
    sorted_by: ClassVar[str | None] = None
    stages: ClassVar[tuple[Stage, ...]] = ()

    def __post_init__(self) -> None:
        if any(not label or "\n" in label for label in self.labels):
            raise ValueError("a label must be one line that is not empty")

    @property
    def reading(self) -> Reading:
        """How its scores say what a pixel is."""
        return Reading(logits=self.values == "logits", single=len(self.labels) == 1)

    def graph(self, entry: str) -> Graph:
        """images (B, 3, S, S), or uint8 (B, S, S, 3) where the graph normalises, -> masks (B, K, h, w)."""
        shape = ("B", len(self.labels), self.height, self.width)
        return Graph(
            entry=entry,
            inputs=(image_spec(IMAGES, self.preprocess),),
            outputs=(TensorSpec(name=MASKS, shape=shape),),
        )

    def graphs(self, entry: str) -> tuple[Graph, ...]:
        """The one."""
        return (self.graph(entry),)

    def prepare(self, images: Sequence[Image.Image]) -> Arrays:
        """Decoded images -> (n, ...) as `graph` says."""
        return {IMAGES: prepare_batch(images, self.preprocess)}

    def views(self, image: Image.Image, count: int) -> Arrays:
        """`count` views of one image, the first the one that `prepare` makes."""
        return {IMAGES: crops(image, self.preprocess, count)}

    def finish(self, outputs: Mapping[str, np.ndarray]) -> list[Segmentation]:
        """One for each image. Raises ClaimError for scores that are not finite."""
        scores = outputs[MASKS]
        if not np.isfinite(scores).all():
            raise ClaimError("The model gave masks that are not finite: run vitrail verify on the artifact.")
        return [Segmentation(scores=each, classes=self.labels, values=self.values) for each in scores]

    def columns(self) -> tuple[Column, ...]:
        """The share of each class, and its mask as COCO's run lengths at the map's size."""
        count = len(self.labels)
        return (
            Column(name="shares", kind="float64", length=count),
            Column(name="masks", kind="text", length=count),
        )

    def rows(self, outputs: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
        """As `columns`; the mask of a class that is not there is "". Raises ClaimError as `finish`."""
        size = (self.height, self.width)
        return [
            {
                "shares": list(each.shares(size).values()),
                "masks": [_coco(each.masks(size).get(name)) for name in self.labels],
            }
            for each in self.finish(outputs)
        ]

    def groups(self) -> tuple[str, ...]:
        """None: a photo holds several classes."""
        return ()

    def bounds(self, precision: str) -> Bounds:
        """What a precision must hold, by its meaning."""
        return MASK_BOUNDS[precision]

    def compare(
        self, reference: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray], precision: str
    ) -> Parity:
        """Judge scores (P, C, K, h, w): by the numbers, and by the IoU of the masks that they make."""
        return mask_parity.compare(reference[MASKS], outputs[MASKS], precision, self.reading)

    def checks(
        self, reference: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray], bounds: Bounds
    ) -> list[Comparison]:
        """Cosine, relative error and masks of scores (P, K, h, w)."""
        return mask_parity.checks(reference[MASKS], outputs[MASKS], bounds, self.reading)

    def lost(
        self,
        reference: Mapping[str, np.ndarray],
        outputs: Mapping[str, np.ndarray],
        truths: Sequence[Any] | None,
    ) -> float:
        """100 less the mean IoU of scores (n, K, h, w) with the reference's masks, whatever the truth is."""
        return mask_parity.lost(reference[MASKS], outputs[MASKS], self.reading)

    def score(
        self, answered: Iterable[Answered], classes: Sequence[str], *, split: str, data: str
    ) -> Quality:
        """How scores agree with true labels (H, W), each at its photo's size."""
        pairs = (
            (truth, found.labels(truth.shape))
            for outputs, truths in answered
            for truth, found in zip(truths, self.finish(outputs), strict=True)
        )
        return mask_quality.quality(pairs, classes, split=split, data=data)

    def facts(self) -> dict[str, Any]:
        """See `Facts`."""
        facts = Facts(
            name="segment",
            preprocess=self.preprocess,
            classes=len(self.labels),
            labels=LABELS_FILE,
            values=self.values,
            height=self.height,
            width=self.width,
        )
        built: dict[str, Any] = msgspec.to_builtins(facts)
        return built

    def files(self) -> dict[str, bytes]:
        """The labels."""
        text = "".join(f"{label}\n" for label in self.labels)
        return {LABELS_FILE: text.encode("utf-8", "surrogatepass")}

    @classmethod
    def of_export(
        cls, preprocess: Preprocess, facts: Mapping[str, Any], file: Callable[[str], bytes]
    ) -> Segment:
        """From an export's labels, the size of its map, and what its values are."""
        return cls(
            preprocess=preprocess,
            labels=labels_of(file(LABELS_FILE), LABELS_FILE),
            values=facts["values"],
            height=int(facts["height"]),
            width=int(facts["width"]),
        )

    @classmethod
    def read(cls, facts: Mapping[str, Any], file: Callable[[str], bytes]) -> Segment:
        """From an artifact's facts.

        Raises:
            InputError: a value out of range, other labels than it says, or a photo that is cut.
        """
        said = msgspec.convert(facts, Facts)
        check_preprocess(said.preprocess)
        check_whole_photo(said.preprocess, "The artifact", "write the artifact again")
        whole("classes", said.classes)
        height, width = (whole("image_size", getattr(said, side), side) for side in ("height", "width"))
        labels = labels_of(file(said.labels), said.labels)
        if len(labels) != said.classes or not all(labels):
            raise InputError(
                f"{said.labels} holds {sum(map(bool, labels))} labels for {said.classes} classes: "
                "write the artifact again."
            )
        return cls(preprocess=said.preprocess, labels=labels, values=said.values, height=height, width=width)


def check_whole_photo(preprocess: Preprocess, who: str, fix: str) -> None:
    """Refuse preprocessing that cuts the photo: of what is cut off, nothing could be said.

    Raises:
        InputError: naming `who` prepares images so, with the `fix`.
    """
    if preprocess.crop_mode != "squash" or preprocess.crop != 1.0:
        raise InputError(
            f"{who} cuts the middle out of photos (crop_mode {preprocess.crop_mode}, crop "
            f"{preprocess.crop:g}), and masks are about whole photos: {fix}."
        )


def _coco(mask: np.ndarray | None) -> str:
    return "" if mask is None else json.dumps(rle.encode(mask).coco())

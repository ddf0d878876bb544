"""Images -> scores of K classes, the most probable named.

Shapes: n images, P photos, C crops, K classes, S image size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

import msgspec
import numpy as np
from PIL import Image

from vitrail.errors import ClaimError, InputError
from vitrail.images.preprocess import check_preprocess, crops, image_spec, prepare_batch
from vitrail.limits import whole
from vitrail.tasks import Answered, Arrays, Bounds, Column, Comparison, accuracy, agreement
from vitrail.tasks.agreement import MIN_DECIDED_PHOTOS, softmax
from vitrail.vocabulary import Graph, Parity, Preprocess, Quality, Stage, TensorSpec
from vitrail.words import counted

__all__ = ["UNKNOWN", "Classify", "Prediction", "Probability", "Ranked", "labels_of", "probabilities"]

IMAGES, SCORES = "images", "scores"
LABELS_FILE = "labels.txt"
UNKNOWN = "unknown"
"""What a table says in place of an answer that is less sure than asked."""

DECIDED_MARGIN = 0.1
"""A crop is decided if the reference's top-1 leads its top-2 by this much in probability."""

Probability: TypeAlias = Literal["softmax", "sigmoid"]
"""How scores become probabilities: over all classes, or each by itself (SigLIP)."""


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


class Facts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an artifact says; no value that decides answers has a default here."""

    name: Literal["classify"]
    preprocess: Preprocess
    classes: int
    """K, the number of labels."""
    labels: str
    """UTF-8 text file of the artifact, one label a line, line i for class i - 1."""
    probability: Probability


@dataclass(frozen=True, kw_only=True)
class Classify:
    """Classification with one model's preprocessing and labels."""

    preprocess: Preprocess
    labels: tuple[str, ...]
    probability: Probability = "softmax"
    name: str = "classify"
    metric: ClassVar[str] = accuracy.TOP_1
    metric_name: ClassVar[str] = "top-1 accuracy"
    request: ClassVar[str] = "decode, preprocess, run, top-k"
    kept: ClassVar[str] = "answer"
    most_views: ClassVar[int] = agreement.MOST_CROPS
    shell: ClassVar[str] = "vitrail predict {folder} {photo}"
    python: ClassVar[str] = (
        'for answer in model.predict(["photo.jpg"]):\n    print(answer.label, answer.probability)'
    )
    table_options: ClassVar[Mapping[str, Any]] = {"top": 5, "min_confidence": 0.0}
    sorted_by: ClassVar[str | None] = "label"
    stages: ClassVar[tuple[Stage, ...]] = ()

    def __post_init__(self) -> None:
        if any(not label or "\n" in label for label in self.labels):
            raise ValueError("a label must be one line that is not empty")

    def graph(self, entry: str) -> Graph:
        """images (B, 3, S, S), or uint8 (B, S, S, 3) where the graph normalises, -> scores (B, K)."""
        return Graph(
            entry=entry,
            inputs=(image_spec(IMAGES, self.preprocess),),
            outputs=(TensorSpec(name=SCORES, shape=("B", len(self.labels))),),
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

    def finish(self, outputs: Mapping[str, np.ndarray], *, top: int = 5) -> list[Prediction]:
        """Probabilities and the `top` best of each row of scores; equal scores keep the labels' order.

        Raises:
            InputError: `top` is out of range.
            ClaimError: the engine gave scores that are not finite.
        """
        whole("top", top)
        scores = outputs[SCORES]
        if not np.isfinite(scores).all():
            raise ClaimError("The model gave scores that are not finite: run vitrail verify on the artifact.")
        found = probabilities(scores, self.probability)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :top]
        return [
            Prediction(tuple(Ranked(self.labels[k], int(k), float(row[k])) for k in best))
            for row, best in zip(found, order, strict=True)
        ]

    def columns(self, *, top: int = 5, min_confidence: float = 0.0) -> tuple[Column, ...]:
        """The answer with its probability, and the `top` best. Raises InputError: `top` is out of range."""
        count = min(whole("top", top), len(self.labels))
        return (
            Column(name="label", kind="text"),
            Column(name="probability", kind="float64"),
            Column(name="labels", kind="text", length=count),
            Column(name="probabilities", kind="float64", length=count),
        )

    def rows(
        self, outputs: Mapping[str, np.ndarray], *, top: int = 5, min_confidence: float = 0.0
    ) -> list[dict[str, Any]]:
        """As `columns`; `label` is `unknown` where the best has less than `min_confidence` %.

        Raises:
            InputError, ClaimError: as `finish`.
        """
        return [
            {
                "label": best.label if 100 * best.probability >= min_confidence else UNKNOWN,
                "probability": best.probability,
                "labels": [ranked.label for ranked in best.top],
                "probabilities": [ranked.probability for ranked in best.top],
            }
            for best in self.finish(outputs, top=top)
        ]

    def groups(self) -> tuple[str, ...]:
        """All labels, and the one of unsure answers."""
        return (*self.labels, UNKNOWN)

    def compare(
        self, reference: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray], precision: str
    ) -> Parity:
        """Judge scores (P, C, K) against the reference's of the same shape."""
        return compare(reference[SCORES], outputs[SCORES], precision)

    def checks(
        self, reference: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray], bounds: Bounds
    ) -> list[Comparison]:
        """Cosine, relative error and top-1 of scores (P, K)."""
        expected = reference[SCORES]
        said = f"{{agreeing}} of {{decided}} decided photos agree ({counted(len(expected), 'photo')})"
        return agreement.checks(
            expected, outputs[SCORES], bounds, decided_photos, what="top-1 of fp32", said=said
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
        """Of scores (n, K): top-1 where the true classes are known (by number of their score), else the
        probability that the reference gives to its answer, in points."""
        before, after = reference[SCORES], outputs[SCORES]
        if truths is None:
            return float(loss_per_photo(before[:, None], after[:, None]).mean())
        right = [float((scores.argmax(1) == np.asarray(truths)).mean()) for scores in (before, after)]
        return 100.0 * (right[0] - right[1])

    def score(
        self, answered: Iterable[Answered], classes: Sequence[str], *, split: str, data: str
    ) -> Quality:
        """How scores (n, K) agree with the labels (n) of images of `classes`, in any order of these."""
        parts = [(outputs[SCORES], truths) for outputs, truths in answered]
        scores = np.concatenate([values for values, _ in parts])
        order = [self.labels.index(name) for name in classes]
        labels = [label for _, truths in parts for label in truths]
        return accuracy.classify(scores[:, order], labels, classes, split=split, data=data)

    def facts(self) -> dict[str, Any]:
        """See `Facts`."""
        facts = Facts(
            name="classify",
            preprocess=self.preprocess,
            classes=len(self.labels),
            labels=LABELS_FILE,
            probability=self.probability,
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
    ) -> Classify:
        """From an export's labels and the kind of its probabilities."""
        labels = labels_of(file(LABELS_FILE), LABELS_FILE)
        return cls(preprocess=preprocess, labels=labels, probability=facts["probability"])

    @classmethod
    def read(cls, facts: Mapping[str, Any], file: Callable[[str], bytes]) -> Classify:
        """From an artifact's facts.

        Raises:
            InputError: a value out of range, or other labels than it says.
        """
        said = msgspec.convert(facts, Facts)
        check_preprocess(said.preprocess)
        whole("classes", said.classes)
        labels = labels_of(file(said.labels), said.labels)
        if len(labels) != said.classes or not all(labels):
            raise InputError(
                f"{said.labels} holds {sum(map(bool, labels))} labels for {said.classes} classes: "
                "write the artifact again."
            )
        return cls(preprocess=said.preprocess, labels=labels, probability=said.probability)


def labels_of(data: bytes, where: str) -> tuple[str, ...]:
    """Labels, one a line. Raises InputError, naming `where`, for text that is not UTF-8."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where} is not UTF-8 text at byte {error.start}: write the artifact again."
        ) from None
    # Not splitlines(): a label may hold a form feed or a Unicode separator.
    return tuple(text.removesuffix("\n").split("\n"))


def probabilities(scores: np.ndarray, kind: Probability) -> np.ndarray:
    """Scores (n, K) -> float64 (n, K): each row's softmax (sums to 1), or the sigmoid of each score alone."""
    wide = scores.astype(np.float64)
    if kind == "sigmoid":
        return np.exp(-np.logaddexp(0.0, -wide))  # no overflow, whatever the sign
    return softmax(wide)


# --- parity ---------------------------------------------------------------------------------------


def compare(reference: np.ndarray, scores: np.ndarray, precision: str) -> Parity:
    """Judge float32 scores (P photos, C crops, K) against the reference's of the same shape.

    Raises:
        ValueError: the shapes differ.
    """
    return agreement.compare(
        reference,
        scores,
        precision,
        decided_photos,
        what="top-1",
        too_few=_too_few,
        losses=loss_per_photo,
    )


def decided_photos(reference: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which photos are decided (any crop is), and which of these agree (all decided crops keep it)."""
    probabilities = softmax(reference)
    ordered = np.sort(probabilities, axis=-1)
    crop_decided = ordered[..., -1] - ordered[..., -2] >= DECIDED_MARGIN
    crop_agrees = reference.argmax(-1) == scores.argmax(-1)
    decided = crop_decided.any(axis=1)
    return decided, decided & (crop_agrees | ~crop_decided).all(axis=1)


def loss_per_photo(reference: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """(P,) mean over crops of p_ref(reference's top-1) - p_ref(variant's top-1), in points (%)."""
    probabilities = softmax(reference)
    best = probabilities.max(-1)
    chosen = np.take_along_axis(probabilities, scores.argmax(-1)[..., None], axis=-1)[..., 0]
    return np.asarray((best - chosen).mean(axis=1) * 100, dtype=np.float64)


def _too_few(decided: int, photos: int) -> str:
    """More photos help a model that is sure of what it sees; an unsure one needs others, or more training."""
    said = f"only {decided} of {photos} photos are decided, {MIN_DECIDED_PHOTOS} needed"
    if 2 * decided >= photos:
        return f"{said}: add photos"
    return f"{said}: the model is unsure of the others, so give photos of what it knows, or train it longer"

"""A photo and a prompt -> masks of the thing that is meant: points in or outside of it, or a box around it.

The work has two stages, each a graph of its own: `encode` once for a photo, `prompt` for each click. The
photo is letterboxed or squashed into the model's square (images/letterbox.py), and prompts are in its
pixels. Of the 1 + M masks the first answers a clear prompt (a box, or several points), and the others an
ambiguous one: a single click may mean a shirt or its wearer (Kirillov et al. 2023, arXiv:2304.02643, §3).

Shapes: n images, p prompts, P photos, V views of each, N points of a prompt, S side of the square, E width of
an embedding, h its tokens, M masks, Y X a mask as the model gives it (Y = X), H W the photo.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import msgspec
import numpy as np
from PIL import Image

from vitrail.errors import ClaimError, InputError
from vitrail.images.letterbox import Letterbox, letterbox
from vitrail.images.preprocess import check_preprocess
from vitrail.limits import whole
from vitrail.masks import rle
from vitrail.tasks import (
    Answered,
    Arrays,
    Bounds,
    Column,
    Comparison,
    agreement,
    click_quality,
    mask_parity,
    mask_quality,
)
from vitrail.tasks.mask_parity import MASK_BOUNDS, Reading
from vitrail.vocabulary import Graph, Parity, Preprocess, Quality, Stage, TensorSpec

__all__ = ["ENCODE", "PROMPT", "Clicked", "Encoded", "Promptable"]

ENCODE, PROMPT = "encode", "prompt"
IMAGES, EMBEDDINGS, POINTS, LABELS, MASKS, IOUS = "images", "embeddings", "points", "labels", "masks", "ious"

NOT_A_POINT, OUTSIDE, INSIDE, UPPER_LEFT, LOWER_RIGHT = -1, 0, 1, 2, 3
"""Labels of points, numbered as in SAM's own code."""
MOST_POINTS = 1000
"""Of one prompt: a thousand clicks are a mistake."""

FRAMES = ("letterbox", "squash")
"""Ways of preparing a photo that keep all of it."""

READING = Reading(logits=True, single=True)
"""Each mask by itself: scores above 0 are inside."""

SPREAD = (0.7548776662466927, 0.5698402909980532)
"""Steps of the additive sequence over a photo: powers of 1/x with x**3 = x + 1. Its points fill it evenly."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoded:
    """What is kept of a photo between prompts; it does not hold the photo."""

    kept: Arrays
    """By the names of the first graph's outputs, float32: `embeddings` (1, E, h, h), and finer maps if the
    model has some."""
    frame: Letterbox
    """The photo's size, and where it lies in the square."""

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the photo."""
        return self.frame.photo

    @property
    def bytes(self) -> int:
        """Memory that it takes."""
        return sum(values.nbytes for values in self.kept.values())


@dataclass(frozen=True, kw_only=True, eq=False)
class Clicked:
    """The answer to one prompt; masks are made at the photo's size when they are asked for."""

    scores: np.ndarray
    """float32 (1 + M, Y, X) logits in the square, the first of a clear prompt; (1, Y, X) of `everything`."""
    ious: np.ndarray
    """float32, of each mask the IoU that the model expects it to have; may lie a little outside of [0, 1]."""
    best: int
    """Which mask answers the prompt."""
    frame: Letterbox | None = None
    """Where the photo lies in the square; None: not known here."""
    point: tuple[float, float] | None = None
    """The point of the grid that found it, in the photo's pixels; None: a person asked."""
    _made: dict[int, np.ndarray] = field(default_factory=dict, repr=False)

    @property
    def iou(self) -> float:
        """The predicted IoU of the best mask."""
        return float(self.ious[self.best])

    @property
    def mask(self) -> np.ndarray:
        """The best mask, boolean (H, W).

        Raises:
            InputError: the photo's size is not known.
        """
        return self.mask_of(self.best)

    @property
    def masks(self) -> np.ndarray:
        """All masks, boolean (1 + M, H, W). Raises as `mask`."""
        return np.stack([self.mask_of(number) for number in range(len(self.scores))])

    def mask_of(self, number: int) -> np.ndarray:
        """One of the masks, boolean (H, W). Raises as `mask`."""
        if self.frame is None:
            raise InputError("The photo's size is not known here: use Predictor.segment(photo, points=…).")
        if number not in self._made:
            self._made[number] = self.frame.inside(self.scores[number])
        return self._made[number]

    def rle(self) -> dict[str, Any]:
        """The best mask as COCO's run lengths, which pycocotools reads. Raises as `mask`."""
        return rle.encode(self.mask).coco()


class Facts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an artifact says; no value that decides answers has a default here."""

    name: Literal["promptable"]
    preprocess: Preprocess
    masks: int
    """M."""
    width: int
    """E."""
    tokens: int
    """h."""
    mask_side: int
    """Y."""
    finer: tuple[tuple[int, int], ...]
    """Channels and side of each finer map that is kept beside the embedding; SAM 2 has two."""
    closes_boxes: bool
    """Whether a point that is none also follows a box."""


@dataclass(frozen=True, kw_only=True)
class Promptable:
    """Masks of what a prompt means, with one model's preprocessing and sizes, as in `Facts`."""

    preprocess: Preprocess
    masks: int
    width: int
    tokens: int
    mask_side: int
    finer: tuple[tuple[int, int], ...] = ()
    closes_boxes: bool = False
    name: str = "promptable"
    metric: ClassVar[str] = mask_quality.MEAN_IOU
    metric_name: ClassVar[str] = "mean IoU with one click"
    request: ClassVar[str] = "decode, preprocess, encode, first prompt"
    kept: ClassVar[str] = "masks"
    most_views: ClassVar[int] = 4
    shell: ClassVar[str] = "vitrail segment {folder} {photo} --point X,Y --out masks"
    python: ClassVar[str] = (
        'found = model.segment("photo.jpg", points=[(x, y)])\nprint(found.iou, found.mask.shape)'
    )
    table_options: ClassVar[Mapping[str, Any]] = {}
    sorted_by: ClassVar[str | None] = None
    stages: ClassVar[tuple[Stage, ...]] = (ENCODE, PROMPT)

    # --- graphs -----------------------------------------------------------------------------------

    def graph(self, entry: str) -> Graph:
        """The whole: images (B, 3, S, S), points (B, N, 2), labels (B, N) -> masks, ious."""
        encode, prompt = self.graphs(entry)
        asked = prompt.inputs[len(encode.outputs) :]
        return Graph(entry=entry, inputs=(*encode.inputs, *asked), outputs=prompt.outputs)

    def graphs(self, entry: str) -> tuple[Graph, ...]:
        """`encode`: images -> embeddings (B, E, h, h) and finer maps, if any; `prompt`: these, points
        (B, N, 2) in the square's pixels and labels (B, N) -> masks (B, 1 + M, Y, X) and ious (B, 1 + M)."""
        side, mask = self.preprocess.image_size, self.mask_side
        kept = tuple(TensorSpec(name=name, shape=("B", *sizes)) for name, sizes in self.kept_shapes().items())
        encode = Graph(
            name=ENCODE,
            entry=f"{ENCODE}/{entry}",
            inputs=(TensorSpec(name=IMAGES, shape=("B", 3, side, side)),),
            outputs=kept,
        )
        prompt = Graph(
            name=PROMPT,
            entry=f"{PROMPT}/{entry}",
            inputs=(
                *kept,
                TensorSpec(name=POINTS, shape=("B", "N", 2)),
                TensorSpec(name=LABELS, shape=("B", "N"), dtype="int64"),
            ),
            outputs=(
                TensorSpec(name=MASKS, shape=("B", 1 + self.masks, mask, mask)),
                TensorSpec(name=IOUS, shape=("B", 1 + self.masks)),
            ),
        )
        return encode, prompt

    def kept_shapes(self) -> dict[str, tuple[int, int, int]]:
        """What the first stage gives for one photo, by name."""
        finer = {f"finer_{i}": (channels, side, side) for i, (channels, side) in enumerate(self.finer, 1)}
        return {EMBEDDINGS: (self.width, self.tokens, self.tokens), **finer}

    # --- inputs -----------------------------------------------------------------------------------

    def prepare(self, images: Sequence[Image.Image]) -> Arrays:
        """Decoded images -> (n, ...) as `graph` says, with a click into the middle of each."""
        squares, frames = zip(*(self.letterboxed(image) for image in images), strict=True)
        clicks = [self.asked(frame, [middle(frame)], [INSIDE], None) for frame in frames]
        return {
            IMAGES: np.stack(squares),
            **{name: np.concatenate([click[name] for click in clicks]) for name in (POINTS, LABELS)},
        }

    def views(self, image: Image.Image, count: int) -> Arrays:
        """One image, (1, ...), with `count` prompts of it, (count, ...); the first as `prepare` makes it.

        A click into the middle, a box of the photo's middle half, then clicks spread over the photo.
        """
        square, frame = self.letterboxed(image)
        (height, width), (x, y) = frame.photo, middle(frame)
        half = (x / 2, y / 2, x + (width - x) / 2, y + (height - y) / 2)
        # Not closed, so that all have as many points: what is compared is the numbers.
        prompts = [self.asked(frame, [(x, y)], [INSIDE], None), self._corners(frame, half)]
        for number in range(2, count):
            across, down = ((0.5 + number * step) % 1.0 for step in SPREAD)
            prompts.append(self.asked(frame, [(across * width, down * height)], [INSIDE], None))
        return {
            IMAGES: square[None],
            **{name: np.concatenate([each[name] for each in prompts[:count]]) for name in (POINTS, LABELS)},
        }

    def clicks(self, image: Image.Image, points: Sequence[Sequence[float]]) -> Arrays:
        """One image, (1, ...), with a prompt of one click for each point (x, y) of it, (n, ...).

        Raises:
            InputError: a point outside of the photo.
        """
        square, frame = self.letterboxed(image)
        prompts = [self.asked(frame, [(x, y)], [INSIDE], None) for x, y in points]
        return {
            IMAGES: square[None],
            **{name: np.concatenate([each[name] for each in prompts]) for name in (POINTS, LABELS)},
        }

    def letterboxed(self, image: Image.Image) -> tuple[np.ndarray, Letterbox]:
        """A decoded image as float32 (3, S, S), and where it lies in there."""
        said = self.preprocess
        squashed = said.crop_mode == "squash"
        return letterbox(image, said.image_size, mean=said.mean, std=said.std, squashed=squashed)

    def frame(self, photo: tuple[int, int]) -> Letterbox:
        """Where a photo (H, W) lies in the square."""
        said = self.preprocess
        return Letterbox(side=said.image_size, photo=photo, squashed=said.crop_mode == "squash")

    def asked(
        self,
        frame: Letterbox,
        points: Sequence[tuple[float, float]],
        labels: Sequence[int] | None,
        box: Sequence[float] | None,
    ) -> Arrays:
        """A prompt in the photo's pixels -> points (1, N, 2) and labels (1, N) as the graph takes them.

        A box becomes two points; where there is none, or the model wants it, a point that is none closes all.

        Raises:
            InputError: no prompt, a point or box outside of the photo, an empty box, or labels that are not 1
                or 0 for each point.
        """
        at, kinds = checked_points(points, labels)
        if not len(at) and box is None:
            raise InputError("There is no prompt: give at least one point, or a box.")
        parts = [_as_inputs(frame.points(at), kinds)]
        if box is not None:
            parts.append(self._corners(frame, checked_box(box)))
        if box is None or self.closes_boxes:
            parts.append(_as_inputs(np.zeros((1, 2)), [NOT_A_POINT]))
        return {name: np.concatenate([part[name] for part in parts], axis=1) for name in (POINTS, LABELS)}

    def _corners(self, frame: Letterbox, box: Sequence[float] | np.ndarray) -> Arrays:
        return _as_inputs(frame.boxes(np.asarray(box)).reshape(2, 2), [UPPER_LEFT, LOWER_RIGHT])

    # --- outputs ----------------------------------------------------------------------------------

    def finish(self, outputs: Mapping[str, np.ndarray]) -> list[Clicked]:
        """One for each prompt, taken for a single click: `answers` knows what was asked.

        Raises:
            ClaimError: scores or IoUs that are not finite.
        """
        return [self.answer(scores, ious, None) for scores, ious in self._rows(outputs)]

    def answers(
        self, outputs: Mapping[str, np.ndarray], frame: Letterbox, asked: Mapping[str, np.ndarray]
    ) -> list[Clicked]:
        """One for each prompt of a photo, of which `asked` are the points. Raises as `finish`.

        A box, or several points, say clearly what is meant.
        """
        clear = np.count_nonzero(asked[LABELS] != NOT_A_POINT, axis=1) > 1
        return [
            self.answer(*row, frame, clear=bool(said))
            for row, said in zip(self._rows(outputs), clear, strict=True)
        ]

    def answer(
        self, scores: np.ndarray, ious: np.ndarray, frame: Letterbox | None, *, clear: bool = False
    ) -> Clicked:
        """The answer of one prompt: its first mask if it is clear, else the one that promises most."""
        best = 0 if clear else 1 + int(ious[1:].argmax())
        return Clicked(scores=scores, ious=ious, best=best, frame=frame)

    def _rows(self, outputs: Mapping[str, np.ndarray]) -> Iterable[tuple[np.ndarray, np.ndarray]]:
        if not all(np.isfinite(outputs[name]).all() for name in (MASKS, IOUS)):
            raise ClaimError("The model gave masks that are not finite: run vitrail verify on the artifact.")
        return zip(outputs[MASKS], outputs[IOUS], strict=True)

    def columns(self) -> tuple[Column, ...]:
        """None: what a photo's masks are depends on the prompt."""
        return ()

    def rows(self, outputs: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
        """As `columns`."""
        return [{} for _ in outputs[IOUS]]

    def groups(self) -> tuple[str, ...]:
        """None: a photo holds many things."""
        return ()

    # --- agreement and quality --------------------------------------------------------------------

    def bounds(self, precision: str) -> Bounds:
        """What a precision must hold, by its meaning."""
        return MASK_BOUNDS[precision]

    def compare(
        self, reference: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray], precision: str
    ) -> Parity:
        """Judge masks (P, V, 1 + M, Y, X), each by itself, and predicted IoUs (P, V, 1 + M)."""
        found = mask_parity.compare(_each(reference), _each(outputs), precision, READING)
        if not np.isfinite(outputs[IOUS]).all():
            return agreement.refused(found.photos, "outputs are not finite")
        error, limit = iou_error(reference, outputs), MASK_BOUNDS[precision].relative_error
        if found.answer == "pass" and error > limit:
            reason = f"relative error {error:.2g} of the predicted IoUs is above {limit}"
            return replace(found, answer="fail", reason=reason)
        return found

    def checks(
        self, reference: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray], bounds: Bounds
    ) -> list[Comparison]:
        """Cosine, relative error and masks of scores (P, 1 + M, Y, X), and error of the predicted IoUs."""
        then, now = ({k: v[:, None] for k, v in each.items()} for each in (reference, outputs))
        error = iou_error(reference, outputs)
        return [
            *mask_parity.view_checks(_each(then), _each(now), bounds, READING),
            agreement.bounded(
                "relative error of predicted IoUs",
                error,
                bounds.relative_error,
                error <= bounds.relative_error,
                "at most",
            ),
        ]

    def lost(
        self,
        reference: Mapping[str, np.ndarray],
        outputs: Mapping[str, np.ndarray],
        truths: Sequence[Any] | None,
    ) -> float:
        """100 less the mean IoU of all masks (n, 1 + M, Y, X) with the reference's."""
        before, after = (each[MASKS].reshape(-1, 1, *each[MASKS].shape[-2:]) for each in (reference, outputs))
        return mask_parity.lost(
            before.reshape(-1, *before.shape[2:]), after.reshape(-1, *after.shape[2:]), READING
        )

    def score(
        self, answered: Iterable[Answered], classes: Sequence[str], *, split: str, data: str
    ) -> Quality:
        """Mean IoU of the best masks with true ones, one click each, with an interval over photos."""
        return click_quality.quality(self._judged(answered), split=split, data=data)

    def _judged(self, answered: Iterable[Answered]) -> Iterable[click_quality.Judged]:
        for outputs, truths in answered:
            for (scores, ious), truth in zip(self._rows(outputs), truths, strict=True):
                yield truth, self.answer(scores, ious, self.frame(truth.size)).mask

    # --- records ----------------------------------------------------------------------------------

    def facts(self) -> dict[str, Any]:
        """See `Facts`."""
        said = Facts(
            name="promptable",
            preprocess=self.preprocess,
            masks=self.masks,
            width=self.width,
            tokens=self.tokens,
            mask_side=self.mask_side,
            finer=self.finer,
            closes_boxes=self.closes_boxes,
        )
        built: dict[str, Any] = msgspec.to_builtins(said)
        return built

    def files(self) -> dict[str, bytes]:
        """None: prompts have no labels with names."""
        return {}

    @classmethod
    def of_export(
        cls, preprocess: Preprocess, facts: Mapping[str, Any], file: Callable[[str], bytes]
    ) -> Promptable:
        """From the sizes that the exporter wrote."""
        return cls(
            preprocess=preprocess,
            masks=int(facts["masks"]),
            width=int(facts["width"]),
            tokens=int(facts["tokens"]),
            mask_side=int(facts["mask_side"]),
            finer=tuple((int(channels), int(side)) for channels, side in facts["finer"]),
            closes_boxes=bool(facts["closes_boxes"]),
        )

    @classmethod
    def read(cls, facts: Mapping[str, Any], file: Callable[[str], bytes]) -> Promptable:
        """From an artifact's facts.

        Raises:
            InputError: a value out of range, or photos of which a part is cut off.
        """
        said = msgspec.convert(facts, Facts)
        check_preprocess(said.preprocess)
        if said.preprocess.crop_mode not in FRAMES or said.preprocess.crop != 1.0:
            raise InputError(
                f"The artifact prepares photos by crop_mode {said.preprocess.crop_mode} and crop "
                f"{said.preprocess.crop:g}, and prompts need whole photos ({' or '.join(FRAMES)}, 1): write "
                "the artifact again."
            )
        for name in ("width", "tokens", "mask_side"):
            whole("image_size", getattr(said, name), name)
        whole("image_size", said.masks, "masks")
        for size in (size for each in said.finer for size in each):
            whole("image_size", size, "finer")
        return cls(
            preprocess=said.preprocess,
            masks=said.masks,
            width=said.width,
            tokens=said.tokens,
            mask_side=said.mask_side,
            finer=said.finer,
            closes_boxes=said.closes_boxes,
        )


def _as_inputs(places: np.ndarray, kinds: Sequence[int]) -> Arrays:
    """Points (N, 2) in the square and their labels as one prompt of the graph."""
    return {POINTS: places.astype(np.float32)[None], LABELS: np.array(kinds, np.int64)[None]}


def middle(frame: Letterbox) -> tuple[float, float]:
    """(x, y) of a photo's middle, in its pixels."""
    height, width = frame.photo
    return width / 2, height / 2


def checked_points(
    points: Sequence[tuple[float, float]], labels: Sequence[int] | None
) -> tuple[np.ndarray, list[int]]:
    """Points as float64 (N, 2), with a label of each; without labels all are inside.

    Raises:
        InputError: not pairs of numbers, too many, or labels that are not 1 or 0 for each.
    """
    try:
        at = np.asarray(list(points), np.float64).reshape(len(points), 2)
    except (TypeError, ValueError):
        raise InputError("Points are pairs (x, y) of numbers: give [(x, y), …] in pixels.") from None
    if len(at) > MOST_POINTS:
        raise InputError(f"{len(at):,} points are too many for one prompt: give at most {MOST_POINTS:,}.")
    kinds = [INSIDE] * len(at) if labels is None else list(labels)
    if len(kinds) != len(at):
        raise InputError(
            f"There are {len(kinds)} labels for {len(at)} points: give one for each, 1 inside the object or "
            "0 outside."
        )
    for kind in kinds:
        if kind not in (INSIDE, OUTSIDE):
            raise InputError(f"{kind!r} is not a label of a point: use 1 inside the object, 0 outside.")
    return at, [int(kind) for kind in kinds]


def checked_box(box: Sequence[float]) -> np.ndarray:
    """A box as float64 (4). Raises InputError for anything but four numbers."""
    try:
        return np.asarray(list(box), np.float64).reshape(4)
    except (TypeError, ValueError):
        raise InputError("A box is four numbers: give (left, top, right, bottom) in pixels.") from None


def iou_error(reference: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> float:
    """The largest relative error of one prompt's predicted IoUs (…, 1 + M)."""
    return float(agreement.relative_errors(reference[IOUS], outputs[IOUS]).max())


def _each(outputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """Masks (P, V, 1 + M, Y, X) as views of their own, (P, V · (1 + M), 1, Y, X)."""
    masks = outputs[MASKS]
    return masks.reshape(len(masks), -1, 1, *masks.shape[-2:])

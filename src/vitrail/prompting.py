"""Photos that are encoded once and asked any number of times: the two stages of a promptable model.

`everything` asks with a grid of points and keeps what the model is sure of, as Meta's
SamAutomaticMaskGenerator does (github.com/facebookresearch/segment-anything, automatic_mask_generator.py);
the defaults are its published ones.

Shapes: E width of an embedding, h its tokens, 1 + M masks of Y X pixels each, H W the photo.
"""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Lock

import numpy as np
from PIL import Image

from vitrail.errors import InputError
from vitrail.images.decode import open_file
from vitrail.images.letterbox import Letterbox
from vitrail.images.limits import Limits
from vitrail.limits import whole
from vitrail.runtimes.chain import MOST_ROWS, Chain
from vitrail.tasks import Arrays, ImageInput
from vitrail.tasks.promptable import (
    ENCODE,
    IMAGES,
    INSIDE,
    PROMPT,
    Clicked,
    Encoded,
    Promptable,
    middle,
)

__all__ = ["KEPT_IMAGES", "EmbeddingCache", "Prompter", "image_digest"]

KEPT_IMAGES = 8
"""Photos whose embeddings are kept: 4 MiB each of SAM's published models."""

POINTS_PER_SIDE = 32
IOU_FROM = 0.88
STABILITY_FROM, STABILITY_OFFSET = 0.95, 1.0
OVERLAP_MOST = 0.7
ORIENTATION = 0x0112
"""The EXIF tag."""


class EmbeddingCache:
    """The embeddings of the photos that were used last, by a digest of each; safe among threads.

    Args:
        images: the most that are kept; what was used longest ago goes first.

    Raises:
        InputError: `images` is no number from 1 to 10,000.
    """

    def __init__(self, images: int = KEPT_IMAGES) -> None:
        self._most = whole("max_images", images, "images")
        self._kept: OrderedDict[str, Encoded] = OrderedDict()
        self._lock = Lock()

    def get(self, digest: str) -> Encoded | None:
        """What is kept of this photo; None: nothing, or no more."""
        with self._lock:
            found = self._kept.get(digest)
            if found is not None:
                self._kept.move_to_end(digest)
            return found

    def put(self, digest: str, encoded: Encoded) -> None:
        """Keep this photo's."""
        with self._lock:
            self._kept[digest] = encoded
            self._kept.move_to_end(digest)
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)

    def get_or(self, digest: str, make: Callable[[], Encoded]) -> Encoded:
        """What is kept, or else what `make` gives, which is kept from now on."""
        found = self.get(digest)
        if found is None:
            found = make()
            self.put(digest, found)
        return found

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._kept.clear()

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def bytes(self) -> int:
        """Memory that all of them take."""
        with self._lock:
            return sum(encoded.bytes for encoded in self._kept.values())


class Prompter:
    """A loaded promptable model. Not thread-safe, but for its cache.

    Args:
        chain: its two graphs.
        task: what goes in and comes out.
        cache: where embeddings are kept; None: a new one.
    """

    def __init__(self, chain: Chain, task: Promptable, cache: EmbeddingCache | None = None) -> None:
        self._chain, self.task = chain, task
        self.cache = EmbeddingCache() if cache is None else cache

    def encode(self, photo: Image.Image) -> Encoded:
        """A decoded photo -> what is kept of it. Raises InputError if it is not RGB."""
        square, frame = self.task.letterboxed(photo)
        return Encoded(kept=self._chain.run_stage(ENCODE, {IMAGES: square[None]}), frame=frame)

    def prompt(
        self,
        encoded: Encoded,
        *,
        points: Sequence[tuple[float, float]] = (),
        labels: Sequence[int] | None = None,
        box: Sequence[float] | None = None,
    ) -> Clicked:
        """See `Predictor.prompt`."""
        self._check(encoded)
        (found,) = self._answers(encoded, self.task.asked(encoded.frame, points, labels, box))
        return found

    def first(self, encoded: Encoded) -> Clicked:
        """A click into the photo's middle, with its mask made: what measuring times."""
        found = self.prompt(encoded, points=[middle(encoded.frame)], labels=[INSIDE])
        _ = found.mask
        return found

    def everything(
        self,
        encoded: Encoded,
        *,
        points_per_side: int = POINTS_PER_SIDE,
        iou_from: float = IOU_FROM,
        stability_from: float = STABILITY_FROM,
        overlap_most: float = OVERLAP_MOST,
    ) -> list[Clicked]:
        """Each thing that a grid of points finds, best first, with one mask each.

        All masks of a point are candidates but the one of a clear prompt. Stability and boxes are taken at
        the model's own resolution, not at the photo's as in the original.

        Args:
            points_per_side: of the grid; the cost grows with its square.
            iou_from: least predicted IoU (pred_iou_thresh).
            stability_from: least IoU of the mask above +1 with that above -1 (stability_score_thresh).
            overlap_most: most IoU of the boxes of two masks that are kept (box_nms_thresh).

        Raises:
            InputError: an option out of range.
        """
        whole("operations", points_per_side, "points_per_side")
        shares = {"iou_from": iou_from, "stability_from": stability_from, "overlap_most": overlap_most}
        for name, value in shares.items():
            if not 0 <= value <= 1:
                raise InputError(f"{name} is {value:g}: give a share from 0 to 1.")
        self._check(encoded)
        found: list[Clicked] = []
        for places in _batches(grid(encoded.frame, points_per_side)):
            asked = [self.task.asked(encoded.frame, [place], [INSIDE], None) for place in places]
            inputs = {name: np.concatenate([each[name] for each in asked]) for name in asked[0]}
            for place, answer in zip(places, self._answers(encoded, inputs), strict=True):
                found += _sure(answer, place, iou_from, stability_from)
        found.sort(key=lambda each: -each.iou)
        boxes = np.array([_box(each.scores[0], each.frame) for each in found]).reshape(-1, 4)
        return [found[number] for number in _apart(boxes, overlap_most)]

    def _answers(self, encoded: Encoded, asked: Arrays) -> list[Clicked]:
        outputs = self._chain.run_stage(PROMPT, {**encoded.kept, **asked})
        return self.task.answers(outputs, encoded.frame, asked)

    def _check(self, encoded: Encoded) -> None:
        own, frame = self.task.kept_shapes(), self.task.frame(encoded.frame.photo)
        given = {name: values.shape[1:] for name, values in encoded.kept.items()}
        if given != own or encoded.frame != frame:
            raise InputError(
                f"Embeddings of {given} at {encoded.frame.side} pixels are another model's, this one has "
                f"{own} at {frame.side}: encode the photo with it."
            )


def image_digest(image: ImageInput, limits: Limits) -> str:
    """sha256 of an image's bytes, or of its pixels where it is no file.

    Raises:
        InputError: the file cannot be opened.
    """
    digest = hashlib.sha256()
    if isinstance(image, (str, Path)):
        with open_file(image, limits) as file:
            while part := file.read(1 << 20):
                digest.update(part)
    elif isinstance(image, (bytes, bytearray, memoryview)):
        digest.update(image)
    else:
        pixels = np.ascontiguousarray(image)
        digest.update(f"{pixels.dtype} {pixels.shape} {_beside(image)}".encode())
        digest.update(pixels.tobytes())
    return digest.hexdigest()


def _beside(image: ImageInput) -> str:
    """What else than its numbers says what an image shows."""
    if not isinstance(image, Image.Image):
        return ""
    palette = b"" if image.palette is None else image.palette.tobytes()
    turned = image.getexif().get(ORIENTATION)
    return f"{image.mode} {palette.hex()} {image.info.get('transparency')} {turned}"


# --- everything -----------------------------------------------------------------------------------


def grid(frame: Letterbox, per_side: int) -> list[tuple[float, float]]:
    """The middles of `per_side` × `per_side` equal parts of a photo, row by row."""
    height, width = frame.photo
    steps = [(k + 0.5) / per_side for k in range(per_side)]
    return [(x * width, y * height) for y in steps for x in steps]


def _batches(points: Sequence[tuple[float, float]]) -> Iterator[Sequence[tuple[float, float]]]:
    return (points[begin : begin + MOST_ROWS] for begin in range(0, len(points), MOST_ROWS))


def _sure(
    answer: Clicked, place: tuple[float, float], iou_from: float, stability_from: float
) -> list[Clicked]:
    """The masks of an ambiguous answer that promise enough and do not hang on the threshold."""
    assert answer.frame is not None
    found = []
    for scores, iou in zip(answer.scores[1:], answer.ious[1:], strict=True):
        seen = _seen(scores, answer.frame)
        if iou >= iou_from and stability(seen) >= stability_from:
            # Copied: a view would keep the whole batch.
            found.append(
                Clicked(
                    scores=scores[None].copy(), ious=np.array([iou]), best=0, frame=answer.frame, point=place
                )
            )
    return found


def _seen(scores: np.ndarray, frame: Letterbox) -> np.ndarray:
    """The part of scores (Y, X) that shows the photo and not the filling."""
    height, width = (math.ceil(side * len(scores) / frame.side) for side in frame.resized)
    return scores[:height, :width]


def stability(scores: np.ndarray, offset: float = STABILITY_OFFSET) -> float:
    """IoU of a mask cut at +offset with the same one cut at -offset; 0 of one that is empty."""
    either = np.count_nonzero(scores > -offset)
    return float(np.count_nonzero(scores > offset) / either) if either else 0.0


def _box(scores: np.ndarray, frame: Letterbox | None) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of what is inside, in pixels of the mask."""
    assert frame is not None
    inside = _seen(scores, frame) > 0
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    if not len(rows):
        return 0, 0, 0, 0
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _apart(boxes: np.ndarray, most: float) -> list[int]:
    """Non-maximum suppression of boxes (n, 4), best first: numbers of those that overlap no better one."""
    kept: list[int] = []
    left = np.arange(len(boxes))
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    while len(left):
        best, left = int(left[0]), left[1:]
        kept.append(best)
        corner = np.maximum(boxes[left, :2], boxes[best, :2])
        both = np.prod(np.clip(np.minimum(boxes[left, 2:], boxes[best, 2:]) - corner, 0, None), axis=1)
        either = areas[left] + areas[best] - both
        left = left[both <= most * either]
    return kept

"""Masks as COCO's run lengths, equal to pycocotools: plain counts, their compressed text, and outlines.

A mask is read column by column, from the top. Counts alternate between pixels outside and inside, the first
outside (0 where the first pixel is inside). Source: cocoapi, common/maskApi.c, by Piotr Dollár and Tsung-Yi
Lin, 2015; written anew.

Shapes: H W the mask, P points of an outline.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitrail.errors import InputError
from vitrail.images.limits import LIMITS

__all__ = ["RunLengths", "encode", "fill", "from_coco", "from_text", "of_labels", "overlap"]

ROWS_AT_ONCE = 256
"""Of a mask that is turned: from row by row to column by column, seven times as fast as all rows at once."""
OVERSAMPLING = 5
"""Steps a pixel in which an outline is followed."""
MAX_OUTLINE_STEPS = 2**22
"""Steps of the longest outline that is followed, some 840,000 pixels: they take 300 MiB."""
_FIRST, _LAST = 48, 111
"""Codes of the characters of the compressed text: `0` to `o`, six bits each."""
_MOST_CHARACTERS = 7
"""Characters a count may have: 35 bits."""


@dataclass(frozen=True, kw_only=True)
class RunLengths:
    """One mask.

    Raises:
        InputError: counts that are negative or do not add up to the mask's pixels, or a size that no photo
            has.
    """

    size: tuple[int, int]
    """(H, W)."""
    counts: tuple[int, ...]

    def __post_init__(self) -> None:
        height, width = self.size
        if height < 1 or width < 1:
            raise InputError(f"A mask of {width} × {height} pixels has none: give its height and width.")
        if height * width > LIMITS.pixels:
            raise InputError(
                f"A mask of {width} × {height} pixels is above the limit of {LIMITS.pixels:,}: make it "
                "smaller."
            )
        if min(self.counts, default=0) < 0:
            raise InputError(f"The run {min(self.counts)} of a mask is negative: encode the mask again.")
        if sum(self.counts) != height * width:
            raise InputError(
                f"The runs of a mask add up to {sum(self.counts)} pixels, but {width} × {height} are "
                f"{height * width}: give size as [height, width], or encode the mask again."
            )

    @property
    def area(self) -> int:
        """Pixels inside."""
        return sum(self.counts[1::2])

    @property
    def box(self) -> tuple[int, int, int, int]:
        """(left, top, width, height) in pixels of the smallest box around it, as in COCO; empty: zeros."""
        height = self.size[0]
        ends = list(itertools.accumulate(self.counts))
        runs = [(begin, end - 1) for begin, end in zip(ends[::2], ends[1::2], strict=False) if end > begin]
        if not runs:
            return 0, 0, 0, 0
        left, right = runs[0][0] // height, runs[-1][1] // height
        # A run that goes on in the next column reaches the bottom and begins at the top.
        over = any(begin // height != end // height for begin, end in runs)
        top = 0 if over else min(begin % height for begin, _ in runs)
        bottom = height - 1 if over else max(end % height for _, end in runs)
        return left, top, right - left + 1, bottom - top + 1

    def mask(self) -> np.ndarray:
        """Boolean (H, W)."""
        height, width = self.size
        inside = np.arange(len(self.counts)) % 2 == 1
        # Row by row in memory, as whatever reads it next expects it.
        return np.ascontiguousarray(np.repeat(inside, self.counts).reshape(width, height).T)

    def text(self) -> str:
        """The compressed counts, from the fourth on less the one two before; five bits a sign, low first."""
        characters: list[str] = []
        for i, count in enumerate(self.counts):
            value, more = count - self.counts[i - 2] if i > 2 else count, True
            while more:
                bits, value = value & 0x1F, value >> 5
                # The fifth bit is the sign of what follows.
                more = value != (-1 if bits & 0x10 else 0)
                characters.append(chr(_FIRST + (bits | 0x20 if more else bits)))
        return "".join(characters)

    def coco(self) -> dict[str, Any]:
        """`{"size": [H, W], "counts": text}`: ready for JSON, and for pycocotools."""
        return {"size": list(self.size), "counts": self.text()}


def encode(mask: np.ndarray) -> RunLengths:
    """Boolean (H, W) -> its run lengths.

    Raises:
        ValueError: not boolean, or not of two axes.
        InputError: no pixels, or more than a photo may have.
    """
    if mask.ndim != 2 or mask.dtype != bool:
        raise ValueError(f"a mask is boolean (H, W), not {mask.dtype} {mask.shape}")
    columns = _by_columns(mask)
    begins = [0] if columns[:1].any() else []
    bounds = np.array([0, *begins, *_changes(columns), len(columns)])
    return RunLengths(size=(mask.shape[0], mask.shape[1]), counts=tuple(np.diff(bounds).tolist()))


def of_labels(labels: np.ndarray) -> dict[int, RunLengths]:
    """Numbers (H, W) -> the mask of each number that is there, in their order; read once for all of them.

    Raises:
        ValueError: not whole numbers, or not of two axes.
        InputError: as `encode`.
    """
    if labels.ndim != 2 or labels.dtype.kind not in "iu":
        raise ValueError(f"labels are whole numbers (H, W), not {labels.dtype} {labels.shape}")
    size = labels.shape[0], labels.shape[1]
    RunLengths(size=size, counts=(labels.size,))  # refuses a size before anything is made of it
    columns = _by_columns(labels)
    begins = np.concatenate([[0], _changes(columns)])
    ends = np.append(begins[1:], len(columns))
    numbers = columns[begins]
    found = {}
    for number in np.unique(numbers):
        own = numbers == number
        bounds = np.concatenate([[0], np.stack([begins[own], ends[own]], axis=-1).ravel()])
        rest = [len(columns)] if bounds[-1] < len(columns) else []
        counts = np.diff(np.append(bounds, rest))
        found[int(number)] = RunLengths(size=size, counts=tuple(counts.astype(np.int64).tolist()))
    return found


def _by_columns(values: np.ndarray) -> np.ndarray:
    """(H, W) -> (W · H,), column by column."""
    turned = np.empty(values.shape[::-1], values.dtype)
    for begin in range(0, len(values), ROWS_AT_ONCE):
        turned[:, begin : begin + ROWS_AT_ONCE] = values[begin : begin + ROWS_AT_ONCE].T
    return turned.ravel()


def _changes(columns: np.ndarray) -> np.ndarray:
    """The places whose value is another than the one before."""
    return np.flatnonzero(columns[1:] != columns[:-1]) + 1


def from_text(text: str, size: tuple[int, int]) -> RunLengths:
    """The compressed counts of a mask of `size` (H, W).

    Raises:
        InputError: a character that is none of the code's, a text that is cut off, or as `RunLengths`.
    """
    counts: list[int] = []
    value = shift = 0
    for place, character in enumerate(text):
        code = ord(character)
        if not _FIRST <= code <= _LAST:
            raise InputError(
                f"The run lengths of a mask hold {character!r} at character {place}, which is none of "
                "theirs: encode the mask again."
            )
        bits = code - _FIRST
        value |= (bits & 0x1F) << shift
        shift += 5
        if shift > 5 * _MOST_CHARACTERS:
            raise InputError(f"The run of a mask at character {place} is too long: encode the mask again.")
        if bits & 0x20:
            continue
        value -= 1 << shift if bits & 0x10 else 0
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = shift = 0
    if shift:
        raise InputError("The run lengths of a mask are cut off: encode the mask again.")
    return RunLengths(size=size, counts=tuple(counts))


def from_coco(value: Mapping[str, Any]) -> RunLengths:
    """`{"size": [H, W], "counts": text, bytes or numbers}`, as COCO files and pycocotools have it.

    Raises:
        InputError: no such mapping, or as `from_text`.
    """
    try:
        (height, width), counts = map(int, value["size"]), value["counts"]
        if isinstance(counts, bytes):
            counts = counts.decode("latin-1")
        if not isinstance(counts, str):
            return RunLengths(size=(height, width), counts=tuple(map(int, counts)))
    except InputError:
        raise
    except (KeyError, TypeError, ValueError):
        raise InputError("A mask has no size [height, width] and counts: give both.") from None
    return from_text(counts, (height, width))


def overlap(a: RunLengths, b: RunLengths) -> int:
    """Pixels that are inside both, counted without making the masks.

    Raises:
        ValueError: masks of different sizes.
    """
    if a.size != b.size:
        raise ValueError(f"masks of {a.size} and {b.size}")
    ends_a, inside_a = _counted(a)
    ends_b, _ = _counted(b)
    # Pixels of `a` before each end of a run of `b`: inside a run of `a` they grow with every pixel.
    run = np.minimum(np.searchsorted(ends_a, ends_b, side="right") - 1, len(ends_a) - 2)
    before = inside_a[run] + np.where(run % 2 == 1, ends_b - ends_a[run], 0)
    return int((before[2::2] - before[1 : len(before) - 1 : 2]).sum())


def _counted(runs: RunLengths) -> tuple[np.ndarray, np.ndarray]:
    """0 and where each run ends, and how many pixels before that are inside; (runs + 1,) each."""
    counts = np.array(runs.counts, np.int64)
    ends = np.concatenate([[0], np.cumsum(counts)])
    counts[::2] = 0
    return ends, np.concatenate([[0], np.cumsum(counts)])


# --- outlines -------------------------------------------------------------------------------------


def fill(outlines: Iterable[Sequence[float]], size: tuple[int, int]) -> RunLengths:
    """The pixels within at least one of the outlines, each [x, y, x, y, …] in pixels, of a photo (H, W).

    Equal to pycocotools' frPyObjects and merge, pixel for pixel. Its rule: an outline is followed in steps of
    a fifth of a pixel; where it passes the centre of a column, inside and outside change places below.

    Raises:
        InputError: an outline with fewer than 3 points or half of one, further outside the photo than it is
            large, not finite, or too long to be followed.
    """
    height, width = size
    RunLengths(size=size, counts=(height * width,))  # refuses a size before anything of it is made
    inside = np.zeros(height * width, bool)
    for outline in outlines:
        crossed = np.bincount(_crossings(_points(outline, size), size), minlength=height * width)
        inside |= np.cumsum(crossed[: height * width]) % 2 == 1
    return encode(inside.reshape(width, height).T)


def _points(outline: Sequence[float], size: tuple[int, int]) -> np.ndarray:
    """[x, y, …] -> integer (P + 1, 2) in steps, closed."""
    if len(outline) < 6 or len(outline) % 2:
        raise InputError(
            f"An outline of {len(outline)} numbers is not x, y of at least 3 points: complete or remove it."
        )
    points = np.asarray(outline, np.float64).reshape(-1, 2)
    sides = np.array(size[::-1])
    # Annotators overshoot the edge a little; written so that NaN is outside.
    far = ~((points >= -sides) & (points <= 2 * sides)).all(-1)
    if far.any():
        x, y = points[far][0]
        raise InputError(
            f"The point ({x:g}, {y:g}) of an outline lies far outside the photo of {size[1]} × {size[0]} "
            "pixels: give x and y in pixels of the photo."
        )
    steps = _truncated(OVERSAMPLING * points + 0.5)
    return np.concatenate([steps, steps[:1]])


def _crossings(steps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Points (P + 1, 2) in steps -> the places, column by column, from which on inside and outside change."""
    height, width = size
    (xs, ys), (xe, ye) = steps[:-1].T, steps[1:].T
    dx, dy = np.abs(xe - xs), np.abs(ye - ys)
    lengths = np.maximum(dx, dy) + 1
    if lengths.sum() > MAX_OUTLINE_STEPS:
        raise InputError(
            f"An outline is {int(lengths.sum()) // OVERSAMPLING:,} pixels long, above the limit of "
            f"{MAX_OUTLINE_STEPS // OVERSAMPLING:,}: simplify it, or store the mask as run lengths."
        )
    # Each edge is followed along its longer axis, from its smaller end.
    flat = dx >= dy
    flip = np.where(flat, xs > xe, ys > ye)
    x0, y0 = np.where(flip, xe, xs), np.where(flip, ye, ys)
    x1, y1 = np.where(flip, xs, xe), np.where(flip, ys, ye)
    slope = np.where(flat, y1 - y0, x1 - x0) / np.maximum(lengths - 1, 1)
    edge = np.repeat(np.arange(len(lengths)), lengths)
    done = np.arange(len(edge)) - (np.cumsum(lengths) - lengths)[edge]
    t = np.where(flip[edge], lengths[edge] - 1 - done, done)
    across = _truncated(np.where(flat, y0, x0)[edge] + slope[edge] * t + 0.5)
    along = np.where(flat, x0, y0)[edge] + t
    u, v = np.where(flat[edge], (along, across), (across, along))
    moved = u[1:] != u[:-1]
    before, after = np.minimum(u[1:], u[:-1])[moved], np.minimum(v[1:], v[:-1])[moved]
    # `before` is the smaller x: the step lies between it and the next.
    column = (before + 0.5) / OVERSAMPLING - 0.5
    centre = (np.floor(column) == column) & (column >= 0) & (column <= width - 1)
    row = np.ceil(np.clip((after[centre] + 0.5) / OVERSAMPLING - 0.5, 0, height))
    return (column[centre] * height + row).astype(np.int64)


def _truncated(values: np.ndarray) -> np.ndarray:
    """To whole numbers towards zero, as C does."""
    return np.trunc(values).astype(np.int64)

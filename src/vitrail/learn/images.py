"""Images for training: decoded once, augmented again each time they are seen.

Shapes: C channels, H W pixels, S the model's image size, n images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import InterpolationMode, v2

from vitrail.errors import InputError
from vitrail.images.decode import decode, frame_of
from vitrail.images.preprocess import RESAMPLING, to_pixels
from vitrail.learn.order import Place, chance
from vitrail.learn.recipe import Augmentation
from vitrail.vocabulary import Preprocess

__all__ = [
    "EvaluationImages",
    "LostImage",
    "Make",
    "Pixels",
    "PixelsOnDemand",
    "TrainingImages",
    "augmentation",
    "evaluated",
    "read_pixels",
    "stored",
]

Make = Callable[[str], np.ndarray]
"""path -> uint8 (H, W, 3)"""
MARGIN = 1.3
"""Images are kept this much larger than the model's, so that random crops can zoom in."""
SAMPLE = 32
"""Number of images decoded to estimate the memory of all."""
MIB = 1024 * 1024
LEVELS = 31
"""torchvision's RandAugment counts its strength from 0 to 30; the papers from 0 to 10."""


class LostImage(InputError):
    """An image that can no longer be read in the middle of a run.

    torch's DataLoader raises the exception of a worker process again in this one, with the worker's whole
    traceback as its text; only the sentence of that is kept.
    """

    def __init__(self, text: str) -> None:
        _, of_a_worker, sentence = text.partition(f"\n{__name__}.{type(self).__name__}: ")
        super().__init__(sentence.strip() if of_a_worker else text)


class Pixels:
    """n decoded images of different sizes in one array, which worker processes share without copying it."""

    def __init__(self, images: Sequence[np.ndarray]) -> None:
        self._shapes = [image.shape for image in images]
        self._ends = np.cumsum([0, *(image.size for image in images)])
        self._values = np.concatenate([image.reshape(-1) for image in images])

    def __len__(self) -> int:
        return len(self._shapes)

    def __getitem__(self, index: int) -> np.ndarray:
        """uint8 (H, W, 3)."""
        return self._values[self._ends[index] : self._ends[index + 1]].reshape(self._shapes[index])


class PixelsOnDemand:
    """Images that are decoded on demand, because together they would not fit."""

    def __init__(self, paths: Sequence[str], make: Make) -> None:
        self._paths, self._make = paths, make

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> np.ndarray:
        """uint8 (H, W, 3).

        Raises:
            LostImage: it can no longer be decoded.
        """
        try:
            return self._make(self._paths[index])
        except InputError as error:
            raise LostImage(str(error)) from None


def read_pixels(
    paths: Sequence[str], make: Make, *, threads: int, memory_mib: float
) -> Pixels | PixelsOnDemand:
    """Decode all images, or none yet if a sample shows that they would take more memory.

    Raises:
        InputError: an image that cannot be decoded, naming it.
    """
    some = paths[:: max(1, len(paths) // SAMPLE)]
    with ThreadPoolExecutor(threads) as pool:
        mean_bytes = sum(pixels.size for pixels in pool.map(make, some)) / len(some)
        # While the parts are joined, they are in memory twice.
        if 2 * mean_bytes * len(paths) > memory_mib * MIB:
            return PixelsOnDemand(paths, make)
        return Pixels(list(pool.map(make, paths)))


def stored(preprocess: Preprocess, change: Augmentation) -> Make:
    """How an image is kept for training: its short side reduced to what random crops can use.

    Without random crops it is what evaluation sees, with evaluation's crop and mode.
    """
    if change.crop_area is None:
        return evaluated(preprocess)
    side = math.ceil(preprocess.image_size * MARGIN)

    def read(path: str) -> np.ndarray:
        image = decode(path, short_side=side)
        box = frame_of(image).box
        width, height = box[2] - box[0], box[3] - box[1]
        if min(width, height) > side:
            image = image.resize(reduced(width, height, side), RESAMPLING[preprocess.interpolation], box=box)
        return np.array(image)

    return read


def reduced(width: float, height: float, side: int) -> tuple[int, int]:
    """(width, height) with a short side of exactly `side` pixels, in the same proportion."""
    longer = max(side, round(side * max(width, height) / min(width, height)))
    return (side, longer) if width <= height else (longer, side)


def evaluated(preprocess: Preprocess) -> Make:
    """The pixels that `predict` would give the model, before normalisation."""
    short = math.floor(preprocess.image_size / preprocess.crop)
    return lambda path: to_pixels(decode(path, short_side=short), preprocess)


def augmentation(change: Augmentation, preprocess: Preprocess) -> v2.Compose:
    """uint8 (3, H, W) -> float32 (3, S, S), normalised: torchvision's transforms, in the recipe's order.

    For images read by `stored`: without `crop_area` they already have S x S pixels. All transforms
    draw only from torch's generator.

    Raises:
        InputError: a shift by more than an image has.
    """
    size = preprocess.image_size
    mode = {"bicubic": InterpolationMode.BICUBIC, "bilinear": InterpolationMode.BILINEAR}[
        preprocess.interpolation
    ]
    steps: list[torch.nn.Module] = []
    if change.crop_area is not None:
        steps.append(
            v2.RandomResizedCrop(
                size, scale=change.crop_area, ratio=change.crop_ratio, interpolation=mode, antialias=True
            )
        )
    elif change.pad:
        if change.pad >= size:  # there are no more pixels to reflect
            raise InputError(
                f"Images of {size} px cannot be shifted by {change.pad}: give --set augmentation.pad=N with "
                f"N below {size}."
            )
        steps.append(v2.RandomCrop(size, padding=change.pad, padding_mode="reflect"))
    if change.flip:
        steps.append(v2.RandomHorizontalFlip(change.flip))
    if change.flip_vertical:
        steps.append(v2.RandomVerticalFlip(change.flip_vertical))
    if change.randaugment is not None:
        count, strength = change.randaugment
        level = round(strength / 10 * (LEVELS - 1))
        steps.append(
            v2.RandAugment(count, level, num_magnitude_bins=LEVELS, interpolation=InterpolationMode.BILINEAR)
        )
    if change.color:
        steps.append(v2.ColorJitter(change.color, change.color, change.color))
    steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(preprocess.mean, preprocess.std)]
    if change.erase:
        steps.append(v2.RandomErasing(change.erase))
    return v2.Compose(steps)


class TrainingImages(Dataset):
    """(epoch, index) -> (float32 (3, S, S), its target), the same for the same epoch and index.

    Args:
        pixels: the decoded images.
        targets: one for each of them.
        transform: from `augmentation`.
        seed: the run's.
    """

    def __init__(
        self, pixels: Pixels | PixelsOnDemand, targets: Sequence[object], transform: v2.Compose, *, seed: int
    ) -> None:
        assert len(pixels) == len(targets)
        self._pixels, self._targets, self._transform, self._seed = pixels, targets, transform, seed

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, place: Place) -> tuple[Tensor, object]:
        epoch, index = place
        with chance(self._seed, "image", epoch, index):
            image_CHW = torch.from_numpy(self._pixels[index]).permute(2, 0, 1)
            return self._transform(image_CHW), self._targets[index]


class EvaluationImages(Dataset):
    """index -> (float32 (3, S, S), its target), prepared as `predict` does."""

    def __init__(
        self, pixels: Pixels | PixelsOnDemand, targets: Sequence[object], preprocess: Preprocess
    ) -> None:
        assert len(pixels) == len(targets)
        self._pixels, self._targets = pixels, targets
        self._mean, self._std = (
            torch.tensor(values)[:, None, None] for values in (preprocess.mean, preprocess.std)
        )

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, index: int) -> tuple[Tensor, object]:
        image_CHW = torch.from_numpy(self._pixels[index]).permute(2, 0, 1).float().div_(255)
        return image_CHW.sub_(self._mean).div_(self._std), self._targets[index]

"""Learning masks: cross-entropy of every pixel, also of an auxiliary head; mean IoU on the validation photos.

A photo and its mask stay together in one array (S, S, 4): what is done to one is done to the other. The photo
is squashed into a square, as it will be whenever the model is used.

Shapes: B images of one part of a batch, S pixels, H W the photo's, K classes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import tv_tensors
from torchvision.transforms import v2

from vitrail import data, models
from vitrail.errors import InputError
from vitrail.images.decode import decode
from vitrail.images.labels import read_labels
from vitrail.images.photos import evenly_spaced
from vitrail.images.preprocess import to_pixels
from vitrail.learn.images import MARGIN, Make, Pixels, PixelsOnDemand, augmentation
from vitrail.learn.launch import images_of
from vitrail.learn.order import Place, chance
from vitrail.learn.recipe import Augmentation, Regularization
from vitrail.learn.setup import FinetuneSetup
from vitrail.learn.start import Start, weights_of
from vitrail.masks import dataset as mask_data
from vitrail.masks.dataset import IGNORED, MaskDataset
from vitrail.masks.iou import IGNORE
from vitrail.models.factory import Unfit
from vitrail.models.upernet import VARIANTS, ClassScores
from vitrail.profiling import cost
from vitrail.vocabulary import Preprocess
from vitrail.weights.find import WeightsFinder
from vitrail.words import counted, some_of

__all__ = ["EvaluatedMasks", "Masks", "SegmenterTraining", "TrainingMasks", "mean_iou", "stored"]

EVALUATED_AT_ONCE = 16
AUXILIARY = 0.4
"""Weight of the auxiliary head's loss beside 1 for the main one (Zhao et al. 2017, "PSPNet", §4)."""
MOST_CLASSES = 255
"""Numbers are kept in a byte, of which 255 is a pixel that is not judged."""
MOST_COUNTED = 2000
"""Training photos in which classes are counted."""


@dataclass
class SegmenterTraining:
    """A model that gives each pixel a class, its photos and its loss.

    Args:
        model: (B, 3, S, S) -> (B, K, S, S), and with `both=True` `ClassScores`.
        images: the training split; its targets are labels (S, S), 255 where nothing is judged.
        validation: the validation split.
        regularization: its label smoothing.
        classes: K.
        guess: entropy of the classes' shares of the training pixels.
    """

    model: nn.Module
    images: TrainingMasks
    validation: EvaluatedMasks
    regularization: Regularization
    classes: int
    channels_last: bool = True
    guess: float | None = None
    figure: str = field(default="mean_iou", init=False)

    def backward(self, fabric: Fabric, model: nn.Module, parts: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Gradients of the mean loss over the judged pixels of all parts and processes."""
        mine = torch.stack([(labels_BSS != IGNORE).sum() for _, labels_BSS in parts]).sum().float()
        judged: Any = fabric.all_reduce(mine, reduce_op="mean")
        judged = judged.clamp(min=1)
        total = torch.zeros((), device=fabric.device)
        for number, (images_B3SS, labels_BSS) in enumerate(parts):
            if self.channels_last:
                images_B3SS = images_B3SS.contiguous(memory_format=torch.channels_last)
            # Processes sum their gradients once, with the last part.
            waits = fabric.world_size > 1 and number < len(parts) - 1
            with fabric.no_backward_sync(model, enabled=True) if waits else nullcontext():  # type: ignore[arg-type]
                loss = self._loss(model(images_B3SS, both=True), labels_BSS) / judged
                fabric.backward(loss)
            total += loss.detach()
        return total

    def _loss(self, scores: ClassScores, labels_BSS: Tensor) -> Tensor:
        """Summed over pixels; a weighted mean of both heads, so that a guess has the loss of one."""
        smoothing = self.regularization.label_smoothing
        main = _cross_entropy(scores.scores_BKHW, labels_BSS, smoothing)
        if scores.auxiliary_BKHW is None:
            return main
        auxiliary = _cross_entropy(scores.auxiliary_BKHW, labels_BSS, smoothing)
        return (main + AUXILIARY * auxiliary) / (1 + AUXILIARY)

    def evaluate(self, fabric: Fabric, model: nn.Module) -> dict[str, float]:
        """Mean IoU and pixel accuracy in %, and the mean cross-entropy of a pixel, over the validation photos
        at the model's size, divided among the processes."""
        lost = torch.zeros((), device=fabric.device, dtype=torch.float64)
        pixels_KK = torch.zeros(self.classes, self.classes, device=fabric.device, dtype=torch.float64)
        for images_B3SS, labels_BSS in self._validation_batches(fabric):
            if self.channels_last:
                images_B3SS = images_B3SS.contiguous(memory_format=torch.channels_last)
            with fabric.autocast():
                scores_BKSS = model(images_B3SS).float()
            lost += _cross_entropy(scores_BKSS, labels_BSS, 0.0)
            judged = labels_BSS != IGNORE
            pairs = labels_BSS[judged] * self.classes + scores_BKSS.argmax(1)[judged]
            pixels_KK += torch.bincount(pairs, minlength=self.classes**2).view_as(pixels_KK)
        sums: Any = fabric.all_reduce(torch.cat([pixels_KK.flatten(), lost[None]]), reduce_op="sum")
        pixels_KK, lost = sums[:-1].view_as(pixels_KK), sums[-1]
        seen = pixels_KK.sum()
        return {
            "mean_iou": 100 * mean_iou(pixels_KK),
            "pixel_accuracy": float(100 * pixels_KK.trace() / seen),
            "validation_loss": float(lost / seen),
        }

    def _validation_batches(self, fabric: Fabric) -> Any:
        mine: Dataset = Subset(
            self.validation, range(fabric.global_rank, len(self.validation), fabric.world_size)
        )
        return fabric.setup_dataloaders(
            DataLoader(mine, batch_size=EVALUATED_AT_ONCE), use_distributed_sampler=False
        )


def mean_iou(pixels_KK: Tensor) -> float:
    """From counts of pixels, row the true class and column the found one; classes that are neither are left
    out, as `masks.iou.ClassIous` does it."""
    both_K = pixels_KK.diagonal()
    either_K = pixels_KK.sum(0) + pixels_KK.sum(1) - both_K
    there_K = either_K > 0
    return float((both_K[there_K] / either_K[there_K]).mean())


def _cross_entropy(scores_BKSS: Tensor, labels_BSS: Tensor, smoothing: float) -> Tensor:
    return F.cross_entropy(
        scores_BKSS.float(), labels_BSS, ignore_index=IGNORE, label_smoothing=smoothing, reduction="sum"
    )


# --- photos with their masks ----------------------------------------------------------------------


def stored(preprocess: Preprocess, truth: Callable[[str], np.ndarray], change: Augmentation | None) -> Make:
    """path -> uint8 (S, S, 4): the squashed photo, and its labels (`IGNORE` where nothing is judged).

    Args:
        preprocess: the model's, at whose size evaluation sees them.
        truth: a photo's labels (H, W), `mask_data.IGNORED` where nothing is judged.
        change: of training images, which are kept larger where random crops can use that.
    """

    def read(path: str) -> np.ndarray:
        labels_HW = truth(path)
        side = preprocess.image_size
        if change is not None and change.crop_area is not None:
            side = min(math.ceil(side * MARGIN), max(labels_HW.shape))
        photo = to_pixels(decode(path, short_side=side), dataclasses.replace(preprocess, image_size=side))
        rows, columns = ((np.arange(side) * 2 + 1) * length // (2 * side) for length in labels_HW.shape)
        labels_SS = labels_HW[rows[:, None], columns]
        labels_SS = np.where(labels_SS == IGNORED, IGNORE, labels_SS).astype(np.uint8)
        return np.concatenate([photo, labels_SS[..., None]], axis=2)

    return read


class TrainingMasks(Dataset):
    """(epoch, index) -> (float32 (3, S, S), int64 labels (S, S)), the same for the same epoch and index.

    Args:
        pixels: uint8 (S, S, 4) each, from `stored`.
        transform: from `images.augmentation`; of its steps only those that move pixels reach the labels.
        seed: the run's.
    """

    def __init__(self, pixels: Pixels | PixelsOnDemand, transform: v2.Compose, *, seed: int) -> None:
        self._pixels, self._transform, self._seed = pixels, transform, seed

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, place: Place) -> tuple[Tensor, Tensor]:
        epoch, index = place
        with chance(self._seed, "image", epoch, index):
            both_4SS = torch.from_numpy(self._pixels[index]).permute(2, 0, 1)
            image, mask = self._transform(tv_tensors.Image(both_4SS[:3]), tv_tensors.Mask(both_4SS[3:]))
            return image.as_subclass(Tensor), mask.as_subclass(Tensor)[0].long()


class EvaluatedMasks(Dataset):
    """index -> (float32 (3, S, S), int64 labels (S, S)), the photo prepared as for use."""

    def __init__(self, pixels: Pixels | PixelsOnDemand, preprocess: Preprocess) -> None:
        self._pixels = pixels
        self._mean, self._std = (
            torch.tensor(values)[:, None, None] for values in (preprocess.mean, preprocess.std)
        )

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        both_4SS = torch.from_numpy(self._pixels[index]).permute(2, 0, 1)
        image_3SS = both_4SS[:3].float().div_(255).sub_(self._mean).div_(self._std)
        return image_3SS, both_4SS[3].long()


# --- the learner ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Masks:
    """Photos with masks, and a model that gives each pixel a class: a `setup.Learner`.

    Raises:
        InputError: options or a recipe that do not go with masks.
    """

    setup: FinetuneSetup

    def __post_init__(self) -> None:
        if self.setup.layout is not None:
            raise InputError("--layout is about folders of classes: leave it out of --task segment.")
        recipe, machine = self.setup.recipe, self.setup.machine
        if recipe.batch_size < 2 * recipe.engine.accumulate * machine.processes * machine.nodes:
            raise InputError(
                f"A batch of {recipe.batch_size} leaves each process one photo at a time, too few for batch "
                "norm: give a larger --batch-size, fewer --processes, or a smaller engine.accumulate."
            )
        a, r = self.setup.recipe.augmentation, self.setup.recipe.regularization
        whole = {
            "augmentation.randaugment": a.randaugment is not None,
            "augmentation.erase": bool(a.erase),
            "regularization.mixup": bool(r.mixup),
            "regularization.cutmix": bool(r.cutmix),
        }
        if asked := [name for name, on in whole.items() if on]:
            off = " ".join(f"--set {name}={'none' if 'rand' in name else 0}" for name in asked)
            raise InputError(
                f"{' and '.join(asked)} of the recipe {self.setup.recipe.name} would leave masks behind: "
                f"give {off}, or --recipe masks."
            )

    def dataset(self) -> MaskDataset:
        """Photos with masks. Raises InputError as `mask_data.load`, and for classes without names."""
        place, labels = self.setup.data, self.setup.labels
        classes = mask_data.named(place) if labels is None else read_labels(labels)
        if classes is None:
            raise InputError(
                f"The masks of {place} number their classes and do not name them: give --labels FILE, with "
                "one name a line from number 0."
            )
        if len(classes) == 1:
            raise InputError(
                f"{labels} names only {classes[0]}: name what is outside on a line before it, so that there "
                "are two classes."
            )
        if len(classes) > MOST_CLASSES:
            raise InputError(f"{len(classes)} classes are more than {MOST_CLASSES}: merge some.")
        return mask_data.load(place, classes)

    def start(self, dataset: data.Dataset, finder: WeightsFinder) -> Start:
        """A UPerNet of the data's classes.

        Raises:
            InputError: another model, weights that are not at hand or do not fit, or a size it cannot take.
        """
        setup = self.setup
        if setup.model not in VARIANTS:
            raise InputError(
                f"{setup.model} gives no class for each pixel: give --model {' or '.join(VARIANTS)}."
            )
        config = VARIANTS[setup.model]
        size = setup.image_size or config.image_size[0]
        path, digest, said, license = weights_of(setup.model, None, setup.weights, finder, setup.from_scratch)
        drop_path = setup.recipe.regularization.drop_path
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(setup.recipe.seed)
            module = models.build(
                setup.model,
                image_size=size,
                num_classes=len(dataset.classes),
                backbone=dataclasses.replace(config.backbone, drop_path=drop_path),
            )
        if path is not None:
            said += _load(module, path)
        return Start(
            module=module.requires_grad_(True).train(),
            architecture=setup.model,
            family="upernet",
            implementation="vitrail",
            preprocess=Preprocess(image_size=size, crop=1.0, crop_mode="squash"),
            weights=digest,
            said=said,
            license=license,
            cost=cost.count(module, size),
        )

    def training(self, start: Start, dataset: data.Dataset, note: Callable[[str], None]) -> SegmenterTraining:
        """The model with its photos.

        Raises:
            InputError: a photo or mask that cannot be read, or masks in which nothing is told apart.
        """
        assert isinstance(dataset, MaskDataset)
        recipe = self.setup.recipe
        by_path = {example.path: example for example in dataset.examples}

        def read(split: data.Split, change: Augmentation | None) -> Pixels | PixelsOnDemand:
            make = stored(start.preprocess, lambda path: dataset.truth(by_path[path]), change)
            return images_of([example.path for example in dataset.of(split)], make, self.setup.machine)

        change = augmentation(recipe.augmentation, start.preprocess)
        seen, held_out = read("train", recipe.augmentation), read("validation", None)
        if isinstance(seen, PixelsOnDemand):
            note("the photos do not all fit in memory and are decoded again in each epoch")
        shares = _shares(seen, dataset.classes, note)
        if not any((held_out[i][..., 3] != IGNORE).any() for i in range(len(held_out))):
            raise InputError(
                f"No validation photo of {dataset.name} has a labelled pixel: label more photos."
            )
        return SegmenterTraining(
            model=start.module,
            images=TrainingMasks(seen, change, seed=recipe.seed),
            validation=EvaluatedMasks(held_out, start.preprocess),
            regularization=recipe.regularization,
            classes=len(dataset.classes),
            channels_last=recipe.engine.channels_last,
            guess=-sum(share * math.log(share) for share in shares if share),
        )


def _load(module: nn.Module, path: Any) -> str:
    """Load a UPerNet's weights but for its classifiers, or those of a Swin into its backbone; which is said.

    Raises:
        InputError: the file is neither.
    """
    try:
        models.load_weights(module, path, replace_head=True)
        return ""
    except Unfit as error:
        whole = error
    try:
        models.load_weights(module.backbone, path, replace_head=True)  # type: ignore[arg-type]
    except Unfit:
        raise whole from None
    return " (backbone only)"


def _shares(
    seen: Pixels | PixelsOnDemand, classes: Sequence[str], note: Callable[[str], None]
) -> list[float]:
    """Share of each class of the training pixels; what is odd about their masks is noted.

    Raises:
        InputError: fewer than two classes are there.
    """
    counts_K, alone, empty = np.zeros(len(classes), np.int64), 0, 0
    some = evenly_spaced(list(range(len(seen))), MOST_COUNTED)
    for index in some:
        here_K = np.bincount(seen[index][..., 3].ravel(), minlength=IGNORE + 1)[: len(classes)]
        alone, empty = alone + (np.count_nonzero(here_K) == 1), empty + (not here_K.any())
        counts_K += here_K
    there = [name for name, count in zip(classes, counts_K, strict=True) if count]
    if len(there) < 2:
        only = f"show nothing but {there[0]}" if there else "have no labelled pixel"
        raise InputError(f"The masks of the training photos {only}: give masks with two classes or more.")
    of = f"of {len(some)} training photos"
    if alone:
        note(f"{alone} {of} show one class only, so that nothing in them is told apart")
    if empty:
        note(f"{empty} {of} have no labelled pixel and teach nothing")
    if missing := [name for name in classes if name not in there]:
        what = counted(len(missing), "class", "classes")
        note(f"no training photo shows {some_of(missing)}: {what} that will hardly be found")
    return [float(count / counts_K.sum()) for count in counts_K]

"""Learning classes: cross-entropy, mixup and cutmix, accuracy on the validation images.

Shapes: B images of one part of a batch, S pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision.transforms import v2

from vitrail import data
from vitrail.errors import InputError
from vitrail.learn.images import (
    EvaluationImages,
    Make,
    Pixels,
    PixelsOnDemand,
    TrainingImages,
    augmentation,
    evaluated,
    stored,
)
from vitrail.learn.launch import images_of
from vitrail.learn.recipe import Regularization
from vitrail.learn.setup import FinetuneSetup
from vitrail.learn.start import Start, starting
from vitrail.weights.find import WeightsFinder

__all__ = ["Classes", "ClassifierTraining"]

EVALUATED_AT_ONCE = 64


@dataclass
class ClassifierTraining:
    """A classifier, its images and its loss.

    Args:
        model: (B, 3, S, S) -> (B, K).
        images: the training split; its targets are class numbers.
        validation: the validation split.
        regularization: label smoothing, mixup, cutmix.
        classes: K.
    """

    model: nn.Module
    images: TrainingImages
    validation: EvaluationImages
    regularization: Regularization
    classes: int
    channels_last: bool = True
    figure: str = field(default="accuracy", init=False)
    guess: float | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        r = self.regularization
        mixers: list[nn.Module] = []
        if r.mixup:
            mixers.append(v2.MixUp(alpha=r.mixup, num_classes=self.classes))
        if r.cutmix:
            mixers.append(v2.CutMix(alpha=r.cutmix, num_classes=self.classes))
        self._mix = v2.RandomChoice(mixers) if mixers else None

    def backward(self, fabric: Fabric, model: nn.Module, parts: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Gradients of the mean loss over the parts, which are equal in size."""
        total = torch.zeros((), device=fabric.device)
        for number, (images_B3SS, labels_B) in enumerate(parts):
            if self._mix is not None:
                images_B3SS, labels_B = self._mix(images_B3SS, labels_B)
            if self.channels_last:
                images_B3SS = images_B3SS.contiguous(memory_format=torch.channels_last)
            # Processes sum their gradients once, with the last part.
            waits = fabric.world_size > 1 and number < len(parts) - 1
            with fabric.no_backward_sync(model, enabled=True) if waits else nullcontext():  # type: ignore[arg-type]
                scores_BK = model(images_B3SS)
                smoothing = self.regularization.label_smoothing
                loss = F.cross_entropy(scores_BK.float(), labels_B, label_smoothing=smoothing) / len(parts)
                fabric.backward(loss)
            total += loss.detach()
        return total

    def evaluate(self, fabric: Fabric, model: nn.Module) -> dict[str, float]:
        """Accuracy in % and mean cross-entropy over the validation images, divided among the processes."""
        right, lost, seen = (torch.zeros((), device=fabric.device) for _ in range(3))
        for images_B3SS, labels_B in self._validation_batches(fabric):
            if self.channels_last:
                images_B3SS = images_B3SS.contiguous(memory_format=torch.channels_last)
            with fabric.autocast():
                scores_BK = model(images_B3SS).float()
            right += (scores_BK.argmax(1) == labels_B).sum()
            lost += F.cross_entropy(scores_BK, labels_B, reduction="sum")
            seen += len(labels_B)
        sums: Any = fabric.all_reduce(torch.stack([right, lost, seen]), reduce_op="sum")
        right, lost, seen = sums
        return {"accuracy": float(100 * right / seen), "validation_loss": float(lost / seen)}

    def _validation_batches(self, fabric: Fabric) -> Any:
        mine: Dataset = Subset(
            self.validation, range(fabric.global_rank, len(self.validation), fabric.world_size)
        )
        return fabric.setup_dataloaders(
            DataLoader(mine, batch_size=EVALUATED_AT_ONCE), use_distributed_sampler=False
        )


@dataclass(frozen=True)
class Classes:
    """Labelled images, and a classifier of them: a `setup.Learner`."""

    setup: FinetuneSetup

    def dataset(self) -> data.Dataset:
        """Images by class. Raises InputError as `data.load`, and for labels, which the data has itself."""
        if self.setup.labels is not None:
            raise InputError("--labels names the classes of masks: leave it out, the data names its classes.")
        return data.load(self.setup.data, layout=self.setup.layout)

    def start(self, dataset: data.Dataset, finder: WeightsFinder) -> Start:
        """The model with a new head. Raises InputError as `starting`."""
        setup = self.setup
        return starting(
            setup.model,
            classes=len(dataset.classes),
            finder=finder,
            image_size=setup.image_size,
            weights=setup.weights,
            from_scratch=setup.from_scratch,
            drop_path=setup.recipe.regularization.drop_path,
            seed=setup.recipe.seed,
        )

    def training(
        self, start: Start, dataset: data.Dataset, note: Callable[[str], None]
    ) -> ClassifierTraining:
        """The classifier with its images. Raises InputError for one that cannot be read."""
        recipe = self.setup.recipe

        def read(split: data.Split, how: Make) -> tuple[Pixels | PixelsOnDemand, list[int]]:
            examples = dataset.of(split)
            pixels = images_of([example.path for example in examples], how, self.setup.machine)
            return pixels, [example.label for example in examples]

        change = augmentation(recipe.augmentation, start.preprocess)
        seen, labels = read("train", stored(start.preprocess, recipe.augmentation))
        held_out, true = read("validation", evaluated(start.preprocess))
        if isinstance(seen, PixelsOnDemand):
            note("the images do not all fit in memory and are decoded again in each epoch")
        return ClassifierTraining(
            model=start.module,
            images=TrainingImages(seen, labels, change, seed=recipe.seed),
            validation=EvaluationImages(held_out, true, start.preprocess),
            regularization=recipe.regularization,
            classes=len(dataset.classes),
            channels_last=recipe.engine.channels_last,
        )

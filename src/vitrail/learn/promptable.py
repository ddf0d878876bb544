"""Learning to segment what is clicked on: simulated prompts, focal and Dice loss, mean IoU with one click.

A photo is encoded once and answers several prompts; the encoder is nearly all of the work. Photos are
letterboxed into the model's square, as they will be whenever the model is used, and an object's mask goes
through the same changes as its photo: both are one array.

Shapes: B images of one part of a batch, S pixels of the square, P prompts of each, G = B · P, n objects of a
photo, L side of the maps on which masks are compared, M masks, Y X a mask as the model gives it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import tv_tensors
from torchvision.transforms import v2

from vitrail import data, models
from vitrail.errors import InputError
from vitrail.images.decode import decode, frame_of
from vitrail.images.letterbox import Letterbox
from vitrail.images.photos import evenly_spaced
from vitrail.learn.images import MARGIN, Make, Pixels, PixelsOnDemand, augmentation
from vitrail.learn.launch import images_of
from vitrail.learn.order import Place, chance
from vitrail.learn.prompts import FOCAL_WEIGHT, FOCUS, INSIDE, correction, drawn, ious, losses
from vitrail.learn.recipe import Augmentation
from vitrail.learn.setup import FinetuneSetup
from vitrail.learn.start import Start, weights_of
from vitrail.masks import objects
from vitrail.masks.objects import ObjectDataset
from vitrail.models.sam import SAM, VARIANTS
from vitrail.models.sam_prompts import FOREGROUND, NOT_A_POINT
from vitrail.profiling import cost
from vitrail.vocabulary import Preprocess
from vitrail.weights.find import WeightsFinder
from vitrail.words import counted

__all__ = ["Clicks", "EvaluatedObjects", "PromptableTraining", "PromptedSAM", "TrainingObjects", "stored"]

PROMPTS = 2
"""P: of each photo and step. They share the encoder, but a photo often has few objects."""
CORRECTED = 0.25
"""Share of the photos that get a second click. The paper gives each ten, for interactive use; here most of
the work goes to the first click."""
COMPARED_SIDE = 256
"""Most pixels of a side on which masks are compared, as in the paper, unless the model gives more."""
LEAST_SEEN = 16
"""Pixels of an object, after the changes, below which it is not asked for."""
EVALUATED_AT_ONCE = 16
MOST_COUNTED = 500
"""Training photos whose objects say how large objects are."""


class PromptedSAM(SAM):
    """A SAM that simulates its own prompts: one call is one step, because processes sum gradients by calls.

    The parts, and so the names of weights, are those of the SAM it is made of.
    """

    @classmethod
    def of(cls, sam: SAM) -> PromptedSAM:
        """With the same parts."""
        return cls(
            sam.config,
            image_encoder=sam.image_encoder,
            prompt_encoder=sam.prompt_encoder,
            mask_decoder=sam.mask_decoder,
        )

    def forward(self, images_B3SS: Tensor, objects_BPSS: Tensor) -> Tensor:  # type: ignore[override]
        """Summed loss of all prompts, a scalar; divided by their number it is a mean.

        Objects without a pixel count as prompts without a loss.
        """
        embeddings_BEhw = self.encode(images_B3SS)
        objects_BPLL = compared(objects_BPSS, self.config.image_size[0], self.config.mask_size[0])
        batch, prompts, side = objects_BPLL.shape[:3]
        objects_GLL = objects_BPLL.flatten(0, 1)
        there_G = objects_GLL.flatten(1).any(1)
        first = drawn(objects_GLL)
        low_GMYX, full_GMLL, promised_GM = self._answer(
            embeddings_BEhw, first.points_GN2, first.labels_GN, None, side
        )
        lost_GM, true_GM = losses(full_GMLL, objects_GLL), ious(full_GMLL.detach(), objects_GLL)
        # Of the masks for an ambiguous prompt the one that fits best learns; which is shown, promises decide.
        fits_G = torch.where(first.clear_G, 0, 1 + lost_GM[:, 1:].argmin(1))
        kept_G = torch.where(first.clear_G, 0, 1 + promised_GM.detach()[:, 1:].argmax(1))
        errors_GM = (promised_GM - true_GM) ** 2
        promise_G = torch.where(first.clear_G, errors_GM[:, 0], errors_GM[:, 1:].mean(1))
        lost_G = lost_GM.gather(1, fits_G[:, None])[:, 0] + promise_G

        # Photos come in random order, so the first are as good as any.
        few = math.ceil(CORRECTED * batch) * prompts
        kept_g1 = kept_G[:few, None, None, None]
        low_gYX = low_GMYX[:few].detach().take_along_dim(kept_g1, 1)[:, 0]
        found_gLL = full_GMLL[:few].detach().take_along_dim(kept_g1, 1)[:, 0] > 0
        click_g12, label_g1 = correction(found_gLL, objects_GLL[:few])
        _, full_gMLL, promised_gM = self._answer(
            embeddings_BEhw[: few // prompts],
            torch.cat((first.points_GN2[:few], click_g12), 1),
            torch.cat((first.labels_GN[:few], label_g1), 1),
            low_gYX,
            side,
        )
        clear_g1LL, promised_g1 = full_gMLL[:, :1], promised_gM[:, :1]
        again_g = losses(clear_g1LL, objects_GLL[:few])[:, 0]
        again_g = again_g + ((promised_g1 - ious(clear_g1LL.detach(), objects_GLL[:few])) ** 2)[:, 0]
        return (lost_G * there_G).sum() + (again_g * there_G[:few]).sum()

    def _answer(
        self,
        embeddings_BEhw: Tensor,
        points_GN2: Tensor,
        labels_GN: Tensor,
        masks_GYX: Tensor | None,
        side: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Scores (G, 1 + M, Y, X), the same on maps of L pixels, and promised IoUs (G, 1 + M), fp32; points
        are on such maps."""
        batch, scale = len(embeddings_BEhw), self.config.image_size[0] / side
        encoder = self.prompt_encoder
        # A point names a pixel, whose centre is half a pixel further.
        points_BPN2 = ((points_GN2 + 0.5) * scale - 0.5).unflatten(0, (batch, -1))
        sparse_BPNE = encoder.points(points_BPN2, labels_GN.unflatten(0, (batch, -1)))
        dense_BPEhw = (
            encoder.no_mask(batch)
            if masks_GYX is None
            else encoder.masks(masks_GYX.unflatten(0, (batch, -1)))
        )
        scores_BPMYX, promised_BPM = self.mask_decoder(
            embeddings_BEhw, encoder.image_positions(), sparse_BPNE, dense_BPEhw
        )
        scores_GMYX = scores_BPMYX.flatten(0, 1).float()
        full_GMLL = F.interpolate(scores_GMYX, (side, side), mode="bilinear", align_corners=False)
        return scores_GMYX, full_GMLL, promised_BPM.flatten(0, 1).float()

    def clicked(self, embeddings_BEhw: Tensor, clicks_BP2: Tensor) -> tuple[Tensor, Tensor]:
        """One click each: scores (B, P, M, S, S) of the masks for an ambiguous prompt, and promised IoUs."""
        batch, prompts = clicks_BP2.shape[:2]
        points_GN2 = torch.stack((clicks_BP2, torch.zeros_like(clicks_BP2)), 2).flatten(0, 1)
        labels_N = torch.tensor([FOREGROUND, NOT_A_POINT], device=clicks_BP2.device)
        labels_GN = labels_N.expand(batch * prompts, -1)
        size = self.config.image_size[0]
        _, full_GMSS, promised_GM = self._answer(embeddings_BEhw, points_GN2, labels_GN, None, size)
        shape = (batch, prompts)
        return full_GMSS[:, 1:].unflatten(0, shape), promised_GM[:, 1:].unflatten(0, shape)


def rounds_of(objects_BPSS: Tensor) -> Tensor:
    """How many prompts `PromptedSAM.forward` adds up the loss of, a scalar."""
    there_BP = objects_BPSS.flatten(2).any(2)
    return there_BP.sum() + there_BP[: math.ceil(CORRECTED * len(there_BP))].sum()


def compared(objects_BPSS: Tensor, size: int, mask_side: int) -> Tensor:
    """Booleans on the map where masks are compared: at most as large as the paper's, or what the model gives.

    A pixel of a smaller map is inside where half of it is.
    """
    side = min(size, max(COMPARED_SIDE, mask_side))
    if side == size:
        return objects_BPSS
    return F.interpolate(objects_BPSS.float(), (side, side), mode="area") >= 0.5


@dataclass
class PromptableTraining:
    """A model that segments what a prompt means, its photos and its loss.

    Args:
        model: the SAM, as it simulates its prompts.
        images: the training split; its targets are booleans (P, S, S).
        validation: the validation split.
        guess: loss of a model that only knows how large objects are.
    """

    model: PromptedSAM
    images: TrainingObjects
    validation: EvaluatedObjects
    channels_last: bool = True
    guess: float | None = None
    figure: str = field(default="mean_iou", init=False)

    def backward(self, fabric: Fabric, model: nn.Module, parts: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Gradients of the mean loss over the prompts of all parts and processes."""
        mine = torch.stack([rounds_of(objects_BPSS) for _, objects_BPSS in parts]).sum().float()
        asked: Any = fabric.all_reduce(mine, reduce_op="mean")
        asked = asked.clamp(min=1)
        total = torch.zeros((), device=fabric.device)
        for number, (images_B3SS, objects_BPSS) in enumerate(parts):
            if self.channels_last:
                images_B3SS = images_B3SS.contiguous(memory_format=torch.channels_last)
            # Processes sum their gradients once, with the last part.
            waits = fabric.world_size > 1 and number < len(parts) - 1
            with fabric.no_backward_sync(model, enabled=True) if waits else nullcontext():  # type: ignore[arg-type]
                loss = model(images_B3SS, objects_BPSS) / asked
                fabric.backward(loss)
            total += loss.detach()
        return total

    def evaluate(self, fabric: Fabric, model: nn.Module) -> dict[str, float]:
        """Over the validation photos at the model's size, divided among the processes, with one click into
        the innermost pixel of each object: mean IoU in % of the mask that promises most, the same of the
        mask that is best, and the mean loss of that one."""
        assert isinstance(model, PromptedSAM)
        sums = torch.zeros(4, device=fabric.device, dtype=torch.float64)
        for images_B3SS, clicks_BP2, objects_BPSS in self._validation_batches(fabric):
            if self.channels_last:
                images_B3SS = images_B3SS.contiguous(memory_format=torch.channels_last)
            with fabric.autocast():
                scores_BPMSS, promised_BPM = model.clicked(model.encode(images_B3SS), clicks_BP2)
            there_G = objects_BPSS.flatten(0, 1).flatten(1).any(1)
            objects_gSS = objects_BPSS.flatten(0, 1)[there_G]
            scores_gMSS = scores_BPMSS.flatten(0, 1)[there_G]
            shown_g = promised_BPM.flatten(0, 1)[there_G].argmax(1)
            true_gM, lost_gM = ious(scores_gMSS, objects_gSS), losses(scores_gMSS, objects_gSS)
            shown = true_gM.gather(1, shown_g[:, None]).sum()
            sums += torch.stack((shown, true_gM.amax(1).sum(), lost_gM.amin(1).sum(), there_G.sum()))
        shared: Any = fabric.all_reduce(sums, reduce_op="sum")
        shown, best, lost, asked = shared.tolist()
        return {
            "mean_iou": 100 * shown / asked,
            "best_mask_iou": 100 * best / asked,
            "validation_loss": lost / asked,
        }

    def _validation_batches(self, fabric: Fabric) -> Any:
        mine: Dataset = Subset(
            self.validation, range(fabric.global_rank, len(self.validation), fabric.world_size)
        )
        loader = DataLoader(mine, batch_size=EVALUATED_AT_ONCE, collate_fn=_side_by_side)
        return fabric.setup_dataloaders(loader, use_distributed_sampler=False)


def _side_by_side(
    examples: Sequence[tuple[Tensor, Tensor, Tensor]],
) -> tuple[Tensor, Tensor, Tensor]:
    """Photos with different numbers of objects in one batch; what is missing is an object without a pixel."""
    images, clicks, masks = (list(each) for each in zip(*examples, strict=True))
    pad = torch.nn.utils.rnn.pad_sequence
    return torch.stack(images), pad(clicks, batch_first=True), pad(masks, batch_first=True)


# --- photos with their objects --------------------------------------------------------------------


def stored(
    preprocess: Preprocess, masks: Callable[[str], Sequence[np.ndarray]], change: Augmentation | None
) -> Make:
    """path -> uint8 (S, S, 3 + ⌈n / 8⌉): the letterboxed photo, and a bit for each of its objects.

    Args:
        preprocess: the model's, at whose size evaluation sees them.
        masks: booleans (H, W) of a photo's objects.
        change: of training images, which are kept larger where random crops can use that.
    """
    filling = tuple(round(255 * mean) for mean in preprocess.mean)

    def read(path: str) -> np.ndarray:
        photo = decode(path, short_side=preprocess.image_size)
        (width, height), box = frame_of(photo)
        side = preprocess.image_size
        if change is not None and change.crop_area is not None:
            side = min(math.ceil(side * MARGIN), max(side, width, height))
        frame = Letterbox(side=side, photo=(height, width))
        h, w = frame.resized
        square = Image.new("RGB", (side, side), filling)
        square.paste(photo.resize((w, h), Image.Resampling.BILINEAR, box=box), (0, 0))
        bits_nSS = [_resized(mask, (h, w), side) for mask in masks(path)]
        return np.concatenate([np.asarray(square), np.packbits(bits_nSS, 0, "little").transpose(1, 2, 0)], 2)

    return read


def _resized(mask: np.ndarray, size: tuple[int, int], side: int) -> np.ndarray:
    """The pixels at the middles of those of the smaller photo, in the upper left of a square."""
    square = np.zeros((side, side), bool)
    rows, columns = (
        (np.arange(new) * 2 + 1) * old // (2 * new) for new, old in zip(size, mask.shape, strict=True)
    )
    square[: size[0], : size[1]] = mask[rows[:, None], columns]
    return square


def unpacked(both_SSC: np.ndarray) -> tuple[Tensor, Tensor]:
    """uint8 photo (3, S, S) and booleans of all its objects (n, S, S), those without a pixel left out."""
    both_CSS = torch.from_numpy(both_SSC).permute(2, 0, 1)
    bits_8 = torch.arange(8, dtype=torch.uint8)[:, None, None]
    masks_nSS = ((both_CSS[3:, None] >> bits_8) & 1).flatten(0, 1).bool()
    return both_CSS[:3], masks_nSS[masks_nSS.flatten(1).any(1)]


class TrainingObjects(Dataset):
    """(epoch, index) -> (float32 (3, S, S), booleans (P, S, S)), the same for the same epoch and index.

    Of the objects that the changes leave in the picture P are drawn; if there are fewer, some several times;
    if there is none, they are without a pixel.

    Args:
        pixels: uint8 arrays from `stored`.
        transform: from `images.augmentation`; of its steps only those that move pixels reach the masks.
        seed: the run's.
    """

    def __init__(self, pixels: Pixels | PixelsOnDemand, transform: v2.Compose, *, seed: int) -> None:
        self._pixels, self._transform, self._seed = pixels, transform, seed

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, place: Place) -> tuple[Tensor, Tensor]:
        epoch, index = place
        with chance(self._seed, "image", epoch, index):
            photo_3SS, masks_nSS = unpacked(self._pixels[index])
            image, changed = self._transform(tv_tensors.Image(photo_3SS), tv_tensors.Mask(masks_nSS))
            masks_nSS = changed.as_subclass(Tensor)
            seen_nSS = masks_nSS[masks_nSS.flatten(1).sum(1) >= LEAST_SEEN]
            if not len(seen_nSS):
                return image.as_subclass(Tensor), masks_nSS.new_zeros(PROMPTS, *masks_nSS.shape[1:])
            order_n = torch.randperm(len(seen_nSS)).repeat(math.ceil(PROMPTS / len(seen_nSS)))
            return image.as_subclass(Tensor), seen_nSS[order_n[:PROMPTS]]


class EvaluatedObjects(Dataset):
    """index -> (float32 (3, S, S), a click on each object (n, 2), booleans (n, S, S)), as when it is used."""

    def __init__(self, pixels: Pixels | PixelsOnDemand, preprocess: Preprocess) -> None:
        self._pixels = pixels
        self._mean, self._std = (
            torch.tensor(values)[:, None, None] for values in (preprocess.mean, preprocess.std)
        )

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        photo_3SS, masks_nSS = unpacked(self._pixels[index])
        clicks = [objects.interior(mask.numpy()) for mask in masks_nSS]
        image_3SS = photo_3SS.float().div_(255).sub_(self._mean).div_(self._std)
        return image_3SS, torch.tensor(clicks, dtype=torch.float32).reshape(-1, 2), masks_nSS


# --- the learner ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Clicks:
    """Photos with objects, and a model that is asked for one at a time: a `setup.Learner`.

    Raises:
        InputError: options or a recipe that do not go with prompts.
    """

    setup: FinetuneSetup

    def __post_init__(self) -> None:
        setup, recipe = self.setup, self.setup.recipe
        for option, given in (("layout", setup.layout), ("labels", setup.labels)):
            if given is not None:
                raise InputError(f"--{option} is about classes: leave it out of --task promptable.")
        if recipe.engine.compile:
            raise InputError("Training with prompts is not compiled: give --set engine.compile=false.")
        a, r = recipe.augmentation, recipe.regularization
        off = {
            "augmentation.randaugment": "none" if a.randaugment is not None else "",
            "augmentation.erase": "0" if a.erase else "",
            "regularization.mixup": "0" if r.mixup else "",
            "regularization.cutmix": "0" if r.cutmix else "",
            "regularization.label_smoothing": "0" if r.label_smoothing else "",
        }
        if asked := {name: value for name, value in off.items() if value}:
            sets = " ".join(f"--set {name}={value}" for name, value in asked.items())
            raise InputError(
                f"{' and '.join(asked)} of the recipe {recipe.name} mean nothing with prompts: give {sets}, "
                "or --recipe promptable."
            )

    def dataset(self) -> ObjectDataset:
        """Photos with objects. Raises InputError as `objects.load`."""
        return objects.load(self.setup.data)

    def start(self, dataset: data.Dataset, finder: WeightsFinder) -> Start:
        """A SAM.

        Raises:
            InputError: another model, weights that are not at hand or do not fit, or a size it cannot take.
        """
        setup = self.setup
        if setup.model not in VARIANTS:
            raise InputError(f"{setup.model} takes no prompts: give --model {' or '.join(VARIANTS)}.")
        size = setup.image_size or VARIANTS[setup.model].image_size[0]
        path, digest, said, license = weights_of(setup.model, None, setup.weights, finder, setup.from_scratch)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(setup.recipe.seed)
            module = models.build(
                setup.model, image_size=size, drop_path=setup.recipe.regularization.drop_path
            )
        assert isinstance(module, SAM)
        if path is not None:
            models.load_weights(module, path)
        return Start(
            module=PromptedSAM.of(module).requires_grad_(True).train(),
            architecture=setup.model,
            family="sam",
            implementation="vitrail",
            preprocess=Preprocess(image_size=size, crop=1.0, crop_mode="letterbox", interpolation="bilinear"),
            weights=digest,
            said=said,
            license=license,
            cost=cost.count(OneClick(module), size),
        )

    def training(
        self, start: Start, dataset: data.Dataset, note: Callable[[str], None]
    ) -> PromptableTraining:
        """The model with its photos.

        Raises:
            InputError: a photo or mask that cannot be read, or objects too small to be seen at this size.
        """
        assert isinstance(dataset, ObjectDataset)
        assert isinstance(start.module, PromptedSAM)
        recipe = self.setup.recipe
        by_path = {example.path: example for example in dataset.examples}

        def masks(path: str) -> list[np.ndarray]:
            return [runs.mask() for runs in dataset.truth(by_path[path])]

        def read(split: data.Split, change: Augmentation | None) -> Pixels | PixelsOnDemand:
            make = stored(start.preprocess, masks, change)
            return images_of([example.path for example in dataset.of(split)], make, self.setup.machine)

        change = augmentation(recipe.augmentation, start.preprocess)
        seen, held_out = read("train", recipe.augmentation), read("validation", None)
        if isinstance(seen, PixelsOnDemand):
            note("the photos do not all fit in memory and are decoded again in each epoch")
        size = start.preprocess.image_size
        guess = _guess(seen, size, note)
        if not any(len(unpacked(held_out[i])[1]) for i in range(len(held_out))):
            raise InputError(
                f"No object of the validation photos of {dataset.name} is seen at {size} px: give a larger "
                "--image-size, or photos with larger objects."
            )
        return PromptableTraining(
            model=start.module,
            images=TrainingObjects(seen, change, seed=recipe.seed),
            validation=EvaluatedObjects(held_out, start.preprocess),
            channels_last=recipe.engine.channels_last,
            guess=guess,
        )


class OneClick(nn.Module):
    """Images (B, 3, S, S) -> masks for a click into the middle of each: what a first click costs."""

    def __init__(self, sam: SAM) -> None:
        super().__init__()
        self.sam = sam

    def forward(self, images_B3SS: Tensor) -> Tensor:
        embeddings_BEhw = self.sam.encode(images_B3SS)
        encoder, size = self.sam.prompt_encoder, self.sam.config.image_size[0]
        points_B1N2 = images_B3SS.new_full((len(images_B3SS), 1, 2, 2), size / 2)
        labels_N = torch.tensor([FOREGROUND, NOT_A_POINT], device=images_B3SS.device)
        sparse_B1NE = encoder.points(points_B1N2, labels_N.expand(len(images_B3SS), 1, -1))
        masks: Tensor
        masks, _ = self.sam.mask_decoder(
            embeddings_BEhw, encoder.image_positions(), sparse_B1NE, encoder.no_mask(len(images_B3SS))
        )
        return masks


def _guess(seen: Pixels | PixelsOnDemand, size: int, note: Callable[[str], None]) -> float:
    """Mean loss of giving every pixel the share that objects have of a picture.

    Raises:
        InputError: no object can be seen.
    """
    some = evenly_spaced(list(range(len(seen))), MOST_COUNTED)
    shares, lost = [], 0
    for index in some:
        _, masks_nSS = unpacked(seen[index])
        shares += masks_nSS.flatten(1).float().mean(1).tolist()
        lost += not len(masks_nSS)
    if not shares:
        raise InputError(
            f"No object of the training photos is seen at {size} px: give a larger --image-size, or photos "
            "with larger objects."
        )
    if lost:
        photos = counted(lost, "training photo")
        note(f"{photos} of {len(some)} looked at: no object is seen at {size} px, so they teach nothing")
    return guess_of(np.array(shares))


def guess_of(shares: np.ndarray) -> float:
    """Mean loss (20 · focal + Dice of large maps) where every pixel of objects with these shares of the
    picture is given their mean."""
    p = float(np.clip(shares.mean(), 1e-6, 1 - 1e-6))
    focal = -shares * INSIDE * (1 - p) ** FOCUS * math.log(p)
    focal = focal - (1 - shares) * (1 - INSIDE) * p**FOCUS * math.log(1 - p)
    dice = 1 - 2 * p * shares / (p + shares)
    return float((FOCAL_WEIGHT * focal + dice).mean())

"""Training from pairs of images and texts: CLIP's loss or SigLIP's over the whole batch; recall on others.

A contrastive loss needs all embeddings of a batch at once, but not all activations. A batch in several parts
uses gradient caching (Gao et al. 2021, section 3.2):

    1. embed each part, keeping only the embeddings and the generator's state
    2. the loss of the whole batch gives the gradient of each embedding
    3. embed each part again, with the same randomness, and send those gradients back through it

which is exact, and needs only one part's memory at the price of a second forward pass.

Which texts are right. Each epoch shows an image with one of its texts. Two images of a batch may share a
text, or have each other's texts: such a pair is neither rewarded nor punished (`losses.Right`).

Shapes: B pairs of one part (of one process), I images, T texts, C channels, S pixels, L tokens, E width,
R the largest number of texts of an image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch import distributed as dist
from torch.utils.data import DataLoader, Dataset, Subset

from vitrail.data.pairs import Pair
from vitrail.errors import InputError
from vitrail.learn import retrieval
from vitrail.learn.images import EvaluationImages, TrainingImages
from vitrail.learn.losses import Right, clip_loss, siglip_loss
from vitrail.learn.order import Place, chance, seed_of
from vitrail.models.clip import CLIP, Embeddings
from vitrail.models.clip_config import TextConfig
from vitrail.text.tokenizer import Tokenizer

__all__ = ["Contrastive", "Loss", "Texts", "TrainingPairs", "read_texts"]

Loss = Literal["clip", "sigmoid"]
Part = tuple[Tensor, Tensor, Tensor, Tensor]
"""images (B, 3, S, S), tokens (B, L), the texts' numbers (B,), all texts of each image (B, R)."""

EVALUATED_AT_ONCE = 64
SLACK = 1e-6
"""Just below the largest scale, where the clamp of `CLIP.scale` still lets gradients through."""


@dataclass(frozen=True)
class Texts:
    """The distinct texts of some images."""

    tokens_TL: Tensor
    right: tuple[tuple[int, ...], ...]
    """For each image, the numbers of its texts."""

    @property
    def padded_IR(self) -> Tensor:
        """`right` as a table, padded with −1."""
        most = max(map(len, self.right))
        return torch.tensor([[*numbers, *[-1] * (most - len(numbers))] for numbers in self.right])


def read_texts(pairs: Sequence[Pair], tokenizer: Tokenizer, config: TextConfig) -> Texts:
    """The texts of images as token rows; texts that tokenize identically are one.

    Raises:
        InputError: a text that is too long for the model, or that gives no tokens.
    """
    distinct = list(dict.fromkeys(text for pair in pairs for text in pair.texts))
    try:
        nothing, *rows = tokenizer(["", *distinct]).tolist()
    except InputError as error:
        said = str(error).replace(", or pass truncate=True", "")
        raise InputError(f"{said.rstrip('.')} (in the manifest's column text).") from None
    numbers: dict[tuple[int, ...], int] = {}
    number_of = {}
    for text, row in zip(distinct, rows, strict=True):
        if row == nothing:
            raise InputError(
                f"This model reads nothing in the text {text!r}: write it in letters, or remove it."
            )
        number_of[text] = numbers.setdefault(tuple(row), len(numbers))
    tokens_TL = torch.tensor(list(numbers))
    if config.any_length:  # anything after the longest text is never read
        tokens_TL = tokens_TL[:, : int(tokens_TL.argmax(-1).max()) + 1]
    right = (tuple(dict.fromkeys(number_of[text] for text in pair.texts)) for pair in pairs)
    return Texts(tokens_TL, tuple(right))


class TrainingPairs(Dataset):
    """(epoch, index) -> image (3, S, S), tokens (L,), the text's number, all texts of the image (R,).

    Args:
        images: the training images; their targets are not used.
        texts: of the same images.
        seed: the run's; with the epoch and the image it decides which of several texts is shown.
    """

    def __init__(self, images: TrainingImages, texts: Texts, *, seed: int) -> None:
        assert len(images) == len(texts.right)
        self._images, self.texts, self._seed, self._padded_IR = images, texts, seed, texts.padded_IR

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, place: Place) -> tuple[Tensor, Tensor, int, Tensor]:
        epoch, index = place
        image_CSS, _ = self._images[place]
        numbers = self.texts.right[index]
        with chance(self._seed, "text", epoch, index):
            number = numbers[int(torch.randint(len(numbers), ()))]
        return image_CSS, self.texts.tokens_TL[number], number, self._padded_IR[index]


@dataclass(kw_only=True)
class Contrastive:
    """A CLIP, its pairs and its loss; a `train.TrainingTask`.

    Args:
        model: a CLIP, with a bias for the sigmoid loss, without for CLIP's.
        images: the training pairs.
        validation, texts: the validation images, their texts.
        loss: `clip` or `sigmoid`.
        batch_size: number of pairs over which the validation loss is computed at once, as in training.
        prompts_KPL, label_I: tokens of each category's prompts, and the category of each validation image
            (−1: none); None: no zero-shot accuracy.
    """

    model: nn.Module
    images: TrainingPairs
    validation: EvaluationImages
    texts: Texts
    loss: Loss
    batch_size: int
    prompts_KPL: Tensor | None = None
    label_I: Tensor | None = None
    channels_last: bool = True
    figure: str = field(default="recall_1", init=False)

    def __post_init__(self) -> None:
        assert isinstance(self.model, CLIP)
        self._clip = self.model

    def backward(self, fabric: Fabric, model: nn.Module, parts: Sequence[Part]) -> Tensor:
        """Gradients of the loss of the whole batch, over all parts and processes.

        Returns:
            Scalar, this process's share: the loss is the mean of the shares (`learn.losses`).
        """
        self._hold_scale()
        right = Right(torch.cat([part[2] for part in parts]), torch.cat([part[3] for part in parts]))
        if len(parts) == 1:
            loss = self._loss_of(model(self._laid(parts[0][0]), parts[0][1]), right, fabric.world_size)
            fabric.backward(loss)
            return loss.detach()
        states, kept = [], []
        with torch.no_grad():
            for images_B3SS, tokens_BL, *_ in parts:
                states.append(_Randomness(fabric.device))
                kept.append(model(self._laid(images_B3SS), tokens_BL))
        loss, gradients = self._gradients_of_embeddings(kept, right, fabric.world_size)
        for number, (images_B3SS, tokens_BL, *_) in enumerate(parts):
            last = number == len(parts) - 1
            # Processes sum their gradients once, with the last part.
            alone: Any = fabric.no_backward_sync(model, enabled=True) if not last else nullcontext()  # type: ignore[arg-type]
            with alone, states[number].again():
                fabric.backward(
                    _sent_back(model(self._laid(images_B3SS), tokens_BL), gradients, number, last)
                )
        return loss

    def _gradients_of_embeddings(
        self, kept: Sequence[Embeddings], right: Right, processes: int
    ) -> tuple[Tensor, tuple[list[Tensor], list[Tensor], list[Tensor]]]:
        """The loss, and its gradient for images and texts of each part, and for scale and bias."""
        first, sizes = kept[0], [len(part.image_BE) for part in kept]
        whole = Embeddings(
            torch.cat([part.image_BE for part in kept]).requires_grad_(),
            torch.cat([part.text_TE for part in kept]).requires_grad_(),
            first.scale.detach().clone().requires_grad_(),
            None if first.bias is None else first.bias.detach().clone().requires_grad_(),
        )
        asked = [tensor for tensor in whole if tensor is not None]
        loss = self._loss_of(whole, right, processes)
        image_NE, text_NE, *numbers = torch.autograd.grad(loss, asked)
        return loss.detach(), (list(image_NE.split(sizes)), list(text_NE.split(sizes)), numbers)

    def _loss_of(self, embeddings: Embeddings, right: Right, processes: int) -> Tensor:
        group = dist.group.WORLD if processes > 1 else None
        image_BE, text_BE, scale, bias = embeddings
        if self.loss == "clip":
            return clip_loss(image_BE, text_BE, scale, group=group, right=right)
        assert bias is not None
        return siglip_loss(image_BE, text_BE, scale, bias, group=group, right=right)

    def _hold_scale(self) -> None:
        """Clamp the scale from 1 to its largest, as CLIP's training does after each step (section 2.5)."""
        limit = self._clip.config.max_scale
        if limit is not None:
            with torch.no_grad():
                self._clip.logit_scale.clamp_(0.0, math.log(limit) - SLACK)

    def _laid(self, images_B3SS: Tensor) -> Tensor:
        return (
            images_B3SS.contiguous(memory_format=torch.channels_last) if self.channels_last else images_B3SS
        )

    # --- evaluation -------------------------------------------------------------------------------

    def evaluate(self, fabric: Fabric, model: nn.Module) -> dict[str, float]:
        """On the validation pairs: recall both ways and zero-shot accuracy of categories in %, mean loss."""
        assert isinstance(model, CLIP)
        images: Any = self.validation
        image_IE = self._embedded(fabric, images, lambda batch: model.encode_image(self._laid(batch[0])))
        text_TE = self._embedded(fabric, _rows(self.texts.tokens_TL), model.encode_text)
        figures = retrieval.recalls(image_IE, text_TE, self.texts.right)
        figures["validation_loss"] = self._validation_loss(model, image_IE, text_TE)
        if self.prompts_KPL is not None and self.label_I is not None:
            prompts_NE = self._embedded(fabric, _rows(self.prompts_KPL.flatten(0, 1)), model.encode_text)
            prompts_KPE = prompts_NE.unflatten(0, self.prompts_KPL.shape[:2])
            some_I, label_I = self.label_I >= 0, self.label_I.to(fabric.device)
            figures["zero_shot_accuracy"] = retrieval.accuracy(image_IE[some_I], prompts_KPE, label_I[some_I])
        return figures

    def _embedded(self, fabric: Fabric, rows: Any, embed: Callable[[Any], Tensor]) -> Tensor:
        """Embeddings of all rows, each computed by one process and shared with all; fp32."""
        count, width = len(rows), self._clip.config.embed_width
        mine = range(fabric.global_rank, count, fabric.world_size)
        loader = DataLoader(Subset(rows, mine), batch_size=EVALUATED_AT_ONCE)
        whole_NE, start = torch.zeros(count, width, device=fabric.device), 0
        for batch in fabric.setup_dataloaders(loader, use_distributed_sampler=False):
            with fabric.autocast():
                found_BE = embed(batch).float()
            whole_NE[mine[start : start + len(found_BE)]] = found_BE
            start += len(found_BE)
        return cast(Tensor, fabric.all_reduce(whole_NE, reduce_op="sum"))

    def _validation_loss(self, model: CLIP, image_IE: Tensor, text_TE: Tensor) -> float:
        """Mean over batches as large as in training; an incomplete last one is left out."""
        images = len(image_IE)
        size = min(self.batch_size, images)
        order = torch.randperm(images, generator=torch.Generator().manual_seed(seed_of("validation")))
        first_I, padded_IR = torch.tensor([numbers[0] for numbers in self.texts.right]), self.texts.padded_IR
        losses = []
        for part in order[: images - images % size].split(size):
            right = Right(*(numbers[part].to(image_IE.device) for numbers in (first_I, padded_IR)))
            embeddings = Embeddings(image_IE[part], text_TE[first_I[part]], model.scale(), model.logit_bias)
            losses.append(self._loss_of(embeddings, right, 1))
        return float(torch.stack(losses).mean())


def _rows(tokens_TL: Tensor) -> Any:
    return list(tokens_TL)


def _sent_back(
    embeddings: Embeddings,
    gradients: tuple[list[Tensor], list[Tensor], list[Tensor]],
    number: int,
    last: bool,
) -> Tensor:
    """A scalar with the gradient of the whole loss; scale and bias are used once, with the last part."""
    images, texts, numbers = gradients
    total = (embeddings.image_BE * images[number]).sum() + (embeddings.text_TE * texts[number]).sum()
    if last:
        used = (tensor for tensor in (embeddings.scale, embeddings.bias) if tensor is not None)
        total = total + sum(tensor * gradient for tensor, gradient in zip(used, numbers, strict=True))
    return total


class _Randomness:
    """The generators' current state, to draw the same numbers again."""

    def __init__(self, device: torch.device) -> None:
        self._cpu, self._device = torch.get_rng_state(), device
        self._gpu = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    @contextmanager
    def again(self) -> Iterator[None]:
        with torch.random.fork_rng(devices=[] if self._gpu is None else [self._device]):
            torch.set_rng_state(self._cpu)
            if self._gpu is not None:
                torch.cuda.set_rng_state(self._gpu, self._device)
            yield

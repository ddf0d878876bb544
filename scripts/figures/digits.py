"""Something small to train, because no trained ViT or CLIP is at hand: scikit-learn's handwritten digits.

1797 real scans of 8 × 8 pixels; 1400 are trained on, 397 kept for what the figures show. Both trainings take
half a minute and are seeded; other versions of torch may give other last digits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

from vitrail.models.clip import CLIP, CLIPConfig, similarity
from vitrail.models.clip_config import TextConfig
from vitrail.models.vit import ViT, ViTConfig
from vitrail.text.tokenizer import BPETokenizer

__all__ = ["WORDS", "Digits", "digits", "trained_clip", "trained_vit"]

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
TRAINED = 1400


class Digits(NamedTuple):
    """Images (B, 1, h, w) in [-1, 1] and their classes (B,)."""

    images_B1hw: Tensor
    classes_B: Tensor


def digits(side: int) -> tuple[Digits, Digits]:
    """(trained on, kept), of `side` × `side` pixels, in a fixed random order."""
    data = load_digits()
    images_B1hw = torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1
    if side != 8:
        images_B1hw = F.interpolate(images_B1hw, size=(side, side), mode="bicubic")
    classes_B = torch.tensor(data.target)
    order_B = torch.randperm(len(classes_B), generator=torch.Generator().manual_seed(0))
    parts = order_B[:TRAINED], order_B[TRAINED:]
    first, second = (Digits(images_B1hw[part], classes_B[part]) for part in parts)
    return first, second


@contextmanager
def one_thread() -> Iterator[None]:
    """These models are too small for two: on a busy machine the second one only waits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@one_thread()
def trained_vit(*, epochs: int = 30, batch: int = 100) -> tuple[ViT, float]:
    """A ViT of 3 blocks on 24 × 24 pixels, 36 patches of 4 × 4; and the kept digits' share it gets right."""
    torch.manual_seed(0)
    known, kept = digits(24)
    model = ViT(
        ViTConfig(
            width=48, depth=3, heads=3, patch_size=4, image_size=(24, 24), channels=1, num_classes=10
        )
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05)
    steps = epochs * (TRAINED // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.1)
    for _ in range(epochs):
        for part_B in torch.randperm(TRAINED).split(batch):
            loss = F.cross_entropy(model(known.images_B1hw[part_B]), known.classes_B[part_B])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()
    with torch.inference_mode():
        right = model(kept.images_B1hw).argmax(1) == kept.classes_B
    return model, float(right.float().mean())


class Pairs(NamedTuple):
    """What the small CLIP compares."""

    texts: list[str]
    tokens_TL: Tensor


def captions() -> Pairs:
    """One text per digit; token numbers are made consecutive, so that a table of a few rows will do."""
    texts = [f"a photo of the digit {word}" for word in WORDS]
    tokens_TL = torch.from_numpy(BPETokenizer(context_length=12)(texts))
    # Consecutive in the same order: the end token keeps the highest number, which is how it is found.
    return Pairs(texts, torch.unique(tokens_TL, return_inverse=True)[1])


def new_clip(vocabulary: int) -> CLIP:
    """Two small towers with random values."""
    image = ViTConfig(
        width=48, depth=2, heads=3, patch_size=2, image_size=(8, 8), channels=1, num_classes=32,
        head_bias=False, pre_norm=True,
    )  # fmt: skip
    text = TextConfig(width=48, depth=2, heads=3, embed_width=32, context_length=12, vocab_size=vocabulary)
    return CLIP(CLIPConfig(image=image, text=text))


@one_thread()
def trained_clip(*, steps: int = 400, groups: int = 12) -> tuple[CLIP, CLIP, Pairs]:
    """The same small CLIP before and after contrastive training on (digit, text) pairs, and the texts."""
    torch.manual_seed(0)
    known, _ = digits(8)
    pairs = captions()
    before = new_clip(int(pairs.tokens_TL.max()) + 1)
    model = new_clip(int(pairs.tokens_TL.max()) + 1)
    model.load_state_dict(before.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.1)
    of_class = [torch.nonzero(known.classes_B == k).flatten() for k in range(10)]
    right_GT = torch.arange(10).expand(groups, -1)
    for _ in range(steps):
        # A batch of CLIP holds different texts: groups of one image per digit, each a batch of its own.
        chosen = [part[torch.randint(len(part), ())] for _ in range(groups) for part in of_class]
        scores_GTT = similarity(*model(known.images_B1hw[torch.stack(chosen)], pairs.tokens_TL))
        scores_GTT = scores_GTT.view(groups, 10, 10)
        loss = F.cross_entropy(scores_GTT.flatten(0, 1), right_GT.flatten())
        loss = (loss + F.cross_entropy(scores_GTT.transpose(1, 2).flatten(0, 1), right_GT.flatten())) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return before.eval(), model.eval(), pairs

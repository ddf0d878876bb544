"""Which images each step sees: a function of only the seed and the step, so that a run can resume anywhere.

No generator's state is kept. A step's images, and all its randomness, follow from (seed, epoch) and
(seed, step, place); a killed run continues with what it would have seen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from vitrail.errors import InputError

__all__ = ["Place", "Steps", "chance", "seed_of"]

Place = tuple[int, int]
"""(epoch, index of the image): the key of a data set, because augmentation differs by epoch."""


def seed_of(*parts: int | str) -> int:
    """A 63-bit seed for these parts; similar parts give unrelated seeds."""
    text = "/".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


class chance:
    """Within this block torch's CPU generator is seeded from these parts; afterwards it is as before."""

    def __init__(self, *parts: int | str) -> None:
        self._seed = seed_of(*parts)

    def __enter__(self) -> None:
        self._before = torch.get_rng_state()
        torch.default_generator.manual_seed(self._seed)

    def __exit__(self, *_: object) -> None:
        torch.set_rng_state(self._before)


@dataclass(frozen=True, kw_only=True)
class Steps:
    """The order of a run, as a batch sampler: every item is one process's share of one part of a batch.

    Raises:
        InputError: a batch larger than the data, or one that does not divide.
    """

    images: int
    batch_size: int
    """Over all processes and parts."""
    epochs: int
    seed: int
    parts: int = 1
    """A batch is taken in this many parts, one after another."""
    rank: int = 0
    processes: int = 1
    first: int = 0
    """The step to start from."""

    def __post_init__(self) -> None:
        if self.batch_size > self.images:
            raise InputError(
                f"A batch of {self.batch_size} is more than the {self.images} training images: "
                f"give --batch-size {self.images} or less."
            )
        if self.batch_size % (self.parts * self.processes):
            raise InputError(
                f"A batch of {self.batch_size} does not divide among {self.processes} processes and "
                f"{self.parts} parts: give a multiple of {self.parts * self.processes}."
            )

    @property
    def per_epoch(self) -> int:
        """Whole batches; the images left over are not seen in this epoch, and differ in the next."""
        return self.images // self.batch_size

    @property
    def total(self) -> int:
        """Steps of the whole run."""
        return self.epochs * self.per_epoch

    def starting(self, first: int) -> Steps:
        """The same order, starting from another step."""
        return replace(self, first=first)

    def __len__(self) -> int:
        return (self.total - self.first) * self.parts

    def __iter__(self) -> Iterator[list[Place]]:
        share = self.batch_size // (self.parts * self.processes)
        epoch, order = -1, np.empty(0, np.int64)
        for step in range(self.first, self.total):
            if step // self.per_epoch != epoch:
                epoch = step // self.per_epoch
                order = np.random.default_rng(seed_of(self.seed, "order", epoch)).permutation(self.images)
            start = step % self.per_epoch * self.batch_size
            batch = order[start : start + self.batch_size]
            for part in range(self.parts):
                mine = batch[(part * self.processes + self.rank) * share :][:share]
                yield [(epoch, int(index)) for index in mine]

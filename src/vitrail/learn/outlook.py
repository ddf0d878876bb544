"""What would help a run, by its curves: more epochs, or more labelled images. Nothing here imports torch.

An undertrained model fits neither its training images nor others; one with too few images overfits and gets
worse on the others. Losses distinguish the two; guessing among K classes has a loss of ln K, or where the
record says how common they are, of their entropy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vitrail.learn.trained import Trained
from vitrail.vocabulary import TrainingEpoch
from vitrail.words import counted

__all__ = ["Outlook", "outlook"]

UNSURE = 0.5
"""A loss above this share of a guess's. With label smoothing of 0.1 a perfect model stays below it."""
BY_HEART = 0.5
"""A training loss below this share of the validation loss, although its images are harder (augmented)."""
RISEN = 1.1
"""The last validation loss over the lowest one."""
FALLEN = 0.02
"""Share of a guess's loss by which the validation loss fell over the last third, if it is still falling."""


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """What would help, and the figures that say so."""

    helps: Literal["more epochs", "more images"]
    why: str
    """`still unsure after 3 epochs (loss 1.02 on training and 1.05 on validation images, a guess has 1.1)`"""


def outlook(trained: Trained) -> Outlook | None:
    """What would help the run; None if its curves suggest neither, or are missing."""
    whole = [(e, e.train_loss, e.validation_loss) for e in trained.history]
    known = [(e, t, v) for e, t, v in whole if t is not None and v is not None]
    if not known:
        return None
    guess = math.log(len(trained.classes)) if trained.guess is None else trained.guess
    last, train, validation = known[-1]
    losses = f"loss {train:.2f} on training and {validation:.2f} on validation images"
    if min(train, validation) >= UNSURE * guess:
        done = counted(last.epoch, "epoch")
        why = f"still unsure after {done} ({losses}, a guess has {guess:.2f})"
        return Outlook(helps="more epochs", why=why)
    lowest = min(v for _, _, v in known)
    if train < BY_HEART * validation and validation > RISEN * lowest:
        why = f"overfits its training images ({losses}, after a low of {lowest:.2f})"
        return Outlook(helps="more images", why=why)
    if _still_falls([v for _, _, v in known], guess) and _best_at_the_end(trained.history):
        return Outlook(helps="more epochs", why=f"still improved when it ended ({losses})")
    return None


def _still_falls(losses: Sequence[float], guess: float) -> bool:
    third = max(1, len(losses) // 3)
    return len(losses) > third and losses[-1 - third] - losses[-1] >= FALLEN * guess


def _best_at_the_end(history: Sequence[TrainingEpoch]) -> bool:
    accuracies = [epoch.accuracy for epoch in history if epoch.accuracy is not None]
    return bool(accuracies) and accuracies[-1] == max(accuracies)

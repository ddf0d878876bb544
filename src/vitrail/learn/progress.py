"""Where a training run stands: what a checkpoint holds besides weights and optimizer."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass
class Progress:
    """Where a run stands; all of it is in a checkpoint."""

    step: int = 0
    """Steps done."""
    seconds: float = 0.0
    """Seconds of training and evaluating, over all its starts."""
    best: float = -math.inf
    best_epoch: int = 0
    best_file: str = ""
    best_sha256: str = ""
    loss_sum: float = 0.0
    """Of the current epoch's steps."""
    history: list[dict[str, float]] = field(default_factory=list)
    """The figures of each epoch."""

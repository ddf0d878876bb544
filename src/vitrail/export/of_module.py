"""What engines that build of the module begin with: the module after its passes, and noise to compare on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from vitrail.export import eager, passes
from vitrail.export.reference import read
from vitrail.export.requests import ExportRequest, Form

__all__ = ["Subject", "subject"]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A module that is built of, as its export's `reference.json` describes it."""

    request: ExportRequest
    model: nn.Module
    noise: np.ndarray
    """(B, 3, S, S) float32, the same each time."""

    @property
    def uncertain(self) -> bool:
        """Whether what is built may differ more: its weights are random, or passes decide by comparing."""
        return self.request.weights is None or bool(self.request.passes)


def subject(reference: Path, engine: str, form: Form) -> Subject:
    """Read an export's `reference.json` and make its module; `engine` is named in errors.

    Raises:
        InputError: the description or its weights are damaged.
    """
    request = read(reference, engine)
    torch.set_num_threads(request.threads)
    model = eager.module(request, request.image_size, features=request.features)
    changed = passes.applied(model, request.passes)
    assert changed is not None, "an export with nothing to do was refused before"
    side = request.image_size
    noise = np.random.default_rng(0).standard_normal((form.batch_size, 3, side, side), dtype=np.float32)
    return Subject(request=request, model=changed, noise=noise)

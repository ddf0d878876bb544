"""The photo of the figures: scikit-learn's china.jpg (Summer Palace, Beijing; CC BY 2.0, see its README)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vitrail.images.decode import decode
from vitrail.images.photos import sample_photos

__all__ = ["as_tensor", "square"]


def square(side: int) -> np.ndarray:
    """uint8 (side, side, 3): the palace, cut out and resized."""
    (path,) = [p for p in sample_photos().paths if Path(p).name == "china.jpg"]
    cut = decode(path).crop((150, 20, 520, 390))
    return np.asarray(cut.resize((side, side), Image.Resampling.LANCZOS))


def as_tensor(pixels: np.ndarray) -> torch.Tensor:
    """(1, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1

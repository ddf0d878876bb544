"""Compares what a weights file states beyond names and shapes with the model it is loaded into.

Three kinds of evidence: buffers that other codebases save and we compute (SwinV2's offsets reveal the
window), numbers that OpenAI stores with its weights, and a config file next to the weights (`stated.py`).
Only what no tensor's shape shows is compared here; shapes are compared where tensors are loaded.

Shapes: T relative offsets of a window of h × w tokens, M its tokens.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from vitrail.errors import InputError
from vitrail.models.clip import CLIP
from vitrail.models.registry import looked_up
from vitrail.models.sam import SAM
from vitrail.models.sam2 import SAM2
from vitrail.models.swin import Swin, WindowAttention
from vitrail.models.upernet import UPerNet
from vitrail.models.vit import ViT, ViTConfig
from vitrail.weights.dialects.clip import OPENAI_FACTS
from vitrail.weights.stated import Stated

__all__ = ["Contradiction", "contradiction"]

TOLERANCE = 0.01
"""For log-spaced offsets: bf16 stores the largest, 1.06, to 0.004; windows 23 and 24 differ by 0.019."""

NAMES = {"gelu": "GELU", "gelu_tanh": "GELU by tanh", "quick_gelu": "QuickGELU", "silu": "SiLU"}
SAME_BUT_FOR_ROUNDING = {"gelu", "gelu_tanh"}
"""They differ by less than 5e-4, so this is a warning: SigLIP was published with both."""


@dataclass(frozen=True)
class Contradiction:
    """A fact stated by the file that is not true of the model, as a clause, and the fix."""

    said: str
    fix: str
    """The fix if none of our named models fits."""


def contradiction(
    model: nn.Module, named: Mapping[str, Tensor], stated: Stated | None
) -> Contradiction | None:
    """The first fact that is not true of the model; None: all are.

    Args:
        model: one of ours.
        named: the file's tensors in our names, derived ones included, before they are adapted.
        stated: what the config file next to it states.
    """
    stated = _with_config(model, stated)
    if isinstance(model, Swin):
        return _of_tables(model, named) or _of_windows(model, stated)
    if isinstance(model, SAM | SAM2 | UPerNet):
        # Their heads show in the tables of relative positions, and all files have the same activations.
        return None
    openai = OPENAI_FACTS[0] in named
    said = stated or Stated(source="")
    towers: list[tuple[str, Any, str | None, int | None]]
    if isinstance(model, CLIP):
        towers = [
            ("image", model.config.image, said.activation, said.heads),
            ("text", model.config.text, said.text_activation, said.text_heads),
        ]
    else:
        assert isinstance(model, ViT)
        towers = [("", model.config, said.activation, said.heads)]
    for tower, config, activation, heads in towers:
        found = _of_tower(tower, config, "quick_gelu" if openai else activation, heads, openai, said.source)
        if found is not None:
            return found
    return None


def _of_tower(
    tower: str, config: Any, activation: str | None, heads: int | None, openai: bool, source: str
) -> Contradiction | None:
    gated = getattr(config, "mlp", "plain") == "swiglu"
    which = f" in its {tower} tower" if tower else ""
    place = "both towers' configs" if tower else "build"
    if activation not in (None, config.activation) and not gated:
        assert activation is not None
        said_by = "OpenAI's CLIP was trained" if openai else f"{source} says they were trained"
        own = NAMES[config.activation]
        if {activation, config.activation} == SAME_BUT_FOR_ROUNDING:
            warnings.warn(
                f"{said_by} with {NAMES[activation]} and this model computes {own}{which}: scores differ "
                "in the fourth digit.",
                stacklevel=5,
            )
        else:
            return Contradiction(
                f"{said_by} with {NAMES[activation]} and this model has {own}{which}, which would give wrong "
                "results",
                f"set activation={activation!r} in {place}",
            )
    if heads not in (None, config.heads):
        return Contradiction(
            f"{source} says {heads} attention heads and this model has {config.heads}{which}",
            f"set heads={heads} in {place}",
        )
    return None


# --- Swin -----------------------------------------------------------------------------------------


def _of_tables(model: Swin, named: Mapping[str, Tensor]) -> Contradiction | None:
    """SwinV2: the window of the file's offsets, and the one they are scaled to."""
    if model.config.version != 2:
        return None
    windows: dict[int, tuple[int, int]] = {}
    references: dict[int, int] = {}
    wrong: list[int] = []
    for name, module in model.named_modules():
        table = named.get(f"{name}.relative_coords_table")
        if not isinstance(module, WindowAttention) or table is None or table.is_meta:
            continue
        stage = int(name.split(".")[1])
        windows[stage], found = _scale(table)
        if not all(map(math.isfinite, found)):
            return Contradiction(
                f"its {name}.relative_coords_table holds no offsets", "take it out of the file"
            )
        own = model.config.pretrained_window[stage]
        for axis, (side, reference) in enumerate(zip(windows[stage], found, strict=True)):
            if side < 2:
                continue
            references[stage] = round(reference)
            if abs(_largest(side, own or module.window[axis]) - _largest(side, reference)) > TOLERANCE:
                wrong.append(stage)
    if not wrong:
        return None
    stage, first = wrong[0], windows[min(windows)]
    own = model.config.pretrained_window[stage] or model.stage_windows[stage][0]
    whole = tuple(references.get(s, 0) for s in range(len(model.config.depths)))
    return Contradiction(
        f"its relative_coords_table is of windows of {first[0]} × {first[1]} tokens, in stage {stage + 1} "
        f"scaled to {references[stage]}, and this model at {_size(model)} scales that stage to {own}",
        f"build it with window={_window(first)} and pretrained_window={whole}",
    )


def _scale(table_1hw2: Tensor) -> tuple[tuple[int, int], tuple[float, float]]:
    """(h, w) of the window and of the one that its offsets are scaled to, from the table's last entry."""
    rows, columns = table_1hw2.shape[-3], table_1hw2.shape[-2]
    last = table_1hw2.reshape(rows, columns, 2)[-1, -1].double().tolist()
    sides = ((rows + 1) // 2, (columns + 1) // 2)
    down, right = (
        (1 + 8 * (side - 1) / (2 ** (3 * value) - 1) if value > 0 else math.inf) if side > 1 else float(side)
        for side, value in zip(sides, last, strict=True)
    )
    return sides, (down, right)


def _largest(side: int, reference: float) -> float:
    """The last entry of the table of a window of `side` tokens (Liu et al. 2022, eq. 4, as published)."""
    return math.log2(8 * (side - 1) / max(reference - 1, 1) + 1) / 3


def _of_windows(model: Swin, stated: Stated | None) -> Contradiction | None:
    if stated is None or stated.window is None or model.config.version != 2:
        return None
    own = model.config.windows[0]
    before = stated.pretrained_window or ()
    theirs = [size or stated.window for size in (*before, *[0] * len(model.config.depths))]
    ours = [size or own for size in model.config.pretrained_window]
    if all(a == b for a, b in zip(theirs, ours, strict=False)):
        return None
    whole = (*before, *[0] * len(ours))[: len(ours)]
    return Contradiction(
        f"{stated.source} says windows of {stated.window} tokens a side"
        + (f", first trained with {before[0]}," if before and before[0] else "")
        + f" and this model has {own}",
        f"build it with window={stated.window} and pretrained_window={whole}",
    )


def _size(model: Swin) -> str:
    return "{} × {} pixels".format(*model.config.image_size)


def _window(window: tuple[int, int]) -> str:
    return str(window[0] if window[0] == window[1] else window)


# --- timm's config.json -----------------------------------------------------------------------------


def _with_config(model: nn.Module, stated: Stated | None) -> Stated | None:
    """timm's file only names the architecture; our table, if it has that name, says what it means."""
    if stated is None or stated.architecture is None:
        return stated
    try:
        kind, config = looked_up(stated.architecture)
    except InputError:
        return stated
    if not isinstance(model, kind):
        return stated
    if isinstance(config, ViTConfig):
        return Stated(source=stated.source, activation=config.activation, heads=config.heads)
    if isinstance(model, Swin):
        return Stated(
            source=stated.source, window=config.windows[0], pretrained_window=config.pretrained_window
        )
    return stated

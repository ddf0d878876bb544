"""Whether a training step fits in memory, predicted before it begins."""

from __future__ import annotations

import psutil

from vitrail.errors import InputError
from vitrail.learn.recipe import Recipe
from vitrail.learn.start import Start
from vitrail.measure.sandbox import ChildFailure
from vitrail.models import memory

__all__ = ["checked"]

MIB = 1024 * 1024
LOW = 1.12
"""Predictions of training were up to 12 % low (docs/memory.md)."""


def checked(start: Start, recipe: Recipe, *, processes: int) -> str:
    """One line on the memory that a step will take on this machine's CPU.

    Raises:
        InputError: it is more than is free, with the batch size that would fit.
    """
    available = psutil.virtual_memory().available / MIB / processes
    batch = recipe.batch_size // (recipe.engine.accumulate * processes)
    setup = memory.Setup(
        model=start.architecture,
        image_size=start.preprocess.image_size,
        batch_size=max(1, batch),
        precision="fp32" if recipe.engine.precision == "fp32" else "bf16",
        training=True,
        implementation=start.implementation,
    )
    averaged = start.cost.parameters * 4 / MIB if recipe.regularization.average_decay is not None else 0.0
    try:
        found = memory.predict(setup, budget_mib=max(1.0, available - averaged) / LOW)
    except (ChildFailure, InputError) as error:
        return f"memory was not predicted: {error}"
    needed, largest = LOW * found["predicted_mib"]["total"] + averaged, found["largest_batch"]
    if needed <= available:
        return f"a step takes about {needed:.0f} MiB of the {available:.0f} that are free"
    most = largest * processes
    fix = (
        f"give --batch-size {most}, or keep the batch and take it in parts with --set engine.accumulate="
        f"{_parts(recipe.batch_size, most)}"
        if largest
        else "choose a smaller model or --image-size"
    )
    raise InputError(
        f"{start.architecture} at {start.preprocess.image_size} px with {batch} images at a time needs about "
        f"{needed:.0f} MiB and {available:.0f} are free: {fix}."
    )


def _parts(batch: int, most: int) -> int:
    """The fewest equal parts of a batch that are no larger than `most`."""
    return next(parts for parts in range(1, batch + 1) if batch % parts == 0 and batch // parts <= most)

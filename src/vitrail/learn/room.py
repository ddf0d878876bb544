"""Whether a training step fits in memory, predicted before it starts."""

from __future__ import annotations

from vitrail import hardware
from vitrail.errors import InputError
from vitrail.learn.recipe import Recipe
from vitrail.learn.start import Start
from vitrail.measure.sandbox import ChildFailure
from vitrail.models.registry import PROMPTABLE
from vitrail.profiling import memory

__all__ = ["checked", "fewest_parts"]

MIB = 1024 * 1024
LOW = 1.12
"""Predictions of training were up to 10 % low (docs/memory.md)."""
ADVISED = 0.98
"""Share of the room for an advised batch: it must fit when predicted again, and predictions differ."""


def checked(start: Start, recipe: Recipe, *, processes: int, world: int | None = None) -> str:
    """One line on the memory that a step will take on this machine's CPU.

    Args:
        start: the model.
        recipe: batch, parts and precision.
        processes: those on this machine, which share its memory.
        world: all processes of the run, which share a batch; None: those on this machine.

    Raises:
        InputError: it is more than the free memory, with the batch size that would fit.
    """
    if start.implementation == "vitrail" and start.architecture in PROMPTABLE:
        return "the memory of a step is predicted only for models that take images alone"
    world = world or processes
    available = hardware.free_memory_mib() / processes
    at_once = max(1, recipe.batch_size // (recipe.engine.accumulate * world))
    setup = memory.MemorySetup(
        model=start.architecture,
        image_size=start.preprocess.image_size,
        batch_size=at_once,
        precision="fp32" if recipe.engine.precision == "fp32" else "bf16",
        training=True,
        implementation=start.implementation,
    )
    averaged = start.cost.parameters * 4 / MIB if recipe.regularization.average_decay is not None else 0.0
    try:
        predicted = memory.predict(setup, budget_mib=ADVISED * max(1.0, available - averaged) / LOW)
    except (ChildFailure, InputError) as error:
        return f"memory was not predicted: {error}"
    needed = LOW * predicted["predicted_mib"]["total"] + averaged
    if needed <= available:
        return f"a step takes about {needed:.0f} of {available:.0f} MiB free"
    fix = _fix(recipe, predicted["largest_batch"], world)
    raise InputError(
        f"{start.architecture} at {start.preprocess.image_size} px with {at_once} images at a time needs "
        f"about {needed:.0f} MiB, but {available:.0f} MiB is free: {fix}."
    )


def fewest_parts(batch: int, most: int, world: int) -> int | None:
    """The fewest equal parts of a batch with at most `most` images per process at a time.

    None: not even one image at a time fits, or the batch does not divide among `world` processes.
    """
    share = 0 if batch % world else batch // world
    return next((n for n in range(1, share + 1) if share % n == 0 and share // n <= most), None)


def _fix(recipe: Recipe, most: int, world: int) -> str:
    """What to change if each of `world` processes has room for `most` images at a time."""
    if not most:
        return "choose a smaller model or --image-size"
    smaller = f"give --batch-size {most * world * recipe.engine.accumulate}"
    parts = fewest_parts(recipe.batch_size, most, world)
    kept = (
        f", or keep the batch and split it into parts with --set engine.accumulate={parts}" if parts else ""
    )
    return smaller + kept

"""Fabric's processes, torch's threads, and the memory of decoded images, for any training."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import FSDPStrategy

from vitrail import hardware
from vitrail.errors import InputError
from vitrail.learn.images import Make, Pixels, PixelsOnDemand, read_pixels
from vitrail.learn.recipe import Recipe
from vitrail.learn.run import CheckpointFile
from vitrail.learn.setup import Machine

__all__ = ["images_of", "launched", "on_threads"]

PRECISIONS: dict[str, Any] = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
PIXELS_SHARE = 0.25
"""Share of the free memory that decoded images may take, over all processes."""
LAUNCHERS = ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "SLURM_JOB_ID")
"""Variables one of which is set by launchers on several machines."""


def launched(machine: Machine, recipe: Recipe) -> Fabric:
    """Fabric with its processes running; on a CPU the other processes start the same command again.

    Raises:
        InputError: a precision or strategy that this machine or recipe does not support.
    """
    gpu = machine.accelerator == "cuda" or (machine.accelerator == "auto" and torch.cuda.is_available())
    if machine.accelerator == "cuda" and not torch.cuda.is_available():
        raise InputError("There is no GPU that torch can use here: leave --accelerator out.")
    precision = recipe.engine.precision
    if precision == "fp16" and not gpu:
        raise InputError("fp16 training needs a GPU: choose --precision bf16, or fp32.")
    _check_processes(machine, gpu)
    several = machine.processes * machine.nodes > 1
    strategy: Any = machine.strategy if machine.strategy != "auto" else "ddp" if several else "auto"
    if strategy == "fsdp":
        if not gpu:
            raise InputError("fsdp splits a model among GPUs, but there are none here: leave --strategy out.")
        if recipe.optimizer.name == "muon":
            raise InputError("Muon needs whole matrices, but fsdp splits them: give --strategy ddp.")
        if recipe.regularization.average_decay is not None:
            raise InputError(
                "An average of the weights needs them whole, but fsdp splits them: give "
                "--set regularization.average_decay=none, or --strategy ddp."
            )
        strategy = _fsdp()
    # Its banners of ranks and addresses add nothing to this command's own output.
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    fabric = Fabric(
        accelerator="cuda" if gpu else "cpu",
        devices=machine.processes,
        num_nodes=machine.nodes,
        strategy=strategy,
        precision=PRECISIONS[precision],
    )
    if not isinstance(fabric.strategy, FSDPStrategy):  # which writes its own files
        fabric.strategy.checkpoint_io = CheckpointFile()
    fabric.launch()
    return fabric


def _check_processes(machine: Machine, gpu: bool) -> None:
    most = torch.cuda.device_count() if gpu else hardware.usable_cores()
    if machine.processes > most:
        what = "GPUs" if gpu else "cores"
        raise InputError(f"--processes {machine.processes}: there are {most} {what}, give {most} or fewer.")
    if machine.nodes > 1 and not any(name in os.environ for name in LAUNCHERS):
        raise InputError(
            f"--nodes {machine.nodes} needs the same command started on each machine: do so with torchrun "
            "(docs/training.md)."
        )


def _fsdp() -> FSDPStrategy:
    # One file with whole tensors: any number of processes can resume from it.
    return FSDPStrategy(state_dict_type="full")


@contextmanager
def on_threads(threads: int) -> Iterator[None]:
    """Within this block torch uses this many threads; afterwards its generator is as it was before."""
    before, rng = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        torch.set_rng_state(rng)


def images_of(paths: Sequence[str], make: Make, machine: Machine) -> Pixels | PixelsOnDemand:
    """Decoded images, within each process's share of the free memory."""
    free_mib = PIXELS_SHARE * hardware.free_memory_mib() / machine.processes
    return read_pixels(paths, make, threads=machine.threads_each(), memory_mib=free_mib)

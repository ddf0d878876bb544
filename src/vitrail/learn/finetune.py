"""`vitrail train`: labelled images and a model's name in, a folder with trained weights out."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import FSDPStrategy

from vitrail import data, hardware
from vitrail.errors import InputError
from vitrail.learn import room, trained
from vitrail.learn.classify import ClassifierTraining
from vitrail.learn.images import (
    EvaluationImages,
    Make,
    Pixels,
    PixelsOnDemand,
    TrainingImages,
    augmentation,
    evaluated,
    read_pixels,
    stored,
)
from vitrail.learn.recipe import Recipe
from vitrail.learn.request import RunRequest, is_done
from vitrail.learn.run import BestWeights, CheckpointFile, Run, RunWatcher, said_once
from vitrail.learn.start import Start, starting
from vitrail.learn.train import train
from vitrail.limits import whole
from vitrail.vocabulary import Layout, TrainingEpoch
from vitrail.weights.find import WeightsFinder
from vitrail.words import counted

__all__ = ["FinetuneSetup", "Machine", "finetune", "images_of", "launched", "on_threads"]

PRECISIONS: dict[str, Any] = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
PIXELS_SHARE = 0.25
"""Share of the free memory that decoded images may take, over all processes."""
LAUNCHERS = ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "SLURM_JOB_ID")
"""Variables one of which is set by launchers on several machines."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where a run takes place.

    Raises:
        InputError: a number out of its range.
    """

    accelerator: str = "auto"
    """cpu, cuda or auto."""
    processes: int = 1
    """On each node: one per GPU, or several on a CPU."""
    nodes: int = 1
    strategy: str = "auto"
    """ddp, fsdp or auto (ddp if there are several processes)."""
    threads: int | None = None
    """For each process on a CPU; None: the usable cores, shared among the processes."""
    workers: int | None = None
    """Processes that prepare images, for each training process; None: on a CPU none, because the step itself
    uses every core; on GPUs the cores, shared among the processes."""

    def __post_init__(self) -> None:
        for name in ("processes", "nodes", "threads", "workers"):
            value = getattr(self, name)
            if value is not None:
                whole(name, value)

    def threads_each(self) -> int:
        """Threads of each process on a CPU."""
        return self.threads or max(1, hardware.usable_cores() // self.processes)

    def workers_each(self, fabric: Fabric) -> int:
        """Processes that prepare images, for each training process."""
        if self.workers is not None:
            return self.workers
        return 0 if fabric.device.type == "cpu" else max(1, hardware.usable_cores() // self.processes)


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


@dataclass
class FinetuneSetup:
    """What to train on what.

    Args:
        data: labelled images, as for `select --data`.
        model: name of a candidate, an architecture, or a model of ours.
        recipe: from `load_recipe`.
        out: the run's folder; an existing run is resumed.
        layout: what the folders of `data` are; None: recognise it.
        image_size, weights, from_scratch: as in `start.starting`.
        checkpoint_every: steps, in addition to the end of each epoch.
        extend: continue the finished run to the recipe's epochs.
    """

    data: str
    model: str
    recipe: Recipe
    out: Path
    layout: Layout | None = None
    image_size: int | None = None
    weights: Path | None = None
    from_scratch: bool = False
    checkpoint_every: int | None = None
    extend: bool = False
    machine: Machine = field(default_factory=Machine)


def finetune(setup: FinetuneSetup, finder: WeightsFinder, watcher: RunWatcher) -> trained.Trained:
    """Train a classifier on labelled images.

    Raises:
        InputError: data, model or recipe that cannot be used, a model that does not fit in memory, a folder
            that holds something else, or training that had to stop (see `train.train`).
    """
    recipe, machine = setup.recipe, setup.machine
    fabric = launched(machine, recipe)
    note = watcher.note if fabric.is_global_zero else lambda _: None
    with on_threads(machine.threads_each()):
        with said_once(fabric):
            dataset = data.load(setup.data, layout=setup.layout)
            start = starting(
                setup.model,
                classes=len(dataset.classes),
                finder=finder,
                image_size=setup.image_size,
                weights=setup.weights,
                from_scratch=setup.from_scratch,
                drop_path=recipe.regularization.drop_path,
                seed=recipe.seed,
            )
            note(_introduced(dataset, start, recipe))
            for doubt in dataset.doubts():
                note(doubt)
            before = _record(setup.out)
            run = Run(
                folder=setup.out,
                request=_request(setup, start, dataset),
                record=_Recorder(setup, start, dataset),
                fabric=fabric,
                every=setup.checkpoint_every,
                watcher=watcher,
                before=before,
                extend=setup.extend,
            )
            if before is not None and is_done(before, run.request):
                note("this run is finished, there is nothing left to do")
                return before
            task = _task(start, dataset, setup, note)
            if fabric.device.type == "cpu":
                note(room.checked(start, recipe, processes=machine.processes, world=fabric.world_size))
        train(task, recipe, run, fabric, workers=machine.workers_each(fabric))
        fabric.barrier()
        return trained.read(setup.out)


def _record(folder: Path) -> trained.Trained | None:
    """The existing run's record; None: there is none, or it will be written again."""
    if not (folder / trained.TRAINED).is_file():
        return None
    try:
        return trained.read(folder)
    except trained.DamagedRecord:
        return None


def _introduced(dataset: data.Dataset, start: Start, recipe: Recipe) -> str:
    counts = ", ".join(f"{len(dataset.of(split))} {split}" for split in data.SPLITS)
    classes = counted(len(dataset.classes), "class", "classes")
    layout = f" · {dataset.laid_out}" if dataset.found else ""
    size = start.preprocess.image_size
    return (
        f"{dataset.name}: {classes}, {counts}{layout} · {start.architecture} at {size} px, "
        f"{start.cost.parameters / 1e6:.1f} M parameters, from {start.said} · recipe {recipe.name}"
    )


def _request(setup: FinetuneSetup, start: Start, dataset: data.Dataset) -> RunRequest:
    return RunRequest(
        model=f"{start.implementation} {start.architecture}",
        image_size=start.preprocess.image_size,
        start=start.weights,
        data=dataset.digest,
        recipe=setup.recipe.values(),
    )


def _task(start: Start, dataset: data.Dataset, setup: FinetuneSetup, note: Any) -> ClassifierTraining:
    recipe = setup.recipe

    def read(split: data.Split, how: Make) -> tuple[Pixels | PixelsOnDemand, list[int]]:
        examples = dataset.of(split)
        pixels = images_of([example.path for example in examples], how, setup.machine)
        return pixels, [example.label for example in examples]

    change = augmentation(recipe.augmentation, start.preprocess)
    seen, labels = read("train", stored(start.preprocess, recipe.augmentation))
    held_out, true = read("validation", evaluated(start.preprocess))
    if isinstance(seen, PixelsOnDemand):
        note("the images do not all fit in memory and are decoded again in each epoch")
    return ClassifierTraining(
        model=start.module,
        images=TrainingImages(seen, labels, change, seed=recipe.seed),
        validation=EvaluationImages(held_out, true, start.preprocess),
        regularization=recipe.regularization,
        classes=len(dataset.classes),
        channels_last=recipe.engine.channels_last,
    )


def images_of(paths: Sequence[str], make: Make, machine: Machine) -> Pixels | PixelsOnDemand:
    """Decoded images, within each process's share of the free memory."""
    free_mib = PIXELS_SHARE * hardware.free_memory_mib() / machine.processes
    return read_pixels(paths, make, threads=machine.threads_each(), memory_mib=free_mib)


@dataclass
class _Recorder:
    """Writes trained.json whenever the best weights change."""

    setup: FinetuneSetup
    start: Start
    dataset: data.Dataset

    def __call__(self, best: BestWeights) -> None:
        start, recipe, averaged = self.start, self.setup.recipe, self._averaged
        trained.write(
            self.setup.out,
            trained.Trained(
                name=self.setup.out.absolute().name,
                architecture=start.architecture,
                family=start.family,
                implementation=start.implementation,
                classes=list(self.dataset.classes),
                preprocess=start.preprocess,
                parameters=start.cost.parameters,
                macs=start.cost.macs,
                activations=start.cost.activations,
                weights=best.file,
                sha256=best.sha256,
                license=start.license,
                start=start.said,
                recipe=recipe.name,
                recipe_digest=recipe.digest(),
                data=str(Path(self.setup.data).absolute()),
                data_digest=self.dataset.digest,
                seen=[example.digest for example in self.dataset.of("train")],
                epochs=len(best.progress.history),
                finished=best.finished,
                extended=list(best.extended),
                history=[_epoch(figures, averaged) for figures in best.progress.history],
            ),
        )

    @property
    def _averaged(self) -> bool:
        return self.setup.recipe.regularization.average_decay is not None


def _epoch(figures: dict[str, float], averaged: bool) -> TrainingEpoch:
    return TrainingEpoch(
        epoch=int(figures["epoch"]),
        step=int(figures["step"]),
        seconds=figures["seconds"],
        learning_rate=figures["learning_rate"],
        train_loss=figures["train_loss"],
        validation_loss=figures["validation_loss"],
        accuracy=figures["accuracy"],
        averaged=averaged,
    )

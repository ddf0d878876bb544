"""`vitrail train`: labelled images and a model's name in, a folder with trained weights out.

Nothing here knows what is learned: `setup.LEARNED` says who does.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vitrail import data
from vitrail.learn import room, trained
from vitrail.learn.launch import launched, on_threads
from vitrail.learn.recipe import Recipe
from vitrail.learn.request import RunRequest, is_done
from vitrail.learn.run import BestWeights, Run, RunWatcher, said_once
from vitrail.learn.setup import FinetuneSetup, learner_of
from vitrail.learn.start import Start
from vitrail.learn.train import LabelledTraining, train
from vitrail.vocabulary import TrainingEpoch
from vitrail.weights.find import WeightsFinder
from vitrail.words import counted

__all__ = ["finetune"]


def finetune(setup: FinetuneSetup, finder: WeightsFinder, watcher: RunWatcher) -> trained.Trained:
    """Train a model for the setup's task on the person's data.

    Raises:
        InputError: data, model or recipe that cannot be used, a model that does not fit in memory, a folder
            that holds something else, or training that had to stop (see `train.train`).
    """
    recipe, machine = setup.recipe, setup.machine
    fabric = launched(machine, recipe)
    note = watcher.note if fabric.is_global_zero else lambda _: None
    with on_threads(machine.threads_each()):
        with said_once(fabric):
            learner = learner_of(setup)
            dataset = learner.dataset()
            start = learner.start(dataset, finder)
            note(_introduced(dataset, start, recipe))
            for doubt in dataset.doubts():
                note(doubt)
            before = _record(setup.out)
            recorder = _Recorder(setup, start, dataset)
            run = Run(
                folder=setup.out,
                request=_request(setup, start, dataset),
                record=recorder,
                fabric=fabric,
                every=setup.checkpoint_every,
                watcher=watcher,
                before=before,
                extend=setup.extend,
            )
            if before is not None and is_done(before, run.request):
                note("this run is finished, there is nothing left to do")
                return before
            task = recorder.task = learner.training(start, dataset, note)
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


@dataclass
class _Recorder:
    """Writes trained.json whenever the best weights change."""

    setup: FinetuneSetup
    start: Start
    dataset: data.Dataset
    task: LabelledTraining | None = None
    """Known before the first call."""

    def __call__(self, best: BestWeights) -> None:
        start, recipe, task = self.start, self.setup.recipe, self.task
        assert task is not None
        averaged = recipe.regularization.average_decay is not None
        trained.write(
            self.setup.out,
            trained.Trained(
                name=self.setup.out.absolute().name,
                task=self.setup.task,
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
                guess=task.guess,
                history=[_epoch(figures, task.figure, averaged) for figures in best.progress.history],
            ),
        )


def _epoch(figures: dict[str, float], main: str, averaged: bool) -> TrainingEpoch:
    return TrainingEpoch(
        epoch=int(figures["epoch"]),
        step=int(figures["step"]),
        seconds=figures["seconds"],
        learning_rate=figures["learning_rate"],
        train_loss=figures["train_loss"],
        validation_loss=figures["validation_loss"],
        accuracy=figures[main],
        averaged=averaged,
    )

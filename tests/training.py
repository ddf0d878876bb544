"""Shared by the tests of training: a tiny task in memory, and a run of it in a folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from vitrail import models
from vitrail.learn.classify import ClassifierTraining
from vitrail.learn.images import EvaluationImages, Pixels, TrainingImages, augmentation
from vitrail.learn.launch import launched
from vitrail.learn.recipe import load_recipe
from vitrail.learn.request import RunRequest
from vitrail.learn.run import Run
from vitrail.learn.setup import Machine
from vitrail.learn.train import train
from vitrail.vocabulary import Preprocess

CLASSES = 3
MODEL = "vit_nano_patch4_28"
QUICK = (
    "epochs=2",
    "batch_size=6",
    "optimizer.warmup_epochs=0.5",
    "engine.precision=fp32",
    "regularization.average_decay=none",
    "augmentation.crop_area=none",
)


def recipe(*changes):
    return load_recipe("light", [*QUICK, *changes])


def small(depth=2, **changes):
    torch.manual_seed(0)
    return models.build(MODEL, num_classes=CLASSES, width=32, depth=depth, heads=2, **changes).train()


def task_of(plan, model=None, *, named=None):
    """A `ClassifierTraining` of 24 training and 12 validation images, in memory; `named`: other labels."""
    rng = np.random.default_rng(1)
    labels = [i % CLASSES for i in range(36)]
    pixels = [rng.integers(0, 120, (28, 28, 3)).astype(np.uint8) for _ in labels]
    for image, label in zip(pixels, labels, strict=True):
        image[..., label] += 120
    labels = named or labels
    preprocess = Preprocess(image_size=28, crop=1.0)
    return ClassifierTraining(
        model=model or small(),
        images=TrainingImages(
            Pixels(pixels[:24]), labels[:24], augmentation(plan.augmentation, preprocess), seed=plan.seed
        ),
        validation=EvaluationImages(Pixels(pixels[24:]), labels[24:], preprocess),
        regularization=plan.regularization,
        classes=CLASSES,
        channels_last=plan.engine.channels_last,
    )


def run_in(place, plan, **options):
    request = RunRequest(model="small", image_size=28, start="random", data="toy", recipe=plan.values())
    options.setdefault("record", lambda kept: None)
    fabric = options.pop("fabric", None) or launched(Machine(), plan)
    return Run(folder=Path(place), request=request, fabric=fabric, **options)


def trained_weights(place, plan, task=None, **options):
    task = task or task_of(plan)
    run = run_in(place, plan, **options)
    train(task, plan, run, run.fabric)
    return {name: value.clone() for name, value in task.model.state_dict().items()}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


class Stop(Exception):
    """A crash at a chosen step."""


def crashing(step):
    def stepped(self, progress, **_):
        if progress.step == step:
            raise Stop

    return stepped

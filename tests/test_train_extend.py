"""A finished run goes on to more epochs: as a longer run, as itself again, after a kill; and what helps."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from training import recipe, run_in, same, small, task_of

from vitrail.cli import main
from vitrail.errors import InputError
from vitrail.learn import room, trained
from vitrail.learn.outlook import outlook
from vitrail.learn.run import Run
from vitrail.learn.train import train
from vitrail.vocabulary import Preprocess, TrainingEpoch

pytestmark = pytest.mark.slow

DRAWN = (
    "regularization.mixup=0.5",
    "regularization.drop_path=0.3",
    "regularization.average_decay=0.9",
    "augmentation.erase=0.5",
)


class Left:
    """What a run left, as `Run` asks for it: trained.json without the rest."""

    def __init__(self):
        self.epochs, self.finished, self.file = 0, False, ""

    def __call__(self, kept):
        self.epochs, self.finished, self.file = len(kept.progress.history), kept.finished, kept.file


def go(place, plan, left=None, *, extend=False, task=None):
    """(weights, progress, what was left) of a run that begins, goes on or is extended."""
    task, before = task or task_of(plan, small(drop_path=plan.regularization.drop_path)), left
    left = Left()
    run = run_in(place, plan, record=left, before=before, extend=extend)
    progress = train(task, plan, run, run.fabric)
    return {name: value.clone() for name, value in task.model.state_dict().items()}, progress, left


def figures(progress):
    return [{k: v for k, v in figures.items() if k != "seconds"} for figures in progress.history]


def best(folder):
    return sorted(path.name for path in folder.glob("best-*"))


def test_where_the_rate_does_not_fall_an_extended_run_is_a_longer_one(tmp_path):
    level = (*DRAWN, "optimizer.final_share=1")
    whole, progress, _ = go(tmp_path / "whole", recipe("epochs=4", *level))
    _, _, left = go(tmp_path / "run", recipe("epochs=1", *level))
    _, _, left = go(tmp_path / "run", recipe("epochs=2", *level), left, extend=True)
    extended, again, left = go(tmp_path / "run", recipe("epochs=4", *level), left, extend=True)
    assert same(whole, extended)
    assert figures(progress) == figures(again)
    assert best(tmp_path / "whole") == best(tmp_path / "run") == [left.file]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["extended"] == [[1, 1], [2, 2]]


def test_extended_twice_from_one_state_and_killed_in_between_the_bits_are_the_same(tmp_path, monkeypatch):
    _, _, left = go(tmp_path / "one", recipe("epochs=2", *DRAWN))
    for name in ("two", "three"):
        shutil.copytree(tmp_path / "one", tmp_path / name)
    longer = recipe("epochs=4", *DRAWN)
    one, first, _ = go(tmp_path / "one", longer, left, extend=True)
    torch.rand(3)
    two, second, _ = go(tmp_path / "two", longer, left, extend=True)
    assert same(one, two)
    assert figures(first) == figures(second)

    class Killed(Exception):
        pass

    def stepped(self, progress, **_):
        if progress.step == 11:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Run, "after_step", stepped)
        with pytest.raises(Killed):
            go(tmp_path / "three", longer, left, extend=True)
    three, third, _ = go(tmp_path / "three", longer, left)  # the extension is begun: it is the same run now
    assert same(one, three)
    assert figures(first) == figures(third)
    assert best(tmp_path / "one") == best(tmp_path / "two") == best(tmp_path / "three")
    steps = [row.split(",")[0] for row in (tmp_path / "three" / "metrics.csv").read_text().splitlines()[1:]]
    assert steps == sorted(steps, key=int), "rows of one run, each once"
    rates = [round(figures["learning_rate"], 6) for figures in first.history]
    assert rates[2] > rates[1] < rates[0], "the rate fell, and rose again"
    assert rates[3] < rates[2]


def test_patience_waits_anew_in_an_extension(tmp_path):
    plan = recipe("epochs=20", "patience=2", "optimizer.learning_rate=3e-3")

    def flat(plan):
        task = task_of(plan)
        task.evaluate = lambda *_: {"accuracy": 50.0, "validation_loss": 1.0}
        return task

    _, progress, left = go(tmp_path / "run", plan, task=flat(plan))
    assert len(progress.history) == 3
    _, progress, _ = go(tmp_path / "run", plan, left, extend=True, task=flat(plan))
    assert len(progress.history) == 5
    assert progress.best_epoch == 1
    assert json.loads((tmp_path / "run" / "run.json").read_text())["extended"] == [[20, 3]]


def test_what_cannot_be_extended_is_refused_with_what_helps(tmp_path):
    plan, longer = recipe("epochs=1"), recipe("epochs=2")
    with pytest.raises(InputError, match=r"no run in .* leave --extend out"):
        run_in(tmp_path / "run", longer, extend=True)
    _, _, left = go(tmp_path / "run", plan)
    with pytest.raises(InputError, match=r"ended after 1 epoch: add --extend to continue to 2"):
        run_in(tmp_path / "run", longer, before=left)
    with pytest.raises(InputError, match=r"has had 1 epoch: give --epochs 2 --extend, for instance"):
        run_in(tmp_path / "run", plan, before=left, extend=True)
    with pytest.raises(InputError, match=r"weight_decay is 0\.5 and was 0\.02"):
        run_in(tmp_path / "run", recipe("epochs=2", "optimizer.weight_decay=0.5"), before=left, extend=True)
    left.finished = False
    with pytest.raises(InputError, match=r"has not finished: resume it with --epochs 1"):
        run_in(tmp_path / "run", longer, before=left, extend=True)
    left.finished = True
    (checkpoint,) = (tmp_path / "run" / "checkpoints").iterdir()
    checkpoint.write_bytes(checkpoint.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"is damaged: the run cannot be extended, but --weights starts"):
        go(tmp_path / "run", longer, left, extend=True)
    checkpoint.unlink()
    with pytest.raises(InputError, match="has no checkpoint, so the run cannot be extended"):
        go(tmp_path / "run", longer, left, extend=True)


def test_the_command_extends_says_so_and_does_it_once(tmp_path, coloured, capsys, monkeypatch):
    monkeypatch.setattr(room, "checked", lambda *_, **__: "")  # asks a process of its own, several seconds

    def call(*more):
        arguments = ["--data", coloured, "--model", "vit_nano_patch4_28", "--out", tmp_path / "run"]
        code = main(["train", *map(str, (*arguments, "--batch-size", 24, "--offline", *more))])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    code, out, _ = call("--epochs", 1, "--set", "optimizer.warmup_epochs=0")
    assert code == 0
    assert "still unsure after 1 epoch (loss" in out
    assert "the same command with --epochs 2 --extend trains it on" in out, "the advice is followed next"
    code, out, _ = call("--epochs", 2, "--set", "optimizer.warmup_epochs=0", "--extend")
    assert code == 0
    assert "resuming at step 1 of 2" in out
    record = trained.read(tmp_path / "run")
    assert (record.epochs, record.finished, [*map(tuple, record.extended)]) == (2, True, [(1, 1)])
    assert "2 epochs (extended after 1)" in trained.candidate_of(tmp_path / "run").note
    before = (tmp_path / "run" / "metrics.csv").read_bytes()
    code, out, _ = call("--epochs", 2, "--set", "optimizer.warmup_epochs=0", "--extend")
    assert code == 0
    assert "this run is finished, there is nothing left to do" in out
    assert (tmp_path / "run" / "metrics.csv").read_bytes() == before
    # A damaged record says "resume the run to write it again": so it does.
    (tmp_path / "run" / trained.TRAINED).write_text("{")
    assert call("--epochs", 2, "--set", "optimizer.warmup_epochs=0")[0] == 0
    assert trained.read(tmp_path / "run") == record


# --- what helps -----------------------------------------------------------------------------------


def run_of(curve, classes=3):
    """A record with these (training loss, validation loss, accuracy)."""
    history = [
        TrainingEpoch(
            epoch=i, step=i, seconds=i, learning_rate=1e-3, train_loss=t, validation_loss=v, accuracy=a
        )
        for i, (t, v, a) in enumerate(curve, 1)
    ]
    return trained.Trained(
        name="r", architecture="a", family="f", implementation="timm", classes=[*"abcdefghij"[:classes]],
        preprocess=Preprocess(image_size=28), parameters=1, macs=1, activations=1, sha256="", license="",
        start="random", recipe="light", recipe_digest="", data="d", data_digest="", seen=[],
        epochs=len(history), finished=True, history=history,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("curve", "helps"),
    [
        ([(1.1, 1.09, 35.0)], "more epochs"),
        ([(1.1, 1.1, 33.0), (1.05, 1.04, 40.0), (0.9, 0.95, 55.0)], "more epochs"),
        ([(1.0, 0.9, 50.0), (0.4, 0.7, 70.0), (0.1, 0.9, 69.0), (0.02, 1.2, 68.0)], "more images"),
        ([(1.0, 0.9, 50.0), (0.6, 0.6, 70.0), (0.45, 0.45, 80.0), (0.35, 0.3, 88.0)], "more epochs"),
        ([(0.5, 0.2, 94.0), (0.3, 0.12, 97.0), (0.26, 0.11, 97.5), (0.25, 0.11, 97.5)], None),
        ([], None),
        ([(None, None, None)], None),
    ],
)
def test_curves_say_what_would_help(curve, helps):
    found = outlook(run_of(curve))
    assert (found and found.helps) == helps


def test_images_learned_by_heart_need_more_images_and_a_beginner_more_epochs(tmp_path):
    """Real runs: labels without a reason are learned by heart; one step has learned nothing yet."""

    def helps(place, plan, task):
        _, progress, _ = go(tmp_path / place, plan, task=task)
        curve = [(f["train_loss"], f["validation_loss"], f["accuracy"]) for f in progress.history]
        return outlook(run_of(curve)).helps

    plan = recipe("epochs=60", "optimizer.learning_rate=5e-3", "regularization.label_smoothing=0")
    named = np.random.default_rng(0).integers(0, 3, 36).tolist()
    assert helps("by heart", plan, task_of(plan, named=named)) == "more images"
    plan = recipe("epochs=1")
    assert helps("begun", plan, task_of(plan)) == "more epochs"

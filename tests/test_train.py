"""The training loop: against a loop by hand, killed and gone on with, damaged, and over processes."""

from __future__ import annotations

import copy
import csv
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from training import (
    CLASSES,
    MODEL,
    QUICK,
    Stop,
    crashing,
    recipe,
    run_in,
    same,
    small,
    task_of,
    trained_weights,
)

from vitrail import models, store
from vitrail.errors import InputError
from vitrail.learn import room, trained
from vitrail.learn.finetune import finetune
from vitrail.learn.launch import launched
from vitrail.learn.metrics import Metrics
from vitrail.learn.order import Steps
from vitrail.learn.recipe import load_recipe
from vitrail.learn.request import RunRequest
from vitrail.learn.run import Run, RunWatcher
from vitrail.learn.setup import FinetuneSetup, Machine
from vitrail.learn.start import starting
from vitrail.learn.train import parameter_groups, train
from vitrail.weights.find import WeightsFinder

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(coloured) -> Path:
    return coloured


# --- the arithmetic -------------------------------------------------------------------------------


@pytest.mark.parametrize("clip_norm", ["0.05", "none"])
def test_the_loop_is_the_loop_by_hand(tmp_path, clip_norm):
    plan = recipe(
        f"optimizer.clip_norm={clip_norm}", "regularization.average_decay=0.9", "optimizer.layer_decay=0.5"
    )
    task = task_of(plan)
    by_hand = copy.deepcopy(task.model)
    average = {name: value.clone() for name, value in by_hand.state_dict().items()}
    optimizer = torch.optim.AdamW(parameter_groups(by_hand, plan), lr=1.0, betas=plan.optimizer.betas)
    steps = Steps(images=24, batch_size=6, epochs=2, seed=plan.seed)
    for step, places in enumerate(steps):
        rate = plan.learning_rate_at(step, steps.per_epoch)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]
        images = torch.stack([task.images[place][0] for place in places])
        labels = torch.tensor([task.images[place][1] for place in places])
        loss = F.cross_entropy(by_hand(images), labels, label_smoothing=plan.regularization.label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        if clip_norm != "none":
            torch.nn.utils.clip_grad_norm_(by_hand.parameters(), float(clip_norm))
        optimizer.step()
        decay = min(0.9, 1 - (1 + step) ** -0.75) if step else 0.0
        for name, value in by_hand.state_dict().items():
            average[name] = decay * average[name] + (1 - decay) * value
    run = run_in(tmp_path / "run", plan)
    progress = train(task, plan, run, run.fabric)
    for name, value in by_hand.state_dict().items():
        torch.testing.assert_close(task.model.state_dict()[name], value, atol=2e-6, rtol=1e-4)
    from safetensors.torch import load_file

    if progress.best_epoch == 2:
        kept = load_file(tmp_path / "run" / progress.best_file)
        for name, value in average.items():
            torch.testing.assert_close(kept[name], value, atol=2e-6, rtol=1e-4)
    assert progress.step == 8


def test_parts_of_a_batch_give_the_whole_batch_s_gradients():
    plan = recipe()
    fabric = launched(Machine(), plan)
    model = small().double()
    images, labels = torch.rand(6, 3, 28, 28, dtype=torch.float64), torch.tensor([0, 1, 2, 2, 1, 0])
    gradients = []
    for count in (1, 2, 3):
        own = copy.deepcopy(model)
        wrapped = fabric.setup(own)
        parts = list(zip(images.chunk(count), labels.chunk(count), strict=True))
        loss = task_of(plan, own).backward(fabric, wrapped, parts)
        gradients.append([loss, *(parameter.grad for parameter in own.parameters())])
    for others in gradients[1:]:
        for one, other in zip(gradients[0], others, strict=True):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_layers_learn_at_their_own_rates_as_timm_groups_them():
    plan = recipe("optimizer.layer_decay=0.5")
    model = small(depth=3)
    rates = {}
    for group in parameter_groups(model, plan):
        for parameter in group["params"]:
            rates[id(parameter)] = (group["lr_scale"], group["weight_decay"])
    named = {name: rates[id(parameter)] for name, parameter in model.named_parameters()}
    assert named["patch_embed.proj.weight"][0] == named["pos_embed"][0] == 0.5**4
    assert [named[f"blocks.{i}.attn.qkv.weight"][0] for i in range(3)] == [0.5**3, 0.5**2, 0.5]
    assert named["head.weight"] == (1.0, plan.optimizer.weight_decay)
    assert named["head.bias"][1] == named["pos_embed"][1] == 0.0
    swin = models.build("swin_nano_patch2_window7_28", num_classes=CLASSES)
    groups = parameter_groups(swin, plan)
    assert len({group["lr_scale"] for group in groups}) == 10, "stem, 2 + 6 blocks, head"
    tables = {id(p) for n, p in swin.named_parameters() if n.endswith("bias_table")}
    assert all(group["weight_decay"] == 0 for group in groups for p in group["params"] if id(p) in tables)


@pytest.mark.parametrize(
    "change", ["engine.precision=bf16", "regularization.mixup=0.8", "regularization.cutmix=1.0"]
)
def test_it_learns(tmp_path, change):
    plan = recipe(change, "epochs=12", "optimizer.learning_rate=3e-3")
    task = task_of(plan)
    progress = train(task, plan, run_in(tmp_path / "run", plan), launched(Machine(), plan))
    assert progress.best == 100.0, [row["accuracy"] for row in progress.history]
    assert progress.history[-1]["validation_loss"] < progress.history[0]["validation_loss"]


def test_patience_ends_a_run_early(tmp_path):
    plan = recipe("epochs=30", "patience=3", "optimizer.learning_rate=3e-3")
    progress = train(task_of(plan), plan, run_in(tmp_path / "run", plan), launched(Machine(), plan))
    assert len(progress.history) == progress.best_epoch + 3 < 30


# --- going on -------------------------------------------------------------------------------------


def test_muon_moves_matrices_and_adamw_the_rest(tmp_path):
    plan = recipe("optimizer.name=muon", "optimizer.layer_decay=0.5")
    model = small()
    groups = parameter_groups(model, plan)
    left = {id(p) for group in groups if group.get("use_fallback") for p in group["params"]}
    names = {name for name, p in model.named_parameters() if id(p) in left and p.ndim > 1}
    assert names == {"pos_embed", "head.weight"}
    run = run_in(tmp_path / "run", plan)
    task = task_of(plan, model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    stop = crashing(1)
    run.after_step = lambda progress, **figures: stop(run, progress)
    with pytest.raises(Stop):
        train(task, plan, run, run.fabric)
    moved = model.blocks[0].mlp.fc1.weight.detach() - before["blocks.0.mlp.fc1.weight"]
    values = torch.linalg.svdvals(moved)
    assert values.max() / values.median() < 3, "an orthogonal matrix has singular values of one size"


@pytest.mark.parametrize(("step", "optimizer"), [(1, "adamw"), (4, "adamw"), (5, "adamw"), (7, "muon")])
def test_a_run_that_crashed_ends_with_the_same_bits(tmp_path, monkeypatch, step, optimizer):
    plan = recipe(
        f"optimizer.name={optimizer}",
        "regularization.mixup=0.5",
        "regularization.drop_path=0.3",
        "regularization.average_decay=0.9",
        "augmentation.erase=0.5",
    )
    make = lambda: task_of(plan, small(drop_path=0.3))  # noqa: E731
    whole = trained_weights(tmp_path / "whole", plan, make())
    with monkeypatch.context() as patch:
        patch.setattr(Run, "after_step", crashing(step))
        with pytest.raises(Stop):
            trained_weights(tmp_path / "run", plan, make(), every=2)
    torch.rand(5)
    again = trained_weights(tmp_path / "run", plan, make(), every=2)
    assert same(whole, again)
    best = [sorted(p.name for p in (tmp_path / name).glob("best-*")) for name in ("whole", "run")]
    assert best[0] == best[1], "the digest is part of the name"
    assert len(best[0]) == 1


def command(folder, run, *more, model=MODEL):
    return [
        *(sys.executable, "-m", "vitrail", "train"),
        *("--data", str(folder), "--model", model, "--out", str(run), "--offline"),
        *(part for change in QUICK for part in ("--set", change)),
        *more,
    ]


@pytest.fixture
def in_process(monkeypatch):
    """Runs a command here: importing torch anew takes longer than such a run, predicting memory too."""
    from vitrail.cli import main

    monkeypatch.setattr(room, "checked", lambda *_, **__: "")
    return lambda command: main(command[3:])


def test_a_run_that_was_killed_ends_with_the_same_bits(tmp_path, folder, in_process, capsys):
    """SIGKILL, at whatever step it comes, with image workers and bf16, through the command line."""
    more = (
        *("--from-scratch", "--image-size", "32", "--precision", "bf16", "--epochs", "6"),
        *("--checkpoint-every", "1", "--workers", "1", "--threads", "1"),
    )
    in_process(command(folder, tmp_path / "whole", *more, model="test_vit"))
    killed = command(folder, tmp_path / "run", *more, model="test_vit")
    process = subprocess.Popen(killed, stdout=subprocess.PIPE, start_new_session=True)
    checkpoints = tmp_path / "run" / "checkpoints"
    deadline = time.monotonic() + 120
    while not list(checkpoints.glob("step-*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    steps = sorted(int(p.stem.split("-")[1]) for p in checkpoints.glob("step-*"))
    assert 0 < steps[-1] < 20, "killed in the middle"
    in_process(killed)
    assert "resuming at step" in capsys.readouterr().out
    whole, resumed = (trained.read(tmp_path / name) for name in ("whole", "run"))
    assert whole.sha256 == resumed.sha256
    keys = ("step", "train_loss", "validation_loss", "accuracy", "learning_rate")
    assert [[getattr(e, k) for k in keys] for e in whole.history] == [
        [getattr(e, k) for k in keys] for e in resumed.history
    ]
    with open(tmp_path / "run" / "metrics.csv") as file:
        logged = [int(row["step"]) for row in csv.DictReader(file)]
    assert logged == sorted(logged)
    assert logged.count(20) == 2, "a row of the step and one of the epoch"


def test_a_run_goes_on_only_with_the_same_data_and_recipe(tmp_path):
    plan = recipe()
    trained_weights(tmp_path / "run", plan)
    with pytest.raises(InputError, match=r"recipe\.optimizer\.weight_decay is 0\.5 and was 0\.02"):
        run_in(tmp_path / "run", recipe("optimizer.weight_decay=0.5"))
    other = RunRequest(model="small", image_size=28, start="random", data="more toys", recipe=plan.values())
    with pytest.raises(InputError, match="data is more toys and was toy"):
        Run(folder=tmp_path / "run", request=other, record=print, fabric=launched(Machine(), plan))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(InputError, match="is not a training run"):
        run_in(tmp_path / "other", plan)


def test_a_finished_run_does_nothing_more(tmp_path):
    plan = recipe()
    first = trained_weights(tmp_path / "run", plan)
    before = (tmp_path / "run" / "metrics.csv").read_bytes()
    assert same(first, trained_weights(tmp_path / "run", plan))
    assert (tmp_path / "run" / "metrics.csv").read_bytes() == before


# --- faults ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["a byte", "cut off"])
def test_a_damaged_checkpoint_is_refused_and_the_one_before_still_works(tmp_path, damage):
    plan = recipe()
    whole = trained_weights(tmp_path / "whole", plan)
    trained_weights(tmp_path / "run", plan, every=3)
    newest, before = sorted((tmp_path / "run" / "checkpoints").iterdir(), reverse=True)
    content = bytearray(newest.read_bytes())
    if damage == "a byte":
        content[len(content) // 2] ^= 1
    else:
        del content[len(content) // 2 :]
    newest.write_bytes(bytes(content))
    with pytest.raises(InputError, match="is damaged: delete it to resume from step 6"):
        trained_weights(tmp_path / "run", plan)
    newest.unlink()
    assert before.name.startswith("step-00000006")
    assert same(whole, trained_weights(tmp_path / "run", plan))


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    import errno

    from lightning_fabric import Fabric

    plan = recipe()
    whole = trained_weights(tmp_path / "whole", plan)
    save = Fabric.save

    def full(self, path, state, **options):
        if state["progress"]["step"] < 6:
            return save(self, path, state, **options)
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Fabric, "save", full)
        with pytest.raises(InputError, match=r"No space left.*the checkpoint of step 4 is kept"):
            trained_weights(tmp_path / "run", plan, every=2)
    names = sorted(p.name[:13] for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["step-00000002", "step-00000004"], "and nothing half-written"
    assert same(whole, trained_weights(tmp_path / "run", plan, every=2))


def test_best_weights_outlive_the_checkpoints_that_name_them(tmp_path, monkeypatch):
    """Killed between new best weights and their checkpoint, then gone on with other rounding (here: data)."""
    plan, records = recipe("epochs=3"), []

    def record(kept):
        assert (tmp_path / "run" / kept.file).is_file()
        records.append(kept.file)

    def go_on(accuracies, **patches):
        task = task_of(plan)
        figures = iter(accuracies)
        task.evaluate = lambda *_: {"accuracy": next(figures), "validation_loss": 1.0}
        with monkeypatch.context() as patch:
            for name, value in patches.items():
                patch.setattr(Run, name, value)
            trained_weights(tmp_path / "run", plan, task, record=record)

    def killed(self, state):
        if state["progress"]["step"] == 8:
            raise Stop
        return checkpoint(self, state)

    checkpoint = Run.checkpoint
    with pytest.raises(Stop):
        go_on([50.0, 60.0], checkpoint=killed)
    assert len(set(records)) == 2, "the second epoch's weights were better and written"
    go_on([40.0, 40.0])
    assert records[-1] == records[0], "the second epoch, done again, is worse than the first"
    assert [file.name for file in (tmp_path / "run").glob("best-*")] == [records[0]]


@pytest.mark.parametrize("place", ["best weights", "metrics", "record"])
def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch, place):
    import errno

    plan = recipe("epochs=3")
    whole = trained_weights(tmp_path / "whole", plan, record=lambda kept: None)
    original, written = store.atomic_write, []

    def full(path, content):
        written.append(Path(path).name)
        fills = {"best weights": "best-", "metrics": "metrics", "record": "record"}[place]
        if Path(path).name.startswith(fills) and sum(n.startswith(fills) for n in written) == 2:
            raise InputError(f"No space left on the disk for {path}") from OSError(errno.ENOSPC, "full")
        original(path, content)

    def record(kept):
        store.atomic_write(tmp_path / "run" / "record", kept.file.encode())

    task = task_of(plan)
    figures = iter([50.0, 60.0, 70.0] * 2)
    task.evaluate = lambda *_: {"accuracy": next(figures), "validation_loss": 1.0}
    with monkeypatch.context() as patch:
        patch.setattr(store, "atomic_write", full)
        with pytest.raises(InputError, match="No space left"):
            trained_weights(tmp_path / "run", plan, task, record=record)
    if place != "metrics":
        kept = (tmp_path / "run" / "record").read_text()
        assert (tmp_path / "run" / kept).is_file()
    assert same(whole, trained_weights(tmp_path / "run", plan, record=record))


@pytest.mark.parametrize("rest", ["3", "30,", "30,1.5", ",1.0\n"])
def test_a_row_that_was_cut_off_is_left_out(tmp_path, rest):
    path = tmp_path / "metrics.csv"
    metrics = Metrics(path, 0)
    for step in (10, 20, 40):
        metrics.append(step, {"loss": 1.0})
    with path.open("a") as file:
        file.write(rest)
    Metrics(path, 30)
    assert [row["step"] for row in csv.DictReader(path.open())] == ["10", "20"]


def test_a_figure_that_is_not_finite_stops_the_run(tmp_path):
    plan = recipe()
    task = task_of(plan)
    evaluate, calls = task.evaluate, []

    def poisoned(fabric, model):
        calls.append(1)
        figures = evaluate(fabric, model)
        return {**figures, "validation_loss": float("nan")} if len(calls) == 2 else figures

    task.evaluate = poisoned
    with pytest.raises(InputError, match="after epoch 2: validation_loss is nan"):
        trained_weights(tmp_path / "run", plan, task)
    assert len(list((tmp_path / "run").glob("best-*.safetensors"))) == 1


def test_fp16_skips_steps_that_overflow_and_stops_where_all_do(tmp_path):
    """Fabric's own scaler, which asks for no GPU by itself."""
    from lightning_fabric import Fabric
    from lightning_fabric.plugins import MixedPrecision

    plan = recipe("engine.precision=fp16", "epochs=8")
    fabric = Fabric(accelerator="cpu", plugins=[MixedPrecision("16-mixed", "cpu")])
    task = task_of(plan)
    backward, calls, overflow = task.backward, [], lambda call: call in (2, 3)

    def poisoned(fabric, model, parts):
        loss = backward(fabric, model, parts)
        if overflow(len(calls)):
            task.model.head.weight.grad[0, 0] = float("inf")
        calls.append([p.detach().clone() for p in task.model.parameters()])
        return loss

    task.backward = poisoned
    train(task, plan, run_in(tmp_path / "run", plan, fabric=fabric), fabric)
    unchanged = [all(map(torch.equal, one, two)) for one, two in itertools.pairwise(calls[:6])]
    assert unchanged == [False, False, True, True, False]
    (_, newest) = sorted((tmp_path / "run" / "checkpoints").iterdir())
    assert torch.load(newest, weights_only=True)["scaler"]["scale"] == 65536.0 / 4
    overflow = lambda call: True  # noqa: E731
    with pytest.raises(InputError, match="the gradients overflow"):
        train(task, plan, run_in(tmp_path / "other", plan, fabric=fabric), fabric)


@pytest.mark.parametrize(
    ("poison", "said"), [("loss", "the loss is nan"), ("gradient", "the gradients overflow")]
)
def test_what_is_not_finite_stops_the_run_before_the_weights(tmp_path, poison, said):
    plan = recipe()
    task = task_of(plan)
    backward, calls = task.backward, []

    def poisoned(fabric, model, parts):
        calls.append(1)
        loss = backward(fabric, model, parts)
        if len(calls) == 6:
            if poison == "loss":
                return loss * float("nan")
            task.model.blocks[1].mlp.fc1.weight.grad[0, 0] = float("inf")
        return loss

    task.backward = poisoned
    with pytest.raises(InputError, match=rf"epoch 2, step 2 of 4: {said}"):
        train(task, plan, run_in(tmp_path / "run", plan), launched(Machine(), plan))
    assert all(value.isfinite().all() for value in task.model.state_dict().values())
    assert [p.name[:13] for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000004"]
    assert len(list((tmp_path / "run").glob("best-*.safetensors"))) == 1


def test_the_module_that_a_nan_came_from_is_named(tmp_path):
    plan = recipe("engine.precision=bf16", "engine.accumulate=2")
    task = task_of(plan)
    task.model.blocks[1].mlp.fc1.register_forward_hook(
        lambda module, args, output: output * float("nan") if steps_done() == 5 else None
    )
    run = run_in(tmp_path / "run", plan)
    after, done = run.after_step, [0]
    steps_done = lambda: done[0]  # noqa: E731

    def stepped(progress, **figures):
        done[0] = progress.step
        after(progress, **figures)

    run.after_step = stepped
    with pytest.raises(
        InputError, match=r"epoch 2, step 2 of 4: the loss is nan \(first in the output of blocks\.1\.mlp"
    ):
        train(task, plan, run, launched(Machine(), plan))


def test_a_model_that_does_not_fit_is_refused_with_the_batch_that_would(monkeypatch, folder):
    monkeypatch.setattr(room.hardware, "free_memory_mib", lambda: 900.0)
    start = starting(MODEL, classes=CLASSES, finder=WeightsFinder(offline=True))
    plan = load_recipe("light", ["batch_size=1024", "engine.precision=fp32"])
    with pytest.raises(
        InputError, match=r"needs about \d+ MiB, but 900 MiB is free: give --batch-size \d+"
    ) as caught:
        room.checked(start, plan, processes=1)
    most = int(str(caught.value).split("--batch-size ")[1].split(",")[0])
    assert 1 <= most < 1024
    assert "MiB free" in room.checked(
        start, load_recipe("light", [f"batch_size={most}", "engine.precision=fp32"]), processes=1
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": "test_vit2"}, "No trained weights of test_vit2 are known"),
        ({"model": "vit_nano", "from_scratch": True}, "timm has no architecture"),
        ({"model": "resnet18.a1_in1k"}, "--from-scratch"),
        ({"weights": Path("none.pth")}, "no weights file at none.pth"),
        ({"weights": Path("none.pth"), "from_scratch": True}, "leave --from-scratch out"),
        ({"image_size": 30}, "not a whole number of patches"),
        ({"recipe": recipe("batch_size=64")}, "more than the 27 training images"),
        ({"recipe": recipe("engine.precision=fp16")}, "fp16 training needs a GPU"),
        (
            {"machine": Machine(strategy="fsdp"), "recipe": recipe("regularization.average_decay=0.9")},
            "fsdp splits a model among GPUs",
        ),
    ],
)
def test_what_cannot_be_trained(tmp_path, folder, changes, said, monkeypatch):
    monkeypatch.setattr(room, "checked", lambda *_, **__: "")
    given = {"data": str(folder), "model": MODEL, "recipe": recipe(), "out": tmp_path / "run", **changes}
    with pytest.raises(InputError, match=said):
        finetune(FinetuneSetup(**given), WeightsFinder(offline=True), RunWatcher())


# --- processes ------------------------------------------------------------------------------------


def test_two_processes_learn_what_one_does(tmp_path, folder, in_process):
    """The same batches, shared: weights equal up to the order of sums."""
    more = ("optimizer.name=sgd", "optimizer.learning_rate=0.05", "augmentation.erase=0.5")
    options = (*(part for change in more for part in ("--set", change)), "--threads", "1")
    options = (*options, "--set", "engine.channels_last=false")
    assert in_process(command(folder, tmp_path / "one", *options)) == 0
    made = subprocess.run(
        command(folder, tmp_path / "two", *options, "--processes", "2"), capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr
    from safetensors.torch import load_file

    one, two = (trained.read(tmp_path / name) for name in ("one", "two"))
    for left, right in zip(one.history, two.history, strict=True):
        assert left.train_loss == pytest.approx(right.train_loss, rel=1e-4)
        assert left.accuracy == right.accuracy
    weights = [load_file(tmp_path / name / record.weights) for name, record in (("one", one), ("two", two))]
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], atol=1e-5, rtol=1e-3)


def in_processes(kind, out):
    """`train_in_processes.py` with its processes."""
    script = str(Path(__file__).parent / "train_in_processes.py")
    started = [sys.executable, script, kind, str(out)]
    return subprocess.run(started, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("kind", ["fsdp", "fsdp-1"])
def test_a_split_model_is_evaluated_and_kept_whole(tmp_path, kind):
    from safetensors.torch import load_file

    made = in_processes(kind, tmp_path / "split")
    assert made.returncode == 0, made.stderr
    whole = task_of(recipe())
    trained_weights(tmp_path / "whole", recipe(), whole)
    (file,) = (tmp_path / "split").glob("best-*.safetensors")
    (best,) = (tmp_path / "whole").glob("best-*.safetensors")
    for name, value in load_file(best).items():
        torch.testing.assert_close(load_file(file)[name], value, atol=1e-5, rtol=1e-3)
    (_, newest) = sorted((tmp_path / "split" / "checkpoints").iterdir())
    saved = torch.load(newest, weights_only=True)["model"]
    assert {name: value.shape for name, value in saved.items()} == {
        name: value.shape for name, value in whole.model.state_dict().items()
    }


def test_what_stops_one_process_stops_all_and_is_said_once(tmp_path):
    made = in_processes("refused", tmp_path / "run")
    assert made.returncode == 2, made.stderr
    assert made.stderr.count("No space left") == 1
    assert "said by 0" in made.stderr


# --- the command ----------------------------------------------------------------------------------


def test_training_then_selecting_in_one_command(tmp_path, folder, monkeypatch, in_process):
    """What `select` does with a run is tested in test_trained.py: here it is what it is asked."""
    from vitrail.cli import select

    requirements = tmp_path / "asked.toml"
    requirements.write_text('objective = "accuracy"\nruntimes = ["openvino"]\n')
    asked = []
    monkeypatch.setattr(select, "run", lambda args: asked.append(args) or 3)
    run, out = tmp_path / "run", tmp_path / "artifact"
    more = ("--image-size", "64", "--from-scratch", "--epochs", "2", "--json", str(tmp_path / "j.json"))
    more = (*more, "--then-select", str(requirements), "--artifact", str(out))
    assert in_process(command(folder, run, *more, model="test_vit")) == 3, "the exit code is that of select"
    (args,) = asked
    assert (args.requirements, args.trained, args.data, args.out) == (
        *(str(requirements), [str(run)], str(folder), str(out)),
    )
    assert args.offline
    document = json.loads((tmp_path / "j.json").read_text())
    assert document["architecture"] == "test_vit"
    assert len(document["history"]) == 2
    assert trained.read(run).finished


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--recipe", "lite"), "Did you mean light"),
        (("--set", "optimiser.clip_norm=5"), "no key 'optimiser'"),
        (("--artifact", "x"), "give --then-select TOML too"),
        (("--then-select", "none.toml"), "none.toml"),
        (("--then-select", "none.toml", "--json", "-"), "both write to the standard output"),
        (("--json", "/"), "--json / is a folder"),
        (("--processes", "0"), "'0' is not a whole number from 1 to 1024"),
        (("--processes", "1024"), "--processes 1024: there are"),
        (("--nodes", "2"), "do so with torchrun"),
        (("--strategy", "fsdp"), "leave --strategy out"),
    ],
)
def test_wrong_use_is_one_sentence(tmp_path, folder, more, said, capsys):
    from vitrail.cli import main

    assert (
        main(["train", "--data", str(folder), "--model", MODEL, "--out", str(tmp_path / "run"), *more]) == 2
    )
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()

"""What training is given and cannot use, or can although it looks odd: weights, sizes, memory, images."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from torch.utils.data import DataLoader

from vitrail.cli.train_options import existing, watcher_of
from vitrail.errors import InputError
from vitrail.learn import images, pairs_room, room
from vitrail.learn.order import Steps
from vitrail.learn.recipe import Augmentation, load_recipe
from vitrail.learn.start import starting
from vitrail.models import timm
from vitrail.vocabulary import Preprocess
from vitrail.weights.find import WeightsFinder

OFFLINE = WeightsFinder(offline=True)

# --- weights --------------------------------------------------------------------------------------


def saved(path, architecture, classes, image_size=64) -> tuple[Path, dict[str, torch.Tensor]]:
    """A file as a run leaves it, of random values, and its tensors."""
    model = timm.build(architecture, image_size=image_size, classes=classes, weights=None, seed=7)
    values = {name: value.clone() for name, value in model.state_dict().items()}
    save_file(values, path)
    return path, values


@pytest.mark.parametrize("architecture", ["tf_efficientnet_lite0", "test_vit", "test_convnext"])
@pytest.mark.parametrize("held", [0, 2, 3, 5])
def test_weights_of_any_number_of_classes_are_begun_with(tmp_path, architecture, held):
    file, values = saved(tmp_path / "best-1234.safetensors", architecture, held)
    start = starting(architecture, classes=3, finder=OFFLINE, image_size=64, weights=file)
    own = start.module.state_dict()
    scratch = timm.build(architecture, image_size=64, classes=3, weights=None).state_dict()
    assert {k: v.shape for k, v in own.items()} == {k: v.shape for k, v in scratch.items()}
    head = {name for name in own if name.startswith(("head.fc", "classifier", "head.weight", "head.bias"))}
    assert len(head) == 2
    for name in own.keys() - head:
        assert torch.equal(own[name], values[name]), name
    assert all(own[name].shape[0] == 3 for name in head)
    assert start.said == "the weights of best-1234.safetensors"


def test_the_weights_of_another_architecture_are_refused_in_this_command_s_words(tmp_path):
    file, _ = saved(tmp_path / "other.safetensors", "test_resnet", 3)
    with pytest.raises(InputError, match=r"does not fit .* \(--model\)"):
        starting("test_vit", classes=3, finder=OFFLINE, image_size=64, weights=file)


# --- image sizes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["test_resnet", "vit_nano_patch4_28", "tf_efficientnet_lite0"])
@pytest.mark.parametrize("size", [0, -5])
def test_an_image_size_is_1_or_more(model, size):
    with pytest.raises(InputError, match=f"--image-size {size}: give 1 or more"):
        starting(model, classes=3, finder=OFFLINE, image_size=size, from_scratch=True)


@pytest.mark.parametrize(
    ("model", "size"),
    [("inception_v3", 33), ("convnext_atto", 7), ("test_vit", 33), ("levit_128s", 33)],
)
def test_a_size_that_a_network_cannot_take_is_one_sentence(model, size):
    with pytest.raises(InputError, match="give another --image-size") as caught:
        starting(model, classes=3, finder=OFFLINE, image_size=size, from_scratch=True)
    assert str(caught.value).startswith(f"{model} does not take images of {size} px (")
    assert "\n" not in str(caught.value)


def test_a_shift_is_smaller_than_the_image():
    shifted = Augmentation(crop_area=None, pad=28)
    with pytest.raises(InputError, match=r"cannot be shifted by 28.*N below 28"):
        images.augmentation(shifted, Preprocess(image_size=28))
    made = images.augmentation(shifted, Preprocess(image_size=29))
    assert made(torch.zeros(3, 29, 29, dtype=torch.uint8)).shape == (3, 29, 29)


def test_a_shift_is_of_what_evaluation_sees_by_no_more_than_pad(tmp_path):
    # Each pixel's place is its colour, so that a shift can be read off.
    Image.fromarray(np.stack([*np.indices((28, 56), dtype=np.uint8), np.zeros((28, 56), np.uint8)], -1)).save(
        tmp_path / "wide.png"
    )
    change = Augmentation(crop_area=None, pad=3, flip=0.0)
    own = Preprocess(image_size=28, crop=1.0, mean=(0.0,) * 3, std=(1.0,) * 3)
    pixels = images.Pixels([images.stored(own, change)(str(tmp_path / "wide.png"))])
    made = images.TrainingImages(pixels, [0], images.augmentation(change, own), seed=0)
    shifts = set()
    for epoch in range(60):
        rows, columns, _ = (made[epoch, 0][0] * 255).round().int()
        shifts |= {int(rows[14, 14]) - 14, int(columns[14, 14]) - 28}
    assert shifts == set(range(-3, 4))


# --- memory ---------------------------------------------------------------------------------------


def machine(monkeypatch, free_mib, *, fixed=300.0, each=10.0):
    """A machine with so much free memory, where a step takes `fixed` MiB and `each` for each image."""
    asked = []

    def predict(setup, *, budget_mib):
        asked.append(setup.batch_size)
        largest = max(0, int((budget_mib - fixed) // each))
        return {"predicted_mib": {"total": fixed + each * setup.batch_size}, "largest_batch": largest}

    monkeypatch.setattr(room.hardware, "free_memory_mib", lambda: free_mib)
    monkeypatch.setattr(room.memory, "predict", predict)
    monkeypatch.setattr(pairs_room, "_needs", lambda *_: (fixed, each))
    return asked


START = SimpleNamespace(
    architecture="vit",
    preprocess=SimpleNamespace(image_size=28),
    implementation="vitrail",
    cost=SimpleNamespace(parameters=0),
)


def plan(batch, accumulate=1):
    return load_recipe("light", [f"batch_size={batch}", f"engine.accumulate={accumulate}"])


def takes(plan, world):
    """Whether the loop takes this batch."""
    return Steps(
        images=100_000,
        batch_size=plan.batch_size,
        epochs=1,
        seed=0,
        parts=plan.engine.accumulate,
        processes=world,
    )


@pytest.mark.parametrize(
    ("processes", "world", "at_once", "share_mib"),
    [(1, None, 32, 900), (2, None, 16, 450), (2, 4, 8, 450), (1, 4, 8, 900)],
)
def test_the_batch_is_shared_by_all_processes_and_memory_by_this_machine_s(
    monkeypatch, processes, world, at_once, share_mib
):
    asked = machine(monkeypatch, 900.0, fixed=100.0)
    said = room.checked(START, plan(64, 2), processes=processes, world=world)
    assert asked == [at_once]
    assert f"of {share_mib} MiB free" in said
    model = SimpleNamespace()
    said = pairs_room.checked(model, torch.zeros(1, 1), plan(64, 2), processes=processes, world=world)
    assert said == f"a step takes about {100 + 10 * at_once} of {share_mib} MiB free"


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("nodes", [1, 3])
@pytest.mark.parametrize("accumulate", [1, 2, 5])
def test_what_a_full_machine_advises_is_taken_and_fits(monkeypatch, processes, nodes, accumulate):
    machine(monkeypatch, 420.0 * processes)
    world, batch = processes * nodes, 420 * processes * nodes * accumulate
    with pytest.raises(InputError, match="is free: give --batch-size") as caught:
        room.checked(START, plan(batch, accumulate), processes=processes, world=world)
    smaller = int(str(caught.value).split("--batch-size ")[1].split(",")[0])
    parts = int(str(caught.value).split("engine.accumulate=")[1].rstrip("."))
    assert accumulate < parts
    for advised in (plan(smaller, accumulate), plan(batch, parts)):
        assert takes(advised, world)
        assert "MiB free" in room.checked(START, advised, processes=processes, world=world)
    larger = smaller + 2 * world * accumulate  # one image each is left as room
    with pytest.raises(InputError):
        room.checked(START, plan(larger, accumulate), processes=processes, world=world)
    with pytest.raises(InputError, match=r"engine\.accumulate=") as caught:
        pairs_room.checked(None, None, plan(batch, accumulate), processes=processes, world=world)
    advised = plan(batch, int(str(caught.value).split("engine.accumulate=")[1].rstrip(".")))
    assert takes(advised, world)
    assert "MiB free" in pairs_room.checked(None, None, advised, processes=processes, world=world)


@pytest.mark.parametrize("check", [room.checked, lambda s, p, **n: pairs_room.checked(s, None, p, **n)])
def test_where_not_one_image_fits_another_model_is_advised(monkeypatch, check):
    machine(monkeypatch, 200.0)
    with pytest.raises(InputError, match="is free: choose a smaller model"):
        check(START, plan(64), processes=1)


@given(batch=st.integers(1, 200), most=st.integers(-1, 70), world=st.integers(1, 4))
def test_the_fewest_parts_are_the_fewest(batch, most, world):
    fitting = [
        n for n in range(1, batch + 1) if batch % (n * world) == 0 and 1 <= batch // (n * world) <= most
    ]
    assert room.fewest_parts(batch, most, world) == (fitting[0] if fitting else None)


# --- images that get lost -------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("loss", ["deleted", "damaged"])
def test_an_image_that_gets_lost_is_one_sentence(tmp_path, workers, loss):
    paths = [str(tmp_path / f"LostImage: {i}.png") for i in range(4)]
    for path in paths:
        Image.new("RGB", (32, 32)).save(path)
    make = images.stored(Preprocess(image_size=28), Augmentation())
    pixels = images.read_pixels(paths, make, threads=1, memory_mib=0.001)
    assert isinstance(pixels, images.PixelsOnDemand)
    change = images.augmentation(Augmentation(), Preprocess(image_size=28))
    loader = DataLoader(
        images.TrainingImages(pixels, [0, 1, 2, 3], change, seed=0),
        batch_sampler=[[(0, 0), (0, 1)], [(0, 2), (0, 3)]],
        num_workers=workers,
    )
    if loss == "deleted":
        os.remove(paths[3])
    else:
        Path(paths[3]).write_bytes(Path(paths[3]).read_bytes()[:60])
    parts = iter(loader)
    next(parts)
    with pytest.raises(InputError) as caught:
        next(parts)
    with pytest.raises(InputError) as plain:
        make(paths[3])
    assert str(caught.value) == str(plain.value)
    assert str(caught.value).startswith(paths[3])


# --- the command ----------------------------------------------------------------------------------


@pytest.mark.parametrize("said", ["run[1] and [/] and [red]x[/red]", "going :cat: on"])
def test_brackets_and_colons_are_shown_as_they_are(capsys, said):
    watcher = watcher_of(argparse.Namespace(json=None))
    watcher.note(said)
    watcher.end()
    assert capsys.readouterr().out == f"{said}\n"


def test_a_file_that_is_given_exists(tmp_path):
    assert existing(None) is None
    with pytest.raises(InputError, match=r"There is no file .*none\.pth: check the path"):
        existing(str(tmp_path / "none.pth"))
    with pytest.raises(InputError, match="There is no file"):
        existing(str(tmp_path))
    (tmp_path / "some.pth").touch()
    assert existing(str(tmp_path / "some.pth")) == tmp_path / "some.pth"

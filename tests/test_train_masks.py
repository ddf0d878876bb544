"""`vitrail train --task segment`: the loss, photos and masks moved together, a run killed and gone on with,
bad data, and from a folder of masks to an artifact that makes them. About 100 s of CPU time."""

from __future__ import annotations

import functools
import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from mask_nets import CLASSES, write_photos
from PIL import Image
from safetensors.torch import load_file, save_file

from vitrail import models, tasks
from vitrail import vocabulary as v
from vitrail.cli import main
from vitrail.data import Dataset
from vitrail.errors import InputError
from vitrail.learn import room, trained
from vitrail.learn.finetune import finetune
from vitrail.learn.images import Pixels, augmentation
from vitrail.learn.launch import launched
from vitrail.learn.outlook import outlook
from vitrail.learn.recipe import load_recipe
from vitrail.learn.run import Run, RunWatcher
from vitrail.learn.segment import AUXILIARY, EvaluatedMasks, Masks, SegmenterTraining, TrainingMasks, stored
from vitrail.learn.setup import FinetuneSetup, Machine
from vitrail.masks.dataset import IGNORED
from vitrail.masks.iou import IGNORE, ClassIous
from vitrail.measure.latency import Plan
from vitrail.models.upernet_config import VARIANTS
from vitrail.profiling import memory
from vitrail.selection import search, select
from vitrail.sources.trained import TrainedRuns
from vitrail.vocabulary import Preprocess
from vitrail.weights.find import WeightsFinder

pytestmark = pytest.mark.slow

NANO, SIDE = "upernet_swin_nano", 32
SQUASHED = Preprocess(image_size=SIDE, crop=1.0, crop_mode="squash")
QUICK = ("epochs=2", "batch_size=6", "optimizer.warmup_epochs=0.5", "engine.precision=fp32")


def plan(*changes, name="masks"):
    return load_recipe(name, [*QUICK, *changes])


def small():
    """A UPerNet of 60,000 parameters, without the randomness of stochastic depth."""
    torch.manual_seed(0)
    swin = VARIANTS[NANO].backbone
    changes = {"width": 8, "depths": (1, 1, 1, 1), "heads": (1, 1, 2, 2), "drop_path": 0.0}
    backbone = type(swin)(**{**vars(swin), **changes})
    return models.build(
        NANO, image_size=SIDE, num_classes=3, backbone=backbone, head_width=16, auxiliary_width=8
    ).train()


def pixels(count=8, seed=0):
    """Photos whose labels are random rectangles, a part of them not judged."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(count):
        labels = np.zeros((SIDE, SIDE), np.uint8)
        for value in (1, 2, IGNORE):
            top, left = rng.integers(0, SIDE // 2, 2)
            labels[top : top + rng.integers(2, 16), left : left + rng.integers(2, 16)] = value
        photo = rng.integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)
        found.append(np.concatenate([photo, labels[..., None]], 2))
    return Pixels(found)


def training(model=None, *, held_out=None, **changes):
    recipe = plan("augmentation.crop_area=none", "augmentation.color=0")
    held = held_out or pixels(5, seed=1)
    return SegmenterTraining(
        model=model or small(),
        images=TrainingMasks(pixels(), augmentation(recipe.augmentation, SQUASHED), seed=0),
        validation=EvaluatedMasks(held, SQUASHED),
        regularization=recipe.regularization,
        classes=3,
        channels_last=False,
        **changes,
    )


# --- the loss and the figures ---------------------------------------------------------------------


def by_hand(model, images, labels):
    """The loss in NumPy: the mean over judged pixels of both heads, pixel by pixel."""
    with torch.no_grad():
        both = model(images, both=True)
    totals = []
    for scores in (both.scores_BKHW, both.auxiliary_BKHW):
        scores, true = scores.double().numpy(), labels.numpy()
        lost = [
            math.log(sum(math.exp(s) for s in scores[b, :, y, x])) - scores[b, true[b, y, x], y, x]
            for b, y, x in np.argwhere(true != IGNORE)
        ]
        totals.append(float(np.mean(lost)))
    return (totals[0] + AUXILIARY * totals[1]) / (1 + AUXILIARY)


def test_the_loss_is_the_mean_over_judged_pixels():
    task, fabric = training(), launched(Machine(), plan())
    batch = [task.images[0, i] for i in range(4)]
    images, labels = (torch.stack(each) for each in zip(*batch, strict=True))
    labels[3, :30] = IGNORE  # few pixels are left of the last photo
    task.model.eval()  # batch norm would see other statistics in parts
    whole = task.backward(fabric, task.model, [(images, labels)])
    assert float(whole) == pytest.approx(by_hand(task.model, images, labels), rel=1e-5)
    expected = {name: p.grad.clone() for name, p in task.model.named_parameters()}
    task.model.zero_grad()
    parts = task.backward(fabric, task.model, [(images[:2], labels[:2]), (images[2:], labels[2:])])
    assert float(parts) == pytest.approx(float(whole), rel=1e-5)
    for name, parameter in task.model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=1e-6, rtol=1e-3)


def test_photos_without_a_judged_pixel_teach_nothing():
    task, fabric = training(), launched(Machine(), plan())
    labels = torch.full((2, SIDE, SIDE), IGNORE)
    assert float(task.backward(fabric, task.model, [(torch.randn(2, 3, SIDE, SIDE), labels)])) == 0
    assert all(not p.grad.any() for p in task.model.parameters())


def test_mean_iou_is_that_of_all_pixels():
    held = pixels(5, seed=1)
    task, fabric = training(held_out=held), launched(Machine(), plan())
    found = task.evaluate(fabric, task.model.eval())
    counted, right, lost = ClassIous(["a", "b", "c"], ignore=IGNORE), [], []
    with torch.no_grad():
        for i in range(5):
            image, labels = task.validation[i]
            scores = task.model(image[None])[0]
            said, true = scores.argmax(0).numpy(), labels.numpy()
            counted.add(true, said)
            judged = true != IGNORE
            right += (said == true)[judged].tolist()
            lost += torch.nn.functional.cross_entropy(
                scores[None], labels[None], ignore_index=IGNORE, reduction="none"
            )[0].numpy()[judged].tolist()  # fmt: skip
    assert found["mean_iou"] == pytest.approx(100 * counted.result().value, abs=1e-9)
    assert found["pixel_accuracy"] == pytest.approx(100 * np.mean(right), abs=1e-9)
    assert found["validation_loss"] == pytest.approx(np.mean(lost), rel=1e-5)


# --- photos and masks together --------------------------------------------------------------------

COLOURS = np.array([(20, 20, 20), (230, 40, 40), (40, 220, 60)])


def painted(labels):
    """A photo that shows the labels."""
    return np.concatenate([COLOURS[labels].astype(np.uint8), labels[..., None].astype(np.uint8)], 2)


@pytest.mark.parametrize(
    "changes",
    [
        ("augmentation.crop_area=[0.2, 0.8]", "augmentation.flip_vertical=0.5"),
        ("augmentation.crop_area=none", "augmentation.pad=9"),
    ],
)
def test_a_mask_goes_where_its_photo_goes(changes):
    """Away from edges, where the photo is interpolated, every pixel has the colour of its label."""
    recipe = plan("augmentation.color=0", *changes)
    rng, images = np.random.default_rng(0), []
    for _ in range(12):
        labels = np.zeros((SIDE, SIDE), np.int64)
        labels[rng.integers(0, 9) : rng.integers(14, 30), rng.integers(0, 9) : rng.integers(14, 30)] = 1
        labels[rng.integers(20, 25) :, : rng.integers(5, 30)] = 2
        images.append(painted(labels))
    made = TrainingMasks(Pixels(images), augmentation(recipe.augmentation, SQUASHED), seed=3)
    mean, std = (np.array(each)[:, None, None] for each in (SQUASHED.mean, SQUASHED.std))
    moved = 0
    for epoch in range(20):
        for index in range(len(images)):
            image, labels = made[epoch, index]
            assert (image.shape, labels.shape) == ((3, SIDE, SIDE), (SIDE, SIDE))
            assert type(image) is type(labels) is torch.Tensor
            shown = (image.numpy() * std + mean)[..., None] * 255 - COLOURS.T[:, None, None]
            nearest, true = (shown**2).sum(0).argmin(-1), labels.numpy()
            inner = np.ones_like(true, bool)
            for down in (-2, -1, 0, 1, 2):
                for across in (-2, -1, 0, 1, 2):
                    inner &= np.roll(true, (down, across), (0, 1)) == true
            inner[:2], inner[-2:], inner[:, :2], inner[:, -2:] = False, False, False, False
            assert (nearest == true)[inner].all()
            moved += not np.array_equal(true, images[index][..., 3])
            again = made[epoch, index]
            assert torch.equal(again[0], image)
            assert torch.equal(again[1], labels)
    assert moved > 150


def test_a_photo_is_squashed_with_its_mask(tmp_path):
    """Each kept label is that of the pixel under its middle; what is not judged stays so."""
    labels = np.random.default_rng(0).integers(-1, 3, (90, 64)).astype(np.int16)
    Image.new("RGB", (64, 90)).save(tmp_path / "photo.png")
    change = plan().augmentation
    for how, side in ((None, 32), (change, 42), (plan("augmentation.crop_area=none").augmentation, 32)):
        kept = stored(SQUASHED, lambda _: labels, how)(str(tmp_path / "photo.png"))
        assert kept.shape == (side, side, 4)
        for row in range(side):
            for column in range(side):
                under = labels[int((row + 0.5) * 90 / side), int((column + 0.5) * 64 / side)]
                assert kept[row, column, 3] == (IGNORE if under == IGNORED else under)
    tiny = stored(SQUASHED, lambda _: labels[:20, :16], change)
    Image.new("RGB", (16, 20)).save(tmp_path / "photo.png")
    assert tiny(str(tmp_path / "photo.png")).shape == (20, 20, 4), "no larger than the photo"


# --- runs -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """40 photos of 60 × 90 with a disc and a bar, and names for their numbers."""
    place = write_photos(tmp_path_factory.mktemp("masks") / "data", 40, masks="classes")
    (place.parent / "labels.txt").write_text("\n".join(CLASSES) + "\n")
    return place


def setup_of(folder, out, **changes):
    given = {
        "task": "segment", "data": str(folder), "labels": folder.parent / "labels.txt", "model": NANO,
        "recipe": plan(), "out": out, "image_size": SIDE, "machine": Machine(threads=1),
    }  # fmt: skip
    return FinetuneSetup(**{**given, **changes})


def run(setup, watcher=None):
    return finetune(setup, WeightsFinder(offline=True), watcher or RunWatcher())


def test_a_run_that_was_killed_ends_with_the_same_bits(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(room, "checked", lambda *_, **__: "")
    whole = run(setup_of(folder, tmp_path / "whole"))
    real, steps = Run.after_step, []

    def dies(self, progress, **figures):
        real(self, progress, **figures)
        steps.append(progress.step)
        if progress.step == 6:
            raise KeyboardInterrupt

    monkeypatch.setattr(Run, "after_step", dies)
    with pytest.raises(KeyboardInterrupt):
        run(setup_of(folder, tmp_path / "killed", checkpoint_every=5))
    monkeypatch.setattr(Run, "after_step", real)
    again = run(setup_of(folder, tmp_path / "killed", checkpoint_every=5))
    assert steps == [1, 2, 3, 4, 5, 6]
    assert [each.train_loss for each in again.history] == [each.train_loss for each in whole.history]
    assert again.sha256 == whole.sha256
    assert (whole.task, whole.classes) == ("segment", list(CLASSES))
    assert whole.preprocess.crop_mode == "squash"


def test_several_processes_divide_the_validation_photos(tmp_path, folder):
    """What two processes counted together is what one counts with the weights that they left."""
    arguments = ["train", "--task", "segment", "--data", str(folder), "--model", NANO, "--image-size", "32"]
    arguments += ["--labels", str(folder.parent / "labels.txt"), "--out", str(tmp_path / "two")]
    arguments += ["--processes", "2", "--threads", "1", *(x for each in QUICK for x in ("--set", each))]
    made = subprocess.run([sys.executable, "-m", "vitrail", *arguments], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    assert "best validation mean IoU" in made.stdout
    record = trained.read(tmp_path / "two")
    setup = setup_of(folder, tmp_path / "none")
    learner = Masks(setup)
    dataset = learner.dataset()
    start = learner.start(dataset, WeightsFinder(offline=True))
    task = learner.training(start, dataset, print)
    task.model.load_state_dict(load_file(tmp_path / "two" / record.weights))
    figures = task.evaluate(launched(Machine(), setup.recipe), task.model.eval())
    assert figures["mean_iou"] == pytest.approx(max(e.accuracy for e in record.history), abs=1e-3)


def test_a_guess_is_what_classes_shares_say(folder, tmp_path):
    """Pixels are unequal: a model that knows nothing else has a loss below ln 3."""
    learner = Masks(setup_of(folder, tmp_path))
    dataset = learner.dataset()
    start = learner.start(dataset, WeightsFinder(offline=True))
    task = learner.training(start, dataset, print)
    counts = sum(
        np.bincount(task.images._pixels[i][..., 3].ravel(), minlength=3) for i in range(len(task.images))
    )
    shares = counts / counts.sum()
    assert task.guess == pytest.approx(-(shares * np.log(shares)).sum(), rel=1e-9)
    assert task.guess < 0.8 * math.log(3)
    curve = [
        v.TrainingEpoch(epoch=1, step=1, seconds=1, learning_rate=1e-3, train_loss=0.4, validation_loss=0.4,
                        accuracy=30.0)
    ]  # fmt: skip
    record = trained.Trained(
        name="x", task="segment", architecture=NANO, family="upernet", implementation="vitrail",
        classes=list(CLASSES), preprocess=SQUASHED, parameters=1, macs=1, activations=1, sha256="", start="x",
        license="own", recipe="x", recipe_digest="x", data="x", data_digest="x", seen=[], epochs=1,
        finished=True, history=curve, guess=task.guess,
    )  # fmt: skip
    found = outlook(record)
    assert found is not None
    assert f"a guess has {task.guess:.2f}" in found.why


def test_memory_is_predicted_also_where_one_photo_fits():
    """Batch norm takes no statistics of one photo pooled to one cell; its memory is followed all the same."""
    setup = memory.MemorySetup(model=NANO, image_size=SIDE, batch_size=2, training=True)
    found = memory.predict(setup, budget_mib=1.0)
    assert found["largest_batch"] == 0
    assert found["predicted_mib"]["activations"] > 0
    assert found["predicted_mib"]["gradients"] > 14, "MiB of 3.9 M parameters"


# --- what a run starts from -----------------------------------------------------------------------


def test_weights_are_a_upernet_s_or_a_swin_s(tmp_path, folder):
    torch.manual_seed(1)
    whole, swin = models.build(NANO, num_classes=7), VARIANTS[NANO].backbone
    save_file(dict(whole.state_dict()), tmp_path / "whole.safetensors")
    backbone = {f"{name}": value for name, value in whole.backbone.state_dict().items()}
    classifier = {"head.fc.weight": torch.randn(5, 8 * swin.width), "head.fc.bias": torch.randn(5)}
    save_file(backbone | classifier, tmp_path / "swin.safetensors")

    def starts(file):
        learner = Masks(setup_of(folder, tmp_path, weights=tmp_path / file, image_size=128))
        return learner.start(learner.dataset(), WeightsFinder(offline=True))

    found, part = starts("whole.safetensors"), starts("swin.safetensors")
    for name, value in whole.backbone.state_dict().items():
        if value.dtype.is_floating_point and "index" not in name:
            assert torch.equal(found.module.backbone.state_dict()[name], value), name
            assert torch.equal(part.module.backbone.state_dict()[name], value), name
    assert torch.equal(
        found.module.decode_head.bottleneck.conv.weight, whole.decode_head.bottleneck.conv.weight
    )
    assert not torch.equal(
        part.module.decode_head.bottleneck.conv.weight, whole.decode_head.bottleneck.conv.weight
    )
    assert found.module.decode_head.classifier.out_channels == len(CLASSES)
    assert "backbone only" in part.said


# --- what cannot be trained -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"labels": None}, "number their classes and do not name them: give --labels FILE"),
        ({"layout": "class"}, "--layout is about folders of classes"),
        ({"model": "swin_tiny_patch4_window7_224"}, "gives no class for each pixel: give --model upernet"),
        ({"model": "upernet_swin_tiny"}, "No trained weights of upernet_swin_tiny are known"),
        ({"recipe": plan(name="full")}, "augmentation.randaugment=none --set augmentation.erase=0"),
        ({"recipe": plan("engine.accumulate=6")}, "one photo at a time"),
        ({"recipe": plan("batch_size=64")}, "more than the 24 training images"),
        ({"task": "classify"}, "--labels names the classes of masks"),
    ],
)
def test_what_does_not_go_with_masks_is_one_sentence(tmp_path, folder, monkeypatch, changes, said):
    monkeypatch.setattr(room, "checked", lambda *_, **__: "")
    with pytest.raises(InputError, match=said):
        run(setup_of(folder, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def masks_of(place, values):
    """Photos of 20 × 20 with masks of one value each."""
    for name in ("photos", "masks"):
        (place / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i, value in enumerate(values):
        pixels = rng.integers(0, 255, (20, 20, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(place / "photos" / f"{i}.jpg")
        Image.fromarray(np.full((20, 20), value, np.uint8)).save(place / "masks" / f"{i}.png")
    (place.parent / "labels.txt").write_text("ground\ndisc\nbar\n")
    return place


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([0] * 9, "show nothing but ground: give masks with two classes"),
        ([1, 255, 255, 2, 255, 255, 255, 255, 255, 255, 255, 255], "show nothing but|have no labelled pixel"),
        ([0, 1, 2, 7, 1, 2, 0, 0, 1], "hold values up to 7"),
    ],
)
def test_masks_that_tell_nothing_apart_are_refused(tmp_path, monkeypatch, values, said):
    monkeypatch.setattr(room, "checked", lambda *_, **__: "")
    place = masks_of(tmp_path / "data", values)
    with pytest.raises(InputError, match=said):
        run(setup_of(place, tmp_path / "run", recipe=plan("batch_size=2")))
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_mask_of_another_size_and_folders_of_classes_are_refused(tmp_path, folder, capsys):
    place = write_photos(tmp_path / "data", 6, masks="classes")
    Image.new("L", (9, 9)).save(place / "masks" / "03.png")
    arguments = ["train", "--task", "segment", "--model", NANO, "--out", str(tmp_path / "run")]
    arguments += ["--labels", str(folder.parent / "labels.txt"), "--data"]
    assert main([*arguments, str(place)]) == 2
    assert "has 90 × 60 pixels, but its mask 9 × 9" in capsys.readouterr().err
    classes = tmp_path / "classes"
    for name in ("cat", "dog"):
        (classes / name).mkdir(parents=True)
        Image.new("RGB", (9, 9)).save(classes / name / "1.jpg")
    assert main([*arguments, str(classes)]) == 2
    error = capsys.readouterr().err
    assert "mask" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_what_is_odd_about_masks_is_said(tmp_path, folder):
    """Gaps in the numbers, photos of one class, and photos without a label do not stop a run."""
    place = write_photos(tmp_path / "data", 30, masks="classes")
    for path in sorted((place / "masks").iterdir()):
        labels = np.asarray(Image.open(path)).copy()
        labels[labels == 1] = 3 if int(path.stem) > 9 else 0
        labels[labels == 2] = 0 if int(path.stem) < 10 else 255
        Image.fromarray(np.full_like(labels, 255) if int(path.stem) in (3, 4, 5, 6) else labels).save(path)
    (tmp_path / "labels.txt").write_text("ground\ndisc\nbar\nball\n")
    learner, notes = Masks(setup_of(place, tmp_path / "run")), []
    dataset = learner.dataset()
    start = learner.start(dataset, WeightsFinder(offline=True))
    task = learner.training(start, dataset, notes.append)
    said = " · ".join(notes)
    trains = [int(example.path[-6:-4]) for example in dataset.of("train")]
    empty = sum(number in (3, 4, 5, 6) for number in trains)
    alone = sum(number < 10 for number in trains) - empty
    assert f"{alone} of {len(trains)} training photos show one class only" in said
    assert f"{empty} of {len(trains)} training photos have no labelled pixel" in said
    assert "no training photo shows disc, bar: 2 classes that will hardly be found" in said
    assert task.classes == 4


def test_coco_names_its_classes_and_its_ids_may_have_gaps(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    images, annotations = [], []
    for i in range(6):
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (20, 30, 3)).astype(np.uint8)).save(
            photos / f"{i}.png"
        )
        images.append({"id": 10 * i, "file_name": f"{i}.png", "width": 30, "height": 20})
        if i:  # the first shows nothing
            annotations.append({
                "id": i, "image_id": 10 * i, "category_id": 7 if i % 2 else 90, "iscrowd": 0, "area": 36,
                "bbox": [2, 2, 6, 6], "segmentation": [[2, 2, 8, 2, 8, 8, 2, 8]],
            })  # fmt: skip
    categories = [{"id": 7, "name": "cat"}, {"id": 90, "name": "dog"}]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "instances.json").write_text(json.dumps(document))
    dataset = Masks(setup_of(tmp_path, tmp_path / "run", labels=None)).dataset()
    assert dataset.classes == ("background", "cat", "dog")
    labels = {example.path[-5]: dataset.truth(example) for example in dataset.examples}
    assert not labels["0"].any()
    assert sorted(np.unique(labels["1"])) == [0, 1]
    assert sorted(np.unique(labels["2"])) == [0, 2]
    assert labels["2"][3, 3] == 2


# --- on the road ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def learned(tmp_path_factory, folder):
    """A run that finds the disc and the bar, and a place for what is made of it."""
    place = tmp_path_factory.mktemp("learned")
    recipe = plan("epochs=12", "optimizer.learning_rate=3e-3", "optimizer.warmup_epochs=1")
    record = run(setup_of(folder, place / "run", recipe=recipe))
    assert max(epoch.accuracy for epoch in record.history) > 60
    return place


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_a_run_of_masks_ships_in(tmp_path, folder, learned, monkeypatch, precision):
    monkeypatch.setenv("VITRAIL_CACHE", str(learned / "cache"))
    monkeypatch.setattr(select, "known_peaks", lambda *_, **__: {})
    # What is timed decides nothing here.
    monkeypatch.setattr(search, "Plan", functools.partial(Plan, block_s=0.02, rounds=2, final_calls=12))
    monkeypatch.setattr(search, "FIRST_SCREEN_S", 0.2)
    monkeypatch.setattr(search, "WAIT_MOST_S", 0.0)
    record = trained.read(learned / "run")
    found = select.select(
        v.Requirements(min_accuracy=55),
        v.Workload(threads=1),
        v.SearchSettings(
            task="segment", runtimes=("openvino",), precisions=(precision,), offline=True, passes=(),
            budget_s=600,
        ),
        sources=[TrainedRuns([learned / "run"])],
        out=tmp_path / "winner",
    )  # fmt: skip
    assert found.winner is not None, [entry.reasons for entry in found.ledger]
    seen = found.winner.observation
    assert found.winner.variant.precision == precision
    assert seen.parity.answer == "pass"
    assert seen.quality.main.metric == "mean IoU"
    # Counted at the photos' sizes, and not at the model's: near, not equal.
    assert abs(seen.quality.main.value - max(e.accuracy for e in record.history)) < 8
    assert found.trainings[0].history[-1].accuracy == record.history[-1].accuracy

    assert main(["verify", str(tmp_path / "winner")]) == 0
    photo = folder / "photos" / "07.jpg"
    assert main(["segment", str(tmp_path / "winner"), str(photo), "--out", str(tmp_path / "made")]) == 0
    made = np.asarray(Image.open(tmp_path / "made" / "masks" / "07.png"))
    true = np.asarray(Image.open(folder / "masks" / "07.png"))
    assert made.shape == true.shape
    assert (made == true).mean() > 0.9
    import vitrail

    with vitrail.load(tmp_path / "winner") as model:
        assert isinstance(model.task, tasks.known("segment"))
        (again,) = model.segment([photo])
    np.testing.assert_array_equal(again.labels(), made)


def test_a_run_of_masks_is_asked_for_by_its_task(tmp_path, folder, monkeypatch, capsys):
    monkeypatch.setattr(room, "checked", lambda *_, **__: "")
    run(setup_of(folder, tmp_path / "run", recipe=plan("epochs=1")))
    capsys.readouterr()
    arguments = [
        "select",
        "--trained",
        str(tmp_path / "run"),
        "--data",
        str(folder),
        "--out",
        str(tmp_path / "w"),
    ]
    assert main(arguments) == 2
    assert "was trained with --task segment, and --task classify is asked for" in capsys.readouterr().err
    other = masks_of(tmp_path / "other", [0, 1, 2, 9, 1, 2, 0, 0, 1])
    assert main([*arguments, "--task", "segment", "--data", str(other)]) == 2
    assert "hold values up to 9" in capsys.readouterr().err
    source = TrainedRuns([tmp_path / "run"])
    dataset: Dataset = source.read_labelled(str(folder), v.SearchSettings(task="segment"))
    source.check(v.Requirements(), v.SearchSettings(task="segment"), dataset)
    _, own = source.labelled_images(None)
    assert own.digest == dataset.digest

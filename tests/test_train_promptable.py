"""Learning to segment what is clicked on: prompts, loss and photos against plain versions, and whole runs."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from torch import nn
from training import Stop, crashing, run_in, same

from vitrail import models
from vitrail.cli import main
from vitrail.images.decode import decode
from vitrail.images.letterbox import letterbox
from vitrail.learn import prompts, room
from vitrail.learn.images import Pixels, augmentation
from vitrail.learn.launch import launched
from vitrail.learn.promptable import (
    EvaluatedObjects,
    PromptableTraining,
    PromptedSAM,
    TrainingObjects,
    compared,
    guess_of,
    rounds_of,
    stored,
    unpacked,
)
from vitrail.learn.recipe import Augmentation, load_recipe
from vitrail.learn.run import Run
from vitrail.learn.setup import Machine
from vitrail.learn.train import train
from vitrail.masks import rle
from vitrail.masks.iou import iou
from vitrail.models.sam import SAM, Prompts
from vitrail.vocabulary import Preprocess

SIZE = 32
TINY = {
    "width": 32,
    "depth": 2,
    "heads": 2,
    "window": 2,
    "global_blocks": (1,),
    "embed_width": 32,
    "decoder_heads": 2,
    "decoder_mlp_width": 32,
    "iou_width": 16,
}
PREPARED = Preprocess(image_size=SIZE, crop=1.0, crop_mode="letterbox", interpolation="bilinear")


def tiny(seed=0, **changes):
    torch.manual_seed(seed)
    return PromptedSAM.of(models.build("sam_vit_nano", image_size=SIZE, **{**TINY, **changes})).train()


def blobs(rng, count, side=SIZE):
    y, x = np.mgrid[:side, :side]
    middle, radius = rng.uniform(0.2, 0.8, (count, 2)) * side, rng.uniform(0.1, 0.3, (count, 2)) * side
    return np.stack(
        [
            ((y - m[0]) / r[0]) ** 2 + ((x - m[1]) / r[1]) ** 2 <= 1
            for m, r in zip(middle, radius, strict=True)
        ]
    )


# --- prompts --------------------------------------------------------------------------------------


def test_first_prompts_lie_in_their_object_or_around_it():
    objects = torch.from_numpy(blobs(np.random.default_rng(0), 400))
    torch.manual_seed(0)
    first = prompts.drawn(objects)
    assert 60 < first.clear_G.sum() < 140, "a quarter are boxes"
    seen = set()
    for mask, points, labels, clear in zip(objects, *first[:2], first.clear_G, strict=True):
        if clear:
            assert labels.tolist() == [2, 3]
            (left, top), (right, bottom) = points.tolist()
            rows, columns = (mask.any(axis).nonzero()[:, 0] for axis in (1, 0))
            true = torch.tensor([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).float()
            sides = (true[2:] - true[:2]).repeat(2)
            off = (torch.tensor([left, top, right, bottom]) - true).abs() / sides
            assert (off < 0.5).all()
            assert min(left, top) >= 0
            assert max(right, bottom) <= SIZE
        else:
            assert labels.tolist() == [1, -1]
            x, y = points[0].int().tolist()
            assert mask[y, x]
            seen.add((x, y))
    assert len(seen) > 150, "anywhere in the object"


def test_a_correction_is_where_the_mask_is_wrong():
    rng = np.random.default_rng(1)
    objects, found = (torch.from_numpy(blobs(rng, 300)) for _ in range(2))
    found[:20] = objects[:20]
    torch.manual_seed(0)
    clicks, labels = prompts.correction(found, objects)
    for g in range(300):
        x, y = clicks[g, 0].int().tolist()
        assert labels[g, 0] == int(objects[g, y, x])
        assert (found[g, y, x] != objects[g, y, x]) or (g < 20 and objects[g, y, x])
    assert {0, 1} == set(labels.flatten().tolist())


def test_prompts_of_an_object_without_a_pixel_are_numbers():
    nothing = torch.zeros(8, SIZE, SIZE, dtype=torch.bool)
    first = prompts.drawn(nothing)
    clicks, _ = prompts.correction(nothing, nothing)
    for points in (first.points_GN2, clicks):
        assert ((points >= 0) & (points <= SIZE)).all()


# --- loss -----------------------------------------------------------------------------------------


def test_losses_are_focal_and_dice_pixel_by_pixel():
    rng = np.random.default_rng(2)
    scores, objects = torch.randn(2, 3, 5, 5, dtype=torch.float64) * 3, torch.from_numpy(blobs(rng, 2, 5))
    found = prompts.losses(scores, objects)
    for g in range(2):
        for m in range(3):
            focal, both, total = 0.0, 0.0, 0.0
            for y in range(5):
                for x in range(5):
                    p, inside = 1 / (1 + math.exp(-scores[g, m, y, x])), bool(objects[g, y, x])
                    right = p if inside else 1 - p
                    focal -= (0.25 if inside else 0.75) * (1 - right) ** 2 * math.log(right) / 25
                    both, total = both + p * inside, total + p + inside
            expected = 20 * focal + 1 - (2 * both + 1) / (total + 1)
            assert found[g, m].item() == pytest.approx(expected, rel=1e-5)


def test_ious_are_those_of_masks():
    rng = np.random.default_rng(3)
    scores, objects = torch.from_numpy(blobs(rng, 12).reshape(4, 3, SIZE, SIZE) - 0.5), blobs(rng, 4)
    scores[0, 0], objects[3] = -1, False
    found = prompts.ious(scores, torch.from_numpy(objects))
    for g in range(4):
        for m in range(3):
            assert found[g, m].item() == pytest.approx(iou(scores[g, m].numpy() > 0, objects[g]))


def test_guessing_loses_what_is_said():
    objects = blobs(np.random.default_rng(4), 3, 256)
    shares = objects.mean((1, 2))
    flat = torch.full((3, 1, 256, 256), math.log(shares.mean() / (1 - shares.mean())))
    assert guess_of(shares) == pytest.approx(
        prompts.losses(flat, torch.from_numpy(objects)).mean().item(), rel=1e-3
    )


class Fixed(nn.Module):
    """A decoder whose masks and promises are parameters, those of the second round the same."""

    def __init__(self, count):
        super().__init__()
        self.scores = nn.Parameter(torch.randn(count, 1, 4, SIZE, SIZE))
        self.promises = nn.Parameter(torch.rand(count, 1, 4))
        self.calls = []

    def forward(self, embeddings, positions, sparse, dense):
        self.calls.append((sparse.shape[2], dense.shape[1]))
        return self.scores[: len(embeddings)], self.promises[: len(embeddings)]


def test_of_the_masks_for_a_click_only_the_best_learns(monkeypatch):
    model = tiny()
    monkeypatch.setattr("vitrail.learn.promptable.PROMPTS", 1)
    decoder = model.mask_decoder = Fixed(8)
    objects = torch.from_numpy(blobs(np.random.default_rng(5), 8))
    model.encode = lambda images: torch.zeros(len(images), 32, 4, 4)
    clear = torch.tensor([True, False] * 4)
    first = prompts.drawn(objects)._replace(clear_G=clear)
    monkeypatch.setattr("vitrail.learn.promptable.drawn", lambda _: first)
    loss = model(torch.zeros(8, 3, SIZE, SIZE), objects[:, None])
    loss.backward()
    # Two of the eight photos, the first, get another click, which only the mask for clear prompts answers.
    assert [points for points, _ in decoder.calls] == [2, 3]
    masks = decoder.scores.detach()[:, 0]
    lost, true = prompts.losses(masks, objects), prompts.ious(masks, objects)
    learned = decoder.scores.grad.abs().sum((1, 3, 4)) > 0
    errors, total = (decoder.promises.detach()[:, 0] - true) ** 2, 0.0
    for g in range(8):
        wanted = {0} if clear[g] else {1 + int(lost[g, 1:].argmin())}
        total += float(lost[g, next(iter(wanted))] + (errors[g, 0] if clear[g] else errors[g, 1:].mean()))
        if g < 2:
            wanted.add(0)
            total += float(lost[g, 0] + errors[g, 0])
        assert set(learned[g].nonzero()[:, 0].tolist()) == wanted
    assert loss.item() == pytest.approx(total, rel=1e-5)
    assert rounds_of(objects[:, None]) == 10


def test_objects_without_a_pixel_have_no_loss():
    model, nothing = tiny(), torch.zeros(3, 2, SIZE, SIZE, dtype=torch.bool)
    loss = model(torch.randn(3, 3, SIZE, SIZE), nothing)
    assert loss.item() == 0
    assert rounds_of(nothing) == 0


def test_large_masks_are_compared_on_smaller_maps():
    objects = torch.zeros(1, 1, 1024, 1024, dtype=torch.bool)
    objects[..., 100:300, 402:700] = True
    small = compared(objects, 1024, 256)
    assert small.shape == (1, 1, 256, 256)
    rows, columns = (small[0, 0].any(axis).nonzero()[:, 0].tolist() for axis in (1, 0))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (25, 74, 100, 174), "half of a pixel counts"
    assert compared(objects, 1024, 1024) is objects


# --- photos ---------------------------------------------------------------------------------------


def painted(masks, size):
    """A photo in which each object has a colour of its own: red 80, 160, 240; what is outside has none."""
    photo = np.zeros((*size, 3), np.uint8)
    for number, mask in enumerate(masks):
        photo[mask] = (80 * (number + 1), 255, 0)
    return photo


@pytest.mark.parametrize("size", [(60, 40), (40, 60), (24, 24), (31, 57)])
def test_photos_and_objects_are_letterboxed_alike(tmp_path, size):
    masks = [np.zeros(size, bool) for _ in range(9)]
    for number, mask in enumerate(masks):
        mask[2 * number : 2 * number + 2, 5:20] = True
    photo = painted([np.zeros(size, bool)] * 2 + [np.any(masks, 0)], size)
    Image.fromarray(photo).save(tmp_path / "a.png")
    both = stored(PREPARED, lambda _: masks, None)(str(tmp_path / "a.png"))
    assert both.shape == (SIZE, SIZE, 5), "nine objects take two bytes"
    photo, found = unpacked(both)
    expected, frame = letterbox(decode(str(tmp_path / "a.png")), SIZE)
    image, clicks, _ = EvaluatedObjects(Pixels([both]), PREPARED)[0]
    h, w = frame.resized
    np.testing.assert_allclose(image[:, :h, :w], expected[:, :h, :w], atol=1e-5)
    np.testing.assert_allclose(image, expected, atol=0.5 / 255 / 0.22 + 1e-5)
    assert len(found) == 9
    # A pixel of another size mixes its neighbours, so edges may be off by a pixel.
    assert iou(found.any(0).numpy(), photo[1].numpy() > 127) > 0.75
    scale = h * w / (size[0] * size[1])
    for mask, true in zip(found, masks, strict=True):
        assert abs(mask.sum().item() - scale * true.sum()) <= 16
    for mask, (x, y) in zip(found, clicks.int().tolist(), strict=True):
        assert mask[y, x]


def test_objects_move_with_their_photo():
    rng = np.random.default_rng(6)
    change = Augmentation(crop_area=(0.3, 1.0), flip=0.5, flip_vertical=0.5)
    y, x = np.mgrid[:40, :40]
    masks = np.stack([(x < 14) & (y < 18), (x > 20) & (y > 8) & (y < 30)])
    both = np.concatenate([painted(masks, (40, 40)), np.packbits(masks, 0, "little").transpose(1, 2, 0)], 2)
    images = TrainingObjects(Pixels([both]), augmentation(change, PREPARED), seed=int(rng.integers(99)))
    shapes, reds = set(), set()
    for epoch in range(60):
        image, found = images[epoch, 0]
        assert found.shape == (2, SIZE, SIZE)
        pixels = (
            image * torch.tensor(PREPARED.std)[:, None, None] + torch.tensor(PREPARED.mean)[:, None, None]
        )
        green, covered = (pixels[1] > 0.5).numpy(), np.zeros((SIZE, SIZE), bool)
        for mask in found.numpy():
            core = ndimage.binary_erosion(mask, iterations=2, border_value=1)
            covered |= ndimage.binary_dilation(mask, iterations=2)
            assert green[core].all()
            reds |= {round(float(red) * 255 / 80, 1) for red in pixels[0][core]}
        assert (green & ~covered).sum() <= 24, "slivers that are not asked for"
        shapes.add(found.numpy().tobytes())
        again, same_objects = images[epoch, 0]
        assert torch.equal(image, again)
        assert torch.equal(found, same_objects)
    assert len(shapes) > 50
    assert reds == {1.0, 2.0}, "each mask lies within its own object"


def test_a_crop_without_an_object_asks_for_nothing():
    both = np.zeros((SIZE, SIZE, 4), np.uint8)
    both[:2, :2, 3] = 1  # four pixels: too few
    change = augmentation(Augmentation(crop_area=None), PREPARED)
    _, found = TrainingObjects(Pixels([both]), change, seed=0)[0, 0]
    assert found.shape == (2, SIZE, SIZE)
    assert not found.any()


# --- runs -----------------------------------------------------------------------------------------

QUICK = (
    "epochs=2",
    "batch_size=6",
    "optimizer.warmup_epochs=0.5",
    "engine.precision=fp32",
    "augmentation.crop_area=none",
    "optimizer.learning_rate=0.003",
)


def recipe(*changes):
    return load_recipe("promptable", [*QUICK, *changes])


def task_of(plan, **changes):
    """12 photos to train on and 6 to validate on, in memory."""
    rng, pixels = np.random.default_rng(7), []
    for _ in range(18):
        masks = blobs(rng, int(rng.integers(1, 4)))
        photo = rng.integers(0, 80, (SIZE, SIZE, 3)).astype(np.uint8)
        photo[masks.any(0)] += 150
        pixels.append(np.concatenate([photo, np.packbits(masks, 0, "little").transpose(1, 2, 0)], 2))
    return PromptableTraining(
        model=tiny(**changes),
        images=TrainingObjects(
            Pixels(pixels[:12]), augmentation(plan.augmentation, PREPARED), seed=plan.seed
        ),
        validation=EvaluatedObjects(Pixels(pixels[12:]), PREPARED),
    )


def trained_weights(place, plan, task, **options):
    run = run_in(place, plan, **options)
    train(task, plan, run, run.fabric)
    return {name: value.clone() for name, value in task.model.state_dict().items()}


def test_validation_is_one_click_as_a_person_gives_it():
    plan = recipe()
    task = task_of(plan)
    found = task.evaluate(launched(Machine(), plan), task.model.eval())
    plain = SAM(task.model.config).eval()
    plain.load_state_dict(task.model.state_dict())
    shown, best = [], []
    for number in range(6):
        image, clicks, masks = task.validation[number]
        for click, mask in zip(clicks, masks, strict=True):
            asked = Prompts(click[None, None, None], torch.ones(1, 1, 1, dtype=torch.long))
            with torch.no_grad():
                scores, promised = plain(image[None], asked)
                scores = nn.functional.interpolate(
                    scores[0], (SIZE, SIZE), mode="bilinear", align_corners=False
                )
            each = [iou(one.numpy() > 0, mask.numpy()) for one in scores[0]]
            shown.append(each[promised[0, 0].argmax()])
            best.append(max(each))
    assert found["mean_iou"] == pytest.approx(100 * np.mean(shown), abs=1e-4)
    assert found["best_mask_iou"] == pytest.approx(100 * np.mean(best), abs=1e-4)


@pytest.mark.parametrize(("step", "optimizer"), [(1, "adamw"), (3, "muon")])
def test_a_run_that_crashed_ends_with_the_same_bits(tmp_path, monkeypatch, step, optimizer):
    plan = recipe(f"optimizer.name={optimizer}", "regularization.drop_path=0.3", "augmentation.flip=0.5")
    make = lambda: task_of(plan, drop_path=0.3)  # noqa: E731
    whole = trained_weights(tmp_path / "whole", plan, make())
    with monkeypatch.context() as patch:
        patch.setattr(Run, "after_step", crashing(step))
        with pytest.raises(Stop):
            trained_weights(tmp_path / "run", plan, make(), every=1)
    torch.rand(5)
    assert same(whole, trained_weights(tmp_path / "run", plan, make(), every=1))


def test_it_learns(tmp_path):
    plan = recipe(
        "epochs=20",
        "optimizer.name=adamw",
        "optimizer.learning_rate=0.005",
        "regularization.average_decay=none",
    )
    task = task_of(plan)
    fabric = launched(Machine(), plan)
    before = task.evaluate(fabric, task.model.eval())
    trained_weights(tmp_path, plan, task)
    after = task.evaluate(fabric, task.model.eval())
    assert after["mean_iou"] > before["mean_iou"] + 15
    assert after["validation_loss"] < 0.5 * before["validation_loss"]


def test_bf16_does_not_move_clicks():
    encoder = tiny().prompt_encoder
    points, labels = torch.rand(1, 2, 3, 2) * SIZE, torch.ones(1, 2, 3, dtype=torch.long)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = encoder.points(points, labels), encoder.image_positions()
    assert torch.equal(rounded[0], encoder.points(points, labels))
    assert torch.equal(rounded[1], encoder.image_positions())


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """18 photos of 40 × 30 with blobs, as COCO."""
    rng, images, annotations = np.random.default_rng(8), [], []
    (tmp_path / "data").mkdir()
    for number in range(18):
        masks = blobs(rng, 2, 40)[:, :30]
        masks[1] &= ~masks[0]
        photo = rng.integers(0, 80, (30, 40, 3)).astype(np.uint8)
        photo[masks.any(0)] += 150
        Image.fromarray(photo).save(tmp_path / "data" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": 30, "width": 40})
        annotations += [
            {"image_id": number, "category_id": 1, "segmentation": rle.encode(mask).coco()}
            for mask in masks
            if mask.any()
        ]
    document = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "blob"}]}
    (tmp_path / "data" / "instances.json").write_text(json.dumps(document))
    return tmp_path / "data"


def command(folder, run, *more):
    sets = [part for change in QUICK for part in ("--set", change)]
    asked = ("train", "--task", "promptable", "--data", str(folder), "--image-size", str(SIZE))
    return [*asked, "--out", str(run), "--offline", "--threads", "1", *sets, *more]


@pytest.fixture
def nano(monkeypatch):
    """`sam_vit_nano`, but smaller."""
    from dataclasses import replace

    from vitrail.models import sam, sam_config

    small = replace(sam_config.VARIANTS["sam_vit_nano"], **TINY)
    monkeypatch.setitem(sam.VARIANTS, "sam_vit_nano", small)
    monkeypatch.setattr(room, "checked", lambda *_, **__: "")
    return "sam_vit_nano"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--layout", "class"), "--layout is about classes: leave it out"),
        (("--labels", "DATA/instances.json"), "--labels is about classes: leave it out"),
        (("--compile",), "give --set engine.compile=false"),
        (("--recipe", "light"), "give --set regularization.label_smoothing=0, or --recipe promptable"),
        (("--model", "vit_tiny_patch16_224"), "takes no prompts: give --model sam_vit_base or"),
        (("--model", "sam_vit_base"), "--from-scratch"),
        (("--image-size", "30"), "squares of whole patches of 8 pixels"),
    ],
)
def test_wrong_use_is_one_sentence(tmp_path, folder, nano, more, said, capsys):
    model = () if "--model" in more else ("--model", nano)
    more = [each.replace("DATA", str(folder)) for each in more]
    assert main(command(folder, tmp_path / "run", *model, *more)) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert not (tmp_path / "run").exists()


def test_objects_that_cannot_be_seen_are_refused(tmp_path, nano, capsys):
    (tmp_path / "data" / "images").mkdir(parents=True)
    (tmp_path / "data" / "masks").mkdir()
    mask = np.zeros((800, 800), np.uint8)
    mask[401:405, 401:405] = 1
    for number in range(6):
        Image.new("RGB", (800, 800), (number, 0, 0)).save(tmp_path / "data" / "images" / f"{number}.png")
        Image.fromarray(mask).save(tmp_path / "data" / "masks" / f"{number}.png")
    more = ("--model", nano, "--set", "batch_size=1")
    assert main(command(tmp_path / "data", tmp_path / "run", *more)) == 2
    assert "No object of the training photos is seen at 32 px: give a larger" in capsys.readouterr().err

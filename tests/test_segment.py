"""Masks as a task: labels at any size, what parity catches, figures, rows, files and limits."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import selections
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional as F

from vitrail import tasks
from vitrail.errors import ClaimError, InputError
from vitrail.images.interpolate import along
from vitrail.judge.answers import verdicts
from vitrail.masks import dense, rle
from vitrail.masks.coco import read_coco
from vitrail.masks.folder import read_folder
from vitrail.masks.iou import ClassIous, iou
from vitrail.masks.write import MaskFolder
from vitrail.requirements import resolve
from vitrail.selection.select import _refuse_others
from vitrail.tasks import mask_parity
from vitrail.tasks.mask_parity import MASK_BOUNDS, Reading
from vitrail.tasks.segment import Segment, Segmentation, numbered
from vitrail.vocabulary import Preprocess, Requirements, SearchSettings, Workload

WHOLE = Preprocess(image_size=32, crop=1.0, crop_mode="squash")
THREE = Segment(preprocess=WHOLE, labels=("ground", "disc", "bar"), values="logits", height=16, width=16)
DISC = Segment(preprocess=WHOLE, labels=("disc",), values="logits", height=16, width=16)


def smooth(seed: int, count: int, size: int = 16, scale: float = 6.0) -> np.ndarray:
    """Logits (K, size, size) of a few large areas."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.standard_normal((1, count, 4, 4)) * scale)
    return F.interpolate(coarse, size=(size, size), mode="bicubic").numpy()[0].astype(np.float32)


# --- at a photo's size ------------------------------------------------------------------------------


@given(
    st.integers(1, 5), st.integers(1, 9), st.integers(1, 9), st.integers(1, 40), st.integers(1, 40),
    st.integers(1, 200), st.integers(0, 2**32 - 1),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_labels_at_a_size_are_those_of_resized_scores(count, h, w, height, width, block, seed):
    scores = np.random.default_rng(seed).standard_normal((count, h, w)).astype(np.float32)
    wide = F.interpolate(torch.from_numpy(scores)[None].double(), (height, width), mode="bilinear")[0].numpy()
    before, dense.AT_ONCE = dense.AT_ONCE, block
    try:
        if count == 1:
            found, expected, margin = dense.labels(scores, (height, width), 0.0), wide[0] > 0, np.abs(wide[0])
        else:
            found, expected = dense.labels(scores, (height, width)), wide.argmax(axis=0)
            best = np.sort(wide, axis=0)
            margin = best[-1] - best[-2]
    finally:
        dense.AT_ONCE = before
    assert (found.shape, found.dtype) == ((height, width), np.uint8)
    clear = margin > 1e-5  # where two are equal but for rounding, either may be named
    assert np.array_equal(found[clear], expected[clear])


@pytest.mark.parametrize("kind", ["noise", "whole numbers", "areas", "one above all"])
def test_cells_that_are_not_interpolated_change_no_pixel(kind):
    """Also where classes tie, and where one is far larger than what separates the others."""
    rng = np.random.default_rng(len(kind))
    for count in (1, 2, 3, 7):
        scores = rng.standard_normal((count, *rng.integers(1, 12, 2))).astype(np.float32)
        if kind == "whole numbers":
            scores = np.round(scores)
        elif kind == "areas":
            scores = 5 * scores.repeat(5, axis=1).repeat(4, axis=2)
        elif kind == "one above all":
            scores[0, :1] += 1e6
        for size in rng.integers(1, 70, (12, 2)):
            height, width = map(int, size)
            wide = along(along(scores, height, axis=-2), width, axis=-1)
            expected = wide[0] > 0 if count == 1 else wide.argmax(axis=0)
            found = dense.labels(scores, (height, width), 0.0 if count == 1 else None)
            assert np.array_equal(found, expected)


def test_alpha_and_labels_agree_and_shares_add_up():
    found = Segmentation(scores=smooth(0, 1), classes=("disc",), values="logits", size=(50, 41))
    alpha, labels = found.alpha(), found.labels()
    assert np.array_equal(labels == 1, alpha > 0.5)
    assert found.shares() == {"disc": pytest.approx(float((labels == 1).mean()))}
    assert np.array_equal(found.masks()["disc"], labels == 1)
    given = Segmentation(
        scores=1 / (1 + np.exp(-smooth(0, 1))), classes=("disc",), values="probabilities", size=(16, 16)
    )
    same = Segmentation(scores=smooth(0, 1), classes=("disc",), values="logits", size=(16, 16))
    assert np.array_equal(given.labels(), same.labels())
    np.testing.assert_allclose(given.alpha(), same.alpha(), atol=1e-6)
    three = Segmentation(scores=smooth(1, 3), classes=THREE.labels, values="logits")
    assert sum(three.shares((20, 30)).values()) == pytest.approx(1)
    assert three.labels((20, 30)).max() <= 2
    with pytest.raises(InputError, match="no one alpha"):
        three.alpha((20, 30))
    with pytest.raises(InputError, match="size is not known"):
        three.labels()
    with pytest.raises(ValueError, match="no size of a photo"):
        three.labels((0, 30))


def test_many_classes_get_sixteen_bits():
    scores = np.zeros((300, 2, 2), np.float32)
    scores[299] = 1
    found = dense.labels(scores, (3, 3))
    assert found.dtype == np.uint16
    assert (found == 299).all()


# --- parity -----------------------------------------------------------------------------------------


def maps(count: int = 12, classes: int = 3) -> np.ndarray:
    return np.stack([smooth(seed, classes) for seed in range(count)])[:, None]


@pytest.mark.parametrize("task", [THREE, DISC])
def test_the_same_masks_agree_in_every_precision(task):
    reference = maps(classes=len(task.labels))
    for precision in MASK_BOUNDS:
        found = task.compare({"masks": reference}, {"masks": reference.copy()}, precision)
        assert (found.answer, found.agreeing, found.loss) == ("pass", found.decided, 0.0)
        assert found.figures[0].metric == "least IoU with the reference"
        assert found.figures[0].value == 100.0
    checks = task.checks({"masks": reference[:, 0]}, {"masks": reference[:, 0]}, MASK_BOUNDS["fp32"])
    assert all(check.holds for check in checks)


def rolled(scores: np.ndarray) -> np.ndarray:
    return np.roll(scores, 2, axis=-1)


DAMAGE = {
    "two classes change places": lambda x: x[:, :, [0, 2, 1]],
    "the maps are mirrored": lambda x: x[..., ::-1].copy(),
    "the maps move by two pixels": rolled,
    "the maps are turned": lambda x: x.swapaxes(-1, -2).copy(),
    "one class is lost": lambda x: np.concatenate([x[:, :, :2], np.full_like(x[:, :, 2:], -30)], axis=2),
    "a quarter of the map is empty": lambda x: np.where(np.arange(16) < 4, 0, x).astype(np.float32),
    "one photo is another's": lambda x: np.concatenate([x[1:2], x[1:]]),
    "all is ten times as large": lambda x: 10 * x,
    "not finite": lambda x: np.where(np.arange(16) == 3, np.nan, x).astype(np.float32),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_damage_is_refused(damage, precision):
    reference = maps()
    found = THREE.compare({"masks": reference}, {"masks": DAMAGE[damage](reference)}, precision)
    assert found.answer == "fail", (damage, precision)


def test_the_masks_alone_are_enough_to_refuse():
    """A small change of the numbers that moves every edge: cosine and relative error are fine."""
    reference = maps(classes=1)
    moved = reference + 0.9
    found = DISC.compare({"masks": reference}, {"masks": moved}, "bf16")
    assert found.cosine > 0.97
    assert found.relative_error < 0.25
    assert found.answer == "fail"
    assert "mask (IoU of at least 0.95) agrees on" in found.reason


@pytest.mark.parametrize("task", [THREE, DISC])
def test_a_pixel_that_rounding_decides_is_no_change(task):
    """Of a mask of a few pixels one is 5 % of the IoU, and at the threshold it may be on either side."""
    reference = np.full((12, 1, len(task.labels), 16, 16), -9, np.float32)
    reference[:, :, 0] = 9 if task is THREE else -9
    reference[..., -1, 3:7, 3:8] = 20
    reference[..., -1, 3, 3] = 9 + 1e-6 if task is THREE else 1e-6
    outputs = reference.copy()
    outputs[..., -1, 3, 3] -= 2e-6
    assert (task.reading.labels(reference[0, 0]) != task.reading.labels(outputs[0, 0])).sum() <= 1
    assert task.compare({"masks": reference}, {"masks": outputs}, "fp32").agreeing == 12
    outputs[..., -1, 3, 4] -= 40  # a clear one is
    assert task.compare({"masks": reference}, {"masks": outputs}, "fp32").agreeing == 0


def test_the_worst_photo_is_the_one_of_the_least_iou():
    reference = maps()
    outputs = reference.copy()
    outputs[7] = rolled(rolled(outputs[7]))
    outputs[3] = rolled(outputs[3])
    found = THREE.compare({"masks": reference}, {"masks": outputs}, "int8")
    reading = THREE.reading
    each = [reading.agreement(a[0], b[0]) for a, b in zip(reference, outputs, strict=True)]
    worst = min(range(12), key=lambda photo: each[photo].iou)
    assert found.worst == str(worst)
    assert found.figures[0].value == pytest.approx(100 * each[worst].iou)
    assert found.figures[2].value == pytest.approx(100 * np.mean([one.changed for one in each]))
    assert found.loss == pytest.approx(100 * (1 - np.mean([one.iou for one in each])))
    assert found.loss_bound > found.loss


def test_verdicts_name_the_worst_photo_s_iou():
    entry = selections.selection().ledger[0]
    outputs = maps()
    outputs[4] = rolled(outputs[4])
    found = replace(THREE.compare({"masks": maps()}, {"masks": outputs}, "int8"), worst="/a/cat.jpg")
    found_by = verdicts(replace(entry.observation, parity=found), Requirements(), Workload())
    parity = next(each for each in found_by if each.requirement == "parity")
    said = "cat.jpg differs most: least IoU with the reference "
    assert said in parity.reason


def test_iou_of_label_maps_against_counting():
    rng = np.random.default_rng(3)
    a, b = rng.integers(0, 4, (2, 9, 11))
    counted = ClassIous(["0", "1", "2", "3"])
    counted.add(a, b)
    from vitrail.masks.agreement import of_labels

    found = of_labels(a, b, 4)
    assert found.iou == pytest.approx(counted.result().value)
    assert found.changed == pytest.approx(float((a != b).mean()))
    assert of_labels(a > 1, b > 1, 2, first=1).iou == pytest.approx(iou(a > 1, b > 1))
    nothing = np.zeros((5, 5), int)
    assert of_labels(nothing, nothing, 2, first=1).iou == 1.0


@given(st.integers(0, 10_000), st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_clear_photo_keeps_its_masks_under_small_changes(seed, single):
    """What `STEADY` promises: probabilities move by less than half the margin, the IoU stays above it."""
    rng = np.random.default_rng(seed)
    count = 1 if single else 3
    scores = smooth(seed, count, scale=float(rng.uniform(0.5, 8)))
    if single:
        probabilities = 1 / (1 + np.exp(-scores))
        moved = probabilities + rng.uniform(-0.049, 0.049, scores.shape)
    else:
        probabilities = np.exp(scores - scores.max(0))
        probabilities /= probabilities.sum(0)
        moved = probabilities + rng.uniform(-0.049, 0.049, scores.shape)
    reading = Reading(logits=False, single=single)
    if reading.steady(probabilities):
        assert reading.agreement(probabilities, moved).iou >= mask_parity.STEADY - 1e-9


def test_photos_without_a_clear_mask_decide_nothing():
    empty = np.full((12, 1, 1, 16, 16), -5, np.float32)
    found = DISC.compare({"masks": empty}, {"masks": empty}, "fp32")
    assert (found.answer, found.decided) == ("not assessed", 0)
    assert "give photos of what the model knows" in found.reason


# --- figures ----------------------------------------------------------------------------------------


def test_mean_iou_is_counted_at_the_photos_sizes():
    rng = np.random.default_rng(0)
    scores = np.stack([smooth(seed, 3) for seed in range(9)])
    truths = []
    for number, each in enumerate(scores):
        labels = THREE.finish({"masks": each[None]})[0].labels((20 + number, 31)).astype(np.int16)
        labels[rng.random(labels.shape) < 0.1] = 1
        labels[0] = -1
        truths.append(labels)
    parts = [({"masks": scores[:4]}, truths[:4]), ({"masks": scores[4:]}, truths[4:])]
    found = THREE.score(iter(parts), THREE.labels, split="test", data="x")
    counted = ClassIous(THREE.labels, ignore=-1)
    for truth, each in zip(truths, scores, strict=True):
        wide = F.interpolate(torch.from_numpy(each)[None], truth.shape, mode="bilinear")[0].numpy()
        counted.add(truth, wide.argmax(0))
    expected = counted.result()
    assert found.main.metric == THREE.metric == "mean IoU"
    assert found.main.value == pytest.approx(100 * expected.value, abs=0.2)
    assert found.main.interval is not None
    assert {figure.label for figure in found.figures if figure.metric == "IoU"} == set(THREE.labels)


def test_a_cut_out_s_mean_iou_is_over_photos_and_an_empty_photo_counts():
    scores = np.stack([smooth(seed, 1) for seed in range(2)] + [np.full((1, 16, 16), -4, np.float32)])
    truths = [(each[0] > 0).astype(np.int16) for each in scores]
    truths[1][:8] = 0
    found = DISC.score([({"masks": scores}, truths)], DISC.labels, split="test", data="x")
    each = [iou(truth == 1, score[0] > 0, empty=1.0) for truth, score in zip(truths, scores, strict=True)]
    assert each[2] == 1.0
    assert found.main.value == pytest.approx(100 * np.mean(each))
    assert found.figure("IoU", "disc") is not None
    assert found.figure("IoU", "outside") is None


# --- what an artifact says --------------------------------------------------------------------------


def test_facts_come_back_and_wrong_ones_are_named():
    files = THREE.files()
    assert tasks.read(THREE.facts(), files.__getitem__, "m") == THREE
    assert tasks.unpack(tasks.pack(DISC)) == DISC
    cut = {**THREE.facts(), "preprocess": {**THREE.facts()["preprocess"], "crop_mode": "center"}}
    for facts, said in (
        (cut, "cuts the middle out of photos"),
        ({**THREE.facts(), "classes": 4}, "3 labels for 4 classes"),
        ({**THREE.facts(), "height": 0}, "height"),
        ({**THREE.facts(), "values": "votes"}, "values"),
    ):
        with pytest.raises(InputError, match=said):
            tasks.read(facts, files.__getitem__, "m")


def test_rows_hold_shares_and_coco_s_masks():
    scores = np.stack([smooth(0, 3), smooth(1, 3)])
    scores[1, 2] = -100
    assert [(column.name, column.length) for column in THREE.columns()] == [("shares", 3), ("masks", 3)]
    rows = THREE.rows({"masks": scores})
    labels = scores.argmax(axis=1)
    for row, truth in zip(rows, labels, strict=True):
        assert row["shares"] == pytest.approx([float((truth == k).mean()) for k in range(3)])
        for number, text in enumerate(row["masks"]):
            mask = rle.from_coco(json.loads(text)).mask() if text else np.zeros((16, 16), bool)
            assert np.array_equal(mask, truth == number)
    assert rows[1]["masks"][2] == ""
    with pytest.raises(ClaimError, match="not finite"):
        THREE.rows({"masks": np.full((1, 3, 16, 16), np.nan, np.float32)})


# --- files ------------------------------------------------------------------------------------------


def test_written_masks_are_read_again(tmp_path):
    rng = np.random.default_rng(0)
    target = MaskFolder(tmp_path, numbered(THREE.labels), single=False)
    written = {}
    for path in ("a/cat.jpg", "b/cat.png", "dog.jpg"):
        labels = rng.integers(0, 3, (12, 17)).astype(np.uint8)
        photo = Image.fromarray(rng.integers(0, 256, (12, 17, 3)).astype(np.uint8))
        place = tmp_path / path
        place.parent.mkdir(exist_ok=True)
        photo.save(place)
        written[target.add(path, photo, labels)] = labels
    target.end("winner")
    assert set(written) == {"cat", "cat-2", "dog"}
    found = read_folder(tmp_path / "overlays", tmp_path / "masks")
    assert all(np.array_equal(each.labels(), written[Path(each.path).stem]) for each in found.photos)
    annotated = read_coco(tmp_path / "masks.json", tmp_path)
    for photo, labels in zip(annotated.photos, written.values(), strict=True):
        assert {each.label for each in photo.instances} == set(np.unique(labels))
        assert all(np.array_equal(each.mask(), labels == each.label) for each in photo.instances)


def test_a_cut_out_is_written_with_its_alpha(tmp_path):
    target = MaskFolder(tmp_path, numbered(DISC.labels), single=True)
    alpha = np.linspace(0, 1, 30, dtype=np.float32).reshape(5, 6)
    photo = Image.new("RGB", (6, 5), (10, 200, 30))
    target.add("cat.jpg", photo, (alpha > 0.5).astype(np.uint8), alpha)
    mask = np.asarray(Image.open(tmp_path / "masks" / "cat.png"))
    assert np.array_equal(mask, (alpha > 0.5) * 255)
    cut = np.asarray(Image.open(tmp_path / "cutouts" / "cat.png"))
    np.testing.assert_array_equal(cut[..., 3], np.rint(255 * alpha))
    assert (cut[..., :3] == (10, 200, 30)).all()


# --- limits -----------------------------------------------------------------------------------------


def test_min_iou_is_of_the_mean_or_of_a_class():
    asked, _, _ = resolve(flags={"min-iou": ["80", "a=b=50%"]})
    assert asked.min_iou == (("", 80.0), ("a=b", 50.0))
    assert [(each.metric, each.label, each.of) for each in asked.least] == [
        ("mean IoU", "", "mean IoU"),
        ("IoU", "a=b", "IoU of a=b"),
    ]
    for value in (["80", "70"], ["0.8"], ["road="], ["road=0.8"], ["road=80", "road=70"], [True]):
        with pytest.raises(InputError, match="min-iou"):
            resolve(flags={"min-iou": value})


@pytest.mark.parametrize(
    ("task", "asked", "said"),
    [
        ("classify", {"min_iou": (("", 80.0),)}, "--min-iou is for --task segment, not for classify"),
        ("segment", {"min_recall": (("cat", 80.0),)}, "--min-recall is for --task classify, not for segment"),
        ("embed", {"min_iou": (("", 80.0),)}, "--min-iou is about classes, and --task embed has none"),
    ],
)
def test_limits_of_another_task_are_refused(task, asked, said):
    with pytest.raises(InputError, match=said):
        _refuse_others(SearchSettings(task=task), Requirements(**asked), Workload())

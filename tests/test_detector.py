"""examples/detector.py: the pyramid's contract, learning, and the example's own measure and augmentation."""

import importlib.util
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from vitrail.models import build

SMALL = {"width": 24, "depths": (2, 2, 2, 2), "heads": (1, 2, 4, 8), "trained_size": None}


@pytest.fixture(scope="module")
def example():
    path = Path(__file__).parent.parent / "examples" / "detector.py"
    spec = importlib.util.spec_from_file_location("detector_example", path)
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up there.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def small_pyramid(example):
    torch.manual_seed(0)
    swin = build("swin_tiny_patch4_window7_224", num_classes=0, **SMALL)
    return example.SwinPyramid(swin, out_channels=16)


@pytest.mark.parametrize("size", [(224, 224), (64, 160), (97, 130), (225, 33)])
def test_maps_have_the_strides_and_channels_torchvision_expects(example, size):
    pyramid = small_pyramid(example).train()
    maps = pyramid(torch.rand(2, 3, *size))
    assert list(maps) == ["0", "1", "2", "3", "pool"]
    for level, found in enumerate(maps.values()):
        expected = [-(-side // (4 << level)) for side in size]
        assert found.shape == (2, pyramid.out_channels, *expected)
    sizes = [tuple(m.shape[1:2]) for m in pyramid.swin.forward_pyramid(torch.rand(1, 3, *size))]
    assert sizes == [(24,), (48,), (96,), (192,)]


def test_full_width_gives_the_fpn_channels_96_to_768(example):
    with torch.device("meta"):
        pyramid = example.SwinPyramid(build("swin_tiny_patch4_window7_224", num_classes=0))
    assert [block[0].in_channels for block in pyramid.fpn.inner_blocks] == [96, 192, 384, 768]


@pytest.mark.parametrize("size", [(96, 160), (97, 130)])
def test_each_cell_looks_at_its_own_pixels(example, size):
    # A transposed or shifted map would pass every test of shapes.
    pyramid = small_pyramid(example)
    images = torch.rand(1, 3, *size, requires_grad=True)
    for level, found in enumerate(pyramid.train().swin.forward_pyramid(images)[:2]):
        stride, (row, column) = 4 << level, (found.shape[2] - 3, 4)
        (slope,) = torch.autograd.grad(found[0, :, row, column].square().sum(), images, retain_graph=True)
        weight = slope[0].abs().sum(0)
        inside = weight[row * stride : (row + 1) * stride, column * stride : (column + 1) * stride]
        assert inside.mean() > 10 * weight.mean()


def test_gradients_reach_every_parameter(example):
    pyramid = small_pyramid(example).train()
    maps = pyramid(torch.rand(2, 3, 96, 130))
    sum(found.square().sum() for found in maps.values()).backward()
    without = [name for name, p in pyramid.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


@pytest.mark.slow
def test_training_lowers_the_loss_on_one_photo_after_predicting_it(example):
    torch.manual_seed(0)
    scenes = example.TRAINING[:1]
    model = example.detector(min_size=(96,), max_size=192, **{k: SMALL[k] for k in ("width", "heads")})
    (untrained,) = example.predict(model, scenes)
    losses = example.train(model, scenes, steps=20, batch=1, seed=0)
    assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:3])
    assert all(math.isfinite(loss) for loss in losses)
    assert untrained["boxes"].shape[1] == 4


def predictions(*rows):
    boxes, labels, scores = zip(*rows, strict=True)
    return {
        "boxes": torch.tensor(boxes).float(),
        "labels": torch.tensor(labels),
        "scores": torch.tensor(scores),
    }


A, B, FAR = (0, 0, 10, 10), (20, 0, 30, 10), (50, 50, 60, 60)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([(A, 1, 0.9), (B, 1, 0.8)], 1.0),
        # Half of the box of A: IoU 0.5 is enough, 0.49 is not.
        ([((0, 0, 10, 5), 1, 0.9), (B, 1, 0.8)], 1.0),
        ([((0, 0, 10, 4.9), 1, 0.9), (B, 1, 0.8)], 0.25),
        ([(A, 1, 0.9), (FAR, 1, 0.8), (B, 1, 0.7)], 0.5 + 0.5 * 2 / 3),
        # A second box on the same object is wrong, and comes before the last right one here.
        ([(A, 1, 0.9), (A, 1, 0.8), (B, 1, 0.7)], 0.5 + 0.5 * 2 / 3),
        ([(B, 1, 0.1), (FAR, 1, 0.8), (A, 1, 0.9)], 0.5 + 0.5 * 2 / 3),
        ([(A, 2, 0.9), (B, 2, 0.8)], 0.0),
        ([(A, 1, 0.9)], 0.5),
    ],
)
def test_average_precision_by_hand(example, found, expected):
    truth = {"boxes": torch.tensor([A, B]).float(), "labels": torch.tensor([1, 1])}
    _, right = example.ranked([predictions(*found)], [truth], 1)
    assert example.average_precision(right, 2) == pytest.approx(expected)


def test_boxes_are_ranked_over_all_photos(example):
    truth = {"boxes": torch.tensor([A]).float(), "labels": torch.tensor([1])}
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
    found = [predictions((A, 1, 0.6), (FAR, 1, 0.3)), predictions((FAR, 1, 0.9)), predictions((A, 1, 0.7))]
    scores, right = example.ranked(found, [truth, truth, nothing], 1)
    assert scores.tolist() == pytest.approx([0.9, 0.7, 0.6, 0.3])
    assert right.tolist() == [False, False, True, False]
    assert example.average_precision(right, 2) == pytest.approx(0.5 / 3)
    assert example.average_precision(np.zeros(0, dtype=bool), 2) == 0.0


def test_evaluation_counts_sure_boxes(example):
    (scene,) = example.TRAINING[2:3]
    _, target = scene.load()
    perfect = target | {"scores": torch.tensor([0.9, 0.8])}
    assert example.evaluate([perfect], [scene]) == {
        "classes": {"face": 1.0, "rocket": 1.0}, "mean": 1.0, "objects": 2, "found": 2, "wrong": 0,
    }  # fmt: skip
    unsure = target | {"scores": torch.tensor([0.4, 0.8]), "labels": target["labels"].flip(0)}
    assert example.evaluate([unsure], [scene]) == {
        "classes": {"face": 0.0, "rocket": 0.0}, "mean": 0.0, "objects": 2, "found": 0, "wrong": 1,
    }  # fmt: skip


def test_augmented_boxes_stay_on_their_objects(example):
    # Painted objects: after any crop and mirroring, a box is the rectangle around its colour.
    image = torch.zeros(3, 80, 120)
    boxes = torch.tensor([[10, 20, 40, 50], [70, 5, 110, 75]])
    for channel, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
        image[channel, y0:y1, x0:x1] = 1
    target = {"boxes": boxes.float(), "labels": torch.tensor([1, 2])}
    dice, shapes, mirrored = np.random.default_rng(0), set(), 0
    for _ in range(60):
        new_image, new = example.augment(image, target, dice)
        shapes.add(tuple(new_image.shape[1:]))
        for box, label in zip(new["boxes"].tolist(), new["labels"].tolist(), strict=True):
            ys, xs = new_image[label - 1].nonzero(as_tuple=True)
            assert box == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        lefts = dict(zip(new["labels"].tolist(), new["boxes"][:, 0].tolist(), strict=True))
        mirrored += len(lefts) == 2 and lefts[2] < lefts[1]
    assert len(shapes) > 30
    assert 10 < mirrored < 50
    assert torch.equal(target["boxes"], boxes.float())


def test_drawn_boxes_lie_in_their_photos_and_name_every_class(example):
    scenes = (*example.TRAINING, *example.HELD_OUT)
    for scene in scenes:
        image, target = scene.load()
        height, width = image.shape[1:]
        boxes = target["boxes"]
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert boxes.min() >= 0
        assert (boxes[:, 2] <= width).all()
        assert (boxes[:, 3] <= height).all()
    assert {name for scene in example.TRAINING for name, _ in scene.objects} == set(example.CLASSES)
    assert sum(len(scene.objects) for scene in scenes if scene.photo == "coins") == 24

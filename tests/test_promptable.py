"""Segment what is clicked on: two graphs in one artifact, from a photo to masks at its size. About 25 s."""

from __future__ import annotations

import threading
from pathlib import Path

import clicks
import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from vitrail import predict
from vitrail.errors import ClaimError, InputError
from vitrail.images.letterbox import Letterbox, letterbox
from vitrail.masks.iou import iou
from vitrail.predict import EmbeddingCache
from vitrail.prompting import grid, stability
from vitrail.tasks.promptable import Encoded

SIZES = [(60, 90), (90, 47), (64, 64), (200, 300)]


@pytest.fixture(scope="module")
def theirs():
    torch.set_num_threads(1)
    return clicks.theirs()


@pytest.fixture(scope="module")
def ours(theirs):
    return clicks.ours(theirs.state_dict())


@pytest.fixture(scope="module")
def made(ours, tmp_path_factory) -> Path:
    return clicks.export(ours, tmp_path_factory.mktemp("sam"))


@pytest.fixture(scope="module")
def folder(made, ours, tmp_path_factory) -> Path:
    return clicks.artifact(made, ours, tmp_path_factory.mktemp("artifact")).path


@pytest.fixture(scope="module")
def model(folder):
    with predict.load(folder) as found:
        yield found


def their_answer(theirs, image: Image.Image, points=(), labels=(), box=None):
    """transformers' masks (1 + M, Y, X), IoUs, and scores at the photo's size."""
    square, frame = letterbox(image, clicks.SIDE)
    scale = np.array(frame.resized[::-1]) / np.array(frame.photo[::-1])
    given = {"pixel_values": torch.from_numpy(square)[None].double()}
    if len(points):
        given["input_points"] = torch.from_numpy(np.array(points) * scale)[None, None]
        given["input_labels"] = torch.tensor([[list(labels)]])
    if box is not None:
        given["input_boxes"] = torch.from_numpy((np.array(box).reshape(2, 2) * scale).reshape(1, 1, 4))
    with torch.no_grad():
        several = theirs(**given, multimask_output=True)
        one = theirs(**given, multimask_output=False)
    masks = torch.cat((one.pred_masks, several.pred_masks), 2)[0, 0]
    ious = torch.cat((one.iou_scores, several.iou_scores), 2)[0, 0]
    in_square = F.interpolate(masks[None], (clicks.SIDE, clicks.SIDE), mode="bilinear", align_corners=False)
    height, width = frame.resized
    at_size = F.interpolate(
        in_square[..., :height, :width], frame.photo, mode="bilinear", align_corners=False
    )
    return masks.numpy(), ious.numpy(), at_size[0].numpy()


PROMPTS = {
    "one click": {"points": [(20, 15)], "labels": [1]},
    "three clicks": {"points": [(20, 15), (40, 40), (5, 44)], "labels": [1, 0, 1]},
    "a box": {"box": (3, 4, 40, 33)},
    "a click and a box": {"points": [(20, 15)], "labels": [1], "box": (3, 4, 40, 33)},
    "at the edge": {"points": [(0, 0)], "labels": [1]},
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("asked", PROMPTS)
def test_masks_are_transformers_from_photo_to_pixels(model, theirs, size, asked):
    image, given = clicks.photo(5, size), PROMPTS[asked]
    found = model.segment(image, **given)
    masks, ious, at_size = their_answer(theirs, image, **given)
    np.testing.assert_allclose(found.scores, masks, rtol=1e-3, atol=1e-4 * np.abs(masks).max())
    np.testing.assert_allclose(found.ious, ious, rtol=1e-4, atol=1e-4)
    clear = np.abs(at_size) > 1e-3 * np.abs(at_size).max()
    assert found.masks.shape == (4, *size)
    assert np.array_equal(found.masks[clear], at_size[clear] > 0)
    ambiguous = asked in ("one click", "at the edge")
    assert found.best == (1 + ious[1:].argmax() if ambiguous else 0)
    assert np.array_equal(found.mask, found.masks[found.best])
    assert found.iou == pytest.approx(ious[found.best], abs=1e-4)


def test_clicks_say_what_is_inside_and_outside(model):
    image = clicks.photo(5)
    inside = model.segment(image, points=[(20, 15)])
    assert np.array_equal(inside.scores, model.segment(image, points=[(20, 15)], labels=[1]).scores)
    assert not np.allclose(inside.scores, model.segment(image, points=[(20, 15)], labels=[0]).scores)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_any_number_of_points_in_one_loaded_graph(made, ours, runtime):
    """Also many at once: none of the sizes was traced."""
    rng = np.random.default_rng(0)
    with clicks.loaded(made, runtime) as model:
        prompt = model.runner.facts.graphs[1]
        assert [spec.shape[:2] for spec in prompt.inputs[1:]] == [("B", "N"), ("B", "N")]
        encoded = model.encode(clicks.photo(1))
        for count in (1, 2, 3, 8, 40):
            points = rng.uniform((0, 0), (90, 60), (count, 2))
            labels = rng.integers(0, 2, count).tolist()
            found = model.prompt(encoded, points=points, labels=labels)
            asked = clicks.TASK.asked(encoded.frame, points, labels, None)
            with torch.no_grad():
                masks, ious = ours.stages()["prompt"](
                    *(torch.from_numpy(values) for values in (*encoded.kept.values(), *asked.values()))
                )
            np.testing.assert_allclose(found.scores, masks[0].numpy(), atol=1e-4 * float(masks.abs().max()))
            np.testing.assert_allclose(found.ious, ious[0].numpy(), atol=1e-4)


# --- photos that are kept ---------------------------------------------------------------------------


def test_a_photo_is_encoded_once_however_it_is_given(folder, tmp_path):
    path = tmp_path / "photo.png"
    clicks.photo(2).save(path)
    with predict.load(folder) as model:
        encoded = []
        encode = model.prompter.encode
        model.prompter.encode = lambda photo: encoded.append(1) or encode(photo)
        first = model.segment(path, points=[(20, 15)])
        again = model.segment(path.read_bytes(), box=(3, 4, 40, 33))
        assert len(encoded) == 1
        np.testing.assert_array_equal(model.segment(str(path), points=[(20, 15)]).scores, first.scores)
        assert not np.array_equal(again.scores, first.scores)
        pixels = np.asarray(clicks.photo(2))
        model.segment(pixels, points=[(20, 15)])
        model.segment(pixels.copy(), points=[(20, 15)])
        assert len(encoded) == 2
        model.segment(pixels[:, ::-1], points=[(20, 15)])
        assert len(encoded) == 3
        kept = model.encode(path)
        assert kept.size == (60, 90)
        assert kept.bytes == 32 * 8 * 8 * 4
        assert model.prompter.cache.bytes == 3 * kept.bytes
        np.testing.assert_array_equal(model.prompt(kept, points=[(20, 15)]).scores, first.scores)
        path.write_bytes(path.read_bytes() + b" ")  # another photo, for all that is known
        model.segment(path, points=[(20, 15)])
        assert len(encoded) == 5


def test_the_cache_keeps_the_last_used(model):
    cache = EmbeddingCache(3)
    kept = {name: model.encode(clicks.photo(number)) for number, name in enumerate("abcd")}
    for name in "abc":
        cache.put(name, kept[name])
    assert cache.get("a") is kept["a"]
    cache.put("d", kept["d"])  # b was used longest ago
    assert [cache.get(name) is not None for name in "abcd"] == [True, False, True, True]
    assert len(cache) == 3
    assert cache.bytes == 3 * kept["a"].bytes
    assert cache.get_or("b", lambda: kept["b"]) is kept["b"]
    assert cache.get("a") is None
    cache.clear()
    assert (len(cache), cache.bytes) == (0, 0)
    for wrong in (0, -1, 1.5, True):
        with pytest.raises(InputError, match="images is"):
            EmbeddingCache(wrong)


def test_the_cache_holds_its_bound_among_threads():
    cache = EmbeddingCache(4)
    frame = Letterbox(side=64, photo=(8, 8))
    wrong = []

    def use(thread: int) -> None:
        for turn in range(300):
            name = str((thread * 7 + turn) % 11)
            kept = {"embeddings": np.full((1, 1, 1, 1), float(name), np.float32)}
            made = Encoded(kept=kept, frame=frame)
            found = cache.get_or(name, lambda made=made: made)
            if found.kept["embeddings"].item() != float(name) or len(cache) > 5:
                wrong.append(name)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(cache) == 4


# --- everything -------------------------------------------------------------------------------------


def blob(x: float, y: float, radius: float) -> np.ndarray:
    """Scores (Y, X) of a disc, in pixels of the mask."""
    rows, columns = np.mgrid[: clicks.MASK, : clicks.MASK]
    return (40 * (radius - np.hypot(columns + 0.5 - x, rows + 0.5 - y))).astype(np.float32)


DISCS = ((8, 8, 5), (24, 10, 4))


class Discs:
    """In the place of the second stage: two discs, found by any click in them; elsewhere a doubtful all."""

    def __init__(self, facts):
        self.facts = facts

    def run(self, inputs):
        masks, ious = [], []
        for x, y in inputs["points"][:, 0] * clicks.MASK / clicks.SIDE:
            inside = [each for each in DISCS if np.hypot(x - each[0], y - each[1]) < each[2]]
            sure = blob(*inside[0]) if inside else np.full((clicks.MASK, clicks.MASK), 0.5, np.float32)
            doubtful = np.random.default_rng(0).standard_normal(sure.shape).astype(np.float32)
            masks.append(np.stack([sure, doubtful, sure, np.full_like(sure, -9)]))
            ious.append([0.1, 0.99, 0.95 if inside else 0.5, 0.2])
        return {"masks": np.stack(masks), "ious": np.array(ious, np.float32)}

    def close(self):
        pass


def test_everything_finds_each_thing_once(made):
    image = clicks.photo(3, (40, 64))  # wide: the lower part of the square is filling
    with clicks.loaded(made) as model:
        stages = model.runner.stages
        stages["prompt"] = Discs(stages["prompt"].facts)
        found = model.everything(image, points_per_side=12)
        assert len(found) == 2
        middles = sorted(tuple(np.argwhere(each.mask).mean(axis=0)) for each in found)
        np.testing.assert_allclose(middles, [(15.5, 15.5), (19.5, 47.5)], atol=0.3)
        for each in found:
            assert each.iou == pytest.approx(0.95)
            assert each.scores.shape == (1, clicks.MASK, clicks.MASK)
            x, y = each.point
            assert each.mask[int(y), int(x)]
        assert len(model.everything(image, points_per_side=12, overlap_most=1.0)) > 2
        assert model.everything(image, points_per_side=12, iou_from=0.96) == []
        assert model.everything(image, points_per_side=12, iou_from=0.9, stability_from=0.0)[
            0
        ].iou == pytest.approx(0.99)
        for wrong, said in [
            ({"points_per_side": 0}, "points_per_side is 0"),
            ({"iou_from": 1.5}, "iou_from is 1.5"),
            ({"overlap_most": -0.1}, "overlap_most is -0.1"),
            ({"stability_from": float("nan")}, "stability_from is nan"),
        ]:
            with pytest.raises(InputError, match=said):
                model.everything(image, **wrong)


def test_the_grid_covers_the_photo_and_stability_is_an_iou():
    frame = Letterbox(side=64, photo=(30, 60))
    assert grid(frame, 2) == [(15, 7.5), (45, 7.5), (15, 22.5), (45, 22.5)]
    scores = np.random.default_rng(0).standard_normal((20, 20)) * 2
    assert stability(scores) == pytest.approx(iou(scores > 1, scores > -1))
    assert stability(np.full((3, 3), -5.0)) == 0


# --- bad input --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({}, "There is no prompt: give at least one point, or a box"),
        ({"points": [(91, 10)]}, r"The point \(91, 10\) lies outside the photo of 90 × 60 pixels"),
        ({"points": [(5, 5), (10, -1)]}, r"The point \(10, -1\) lies outside"),
        ({"points": [(float("nan"), 5)]}, "lies outside"),
        (
            {"points": [(5, 5)], "labels": [2]},
            "2 is not a label of a point: use 1 inside the object, 0",
        ),
        ({"points": [(5, 5)], "labels": [1, 0]}, "There are 2 labels for 1 points"),
        ({"labels": [1], "box": (1, 1, 5, 5)}, "There are 1 labels for 0 points"),
        ({"box": (5, 5, 5, 9)}, r"The box \(5, 5, 5, 9\) is empty"),
        ({"box": (30, 30, 10, 10)}, r"The box \(30, 30, 10, 10\) is empty"),
        ({"box": (5, 5, 95, 20)}, r"The point \(95, 20\) lies outside"),
        ({"box": (1, 2, 3)}, "A box is four numbers"),
        ({"box": "1234x"}, "A box is four numbers"),
        ({"points": [(1, 2, 3)]}, r"Points are pairs \(x, y\)"),
        ({"points": ["ab"]}, r"Points are pairs \(x, y\)"),
        ({"points": 7}, r"Points are pairs \(x, y\)"),
        ({"points": [(1, 1)] * 1001}, "1,001 points are too many"),
    ],
)
def test_prompts_that_mean_nothing_are_refused(model, asked, said):
    image = clicks.photo(1)
    with pytest.raises(InputError, match=said):
        model.segment(image, **asked)
    with pytest.raises(InputError, match=said):
        model.prompt(model.encode(image), **asked)


def test_a_prompt_is_about_one_photo_of_this_model(model, tmp_path):
    with pytest.raises(InputError, match="A prompt is about one photo, and 2 were given"):
        model.segment([clicks.photo(1), clicks.photo(2)], points=[(5, 5)])
    with pytest.raises(InputError, match="does not exist"):
        model.segment(tmp_path / "none.png", points=[(5, 5)])
    kept = {"embeddings": np.zeros((1, 16, 8, 8), np.float32)}
    other = Encoded(kept=kept, frame=Letterbox(side=64, photo=(60, 90)))
    with pytest.raises(InputError, match="are another model's"):
        model.prompt(other, points=[(5, 5)])
    with pytest.raises(InputError, match="photo's size is not known"):
        _ = model.predict(clicks.photo(1))[0].mask


def test_masks_that_are_not_finite_are_refused():
    outputs = {"masks": np.full((1, 4, 32, 32), np.nan, np.float32), "ious": np.zeros((1, 4), np.float32)}
    with pytest.raises(ClaimError, match="not finite"):
        clicks.TASK.finish(outputs)

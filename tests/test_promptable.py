"""Segment what is clicked on: two graphs in one artifact, from a photo to masks at its size. About 25 s."""

from __future__ import annotations

import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import clicks
import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from vitrail import predict, tasks, verify
from vitrail.artifact import open_artifact, write
from vitrail.cli import main
from vitrail.errors import ClaimError, InputError
from vitrail.images.decode import decode
from vitrail.images.letterbox import Letterbox, letterbox
from vitrail.masks import rle
from vitrail.masks.iou import iou
from vitrail.masks.rle import RunLengths
from vitrail.measure.session import ExportSession, SessionRequest
from vitrail.predict import Clicked, EmbeddingCache
from vitrail.prompting import grid, stability
from vitrail.runtimes import RUNTIMES
from vitrail.runtimes.chain import OnDemand
from vitrail.tasks.click_quality import ClickTruth
from vitrail.tasks.promptable import Encoded

GOLDEN = Path(__file__).parent / "golden"
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


# --- an artifact against its claims -----------------------------------------------------------------


def smooth(seed: int) -> np.ndarray:
    """Logits (4, 32, 32) of a few large areas."""
    coarse = torch.from_numpy(np.random.default_rng(seed).standard_normal((1, 4, 4, 4)) * 6)
    return F.interpolate(coarse, size=(32, 32), mode="bicubic").numpy()[0].astype(np.float32)


def answers(photos: int = 12, views: int = 2) -> dict[str, np.ndarray]:
    """Masks (P, V, 4, 32, 32) and IoUs (P, V, 4)."""
    masks = np.stack([[smooth(10 * photo + view) for view in range(views)] for photo in range(photos)])
    return {
        "masks": masks,
        "ious": np.random.default_rng(0).uniform(0.5, 1, masks.shape[:3]).astype(np.float32),
    }


DAMAGE = {
    "two masks change places": lambda x: x | {"masks": x["masks"][:, :, [0, 2, 1, 3]]},
    "masks are mirrored": lambda x: x | {"masks": x["masks"][..., ::-1].copy()},
    "masks move by three pixels": lambda x: x | {"masks": np.roll(x["masks"], 3, axis=-1)},
    "masks are turned": lambda x: x | {"masks": x["masks"].swapaxes(-1, -2).copy()},
    "one mask is lost": lambda x: (
        x | {"masks": x["masks"] * np.array([1, 1, 1, 0], np.float32)[:, None, None]}
    ),
    "a quarter is empty": lambda x: x | {"masks": np.where(np.arange(32) < 8, 0, x["masks"])},
    "one photo is another's": lambda x: x | {"masks": np.concatenate([x["masks"][1:2], x["masks"][1:]])},
    "all is ten times as large": lambda x: x | {"masks": 10 * x["masks"]},
    "masks are not finite": lambda x: x | {"masks": np.where(np.arange(32) == 3, np.nan, x["masks"])},
    "IoUs are halved": lambda x: x | {"ious": x["ious"] / 2},
    "IoUs change places": lambda x: x | {"ious": x["ious"][..., ::-1].copy()},
    "IoUs are not finite": lambda x: x | {"ious": np.where(np.arange(4) == 2, np.nan, x["ious"])},
}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_refused(damage, precision):
    reference = answers()
    harmed = DAMAGE[damage](answers())
    assert clicks.TASK.compare(reference, answers(), precision).answer == "pass"
    assert clicks.TASK.compare(reference, harmed, precision).answer == "fail", (damage, precision)


def test_the_worst_photo_is_named_and_nothing_is_lost_of_the_same():
    reference, outputs = answers(), answers()
    outputs["masks"][7] = np.roll(outputs["masks"][7], 3, axis=-1)
    found = clicks.TASK.compare(reference, outputs, "bf16")
    assert (found.answer, found.worst, found.photos) == ("fail", "7", 12)
    assert clicks.TASK.lost(reference, answers(), None) == 0


def test_an_artifact_holds_its_claims_in_both_engines(made, ours, folder, tmp_path):
    for place in (folder, clicks.artifact(made, ours, tmp_path / "ov", "openvino").path):
        found = verify.verify(place, threads=1)
        assert found.holds, [check for check in found.checks if check.answer != "pass"]
        assert "relative error of predicted IoUs" in [check.name for check in found.checks]
        names = [graph.name for graph in found.facts.graphs]
        assert names == ["encode", "prompt"]


@pytest.mark.parametrize("stage", ["encode", "prompt"])
def test_a_stage_with_other_weights_is_found(made, ours, tmp_path, stage):
    """Both its graphs are whole; only the reference photos can tell."""
    import onnx
    from onnx import numpy_helper

    harmed = tmp_path / "export"
    shutil.copytree(made, harmed)
    model = onnx.load(harmed / stage / "model.onnx")
    rng = np.random.default_rng(0)
    for weights in model.graph.initializer:
        values = numpy_helper.to_array(weights)
        if weights.data_type == onnx.TensorProto.FLOAT and values.ndim == 2:
            noise = 0.1 * np.abs(values).mean() * rng.standard_normal(values.shape)
            weights.CopyFrom(numpy_helper.from_array((values + noise).astype(np.float32), weights.name))
    onnx.save(model, harmed / stage / "model.onnx")
    bundle = clicks.bundle(made, ours, tmp_path / "parts")
    shipped = write(tmp_path / "winner", replace(bundle, export=replace(bundle.export, folder=str(harmed))))
    assert verify.verify(shipped.path, threads=1).answer == "does not hold its claims"


def test_files_of_a_stage_are_checked(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "model" / "prompt" / "model.onnx").unlink()
    with pytest.raises(InputError, match=r"prompt/model\.onnx is missing"):
        predict.load(copy)


# --- how good it is ---------------------------------------------------------------------------------


def disc(x: float, y: float, radius: float, size=(60, 90)) -> RunLengths:
    rows, columns = np.mgrid[: size[0], : size[1]]
    return rle.encode(np.hypot(columns - x, rows - y) < radius)


def test_quality_is_the_mean_iou_of_one_click_for_each_object():
    """Two of three objects are found as they are, and the third not at all."""
    runs = [disc(20, 30, 12), disc(60, 20, 9), disc(70, 45, 8)]
    truths = [ClickTruth(photo=f"{k // 2}.png", runs=each, click=(0, 0)) for k, each in enumerate(runs)]
    frame = Letterbox(side=clicks.SIDE, photo=(60, 90))
    masks, ious = [], []
    for k, each in enumerate(runs):
        square, _ = letterbox(
            Image.fromarray(np.repeat(each.mask()[..., None] * np.uint8(255), 3, 2)), clicks.SIDE
        )
        small = F.interpolate(torch.from_numpy(square[:1][None]), (32, 32), mode="area").numpy()[0, 0]
        right = small - (small.max() + small.min()) / 2
        masks.append(np.stack([-np.ones_like(right), right if k < 2 else -np.ones_like(right), right, right]))
        ious.append([0.99, 0.9, 0.1, 0.2])  # the first is for clear prompts: a click is none
    outputs = {"masks": np.stack(masks), "ious": np.array(ious, np.float32)}
    expected = [iou(frame.inside(masks[k][1]), runs[k].mask()) for k in range(3)]
    found = clicks.TASK.score([(outputs, truths)], ("object",), split="validation", data="d")
    assert expected[2] == 0
    assert min(expected[:2]) > 0.6
    assert found.main.metric == "mean IoU"
    assert found.main.value == pytest.approx(100 * np.mean(expected))
    assert found.figure("found").value == pytest.approx(200 / 3)
    assert (found.images, found.main.interval) == (2, None)  # two photos are too few for an interval
    with pytest.raises(InputError, match="None of these photos holds an object"):
        clicks.TASK.score([], ("object",), split="validation", data="d")


def test_a_session_answers_clicks_as_the_predictor_does(folder, tmp_path):
    opened = open_artifact(folder)
    session = ExportSession(
        SessionRequest(
            folder=str(opened.model_folder),
            graphs=opened.manifest.graphs,
            target=opened.manifest.variant.on("cpu"),
            batch_size=1,
            threads=1,
            task=tasks.pack(opened.task),
            photos=[str(photo) for photo in opened.photos],
        )
    )
    asked = [[str(opened.photos[0]), [[20, 15], [70, 40]]], [str(opened.photos[1]), [[5, 5]]]]
    session.clicked(asked, str(tmp_path / "found.npz"))
    found = tasks.read_arrays(tmp_path / "found.npz")
    assert found["masks"].shape == (3, 4, 32, 32)
    with predict.load(folder) as model:
        rows = iter(zip(found["masks"], found["ious"], strict=True))
        for path, points in asked:
            for point in points:
                expected = model.prompt(model.prompter.encode(decode(path)), points=[point])
                masks, ious = next(rows)
                np.testing.assert_allclose(masks, expected.scores, atol=1e-5 * np.abs(masks).max())
                np.testing.assert_allclose(ious, expected.ious, atol=1e-5)


# --- the command ------------------------------------------------------------------------------------


def run(*arguments) -> int:
    return main(["segment", *map(str, arguments)])


def test_a_click_is_written_as_png_and_as_run_lengths(folder, tmp_path, capsys):
    path, out = tmp_path / "cat.png", tmp_path / "out"
    clicks.photo(4).save(path)
    assert run(folder, path, "--point", "20,15", "--point", "60.5,40,0", "--out", out) == 0
    with predict.load(folder) as model:
        expected = model.segment(path, points=[(20, 15), (60.5, 40)], labels=[1, 0])
    assert np.array_equal(np.asarray(Image.open(out / "masks" / "cat.png")) > 0, expected.mask)
    assert Image.open(out / "overlays" / "cat.jpg").size == (90, 60)
    document = json.loads((out / "masks.json").read_text())
    (annotation,) = document["annotations"]
    assert np.array_equal(rle.from_coco(annotation["segmentation"]).mask(), expected.mask)
    assert annotation["score"] == pytest.approx(expected.iou, abs=1e-4)
    assert annotation["area"] == expected.mask.sum()
    assert expected.rle() == annotation["segmentation"]
    said = capsys.readouterr().out
    assert f"cat.png: {expected.mask.mean():.1%} of the photo, predicted IoU {expected.iou:.2f}" in said
    assert run(folder, path, "--box", "3,4,40,33", "--out", out, "--overwrite") == 0


def test_everything_is_written_with_a_file_for_each(folder, tmp_path, capsys, monkeypatch):
    found = [clicks.photo(1), clicks.photo(2)]
    for number, each in enumerate(found):
        each.save(tmp_path / f"{number}.png")
    answer = [
        Clicked(
            scores=blob(*each)[None], ious=np.array([0.9]), best=0, frame=Letterbox(side=64, photo=(60, 90))
        )
        for each in DISCS
    ]
    monkeypatch.setattr("vitrail.predict.Predictor.everything", lambda self, path: answer)
    out = tmp_path / "out"
    assert run(folder, tmp_path / "0.png", tmp_path / "1.png", "--everything", "--out", out) == 0
    assert sorted(each.name for each in (out / "masks").iterdir()) == [
        "0-001.png", "0-002.png", "1-001.png", "1-002.png"
    ]  # fmt: skip
    assert "0.png: 2 found" in capsys.readouterr().out
    assert [each["image_id"] for each in json.loads((out / "masks.json").read_text())["annotations"]] == [
        1,
        1,
        2,
        2,
    ]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ([], "answers prompts: say what is meant with --point X,Y or --box"),
        (["--point", "20"], "--point 20 is not X,Y or X,Y,0"),
        (["--point", "a,b"], "--point a,b is not X,Y"),
        (["--point", "1,2,3"], "the third number is 1 inside of it or 0 outside"),
        (["--box", "1,2,3"], "--box 1,2,3 is not X0,Y0,X1,Y1"),
        (["--box", "5,5,5,9"], "is empty"),
        (["--point", "200,3"], "lies outside the photo of 90 × 60 pixels"),
        (["--everything", "--point", "1,1"], "--everything asks for all"),
    ],
)
def test_a_command_without_a_meaning_is_refused_and_writes_nothing(folder, tmp_path, capsys, asked, said):
    clicks.photo(4).save(tmp_path / "cat.png")
    assert run(folder, tmp_path / "cat.png", *asked, "--out", tmp_path / "out") == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_one_prompt_is_about_one_photo_and_not_for_other_commands(folder, tmp_path, capsys):
    for name in ("a.png", "b.png"):
        clicks.photo(4).save(tmp_path / name)
    assert run(folder, tmp_path, "--point", "1,1", "--out", tmp_path / "out") == 2
    assert "are in pixels of one photo, and 2 are given" in capsys.readouterr().err
    assert main(["predict", str(folder), str(tmp_path / "a.png")]) == 2
    assert "use vitrail segment with --point or --box" in capsys.readouterr().err
    assert main(["batch", str(folder), str(tmp_path), "--out", str(tmp_path / "table")]) == 2
    assert "answers prompts, and a batch has none" in capsys.readouterr().err
    assert main(["package", str(folder), "--for", "docker", "--out", str(tmp_path / "image")]) == 2
    assert "which no package serves yet" in capsys.readouterr().err
    other = GOLDEN / "artifact-4-openvino"
    assert run(other, tmp_path / "a.png", "--point", "1,1", "--out", tmp_path / "out") == 2
    assert "makes no masks" in capsys.readouterr().err
    with predict.load(other) as model, pytest.raises(InputError, match="its task is classify"):
        model.segment(tmp_path / "a.png", points=[(1, 1)])
    with predict.load(other) as model, pytest.raises(InputError, match="takes no prompts"):
        model.encode(tmp_path / "a.png")


# --- engines that cannot leave sizes open -------------------------------------------------------------


def test_a_graph_is_loaded_again_for_other_numbers_of_points_four_at_most(made, monkeypatch):
    """ONNX Runtime, as if it could not."""
    image = clicks.photo(6)
    rng = np.random.default_rng(1)
    prompts = [rng.uniform((0, 0), (90, 60), (count, 2)) for count in (1, 2, 3, 4, 5, 6, 1)]
    with clicks.loaded(made) as model:
        expected = [model.segment(image, points=points) for points in prompts]
    monkeypatch.setitem(RUNTIMES, "onnxruntime", replace(RUNTIMES["onnxruntime"], open_sizes=False))
    with clicks.loaded(made) as model:
        stage = model.runner.stages["prompt"]
        assert isinstance(stage, OnDemand)
        assert model.runner.facts.graphs[1].inputs[1].shape == (1, "N", 2)
        assert list(stage._kept) == [(2,)]  # one click, and what closes it
        for points, known in zip(prompts, expected, strict=True):
            found = model.segment(image, points=points)
            np.testing.assert_allclose(found.scores, known.scores, atol=1e-5 * np.abs(known.scores).max())
            assert len(stage._kept) <= 4
        assert list(stage._kept) == [(5,), (6,), (7,), (2,)]
        assert len(model.everything(image, points_per_side=5, iou_from=0, stability_from=0)) > 0

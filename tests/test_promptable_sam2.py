"""SAM 2 as an artifact of the task promptable: three kept tensors, squashed photos. About 40 s."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import clicks
import msgspec
import numpy as np
import pytest
import test_sam2 as small
import torch
from PIL import Image
from torch.nn import functional as F

from vitrail.errors import InputError
from vitrail.export import eager, work
from vitrail.export.requests import ExportRequest
from vitrail.images.letterbox import letterbox
from vitrail.models import registry, sam2_config
from vitrail.predict import load
from vitrail.tasks.promptable import Promptable
from vitrail.vocabulary import Preprocess

pytestmark = pytest.mark.slow

NAME, SIDE, GRID, MASK = "sam2_tiny_test", small.SIDE, small.GRID, small.MASK
PREPROCESS = Preprocess(image_size=SIDE, crop=1.0, crop_mode="squash", interpolation="bilinear")
TASK = Promptable(
    preprocess=PREPROCESS,
    masks=3,
    width=32,
    tokens=GRID,
    mask_side=MASK,
    finer=((8, 2 * GRID), (4, MASK)),
    closes_boxes=True,
)


@pytest.fixture(scope="module")
def theirs():
    torch.set_num_threads(1)
    return small.built("sam2")


@pytest.fixture(scope="module")
def ours(theirs):
    return small.loaded("sam2", theirs.state_dict()).float().requires_grad_(False)


@pytest.fixture(scope="module")
def made(ours, tmp_path_factory) -> Path:
    """Both graphs, with what OpenVINO builds of them in `openvino`."""
    folder = tmp_path_factory.mktemp("sam2")
    torch.save(ours.state_dict(), folder / "weights.pth")
    request = ExportRequest(
        architecture=NAME, implementation="vitrail", labels="", weights=str(folder / "weights.pth"),
        image_size=SIDE, folder=str(folder / "export"), threads=1, task="promptable",
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sam2_config.VARIANTS, NAME, small.SMALL)
        for table in (registry.PROMPTABLE, registry.SEGMENTERS):
            patch.setitem(table, NAME, "vitrail.models.sam2:SAM2")
        facts = work.export(msgspec.to_builtins(request))
    assert Promptable.of_export(PREPROCESS, facts, lambda name: b"") == TASK
    made, stages = folder / "export", ["encode", "prompt"]
    target = str(made / "openvino")
    work.build({"folder": str(made), "runtime": "openvino", "target": target, "stages": stages})
    return made


@pytest.fixture(scope="module", params=["onnxruntime", "openvino"])
def model(request, made, ours, tmp_path_factory):
    """As shipped: written as an artifact and loaded from it."""
    folder = tmp_path_factory.mktemp(request.param)
    with load(clicks.artifact(made, ours, folder, request.param, task=TASK).path) as found:
        yield found


def their_answer(theirs, image: Image.Image, points=(), labels=(), box=None):
    """transformers' masks (1 + M, Y, X), IoUs, and scores at the photo's size."""
    square, frame = letterbox(image, SIDE, squashed=True)
    height, width = frame.photo
    scale = np.array([SIDE / width, SIDE / height])
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
    return masks.numpy(), ious.numpy(), F.interpolate(masks[None], frame.photo, mode="bilinear")[0].numpy()


PROMPTS = {
    "one click": {"points": [(20, 15)], "labels": [1]},
    "three clicks": {"points": [(20, 15), (40, 40), (5, 44)], "labels": [1, 0, 1]},
    "a box": {"box": (3, 4, 40, 33)},
    "a click and a box": {"points": [(20, 15)], "labels": [1], "box": (3, 4, 40, 33)},
}


@pytest.mark.parametrize("asked", PROMPTS)
def test_masks_are_transformers_from_photo_to_pixels(model, theirs, asked):
    for size in [(60, 90), (90, 47)]:
        image, given = clicks.photo(5, size), PROMPTS[asked]
        found = model.segment(image, **given)
        masks, ious, at_size = their_answer(theirs, image, **given)
        np.testing.assert_allclose(found.scores, masks, rtol=1e-3, atol=1e-4 * np.abs(masks).max())
        np.testing.assert_allclose(found.ious, ious, rtol=1e-4, atol=1e-4)
        sure = np.abs(at_size) > 1e-3 * np.abs(at_size).max()
        assert found.masks.shape == (4, *size)
        assert np.array_equal(found.masks[sure], at_size[sure] > 0)
        assert found.best == (1 + ious[1:].argmax() if asked == "one click" else 0)


def test_all_that_a_prompt_needs_is_kept(model):
    encoded = model.encode(clicks.photo(3))
    assert {name: values.shape for name, values in encoded.kept.items()} == {
        "embeddings": (1, 32, GRID, GRID),
        "finer_1": (1, 8, 2 * GRID, 2 * GRID),
        "finer_2": (1, 4, MASK, MASK),
    }
    assert encoded.bytes == 4 * (32 * GRID**2 + 8 * (2 * GRID) ** 2 + 4 * MASK**2)
    with pytest.raises(InputError, match="are another model's"):
        model.prompt(replace(encoded, kept={"embeddings": encoded.kept["embeddings"]}), points=[(5, 5)])
    found = model.everything(clicks.photo(3), points_per_side=3, iou_from=0, stability_from=0, overlap_most=1)
    assert len(found) == 27


def test_views_have_as_many_points_each(model, ours):
    """A click, a box, more clicks: what an export is compared on."""
    image = clicks.photo(2)
    views = TASK.views(image, 4)
    assert views["points"].shape == (4, 2, 2)
    assert views["labels"].tolist() == [[1, -1], [2, 3], [1, -1], [1, -1]]
    first = TASK.prepare([image])
    assert all(np.array_equal(views[name][:1], first[name]) for name in first)
    found, wanted = model.run(views), eager.runner(ours, TASK.graphs(""))(views)
    np.testing.assert_allclose(found["masks"], wanted["masks"], atol=1e-4 * np.abs(wanted["masks"]).max())


def test_photos_that_lose_a_part_are_refused():
    facts = TASK.facts()
    assert Promptable.read(facts, lambda name: b"") == TASK
    cut = {**facts, "preprocess": {**facts["preprocess"], "crop_mode": "center"}}
    with pytest.raises(InputError, match="prompts need whole photos"):
        Promptable.read(cut, lambda name: b"")
    assert TASK.asked(TASK.frame((60, 90)), [], None, (0, 0, 9, 9))["labels"].tolist() == [[2, 3, -1]]

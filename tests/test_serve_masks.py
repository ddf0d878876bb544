"""Masks over HTTP are those of `Predictor.segment`; other questions are refused. About 14 s."""

from __future__ import annotations

import io
import json
import threading
import time
from dataclasses import replace

import artifacts
import mask_artifacts
import mask_nets
import numpy as np
import pytest
from PIL import Image

from vitrail.images.limits import LIMITS
from vitrail.masks import rle
from vitrail.predict import load

pytest.importorskip("fastapi", reason="needs the extra serve")
tritonclient = pytest.importorskip("tritonclient.http")

from serving import Server  # noqa: E402

from vitrail.serve import service, wire, working  # noqa: E402
from vitrail.serve.agreeing import agree  # noqa: E402

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def semantic(tmp_path_factory):
    return mask_artifacts.make_segment_artifact(tmp_path_factory.mktemp("semantic"))


@pytest.fixture(scope="module")
def cutter(tmp_path_factory):
    return mask_artifacts.make_segment_artifact(tmp_path_factory.mktemp("cutter"), mask_artifacts.DISC)


@pytest.fixture(scope="module")
def server(semantic, cutter, tmp_path_factory):
    classifier = artifacts.make_artifact(tmp_path_factory.mktemp("classify"))
    names = (f"all={semantic.path}", f"cut={cutter.path}", f"labels={classifier.path}")
    with Server(*names, "--max-batch", 1, cache=tmp_path_factory.mktemp("cache")) as found:
        yield found


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def photos() -> dict[str, bytes]:
    """A photo as it is, one that is decoded at a lower scale, and one that lies on its side in its file."""
    turned = Image.Exif()
    turned[0x0112] = 6
    return {
        "plain": encoded(mask_nets.photo(0)[0], "PNG"),
        "large": encoded(mask_nets.photo(1, (700, 1001))[0], "JPEG", quality=90),
        "turned": encoded(mask_nets.photo(2, (61, 90))[0], "JPEG", exif=turned, quality=95),
    }


def pixels(mask: dict) -> np.ndarray:
    """COCO's compressed text, decoded a second time, by hand."""
    counts, value, shift = [], 0, 0
    for character in mask["counts"]:
        bits = ord(character) - 48
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (bits >> 4 & 1) << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    flat = [inside for i, count in enumerate(counts) for inside in [i % 2 == 1] * count]
    height, width = mask["size"]
    return np.array(flat, bool).reshape(width, height).T


# --- what is answered -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["plain", "large", "turned"])
def test_masks_are_exactly_those_of_segment(server, semantic, photos, name):
    with load(semantic.path, batch_size=1) as model:
        (expected,) = model.segment(photos[name])
    labels = expected.labels()
    answer = server.post("/v1/segment?model=all", photos[name], "image/jpeg").json()
    (found,) = answer["results"]
    stored = Image.open(io.BytesIO(photos[name])).size
    assert tuple(found["size"]) == labels.shape == (stored if name == "turned" else stored[::-1])
    there = [number for number in range(3) if (labels == number).any()]
    assert len(there) == 3
    assert [mask["index"] for mask in found["masks"]] == there
    for mask in found["masks"]:
        own = labels == mask["index"]
        assert mask["label"] == mask_nets.CLASSES[mask["index"]]
        assert np.array_equal(pixels(mask["mask"]), own)
        assert mask["share"] == own.mean()
        rows, columns = np.nonzero(own)
        left, top = columns.min(), rows.min()
        assert mask["box"] == [left, top, columns.max() - left + 1, rows.max() - top + 1]
    assert (answer["model"], set(answer["timing_ms"])) == ("all", {"wait", "prepare", "run", "finish"})


def test_a_cut_out_is_a_mask_and_its_alpha(server, cutter, photos):
    with load(cutter.path, batch_size=1) as model:
        (expected,) = model.segment(photos["large"])
    (found,) = server.post("/v1/segment?model=cut", photos["large"]).json()["results"]
    (mask,) = found["masks"]
    assert (mask["label"], mask["index"]) == ("disc", 1)
    assert np.array_equal(pixels(mask["mask"]), expected.labels() == 1)
    answer = server.post("/v1/segment?model=cut&as=png", photos["large"])
    assert answer.headers["content-type"] == "image/png"
    alpha = Image.open(io.BytesIO(answer.content))
    assert alpha.mode == "L"
    assert np.array_equal(np.asarray(alpha), np.rint(255 * expected.alpha()))
    cut = Image.open(io.BytesIO(server.post("/v1/segment?model=cut&as=cutout", photos["large"]).content))
    assert cut.mode == "RGBA"
    assert np.array_equal(np.asarray(cut)[..., 3], np.asarray(alpha))
    assert np.array_equal(np.asarray(cut)[..., :3], np.asarray(Image.open(io.BytesIO(photos["large"]))))


def test_the_map_of_labels_is_a_palette_png(server, semantic, photos):
    with load(semantic.path, batch_size=1) as model:
        (expected,) = model.segment(photos["plain"])
    found = Image.open(io.BytesIO(server.post("/v1/segment?model=all&as=png", photos["plain"]).content))
    assert found.mode == "P"
    assert np.array_equal(np.asarray(found), expected.labels())


def test_several_photos_come_back_in_order_and_a_bad_one_spoils_no_other(server, photos):
    alone = {
        name: server.post("/v1/segment?model=all", data).json()["results"][0] for name, data in photos.items()
    }
    given = [photos["large"], b"no image", photos["plain"], photos["turned"]]
    files = [("image", (str(i), data)) for i, data in enumerate(given)]
    results = server.client.post("/v1/segment?model=all", files=files).json()["results"]
    assert results[1]["error"]["code"] == "unusable_image"
    assert [results[0], *results[2:]] == [alone["large"], alone["plain"], alone["turned"]]


def test_a_photo_without_the_thing_has_no_mask(server):
    dark = encoded(Image.new("RGB", (30, 20)), "PNG")
    (found,) = server.post("/v1/segment?model=cut", dark).json()["results"]
    assert found == {"size": [20, 30], "masks": []}


@pytest.mark.parametrize(
    ("query", "status", "said"),
    [
        ("?model=all&as=gif", 400, "as is 'gif': give json, png or cutout"),
        ("?model=all&as=cutout", 400, "all cuts nothing out, it tells 3 classes apart: use as=png"),
        ("?model=all&top=3", 400, "'top' is no parameter of segment, which takes as and model"),
        ("?model=labels", 400, "labels is for classify: send this to /v1/classify"),
        ("", 400, "Name one of the models with ?model=: all, cut"),
        ("?model=other", 404, "There is no model of this name"),
    ],
)
def test_other_questions_are_refused(server, photos, query, status, said):
    answer = server.post(f"/v1/segment{query}", photos["plain"])
    assert (answer.status_code, said in answer.json()["error"]["message"]) == (status, True), answer.text


def test_a_png_is_of_one_photo_that_can_be_used(server, photos):
    files = [("image", (str(i), photos["plain"])) for i in range(2)]
    answer = server.client.post("/v1/segment?model=all&as=png", files=files)
    assert (answer.status_code, "A PNG shows one photo, and 2 were sent" in answer.text) == (400, True)
    answer = server.post("/v1/segment?model=all&as=png", b"no image")
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "unusable_image")
    assert server.post("/v1/classify?model=all", photos["plain"]).status_code == 400


def test_the_stock_triton_client_gets_the_maps_of_scores(server, semantic, photos):
    with load(semantic.path, batch_size=1) as model:
        inputs = model.prepare([photos["plain"], photos["turned"]])
        expected = model.run(inputs)["masks"]
    given = tritonclient.InferInput("images", list(inputs["images"].shape), "FP32")
    given.set_data_from_numpy(inputs["images"])
    with tritonclient.InferenceServerClient(server.url.removeprefix("http://")) as client:
        found = client.infer("all", [given])
        assert client.get_model_metadata("all")["outputs"][0]["shape"] == [-1, 3, 16, 16]
    np.testing.assert_array_equal(found.as_numpy("masks"), expected)


def test_metrics_and_what_is_said_of_the_model(server, photos):
    before = server.metric("vitrail_stage_seconds_count", model="all", stage="finish")
    server.post("/v1/segment?model=all", photos["plain"])
    assert server.metric("vitrail_stage_seconds_count", model="all", stage="finish") == before + 1
    assert server.metric("vitrail_stage_seconds_count", model="labels", stage="finish") == 0
    assert server.metric("vitrail_requests_total", endpoint="segment", status="200", model="all") > 0
    said = server.models()["all"]
    assert (said["task"], said["classes"]) == ("segment", 3)
    assert said["evidence"]["accuracy"]["metric"] == "mean IoU in %"


def test_the_description_knows_the_answer(server, photos):
    api = server.client.get("/openapi.json").json()
    good = api["paths"]["/v1/segment"]["post"]["responses"]["200"]["content"]
    assert set(good) == {"application/json", "image/png"}
    schema = api["components"]["schemas"]["Segmented"]
    answer = server.post("/v1/segment?model=all", photos["plain"]).json()
    assert set(schema["required"]) == set(answer)
    one, _ = schema["properties"]["results"]["items"]["oneOf"]
    assert set(one["required"]) == set(answer["results"][0])
    assert set(one["properties"]["masks"]["items"]["required"]) == set(answer["results"][0]["masks"][0])


# --- a second artifact --------------------------------------------------------------------------------


def test_a_shadow_agrees_as_far_as_its_masks_do(semantic, tmp_path, photos):
    other = mask_artifacts.make_segment_artifact(tmp_path, swap=True)
    shadow = ("--shadow", other.path, "--shadow-share", 1)
    with Server(f"live={semantic.path}", *shadow, cache=tmp_path / "cache") as server:
        server.post("/v1/segment", photos["plain"])
        server.post("/v1/segment?as=png", photos["plain"])  # is no JSON that could be compared
        deadline = time.monotonic() + 10
        while not (found := server.models()["live"]["shadow"])["images"]:
            assert time.monotonic() < deadline, found
            time.sleep(0.02)
        time.sleep(0.3)
        found = server.models()["live"]["shadow"]
    with load(semantic.path) as ours, load(other.path) as theirs:
        a, b = (model.segment(photos["plain"])[0].labels() for model in (ours, theirs))
    expected = np.mean([((a == k) & (b == k)).sum() / ((a == k) | (b == k)).sum() for k in range(3)])
    assert found["images"] == 1
    assert found["agreement"]["what"] == "mean IoU of the masks"
    assert found["agreement"]["mean"] == pytest.approx(expected)
    assert expected < 0.5


def said(labels: np.ndarray, names: dict[int, str]) -> dict:
    return {
        "masks": [
            {"label": names[number], "share": runs.area / labels.size, "mask": runs.coco()}
            for number, runs in rle.of_labels(labels).items()
            if number in names
        ]
    }


def test_agreement_is_the_mean_iou_of_what_is_there():
    names = {1: "disc", 2: "bar"}
    nothing, some = np.zeros((40, 50), int), np.zeros((40, 50), int)
    some[:10], some[20:, :25] = 1, 2
    moved = np.roll(some, 5, axis=0)
    assert agree("segment", said(nothing, names), said(nothing, names)) == 1.0
    assert agree("segment", said(some, names), said(nothing, names)) == 0.0
    expected = [((some == k) & (moved == k)).sum() / ((some == k) | (moved == k)).sum() for k in names]
    assert agree("segment", said(some, names), said(moved, names)) == pytest.approx(np.mean(expected))
    speck = some.copy()
    speck[speck == 2] = 0
    speck[0, 0] = 2  # too small on both sides to be a mask
    bare = np.where(speck == 2, 0, speck)
    assert agree("segment", said(speck, names), said(bare, names)) == 1.0


# --- inside -------------------------------------------------------------------------------------------


class Inside:
    """A model's process from the inside, and what it said."""

    def __init__(self, artifact, megapixels: int | None = None) -> None:
        self.said = []
        config = wire.Config(
            artifact=str(artifact.path), threads=1, max_batch=1, promise_ms=None, megapixels=megapixels,
            file_bytes=1 << 20,
        )  # fmt: skip
        self.working = working.Working(
            artifact, config, lambda head, *parts: self.said.append((head, b"".join(parts)))
        )
        self.working.start()

    def answers(self, count: int) -> list:
        deadline = time.monotonic() + 20
        while True:
            found = [each for each in self.said if isinstance(each[0], (wire.Answer, wire.Failed))]
            if len(found) >= count:
                return found
            assert time.monotonic() < deadline
            time.sleep(0.01)


def ask(number: int, image: bytes, **changes) -> wire.Images:
    asked = wire.Images(id=number, sizes=[len(image)], options={}, deadline=time.monotonic() + 60)
    return wire.Images(**{name: getattr(asked, name) for name in asked.__struct_fields__} | changes)


def test_masks_are_not_made_on_the_thread_of_the_engine(semantic, photos, monkeypatch):
    """While the masks of one photo are made, the engine runs the next."""
    held, begun, plain = threading.Event(), threading.Event(), service.as_json

    def slow(task, result):
        if result.size[0] == 700:
            begun.set()
            assert held.wait(20)
        return plain(task, result)

    monkeypatch.setattr(service, "as_json", slow)
    monkeypatch.setattr(service, "usable_cores", lambda: 2)
    inside = Inside(semantic)
    inside.working.take(ask(1, photos["large"]), photos["large"])
    assert begun.wait(20)
    inside.working.take(ask(2, photos["plain"]), photos["plain"])
    assert [head.id for head, _ in inside.answers(1)] == [2]
    held.set()
    assert [head.id for head, _ in inside.answers(2)] == [2, 1]


def test_masks_that_nobody_waits_for_are_not_made(semantic, photos, monkeypatch):
    made = []
    monkeypatch.setattr(service, "as_json", lambda *_: made.append(1) or b"{}")
    inside = Inside(semantic)
    plain = inside.working._settle

    def late(job, result):
        job.request.cancelled = True
        plain(job, result)

    monkeypatch.setattr(inside.working, "_settle", late)
    inside.working.take(ask(1, photos["plain"]), photos["plain"])
    ((head, _),) = inside.answers(1)
    assert (type(head), head.code, made) == (wire.Failed, "deadline", [])
    assert not inside.working._requests


def test_photos_larger_than_masks_are_made_are_refused(semantic):
    """Also where larger images may be decoded."""
    inside = Inside(semantic, megapixels=100)
    assert inside.working._limits == replace(inside.working._limits, pixels=LIMITS.pixels)
    wide = encoded(Image.new("1", (10_000, 6_000)), "PNG")
    inside.working.take(ask(1, wide), wide)
    ((head, payload),) = inside.answers(1)
    assert head.errors[0][0] == "unusable_image"
    assert "above the limit" in json.loads(payload)[0]["error"]["message"]

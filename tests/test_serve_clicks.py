"""Prompts over HTTP are answered as by `Predictor.prompt`; photos are kept, never mixed up. About 20 s."""

from __future__ import annotations

import io
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import click_nets
import mask_artifacts
import numpy as np
import pytest
from browser import CHROMIUM, Browser
from PIL import Image

from vitrail.masks import rle
from vitrail.predict import load

pytest.importorskip("fastapi", reason="needs the extra serve")

from serving import Server

from vitrail.cli import main
from vitrail.serve import wire
from vitrail.serve.agreeing import agree
from vitrail.serve.clicking import Clicking

pytestmark = pytest.mark.slow

KEPT = 3


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    return click_nets.make_artifact(tmp_path_factory.mktemp("clicks"))


@pytest.fixture(scope="module")
def server(artifact, tmp_path_factory):
    semantic = mask_artifacts.make_segment_artifact(tmp_path_factory.mktemp("semantic"))
    names = (f"sam={artifact.path}", f"all={semantic.path}")
    with Server(*names, "--keep-photos", KEPT, cache=tmp_path_factory.mktemp("cache")) as found:
        yield found


@pytest.fixture(scope="module")
def model(artifact):
    with load(artifact.path) as found:
        yield found


@pytest.fixture(scope="module")
def alone(artifact, tmp_path_factory):
    """A server whose page begins with the model."""
    with Server(
        f"sam={artifact.path}", "--keep-photos", KEPT, cache=tmp_path_factory.mktemp("cache")
    ) as found:
        yield found


def photo(seed: int, size: tuple[int, int] = (60, 90)) -> bytes:
    file = io.BytesIO()
    click_nets.photo(seed, size).save(file, "PNG")
    return file.getvalue()


def sent(server, data: bytes, query: str = "") -> dict:
    answer = server.post(f"/v1/segment?model=sam{query}", data)
    assert answer.status_code == 200, answer.text
    (result,) = answer.json()["results"]
    return result


def asked(server, **prompt):
    return server.client.post("/v1/segment?model=sam", json=prompt)


def painted(points=(), labels=None, box=None, *, data: bytes, model) -> np.ndarray:
    """The mask in Python, which is something and not everything."""
    found = model.segment(data, points=points, labels=labels, box=box).mask
    assert 0 < found.mean() < 0.9
    return found


def mask(result: dict) -> np.ndarray:
    (found,) = result["masks"]
    return rle.from_coco(found["mask"]).mask()


# --- what is answered -------------------------------------------------------------------------------

PROMPTS = [
    {"points": [[30, 20, 1]]},
    {"points": [[30.5, 20]]},
    {"points": [[30, 20, 1], [80, 50, 0], [5, 5, 0]]},
    {"box": [10, 5, 70, 55]},
    {"points": [[0, 0, 1], [90, 60, 0]], "box": [0, 0, 90, 60]},
]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_prompt_means_the_same_as_in_python(server, model, prompt):
    data = photo(0)
    points = [point[:2] for point in prompt.get("points", [])]
    labels = [point[2] if len(point) == 3 else 1 for point in prompt.get("points", [])]
    expected = model.segment(data, points=points, labels=labels, box=prompt.get("box"))
    assert 0 < expected.mask.mean() < 0.9
    kept = sent(server, data)
    assert kept["masks"] == []
    again = asked(server, image_id=kept["image_id"], **prompt).json()["results"][0]
    query = "".join(f"&{name}={json.dumps(value)}" for name, value in prompt.items())
    for found in (again, sent(server, data, query)):
        assert (found["size"], found["image_id"]) == ([60, 90], kept["image_id"])
        assert np.array_equal(mask(found), expected.mask)
        (one,) = found["masks"]
        assert one["iou"] == pytest.approx(expected.iou, rel=1e-5)
        assert one["share"] == expected.mask.mean()
    picture = server.post(f"/v1/segment?model=sam{query}&as=png", data)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(picture.content))) == 255, expected.mask)
    cut = Image.open(io.BytesIO(server.post(f"/v1/segment?model=sam{query}&as=cutout", data).content))
    assert np.array_equal(np.asarray(cut)[..., 3] == 255, expected.mask)
    assert np.array_equal(np.asarray(cut)[..., :3], np.asarray(Image.open(io.BytesIO(data))))


def test_a_mask_of_a_photo_sent_before_comes_as_png_too(server, model):
    kept = sent(server, photo(1))
    answer = server.client.post(
        "/v1/segment?model=sam&as=png", json={"image_id": kept["image_id"], "points": [[40, 30, 1]]}
    )
    expected = model.segment(photo(1), points=[(40, 30)])
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(answer.content))) == 255, expected.mask)


def test_a_photo_on_its_side_is_clicked_as_it_is_shown(server, model):
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    click_nets.photo(2, (60, 90)).save(file, "JPEG", exif=exif, quality=95)
    found = sent(server, file.getvalue(), "&points=[[59,89,1]]")
    assert found["size"] == [90, 60]
    expected = model.segment(file.getvalue(), points=[(59, 89)])
    assert np.array_equal(mask(found), expected.mask)


# --- what is kept -----------------------------------------------------------------------------------


def test_only_the_last_photos_are_kept_and_the_others_may_come_again(server, model):
    ids = [sent(server, photo(seed))["image_id"] for seed in range(10, 10 + KEPT + 1)]
    gone = asked(server, image_id=ids[0], points=[[30, 20, 1]])
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "unknown_image")
    assert "send the photo again" in gone.json()["error"]["message"]
    for image in ids[1:]:
        assert asked(server, image_id=image, points=[[30, 20, 1]]).status_code == 200
    again = sent(server, photo(10), "&points=[[30,20,1]]")
    assert again["image_id"] == ids[0]
    assert asked(server, image_id=ids[0], points=[[30, 20, 1]]).status_code == 200
    assert asked(server, image_id=ids[1], points=[[30, 20, 1]]).status_code == 404  # used longest ago
    deadline = time.monotonic() + 5
    while (said := server.models()["sam"]["kept"])["photos"] != KEPT:
        assert time.monotonic() < deadline, said
        time.sleep(0.05)
    assert said["most"] == KEPT
    assert (
        said["bytes"]
        == server.metric("vitrail_kept_bytes", model="sam")
        == KEPT * 3 * click_nets.TOKENS**2 * 4
    )


def test_clicks_into_several_photos_at_the_same_time_are_never_mixed_up(server, model):
    """Each sends a photo and clicks; where the others' photos have taken its place, it is sent again."""
    photos = {seed: photo(seed, (60 + seed, 90 - seed)) for seed in range(6)}
    places = [(x, y) for x in (10, 40, 70) for y in (10, 50)]
    expected = {
        (seed, at): model.segment(data, points=[at]).mask for seed, data in photos.items() for at in places
    }
    assert len({found.tobytes() for found in expected.values()}) == len(expected)
    repeated = []

    def click(number: int) -> None:
        seed = number % len(photos)
        image = sent(server, photos[seed])["image_id"]
        for x, y in (*places, *places):
            answer = asked(server, image_id=image, points=[[x, y, 1]])
            if answer.status_code == 404:
                repeated.append(number)
                found = sent(server, photos[seed], f"&points=[[{x},{y},1]]")
            else:
                assert answer.status_code == 200, answer.text
                (found,) = answer.json()["results"]
            assert found["image_id"] == image
            assert np.array_equal(mask(found), expected[seed, (x, y)])

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(click, number) for number in range(12)]:
            done.result()
    assert repeated  # six photos, and three are kept


# --- refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ({"points": [[91, 20, 1]]}, "The point (91, 20) lies outside the photo of 90 × 60 pixels"),
        ({"points": [[30, -1, 1]]}, "The point (30, -1) lies outside"),
        ({"points": [[30, 20, 2]]}, "2 is not a label of a point: use 1 inside the object, 0 outside"),
        ({"points": [[30]]}, "The points are no list such as [[x, y, 1], [x, y, 0]]"),
        ({"points": [["a", "b"]]}, "The points are no list such as"),
        ({"points": "here"}, "The points are no list such as"),
        ({"points": [[1, 1, 1]] * 1001}, "1,001 points are too many for one prompt"),
        ({"box": [10, 10, 10, 50]}, "The box (10, 10, 10, 50) is empty"),
        ({"box": [50, 10, 10, 50]}, "The box (50, 10, 10, 50) is empty"),
        ({"box": [10, 10, 95, 50]}, "lies outside the photo"),
        ({"box": [10, 10, 50]}, "A box is four numbers"),
        ({"box": {"left": 1}}, "The box is no list such as [left, top, right, bottom]"),
        ({}, "There is no prompt: give at least one point, or a box"),
        ({"point": [[1, 1]]}, "unknown field `point`"),
    ],
)
def test_what_is_no_prompt_is_refused_and_harms_nothing(server, prompt, said):
    kept = sent(server, photo(0))
    answer = asked(server, image_id=kept["image_id"], **prompt)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_request"), answer.text
    assert said in answer.json()["error"]["message"]
    assert asked(server, image_id=kept["image_id"], points=[[30, 20]]).status_code == 200


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("&points=[[91,20,1]]", "lies outside the photo"),
        ("&points=30,20", "The points are no list such as"),
        ("&box=[1,2", "The box is no list such as"),
        ("&point=[[1,1]]", "'point' is no parameter of segment, which takes as, box, model and points"),
        ("&as=png", "There is no mask without a prompt"),
        ("&points=[[30,20,1]]&as=svg", "as is 'svg': give json, png or cutout"),
    ],
)
def test_what_is_no_prompt_in_an_address_is_refused(server, query, said):
    answer = server.post(f"/v1/segment?model=sam{query}", photo(0))
    assert (answer.status_code, said in answer.json()["error"]["message"]) == (400, True), answer.text


def test_other_bodies_are_refused(server):
    kept = sent(server, photo(0))["image_id"]
    client, path = server.client, "/v1/segment?model=sam"
    kind = {"content-type": "application/json"}
    cases = [
        (client.post(path, content=b"not json", headers=kind), 400, "The prompt is not understood"),
        (client.post(path, json={"points": [[1, 1]]}), 400, "missing required field `image_id`"),
        (client.post(path, content=b" " * 70_000, headers=kind), 413, "larger than 64 KiB"),
        (client.post(f"{path}&points=[[1,1]]", json={"image_id": kept}), 400, "give it in one of them"),
        (client.post(f"{path}&as=cutout", json={"image_id": kept, "box": [0, 0, 9, 9]}), 400, "send it too"),
        (
            client.post(path, files=[("image", (str(i), photo(0))) for i in range(2)]),
            400,
            "about one photo, and 2 were sent",
        ),
        (client.post(path, content=b"no image", headers={"content-type": "image/png"}), 422, "is not a JPEG"),
        (client.post("/v1/segment?model=all", json={"image_id": kept}), 415, "send an image"),
        (server.post("/v1/segment?model=all&points=[[1,1]]", photo(0)), 400, "'points' is no parameter"),
        (server.post("/v1/classify?model=sam", photo(0)), 400, "send this to /v1/segment"),
        (client.post("/v2/models/sam/infer", json={}), 400, "has two graphs"),
    ]
    for answer, status, said in cases:
        assert (answer.status_code, said in answer.text) == (status, True), answer.text


def test_the_tensors_of_both_graphs_are_described(server):
    said = server.client.get("/v2/models/sam").json()
    assert {tensor["name"]: tensor["shape"] for tensor in said["inputs"]} == {
        "images": [-1, 3, click_nets.SIDE, click_nets.SIDE], "points": [-1, -1, 2], "labels": [-1, -1],
    }  # fmt: skip
    assert {tensor["datatype"] for tensor in said["inputs"]} == {"FP32", "INT64"}
    assert server.ready()


def test_no_load_is_asked_of_what_is_kept(artifact, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("VITRAIL_CACHE", str(tmp_path))
    assert main(["verify", str(artifact.path), "--serving"]) == 2
    assert "leave --serving out" in capsys.readouterr().err


# --- a second artifact ------------------------------------------------------------------------------


def test_a_shadow_answers_the_same_prompts(artifact, tmp_path):
    with Server(artifact.path, "--shadow", artifact.path, "--shadow-share", 1, cache=tmp_path) as server:
        kept = server.post("/v1/segment", photo(0)).json()["results"][0]["image_id"]
        server.client.post("/v1/segment", json={"image_id": kept, "points": [[30, 20, 1]]})
        server.post("/v1/segment?points=[[30,20,1]]", photo(0))  # of these three the shadow can answer one
        deadline = time.monotonic() + 10
        while not (found := server.models()["winner"]["shadow"])["images"]:
            assert time.monotonic() < deadline, found
            time.sleep(0.02)
        time.sleep(0.3)
        found = server.models()["winner"]["shadow"]
    assert (found["images"], found["failed"]) == (1, 0)
    assert found["agreement"] == {"what": "IoU of the masks", "mean": 1.0}


def test_agreement_of_two_masks_is_their_iou():
    one, other = np.zeros((20, 30), bool), np.zeros((20, 30), bool)
    one[:10], other[5:15] = True, True

    def said(mask: np.ndarray) -> dict:
        return {"masks": [{"iou": 0.9, "share": mask.mean(), "mask": rle.encode(mask).coco()}]}

    assert agree("promptable", said(one), said(other)) == pytest.approx(1 / 3)
    assert agree("promptable", said(one), said(np.zeros_like(one))) == 0.0


# --- the page ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    with Browser(tmp_path_factory.mktemp("browser")) as found:
        yield found


class Page:
    """The server's page with a photo on it that can be clicked into."""

    def __init__(self, server, browser, path, width: int = 1200) -> None:
        self.browser = browser
        browser.events.clear()
        browser.open(server.url, width, 1100)
        browser.wait_for("document.getElementById('name').textContent === 'sam'")
        root = browser.call("DOM.getDocument")["root"]["nodeId"]
        node = browser.call("DOM.querySelector", nodeId=root, selector="#file")["nodeId"]
        browser.call("DOM.setFileInputFiles", files=[str(path)], nodeId=node)
        browser.wait_for("!document.getElementById('tools').hidden")
        self.size = Image.open(path).size

    def shown(self, x: float, y: float) -> tuple[float, float]:
        """Where a pixel of the photo lies in the window."""
        left, top, width, height = self.browser.value(
            "(() => { const r = document.getElementById('over').getBoundingClientRect();"
            " return [r.left, r.top, r.width, r.height]; })()"
        )
        return left + x / self.size[0] * width, top + y / self.size[1] * height

    def mask(self) -> np.ndarray:
        """What is painted."""
        found = self.browser.value(
            "(() => { const c = document.getElementById('over'), {width, height} = c;"
            " const data = c.getContext('2d').getImageData(0, 0, width, height).data, inside = [];"
            " for (let i = 3; i < data.length; i += 4) inside.push(data[i] > 0);"
            " return [width, height, inside]; })()"
        )
        assert tuple(found[:2]) == self.size
        return np.array(found[2]).reshape(self.size[::-1])

    def shows(self, expected: np.ndarray) -> None:
        """Wait until it does."""
        deadline = time.monotonic() + 20
        while not np.array_equal(self.mask(), expected):
            assert time.monotonic() < deadline, self.browser.complaints()
            time.sleep(0.05)


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(photo(4, (120, 160)))
    return path


@pytest.mark.parametrize("width", [1200, 360])
def test_masks_follow_clicks_boxes_and_second_thoughts(alone, browser, model, picture, width):
    page = Page(alone, browser, picture, width)
    data = picture.read_bytes()
    assert browser.value("document.documentElement.scrollWidth") <= width
    page.shows(np.zeros((120, 160), bool))

    def expect(points, labels, box=None):
        page.shows(painted(points, labels, box, data=data, model=model))

    def place(x: float, y: float) -> tuple[float, float]:
        """What the page asks for a click here, to a tenth of a pixel."""
        left, top = page.shown(x, y)
        return tuple(browser.value(f"place({{clientX: {left}, clientY: {top}}})"))

    first, second = place(50, 40), place(130, 100)
    browser.click(*page.shown(50, 40))
    expect([first], [1])
    browser.click(*page.shown(130, 100), button="right")
    expect([first, second], [1, 0])
    browser.drag(page.shown(20, 10), page.shown(100, 90))
    box = (*place(20, 10), *place(100, 90))
    expect([first, second], [1, 0], box)
    browser.value("document.getElementById('undo').click()")
    expect([first, second], [1, 0])
    browser.value("document.getElementById('undo').click()")
    expect([first], [1])
    browser.click(*page.shown(130, 100), shift=True)
    expect([first, second], [1, 0])
    browser.value("document.getElementById('clear').click()")
    page.shows(np.zeros((120, 160), bool))
    browser.value("document.querySelector('input[name=tool][value=\"0\"]').click()")
    browser.click(*page.shown(50, 40))
    browser.value("document.querySelector('input[name=tool][value=\"1\"]').click()")
    browser.click(*page.shown(130, 100))
    expect([first, second], [0, 1])
    assert [said for said in browser.complaints() if "getImageData" not in said] == []


def test_all_of_it_works_by_keyboard(alone, browser, model, picture):
    page = Page(alone, browser, picture)
    data = picture.read_bytes()
    for _ in range(6):
        browser.press("Tab")
        if browser.value("document.activeElement.id") == "stage":
            break
    assert browser.value("document.activeElement.getAttribute('role')") == "application"
    browser.press("ArrowRight")  # from the middle, by a fiftieth of the longer side
    browser.press("ArrowUp")
    browser.press("Enter")
    page.shows(painted(points=[(83.2, 56.8)], data=data, model=model))
    for _ in range(3):
        browser.press("ArrowDown", shift=True)  # by a pixel
    for _ in range(8):
        browser.press("ArrowDown")
    browser.press("Enter", shift=True)
    page.shows(painted(points=[(83.2, 56.8), (83.2, 85.4)], labels=[1, 0], data=data, model=model))
    browser.press("Backspace")
    page.shows(painted(points=[(83.2, 56.8)], data=data, model=model))
    browser.press("Escape")
    page.shows(np.zeros((120, 160), bool))
    browser.value("document.querySelector('input[name=tool][value=box]').checked = true")
    browser.press("Enter")
    for key in ("ArrowLeft",) * 10 + ("ArrowUp",) * 12:
        browser.press(key)
    browser.press("Enter")
    page.shows(painted(box=(51.2, 47.0, 83.2, 85.4), data=data, model=model))


def test_a_photo_that_is_kept_no_more_is_sent_again_unasked(alone, browser, model, picture):
    page = Page(alone, browser, picture)
    for seed in range(30, 30 + KEPT):
        sent(alone, photo(seed))
    browser.click(*page.shown(80, 60))
    browser.wait_for("document.getElementById('timing').dataset.ms")
    assert browser.value("document.getElementById('trouble').hidden")
    page.shows(painted([(80, 60)], data=picture.read_bytes(), model=model))


# --- inside -----------------------------------------------------------------------------------------


class Inside:
    """A model's process from the inside, and what it said."""

    def __init__(self, artifact, keep: int = 4) -> None:
        self.said = []
        config = wire.Config(
            artifact=str(artifact.path), threads=1, max_batch=1, promise_ms=None, megapixels=None,
            file_bytes=1 << 20, keep_photos=keep,
        )  # fmt: skip
        self.process = Clicking(
            artifact, config, lambda head, *parts: self.said.append((head, b"".join(parts)))
        )
        self.process.start()

    def take(self, number: int, data: bytes, **options) -> None:
        message = wire.Images(id=number, sizes=[len(data)], options=options, deadline=time.monotonic() + 60)
        self.process.take(message, data)

    def answers(self, count: int) -> list:
        deadline = time.monotonic() + 20
        while True:
            found = [
                each for each in self.said if isinstance(each[0], (wire.Answer, wire.Failed, wire.Tried))
            ]
            if len(found) >= count:
                return found
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_click_does_not_wait_for_somebody_elses_photo(artifact, monkeypatch):
    inside = Inside(artifact)
    inside.take(1, photo(0))
    ((_, payload),) = inside.answers(1)
    (kept,) = json.loads(payload)
    held, plain = threading.Event(), inside.process._prompter.encode

    def slow(image):
        assert held.wait(20)
        return plain(image)

    monkeypatch.setattr(inside.process._prompter, "encode", slow)
    inside.take(2, photo(1))
    prompt = {"points": [[30, 20]], "labels": [1]}
    inside.process.take(
        wire.Prompt(
            id=3, image=kept["image_id"], options=prompt, form="json", deadline=time.monotonic() + 60
        ),
        b"",
    )
    assert [head.id for head, _ in inside.answers(2)] == [1, 3]
    held.set()
    assert [head.id for head, _ in inside.answers(3)] == [1, 3, 2]


def test_a_photo_that_two_send_is_encoded_once(artifact, monkeypatch):
    inside = Inside(artifact)
    encoded, plain = [], inside.process._prompter.encode
    monkeypatch.setattr(inside.process._prompter, "encode", lambda image: encoded.append(1) or plain(image))
    for number in range(1, 6):
        inside.take(number, photo(0), points=[[30, 20]], labels=[1])
    answers = inside.answers(5)
    assert len({payload for _, payload in answers}) == 1
    assert encoded == [1]


def test_recorded_photos_are_answered_as_recorded_and_damage_is_seen(artifact, monkeypatch):
    inside = Inside(artifact)
    for number in range(3):
        inside.process.take(wire.Try(id=number, photo=number, deadline=time.monotonic() + 60), b"")
    assert sorted((head.id, head.failures) for head, _ in inside.answers(3)) == [(n, []) for n in range(3)]
    assert len(inside.process._cache) == 0  # they take nobody's place
    chain, plain = inside.process._chain, inside.process._chain.run_stage

    def damaged(name, inputs):
        return {
            key: 1.5 * values if key == "masks" else values for key, values in plain(name, inputs).items()
        }

    monkeypatch.setattr(chain, "run_stage", damaged)
    inside.process.take(wire.Try(id=9, photo=0, deadline=time.monotonic() + 60), b"")
    head, _ = inside.answers(4)[3]
    assert any("relative error" in failure for failure in head.failures)


def test_numbers_that_are_not_finite_are_an_error_of_the_server(artifact, monkeypatch):
    inside = Inside(artifact)
    plain = inside.process._chain.run_stage
    monkeypatch.setattr(
        inside.process._chain,
        "run_stage",
        lambda name, inputs: {key: values * np.nan for key, values in plain(name, inputs).items()},
    )
    inside.take(1, photo(0), points=[[30, 20]], labels=[1])
    ((head, payload),) = inside.answers(1)
    assert head.errors[0][0] == "failed"
    assert "not finite" in json.loads(payload)[0]["error"]["message"]


def test_a_prompt_that_nobody_waits_for_is_not_answered(artifact, monkeypatch):
    inside = Inside(artifact)
    asked = []
    monkeypatch.setattr(inside.process._prompter, "prompt", lambda *_, **__: asked.append(1))
    held, plain = threading.Event(), inside.process._prompter.encode

    def slow(image):
        assert held.wait(20)
        return plain(image)

    monkeypatch.setattr(inside.process._prompter, "encode", slow)
    inside.take(1, photo(0), points=[[30, 20]], labels=[1])
    inside.process.take(wire.Cancel(id=1), b"")
    held.set()
    ((head, _),) = inside.answers(1)
    assert (type(head), head.code, asked) == (wire.Failed, "deadline", [])
    assert inside.process._images == 0

"""A second artifact beside the live one: as a shadow, and in its place. About 8 s."""

from __future__ import annotations

import json
import threading
import time

import artifacts
import pytest

from vitrail.cli import main
from vitrail.predict import load

pytest.importorskip("fastapi", reason="needs the extra serve")

from serving import Server

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    return artifacts.make_artifact(tmp_path_factory.mktemp("live"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with `winner`, whose answers are the opposite of the live one's, and `damaged`."""
    place = tmp_path_factory.mktemp("candidates")
    before = artifacts.HEAD
    artifacts.HEAD = -before
    try:
        artifacts.make_artifact(place)
        damaged = artifacts.make_artifact(place / "elsewhere")
    finally:
        artifacts.HEAD = before
    damaged.path.rename(place / "damaged")
    (place / "damaged" / "labels.txt").write_text("changed\n")
    return place


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def compared(server, images: int) -> dict:
    """What is said of the shadow once it has compared so many images."""
    deadline = time.monotonic() + 10
    while (found := server.models()["winner"]["shadow"])["images"] < images:
        assert time.monotonic() < deadline, found
        time.sleep(0.02)
    return found


def test_a_shadow_gets_its_share_and_nobody_gets_its_answers(live, folder, cache):
    photos = [photo.read_bytes() for photo in live.photos]
    shadow = ("--shadow", folder / "winner", "--shadow-share", 0.5)
    with Server(live.path, *shadow, cache=cache) as server:
        with load(live.path, batch_size=1) as model:
            expected = [prediction.label for prediction in model.predict(photos)]
        for _ in range(2):
            for photo, label in zip(photos, expected, strict=True):
                answer = server.post("/v1/classify", photo).json()
                assert answer["results"][0]["labels"][0]["label"] == label
        found = compared(server, len(photos))  # half of twice as many
        assert (found["images"], found["share"], found["failed"]) == (len(photos), 0.5, 0)
        assert found["agreement"] == {"what": "share of the same best label", "mean": 0.0}
        assert found["latency_ms"]["live"]["p50"] > 0
        assert found["latency_ms"]["shadow"]["p50"] > 0
        outcome = {"model": "winner", "outcome": "compared"}
        assert server.metric("vitrail_shadow_images_total", **outcome) == len(photos)
        assert server.metric("vitrail_shadow_agreement_total", model="winner") == 0


def test_a_shadow_of_the_same_artifact_agrees(live, cache):
    with Server(live.path, "--shadow", live.path, "--shadow-share", 1, cache=cache) as server:
        files = [("image", (str(i), photo.read_bytes())) for i, photo in enumerate(live.photos)]
        assert server.client.post("/v1/classify", files=files).status_code == 200
        assert compared(server, len(live.photos))["agreement"]["mean"] == 1.0


def test_another_artifact_takes_over_without_a_failed_request(live, folder, cache):
    photo = live.photos[0].read_bytes()
    with Server(live.path, "--allow-activate", folder, cache=cache) as server:
        answers, failed, done = {}, [], threading.Event()

        def send():
            while not done.is_set():
                answer = server.post("/v1/classify", photo)
                if answer.status_code != 200:
                    failed.append(answer.text)
                    continue
                label = answer.json()["results"][0]["labels"][0]["label"]
                answers.setdefault(answer.json()["version"], set()).add(label)

        senders = [threading.Thread(target=send) for _ in range(3)]
        for sender in senders:
            sender.start()
        before = server.models()["winner"]["version"]
        refused = server.client.post("/v1/models/winner/activate", json={"artifact": "damaged"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (422, "unusable_artifact")
        assert refused.json()["error"]["message"].startswith("damaged/labels.txt was changed")
        taken = server.client.post("/v1/models/winner/activate", json={"artifact": "winner"})
        assert taken.status_code == 200, taken.text
        time.sleep(0.5)
        done.set()
        for sender in senders:
            sender.join()
        after = json.loads((folder / "winner" / "manifest.json").read_text())["digest"][:12]
        assert taken.json() == {"name": "winner", "version": after, "previous": before}
        assert failed == []
        assert set(answers) == {before, after}
        assert [len(labels) for labels in answers.values()] == [1, 1]  # each version has one answer
        assert answers[before] != answers[after]
        assert server.models()["winner"]["restarts"] == 0
        assert server.ready()


def test_models_are_exchanged_only_where_it_is_allowed(live, folder, cache):
    with Server(live.path, cache=cache) as server:
        path = "/v1/models/winner/activate"
        assert server.client.post(path, json={"artifact": "winner"}).status_code == 403
    with Server(live.path, "--allow-activate", folder, cache=cache) as server:
        for artifact in ("../live/winner", "/etc", ".", "", "a/b"):
            assert server.client.post(path, json={"artifact": artifact}).status_code == 400
        assert server.client.post(path, json={"path": "x"}).status_code == 400
        plain = {"content-type": "text/plain"}
        assert server.client.post(path, content=b'{"artifact": "winner"}', headers=plain).status_code == 415
        missing = server.client.post(path, json={"artifact": "none"})
        assert missing.json()["error"]["message"] == "none does not exist: name the folder of an artifact."
        assert server.client.post("/v1/models/x/activate", json={"artifact": "winner"}).status_code == 404


def test_a_shadow_must_be_somebodys(live, folder, capsys):
    two = [f"a={live.path}", f"b={live.path}"]
    for shadow, said in (
        (str(folder / "winner"), "must say whose"),
        (f"c={folder}", "names c, which is not"),
    ):
        assert main(["serve", *two, "--shadow", shadow, "--port", "0"]) == 2
        assert said in capsys.readouterr().err

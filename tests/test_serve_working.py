"""A model's process from the inside: batches, sizes that cannot be, numbers that are none. About 2 s."""

from __future__ import annotations

import io
import json
import threading
import time
from collections import defaultdict

import artifacts
import numpy as np
import pytest
from PIL import Image

from vitrail.predict import load
from vitrail.runtimes import EngineMismatch
from vitrail.serve import wire
from vitrail.serve.engines import Engines
from vitrail.serve.handle import Handle
from vitrail.serve.working import Working

COSTS_MS = {1: 10.0, 2: 12.0, 4: 14.0, 8: 60.0}
"""Of a batch: four together are the best on one thread, which has nothing beside it."""


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    return artifacts.make_artifact(tmp_path_factory.mktemp("classify"))


@pytest.fixture
def timed(monkeypatch, tmp_path):
    """Batch sizes cost what `COSTS_MS` says; the sizes that were timed."""
    monkeypatch.setenv("VITRAIL_CACHE", str(tmp_path))
    sizes = []

    def cost(self, predictor, row, size, idle):
        sizes.append(size)
        return [COSTS_MS[size]] * 20

    monkeypatch.setattr(Engines, "_timed", cost)
    return sizes


class Process:
    """A `Working`, and what it said."""

    def __init__(self, artifact, most: int = 8, threads: int = 1) -> None:
        config = wire.Config(
            artifact=str(artifact.path),
            threads=threads,
            max_batch=most,
            promise_ms=None,
            megapixels=None,
            file_bytes=1 << 20,
        )
        self.said: dict[type, list] = defaultdict(list)
        self.answers: dict[int, list] = {}
        self.working = Working(artifact, config, self._hear)

    def _hear(self, head, *parts) -> None:
        self.said[type(head)].append(head)
        if isinstance(head, wire.Answer):
            self.answers[head.id] = json.loads(b"".join(parts))

    def ask(self, number: int, images: list[bytes]) -> None:
        message = wire.Images(
            id=number, sizes=[*map(len, images)], options={"top": 5}, deadline=time.monotonic() + 60
        )
        self.working.take(message, memoryview(b"".join(images)))


def until(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def photos(count: int) -> list[bytes]:
    found = []
    for seed in range(count):
        file = io.BytesIO()
        pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
        Image.fromarray(pixels).resize((80, 60), Image.Resampling.BICUBIC).save(file, "PNG")
        found.append(file.getvalue())
    return found


def test_images_of_several_requests_share_batches_and_each_gets_its_own_answer(artifact, timed):
    process = Process(artifact)
    process.working.start()
    engines = process.working._engines
    until(lambda: engines.most == 4)
    assert timed == [1, 2, 4, 8]
    images = photos(11)
    requests = {1: images[:1], 2: images[1:4], 3: [images[4], b"no image", images[5]], 4: images[6:]}
    with engines._running:  # the engine is busy while they come
        for number, given in requests.items():
            process.ask(number, given)
        until(lambda: len(process.working._waiting) >= 6 and not process.working._decoding)
    until(lambda: len(process.answers) == 4)
    with load(artifact.path, batch_size=1) as model:
        for number, given in requests.items():
            good = [image for image in given if image != b"no image"]
            expected = iter(model.predict(good, top=5))
            for image, result in zip(given, process.answers[number], strict=True):
                if image == b"no image":
                    assert result["error"]["code"] == "unusable_image"
                    continue
                top = next(expected).top
                assert [each["label"] for each in result["labels"]] == [each.label for each in top]
                found = [each["probability"] for each in result["labels"]]
                np.testing.assert_allclose(found, [each.probability for each in top], rtol=1e-4)
    until(lambda: sum(b.images for beat in process.said[wire.Beat] for b in beat.batches) == 11)
    batches = [batch for beat in process.said[wire.Beat] for batch in beat.batches]
    assert max(batch.images for batch in batches) == 4


def test_at_saturation_each_thread_runs_the_image_that_it_prepared(artifact, monkeypatch, tmp_path):
    monkeypatch.setenv("VITRAIL_CACHE", str(tmp_path))
    costs, tried = {4: 40.0, 2: 11.0, 1: 10.0}, []

    def cost(self, predictor, row, size, idle):
        tried.append((size, predictor.lanes))
        return [costs[size] + 10 * (predictor.lanes == 1)] * 20

    monkeypatch.setattr(Engines, "_timed", cost)
    monkeypatch.setattr("vitrail.serve.service.usable_cores", lambda: 3)
    process = Process(artifact, most=4, threads=2)
    process.working.start()
    engines = process.working._engines
    until(lambda: engines.lanes == 2)
    assert tried == [(2, 2), (1, 1), (2, 1), (4, 1)]
    assert engines.most == 1
    plain, inside = Engines.run_beside, []
    barrier = threading.Barrier(2, timeout=20)

    def run_beside(self, inputs):
        inside.append(threading.current_thread().name.partition("_")[0])
        barrier.wait()  # two images are in the engine at the same time
        return plain(self, inputs)

    monkeypatch.setattr(Engines, "run_beside", run_beside)
    images = photos(4)
    process.ask(1, images)
    until(lambda: process.answers)
    assert inside == ["prepare"] * 4
    process.ask(2, images[:1])  # alone: all threads are for it
    until(lambda: 2 in process.answers)
    assert len(inside) == 4
    with load(artifact.path, batch_size=1) as model:
        expected = [each.top for each in model.predict(images, top=5)]
    for top, result in zip([*expected, expected[0]], process.answers[1] + process.answers[2], strict=True):
        assert [each["label"] for each in result["labels"]] == [each.label for each in top]
        found = [each["probability"] for each in result["labels"]]
        np.testing.assert_allclose(found, [each.probability for each in top], rtol=1e-4)
    until(lambda: sum(b.images for beat in process.said[wire.Beat] for b in beat.batches) == 5)
    assert (process.said[wire.Beat][-1].beside, process.working._images) == (2, 0)


def test_numbers_that_are_not_finite_spoil_one_image_alone(artifact, timed, monkeypatch):
    process = Process(artifact, most=1)
    plain = Engines.run

    def run(self, inputs, size):
        outputs, seconds = plain(self, inputs, size)
        marked = inputs["images"].max(axis=(1, 2, 3))[:, None] > 100
        return {name: np.where(marked, np.nan, values) for name, values in outputs.items()}, seconds

    monkeypatch.setattr(Engines, "run", run)
    prepare = process.working._engines.first.prepare
    added = iter([0, 1000, 0, 1000])
    monkeypatch.setattr(
        process.working._engines.first,
        "prepare",
        lambda data, **options: {n: v + next(added) for n, v in prepare(data, **options).items()},
    )
    monkeypatch.setattr(process.working, "_pool", _Here())
    process.working.start()
    process.ask(1, photos(3))
    process.ask(2, photos(1))
    until(lambda: len(process.answers) == 2)
    results = process.answers[1]
    assert [sorted(result) for result in results] == [["labels"], ["error"], ["labels"]]
    assert results[1]["error"]["code"] == process.answers[2][0]["error"]["code"] == "failed"
    assert "not finite" in results[1]["error"]["message"]
    (answer,) = [each for each in process.said[wire.Answer] if each.id == 2]
    assert [code for code, _ in answer.errors] == ["failed"]


class _Here:
    """Instead of threads: one after another."""

    def submit(self, work, *arguments) -> None:
        work(*arguments)


# --- sizes that cannot be ---------------------------------------------------------------------------


@pytest.mark.parametrize("error", [EngineMismatch("The model takes one image."), MemoryError()])
def test_a_model_that_takes_one_image_at_a_time_is_served_so(artifact, timed, monkeypatch, capfd, error):
    plain, asked = Engines._load, []

    def bound(self, size):
        asked.append(size)
        if size > 1:
            raise error
        return plain(self, size)

    monkeypatch.setattr(Engines, "_load", bound)
    for expected in ([1, 2], [1]):  # the second start knows
        asked.clear()
        engines = Process(artifact).working._engines
        engines.tune(8, None, lambda: True)
        assert (engines.most, asked) == (1, expected)
    assert "batches of 2 are not used" in capfd.readouterr().err


def test_a_size_that_ends_the_process_is_not_tried_for_ever(artifact, timed, monkeypatch):
    plain, asked = Engines._load, []

    class Killed(BaseException):
        pass

    def killed(self, size):
        asked.append(size)
        if size == 2:
            raise Killed
        return plain(self, size)

    monkeypatch.setattr(Engines, "_load", killed)
    for _ in range(2):
        with pytest.raises(Killed):
            Process(artifact).working._engines.tune(8, None, lambda: True)
    asked.clear()
    engines = Process(artifact).working._engines
    engines.tune(8, None, lambda: True)
    assert (engines.most, asked) == (1, [1])


def test_a_size_that_was_being_tried_when_the_server_left_is_tried_again(artifact, timed, monkeypatch):
    plain = Engines._load

    def left(self, size):
        if size == 4:
            self.leave()  # as another thread does
            raise KeyboardInterrupt
        return plain(self, size)

    for _ in range(3):
        monkeypatch.setattr(Engines, "_load", left)
        with pytest.raises(KeyboardInterrupt):
            Process(artifact).working._engines.tune(8, None, lambda: True)
    monkeypatch.setattr(Engines, "_load", plain)
    engines = Process(artifact).working._engines
    engines.tune(8, None, lambda: True)
    assert engines.most == 4
    assert timed == [1, 2, 4, 8]  # the first two were kept


# --- what is stuck ----------------------------------------------------------------------------------


def test_decoders_are_judged_by_what_they_take_of_a_core(artifact, timed):
    working = Process(artifact).working
    thread = threading.get_ident()
    working._decoding[thread] = time.monotonic() - 20.0, time.thread_time()
    assert working._decoding_s() == pytest.approx(2.0, abs=0.5)  # others have the cores
    working._decoding[thread] = time.monotonic() - 20.0, time.thread_time() - 19.0
    assert working._decoding_s() == pytest.approx(19.0, abs=0.5)


@pytest.mark.parametrize(
    ("running_s", "decoding_s", "megapixels", "hangs"),
    [
        (0.0, 4.5, None, False),  # the slowest picture that is allowed, on a slow core
        (0.0, 5.5, None, True),
        (0.0, 15.0, 200, False),
        (0.0, 21.0, 200, True),
        (1.3, 0.0, None, False),
        (1.5, 0.0, None, True),
    ],
)
def test_stuck_allows_for_what_is_legal(running_s, decoding_s, megapixels, hangs):
    handle = Handle.__new__(Handle)
    handle._stuck_s = 1.0
    handle.config = wire.Config(
        artifact="", threads=1, max_batch=1, promise_ms=None, megapixels=megapixels, file_bytes=1
    )
    beat = wire.Beat(
        running_s=running_s,
        decoding_s=decoding_s,
        resident_bytes=0,
        batches=[],
        sizes={1: 50.0},
        most=1,
        beside=2,
        beside_ms=100.0,
    )
    assert handle._hangs(beat) is hangs

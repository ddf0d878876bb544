from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path

import numpy as np
import pytest
from artifacts import LABELS, PREPROCESS, SIZE, make_artifact, make_onnx_artifact, numpy_scores
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageSequence
from scipy.special import expit, softmax

from vitrail import predict, runtimes
from vitrail.artifact import manifest
from vitrail.cli import main
from vitrail.errors import ClaimError, InputError
from vitrail.predict import Predictor
from vitrail.tasks.classify import Classify
from vitrail.vocabulary import RunnerFacts

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    return make_artifact(tmp_path_factory.mktemp("predict"), batch_size=2)


@pytest.fixture(scope="module")
def predictor(artifact):
    return predict.load(artifact.path)


@pytest.fixture
def bad(tmp_path):
    path = tmp_path / "bad.jpg"
    path.write_text("this is a text")
    return path


def classify(labels, probability="softmax"):
    return Classify(preprocess=PREPROCESS, labels=tuple(labels), probability=probability)


def rank(labels, scores, probability="softmax", **options):
    return classify(labels, probability).finish({"scores": scores}, **options)


def graph_of(batch, classes):
    return runtimes.sized(classify("x" * classes).graph(""), {"B": batch})


class Recorder:
    """A runner that scores an image by its mean and remembers the batches it was given."""

    def __init__(self, batch: int, classes: int = 3) -> None:
        self.facts = RunnerFacts(
            runtime="none",
            version="0",
            precision="fp32",
            threads=1,
            graphs=(graph_of(batch, classes),),
        )
        self.batches: list[np.ndarray] = []

    def run(self, inputs):
        (graph,) = self.facts.graphs
        batch = inputs["images"]
        assert batch.shape == graph.inputs[0].shape
        assert batch.dtype == np.float32
        assert batch.flags.c_contiguous
        self.batches.append(batch)
        return {"scores": np.stack([batch.mean(axis=(1, 2, 3))] * graph.outputs[0].shape[1], axis=1)}

    def close(self):
        pass


def flat(value: int) -> np.ndarray:
    return np.full((40, 50, 3), value, np.uint8)


# --- stages ---------------------------------------------------------------------------------------


@given(n=st.integers(1, 9), batch=st.integers(1, 4))
def test_any_number_of_inputs_runs_in_full_batches(n, batch):
    runner = Recorder(batch)
    inputs = np.arange(n, dtype=np.float32)[:, None, None, None] * np.ones((1, 3, SIZE, SIZE), np.float32)
    scores = Predictor(runner, classify("abc")).run({"images": inputs})["scores"]
    np.testing.assert_array_equal(scores, np.arange(n, dtype=np.float32)[:, None] * np.ones((1, 3)))
    assert len(runner.batches) == -(-n // batch)


@given(
    scores=arrays(np.float32, (3, 6), elements=st.floats(-100, 100, width=32)),
    top=st.integers(1, 8),
)
def test_ranking_equals_an_independent_softmax(scores, top):
    for row, prediction in zip(scores, rank("abcdef", scores, top=top), strict=True):
        expected = softmax(row.astype(np.float64))
        assert len(prediction.top) == min(top, 6)
        assert prediction.label == "abcdef"[int(row.argmax())]
        values = [ranked.probability for ranked in prediction.top]
        np.testing.assert_allclose(values, np.sort(expected)[::-1][:top], rtol=1e-9)
        for ranked in prediction.top:
            assert ranked.label == "abcdef"[ranked.index]
            assert ranked.probability == pytest.approx(expected[ranked.index], rel=1e-9)


@given(scores=arrays(np.float32, (3, 6), elements=st.floats(-1e4, 1e4, width=32)))
def test_scores_that_stand_alone_go_through_a_sigmoid_and_rank_alike(scores):
    alone = rank("abcdef", scores, "sigmoid")
    together = rank("abcdef", scores)
    for row, one, other in zip(scores, alone, together, strict=True):
        assert [ranked.index for ranked in one.top] == [ranked.index for ranked in other.top]
        for ranked in one.top:
            assert ranked.probability == pytest.approx(expit(np.float64(row[ranked.index])), rel=1e-12)


def test_an_artifact_says_how_its_scores_become_probabilities(artifact, tmp_path, capsys):
    """The same files with another word in the manifest; without the word, schema 1 meant softmax."""
    photo = str(artifact.photos[0])
    folder = shutil.copytree(artifact.path, tmp_path / "siglip")
    document = json.loads((folder / "manifest.json").read_bytes())
    with predict.load(folder) as loaded:
        scores = loaded.run(loaded.prepare([photo]))["scores"][0].astype(np.float64)
    for kind, expected in (("sigmoid", expit(scores)), (None, softmax(scores))):
        if kind is None:
            document = json.loads((GOLDEN / "artifact-2-openvino" / "manifest.json").read_bytes())
            folder = shutil.copytree(GOLDEN / "artifact-2-openvino", tmp_path / "schema 1")
            document["schema_version"] = 1
            del document["probability"]
        else:
            document["task"]["probability"] = kind
        document["digest"] = manifest.digest(document)
        (folder / "manifest.json").write_text(json.dumps(document))
        assert main(["predict", str(folder), photo, "--json", "-"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["probability"] == (kind or "softmax")
        for ranked in found["predictions"][0]["top"]:
            assert ranked["probability"] == pytest.approx(expected[ranked["index"]], rel=1e-6)
        assert main(["predict", str(folder), photo]) == 0
        assert ("each probability is independent" in capsys.readouterr().out) == (kind == "sigmoid")


def test_large_scores_do_not_overflow_and_bad_ones_are_refused():
    assert rank("abc", np.array([[3e38, -3e38, 0]], np.float32))[0].probability == 1.0
    with pytest.raises(ClaimError, match="not finite"):
        rank("abc", np.array([[np.nan, 0, 0]], np.float32))
    with pytest.raises(InputError, match="top is 0: give 1 to"):
        rank("abc", np.zeros((1, 3), np.float32), top=0)


def test_labels_must_fit_the_model():
    with pytest.raises(
        InputError, match=r"scores \(1, 3\) and its task .* scores \(1, 2\): give it the labels"
    ):
        Predictor(Recorder(1, 3), classify("ab"))


def test_a_request_is_its_stages_and_equals_numpy(artifact, predictor):
    photos = list(artifact.photos)
    batch = predictor.prepare(photos, scaled=False)
    scores = predictor.run(batch)["scores"]
    np.testing.assert_allclose(scores, numpy_scores(batch["images"]), rtol=1e-4, atol=1e-5)
    outputs = predictor.run(predictor.prepare(photos))
    assert predictor.request(photos, top=2) == predictor.task.finish(outputs, top=2)
    assert predictor.request(photos, top=2) == predictor.predict(photos, top=2)


def test_production_decodes_a_large_jpeg_at_lower_scale_and_verification_in_full(predictor, tmp_path):
    rng = np.random.default_rng(1)
    pixels = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize((1600, 1200))
    pixels.save(tmp_path / "large.jpg", quality=95)
    scaled = predictor.prepare([tmp_path / "large.jpg"])["images"]
    full = predictor.prepare([tmp_path / "large.jpg"], scaled=False)["images"]
    assert not np.array_equal(scaled, full)
    np.testing.assert_allclose(scaled, full, atol=0.35)  # about 20 grey levels at the steepest edges
    with Image.open(tmp_path / "large.jpg") as image:
        np.testing.assert_array_equal(full, predictor.prepare([image])["images"])


# --- the API --------------------------------------------------------------------------------------


def test_every_kind_of_source_gives_the_same(artifact, predictor):
    path = artifact.photos[0]
    with Image.open(path) as image:
        image.load()
    sources = [path, str(path), path.read_bytes(), bytearray(path.read_bytes()), image, np.asarray(image)]
    together = predictor.predict(sources)
    assert len(together) == len(sources)
    assert all(prediction == together[0] for prediction in together)
    for source in sources:
        assert predictor.predict(source) == together[:1]
    assert predictor.predict(np.stack([np.asarray(image)] * 3)) == together[:1] * 3
    assert predictor.predict([]) == []


def test_images_keep_their_order_over_batches():
    runner = Recorder(2)
    predictor = Predictor(runner, classify("abc"))
    outcomes = list(predictor.predict_each([flat(0), b"no image", flat(100), flat(200), b"", flat(250)]))
    assert [isinstance(outcome, InputError) for outcome in outcomes] == [
        False,
        True,
        False,
        False,
        True,
        False,
    ]
    means = [batch.mean() for batch in np.concatenate(runner.batches)]
    assert means == sorted(means)


def test_predict_raises_for_the_bad_image(artifact, predictor, bad):
    with pytest.raises(InputError, match=r"bad\.jpg"):
        predictor.predict([artifact.photos[0], bad])


def test_threads_and_batch_are_checked_and_used(artifact):
    for option in ("threads", "batch_size"):
        with pytest.raises(InputError, match="is 0: give 1 to"):
            predict.load(artifact.path, **{option: 0})
    with predict.load(artifact.path, threads=2, batch_size=3) as other:
        assert other.runner.facts.threads == 2
        assert other.batch_size == 3


# --- the command ----------------------------------------------------------------------------------


def test_command_shows_labels_and_percentages(artifact, predictor, capsys):
    assert main(["predict", str(artifact.path), str(artifact.photos[0]), "--top", "2"]) == 0
    out, err = capsys.readouterr()
    best = predictor.predict(artifact.photos[0])[0]
    lines = out.splitlines()
    assert len(lines) == 3
    assert best.label in lines[1]
    assert f"{best.probability:.1%}" in lines[1]
    assert err == ""


def test_command_json_stands_alone(artifact, predictor, capsys):
    photos = [str(photo) for photo in artifact.photos]
    assert main(["predict", str(artifact.path), *photos, "--json", "-"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema_version"] == 1
    expected = predictor.predict(photos)
    assert [row["image"] for row in document["predictions"]] == photos
    assert [row["top"][0]["label"] for row in document["predictions"]] == [p.label for p in expected]
    assert document["predictions"][0]["top"][0]["label"] in LABELS


@pytest.mark.parametrize("option", ["--json", "--csv"])
def test_answers_that_go_to_a_file_are_not_printed(artifact, capsys, tmp_path, option):
    target, photos = tmp_path / "out", [str(photo) for photo in artifact.photos]
    assert main(["predict", str(artifact.path), *photos, option, str(target)]) == 0
    assert photos[0] in target.read_text()
    assert capsys.readouterr().out == f"{len(photos)} images → {target}\n"


def test_long_labels_leave_the_bars_in_their_column():
    from vitrail.cli.predict import _lines
    from vitrail.predict import Prediction, Ranked

    top = tuple(
        Ranked(label=label, index=i, probability=0.5) for i, label in enumerate(("cat", "x" * 41, "y" * 40))
    )
    _, short, cut, fits = _lines("a.png", Prediction(top=top))
    assert len(short) == len(cut) == len(fits)
    assert "y" * 40 in fits
    assert "x" * 37 in cut
    assert "x" * 40 not in cut


def test_a_pattern_without_a_match_is_no_image(artifact, tmp_path, capsys):
    photos = [str(photo) for photo in artifact.photos]
    assert main(["predict", str(artifact.path), *photos, str(tmp_path / "*.png"), "--csv", "-"]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"vitrail: 1 of {len(photos) + 1} arguments could not be used."


def test_one_bad_image_among_many_is_exit_code_1(artifact, bad, capsys):
    good = [str(artifact.photos[0]), str(artifact.photos[1])]
    assert main(["predict", str(artifact.path), good[0], str(bad), good[1], "--json", "-"]) == 1
    out, err = capsys.readouterr()
    rows = json.loads(out)["predictions"]
    assert [bool(row["top"]) for row in rows] == [True, False, True]
    assert "bad.jpg" in rows[1]["error"]
    assert len(err.splitlines()) == 2
    assert "bad.jpg" in err.splitlines()[0]
    assert err.splitlines()[1] == "vitrail: 1 of 3 images could not be used."


def test_only_bad_images_is_exit_code_2(artifact, bad, tmp_path, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert main(["predict", str(artifact.path), str(bad)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert main(["predict", str(artifact.path), str(bad), str(empty), str(tmp_path / "none.png")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 4


@pytest.mark.parametrize(
    "extra", [["--top", "0"], ["--threads", "-1"], ["--json", "/dev/full"], ["--json", "/dev/null/x"]]
)
def test_wrong_use_is_one_sentence_and_exit_code_2(artifact, capsys, extra):
    assert main(["predict", str(artifact.path), str(artifact.photos[0]), *extra]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_damaged_artifact_is_exit_code_2(artifact, tmp_path, capsys):
    assert main(["predict", str(tmp_path / "none"), str(artifact.photos[0])]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_command_imports_neither_torch_nor_what_it_does_not_need(artifact):
    code = """
import sys
import threading
from vitrail.cli import main
assert main(["predict", sys.argv[1], sys.argv[2]]) == 0
heavy = {"torch", "timm", "onnx", "onnxruntime", "rich", "jinja2", "psutil", "platformdirs", "scipy"}
print(sorted(heavy & set(sys.modules)))
"""
    run = subprocess.run(
        [sys.executable, "-c", code, artifact.path, artifact.photos[0]],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.splitlines()[-1] == "[]"


# --- many images ----------------------------------------------------------------------------------


def means(predictor, sources):
    """The class that Recorder's mean falls into is no matter: what each image's mean was."""
    return [float(outputs["scores"][0, 0]) for _, outputs in predictor.outputs(sources)]


def test_memory_that_is_used_again_is_read_before_the_next_image(tmp_path):
    """A camera's loop gives one buffer again and again; Pillow's frames and arrays share their file too."""
    buffer = np.empty((40, 50, 3), np.uint8)

    def frames():
        for value in range(0, 200, 5):
            buffer[:] = value
            yield buffer

    found = means(Predictor(Recorder(1), classify("abc"), workers=4), frames())
    assert found == means(
        Predictor(Recorder(1), classify("abc"), workers=4), [flat(v) for v in range(0, 200, 5)]
    )
    pages = [Image.fromarray(flat(value)) for value in (10, 60, 110, 160)]
    pages[0].save(tmp_path / "pages.tiff", save_all=True, append_images=pages[1:])
    with Image.open(tmp_path / "pages.tiff") as file:
        read = means(Predictor(Recorder(1), classify("abc"), workers=4), ImageSequence.Iterator(file))
    assert read == sorted(read)
    assert len(set(read)) == 4


def test_what_the_sources_raise_comes_after_the_results_before_it(artifact):
    photo = artifact.photos[0]

    def sources():
        yield from [photo] * 7
        raise OSError("the camera is gone")

    found = []
    predictions = Predictor(Recorder(2), classify("abc"), workers=3).predict_each(sources())
    with pytest.raises(OSError, match="the camera is gone"):
        deque(map(found.append, predictions), maxlen=0)
    assert len(found) == 7


class SideBySide(Recorder):
    """Runs single images on two threads; the first of them takes long."""

    lanes = 2

    def __init__(self, batch):
        super().__init__(batch)
        self.busy, self.most, self.lock = set(), 0, threading.Lock()

    def run_lane(self, lane, inputs):
        with self.lock:
            assert lane not in self.busy
            self.busy.add(lane)
            self.most = max(self.most, len(self.busy))
        (mean,) = inputs["images"].mean(axis=(1, 2, 3))
        time.sleep(0.05 if mean < -2 else 0.002)
        with self.lock:
            self.busy.remove(lane)
        return {"scores": np.float32([[mean, 0, 0]])}


def scores_of(predictor, sources):
    found = []
    for slots, outputs in predictor.outputs(sources):
        rows = iter(() if outputs is None else outputs["scores"][:, 0])
        found += [None if slot is not None else next(rows) for slot in slots]
    return found


@pytest.mark.parametrize("as_files", [True, False])
def test_threads_that_prepare_also_run_where_the_engine_takes_single_images(tmp_path, as_files):
    values = range(0, 250, 10)
    sources = [flat(value) for value in values]
    if as_files:
        for value, source in zip(values, sources, strict=True):
            Image.fromarray(source).save(tmp_path / f"{value}.png")
        sources = [tmp_path / f"{value}.png" for value in values]
    sources[7] = b"no image"
    runner = SideBySide(4)
    predictor = Predictor(runner, classify("abc"), workers=3)
    assert predictor.in_turn
    found = scores_of(predictor, sources)
    assert found.pop(7) is None
    assert found == sorted(found)
    assert len(set(found)) == 24
    assert (runner.most, len(runner.batches)) == (2, 0)
    assert not Predictor(runner, classify("abc"), workers=1).in_turn  # one thread would leave a core idle
    assert not Predictor(Recorder(4), classify("abc"), workers=3).in_turn


def test_an_engine_that_fails_beside_others_frees_its_place(tmp_path):
    class Failing(SideBySide):
        def run_lane(self, lane, inputs):
            raise RuntimeError("out of memory")

    predictor = Predictor(Failing(4), classify("abc"), workers=2)
    for _ in range(3):
        with pytest.raises(RuntimeError, match="out of memory"):
            scores_of(predictor, [flat(1)] * 9)


def test_errors_are_not_held_back(tmp_path):
    taken = []

    def junk():
        for number in range(500):
            taken.append(number)
            yield b"no image"

    predictor = Predictor(Recorder(8), classify("abc"), workers=2)
    outcomes = predictor.predict_each(junk())
    assert isinstance(next(outcomes), InputError)
    assert len(taken) < 60
    outcomes.close()


def test_threads_end_with_an_engine_that_fails(artifact):
    class Failing(Recorder):
        def run(self, inputs):
            raise RuntimeError("out of memory")

    before = threading.active_count()
    predictor = Predictor(Failing(1), classify("abc"), workers=3)
    with pytest.raises(RuntimeError, match="out of memory") as raised:
        predictor.predict([artifact.photos[0]] * 9)
    assert raised.value.__traceback__ is not None
    assert threading.active_count() == before


@pytest.mark.parametrize(("many", "spins"), [(True, "0"), (False, "")])
def test_for_many_images_waiting_threads_leave_the_cores_to_others(tmp_path, many, spins):
    made = make_onnx_artifact(tmp_path)
    with predict.load(made.path, many=many) as predictor:
        options = predictor.runner._session.get_session_options()
        try:
            found = options.get_session_config_entry("session.intra_op.allow_spinning")
        except RuntimeError:  # it was not set
            found = ""
        assert found == spins
        assert len(predictor.predict(made.photos)) == 3


def test_no_image_has_no_outputs():
    predictor = Predictor(Recorder(2, 3), classify("abc"))
    assert predictor.request([]) == []
    assert predictor.run(predictor.prepare([]))["scores"].shape == (0, 3)

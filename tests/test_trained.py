"""A training run on the road: what it leaves, what refuses it, how it ships, what the report shows of it."""

import dataclasses
import functools
import json
import re
import shutil
from types import SimpleNamespace

import msgspec
import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from selections import selection

from vitrail import artifact, data, predict, store
from vitrail import vocabulary as v
from vitrail.artifact import evidence_of
from vitrail.cli import main
from vitrail.document import from_document, to_json_bytes
from vitrail.errors import InputError
from vitrail.export import eager, work
from vitrail.export.requests import ExportRequest
from vitrail.export.variants import implementations, variants
from vitrail.images.decode import decode
from vitrail.images.preprocess import prepare
from vitrail.learn import trained
from vitrail.measure.latency import Plan
from vitrail.models import registry, timm, vit
from vitrail.models.factory import build
from vitrail.replay import judge_recorded
from vitrail.report import html
from vitrail.selection import search, select
from vitrail.sources.catalogue import Catalogue
from vitrail.sources.gather import arranged, labelled_images
from vitrail.sources.trained import TrainedRuns

pytestmark = pytest.mark.slow

SIZE = 32
TIMM = "test_vit"


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Three colours of 24 noisy squares."""
    place = tmp_path_factory.mktemp("trained") / "data"
    rng = np.random.default_rng(0)
    for channel, name in enumerate(("blue", "green", "red")):
        (place / name).mkdir(parents=True)
        for i in range(24):
            pixels = rng.integers(0, 120, (40, 40, 3))
            pixels[..., 2 - channel] += 130
            Image.fromarray(pixels.astype(np.uint8)).save(place / name / f"{i}.png")
    return place


@pytest.fixture(scope="module")
def dataset(labelled):
    return data.load(labelled)


def taught(model, dataset, steps=25):
    """The model after a few steps on the training images, which it then tells apart."""
    preprocess = v.Preprocess(image_size=SIZE)
    examples = dataset.of("train")
    images = torch.from_numpy(np.stack([prepare(decode(e.path), preprocess) for e in examples]))
    labels = torch.tensor([e.label for e in examples])
    optimizer = torch.optim.AdamW(model.requires_grad_(True).parameters(), lr=1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return model.eval().requires_grad_(False)


def record(folder, dataset, model, path, **changes):
    """What a run of two epochs leaves in `folder`."""
    folder.mkdir(parents=True)
    weights = folder / trained.WEIGHTS
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, weights)
    history = [
        v.TrainingEpoch(
            epoch=n, step=5 * n, seconds=1.5 * n, learning_rate=1e-3, train_loss=1 / n,
            validation_loss=1.1 / n, accuracy=40.0 + 10 * n,
        )
        for n in (1, 2)
    ]  # fmt: skip
    facts = {
        "name": "toy run", "architecture": TIMM, "family": "ViT", "implementation": "timm",
        "classes": list(dataset.classes), "preprocess": v.Preprocess(image_size=SIZE), "parameters": 370_000,
        "macs": 10**7, "activations": 10**5, "sha256": store.sha256_file(weights), "license": "own",
        "start": "random", "recipe": "light", "recipe_digest": "r1", "data": str(path),
        "data_digest": dataset.digest, "seen": [e.digest for e in dataset.of("train")], "epochs": 2,
        "finished": True, "history": history,
    }  # fmt: skip
    trained.write(folder, trained.Trained(**facts | changes))
    return folder


@pytest.fixture(scope="module")
def model(dataset):
    torch.manual_seed(0)
    return taught(timm.build(TIMM, image_size=SIZE, classes=3, weights=None), dataset)


@pytest.fixture
def run(tmp_path, dataset, model, labelled):
    return record(tmp_path / "run", dataset, model, labelled)


LEVEL = [
    v.TrainingEpoch(
        epoch=n,
        step=n,
        seconds=n,
        learning_rate=1e-3,
        train_loss=0.2,
        validation_loss=0.2,
        accuracy=95.0,
    )
    for n in (1, 2)
]
"""Of a run that needs nothing more."""


def changed(folder, **changes):
    trained.write(folder, msgspec.structs.replace(trained.read(folder), **changes))
    return folder


# --- what a run leaves ----------------------------------------------------------------------------


def test_a_record_is_read_as_it_was_written_and_becomes_a_candidate(run, dataset):
    found = trained.read(run)
    assert found == msgspec.json.decode((run / trained.TRAINED).read_bytes(), type=trained.Trained)
    candidate = trained.candidate_of(run)
    assert candidate.name == "test_vit.toy-run"
    assert candidate.accuracy is None
    assert candidate.trained_with == "timm"
    assert candidate.weights.source == "file"
    assert candidate.weights.reference == str(run.absolute() / trained.WEIGHTS)
    assert (run / "labels.txt").read_text().splitlines() == list(dataset.classes)
    assert "recipe light, 2 epochs" in candidate.note


def test_labels_that_stand_there_are_not_written_again(run, monkeypatch):
    trained.candidate_of(run)
    monkeypatch.setattr(store, "atomic_write", None)
    trained.candidate_of(run)


def test_a_damaged_run_is_one_sentence_with_the_fix(run, tmp_path):
    file = run / trained.TRAINED
    whole = file.read_bytes()
    document = json.loads(whole)
    damaged = {
        "damaged": whole[:100],
        "schema_version 9": json.dumps(document | {"schema_version": 9}).encode(),
        "different names": json.dumps(document | {"classes": ["a", "a"]}).encode(),
        "missing": json.dumps(document | {"weights": "../best.safetensors"}).encode(),
        "Expected `array`": json.dumps(document | {"history": 3}).encode(),
    }
    for said, content in damaged.items():
        file.write_bytes(content)
        with pytest.raises(InputError, match=re.escape(said)):
            trained.read(run)
    file.write_bytes(whole)
    with pytest.raises(InputError, match="holds no training run"):
        trained.read(tmp_path / "nowhere")
    with (run / trained.WEIGHTS).open("ab") as weights:
        weights.write(b"x")
    with pytest.raises(InputError, match="changed after"):
        trained.read(run)
    (run / trained.WEIGHTS).unlink()
    with pytest.raises(InputError, match="missing: put them back"):
        trained.read(run)


# --- what judges it -------------------------------------------------------------------------------


def judged_by(*folders, workload=None, settings=None):
    """The runs, the workload with their labelled images, these, and what is to be said of them."""
    found = TrainedRuns(folders)
    found.check_settings(settings or v.SearchSettings())
    workload, images, notes = labelled_images([found], workload or v.Workload(), v.SearchSettings())
    found.check(v.Requirements(), settings or v.SearchSettings(), images)
    return found, workload, images, notes


def doubts(found, images):
    def weights(candidate):
        return SimpleNamespace(weights=candidate.weights)

    return found.find(SimpleNamespace(bench=SimpleNamespace(weights=weights), dataset=images)).notes


def test_without_data_the_runs_own_is_used_while_it_is_the_same(run, labelled, dataset, tmp_path):
    _, workload, own, notes = judged_by(run)
    assert workload.data == str(labelled)
    assert own == dataset
    assert str(labelled) in notes[0]
    changed(run, history=LEVEL)
    assert not doubts(TrainedRuns([run]), own)
    copy = tmp_path / "copy"
    shutil.copytree(labelled, copy)
    changed(run, data=str(copy))
    next((copy / "red").iterdir()).unlink()
    with pytest.raises(InputError, match=r"have changed since .* --data DIR"):
        judged_by(run)
    shutil.rmtree(copy)
    with pytest.raises(InputError, match=r"no longer at .* --data DIR"):
        judged_by(run)


def test_runs_on_different_data_need_to_be_told_which(run, tmp_path):
    other = shutil.copytree(run, tmp_path / "other")
    with pytest.raises(InputError, match="both named"):
        judged_by(run, other)
    with pytest.raises(InputError, match="both named"):
        judged_by(run, run)
    changed(other, name="other", data_digest="d2")
    with pytest.raises(InputError, match="different data"):
        judged_by(run, other)


def test_other_classes_are_refused_by_name(run, labelled):
    changed(run, classes=["blue", "green", "yellow"])
    with pytest.raises(InputError, match="only the run has yellow; only the data has red"):
        judged_by(run, workload=v.Workload(data=str(labelled)))


def test_images_that_it_has_seen_cannot_judge_it(run, labelled, dataset):
    seen = [e.digest for e in (*dataset.of("train"), *dataset.of("test")[:3], *dataset.of("validation")[:2])]
    changed(run, seen=seen, data_digest="before")
    with pytest.raises(InputError, match="2 of its validation images and 3 of its test images"):
        judged_by(run, workload=v.Workload(data=str(labelled)))


def test_doubts_are_noted(run, labelled, dataset):
    changed(run, finished=False, data_digest="before")
    found, _, same, _ = judged_by(run, workload=v.Workload(data=str(labelled)))
    unfinished, other = doubts(found, same)
    assert "not finished (2 epochs done)" in unfinished
    assert "another split" in other


def test_an_undertrained_run_is_noted_with_what_helps(run, labelled):
    found, _, same, _ = judged_by(run, workload=v.Workload(data=str(labelled)))
    assert doubts(found, same) == (
        f"{TIMM}.toy-run still improved when it ended (loss 0.50 on training and 0.55 on validation images): "
        "continue its training (vitrail train … --epochs 4 --extend)",
    )


def test_only_the_code_that_was_trained_is_a_variant(run):
    candidate = trained.candidate_of(run)
    for name, code in ((TIMM, "timm"), ("vit_tiny_patch16_224", "timm"), ("vit_tiny_patch16_224", "vitrail")):
        pinned = dataclasses.replace(candidate, architecture=name, trained_with=code)
        assert implementations(pinned) == (code,)
        assert implementations(pinned, ("timm", "vitrail")) == (code,)
    with pytest.raises(InputError, match="--implementations"):
        judged_by(run, settings=v.SearchSettings(implementations=("vitrail",)))


def test_runs_are_alone_unless_others_are_asked_for(run):
    found, _, images, _ = judged_by(run)
    assert arranged([found], v.SearchSettings(), images) == (found,)
    both = arranged([found], v.SearchSettings(models=("swin_tiny*",)), images)
    assert [type(source) for source in both] == [TrainedRuns, Catalogue]
    assert [type(source) for source in arranged([], v.SearchSettings(), images)] == [Catalogue]
    with pytest.raises(InputError, match="No training run is named"):
        TrainedRuns(()).licenses()


def test_weights_that_change_between_reading_and_measuring_are_refused(run):
    found = TrainedRuns([run])
    stale = SimpleNamespace(weights=SimpleNamespace(sha256="another"))
    with pytest.raises(InputError, match="changed just now"):
        found.find(SimpleNamespace(bench=SimpleNamespace(weights=lambda _: stale), dataset=None))


# --- an architecture that timm has not ------------------------------------------------------------


def test_an_architecture_of_ours_alone_never_asks_timm(monkeypatch, tmp_path, dataset, labelled):
    config = dataclasses.replace(
        vit.VARIANTS["vit_tiny_patch16_224"],
        image_size=(SIZE, SIZE),
        patch_size=8,
        width=32,
        depth=2,
        heads=2,
    )
    monkeypatch.setitem(vit.VARIANTS, "vit_toy_patch8_32", config)
    monkeypatch.setitem(registry.MODELS, "vit_toy_patch8_32", "vitrail.models.vit:ViT")
    monkeypatch.setattr(timm, "build", None)
    torch.manual_seed(0)
    model = taught(build("vit_toy_patch8_32", num_classes=3), dataset, steps=3)
    changes = {"architecture": "vit_toy_patch8_32", "implementation": "vitrail"}
    run = record(tmp_path / "run", dataset, model, labelled, **changes)
    candidate = trained.candidate_of(run)
    settings = v.SearchSettings(runtimes=("onnxruntime",), precisions=("fp32",))
    (form,) = variants([candidate], v.Workload(), settings)
    request = {
        "architecture": candidate.architecture,
        "implementation": form.implementation,
        "image_size": form.image_size,
        "labels": candidate.labels,
        "weights": candidate.weights.reference,
        "folder": str(tmp_path / "export"),
        "threads": 1,
        "compare": candidate.trained_with is None,
    }
    work.export(request)
    session = onnxruntime.InferenceSession(tmp_path / "export" / work.ONNX_FILE)
    images = torch.randn(5, 3, SIZE, SIZE)
    (scores,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    with torch.inference_mode():
        np.testing.assert_allclose(scores, model(images).numpy(), atol=1e-4)
    compared = msgspec.convert(request | {"compare": True}, ExportRequest)
    with pytest.raises(TypeError):  # timm is asked as soon as the request wants a comparison
        eager.check(model, compared, SIZE, 1e-3)


# --- the road -------------------------------------------------------------------------------------


def test_a_run_is_selected_shipped_and_answers_as_its_module_does(run, model, dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("VITRAIL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(select, "known_peaks", lambda *_, **__: {})
    # What is timed decides nothing here: a few short blocks do, and no quiet machine is waited for.
    monkeypatch.setattr(search, "Plan", functools.partial(Plan, block_s=0.02, rounds=2, final_calls=12))
    monkeypatch.setattr(search, "FIRST_SCREEN_S", 0.2)
    monkeypatch.setattr(search, "WAIT_MOST_S", 0.0)
    # The run's outputs in an order of their own, not the data's.
    order = [2, 0, 1]
    with torch.no_grad():
        head = {name: value[order] for name, value in model.state_dict().items() if name.startswith("head.")}
    save_file({k: t.contiguous() for k, t in (model.state_dict() | head).items()}, run / trained.WEIGHTS)
    classes = [dataset.classes[i] for i in order]
    changed_digest = store.sha256_file(run / trained.WEIGHTS)
    document = json.loads((run / trained.TRAINED).read_bytes())
    document |= {"sha256": changed_digest, "classes": classes, "finished": False}
    (run / trained.TRAINED).write_text(json.dumps(document))
    found = select.select(
        v.Requirements(min_accuracy=80),
        v.Workload(threads=1),
        v.SearchSettings(runtimes=("onnxruntime",), precisions=("fp32",), offline=True),
        sources=[TrainedRuns([run])],
        out=tmp_path / "winner",
    )
    assert found.selected == "test_vit.toy-run@32 onnxruntime fp32", [e.reasons for e in found.ledger]
    assert found.test.main.value >= 80
    assert any("not finished" in note for note in found.notes)
    assert any("those of the training" in note for note in found.notes)
    assert [len(training.history) for training in found.trainings] == [2]
    recorded = from_document(to_json_bytes(found), "own.json")
    assert recorded.selection.trainings == found.trainings
    assert recorded.selection.winner.variant.candidate.trained_with == "timm"
    written = artifact.open_artifact(tmp_path / "winner")
    assert written.manifest.evidence.training == found.trainings[0]
    assert written.task.labels == tuple(classes)
    predictor = predict.load(tmp_path / "winner")
    preprocess = v.Preprocess(image_size=SIZE)
    for example in dataset.of("test"):
        (said,) = predictor.predict(example.path, top=3)
        with torch.inference_mode():
            logits = model(torch.from_numpy(prepare(decode(example.path), preprocess))[None])[0]
        expected = dict(zip(dataset.classes, logits.softmax(0).tolist(), strict=True))
        assert {t.label: t.probability for t in said.top} == pytest.approx(expected, abs=1e-4)


# --- document and report --------------------------------------------------------------------------


@pytest.fixture
def with_training():
    """A selection whose winner was trained in 40 epochs, of which one has no validation."""
    found = selection()
    history = tuple(
        v.TrainingEpoch(
            epoch=n, step=10 * n, seconds=60.0 * n, learning_rate=1e-3, train_loss=2 / n, averaged=True,
            validation_loss=None if n == 7 else 2.2 / n, accuracy=None if n == 7 else 90 - 40 / n,
        )
        for n in range(1, 41)
    )  # fmt: skip
    training = v.Training(
        candidate=found.winner.variant.candidate.name, recipe="full <b>", start="random", epochs=40,
        finished=True, history=history,
    )  # fmt: skip
    return dataclasses.replace(found, trainings=(training,))


def test_the_document_keeps_the_training_also_when_it_is_judged_again(with_training, tmp_path):
    file = tmp_path / "selection.json"
    file.write_bytes(to_json_bytes(with_training))
    assert from_document(file.read_bytes(), "x.json").selection.trainings == with_training.trainings
    again = judge_recorded(file, v.Requirements(license=("any",)), v.Workload(), v.SearchSettings())
    assert again.trainings == with_training.trainings
    assert evidence_of(with_training).training == with_training.trainings[0]
    old = json.loads(to_json_bytes(selection())) | {"schema_version": 2}
    del old["trainings"]
    assert from_document(old, "old.json").selection.trainings == ()


def test_the_report_draws_a_point_for_each_epoch(with_training):
    page = html.render(with_training)
    section = page.partition('id="h-training"')[2].partition("</section>")[0]
    figures = re.findall(r"<svg viewBox=\"0 0 340 .*?</svg>", section, re.DOTALL)
    assert [figure.count('class="point"') for figure in figures] == [40 + 39, 39]
    assert all("<title>" in figure and "<desc>" in figure for figure in figures)
    assert "lowest 0.055 after epoch 40" in figures[0]
    assert "highest 89 after epoch 40" in figures[1]
    assert "recipe full &lt;b&gt;, from random values, 40 epochs in 40 min" in section
    spots = [float(y) for y in re.findall(r"<circle cx=\"[\d.]+\" cy=\"([\d.]+)\"", figures[0])]
    assert spots == sorted(spots), "a falling loss goes down the page"
    assert 0 < min(spots) < max(spots) < 250
    assert 'id="h-training"' not in html.render(selection())


def test_runs_of_no_epoch_and_of_one_are_drawn_too(with_training):
    (training,) = with_training.trainings
    for count, points in ((0, 0), (1, 3)):
        short = dataclasses.replace(training, history=training.history[:count], epochs=count, finished=False)
        page = html.render(dataclasses.replace(with_training, trainings=(short,)))
        section = page.partition('id="h-training"')[2].partition("</section>")[0]
        drawn = "".join(re.findall(r"<svg viewBox=\"0 0 340 .*?</svg>", section, re.DOTALL))
        assert drawn.count('class="point"') == points
        assert "not finished" in section


# --- the command ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--trained", "nowhere"], "holds no training run"),
        (["--from", "x.json", "--trained", "nowhere"], "leave --trained out"),
    ],
)
def test_wrong_use_is_one_sentence(arguments, said, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("VITRAIL_CACHE", str(tmp_path))
    assert main(["select", "--offline", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1

"""int8 on the road: which photos calibrate it, what is made of a graph and kept, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from PIL import Image

import vitrail
from vitrail import catalog, data, runtimes, tasks
from vitrail.errors import InputError
from vitrail.export import passes, rewrite, work
from vitrail.export.calibration import LEAST_PHOTOS, MOST_PHOTOS, Calibration, calibration
from vitrail.export.exports import Exports
from vitrail.export.passes.quantize import quantised_nodes
from vitrail.export.requests import REWRITTEN_FILE, QuantiseRequest, RewriteRequest
from vitrail.export.variants import Form, forms, in_floating_point, variants
from vitrail.images.photos import digest_of, photo_folder, sample_photos
from vitrail.tasks.classify import Classify
from vitrail.vocabulary import Preprocess, SearchSettings, Target, Workload
from vitrail.weights.find import WeightsFinder

# --- which photos calibrate -----------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    def make(name: str, count: int, seed: int = 0):
        place = tmp_path / name
        place.mkdir()
        rng = np.random.default_rng(seed)
        for i in range(count):
            pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(place / f"{seed}-{i:03}.png")
        return place

    return make


def test_a_quarter_of_the_photos_calibrates_and_judges_nothing(folder):
    photos = photo_folder(place := folder("images", 44))
    found, left = calibration(None, str(place), None, photos)
    assert isinstance(found, Calibration)
    assert len(found.photos) == 11
    assert set(found.photos).isdisjoint(left.paths)
    assert set(found.photos) | set(left.paths) == set(photos.paths)
    assert left.digest == digest_of(left.paths) != photos.digest
    assert found.digest == digest_of(found.photos)
    assert "11 of them calibrate int8 and judge nothing" in left.evidence
    assert calibration(None, str(place), None, photos) == (found, left), "the same photos each time"


def test_too_few_photos_leave_int8_out_and_say_how_many_it_needs(folder):
    photos = photo_folder(place := folder("images", 39))
    found, left = calibration(None, str(place), None, photos)
    assert found == f"int8 needs 40 photos, of which a part calibrates it: {place} has 39 photos"
    assert left is photos
    samples = sample_photos()
    found, left = calibration(None, None, None, samples)
    assert found == "int8 needs photos to be calibrated on: give --images, --data or --calibration"
    assert left is samples


def test_a_folder_of_its_own_leaves_all_others_to_judge(folder):
    photos = photo_folder(folder("images", 12))
    found, left = calibration(str(folder("other", LEAST_PHOTOS, seed=1)), "images", None, photos)
    assert isinstance(found, Calibration)
    assert len(found.photos) == LEAST_PHOTOS
    assert left is photos
    many, _ = calibration(str(folder("many", MOST_PHOTOS + 20, seed=2)), None, None, photos)
    assert isinstance(many, Calibration)
    assert len(many.photos) == MOST_PHOTOS


def test_a_folder_that_shares_photos_with_the_judging_ones_is_refused(folder):
    photos = photo_folder(place := folder("images", 12))
    other = folder("other", LEAST_PHOTOS, seed=1)
    (other / "renamed.png").write_bytes((place / "0-003.png").read_bytes())
    with pytest.raises(
        InputError, match=r"1 photo of --calibration .* would also judge \(renamed\.png is .*3\.png"
    ):
        calibration(str(other), str(place), None, photos)
    few = folder("few", LEAST_PHOTOS - 1, seed=3)
    with pytest.raises(
        InputError, match=rf"int8 needs {LEAST_PHOTOS} photos.*; give a folder with more photos"
    ):
        calibration(str(few), str(place), None, photos)


def test_labelled_images_calibrate_with_their_training_split(coloured, tmp_path):
    dataset = data.load(coloured)
    validation = [example.path for example in dataset.of("validation")]
    photos = dataclasses.replace(sample_photos(), paths=tuple(validation))
    found, left = calibration(None, None, dataset, photos)
    train = {example.path for example in dataset.of("train")}
    assert isinstance(found, Calibration)
    assert set(found.photos) <= train
    assert left is photos
    copy = tmp_path / "copy"
    copy.mkdir()
    for number, example in enumerate([*dataset.of("train")[:12], dataset.of("test")[0]]):
        (copy / f"{number}.png").write_bytes(Path(example.path).read_bytes())
    with pytest.raises(InputError, match="1 photo of --calibration"):
        calibration(str(copy), None, dataset, photos)


# --- the forms of a graph -------------------------------------------------------------------------


def test_passes_that_change_answers_need_their_name_and_labelled_images():
    plain = SearchSettings()
    named = SearchSettings(passes=("merge=8",))
    usual = forms(plain, Workload(), quality=True)
    assert not any(name.startswith("merge") for form in usual for name in form.passes)
    with pytest.raises(
        InputError, match=r"--passes merge=8 changes answers: give labelled images \(--data DIR\)"
    ):
        forms(named, Workload(), quality=False)
    assert forms(named, Workload(), quality=True) == (Form(), Form(passes=("merge=8",)))
    assert forms(SearchSettings(passes=()), Workload(), quality=False) == (Form(),)
    sized = forms(SearchSettings(passes=("size=160",)), Workload(), quality=True)
    assert sized == (Form(), Form(image_size=160))
    candidates = catalog.find(("tf_efficientnet_lite0*",))[:1]
    found = variants(candidates, Workload(), SearchSettings(runtimes=("openvino",)), forms=sized)
    assert {variant.image_size for variant in found} == {224, 160}
    with pytest.raises(InputError, match="--passes size is 9000: give 1 to 8192"):
        forms(SearchSettings(passes=("size=9000",)), Workload(), quality=True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("merge", "write merge=N, N tokens after each block"),
        ("merge=x", "write merge=N"),
        ("merge=-1", "write merge=N"),
        ("merge=0", "write merge=N"),
        ("fuse", "Unknown pass 'fuse': choose of "),
        ("", "Unknown pass ''"),
    ],
)
def test_names_of_passes(name, message):
    with pytest.raises(InputError, match=message):
        passes.check([name])


def test_batches_may_go_in_several_requests_and_int8_needs_calibration():
    workload = Workload(batch_size=8, threads=2)
    candidates = catalog.find(("tf_efficientnet_lite0*",))[:1]
    settings = SearchSettings(passes=())
    wide = forms(settings, workload, quality=False)
    found = variants(candidates, workload, settings, int8=True, forms=wide)
    names = [variant.name for variant in found]
    assert len(set(names)) == len(names)
    assert any(name.endswith("openvino int8 images_per_request=1") for name in names)
    assert any(name.endswith("onnxruntime int8") for name in names)
    assert not any("int8" in variant.name for variant in variants(candidates, workload, settings, forms=wide))


# --- what is made of a graph ----------------------------------------------------------------------


def asked(tiny_export, coloured, target, labels_of=None, **changes) -> RewriteRequest:
    labels = ((labels_of or tiny_export) / "labels.txt").read_text(encoding="utf-8").splitlines()
    task = Classify(preprocess=Preprocess(image_size=64), labels=tuple(labels))
    photos = sorted(str(path) for path in coloured.rglob("*.png"))
    quantise = QuantiseRequest(task=tasks.pack(task), photos=photos[:12], judged=photos[12:20], **changes)
    return RewriteRequest(
        folder=str(tiny_export),
        target=str(target),
        passes=[],
        preprocess=task.preprocess,
        quantise=quantise,
        threads=1,
    )


@pytest.mark.slow
def test_a_graph_becomes_int8_and_says_what_was_done(tiny_export, coloured, tmp_path):
    facts = rewrite.rewrite(asked(tiny_export, coloured, tmp_path / "int8"))
    written = msgspec.json.decode((tmp_path / "int8" / REWRITTEN_FILE).read_bytes())
    assert written == facts | {"int8": {"photos": 12, "kept": [], "tried": []}}
    model = onnx.load(tmp_path / "int8" / rewrite.ONNX_FILE)
    assert quantised_nodes(model)
    assert [value.name for value in model.graph.input] == ["images"]
    assert [value.name for value in model.graph.output] == ["scores"]
    paths = {"folder": str(tmp_path / "int8"), "target": str(tmp_path / "unsigned")}
    work.build({**paths, "runtime": "onnxruntime", "unsigned": True})
    target = Target(runtime="onnxruntime", precision="int8")
    graph = Classify(preprocess=Preprocess(image_size=64), labels=("x",) * 10).graph("model.onnx")
    images = np.random.default_rng(0).standard_normal((2, 3, 64, 64), dtype=np.float32)
    signed, unsigned = (
        runtimes.load(Path(path), graph, target, sizes={"B": 2}, threads=1).run({"images": images})["scores"]
        for path in paths.values()
    )
    assert np.abs(signed - unsigned).max() < 0.05 * np.abs(signed).max()


@pytest.mark.slow
def test_control_keeps_layers_until_the_drop_holds(tiny_export, coloured, tmp_path):
    loose = rewrite.rewrite(asked(tiny_export, coloured, tmp_path / "loose", max_drop=100.0))
    assert loose["int8"]["kept"] in ([], ())
    ((layers, worst),) = loose["int8"]["tried"]
    assert layers == 0
    if worst == 0:
        pytest.skip("this model loses nothing in int8")
    tight = rewrite.rewrite(asked(tiny_export, coloured, tmp_path / "tight", max_drop=worst / 2))
    kept, tried = tight["int8"]["kept"], dict(tight["int8"]["tried"])
    assert kept
    assert tried[len(kept)] <= worst / 2 < tried[0] == worst
    model = onnx.load(tmp_path / "tight" / rewrite.ONNX_FILE)
    assert set(kept).isdisjoint(quantised_nodes(model))


@pytest.mark.slow
def test_a_drop_that_no_layer_brings_down_is_said_and_nothing_is_written(tiny_export, coloured, tmp_path):
    request = asked(tiny_export, coloured, tmp_path / "none", max_drop=-1.0)
    with pytest.raises(rewrite.DropTooLarge, match=r"int8 loses .* points even with .* -1 allowed"):
        rewrite.rewrite(request)
    assert not (tmp_path / "none").exists()


def test_other_photos_make_another_export(tmp_path):
    candidate = catalog.find(("tf_efficientnet_lite0*",))[0]
    finder = WeightsFinder(offline=True)

    def key(digest: str, max_drop: float | None = None, precision: str = "int8", crop: float = 0.875):
        found = Calibration(photos=("a.jpg",), digest=digest, source="a folder")
        exports = Exports(finder, 1, calibration=found, max_drop=max_drop)
        settings = SearchSettings(precisions=(precision,), runtimes=("openvino",))
        preprocess = dataclasses.replace(candidate.preprocess, crop=crop)
        cropped = dataclasses.replace(candidate, preprocess=preprocess)
        (variant,) = variants([cropped], Workload(), settings, int8=True)
        return exports.rewrite_key(variant)

    keys = [key("one"), key("two"), key("one", 0.5), key("one", 1.0), key("one", crop=0.9)]
    assert len({msgspec.json.encode(each) for each in keys}) == 5
    assert key("one") == keys[0]
    assert key("one", precision="fp32") == {}


def test_a_drop_is_about_classes():
    settings = SearchSettings(task="embed", max_drop=0.5)
    with pytest.raises(InputError, match="--max-drop is about classes, and --task embed has none"):
        vitrail.select(settings=settings)


def test_heads_are_fitted_in_floating_point_where_only_int8_was_asked_for():
    settings = in_floating_point(SearchSettings(precisions=("int8",), runtimes=("openvino",)))
    candidates = catalog.find(("tf_efficientnet_lite0*",))[:1]
    assert {variant.precision for variant in variants(candidates, Workload(), settings)} == {"fp32", "bf16"}
    both = in_floating_point(SearchSettings(precisions=("int8", "bf16")))
    assert both.precisions == ("bf16",)


@pytest.mark.slow
def test_a_graph_of_one_batch_becomes_int8_too(tiny_export, coloured, tmp_path):
    fixed = tmp_path / "fixed"
    fixed.mkdir()
    model = onnx.load(tiny_export / "model.onnx")
    whole = rewrite.outputs(model, "images", images := noise(5), 5, 1)
    assert np.allclose(rewrite.outputs(model, "images", images, 4, 1), whole, atol=1e-4), (
        "the last part padded"
    )
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 4
    onnx.save(model, fixed / "model.onnx")
    request = asked(fixed, coloured, tmp_path / "int8", batch=4, max_drop=100.0, labels_of=tiny_export)
    assert rewrite.rewrite(request)["int8"]["photos"] == 12


def noise(count: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, 3, 64, 64), dtype=np.float32)

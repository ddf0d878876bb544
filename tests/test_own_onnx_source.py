"""What a person says of their own ONNX file, the source made of it, and the road that it travels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import numpy_helper
from own_nets import (
    CLASSES,
    PHOTO,
    SAID,
    net,
    run,
    saved,
)

from vitrail import cli, hardware
from vitrail.catalog import candidates
from vitrail.errors import InputError
from vitrail.export import own_onnx
from vitrail.export.bench import Bench
from vitrail.export.variants import variants
from vitrail.export.workshop import Workshop
from vitrail.images.decode import decode
from vitrail.images.photos import sample_photos
from vitrail.measure import sandbox
from vitrail.sources.gather import arranged
from vitrail.sources.own import OwnWeights
from vitrail.sources.own_onnx import NeedsPreprocess, OwnONNX
from vitrail.sources.prepared import example, prepared
from vitrail.sources.source import Context
from vitrail.tasks.classify import probabilities
from vitrail.vocabulary import Accuracy, Requirements, SearchSettings, Workload
from vitrail.weights.find import WeightsFinder

# --- preprocess.toml ------------------------------------------------------------------------------


def test_the_example_is_ready_to_edit(tmp_path):
    nets = (net(batch=1), 32, "NCHW"), (net(sides=("H", "W"), layout="NHWC"), 224, "NHWC")
    for model, size, layout in nets:
        path = saved(model, tmp_path)
        text = example(own_onnx.inspect({"file": str(path)}), path.name)
        (tmp_path / "p.toml").write_text(text, encoding="utf-8")
        found = prepared(tmp_path / "p.toml")
        assert (found.preprocess.image_size, found.layout) == (size, layout)
        assert (found.input, found.output) == ("pixel values", "logits")


def test_ranges_and_channel_orders_become_one_form():
    scales = {"range": 255, "mean": [51, 102, 153], "std": [255, 51, 102]}
    theirs = prepared({**SAID, **scales, "channels": "BGR"})
    assert theirs.preprocess.mean == pytest.approx((0.6, 0.4, 0.2))
    assert theirs.preprocess.std == pytest.approx((0.4, 0.2, 1.0))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sizes": 3}, "unknown key 'sizes'"),
        ({"crop_mode": "zoom"}, "crop_mode is 'zoom': use center or squash"),
        ({"range": 2}, "range is 2: use 1"),
        ({"mean": [0.5]}, "mean is \\[0.5\\]: give three numbers"),
        ({"mean": [127, 127, 127]}, "mean is 127, 127, 127: it must be from 0 to 1"),
        ({"std": [0, 0, 0]}, "std is 0, 0, 0: it must be"),
        ({"std": [float("nan")] * 3}, "std is nan"),
        ({"crop": 2}, "crop is 2: it must be"),
        ({"image_size": "big"}, "image_size"),
        ({"image_size": 10**9}, "image_size"),
        ({"input": 3}, "input is 3: give its name"),
        ({"channels": ["RGB"]}, "channels is"),
    ],
)
def test_wrong_keys_and_values_are_named(changes, said):
    with pytest.raises(InputError, match=said):
        prepared({**SAID, **changes})


def test_missing_keys_are_named():
    with pytest.raises(InputError, match="does not say crop, std: say how"):
        prepared({name: value for name, value in SAID.items() if name not in ("crop", "std")})


# --- the source -----------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path) -> Path:
    (tmp_path / "labels.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    saved(net(), tmp_path)
    return tmp_path


def source(place: Path, **changes: object) -> OwnONNX:
    said = {"file": str(place / "net.onnx"), "labels": str(place / "labels.txt"), "preprocess": SAID}
    return OwnONNX(**{**said, **changes})


def test_normalisation_is_asked_for_with_an_example(place, capsys):
    with pytest.raises(NeedsPreprocess, match="does not say how its images are prepared") as found:
        source(place, preprocess=None).check_settings(SearchSettings())
    assert 'input = "pixel values"' in found.value.example
    empty = net()
    del empty.graph.input[:]
    empty.graph.initializer.append(numpy_helper.from_array(PHOTO[:1], "pixel values"))
    with pytest.raises(InputError, match="has no input"):
        source(place, file=str(saved(empty, place, "none.onnx")), preprocess=None).check_settings(
            SearchSettings()
        )
    code = cli.main(["select", "--onnx", str(place / "net.onnx"), "--labels", str(place / "labels.txt")])
    said = capsys.readouterr()
    assert code == 2
    assert said.out == found.value.example
    assert "--preprocess" in said.err


def test_files_and_settings_are_checked_first(place):
    for changes, said in (
        ({"file": str(place)}, "is a folder"),
        ({"file": str(place / "none.onnx")}, "no ONNX file at"),
        ({"accuracy": 0.8}, "may be a fraction"),
        ({"labels": str(place / "none")}, "does not exist"),
    ):
        with pytest.raises(InputError, match=said):
            source(place, **changes).check_settings(SearchSettings())
    with pytest.raises(InputError, match="add onnx to --implementations"):
        source(place).check_settings(SearchSettings(implementations=("timm",)))


def test_a_file_s_own_graph_needs_a_file():
    with pytest.raises(InputError, match="Only a file given with --onnx"):
        variants(candidates()[:3], Workload(), SearchSettings(implementations=("onnx",)))


def test_an_onnx_file_is_not_taken_for_weights(place):
    own = OwnWeights(file=str(place / "net.onnx"), arch="resnet18", labels=str(place / "labels.txt"))
    with pytest.raises(InputError, match="give it with --onnx"):
        own.check_settings(SearchSettings())


def test_the_catalogue_takes_part_where_models_are_named(place):
    alone = arranged([source(place)], SearchSettings(), None)
    assert [each.option for each in alone] == ["onnx"]
    beside = arranged([source(place)], SearchSettings(models=("resnet*",)), None)
    assert [type(each).__name__ for each in beside] == ["OwnONNX", "Catalogue"]


def test_labelled_images_must_be_of_the_file_s_classes(place):
    class Two:
        classes, name = ("ash", "elm"), "trees"

    own = source(place)
    own.check(Requirements(), SearchSettings(), None)
    with pytest.raises(InputError, match=r"only .* has beech, oak; only the data has elm"):
        own.check(Requirements(), SearchSettings(), Two())


def test_a_child_that_dies_is_a_sentence(place, monkeypatch):
    def call(*_: object, **__: object) -> object:
        raise sandbox.ChildFailure("reading net.onnx crashed (SIGSEGV)")

    monkeypatch.setattr(sandbox, "call", call)
    with pytest.raises(InputError, match=r"SIGSEGV.*: give another file"):
        source(place, preprocess=None).check_settings(SearchSettings())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--onnx", "net.onnx"], "--onnx needs --labels"),
        (["--preprocess", "p.toml"], "give --onnx FILE too"),
        (["--onnx", "net.onnx", "--weights", "w", "--labels", "l"], "do not go together"),
        (["--onnx", "net.onnx", "--arch", "resnet50", "--labels", "l"], "give --weights FILE too"),
    ],
)
def test_options_that_do_not_go_together_are_refused(arguments, said, capsys):
    assert cli.main(["select", *arguments]) == 2
    assert said in capsys.readouterr().err


# --- the road -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_engine_is_compared_with_the_file_itself(place, monkeypatch):
    monkeypatch.setenv("VITRAIL_CACHE", str(place / "cache"))
    path = saved(net(batch=1, layout="NHWC", ending=("Softmax",)), place)
    photos = sample_photos()
    workload = Workload(threads=1)
    settings = SearchSettings(offline=True)
    with Workshop() as workshop:
        bench = Bench(
            workload=workload,
            photos=photos,
            finder=WeightsFinder(offline=True),
            machine=hardware.facts(),
            fresh=True,
            workshop=workshop,
        )
        context = Context(requirements=Requirements(), settings=settings, bench=bench, download_mib=0)
        own = source(place, accuracy=75.1)
        (candidate,) = own.find(context).candidates
        assert (candidate.name, candidate.trained_with) == ("net.onnx", "onnx")
        assert candidate.accuracy == Accuracy(value=75.1, provenance="declared", source="--accuracy")
        forms = variants([candidate], workload, settings)
        assert {form.runtime for form in forms} == {"onnxruntime", "openvino"}
        for form in forms:
            export = bench.export(form, timeout_s=120)
            assert (export.random_weights, form.implementation) == (False, "onnx")
            parity = bench.parity(bench.subject(form, export), left_s=60)
            assert parity.relative_error < (1e-4 if form.precision == "fp32" else 0.2)
        reference = bench.reference_outputs(forms[0])["scores"]
        task = bench.task(forms[0])
        # The bench shuffles the photos; each has its own row.
        first = task.prepare([decode(bench._parity_photos[0])])["images"]
    (expected,) = run(path, {"pixel values": np.ascontiguousarray(first.transpose(0, 2, 3, 1))})
    given = probabilities(reference[0, :1], "softmax")
    np.testing.assert_allclose(given, expected, rtol=1e-5, atol=1e-6)

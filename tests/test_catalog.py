"""The catalog against timm's own records, the costs against other counters, the listing as a user runs it."""

import argparse
import csv
import json
import re
import subprocess
import sys
from fnmatch import fnmatchcase
from importlib.resources import files

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.data import resolve_data_config
from timm.models import get_pretrained_cfg
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vitrail import catalog
from vitrail.catalog import candidates, find
from vitrail.catalog.licenses import CLASSES, LICENSES, admits, check_requirement, license_class
from vitrail.catalog.table import COLUMNS, read_table
from vitrail.cli import main
from vitrail.cli import models as command
from vitrail.errors import InputError
from vitrail.profiling.cost import count

ALL = candidates()
HUB = [candidate for candidate in ALL if candidate.weights.source == "hub"]
PACKAGES = [candidate for candidate in ALL if candidate.weights.source == "package"]


def by_name(candidate):
    return candidate.name


def build(architecture):
    with torch.device("meta"):
        return timm.create_model(architecture).eval()


def table_lines():
    return files("vitrail.catalog").joinpath("table.csv").read_text(encoding="utf-8").splitlines()


# --- the table ----------------------------------------------------------------------------------


def test_the_families_asked_for_are_there():
    asked = (
        "resnet vit deit3 swin swinv2 convnext efficientnetv2 efficientnet-lite mobilenetv3 mobilenetv4 "
        "mobilevit mobilevitv2 efficientvit-msra efficientvit-mit fastvit clip"
    )
    assert set(catalog.families()) == set(asked.split())
    assert 45 <= len(ALL) <= 60
    assert set(catalog.architectures()) == {candidate.architecture for candidate in ALL}


@pytest.mark.parametrize("candidate", HUB, ids=by_name)
def test_hub_row_is_timms_record(candidate):
    record = get_pretrained_cfg(candidate.name)
    assert (record.architecture, record.tag) == (candidate.architecture, candidate.weights.tag)
    assert record.hf_hub_id == candidate.weights.reference
    assert (record.license or "unknown") == candidate.weights.license
    assert record.num_classes == 1000
    config = resolve_data_config(pretrained_cfg=record.to_dict(), use_test_size=True)
    ours = candidate.preprocess
    assert config["input_size"] == (3, ours.image_size, ours.image_size)
    assert config["crop_pct"] == ours.crop
    assert config["crop_mode"] == ours.crop_mode
    assert config["interpolation"] == ours.interpolation
    assert (config["mean"], config["std"]) == (ours.mean, ours.std)


@pytest.mark.parametrize("candidate", ALL, ids=by_name)
def test_figures_are_whole_and_bound_to_their_size(candidate):
    assert timm.is_model(candidate.architecture)
    assert candidate.accuracy.provenance == "published"
    assert 50 < candidate.accuracy.value < 92
    assert str(candidate.preprocess.image_size) in candidate.accuracy.source
    # timm adds weights over time; fewer than when the table was made would mean that some were withdrawn.
    public = timm.list_models(f"{candidate.architecture}.*", pretrained=True)
    assert 1 <= candidate.public_weights <= len(public)


def test_package_weights_name_their_module_source_and_doubt():
    assert {candidate.architecture for candidate in PACKAGES} == {
        f"tf_efficientnet_lite{i}" for i in range(3)
    }
    for candidate in PACKAGES:
        # The size that the package's own implementation is built for.
        from efficientnet_lite_pytorch.utils import efficientnet_params

        network = candidate.architecture.removeprefix("tf_").replace("_", "-")
        assert candidate.preprocess.image_size == efficientnet_params(network)[2]
        __import__(candidate.weights.reference)
        assert "README" in candidate.accuracy.source
        assert "unverified" in candidate.note


def test_package_preprocess_is_subtract_127_divide_by_128():
    for candidate in PACKAGES:
        for pixel in (0, 127, 255):
            value = (pixel / 255 - candidate.preprocess.mean[0]) / candidate.preprocess.std[0]
            assert value == pytest.approx((pixel - 127) / 128)


def test_a_duplicate_name_raises():
    lines = table_lines()
    with pytest.raises(ValueError, match=r"resnet50\.tv2_in1k is there twice"):
        read_table([*lines, lines[1]])


@pytest.mark.parametrize(
    ("column", "value"), [("interpolation", "nearest"), ("crop_mode", "border"), ("source", "file")]
)
def test_a_value_outside_the_vocabulary_raises(column, value):
    row = next(csv.DictReader(table_lines()))
    row[column] = value
    with pytest.raises(ValueError, match=value):
        read_table([",".join(COLUMNS), ",".join(row[name] for name in COLUMNS)])


def test_other_columns_raise():
    with pytest.raises(ValueError, match="columns"):
        read_table(["name,family", "a,b"])


# --- cost ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "resnet50.a1_in1k",
        "vit_base_patch16_224.augreg2_in21k_ft_in1k",
        "swinv2_tiny_window8_256.ms_in1k",
        "tf_efficientnetv2_m.in1k",
        "tf_efficientnet_lite0.pypi",
        "mobilevit_s.cvnets_in1k",
        "efficientvit_m4.r224_in1k",
        "fastvit_t8.apple_dist_in1k",
    ],
)
def test_counts_equal_the_table_and_torchs_own_counter(name):
    (candidate,) = find([name])
    size, model = candidate.preprocess.image_size, build(candidate.architecture)
    cost = count(model, size)
    assert cost.parameters == candidate.parameters
    assert cost.macs == candidate.macs
    assert cost.activations == candidate.activations
    with torch.no_grad(), FlopCounterMode(display=False) as reference:
        model(torch.empty(1, 3, size, size, device="meta"))
    assert 2 * cost.macs == reference.get_total_flops()


@pytest.mark.parametrize(
    ("architecture", "size", "parameters", "gmacs"),
    [
        # As published: torchvision's ResNet-50, the ViT and Swin papers, EfficientNetV2-M at 480.
        ("resnet50", 224, 25.6, 4.1),
        ("vit_base_patch16_224", 224, 86.6, 17.6),
        ("swin_base_patch4_window7_224", 224, 87.8, 15.4),
        ("tf_efficientnetv2_m", 480, 54.1, 24.6),
    ],
)
def test_counts_agree_with_published_figures(architecture, size, parameters, gmacs):
    cost = count(build(architecture), size)
    assert cost.parameters / 1e6 == pytest.approx(parameters, abs=0.06)
    assert cost.macs / 1e9 == pytest.approx(gmacs, abs=0.06)


def test_small_counts_by_hand():
    # 3x3 grouped convolution, stride 2, of 4 -> 8 channels at 8x8: 8 * 4 * 4 outputs, 2 * 9 inputs each;
    # transposed back with 2x2 of stride 2: 8 * 4 * 4 inputs, 3 * 4 outputs each; then 8 columns of 3 * 8.
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2),
        nn.ConvTranspose2d(8, 3, 2, stride=2),
        nn.BatchNorm2d(3),
        nn.Linear(8, 5),
    )
    cost = count(model, 8, channels=4)
    assert cost.macs == 8 * 16 * 2 * 9 + 8 * 16 * 3 * 4 + 3 * 8 * 8 * 5
    assert cost.activations == 8 * 16 + 3 * 64 + 3 * 8 * 5
    assert cost.parameters == (8 * 2 * 9 + 8) + (8 * 3 * 4 + 3) + 6 + (8 * 5 + 5)


def test_fused_and_plain_attention_cost_the_same():
    class Attention(nn.Module):
        def __init__(self, fused):
            super().__init__()
            self.fused = fused

        def forward(self, x_BCHW):
            q = x_BCHW
            if self.fused:
                return nn.functional.scaled_dot_product_attention(q, q, q)
            return (q @ q.transpose(-2, -1)).softmax(-1) @ q

    fused, plain = (count(Attention(kind), 16, channels=2).macs for kind in (True, False))
    assert fused == plain == 2 * 2 * 16**3


def test_counting_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.Dropout(0.5))
    model.train()
    model[1].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    count(model, 8)
    assert [module.training for module in model] == [True, False, True]
    assert not model[0]._forward_hooks
    for name, tensor in model.state_dict().items():
        assert tensor.device.type == "cpu"
        assert torch.equal(tensor, before[name])


# --- search -------------------------------------------------------------------------------------


def test_find_takes_globs_full_names_and_architectures():
    assert find([]) == ALL
    assert {candidate.family for candidate in find(["swin*"])} == {"swin", "swinv2"}
    assert len(find(["resnet50"])) == 2
    assert [c.name for c in find(["RESNET50.a1_in1k", "resnet50.a1*"])] == ["resnet50.a1_in1k"]


@pytest.mark.parametrize(
    ("asked", "nearest"),
    [
        ("convnxt_tiny", "convnext_tiny.in12k_ft_in1k"),
        ("swin_tiny_patch4_window7_225", "swin_tiny_patch4_window7_224.ms_in1k"),
        ("efficientnetv2_m", "tf_efficientnetv2_m.in1k"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(asked, nearest):
    with pytest.raises(InputError, match=nearest):
        find([asked])


def test_a_name_like_none_says_how_to_list_them():
    with pytest.raises(InputError, match="vitrail models"):
        find(["qqqqqqqq"])


def test_what_is_absent_says_why():
    assert not any("dinov2" in candidate.name for candidate in ALL)
    with pytest.raises(InputError, match="without a classifier"):
        find(["vit_*_dinov2*"])
    # The reason holds: should timm publish a DINOv2 classifier, this fails and the row is due.
    names = timm.list_models("*dinov2*", pretrained=True)
    assert names
    assert all(get_pretrained_cfg(name).num_classes == 0 for name in names)


@given(st.lists(st.sampled_from(["*", "vit*", "*lite?*", "*.in1k", "resnet50", "[cd]*"]), min_size=1))
def test_found_is_a_subsequence_of_the_table_that_matches(globs):
    found = find(globs)
    assert list(found) == [candidate for candidate in ALL if candidate in found]
    assert all(any(fnmatchcase(c.name, g) or fnmatchcase(c.architecture, g) for g in globs) for c in found)


# --- licenses -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("apache-2.0", "permissive"),
        ("MIT", "permissive"),
        ("bsd-3-clause", "permissive"),
        ("agpl-3.0", "copyleft"),
        ("cc-by-nc-4.0", "noncommercial"),
        ("fastvit-license", "custom"),
        ("unknown", "unknown"),
        ("", "unknown"),
        ("some-new-license", "unknown"),
    ],
)
def test_license_class(name, expected):
    assert license_class(name) == expected


def test_every_license_timm_knows_has_a_class():
    stated = {get_pretrained_cfg(name).license for name in timm.list_models(pretrained=True)} - {None}
    assert stated <= set(LICENSES)


def test_admits():
    assert admits(("permissive",), "apache-2.0")[0]
    assert admits(("permissive", "fastvit-license"), "fastvit-license") == (
        True,
        "fastvit-license is admitted by name",
    )
    assert admits(("any",), "unknown")[0]
    assert admits(("noncommercial",), "cc-by-nc-4.0")[0]
    assert not admits(("permissive",), "cc-by-nc-4.0")[0]
    assert not admits((), "mit")[0]
    assert admits(("acme-eula",), "Acme-EULA")[0]
    for name in ("unknown", "", "some-new-license"):
        admitted, reason = admits(("permissive",), name)
        assert not admitted
        assert "not count as permissive" in reason


@given(st.sampled_from(sorted(LICENSES)), st.lists(st.sampled_from([*CLASSES, *LICENSES])))
def test_admitted_means_named_or_of_the_class(name, requirement):
    admitted, reason = admits(tuple(requirement), name)
    assert admitted == (name in requirement or license_class(name) in requirement)
    assert name in reason
    assert admits((*requirement, "any"), name)[0]


def test_a_misspelt_license_is_refused_with_the_nearest():
    with pytest.raises(InputError, match="permissive"):
        check_requirement(["permisive"])
    check_requirement(["permissive", "any", "MIT"])
    check_requirement(["acme-eula"], also=["acme-eula"])


# --- vitrail models -----------------------------------------------------------------------------


def listing(*argv):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args(argv))


def listed(capsys, *argv):
    assert listing(*argv, "--json", "-") == 0
    return json.loads(capsys.readouterr().out)["models"]


def test_models_json_is_the_whole_table(capsys):
    assert listing("--json", "-") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema_version"] == 1
    assert {model["name"] for model in document["models"]} == {candidate.name for candidate in ALL}
    lite = next(model for model in document["models"] if model["name"] == "tf_efficientnet_lite0.pypi")
    assert lite["accuracy"]["provenance"] == "published"
    assert lite["weights"]["license_class"] == "permissive"
    assert lite["preprocess"]["image_size"] == 224


def test_models_filters_and_sorts(capsys):
    models = listed(capsys, "--min-accuracy", "80", "--max-params", "30M", "--license", "permissive")
    assert models
    assert all(model["accuracy"]["value"] >= 80 for model in models)
    assert all(model["parameters"] <= 30e6 for model in models)
    assert all(model["weights"]["license_class"] == "permissive" for model in models)
    values = [model["accuracy"]["value"] for model in models]
    assert values == sorted(values, reverse=True)
    macs = [model["macs"] for model in listed(capsys, "--family", "fastvit", "--sort", "macs")]
    assert len(macs) == len(find(["fastvit*"]))
    assert macs == sorted(macs)
    both = listed(capsys, "--license", "cvnets-license,fastvit-license", "--sort", "name")
    assert {model["family"] for model in both} == {"mobilevit", "mobilevitv2", "fastvit"}


def test_models_plain_has_one_line_a_model(capsys):
    assert listing("resnet50") == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["model", "family", "top-1_%", "size", "params_M", "GMACs", *header.split()[6:]]
    assert [row.split()[:3] for row in rows] == [
        ["resnet50.a1_in1k", "resnet", "81.2"],
        ["resnet50.tv2_in1k", "resnet", "80.8"],
    ]
    assert all(len(row.split()) == len(header.split()) for row in rows)


@pytest.mark.parametrize("width", [60, 80, 100, 160])
def test_models_on_a_terminal_is_a_table_that_fits(width, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", str(width))
    assert listing("resnet50", "swinv2*") == 0
    out = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert max(map(len, out.splitlines())) <= width
    assert "resnet50.a1_in1k" in out
    assert ("permissive" in out) == (width >= 160)
    assert "5 models" in out


def test_models_that_pass_no_filter(capsys):
    assert listing("resnet50", "--min-accuracy", "99") == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "No model" in captured.err


@pytest.mark.parametrize("argv", [["--family", "convnxt"], ["--license", "permisive"], ["swim_tiny*"]])
def test_models_wrong_words_are_one_sentence(argv):
    with pytest.raises(InputError) as error:
        listing(*argv)
    assert "\n" not in str(error.value)


WRONG = ("--min-accuracy -1", "--min-accuracy nan", "--min-accuracy 0.8", "--max-params 0", "--sort x")


@pytest.mark.parametrize("typed", WRONG)
def test_models_wrong_numbers_end_with_2(typed):
    assert main(["models", *typed.split()]) == 2


def test_models_imports_no_engine():
    code = (
        "import argparse, sys\n"
        "from vitrail.cli import models\n"
        "parser = argparse.ArgumentParser(); models.add_arguments(parser)\n"
        "code = models.run(parser.parse_args(sys.argv[1:]))\n"
        "heavy = {'torch', 'timm', 'onnx', 'openvino', 'onnxruntime', 'numpy'} & set(sys.modules)\n"
        "sys.exit(code or (str(heavy) if heavy else 0))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "swin*", "--json", "-"], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(json.loads(done.stdout)["models"]) == len(find(["swin*"]))

"""Which promptable models there are, what is made of them, and what is refused first. About 8 s."""

from __future__ import annotations

import pytest
import torch

from vitrail import catalog, models
from vitrail.cli import main
from vitrail.errors import InputError
from vitrail.export.variants import Form, variants
from vitrail.profiling.cost import count
from vitrail.profiling.describe import describe_promptable
from vitrail.selection.prune import unmade
from vitrail.selection.select import _refuse_others
from vitrail.sources.catalogue import Catalogue
from vitrail.sources.one_model import Named, one_model
from vitrail.sources.own import OwnPromptable
from vitrail.tasks.promptable import ENCODE
from vitrail.vocabulary import Requirements, SearchSettings, Workload


@pytest.fixture(scope="module")
def nano(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "clicks.pth"
    torch.save(models.build("sam_vit_nano").state_dict(), path)
    return path


@pytest.mark.parametrize("candidate", catalog.of_task("promptable"), ids=lambda each: each.name)
def test_published_figures_of_cost_are_those_of_our_models(candidate):
    with torch.device("meta"):
        model = models.build(candidate.architecture)
    cost = count(model.stages()[ENCODE], candidate.preprocess.image_size)
    assert candidate.parameters == sum(each.numel() for each in model.parameters())
    assert (candidate.macs, candidate.activations) == (cost.macs, cost.activations)
    squashed = candidate.architecture.startswith(("sam2", "edgetam"))
    assert candidate.preprocess.crop_mode == ("squash" if squashed else "letterbox")
    assert candidate.accuracy is None
    assert catalog.license_class(candidate.weights.license) == "permissive"


def test_globs_find_what_takes_prompts_and_nothing_else():
    everything = [each.name for each in catalog.of_task("promptable")]
    assert [each.name for each in catalog.find((), "promptable")] == everything
    assert [each.name for each in catalog.find(["sam_vit_l*"], "promptable")] == ["sam_vit_large.sa1b"]
    with pytest.raises(InputError, match="No model that takes prompts matches 'resnet50': choose of edgetam"):
        catalog.find(["resnet50"], "promptable")
    with pytest.raises(InputError, match="No model matches 'sam_vit_base'"):
        catalog.find(["sam_vit_base"])
    assert "promptable" in Catalogue.tasks


def test_stages_are_made_plain_and_the_ledger_says_what_is_not():
    (base,) = catalog.find(["sam_vit_base"], "promptable")
    settings = SearchSettings(task="promptable", runtimes=("openvino", "onnxruntime", "executorch"))
    forms = (
        Form(),
        Form(passes=("gelu",)),
        Form(settings=(("images_per_request", "1"),), runtime="openvino"),
    )
    found = variants([base], Workload(), settings, int8=True, forms=forms)
    assert {each.passes for each in found} == {()}
    assert {each.settings for each in found} == {()}
    assert {each.implementation for each in found} == {"vitrail"}
    made = {(each.runtime, each.precision): unmade(each) for each in found}
    assert made["openvino", "fp32"] is made["openvino", "bf16"] is made["onnxruntime", "fp32"] is None
    assert made["openvino", "int8"] == "int8 is not made of models that answer prompts yet"
    for (runtime, _), reason in made.items():
        if runtime == "executorch":
            assert reason.startswith("ExecuTorch builds of whole modules")


def test_weights_of_ones_own_are_described_by_their_file(nano, tmp_path):
    facts = describe_promptable({"architecture": "sam_vit_nano", "weights": str(nano)})
    assert (facts["image_size"], facts["parameters"]) == (256, 3_858_816)
    other = tmp_path / "other.pth"
    torch.save({"head.weight": torch.zeros(2, 2)}, other)
    assert (
        "does not fit"
        in describe_promptable({"architecture": "sam_vit_nano", "weights": str(other)})["refused"]
    )


def test_what_cannot_be_is_refused_with_the_fix(nano):
    settings = SearchSettings(task="promptable")
    with pytest.raises(InputError, match=r"resnet50 takes no prompts: name one of sam_vit_base"):
        OwnPromptable(file=str(nano), arch="resnet50").check_settings(settings)
    with pytest.raises(InputError, match="There is no weights file"):
        OwnPromptable(file="none.pth", arch="sam_vit_nano").check_settings(settings)
    with pytest.raises(InputError, match="needs --arch NAME, such as sam_vit_base"):
        one_model(str(nano), task="promptable")
    with pytest.raises(InputError, match="--labels describes a file: leave it out"):
        one_model(str(nano), arch="sam_vit_nano", labels="labels.txt", task="promptable")
    source = one_model(str(nano), arch="sam_vit_nano", task="promptable")
    assert (source.file, source.arch) == (str(nano), "sam_vit_nano")
    assert isinstance(one_model("sam_vit_base"), Named)
    _refuse_others(settings, Requirements(min_iou=(("", 80.0),)), Workload(data="data"))
    with pytest.raises(InputError, match="is about a class, and clicks have none"):
        _refuse_others(settings, Requirements(min_iou=(("road", 80.0),)), Workload(data="data"))
    with pytest.raises(InputError, match="--min-recall is for --task classify"):
        _refuse_others(settings, Requirements(min_recall=(("cat", 80.0),)), Workload(data="data"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--weights", "FILE"], "--weights needs --arch NAME, such as sam_vit_base"),
        (["--weights", "FILE", "--arch", "sam_vit_nano", "--labels", "x"], "--labels is about classes"),
        (["--models", "resnet50"], "No model that takes prompts matches 'resnet50'"),
        (["--classes", "cat,dog"], "--classes"),
    ],
)
def test_select_refuses_before_anything_is_measured(nano, tmp_path, capsys, arguments, said):
    given = [str(nano) if each == "FILE" else each for each in arguments]
    assert main(["select", "--task", "promptable", *given, "--out", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

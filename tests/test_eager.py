"""Same weights, two implementations: what an export is made from. About 20 s."""

from __future__ import annotations

import exports
import msgspec
import numpy as np
import pytest
import torch
from msgspec.structs import replace

from vitrail import catalog
from vitrail.errors import InputError
from vitrail.export import eager, work
from vitrail.export.onnx import ExportMismatch
from vitrail.export.requests import ExportRequest
from vitrail.export.variants import implementations, variants
from vitrail.models import timm
from vitrail.vocabulary import SearchSettings, Workload

pytestmark = pytest.mark.slow

VIT, SWIN = "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"


@pytest.fixture(scope="module")
def vit(tmp_path_factory, tiny_labels):
    """Random values in every tensor of a ViT for 32 px and ten classes."""
    model = timm.build(VIT, image_size=32, classes=10, weights=None)
    generator = torch.Generator().manual_seed(2)
    path = tmp_path_factory.mktemp("source") / "vit.pth"
    values = {k: v + 0.1 * torch.randn(v.shape, generator=generator) for k, v in model.state_dict().items()}
    torch.save(values, path)
    return ExportRequest(
        architecture=VIT, implementation="vitrail", labels=str(tiny_labels), weights=str(path),
        image_size=32, folder="", threads=2,
    )  # fmt: skip


def noise(size, batch=2):
    return torch.from_numpy(
        np.random.default_rng(1).standard_normal((batch, 3, size, size), dtype=np.float32)
    )


def test_both_implementations_give_the_same_scores(vit):
    ours, theirs = (eager.module(replace(vit, implementation=i), 32) for i in ("vitrail", "timm"))
    assert type(ours).__module__.startswith("vitrail.")
    assert type(theirs).__module__.startswith("timm.")
    with torch.inference_mode():
        torch.testing.assert_close(ours(noise(32)), theirs(noise(32)), rtol=1e-4, atol=1e-4)


def test_random_weights_are_the_same_in_both(vit):
    random = replace(vit, architecture=SWIN, weights=None)
    ours, theirs = (eager.module(replace(random, implementation=i), 224) for i in ("vitrail", "timm"))
    with torch.inference_mode():
        torch.testing.assert_close(ours(noise(224, 1)), theirs(noise(224, 1)), rtol=1e-3, atol=1e-4)


def test_a_module_that_computes_something_else_is_not_exported(vit):
    model = eager.module(vit, 32)
    eager.check(model, vit, 32, 1e-4)
    model.blocks[3].attn.proj.bias += torch.linspace(-1, 1, 192)
    with pytest.raises(ExportMismatch, match=r"differs from timm's by .*--implementations timm"):
        eager.check(model, vit, 32, 1e-4)


def test_where_padding_would_take_part_in_timm_s_attention_the_two_are_not_compared(vit):
    request = replace(vit, architecture=SWIN, weights=None)
    model = eager.module(request, 250)
    with torch.inference_mode():
        theirs = eager.module(replace(request, implementation="timm"), 250)(noise(250, 1))
        assert not torch.allclose(model(noise(250, 1)), theirs, rtol=1e-3)
    eager.check(model, request, 250, 1e-4)


def test_our_export_is_what_the_engines_and_the_reference_run(vit, tmp_path):
    request = {**msgspec.to_builtins(vit), "folder": str(tmp_path / "export")}
    made = work.export(request)
    assert made["relative_difference"] <= 1e-4
    with torch.inference_mode():
        expected = eager.module(replace(vit, implementation="timm"), 32)(noise(32, 3)).numpy()
    exports.build(tmp_path / "export")
    for runtime in ("openvino", "onnxruntime", "pytorch"):
        runner = exports.load(tmp_path / "export", runtime, batch=3, size=32, classes=expected.shape[1])
        found = exports.scores(runner, noise(32, 3).numpy())
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
        runner.close()


# --- which implementation a variant gets ----------------------------------------------------------


def names(*globs, asked=()):
    settings = SearchSettings(
        models=globs, runtimes=("openvino",), precisions=("fp32",), implementations=asked
    )
    return {
        (v.candidate.architecture, v.implementation)
        for v in variants(catalog.find(globs), Workload(), settings)
    }


def test_ours_by_default_and_the_other_on_request():
    both = ("swin_tiny*", "resnet50.a1*")
    assert names(*both) == {(SWIN, "vitrail"), ("resnet50", "timm")}
    assert names(*both, asked=("timm",)) == {(SWIN, "timm"), ("resnet50", "timm")}
    assert names(*both, asked=("vitrail", "timm")) == {
        (SWIN, "vitrail"),
        (SWIN, "timm"),
        ("resnet50", "timm"),
    }


def test_asking_for_ours_where_there_is_none():
    with pytest.raises(InputError, match="none of these architectures of its own: add timm"):
        names("resnet50.a1*", asked=("vitrail",))
    (candidate,) = catalog.find(("resnet50.a1*",))
    assert implementations(candidate, ("vitrail",)) == ()


def test_variants_of_two_implementations_have_names_of_their_own():
    settings = SearchSettings(models=("swin_tiny*",), implementations=("vitrail", "timm"))
    found = variants(catalog.find(settings.models), Workload(), settings)
    assert len({v.name for v in found}) == len(found)

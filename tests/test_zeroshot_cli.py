"""`vitrail zero-shot` and `vitrail score`: small random weights under published names, a hub of our own."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from test_weights import FIRST, closed_port, hub, point_at  # noqa: F401 - hub is a fixture
from test_zeroshot import randomised, small

from vitrail import cli
from vitrail.errors import InputError
from vitrail.images.decode import decode
from vitrail.images.preprocess import prepare
from vitrail.models import clip
from vitrail.models.clip import CLIP, similarity
from vitrail.text.tokenizer import BPETokenizer
from vitrail.zeroshot import hub as zeroshot_hub
from vitrail.zeroshot.loading import load

pytestmark = pytest.mark.slow

CLASSES = "a corgi dog,persian cat,tram"
REPOSITORY = "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"
TAG = "laion2b_s34b_b79k"


@pytest.fixture
def model(monkeypatch) -> CLIP:
    """ViT-B-32 and a SigLIP shrunk to test size under their own names; the first one with random weights."""
    for name in ("ViT-B-32", "ViT-B-16-SigLIP"):
        text = {} if name == "ViT-B-32" else {"context_length": 16, "vocab_size": 40}
        monkeypatch.setitem(clip.VARIANTS, name, small(name, **text))
    torch.manual_seed(0)
    return randomised(CLIP(clip.VARIANTS["ViT-B-32"]))


@pytest.fixture
def weights(model, tmp_path):
    path = tmp_path / "clip.safetensors"
    save_file(model.state_dict(), path)
    return path


@pytest.fixture
def photos(tmp_path):
    generator = np.random.default_rng(0)
    paths = []
    for i in range(18):  # more than one batch
        path = tmp_path / f"photo{i}.png"
        Image.fromarray(generator.integers(0, 256, (40 + i, 50, 3), dtype=np.uint8)).save(path)
        paths.append(str(path))
    return paths


def expected_logits(model, preprocess, paths, prompts):
    """By the definition, one prompt a class, without `zeroshot.head`."""
    pixels = torch.from_numpy(np.stack([prepare(decode(path), preprocess) for path in paths]))
    with torch.no_grad():
        return similarity(*model(pixels, torch.from_numpy(BPETokenizer()(prompts))))


def document(capsys, *argv) -> dict:
    assert cli.main([*argv, "--json", "-"]) == 0
    return json.loads(capsys.readouterr().out)


def complaint(capsys, *argv, code=2) -> str:
    assert cli.main(list(argv)) == code
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    assert "Traceback" not in text
    return text


def test_zero_shot_ranks_as_the_definition_says(model, weights, photos, tmp_path, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a photo of {}\n")
    found = document(
        capsys, "zero-shot", *photos, "--classes", CLASSES, "--prompts", str(prompts), "--top", "3",
        "--model", "ViT-B-32", "--weights", str(weights),
    )  # fmt: skip
    preprocess = load("ViT-B-32", weights=str(weights)).preprocess
    logits = expected_logits(model, preprocess, photos, [f"a photo of {name}" for name in CLASSES.split(",")])
    assert found["classes"] == CLASSES.split(",")
    assert found["templates"] == 1
    assert [row["image"] for row in found["predictions"]] == photos
    for row, own in zip(found["predictions"], logits, strict=True):
        assert [ranked["index"] for ranked in row["top"]] == own.argsort(descending=True).tolist()
        for ranked in row["top"]:
            assert ranked["label"] == found["classes"][ranked["index"]]
            assert ranked["logit"] == pytest.approx(float(own[ranked["index"]]), abs=1e-4)
            assert ranked["probability"] == pytest.approx(float(own.softmax(0)[ranked["index"]]), abs=1e-4)


def test_zero_shot_as_text_names_what_it_could_not_read(weights, photos, tmp_path, capsys):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"not an image")
    argv = ["--classes", CLASSES, "--prompts", "simple", "--model", "ViT-B-32", "--weights", str(weights)]
    assert cli.main(["zero-shot", photos[0], str(broken), photos[1], *argv, "--top", "1"]) == 1
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert [lines[0], lines[2]] == photos[:2]
    assert lines[1].split()[-1].endswith("%")
    assert str(broken) in err
    assert str(broken) in complaint(capsys, "zero-shot", str(broken), *argv)


def test_zero_shot_takes_folders_and_writes_what_it_had_before_an_error(
    weights, photos, tmp_path, capsys, monkeypatch
):
    options = ["--classes", CLASSES, "--prompts", "simple", "--model", "ViT-B-32", "--weights", str(weights)]
    found = document(capsys, "zero-shot", str(tmp_path), *options)
    assert [row["image"] for row in found["predictions"]] == sorted(photos)
    assert (found["images"], found["complete"]) == (18, True)
    calls = []

    def check(*_):
        calls.append(1)
        if len(calls) == 2:
            raise InputError("The scores are not finite.")

    monkeypatch.setattr("vitrail.weights.finite.check_outputs", check)
    assert cli.main(["zero-shot", *photos, *options, "--json", "-"]) == 2
    found = json.loads(capsys.readouterr().out)
    assert [row["image"] for row in found["predictions"]] == photos[:16]
    assert (found["images"], found["complete"]) == (18, False)


def test_siglip_judges_each_class_by_itself(model, photos, tmp_path, capsys):
    siglip = randomised(CLIP(clip.VARIANTS["ViT-B-16-SigLIP"]))
    save_file(siglip.state_dict(), tmp_path / "siglip.safetensors")
    reader = _unigram(tmp_path / "tokenizer.json")
    (tmp_path / "prompts.txt").write_text("{}\n")
    argv = ["--classes", "cat,dog", "--model", "ViT-B-16-SigLIP", "--tokenizer", str(reader)]
    argv += ["--prompts", str(tmp_path / "prompts.txt")]
    found = document(capsys, "zero-shot", photos[0], *argv, "--weights", str(tmp_path / "siglip.safetensors"))
    assert found["probability"] == "sigmoid"
    assert found["preprocess"]["crop_mode"] == "squash"
    for ranked in found["predictions"][0]["top"]:
        sigmoid = torch.tensor(ranked["logit"]).double().sigmoid()
        assert ranked["probability"] == pytest.approx(float(sigmoid), rel=1e-6)


def test_score_is_the_definition_with_and_without_the_papers_prefix(model, weights, photos, capsys):
    argv = ["score", photos[0], "a cat", "--model", "ViT-B-32", "--weights", str(weights)]
    preprocess = load("ViT-B-32", weights=str(weights)).preprocess
    for prefix, text in (("", "a cat"), ("A photo depicts", "A photo depicts a cat")):
        found = document(capsys, *argv, "--prefix", prefix)
        cosine = float(expected_logits(model, preprocess, photos[:1], [text])[0, 0] / model.scale().detach())
        assert found["text"] == text
        assert found["cosine"] == pytest.approx(cosine, abs=1e-5)
        assert found["clip_score"] == pytest.approx(2.5 * max(cosine, 0), abs=1e-5)
    assert cli.main(argv) == 0
    assert capsys.readouterr().out.startswith("CLIPScore ")


def test_wrong_use_is_one_sentence_with_the_fix(weights, photos, tmp_path, capsys):
    cat = ["zero-shot", photos[0], "--classes", CLASSES]
    ours = ["--model", "ViT-B-32", "--weights", str(weights)]
    score = ["score", photos[0]]
    plain = tmp_path / "other.safetensors"
    save_file({"weight": torch.ones(2)}, plain)
    cases = [
        ([*cat[:3], "cat", *ours], "neither a file nor several class names"),
        ([*cat[:3], "cat,CAT", *ours], "the same class"),
        ([*cat, *ours, "--top", "0"], "a whole number from 1"),
        ([*cat, *ours, "--prompts", "imagnet"], "neither a set of prompts"),
        ([*cat, "--model", "ViT-B-33", *ours[2:]], "did you mean ViT-B-32"),
        ([*cat, "--model", "vit-b-32", *ours[2:]], "did you mean ViT-B-32"),
        ([*cat, "--model", "vit_tiny_patch16_224", *ours[2:]], "no text tower"),
        ([*cat, "--model", "ViT-B-32", "--weights", str(plain)], "does not fit ViT-B-32"),
        ([*cat, "--model", "ViT-B-32", "--weights", str(tmp_path / "none.pt")], "no weights file at"),
        ([*cat, "--model", "ViT-B-32", "--weights", "hub:nowhere"], "write --weights hub:OWNER/NAME"),
        ([*cat, "--model", "ViT-B-32"], "choose one with --tag"),
        ([*cat, *ours, "--tag", "openai"], "use --model ViT-B-32-quickgelu"),
        ([*cat, *ours, "--tokenizer", str(plain)], "leave the tokenizer file out"),
        ([*score, "word " * 90, *ours], "the model reads only 77: shorten it."),
        ([*score, "  ", *ours], "text is empty"),
        (["score", str(tmp_path / "none.jpg"), "a cat", *ours], "does not exist"),
        ([*score, "a cat", "--model", "ViT-L-14", *ours[2:]], "several kinds of preprocessing"),
    ]
    for argv, message in cases:
        assert message in complaint(capsys, *argv), argv


def test_weights_of_another_architecture_are_told_apart(model, weights, photos, tmp_path, capsys):
    """CLIP's for a SigLIP and the other way round: whose they are, no word of tables."""
    save_file(CLIP(clip.VARIANTS["ViT-B-16-SigLIP"]).state_dict(), tmp_path / "siglip.safetensors")
    reader = ["--tokenizer", str(_unigram(tmp_path / "tokenizer.json"))]
    for file, asked, more, missing in (
        (tmp_path / "siglip.safetensors", "ViT-B-32", [], "image.cls_token"),
        (weights, "ViT-B-16-SigLIP", reader, "image.attn_pool"),
    ):
        said = complaint(capsys, "score", photos[0], "a cat", "--model", asked, "--weights", str(file), *more)
        assert f"{file} does not fit {asked}: missing {missing}" in said
        theirs = "ViT-B-16-SigLIP" if asked == "ViT-B-32" else "ViT-B-32"
        assert f"they are the weights of {theirs}: name that model" in said
        assert "position table" not in said


def test_a_position_table_of_no_square_grid_is_still_told(model, tmp_path, photos, capsys):
    state = model.state_dict()
    state["image.pos_embed"] = torch.zeros(1, 12, state["image.pos_embed"].shape[-1])
    save_file(state, tmp_path / "odd.safetensors")
    argv = [
        "score",
        photos[0],
        "a cat",
        "--model",
        "ViT-B-32",
        "--weights",
        str(tmp_path / "odd.safetensors"),
    ]
    said = complaint(capsys, *argv)
    assert "odd.safetensors does not fit ViT-B-32: The position table has 12 rows" in said


class TestHub:
    def test_published_weights_by_tag_and_by_id(self, hub, model, weights, photos, capsys):  # noqa: F811
        # transformers' file beside open_clip's: both towers in either, ours to take is the first.
        hub.repos[REPOSITORY] = {
            FIRST: {"open_clip_model.safetensors": weights.read_bytes(), "model.safetensors": b"not this one"}
        }
        score = ["score", photos[0], "a cat", "--model", "ViT-B-32"]
        local = document(capsys, *score, "--weights", str(weights))
        for where in (
            ["--tag", TAG],
            ["--weights", f"hub:{REPOSITORY}"],
            ["--weights", f"hub:{REPOSITORY}/"],
        ):
            found = document(capsys, *score, *where)
            assert found["cosine"] == local["cosine"]
            assert found["weights"] | {"license": "mit", "tag": TAG} == found["weights"]
            assert found["weights"]["revision"] == FIRST
            assert found["weights"]["sha256"] == local["weights"]["sha256"]
        assert sum("GET /storage" in line for line in hub.seen) == 1, "downloaded once"

    def test_a_hub_that_is_away_or_has_nothing(self, hub, model, photos, monkeypatch, capsys):  # noqa: F811
        argv = ["score", photos[0], "a cat", "--model", "ViT-B-32", "--tag", TAG]
        assert f"The hub has no {REPOSITORY}" in complaint(capsys, *argv)
        hub.repos[REPOSITORY] = {FIRST: {"README.md": b""}}
        assert "holds none of open_clip_model.safetensors, open_clip_pytorch" in complaint(capsys, *argv)
        hub.refused[REPOSITORY] = (403, "GatedRepo")
        assert "log" in complaint(capsys, *argv)
        point_at(monkeypatch, f"http://127.0.0.1:{closed_port()}")
        said = complaint(capsys, *argv)
        assert "the model hub cannot be reached" in said
        assert "--weights FILE" in said

    def test_timms_repositories_hold_the_image_tower_under_the_general_name(self, hub, model):  # noqa: F811
        assert "model.safetensors" not in zeroshot_hub.weights_files("timm/ViT-B-16-SigLIP")
        assert "model.safetensors" in zeroshot_hub.weights_files("openai/clip-vit-base-patch32")

    def test_siglips_vocabulary_comes_from_the_hub_too(self, hub, model, photos, tmp_path, capsys):  # noqa: F811
        siglip = randomised(CLIP(clip.VARIANTS["ViT-B-16-SigLIP"]))
        save_file(siglip.state_dict(), tmp_path / "siglip.safetensors")
        argv = ["score", photos[0], "cat", "--model", "ViT-B-16-SigLIP"]
        assert "--tokenizer FILE" in complaint(capsys, *argv)
        hub.repos["timm/ViT-B-16-SigLIP"] = {
            FIRST: {
                "open_clip_model.safetensors": (tmp_path / "siglip.safetensors").read_bytes(),
                "tokenizer.json": _unigram(tmp_path / "tokenizer.json").read_bytes(),
            }
        }
        assert document(capsys, *argv)["weights"]["reference"] == "timm/ViT-B-16-SigLIP"


def _unigram(path):
    """A small vocabulary in SigLIP's format: every letter, and a few words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    pieces = [("<unk>", 0.0), ("</s>", 0.0), ("▁", -3.0), ("▁cat", -2.0), ("▁dog", -2.0)]
    pieces += [(letter, -5.0) for letter in "abcdefghijklmnopqrstuvwxyz"]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.save(str(path))
    return path

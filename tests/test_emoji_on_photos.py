"""examples/masks/build.py: pictures whose masks are what was pasted, and one style kept apart. About 3 s."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from vitrail.masks.coco import read_coco
from vitrail.masks.folder import read_folder

SCRIPT = Path(__file__).parents[1] / "examples" / "masks" / "build.py"
SIDE = 64


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("emoji_on_photos", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def packages(tmp_path_factory, script):
    """The four npm packages with one emoji of each kind: a disc, in a colour that tells the style."""
    folder, kinds = tmp_path_factory.mktemp("emoji"), [k for kinds in script.CLASSES.values() for k in kinds]
    colours = dict(zip(script.prepare.STYLES, ("red", "lime", "blue", "yellow"), strict=True))
    rows = [
        {
            "unified": f"1F{i:03d}", "name": f"SYMBOL {i}", "short_name": f"symbol_{i}",
            "short_names": [f"symbol_{i}"], "image": f"1f{i:03d}.png", "category": "Objects",
            "subcategory": kind.replace(" ", "-"), **{f"has_img_{style}": True for style in colours},
        }
        for i, kind in enumerate(kinds)
    ]  # fmt: skip
    for style, colour in colours.items():
        package = folder / f"emoji-datasource-{style}" / "package"
        (package / "img" / style / "64").mkdir(parents=True)
        (package / "emoji.json").write_text(json.dumps(rows))
        for row in rows:
            drawn = Image.new("RGBA", (64, 64))
            ImageDraw.Draw(drawn).ellipse((4, 4, 59, 59), fill=colour)
            drawn.save(package / "img" / style / "64" / row["image"])
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory, script, packages):
    """Two pictures in grey, so that every colour is an emoji's."""
    out, photos = tmp_path_factory.mktemp("set"), tmp_path_factory.mktemp("photos")
    for i in range(8):
        Image.new("RGB", (90, 80), (100 + i,) * 3).save(photos / f"{i}.png")
    options = ["--pictures", "40", "--side", str(SIDE), "--photos", str(photos)]
    assert script.main(["--packages", str(packages), "--out", str(out / "a"), *options]) == 0
    assert script.main(["--packages", str(packages), "--out", str(out / "b"), *options]) == 0
    return out / "a", out / "b"


def test_masks_hold_the_pixels_that_were_pasted(made):
    """JPEG blurs edges: away from them a pixel is coloured exactly where a mask says so."""
    for part in ("seen", "unseen"):
        found = read_folder(made[0] / part)
        assert found.kind == "classes"
        for photo in found.photos:
            pixels, labels = np.asarray(photo.image()).astype(int), photo.labels() > 0
            coloured = np.ptp(pixels, axis=2) > 60
            inner = np.zeros_like(labels)
            inner[2:-2, 2:-2] = True
            for down in range(-2, 3):
                for across in range(-2, 3):
                    inner &= np.roll(labels, (down, across), (0, 1)) == labels
            assert (coloured == labels)[inner].mean() > 0.99


def test_coco_and_png_say_the_same(made):
    for part in ("seen", "unseen"):
        objects = read_coco(made[0] / part / "instances.json", made[0] / part / "images")
        labels = {Path(photo.path).stem: photo.labels() for photo in read_folder(made[0] / part).photos}
        assert len(objects.classes) == 10
        for photo in objects.photos:
            drawn = np.zeros((SIDE, SIDE), int)
            for instance in photo.instances:
                mask = instance.mask()
                assert not drawn[mask].any(), "two objects share a pixel"
                drawn[mask] = instance.label + 1
            np.testing.assert_array_equal(drawn, labels[Path(photo.path).stem])


def test_one_style_and_its_photos_are_kept_apart(made):
    """Yellow is the style that was kept; shades of grey are the photos."""
    greys = {}
    for part, kept in (("seen", False), ("unseen", True)):
        found = set()
        for photo in read_folder(made[0] / part).photos:
            pixels, labels = np.asarray(photo.image()).astype(int), photo.labels()
            inside = pixels[labels > 0]
            yellow = (inside[:, 0] > 180) & (inside[:, 1] > 180) & (inside[:, 2] < 90)
            assert (yellow.mean() > 0.5) == kept
            found.add(int(np.median(pixels[labels == 0])))
        greys[part] = found
    assert greys["unseen"] <= {103, 107}
    assert not greys["seen"] & {103, 107}


def test_the_same_arguments_give_the_same_pictures(made):
    one, other = (sorted(path for path in folder.rglob("*") if path.is_file()) for folder in made)
    assert len(one) == 2 * 40 + 3
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in other]

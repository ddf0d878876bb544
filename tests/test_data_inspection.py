"""`vitrail data`: what it counts and finds, near duplicates, the contact sheet. About 10 s."""

from __future__ import annotations

import io
import json
import shutil
import statistics
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageEnhance, ImageFont
from test_data import folder, image

from vitrail import cli
from vitrail.data import Example, near, sheet
from vitrail.data.examine import THUMBNAIL, Look, examine
from vitrail.data.near import ALIKE, near_duplicates
from vitrail.data.read import read
from vitrail.images.photos import sample_photos


def inspected(path: Path, capsys, *options: str) -> tuple[int, dict]:
    code = cli.main(["data", str(path), *options, "--json", "-"])
    return code, json.loads(capsys.readouterr().out)


def example(index: int, split: str = "train", label: int = 0) -> Example:
    return Example(path=f"/{index}", label=label, digest=f"{index:064x}", split=split)


# --- the command --------------------------------------------------------------------------------


def test_a_clean_data_set(tmp_path, capsys):
    root = folder(tmp_path / "pets", cat=5, dog=10)
    code, document = inspected(root, capsys)
    assert code == 0
    dataset = read(root).dataset
    assert document["digest"] == dataset.digest
    assert document["classes"] == dataset.counts()
    assert (document["files"], document["images"], document["given_splits"]) == (15, 15, [])
    assert document["width"] == {"min": 8, "median": 8, "max": 8}
    assert document["height"] == {"min": 9, "median": 9, "max": 9}
    assert document["formats"] == {"PNG": 15}
    assert document["near_duplicates"]["pairs"] == 0
    for kind in ("broken", "duplicates", "conflicts"):
        assert document[kind] == []
    assert cli.main(["data", str(root)]) == 0
    text = capsys.readouterr().out
    assert "pets · 15 distinct images · 2 classes · splits by content" in text
    assert text.splitlines()[1] == "layout       class"
    assert document["layout"] == "class"
    assert [line.split() for line in text.splitlines()[4:7]] == [
        ["cat", "3", "1", "1", "5"], ["dog", "6", "2", "2", "10"], ["total", "9", "3", "3", "15"],
    ]  # fmt: skip
    assert text.count(" none") == 3


def test_sizes_are_upright_and_of_the_file_not_of_its_scaled_decoding(tmp_path):
    picture = Image.open(sample_photos().paths[0]).convert("RGB").resize((801, 603))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.jpg", exif=exif)
    picture.save(tmp_path / "plain.webp")
    turned, plain = (examine([str(tmp_path / name)]).popitem()[1] for name in ("turned.jpg", "plain.webp"))
    assert isinstance(turned, Look)
    assert isinstance(plain, Look)
    assert (turned.size, turned.kind) == ((603, 801), "JPEG")
    assert (plain.size, plain.kind) == ((801, 603), "WebP")


def test_median_and_formats(tmp_path, capsys):
    root = folder(tmp_path, cat=3, dog=3)
    sides = [20, 30, 70]
    for index, side in enumerate(sides):
        noise = np.random.default_rng(index).integers(0, 256, (side, 2 * side), dtype=np.uint8)
        Image.fromarray(noise).save(root / "cat" / f"{side}.bmp")
    _, document = inspected(root, capsys)
    assert document["formats"] == {"PNG": 6, "BMP": 3}
    assert document["height"] == {"min": 9, "median": statistics.median([9] * 6 + sides), "max": 70}
    assert document["width"]["max"] == 140


def test_what_is_wrong_is_named_and_the_exit_code_says_so(tmp_path, capsys):
    root = folder(tmp_path, cat=4, dog=4)
    (root / "cat" / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    shutil.copy(root / "cat" / "0.png", root / "cat" / "copy.png")
    code, document = inspected(root, capsys)
    assert code == 1
    assert (document["files"], document["images"]) == (10, 8)
    assert document["broken"][0]["path"] == str(root / "cat" / "cut.png")
    assert document["duplicates"] == [
        {"path": str(root / "cat" / "copy.png"), "original": str(root / "cat" / "0.png"), "straddles": False}
    ]
    shutil.copy(root / "cat" / "1.png", root / "dog" / "1b.png")
    (root / "cat" / "cut.png").unlink()
    image(root / "cat" / "new.png", 99)
    assert cli.main(["data", str(root)]) == 1
    text = capsys.readouterr().out
    assert "1 image under more than one label (2 files)" in text
    assert f"{root / 'dog' / '1b.png'} is 'dog'" in text
    assert "1 exact copy" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sheet", "a.gif"], "neither JPEG nor PNG"),
        (["--sheet", "nowhere/a.png"], "does not exist"),
        (["--per-class", "0"], "give 1 to 50"),
        (["--per-class", "51"], "give 1 to 50"),
    ],
)
def test_wrong_use_is_refused_before_any_work(tmp_path, capsys, options, message):
    assert cli.main(["data", str(tmp_path / "not even there"), *options]) == 2
    assert message in capsys.readouterr().err


def test_inspecting_imports_no_workbench(tmp_path):
    root = folder(tmp_path, cat=3, dog=3)
    script = (
        "import sys; from vitrail.cli import main\n"
        f"code = main(['data', {str(root)!r}, '--sheet', {str(tmp_path / 's.png')!r}])\n"
        "print(code, [name for name in ('torch', 'sklearn', 'pyarrow', 'openvino') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"


# --- near duplicates ----------------------------------------------------------------------------


def saved_again(picture: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


CHANGES = {
    "JPEG quality 50": lambda p: saved_again(p, 50),
    "half the size": lambda p: p.resize((p.width // 2, p.height // 2), Image.Resampling.BICUBIC),
    "a quarter brighter": lambda p: ImageEnhance.Brightness(p).enhance(1.25),
    "less contrast": lambda p: ImageEnhance.Contrast(p).enhance(0.7),
    "grey": lambda p: p.convert("L"),
    "1 % cut off": lambda p: p.crop((0, 0, p.width - p.width // 100, p.height - p.height // 100)),
}


def test_changed_photos_are_found_and_different_ones_are_not(tmp_path):
    """Six changes of each of 15 photos, all but one found; not one of the 105 pairs of different photos."""
    photos = sample_photos().paths
    pictures = [Image.open(path).convert("RGB") for path in photos]
    pictures = [p.resize((p.width * 400 // min(p.size), p.height * 400 // min(p.size))) for p in pictures]
    files = {}
    for number, picture in enumerate(pictures):
        for change, apply in {"none": lambda p: p, **CHANGES}.items():
            path = str(tmp_path / f"{number} {change}.jpg".replace("%", "pc"))
            apply(picture).save(path, quality=92)
            files[path] = (number, change)
    looks = {files[path]: look.thumbnail for path, look in examine(files).items()}
    originals = [looks[number, "none"] for number in range(len(pictures))]
    assert near_duplicates([example(i) for i in range(len(originals))], originals).pairs == 0
    pair = [example(0), example(1)]
    missed = [
        change
        for (number, change), look in looks.items()
        if not near_duplicates(pair, [originals[number], look]).pairs
    ]
    # A cut moves fine regular patterns (the brick wall) against the thumbnail's grid: the known limit.
    assert missed in ([], ["1 % cut off"])


@settings(max_examples=40, deadline=None)
@given(
    arrays(np.uint8, st.tuples(st.integers(2, 12), st.just(4)), elements=st.sampled_from([0, 1, 2, 250])),
    st.integers(1, 5),
)
def test_pairs_are_those_of_numpys_correlation_whatever_the_block(thumbnails, block):
    """Against np.corrcoef, with blocks that end in the middle of the images."""
    splits, labels = ("train", "validation", "test"), (0, 1)
    examples = [example(i, splits[i % 3], labels[i % 2]) for i in range(len(thumbnails))]
    wanted = {}
    for i, j in combinations(range(len(thumbnails)), 2):
        if thumbnails[i].std() and thumbnails[j].std():
            r = np.corrcoef(thumbnails[i].astype(float), thumbnails[j].astype(float))[0, 1]
            if abs(r - ALIKE) < 1e-5:
                return
            if r >= ALIKE:
                wanted[i, j] = r
    before, near.BLOCK = near.BLOCK, block
    try:
        found = near_duplicates(examples, [row.tobytes() for row in thumbnails])
    finally:
        near.BLOCK = before
    assert found.pairs == len(wanted)
    assert {(int(p.first.path[1:]), int(p.second.path[1:])) for p in found.closest} == set(wanted)
    for pair in found.closest:
        assert pair.correlation == pytest.approx(
            wanted[int(pair.first.path[1:]), int(pair.second.path[1:])], abs=1e-5
        )
    assert found.images == len({i for pair in wanted for i in pair})
    across = [(i, j) for i, j in wanted if i % 3 != j % 3]
    assert found.straddling == len(across)
    assert found.held_out == len({i for pair in across for i in pair if i % 3 != 0})
    assert found.mislabelled == sum(i % 2 != j % 2 for i, j in wanted)


def test_all_pairs_are_counted_and_the_closest_kept(monkeypatch):
    monkeypatch.setattr(near, "MOST_SHOWN", 3)
    monkeypatch.setattr(near, "BLOCK", 4)
    ramp = np.arange(256)
    rows = [(ramp + noise * (ramp % 2)).clip(0, 255).astype(np.uint8) for noise in range(9)]
    found = near_duplicates([example(i) for i in range(9)], [row.tobytes() for row in rows])
    assert found.pairs == 36
    assert len(found.closest) == 3
    table = np.corrcoef(np.array(rows, dtype=float))[np.triu_indices(9, 1)]
    assert [p.correlation for p in found.closest] == pytest.approx(sorted(table)[::-1][:3], abs=1e-6)


def test_flat_images_are_never_near_duplicates():
    flat = [bytes([value]) * THUMBNAIL**2 for value in (0, 0, 200)]
    assert near_duplicates([example(i) for i in range(3)], flat).pairs == 0


def test_near_duplicates_across_splits_and_labels_are_told(tmp_path, capsys):
    root = folder(tmp_path, cat=3, dog=3)
    picture = Image.open(sample_photos().paths[0]).convert("RGB")
    for index in range(6):
        saved_again(picture, 95 - 5 * index).save(root / ("cat", "dog")[index % 2] / f"again{index}.png")
    _, document = inspected(root, capsys)
    found = document["near_duplicates"]
    assert (found["pairs"], found["images"], found["mislabelled"]) == (15, 6, 9)
    splits = {e.path: e.split for e in read(root).dataset.examples}
    names = [path for path in splits if "again" in path]
    assert found["straddling"] == sum(splits[a] != splits[b] for a, b in combinations(names, 2)) > 0
    assert cli.main(["data", str(root)]) == 0
    text = capsys.readouterr().out
    assert "9 pairs with two labels" in text
    assert f"{found['straddling']} pairs across splits" in text


# --- the contact sheet --------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kind"), [("s.jpg", "JPEG"), ("s.JPEG", "JPEG"), ("s.png", "PNG")])
def test_the_sheet_shows_every_class_in_its_row(tmp_path, capsys, name, kind):
    root = tmp_path / "colours"
    colours = {"blue": (0, 0, 200), "red": (200, 0, 0)}
    for label, colour in colours.items():
        (root / label).mkdir(parents=True)
        for index in range(5):
            Image.new("RGB", (40 + index, 30), colour).save(root / label / f"{index}.png")
    code, document = inspected(root, capsys, "--sheet", str(tmp_path / name), "--per-class", "4")
    assert code == 0
    assert document["sheet"] == {"path": str(tmp_path / name), "classes": 2}
    with Image.open(tmp_path / name) as drawn:
        assert drawn.format == kind
        assert drawn.size == (
            sheet.NAME_WIDTH + 4 * (sheet.SIDE + sheet.GAP) + sheet.GAP,
            sheet.GAP + 2 * (sheet.SIDE + sheet.GAP),
        )
        pixels = np.asarray(drawn.convert("RGB")).astype(int)
    for row, colour in enumerate(colours.values()):
        for column in range(4):
            x = sheet.NAME_WIDTH + column * (sheet.SIDE + sheet.GAP) + sheet.SIDE // 2
            y = sheet.GAP + row * (sheet.SIDE + sheet.GAP) + sheet.SIDE // 2
            assert np.abs(pixels[y, x] - colour).max() < 8


def test_many_classes_are_shown_in_part(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sheet, "MAX_CLASSES", 2)
    root = folder(tmp_path / "d", a=3, b=3, c=3)
    assert cli.main(["data", str(root), "--sheet", str(tmp_path / "s.png")]) == 0
    assert "(the first 2 of 3 classes)" in capsys.readouterr().out
    with Image.open(tmp_path / "s.png") as drawn:
        assert drawn.height == sheet.GAP + 2 * (sheet.SIDE + sheet.GAP)


def test_letters_that_a_font_lacks_are_replaced():
    font = ImageFont.load_default(15)
    assert sheet.legible("cat 7", font) == "cat 7"
    assert sheet.legible("été", font) == "ete"
    assert sheet.legible("猫", font) == "?"

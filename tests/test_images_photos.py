"""Photo sets and label files."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vitrail.errors import InputError, MissingExtraError
from vitrail.images import photos
from vitrail.images.decode import decode
from vitrail.images.labels import read_labels
from vitrail.images.photos import SAMPLES, evenly_spaced, photo_folder, sample_photos
from vitrail.install import here


def save(path: Path, colour: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), (colour % 256, colour // 256, 7)).save(path)
    return path


# --- the sample set -----------------------------------------------------------------------------


def test_sample_photos_exist_decode_and_say_what_they_are():
    sample = sample_photos()
    assert sample == sample_photos()
    assert len(sample.paths) == len(set(sample.paths)) == len(SAMPLES)
    for path in sample.paths:
        assert Path(path).is_absolute()
        assert min(decode(path).size) >= 300
    assert f"{len(SAMPLES)} sample photos" in sample.evidence
    assert "weaker evidence" in sample.evidence
    assert len(sample.digest) == 64


def test_each_sample_photo_states_license_and_origin():
    for sample in SAMPLES.values():
        assert sample.license in ("CC0", "CC-BY-2.0", "public domain", "no known copyright restrictions")
        assert sample.origin


def test_finding_the_sample_imports_neither_the_packages_nor_pillow():
    script = (
        "import sys\n"
        "from vitrail.images.photos import sample_photos\n"
        "sample_photos()\n"
        "print([name for name in ('sklearn', 'skimage', 'PIL', 'torch') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("package", ["sklearn", "skimage"])
def test_a_missing_package_names_its_install_line(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError) as error:
        sample_photos()
    assert error.value.install == here('pip install "vitrail[workbench]"')
    assert photos.PACKAGES[package] in str(error.value)


def test_a_photo_that_a_package_lacks_is_named(monkeypatch):
    lost = photos.SamplePhoto(package="skimage", file="data/lost.png", license="CC0", origin="nowhere")
    monkeypatch.setitem(SAMPLES, "lost", lost)
    assert "not in the installed packages: lost" in sample_photos().evidence


# --- a folder of photos -------------------------------------------------------------------------


def test_a_folder_is_searched_deeply_and_sorted(tmp_path):
    for number, name in enumerate(["b.JPG", "a.png", "sub/deep/c.webp", "sub/d.tiff", "e.gif", "f.bmp"]):
        save(tmp_path / name, number)
    (tmp_path / "notes.txt").write_text("not a photo")
    found = photo_folder(tmp_path)
    names = [Path(path).relative_to(tmp_path).as_posix() for path in found.paths]
    assert names == ["a.png", "b.JPG", "e.gif", "f.bmp", "sub/d.tiff", "sub/deep/c.webp"]
    assert found.name == tmp_path.name
    assert found.evidence == f"6 photos in {tmp_path}"


def test_the_digest_follows_the_contents_alone(tmp_path):
    first, second = tmp_path / "one", tmp_path / "two"
    for number in range(3):
        save(first / f"{number}.png", number)
        save(second / f"renamed-{9 - number}.png", number)
    assert photo_folder(first).digest == photo_folder(second).digest
    save(second / "renamed-9.png", 77)
    assert photo_folder(first).digest != photo_folder(second).digest
    (first / "2.png").unlink()
    assert photo_folder(first).digest != photo_folder(second).digest


def test_unreadable_photos_are_named(tmp_path):
    save(tmp_path / "good.png")
    whole = save(tmp_path / "cut.png", 3).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    found = photo_folder(tmp_path)
    assert [Path(path).name for path in found.paths] == ["good.png"]
    assert found.evidence.endswith("3 unreadable left out: cut.png, empty.jpg, gone.jpg")
    (tmp_path / "good.png").unlink()
    with pytest.raises(InputError, match=r"cut\.png, empty\.jpg, gone\.jpg"):
        photo_folder(tmp_path)


def test_many_unreadable_photos_are_counted(tmp_path):
    save(tmp_path / "good.png")
    for number in range(photos.NAMED_UNREADABLE + 5):
        (tmp_path / f"bad{number:02}.jpg").touch()
    assert "15 unreadable" in photo_folder(tmp_path).evidence
    assert "and 5 more" in photo_folder(tmp_path).evidence


def test_links_are_followed_and_loops_end(tmp_path):
    save(tmp_path / "elsewhere" / "x.png")
    root = tmp_path / "root"
    save(root / "y.png", 5)
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "loop").symlink_to(root)
    (root / "z.png").symlink_to(root / "y.png")
    names = [Path(path).name for path in photo_folder(root).paths]
    assert names == ["x.png", "y.png", "z.png"]


def test_too_many_photos_are_thinned_evenly(tmp_path, monkeypatch):
    monkeypatch.setattr(photos, "MAX_PHOTOS", 4)
    for number in range(10):
        save(tmp_path / f"{number}.png", number)
    found = photo_folder(tmp_path)
    assert [Path(path).stem for path in found.paths] == ["0", "2", "5", "7"]
    assert "4 of 10 evenly spaced" in found.evidence


@given(count=st.integers(0, 3000), limit=st.integers(1, 600))
def test_even_spacing(count, limit):
    items = [str(number) for number in range(count)]
    chosen = [int(item) for item in evenly_spaced(items, limit)]
    assert len(chosen) == min(count, limit)
    gaps = {after - before for before, after in pairwise(chosen)}
    assert all(gap >= 1 for gap in gaps)
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_folders_that_are_none(tmp_path):
    (tmp_path / "file.png").touch()
    (tmp_path / "empty").mkdir()
    for path, expected in [
        (tmp_path / "missing", "does not exist"),
        (tmp_path / "file.png", "is not a folder"),
        (tmp_path / "empty", "holds no photos"),
    ]:
        with pytest.raises(InputError, match=expected) as error:
            photo_folder(path)
        assert str(path) in str(error.value)


# --- labels -------------------------------------------------------------------------------------

LABEL = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1).map(str.strip).filter(bool)


@given(labels=st.lists(LABEL, min_size=1, unique=True), newline=st.sampled_from(["\n", "\r\n"]))
def test_labels_survive_both_forms(labels, newline, tmp_path_factory):
    folder = tmp_path_factory.mktemp("labels")
    lines = [label for label in labels if not label.startswith("\ufeff")]
    (folder / "a.json").write_text(json.dumps(labels), encoding="utf-8")
    assert read_labels(folder / "a.json") == tuple(labels)
    if lines:
        (folder / "a.txt").write_bytes(newline.join(lines).encode())
        assert read_labels(str(folder / "a.txt")) == tuple(lines)
        (folder / "a.txt").write_bytes((newline.join(lines) + newline).encode("utf-8-sig"))
        assert read_labels(folder / "a.txt") == tuple(lines)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", b"cat\n\ndog\n", "empty label at line 2"),
        ("a.txt", b"cat\ndog\n cat \n", '"cat" at lines 1 and 3'),
        ("a.txt", b"", "no labels"),
        ("a.txt", b" \n\n", "no labels"),
        ("a.txt", b"caf\xe9\n", "UTF-8"),
        ("a.json", b'["cat", "cat"]', '"cat" at items 1 and 2'),
        ("a.json", b'["cat", " "]', "empty label at item 2"),
        ("a.json", b'{"0": "cat"}', "list of strings"),
        ("a.json", b'["cat", 3]', "list of strings"),
        ("a.json", b"[]", "no labels"),
        ("a.json", b"cat\ndog", "not JSON"),
        ("a.json", b"[" * 100_000, "not JSON"),
    ],
)
def test_label_files_that_are_wrong(tmp_path, name, content, expected):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=expected) as error:
        read_labels(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_label_paths_that_are_no_files(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_labels(tmp_path / "missing.txt")
    with pytest.raises(InputError, match="is a folder"):
        read_labels(tmp_path)

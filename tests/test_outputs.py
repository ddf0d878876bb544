"""What commands write, whatever names and terminals they meet, and before whatever ends them. About 15 s."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from artifacts import make_artifact
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from selections import selection

from vitrail import predict as prediction
from vitrail.cli import main
from vitrail.document import to_json_bytes
from vitrail.errors import ClaimError
from vitrail.words import counted, shown, utf8, utf8_all

STRANGE = [
    b"bad\xff.png",
    "größe 猫.png".encode(),
    b"two\nlines.png",
    b"\x1b[31mred\x1b[0m.png",
    b"plain.png",
]
"""Not UTF-8, not ASCII, with a line break, with what turns a terminal red."""

SHOWN = ["\\x1b[31mred\\x1b[0m.png", "bad\\xff.png", "größe 猫.png", "plain.png", "two\\nlines.png"]
"""How they are written, sorted."""


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    return make_artifact(tmp_path_factory.mktemp("outputs"), batch_size=2)


@pytest.fixture
def strange(tmp_path) -> Path:
    """A folder of images with all of these names."""
    folder = tmp_path / "strange"
    folder.mkdir()
    for seed, name in enumerate(STRANGE):
        pixels = np.random.default_rng(seed).integers(0, 256, (20, 20, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "new.png")
        os.rename(folder / "new.png", os.path.join(os.fsencode(folder), name))
    return folder


def vitrail(*arguments, encoding: str = "utf-8:strict", **options) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    command = [sys.executable, "-m", "vitrail", *map(os.fsencode, arguments)]
    return subprocess.run(command, capture_output=True, timeout=60, env=environment, **options)


# --- names --------------------------------------------------------------------------------------


@given(st.text(st.characters(categories=("L", "N", "P", "S", "Cc", "Cs", "Zl", "Zp", "Zs", "Cf"))))
def test_a_shown_text_is_one_line_that_no_terminal_obeys(text):
    line = shown(text)
    assert line.splitlines() in ([], [line])
    assert not any(sign < " " or "\x7f" <= sign <= "\x9f" for sign in line)
    assert "\u202e" not in line
    line.encode("utf-8")
    assert shown(line) == line
    utf8(text).encode("utf-8")
    assert utf8(text) == text.encode("utf-8", "backslashreplace").decode().replace("\\udc", "\\x") or any(
        "\ud800" <= sign < "\udc80" or "\udcff" < sign <= "\udfff" or sign == "\\" for sign in text
    )


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("größe 猫 👩‍🔬", "größe 猫 👩‍🔬"),
        ("C:\\new", "C:\\new"),
        ("a\nb\tc\rd", "a\\nb\\tc\\rd"),
        ("\x1b[2J\x07\x7f\x9b", "\\x1b[2J\\x07\\x7f\\x9b"),
        (os.fsdecode(b"\xff\x80"), "\\xff\\x80"),
        ("\ud83d", "\\ud83d"),
        ("gpj.\u202eexe", "gpj.\\u202eexe"),
        ("a\u2028b", "a\\u2028b"),
    ],
)
def test_shown_texts(text, line):
    assert shown(text) == line


def test_texts_in_a_value_become_utf8_and_the_rest_stays():
    value = {"a\udcff": ["\udcfe", ("x", 1, None, True)], "b": {"c": 2.5}}
    assert utf8_all(value) == {"a\\xff": ["\\xfe", ["x", 1, None, True]], "b": {"c": 2.5}}


def test_counts_have_their_plural():
    assert [counted(n, "model") for n in (0, 1, 2)] == ["0 models", "1 model", "2 models"]
    assert counted(1, "class", "classes") == "1 class"
    assert counted(3, "class", "classes") == "3 classes"


# --- predict, all ways, all names ---------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8:strict", "ascii:strict"])
def test_predict_writes_all_names_as_json_and_csv_and_text(artifact, strange, tmp_path, encoding):
    files = [tmp_path / "out.json", tmp_path / "out.csv"]
    written = ("--json", files[0], "--csv", files[1])
    done = vitrail("predict", artifact.path, strange, *written, encoding=encoding)
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""
    document = json.loads(files[0].read_bytes())
    names = [Path(row["image"]).name for row in document["predictions"]]
    # JSON escapes control characters itself, so that only what is no UTF-8 is changed.
    assert sorted(map(shown, names)) == SHOWN
    assert "two\nlines.png" in names
    assert (document["images"], document["failed"], document["complete"]) == (5, 0, True)
    lines = files[1].read_text(encoding="utf-8").split("\n")
    assert len(lines) == 1 + 5 + 1
    assert sorted(Path(row["image"]).name for row in csv.DictReader(lines)) == SHOWN
    done = vitrail("predict", artifact.path, strange, encoding=encoding)
    text = done.stdout.decode(encoding.partition(":")[0])
    heads = [Path(line).name for line in text.split("\n") if line.startswith("/")]
    assert len(heads) == 5
    assert b"\x1b" not in done.stdout
    if encoding.startswith("utf-8"):
        assert sorted(heads) == SHOWN
    for option in ("--json", "--csv"):
        alone = vitrail("predict", artifact.path, strange, option, "-", encoding=encoding)
        assert alone.stdout == files[option == "--csv"].read_bytes()


def test_a_file_in_no_folder_is_refused_before_any_work(artifact, tmp_path, capsys):
    for option in ("--json", "--csv"):
        assert main(["predict", "no artifact", "no image", option, str(tmp_path / "none" / "file")]) == 2
        assert f"There is no folder {tmp_path / 'none'} for {option}" in capsys.readouterr().err


def test_csv_has_a_row_for_each_image_and_columns_for_each_rank(artifact, tmp_path, capsys):
    good, bad = str(artifact.photos[0]), tmp_path / "bad.png"
    bad.write_bytes(b"cut")
    assert main(["predict", str(artifact.path), good, str(bad), good, "--top", "2", "--csv", "-"]) == 1
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert list(rows[0]) == ["image", "error", "label_1", "probability_1", "label_2", "probability_2"]
    first, second = prediction.load(artifact.path).predict(good, top=2)[0].top
    assert rows[0] == rows[2] == {
        "image": good, "error": "", "label_1": first.label, "probability_1": f"{first.probability:.6g}",
        "label_2": second.label, "probability_2": f"{second.probability:.6g}",
    }  # fmt: skip
    assert "bad.png" in rows[1]["error"]
    assert (rows[1]["label_1"], rows[1]["probability_2"]) == ("", "")


@pytest.mark.parametrize(("error", "code"), [(ClaimError("Broken."), 3), (KeyboardInterrupt(), 130)])
def test_what_was_computed_before_an_error_is_written(artifact, tmp_path, monkeypatch, capsys, error, code):
    """The engine fails in the third batch, as on Ctrl-C: four images are in the files."""
    calls = []
    real = prediction.Predictor.run

    def run(self, batch):
        calls.append(len(batch))
        if len(calls) == 3:
            raise error
        return real(self, batch)

    monkeypatch.setattr(prediction.Predictor, "run", run)
    photos = [str(artifact.photos[0])] * 8
    files = [tmp_path / "out.json", tmp_path / "out.csv"]
    arguments = ["--json", str(files[0]), "--csv", str(files[1])]
    assert main(["predict", str(artifact.path), *photos, *arguments]) == code
    document = json.loads(files[0].read_text())
    assert (document["images"], document["complete"], len(document["predictions"])) == (8, False, 4)
    assert len(files[1].read_text().splitlines()) == 1 + 4
    assert capsys.readouterr().out.startswith("4 images → ")


def test_images_come_a_batch_at_a_time(artifact, tmp_path, monkeypatch):
    """A folder of any size is never held at once: some batches are prepared ahead, and no more."""
    folder = tmp_path / "many"
    folder.mkdir()
    for index in range(30):
        shutil.copy(artifact.photos[0], folder / f"{index}.png")
    begun, done, ahead = [], [], []
    prepare, run = prediction.Predictor.prepare, prediction.Predictor.run

    def preparing(self, sources, **options):
        begun.append(sources)
        return prepare(self, sources, **options)

    def running(self, inputs):
        done.append(len(inputs["images"]))
        ahead.append(len(begun) - sum(done))
        return run(self, inputs)

    monkeypatch.setattr(prediction.Predictor, "prepare", preparing)
    monkeypatch.setattr(prediction.Predictor, "run", running)
    monkeypatch.setattr(prediction, "usable_cores", lambda: 1)
    assert main(["predict", str(artifact.path), str(folder)]) == 0
    assert done == [2] * 15
    assert max(ahead) <= prediction.AHEAD * 2 + 1 + 1


def test_sources_of_predict(artifact, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for index, name in enumerate(("a/0.png", "a/b/1.jpg", "2.png")):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(artifact.photos[index % len(artifact.photos)], name)
    Path("a/notes.txt").write_text("no image")

    def images(*arguments, code=0, **options):
        done = vitrail("predict", artifact.path, *arguments, "--json", "-", **options)
        assert done.returncode == code, done.stderr
        return [row["image"] for row in json.loads(done.stdout)["predictions"]]

    assert images("a", "2.png") == ["a/0.png", "a/b/1.jpg", "2.png"]
    assert images("**/*.png") == ["2.png", "a/0.png"]
    assert images("a/0.png", "none", "*.gif", code=1) == ["a/0.png", "none", "*.gif"]
    assert images("-", input=artifact.photos[0].read_bytes()) == ["-"]
    assert images("a/0.png", "-", code=1, input=b"no image") == ["a/0.png", "-"]
    for listed in (b"a/0.png\n2.png\r\n\n", b"a/0.png\x002.png\x00"):
        assert images("--files-from", "-", input=listed) == ["a/0.png", "2.png"]
    Path("list").write_bytes(b"a\n")
    assert images("2.png", "--files-from", "list") == ["2.png", "a/0.png", "a/b/1.jpg"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "nothing to classify"),
        (["-", "-"], "use - once"),
        (["-", "--files-from", "-"], "use - once"),
        (["a.png", "--csv", "-", "--json", "-"], "would both write"),
        (["--files-from", "nowhere"], "nowhere cannot be read"),
        (["--files-from", "/dev/null"], "names no image"),
        (["a.png", "--csv", "/"], "is a folder"),
        (["a.png", "--csv", "/nowhere/a/b.csv", "--threads", "99999"], "whole number"),
        (["a.png", "--threads", "0"], "whole number"),
    ],
)
def test_wrong_use_of_predict(artifact, capsys, arguments, said):
    assert main(["predict", str(artifact.path), *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert err.count("\n") == 1


def test_a_progress_bar_is_for_terminals_only(artifact):
    photos = [str(artifact.photos[0])] * 4
    command = [sys.executable, "-m", "vitrail", "predict", str(artifact.path), *photos]
    terminal, other = pty.openpty()
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=other, timeout=60)
        os.close(other)
        drawn = b""
        while chunk := _read(terminal):
            drawn += chunk
    finally:
        os.close(terminal)
    assert done.returncode == 0
    assert b"4/4" in drawn
    assert done.stdout == subprocess.run(command, capture_output=True, timeout=60).stdout
    assert b"\x1b" not in done.stdout


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # Linux says so when the other end is closed
        return b""


# --- the other commands -------------------------------------------------------------------------


def test_data_leaves_out_a_name_that_is_no_utf8_and_writes_the_rest(strange, tmp_path):
    for label in ("cat", "dog"):
        shutil.copytree(os.fsencode(strange), os.fsencode(tmp_path / "set" / label))
        for index, name in enumerate(os.listdir(tmp_path / "set" / label)):
            pixels = np.random.default_rng([index, ord(label[0])]).integers(0, 256, (9, 9), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "set" / label / name)
    for encoding in ("ascii:strict", "utf-8:strict"):
        done = vitrail("data", tmp_path / "set", "--json", "-", encoding=encoding)
        assert done.returncode == 1, done.stderr
        document = msgspec.json.decode(done.stdout)  # stricter than Python's own reader
        assert document["images"] == 8
        assert [Path(item["path"]).name for item in document["broken"]] == ["bad\\xff.png"] * 2
        text = vitrail("data", tmp_path / "set", encoding=encoding)
        assert text.returncode == 1
        assert b"bad\\xff.png is not UTF-8" in text.stdout
        assert text.stdout.count(b"bad\\xff.png") == 2  # once a file


def test_a_selection_is_written_whatever_its_paths():
    made = selection()
    made = replace(made, workload=replace(made.workload, images="photos\udcff"))
    assert json.loads(to_json_bytes(made))["workload"]["images"] == "photos\\xff"


def test_an_error_with_a_strange_name_is_one_line(capsys):
    assert main(["data", "no\nwhere\x1b[31m\udcff"]) == 2
    err = capsys.readouterr().err
    assert "no\\nwhere\\x1b[31m\\xff does not exist" in err
    assert err.count("\n") == 1


def test_options_may_stand_before_between_and_behind_the_images(artifact, tmp_path, capsys):
    photo = str(tmp_path / "photo.png")
    Image.new("RGB", (40, 30), (200, 10, 10)).save(photo)
    answers = []
    for order in (
        [str(artifact.path), photo, photo, "--top", "1", "--csv", "-"],
        [str(artifact.path), "--top", "1", photo, photo, "--csv", "-"],
        ["--csv", "-", str(artifact.path), photo, "--top", "1", photo],
    ):
        assert main(["predict", *order]) == 0
        answers.append(capsys.readouterr().out)
    assert len(answers[0].splitlines()) == 3
    assert len(set(answers)) == 1

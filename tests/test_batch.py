"""Batch jobs: every input ends once, whatever happens meanwhile. About 10 s."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import artifacts
import pytest

from vitrail.batch import job, plan
from vitrail.batch.records import Input
from vitrail.batch.request import Request
from vitrail.batch.shard import Work
from vitrail.errors import InputError
from vitrail.predict import load

pytest.importorskip("pyarrow", reason="needs the extra parquet")

from batches import COUNT, SHARD, batch, make_originals, rows


@pytest.fixture(scope="module")
def winner(tmp_path_factory) -> str:
    return str(artifacts.make_artifact(tmp_path_factory.mktemp("batch")).path)


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> Path:
    return make_originals(tmp_path_factory.mktemp("originals") / "photos")


@pytest.fixture
def photos(originals, tmp_path) -> Path:
    return shutil.copytree(originals, tmp_path / "photos")


# --- results ------------------------------------------------------------------------------------


def test_every_image_of_a_folder_has_one_row_with_what_predict_says(winner, photos, tmp_path, capsys):
    assert batch(winner, photos, tmp_path / "out", "--top", 3) == 1
    said = capsys.readouterr().out
    assert "21 inputs → 20 rows" in said
    assert "1 error in" in said
    assert "(1 damaged)" in said
    found = rows(tmp_path / "out")
    assert [row["path"] for row in found] == sorted(
        f"photo{k}.{'JPG' if k == 1 else 'png'}" for k in range(COUNT)
    )
    with load(winner, threads=1) as predictor:
        expected = predictor.predict([photos / row["path"] for row in found], top=3)
    for row, prediction in zip(found, expected, strict=True):
        assert row["label"] == prediction.label == row["labels"][0]
        assert row["labels"] == [ranked.label for ranked in prediction.top]
        assert row["probabilities"] == pytest.approx([r.probability for r in prediction.top], abs=1e-6)
        assert row["probability"] == row["probabilities"][0]
        assert row["sha256"] == hashlib.sha256((photos / row["path"]).read_bytes()).hexdigest()
        assert row["artifact"] == json.loads((Path(winner) / "manifest.json").read_text())["digest"]
    (failed,) = rows(tmp_path / "out", "errors")
    assert (failed["path"], failed["reason"]) == ("cut.png", "damaged")
    assert str(photos / "cut.png") in failed["error"]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["inputs"], summary["results"], summary["errors"]) == (21, 20, {"damaged": 1})
    assert set(summary["busy"]) == {"read", "decode", "model", "write"}
    assert all(0 <= share <= 1 for share in summary["busy"].values())
    assert summary["busy"]["decode"] > 0
    assert summary["held_back_by"] in summary["busy"]


def test_all_formats_say_the_same(winner, photos, tmp_path):
    for format in ("parquet", "jsonl", "csv"):
        assert batch(winner, photos, tmp_path / format, "--format", format, "--top", 2) == 1
    table = rows(tmp_path / "parquet")
    lines = [
        json.loads(line)
        for part in (tmp_path / "jsonl" / "results").iterdir()
        for line in part.read_text(encoding="utf-8").splitlines()
    ]
    assert sorted(lines, key=lambda row: row["path"]) == table
    cells = [
        row
        for part in (tmp_path / "csv" / "results").iterdir()
        for row in csv.DictReader(part.open(encoding="utf-8", newline=""))
    ]
    for row, cell in zip(table, sorted(cells, key=lambda row: row["path"]), strict=True):
        assert [cell["labels_1"], cell["labels_2"]] == row["labels"]
        assert float(cell["probabilities_2"]) == row["probabilities"][1]
        assert (cell["label"], cell["sha256"]) == (row["label"], row["sha256"])


def test_unsure_answers_are_unknown_and_images_are_linked_by_label(winner, photos, tmp_path, capsys):
    (photos / "photo3.png").rename(photos / "ünï\ncode.png")
    raw = os.fsencode(photos) + b"/raw\xff.png"
    os.rename(photos / "photo4.png", raw)
    folder = tmp_path / "sorted"
    for _ in range(2):  # the links of the first time may be there
        assert batch(winner, photos, tmp_path / "out", "--min-confidence", 90, "--sort-into", folder) == 1
    found = rows(tmp_path / "out")
    assert 0 < sum(row["label"] == "unknown" for row in found) < COUNT
    for row in found:
        assert (row["label"] == "unknown") == (row["probability"] < 0.9)
        name = row["path"].replace("\\xff", "\udcff")
        link = folder / row["label"].replace("\x0c", "_") / name
        assert os.path.realpath(link) == os.path.realpath(photos / name)
    assert sum(path.is_symlink() for path in folder.rglob("*")) == COUNT
    assert batch(winner, photos, tmp_path / "new", "--sort-into", folder) == 2
    assert "holds other files" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_an_image_whose_shard_was_done_again_is_in_one_folder(winner, photos, tmp_path):
    out, folder = tmp_path / "out", tmp_path / "sorted"
    assert batch(winner, photos, out, "--sort-into", folder) == 1
    label = {row["path"]: row["label"].replace("\x0c", "_") for row in rows(out)}
    other = next(path for path in label if label[path] != label["photo0.png"])
    (folder / "curated").mkdir()
    os.symlink(photos / "photo0.png", folder / "curated" / "photo0.png")  # somebody's own
    shutil.copy(photos / other, photos / "photo0.png")
    for part in (out / "results").iterdir():
        part.unlink()
    assert batch(winner, photos, out, "--sort-into", folder) == 1
    links = sorted(str(path.relative_to(folder)) for path in folder.rglob("photo0.png"))
    assert links == sorted(["curated/photo0.png", f"{label[other]}/photo0.png"])
    assert sum(path.is_symlink() for path in folder.rglob("*")) == COUNT + 1
    (photos / other).unlink()
    for part in (out / "results").iterdir():
        part.unlink()
    assert batch(winner, photos, out, "--sort-into", folder) == 1  # an error now: in no folder
    assert other not in {path.name for path in folder.rglob("*")}


def test_two_spellings_of_a_path_do_not_collide(winner, photos, tmp_path, capsys):
    (photos / "a").mkdir()
    shutil.copy(photos / "photo2.png", photos / "a" / "b.png")
    shutil.copy(photos / "photo2.png", photos / "b.png")
    names = ["a/b.png", "a/../b.png", "b.png", "./b.png", str(photos / "b.png")]
    (photos / "list.csv").write_text("\n".join(["path", *names]))
    for _ in range(2):
        assert batch(winner, photos / "list.csv", tmp_path / "out", "--sort-into", tmp_path / "sorted") == 0
    (label,) = {row["label"].replace("\x0c", "_") for row in rows(tmp_path / "out")}
    found = {
        str(path.relative_to(tmp_path / "sorted" / label)): os.path.realpath(path)
        for path in (tmp_path / "sorted" / label).rglob("*.png")
    }
    (odd,) = set(found) - {"a/b.png", "b.png"}
    assert odd.startswith("b~")
    assert found["a/b.png"] == os.path.realpath(photos / "a" / "b.png")
    assert found["b.png"] == found[odd] == os.path.realpath(photos / "b.png")
    assert batch(winner, photos, tmp_path / "x", "--sort-into", tmp_path / "x") == 2
    assert "is the folder of --out" in capsys.readouterr().err


def test_labels_become_different_folders():
    from vitrail.batch.sorting import folder_names

    labels = ["a/b", "a_b", "A_B", ".", "..", "x" * 300, "x" * 301, "ok"]
    names = folder_names(labels)
    assert len({name.casefold() for name in names.values()}) == len(labels)
    for name in names.values():
        assert "/" not in name
        assert not name.startswith(".")
        assert len(name.encode()) < 250
    assert names["ok"] == "ok"


# --- bad input ----------------------------------------------------------------------------------


def test_an_empty_folder_leaves_nothing_behind(winner, tmp_path, capsys):
    (tmp_path / "none").mkdir()
    assert batch(winner, tmp_path / "none", tmp_path / "a" / "b" / "out") == 2
    assert "holds no images" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()
    assert batch(winner, tmp_path / "nowhere", tmp_path / "out") == 2
    assert "does not exist" in capsys.readouterr().err
    (tmp_path / "out").mkdir()
    assert batch(winner, tmp_path / "none", tmp_path / "out") == 2
    assert list((tmp_path / "out").iterdir()) == []


def test_a_folder_with_other_files_is_refused(winner, photos, tmp_path, capsys):
    assert batch(winner, photos, photos) == 2
    assert "holds other files" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert batch(winner, photos, tmp_path / "file") == 2
    assert "is a file, not a folder" in capsys.readouterr().err
    assert len(list(photos.iterdir())) == COUNT + 1


def files(folder) -> dict[str, bytes | None]:
    """All below a folder; None: a folder."""
    return {
        str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes()
        for path in Path(folder).rglob("*")
    }


@pytest.mark.parametrize(
    "name",
    [
        "results/mine.csv",
        "results/part-0.parquet",
        "errors/log.txt",
        "list/0001.jsonl",
        "list/names.txt",
        "done/a.json",
        "summary.json",
        ".lock",
    ],
)
@pytest.mark.parametrize("left", [False, True])
def test_folders_that_only_have_our_names_are_refused_and_kept(winner, photos, tmp_path, name, left, capsys):
    """`left`: a job that never began was there before."""
    out = tmp_path / "exp"
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text("mine")
    if left and name != ".lock":
        (out / ".lock").write_text("process 1 on here\n")
    before = files(out)
    source = photos if left else tmp_path / "nothing"
    source.mkdir(exist_ok=True)
    code = batch(winner, source, out)
    if left and name == "list/0001.jsonl":  # as a killed job leaves it
        assert code == 1
        return
    assert code == 2
    assert "holds other files" in capsys.readouterr().err
    assert files(out) == before


def test_what_a_job_that_never_began_has_left_is_no_obstacle(winner, photos, tmp_path, capsys):
    out = tmp_path / "out"
    for folder in ("list", "results", "errors", "done"):
        (out / folder).mkdir(parents=True)
    (out / ".lock").write_text("")
    (out / "list" / ".vitrail-0123456789abcdef.sqlite").write_text("half")
    (out / ".vitrail-0123456789abcdef.tmp").write_text("half")
    assert batch(winner, photos, out) == 1
    assert len(rows(out)) == COUNT
    assert not list(out.rglob(".vitrail-*"))


def test_a_source_inside_of_out_keeps_its_images(winner, photos, tmp_path, capsys):
    out = tmp_path / "exp"
    out.mkdir()
    photos.rename(out / "results")
    assert batch(winner, out / "results", out) == 2
    assert "holds other files (results)" in capsys.readouterr().err
    assert len(list((out / "results").iterdir())) == COUNT + 1


def test_what_the_job_writes_into_its_own_source_is_no_input(winner, photos, tmp_path):
    places = (photos / "out", "--sort-into", photos / "sorted")
    assert batch(winner, photos, *places) == 1
    assert batch(winner, photos, *places) == 1
    assert len(rows(photos / "out")) == COUNT
    shutil.rmtree(photos / "out")
    shutil.rmtree(photos / "sorted")


def test_links_to_nowhere_to_themselves_and_to_folders_above(winner, photos, tmp_path):
    os.symlink("nowhere.jpg", photos / "gone.jpg")
    os.symlink("self.jpg", photos / "self.jpg")
    os.symlink("..", photos / "up")
    os.symlink(".", photos / "loop")
    os.mkfifo(photos / "pipe.jpg")
    (photos / "folder.jpg").mkdir()
    assert batch(winner, photos, tmp_path / "out") == 1
    reasons = {row["path"]: row["reason"] for row in rows(tmp_path / "out", "errors")}
    assert reasons.pop("cut.png") == "damaged"
    assert reasons == {"gone.jpg": "missing", "self.jpg": "unreadable", "pipe.jpg": "not a file"}
    assert len(rows(tmp_path / "out")) == COUNT


def test_what_may_not_be_read_or_listed_is_an_error_row(winner, photos, tmp_path, monkeypatch):
    """Tests may run as root, who may everything."""
    (photos / "private").mkdir()
    real_scan, real_stat = os.scandir, os.stat

    def scandir(path):
        if str(path).endswith("private"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real_scan(path)

    def stat(path, *arguments, **options):
        if str(path).endswith("photo3.png"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real_stat(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", scandir)
        patch.setattr(os, "stat", stat)
        assert batch(winner, photos, tmp_path / "out") == 1
    reasons = {row["path"]: row["reason"] for row in rows(tmp_path / "out", "errors")}
    assert reasons == {"cut.png": "damaged", "private": "unreadable", "photo3.png": "unreadable"}
    assert len(rows(tmp_path / "out")) == COUNT - 1


def test_nothing_usable_is_exit_code_2(winner, tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("text")
    assert batch(winner, tmp_path / "photos", tmp_path / "out") == 2
    said = capsys.readouterr()
    assert "0 rows" in said.out
    assert "No input has a result" in said.err
    assert [row["reason"] for row in rows(tmp_path / "out", "errors")] == ["unsupported"]


def test_an_interrupted_job_says_that_the_same_command_goes_on(winner, photos, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    assert batch(winner, photos, out) == 1
    assert "done before" not in capsys.readouterr().out
    next((out / "done").iterdir()).unlink()
    with monkeypatch.context() as patch:
        patch.setattr(Work, "run", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
        assert batch(winner, photos, out) == 130
    assert f"{out} keeps all finished parts: the same command goes on" in capsys.readouterr().err
    assert batch(winner, photos, out) == 1
    assert re.search(r"^\d+ done before, [36] done in 0:0\d, ", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--min-confidence", "0.5"], "may be a fraction"),
        (["--min-confidence", "200"], "from 0 to 100"),
        (["--top", "0"], "whole number"),
        (["--shard-size", "0"], "whole number"),
        (["--root", "."], "--root is about the paths of a manifest"),
    ],
)
def test_wrong_options(winner, photos, tmp_path, options, said, capsys):
    assert batch(winner, photos, tmp_path / "out", *options) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_numbers_that_are_not_finite_fail_one_image_alone(winner, photos, tmp_path, monkeypatch):
    from vitrail.predict import Predictor

    real, calls = Predictor.run, []

    def run(self, inputs):
        outputs = real(self, inputs)
        calls.append(None)
        if len(calls) == 3:
            outputs["scores"][1, 0] = float("nan")
        return outputs

    monkeypatch.setattr(Predictor, "run", run)
    assert batch(winner, photos, tmp_path / "out") == 1
    assert sorted(row["reason"] for row in rows(tmp_path / "out", "errors")) == ["damaged", "no answer"]
    assert len(rows(tmp_path / "out")) == COUNT - 1


# --- listing ------------------------------------------------------------------------------------


class Many:
    """A source of any number of names, in no order."""

    ordered = False

    def __init__(self, count: int) -> None:
        self.count = count

    def listed(self):
        return (Input(f"{k * 7919 % self.count:08}.jpg") for k in range(self.count))


@pytest.mark.slow
def test_listing_takes_no_memory_for_what_it_lists(tmp_path):
    import tracemalloc

    peaks = []
    for count in (5_000, 40_000):
        (tmp_path / str(count) / "list").mkdir(parents=True)
        tracemalloc.start()
        listed = plan.extend(tmp_path / str(count), Many(count), 100)
        shards = inputs = 0
        for shard in plan.shards(tmp_path / str(count)):
            shards, inputs = shards + 1, inputs + len(shard.inputs)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert (listed.new, shards, inputs) == (count, count // 100, count)
        assert plan.count(tmp_path / str(count)) == (count // 100, count)
    assert peaks[1] < 1.2 * peaks[0]


def test_a_pattern_names_files_and_folders(winner, photos, tmp_path):
    (photos / "sub").mkdir()
    (photos / "photo2.png").rename(photos / "sub" / "photo2.png")
    for pattern, count in (("photo1*.png", 10), ("**/*2.png", 2), ("s*", 1)):
        out = tmp_path / f"out{count}"
        assert batch(winner, photos / pattern, out) == 0
        assert len(rows(out)) == count
    assert [row["path"] for row in rows(tmp_path / "out2")] == ["photo12.png", "sub/photo2.png"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a*", ["a/1.png", "a/sub/2.png"]),  # ab is a link to a
        ("*", ["0.png", "a/1.png", "a/sub/2.png"]),
        ("*.png", ["0.png"]),
        ("*/*.png", ["a/1.png", "loop/0.png"]),
        ("**/*.png", ["0.png", "a/1.png", "a/sub/2.png"]),
        ("**", ["0.png", "a/1.png", "a/sub/2.png"]),
        ("**/sub/*", ["a/sub/2.png"]),
        ("**/ab/*.png", ["ab/1.png"]),  # found behind the one name that matches
        ("**/s*", []),  # behind ** files match by themselves
        ("*/**/2*", ["a/sub/2.png"]),
        ("*/sub", ["a/sub/2.png"]),
    ],
)
def test_a_pattern_names_each_image_once(tmp_path, pattern, expected):
    from vitrail.batch.sources import open_source

    (tmp_path / "a" / "sub").mkdir(parents=True)
    for name in ("0.png", "a/1.png", "a/sub/2.png", "a/.hidden.png", "a/notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    os.symlink("a", tmp_path / "ab")
    os.symlink(".", tmp_path / "loop")
    found = [given.name for given in open_source(str(tmp_path / pattern)).listed()]
    assert sorted(found) == expected


def test_a_pattern_enters_linked_folders_once_and_names_what_it_cannot_list(
    winner, photos, tmp_path, monkeypatch
):
    os.symlink(".", photos / "loop")
    (photos / "private").mkdir()
    real = os.scandir

    def scandir(path):
        if str(path).endswith("private"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert batch(winner, photos / "**" / "photo*", tmp_path / "out") == 1
    assert len(rows(tmp_path / "out")) == COUNT
    assert [row["path"] for row in rows(tmp_path / "out", "errors")] == ["private"]


def test_a_job_loads_no_torch_and_no_needless_libraries(winner, photos, tmp_path):
    code = (
        "import sys; from vitrail.cli import main; "
        f"code = main(['batch', {winner!r}, {str(photos)!r}, '--out', {str(tmp_path / 'o')!r}]); "
        "assert not {'torch', 'fsspec', 'ray', 'pandas'} & set(sys.modules); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr


def test_single_images_run_side_by_side_where_the_engine_and_the_graph_can(winner):
    from vitrail.artifact import open_artifact
    from vitrail.batch import settings

    def usual(artifact, threads):
        return settings.usual(artifact, threads=threads, workers=None, remote=False)

    artifact = open_artifact(winner)  # for two images a call, which is then kept
    assert (usual(artifact, 2).batch_size, usual(artifact, 2).engine) == (2, {})
    evidence = artifact.manifest.evidence
    evidence = replace(evidence, workload=replace(evidence.workload, batch_size=1))
    artifact = replace(artifact, manifest=replace(artifact.manifest, evidence=evidence))
    two, one = usual(artifact, 2), usual(artifact, 1)
    assert (two.batch_size, two.engine) == (4, {settings.IMAGES: "1"})
    assert (one.batch_size, one.engine) == (1, {})
    rows = list(settings.candidates(artifact, two, fixed_workers=True))
    assert [(row.batch_size, row.engine) for row in rows] == [
        (4, {settings.IMAGES: "1"}),
        (8, {}),
        (8, {settings.IMAGES: "1"}),
    ]
    (graph,) = artifact.manifest.graphs
    bound = replace(graph, inputs=tuple(replace(s, shape=(1, *s.shape[1:])) for s in graph.inputs))
    artifact = replace(artifact, manifest=replace(artifact.manifest, graphs=(bound,)))
    assert usual(artifact, 2).engine == {}


def test_settings_are_measured_and_kept(winner, photos, tmp_path, monkeypatch):
    from vitrail.batch import settings

    monkeypatch.setattr(settings, "MEASURED_FROM", 1)
    asked = Request(artifact=winner, source=str(photos), out=str(tmp_path / "out"), shard_size=SHARD)
    summary = job.run(asked)
    assert len(summary.tried) >= 2
    tried = [{k: v for k, v in row.items() if k != "images_per_second"} for row in summary.tried]
    assert summary.settings in tried
    monkeypatch.setattr(settings, "measured", None)
    again = job.run(asked)
    assert again.settings == summary.settings
    assert again.done_now == 0


def test_python_says_what_the_command_says(winner, photos, tmp_path):
    with pytest.raises(InputError, match="Unknown format 'xml'"):
        job.run(Request(artifact=winner, source=str(photos), out=str(tmp_path / "out"), format="xml"))
    with pytest.raises(InputError, match="--tops says nothing about"):
        job.run(Request(artifact=winner, source=str(photos), out=str(tmp_path / "out"), options={"tops": 1}))

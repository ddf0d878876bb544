"""Batch jobs: every input ends once, whatever happens meanwhile. About 10 s."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import artifacts
import pytest

from vitrail import store
from vitrail.batch import job, plan
from vitrail.batch.commit import locked
from vitrail.batch.records import Input
from vitrail.batch.request import Request
from vitrail.cli import main
from vitrail.errors import InputError
from vitrail.predict import load

pytest.importorskip("pyarrow", reason="needs the extra parquet")
import pyarrow.parquet as pq

COUNT = 20
SHARD = 6


@pytest.fixture(scope="module")
def winner(tmp_path_factory) -> str:
    return str(artifacts.make_artifact(tmp_path_factory.mktemp("batch")).path)


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("originals") / "photos"
    artifacts.make_photos(folder, COUNT)
    (folder / "cut.png").write_bytes((folder / "photo0.png").read_bytes()[:300])
    return folder


@pytest.fixture
def photos(originals, tmp_path) -> Path:
    return shutil.copytree(originals, tmp_path / "photos")


def batch(winner, source, out, *options) -> int:
    command = ["batch", winner, str(source), "--out", str(out), "--shard-size", str(SHARD), "--threads", "1"]
    return main([*command, *map(str, options)])


def rows(out, kind="results") -> list[dict]:
    """All rows of a finished Parquet job, by path."""
    found = [row for part in sorted((Path(out) / kind).glob("*.parquet")) for row in read(part)]
    return sorted(found, key=lambda row: row["path"])


def read(part: Path) -> list[dict]:
    return pq.ParquetFile(part).read().to_pylist()


def tree(out) -> dict[str, bytes]:
    """What a job leaves behind, but for times."""
    out = Path(out)
    kept = [path for kind in ("results", "errors", "done", "list") for path in (out / kind).rglob("*")]
    return {str(path.relative_to(out)): path.read_bytes() for path in kept}


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
    assert 0 < sum(summary["waited"].values()) <= 1.01


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


# --- interrupted --------------------------------------------------------------------------------


class Stop(Exception):
    """Ends a job in the middle."""


@pytest.mark.parametrize("after", range(0, 12, 2))
def test_a_job_that_was_stopped_goes_on_and_ends_like_any_other(winner, photos, tmp_path, monkeypatch, after):
    """Files are written whole, so it is enough to stop before each of the first writes."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert batch(winner, photos, whole) == 1
    written, replace = [], os.replace

    def stopping(source, target):
        if "broken" in str(target):
            written.append(target)
            if len(written) > after:
                raise Stop
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", stopping)
        with pytest.raises(Stop):
            batch(winner, photos, broken)
    assert not (broken / "summary.json").exists()
    assert batch(winner, photos, broken) == 1
    assert tree(broken) == tree(whole)


def test_a_full_disk_is_one_sentence_and_the_job_goes_on_afterwards(
    winner, photos, tmp_path, monkeypatch, capsys
):
    real, calls = os.fsync, []

    def full(handle):
        calls.append(handle)
        if len(calls) > 8:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert batch(winner, photos, tmp_path / "out") == 2
    assert "No space left" in capsys.readouterr().err
    assert not [path for path in (tmp_path / "out").rglob(f"{store.TEMPORARY}*") if path.suffix == ".tmp"]
    assert batch(winner, photos, tmp_path / "out") == 1
    assert batch(winner, photos, tmp_path / "whole") == 1
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


@pytest.mark.parametrize("kind", ["results", "errors", "done"])
@pytest.mark.parametrize("how", ["cut", "gone", "changed"])
def test_a_damaged_shard_is_done_again(winner, photos, tmp_path, kind, how, capsys):
    out = tmp_path / "out"
    assert batch(winner, photos, out) == 1
    before = tree(out)
    victim = sorted((out / kind).iterdir())[0]
    data = victim.read_bytes()
    if how == "gone":
        victim.unlink()
    else:
        victim.write_bytes(data[:-7] if how == "cut" else data[:20] + b"?" + data[21:])
    capsys.readouterr()
    assert batch(winner, photos, out) == 1
    again = "" if (kind, how) == ("done", "gone") else "1 shard done again"
    assert again in capsys.readouterr().out
    assert tree(out) == before


def test_a_damaged_list_is_refused(winner, photos, tmp_path, capsys):
    out = tmp_path / "out"
    assert batch(winner, photos, out) == 1
    (listed,) = (out / "list").iterdir()
    for data in (listed.read_bytes()[:-3], listed.read_bytes().replace(b"photo5", b"photoX"), b""):
        listed.write_bytes(data)
        assert batch(winner, photos, out) == 2
        assert "list of inputs, is damaged" in capsys.readouterr().err


def test_two_jobs_on_one_folder(winner, photos, tmp_path, capsys):
    with locked(tmp_path / "out", "parquet") as folder:
        folder.clear()
        folder.begin({"fingerprint": {}})
        assert batch(winner, photos, tmp_path / "out") == 2
    assert f"Another job is writing {tmp_path / 'out'} (process {os.getpid()}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (["--top", "3"], "--top 5 then, 3 now"),
        (["--min-confidence", "60"], "--min-confidence 0.0 then, 60.0 now"),
        (["--format", "csv"], "--format parquet then, csv now"),
        (["--max-megapixels", "9"], "--max-megapixels not given then, 9 now"),
    ],
)
def test_other_options_on_the_same_folder_are_refused(winner, photos, tmp_path, option, said, capsys):
    assert batch(winner, photos, tmp_path / "out") == 1
    before = tree(tmp_path / "out")
    capsys.readouterr()
    assert batch(winner, photos, tmp_path / "out", *option) == 2
    assert said in capsys.readouterr().err
    assert tree(tmp_path / "out") == before
    assert (tmp_path / "out" / "summary.json").exists()


def test_another_artifact_or_source_is_refused(winner, photos, tmp_path, capsys):
    assert batch(winner, photos, tmp_path / "out") == 1
    other = artifacts.make_artifact(tmp_path / "other", batch_size=1).path
    assert batch(str(other), photos, tmp_path / "out") == 2
    assert "another artifact (sha256" in capsys.readouterr().err
    assert batch(winner, photos / "photo1.JPG", tmp_path / "out") == 2
    assert f"SOURCE {photos} then, {photos / 'photo1.JPG'} now" in capsys.readouterr().err
    command = ["batch", winner, str(photos), "--out", str(tmp_path / "out"), "--threads", "2"]
    assert main(command) == 2
    assert "--threads 1" in capsys.readouterr().err


# --- the source changes -------------------------------------------------------------------------


def test_only_new_inputs_are_done_when_the_list_has_grown(winner, photos, tmp_path, capsys):
    out = tmp_path / "out"
    assert batch(winner, photos, out) == 1
    before, when = tree(out), {path: path.stat().st_mtime_ns for path in (out / "results").iterdir()}
    (photos / "a").mkdir()
    shutil.copy(photos / "photo2.png", photos / "a" / "new.png")
    (photos / "photo7.png").unlink()  # done already
    capsys.readouterr()
    assert batch(winner, photos, out) == 1
    said = capsys.readouterr().out
    assert "1 done in" in said
    assert "1 input of the job not listed any more: kept" in said
    after = tree(out)
    assert before.items() <= after.items()
    assert all(path.stat().st_mtime_ns == time for path, time in when.items())
    assert [row["path"] for row in rows(out)].count("a/new.png") == 1
    assert len(rows(out)) == COUNT + 1
    assert batch(winner, photos, out) == 1
    assert "nothing to do" in capsys.readouterr().out


def test_what_changes_or_goes_while_a_job_is_stopped(winner, photos, tmp_path, monkeypatch):
    out = tmp_path / "out"
    real = job._Job._do

    def stop(*_):
        raise Stop

    with monkeypatch.context() as patch:  # listed, nothing done
        patch.setattr(job._Job, "_do", stop)
        with pytest.raises(Stop):
            batch(winner, photos, out)
    (photos / "photo5.png").unlink()
    shutil.copy(photos / "photo6.png", photos / "photo8.png")
    assert real is job._Job._do
    assert batch(winner, photos, out) == 1
    assert {row["path"]: row["reason"] for row in rows(out, "errors")} == {
        "cut.png": "damaged",
        "photo5.png": "missing",
    }
    digests = {row["path"]: row["sha256"] for row in rows(out)}
    assert digests["photo8.png"] == digests["photo6.png"]
    assert len(digests) == COUNT - 1


def test_a_file_that_always_changes_while_it_is_read(winner, photos, tmp_path, monkeypatch):
    real, target = os.fstat, photos / "photo9.png"
    inode, ticks = target.stat().st_ino, iter(range(10**6))

    def moving(handle):
        facts = real(handle)
        if facts.st_ino != inode:
            return facts
        os.utime(target, ns=(0, next(ticks)))
        return real(handle)

    monkeypatch.setattr(os, "fstat", moving)
    assert batch(winner, photos, tmp_path / "out") == 1
    assert {row["path"]: row["reason"] for row in rows(tmp_path / "out", "errors")}["photo9.png"] == "changed"


def test_failed_inputs_are_tried_again_only_when_asked(winner, photos, tmp_path, capsys):
    out = tmp_path / "out"
    assert batch(winner, photos, out) == 1
    shutil.copy(photos / "photo0.png", photos / "cut.png")
    assert batch(winner, photos, out) == 1
    assert batch(winner, photos, out, "--retry-errors") == 0
    assert "1 shard done again" in capsys.readouterr().out
    assert rows(out, "errors") == []
    assert len(rows(out)) == COUNT + 1
    assert batch(winner, photos, tmp_path / "fresh") == 0
    assert tree(out) == tree(tmp_path / "fresh")


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
    assert "0 rows" in capsys.readouterr().out
    assert [row["reason"] for row in rows(tmp_path / "out", "errors")] == ["unsupported"]


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


def test_a_source_that_is_gone_ends_the_job_and_calls_no_image_missing(
    winner, photos, tmp_path, monkeypatch, capsys
):
    from vitrail.batch.files import LocalFiles

    real, read = LocalFiles._read, []

    def reading(self, name, limits):
        read.append(name)
        if len(read) == 2 * SHARD:
            photos.rename(tmp_path / "elsewhere")
        return real(self, name, limits)

    with monkeypatch.context() as patch:
        patch.setattr(LocalFiles, "_read", reading)
        assert batch(winner, photos, tmp_path / "out", "--workers", "0") == 2
    assert f"{photos} is gone: mount it" in capsys.readouterr().err
    assert len(list((tmp_path / "out" / "done").iterdir())) == 1
    (tmp_path / "elsewhere").rename(photos)
    assert batch(winner, photos, tmp_path / "out") == 1
    assert [row["reason"] for row in rows(tmp_path / "out", "errors")] == ["damaged"]


def test_a_second_job_that_comes_before_the_first_has_begun_harms_nothing(winner, photos, tmp_path, capsys):
    with locked(tmp_path / "out", "parquet") as folder:
        folder.clear()
        (folder.path / "list" / "0001.jsonl").write_text("the first job's")
        assert batch(winner, photos, tmp_path / "out") == 2
        assert "Another job is writing" in capsys.readouterr().err
        assert (folder.path / "list" / "0001.jsonl").exists()
    assert list((tmp_path / "out").iterdir()) == []


def test_a_job_loads_no_torch_and_no_needless_libraries(winner, photos, tmp_path):
    code = (
        "import sys; from vitrail.cli import main; "
        f"code = main(['batch', {winner!r}, {str(photos)!r}, '--out', {str(tmp_path / 'o')!r}]); "
        "assert not {'torch', 'fsspec', 'ray', 'pandas'} & set(sys.modules); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr


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

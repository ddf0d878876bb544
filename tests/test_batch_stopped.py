"""Batch jobs that are stopped, damaged or tried again, or whose source changes: no row is lost. 10 s."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import artifacts
import pytest

from vitrail import store
from vitrail.batch import job
from vitrail.batch.commit import locked
from vitrail.cli import main

pytest.importorskip("pyarrow", reason="needs the extra parquet")

from batch_kills import tree
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


# --- interrupted --------------------------------------------------------------------------------


class Stop(Exception):
    """Ends a job in the middle."""


def stopped_after(count, out, monkeypatch, call) -> list[Path]:
    """Call, but stop when one more file than `count` is about to get its name below `out`; those files."""
    named: list[Path] = []

    def stopping(rename):
        def instead(source, target):
            if Path(target).is_relative_to(out):
                named.append(Path(target))
                if len(named) > count:
                    raise Stop
            rename(source, target)

        return instead

    with monkeypatch.context() as patch:
        for name in ("replace", "rename"):
            patch.setattr(os, name, stopping(getattr(os, name)))
        with pytest.raises(Stop):
            call()
    return named


@pytest.mark.parametrize("after", [0, 1, 2, 3, 4, 5, 7, 9, 11])
def test_a_job_that_was_stopped_goes_on_and_ends_like_any_other(winner, photos, tmp_path, monkeypatch, after):
    """Files are written whole, so it is enough to stop before each of the first writes, beginning with the
    list's."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert batch(winner, photos, whole) == 1
    written = stopped_after(after, broken, monkeypatch, lambda: batch(winner, photos, broken))
    assert written[0] == broken / "list" / "0001.jsonl"
    assert not (broken / "summary.json").exists()
    assert batch(winner, photos, broken) == 1
    assert tree(broken) == tree(whole)


def test_what_gets_a_name_is_on_the_disk_before_anything_relies_on_it(winner, photos, tmp_path, monkeypatch):
    """Power may fail at any moment: a file is synced before it is renamed, and its folder before the next
    rename."""
    events: list[tuple[str, str]] = []

    def noting(kind, real, path_of):
        def instead(*arguments):
            events.append((kind, path_of(*arguments)))
            return real(*arguments)

        return instead

    monkeypatch.setattr(os, "fsync", noting("sync", os.fsync, lambda fd: os.readlink(f"/proc/self/fd/{fd}")))
    for name in ("replace", "rename"):
        both = noting("name", getattr(os, name), lambda source, target: f"{source}\n{target}")
        monkeypatch.setattr(os, name, both)
    out = tmp_path / "out"
    assert batch(winner, photos, out) == 1
    named = [k for k, (kind, _) in enumerate(events) if kind == "name"]
    assert len(named) == 1 + 1 + 4 + 1 + 4 + 1  # list, job, results, errors, markers, summary
    for k, until in zip(named, [*named[1:], len(events)], strict=True):
        source, target = events[k][1].split("\n")
        assert ("sync", source) in events[:k]
        assert ("sync", os.path.dirname(target)) in events[k:until]


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


@pytest.mark.parametrize("which", ["0001", "0002"])
def test_a_part_of_the_list_that_is_gone_is_not_listed_again(winner, photos, tmp_path, which, capsys):
    out = tmp_path / "out"
    assert batch(winner, photos, out) == 1
    shutil.copy(photos / "photo2.png", photos / "new.png")
    assert batch(winner, photos, out) == 1
    (out / "list" / f"{which}.jsonl").unlink()
    before = tree(out)
    capsys.readouterr()
    assert batch(winner, photos, out) == 2
    assert f"{which}.jsonl, part of the job's list of inputs, is gone: put it back" in capsys.readouterr().err
    assert tree(out) == before


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


@pytest.fixture
def half(photos, tmp_path) -> Path:
    """A manifest that lists two damaged images among others, one twice, with cells that need quotes."""
    shutil.copy(photos / "cut.png", photos / "cut2.png")
    names = ["photo0.png", "cut.png", "photo2.png", "cut2.png", "cut.png", "photo1.JPG", "photo3.png"]
    lines = [f'{name},"{k},\n""x\r"""' for k, name in enumerate(names)]
    (photos / "half.csv").write_text("\n".join(["path,note", *lines]), newline="")
    return photos / "half.csv"


@pytest.mark.parametrize("format", ["parquet", "jsonl", "csv"])
def test_failed_inputs_are_tried_again_and_finished_rows_stay(winner, photos, half, tmp_path, format, capsys):
    """The originals of finished rows may be gone or changed by now."""
    out, fresh = tmp_path / "out", tmp_path / "fresh"
    assert batch(winner, half, out, "--format", format, "--shard-size", 20) == 1
    shutil.copy(photos / "photo5.png", photos / "cut.png")
    capsys.readouterr()
    assert batch(winner, half, out, "--format", format) == 1
    assert "nothing to do" in capsys.readouterr().out
    assert batch(winner, half, fresh, "--format", format, "--shard-size", 20) == 1
    (photos / "photo0.png").unlink()
    shutil.copy(photos / "photo6.png", photos / "photo2.png")
    capsys.readouterr()
    assert batch(winner, half, out, "--format", format, "--retry-errors") == 1
    said = capsys.readouterr().out
    assert "7 inputs → 6 rows" in said
    assert "3 done in" in said
    assert "3 failed inputs tried again" in said
    assert tree(out) == tree(fresh)
    shutil.copy(photos / "photo5.png", photos / "cut2.png")
    assert batch(winner, half, out, "--format", format, "--retry-errors") == 0
    assert list((out / "errors").iterdir()) == []


def test_a_retry_that_is_stopped_loses_no_row(winner, photos, half, tmp_path, monkeypatch):
    def retry(out):
        return batch(winner, half, out, "--retry-errors")

    out = tmp_path / "out"
    assert batch(winner, half, out, "--shard-size", 20) == 1
    shutil.copytree(out, tmp_path / "whole")
    for name in ("cut.png", "cut2.png"):
        shutil.copy(photos / "photo5.png", photos / name)
    for name in ("photo0.png", "photo2.png", "photo1.JPG", "photo3.png"):
        (photos / name).unlink()
    assert retry(tmp_path / "whole") == 0
    for count in range(3):
        again = shutil.copytree(out, tmp_path / f"out{count}")
        named = stopped_after(count, again, monkeypatch, lambda again=again: retry(again))
        assert len(named) == count + 1
        assert retry(again) == 0
        assert tree(again) == tree(tmp_path / "whole")
        assert len(rows(again)) == 7


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

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitrail import artifact, store
from vitrail.errors import InputError
from vitrail.store import RecordStore, atomic_folder, atomic_write, canonical_json, check_target

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.dictionaries(st.text(max_size=5), JSON, max_size=4)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def no_space(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


# --- atomic_write ---------------------------------------------------------------------------------


def test_write_replaces_content_and_leaves_only_the_file(tmp_path):
    target = tmp_path / "a.json"
    atomic_write(target, b"old")
    atomic_write(target, b"new")
    assert target.read_bytes() == b"new"
    assert names(tmp_path) == ["a.json"]


def test_write_follows_a_link_and_keeps_it(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real" / "file")
    atomic_write(tmp_path / "link", b"x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "file").read_bytes() == b"x"


def test_write_does_not_replace_a_device(tmp_path):
    atomic_write("/dev/null", b"x")
    assert not Path("/dev/null").is_file()


def test_really_full_device_is_one_sentence():
    with pytest.raises(InputError, match=r"No space left on the disk for /dev/full: free some space"):
        atomic_write("/dev/full", b"x")


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_disk_full_keeps_the_old_content(tmp_path, monkeypatch, failing):
    target = tmp_path / "a"
    atomic_write(target, b"old")
    monkeypatch.setattr(store.os, failing, no_space)
    with pytest.raises(InputError, match="No space left"):
        atomic_write(target, b"new")
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_missing_permission_is_one_sentence(tmp_path, monkeypatch, code):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(store.os, "replace", refuse)
    with pytest.raises(InputError, match="No permission to write"):
        atomic_write(tmp_path / "a", b"x")
    assert names(tmp_path) == []


def test_write_below_a_file_or_onto_a_folder(tmp_path):
    (tmp_path / "file").write_text("x")
    for bad in (tmp_path / "file" / "a", tmp_path):
        with pytest.raises(InputError, match="is in the way"):
            atomic_write(bad, b"x")


def test_file_size_limit_of_the_system_leaves_nothing(tmp_path):
    """A real write error in the middle of the data, in a process with a limit of 4 kB a file."""
    code = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
from vitrail.errors import InputError
from vitrail.store import atomic_folder, atomic_write
for write in (1, 2):
    try:
        if write == 1:
            atomic_write(sys.argv[1] + "/a", b"x" * 100_000)
        else:
            with atomic_folder(sys.argv[1] + "/deep/f") as folder:
                (folder / "big").write_bytes(b"x" * 100_000)
    except (InputError, OSError) as error:
        print(type(error).__name__)
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["InputError", "OSError"]
    assert names(tmp_path) == []


# --- atomic_folder --------------------------------------------------------------------------------


def fill(folder: Path, text: str) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "file").write_text(text)


def test_folder_appears_whole_with_missing_parents(tmp_path):
    target = tmp_path / "a" / "b" / "winner"
    with atomic_folder(target) as folder:
        fill(folder, "x")
        assert not target.exists()
        assert folder.parent == target.parent
    assert (target / "sub" / "file").read_text() == "x"
    assert names(target.parent) == ["winner"]


def fill_and_fail(folder: Path, error: BaseException) -> None:
    fill(folder, "x")
    raise error


@pytest.mark.parametrize(
    "error", [RuntimeError("x"), KeyboardInterrupt(), FileNotFoundError(2, "x", "source")]
)
def test_folder_leaves_nothing_on_any_exception(tmp_path, error):
    with pytest.raises(type(error)), atomic_folder(tmp_path / "a" / "b" / "winner") as folder:
        fill_and_fail(folder, error)
    assert names(tmp_path) == []


def test_folder_disk_full_while_filling(tmp_path):
    with pytest.raises(InputError, match="No space left"), atomic_folder(tmp_path / "w") as folder:
        fill_and_fail(folder, OSError(errno.ENOSPC, "No space left on device"))
    assert names(tmp_path) == []


@pytest.mark.parametrize("failing", ["fsync", "rename"])
def test_folder_error_at_the_end_keeps_the_old_one(tmp_path, monkeypatch, failing):
    target = tmp_path / "w"
    with atomic_folder(target) as folder:
        fill(folder, "old")
    real = os.rename

    def fail_once_aside(source, destination):
        # The old folder is set aside; the new one then cannot take its place; the old one comes back.
        if str(source).endswith(".partial"):
            no_space()
        real(source, destination)

    monkeypatch.setattr(store.os, failing, fail_once_aside if failing == "rename" else no_space)
    with pytest.raises(InputError, match="No space left"), atomic_folder(target, overwrite=True) as folder:
        fill(folder, "new")
    assert (target / "sub" / "file").read_text() == "old"
    assert names(tmp_path) == ["w"]


def test_folder_overwrites_only_when_asked(tmp_path):
    target = tmp_path / "w"
    with atomic_folder(target) as folder:
        fill(folder, "old")
    with pytest.raises(InputError, match="already exists"), atomic_folder(target):
        pytest.fail("the block must not run")
    with atomic_folder(target, overwrite=True) as folder:
        fill(folder, "new")
    assert (target / "sub" / "file").read_text() == "new"
    assert names(tmp_path) == ["w"]


def test_folder_may_replace_an_empty_one_but_no_file(tmp_path):
    (tmp_path / "empty").mkdir()
    with atomic_folder(tmp_path / "empty") as folder:
        fill(folder, "x")
    assert (tmp_path / "empty" / "sub").is_dir()
    (tmp_path / "file").write_text("precious")
    for overwrite in (False, True):
        with (
            pytest.raises(InputError, match="is a file"),
            atomic_folder(tmp_path / "file", overwrite=overwrite),
        ):
            pytest.fail("the block must not run")
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_empty_name_is_not_the_current_folder(tmp_path, monkeypatch, overwrite):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="The name of the folder to write is empty: give one"):
        store.check_target("", overwrite=overwrite)
    with pytest.raises(InputError, match="is empty"):
        artifact.check_target("", overwrite=overwrite)


def test_check_target_says_it_before_the_work(tmp_path):
    check_target(tmp_path / "x" / "y")
    assert names(tmp_path) == []
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is in the way"):
        check_target(tmp_path / "file" / "w")


def test_leftovers_of_the_dead_go_and_what_a_living_writer_holds_stays(tmp_path):
    """However old or new: what counts is whether the writer's process lives."""
    code = """
import sys, time
from vitrail.store import atomic_folder
with atomic_folder(sys.argv[1] + "/w") as folder:
    print(folder, flush=True)
    time.sleep(60)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            living = Path(process.stdout.readline().strip())
            os.utime(living, (time.time() - 3e5,) * 2)
            store.sweep(tmp_path)
            assert names(tmp_path) == [living.name]
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
    assert living.exists()
    (tmp_path / ".vitrail-3.replaced").mkdir()
    with atomic_folder(tmp_path / "other") as folder:
        assert not living.exists()
        store.sweep(tmp_path)
        fill(folder, "x")
    assert names(tmp_path) == [".vitrail-3.replaced", "other"]


def test_without_locks_only_stale_leftovers_go(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.EBADF, "flock")

    monkeypatch.setattr(store.fcntl, "flock", unsupported)
    old, fresh, aside = (tmp_path / f".vitrail-{n}" for n in ("1.partial", "2.partial", "3.replaced"))
    for path in (old, fresh, aside):
        path.mkdir()
    for path in (old, aside):
        os.utime(path, (time.time() - 3e5,) * 2)
    with atomic_folder(tmp_path / "w") as folder:
        fill(folder, "x")
    assert names(tmp_path) == [".vitrail-2.partial", ".vitrail-3.replaced", "w"]


def test_a_folder_swept_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    """Between making and locking it another process may take it for a dead one's."""
    real, swept = store.os.open, []

    def open_(path, *rest):
        if str(path).endswith(".partial") and len(swept) < 2:
            swept.append(path)
            os.rmdir(path)
        return real(path, *rest)

    monkeypatch.setattr(store.os, "open", open_)
    with atomic_folder(tmp_path / "w") as folder:
        fill(folder, "x")
    assert len(swept) == 2
    assert names(tmp_path) == ["w"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("killed for its memory")])
def test_an_export_that_ends_early_leaves_no_folder_of_its_child(tmp_path, monkeypatch, error):
    """Another process that exports at the same time keeps its own."""
    from vitrail.export import bench
    from vitrail.images.photos import sample_photos
    from vitrail.vocabulary import Candidate, Preprocess, Variant, Weights, Workload
    from vitrail.weights.find import WeightsFinder

    monkeypatch.setenv("VITRAIL_CACHE", str(tmp_path))
    weights = Weights(source="file", reference=__file__)
    candidate = Candidate(
        name="m",
        architecture="m",
        family="m",
        weights=weights,
        preprocess=Preprocess(image_size=32),
        accuracy=None,
        parameters=1,
        macs=1,
    )
    variant = Variant(candidate=candidate, image_size=32, runtime="openvino", precision="fp32")
    monkeypatch.setattr(bench.hardware, "fingerprint", lambda machine: "")
    finder, photos = WeightsFinder(offline=True), sample_photos()
    own = bench.Bench(workload=Workload(threads=1), photos=photos, finder=finder, machine={})

    def killed(*_, **__):
        (tmp_path / "exports" / ".vitrail-dead.partial" / "sub").mkdir(parents=True)
        raise error

    monkeypatch.setattr(own.workshop, "run", killed)
    with atomic_folder(tmp_path / "exports" / "another") as folder:
        fill(folder, "x")
        with pytest.raises(type(error)):
            own.export(variant, 1.0)
        assert names(tmp_path / "exports") == [folder.name]
    assert names(tmp_path / "exports") == ["another"]


def test_killed_while_replacing_leaves_one_whole_folder(tmp_path):
    """SIGKILL at arbitrary moments: the target or the copy set aside is whole, never a mixture."""
    code = """
import itertools, sys
from vitrail.store import atomic_folder
for i in itertools.count():
    with atomic_folder(sys.argv[1], overwrite=True) as folder:
        for name in "abcd":
            (folder / name).write_text(str(i) * 50)
    print(i, flush=True)
"""
    target = tmp_path / "w"
    for delay in (0.0, 0.003, 0.007, 0.011):
        _kill_after_first_line(code, target, delay)
        whole = [target] if target.exists() else list(tmp_path.glob("*.replaced"))
        assert len(whole) == 1
        contents = {(whole[0] / name).read_text() for name in "abcd"}
        assert len(contents) == 1
        if whole[0] != target:
            whole[0].rename(target)
        for rest in tmp_path.glob(".vitrail-*"):
            shutil.rmtree(rest)


def _kill_after_first_line(code: str, argument: Path, delay: float) -> None:
    process = subprocess.Popen([sys.executable, "-c", code, argument], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline()
        time.sleep(delay)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()


# --- canonical JSON, digests, cache ---------------------------------------------------------------


@given(KEYS)
def test_canonical_json_ignores_order_and_survives_a_round_trip(key):
    text = canonical_json(key)
    assert canonical_json(dict(reversed(key.items()))) == text
    assert canonical_json(json.loads(text)) == text
    assert json.loads(text) == key


@given(KEYS, KEYS)
def test_keys_collide_only_when_json_says_they_are_the_same(tmp_path_factory, first, second):
    records = RecordStore(tmp_path_factory.getbasetemp() / "unused")
    same = json.dumps(first, sort_keys=True) == json.dumps(second, sort_keys=True)
    assert (records._path(first) == records._path(second)) == same


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ({"a": float("nan")}, ValueError),
        ({1: 2}, TypeError),
        ({"a": [{None: 1}]}, TypeError),
        ({"a": {1}}, TypeError),
    ],
)
def test_canonical_json_refuses_what_json_cannot_hold(value, error):
    with pytest.raises(error):
        canonical_json(value)


def test_sha256_of_a_file_larger_than_one_chunk(tmp_path):
    import hashlib

    data = os.urandom((1 << 20) + 17)
    (tmp_path / "f").write_bytes(data)
    assert store.sha256_file(tmp_path / "f") == hashlib.sha256(data).hexdigest()


def test_cache_dir_can_be_chosen(monkeypatch, tmp_path):
    monkeypatch.setenv("VITRAIL_CACHE", str(tmp_path))
    assert store.cache_dir() == tmp_path
    monkeypatch.delenv("VITRAIL_CACHE")
    assert store.cache_dir().name == "vitrail"


# --- RecordStore ----------------------------------------------------------------------------------


@given(KEYS, st.dictionaries(st.text(), JSON, max_size=3))
def test_record_comes_back(tmp_path_factory, key, record):
    records = RecordStore(tmp_path_factory.mktemp("records"))
    assert records.get(key) is None
    records.put(key, record)
    assert records.get(key) == record
    assert list(records.entries()) == [(key, record)]
    assert records.damaged == []


def test_last_record_of_a_key_wins_and_tuples_are_lists(tmp_path):
    records = RecordStore(tmp_path / "new" / "folder")
    records.put({"a": (1, 2)}, {"n": 1})
    records.put({"a": [1, 2]}, {"n": 2})
    assert records.get({"a": (1, 2)}) == {"n": 2}
    assert len(names(records.folder)) == 1


def damage_cut(path: Path, other: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def damage_empty(path: Path, other: Path) -> None:
    path.write_bytes(b"")


def damage_figure(path: Path, other: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"12.5", b"11.5"))


def damage_swap(path: Path, other: Path) -> None:
    path.write_bytes(other.read_bytes())


def damage_type(path: Path, other: Path) -> None:
    path.write_bytes(b"[1, 2]")


def damage_binary(path: Path, other: Path) -> None:
    path.write_bytes(b"\xff\x00\x80")


def damage_folder(path: Path, other: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "damage",
    [damage_cut, damage_empty, damage_figure, damage_swap, damage_type, damage_binary, damage_folder],
)
def test_damaged_record_is_absent_reported_and_the_others_stay(tmp_path, damage):
    records = RecordStore(tmp_path)
    records.put({"k": 1}, {"ms": 12.5})
    records.put({"k": 2}, {"ms": 13.5})
    path = records._path({"k": 1})
    damage(path, records._path({"k": 2}))
    assert records.get({"k": 1}) is None
    assert records.get({"k": 1}) is None
    assert records.damaged == [path]
    assert list(records.entries()) == [({"k": 2}, {"ms": 13.5})]
    if damage is not damage_folder:
        records.put({"k": 1}, {"ms": 12.5})
        assert records.get({"k": 1}) == {"ms": 12.5}


def test_store_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("x")
    records = RecordStore(tmp_path / "file")
    assert records.get({"k": 1}) is None
    with pytest.raises(InputError, match="is in the way"):
        records.put({"k": 1}, {})


def test_killed_and_concurrent_writers_leave_only_whole_records(tmp_path):
    """Two writers of the same keys, killed at arbitrary moments: what can be read is whole."""
    code = """
import itertools, sys
from vitrail.store import RecordStore
records = RecordStore(sys.argv[1])
for i in itertools.count():
    records.put({"k": i % 5}, {"first": i, "filler": "x" * 5000, "last": i})
    if i == 5:
        print(flush=True)
"""
    for delay in (0.0, 0.004, 0.013):
        writers = [
            subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE) for _ in range(2)
        ]
        for writer in writers:
            assert writer.stdout.readline()
        time.sleep(delay)
        for writer in writers:
            writer.send_signal(signal.SIGKILL)
            writer.wait()
            writer.stdout.close()
        records = RecordStore(tmp_path)
        found = list(records.entries())
        assert len(found) == 5
        assert all(record["first"] == record["last"] for _, record in found)
        assert records.damaged == []

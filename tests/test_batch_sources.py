"""What a batch job may be given besides a folder: manifests, URLs, other tasks. About 6 s."""

from __future__ import annotations

import builtins
import datetime
import json
import os
import resource
import shutil
import sys
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import artifacts
import batch_kills
import fsspec
import numpy as np
import openvino as ov
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from openvino import opset13 as ops
from toy_task import Colour

from vitrail import runtimes
from vitrail.artifact import write
from vitrail.batch.files import RemoteFiles
from vitrail.batch.progress import Progress, busy, clock, held_back
from vitrail.batch.sources import open_source
from vitrail.batch.write import read_columns
from vitrail.cli import main
from vitrail.images.limits import LIMITS, Limits
from vitrail.predict import load
from vitrail.tasks import TASKS
from vitrail.tasks.embed import Embed
from vitrail.vocabulary import Export


@pytest.fixture(scope="module")
def winner(tmp_path_factory) -> str:
    return str(artifacts.make_artifact(tmp_path_factory.mktemp("batch")).path)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos") / "photos"
    artifacts.make_photos(folder, 6)
    return folder


def batch(winner, source, out, *options) -> int:
    return main(["batch", str(winner), str(source), "--out", str(out), "--threads", "1", *map(str, options)])


def rows(out, kind="results") -> list[dict]:
    parts = sorted((Path(out) / kind).glob("*.parquet"))
    return [row for part in parts for row in pq.ParquetFile(part).read().to_pylist()]


def manifest(photos, name, text) -> Path:
    path = photos / name
    path.write_bytes(text.encode("utf-8"))
    return path


# --- manifests ----------------------------------------------------------------------------------


def test_a_csv_manifest_keeps_its_columns_and_its_order(winner, photos, tmp_path):
    listed = manifest(
        photos,
        "list.csv",
        "\ufeffid,Path,label,note\r\n"
        '7,photo3.png,cat,"a, b"\r\n\r\n8,photo1.JPG,größe\r\n9,photo3.png,dog,x\r\n',
    )
    assert batch(winner, listed, tmp_path / "out") == 0
    found = rows(tmp_path / "out")
    own = [(row["path"], row["id"], row["manifest_label"], row["note"]) for row in found]
    assert own == [
        ("photo3.png", "7", "cat", "a, b"),
        ("photo1.JPG", "8", "größe", ""),
        ("photo3.png", "9", "dog", "x"),
    ]
    assert found[0]["label"] == found[2]["label"]
    assert list(found[0])[-4:] == ["id", "manifest_label", "note", "artifact"]


def test_rows_that_say_the_same_count_once_and_new_rows_are_added(winner, photos, tmp_path, capsys):
    text = "path,id\nphoto3.png,1\nphoto3.png,1\nphoto4.png,1\n"
    listed = manifest(photos, "twice.csv", text)
    assert batch(winner, listed, tmp_path / "out") == 0
    assert "1 input listed more than once: done once" in capsys.readouterr().out
    manifest(photos, "twice.csv", text + "photo3.png,2\n")
    assert batch(winner, listed, tmp_path / "out") == 0
    found = sorted((row["path"], row["id"]) for row in rows(tmp_path / "out"))
    assert found == [("photo3.png", "1"), ("photo3.png", "2"), ("photo4.png", "1")]
    manifest(photos, "twice.csv", "path,name\nphoto3.png,1\n")
    assert batch(winner, listed, tmp_path / "out") == 2
    assert "the manifest has other columns" in capsys.readouterr().err


def parquet_manifest(photos) -> tuple[Path, pa.Table]:
    moment = datetime.datetime(2026, 1, 2, 3, 4, 5, 678901, datetime.timezone.utc)
    table = pa.table(
        {
            "path": ["photo0.png", "photo1.JPG", None],
            "label": pa.array([1, None, 3], pa.int16()),
            "when": pa.array([moment, None, None], pa.timestamp("us", "UTC")),
            "day": pa.array([datetime.date(2026, 1, 2), None, None], pa.date32()),
            "price": pa.array([Decimal("1.20"), None, None], pa.decimal128(7, 2)),
            "weight": pa.array([0.1, float("nan"), None], pa.float32()),
            "sure": [True, False, None],
            "tags": [["a", "b"], [], None],
            "box": [{"x": 1, "y": 2.5}, None, None],
            "kind": pa.array(["a", "b", "a"]).dictionary_encode(),
        }
    )
    pq.write_table(table, photos / "list.parquet")
    return photos / "list.parquet", table


def test_a_parquet_manifest_keeps_its_types(winner, photos, tmp_path):
    listed, table = parquet_manifest(photos)
    assert batch(winner, listed, tmp_path / "out") == 1
    (part,) = (tmp_path / "out" / "results").iterdir()
    kept = pq.ParquetFile(part).read()
    for name in table.column_names[1:]:
        column = table.column(name).combine_chunks()
        column = column.dictionary_decode() if name == "kind" else column
        found = kept.column("manifest_label" if name == "label" else name)
        assert found.type == column.type, name
        assert str(found.to_pylist()) == str(column.to_pylist()[:2]), name
    (failed,) = rows(tmp_path / "out", "errors")
    assert (failed["path"], failed["reason"], failed["manifest_label"]) == ("", "missing", 3)


@pytest.mark.parametrize("format", ["jsonl", "csv"])
def test_dates_and_decimals_are_text_where_a_format_has_none(winner, photos, tmp_path, format):
    listed, _ = parquet_manifest(photos)
    assert batch(winner, listed, tmp_path / "out", "--format", format) == 1
    (part,) = (tmp_path / "out" / "results").iterdir()
    names = ("path", "day", "price", "when")
    found = list(read_columns(part, names))
    assert found[0] == ("photo0.png", "2026-01-02", "1.20", "2026-01-02 03:04:05.678901Z")
    if format == "jsonl":
        first, second = map(json.loads, part.read_text().splitlines())
        assert (first["tags"], first["box"], first["sure"]) == (["a", "b"], {"x": 1, "y": 2.5}, True)
        assert (second["weight"], second["day"]) == (None, None)


def test_paths_of_a_manifest_stay_below_its_root(winner, photos, tmp_path, capsys):
    (tmp_path / "lists").mkdir()
    (photos / "out.jpg").symlink_to("/etc/hostname")
    lines = ["path", str(photos / "photo0.png"), "../x.jpg", str(photos / "out.jpg"), "\0"]
    listed = manifest(tmp_path / "lists", "list.csv", "\n".join(lines))
    assert batch(winner, listed, tmp_path / "out") == 2
    reasons = [row["reason"] for row in rows(tmp_path / "out", "errors")]
    assert reasons == ["outside", "outside", "outside", "missing"]
    assert batch(winner, listed, tmp_path / "rooted", "--root", photos) == 1
    assert [row["path"] for row in rows(tmp_path / "rooted")] == [str(photos / "photo0.png")]
    (photos / "out.jpg").unlink()
    capsys.readouterr()
    assert batch(winner, listed, tmp_path / "new", "--root", tmp_path / "none") == 2
    assert "is no folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", "", "is empty: its first line names the columns"),
        ("a.csv", "file,label\n1,2\n", "has no column path, only 'file', 'label'"),
        ("a.csv", "path,PATH\n1,2\n", "has the column path twice"),
        ("a.csv", "path,a,a\n1,2,3\n", "has the column 'a' twice"),
        ("a.csv", "path,,b\n1,2,3\n", "has a column without a name"),
        ("a.csv", "path,a\nx.jpg,1,2\n", "line 2 has 3 cells for 2 columns"),
        ("a.csv", 'path,a\nx.jpg,"1\n', "is not CSV"),
        ("a.csv", "path\n", "lists no images"),
        ("a.parquet", "PAR1", "cannot be read as Parquet"),
        ("none.csv", None, "does not exist"),
    ],
)
def test_manifests_that_are_none(winner, tmp_path, name, text, said, capsys):
    if text is not None:
        manifest(tmp_path, name, text)
    assert batch(winner, tmp_path / name, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_columns_that_cannot_be_kept_are_named(winner, tmp_path, capsys):
    pq.write_table(pa.table({"path": ["a.jpg"], "raw": [b"x"]}), tmp_path / "list.parquet")
    assert batch(winner, tmp_path / "list.parquet", tmp_path / "out") == 2
    assert "has the column 'raw' of binary, which is not kept" in capsys.readouterr().err
    (tmp_path / "bad.csv").write_bytes(b"path,a\n\xff.jpg,1\n")
    assert batch(winner, tmp_path / "bad.csv", tmp_path / "out") == 2
    assert "is not UTF-8" in capsys.readouterr().err


# --- object stores ------------------------------------------------------------------------------


@pytest.fixture
def bucket(photos):
    """The photos in fsspec's memory, which behaves like a store of objects."""
    store = fsspec.filesystem("memory")
    store.pipe({f"/bucket/a/{path.name}": path.read_bytes() for path in photos.glob("photo*")})
    store.pipe("/bucket/a/notes.txt", b"no image")
    store.pipe("/bucket/a/empty.png", b"")
    store.pipe("/bucket/a/.hidden/b.png", b"left by a file manager")
    store.pipe("/bucket/list.csv", b"path,id\na/photo1.JPG,1\na/none.png,2\n../x.png,3\n")
    yield "memory://bucket"
    store.rm("/bucket", recursive=True)


def test_objects_give_the_same_rows_as_files(winner, photos, bucket, tmp_path):
    (tmp_path / "local").mkdir()
    for path in photos.glob("photo*"):
        shutil.copy(path, tmp_path / "local")
    assert batch(winner, tmp_path / "local", tmp_path / "here") == 0
    assert batch(winner, f"{bucket}/a", tmp_path / "there") == 1
    assert rows(tmp_path / "there") == rows(tmp_path / "here")
    assert [(r["path"], r["reason"]) for r in rows(tmp_path / "there", "errors")] == [("empty.png", "empty")]
    assert batch(winner, f"{bucket}/a/", tmp_path / "out", "--sort-into", tmp_path / "sorted") == 2
    assert batch(winner, f"{bucket}/**/*1.JPG", tmp_path / "glob") == 0
    assert [row["path"] for row in rows(tmp_path / "glob")] == ["a/photo1.JPG"]
    assert batch(winner, f"{bucket}/a/photo2.png", tmp_path / "one") == 0
    assert [row["path"] for row in rows(tmp_path / "one")] == ["photo2.png"]


def test_manifests_and_roots_may_be_urls(winner, photos, bucket, tmp_path, capsys):
    assert batch(winner, f"{bucket}/list.csv", tmp_path / "out") == 1
    assert [(row["path"], row["id"]) for row in rows(tmp_path / "out")] == [("a/photo1.JPG", "1")]
    assert [row["reason"] for row in rows(tmp_path / "out", "errors")] == ["missing", "outside"]
    listed = manifest(tmp_path, "here.csv", "path\nphoto1.JPG\n")
    assert batch(winner, listed, tmp_path / "rooted", "--root", f"{bucket}/a") == 0
    capsys.readouterr()
    for url, said in ((f"{bucket}/none", "does not exist"), ("nostore://x/y", "check what stands before")):
        assert batch(winner, url, tmp_path / "new") == 2
        assert said in capsys.readouterr().err


def test_a_store_that_fails_is_an_error_row(bucket, monkeypatch):
    files = open_source(f"{bucket}/a").files
    assert isinstance(files, RemoteFiles)

    def fails(*_, **__):
        raise RuntimeError("SlowDown: reduce\nyour request rate")

    monkeypatch.setattr(files.fs, "cat_file", fails, raising=False)
    with pytest.raises(Exception, match=r"photo1\.JPG cannot be read") as caught:
        files.read("photo1.JPG", LIMITS)
    assert caught.value.reason == "unreadable"


def test_a_store_that_cannot_be_read_any_more_ends_the_job(winner, bucket, tmp_path, monkeypatch, capsys):
    """As when credentials expire; one object that cannot be read is an error row of its own."""
    store = type(fsspec.filesystem("memory"))
    real, read, forbidden = store.cat_file, [], ["photo3.png"]

    def cat_file(self, path, *arguments, **options):
        read.append(path)
        if (expiring and len(read) > 2) or path.rpartition("/")[2] in forbidden:
            raise PermissionError("The provided token has expired")
        return real(self, path, *arguments, **options)

    monkeypatch.setattr(store, "cat_file", cat_file)
    expiring = True
    options = ("--shard-size", "1", "--workers", "0")
    assert batch(winner, f"{bucket}/a", tmp_path / "out", *options) == 2
    error = capsys.readouterr().err
    assert "bucket/a cannot be read any more: " in error
    assert "Renew the credentials" in error
    expiring = False
    assert batch(winner, f"{bucket}/a", tmp_path / "out", *options) == 1
    reasons = {row["path"]: row["reason"] for row in rows(tmp_path / "out", "errors")}
    assert reasons == {"empty.png": "empty", "photo3.png": "unreadable"}
    assert len(rows(tmp_path / "out")) == 5


def test_memory_for_the_largest_image_allowed_is_not_taken_for_each(winner, photos, tmp_path):
    """Python takes all that `read` is asked for at once, here more than there is."""
    limit = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (32 * 2**30, limit[1]))
    try:
        assert batch(winner, photos / "photo*", tmp_path / "out", "--max-megapixels", 10_000) == 0
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limit)


def test_memory_that_is_not_there_fails_one_image_alone(winner, photos, tmp_path, monkeypatch):
    real = os.fstat

    def huge(handle):
        facts = real(handle)
        if facts.st_ino != (photos / "photo2.png").stat().st_ino:
            return facts
        return os.stat_result((*facts[:6], 2**62, *facts[7:]))

    monkeypatch.setattr(os, "fstat", huge)
    monkeypatch.setattr(Limits, "of_megapixels", lambda count: replace(LIMITS, file_bytes=2**62))
    assert batch(winner, photos / "photo*", tmp_path / "out", "--max-megapixels", 9) == 1
    failed = [(row["path"], row["reason"]) for row in rows(tmp_path / "out", "errors")]
    assert failed == [("photo2.png", "too large")]


@pytest.mark.parametrize(
    ("module", "source", "extra"),
    [("fsspec", "s3://bucket/photos", "remote"), ("pyarrow", "photos", "parquet")],
)
def test_what_is_missing_is_named_with_its_install_line(
    winner, photos, tmp_path, monkeypatch, capsys, module, source, extra
):
    real = builtins.__import__

    def without(name, *arguments, **options):
        if name.split(".")[0] == module:
            raise ImportError(name)
        return real(name, *arguments, **options)

    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    source = source if "://" in source else photos
    assert batch(winner, source, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert f"{module}, which" in error
    assert f"[{extra}]" in error
    if module == "pyarrow":
        assert batch(winner, source, tmp_path / "out", "--format", "jsonl") == 0


# --- other tasks --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def embedder(tmp_path_factory) -> str:
    """The small network before its head."""
    folder, size = tmp_path_factory.mktemp("embed"), artifacts.SIZE
    task = Embed(preprocess=artifacts.PREPROCESS, width=8)
    return pooled(folder, task, "vectors", artifacts.FILTERS, size)


def pooled(folder, task, output, filters, size) -> str:
    image = ops.parameter([-1, 3, size, size], np.float32, name="images")
    maps = ops.relu(ops.convolution(image, ops.constant(filters), [1, 1], [0, 0], [0, 0], [1, 1]))
    model = ov.Model([ops.reduce_mean(maps, ops.constant([2, 3]), keep_dims=False)], [image], "tiny")
    (folder / "model").mkdir()
    ov.save_model(model, folder / "model" / "model.xml", compress_to_fp16=False)
    bundle = artifacts.make_bundle(folder)
    graph = task.graph("model.xml")
    facts = replace(bundle.evidence.facts, graphs=(runtimes.sized(graph, {"B": 2}),))
    outputs = {output: np.zeros((len(bundle.photos), len(filters)), np.float32)}
    shipped = replace(
        bundle,
        task=task,
        variant=replace(bundle.variant, candidate=replace(bundle.variant.candidate, task=task.name)),
        export=Export(folder=str(folder / "model"), files=("model.xml", "model.bin"), graphs=(graph,)),
        fp32_outputs=outputs,
        own_outputs=outputs,
        evidence=replace(bundle.evidence, facts=facts),
    )
    return str(write(folder / "winner", shipped).path)


def test_embeddings_are_a_column_of_vectors(embedder, photos, tmp_path, capsys):
    pattern = photos / "photo*"
    assert batch(embedder, pattern, tmp_path / "out") == 0
    found = rows(tmp_path / "out")
    with load(embedder, threads=1) as predictor:
        expected = predictor.predict([photos / row["path"] for row in found])
    np.testing.assert_allclose([row["embedding"] for row in found], expected, rtol=1e-6)
    (part,) = (tmp_path / "out" / "results").iterdir()
    assert pq.ParquetFile(part).schema_arrow.field("embedding").type == pa.list_(pa.float32(), 8)
    assert batch(embedder, pattern, tmp_path / "lines", "--format", "jsonl") == 0
    (part,) = (tmp_path / "lines" / "results").iterdir()
    lines = [json.loads(line) for line in part.read_text().splitlines()]
    assert [np.float32(row["embedding"]).tolist() for row in lines] == [row["embedding"] for row in found]
    for option in (["--top", "3"], ["--min-confidence", "50"], ["--sort-into", tmp_path / "sorted"]):
        assert batch(embedder, pattern, tmp_path / "new", *option) == 2
        assert f"{option[0]} says nothing about {embedder}, whose task is embed" in capsys.readouterr().err


def test_a_task_that_only_the_tests_know(photos, tmp_path, monkeypatch):
    monkeypatch.setitem(TASKS, "colour", "toy_task:Colour")
    task = Colour(preprocess=artifacts.PREPROCESS)
    toy = pooled(tmp_path, task, "channels", artifacts.FILTERS[:3], artifacts.SIZE)
    out = tmp_path / "out"
    assert batch(toy, photos / "photo*", out, "--sort-into", tmp_path / "sorted") == 0
    with load(toy) as predictor:
        expected = predictor.predict([photos / row["path"] for row in rows(out)])
    assert [row["colour"] for row in rows(out)] == expected
    assert {path.name for path in (tmp_path / "sorted").iterdir()} - {".vitrail-sorted.json"} == set(expected)


# --- killed, and seen ---------------------------------------------------------------------------


@pytest.mark.slow
def test_a_few_kills_of_the_campaign(winner):
    found = batch_kills.campaign(Path(winner), kills=4, count=60, seed=1)
    assert found["kills"] >= 4
    assert found["wrong"] == 0


class Terminal:
    """A stream that remembers."""

    def __init__(self) -> None:
        self.text = ""

    def isatty(self) -> bool:
        return False

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None:
        pass


def test_a_log_gets_a_line_every_ten_seconds():
    stream, seconds = Terminal(), [0.0]
    with Progress(stream, now=lambda: seconds[0]) as progress:
        progress.begin(4000, 1000, lambda: ("decode", 0.97))
        for _ in range(21):
            seconds[0] += 1
            progress.tick(100, 1)
    assert stream.text.splitlines() == [
        "vitrail: 2,000 of 4,000 · 100 images/s · 0:20 left · 10 errors · held back by decoding (97% busy)",
        "vitrail: 3,000 of 4,000 · 100 images/s · 0:10 left · 20 errors · held back by decoding (97% busy)",
    ]


def test_the_stage_whose_threads_are_busiest_holds_the_rest_back():
    """Twelve threads decode for all of ten seconds; the model, which takes six of them, waits for them."""
    stages = {"read": 10.0, "decode": 109.0, "model": 5.5, "finish": 0.5, "write": 9.0}
    found = busy(stages, 12, 10.0, 10.0)
    assert found == {"read": 0.083, "decode": 0.908, "model": 0.6, "write": 0.9}
    assert held_back(found, in_turn=False) == ("decode", 0.991)
    assert held_back({**found, "read": 0.1, "decode": 0.2}, in_turn=False) == ("write", 0.9)
    alone = busy({"read": 3.0, "decode": 3.0, "model": 4.0}, 0, 10.0, 10.0)
    assert held_back(alone, in_turn=True) == ("model", 0.4)
    assert held_back(busy({}, 2, 1.0, 1.0), in_turn=False) is None


def test_clocks():
    assert [clock(s) for s in (0, 59.6, 725, 11400)] == ["0:00", "1:00", "12:05", "3:10:00"]

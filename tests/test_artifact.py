from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from artifacts import LABELS, TASK, make_artifact, make_bundle

from vitrail import runtimes, store
from vitrail.artifact import SCHEMA_VERSION, TextTower, evidence_of, open_artifact, write
from vitrail.artifact.manifest import digest
from vitrail.errors import InputError
from vitrail.vocabulary import (
    Block,
    Environment,
    LedgerEntry,
    Measurement,
    Memory,
    Observation,
    Requirements,
    RunnerFacts,
    Selection,
    Verdict,
    Workload,
)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return make_artifact(tmp_path_factory.mktemp("original"))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture
def winner(original, tmp_path):
    """A private copy to tamper with."""
    shutil.copytree(original.path, tmp_path / "winner")
    return tmp_path / "winner"


def edit(folder: Path, change, *, sign: bool = True) -> None:
    """Change the manifest; with `sign` its own digest is made to fit."""
    path = folder / "manifest.json"
    document = json.loads(path.read_text())
    change(document)
    if sign:
        document["digest"] = digest(document)
    path.write_text(json.dumps(document))


def measurement(bundle) -> Measurement:
    block = Block(launch=0, scope="request", samples_ms=(4.1, 3.9), speed_before_ms=1.0, speed_after_ms=1.0)
    return Measurement(
        variant=bundle.variant.name,
        workload=Workload(batch_size=2, threads=1),
        environment=Environment(hardware="h", engine="e", vitrail="1", photos="p"),
        facts=RunnerFacts(
            runtime="openvino",
            version="1",
            precision="fp32",
            threads=1,
            graphs=(runtimes.sized(TASK.graph("model.xml"), {"B": 2}),),
        ),
        blocks=(block,),
        memory=Memory(peak=200.0),
        parity=None,
        load_s=0.1,
        warm_up_calls=3,
    )


# --- writing and reading back ---------------------------------------------------------------------


def test_splits_and_a_text_tower_are_kept_and_checked(bundle, tmp_path):
    weights = tmp_path / "clip.safetensors"
    weights.write_bytes(b"both towers")
    tower = TextTower(weights=weights, model="ViT-B-32", tag="openai", license="mit", templates=("a {}.",))
    splits = {"train": {"0f": "cat"}, "validation": {}, "test": {"1e": "dog"}}
    write(tmp_path / "w", dataclasses.replace(bundle, text_tower=tower, splits=splits))
    artifact = open_artifact(tmp_path / "w")
    found = artifact.text_tower()
    assert found.weights.read_bytes() == b"both towers"
    assert dataclasses.replace(found, weights=weights) == tower
    assert json.loads((tmp_path / "w" / "evidence" / "splits.json").read_text()) == splits
    found.weights.write_bytes(b"other towers")
    with pytest.raises(InputError, match="was changed"):
        open_artifact(tmp_path / "w")


def test_an_artifact_without_a_text_tower_says_so(original):
    assert open_artifact(original.path).text_tower() is None


def test_everything_written_comes_back(bundle, tmp_path):
    kept = measurement(bundle)
    write(tmp_path / "w", dataclasses.replace(bundle, measurement=kept))
    artifact = open_artifact(tmp_path / "w")
    manifest = artifact.manifest
    assert manifest.variant == bundle.variant
    assert manifest.evidence == bundle.evidence
    assert artifact.task == bundle.task
    assert manifest.reference.bounds == bundle.bounds
    assert artifact.task.labels == LABELS
    assert artifact.measurement() == kept
    np.testing.assert_array_equal(artifact.fp32_outputs()["scores"], bundle.fp32_outputs["scores"])
    np.testing.assert_array_equal(artifact.own_outputs()["scores"], bundle.own_outputs["scores"])
    assert [p.read_bytes() for p in artifact.photos] == [p.read_bytes() for p in bundle.photos]
    assert (artifact.model_folder / manifest.graphs[0].entry).is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["w"]


def test_digests_can_be_recomputed_without_vitrail(original):
    """The recipe of docs/artifact.md."""
    document = json.loads((original.path / "manifest.json").read_text())
    listed = document["files"]
    on_disk = {
        p.relative_to(original.path).as_posix(): {
            "sha256": hashlib.sha256(p.read_bytes()).hexdigest(),
            "size": p.stat().st_size,
        }
        for p in original.path.rglob("*")
        if p.is_file() and p.name != "manifest.json"
    }
    assert listed == on_disk
    claimed = document.pop("digest")
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    assert hashlib.sha256(text.encode()).hexdigest() == claimed


def test_docs_name_every_field_of_the_manifest(original):
    text = Path(__file__).parents[1].joinpath("docs", "artifact.md").read_text()
    document = json.loads((original.path / "manifest.json").read_text())
    for name in [*document, *document["evidence"], *document["reference"], *document["reference"]["bounds"]]:
        assert f"`{name}`" in text, name


def test_overwrites_an_artifact_and_nothing_else(bundle, tmp_path):
    write(tmp_path / "w", bundle)
    with pytest.raises(InputError, match="already exists"):
        write(tmp_path / "w", bundle)
    (tmp_path / "w" / "stray").write_text("x")
    write(tmp_path / "w", bundle, overwrite=True)
    open_artifact(tmp_path / "w")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.jpg").write_text("precious")
    with pytest.raises(InputError, match="is not an artifact"):
        write(tmp_path / "photos", bundle, overwrite=True)
    assert (tmp_path / "photos" / "mine.jpg").read_text() == "precious"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: {"export": dataclasses.replace(b.export, random_weights=True)}, "never shipped"),
        (lambda b: {"variant": dataclasses.replace(b.variant, reference=True)}, "never shipped"),
        (lambda b: {"variant": dataclasses.replace(b.variant, image_size=64)}, "image size"),
        (lambda b: {"export": dataclasses.replace(b.export, graphs=(b.task.graph("other.xml"),))}, "entry"),
        (lambda b: {"own_outputs": {"scores": b.own_outputs["scores"][:, 1:]}}, "outputs"),
        (lambda b: {"photos": ()}, "reference photos"),
        (lambda b: {"own_outputs": {"scores": b.own_outputs["scores"] * np.nan}}, "not finite"),
        (lambda b: {"export": dataclasses.replace(b.export, files=(*b.export.files, "../x"))}, "outside"),
    ],
)
def test_a_bundle_that_must_not_ship_is_refused(bundle, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "w", dataclasses.replace(bundle, **change(bundle)))
    assert list(tmp_path.iterdir()) == []


def test_a_source_that_is_gone_is_named(bundle, tmp_path):
    gone = dataclasses.replace(bundle, photos=(tmp_path / "gone.png", *bundle.photos[1:]))
    with pytest.raises(InputError, match=r"gone\.png cannot be read"):
        write(tmp_path / "w", gone)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing(bundle, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store.os, "fsync", full)
    with pytest.raises(InputError, match="No space left"):
        write(tmp_path / "w", bundle)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_writer_leaves_a_whole_artifact_or_none(tmp_path):
    code = """
import itertools, pathlib, sys
sys.path.insert(0, sys.argv[2])
from artifacts import make_bundle
from vitrail.artifact import write
folder = pathlib.Path(sys.argv[1])
bundle = make_bundle(folder / "bundle")
print("ready", flush=True)
for i in itertools.count():
    write(folder / f"w{i}", bundle)
"""
    writer = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path, Path(__file__).parent], stdout=subprocess.PIPE
    )
    try:
        assert writer.stdout.readline() == b"ready\n"
        time.sleep(0.2)
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
    written = [path for path in tmp_path.iterdir() if path.name.startswith("w")]
    assert written
    for path in written:
        open_artifact(path)


# --- tampering ------------------------------------------------------------------------------------


def test_missing_file(winner):
    (winner / "model" / "model.bin").unlink()
    with pytest.raises(InputError, match=r"model\.bin is missing: restore it"):
        open_artifact(winner)


@pytest.mark.parametrize("name", ["model/model.bin", "labels.txt", "reference/own/scores.npy"])
def test_changed_file(winner, name):
    data = bytearray((winner / name).read_bytes())
    data[-1] ^= 1
    (winner / name).write_bytes(data)
    with pytest.raises(InputError, match=r"was changed: restore it"):
        open_artifact(winner)


def test_shortened_file(winner):
    (winner / "model" / "model.bin").write_bytes(b"")
    with pytest.raises(InputError, match=r"model\.bin was changed"):
        open_artifact(winner)


@pytest.mark.parametrize("name", ["extra.txt", "model/extra.onnx", ".hidden", "empty/"])
def test_added_file_or_folder(winner, name):
    (winner / name).mkdir() if name.endswith("/") else (winner / name).write_text("x")
    with pytest.raises(InputError, match=r"was added to the artifact: remove it"):
        open_artifact(winner)


def test_file_linked_outside_even_with_equal_content(winner, tmp_path):
    outside = tmp_path / "labels.txt"
    (winner / "labels.txt").rename(outside)
    (winner / "labels.txt").symlink_to(outside)
    with pytest.raises(InputError, match=r"labels\.txt is a link"):
        open_artifact(winner)


def test_folder_linked_outside(winner, tmp_path):
    (winner / "model").rename(tmp_path / "model")
    (winner / "model").symlink_to(tmp_path / "model", target_is_directory=True)
    with pytest.raises(InputError, match=r"model is a link"):
        open_artifact(winner)


def test_linked_manifest(winner, tmp_path):
    (winner / "manifest.json").rename(tmp_path / "m.json")
    (winner / "manifest.json").symlink_to(tmp_path / "m.json")
    with pytest.raises(InputError, match=r"manifest\.json is not a regular file"):
        open_artifact(winner)


def test_pipe_in_place_of_a_file_does_not_hang(winner):
    (winner / "labels.txt").unlink()
    os.mkfifo(winner / "labels.txt")
    with pytest.raises(InputError, match=r"labels\.txt is not a regular file"):
        open_artifact(winner)


def test_folder_in_place_of_a_file(winner):
    (winner / "labels.txt").unlink()
    (winner / "labels.txt").mkdir()
    with pytest.raises(InputError, match=r"labels\.txt was added"):
        open_artifact(winner)


@pytest.mark.parametrize(
    "name",
    [
        "../outside",
        "/etc/hostname",
        "model/../../outside",
        "./labels.txt",
        "a//b",
        "a\\b",
        "",
        "manifest.json",
    ],
)
def test_manifest_that_lists_a_file_outside(winner, tmp_path, name):
    (tmp_path / "outside").write_text("x")

    def change(document):
        document["files"][name] = {"sha256": hashlib.sha256(b"x").hexdigest(), "size": 1}

    edit(winner, change)
    with pytest.raises(InputError, match="outside the artifact"):
        open_artifact(winner)


@pytest.mark.parametrize("place", ["task.labels", "graphs.0.entry", "reference.own_outputs.scores"])
def test_manifest_that_uses_a_file_outside(winner, place):
    def change(document):
        *keys, last = place.split(".")
        for key in keys:
            document = document[int(key) if key.isdigit() else key]
        document[last] = "../../outside"

    edit(winner, change)
    with pytest.raises(InputError, match=r"uses '.*outside' without listing it"):
        open_artifact(winner)


def test_newer_schema_says_upgrade_whatever_else_changed(winner):
    edit(winner, lambda d: d.update(schema_version=SCHEMA_VERSION + 1, name={"new": "shape"}), sign=False)
    with pytest.raises(InputError, match="upgrade vitrail"):
        open_artifact(winner)


def test_edited_claim(winner):
    edit(winner, lambda d: d["evidence"]["accuracy"].update(value=99.9), sign=False)
    with pytest.raises(InputError, match=r"manifest\.json was changed"):
        open_artifact(winner)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["task"].update(classes="five"),
        lambda d: d["task"].update(more=1),
        lambda d: d["task"]["preprocess"].update(interpolation="nearest"),
        lambda d: d["graphs"][0]["inputs"][0].update(shape="B"),
        lambda d: d.update(schema_version="1"),
    ],
)
def test_manifest_with_a_wrong_field(winner, change):
    edit(winner, change)
    with pytest.raises(InputError, match="is not valid"):
        open_artifact(winner)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a JSON document"),
        ("{", "not a JSON document"),
        ("[1]", "not a JSON document"),
        ("[" * 100_000, "not a JSON document"),
        ('{"a": 1}', "not the manifest of a Vitrail artifact"),
        ('{"format": "vitrail-artifact", "schema_version": 1, "x": NaN}', "was changed"),
    ],
)
def test_manifest_that_is_none(winner, text, message):
    (winner / "manifest.json").write_text(text)
    with pytest.raises(InputError, match=message):
        open_artifact(winner)


def test_no_manifest_no_folder_nothing(winner, tmp_path):
    (winner / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"has no manifest\.json: name a folder vitrail wrote"):
        open_artifact(winner)
    with pytest.raises(InputError, match="is a file: name the folder"):
        open_artifact(winner / "labels.txt")
    with pytest.raises(InputError, match="does not exist: name the folder"):
        open_artifact(tmp_path / "nothing")


def test_pickle_in_place_of_outputs_is_not_loaded(winner):
    """Even a manifest made to fit cannot make reading run code."""
    path = winner / "reference" / "own" / "scores.npy"
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    data = path.read_bytes()

    def change(document):
        entry = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
        document["files"]["reference/own/scores.npy"] = entry

    edit(winner, change)
    with pytest.raises(InputError, match="is not float32"):
        open_artifact(winner).own_outputs()


def resigned(winner, name, data):
    """One file made another, with a manifest that fits."""
    (winner / name).parent.mkdir(exist_ok=True)
    (winner / name).write_bytes(data)

    def change(document):
        document["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
        if name.startswith("evidence"):
            document["measurement"] = name

    edit(winner, change)


@pytest.mark.parametrize(
    "header",
    [b"{'descr': " + 3 * b"'" + b"abc", b"-" * 9000 + b"1", b"{[]:1}", b"{1:2,'a':3}", b"(" * 9000],
    ids=range(5),
)
def test_a_header_that_numpy_cannot_read_is_no_traceback(winner, header):
    data = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    resigned(winner, "reference/own/scores.npy", data)
    with pytest.raises(InputError, match="is not float32"):
        open_artifact(winner)


def test_a_measurement_of_a_million_brackets_is_no_traceback(winner):
    resigned(winner, "evidence/measurement.json", b"[" * 1_000_000)
    with pytest.raises(InputError, match=r"measurement\.json is not valid"):
        open_artifact(winner).measurement()


def test_the_folder_may_move_and_be_reached_by_a_link(winner, tmp_path):
    winner.rename(tmp_path / "moved")
    (tmp_path / "current").symlink_to(tmp_path / "moved", target_is_directory=True)
    assert open_artifact(tmp_path / "current").task.labels == LABELS


# --- evidence of a selection ----------------------------------------------------------------------


def test_evidence_is_the_winners(bundle):
    seen = Observation(
        variant=bundle.variant,
        accuracy=bundle.evidence.accuracy,
        latency=bundle.evidence.latency,
        throughput=500.0,
        measurement=measurement(bundle),
    )
    verdict = Verdict(
        requirement="max_latency", answer="pass", observed=4.0, limit=50.0, margin=46.0, reason="below"
    )
    entry = LedgerEntry(observation=seen, status="selected", verdicts=(verdict,), reasons=())
    selection = Selection(
        requirements=Requirements(max_latency_ms=50.0),
        workload=Workload(),
        hardware={"cpu": "x"},
        ledger=(entry,),
        selected=bundle.variant.name,
    )
    evidence = evidence_of(selection)
    assert evidence.verdicts == (verdict,)
    assert evidence.facts == seen.measurement.facts
    assert evidence.environment == seen.measurement.environment
    assert evidence.throughput == 500.0
    with pytest.raises(ValueError, match="nothing leads"):
        evidence_of(dataclasses.replace(selection, selected=None))

"""A value that decides answers has no default in a file, and all are in range, or the artifact is refused."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import msgspec
import pytest
from artifacts import make_artifact

from vitrail import predict
from vitrail.artifact import open_artifact
from vitrail.artifact.manifest import digest
from vitrail.artifact.values import DECIDING, SINCE_2
from vitrail.errors import InputError
from vitrail.vocabulary import Preprocess

sys.path.insert(0, str(Path(__file__).parents[1] / "fuzz"))
import manifests


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return make_artifact(tmp_path_factory.mktemp("values")).path


@pytest.fixture
def changed(original, tmp_path):
    """Write the artifact again with one change to its manifest, which is signed anew."""

    def write(change) -> Path:
        target = Path(shutil.copytree(original, tmp_path / "changed"))
        document = json.loads((target / "manifest.json").read_text())
        change(document)
        document["digest"] = digest(document)
        (target / "manifest.json").write_text(json.dumps(document))
        return target

    return write


def at(document, path):
    for key in path:
        document = document[key]
    return document


def deciding(original) -> list[tuple[str, ...]]:
    document = json.loads((original / "manifest.json").read_text())
    paths = [*DECIDING, ("task",), ("task", "preprocess")]
    return [("graphs",), *((*path, name) for path in paths for name in at(document, path))]


def test_preprocessing_that_was_read_without_all_keys_is_written_with_all():
    """An artifact says every value that decides answers, also where a description left one to its default."""
    read = msgspec.convert({"image_size": 64}, Preprocess)
    assert msgspec.to_builtins(read) == msgspec.to_builtins(Preprocess(image_size=64))


def test_no_deciding_value_may_be_missing(original, tmp_path):
    document = json.loads((original / "manifest.json").read_text())
    missing = deciding(original)
    assert len(missing) > 40
    target = Path(shutil.copytree(original, tmp_path / "changed"))
    for path in missing:
        body = json.loads(json.dumps(document))
        del at(body, path[:-1])[path[-1]]
        body["digest"] = digest(body)
        (target / "manifest.json").write_text(json.dumps(body))
        with pytest.raises(InputError, match=r"does not say|missing required field"):
            open_artifact(target)


def test_whether_it_was_run_is_said_since_schema_8(changed, original):
    with pytest.raises(InputError, match=r"does not say evidence\.run: write"):
        open_artifact(changed(lambda d: d["evidence"].pop("run")))
    assert open_artifact(original).manifest.evidence.run


@pytest.mark.parametrize("schema", [5, 6, 7])
def test_what_older_schemas_wrote_was_run(changed, schema):
    def before(document):
        document["schema_version"] = schema
        del document["evidence"]["run"]

    assert open_artifact(changed(before)).manifest.evidence.run


def older(tmp_path, change) -> Path:
    """The artifact of schema 2 as one of schema 1, with one change to its manifest."""
    target = Path(shutil.copytree(Path(__file__).parent / "golden" / "artifact-2-openvino", tmp_path / "old"))
    document = json.loads((target / "manifest.json").read_text())
    document["schema_version"] = 1
    change(document)
    document["digest"] = digest(document)
    (target / "manifest.json").write_text(json.dumps(document))
    return target


def test_the_first_manifests_of_schema_1_are_read_as_before(tmp_path, original):
    def change(document):
        for path in SINCE_2:
            del at(document, path[:-1])[path[-1]]

    photo = open_artifact(original).photos[0]
    with predict.load(older(tmp_path, change)) as then, predict.load(original) as now:
        assert then.task.probability == "softmax"
        assert then.predict(photo) == now.predict(photo)


@pytest.mark.parametrize("name", ["crop", "crop_mode", "interpolation", "mean", "std"])
def test_schema_1_always_said_its_preprocessing(tmp_path, name):
    def change(document):
        for place in (document["preprocess"], document["variant"]["candidate"]["preprocess"]):
            del place[name]

    with pytest.raises(InputError, match=f"does not say preprocess.{name}"):
        open_artifact(older(tmp_path, change))


def loaded(document):
    return document["evidence"]["facts"]["graphs"][0]


def everywhere(name, value):
    """The same preprocessing in both places, so that nothing contradicts it."""

    def change(document):
        for place in (document["task"]["preprocess"], document["variant"]["candidate"]["preprocess"]):
            place[name] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (everywhere("std", [0.2, -0.2, 0.2]), "std is 0.2, -0.2, 0.2: it must be from 0.001 to 10"),
        (everywhere("std", [0, 0.2, 0.2]), "std is 0"),
        (everywhere("mean", [123.0, 117.0, 104.0]), "mean is 123"),
        (everywhere("crop", 1e-4), "crop is 0.0001"),
        (lambda d: d["task"]["preprocess"].update(image_size=64), "preprocess is the candidate's"),
        (lambda d: d["task"]["preprocess"].update(mean=[0.5, 0.5, 0.5]), "preprocess is the candidate's"),
        (lambda d: d["variant"].update(image_size=64), "name is the variant's"),
        (lambda d: d["variant"].update(precision="bf16"), "name is the variant's"),
        (lambda d: d.update(schema_version=-1), "schema_version is 1 or more"),
        (lambda d: d.update(schema_version=True), "is not valid"),
        (lambda d: d["evidence"]["workload"].update(threads=100_000), "threads: 100000 is above 1024"),
        (lambda d: d["evidence"]["workload"].update(batch_size=10**400), "batch_size"),
        (lambda d: d["evidence"]["facts"].update(graphs=[]), "facts.graphs are the manifest's"),
        (lambda d: loaded(d)["inputs"][0].update(shape=[2, 3, 32]), "have the manifest's inputs"),
        (lambda d: loaded(d)["outputs"][0].update(shape=[2, 7]), "have the manifest's outputs"),
        (lambda d: loaded(d)["outputs"][0].update(shape=["B", 5]), "have the manifest's outputs"),
        (lambda d: d["graphs"][0]["inputs"][0].update(shape=["B", 3, 64, 64]), "graph"),
        (lambda d: d["graphs"][0]["outputs"][0].update(shape=["B", 10**9]), "sizes of 1 to 1,000,000"),
        (lambda d: d["graphs"].append(d["graphs"][0]), "graphs"),
        (
            lambda d: (d["graphs"].append(d["graphs"][0]), d["evidence"].update(facts=None)),
            "graph is the task",
        ),
        (lambda d: d["task"].update(name="embed"), "task is the candidate's"),
        (lambda d: d["task"].update(classes=6), "5 labels for 6 classes"),
        (
            lambda d: d["evidence"]["latency"]["request"].update(p50=0.0),
            "latency.request is of times above 0",
        ),
        (lambda d: d["evidence"]["memory"].update(peak=1e300), "evidence.memory.peak"),
        (
            lambda d: d["evidence"]["accuracy"].update(value=101.0),
            "<= 100.0 - at `\\$.evidence.accuracy.value",
        ),
        (lambda d: d["reference"]["bounds"].update(relative_error=1e9), "relative_error is above 0"),
        (lambda d: d["reference"].update(photos=[]), "photos"),
        (lambda d: d.update(created="\ud800"), "not a JSON document"),
    ],
)
def test_absurd_and_contradicting_values_are_refused(changed, change, message):
    with pytest.raises(InputError, match=message):
        open_artifact(changed(change))


def test_a_key_that_stands_twice_is_refused(changed):
    target = changed(lambda d: None)
    text = (target / "manifest.json").read_text()
    (target / "manifest.json").write_text(text.replace('"classes"', '"classes": 5, "classes"', 1))
    with pytest.raises(InputError, match="not a JSON document"):
        open_artifact(target)


@pytest.mark.parametrize("name", ["CACHE_DIR", "INFERENCE_PRECISION_HINT"])
def test_engine_settings_that_write_or_decide_are_refused(changed, name):
    """OpenVINO's CACHE_DIR would write a file wherever the manifest says."""

    def change(document):
        document["variant"].update(settings=[[name, "x"]])
        document["name"] += f" {name}=x"

    target = changed(change)
    with pytest.raises(InputError, match=f"does not take the setting {name}"):
        predict.load(target)


def test_a_reference_engine_is_never_loaded_from_an_artifact(changed):
    def change(document):
        document["variant"]["runtime"] = document["evidence"]["facts"]["runtime"] = "pytorch"
        document["name"] = document["name"].replace("openvino", "pytorch")

    with pytest.raises(InputError, match="never shipped"):
        predict.load(changed(change))


def test_a_sample_of_the_campaign_finds_nothing():
    found = manifests.campaign(120, seed=11)
    assert found["findings"] == []
    assert found["counts"]["value: refused (InputError)"] > 50
    assert found["counts"]["value: same answers"] > 3

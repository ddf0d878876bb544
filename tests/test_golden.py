"""What today's Vitrail must still read and decide as the one that wrote it did (`tests/golden/`).

`python tests/test_golden.py` writes `decisions.json` anew, after a change of the method that is meant.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from artifacts import LABELS, numpy_scores
from test_search import LIMITS, grid_of, run

from vitrail import predict, verify
from vitrail.artifact import open_artifact
from vitrail.document import from_document, to_document
from vitrail.images.decode import decode
from vitrail.images.preprocess import prepare_batch

GOLDEN = Path(__file__).parent / "golden"
DECISIONS = GOLDEN / "decisions.json"
ARTIFACTS = sorted(path.name for path in GOLDEN.glob("artifact-*"))
DOCUMENTS = sorted(path.name for path in GOLDEN.glob("selection-*.json"))
CASES = [(seed, limits) for seed in (0, 1) for limits in LIMITS]


@pytest.mark.parametrize("name", ARTIFACTS)
def test_artifacts_of_every_schema_answer_as_they_did(name):
    artifact = open_artifact(GOLDEN / name)
    photos = artifact.photos
    batch = prepare_batch([decode(photo) for photo in photos], artifact.manifest.variant.candidate.preprocess)
    expected = [LABELS[row.argmax()] for row in numpy_scores(batch)]
    with predict.load(GOLDEN / name, threads=1) as predictor:
        assert [each.label for each in predictor.predict(photos)] == expected
    assert verify.verify(GOLDEN / name, threads=1).holds


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents_of_every_schema_say_what_they_said(name):
    recorded = from_document((GOLDEN / name).read_bytes(), name)
    then = json.loads((GOLDEN / name).read_text("utf-8"))
    now = to_document(recorded.selection)
    assert now["selected"] == then["selected"]
    assert [row["name"] for row in now["variants"]] == [row["name"] for row in then["variants"]]
    for new, old in zip(now["variants"], then["variants"], strict=True):
        for key in ("status", "reasons", "accuracy", "latency_ms", "memory_mib", "parity", "verdicts"):
            if isinstance(old[key], dict):  # later versions say more
                assert {name: new[key][name] for name in old[key]} == old[key], key
            else:
                assert new[key] == old[key], key


def assert_holds_the_figures_of(old: dict[str, object], quality) -> None:
    """`old` is the `classification` of a document up to 5 or an artifact up to 3."""
    assert (quality.split, quality.data, quality.images) == (old["split"], old["data"], old["images"])
    assert (quality.main.metric, quality.main.value) == ("top-1", old["accuracy"])
    assert list(quality.main.interval) == old["interval"]
    assert quality.figure("balanced accuracy").value == old["balanced_accuracy"]
    assert quality.figure("calibration error").value == old["calibration_error"]
    for recall in old["recalls"]:
        found = quality.figure("recall", recall["label"])
        assert (found.value, found.images, found.share) == (recall["value"], recall["images"], True)
    assert [list(row) for row in quality.tables[0].counts] == old["confusion"]
    assert list(quality.tables[0].labels) == [recall["label"] for recall in old["recalls"]]


def test_what_version_5_measured_on_labelled_images_has_names_now():
    old = json.loads((GOLDEN / "selection-5.json").read_text("utf-8"))
    selection = from_document(old, "selection-5.json").selection
    assert_holds_the_figures_of(old["test"], selection.test)
    for entry, row in zip(selection.ledger, old["variants"], strict=True):
        if row["classification"] is None:
            assert entry.observation.quality is None
        else:
            assert_holds_the_figures_of(row["classification"], entry.observation.quality)
    assert from_document(to_document(selection), "it").selection == selection


def test_what_an_artifact_of_schema_3_measured_has_names_now():
    old = json.loads((GOLDEN / "artifact-3-openvino" / "manifest.json").read_text("utf-8"))["evidence"]
    artifact = open_artifact(GOLDEN / "artifact-3-openvino")
    evidence, measured = artifact.manifest.evidence, artifact.measurement()
    assert_holds_the_figures_of(old["classification"], evidence.quality)
    assert_holds_the_figures_of(old["test"], evidence.test)
    assert {stage: figures.p50 for stage, figures in evidence.latency.items()} == {
        stage: old[stage]["p50"] for stage in ("request", "model")
    }
    assert measured.quality == evidence.quality
    assert [block.scope for block in measured.blocks] == ["request", "model"]


def decision(seed: int, limits: dict[str, object]) -> dict[str, object]:
    """What the search selects on a simulated grid, and why it leaves the others."""
    selection, _, _ = run(grid_of(seed), **limits)
    figures = {}
    for entry in selection.ledger:
        seen = entry.observation
        figures[entry.variant.name] = [
            entry.status,
            *entry.reasons,
            round(seen.latency["request"].judged.value, 6) if "request" in seen.latency else None,
            round(seen.accuracy.value, 6) if seen.accuracy else None,
        ]
    return {"seed": seed, "limits": limits, "selected": selection.selected, "ledger": figures}


@pytest.mark.parametrize("place", range(len(CASES)))
def test_recorded_launches_are_decided_as_they_were(place):
    seed, limits = CASES[place]
    assert decision(seed, limits) == json.loads(DECISIONS.read_text("utf-8"))[place]


if __name__ == "__main__":
    rows = [decision(seed, limits) for seed, limits in CASES]
    DECISIONS.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

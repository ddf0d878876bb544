"""Embedding with an artifact: vectors, the file of an index, the search over it. About 3 s."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import artifacts
import numpy as np
import pytest
from artifacts import EMBED, PREPROCESS, numpy_vectors

from vitrail.cli import main
from vitrail.embeddings import read_table
from vitrail.embeddings.artifact import ArtifactEmbedder
from vitrail.errors import InputError
from vitrail.images.decode import decode
from vitrail.images.preprocess import prepare_batch
from vitrail.predict import load
from vitrail.tasks.embed import nearest

pytest.importorskip("pyarrow", reason="needs the extra search")


@pytest.fixture(scope="module")
def winner(tmp_path_factory):
    return artifacts.make_embed_artifact(tmp_path_factory.mktemp("embed"))


@pytest.fixture
def photos(winner, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for photo in winner.photos:
        shutil.copy(photo, folder / photo.name)
    return folder


def expected(paths) -> np.ndarray:
    vectors = numpy_vectors(prepare_batch([decode(path) for path in paths], PREPROCESS))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_vectors_are_the_networks_at_any_batch(winner, photos):
    paths = sorted(str(path) for path in photos.iterdir())
    for batch in (1, 2, 5):
        with ArtifactEmbedder(winner.path, threads=1, batch_size=batch) as embedder:
            found = embedder.images(paths)
            assert embedder.origin.dimension == 8
        np.testing.assert_allclose(found, expected(paths), atol=1e-6)


def test_embed_and_search_with_an_artifact(winner, photos, tmp_path, capsys):
    (photos / "broken.png").write_bytes((photos / "00.png").read_bytes()[:200])
    out = tmp_path / "photos.parquet"
    assert main(["embed", str(photos), "--artifact", str(winner.path), "--out", str(out)]) == 1
    assert "broken.png" in capsys.readouterr().err
    table = read_table(out)
    assert [name.rsplit("/")[-1] for name in table.names] == ["00.png", "01.jpg", "02.png"]
    np.testing.assert_allclose(table.vectors_ND, expected(table.names), atol=1e-6)
    assert main(["search", str(out), str(photos / "02.png"), "--json", "-"]) == 0
    hits = json.loads(capsys.readouterr().out)["hits"]
    assert hits[0]["name"].endswith("02.png")
    assert hits[0]["score"] == pytest.approx(1.0, abs=1e-5)
    moved = shutil.copytree(winner.path, tmp_path / "moved")
    assert main(["search", str(out), str(photos / "02.png"), "--artifact", str(moved)]) == 0


def test_neither_task_takes_the_others_artifact(winner, photos, tmp_path, capsys):
    assert main(["predict", str(winner.path), str(photos)]) == 2
    assert "was not made to classify: its task is embed" in capsys.readouterr().err
    classifier = artifacts.make_artifact(tmp_path / "classifier").path
    with pytest.raises(InputError, match=r"its task is classify.*--task embed"):
        ArtifactEmbedder(classifier)
    with load(winner.path) as predictor:
        (vector,) = predictor.predict(winner.photos[0])
        assert vector.shape == (8,)


@pytest.mark.parametrize("extra", [["--weights", "x"], ["--text"], ["--tag", "y"], ["--offline"]])
def test_what_is_about_models_is_refused_with_an_artifact(winner, photos, tmp_path, extra, capsys):
    command = ["embed", str(photos), "--artifact", str(winner.path), "--out", str(tmp_path / "o.parquet")]
    assert main([*command, *extra]) == 2
    assert f"{extra[0]} goes with --model" in capsys.readouterr().err


@pytest.mark.parametrize("extra", [["--data", "x"], ["--classes", "a,b"], ["--trained", "x"]])
def test_select_refuses_classes_with_vectors(extra, capsys):
    assert main(["select", "--task", "embed", *extra]) == 2
    assert f"{extra[0]} is about classes" in capsys.readouterr().err


def test_embedding_with_an_artifact_loads_no_torch(winner, photos, tmp_path):
    code = (
        "import sys; from vitrail.cli import main; "
        f"code = main(['embed', {str(photos)!r}, '--artifact', {str(winner.path)!r}, "
        f"'--out', {str(tmp_path / 'o.parquet')!r}]); "
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


# --- parity ---------------------------------------------------------------------------------------


def test_nearest_neighbours_against_a_loop():
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(9, 2, 16)).astype(np.float32)
    vectors = reference + 0.4 * rng.normal(size=reference.shape).astype(np.float32)
    flat, moved = (
        v.reshape(18, 16) / np.linalg.norm(v.reshape(18, 16), axis=1)[:, None] for v in (reference, vectors)
    )
    decided = agreeing = 0
    for photo in range(9):
        clear, same = [], []
        for crop in (2 * photo, 2 * photo + 1):
            others = [k for k in range(18) if k // 2 != photo]
            before = sorted(others, key=lambda k: -(flat[crop] @ flat[k]))
            after = max(others, key=lambda k: moved[crop] @ moved[k])
            clear.append(flat[crop] @ flat[before[0]] - flat[crop] @ flat[before[1]] >= 0.01)
            same.append(before[0] == after)
        decided += any(clear)
        agreeing += any(clear) and all(s for s, c in zip(same, clear, strict=True) if c)
    assert tuple(mask.sum() for mask in nearest(reference, vectors)) == (decided, agreeing)
    assert 0 < agreeing < decided


def test_parity_of_vectors():
    rng = np.random.default_rng(1)
    reference = {"vectors": rng.normal(size=(12, 1, 16)).astype(np.float32)}
    assert EMBED.compare(reference, reference, "fp32").answer == "pass"
    few = {"vectors": reference["vectors"][:5]}
    assert "clear nearest neighbour: add photos" in EMBED.compare(few, few, "fp32").reason
    wrong = {"vectors": reference["vectors"].copy()}
    wrong["vectors"][7] = wrong["vectors"][3]
    found = EMBED.compare(reference, wrong, "bf16")
    assert (found.answer, found.worst) == ("fail", "7")
    wrong["vectors"][0, 0, 0] = np.nan
    assert EMBED.compare(reference, wrong, "fp32").reason == "outputs are not finite"

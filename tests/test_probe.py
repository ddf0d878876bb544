"""learn/probe.py against scikit-learn's own pipeline, and the race of sources/probe.py."""

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from vitrail.catalog import candidates
from vitrail.data import Example, load
from vitrail.errors import InputError
from vitrail.learn import probe
from vitrail.sources import probe as probing
from vitrail.sources.source import Context, Found
from vitrail.vocabulary import Requirements, SearchSettings, Workload
from vitrail.weights.find import WeightsUnavailable


@pytest.fixture(scope="module")
def digits():
    features, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(features))
    return features[order].astype(np.float32), labels[order]


def test_a_probe_equals_scikit_learns_pipeline_at_the_chosen_strength(digits):
    features, labels = digits
    fitted = probe.fit(features[:600], labels[:600], 10)
    theirs = make_pipeline(StandardScaler(), LogisticRegression(C=fitted.strength, max_iter=1000, tol=1e-5))
    theirs.fit(features[:600], labels[:600])
    expected = theirs.decision_function(features[600:]) / fitted.temperature
    ours = fitted.scores(features[600:])
    # Scores are known up to a shift of all classes.
    centred = ours - ours.mean(1, keepdims=True) - (expected - expected.mean(1, keepdims=True))
    assert np.abs(centred).mean() < 0.03 * np.abs(expected).mean()
    assert (ours.argmax(1) == theirs.predict(features[600:])).mean() > 0.995


def test_fewer_images_than_features_give_the_same_as_without_the_rotation(digits, monkeypatch):
    features, labels = digits
    wide = np.concatenate([features[:90], np.sin(features[:90]), np.cos(features[:90] / 3)], axis=1)
    rotated = probe.fit(wide, labels[:90], 10)
    monkeypatch.setattr(probe, "_rotated", lambda x: (x, np.eye(x.shape[1])))
    plain = probe.fit(wide, labels[:90], 10)
    assert rotated.strength == plain.strength
    assert np.abs(rotated.scores(wide) - plain.scores(wide)).max() < 0.05 * np.abs(plain.scores(wide)).max()


def test_two_classes_and_features_that_never_move(digits):
    features, labels = digits
    two = labels < 2
    constant = np.concatenate([features[two], np.ones((two.sum(), 3), np.float32)], axis=1)
    fitted = probe.fit(constant, labels[two], 2)
    assert fitted.weight.shape == (2, 67)
    assert np.isfinite(fitted.weight).all()
    assert (fitted.scores(constant).argmax(1) == labels[two]).mean() > 0.99


def test_the_temperature_calms_a_head_that_is_too_sure():
    rng = np.random.default_rng(0)
    features = rng.standard_normal((400, 40)).astype(np.float32)
    labels = (features[:, 0] + 2 * rng.standard_normal(400) > 0).astype(int)
    fitted = probe.fit(features, labels, 2)
    new = rng.standard_normal((4000, 40)).astype(np.float32)
    truth = (new[:, 0] + 2 * rng.standard_normal(4000) > 0).astype(int)
    scores = fitted.scores(new)
    confidence = 1 / (1 + np.exp(-np.abs(scores[:, 1] - scores[:, 0])))
    assert abs(confidence.mean() - (scores.argmax(1) == truth).mean()) < 0.08


def test_a_class_with_one_image_leaves_nothing_to_choose_the_strength_on(digits):
    features, labels = digits
    some = np.concatenate([np.flatnonzero(labels == 0)[:5], np.flatnonzero(labels == 1)[:1]])
    fitted = probe.fit(features[some], labels[some], 2)
    assert fitted.strength == probe.STRENGTHS[2]
    assert np.isfinite(fitted.scores(features[some])).all()


def test_what_cannot_be_fitted_is_refused(digits):
    features, labels = digits
    with pytest.raises(InputError, match="no training image"):
        probe.fit(features[:50], labels[:50], 11)
    with pytest.raises(InputError, match="not finite"):
        probe.fit(np.full((4, 2), np.nan, np.float32), np.array([0, 1, 0, 1]), 2)


def test_the_nearest_neighbours_by_hand():
    features = np.array([[1, 0], [0.9, 0.1], [0, 1], [0.1, 0.9]], np.float32)
    labels = np.array([0, 0, 1, 1])
    new = np.array([[5, 0.1], [0.1, 3]], np.float32)
    # Of five neighbours asked and four there, two of each class: a tie goes to the first.
    assert probe.knn_accuracy(features[:3], labels[:3], new, np.array([0, 0])) == 100.0


def test_each_model_is_said_before_it_is_prepared(tmp_path):
    said = []

    class Bench:
        def weights(self, candidate):
            return None

        def unavailable(self, candidate):
            return WeightsUnavailable("They are elsewhere.")

    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        for i in range(8):
            pixels = rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / label / f"{i}.png")

    bench = Bench()
    bench.dataset, bench.workload = load(tmp_path), Workload()
    context = Context(
        requirements=Requirements(),
        settings=SearchSettings(),
        bench=bench,
        download_mib=0.0,
        doing=said.append,
    )
    found = probing.Probe(Found(candidates=candidates()[:3])).find(context)
    assert said == [f"probing: preparing {i} of 3 models" for i in (1, 2, 3)]
    assert "3 models have no weights at hand" in found.notes[0]
    assert found.why_none.startswith("No model could be probed: ")
    assert {candidate.name for candidate in found.candidates} == set(found.excluded)
    assert all(candidate.accuracy is None for candidate in found.candidates)


# --- the race -------------------------------------------------------------------------------------


def test_rounds_rise_and_end_with_all_images():
    assert probing.rounds(300, 3) == (300,)
    assert probing.rounds(5000, 3) == (512, 2048, 5000)
    assert probing.rounds(2000, 1000) == (2000,)


def test_every_beginning_of_a_mixed_order_holds_the_classes_in_their_shares():
    examples = [
        Example(path=f"/{label}/{i}", label=label, digest=f"{label * 7919 + i * 104729:064x}", split="train")
        for label, count in ((0, 300), (1, 100), (2, 20))
        for i in range(count)
    ]
    order = probing.mixed(examples)
    assert sorted(e.path for e in order) == sorted(e.path for e in examples)
    for size in (42, 84, 210):
        counts = np.bincount([e.label for e in order[:size]], minlength=3)
        assert np.abs(counts - size * np.array([300, 100, 20]) / 420).max() <= 1
    assert order == probing.mixed(list(reversed(examples)))

"""tasks/accuracy.py against scikit-learn, scipy and simulation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import betabinom, binomtest
from sklearn.metrics import balanced_accuracy_score, confusion_matrix

from vitrail.tasks import accuracy

CLASSES = ("a", "b", "c")


def scores_and_labels(seed, images=200):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, images)
    labels[:3] = range(3)
    return rng.standard_normal((images, 3)) + 1.5 * np.eye(3)[labels], labels


@pytest.mark.parametrize("seed", range(3))
def test_a_classification_equals_scikit_learns(seed):
    scores, labels = scores_and_labels(seed)
    seen = accuracy.classify(scores, labels, CLASSES, split="test", data="d")
    named = scores.argmax(1)
    assert seen.main.value == pytest.approx(100 * (named == labels).mean())
    assert seen.figure("balanced accuracy").value == pytest.approx(
        100 * balanced_accuracy_score(labels, named)
    )
    assert np.array_equal(seen.tables[0].counts, confusion_matrix(labels, named))
    assert [f.images for f in seen.figures if f.metric == "recall"] == np.bincount(labels).tolist()
    wilson = binomtest(int((named == labels).sum()), len(labels)).proportion_ci(method="wilson")
    assert seen.main.interval == pytest.approx((100 * wilson.low, 100 * wilson.high))


def test_a_class_without_images_has_no_recall():
    scores = np.eye(3)[[0, 1, 1]]
    seen = accuracy.classify(scores, [0, 1, 0], CLASSES, split="test", data="d")
    assert [(f.label, f.value) for f in seen.figures if f.metric == "recall"] == [("a", 50.0), ("b", 100.0)]
    assert seen.figure("balanced accuracy").value == 75.0


@pytest.mark.parametrize("scores", [np.full((2, 3), np.nan), np.zeros((3, 3)), np.zeros((2, 2))])
def test_scores_that_cannot_be_judged_are_refused(scores):
    with pytest.raises(ValueError, match="scores"):
        accuracy.classify(scores, [0, 1], CLASSES, split="test", data="d")


def test_the_calibration_error_of_known_probabilities():
    # 0.9 sure and right in 3 of 4; 0.6 sure and right in 1 of 2: (4 * 0.15 + 2 * 0.1) / 6
    probabilities = np.array([[0.9, 0.1]] * 4 + [[0.6, 0.4]] * 2)
    labels = np.array([0, 0, 0, 1, 0, 1])
    assert accuracy.calibration_error(probabilities, labels) == pytest.approx((4 * 0.15 + 2 * 0.1) / 6)


@given(st.integers(1, 300), st.floats(0, 1), st.integers(1, 300))
@settings(max_examples=60)
def test_the_expected_share_is_the_beta_binomials(images, share, new):
    right = round(share * images)
    low, high = accuracy.expected_share(right, images, new)
    reference = betabinom(new, right + 0.5, images - right + 0.5)
    assert (low, high) == pytest.approx(
        (reference.ppf(0.025) / new, reference.ppf(0.975) / new), abs=1.01 / new
    )
    assert 0 <= low <= high <= 1


def test_the_expected_share_holds_as_often_as_it_says():
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        p = rng.uniform(0.6, 0.98)
        low, high = accuracy.expected_share(int(rng.binomial(150, p)), 150, 120)
        held += low <= rng.binomial(120, p) / 120 <= high
    assert 370 <= held <= 396


def test_two_that_differ_on_many_images_are_apart_and_equal_ones_never():
    rng = np.random.default_rng(0)
    hard = rng.random(400)
    assert accuracy.shares_differ(hard < 0.9, hard < 0.8)
    assert not accuracy.shares_differ(hard < 0.8, hard < 0.9)
    assert not accuracy.shares_differ(hard < 0.9, hard < 0.9)
    wrong = sum(accuracy.shares_differ(rng.random(400) < 0.8, rng.random(400) < 0.8) for _ in range(500))
    assert wrong <= 4

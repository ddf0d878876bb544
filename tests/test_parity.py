"""Parity counts photos, not crops, and refuses what is broken."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitrail.tasks.agreement import BOUNDS, cosines, relative_errors
from vitrail.tasks.classify import compare, decided_photos, loss_per_photo

CLASSES = 10


def scores(photos=12, crops=3, seed=0, spread=4.0):
    return np.random.default_rng(seed).normal(0, spread, (photos, crops, CLASSES)).astype(np.float32)


def brute_force(reference, other):
    """The definitions, one photo and one crop at a time."""
    decided = agreeing = 0
    losses = []
    for ref_photo, photo in zip(reference, other, strict=True):
        any_decided, all_agree, lost = False, True, []
        for ref, row in zip(ref_photo, photo, strict=True):
            p = np.exp(ref.astype(np.float64) - ref.max())
            p /= p.sum()
            first, second = sorted(p)[-1], sorted(p)[-2]
            lost.append(100 * (p[ref.argmax()] - p[row.argmax()]))
            if first - second >= 0.1:
                any_decided = True
                all_agree &= ref.argmax() == row.argmax()
        decided += any_decided
        agreeing += any_decided and all_agree
        losses.append(np.mean(lost))
    return decided, agreeing, losses


@given(st.integers(0, 10_000), st.floats(0.0, 3.0), st.floats(0.3, 5.0))
def test_counts_and_losses_equal_the_definitions(seed, noise, spread):
    reference = scores(seed=seed, spread=spread)
    other = reference + np.random.default_rng(seed + 1).normal(0, noise, reference.shape).astype(np.float32)
    decided, agreeing, losses = brute_force(reference, other)
    assert tuple(mask.sum() for mask in decided_photos(reference, other)) == (decided, agreeing)
    np.testing.assert_allclose(loss_per_photo(reference, other), losses, atol=1e-3)


def test_equal_outputs_pass_and_lose_nothing():
    parity = compare(scores(), scores(), "fp32")
    assert parity.answer == "pass"
    assert (parity.relative_error, parity.loss) == (0.0, 0.0)
    assert parity.photos == 12


@pytest.mark.parametrize("precision", sorted(BOUNDS))
def test_an_error_three_times_the_bound_is_refused(precision):
    reference = scores()
    bound = BOUNDS[precision].relative_error
    for seed in range(50):
        noise = np.random.default_rng(seed).normal(size=reference.shape)
        noise /= np.linalg.norm(noise, axis=-1, keepdims=True)
        noise *= 3 * bound * np.linalg.norm(reference, axis=-1, keepdims=True)
        assert compare(reference, (reference + noise).astype(np.float32), precision).answer == "fail"


def test_outputs_that_are_not_finite_fail_whatever_else_holds():
    other = scores()
    other[3, 1, 2] = np.nan
    parity = compare(scores(), other, "fp32")
    assert parity.answer == "fail"
    assert "not finite" in parity.reason


def some_wrong(photos, changed):
    """Scores of decided photos, and the same with the answers to some of them changed."""
    reference = np.zeros((photos, 1, CLASSES), np.float32)
    reference[:, 0, 0], reference[:, 0, 1] = 8.0, 7.5  # 0.62 against 0.38
    other = reference.copy()
    other[:changed, 0, 1] = 8.1
    return reference, other


@pytest.mark.parametrize(
    ("precision", "photos", "changed", "answer"),
    [
        ("fp32", 100, 1, "fail"),
        # One of a few may be rare; three of thirty are not what bf16 does, and are what int8 might.
        ("bf16", 12, 1, "pass"),
        ("bf16", 30, 2, "fail"),
        ("int8", 30, 3, "pass"),
        ("int8", 30, 4, "fail"),
        ("bf16", 600, 10, "pass"),
        ("bf16", 600, 11, "fail"),
        ("int8", 600, 24, "pass"),
        ("int8", 600, 28, "fail"),
    ],
)
def test_changed_answers_fail_where_they_cannot_be_rare(precision, photos, changed, answer):
    reference, other = some_wrong(photos, changed)
    parity = compare(reference, other, precision)
    assert parity.relative_error < 0.2
    assert (parity.answer, parity.decided, parity.agreeing) == (answer, photos, photos - changed)


@pytest.mark.parametrize(("photos", "most"), [(12, 0.8), (30, 0.75), (100, 0.5), (599, 0.15)])
def test_photos_that_all_agree_bound_the_loss_of_int8(photos, most):
    reference, other = some_wrong(photos, 0)
    bound = compare(reference, other, "int8").loss_bound
    assert most * 0.8 < bound < most * 1.1


@given(st.integers(9, 400), st.integers(0, 8))
def test_the_bound_grows_with_what_changes_and_shrinks_with_photos(photos, changed):
    bounds = [compare(*some_wrong(photos, k), "int8").loss_bound for k in (changed, changed + 1)]
    assert bounds[0] < bounds[1]
    more = compare(*some_wrong(photos + 50, changed), "int8").loss_bound
    assert more < bounds[0]


def test_too_few_decided_photos_are_not_assessed():
    flat = np.zeros((20, 2, CLASSES), np.float32) + np.linspace(0, 0.01, CLASSES, dtype=np.float32)
    parity = compare(flat, flat, "fp32")
    assert parity.answer == "not assessed"
    assert parity.decided == 0
    assert "train it longer" in parity.reason, "more photos of the kind would not help"
    few = compare(scores(4), scores(4), "fp32")
    assert few.answer == "not assessed"
    assert few.reason == "only 4 of 4 photos are decided, 8 needed: add photos"


def test_the_loss_bound_of_fp32_needs_six_hundred_photos():
    assert compare(scores(599, 1), scores(599, 1), "fp32").loss_bound is None
    bound = compare(scores(600, 1), scores(600, 1), "fp32").loss_bound
    assert bound is not None
    assert 0 <= bound < 1.0


def test_other_shapes_are_a_fault_of_the_caller():
    with pytest.raises(ValueError, match="differ in shape"):
        compare(scores(3), scores(4), "fp32")


def test_a_row_as_long_as_the_others_is_judged_by_its_own_norm():
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(9, 2, 50)).astype(np.float32)
    reference /= np.linalg.norm(reference, axis=-1, keepdims=True)
    scores = reference + 0.01 * rng.normal(size=reference.shape).astype(np.float32)
    plain = np.linalg.norm(scores - reference, axis=-1)
    np.testing.assert_allclose(relative_errors(reference, scores), plain, rtol=1e-5)
    # The product of the norms is near 1, the usual one squared is 1: cosines stay cosines up to that.
    angles = (reference * scores).sum(-1) / np.linalg.norm(scores, axis=-1)
    np.testing.assert_allclose(cosines(reference, scores), angles, atol=3e-4)


def test_a_three_class_head_may_be_unsure_of_one_image():
    reference = np.tile([[[4.0, -2.0, -2.0]], [[-3.0, 5.0, -2.0]]], (5, 1, 1)).astype(np.float32)
    reference[3] = [[0.02, -0.03, 0.01]]
    scores = reference + np.float32([0.02, 0.02, -0.03])  # far below a bf16 rounding of 4
    assert compare(reference, scores, "bf16").answer == "pass"
    own = np.linalg.norm(scores[3] - reference[3]) / np.linalg.norm(reference[3])
    assert own > 1, "by its own norm this row would be refused"


def test_a_large_difference_on_an_unsure_image_is_still_refused():
    reference = np.tile([[[4.0, -2.0, -2.0]], [[-3.0, 5.0, -2.0]]], (5, 1, 1)).astype(np.float32)
    reference[3] = [[0.02, -0.03, 0.01]]
    scores = reference.copy()
    scores[3] = [[-2.0, 2.0, 0.0]]
    assert compare(reference, scores, "bf16").answer == "fail"

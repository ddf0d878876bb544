"""The figures of benchmarks/optimize.py, on numbers whose answer is known."""

import numpy as np
import optimize_figures as figures
import optimize_lite0
import optimize_panel
import pytest


def test_a_ratio_says_how_many_times_as_quick_and_widens_for_another_start() -> None:
    found = figures.ratio([3.0] * 8, [2.0] * 8)
    assert found is not None
    assert found["ratio"] == pytest.approx(1.5)
    assert found["low"] < 1.49
    assert found["high"] > 1.51
    assert figures.ratio([3.0] * 5, [2.0] * 5) is None


def test_the_bound_of_a_share_is_clopper_and_pearsons() -> None:
    # 0 of n: 1 - 0.05 ** (1 / n).
    assert figures.at_most(0, 59) == pytest.approx(1 - 0.05 ** (1 / 59), abs=1e-5)
    assert figures.at_most(3, 3) == 1.0


def test_a_paired_loss_counts_only_images_whose_answer_changed() -> None:
    before = np.array([True] * 90 + [False] * 10)
    after = before.copy()
    after[:2], after[-1] = False, True
    found = figures.paired_loss(before, after)
    assert (found["only_before_right"], found["only_after_right"]) == (2, 1)
    assert found["lost"] == pytest.approx(1.0)
    assert found["interval"][0] < 1.0 < found["interval"][1]


def test_photos_are_counted_and_undecided_ones_left_out() -> None:
    sure, unsure = np.array([9.0, 0.0, 0.0]), np.array([1.0, 0.99, 0.0])
    reference = np.stack([[sure, sure], [sure, unsure], [unsure, unsure]])
    scores = reference.copy()
    scores[0, 1], scores[2, 0] = scores[0, 1][::-1], scores[2, 0][::-1]
    found = optimize_lite0.changed(reference, scores)
    assert (found["middle"]["changed"], found["middle"]["decided"]) == (0, 2)
    assert (found["any"]["changed"], found["any"]["decided"]) == (1, 2)
    assert (found["crops"]["changed"], found["crops"]["decided"]) == (1, 3)


def test_the_panel_is_summed_up_by_batch_size() -> None:
    def row(model: str, batch: int, ratio: float) -> dict[str, object]:
        best = {"ratio": ratio, "low": 0.98 * ratio, "high": 1.02 * ratio}
        return {"model": model, "batch": batch, "best": best, "lowest": best}

    (one, eight) = optimize_panel.summary([row("a", 1, 1.0), row("b", 1, 1.44), row("a", 8, 0.9)])
    assert one["geometric_mean"] == pytest.approx(1.2)
    assert one["met"]
    assert one["lowest_model"] == "a"
    assert not one["surely_slower"]
    assert not eight["met"]
    assert eight["surely_slower"] == ["a"]

"""Statistics against scipy, exact formulas and simulated error rates (about 10 s)."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from vitrail import stats
from vitrail.vocabulary import Block

latencies = st.lists(st.floats(0.1, 1000), min_size=1, max_size=200)


def block(samples, launch=1):
    return Block(
        launch=launch,
        scope="request",
        samples_ms=tuple(float(s) for s in samples),
        speed_before_ms=5.0,
        speed_after_ms=5.0,
    )


def launches(series, size=12):
    """Blocks of `size` calls from one array per launch."""
    return [
        block(calls[i : i + size], number)
        for number, calls in enumerate(series, 1)
        for i in range(0, len(calls), size)
    ]


def autoregressive(rng, n, rho):
    noise = rng.standard_normal(n) * math.sqrt(1 - rho**2)
    noise[0] = rng.standard_normal()
    z = np.empty(n)
    previous = 0.0
    for i, e in enumerate(noise):
        previous = z[i] = rho * previous + e
    return z


# --- percentiles and quantiles --------------------------------------------------------------------


@given(latencies, st.floats(1, 100))
def test_percentile_is_numpys_inverted_cdf(samples, q):
    expected = np.percentile(samples, q, method="inverted_cdf")
    assert stats.percentile(samples, q) == expected


@given(latencies, st.sampled_from([50, 90, 95, 99]), st.floats(0.1, 1000))
def test_percentile_holds_a_limit_exactly_when_few_enough_calls_exceed_it(samples, q, limit):
    exceeding = sum(s > limit for s in samples)
    assert (stats.percentile(samples, q) <= limit) == (exceeding * 100 <= (100 - q) * len(samples))


@pytest.mark.parametrize(("samples", "q"), [([], 50), ([1.0], 0), ([1.0], 101)])
def test_percentile_refuses(samples, q):
    with pytest.raises(ValueError, match="percentile"):
        stats.percentile(samples, q)


@given(st.integers(1, 60), st.floats(0.51, 0.9995))
def test_t_quantile_is_scipys(df, p):
    assert stats.t_quantile(p, df) == pytest.approx(scipy.stats.t.ppf(p, df), rel=1e-6)
    assert stats.t_quantile(1 - p, df) == pytest.approx(-stats.t_quantile(p, df))


# --- clustering -----------------------------------------------------------------------------------


def test_autocorrelation_time_of_known_series():
    rng = np.random.default_rng(0)
    for rho in (0.0, 0.5, 0.9):
        tau = stats.autocorrelation_time(autoregressive(rng, 40_000, rho)[None])[0]
        assert tau == pytest.approx((1 + rho) / (1 - rho), rel=0.15)
    assert stats.autocorrelation_time(np.ones((1, 100)))[0] == 1


@given(latencies)
def test_ranks_are_scipys(samples):
    assert np.allclose(stats.ranks(np.array(samples)), scipy.stats.rankdata(samples) - 1)


# --- the limit test -------------------------------------------------------------------------------


@pytest.mark.parametrize("q", [50, 90, 95, 99])
@pytest.mark.parametrize("passing", [True, False])
def test_evidence_has_mean_one_under_its_null(q, passing):
    """The sum over all outcomes of probability x evidence is 1 at the boundary and less beyond it."""
    n, p0 = 60, 1 - q / 100
    k = np.arange(n + 1)
    evidence = np.exp(stats.log_evidence(k, n, p0, passing=passing, deff=np.ones(n + 1)))
    assert scipy.stats.binom.pmf(k, n, p0) @ evidence == pytest.approx(1)
    beyond = p0 * 1.3 if passing else p0 * 0.7
    assert scipy.stats.binom.pmf(k, n, beyond) @ evidence < 1


def test_tempered_evidence_stays_valid_for_identical_calls_within_blocks():
    """Blocks of 10 equal calls, deff 10: exactly the situation of independent single calls."""
    blocks, p0 = 6, 0.05
    k = np.arange(blocks + 1)
    evidence = np.exp(stats.log_evidence(10 * k, 10 * blocks, p0, passing=True, deff=np.full(len(k), 10.0)))
    assert scipy.stats.binom.pmf(k, blocks, p0) @ evidence <= 1 + 1e-12


@pytest.mark.parametrize(("q", "calls"), [(50, 6), (95, 81), (99, 413)])
def test_calls_that_a_clear_pass_needs(q, calls):
    threshold = math.log(40)
    need = next(
        n
        for n in range(1, 1000)
        if stats.log_evidence(np.array([0]), n, 1 - q / 100, passing=True, deff=np.ones(1))[0] >= threshold
    )
    assert need == calls


def test_clear_pass_and_clear_fail():
    rng = np.random.default_rng(1)
    test = stats.LimitTest(percentile=95)
    calls = [20 * np.exp(0.03 * rng.standard_normal(36)) for _ in range(3)]
    state = test.evaluate(launches(calls), 50)
    assert state.answer == "pass"
    assert state.lower < state.value < state.upper < 50
    assert test.evaluate(launches([calls[0][:8]], size=4), 10).answer == "fail"
    assert test.evaluate(launches([calls[0][:7]], size=4), 10).answer == "undecided"


def test_nothing_passes_in_fewer_than_three_launches():
    calls = 20 + np.random.default_rng(2).random(400)
    assert stats.LimitTest(percentile=95).evaluate(launches([calls]), 50).answer == "undecided"
    assert stats.LimitTest(percentile=95, launches=1).evaluate(launches([calls]), 50).answer == "pass"


def test_one_launch_does_not_fail_a_near_miss():
    calls = 50.5 + 0.01 * np.random.default_rng(3).random(400)
    assert stats.LimitTest(percentile=95).evaluate(launches([calls]), 50).answer == "undecided"
    assert stats.LimitTest(percentile=95).evaluate(launches([calls * 1.1]), 50).answer == "fail"


def test_no_calls_no_state():
    assert stats.LimitTest(percentile=95).evaluate([], 50) is None
    with pytest.raises(ValueError, match="percentile"):
        stats.LimitTest(percentile=100)


@settings(deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from([0.0, 0.5, 0.9]),
    st.sampled_from([50, 90, 95]),
    st.tuples(st.floats(0.7, 1.5), st.floats(1.0, 1.3)),
)
def test_raising_the_limit_never_turns_a_pass_away(seed, rho, q, factors):
    rng = np.random.default_rng(seed)
    blocks = launches([20 * np.exp(0.05 * autoregressive(rng, 48, rho)) for _ in range(3)])
    test, limit = stats.LimitTest(percentile=q), 20 * factors[0]
    low, high = test.evaluate(blocks, limit), test.evaluate(blocks, limit * factors[1])
    order = ("fail", "undecided", "pass")
    assert order.index(low.answer) <= order.index(high.answer)
    assert (low.lower, low.upper) == (high.lower, high.upper)
    if low.interval:
        assert low.lower <= low.value <= low.upper


@pytest.mark.slow
@pytest.mark.parametrize(("rho", "allowed"), [(0.0, 0.05), (0.9, 0.10)])
def test_wrong_answers_at_the_boundary_looking_after_every_block(rho, allowed):
    """The limit is the true percentile: any answer is wrong. 150 series of up to 300 calls."""
    rng = np.random.default_rng(4)
    limit, wrong, runs = 20 * math.exp(0.02 * scipy.stats.norm.ppf(0.95)), 0, 150
    test = stats.LimitTest(percentile=95, launches=1)
    for _ in range(runs):
        blocks = launches([20 * np.exp(0.02 * autoregressive(rng, 300, rho))], size=25)
        wrong += any(
            test.evaluate(blocks[:i], limit).answer != "undecided" for i in range(1, len(blocks) + 1)
        )
    # 2 standard deviations of the count on top of what is allowed.
    assert wrong / runs <= allowed + 2 * math.sqrt(allowed * (1 - allowed) / runs)


# --- comparisons ----------------------------------------------------------------------------------


def pair(rng, factor, rounds=12, noise=0.03):
    """Two sides of interleaved blocks, block noise and call noise, side a slower by `factor`."""
    sides = []
    for slower in (factor, 1.0):
        levels = 20 * slower * np.exp(noise * rng.standard_normal(rounds))
        sides.append([block(level * np.exp(0.02 * rng.standard_normal(8))) for level in levels])
    return sides


def test_equal_variants_are_not_told_apart_and_a_tenth_slower_is():
    rng = np.random.default_rng(5)
    same = [stats.ratio_interval(*pair(rng, 1.0)).differs for _ in range(200)]
    slower = [stats.ratio_interval(*pair(rng, 1.1)).low > 1 for _ in range(200)]
    assert np.mean(same) <= 0.05
    assert np.mean(slower) >= 0.9


def test_ratio_interval_is_the_signed_rank_interval_without_launch_spread():
    rng = np.random.default_rng(6)
    a, b = pair(rng, 1.05, rounds=9)
    ratio = stats.ratio_interval(a, b, launch_spread=0.0)
    logs = [
        math.log(
            np.percentile(x.samples_ms, 50, method="inverted_cdf")
            / np.percentile(y.samples_ms, 50, method="inverted_cdf")
        )
        for x, y in zip(a, b, strict=True)
    ]

    def p_value(shift):
        return scipy.stats.wilcoxon(np.array(logs) - shift, mode="exact").pvalue

    for end, inwards in ((math.log(ratio.low), 1e-9), (math.log(ratio.high), -1e-9)):
        assert p_value(end + inwards) > 0.05 >= p_value(end - inwards)


def test_ratio_needs_six_rounds():
    a, b = pair(np.random.default_rng(7), 1.0, rounds=5)
    assert stats.ratio_interval(a, b) is None


def test_one_disturbed_round_does_not_hide_a_difference():
    a, b = pair(np.random.default_rng(8), 1.2, noise=0.01)
    b[3] = block(np.array(b[3].samples_ms) * 5)
    assert stats.ratio_interval(a, b).low > 1


def test_mean_latency_and_throughput():
    rng = np.random.default_rng(9)
    blocks = launches([20 * np.exp(0.02 * rng.standard_normal(48)) for _ in range(3)])
    mean, low, high = stats.mean_latency_interval(blocks)
    assert mean == pytest.approx(np.mean([s for b in blocks for s in b.samples_ms]))
    assert low < mean < high < 1.05 * mean
    assert stats.throughput_answer(blocks, 8, 8 * 40) == "pass"
    assert stats.throughput_answer(blocks, 8, 8 * 50) == "undecided"
    assert stats.throughput_answer(blocks, 8, 8 * 60) == "fail"
    assert stats.mean_latency_interval(blocks[:3]) is None
    assert stats.throughput_answer(blocks[:3], 8, 1) == "undecided"


# --- a mean loss ----------------------------------------------------------------------------------


def test_loss_bound_of_zero_or_all_losses_is_clopper_and_pearsons():
    for lost in (0, 3, 30):
        losses = np.r_[np.zeros(600 - lost), np.full(lost, 100.0)]
        exact = 100 * scipy.stats.beta.ppf(0.95, lost + 1, 600 - lost)
        assert stats.mean_upper_bound(losses) == pytest.approx(exact, rel=0.02)


def test_loss_bound_needs_600_photos_in_range():
    assert stats.mean_upper_bound(np.zeros(599)) is None
    with pytest.raises(ValueError, match="losses"):
        stats.mean_upper_bound(np.full(600, -0.1))


def test_loss_bound_covers_sparse_losses_where_a_t_bound_does_not():
    """One photo in 300 loses 30 to 100 points: the mean is 0.22 points."""
    rng = np.random.default_rng(10)
    covered = t_covered = 0
    for _ in range(200):
        losses = (rng.random(600) < 1 / 300) * (30 + 70 * rng.random(600))
        covered += stats.mean_upper_bound(losses, draws=4000) >= 65 / 300
        t_covered += losses.mean() + 1.647 * losses.std(ddof=1) / math.sqrt(600) >= 65 / 300
    assert covered / 200 >= 0.95 > t_covered / 200


def test_a_few_calls_tell_far_apart_from_each_other():
    def block(*samples):
        return Block(launch=1, scope="model", samples_ms=samples, speed_before_ms=1.0, speed_after_ms=1.0)

    slow, fast = [block(300.0, 310.0), block(305.0, 330.0)], [block(20.0, 21.0, 25.0, 22.0)]
    assert stats.medians_differ(slow, fast)
    assert stats.medians_differ(fast, slow)
    assert not stats.medians_differ(fast, [block(20.5, 24.0, 26.0, 27.0)])
    assert not stats.medians_differ(slow, [block(20.0, 21.0, 25.0)])
    assert not stats.medians_differ([block(20.0, 20.1, 20.2, 20.3)], [block(20.4, 20.5, 20.6, 20.7)])

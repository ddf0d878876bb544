"""The one place of percentile statistics: intervals, the anytime-valid limit test, comparisons, bounds.

Light: numpy and math only. Formulas, sources and simulated error rates: docs/measurement.md.
Symbols: q the percentile as a share, p0 = 1 - q the share of calls that may exceed a limit,
n calls, k calls above a limit, X = [latency > limit].
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from vitrail.vocabulary import Answer, Block

Floats = NDArray[np.float64]

ASSUMED_LAUNCH_SPREAD = 0.015
"""Relative standard deviation between launches, assumed while fewer than 3 launches can show it."""
LAUNCHES_TO_PASS = 3
CALLS_TO_FAIL = 8
BLOCKS_TO_FAIL = 2
ROUNDS_TO_COMPARE = 6
"""Below 6 pairs no signed-rank interval reaches 95 %."""
PHOTOS_FOR_LOSS_BOUND = 600
SPEED_TOLERANCE = 0.05
"""How much longer the machine's reference workload may take than before without explaining a slowdown."""

# Prior over alternatives on the pass side, as theta / p0, and on the fail side, as (theta - p0) / q.
# Half of the pass side's mass sits on "no call ever exceeds", which is what a clear pass looks like.
PASS_PRIOR = {0.0: 0.5} | dict.fromkeys((0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9), 0.05)
FAIL_PRIOR = {1.0: 0.3} | dict.fromkeys((0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7), 0.1)

_SOKAL_WINDOW = 5
_TAIL_LEVELS = 64
_GRID_LEVELS = 16
_FEW = 100
"""Up to here sorting Python's own numbers takes less time than making an array of them."""


# --- percentiles and quantiles --------------------------------------------------------------------


def percentile(samples: Sequence[float] | Floats, q: float) -> float:
    """The `q`-th percentile by nearest rank: the smallest sample that at least q % do not exceed.

    So it is <= a limit exactly when at most (100 - q) % of the samples exceed the limit.

    Raises:
        ValueError: no samples, or `q` outside (0, 100].
    """
    if not len(samples):
        raise ValueError("a percentile needs at least one sample")
    if not 0 < q <= 100:
        raise ValueError(f"a percentile lies in (0, 100], not {q}")
    rank = math.ceil(q * len(samples) / 100 - 1e-9)
    if len(samples) <= _FEW and not isinstance(samples, np.ndarray):
        return float(sorted(samples)[rank - 1])  # a block's calls: a search asks for thousands of medians
    return float(np.sort(np.asarray(samples, dtype=np.float64))[rank - 1])


def t_quantile(p: float, df: int) -> float:
    """Quantile of Student's t for integer degrees of freedom, by bisection of the closed form.

    Source: Abramowitz and Stegun, 26.7.3 and 26.7.4.
    """
    if df < 1 or not 0 < p < 1:
        raise ValueError(f"no t quantile for p={p}, df={df}")
    if p < 0.5:
        return -t_quantile(1 - p, df)
    low, high = 0.0, 1.0
    while _t_central(high, df) < 2 * p - 1:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_central(middle, df) < 2 * p - 1 else (low, middle)
    return (low + high) / 2


def _t_central(t: float, df: int) -> float:
    """P(-t < T < t)."""
    angle = math.atan(t / math.sqrt(df))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = df % 2
    term = cosine if odd else 1.0
    total = term if df > 1 else 0.0
    for j in range(3 if odd else 2, df - 1, 2):
        term *= cosine * cosine * (j - 1) / j
        total += term
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


# --- clustering -----------------------------------------------------------------------------------


def autocorrelation_time(series: Floats) -> Floats:
    """Integrated autocorrelation time of each row of `series` (rows, n), at least 1.

    tau = 1 + 2 * sum of autocorrelations up to the first lag W >= 5 tau; a constant row has tau 1.
    n / tau is the number of independent calls that would tell as much about the mean.
    Source: Sokal, Monte Carlo Methods in Statistical Mechanics, 1997, section 3.
    """
    rows, n = series.shape
    if n < 4:
        return np.ones(rows)
    centred = series - series.mean(axis=1, keepdims=True)
    spectrum = np.fft.rfft(centred, 1 << (2 * n - 1).bit_length(), axis=1)
    covariance = np.fft.irfft(spectrum * np.conj(spectrum), axis=1)[:, : n // 2]
    varies = covariance[:, 0] > 1e-9
    correlation = covariance / np.where(varies, covariance[:, 0], 1)[:, None]
    tau = 2 * np.cumsum(correlation, axis=1) - 1
    enough = np.arange(tau.shape[1]) >= _SOKAL_WINDOW * np.maximum(tau, 1)
    window = np.where(enough.any(axis=1), enough.argmax(axis=1), tau.shape[1] - 1)
    return np.where(varies, np.maximum(tau[np.arange(rows), window], 1), 1.0)


def ranks(samples: Floats) -> Floats:
    """Ranks 0..n-1 in order of value; equal samples share their mean rank."""
    _, place, count = np.unique(samples, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return (last - (count + 1) / 2)[place]


# --- the limit test -------------------------------------------------------------------------------


@dataclass(frozen=True)
class LimitState:
    """Where a `LimitTest` stands after some calls: its answer and the interval behind it, in ms."""

    answer: Answer
    value: float
    """The judged percentile of all calls."""
    lower: float | None
    """Every limit below this is failed; None: not enough evidence for any."""
    upper: float | None
    """Every limit from here on is passed; None: not enough evidence for any."""
    calls: int
    launches: int
    passed_by_calls: float | None = None
    """`upper` as the calls alone would have it, without what launches may differ by."""

    @property
    def interval(self) -> tuple[float, float] | None:
        """(lower, upper), or None when either end lacks support."""
        return None if self.lower is None or self.upper is None else (self.lower, self.upper)


@dataclass(frozen=True, kw_only=True)
class LimitTest:
    """Anytime-valid test of a latency percentile, two-sided: each wrong answer has at most alpha / 2.

    Of several limits that must all hold, one that wrongly fails is enough for a wrong answer, so each
    fails at alpha / (2 limits). A wrong pass needs that the very limit that does not hold passes: that side
    is not shared (Berger, Technometrics 24, 1982).

    Two mixture e-processes, against P(X) >= p0 and against P(X) <= p0, tempered by a design effect
    where calls cluster near the limit, plus a guard against differences between launches. The answer
    is a function of the calls alone, monotone in the limit. Validity: docs/measurement.md.
    """

    percentile: float
    alpha: float = 0.05
    launches: int = LAUNCHES_TO_PASS
    """Fresh launches without which nothing passes."""
    launch_spread: float = ASSUMED_LAUNCH_SPREAD
    limits: int = 1
    """Limits of a latency that one subject may have at the same time, this one included."""

    def __post_init__(self) -> None:
        if not 0 < self.percentile < 100 or not 0 < self.alpha < 1 or self.limits < 1:
            at = f"at percentile {self.percentile} with alpha {self.alpha}, of {self.limits} limits"
            raise ValueError(f"no limit test {at}")

    def evaluate(self, blocks: Sequence[Block], limit_ms: float | None = None) -> LimitState | None:
        """The state after `blocks` (one scope, in time order); None before the first call.

        Without a limit the answer is `undecided` and the interval is what is asked for.
        """
        series = [block.samples_ms for block in blocks if block.samples_ms]
        if not series:
            return None
        calls = np.concatenate([np.asarray(samples, dtype=np.float64) for samples in series])
        value = percentile(calls, self.percentile)
        waiting = clients(blocks)
        count = len({block.launch for block in blocks if block.samples_ms})
        below, above = self._launch_guard(blocks)
        lower, upper = self._call_bounds(calls, value, waiting)
        alone = upper
        if len(calls) < CALLS_TO_FAIL or len(series) < BLOCKS_TO_FAIL:
            lower = None
        lower = None if lower is None else min(lower, value * below)
        upper = None if upper is None else max(upper, value * above)
        answer: Answer = "undecided"
        if limit_ms is not None:
            if upper is not None and limit_ms >= upper and count >= self.launches:
                answer = "pass"
            elif lower is not None and limit_ms < lower:
                answer = "fail"
        return LimitState(answer, value, lower, upper, len(calls), count, alone)

    def _call_bounds(self, calls: Floats, value: float, waiting: int) -> tuple[float | None, float | None]:
        """The largest limit that the calls fail and the smallest one that they pass, in ms."""
        passing, failing = _evidence(calls.tobytes(), value, self.percentile, waiting)
        passed = [level for level, evidence in passing if evidence >= math.log(2 / self.alpha)]
        failed = [level for level, evidence in failing if evidence >= math.log(2 * self.limits / self.alpha)]
        return max(failed, default=None), min(passed, default=None)

    def _launch_guard(self, blocks: Sequence[Block]) -> tuple[float, float]:
        """Factors of the percentile within which other launches are expected to lie on average."""
        medians = np.log(list(launch_medians(blocks).values()))

        def half(alpha: float) -> float:
            if len(medians) >= LAUNCHES_TO_PASS:
                width = t_quantile(1 - alpha / 2, len(medians) - 1) * float(medians.std(ddof=1))
            else:
                width = NormalDist().inv_cdf(1 - alpha / 2) * self.launch_spread
            return width / math.sqrt(len(medians))

        return math.exp(-half(self.alpha / self.limits)), math.exp(half(self.alpha))


Evidence: TypeAlias = tuple[tuple[float, float], ...]
"""(limit in ms, log e-value) of the limits worth trying."""


@functools.lru_cache(maxsize=1024)
def _evidence(calls: bytes, value: float, judged: float, waiting: int) -> tuple[Evidence, Evidence]:
    """The evidence for passing and for failing of `calls` (float64), whose `judged` percentile is `value`.

    `waiting`: clients that wait for one another, so that neighbouring calls depend. Remembered, because a
    search asks about the same calls each time that it looks for its best contender.
    """
    samples = np.frombuffer(calls)
    median = percentile(samples, 50)
    zone = max(2 * math.log(value / median), 0.02)
    levels = _levels(samples, value, value * math.exp(zone), upwards=True)
    near = np.maximum(levels * math.exp(-zone), np.minimum(levels, value))
    passing = _log_evidence(samples, levels, near, zone, judged, waiting, passing=True)
    lower = _levels(samples, value, min(value, median) * math.exp(-zone), upwards=False)
    near = np.minimum(np.maximum(lower, median), lower * math.exp(zone))
    failing = _log_evidence(samples, lower, near, zone, judged, waiting, passing=False)
    return (
        tuple(zip(levels.tolist(), passing.tolist(), strict=True)),
        tuple(zip(lower.tolist(), failing.tolist(), strict=True)),
    )


def _log_evidence(
    calls: Floats, levels: Floats, near: Floats, zone: float, judged: float, waiting: int, *, passing: bool
) -> Floats:
    """Log e-value at each level (L,) taken as the limit, tempered by the design effect at `near`.

    It is at least `waiting`: one slow run of the engine delays every client that waits for it, and calls in
    which no such run occurred cannot show that.
    """
    deff = autocorrelation_time((calls > near[:, None]).astype(np.float64))
    close = near > levels * math.exp(-zone) if passing else near < levels * math.exp(zone)
    if close.any():
        deff = np.where(close, np.maximum(deff, autocorrelation_time(ranks(calls)[None])[0]), deff)
    deff = np.maximum(deff, waiting)
    exceeding = (calls > levels[:, None]).sum(axis=1)
    return log_evidence(exceeding, len(calls), 1 - judged / 100, passing=passing, deff=deff)


def log_evidence(
    exceeding: NDArray[np.int64], calls: int, p0: float, *, passing: bool, deff: Floats
) -> Floats:
    """Log of sum_w w_i L_i^(1/deff) for counts (L,) of exceeding calls, L_i a binomial likelihood ratio.

    `passing`: evidence against P(X) >= p0; else against P(X) <= p0. With deff 1 each term is a
    supermartingale under its composite null, hence so is the mixture.
    """
    prior = PASS_PRIOR if passing else FAIL_PRIOR
    grid = np.array(list(prior))
    theta = grid * p0 if passing else p0 + (1 - p0) * grid
    k = np.asarray(exceeding, dtype=np.float64)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(k > 0, k * np.log(theta / p0), 0.0)
        ratio = ratio + np.where(k < calls, (calls - k) * np.log((1 - theta) / (1 - p0)), 0.0)
    terms = ratio / deff[:, None] + np.log(list(prior.values()))
    peak = terms.max(axis=1)
    return peak + np.log(np.exp(terms - peak[:, None]).sum(axis=1))


def _levels(calls: Floats, value: float, clear: float, *, upwards: bool) -> Floats:
    """Limits worth trying on one side of the percentile: samples there and a grid up to `clear`.

    They depend on the calls only, never on the limit asked about, so the answer is monotone in it.
    """
    side = np.unique(calls[calls >= value] if upwards else calls[calls <= value])
    if len(side) > _TAIL_LEVELS:
        side = side[np.linspace(0, len(side) - 1, _TAIL_LEVELS).round().astype(int)]
    # A failed limit lies below the sample that exceeds it.
    side = side if upwards else np.nextafter(side, 0)
    return np.concatenate([side, np.geomspace(value, clear, _GRID_LEVELS + 1)[1:]])


def clients(blocks: Iterable[Block]) -> int:
    """How many clients made the calls at once; all blocks of one scope have the same number."""
    return max((block.clients for block in blocks), default=1)


def launch_medians(blocks: Iterable[Block]) -> dict[int, float]:
    """Median latency in ms of each launch; launches of fewer than 8 calls only if there is no other."""
    samples: dict[int, list[float]] = {}
    for block in blocks:
        samples.setdefault(block.launch, []).extend(block.samples_ms)
    filled = {launch: calls for launch, calls in samples.items() if calls}
    enough = {launch: calls for launch, calls in filled.items() if len(calls) >= CALLS_TO_FAIL}
    return {launch: percentile(calls, 50) for launch, calls in sorted((enough or filled).items())}


def median_interval(
    blocks: Sequence[Block], *, alpha: float = 0.05, launch_spread: float = ASSUMED_LAUNCH_SPREAD
) -> tuple[float, float, float] | None:
    """(median, low, high) of the latency in ms of one scope's calls; None without calls.

    Launches are the units, because calls of one launch say nothing about the next. From three launches on
    their own spread counts, yet never less than the assumed one: three that agree by chance prove little.
    """
    calls = [sample for block in blocks for sample in block.samples_ms]
    if not calls:
        return None
    logs = np.log(list(launch_medians(blocks).values()))
    if len(logs) >= LAUNCHES_TO_PASS:
        half = t_quantile(1 - alpha / 2, len(logs) - 1) * max(float(logs.std(ddof=1)), launch_spread)
    else:
        half = NormalDist().inv_cdf(1 - alpha / 2) * launch_spread
    factor = math.exp(half / math.sqrt(len(logs)))
    value = percentile(calls, 50)
    return value, value / factor, value * factor


def one_launch_interval(value: float, scatter: float = 0.0) -> tuple[float, float, float]:
    """(value, low, high) of a mean or median whose launches are not known: as if from one launch.

    `scatter`: of its calls, as a difference of logarithms. Launches differ more where calls do, so without
    launches to show it, the figure is taken to be no more certain than a single call.
    """
    factor = math.exp(math.hypot(NormalDist().inv_cdf(0.975) * ASSUMED_LAUNCH_SPREAD, scatter))
    return value, value / factor, value * factor


def reference_slowdown(then: Sequence[Block], now: Sequence[Block]) -> float | None:
    """By which share the reference workload around the calls takes longer now; None: not noticeably."""
    if not then or not now:
        return None
    before, after = (
        percentile([s for b in blocks for s in (b.speed_before_ms, b.speed_after_ms)], 50)
        for blocks in (then, now)
    )
    slower = after / before - 1 if before else 0.0
    return slower if slower > SPEED_TOLERANCE else None


# --- comparisons ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ratio:
    """Latency of a over latency of b, with its interval."""

    value: float
    low: float
    high: float
    rounds: int

    @property
    def differs(self) -> bool:
        """Whether the interval excludes 1."""
        return self.low > 1 or self.high < 1


def ratio_interval(
    a: Sequence[Block],
    b: Sequence[Block],
    *,
    alpha: float = 0.05,
    launch_spread: float = ASSUMED_LAUNCH_SPREAD,
) -> Ratio | None:
    """Ratio of two variants' latencies from rounds of blocks (one scope); None below 6 rounds.

    Unit: the log ratio of the two block medians of a round; the k-th blocks of the l-th launches form
    a round. Hodges-Lehmann estimate with its signed-rank interval, widened in quadrature by what two
    launches of the same export may differ. Source: Hollander and Wolfe, Nonparametric Statistical
    Methods, sections 3.2 and 3.3.
    """
    launches_a, launches_b = _by_launch(a), _by_launch(b)
    pairs = [
        pair
        for left, right in zip(launches_a, launches_b, strict=False)
        for pair in zip(left, right, strict=False)
    ]
    if len(pairs) < ROUNDS_TO_COMPARE:
        return None
    launches = min(len(launches_a), len(launches_b))
    logs = np.log([percentile(x.samples_ms, 50) / percentile(y.samples_ms, 50) for x, y in pairs])
    n = len(logs)
    row, column = _pairs_of(n)
    walsh = np.sort((logs[row] + logs[column]) / 2)
    cut = _signed_rank_cut(n, alpha)
    centre = float(walsh[(len(walsh) - 1) // 2] + walsh[len(walsh) // 2]) / 2
    launch = NormalDist().inv_cdf(1 - alpha / 2) * launch_spread * math.sqrt(2 / launches)
    low = centre - math.hypot(centre - walsh[cut], launch)
    high = centre + math.hypot(walsh[-1 - cut] - centre, launch)
    return Ratio(math.exp(centre), math.exp(low), math.exp(high), n)


def _by_launch(blocks: Iterable[Block]) -> list[list[Block]]:
    launches: dict[int, list[Block]] = {}
    for block in blocks:
        if block.samples_ms:
            launches.setdefault(block.launch, []).append(block)
    return [launches[number] for number in sorted(launches)]


@functools.lru_cache(maxsize=64)
def _pairs_of(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of all pairs of n, each with itself too."""
    return np.triu_indices(n)


@functools.lru_cache(maxsize=64)
def _signed_rank_cut(n: int, alpha: float) -> int:
    """Largest index c with P(signed-rank statistic <= c) <= alpha / 2, exact."""
    counts = np.zeros(n * (n + 1) // 2 + 1)
    counts[0] = 1
    for rank in range(1, n + 1):
        shifted = counts[:-rank] / 2
        counts /= 2
        counts[rank:] += shifted
    return int(np.searchsorted(np.cumsum(counts), alpha / 2, side="right")) - 1


def medians_differ(
    a: Sequence[Block], b: Sequence[Block], launch_spread: float = ASSUMED_LAUNCH_SPREAD
) -> bool:
    """Whether all calls of one side are slower than all of the other, and launches alone do not explain it.

    For sides with too few blocks for `ratio_interval`. With 4 calls or more on each side (of each client) the
    rank-sum test's two-sided p is at most 2 / C(8, 4) = 2.9 %; the medians must differ by more than two
    launches'.
    """
    sides = [np.array([sample for block in side for sample in block.samples_ms]) for side in (a, b)]
    if min(len(side) // clients(blocks) for side, blocks in zip(sides, (a, b), strict=True)) < 4:
        return False
    fast, slow = sorted(sides, key=lambda side: float(side.max()))
    spread = NormalDist().inv_cdf(0.975) * launch_spread * math.sqrt(2)
    return bool(fast.max() < slow.min() and math.log(np.median(slow) / np.median(fast)) > spread)


def mean_latency_interval(
    blocks: Sequence[Block], *, alpha: float = 0.05, launch_spread: float = ASSUMED_LAUNCH_SPREAD
) -> tuple[float, float, float] | None:
    """(mean, low, high) of the latency in ms, all calls of one scope; None below 4 blocks.

    Blocks are the units, launches too once there are 3; before, their spread is assumed.
    """
    filled = [block.samples_ms for block in blocks if block.samples_ms]
    if len(filled) < 4:
        return None
    mean = sum(map(sum, filled)) / sum(map(len, filled))
    units = np.array([sum(samples) / len(samples) for samples in filled])
    half = _t_half(units, alpha) / mean
    launches = [
        np.mean(np.concatenate([block.samples_ms for block in group])) for group in _by_launch(blocks)
    ]
    if len(launches) >= LAUNCHES_TO_PASS:
        half = max(half, _t_half(np.array(launches), alpha) / mean)
    else:
        half = math.hypot(
            half, NormalDist().inv_cdf(1 - alpha / 2) * launch_spread / math.sqrt(len(launches))
        )
    return mean, mean * math.exp(-half), mean * math.exp(half)


def images_at_once(blocks: Sequence[Block], batch_size: int) -> int:
    """How many images are under way at once; per mean latency they are the throughput (Little's law)."""
    return batch_size * clients(blocks)


def throughput_answer(blocks: Sequence[Block], batch_size: int, least: float) -> Answer:
    """Whether the clients' images per mean latency reach `least` images/s, from one scope's blocks."""
    interval = mean_latency_interval(blocks)
    if interval is None:
        return "undecided"
    slowest = 1000 * images_at_once(blocks, batch_size) / least
    _, low, high = interval
    return "pass" if high <= slowest else "fail" if low > slowest else "undecided"


def _t_half(values: Floats, alpha: float) -> float:
    return t_quantile(1 - alpha / 2, len(values) - 1) * float(values.std(ddof=1)) / math.sqrt(len(values))


def proportions_overlap(one: float, images: int, two: float, other_images: int, alpha: float = 0.05) -> bool:
    """Whether two shares in [0, 1], each of so many independent images, may be equal.

    Agresti and Caffo's interval of a difference (The American Statistician 54, 2000): a success and a failure
    are added to each side. Shares of the same images are compared as if they were of different ones, which
    errs towards a tie.
    """
    counts = [(share * n + 1, n + 2) for share, n in ((one, images), (two, other_images))]
    (p, n), (q, m) = ((k / n, n) for k, n in counts)
    half = NormalDist().inv_cdf(1 - alpha / 2) * math.sqrt(p * (1 - p) / n + q * (1 - q) / m)
    return abs(p - q) <= half


# --- a mean loss ----------------------------------------------------------------------------------


def mean_upper_bound(
    losses: Sequence[float] | Floats,
    *,
    alpha: float = 0.05,
    most: float = 100.0,
    minimum: int = PHOTOS_FOR_LOSS_BOUND,
    draws: int = 20_000,
) -> float | None:
    """One-sided upper bound of the mean of independent losses in [0, most], by default in points (%).

    None below `minimum` losses. Gaffke's bound: the (1 - alpha) quantile of the mean of the losses and
    `most` under Dirichlet weights. No normality is assumed; for losses of 0 or `most` it is Clopper and
    Pearson's: 600 losses of exactly zero give 0.5 points. Drawn with a fixed seed. Source:
    Learned-Miller and Thomas, A New Confidence Interval for the Mean of a Bounded Random Variable, 2019.

    Raises:
        ValueError: a loss outside [0, most].
    """
    values = np.asarray(losses, dtype=np.float64)
    if len(values) < minimum:
        return None
    if not ((values >= 0) & (values <= most)).all():
        raise ValueError(f"losses lie in [0, {most:g}]")
    rng = np.random.default_rng(0)
    lost = values[values > 0]
    ceiling = rng.standard_exponential(draws)
    total = (
        rng.gamma(len(values) - len(lost), size=draws) + ceiling
        if len(lost) < len(values)
        else ceiling.copy()
    )
    weighted = most * ceiling
    for loss in lost:
        weight = rng.standard_exponential(draws)
        total += weight
        weighted += weight * loss
    return float(np.quantile(weighted / total, 1 - alpha))


def beta_quantile(p: float, a: float, b: float, levels: int = 20_001) -> float:
    """The p quantile of a Beta(a, b) distribution, 0 < p < 1, by integration over the log odds.

    Good to about 1e-6 for a, b from 0.3 to some thousands; tests compare it with SciPy's.
    """
    middle = math.log(a / b)
    reach = 12 / math.sqrt(min(a, b)) + 12 * math.sqrt(1 / a + 1 / b)
    log_odds = np.linspace(middle - reach, middle + reach, levels)
    # x = 1 / (1 + exp(-t)); the density of t is x^a (1 - x)^b up to a constant.
    log_density = -a * np.logaddexp(0, -log_odds) - b * np.logaddexp(0, log_odds)
    density = np.exp(log_density - log_density.max())
    below = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return float(1 / (1 + np.exp(-np.interp(p * below[-1], below, log_odds))))


def share_at_least(count: int, of: int, alpha: float = 0.05) -> float:
    """One-sided lower bound of a share, `count` of `of` seen, in [0, 1] (Clopper and Pearson 1934)."""
    return 0.0 if not count else beta_quantile(alpha, count, of - count + 1)


def share_at_most(count: int, of: int, seen: tuple[float, float], alpha: float = 0.05) -> float:
    """One-sided upper bound of a share, in [0, 1], for who takes (count, others) elsewhere to be like these.

    The posterior's quantile under a Beta prior of these counts.
    """
    return beta_quantile(1 - alpha, seen[0] + count, seen[1] + of - count)

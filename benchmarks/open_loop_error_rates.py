"""How often an open loop's requests pass a limit that they do not hold, on a simulated server.

    python benchmarks/open_loop_error_rates.py [--runs 80]

Requests are due at random times and wait for one server: 5 ms a request (lognormal, 30 %), of which a share
takes 20 times as long. Three starts of five blocks of 64 requests, looked at twice, are judged at p95
against 99 % of the true percentile, so that every pass is false: with the design effect of
`verify --serving` (at least the most requests that were under way at once), and with the estimated one
alone. The last stdout line is one JSON document. No hardware is timed.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json

import numpy as np

from vitrail import stats
from vitrail.traffic.open_loop import Sent, most_under_way, poisson
from vitrail.vocabulary import Block

SERVICE_S, SPREAD, STALL = 0.005, 0.3, 20.0
RATES = (50.0, 100.0, 150.0)
STALLS = (0.0, 0.003, 0.008)
HEAD, CALLS = 50, 64
STARTS, BLOCKS = 3, 5


def block(seed: int, rate: float, stalls: float, *, calls: int = CALLS, launch: int = 1) -> Block:
    """One block's requests, after `HEAD` that find an empty server."""
    rng = np.random.default_rng(seed)
    service = SERVICE_S * np.exp(SPREAD * rng.standard_normal(HEAD + calls))
    service[rng.random(HEAD + calls) < stalls] *= STALL
    free, sent = 0.0, []
    for due, took in zip(itertools.islice(poisson(rate, seed), HEAD + calls), service, strict=True):
        free = max(free, due) + float(took)
        sent.append(Sent(due=due, done=free, answer="answered"))
    timed = sent[HEAD:]
    return Block(
        launch=launch,
        scope="request",
        samples_ms=tuple(1e3 * each.latency_s for each in timed),
        speed_before_ms=1.0,
        speed_after_ms=1.0,
        clients=most_under_way(timed),
    )


def passes(blocks: list[Block], limit_ms: float) -> bool:
    """Whether either of two looks, after two blocks of each start and after all, is a pass."""
    early = [each for start in range(STARTS) for each in blocks[BLOCKS * start : BLOCKS * start + 2]]
    test = stats.LimitTest(percentile=95)
    return any(state.answer == "pass" for look in (early, blocks) if (state := test.evaluate(look, limit_ms)))


def rates_of(rate: float, stalls: float, runs: int) -> dict[str, float]:
    """Shares of false passes with and without the floor, and of passes at three times the percentile."""
    long = [block(10**6 + seed, rate, stalls, calls=5000) for seed in range(12)]
    true_ms = stats.percentile([ms for each in long for ms in each.samples_ms], 95)
    found = {"false_pass": 0, "false_pass_without_floor": 0, "pass_at_3_times": 0}
    under_way = []
    for run in range(runs):
        blocks = [
            block(run * 100 + number, rate, stalls, launch=number // BLOCKS)
            for number in range(STARTS * BLOCKS)
        ]
        under_way.append(stats.clients(blocks))
        found["false_pass"] += passes(blocks, 0.99 * true_ms)
        bare = [dataclasses.replace(each, clients=1) for each in blocks]
        found["false_pass_without_floor"] += passes(bare, 0.99 * true_ms)
        found["pass_at_3_times"] += passes(blocks, 3 * true_ms)
    shares = {name: count / runs for name, count in found.items()}
    return {"true_p95_ms": round(true_ms, 1), **shares, "most_under_way_median": float(np.median(under_way))}


def main() -> None:
    """Print a row for each load and share of stalls, then all of them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=80)
    runs = parser.parse_args().runs
    table = {}
    for rate, stalls in itertools.product(RATES, STALLS):
        name = f"{rate:g}/s, {stalls:.1%} stalls"
        table[name] = rates_of(rate, stalls, runs)
        print(f"{name:20} {table[name]}", flush=True)
    print(json.dumps({"runs": runs, "rates": table}))


if __name__ == "__main__":
    main()

"""Which batch sizes a model is compiled for, and how many images run together.

A size's figures are the latencies of whole batches, in ms. A request waits at most for the batch before it
and its own, so a size keeps the promise where twice its 95th percentile, and preparing, fit in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

__all__ = ["BESIDE", "GAIN", "SIZES", "beside_pays", "chosen", "largest", "p95"]

SIZES = (1, 2, 4, 8, 16, 32)
"""Sizes that are tried, as far as `--max-batch` goes; 1 first, because it starts quickest."""

BESIDE = 0
"""In a table of sizes: as many single images as the engine has threads, each on one thread of its own."""

GAIN = 0.95
"""A size must bring its time per image below this share of the smaller ones' to be worth its memory."""


def p95(latencies: Sequence[float]) -> float:
    """The 95th percentile, from above: the smallest value that 95 % do not exceed."""
    ordered = sorted(latencies)
    return ordered[min(len(ordered) - 1, -(-95 * len(ordered) // 100) - 1)]


def median(latencies: Sequence[float]) -> float:
    """The lower median."""
    return sorted(latencies)[(len(latencies) - 1) // 2]


def keeps(latencies: Sequence[float], prepare_ms: float, promise_ms: float | None) -> bool:
    """Whether a batch of this size keeps the promise; without a promise any does."""
    return promise_ms is None or prepare_ms + 2 * p95(latencies) <= promise_ms


def largest(table: Mapping[int, Sequence[float]], prepare_ms: float, promise_ms: float | None) -> int:
    """The largest size that keeps the promise and saves time per image; 1 where none does.

    `table`: size -> latencies in ms of batches of that size.
    """
    best = 1
    for size in sorted(table):
        if size in (BESIDE, 1) or not table[size]:
            continue
        cheaper = 1 not in table or median(table[size]) / size <= GAIN * median(table[best]) / best
        if cheaper and keeps(table[size], prepare_ms, promise_ms):
            best = size
    return best


def beside_pays(
    table: Mapping[int, Sequence[float]], best: int, lanes: int, prepare_ms: float, promise_ms: float | None
) -> bool:
    """Whether single images side by side, if they keep the promise, take no longer than batches of `best`.

    With batches each operation waits for the thread that a decoder or a request has displaced, which no
    figure of an idle machine shows: at the same figure single images are better.
    """
    beside = table.get(BESIDE)
    if not beside or not table.get(best) or not keeps(beside, prepare_ms, promise_ms):
        return False
    return median(beside) / lanes <= median(table[best]) / best


def chosen(waiting: int, latencies_ms: Mapping[int, float]) -> int:
    """The compiled size that spends the least time for each of `waiting` images; places may stay empty."""
    return min(latencies_ms, key=lambda size: (latencies_ms[size] / min(waiting, size), size))

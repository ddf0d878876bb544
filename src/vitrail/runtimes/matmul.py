"""One matrix product for comparing engines: each runtime's `probe` times it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

SECONDS = 0.25
MATMUL = {
    "fp32": Path(__file__).with_name("matmul.onnx"),
    "int8": Path(__file__).with_name("matmul-int8.onnx"),
}
"""One matrix product with two free inputs; made by scripts/make_matmul.py."""


def square(n: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((n, n), dtype=np.float32)


def fastest(call: Callable[[], object]) -> float:
    """Seconds of the fastest call."""
    # A peak is a bound, so the fastest call counts, not the usual one.
    call()
    best, deadline = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < deadline:
        begin = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - begin)
    return best

"""How fast this machine is right now, and what other guests take of it: read around timed calls."""

from __future__ import annotations

import os
import time

import numpy as np

__all__ = ["SpeedReference", "steal_s"]

SPEED_REPEATS = 7


class SpeedReference:
    """A fixed single-threaded numpy workload: how fast this machine is right now, in ms."""

    def __init__(self) -> None:
        self._values = np.linspace(1.0, 2.0, 1 << 18, dtype=np.float32)
        self._target = np.empty_like(self._values)

    def measure_ms(self) -> float:
        """Median duration over a few repeats; about 5 ms in all."""
        times = []
        for _ in range(SPEED_REPEATS):
            begin = time.perf_counter()
            for _ in range(4):
                np.sqrt(self._values, out=self._target)
                np.multiply(self._target, self._values, out=self._target)
            times.append(time.perf_counter() - begin)
        return float(np.median(times)) * 1e3


def steal_s() -> float:
    """Seconds that other guests of a virtual machine have taken so far; 0 where nothing says."""
    try:
        with open("/proc/stat") as stat:
            fields = stat.readline().split()
        return int(fields[8]) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):
        return 0.0

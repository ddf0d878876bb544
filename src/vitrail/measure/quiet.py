"""Whether the machine is quiet enough for timing: how much of its processors others use.

Others are all processes except this one and its children, and the other guests of a virtual machine (steal).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil

READING_S = 0.3
"""The system counts processor time in hundredths of a second, so this resolves about 0.03 processors."""
QUIET = 0.15
"""Processors that others may keep busy without a warning: what an idle desktop or server uses."""
NOISY_SWITCHES_PER_S = 100.0
"""Involuntary switches per second of timed calls above which another process used the same processors.

A quiet machine showed up to about 20, one with a single busy process besides two threads a few hundred.
"""

NOISE = ("noise:", "steal:")
"""Prefixes of the flags that say other processes used the processors while calls were timed."""


@dataclass(frozen=True)
class BusyReading:
    """What others used during one reading."""

    busy: float
    """Processors that others kept busy, e.g. 0.8 of 2; steal included."""
    processors: int

    @property
    def quiet(self) -> bool:
        """Whether figures taken now are reliable."""
        return self.busy <= QUIET

    @property
    def flags(self) -> tuple[str, ...]:
        """The flags for a measurement that follows; none on a quiet machine."""
        return () if self.quiet else (f"noise: {self} before it was timed",)

    def __str__(self) -> str:
        return f"other processes take {self.busy:.1f} of {self.processors} processors"


def read(seconds: float = READING_S) -> BusyReading:
    """Watch the processors that this process may use for `seconds`."""
    usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    begin, total, own = time.monotonic(), _busy_s(usable), _own_s()
    time.sleep(seconds)
    elapsed = time.monotonic() - begin
    others = (_busy_s(usable) - total) - (_own_s() - own)
    count = len(usable) if usable is not None else os.cpu_count() or 1
    return BusyReading(busy=min(max(others / elapsed, 0.0), float(count)), processors=count)


def wait(
    seconds: float,
    tell: Callable[[BusyReading], None] = lambda _: None,
    *,
    reader: Callable[[], BusyReading] = read,
    clock: Callable[[], float] = time.monotonic,
) -> BusyReading:
    """Read until the machine is quiet, for at most `seconds`; `tell` is called once if there is a wait."""
    until = clock() + seconds
    reading = reader()
    if not reading.quiet:
        tell(reading)
    while not reading.quiet and clock() < until:
        reading = reader()
    return reading


def _busy_s(usable: list[int] | None) -> float:
    """Processor seconds used so far, by anything, on the usable processors."""
    times = psutil.cpu_times(percpu=True)
    chosen = times if usable is None else [times[index] for index in usable if index < len(times)]
    idle = ("idle", "iowait", "guest", "guest_nice")  # time of this machine's guests is already in `user`
    return sum(value for each in chosen for name, value in each._asdict().items() if name not in idle)


def _own_s() -> float:
    """Processor seconds of this process and its living children."""
    me = psutil.Process()
    total = 0.0
    for process in (me, *me.children(recursive=True)):
        try:
            spent = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += spent.user + spent.system
    return total

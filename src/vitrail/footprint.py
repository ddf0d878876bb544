"""Memory of this process in MiB, as the system counts it."""

from __future__ import annotations

import contextlib
import sys

import psutil

__all__ = ["peak_mib", "resident_mib", "restart_peak"]

MIB = 1024 * 1024


def resident_mib() -> float:
    """What is resident now."""
    resident = _status_mib("VmRSS:")
    return float(psutil.Process().memory_info().rss) / MIB if resident is None else resident


def peak_mib() -> float:
    """The most that was resident since the process began, on Linux since `restart_peak`."""
    # ru_maxrss is inherited through exec on Linux, VmHWM is not; macOS has only ru_maxrss, in bytes.
    peak = _status_mib("VmHWM:")
    if peak is not None:
        return peak
    import resource

    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / MIB


def restart_peak() -> None:
    """Count the peak from here on; where that is not allowed, it stays that of the whole process."""
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def _status_mib(key: str) -> float | None:
    with contextlib.suppress(OSError), open("/proc/self/status") as status:
        for line in status:
            if line.startswith(key):
                return int(line.split()[1]) / 1024
    return None

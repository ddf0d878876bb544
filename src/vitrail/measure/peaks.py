"""Peak matrix-multiplication speed of each installed engine, by its own matmul, in GFLOP/s.

The engines differ: a variant's latency is bounded below by its MACs over its own engine's peak, not torch's.
"""

from __future__ import annotations

from typing import Any

from vitrail import runtimes
from vitrail.measure import sandbox

SIZES = (512, 1024)
"""The smaller one takes under 1 ms per call, so that some call has the machine to itself."""
TIMEOUT_S = 60.0
MEMORY_MIB = 4096


def peaks(threads: int) -> dict[str, dict[str, float]]:
    """GFLOP/s by runtime and precision for the installed runtimes that ship; a process for each runtime.

    A probe that fails is left out: its bound is then unknown, and nothing is pruned by it.
    """
    speeds: dict[str, dict[str, float]] = {}
    for name, runtime in runtimes.RUNTIMES.items():
        if runtimes.version(name) is None or runtime.reference:
            continue
        with sandbox.Child("vitrail.measure.peaks:probes", {}, memory_mib=MEMORY_MIB, name="peak") as child:
            child.result(TIMEOUT_S)
            for precision in runtime.precisions:
                try:
                    speed = child.call("peak", TIMEOUT_S, runtime=name, precision=precision, threads=threads)
                except sandbox.ChildFailure:
                    continue
                speeds.setdefault(name, {})[precision] = round(float(speed), 1)
    return speeds


class Probes:
    """The child's side: one runtime's probes share the cost of importing it."""

    def peak(self, runtime: str, precision: str, threads: int) -> float:
        """Peak in GFLOP/s; raises ValueError if the engine changes the precision."""
        probe = runtimes.implementation(runtime).probe
        return max(2e-9 * n**3 / probe(n, precision, threads) for n in SIZES)


def probes(_: dict[str, Any]) -> Probes:
    """The object whose methods answer the process's calls."""
    return Probes()

"""Peak matrix-multiplication speed of each installed engine, by its own matmul, in GFLOP/s.

The engines differ: a variant's latency is bounded below by its MACs over its own engine's peak, not torch's.
"""

from __future__ import annotations

from typing import Any

from vitrail import hardware, runtimes, store
from vitrail.measure import sandbox
from vitrail.vocabulary import Target

SIZES = (512, 1024)
"""The smaller one takes under 1 ms per call, so that some call has the machine to itself."""
TIMEOUT_S = 60.0
MEMORY_MIB = 4096


def known_peaks(
    machine: dict[str, object], threads: int, device: str, *, fresh: bool = False
) -> dict[str, dict[str, float]]:
    """As `peaks`, measured once per machine, device and engine versions, and kept; `fresh` measures again."""
    kept = None if fresh else kept_peaks(machine, threads, device)
    if kept is None:
        kept = peaks(threads, device)
        _records().put(_key(machine, threads, device), {"gflops": kept})
    return kept


def kept_peaks(machine: dict[str, object], threads: int, device: str) -> dict[str, dict[str, float]] | None:
    """What was measured before; None: nothing."""
    record = _records().get(_key(machine, threads, device))
    if record is None:
        return None
    found = record["gflops"]
    assert isinstance(found, dict)
    return found


def _records() -> store.RecordStore:
    return store.RecordStore(store.cache_dir() / "peaks")


def _key(machine: dict[str, object], threads: int, device: str) -> dict[str, object]:
    key: dict[str, object] = {
        "peaks": hardware.fingerprint(machine),
        "engines": runtimes.installed(),
        "precisions": {name: list(runtime.on(device)) for name, runtime in runtimes.RUNTIMES.items()},
        "threads": threads,
    }
    return key if device == "cpu" else key | {"device": device}


def peaks(threads: int, device: str) -> dict[str, dict[str, float]]:
    """GFLOP/s by runtime and precision of the installed runtimes that ship on the device, a process for each.

    A probe that fails is left out: its bound is then unknown, and nothing is pruned by it. So it is on GPUs:
    one product with its copies leaves most of a GPU idle, and would call too much too slow.
    """
    speeds: dict[str, dict[str, float]] = {}
    if runtimes.kind_of(device) == "cuda":
        return speeds
    for name, runtime in runtimes.RUNTIMES.items():
        if runtimes.version(name) is None or runtime.reference:
            continue
        if runtime.named_only:  # nobody asked for it here, and its bound would prune nothing else
            continue
        with sandbox.Child("vitrail.measure.peaks:probes", {}, memory_mib=MEMORY_MIB, name="peak") as child:
            child.result(TIMEOUT_S)
            for precision in runtime.on(device):
                where = {"runtime": name, "precision": precision, "device": device}
                try:
                    speed = child.call("peak", TIMEOUT_S, threads=threads, **where)
                except sandbox.ChildFailure:
                    continue
                speeds.setdefault(name, {})[precision] = round(float(speed), 1)
    return speeds


class Probes:
    """The child's side: one runtime's probes share the cost of importing it."""

    def peak(self, threads: int, **target: str) -> float:
        """Peak in GFLOP/s of a `Target`; raises ValueError if the engine changes the precision."""
        probe = runtimes.implementation(target["runtime"]).probe
        return max(2e-9 * n**3 / probe(n, Target(**target), threads) for n in SIZES)


def probes(_: dict[str, Any]) -> Probes:
    """The object whose methods answer the process's calls."""
    return Probes()

"""The engines of one model: compiled for one image at once, and later for the batch that serves best.

Not the HTTP process: this loads the artifact. Sizes are timed between requests, one call at a time, and the
figures are kept for the next start on this machine.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from vitrail import predict, runtimes, store
from vitrail.artifact import Artifact
from vitrail.errors import VitrailError
from vitrail.hardware import facts, fingerprint, usable_cores
from vitrail.images.limits import Limits
from vitrail.serve import batching
from vitrail.tasks import Arrays

__all__ = ["Engines"]

TIMED, UNTIMED = 20, 2
"""Calls per size; those before are not counted."""
LONGEST_S = 5.0
"""No size is timed longer."""
IDLE_WAIT_S = 0.25
"""How long a timing call waits for the requests to pause; then it goes between them."""
KEPT = 64
"""Of the latest latencies of each size."""


class Engines:
    """One predictor per compiled batch size; `run` may be called from several threads."""

    def __init__(self, artifact: Artifact, *, threads: int | None, limits: Limits) -> None:
        # One thread over a container's quota makes the kernel stop all of them.
        cores = usable_cores()
        self.threads = threads or min(artifact.manifest.evidence.workload.threads or cores, cores)
        self._artifact, self._limits = artifact, limits
        self.first = self._load(1)
        self.most = 1
        self._loaded = {1: self.first}
        self._latencies: dict[int, deque[float]] = {1: deque(maxlen=KEPT)}
        self._running = threading.Lock()

    def size_for(self, waiting: int) -> int:
        """How many of `waiting` images go together."""
        if self.most == 1:
            return 1
        return batching.chosen(
            waiting, {size: batching.median(self._latencies[size] or [size]) for size in self._loaded}
        )

    def sizes(self) -> dict[int, float]:
        """Compiled sizes with the 95th percentile of their latency in ms; 0: not known yet."""
        return {
            size: batching.p95(self._latencies[size]) if self._latencies[size] else 0.0
            for size in list(self._loaded)
        }

    def run(self, inputs: Arrays, size: int) -> tuple[Arrays, float]:
        """Outputs of at most `size` rows, and the seconds in the engine."""
        with self._running:
            begin = time.perf_counter()
            outputs = self._loaded.get(size, self.first).run(inputs)
            seconds = time.perf_counter() - begin
        if size in self._latencies:
            self._latencies[size].append(seconds * 1e3)
        return outputs, seconds

    def tune(self, most: int, promise_ms: float | None, idle: Callable[[], bool]) -> None:
        """Find the largest batch that keeps the promise, and load it; takes seconds, in its own thread.

        Figures of an earlier start are used if artifact, machine, engine and threads are the same.
        """
        photo = self._artifact.photos[0].read_bytes()
        begin = time.perf_counter()
        row = self.first.prepare([photo])
        prepare_ms = (time.perf_counter() - begin) * 1e3
        kept, key = store.RecordStore(store.cache_dir() / "serving"), self._key()
        found = kept.get(key)
        table = {} if found is None else {int(size): list(found[size]) for size in found}  # type: ignore[call-overload]
        held: predict.Predictor | None = None  # each has its own copy of the weights: one at a time
        held_size = 0
        for size in (size for size in batching.SIZES if size <= most):
            if size not in table:
                if held is not None:
                    held.close()
                predictor = self.first if size == 1 else self._load(size)
                table[size] = self._timed(predictor, row, size, idle)
                held, held_size = (None, 0) if size == 1 else (predictor, size)
            if size > 1 and not batching.keeps(table[size], prepare_ms, promise_ms):
                break
        best = batching.largest({size: table[size] for size in table if size <= most}, prepare_ms, promise_ms)
        if held is not None and held_size != best:
            held.close()
            held = None
        if best > 1:
            self._latencies[best] = deque(table[best], maxlen=KEPT)
            self._latencies[1].extend(table[1])
            self._loaded[best] = held if held is not None else self._load(best)
            self.most = best
        if found is None or len(found) < len(table):
            try:
                kept.put(key, {str(size): latencies for size, latencies in table.items()})
            except VitrailError as error:
                print(f"vitrail: batch sizes will be timed again at the next start: {error}", file=sys.stderr)

    def _load(self, size: int) -> predict.Predictor:
        return predict.from_artifact(
            self._artifact, batch_size=size, threads=self.threads, limits=self._limits, many=True
        )

    def _timed(
        self, predictor: predict.Predictor, row: Arrays, size: int, idle: Callable[[], bool]
    ) -> list[float]:
        inputs = {name: values.repeat(size, axis=0) for name, values in row.items()}
        latencies: list[float] = []
        stop = time.monotonic() + LONGEST_S
        for call in range(UNTIMED + TIMED):
            patience = time.monotonic() + IDLE_WAIT_S
            while not idle() and time.monotonic() < patience:
                time.sleep(0.005)
            with self._running:
                begin = time.perf_counter()
                predictor.run(inputs)
                seconds = time.perf_counter() - begin
            if call >= UNTIMED or time.monotonic() > stop:
                latencies.append(seconds * 1e3)
            if time.monotonic() > stop:
                break
        return latencies

    def _key(self) -> dict[str, Any]:
        variant = self._artifact.manifest.variant
        return {
            "what": "latency of batch sizes",
            "files": {name: entry.sha256 for name, entry in self._artifact.manifest.files.items()},
            "machine": fingerprint(facts()),
            "engine": f"{variant.runtime} {runtimes.version(variant.runtime)}",
            "settings": dict(variant.settings),
            "threads": self.threads,
        }

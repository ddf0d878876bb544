"""The engines of one model: compiled for one image at once, and later for what serves many best, a batch or
single images side by side.

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
from vitrail.runtimes.parts import IMAGES
from vitrail.serve import batching
from vitrail.tasks import Arrays

__all__ = ["KEPT", "Engines", "engine_threads"]

TIMED, UNTIMED = 20, 2
"""Calls per size; those before are not counted."""
LONGEST_S = 5.0
"""No size is timed longer."""
IDLE_WAIT_S = 0.25
"""How long a timing call waits for the requests to pause; then it goes between them."""
TRIED_ONCE = [-1.0]
"""In the place of a size's latencies: the process ended while it was tried."""
KEPT = 64
"""Of the latest latencies of each size."""


def engine_threads(artifact: Artifact, asked: int | None) -> int:
    """Of an engine: as asked for, or as the artifact says, within the usable cores.

    One thread over a container's quota makes the kernel stop all of them.
    """
    cores = usable_cores()
    return asked or min(artifact.manifest.evidence.workload.threads or cores, cores)


class Engines:
    """One predictor per compiled batch size; `run` and `run_beside` may be called from several threads."""

    def __init__(self, artifact: Artifact, *, threads: int | None, limits: Limits) -> None:
        self.threads = engine_threads(artifact, threads)
        self._artifact, self._limits = artifact, limits
        self.first = self._load(1)
        self.most = 1
        self._loaded = {1: self.first}
        self._latencies: dict[int, deque[float]] = {1: deque(maxlen=KEPT)}
        """Of each loaded size, and of `BESIDE` where that is used, in ms."""
        self.beside: predict.Predictor | None = None
        """Runs as many single images at the same time as it has threads; None: not known yet, or batches are
        better."""
        self._running = threading.Lock()
        self._figures: _Figures | None = None

    def size_for(self, waiting: int) -> int:
        """How many of `waiting` images go together."""
        if self.most == 1:
            return 1
        return batching.chosen(
            waiting, {size: batching.median(self._latencies[size] or [size]) for size in self._loaded}
        )

    @property
    def idle(self) -> bool:
        """Whether nothing runs on all threads."""
        return not self._running.locked()

    @property
    def lanes(self) -> int:
        """Images that `run_beside` takes at the same time; 0: none."""
        return 0 if self.beside is None else self.beside.lanes

    def beside_ms(self) -> float:
        """The 95th percentile of the latency of an image beside others; 0: not known."""
        return self._p95(batching.BESIDE)

    def sizes(self) -> dict[int, float]:
        """Compiled sizes with the 95th percentile of their latency in ms; 0: not known yet."""
        return {size: self._p95(size) for size in list(self._loaded)}

    def _p95(self, size: int) -> float:
        latencies = list(self._latencies.get(size, ()))  # other threads add to it
        return batching.p95(latencies) if latencies else 0.0

    def run(self, inputs: Arrays, size: int) -> tuple[Arrays, float]:
        """Outputs of at most `size` rows, and the seconds in the engine."""
        with self._running:
            begin = time.perf_counter()
            outputs = self._loaded.get(size, self.first).run(inputs)
            seconds = time.perf_counter() - begin
        if size in self._latencies:
            self._latencies[size].append(seconds * 1e3)
        return outputs, seconds

    def run_beside(self, inputs: Arrays) -> tuple[Arrays, float]:
        """Outputs of one image on one thread, and the seconds until they were there."""
        assert self.beside is not None
        begin = time.perf_counter()
        outputs = self.beside.run_beside(inputs)
        seconds = time.perf_counter() - begin
        self._latencies[batching.BESIDE].append(seconds * 1e3)
        return outputs, seconds

    def tune(self, most: int, promise_ms: float | None, idle: Callable[[], bool]) -> None:
        """Find what serves many best within the promise, and load it; takes seconds, in its own thread.

        Figures of an earlier start are used if artifact, machine, engine and threads are the same. A size
        that cannot be loaded has none, also where the attempt ended the process.
        """
        photo = self._artifact.photos[0].read_bytes()
        begin = time.perf_counter()
        row = self.first.prepare([photo])
        prepare_ms = (time.perf_counter() - begin) * 1e3
        self._figures = kept = _Figures(self._key())
        table = kept.table
        held: predict.Predictor | None = None  # each has its own copy of the weights: one at a time
        held_size = 1
        for size in (*self._side_by_side(), *(size for size in batching.SIZES if size <= most)):
            if not kept.known(size):
                if held is not None:
                    held.close()
                    held, held_size = None, 1
                predictor = self.first
                if size != 1:
                    kept.begin(size)
                    found = self._load_if_possible(size)
                    if found is None:
                        kept.put(size, [])
                        if size == batching.BESIDE:
                            continue
                        break
                    predictor, held, held_size = found, found, size
                kept.put(size, self._timed(predictor, row, predictor.batch_size, idle))
            if size > 1 and not (table[size] and batching.keeps(table[size], prepare_ms, promise_ms)):
                break
        timed = {size: table[size] for size in table if size <= most and kept.known(size) and table[size]}
        best = batching.largest(timed, prepare_ms, promise_ms)
        if batching.beside_pays(timed, best, self.threads, prepare_ms, promise_ms):
            best = batching.BESIDE
        if held is not None and held_size != best:
            held.close()
            held = None
        if best == 1:
            return
        kept.begin(best)
        loaded = held if held is not None else self._load_if_possible(best)
        kept.put(best, [] if loaded is None else timed[best])
        if loaded is None:
            return
        self._latencies[1].extend(timed[1])
        self._latencies[best] = deque(timed[best], maxlen=KEPT)
        if best == batching.BESIDE:
            self.beside = loaded
        else:
            self._loaded[best] = loaded
            self.most = best

    def _side_by_side(self) -> tuple[int, ...]:
        """`BESIDE` where the engine can."""
        variant, (graph,) = self._artifact.manifest.variant, self._artifact.manifest.graphs
        return (batching.BESIDE,) if self.threads > 1 and runtimes.side_by_side(variant, graph) else ()

    def leave(self) -> None:
        """The process is about to end in peace: a size that is being tried may be tried again."""
        if self._figures is not None:
            self._figures.withdraw()

    def _load_if_possible(self, size: int) -> predict.Predictor | None:
        """None: the model's file is bound to one image, or memory does not suffice for another copy."""
        try:
            return self._load(size)
        except (VitrailError, MemoryError) as error:
            what = f"batches of {size}" if size else "images side by side"
            print(f"vitrail: {what} are not used: {error or 'not enough memory'}", file=sys.stderr)
            return None

    def _load(self, size: int) -> predict.Predictor:
        beside = size == batching.BESIDE
        return predict.from_artifact(
            self._artifact,
            batch_size=self.threads if beside else size,
            threads=self.threads,
            limits=self._limits,
            many=True,
            settings={IMAGES: "1"} if beside else None,
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
            "machine": fingerprint(facts(device=self._artifact.manifest.evidence.workload.device)),
            "engine": f"{variant.runtime} {runtimes.version(variant.runtime)}",
            "settings": dict(variant.settings),
            "threads": self.threads,
        }


class _Figures:
    """Latencies of batch sizes, kept in the cache folder for the next start.

    A size that ends the process, for want of memory say, would do so at every start. So what is tried is
    written down first, and not tried a third time.
    """

    def __init__(self, key: dict[str, Any]) -> None:
        self._key, self._kept = key, store.RecordStore(store.cache_dir() / "serving")
        found = self._kept.get(key) or {}
        self.table: dict[int, list[float]] = {int(size): list(found[size]) for size in found}  # type: ignore[call-overload]
        """Size -> ms; none: it could not be loaded."""
        self._trying: tuple[int, list[float] | None] | None = None
        self._told = False

    def known(self, size: int) -> bool:
        """Whether nothing is left to find out about it."""
        return self.table.get(size, TRIED_ONCE) != TRIED_ONCE

    def begin(self, size: int) -> None:
        """A size is about to be tried."""
        self._trying = size, self.table.get(size)
        self._write(size, [] if self.table.get(size) == TRIED_ONCE else TRIED_ONCE)

    def put(self, size: int, latencies: list[float]) -> None:
        """What became of a size."""
        self._trying = None
        self._write(size, latencies)

    def withdraw(self) -> None:
        """As if what is being tried had not been begun."""
        if self._trying is None:
            return
        size, before = self._trying
        self.table.pop(size, None)
        if before is not None:
            self.table[size] = before
        self._save()

    def _write(self, size: int, latencies: list[float]) -> None:
        self.table[size] = latencies
        self._save()

    def _save(self) -> None:
        try:
            self._kept.put(self._key, {str(each): figures for each, figures in self.table.items()})
        except VitrailError as error:
            if not self._told:
                print(f"vitrail: batch sizes will be timed again at the next start: {error}", file=sys.stderr)
            self._told = True

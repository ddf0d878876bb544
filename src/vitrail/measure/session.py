"""One launch of one export, in its own process: load, timed blocks, memory, outputs.

This is the production path: the very files that would ship, the `Predictor` that `vitrail predict` uses,
photos read from disk at each request. Runs in a child of sandbox.py; imports torch only when the export
is a PyTorch reference.
"""

from __future__ import annotations

import gc
import resource
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from vitrail import footprint, gpu, runtimes, tasks
from vitrail.images.decode import decode
from vitrail.images.preprocess import resized_short_side
from vitrail.measure.clients import closed_loop
from vitrail.measure.speed import SpeedReference, steal_s
from vitrail.predict import MOST_WORKERS, Encoded, Predictor
from vitrail.runtimes.chain import load_graphs
from vitrail.tasks.promptable import Promptable
from vitrail.vocabulary import Graph, Target

SWITCH_S = 0.001
"""How long one of several clients' threads may keep the interpreter, as in `vitrail serve`."""
KEPT_PHOTOS, KEPT_LEAST, KEPT_S = 8, 2, 3.0
"""Photos that prompts are timed on: as many as are kept by default, at least so many, and no more than can be
encoded in so many seconds."""


def start(payload: dict[str, Any]) -> ExportSession:
    """Load an export. Payload: the fields of `SessionRequest`, as JSON."""
    return ExportSession(msgspec.convert(payload, SessionRequest))


class SessionRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a launch needs to know; paths are absolute."""

    folder: str
    graphs: tuple[Graph, ...]
    target: Target
    batch_size: int
    clients: int = 1
    threads: int
    task: dict[str, Any]
    """As `tasks.pack` gives it."""
    photos: list[str]
    settings: dict[str, str] = {}
    seed: int = 0


class ExportSession:
    """A loaded export that answers `block`, `warm_up`, `memory`, `facts` and `outputs`."""

    def __init__(self, request: SessionRequest) -> None:
        self._request = request
        self._speed = SpeedReference()
        task = tasks.unpack(request.task)
        _warm_libraries(request, task)
        _, self._baseline = runtimes.memory(request.target)
        begin = time.perf_counter()
        self._runner = load_graphs(
            Path(request.folder),
            request.graphs,
            request.target,
            sizes={"B": request.batch_size},
            threads=request.threads,
            settings={**_sharing(request), **request.settings},
        )
        self._load_s = time.perf_counter() - begin
        self._grown = 0.0
        self._predictor = Predictor(self._runner, task)
        self._order = np.random.default_rng(request.seed).permutation(len(request.photos))
        self._next = 0
        self._kept: list[Encoded] = []
        self._prompted = 0
        self._inputs = self._predictor.prepare(self._photos())
        # One thread calls the engine, for whoever came first, as in `vitrail serve`.
        self._engine = ThreadPoolExecutor(1, "engine") if request.clients > 1 else None
        if request.clients > 1:
            sys.setswitchinterval(SWITCH_S)

    def facts(self) -> dict[str, Any]:
        """The engine's facts as read back, and how long loading took, in s."""
        facts = msgspec.to_builtins(self._runner.facts)
        return {"facts": facts, "load_s": self._load_s}

    def warm_up(self, seconds: float, calls: int) -> dict[str, Any]:
        """Untimed requests: at least `calls` of each client, then until `seconds` have passed."""
        begin, done, clients = time.perf_counter(), 0, self._request.clients
        while done < calls or time.perf_counter() - begin < seconds:
            if clients > 1:
                closed_loop(clients, clients, self._photos, self._ask)
            else:
                self._predictor.request(self._photos())
            self._runner.run(self._inputs)
            done += 1
            if time.perf_counter() - begin > 10 * seconds and done >= 2:
                break
        self._grown = max(runtimes.memory(self._request.target)[1] - self._baseline, 0.0)
        return {"calls": done * clients}

    def block(self, scope: str, calls: int) -> dict[str, Any]:
        """Time `calls` calls, bracketed by the reference workload; nothing else happens in between.

        In scope `request` all clients call at once, each from a thread of its own. `encode` and `prompt` are
        the stages of a promptable model, of one photo each.
        """
        clients = self._request.clients if scope == "request" else 1
        call, inputs = (None, []) if clients > 1 else self._drawn(scope, calls)
        steal, switches, card = steal_s(), _involuntary_switches(), self._card()
        before = self._speed.measure_ms()
        collecting = gc.isenabled()
        gc.disable()
        try:
            if call is None:
                timed = closed_loop(clients, calls, self._photos, self._ask)
                samples = np.array([seconds for seconds, _ in timed])
            else:
                samples = _timed(call, inputs)
        finally:
            if collecting:
                gc.enable()
        after = self._speed.measure_ms()
        cards = [each for each in (card, self._card()) if each is not None]
        return {
            "samples_ms": (samples * 1e3).tolist(),
            "speed_before_ms": before,
            "speed_after_ms": after,
            "steal_s": max(steal_s() - steal, 0.0),
            "involuntary_switches": _involuntary_switches() - switches,
            "clients": clients,
            "held_back": list(dict.fromkeys(word for each in cards for word in each.held_back)),
            "others": max((each.others for each in cards), default=0),
        }

    def _card(self) -> gpu.Reading | None:
        """How the GPU runs now; None: the CPU runs the model."""
        device = self._request.target.device
        return gpu.reading(device) if runtimes.kind_of(device) == "cuda" else None

    def _drawn(self, scope: str, calls: int) -> tuple[Callable[[Any], object], list[Any]]:
        """What is called in a scope, and what each call is given: drawn before anything is timed."""
        if scope == "request":
            return self._predictor.request, [self._photos() for _ in range(calls)]
        if scope == "encode":
            return self._predictor.encode, [self._photos()[0] for _ in range(calls)]
        if scope == "prompt":
            return self._predictor.prompter.first, self._embeddings(calls)
        return self._runner.run, [self._inputs] * calls

    def _embeddings(self, calls: int) -> list[Encoded]:
        """Of the same photos in each launch, in turn: what a mask takes goes by the size of its photo."""
        if not self._kept:
            order = np.random.default_rng(0).permutation(len(self._request.photos))
            begin = time.perf_counter()
            for index in order[:KEPT_PHOTOS]:
                if len(self._kept) >= KEPT_LEAST and time.perf_counter() - begin > KEPT_S:
                    break
                self._kept.append(self._predictor.encode(self._request.photos[index]))
        self._prompted += calls
        return [self._kept[i % len(self._kept)] for i in range(self._prompted - calls, self._prompted)]

    def _ask(self, photos: list[str]) -> None:
        """One client's request: `Predictor.request`, but for its turn at the engine."""
        assert self._engine is not None
        inputs = self._predictor.prepare(photos)
        outputs = self._engine.submit(self._predictor.run, inputs).result()
        self._predictor.task.finish(outputs)

    def memory(self) -> dict[str, float]:
        """Peak, steady and above-baseline memory in MiB, of this process or the engine's device."""
        peak, steady = runtimes.memory(self._request.target)
        found = {"peak": peak, "steady": steady, "above_baseline": max(peak - self._baseline, 0.0)}
        if runtimes.kind_of(self._request.target.device) != "cuda":
            return found
        if not gpu.memory_mib(self._request.target.device)[1]:
            # By now rivals' memory is in use too; while this one was loaded, no other was.
            found = dict.fromkeys(found, self._grown)
        return {**found, "process": footprint.peak_mib()}

    def outputs(self, photos: list[str], crops_per_photo: int, target: str) -> dict[str, Any]:
        """Outputs of the photos' crops, saved to `target` (`.npz`) as named arrays (photos, crops, ...)."""
        task = self._predictor.task
        if crops_per_photo == 1:  # as `prepare` makes it: threads read ahead of the engine
            pipeline = Predictor(
                self._runner, task, workers=min(self._request.threads, MOST_WORKERS), scaled=False
            )
            stacked = {name: rows[:, None] for name, rows in pipeline.all_outputs(photos).items()}
        else:
            rows = [self._predictor.run(task.views(decode(photo), crops_per_photo)) for photo in photos]
            stacked = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        tasks.write_arrays(target, stacked)
        return {"photos": len(photos)}

    def clicked(self, photos: list[tuple[str, list[list[float]]]], target: str) -> dict[str, Any]:
        """Outputs of single clicks into photos, saved to `target` as named arrays (clicks, ...)."""
        task = self._predictor.task
        assert isinstance(task, Promptable)
        rows = [self._predictor.run(task.clicks(decode(photo), clicks)) for photo, clicks in photos]
        found = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
        tasks.write_arrays(target, found)
        return {"photos": len(photos)}

    def _photos(self) -> list[str]:
        photos, chosen = self._request.photos, []
        for _ in range(self._request.batch_size):
            chosen.append(photos[self._order[self._next % len(photos)]])
            self._next += 1
        return chosen


def _timed(call: Callable[[Any], object], inputs: Sequence[Any]) -> np.ndarray:
    """Durations in s of one call for each input, one after another."""
    clock, samples = time.perf_counter, np.empty(len(inputs))
    for i, given in enumerate(inputs):
        begin = clock()
        call(given)
        samples[i] = clock() - begin
    return samples


def _sharing(request: SessionRequest) -> dict[str, str]:
    """How an engine is set up beside threads that decode, as in `vitrail serve`."""
    return dict(runtimes.RUNTIMES[request.target.runtime].sharing) if request.clients > 1 else {}


def machine_speed(payload: dict[str, Any]) -> dict[str, float]:
    """The reference workload alone, for the check before recorded measurements are reused."""
    reference = SpeedReference()
    readings = [reference.measure_ms() for _ in range(int(payload.get("readings", 60)))]
    return {"speed_ms": float(np.median(readings))}


def _warm_libraries(request: SessionRequest, task: tasks.Task) -> None:
    # Importing the engine and decoding one photo count as baseline: they are the same for all models.
    __import__(runtimes.RUNTIMES[request.target.runtime].module)
    decode(request.photos[0], short_side=resized_short_side(task.preprocess))


def _involuntary_switches() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw

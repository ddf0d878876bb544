"""What a model's process does with requests: decode and prepare on threads, batch, run, finish, answer.

Shapes: B images of one run, n images or rows of one request.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from vitrail import footprint
from vitrail.artifact import Artifact, open_artifact
from vitrail.errors import ClaimError, InputError
from vitrail.hardware import usable_cores
from vitrail.images.limits import LIMITS, Limits
from vitrail.predict import MOST_WORKERS
from vitrail.serve import batching, wire
from vitrail.serve.describe import describe, digest_of, promise_ms, row_pixels
from vitrail.serve.engines import Engines
from vitrail.serve.refusals import FAILED
from vitrail.serve.results import CUTOUT, JSON, RESULTS, as_json, as_png, error_json
from vitrail.serve.tensors import packed, rows_of
from vitrail.tasks import Arrays
from vitrail.tasks.agreement import relative_errors
from vitrail.tasks.segment import Segmentation

__all__ = ["Working"]

SEGMENT = "segment"
BEAT_S = 0.25
WAITING_SHARE = 0.1
"""What a decoder's time counts for while it gets no processor: others may have it, but not for ever."""


@dataclass(eq=False)
class _Request:
    """One request's progress; only the thread that finishes its last image answers."""

    message: wire.Images | wire.Tensors | wire.Try
    count: int
    arrived: float
    payload: bytes = b""
    """Its images, where an answer shows them again."""
    results: list[Any] = field(default_factory=list)
    """For each image: outputs of one row, or its error."""
    photos: list[tuple[int, int] | None] = field(default_factory=list)
    """For each image: its (height, width); None: not known."""
    left: int = 0
    cancelled: bool = False
    failure: tuple[str, str] | None = None
    """Code and sentence, told when the last image is settled."""
    prepare_s: float = 0.0
    wait_s: float = 0.0
    run_s: float = 0.0
    finish_s: float = 0.0


@dataclass(eq=False)
class _Job:
    """One image or row of a request."""

    request: _Request
    index: int
    inputs: Arrays | None = None
    prepare_s: float = 0.0


class Working:
    """The model and the threads around it; `take` gives it a request, `send` takes what it answers.

    Raises:
        VitrailError: the artifact is damaged, or its engine cannot run it here.
    """

    def __init__(self, config: wire.Config, send: Callable[..., None]) -> None:
        self._config, self._send = config, send
        artifact = open_artifact(config.artifact)
        if artifact.task.name not in RESULTS:
            raise InputError(
                f"{artifact.path} is for {artifact.task.name}, which is not served yet: use vitrail batch, "
                f"or vitrail {artifact.task.name}."
            )
        self._artifact, self._task = artifact, artifact.task
        self._limits = _limits(config, masks=artifact.task.name == SEGMENT)
        self._engines = Engines(artifact, threads=config.threads, limits=self._limits)
        self._photos = [photo.read_bytes() for photo in artifact.photos]
        self._fp32, self._own = artifact.fp32_outputs(), artifact.own_outputs()
        self._requests: dict[int, _Request] = {}
        self._waiting: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._decoding: dict[int, tuple[float, float]] = {}
        """Thread -> when it began its image, and the processor time that it had spent by then, in s."""
        self._running: dict[int, float] = {}
        """Thread -> since when the engine runs for it."""
        self._images = 0
        """Of all requests that are under way."""
        self._batches: deque[wire.Batch] = deque()
        workers = min(usable_cores(), MOST_WORKERS)
        self._pool = ThreadPoolExecutor(workers, "prepare")
        self._finishers = ThreadPoolExecutor(workers, "finish") if self._task.name == SEGMENT else None
        """Masks at the size of a photo take longer than some engines; None: results take no time."""
        self._promise_ms = config.promise_ms or promise_ms(artifact.manifest.evidence)
        self.ready = self._ready(artifact)

    def start(self) -> None:
        """Start the threads that run the engine, tell of life, and find the best batch."""
        for name, target in (("engine", self._run_all), ("beat", self._beat), ("tune", self._tune)):
            threading.Thread(target=self._or_die, args=(target,), name=name, daemon=True).start()

    def leave(self) -> None:
        """The process ends in peace."""
        self._engines.leave()

    def take(self, message: wire.Request, payload: bytes) -> None:
        """Begin a request; called by the reading thread alone."""
        if isinstance(message, wire.Cancel):
            request = self._requests.get(message.id)
            if request is not None:
                request.cancelled = True
            return
        request = _Request(message, self._count(message), time.monotonic())
        request.results, request.left = [None] * request.count, request.count
        request.photos = [None] * request.count
        if isinstance(message, wire.Images) and message.form == CUTOUT:
            request.payload = payload
        self._requests[message.id] = request
        with self._changed:
            self._images += request.count
        if isinstance(message, wire.Tensors):
            writable = memoryview(bytearray(payload))  # which engines want their inputs to be
            self._pool.submit(self._or_die, self._unpack, request, writable)
            return
        view, place = memoryview(payload), 0
        for index in range(request.count):
            if isinstance(message, wire.Images):
                data: memoryview | bytes = view[place : place + message.sizes[index]]
                place += message.sizes[index]
                if request.count == 1:
                    data = payload  # a decoder shares bytes, and copies what it sees through a view
            else:
                data = self._photos[message.photo % len(self._photos)]
            self._pool.submit(self._or_die, self._prepare, _Job(request, index), data)

    # --- preparing --------------------------------------------------------------------------------

    def _prepare(self, job: _Job, data: memoryview | bytes) -> None:
        if self._dropped(job.request):
            self._settle(job, None)
            return
        thread, begin = threading.get_ident(), time.monotonic()
        self._decoding[thread] = begin, time.thread_time()
        try:
            # Recorded outputs belong to photos that were decoded in full.
            scaled = not isinstance(job.request.message, wire.Try)
            if self._task.name == SEGMENT:
                size: tuple[int, int]
                job.inputs, size = self._engines.first.sized(data, scaled=scaled)
                job.request.photos[job.index] = size
            else:
                job.inputs = self._engines.first.prepare([data], scaled=scaled)
        except InputError as error:
            self._settle(job, str(error))
            return
        except Exception:
            traceback.print_exc()
            job.request.failure = ("failed", FAILED)
            self._settle(job, None)
            return
        finally:
            self._decoding.pop(thread, None)
        job.prepare_s = time.monotonic() - begin
        # A thread that has the cores to itself runs its image quicker than several that share it: as long as
        # there are as many images as threads.
        if self._engines.lanes and self._images >= self._engines.lanes:
            self._run([job])
        elif self._engines.idle and not self._waiting:  # another thread would do the same, once it is awake
            self._run([job], self._engines.size_for(1))
        else:
            self._queue([job])

    def _unpack(self, request: _Request, payload: memoryview) -> None:
        """A request's tensors -> one job for each row."""
        message = request.message
        assert isinstance(message, wire.Tensors)
        begin = time.monotonic()
        try:
            rows = rows_of(message.inputs, payload, self.ready.inputs)
        except InputError as error:
            self._fail(request, "bad_request", str(error))
            return
        except Exception:
            traceback.print_exc()
            self._fail(request, "failed", FAILED)
            return
        spent = time.monotonic() - begin
        self._queue([_Job(request, index, row, spent) for index, row in enumerate(rows)])

    def _fail(self, request: _Request, code: str, message: str) -> None:
        """None of a request's rows can be run."""
        request.failure, request.left = (code, message), 1
        with self._changed:
            self._images -= request.count - 1
        self._settle(_Job(request, 0), None)

    def _queue(self, jobs: Sequence[_Job]) -> None:
        with self._changed:
            self._waiting.extend(jobs)
            self._changed.notify()

    # --- running ----------------------------------------------------------------------------------

    def _run_all(self) -> None:
        while True:
            jobs, size = self._next()
            live = [job for job in jobs if not self._dropped(job.request)]
            for job in jobs:
                if job not in live:
                    self._settle(job, None)
            if live:
                self._run(live, size)

    def _next(self) -> tuple[list[_Job], int]:
        with self._changed:
            while not self._waiting:
                self._changed.wait()
            size = self._engines.size_for(len(self._waiting))
            return [self._waiting.popleft() for _ in range(min(size, len(self._waiting)))], size

    def _run(self, jobs: list[_Job], size: int = batching.BESIDE) -> None:
        first = jobs[0].inputs
        assert first is not None
        inputs = (
            first
            if len(jobs) == 1
            else {name: np.concatenate([job.inputs[name] for job in jobs]) for name in first}  # type: ignore[index]
        )
        thread = threading.get_ident()
        self._running[thread] = begin = time.monotonic()
        if size == batching.BESIDE:
            outputs, seconds = self._engines.run_beside(inputs)
        else:
            outputs, seconds = self._engines.run(inputs, size)
        del self._running[thread]
        self._batches.append(wire.Batch(images=len(jobs), size=max(size, 1), seconds=seconds))
        for place, job in enumerate(jobs):
            request = job.request
            request.run_s = max(request.run_s, seconds)
            request.wait_s = max(request.wait_s, begin - request.arrived - job.prepare_s)
            self._settle(job, {name: values[place : place + 1] for name, values in outputs.items()})

    # --- answering --------------------------------------------------------------------------------

    def _dropped(self, request: _Request) -> bool:
        """Whether nobody waits for it any more."""
        if request.failure is None and (request.cancelled or time.monotonic() > request.message.deadline):
            request.failure = ("deadline", "The deadline passed before the images were done.")
        return request.failure is not None

    def _settle(self, job: _Job, result: Arrays | str | None) -> None:
        """One image is done: its outputs, what is wrong with it, or None for one that was dropped."""
        request = job.request
        with self._changed:
            request.results[job.index] = result
            request.prepare_s = max(request.prepare_s, job.prepare_s)
            request.left -= 1
            self._images -= 1
            last = request.left == 0
        if not last:
            return
        if self._finishers is not None and isinstance(request.message, wire.Images):
            self._finishers.submit(self._or_die, self._answer, request)
        else:
            self._answer(request)

    def _answer(self, request: _Request) -> None:
        message = request.message
        if self._finishers is not None:  # it may have waited, and nobody waits for it any more
            self._dropped(request)
        self._requests.pop(message.id, None)
        if request.failure is not None:
            self._send(wire.Failed(id=message.id, code=request.failure[0], message=request.failure[1]))
            return
        try:
            if isinstance(message, wire.Try):
                self._send(wire.Tried(id=message.id, failures=self._compare(message, request.results[0])))
            elif isinstance(message, wire.Tensors):
                tensors, parts = packed(_stacked(request.results))
                self._send(self._answered(request, tensors, []), *parts)
            else:
                begin = time.monotonic()
                pieces, errors = self._finished(request, message)
                request.finish_s = time.monotonic() - begin if self._finishers is not None else 0.0
                whole = b"[" + b",".join(pieces) + b"]" if message.form == JSON else pieces[0]
                self._send(self._answered(request, [], errors), whole)
        except InputError as error:
            self._send(wire.Failed(id=message.id, code="bad_request", message=str(error)))
        except Exception:
            traceback.print_exc()
            self._send(wire.Failed(id=message.id, code="failed", message=FAILED))

    def _answered(
        self, request: _Request, outputs: list[wire.Tensor], errors: list[tuple[str, str]]
    ) -> wire.Answer:
        return wire.Answer(
            id=request.message.id,
            outputs=outputs,
            errors=errors,
            prepare_s=request.prepare_s,
            wait_s=max(request.wait_s, 0.0),
            run_s=request.run_s,
            finish_s=request.finish_s,
        )

    def _finished(self, request: _Request, message: wire.Images) -> tuple[list[bytes], list[tuple[str, str]]]:
        """JSON for each image or the PNG of one, and what those without a result have instead."""
        good = [result for result in request.results if not isinstance(result, str)]
        finished = iter(self._finish(good, message.options) if good else ())
        pieces, errors = [], []
        for result, size in zip(request.results, request.photos, strict=True):
            outcome = result if isinstance(result, str) else next(finished)
            if isinstance(outcome, (str, ClaimError)):
                error = ("unusable_image" if isinstance(outcome, str) else "failed", str(outcome))
                errors.append(error)
                pieces.append(error_json(*error))
                continue
            if isinstance(outcome, Segmentation):
                outcome = replace(outcome, size=size)
            if message.form == JSON:
                pieces.append(as_json(self._task.name, outcome))
            else:
                pieces.append(as_png(message.form, outcome, request.payload, self._limits))
        return pieces, errors

    def _finish(self, rows: list[Arrays], options: dict[str, Any]) -> list[Any]:
        """A result for each row; where the numbers of one are not finite, an error for that one alone."""
        try:
            return list(self._task.finish(_stacked(rows), **options))
        except ClaimError as error:
            if len(rows) == 1:
                print(f"vitrail: {error}", file=sys.stderr, flush=True)
                return [error]
            return [result for row in rows for result in self._finish([row], options)]

    def _compare(self, message: wire.Try, result: Arrays | str | None) -> list[str]:
        if result is None or isinstance(result, str):
            return [f"the recorded photo could not be used: {result}"]
        photo = message.photo % len(self._photos)
        row = slice(photo, photo + 1)
        if not all(np.isfinite(values).all() for values in result.values()):
            return ["outputs are not finite"]
        bounds = self._artifact.manifest.reference.bounds
        fp32 = {name: values[row] for name, values in self._fp32.items()}
        failures = [check.name for check in self._task.checks(fp32, result, bounds) if not check.holds]
        own = [
            float(relative_errors(values[row].reshape(1, -1), result[name].reshape(1, -1)).max())
            for name, values in self._own.items()
        ]
        error = max(own, default=0.0)  # what was never run where it was built has none
        return failures + (["relative error to its own outputs"] if error > bounds.relative_error else [])

    # --- beside requests --------------------------------------------------------------------------

    def _beat(self) -> None:
        while True:
            batches = [self._batches.popleft() for _ in range(len(self._batches))]
            now = time.monotonic()
            self._send(
                wire.Beat(
                    running_s=now - min(list(self._running.values()), default=now),
                    decoding_s=self._decoding_s(),
                    resident_bytes=int(footprint.resident_mib() * 2**20),
                    batches=batches,
                    sizes=self._engines.sizes(),
                    most=self._engines.most,
                    beside=self._engines.lanes,
                    beside_ms=self._engines.beside_ms(),
                )
            )
            time.sleep(BEAT_S)

    def _decoding_s(self) -> float:
        """Of the image that has taken the most so far: of a core, or of a wait that never ends."""
        now, found = time.monotonic(), 0.0
        clock_of = getattr(time, "pthread_getcpuclockid", None)  # macOS has none: there only the wait counts
        for thread, (begin, spent) in list(self._decoding.items()):
            taken = time.clock_gettime(clock_of(thread)) - spent if clock_of is not None else 0.0
            found = max(found, taken, WAITING_SHARE * (now - begin))
        return found

    def _tune(self) -> None:
        if self._config.max_batch > 1:
            self._engines.tune(self._config.max_batch, self._promise_ms, lambda: not self._requests)

    def _or_die(self, target: Callable[..., None], *arguments: Any) -> None:
        """A thread that ends in an unforeseen error would leave the process alive but useless."""
        try:
            target(*arguments)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(70)

    def _count(self, message: wire.Images | wire.Tensors | wire.Try) -> int:
        if isinstance(message, wire.Images):
            return len(message.sizes)
        return message.inputs[0].shape[0] if isinstance(message, wire.Tensors) else 1

    def _ready(self, artifact: Artifact) -> wire.Ready:
        runner = self._engines.first.runner
        (graph,) = runner.facts.graphs
        specs = [
            [
                wire.Tensor(name=s.name, dtype=s.dtype, shape=[-1, *map(int, s.shape[1:])], size=0)
                for s in side
            ]
            for side in (graph.inputs, graph.outputs)
        ]
        return wire.Ready(
            task=self._task.name,
            digest=digest_of(artifact.path),
            about=describe(artifact, runner.facts),
            inputs=specs[0],
            outputs=specs[1],
            promise_ms=self._promise_ms,
            photos=len(self._photos),
            row_pixels=row_pixels(graph),
        )


def _limits(config: wire.Config, *, masks: bool) -> Limits:
    limits = LIMITS if config.megapixels is None else Limits.of_megapixels(config.megapixels)
    if masks:  # which are not made at a larger size
        limits = replace(limits, pixels=min(limits.pixels, LIMITS.pixels))
    return replace(limits, file_bytes=min(limits.file_bytes, config.file_bytes))


def _stacked(rows: Sequence[Arrays]) -> Arrays:
    if len(rows) == 1:
        return rows[0]
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}

"""A model of one graph: images are prepared on threads, run in batches or side by side, and finished.

Shapes: B images of one run, n images or rows of one request.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vitrail.artifact import Artifact
from vitrail.errors import ClaimError, InputError
from vitrail.serve import batching, wire
from vitrail.serve.engines import Engines
from vitrail.serve.forms import SEGMENT
from vitrail.serve.refusals import FAILED
from vitrail.serve.service import Job, Progress, Service, Work
from vitrail.serve.tensors import packed, rows_of
from vitrail.tasks import Arrays

__all__ = ["Working"]


@dataclass(eq=False, kw_only=True)
class _Job(Job):
    inputs: Arrays | None = None
    size: tuple[int, int] | None = None
    """(height, width) of the photo; None: it is asked for by no answer."""


@dataclass(frozen=True)
class _Ran:
    """What an image's answer is made of."""

    outputs: Arrays
    """Of one row."""
    size: tuple[int, int] | None


class Working(Service):
    """See `Service`.

    Raises:
        VitrailError: the engine cannot run the artifact here.
    """

    def __init__(self, artifact: Artifact, config: wire.Config, send: Callable[..., None]) -> None:
        super().__init__(artifact, config, send, masks=artifact.task.name == SEGMENT)
        self._engines = Engines(artifact, threads=config.threads, limits=self._limits)
        self._waiting: deque[_Job] = deque()
        facts = self._engines.first.runner.facts
        (graph,) = facts.graphs
        self.ready = self._ready(facts, graph)

    def leave(self) -> None:
        """The process ends in peace."""
        self._engines.leave()

    def _threads(self) -> Mapping[str, Callable[[], None]]:
        return {"engine": self._run_all, "tune": self._tune}

    def _figures(self) -> dict[str, Any]:
        engines = self._engines
        return {
            "sizes": engines.sizes(),
            "most": engines.most,
            "beside": engines.lanes,
            "beside_ms": engines.beside_ms(),
        }

    def _begin(self, request: Progress, payload: bytes) -> None:
        message = request.message
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
                assert isinstance(message, wire.Try), "prompts are for models of two graphs"
                data = self._photos[message.photo % len(self._photos)]
            self._pool.submit(self._or_die, self._prepare, _Job(request=request, index=index), data)

    # --- preparing --------------------------------------------------------------------------------

    def _prepare(self, job: _Job, data: memoryview | bytes) -> None:
        # Recorded outputs belong to photos that were decoded in full.
        scaled = not isinstance(job.request.message, wire.Try)

        def made() -> Arrays:
            if self._task.name != SEGMENT:
                return self._engines.first.prepare([data], scaled=scaled)
            inputs, job.size = self._engines.first.sized(data, scaled=scaled)
            return inputs

        job.inputs = self._prepared(job, made)
        if job.inputs is None:
            return
        # A thread that has the cores to itself runs its image quicker than several that share it: as long as
        # there are as many images as threads.
        if self._engines.lanes and self._images >= self._engines.lanes:
            self._run([job])
        elif self._engines.idle and not self._waiting:  # another thread would do the same, once it is awake
            self._run([job], self._engines.size_for(1))
        else:
            self._queue([job])

    def _unpack(self, request: Progress, payload: memoryview) -> None:
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
        self._queue(
            [
                _Job(request=request, index=index, inputs=row, prepare_s=spent)
                for index, row in enumerate(rows)
            ]
        )

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
            row = {name: values[place : place + 1] for name, values in outputs.items()}
            self._settle(job, row if isinstance(request.message, wire.Try) else _Ran(row, job.size))

    def _tune(self) -> None:
        if self._config.max_batch > 1:
            self._engines.tune(self._config.max_batch, self._promise_ms, lambda: not self._requests)

    # --- answering --------------------------------------------------------------------------------

    def _say(self, request: Progress, message: Work) -> None:
        if isinstance(message, wire.Tensors):
            tensors, parts = packed(_stacked([ran.outputs for ran in request.results]))
            self._send(self._answered(request, tensors, []), *parts)
        else:
            super()._say(request, message)

    def _outcomes(self, request: Progress, results: list[_Ran]) -> list[Any]:
        assert isinstance(request.message, wire.Images)
        found = self._finish([ran.outputs for ran in results], request.message.options)
        if self._task.name != SEGMENT:
            return found
        return [
            each if isinstance(each, ClaimError) else replace(each, size=ran.size)
            for each, ran in zip(found, results, strict=True)
        ]

    def _finish(self, rows: list[Arrays], options: dict[str, Any]) -> list[Any]:
        """A result for each row; where the numbers of one are not finite, an error for that one alone."""
        try:
            return list(self._task.finish(_stacked(rows), **options))
        except ClaimError as error:
            if len(rows) == 1:
                print(f"vitrail: {error}", file=sys.stderr, flush=True)
                return [error]
            return [result for row in rows for result in self._finish([row], options)]


def _stacked(rows: Sequence[Arrays]) -> Arrays:
    if len(rows) == 1:
        return rows[0]
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}

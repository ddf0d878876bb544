"""What a model's process does whatever it is for: requests under way, decoders, answers, signs of life."""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np

from vitrail import footprint
from vitrail.artifact import Artifact
from vitrail.errors import ClaimError, InputError
from vitrail.hardware import usable_cores
from vitrail.images.limits import LIMITS, Limits
from vitrail.predict import MOST_WORKERS
from vitrail.serve import wire
from vitrail.serve.describe import describe, digest_of, promise_ms, row_pixels
from vitrail.serve.forms import CUTOUT, JSON
from vitrail.serve.refusals import FAILED
from vitrail.serve.results import as_json, as_png, error_json
from vitrail.tasks import Arrays
from vitrail.tasks.agreement import relative_errors
from vitrail.vocabulary import Graph, RunnerFacts

__all__ = ["Job", "Progress", "Service", "Work"]

BEAT_S = 0.25
WAITING_SHARE = 0.1
"""What a decoder's time counts for while it gets no processor: others may have it, but not for ever."""

T = TypeVar("T")
Work = wire.Images | wire.Prompt | wire.Tensors | wire.Try


@dataclass(eq=False)
class Progress:
    """One request's; only the thread that finishes its last image answers."""

    message: Work
    count: int
    arrived: float
    payload: bytes = b""
    """Its images, where an answer shows them again."""
    results: list[Any] = field(default_factory=list)
    """For each image or row: what its answer is made of, or its error."""
    left: int = 0
    cancelled: bool = False
    failure: tuple[str, str] | None = None
    """Code and sentence, told when the last image is settled."""
    prepare_s: float = 0.0
    wait_s: float = 0.0
    run_s: float = 0.0
    finish_s: float = 0.0


@dataclass(eq=False, kw_only=True)
class Job:
    """One image or row of a request."""

    request: Progress
    index: int = 0
    prepare_s: float = 0.0


class Service(ABC):
    """A model and the threads around it; `take` gives it a request, `send` takes what it answers.

    Args:
        artifact: what answers.
        config: how.
        send: called by any thread with a message's head and the parts of its payload.
        masks: whether answers are masks: at the size of a photo they take longer than some engines, so that
            threads of their own make them.
    """

    ready: wire.Ready

    def __init__(
        self, artifact: Artifact, config: wire.Config, send: Callable[..., None], *, masks: bool
    ) -> None:
        self._artifact, self._config, self._send = artifact, config, send
        self._task = artifact.task
        self._limits = _limits(config, masks=masks)
        self._photos = [photo.read_bytes() for photo in artifact.photos]
        self._fp32, self._own = artifact.fp32_outputs(), artifact.own_outputs()
        self._requests: dict[int, Progress] = {}
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
        self._finishers = ThreadPoolExecutor(workers, "finish") if masks else None
        self._promise_ms = config.promise_ms or promise_ms(artifact.manifest.evidence)

    def start(self) -> None:
        """Start the threads that run the engines and tell of life."""
        for name, target in {**self._threads(), "beat": self._beat}.items():
            threading.Thread(target=self._or_die, args=(target,), name=name, daemon=True).start()

    @abstractmethod
    def leave(self) -> None:
        """The process ends in peace."""

    def take(self, message: wire.Request, payload: bytes) -> None:
        """Begin a request; called by the reading thread alone."""
        if isinstance(message, wire.Cancel):
            request = self._requests.get(message.id)
            if request is not None:
                request.cancelled = True
            return
        request = Progress(message, _count(message), time.monotonic())
        request.results, request.left = [None] * request.count, request.count
        if isinstance(message, wire.Images) and message.form == CUTOUT:
            request.payload = payload
        self._requests[message.id] = request
        with self._changed:
            self._images += request.count
        self._begin(request, payload)

    @abstractmethod
    def _threads(self) -> Mapping[str, Callable[[], None]]:
        """What runs beside the decoders, by the threads' names."""

    @abstractmethod
    def _begin(self, request: Progress, payload: bytes) -> None:
        """Set a request's images or rows off on their way; each ends in `_settle`."""

    @abstractmethod
    def _outcomes(self, request: Progress, results: list[Any]) -> Iterable[Any]:
        """What is said of each image, or a ClaimError in its place."""

    @abstractmethod
    def _figures(self) -> dict[str, Any]:
        """What a `wire.Beat` says of the engines."""

    def _ready(self, facts: RunnerFacts, graph: Graph) -> wire.Ready:
        """The first message; `graph`: what goes in and out, of any number of images."""
        inputs, outputs = (
            [wire.Tensor(name=spec.name, dtype=spec.dtype, shape=_open(spec.shape), size=0) for spec in side]
            for side in (graph.inputs, graph.outputs)
        )
        return wire.Ready(
            task=self._task.name,
            digest=digest_of(self._artifact.path),
            about=describe(self._artifact, facts),
            inputs=inputs,
            outputs=outputs,
            promise_ms=self._promise_ms,
            photos=len(self._photos),
            row_pixels=row_pixels(graph),
        )

    # --- preparing --------------------------------------------------------------------------------

    def _prepared(self, job: Job, make: Callable[[], T]) -> T | None:
        """What `make` decodes for a job; None: it has been settled, for want of a usable image or of time."""
        if self._dropped(job.request):
            self._settle(job, None)
            return None
        thread, begin = threading.get_ident(), time.monotonic()
        self._decoding[thread] = begin, time.thread_time()
        try:
            found = make()
        except InputError as error:
            self._settle(job, str(error))
            return None
        except Exception:
            traceback.print_exc()
            job.request.failure = ("failed", FAILED)
            self._settle(job, None)
            return None
        finally:
            self._decoding.pop(thread, None)
        job.prepare_s = time.monotonic() - begin
        return found

    def _fail(self, request: Progress, code: str, message: str) -> None:
        """None of a request's rows can be run."""
        request.failure, request.left = (code, message), 1
        with self._changed:
            self._images -= request.count - 1
        self._settle(Job(request=request), None)

    # --- answering --------------------------------------------------------------------------------

    def _dropped(self, request: Progress) -> bool:
        """Whether nobody waits for it any more."""
        if request.failure is None and (request.cancelled or time.monotonic() > request.message.deadline):
            request.failure = ("deadline", "The deadline passed before the images were done.")
        return request.failure is not None

    def _settle(self, job: Job, result: Any) -> None:
        """One image is done: what its answer is made of, what is wrong with it, or None if it was dropped."""
        request = job.request
        with self._changed:
            request.results[job.index] = result
            request.prepare_s = max(request.prepare_s, job.prepare_s)
            request.left -= 1
            self._images -= 1
            last = request.left == 0
        if not last:
            return
        if self._finishers is not None and isinstance(request.message, (wire.Images, wire.Prompt)):
            self._finishers.submit(self._or_die, self._answer, request)
        else:
            self._answer(request)

    def _answer(self, request: Progress) -> None:
        message = request.message
        if self._finishers is not None:  # it may have waited, and nobody waits for it any more
            self._dropped(request)
        self._requests.pop(message.id, None)
        if request.failure is not None:
            self._send(wire.Failed(id=message.id, code=request.failure[0], message=request.failure[1]))
            return
        try:
            self._say(request, message)
        except InputError as error:
            self._send(wire.Failed(id=message.id, code="bad_request", message=str(error)))
        except Exception:
            traceback.print_exc()
            self._send(wire.Failed(id=message.id, code="failed", message=FAILED))

    def _say(self, request: Progress, message: Work) -> None:
        if isinstance(message, wire.Try):
            self._send(wire.Tried(id=message.id, failures=self._compare(message, request.results[0])))
            return
        assert isinstance(message, (wire.Images, wire.Prompt))
        begin = time.monotonic()
        pieces, errors = self._finished(request, message)
        request.finish_s = time.monotonic() - begin if self._finishers is not None else 0.0
        whole = b"[" + b",".join(pieces) + b"]" if message.form == JSON else pieces[0]
        self._send(self._answered(request, [], errors), whole)

    def _answered(
        self, request: Progress, outputs: list[wire.Tensor], errors: list[tuple[str, str]]
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

    def _finished(
        self, request: Progress, message: wire.Images | wire.Prompt
    ) -> tuple[list[bytes], list[tuple[str, str]]]:
        """JSON for each image or the PNG of one, and what those without a result have instead."""
        good = [result for result in request.results if not isinstance(result, str)]
        outcomes = iter(self._outcomes(request, good) if good else ())
        pieces, errors = [], []
        for result in request.results:
            outcome = result if isinstance(result, str) else next(outcomes)
            if isinstance(outcome, (str, ClaimError)):
                error = ("unusable_image" if isinstance(outcome, str) else "failed", str(outcome))
                errors.append(error)
                pieces.append(error_json(*error))
            elif message.form == JSON:
                pieces.append(as_json(self._task.name, outcome))
            else:
                pieces.append(as_png(message.form, outcome, request.payload, self._limits))
        return pieces, errors

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
                    **self._figures(),
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

    def _or_die(self, target: Callable[..., None], *arguments: Any) -> None:
        """A thread that ends in an unforeseen error would leave the process alive but useless."""
        try:
            target(*arguments)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(70)


def _count(message: Work) -> int:
    if isinstance(message, wire.Images):
        return len(message.sizes)
    return message.inputs[0].shape[0] if isinstance(message, wire.Tensors) else 1


def _open(shape: tuple[int | str, ...]) -> list[int]:
    """A shape whose first side, and any that is a letter, is -1."""
    return [-1, *(-1 if isinstance(side, str) else side for side in shape[1:])]


def _limits(config: wire.Config, *, masks: bool) -> Limits:
    limits = LIMITS if config.megapixels is None else Limits.of_megapixels(config.megapixels)
    if masks:  # which are not made at a larger size
        limits = replace(limits, pixels=min(limits.pixels, LIMITS.pixels))
    return replace(limits, file_bytes=min(limits.file_bytes, config.file_bytes))

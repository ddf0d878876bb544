"""One served model: its process, its queue, whether it is ready, and what takes a dead process's place."""

from __future__ import annotations

import asyncio
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from vitrail.errors import InputError
from vitrail.serve import wire
from vitrail.serve.admission import Queue
from vitrail.serve.handle import Handle, Reply
from vitrail.serve.metrics import Metrics
from vitrail.serve.refusals import Refusal
from vitrail.serve.settings import Served, Settings
from vitrail.serve.uploads import Upload

__all__ = ["TRY_S", "Answered", "Model", "config_of"]

FRESH_S = 1.0
"""A reading of readiness is good for so long."""
CHECK_S = 5.0
"""Between readings that nobody asked for."""
TRY_S = 5.0
"""A recorded photo must be answered within this, or the deadline of requests if that is longer."""
RESTARTS_S = (0.0, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Waits before a process is started again: the first at once, the others while it keeps ending."""
CALM_S = 60.0
"""A process that lived so long ended for a reason of its own: the waits begin anew."""
WRONG_TWICE = 2


def config_of(path: Path, settings: Settings) -> wire.Config:
    """What a model's process is started with."""
    return wire.Config(
        artifact=str(path),
        threads=settings.threads,
        max_batch=settings.max_batch,
        promise_ms=settings.max_latency_ms,
        megapixels=settings.max_megapixels,
        file_bytes=settings.max_body_mib << 20,
        keep_photos=settings.keep_photos,
    )


class Shadowing(Protocol):
    """What a model knows of its shadow (shadow.py, which knows models)."""

    async def start(self) -> None: ...
    async def close(self) -> None: ...
    def offer(
        self, images: Sequence[bytes], options: dict[str, Any], answered: Answered, upload: Upload
    ) -> None: ...
    def said(self) -> dict[str, Any]: ...


class Answered(NamedTuple):
    """An answer, and whose it is: a model may have been exchanged since the request came."""

    facts: wire.Ready
    answer: wire.Answer
    payload: bytes


def _done(future: asyncio.Future[Reply], images: int) -> int:
    """How many of a request's images the model has run."""
    if future.cancelled() or future.exception() is not None:
        return 0
    head, _ = future.result()
    return images - len(head.errors) if isinstance(head, wire.Answer) else 0


class Model:
    """A name, and whatever process answers for it now."""

    def __init__(self, served: Served, settings: Settings, metrics: Metrics, label: str = "") -> None:
        self.name, self.path = served.name, served.path
        self.label = label or served.name
        """In metrics and logs."""
        self.settings, self.metrics = settings, metrics
        self.queue = Queue(settings.max_queue, settings.max_queue_megapixels * 1_000_000)
        self.prompts = Queue(settings.max_queue, 0)
        """Of photos that were sent before: no pixels, and a pace of their own."""
        if settings.max_latency_ms is not None:  # the artifact's own chooses batches, and refuses nobody
            self.queue.promise_s = settings.max_latency_ms / 1e3
        self.live = self._new(self.path)
        self._known: wire.Ready | None = None
        """Of the process that was loaded last; None: none has answered as recorded yet."""
        self.restarts = 0
        self.reasons: list[str] = ["it is being loaded"]
        """Why it is not ready; empty: it is."""
        self.wrong = 0
        """How often in a row its answers were not the recorded ones."""
        self._read_at = 0.0
        self._reading: asyncio.Task[None] | None = None
        self._photo = 0
        self._swapping = False
        self.shadow: Shadowing | None = None
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def facts(self) -> wire.Ready:
        """Of the artifact, also while its process is started again.

        Raises:
            Refusal: no process has loaded it yet.
        """
        if self._known is None:
            raise Refusal("not_ready", f"The model {self.name} is being loaded: try again later.")
        return self._known

    @property
    def version(self) -> str:
        """The beginning of the artifact's digest. Raises Refusal as `facts`."""
        return self.facts.digest[:12]

    async def start(self) -> None:
        """Wait until it is loaded and has answered a recorded photo.

        Raises:
            InputError: the artifact cannot be served, or does not answer as recorded.
        """
        await self.live.load()
        await self.check()
        if self.reasons:
            raise InputError(
                f"{self.path} is not ready ({'; '.join(self.reasons)}): run vitrail verify on it."
            )
        self._answer_with(self.live)  # not before: the port is open already
        self._tasks = [asyncio.create_task(self._supervise()), asyncio.create_task(self._check_on())]
        if self.shadow is not None:
            await self.shadow.start()

    async def close(self) -> None:
        """End its processes."""
        for task in self._tasks:
            task.cancel()
        if self.shadow is not None:
            await self.shadow.close()
        await self.live.close()

    async def ask(
        self,
        images: int,
        pixels: int,
        make: Callable[[int], wire.Images | wire.Prompt | wire.Tensors],
        parts: Sequence[Any],
        *,
        deadline: float,
        gone: asyncio.Future[Any],
        upload: Upload,
        queue: Queue | None = None,
    ) -> Answered:
        """A request's answer. `gone` ends when nobody waits any more; `upload` has the bytes in `parts`.

        `queue`: where it counts; None: among the images.

        Raises:
            Refusal: the queue is full, there is no process to answer, or the deadline passed.
        """
        live = self.live
        if live.trouble() or self.wrong:
            raise Refusal("not_ready", f"The model {self.name} is not ready: try again later.")
        line = queue or self.queue
        line.take(images, pixels)
        upload.keep()
        number, future = live.ask(make, *parts)

        def ended(future: asyncio.Future[Reply]) -> None:
            line.give_back(images, pixels, done=_done(future, images))
            upload.let_go()

        future.add_done_callback(ended)
        try:
            await asyncio.wait(
                {future, gone}, timeout=deadline - time.monotonic(), return_when=asyncio.FIRST_COMPLETED
            )
        except asyncio.CancelledError:  # some servers end a request so whose client has left
            live.cancel(number)
            raise
        if future.done():
            answer, payload = future.result()
            assert isinstance(answer, wire.Answer)
            assert live.facts is not None
            self.metrics.stages(self.label, answer)
            return Answered(live.facts, answer, payload)
        live.cancel(number)
        raise Refusal("deadline", "The deadline passed before the images were done.")

    async def activate(self, path: Path) -> None:
        """Let another artifact answer: loaded and tried beside the present one, which finishes its work.

        Raises:
            InputError: it cannot be served, is for another task, or does not answer as recorded.
            Refusal: the model is not ready, or another activation is under way.
        """
        if self._swapping or self.live.trouble():
            raise Refusal(
                "conflict", f"The model {self.name} is being changed or restarted: try again later."
            )
        self._swapping = True
        try:
            new = await self._tried(path)
        finally:
            self._swapping = False
        self._answer_with(new)
        old = self.live  # another than before, if that has ended meanwhile
        self.path, self.live, self.wrong = path, new, 0
        self._say([])
        self._tasks[0].cancel()  # it waits for the old one's end
        self._tasks[0] = asyncio.create_task(self._supervise())
        self._tasks.append(asyncio.create_task(self._retire(old)))

    async def _tried(self, path: Path) -> Handle:
        """A process that answers all recorded photos of the artifact as recorded."""
        new = self._new(path)
        try:
            facts = await new.load()
            if facts.task != self.facts.task:
                raise InputError(f"{path} is for {facts.task}, not for {self.facts.task}.")
            for photo in range(facts.photos):
                failures = await self._try(new, photo)
                if failures:
                    raise InputError(f"{path} does not answer as recorded: {', '.join(failures)}.")
        except BaseException:
            await new.close()
            raise
        return new

    async def _retire(self, old: Handle) -> None:
        patience = time.monotonic() + self.settings.deadline_ms / 1e3 + TRY_S
        while old.pending and time.monotonic() < patience:
            await asyncio.sleep(0.05)
        await old.close()

    # --- readiness --------------------------------------------------------------------------------

    async def check(self) -> list[str]:
        """Why it is not ready; empty: it is. A reading is shared by those who ask at the same time."""
        trouble = self.live.trouble()
        if trouble:
            self._say([trouble])
        elif time.monotonic() - self._read_at > FRESH_S:
            if self._reading is None or self._reading.done():
                self._reading = asyncio.create_task(self._read())
            await asyncio.shield(self._reading)
        return self.reasons

    async def _read(self) -> None:
        live = self.live
        try:
            self._photo += 1
            failures = await self._try(live, self._photo)
        except Refusal as refusal:
            self._say([f"a recorded photo got no answer: {refusal.message}"])
        else:
            self.wrong = self.wrong + 1 if failures else 0
            self._say(
                [f"a recorded photo is not answered as recorded: {', '.join(failures)}"] if failures else []
            )
            if self.wrong >= WRONG_TWICE:
                live.kill("wrong answers")
        self._read_at = time.monotonic()

    async def _try(self, live: Handle, photo: int) -> list[str]:
        """What differs from the record; counts against nobody's queue, but waits in the same line."""
        patience = max(TRY_S, self.settings.deadline_ms / 1e3)
        deadline = time.monotonic() + patience
        number, future = live.ask(lambda id: wire.Try(id=id, photo=photo, deadline=deadline))
        await asyncio.wait({future}, timeout=patience)
        if not future.done():
            live.cancel(number)
            raise Refusal("deadline", f"none within {patience:.0f} s.")
        head, _ = future.result()
        assert isinstance(head, wire.Tried)
        return head.failures

    def _say(self, reasons: list[str]) -> None:
        self.reasons = reasons
        self.metrics.ready(self.label, not reasons)

    async def _check_on(self) -> None:
        while True:
            await asyncio.sleep(CHECK_S)
            try:
                await self.check()
            except Exception:  # the next reading may go better; without any, readiness would stay as it is
                traceback.print_exc()

    # --- processes --------------------------------------------------------------------------------

    def _new(self, path: Path) -> Handle:
        return Handle(config_of(path, self.settings), stuck_s=self.settings.stuck_ms / 1e3)

    def _answer_with(self, handle: Handle) -> None:
        assert handle.facts is not None
        self._known = handle.facts
        handle.on_beat = lambda beat: self.metrics.beat(self.label, beat)
        self.metrics.info(self.label, handle.facts)

    async def _supervise(self) -> None:
        """Start a process again whenever it ends; requests meanwhile are refused as not ready."""
        failures = 0
        while True:
            live, begin = self.live, time.monotonic()
            await live.ended.wait()
            self._say(["its process ended"])
            failures = 0 if time.monotonic() - begin > CALM_S else failures
            await asyncio.sleep(RESTARTS_S[min(failures, len(RESTARTS_S) - 1)])
            failures += 1
            try:
                self.live = self._new(self.path)
                self.restarts += 1
                self.metrics.restarted(self.label, live.reason or "died")
                self.wrong = min(self.wrong, 1)  # after wrong answers none is given before a right one
                self._say(["it is being loaded"])
                await self.live.load()
            except (InputError, OSError, RuntimeError) as error:  # no more processes, files or threads, say
                print(f"vitrail: {self.label}: {error}", file=sys.stderr, flush=True)
                self._say(["it cannot be loaded again; the server's log says why"])
                continue
            self._answer_with(self.live)
            await self._read()

"""A model's process as the HTTP process sees it: started, spoken to, watched, ended."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec

from vitrail import privacy
from vitrail.errors import InputError
from vitrail.serve import wire
from vitrail.serve.refusals import Refusal

__all__ = ["Handle", "Reply"]

LOAD_S = 300.0
"""Loading the largest models takes a minute or two."""
WATCH_S = 0.2
SILENT_S = 2.0
"""Without a sign of life for so long, a process is not ready; it gives four a second."""
LEAVE_S = 5.0
DECODE_S, MEGAPIXELS = 5.0, 50
"""Of a core for the slowest picture that the default limits allow, which takes 2 s of today's (images.md)."""
PIPE_BYTES = 1 << 20
DIED = "The model's process ended while it worked on this request: try again."

Reply = tuple[wire.Answer | wire.Tried, bytes]


class Handle:
    """One model's process. Starting it does not wait; `load` does.

    Raises:
        OSError: the system gives no process, or no socket.
    """

    def __init__(self, config: wire.Config, *, stuck_s: float) -> None:
        self.config, self._stuck_s = config, stuck_s
        self.facts: wire.Ready | None = None
        """None: still loading."""
        self.beat: wire.Beat | None = None
        self.reason = ""
        """Why it ended; "": it lives, or was asked to."""
        self.ended = asyncio.Event()
        self.on_beat: Callable[[wire.Beat], None] = lambda beat: None
        self._heard = time.monotonic()
        self._ids = itertools.count(1)
        self._pending: dict[int, asyncio.Future[Reply]] = {}
        self._closing = False
        self._writer: asyncio.StreamWriter | None = None
        self._tasks: list[asyncio.Task[None]] = []
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                for end in (ours, theirs):  # fewer pieces for a photo; the system may give less
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, PIPE_BYTES)
                self._process = subprocess.Popen(
                    [
                        *(sys.executable, "-m", "vitrail.serve.worker", str(theirs.fileno())),
                        msgspec.json.encode(config).decode(),
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=2,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,  # Ctrl-C is for the HTTP process, which ends the others
                    env={**os.environ, **privacy.SWITCHES},
                )
            ours.setblocking(False)
        except BaseException:
            ours.close()
            raise
        self._socket = ours

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    @property
    def pending(self) -> int:
        """Requests that it works on."""
        return len(self._pending)

    async def load(self) -> wire.Ready:
        """Wait until the model is loaded.

        Raises:
            InputError: the artifact cannot be served, or its process ended while loading it.
            OSError, RuntimeError: the system gives no more files or threads.
        """
        try:
            reader, self._writer = await asyncio.open_connection(sock=self._socket, limit=1 << 20)
            found = await asyncio.wait_for(wire.receive_from(reader), LOAD_S)
        except asyncio.TimeoutError:
            found = None
        except (OSError, RuntimeError):
            self.kill("")
            self._process.wait()
            self._socket.close()
            self._end()
            raise
        if found is None or not isinstance(found[0], wire.Ready):
            await self.close()
            if found is not None and isinstance(found[0], wire.Refused):
                raise InputError(found[0].message)
            raise InputError(f"{self.config.artifact} could not be loaded: its process ended; see above.")
        self.facts, self._heard = found[0], time.monotonic()
        self._tasks = [asyncio.create_task(self._read(reader)), asyncio.create_task(self._watch())]
        return self.facts

    def ask(
        self, make: Callable[[int], wire.Images | wire.Prompt | wire.Tensors | wire.Try], *parts: Any
    ) -> tuple[int, asyncio.Future[Reply]]:
        """Send a request; the future ends with its answer or a Refusal, once its work has ended too."""
        number = next(self._ids)
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        if self.ended.is_set() or self._writer is None or self._writer.is_closing():
            future.set_exception(Refusal("worker_died", DIED))
        else:
            self._pending[number] = future
            try:
                self._write(make(number), *parts)
            except (OSError, RuntimeError):  # uvloop's word for a socket that has just been closed
                self._settle(number, Refusal("worker_died", DIED))
        return number, future

    def cancel(self, number: int) -> None:
        """Nobody waits for a request any more."""
        if number in self._pending and self._writer is not None and not self._writer.is_closing():
            self._write(wire.Cancel(id=number))

    def trouble(self) -> str:
        """Why it cannot be relied on now; "": it can."""
        if self.ended.is_set():
            return "its process ended"
        if self.facts is None:
            return "it is being loaded"
        silent = time.monotonic() - self._heard
        return f"its process has been silent for {silent:.0f} s" if silent > SILENT_S else ""

    def kill(self, reason: str) -> None:
        """End it at once; what it works on is refused."""
        self.reason = self.reason or reason
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    async def close(self) -> None:
        """End it in peace: it has nothing to save."""
        self._closing = True
        if self._writer is not None:
            self._writer.close()
        for task in self._tasks:
            task.cancel()
        self._end()
        await asyncio.get_running_loop().run_in_executor(None, self._wait)

    def _wait(self) -> None:
        try:
            self._process.wait(LEAVE_S if self.facts is not None else 0.0)
        except subprocess.TimeoutExpired:
            self.kill("")
            self._process.wait()

    def _write(self, head: wire.Request, *parts: Any) -> None:
        assert self._writer is not None
        for piece in wire.pack(head, *parts):
            self._writer.write(piece)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        while (found := await wire.receive_from(reader)) is not None:
            head, payload = found
            self._heard = time.monotonic()
            if isinstance(head, wire.Beat):
                self.beat = head
                self.on_beat(head)
            elif isinstance(head, wire.Failed):
                self._settle(head.id, Refusal(head.code, head.message))
            elif isinstance(head, (wire.Answer, wire.Tried)):
                self._settle(head.id, (head, payload))
        self._writer = None
        if not self._closing:
            self.kill("died")  # it may have closed the socket and live on
        self._end()
        await asyncio.get_running_loop().run_in_executor(None, self._process.wait)

    def _settle(self, number: int, outcome: Reply | Refusal) -> None:
        future = self._pending.pop(number, None)
        if future is None or future.done():
            return
        if isinstance(outcome, Refusal):
            future.set_exception(outcome)
            future.exception()  # somebody who left does not ask for it
        else:
            future.set_result(outcome)

    def _end(self) -> None:
        for number in list(self._pending):
            self._settle(number, Refusal("worker_died", DIED))
        self.ended.set()

    async def _watch(self) -> None:
        """End a process that gives no sign of life, or whose batch or image never ends."""
        while not self.ended.is_set():
            await asyncio.sleep(WATCH_S)
            if time.monotonic() - self._heard > self._stuck_s or (self.beat and self._hangs(self.beat)):
                self.kill("stuck")

    def _hangs(self, beat: wire.Beat) -> bool:
        slowest = max(beat.beside_ms, *beat.sizes.values()) / 1e3
        scale = max((self.config.megapixels or 0) / MEGAPIXELS, 1.0)
        decode_s = max(self._stuck_s, DECODE_S * scale)
        return beat.running_s > self._stuck_s + 4 * slowest or beat.decoding_s > decode_s

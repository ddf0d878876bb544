"""The HTTP server around the application: the socket, signals, and leaving in peace."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import Iterator
from types import FrameType

import uvicorn
import uvloop

from vitrail.serve.app import application
from vitrail.serve.connection import Connection, sweep
from vitrail.serve.log import AccessLog
from vitrail.serve.site import Site

__all__ = ["run"]

KEEP_ALIVE_S = 75
LEAVE_S = 5.0
"""At the end, beyond what receiving and answering a request may take."""
HEADER_S = 2.0
"""A connection may be slower than a body by this much: the application then says why it refuses."""


def run(site: Site, listener: socket.socket) -> int:
    """Serve until SIGTERM or Ctrl-C; 0 once all work in flight is answered.

    Raises:
        InputError: a model cannot be served.
    """
    loop = uvloop.new_event_loop()
    try:
        return loop.run_until_complete(_run(site, listener))
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


async def _run(site: Site, listener: socket.socket) -> int:
    log = AccessLog(site.metrics) if site.settings.access_log else None
    server = _Server(_config(site, log), site)
    try:
        with server.signals():
            # Before the models are loaded: whoever asks for liveness or readiness gets an answer.
            serving = asyncio.create_task(server.serve([listener]))
            try:
                if await server.loaded():
                    _tell(site, listener)
                    await serving
            except BaseException:
                server.force_exit = True
                raise
            finally:
                site.closed = server.should_exit = True
                await serving
                server.sweeping.cancel()
    finally:
        await site.close()
        if log is not None:
            log.close()
    return 0


def _tell(site: Site, listener: socket.socket) -> None:
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    names = ", ".join(site.models)
    print(f"vitrail: serving {names} on http://{shown}:{port}", file=sys.stderr, flush=True)


def _config(site: Site, log: AccessLog | None) -> uvicorn.Config:
    settings = site.settings
    facts = {"patience_s": settings.upload_timeout_ms / 1e3 + HEADER_S, "most": settings.max_connections}
    return uvicorn.Config(
        application(site, log),
        http=type("_Connection", (Connection,), facts),
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=int((settings.upload_timeout_ms + settings.deadline_ms) / 1e3 + LEAVE_S),
    )


class _Server(uvicorn.Server):
    """Leaves as load balancers want it: first not ready, then closed to new work, then done."""

    def __init__(self, config: uvicorn.Config, site: Site) -> None:
        super().__init__(config)
        self._site = site
        self._leaving: asyncio.Task[None] | None = None
        self._loading: asyncio.Task[None] | None = None
        self.sweeping = asyncio.create_task(sweep(self.server_state.connections))

    async def loaded(self) -> bool:
        """Wait until all models are; False: told to leave before that.

        Raises:
            InputError: a model cannot be served.
        """
        self._loading = asyncio.create_task(self._site.start())
        try:
            await self._loading
        except asyncio.CancelledError:
            return False
        finally:
            self._loading = None
        return True

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """Answer SIGTERM and Ctrl-C by leaving; the process then ends with the code of its command."""
        loop = asyncio.get_running_loop()
        before = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)}
        for one in before:
            loop.add_signal_handler(one, self.leave, one)
        try:
            yield
        finally:
            for one, handler in before.items():
                loop.remove_signal_handler(one)
                signal.signal(one, handler)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Not uvicorn's way, which raises the signal again at the end."""
        yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Unused: `signals` listens."""

    def leave(self, number: int) -> None:
        """A first signal begins the end; a second Ctrl-C does not wait for it."""
        if self._leaving is not None:
            self.force_exit = self.force_exit or number == signal.SIGINT
            return
        self._site.leaving = True
        grace = self._site.settings.drain_grace_ms / 1e3 if number == signal.SIGTERM else 0.0
        if self._loading is not None:
            self._loading.cancel()
            grace = 0.0
        self._leaving = asyncio.get_running_loop().create_task(self._leave(grace))

    async def _leave(self, grace: float) -> None:
        await asyncio.sleep(grace)
        self._site.closed = True
        self.should_exit = True

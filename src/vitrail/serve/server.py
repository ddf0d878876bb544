"""The HTTP server around the application: the socket, signals, and leaving in peace."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

import uvicorn
import uvloop
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from vitrail.serve.app import application
from vitrail.serve.log import AccessLog
from vitrail.serve.site import Site

__all__ = ["run"]

KEEP_ALIVE_S = 75
LEAVE_S = 5.0
"""Beyond the deadline of requests, at the end."""
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
            starting = asyncio.ensure_future(site.start())
            server.on_signal = starting.cancel
            try:
                await starting
            except asyncio.CancelledError:
                return 0
            server.on_signal = lambda: None
            _tell(site, listener)
            await server.serve([listener])
    finally:
        await site.close()
        if log is not None:
            log.flush()
    return 0


def _tell(site: Site, listener: socket.socket) -> None:
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    names = ", ".join(site.models)
    print(f"vitrail: serving {names} on http://{shown}:{port}", file=sys.stderr, flush=True)


def _config(site: Site, log: AccessLog | None) -> uvicorn.Config:
    settings = site.settings
    connection = type(
        "_Connection", (_Connection,), {"patience_s": settings.upload_timeout_ms / 1e3 + HEADER_S}
    )
    return uvicorn.Config(
        application(site, log),
        http=connection,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        limit_concurrency=settings.max_connections,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=int(settings.deadline_ms / 1e3 + LEAVE_S),
    )


class _Server(uvicorn.Server):
    """Leaves as load balancers want it: first not ready, then closed to new work, then done."""

    def __init__(self, config: uvicorn.Config, site: Site) -> None:
        super().__init__(config)
        self._site = site
        self._leaving: asyncio.Task[None] | None = None
        self.on_signal: Any = lambda: None

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
        self.on_signal()
        self._site.leaving = True
        grace = self._site.settings.drain_grace_ms / 1e3 if number == signal.SIGTERM else 0.0
        self._leaving = asyncio.get_running_loop().create_task(self._leave(grace))

    async def _leave(self, grace: float) -> None:
        await asyncio.sleep(grace)
        self._site.closed = True
        self.should_exit = True


class _Connection(HttpToolsProtocol):
    """Ends a connection whose request does not arrive in time, be it the headers or a body nobody reads."""

    patience_s = 30.0
    _slow: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """A connection that says nothing does not stay."""
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        self._arrived()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """The next request on a connection that was kept."""
        super().on_message_begin()
        if self._slow is None:
            self._wait()

    def on_message_complete(self) -> None:
        """All of a request is here."""
        self._arrived()
        super().on_message_complete()

    def _wait(self) -> None:
        self._slow = self.loop.call_later(self.patience_s, self._give_up)

    def _arrived(self) -> None:
        if self._slow is not None:
            self._slow.cancel()
            self._slow = None

    def _give_up(self) -> None:
        self._slow = None
        if not self.transport.is_closing():
            self.transport.close()

"""A client's connection: uvicorn's, which by itself lets a client stay for ever, and headers have no end."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Collection
from typing import Any

from uvicorn.protocols.http import httptools_impl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from vitrail.serve.door import HEALTH

__all__ = ["Connection", "sweep"]

SWEEP_S = 0.5
MOST_UNFINISHED = 64 << 10
"""Bytes of a request's headers, or of what stands between the pieces of its body."""
IDLE_S, SPARE = 1.0, 64
"""Above the most connections one that has asked nothing for so long makes room; so many more may come."""

PIECE = 128 << 10
"""Bytes of a body that are handed on together: to wake the request's task for each packet takes time."""

# The body is wanted as soon as it is there, so a pause after every 64 KiB only costs time. Uploads are
# bounded as they are read.
httptools_impl.HIGH_WATER_LIMIT = 1 << 20


class Connection(HttpToolsProtocol):
    """Is ended where a request does not arrive in time, or where nobody takes the answer.

    `patience_s` and `most` are set by a subclass for each server.
    """

    patience_s: float
    most: int
    _awaited: float | None = None
    """Since when the rest of a first or a begun request is awaited; None: it is here."""
    _quiet = 0.0
    """Since when no request has been at work here."""
    _untaken: float | None = None
    """Since when an answer waits to be taken; None: none does."""
    _unfinished = 0
    """Bytes since headers, a piece of a body or a request came to their end."""

    def connection_made(self, transport: Any) -> None:
        """A connection that says nothing does not stay, least of all where others want in."""
        super().connection_made(transport)
        self._cycles: deque[RequestResponseCycle] = deque()
        """Of requests that are not answered yet, the oldest first."""
        self._awaited = self._quiet = self.loop.time()
        if len(self.connections) > self.most and not self._make_room():
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """All that wait here are told; uvicorn tells only the request that came last."""
        for cycle in self._cycles:
            cycle.disconnected = True
            cycle.message_event.set()
        super().connection_lost(exc)

    def _make_room(self) -> bool:
        idle = [each for each in self.connections if isinstance(each, Connection) and each.idle_s() > IDLE_S]
        if idle:
            longest = max(idle, key=Connection.idle_s)
            longest.transport.abort()
            self.connections.discard(longest)  # now: the newcomer's request may be here before it is told
        return bool(idle) or len(self.connections) <= self.most + SPARE

    def idle_s(self) -> float:
        """For how long it has held a place without a request; headers that are not complete are none."""
        return self.loop.time() - self._quiet if self._at_rest() and not self.transport.is_closing() else 0.0

    def _at_rest(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def data_received(self, data: bytes) -> None:
        """Headers and trailers are collected by the parser, so they are counted here."""
        self._unfinished += len(data)
        super().data_received(data)
        if self._unfinished > MOST_UNFINISHED and not self.transport.is_closing():
            if self._at_rest():
                self.send_400_response(f"The headers are larger than {MOST_UNFINISHED >> 10} KiB.")
            else:
                self.transport.abort()

    def on_message_begin(self) -> None:
        """The next request."""
        super().on_message_begin()
        self._awaited = self._quiet = self.loop.time()

    def on_headers_complete(self) -> None:
        """Whoever watches the server's health gets an answer however many others are here."""
        self._unfinished = 0
        if len(self.connections) > self.most:
            self._make_room()
        path = self.url.partition(b"?")[0].decode("latin-1")
        self.limit_concurrency = None if path in HEALTH else self.most + 1
        super().on_headers_complete()
        self._cycles.append(self.cycle)

    def on_body(self, body: bytes) -> None:
        """A part of the body; the request's task hears of it when there is more, or all of it."""
        self._unfinished = 0
        cycle = self.cycle
        if len(cycle.body) + len(body) < PIECE and not cycle.response_complete:
            cycle.body += body
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """All of a request is here."""
        self._unfinished = 0
        self._awaited = None
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Another request may follow."""
        self._quiet = self.loop.time()
        while self._cycles and self._cycles[0].response_complete:
            self._cycles.popleft()
        super().on_response_complete()

    def sweep(self, now: float) -> None:
        """End it if its time is over. A request behind another one is not read, which is not its fault."""
        if not self.transport.get_write_buffer_size():
            self._untaken = None
        elif self._untaken is None:
            self._untaken = now
        elif now - self._untaken > self.patience_s:
            self.transport.abort()
            return
        late = self._awaited is not None and now - self._awaited > self.patience_s
        if late and not self.flow.read_paused and not self.transport.is_closing():
            self.transport.close()


async def sweep(connections: Collection[Any]) -> None:
    """End connections whose time is over, for as long as the server runs."""
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(SWEEP_S)
        for connection in list(connections):
            connection.sweep(loop.time())

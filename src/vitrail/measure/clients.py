"""Several clients in a closed loop: each sends its next request when the last was answered."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["closed_loop"]

Request = TypeVar("Request")
Answer = TypeVar("Answer")


def closed_loop(
    clients: int,
    calls: int,
    draw: Callable[[], Request],
    ask: Callable[[Request], Answer],
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> list[tuple[float, Answer]]:
    """(duration in s, answer) of `calls` requests, divided among `clients` threads, in order of completion.

    Each client sends one untimed request first, then its share of the timed ones, and goes on untimed until
    all others have made theirs: no timed request sees fewer clients than there are.

    Args:
        draw: gives the next request; called by one client at a time, outside of what is timed.
        ask: sends a request and returns when it is answered; called by all clients at once.

    Raises:
        BaseException: whatever `draw` or `ask` raised first; the other clients have ended by then.
    """
    loop: _Loop[Request, Answer] = _Loop(draw, ask, clock, clients)
    shares = [calls // clients + (index < calls % clients) for index in range(clients)]
    threads = [threading.Thread(target=loop.run, args=(share,), daemon=True) for share in shares]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        loop.over.set()  # Ctrl-C ends the wait: nobody sends another request then
    if loop.failures:
        raise loop.failures[0]
    return [(seconds, answer) for _, seconds, answer in sorted(loop.done, key=lambda each: each[0])]


class _Loop(Generic[Request, Answer]):
    """What the clients share."""

    def __init__(
        self,
        draw: Callable[[], Request],
        ask: Callable[[Request], Answer],
        clock: Callable[[], float],
        clients: int,
    ) -> None:
        self._draw, self._ask, self._clock = draw, ask, clock
        self._lock = threading.Lock()
        self._timing = clients
        """How many have timed requests left."""
        self.over = threading.Event()
        """Whether no more requests are sent."""
        self.done: list[tuple[float, float, Answer]] = []
        """(when it was answered in s, its duration in s, the answer) of each timed request."""
        self.failures: list[BaseException] = []

    def run(self, share: int) -> None:
        """One client, with so many timed requests."""
        try:
            self._send(timed=False)
            for _ in range(share):
                self._send(timed=True)
            with self._lock:
                self._timing -= 1
                if not self._timing:
                    self.over.set()
            while not self.over.is_set():
                self._send(timed=False)
        except BaseException as error:
            self.failures.append(error)
            self.over.set()

    def _send(self, *, timed: bool) -> None:
        if self.failures or self.over.is_set():
            return
        with self._lock:
            request = self._draw()
        begin = self._clock()
        answer = self._ask(request)
        end = self._clock()
        if timed:
            self.done.append((end, end - begin, answer))

"""An open loop: requests are due at times drawn beforehand, however long the earlier ones take.

A client that waits for its answer before it sends the next request asks less while the server stalls, so its
samples hardly show the stall ("coordinated omission"). Here latency counts from when a request was due.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

__all__ = ["Sent", "most_under_way", "open_loop", "poisson"]

Request = TypeVar("Request")
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Sent(Generic[Answer]):
    """One request; times in s since the loop began."""

    due: float
    done: float
    answer: Answer | None
    """None: it was not sent, because it could not be within the time after which nobody waits."""

    @property
    def latency_s(self) -> float:
        """From when it was due, not from when a connection was free to send it."""
        return self.done - self.due


def poisson(per_s: float, seed: int) -> Iterator[float]:
    """When requests are due, in s from the beginning: each by itself, `per_s` of them on average."""
    rng, due = np.random.default_rng(seed), 0.0
    while True:
        due += float(rng.exponential(1 / per_s))
        yield due


def _wait(seconds: float, over: threading.Event) -> None:
    over.wait(seconds)


def open_loop(
    connections: int,
    untimed: int,
    calls: int,
    due: Iterator[float],
    draw: Callable[[], Request],
    ask: Callable[[Request], Answer],
    *,
    given_up_s: float,
    clock: Callable[[], float] = time.perf_counter,
    wait: Callable[[float, threading.Event], None] = _wait,
) -> list[Sent[Answer]]:
    """`calls` requests after the first `untimed`, in the order in which they were due.

    Requests go on coming, untimed, until all of the timed ones are answered.

    Args:
        connections: threads that send; where all are busy, a request is sent late, and that counts.
        due: when requests are due, in s from now, without an end.
        draw: gives the next request; called by one thread at a time.
        ask: sends a request and returns when it is answered; called by all threads at once.
        given_up_s: a request that is so late is not sent any more.

    Raises:
        BaseException: whatever `draw` or `ask` raised first; the other threads have ended by then.
    """
    loop: _Loop[Request, Answer] = _Loop(untimed, calls, due, draw, ask, given_up_s, clock, wait)
    threads = [threading.Thread(target=loop.run, daemon=True) for _ in range(connections)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        loop.over.set()
    if loop.failures:
        raise loop.failures[0]
    return sorted(loop.sent, key=lambda each: each.due)


class _Loop(Generic[Request, Answer]):
    """What the connections share."""

    def __init__(
        self,
        untimed: int,
        calls: int,
        due: Iterator[float],
        draw: Callable[[], Request],
        ask: Callable[[Request], Answer],
        given_up_s: float,
        clock: Callable[[], float],
        wait: Callable[[float, threading.Event], None],
    ) -> None:
        self._timed = range(untimed, untimed + calls)
        self._due, self._draw, self._ask = due, draw, ask
        self._given_up_s, self._clock, self._wait = given_up_s, clock, wait
        self._lock = threading.Lock()
        self._next = 0
        self._begin = clock()
        self.over = threading.Event()
        """Whether no more requests are sent."""
        self.sent: list[Sent[Answer]] = []
        """The timed ones."""
        self.failures: list[BaseException] = []

    def run(self) -> None:
        """One connection: takes the next request that nobody has taken, waits until it is due, sends it."""
        try:
            while not self.over.is_set():
                with self._lock:
                    number, due, request = self._next, next(self._due), self._draw()
                    self._next += 1
                early = due - self._now()
                if early > 0:
                    self._wait(early, self.over)
                if not self.over.is_set():
                    self._send(number, due, request)
        except BaseException as error:
            self.failures.append(error)
            self.over.set()

    def _send(self, number: int, due: float, request: Request) -> None:
        answer = self._ask(request) if self._now() - due < self._given_up_s else None
        if number not in self._timed:
            return
        sent = Sent(due=due, done=self._now(), answer=answer)
        with self._lock:
            self.sent.append(sent)
            if len(self.sent) == len(self._timed):
                self.over.set()

    def _now(self) -> float:
        return self._clock() - self._begin


def most_under_way(sent: list[Sent[Answer]]) -> int:
    """The most requests that were due and not answered at one time; at least 1."""
    changes = sorted(change for each in sent for change in ((each.due, 1), (each.done, -1)))
    under_way = np.cumsum([step for _, step in changes])
    return max(int(under_way.max(initial=1)), 1)

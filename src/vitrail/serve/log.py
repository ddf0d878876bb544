"""The access log: one JSON object a line on standard output. Whoever reads it slowly delays no request."""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections import deque
from typing import Any

import msgspec

from vitrail.serve.metrics import Metrics

__all__ = ["AccessLog", "report"]

WRITE_S = 0.2
MOST_LINES = 20_000
LEAVE_S = 1.0
"""At the end a reader has so long to take what is left."""


class AccessLog:
    """Lines are collected, and written by a thread a few times a second.

    The thread is a daemon, and writes to the file descriptor itself: one that waits for a reader that has
    stopped must keep nobody, neither the event loop nor the interpreter, from ending.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._lines: deque[bytes] = deque()
        self._some = threading.Event()
        self._leaving = threading.Event()
        self._failed = False
        self._thread = threading.Thread(target=self._write_all, name="access log", daemon=True)
        self._thread.start()

    def add(self, line: dict[str, Any]) -> None:
        """Remember a line; it is dropped, and counted, where too many wait to be written."""
        if self._failed or len(self._lines) >= MOST_LINES:
            self._metrics.logs_dropped.inc()
            return
        self._lines.append(msgspec.json.encode(line))
        self._some.set()

    def close(self) -> None:
        """Write what is left, as far as somebody reads it."""
        self._leaving.set()
        self._some.set()
        self._thread.join(LEAVE_S)

    def _write_all(self) -> None:
        while not (self._leaving.is_set() and not self._lines):
            self._some.wait()
            self._leaving.wait(WRITE_S)
            self._some.clear()
            lines = [self._lines.popleft() for _ in range(len(self._lines))]
            try:
                _write(b"".join(line + b"\n" for line in lines))
            except OSError as error:
                self._failed = True
                self._metrics.logs_dropped.inc(len(lines) + len(self._lines))
                reason = error.strerror or "it is closed"
                print(f"vitrail: the access log cannot be written: {reason}", file=sys.stderr, flush=True)
                return


def _write(data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(1, rest) :]


def report(request: str) -> None:
    """Write the exception that is being handled to standard error, with the request that met it."""
    sys.stderr.write(f"vitrail: request {request} failed:\n{traceback.format_exc()}")
    sys.stderr.flush()

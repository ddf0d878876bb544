"""The access log: one JSON object a line on standard output. Whoever reads it slowly delays no request."""

from __future__ import annotations

import asyncio
import sys
import traceback
from typing import Any

import msgspec

from vitrail.serve.metrics import Metrics

__all__ = ["AccessLog", "report"]

WRITE_S = 0.2
MOST_LINES = 20_000


class AccessLog:
    """Lines are collected, and written by a thread a few times a second."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._lines: list[bytes] = []
        self._writing = False

    def add(self, line: dict[str, Any]) -> None:
        """Remember a line; it is dropped, and counted, where too many wait to be written."""
        if len(self._lines) >= MOST_LINES:
            self._metrics.logs_dropped.inc()
            return
        self._lines.append(msgspec.json.encode(line))
        if not self._writing:
            self._writing = True
            asyncio.get_running_loop().call_later(WRITE_S, self._begin)

    def flush(self) -> None:
        """Write what is left, at the end."""
        self._write(self._take())

    def _begin(self) -> None:
        loop = asyncio.get_running_loop()
        loop.run_in_executor(None, self._write, self._take()).add_done_callback(self._done)

    def _done(self, _: asyncio.Future[None]) -> None:
        self._writing = bool(self._lines)
        if self._lines:
            asyncio.get_running_loop().call_later(WRITE_S, self._begin)

    def _take(self) -> list[bytes]:
        lines, self._lines = self._lines, []
        return lines

    def _write(self, lines: list[bytes]) -> None:
        if lines:
            sys.stdout.buffer.write(b"\n".join(lines) + b"\n")
            sys.stdout.buffer.flush()


def report(request: str) -> None:
    """Write the exception that is being handled to standard error, with the request that met it."""
    sys.stderr.write(f"vitrail: request {request} failed:\n{traceback.format_exc()}")
    sys.stderr.flush()

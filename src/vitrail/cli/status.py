"""Shows what a long command is doing: a line that is overwritten on a terminal, occasional lines elsewhere.

Nothing is drawn while something is timed: lines change only when a stage begins.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import TextIO

from vitrail.words import shown

EVERY_S = 10.0
CLEAR_LINE = "\r\x1b[2K"


class Status:
    """On a terminal: permanent lines, and below them one that says what is going on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._open = False

    def line(self, text: str) -> None:
        """Print a permanent line."""
        self.clear()
        print(shown(text), file=self._stream, flush=True)

    def doing(self, text: str, left_s: float) -> None:
        """Replace the status line with what begins now."""
        self.clear()
        self._stream.write(_cut(f"  … {shown(text)}", left_s))
        self._stream.flush()
        self._open = True

    def clear(self) -> None:
        """Remove the status line."""
        if self._open:
            self._stream.write(CLEAR_LINE)
            self._stream.flush()
        self._open = False


class Heartbeat:
    """Without a terminal: prints what is going on every ten seconds, so that a log shows signs of life.

    Use it as a context manager; leaving it ends its thread.
    """

    def __init__(
        self, stream: TextIO, *, every_s: float = EVERY_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream, self._every_s, self._clock = stream, every_s, clock
        self._begin = self._since = clock()
        self._text, self._left_s = "", 0.0
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Heartbeat:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def doing(self, text: str, left_s: float) -> None:
        """Remember what begins now; a thread prints it at the next interval."""
        with self._lock:
            self._text, self._left_s, self._since = text, left_s, self._clock()
            if self._thread is None:
                self._thread = threading.Thread(target=self._beat, daemon=True)
                self._thread.start()

    def say(self) -> None:
        """Print one line about what is going on."""
        with self._lock:
            now = self._clock()
            left = self._left_s - (now - self._since)
            clock = f", {_clock(left)}" if math.isfinite(left) else ""
            line = f"vitrail: {now - self._begin:.0f} s, {shown(self._text)}{clock}"
        print(line, file=self._stream, flush=True)

    def _beat(self) -> None:
        while not self._over.wait(self._every_s):
            self.say()


def _cut(text: str, left_s: float, width: int = 110) -> str:
    if math.isinf(left_s):
        return text[:width]
    clock = _clock(left_s)
    return f"{text[: width - len(clock) - 2]}  {clock}"


def _clock(left_s: float) -> str:
    seconds = math.ceil(left_s)
    if seconds <= 0:
        return "budget spent"
    return f"{seconds // 60}:{seconds % 60:02} left"

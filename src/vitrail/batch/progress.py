"""What a job is doing: images a second, time left, errors, and which stage holds the rest back."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TextIO

from vitrail.words import counted

__all__ = ["Progress", "clock", "held_back", "shares", "stage_words"]

EVERY_S = 10.0
DRAWN_EVERY_S = 0.2
WORDS = {"read": "reading", "decode": "decoding", "model": "the model", "write": "writing"}


def shares(stages: dict[str, float], waited_to_write: float, elapsed: float) -> dict[str, float]:
    """The share of `elapsed` seconds in which the job waited for each stage; together at most 1.

    The one loop runs the model and puts rows together, or waits: for images (which reading and decoding share
    as they share the threads' time) or for the disk.
    """
    if elapsed <= 0:
        return {}
    model = stages.get("model", 0.0) + stages.get("finish", 0.0)
    images = max(elapsed - model - waited_to_write, 0.0)
    read, decode = stages.get("read", 0.0), stages.get("decode", 0.0)
    part = read / (read + decode) if read + decode else 0.0
    seconds = {
        "read": images * part,
        "decode": images * (1 - part),
        "model": model,
        "write": waited_to_write,
    }
    return {name: round(min(value / elapsed, 1.0), 3) for name, value in seconds.items()}


def held_back(waited: dict[str, float]) -> str | None:
    """The stage that the others wait for most; None: nothing was done yet."""
    return max(waited, key=lambda name: waited[name]) if any(waited.values()) else None


def stage_words(name: str) -> str:
    """A stage for people."""
    return WORDS[name]


def clock(seconds: float) -> str:
    """`0:42`, `12:05`, `3:10:00`."""
    whole = max(round(seconds), 0)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


class Progress:
    """On a terminal a bar, elsewhere a line every ten seconds, on standard error. A context manager.

    Args:
        stream: where to; a terminal or not.
        now: a clock in seconds.
    """

    def __init__(self, stream: TextIO, *, now: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._now = stream, now
        self._bar: Any = None
        self._task: Any = None
        self._begun = self._said = now()
        self._total = self._before = self._done = self._failed = 0
        self._waited: Callable[[], dict[str, float]] = dict

    def __enter__(self) -> Progress:
        if self._stream.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
            from rich.progress import Progress as Bar

            console = Console(file=self._stream, markup=False, emoji=False, highlight=False, soft_wrap=True)
            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}", markup=False))
            self._bar = Bar(*columns, console=console, transient=True)
            self._bar.start()
            self._task = self._bar.add_task("", total=None)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, text: str) -> None:
        """What begins now."""
        self._show(text, 0, None, force=True)

    def listing(self, listed: int) -> None:
        """Inputs listed so far."""
        self._show(f"listing: {counted(listed, 'input')} so far", listed, None)

    def begin(self, total: int, before: int, waited: Callable[[], dict[str, float]]) -> None:
        """The work begins: inputs in all, those done by earlier runs, and shares by stage when asked."""
        self._total, self._before, self._waited = total, before, waited
        self._begun = self._said = self._now()

    def tick(self, done: int, failed: int) -> None:
        """So many more inputs are done, of which so many failed."""
        self._done += done
        self._failed += failed
        self._show(None, self._before + self._done, self._total)

    def line(self) -> str:
        """Where the work stands."""
        elapsed = self._now() - self._begun
        rate = self._done / elapsed if elapsed > 0 else 0.0
        parts = [f"{rate:.0f} images/s"] if rate else []
        if rate:
            parts.append(f"{clock((self._total - self._before - self._done) / rate)} left")
        parts.append(counted(self._failed, "error"))
        stage = held_back(self._waited())
        if stage is not None:
            parts.append(f"held back by {WORDS[stage]} ({self._waited()[stage]:.0%})")
        return " · ".join(parts)

    def _show(self, text: str | None, done: int, total: int | None, *, force: bool = False) -> None:
        now = self._now()
        if not force and now - self._said < (EVERY_S if self._bar is None else DRAWN_EVERY_S):
            return
        self._said = now
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total, description=text or self.line())
        elif text is None:
            self._print(f"{done:,} of {total:,} · {self.line()}")
        elif not force:
            self._print(text)

    def _print(self, text: str) -> None:
        with suppress(OSError):  # nobody reads it any more: the work goes on
            print(f"vitrail: {text}", file=self._stream, flush=True)

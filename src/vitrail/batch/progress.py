"""What a job is doing: images a second, time left, errors, and which stage holds the rest back."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TextIO

from vitrail.words import counted

__all__ = ["Progress", "busy", "clock", "held_back", "stage_words"]

EVERY_S = 10.0
DRAWN_EVERY_S = 0.2
WORDS = {"read": "reading", "decode": "decoding", "model": "the model", "write": "writing"}


def busy(stages: dict[str, float], workers: int, elapsed: float, wall: float) -> dict[str, float]:
    """The share of its own threads' time in which each stage was at work.

    Reading and decoding share the workers, so that the two together are at most 1, with the model where they
    run it too; else the model has the thread of the loop, with putting rows together. Writing has its own.

    Args:
        stages: seconds by stage, of all threads together.
        workers: threads that read and decode; 0: the thread of the loop does it.
        elapsed: seconds of the loop, or of all loops of a cluster together.
        wall: seconds of the thread that writes.
    """
    if elapsed <= 0 or wall <= 0:
        return {}
    of_workers = elapsed * max(workers, 1)
    found = {
        "read": stages.get("read", 0.0) / of_workers,
        "decode": stages.get("decode", 0.0) / of_workers,
        "model": (stages.get("model", 0.0) + stages.get("finish", 0.0)) / elapsed,
        "write": stages.get("write", 0.0) / wall,
    }
    return {name: round(min(share, 1.0), 3) for name, share in found.items()}


def held_back(shares: dict[str, float], *, in_turn: bool) -> tuple[str, float] | None:
    """The stage whose threads are the busiest, and how busy they are; None: nothing was done yet.

    Args:
        shares: as `busy` gives them.
        in_turn: whether reading, decoding and the model share threads.
    """
    if not any(shares.values()):
        return None
    found = dict(shares)
    if not in_turn:  # what makes the workers busy is the longer of the two
        longer, other = sorted(("read", "decode"), key=lambda name: -found[name])
        found[longer] = min(round(found[longer] + found.pop(other), 3), 1.0)
    stage = max(found, key=lambda name: found[name])
    return stage, found[stage]


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
        self._held_back: Callable[[], tuple[str, float] | None] = lambda: None

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

    def begin(self, total: int, before: int, held_back: Callable[[], tuple[str, float] | None]) -> None:
        """The work begins: inputs in all, those done by earlier runs, and the busiest stage when asked."""
        self._total, self._before, self._held_back = total, before, held_back
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
        found = self._held_back()
        if found is not None:
            stage, share = found
            parts.append(f"held back by {WORDS[stage]} ({share:.0%} busy)")
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

"""What native libraries write to stderr, caught while something is loaded."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["caught"]

MIB = 1024 * 1024


@contextmanager
def caught() -> Iterator[Callable[[], list[str]]]:
    """Catch what this process writes to file descriptor 2; the value gives the lines so far.

    It is one file for the process: what other threads write meanwhile is caught too.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:

        def lines() -> list[str]:
            said = os.pread(file.fileno(), MIB, 0).decode("utf-8", "replace")
            return [line.strip() for line in said.splitlines() if line.strip()]

        os.dup2(file.fileno(), 2)
        try:
            yield lines
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)

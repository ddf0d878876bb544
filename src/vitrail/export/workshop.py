"""The one process of a selection that has torch loaded: exports, heads and references, one after another.

It idles while something is timed. A crash, a hang or too much memory ends it and is that job's failure
alone; the next job starts a new one.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from vitrail.closing import Closing
from vitrail.measure.sandbox import Child, ChildFailure

MEMORY_MIB = 12_288.0
"""Resident memory at which the process is ended."""
KEPT_MIB = 4_096.0
"""A process that holds more than this after a job gives way to a new one: measuring needs the memory."""
LOAD_TIMEOUT_S = 120.0

Job = Literal["export", "rewrite", "build", "write_head", "reference_outputs"]


class Workshop(Closing):
    """Runs jobs of `export/work.py`; `close` ends the process.

    Args:
        function: what the process runs; tests give their own.
    """

    def __init__(self, function: str = "vitrail.export.work:workshop") -> None:
        self._function = function
        self._child: Child | None = None
        self._loaded = False

    def start(self) -> None:
        """Begin to load the libraries, in the background, unless that was done."""
        if self._child is None:
            self._child = Child(self._function, {}, memory_mib=MEMORY_MIB, name="the exporter")
            self._loaded = False

    def load(self) -> None:
        """Wait until the libraries are loaded, so that nothing else runs while something is timed.

        Raises:
            ChildFailure: they cannot be loaded.
        """
        self.start()
        assert self._child is not None
        if not self._loaded:
            try:
                self._child.result(LOAD_TIMEOUT_S)
            except ChildFailure:
                self.close()
                raise
            self._loaded = True

    def run(self, job: Job, request: msgspec.Struct, *, timeout_s: float, name: str) -> Any:
        """Do one job and return its JSON result; `name` is said in failures, e.g. "exporting".

        Raises:
            ChildTimeout: it took longer than `timeout_s`.
            ChildFailure: it failed, crashed, or outgrew its memory.
        """
        self.load()
        child = self._child
        assert child is not None
        child.name = name
        try:
            answer = child.call(job, timeout_s, payload=msgspec.to_builtins(request))
        except ChildFailure:
            if child.ended:
                self.close()
            raise
        except BaseException:  # Ctrl-C: the job goes on, and its answer would be taken for the next one's
            self.close()
            raise
        if child.resident_mib() > KEPT_MIB:
            self.close()
        return answer

    def close(self) -> None:
        """End the process, if there is one."""
        if self._child is not None:
            self._child.close()
        self._child, self._loaded = None, False

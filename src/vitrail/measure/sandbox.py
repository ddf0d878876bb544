"""Run `module:function` in a child process with limits; however it ends gives a reason, not a crash.

One export, or one launch of one export, is one child. A crash, a kill for memory, or a hang raises
`ChildFailure` with a sentence for the ledger. Children live in their own session, so Ctrl-C reaches only
the parent, which then ends them; a child also ends by itself when its parent is gone.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from typing import Any

import psutil

from vitrail import privacy, store
from vitrail.closing import Closing
from vitrail.errors import VitrailError

__all__ = ["Child", "ChildFailure", "ChildTimeout", "call"]

WATCH_INTERVAL_S = 0.05
"""How often the watchdog reads the child's resident memory; one read costs tens of microseconds."""

MIB = 1024 * 1024


class ChildFailure(VitrailError):
    """A child ended, or answered with an error; the message is one clause for the ledger."""


class ChildTimeout(ChildFailure):
    """A child was ended because its time was up: nothing is known about what it did not finish."""


class Child(Closing):
    """A child process that called `function(payload)` and answers to calls on what it returned.

    Args:
        function: `module:function`, imported in the child only.
        payload: the function's single argument; JSON.
        memory_mib: resident memory at which the child is killed.
        name: used in failure messages, e.g. `export` or `measuring`.
    """

    def __init__(
        self, function: str, payload: Mapping[str, Any], *, memory_mib: float, name: str = "child"
    ) -> None:
        self.name = name
        self.ended = False
        """Whether a call has found the process gone or ended it, so that it no longer answers."""
        self._memory_mib = memory_mib
        self._reason: str | None = None
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "vitrail.measure.child", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,
            env={**os.environ, **privacy.switches(store.cache_dir())},
        )
        self._answers: queue.Queue[bytes | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        threading.Thread(target=self._watch, daemon=True).start()
        self._send({"function": function, "payload": dict(payload)})

    def result(self, timeout_s: float) -> Any:
        """Wait for the answer to the function call itself (a session answers None).

        Raises:
            ChildFailure: error in the child, crash, memory limit or time limit.
        """
        return self._receive(timeout_s)

    def call(self, method: str, timeout_s: float, **arguments: Any) -> Any:
        """Call a method of the session object in the child and wait for its answer.

        Raises:
            ChildFailure: error in the child, crash, memory limit or time limit.
        """
        self._send({"method": method, "arguments": arguments})
        return self._receive(timeout_s)

    def resident_mib(self) -> float:
        """Resident memory of the process now, in MiB; 0 when it has ended."""
        try:
            return float(psutil.Process(self._process.pid).memory_info().rss) / MIB
        except psutil.NoSuchProcess:
            return 0.0

    def close(self) -> None:
        """End the child at once: it holds nothing that needs saving."""
        if self._process.poll() is None:
            self._kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        self._log.close()

    def _send(self, message: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError):
            # The child is gone; _receive finds out why and says so.
            return

    def _receive(self, timeout_s: float) -> Any:
        try:
            line = self._answers.get(timeout=max(timeout_s, 0.001))
        except queue.Empty:
            self.ended = True
            self._kill()
            raise ChildTimeout(f"{self.name} timed out after {timeout_s:.0f} s") from None
        if line is None:
            self.ended = True
            raise ChildFailure(f"{self.name} {self._reason or self._ending()}")
        answer = json.loads(line)
        if "error" in answer:
            raise ChildFailure(f"{self.name} failed: {answer['error']}")
        return answer["result"]

    def _ending(self) -> str:
        code = self._process.wait()
        if code == -signal.SIGKILL:
            return "was killed by the system (SIGKILL), probably because memory ran out"
        if code < 0:
            return f"crashed ({signal.Signals(-code).name})"
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return f"ended with code {code}" + (f": {lines[-1]}" if lines else "")

    def _kill(self) -> None:
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            self._process.kill()

    def _read(self) -> None:
        assert self._process.stdout is not None
        try:
            for line in self._process.stdout:
                self._answers.put(line)
        except ValueError:  # closed under us by close()
            pass
        self._answers.put(None)

    def _watch(self) -> None:
        try:
            process = psutil.Process(self._process.pid)
            while self._process.poll() is None:
                if process.memory_info().rss > self._memory_mib * MIB:
                    self._reason = f"went over its memory limit of {self._memory_mib:.0f} MiB"
                    self._kill()
                    return
                threading.Event().wait(WATCH_INTERVAL_S)
        except psutil.NoSuchProcess:
            return


def call(
    function: str,
    payload: Mapping[str, Any],
    *,
    timeout_s: float,
    memory_mib: float,
    name: str = "child",
) -> Any:
    """Run `function(payload)` in a separate child process and return its JSON result.

    Raises:
        ChildFailure: error in the child, crash, memory limit or time limit.
    """
    with Child(function, payload, memory_mib=memory_mib, name=name) as child:
        return child.result(timeout_s)

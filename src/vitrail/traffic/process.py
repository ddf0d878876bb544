"""The real `vitrail serve` in a process of its own, on a free port of 127.0.0.1, ended whatever happens."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import psutil

from vitrail.closing import Closing
from vitrail.errors import InputError

__all__ = ["Server"]

READY_S = 120.0
"""What loading, compiling and answering a recorded photo may take."""
SETTLE_S, SETTLE_MOST_S = 0.5, 60.0
"""After its start a server times batch sizes: it has settled when it idled for so long."""
IDLE = 0.1
"""Processors that a server without requests may use."""
LEAVE_S = 5.0
_SERVING = re.compile(r"serving .* on http://127\.0\.0\.1:(\d+)")


class Server(Closing):
    """A started server, which answers as recorded when the constructor returns; close it when done.

    Args:
        artifact: the folder to serve.
        options: further ones of `vitrail serve`.

    Raises:
        InputError: it ended or did not become ready; the message holds what it said last.
    """

    def __init__(self, artifact: Path, options: Sequence[str] = (), *, ready_s: float = READY_S) -> None:
        self._artifact = artifact
        self._said: deque[str] = deque(maxlen=50)
        self._known = threading.Event()
        self.port = 0
        arguments = [f"model={artifact.absolute()}", "--port", "0", "--no-access-log", *options]
        # In a session of its own: Ctrl-C reaches this process alone, which then ends the server.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "vitrail.traffic.child", str(os.getpid()), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        try:
            self._wait_until_ready(time.monotonic() + ready_s)
        except BaseException:
            self.close()
            raise

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        """Of the HTTP process, whose children run the model."""
        return self._process.pid

    def failure(self, what: str) -> InputError:
        """The error that says so, with the server's last words."""
        if not self.alive:
            self._listener.join(2.0)  # for what it said at the end
        last = next((line for line in reversed(self._said) if line.strip()), "it said nothing")
        return InputError(f"vitrail serve {self._artifact} {what}; its last words: {last.strip()}")

    def settle(self) -> None:
        """Wait until it has timed its batch sizes, which it does once after its start."""
        deadline = time.monotonic() + SETTLE_MOST_S
        before = self._spent_s()
        while self.alive and time.monotonic() < deadline:
            time.sleep(SETTLE_S)
            now = self._spent_s()
            if now - before <= IDLE * SETTLE_S:
                return
            before = now

    def close(self) -> None:
        """End it: kindly, then at once."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(LEAVE_S)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)  # the models' processes too, if any is left
        self._process.wait()
        self._listener.join(2.0)
        assert self._process.stderr is not None
        self._process.stderr.close()

    def _listen(self) -> None:
        assert self._process.stderr is not None
        with contextlib.suppress(ValueError):  # closed under us by close()
            for line in self._process.stderr:
                text = line.decode("utf-8", "replace")
                self._said.append(text)
                if found := _SERVING.search(text):
                    self.port = int(found[1])
                    self._known.set()
        self._known.set()

    def _wait_until_ready(self, deadline: float) -> None:
        self._known.wait(max(deadline - time.monotonic(), 0.0))
        if not self.port:  # what has said its last may take a moment to end
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(2.0)
        while self.port and self.alive and time.monotonic() < deadline:
            if self._ready():
                return
            time.sleep(0.05)
        raise self.failure("did not become ready" if self.alive else "ended before it was ready")

    def _ready(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5.0)
        try:
            connection.request("GET", "/v2/health/ready")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _spent_s(self) -> float:
        """Processor seconds of the server and its models so far."""
        try:
            process = psutil.Process(self._process.pid)
            times = [each.cpu_times() for each in (process, *process.children(recursive=True))]
        except psutil.NoSuchProcess:
            return 0.0
        return sum(each.user + each.system for each in times)

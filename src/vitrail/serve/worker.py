"""A model's process: `python -m vitrail.serve.worker FD CONFIG`, spoken to over the socket FD (wire.py).

One thread reads requests, a few decode and prepare their images, one runs the engine on whatever is prepared
by then, so that batches grow as requests pile up and nobody waits for company. A thread of its own tells
several times a second that all this still moves.
"""

from __future__ import annotations

import os
import socket
import sys
import threading

import msgspec

from vitrail.errors import InputError, VitrailError
from vitrail.privacy import quiet_process
from vitrail.serve import wire

__all__ = ["main"]

SWITCH_S = 0.001
"""How long a thread may keep the interpreter: the default, 5 ms, is longer than a small model takes."""


def main() -> None:
    """Load the artifact, say so, serve until the HTTP process closes the socket."""
    quiet_process()
    connection = socket.socket(fileno=int(sys.argv[1]))
    config = msgspec.json.decode(sys.argv[2], type=wire.Config)
    sys.setswitchinterval(SWITCH_S)
    out = _Out(connection)
    try:
        from vitrail.artifact import open_artifact
        from vitrail.serve.clicking import Clicking
        from vitrail.serve.forms import PROMPTABLE
        from vitrail.serve.results import RESULTS
        from vitrail.serve.service import Service
        from vitrail.serve.working import Working

        artifact = open_artifact(config.artifact)
        if artifact.task.name not in RESULTS:
            raise InputError(f"{artifact.path} is for {artifact.task.name}, which is not served yet.")
        kind = Clicking if artifact.task.name == PROMPTABLE else Working
        working: Service = kind(artifact, config, out.send)
    except VitrailError as error:
        out.send(wire.Refused(message=str(error)))
        return
    out.send(working.ready)
    working.start()
    while True:
        message = wire.receive(connection)
        if message is None:
            working.leave()
            os._exit(0)  # threads of engines may still be busy for nobody
        working.take(*message)


class _Out:
    """Frames of several threads, one after another."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection, self._lock = connection, threading.Lock()

    def send(self, head: wire.Said, *parts: bytes | memoryview) -> None:
        data = b"".join(wire.pack(head, *parts))
        try:
            with self._lock:
                self._connection.sendall(data)
        except OSError:
            os._exit(0)


if __name__ == "__main__":
    main()

"""One client's connection to `vitrail serve`: images in, and what became of the request."""

from __future__ import annotations

import http.client
import secrets
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["PATHS", "Answer", "Body", "Connections", "body_of"]

PATHS = {"classify": "/v1/classify", "embed": "/v1/embed", "segment": "/v1/segment"}
"""Where the images for a task go."""
PAUSE_S = 1.0
"""How long a client keeps quiet after a refusal or a failure; `Retry-After` says at least this."""

Outcome = Literal["answered", "refused", "failed"]


@dataclass(frozen=True)
class Body:
    """A request, as it is sent."""

    content_type: str
    data: bytes


@dataclass(frozen=True)
class Answer:
    """What became of a request, and how long that took from when it was sent."""

    outcome: Outcome
    seconds: float
    said: str = ""
    """Status and the beginning of the answer, where it is not what was asked for."""


def body_of(photos: Sequence[Path]) -> Body:
    """One image as it is, several as a form."""
    if len(photos) == 1:
        return Body("application/octet-stream", photos[0].read_bytes())
    boundary = f"vitrail-{secrets.token_hex(8)}"
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{{name}}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    )
    parts = [
        head.format(name=f"{index}{photo.suffix}").encode() + photo.read_bytes() + b"\r\n"
        for index, photo in enumerate(photos)
    ]
    return Body(f"multipart/form-data; boundary={boundary}", b"".join(parts) + f"--{boundary}--\r\n".encode())


class Connections:
    """One kept connection for each thread that asks.

    Args:
        port: of the server on 127.0.0.1.
        path: one of `PATHS`.
        timeout_s: a request that takes longer has failed.
    """

    def __init__(self, port: int, path: str, timeout_s: float) -> None:
        self._port, self._path, self._timeout_s = port, path, timeout_s
        self._own = threading.local()

    def ask(self, body: Body) -> Answer:
        """Send one request and wait for its answer."""
        begin = time.perf_counter()
        try:
            status, said = self._sent(body)
        except (OSError, http.client.HTTPException) as error:
            self._close()
            return Answer("failed", time.perf_counter() - begin, f"{type(error).__name__}: {error}")
        outcome: Outcome = "answered" if status == 200 else "refused" if status == 429 else "failed"
        seconds = time.perf_counter() - begin
        return Answer(outcome, seconds, "" if status == 200 else f"{status} {said}")

    def ask_patiently(self, body: Body) -> Answer:
        """As `ask`, and after a refusal or a failure keep quiet for a while, as a client should."""
        answer = self.ask(body)
        if answer.outcome != "answered":
            time.sleep(PAUSE_S)
        return answer

    def _sent(self, body: Body) -> tuple[int, str]:
        connection: http.client.HTTPConnection | None = getattr(self._own, "connection", None)
        if connection is None:
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=self._timeout_s)
            self._own.connection = connection
        connection.request("POST", self._path, body.data, {"Content-Type": body.content_type})
        response = connection.getresponse()
        said = response.read()
        if response.will_close:
            self._close()
        return response.status, said[:300].decode("utf-8", "replace")

    def _close(self) -> None:
        connection = getattr(self._own, "connection", None)
        if connection is not None:
            connection.close()
            self._own.connection = None

"""A real server for tests: `vitrail serve` in a process, on a free port."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

START_S = 60.0


def slow_photo() -> bytes:
    """A PNG that takes a core tens of milliseconds to decode."""
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (1200, 1200, 3), np.uint8)
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()


class Server:
    """`vitrail serve` with the given arguments, ready when the constructor returns; port 0: any free."""

    def __init__(
        self, *arguments: object, cache: Path, port: int = 0, env: dict[str, str] | None = None
    ) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "vitrail", "serve", "--port", str(port), *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "VITRAIL_CACHE": str(cache), **(env or {})},
        )
        self.said: list[str] = []
        self.log: list[dict[str, Any]] = []
        self._known = threading.Event()
        self.url = ""
        self._threads = [
            threading.Thread(target=self._listen, daemon=True),
            threading.Thread(target=self._read_log, daemon=True),
        ]
        for thread in self._threads:
            thread.start()
        if not self._known.wait(START_S) or not self.url:
            self.process.kill()
            raise AssertionError("the server did not start: " + "".join(self.said))
        self.address = ("127.0.0.1", int(self.url.rsplit(":", 1)[1]))
        self.client = httpx.Client(base_url=self.url, timeout=30.0)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for thread in self._threads:
            thread.join(5)

    def post(self, path: str, data: bytes, kind: str = "image/png", **headers: str) -> httpx.Response:
        """One image as the body."""
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.client.post(path, content=data, headers={"content-type": kind, **names})

    def connect(self, data: bytes = b"") -> socket.socket:
        """A connection of its own, over which this has been sent."""
        connection = socket.create_connection(self.address, 10)
        connection.sendall(data)
        return connection

    def models(self) -> dict[str, Any]:
        """What `/v1/models` says, by name."""
        return {model["name"]: model for model in self.client.get("/v1/models").json()["models"]}

    def worker(self) -> int:
        """The process id of its first model."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[-1])

    def ready(self) -> bool:
        """What readiness says now."""
        return self.client.get("/v2/health/ready").status_code == 200

    def wait(self, ready: bool, seconds: float) -> float:
        """Seconds until readiness is as asked; fails after `seconds`."""
        begin = time.monotonic()
        while self.ready() is not ready:
            assert time.monotonic() - begin < seconds, f"still {'not ' if ready else ''}ready"
            time.sleep(0.05)
        return time.monotonic() - begin

    def terminate(self) -> int:
        """SIGTERM, and the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples with these labels."""
        total = 0.0
        for line in self.client.get("/metrics").text.splitlines():
            if re.match(rf"{name}[{{ ]", line) and all(f'{k}="{v}"' in line for k, v in labels.items()):
                total += float(line.rsplit(" ", 1)[1])
        return total

    def _listen(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line)
            found = re.search(r"serving .* on (http://[^\s,]+)", line)
            if found:
                self.url = found[1]
                self._known.set()
        self._known.set()

    def _read_log(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            try:
                self.log.append(json.loads(line))
            except ValueError:
                self.log.append({"no JSON": line})

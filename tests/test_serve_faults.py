"""A server and clients that mean it ill, or have bad luck. About 10 s, most of it waiting."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import artifacts
import httpx
import pytest

pytest.importorskip("fastapi", reason="needs the extra serve")

from serving import Server

from vitrail.serve.door import Door
from vitrail.serve.settings import Settings
from vitrail.serve.site import Site

pytestmark = pytest.mark.slow

PATIENCE_S = 3.0
"""Of the server here with a connection: two seconds more than with a body."""


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    return artifacts.make_artifact(tmp_path_factory.mktemp("classify"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def photo(artifact):
    return artifact.photos[0].read_bytes()


@pytest.fixture(scope="module")
def server(artifact, cache):
    options = {
        "--max-uploads-mib": 1,
        "--max-body-mib": 1,
        "--max-connections": 8,
        "--upload-timeout": "1s",
        "--deadline": "500ms",
    }
    with Server(artifact.path, *(each for pair in options.items() for each in pair), cache=cache) as found:
        yield found
        assert found.models()["winner"]["restarts"] == 0
        assert "Traceback" not in (told := "".join(found.said)), told


def head(length: int, path: str = "/v1/classify") -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n".encode()


def rest(connection: socket.socket, seconds: float = 10) -> bytes:
    """All that comes until the other side ends the connection."""
    connection.settimeout(seconds)
    found = bytearray()
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(1 << 16):
            found += part
    return bytes(found)


# --- tensors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "data"),
    [
        ([1] * 100, {"data": [1]}),
        ([1] * 100, {"parameters": {"binary_data_size": 4}}),
        ([1, 2**30, 2**30, 2**30], {"data": []}),
        ([2**30] * 60_000, {"data": [1]}),
        ([1, 3, artifacts.SIZE, artifacts.SIZE], {"data": [0] * 100_000}),
    ],
)
def test_no_tensor_stops_a_model_or_the_server(server, photo, shape, data):
    given = {"name": "images", "datatype": "FP32", "shape": shape, **data}
    text = json.dumps({"inputs": [given]}).encode()
    extra = {} if "data" in data else {"inference-header-content-length": str(len(text))}
    body = text if "data" in data else text + bytes(4)
    answer = server.client.post("/v2/models/winner/infer", content=body, headers=extra)
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")
    assert server.post("/v1/classify", photo).status_code == 200


# --- connections --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nX: " + b"y" * 2**20,
        b"GET /" + b"y" * 2**20,
        b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: y\r\n" % i for i in range(60_000)),
        b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: " + b"y" * 2**20,
    ],
    ids=["header", "address", "headers", "trailer"],
)
def test_headers_without_end_end_the_connection(server, data):
    with server.connect() as connection:
        begin = time.monotonic()
        with contextlib.suppress(ConnectionError):
            for place in range(0, len(data), 1 << 14):
                connection.sendall(data[place : place + (1 << 14)])
        found = rest(connection)
        assert time.monotonic() - begin < PATIENCE_S
    assert found == b"" or found.startswith(b"HTTP/1.1 4")


def test_each_request_has_its_own_time_and_nobody_more(server, photo):
    """Several connections at once, because each waits."""

    def slow() -> bytes:
        """Says nothing for long, then takes longer than the deadline, within the upload's time."""
        with server.connect() as connection:
            time.sleep(PATIENCE_S - 0.5)
            connection.sendall(head(len(photo)) + photo[:100])
            time.sleep(0.8)
            connection.sendall(photo[100:])
            return connection.recv(1 << 16)

    def unread() -> tuple[int, int]:
        """Asks a lot, and reads nothing."""
        request = b"GET /page.js HTTP/1.1\r\nHost: localhost\r\n\r\n"
        count = 3000
        with server.connect() as connection:
            connection.settimeout(0.5)
            with contextlib.suppress(TimeoutError, ConnectionError):
                connection.sendall(request * count)
            time.sleep(PATIENCE_S + 2)
            return len(rest(connection)), count

    def seconds() -> float:
        return server.metric("vitrail_request_seconds_sum", endpoint="classify", model="winner")

    before = seconds()
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        first, second = pool.submit(slow), pool.submit(unread)
        assert first.result().startswith(b"HTTP/1.1 200"), first.result()
        received, asked = second.result()
    size = len(server.client.get("/page.js").content)
    assert 0 < received < asked * size / 2
    assert seconds() - before < 0.5  # from the last byte, not from the first


def test_idle_connections_make_room_and_health_is_always_answered(server, photo):
    idle = [server.connect() for _ in range(8)]
    time.sleep(1.1)
    assert server.post("/v1/classify", photo).status_code == 200
    for connection in idle:
        connection.close()
    server.client.close()
    server.client = httpx.Client(base_url=server.url, timeout=30.0)
    time.sleep(0.1)
    busy = [server.connect(head(1000) + b"x") for _ in range(8)]
    with server.connect() as connection:
        connection.sendall(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 503")
    for path in ("live", "ready"):
        with server.connect() as connection:
            connection.sendall(b"GET /v2/health/%s HTTP/1.1\r\nHost: localhost\r\n\r\n" % path.encode())
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
    for connection in busy:
        connection.close()


def test_one_connection_is_enough_for_one_client(artifact, cache, photo):
    with Server(artifact.path, "--max-connections", 1, "--max-batch", 1, cache=cache) as server:
        assert server.post("/v1/classify", photo).status_code == 200


def test_bytes_of_all_uploads_are_bounded(server, photo):
    with server.connect(head(1_000_000) + bytes(700_000)) as first:
        time.sleep(0.2)
        answer = server.post("/v1/classify", bytes(600_000))
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "uploads_full")
        assert answer.headers["retry-after"] == "1"
        assert first.recv(1 << 16).startswith(b"HTTP/1.1 408")
    assert server.post("/v1/classify", bytes(600_000)).status_code == 422
    assert server.post("/v1/classify", photo).status_code == 200


# --- starting and leaving -----------------------------------------------------------------------------


def test_while_models_load_liveness_is_green_and_readiness_red(artifact, cache, photo):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vitrail", "serve", str(artifact.path), "--port", str(port)]
    env = {**os.environ, "VITRAIL_CACHE": str(cache)}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env=env)
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while not children.read_text().split():
            time.sleep(0.005)
        (worker,) = map(int, children.read_text().split())
        os.kill(worker, signal.SIGSTOP)  # it loads for as long as we like; SIGKILL ends it all the same
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
            assert client.get("/v2/health/live").status_code == 200
            assert client.get("/v2/health/ready").json()["code"] == "not_ready"
            answer = client.post("/v1/classify", content=photo)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_ready")
            assert client.get("/v1/models").json()["models"][0]["reasons"] == ["it is being loaded"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        assert process.stderr.read() == b""
        assert not Path(f"/proc/{worker}").exists()
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def test_an_upload_that_has_begun_is_finished_on_the_way_out(artifact, cache, photo):
    from vitrail.serve.server import _config

    settings = Settings(deadline_ms=2_000, upload_timeout_ms=20_000)
    assert _config(Site.of([], settings, None), None).timeout_graceful_shutdown >= 22
    with Server(artifact.path, cache=cache) as server, server.connect(head(len(photo))) as upload:
        upload.sendall(photo[:100])
        time.sleep(0.2)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        upload.sendall(photo[100:])
        assert rest(upload).startswith(b"HTTP/1.1 200")
        assert server.process.wait(5) == 0
        assert "Traceback" not in "".join(server.said)


def test_what_the_server_gives_up_at_the_end_is_told_so():
    """As uvicorn cancels what is left when its patience is over."""
    site, sent = Site.of([], Settings(), None), []

    async def waits(scope, receive, send):
        await asyncio.sleep(60)

    async def send(message):
        sent.append(message)

    async def leave():
        scope = {"type": "http", "method": "GET", "path": "/v1/models", "headers": [(b"host", b"localhost")]}
        task = asyncio.create_task(Door(waits, {}, site, None)(scope, None, send))
        await asyncio.sleep(0.01)
        site.closed = True
        task.cancel()
        await task

    asyncio.run(leave())
    assert sent[0]["status"] == 503
    assert json.loads(sent[1]["body"])["error"]["code"] == "draining"


def test_a_log_that_nobody_reads_keeps_no_server_from_leaving(artifact, cache):
    command = [sys.executable, "-m", "vitrail", "serve", str(artifact.path), "--port", "0"]
    env = {**os.environ, "VITRAIL_CACHE": str(cache)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, env=env) as process:
        line = process.stderr.readline().decode()
        with httpx.Client(base_url=line.rsplit(" ", 1)[1].strip()) as client:
            for _ in range(500):  # 250 bytes each, and a pipe holds 64 KiB
                client.get("/v2/health/live")
            assert select.select([process.stdout], [], [], 5)[0]
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0

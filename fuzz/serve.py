"""Everything a client can send to `vitrail serve`: no crash, no hang, no 5xx, and memory stays.

    python fuzz/serve.py [--cases N] [--seed S] [--only INDEX]

A real server with two tiny artifacts gets images that are damaged, forms and chunks that are malformed or
large, tensors that lie about themselves, HTTP that is none, and connections that end early. The second half
of the cases goes to a server with API keys, with the right one or another. Every case follows from the seed
and its index alone. A fault is: an answer later than the deadline; a status that docs/serving.md does not
list, or any from 500 on but a passed deadline's; an error without its code; a process that was started again;
a good request, sent after every few cases, that is not answered as before. Memory is read from the system, as
is the most that each process ever had. The last line of stdout is one JSON document; exit code 1 for a fault.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import re
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import artifacts
from images import MUTATIONS, whole_files
from serving import Server

from vitrail.serve.keys import new_key
from vitrail.serve.refusals import CODES

DEADLINE_S, PATIENCE_S = 5.0, 9.0
BODY_MIB, UPLOADS_MIB = 8, 32
"""Few, so that large bodies reach them."""
SENDERS = 12
PROBE_EVERY = 25
GROWTH_MIB = 150
"""Memory of both processes may rise by this between the first tenth of the cases and the last."""
HEAD = "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"


# --- what is sent -----------------------------------------------------------------------------------


def request(path: str, body: bytes, kind: str = "image/png", method: str = "POST", extra: str = "") -> bytes:
    """A well-formed request."""
    head = HEAD.format(method=method, path=path) + f"Content-Type: {kind}\r\n{extra}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode("latin-1", "replace") + body


class Cases:
    """Case `index` of a seed: a name, and the bytes that are sent."""

    def __init__(self, seed: int, photos: list[bytes], key: str = "") -> None:
        self.seed, self._photos, self._files, self._key = seed, photos, whole_files(), key
        side = artifacts.SIZE
        self._shape = [1, 3, side, side]
        self._values = 3 * side * side

    def case(self, index: int) -> tuple[str, bytes]:
        """The same for the same seed and index, whatever came before."""
        rng = random.Random(f"{self.seed}/{index}")
        kinds: list[Callable[[random.Random], bytes]] = [
            *(self.image, self.image, self.image, self.form, self.form, self.tensors, self.tensors),
            *(self.binary, self.chunks, self.address, self.headers, self.noise, self.early),
            *(self.shape, self.large),
        ]
        kind = rng.choice(kinds)
        data = kind(rng)
        if self._key:
            given = rng.choice([self._key] * 9 + ["", "x", self._key[:-1], "\xff", "y" * 70_000])
            data = data.replace(b"\r\n", f"\r\nX-API-Key: {given}\r\n".encode("latin-1"), 1)
        return kind.__name__, data

    def image(self, rng: random.Random) -> bytes:
        """A damaged image as the body."""
        path = rng.choice(("/v1/classify", "/v1/classify?model=tiny&top=3", "/v1/embed"))
        return request(
            path, self._damaged(rng), rng.choice(("image/png", "image/jpeg", "application/octet-stream"))
        )

    def form(self, rng: random.Random) -> bytes:
        """A form with any of its parts wrong."""
        boundary = rng.choice(("b", "-" * 40, "a'b", "x" * 70, "x" * 71, "", 'q"', "ü"))
        pieces = []
        for _ in range(rng.choice((0, 1, 1, 2, 3, 17, 300))):
            header = rng.choice(
                (
                    'Content-Disposition: form-data; name="image"; filename="a.png"',
                    'Content-Disposition: form-data; name="image"',
                    "Content-Disposition: form-data; filename*=UTF-8''%ff",
                    "Content-Disposition",
                    "X: " + "y" * rng.choice((10, 5000)),
                    "\x00: \xff",
                    "",
                )
            )
            data = rng.choice(self._photos) if rng.random() < 0.5 else self._damaged(rng)[:2000]
            pieces.append(f"--{boundary}\r\n{header}\r\n\r\n".encode("latin-1") + data + b"\r\n")
        body = bytearray(b"".join(pieces) + f"--{boundary}--\r\n".encode("latin-1"))
        if rng.random() < 0.5 and len(body) > 300:
            body = rng.choice(MUTATIONS[:8])(body, rng)
        kind = rng.choice(
            (
                f"multipart/form-data; boundary={boundary}",
                f'multipart/form-data; boundary="{boundary}"',
                "multipart/form-data",
            )
        )
        return request("/v1/classify", bytes(body), kind)

    def tensors(self, rng: random.Random) -> bytes:
        """The protocol's JSON, with a part of it replaced by something else."""
        document = {
            "id": "1",
            "parameters": {"binary_data_output": False, "timeout": 10_000_000},
            "inputs": [
                {"name": "images", "datatype": "FP32", "shape": [*self._shape], "data": [0.5] * self._values}
            ],
            "outputs": [{"name": "scores", "parameters": {"binary_data": False}}],
        }
        for _ in range(rng.choice((1, 1, 2))):
            self._replace(document, rng)
        text = json.dumps(document).encode()
        if rng.random() < 0.3:
            text = bytes(rng.choice(MUTATIONS[:6])(bytearray(text), rng))
        return request("/v2/models/tiny/infer", text, "application/json")

    def binary(self, rng: random.Random) -> bytes:
        """Binary tensors whose sizes do not fit, or do."""
        sizes = (4 * self._values, 0, 1, -4, 2**31, 2**63, rng.randrange(5000))
        size, sent = rng.choice(sizes), rng.choice((4 * self._values, 0, 7, rng.randrange(30_000)))
        shape = rng.choice((self._shape, [], [0], [2**31, 2**31], [1, 3], [-1, 3, 32, 32], [17, 3, 32, 32]))
        given = {"name": "images", "datatype": rng.choice(("FP32", "UINT8", "FP16", "BYTES"))}
        head = json.dumps({"inputs": [{**given, "shape": shape, "parameters": {"binary_data_size": size}}]})
        length = rng.choice((len(head), 0, 1, len(head) + 5, 10**9, "x", -1))
        body = head.encode() + rng.randbytes(sent)
        extra = f"Inference-Header-Content-Length: {length}\r\n"
        return request("/v2/models/tiny/infer", body, "application/octet-stream", extra=extra)

    def shape(self, rng: random.Random) -> bytes:
        """A shape that no tensor has, with data that may fit it."""
        shape = rng.choice(
            (
                [1] * rng.choice((5, 64, 65, 100, 10_000)),
                [2**30] * rng.choice((2, 50, 200_000)),
                [1, 2**30, 2**30, 2**30],
                [10**4000],
                [*self._shape[:-1], self._shape[-1] + 1],
                [2**62, 4],
            )
        )
        given = {"name": "images", "datatype": "FP32", "shape": shape}
        if rng.random() < 0.5:
            data = rng.choice(([], [1], [0] * self._values, [0] * 500_000))
            text = json.dumps({"inputs": [{**given, "data": data}]}).encode()
            return request("/v2/models/tiny/infer", text, "application/json")
        size = rng.choice((0, 4, 4 * self._values))
        head = json.dumps({"inputs": [{**given, "parameters": {"binary_data_size": size}}]}).encode()
        extra = f"Inference-Header-Content-Length: {len(head)}\r\n"
        return request("/v2/models/tiny/infer", head + bytes(size), "application/octet-stream", extra=extra)

    def large(self, rng: random.Random) -> bytes:
        """A body of megabytes that says little: a form of false boundaries, of spaces, numbers, nothing."""
        size = rng.choice((1, 3, BODY_MIB)) * 2**20 - 2000
        kind = "multipart/form-data; boundary=b"
        start = b'--b\r\nContent-Disposition: form-data; name="a"; filename="a"\r\n\r\n'
        unit = rng.choice((b"\r\n--bx", b"\r\n--b", b"\r", b"\r\n", b"-", b" ", b"\r\n--b\r\n", b"\0"))
        body = (
            start
            + rng.choice((b"", b"\r\n--b", b"\r\n--b--"))
            + unit * (size // len(unit))
            + b"\r\n--b--\r\n"
        )
        if rng.random() < 0.3:
            numbers = b"0," * (size // 2)
            shape = json.dumps(rng.choice((self._shape, [16, *self._shape[1:]], [1]))).encode()
            body = b'{"inputs": [{"name": "images", "datatype": "FP32", "shape": %b, "data": [%b0]}]}'
            return request("/v2/models/tiny/infer", body % (shape, numbers), "application/json")
        if rng.random() < 0.3:
            return request("/v1/classify", self._photos[0] + body)
        return request("/v1/classify", body, kind)

    def chunks(self, rng: random.Random) -> bytes:
        """A chunked body that breaks the rules, or is in a thousand pieces."""
        head = HEAD.format(method="POST", path="/v1/classify") + "Content-Type: image/png\r\n"
        if rng.random() < 0.2:
            head += f"Content-Length: {rng.choice((0, 5, 10**12))}\r\n"
        head += (
            "Transfer-Encoding: "
            + rng.choice(("chunked", "chunked, chunked", "gzip, chunked", "x"))
            + "\r\n\r\n"
        )
        data, out = rng.choice(self._photos), bytearray()
        step = rng.choice((1, 7, 100, len(data)))
        for place in range(0, min(len(data), 1500 * step), step):
            part = data[place : place + step]
            size = rng.choice(
                (b"%x" % len(part),) * 30 + (b"%X;ext=1" % len(part), b"ffffffffffffffff", b"-1", b"", b"z")
            )
            out += size + b"\r\n" + part + rng.choice((b"\r\n",) * 40 + (b"\n", b""))
        return head.encode() + bytes(out) + rng.choice((b"0\r\n\r\n", b"0\r\nX: y\r\n\r\n", b""))

    def address(self, rng: random.Random) -> bytes:
        """Any method on any path with any question."""
        path = rng.choice(
            (
                *(
                    "/",
                    "/docs",
                    "/openapi.json",
                    "/metrics",
                    "/v1/models",
                    "/v1/classify",
                    "/v1/embed",
                    "/v2",
                ),
                *("/v2/health/ready", "/v2/health/live", "/v2/models/tiny", "/v2/models/%2e%2e/ready"),
                *(
                    "/v2/models/tiny/versions/9/infer",
                    "/v1/models/tiny/activate",
                    "/../../etc/passwd",
                    "/%00",
                    "//",
                    "/%ff",
                ),
                "/" + "a" * rng.choice((10, 8000, 70_000)),
            )
        )
        query = rng.choice(
            ("", "?top=0", "?top=99999999999", "?top=%C3%BC", "?model=", "?model=x&model=y", "?&&=;", "?%")
        )
        method = rng.choice(("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE"))
        return request(path + query, rng.choice(self._photos), method=method)

    def headers(self, rng: random.Random) -> bytes:
        """Headers that are many, long, doubled or odd."""
        extra = rng.choice(
            (
                "".join(f"X-{i}: y\r\n" for i in range(rng.choice((10, 500)))),
                f"X: {'y' * rng.choice((100, 60_000, 1_000_000))}\r\n",
                f'Content-Type: multipart/form-data; x="{";" * rng.choice((900, 60_000))}\r\n',
                f"Content-Type: multipart/form-data; boundary*{'9' * 500}*=x\r\n",
                "Host: evil.example\r\n",
                "Origin: http://evil.example\r\n",
                "X-Request-Id: \xff\x00\r\n",
                f"X-Deadline-Ms: {rng.choice(('1', '0', '-1', 'x', '9' * 30, '²'))}\r\n",
                "Content-Encoding: gzip\r\n",
                "Expect: 100-continue\r\n",
                "Authorization: Bearer x\r\n",
                "Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n",
                " folded: x\r\n",
            )
        )
        return request("/v1/classify", rng.choice(self._photos), extra=extra)

    def noise(self, rng: random.Random) -> bytes:
        """Bytes that are no HTTP, or a request with some of them changed."""
        if rng.random() < 0.5:
            return rng.randbytes(rng.choice((1, 30, 5000)))
        data = bytearray(request("/v1/classify", rng.choice(self._photos)))
        for _ in range(rng.choice((1, 3))):
            data[rng.randrange(min(len(data), 130))] = rng.randrange(256)
        return bytes(data)

    def early(self, rng: random.Random) -> bytes:
        """A request that ends before its body does."""
        data = request("/v1/classify", rng.choice(self._photos))
        return data[: rng.randrange(1, len(data))]

    def _damaged(self, rng: random.Random) -> bytes:
        data = bytearray(self._files[rng.choice(sorted(self._files))])
        return bytes(rng.choice(MUTATIONS)(data, rng))

    def _replace(self, value: object, rng: random.Random) -> None:
        odd = rng.choice(
            (None, True, -1, 0, 2**70, 1e400, "", "x" * 5000, [], {}, [[]], [[[1.0]]], [None], {"a": 1})
        )
        if isinstance(value, dict) and value:
            key = rng.choice(sorted(value))
            if rng.random() < 0.4 or not isinstance(value[key], (dict, list)):
                value[key] = odd
            else:
                self._replace(value[key], rng)
        elif isinstance(value, list) and value:
            place = rng.randrange(len(value))
            if isinstance(value[place], (dict, list)) and rng.random() < 0.7:
                self._replace(value[place], rng)
            else:
                value[place] = odd


# --- what comes back --------------------------------------------------------------------------------


class Campaign:
    """Sends cases, and keeps what was wrong with their answers."""

    def __init__(self, server: Server, cases: Cases, photo: bytes, key: str) -> None:
        self._server, self._cases, self._photo = server, cases, photo
        self._address = ("127.0.0.1", int(server.url.rsplit(":", 1)[1]))
        self._good = request("/v1/classify?model=tiny&top=2", photo, extra=f"X-API-Key: {key}\r\n")
        self._expected = self._labels(self.exchange(self._good))
        assert self._expected is not None
        self.faults: list[str] = []
        self.statuses: Counter[str] = Counter()
        self.slowest_s = 0.0
        self._lock = threading.Lock()

    def run(self, indices: list[int]) -> None:
        """All these cases, a few at a time."""
        waiting = iter(indices)

        def send() -> None:
            while True:
                with self._lock:
                    index = next(waiting, None)
                if index is None:
                    return
                try:
                    self.one(index)
                except Exception as error:
                    self.faults.append(f"{index}: the campaign itself failed: {error!r}")

        threads = [threading.Thread(target=send) for _ in range(SENDERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def one(self, index: int) -> None:
        """One case, and sometimes a good request after it."""
        name, data = self._cases.case(index)
        begin = time.monotonic()
        answer = self.leave(data) if name == "early" else self.exchange(data)
        spent = time.monotonic() - begin
        with self._lock:
            self.slowest_s = max(self.slowest_s, spent)
            self.statuses[
                f"{name} {answer[:12].split(b' ')[1].decode() if answer[:5] == b'HTTP/' else 'closed'}"
            ] += 1
            self.faults += [f"{index} ({name}): {fault}" for fault in self._wrong(answer, spent)]
        if index % PROBE_EVERY == 0 and not self._as_before():
            with self._lock:
                self.faults.append(f"{index} ({name}): a good request is not answered as before")

    def _as_before(self) -> bool:
        """Whether a good request is answered as at first; it may have to wait for room."""
        for _ in range(10):
            answer = self.exchange(self._good)
            if not answer.startswith(b"HTTP/1.1 429"):
                break
            time.sleep(0.5)
        return self._labels(answer) == self._expected

    def exchange(self, data: bytes) -> bytes:
        """All that comes back before the connection ends; b"" where nothing does."""
        received = bytearray()
        try:
            with socket.create_connection(self._address, PATIENCE_S) as connection:
                with contextlib.suppress(OSError):  # it may answer before it has read all
                    connection.sendall(data)
                while not _whole(received) and (part := connection.recv(1 << 16)):
                    received += part
        except TimeoutError:
            return b"HANG"
        except OSError:
            pass
        return bytes(received)

    def leave(self, data: bytes) -> bytes:
        """Nothing: the client goes away without listening."""
        with contextlib.suppress(OSError), socket.create_connection(self._address, PATIENCE_S) as connection:
            connection.sendall(data)
        return b""

    def _wrong(self, answer: bytes, spent: float) -> list[str]:
        if answer == b"HANG" or spent > PATIENCE_S:
            return [f"no end after {spent:.1f} s"]
        if not answer:
            return []  # no HTTP, or not all of a request: closed without a word
        found = re.match(rb"HTTP/1\.1 (\d{3}) ", answer)
        if found is None:
            return [f"no HTTP: {answer[:50]!r}"]
        status, body = int(found[1]), answer.partition(b"\r\n\r\n")[2]
        if status in (100, 200):
            return []
        if status >= 500 and status != CODES["deadline"]:
            return [f"status {status}: {body[:200]!r}"]
        if b"application/json" not in answer.partition(b"\r\n\r\n")[0].lower():
            return (
                []
                if status == 400 and (b"Invalid HTTP" in body or b"headers are larger" in body)
                else [f"{status} without JSON: {body[:100]!r}"]
            )
        if body:  # HEAD has none
            error = json.loads(body)
            code = error["code"] if isinstance(error["error"], str) else error["error"]["code"]
            if CODES.get(code) != status:
                return [f"{status} with code {code}"]
        return []

    @staticmethod
    def _labels(answer: bytes) -> object:
        try:
            return json.loads(answer.partition(b"\r\n\r\n")[2])["results"]
        except (ValueError, KeyError):
            return None


def _whole(received: bytearray) -> bool:
    """Whether an answer has come to its end; a damaged request may leave the connection open for another."""
    head, _, body = bytes(received).rpartition(b"HTTP/1.1 ")[2].partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head)
    return length is not None and len(body) >= int(length[1])


def resident_mib(server: Server, what: str = "VmRSS") -> list[float]:
    """Of the HTTP process and each model's process; VmHWM: the most so far."""
    found = []
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    for pid in (str(server.process.pid), *children):
        status = Path(f"/proc/{pid}/status").read_text()
        found.append(round(int(re.search(rf"{what}:\s+(\d+)", status)[1]) / 1024))
    return found


def campaign(seed: int, indices: list[int], folder: Path, *, keys: bool) -> dict[str, object]:
    """What happened to all these cases."""
    folder.mkdir(exist_ok=True)
    key, line = new_key("fuzz")
    (folder / "keys").write_text(line)
    tiny = artifacts.make_artifact(folder / "tiny")
    vectors = artifacts.make_embed_artifact(folder / "vectors")
    photos = [photo.read_bytes() for photo in tiny.photos]
    limits = {
        "--deadline": f"{DEADLINE_S:g}s",
        "--upload-timeout": "1s",
        "--max-queue": 1000,
        "--max-body-mib": BODY_MIB,
        "--max-uploads-mib": UPLOADS_MIB,
        **({"--api-keys": folder / "keys"} if keys else {}),
    }
    options = ("--no-access-log", *(each for pair in limits.items() for each in pair))
    with Server(f"tiny={tiny.path}", f"vectors={vectors.path}", *options, cache=folder / "cache") as server:
        server.client.headers["x-api-key"] = key
        run = Campaign(server, Cases(seed, photos, key if keys else ""), photos[0], key)
        begin, size = time.monotonic(), max(1, len(indices) // 10)
        memory = [resident_mib(server)]
        for place in range(0, len(indices), size):
            run.run(indices[place : place + size])
            memory.append(resident_mib(server))
        for name, model in server.models().items():
            if model["restarts"]:
                run.faults.append(f"the process of {name} was started again {model['restarts']} times")
            if model["queue"]["images"]:
                run.faults.append(f"{model['queue']['images']} images of {name} were never given back")
        peak = resident_mib(server, "VmHWM")
        if sum(memory[-1]) - sum(memory[1]) > GROWTH_MIB:
            run.faults.append(f"memory rose from {memory[1]} to {memory[-1]} MiB")
        if "Traceback" in "".join(server.said):
            run.faults.append("a traceback: " + "".join(server.said)[-2000:])
        if server.terminate() != 0:
            run.faults.append("the server did not end with 0")
    return {
        "seed": seed,
        "keys": keys,
        "cases": len(indices),
        "faults": run.faults,
        "seconds": round(time.monotonic() - begin, 1),
        "slowest_s": round(run.slowest_s, 3),
        "memory_mib": memory,
        "peak_mib": peak,
        "statuses": dict(sorted(run.statuses.items())),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=20261128)
    parser.add_argument("--only", type=int, help="one case again")
    args = parser.parse_args()
    indices = [args.only] if args.only is not None else list(range(args.cases))
    halves = {
        keys: [index for index in indices if (2 * index >= args.cases) is keys] for keys in (False, True)
    }
    with tempfile.TemporaryDirectory() as folder:
        found = [
            campaign(args.seed, half, Path(folder) / str(keys), keys=keys)
            for keys, half in halves.items()
            if half
        ]
    faults = [fault for half in found for fault in half["faults"]]
    for fault in faults:
        print("FAULT", fault)
    for half in found:
        print(f"{half['cases']} cases, keys {half['keys']}: peak {half['peak_mib']} MiB (server, models)")
    print(json.dumps(found))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())

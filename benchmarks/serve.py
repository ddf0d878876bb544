"""What does `vitrail serve` cost beside the model itself, and what does it do under too much load?

    python benchmarks/serve.py --artifact winner [--only PART ...] [--seconds 8] [--rounds 3] [--save [NAME]]

    start       from the command to readiness, and the memory of both processes
    low         one request after another: the median over HTTP and in this process, by turns
    saturation  as many as it can answer, from 8 connections: processor seconds per image of the server alone,
                and of `Predictor.predict_each` on the same photos in a process of its own, by turns
    overload    three times that rate, whether answered or not: latency of what was accepted, what was
                refused, memory; beside half the rate
    litserve    images/s at saturation of this server and of LitServe with the same engine file, by turns, in
                LitServe's best setting of three (`pip install litserve`; left out unless `--only` names it)

Photos are mixed JPEGs of 500 to 2000 px. The client shares the cores, in a process of its own whose processor
time is not counted. Arrivals of `overload` keep to their times, and latency counts from these. `--artifact`
is what `vitrail select` wrote, best for EfficientNet-Lite0. The last line of standard output is one JSON
document.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import json
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vitrail import hardware
from vitrail.images.photos import sample_photos
from vitrail.predict import load
from vitrail.serve.batching import p95

RESULTS = Path(__file__).parent / "results"
PARTS = ("start", "low", "saturation", "overload")
LITSERVE = ((1, 1), (2, 1), (2, 8))
"""(workers, largest batch) in which LitServe is tried."""
PHOTOS, LONGEST_PX = 60, 2000
CONNECTIONS = 8
TIMES = 3
TRIAL_S = 12.0
"""The server tries batch sizes after its start; under load that would take part of what is measured."""
STARTS = 5
TICKS = os.sysconf("SC_CLK_TCK")


# --- what is asked ----------------------------------------------------------------------------------


def make_photos(folder: Path) -> list[str]:
    """JPEGs of 500 to 2000 px on the long side, cut and scaled from the sample photos."""
    rng = np.random.default_rng(0)
    sources = [Image.open(path).convert("RGB") for path in sample_photos().paths]
    names = []
    for k in range(PHOTOS):
        photo = sources[k % len(sources)]
        side = int(np.exp(rng.uniform(np.log(500), np.log(LONGEST_PX))))
        scale = side / max(photo.size)
        resized = photo.resize((round(photo.width * scale), round(photo.height * scale)))
        names.append(str(folder / f"{k:03d}.jpg"))
        resized.save(names[-1], quality=88)
    return names


class Server:
    """`vitrail serve` on a free port, once it is ready."""

    def __init__(self, artifact: str, *options: str) -> None:
        begin = time.perf_counter()
        command = [sys.executable, "-m", "vitrail", "serve", f"model={artifact}", "--port", "0", *options]
        self.process = subprocess.Popen(
            [*command, "--no-access-log"], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        )
        assert self.process.stderr is not None
        for line in self.process.stderr:  # it says where only when it is ready
            found = re.search(r"on http://127\.0\.0\.1:(\d+)", line)
            if found:
                break
        else:
            raise SystemExit("the server did not start")
        self.start_s = time.perf_counter() - begin
        self.port = int(found[1])

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        assert self.process.wait(30) == 0

    def pids(self) -> list[int]:
        """The HTTP process and the model's."""
        place = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [self.process.pid, *map(int, place.read_text().split())]

    def cpu_s(self) -> list[float]:
        """Processor seconds of each process so far."""
        return [cpu_s(pid) for pid in self.pids()]

    def memory_mib(self) -> list[float]:
        """Resident memory of each process."""
        return [memory_mib(pid) for pid in self.pids()]


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def memory_mib(pid: int) -> float:
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


# --- the client, in its own process -----------------------------------------------------------------


async def exchange(connection: tuple[Any, Any], request: bytes) -> int:
    """One request on an open connection: the status."""
    reader, writer = connection
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    await reader.readexactly(int(re.search(rb"content-length: (\d+)", head)[1]))
    return int(head[9:12])


def posted(name: str, path: str, field: str | None) -> bytes:
    """A request with one photo: as it is, or as a form's file."""
    data, kind = Path(name).read_bytes(), "image/jpeg"
    if field is not None:
        part = f'--cut\r\nContent-Disposition: form-data; name="{field}"; filename="a.jpg"\r\n'
        data = f"{part}Content-Type: {kind}\r\n\r\n".encode() + data + b"\r\n--cut--\r\n"
        kind = "multipart/form-data; boundary=cut"
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n"
    return f"{head}Content-Type: {kind}\r\n\r\n".encode() + data


async def client(
    port: int,
    names: list[str],
    seconds: float,
    rate: float | None,
    path: str = "/v1/classify",
    field: str | None = None,
) -> dict[str, Any]:
    """Without a rate: each connection asks again at once. With one: arrivals at random times of this rate."""
    requests = [posted(name, path, field) for name in names]
    rng, done = random.Random(0), []
    loop = asyncio.get_running_loop()
    if rate is None:
        stop = loop.time() + seconds

        async def again(number: int) -> None:
            connection = await asyncio.open_connection("127.0.0.1", port)
            place = number
            while loop.time() < stop:
                begin = loop.time()
                status = await exchange(connection, requests[place % len(requests)])
                done.append((status, loop.time() - begin))
                place += 1

        await asyncio.gather(*(again(k * 7) for k in range(CONNECTIONS)))
        return summary(done, seconds)
    idle: list[tuple[Any, Any]] = []

    async def arrive(due: float, request: bytes) -> None:
        connection = idle.pop() if idle else await asyncio.open_connection("127.0.0.1", port)
        status = await exchange(connection, request)
        done.append((status, loop.time() - due))
        idle.append(connection)

    tasks, due, end = [], loop.time() + 0.1, loop.time() + 0.1 + seconds
    while due < end:
        await asyncio.sleep(max(0.0, due - loop.time()))
        tasks.append(asyncio.create_task(arrive(due, rng.choice(requests))))
        due += rng.expovariate(rate)
    await asyncio.gather(*tasks)
    return summary(done, seconds)


def summary(done: list[tuple[int, float]], seconds: float) -> dict[str, Any]:
    """Counts by status, and the latency of what was answered, in ms."""
    good = sorted(1e3 * spent for status, spent in done if status == 200)
    refused = [1e3 * spent for status, spent in done if status != 200]
    counts = {str(status): sum(s == status for s, _ in done) for status in sorted({s for s, _ in done})}
    return {
        "statuses": counts,
        "per_s": len(good) / seconds,
        "p50_ms": statistics.median(good) if good else None,
        "p95_ms": p95(good) if good else None,
        "p99_ms": good[max(0, -(-99 * len(good) // 100) - 1)] if good else None,
        "refused_p50_ms": statistics.median(refused) if refused else None,
    }


def ask(
    port: int, names: list[str], seconds: float, rate: float | None = None, **where: str
) -> dict[str, Any]:
    """The client's figures, from a process of its own."""
    said = json.dumps({"port": port, "names": names, "seconds": seconds, "rate": rate, **where})
    command = [sys.executable, __file__, "--client", said]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


# --- parts ------------------------------------------------------------------------------------------


def start(artifact: str) -> dict[str, Any]:
    """Seconds to readiness, and memory then and after the batch sizes were tried."""
    seconds, memory = [], []
    for _ in range(STARTS):
        with Server(artifact) as server:
            seconds.append(server.start_s)
            memory.append(server.memory_mib())
    return {"seconds": seconds, "median_s": statistics.median(seconds), "memory_mib": memory[-1]}


def low(artifact: str, names: list[str], rounds: int) -> dict[str, Any]:
    """The median of single requests, by turns: over HTTP, and the same in this process."""
    import http.client

    photos = [Path(name).read_bytes() for name in names]
    there: list[float] = []
    here: list[float] = []
    with Server(artifact, "--max-batch", "1") as server, load(artifact, batch_size=1, many=True) as model:
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        kind = {"Content-Type": "image/jpeg"}
        for turn in range(rounds + 1):
            for photo in photos:
                begin = time.perf_counter()
                connection.request("POST", "/v1/classify", photo, kind)
                connection.getresponse().read()
                middle = time.perf_counter()
                model.request([photo])
                end = time.perf_counter()
                if turn:  # the first warms both
                    there.append(1e3 * (middle - begin))
                    here.append(1e3 * (end - middle))
    added = statistics.median(there) - statistics.median(here)
    return {
        "http_p50_ms": statistics.median(there),
        "in_process_p50_ms": statistics.median(here),
        "overhead_ms": added,
        "overhead_of_pairs_ms": statistics.median(a - b for a, b in zip(there, here, strict=True)),
        "requests": len(there),
    }


def in_process(artifact: str, names: list[str], seconds: float, batch: int) -> dict[str, Any]:
    """Runs in its own process: images/s and processor seconds per image of predicting many photos."""
    photos = [Path(name).read_bytes() for name in names]
    with load(artifact, batch_size=batch, many=True) as model:
        model.predict(photos[:batch])
        begin, cpu, done = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - begin < seconds:
            done += sum(1 for _ in model.predict_each(photos))
        spent = time.perf_counter() - begin
        return {"per_s": done / spent, "cpu_ms_per_image": 1e3 * (time.process_time() - cpu) / done}


def alone(artifact: str, names: list[str], seconds: float, batch: int) -> dict[str, Any]:
    """`in_process`, in a process."""
    said = json.dumps({"artifact": artifact, "names": names, "seconds": seconds, "batch": batch})
    command = [sys.executable, __file__, "--in-process", said]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def saturation(artifact: str, names: list[str], seconds: float, rounds: int) -> dict[str, Any]:
    """Processor seconds per image of the server over those in process, by turns."""
    found: list[dict[str, Any]] = []
    with Server(artifact) as server:
        time.sleep(TRIAL_S)
        ask(server.port, names, min(seconds, 3.0))
        for _ in range(rounds):
            before = server.cpu_s()
            answered = ask(server.port, names, seconds)
            spent = [now - then for now, then in zip(server.cpu_s(), before, strict=True)]
            images = answered["statuses"]["200"]
            inside = {batch: alone(artifact, names, seconds / 2, batch) for batch in (1, 8)}
            best = min(each["cpu_ms_per_image"] for each in inside.values())
            mine = 1e3 * sum(spent) / images
            found.append(
                {
                    "server": answered,
                    "cpu_ms_per_image": mine,
                    "http_cpu_ms_per_image": 1e3 * spent[0] / images,
                    "in_process": inside,
                    "ratio": mine / best,
                }
            )
    return {"rounds": found, "ratio": statistics.median(each["ratio"] for each in found)}


def overload(artifact: str, names: list[str], seconds: float) -> dict[str, Any]:
    """Half, and three times of what it can answer; the queue bounded by a promised latency."""
    with Server(artifact) as server:
        time.sleep(TRIAL_S)
        ask(server.port, names, 3.0)
        most = ask(server.port, names, seconds / 2)
    promise = max(50.0, 3 * most["p50_ms"])
    with Server(artifact, "--max-latency", f"{promise:.0f}ms") as server:
        ask(server.port, names, 3.0)
        half = ask(server.port, names, seconds, 0.5 * most["per_s"])
        before = sum(server.memory_mib())
        flooded = ask(server.port, names, seconds, TIMES * most["per_s"])
        after = sum(server.memory_mib())
    return {
        "saturated": most,
        "promise_ms": promise,
        "half": half,
        "flooded": flooded,
        "memory_mib": [before, after],
        "p99_ratio": flooded["p99_ms"] / promise if flooded["p99_ms"] else None,
    }


class LitServe:
    """The artifact behind LitServe, once it answers."""

    def __init__(self, artifact: str, workers: int, batch: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        script = str(Path(__file__).with_name("litserve_peer.py"))
        command = [sys.executable, script, artifact, str(self.port)]
        options = ["--workers", str(workers), "--batch", str(batch)]
        self.process = subprocess.Popen(
            [*command, *options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def __enter__(self) -> LitServe:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as there:
                there.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
                if b" 200 " in there.recv(64):
                    return self
            time.sleep(0.2)
        self.__exit__()
        raise SystemExit("LitServe did not start")

    def __exit__(self, *_: object) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)  # its workers are in its session
        self.process.wait(30)


def litserve(artifact: str, names: list[str], seconds: float, rounds: int) -> dict[str, Any]:
    """Images/s of both at saturation, by turns; the ratio is to LitServe's best setting of the same round."""
    found = []
    for _ in range(rounds):
        with Server(artifact) as server:
            time.sleep(TRIAL_S)
            ask(server.port, names, 3.0)
            mine = ask(server.port, names, seconds, path="/v1/classify", field="image")
        theirs = {}
        for workers, batch in LITSERVE:
            with LitServe(artifact, workers, batch) as peer:
                ask(peer.port, names, 2.0, path="/predict", field="request")
                theirs[f"{workers} workers, batch {batch}"] = ask(
                    peer.port, names, seconds, path="/predict", field="request"
                )
        best = max(each["per_s"] for each in theirs.values())
        found.append({"vitrail": mine, "litserve": theirs, "ratio": mine["per_s"] / best})
    return {"rounds": found, "ratio": statistics.median(each["ratio"] for each in found)}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--artifact")
    parser.add_argument("--only", nargs="+", choices=(*PARTS, "litserve"), default=PARTS)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--save", nargs="?", const="machine", metavar="NAME")
    parser.add_argument("--client", help=argparse.SUPPRESS)
    parser.add_argument("--in-process", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.client:
        print(json.dumps(asyncio.run(client(**json.loads(args.client)))))
        return 0
    if args.in_process:
        print(json.dumps(in_process(**json.loads(args.in_process))))
        return 0
    if not args.artifact:
        parser.error("--artifact is needed")
    known = hardware.facts()
    document: dict[str, Any] = {"benchmark": "serve", "machine": hardware.one_line(known)}
    with tempfile.TemporaryDirectory() as folder:
        names = make_photos(Path(folder))
        for part in args.only:
            begin = time.perf_counter()
            if part == "start":
                document[part] = start(args.artifact)
            elif part == "low":
                document[part] = low(args.artifact, names, args.rounds)
            elif part == "saturation":
                document[part] = saturation(args.artifact, names, args.seconds, args.rounds)
            elif part == "litserve":
                document[part] = litserve(args.artifact, names, args.seconds, args.rounds)
            else:
                document[part] = overload(args.artifact, names, args.seconds)
            print(f"{part} ({time.perf_counter() - begin:.0f} s)", file=sys.stderr)
            print(json.dumps(document[part], indent=1))
    if args.save:
        today = datetime.date.today().isoformat()
        (RESULTS / f"serve-{args.save}-{today}.json").write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(document))
    return 0


if __name__ == "__main__":
    sys.exit(main())

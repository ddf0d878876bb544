"""`verify --serving`: the open loop, one connection, judged starts, and a real server (about 20 s)."""

from __future__ import annotations

import email
import http.server
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec

import artifacts
import psutil
import pytest

from vitrail import stats
from vitrail.cli import main
from vitrail.errors import InputError
from vitrail.measure import quiet
from vitrail.measure.clients import closed_loop
from vitrail.serve import installed
from vitrail.traffic import serving
from vitrail.traffic.http import Connections, body_of
from vitrail.traffic.open_loop import Sent, most_under_way, open_loop, poisson
from vitrail.vocabulary import Requirements, Workload

needs_serve = pytest.mark.skipif(
    any(find_spec(name) is None for name in installed.LIBRARIES), reason="needs the extra serve"
)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    return artifacts.make_artifact(tmp_path_factory.mktemp("load"), batch_size=1)


# --- the open loop --------------------------------------------------------------------------------


class Virtual:
    """A server in virtual time: 2 ms a request, but nothing moves from 1 to 2 s."""

    def __init__(self, stall: tuple[float, float] = (1.0, 2.0)) -> None:
        self.now, self.stall = 0.0, stall

    def clock(self) -> float:
        return self.now

    def wait(self, seconds: float, _: threading.Event) -> None:
        self.now += seconds

    def ask(self, _: object) -> str:
        begin, end = self.stall
        if begin <= self.now < end:
            self.now = end
        self.now += 0.002
        return "answered"


def test_a_stall_hides_from_a_client_that_waits_and_not_from_requests_that_are_due():
    patient = Virtual()
    closed = closed_loop(1, 2000, lambda: None, patient.ask, clock=patient.clock)
    server = Virtual()
    sent = open_loop(
        1, 0, 600, poisson(100.0, seed=0), lambda: None, server.ask,
        given_up_s=15.0, clock=server.clock, wait=server.wait,
    )  # fmt: skip
    assert stats.percentile([1e3 * seconds for seconds, _ in closed], 99.9) == pytest.approx(2.0)
    latencies = [1e3 * each.latency_s for each in sent]
    assert stats.percentile(latencies, 50) == pytest.approx(2.0, abs=3.0)
    # 100 of 600 were due while it stalled, the first of them a second before anything moved.
    assert stats.percentile(latencies, 95) > 500
    assert max(latencies) == pytest.approx(1000, abs=50)


def test_arrivals_are_drawn_beforehand():
    due = list(itertools.islice(poisson(50.0, seed=3), 2000))
    assert due == list(itertools.islice(poisson(50.0, seed=3), 2000))
    assert due != list(itertools.islice(poisson(50.0, seed=4), 2000))
    assert due == sorted(due)
    assert due[-1] == pytest.approx(40.0, rel=0.1)


def test_what_is_too_late_is_not_sent_and_counts_all_the_same():
    server = Virtual(stall=(1.0, 100.0))
    sent = open_loop(
        1, 0, 300, poisson(100.0, seed=0), lambda: None, server.ask,
        given_up_s=15.0, clock=server.clock, wait=server.wait,
    )  # fmt: skip
    assert len(sent) == 300
    unsent = [each for each in sent if each.answer is None]
    assert 150 < len(unsent) < 220
    assert all(each.latency_s > 15.0 for each in unsent)


def test_the_first_requests_are_not_timed_and_what_follows_the_last_is_not_either():
    server = Virtual(stall=(9e9, 9e9))
    drawn = itertools.count()
    sent = open_loop(
        1, 5, 10, iter([0.1 * n for n in range(100)]), lambda: next(drawn), server.ask,
        given_up_s=1.0, clock=server.clock, wait=server.wait,
    )  # fmt: skip
    assert [round(each.due, 3) for each in sent] == [round(0.1 * n, 3) for n in range(5, 15)]


def test_connections_send_at_once_when_requests_pile_up():
    """Real threads: each request takes 50 ms, twenty are due at once, five connections take them in fours."""
    begin = time.perf_counter()
    due = itertools.chain([0.0] * 20, itertools.count(0.5))
    sent = open_loop(5, 0, 20, due, lambda: None, lambda _: time.sleep(0.05), given_up_s=5.0)
    assert time.perf_counter() - begin < 2.0
    latencies = sorted(each.latency_s for each in sent)
    assert latencies[0] >= 0.05
    assert latencies[-1] >= 0.2  # counted from when it was due, not from when it was sent
    assert most_under_way(sent) == 20


def test_what_a_request_raises_ends_the_loop():
    def ask(_: None) -> None:
        raise InputError("no photo.")

    with pytest.raises(InputError, match="no photo"):
        open_loop(3, 0, 10, poisson(1000.0, seed=0), lambda: None, ask, given_up_s=1.0)


def test_most_under_way():
    sent = [
        Sent(due=0.0, done=1.0, answer=1),
        Sent(due=0.5, done=2.0, answer=1),
        Sent(due=1.0, done=3.0, answer=1),
    ]
    assert most_under_way(sent) == 2
    assert most_under_way([]) == 1


# --- a connection ---------------------------------------------------------------------------------


class Fake(http.server.ThreadingHTTPServer):
    """Answers after `seconds` in turn, with the statuses that it is given, over and over."""

    daemon_threads = True

    def __init__(self, statuses=(200,), seconds: float = 0.0) -> None:
        self.statuses, self.seconds = itertools.cycle(statuses), seconds
        self.turn, self.callers, self.bodies = threading.Lock(), set(), []
        super().__init__(("127.0.0.1", 0), _Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def port(self) -> int:
        return self.server_address[1]


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes
    server: Fake

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.callers.add(self.client_address)
        self.server.bodies.append((self.headers["Content-Type"], body))
        with self.server.turn:
            status = next(self.server.statuses)
            time.sleep(self.server.seconds)
        if status is None:  # gone without an answer
            self.close_connection = True
            return
        said = b'{"error": {"code": "queue_full"}}' if status != 200 else b"{}"
        self.send_response(status)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def fakes() -> Iterator[list[Fake]]:
    started: list[Fake] = []
    yield started
    for each in started:
        each.shutdown()
        each.server_close()


def test_refusals_and_failures_are_told_apart(fakes, artifact):
    fakes.append(Fake(statuses=(200, 429, 500, None, 200)))
    connections = Connections(fakes[0].port, "/v1/classify", 5.0)
    body = body_of(artifact.photos[:1])
    answers = [connections.ask(body) for _ in range(5)]
    assert [each.outcome for each in answers] == ["answered", "refused", "failed", "failed", "answered"]
    assert answers[1].said.startswith("429 ")
    assert "queue_full" in answers[1].said
    assert len(fakes[0].callers) == 2  # one kept connection, until the server left it
    slow = Fake(seconds=1.0)
    fakes.append(slow)
    late = Connections(slow.port, "/v1/classify", 0.1).ask(body)
    assert (late.outcome, late.seconds < 1.0) == ("failed", True)


def test_one_image_is_a_body_and_several_are_a_form(artifact):
    one = body_of(artifact.photos[:1])
    assert one.data == artifact.photos[0].read_bytes()
    three = body_of(artifact.photos)
    head = f"Content-Type: {three.content_type}\r\nMIME-Version: 1.0\r\n\r\n".encode()
    parts = email.message_from_bytes(head + three.data).get_payload()
    assert [part.get_payload(decode=True) for part in parts] == [p.read_bytes() for p in artifact.photos]


# --- judging --------------------------------------------------------------------------------------


@pytest.fixture
def served(monkeypatch, fakes):
    """`served(limit, ...)`: the check and the figures, of starts of a fake server, with a short plan."""
    ended: list[bool] = []

    def short(load, percentile, limit, plan=serving._plan):
        made = plan(load, percentile, limit)
        few = made.final_calls if load.rate is None else 240
        return replace(made, block_s=0.04, rounds=2, final_s=6.0, max_launches=4, final_calls=few)

    monkeypatch.setattr(serving, "_plan", short)
    monkeypatch.setattr(quiet, "wait", lambda *_: quiet.BusyReading(busy=0.0, processors=2))

    def run(artifact, limit=None, load=None, statuses=(200,), seconds=0.002, **workload):
        class Server(Fake):
            alive = True

            def __init__(self, path, options) -> None:
                self.options = options
                super().__init__(itertools.chain([200] * 3, itertools.cycle(statuses)), seconds)
                fakes.append(self)

            def settle(self) -> None:
                pass

            def close(self) -> None:
                ended.append(True)

        monkeypatch.setattr(serving, "Server", Server)
        asked = load or serving.Load(clients=2)
        requirements = Requirements(max_latency_ms=limit)
        return serving.serving(artifact, requirements, Workload(**workload), asked)

    run.ended = ended
    return run


def test_a_server_that_is_fast_enough_passes_over_three_starts(served, artifact):
    check, seen = served(artifact, limit=200.0)
    assert (check.name, check.answer, check.limit) == ("serving latency", "pass", 200.0)
    assert len(served.ended) == seen.starts >= 3
    assert seen.requests == seen.answered >= 162  # 81 of each client
    assert 4.0 <= seen.p50 <= seen.p95 <= seen.p99 < 200.0
    # Two requests are always under way, one of them with the server.
    assert seen.per_s == pytest.approx(2000 / seen.p50, rel=0.5)
    assert "limit 200" in check.reason


def test_a_server_that_is_too_slow_fails(served, artifact):
    check, seen = served(artifact, limit=3.0)
    assert check.answer == "fail"
    assert check.observed > 3.0
    assert seen.starts < 3


def test_what_is_refused_or_fails_counts_as_too_late(served, artifact, monkeypatch):
    monkeypatch.setattr("vitrail.traffic.http.PAUSE_S", 0.001)
    check, seen = served(artifact, limit=1000.0, statuses=(200, 200, 200, 429, 500))
    assert check.answer == "fail"
    assert check.observed is None
    assert seen.p95 is None
    assert seen.p50 is not None
    assert seen.refused > 0
    assert seen.failed > 0
    # Two clients: either answer may come first, and is the one that is told.
    assert re.search(rf"{seen.refused} refused, {seen.failed} failed \((429|500) ", check.reason)


def test_without_a_limit_on_requests_there_are_only_figures(served, artifact):
    check, seen = served(artifact)
    assert (check.answer, check.limit) == ("not assessed", None)
    assert seen.p95 is not None
    check, _ = served(artifact, limit=100.0, latency_scope="model")
    assert (check.answer, check.limit) == ("not assessed", None)


def test_an_open_loop_counts_from_when_a_request_was_due(served, artifact):
    """200 a second are due, and the server does 100: they wait ever longer, however quick each answer is."""
    load = serving.Load(clients=2, rate=200.0)
    check, seen = served(artifact, limit=60.0, load=load, seconds=0.01)
    assert check.answer == "fail"
    assert 50 < seen.per_s < 120
    assert seen.p95 > 100


def test_a_low_rate_is_kept_and_passes(served, artifact, monkeypatch):
    monkeypatch.setattr(serving, "HEAD_S", 0.1)
    check, seen = served(artifact, limit=500.0, load=serving.Load(clients=4, rate=300.0), seconds=0.001)
    assert check.answer in ("pass", "undecided")
    assert seen.per_s == pytest.approx(300, rel=0.35)
    assert seen.p95 < 500


def test_a_busy_machine_makes_a_failure_undecided(served, artifact, monkeypatch):
    monkeypatch.setattr(quiet, "wait", lambda *_: quiet.BusyReading(busy=1.5, processors=2))
    check, seen = served(artifact, limit=3.0)
    assert check.answer == "undecided"
    assert "busy machine" in check.reason
    assert any(flag.startswith("noise") for flag in seen.flags)


def test_a_request_holds_a_batch_and_the_server_is_told_of_large_ones(served, artifact, fakes):
    served(artifact, limit=3.0, batch_size=3)
    assert fakes[-1].options == []
    assert all(kind.startswith("multipart/form-data") for kind, _ in fakes[-1].bodies)
    served(artifact, limit=3.0, batch_size=100)
    assert fakes[-1].options == ["--max-images", "100", "--max-queue", "100"]


def test_the_server_is_ended_when_the_person_interrupts(served, artifact, monkeypatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(serving, "closed_loop", interrupted)
    with pytest.raises(KeyboardInterrupt):
        served(artifact, limit=100.0)
    assert served.ended == [True]


# --- the command ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--clients", "4"], "add --serving"),
        (["--rate", "5"], "add --serving"),
        (["--serving", "--rate", "0"], "give 0.1 to"),
        (["--serving", "--rate", "fast"], "--rate"),
    ],
)
def test_wrong_use_is_refused_before_anything_starts(artifact, capsys, given, said):
    assert main(["verify", str(artifact.path), *given]) == 2
    assert said in capsys.readouterr().err


def test_without_its_libraries_the_install_line_is_said(artifact, capsys, monkeypatch):
    monkeypatch.setattr(installed, "find_spec", lambda _: None)
    assert main(["verify", str(artifact.path), "--serving"]) == 2
    assert "[serve]" in capsys.readouterr().err


def test_verifying_without_it_imports_nothing_of_it(artifact):
    code = (
        "import sys; from vitrail.cli import main; main(['verify', sys.argv[1]]); "
        "heavy = ('vitrail.traffic', 'vitrail.serve', 'fastapi'); "
        "sys.exit(any(name.startswith(heavy) for name in sys.modules))"
    )
    assert (
        subprocess.run([sys.executable, "-c", code, str(artifact.path)], capture_output=True).returncode == 0
    )


def test_the_command_shows_what_clients_saw(artifact, capsys, monkeypatch, tmp_path):
    seen = serving.Served(
        clients=8, rate=50.0, images_per_request=1, requests=400, answered=397, refused=2, failed=1,
        per_s=49.6, p50=8.0, p95=12.0, p99=None, starts=3, flags=(),
    )  # fmt: skip
    asked = []

    def served(artifact, requirements, workload, load, *, threads, tell):
        asked.append((requirements, load))
        found = serving.Check(name=serving.NAME, answer="pass", observed=12.0, limit=20.0, reason="p95 12 ms")
        return found, seen

    monkeypatch.setattr(serving, "serving", served)
    (tmp_path / "asked.toml").write_text('max-latency = "20ms"\n')
    given = [
        "verify",
        str(artifact.path),
        "--serving",
        "--rate",
        "50",
        "--against",
        str(tmp_path / "asked.toml"),
    ]
    assert main([*given, "--json", str(tmp_path / "v.json")]) == 0
    said = capsys.readouterr().out
    assert (
        "p50 8, p95 12, p99 not answered ms; 49.6 of 50 requests/s due answered; 2 refused, 1 failed" in said
    )
    document = json.loads((tmp_path / "v.json").read_text())
    assert document["serving"]["refused"] == 2
    assert document["checks"][-1]["name"] == "serving latency"
    assert asked[0][0].max_latency_ms == 20.0
    assert asked[0][1] == serving.Load(clients=8, rate=50.0)
    assert not any(
        check["name"] == "max_latency" for check in document["checks"]
    )  # only asked with --measure


# --- a real server --------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """A short plan, and no batch sizes to time."""
    monkeypatch.setenv("VITRAIL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(serving, "CALLS", 90)
    monkeypatch.setattr(serving, "MOST_S", 20.0)


@needs_serve
@pytest.mark.slow
def test_a_real_server_is_started_asked_and_ended(artifact, capsys, quick, tmp_path):
    (tmp_path / "asked.toml").write_text('max-latency = "5s"\nclients = 2\n')
    given = ["verify", str(artifact.path), "--serving", "--against", str(tmp_path / "asked.toml")]
    assert main([*given, "--json", str(tmp_path / "v.json")]) == 0
    found = json.loads((tmp_path / "v.json").read_text())
    assert found["checks"][-1]["answer"] == "pass"
    assert found["serving"]["clients"] == 2
    assert found["serving"]["starts"] >= 3
    assert found["serving"]["requests"] == found["serving"]["answered"] > 0
    assert "holds its claims" in capsys.readouterr().out
    assert not [
        each for each in psutil.Process().children(recursive=True) if "vitrail.traffic" in each.cmdline()
    ]


@needs_serve
@pytest.mark.slow
def test_a_server_that_does_not_start_says_why(tmp_path):
    with pytest.raises(InputError, match=r"ended before it was ready; its last words: .*nowhere"):
        serving.Server(tmp_path / "nowhere")


@needs_serve
@pytest.mark.slow
def test_a_server_ends_with_the_process_that_started_it(artifact):
    code = (
        "import sys, time; from pathlib import Path; from vitrail.traffic.process import Server; "
        "server = Server(Path(sys.argv[1])); print(server.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(artifact.path)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    server = psutil.Process(int(parent.stdout.readline()))
    family = [server, *server.children(recursive=True)]
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    _, alive = psutil.wait_procs(family, timeout=15)
    assert not [each for each in alive if each.status() != psutil.STATUS_ZOMBIE]

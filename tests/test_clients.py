"""Several clients at once: the closed loop, the session, throughput, and what a limit test makes of them."""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
import pytest
import selections
from simulated import Machine, SimulatedSubject, queue

from vitrail import judge, stats, tasks
from vitrail.artifact import open_artifact
from vitrail.cli import main
from vitrail.document import from_document, to_json_bytes
from vitrail.errors import InputError
from vitrail.export.bench import workload_key
from vitrail.measure.clients import closed_loop
from vitrail.measure.latency import Plan, figures, screen
from vitrail.measure.session import ExportSession, SessionRequest
from vitrail.report import phrases, terminal
from vitrail.requirements import check, resolve
from vitrail.vocabulary import Block, Workload

GOLDEN = Path(__file__).parent / "golden"

SERVICE_S = 0.01


def queue_block(clients: int, calls: int, *, launch: int = 1, seed: int = 0, **subject) -> Block:
    one = SimulatedSubject(Machine(seed=seed), clients=clients, **subject)
    return one.launch(launch).block("request", calls)


# --- the loop -------------------------------------------------------------------------------------


def test_where_the_engine_is_the_bottleneck_latency_is_all_clients_turns():
    """Against brute force: a fake engine that sleeps, with real threads and clocks."""
    engine = ThreadPoolExecutor(1)  # in turn: a lock would serve whoever released it last again and again
    turns: list[float] = []

    def run() -> None:
        begin = time.perf_counter()
        time.sleep(SERVICE_S)
        turns.append(time.perf_counter() - begin)

    def ask(_: int) -> None:
        engine.submit(run).result()

    clients = 4
    samples = [seconds for seconds, _ in closed_loop(clients, 6 * clients, lambda: 0, ask)]
    turn_s = statistics.mean(turns)  # a busy machine sleeps longer: the ratio is what is known
    assert len(samples) == 6 * clients
    assert statistics.median(samples) == pytest.approx(clients * turn_s, rel=0.25)
    per_s = clients / statistics.mean(samples)
    assert per_s == pytest.approx(1 / turn_s, rel=0.25)


def test_the_first_request_is_untimed_and_nobody_stops_before_the_last():
    names: list[str] = []
    under_way: list[int] = []
    lock, asking = threading.Lock(), 0

    def ask(slow: bool) -> None:
        nonlocal asking
        with lock:
            asking += 1
            names.append(threading.current_thread().name)
        time.sleep(0.03 if slow else 0.003)
        with lock:
            under_way.append(asking)
            asking -= 1

    slow_one: list[str] = []

    def draw() -> bool:
        me = threading.current_thread().name
        if not slow_one:
            slow_one.append(me)
        return me == slow_one[0]

    samples = [seconds for seconds, _ in closed_loop(3, 9, draw, ask)]
    counts = sorted(names.count(name) for name in set(names))
    assert len(samples) == 9
    assert sum(sample >= 0.03 for sample in samples) == 3  # the slow client's first one is not among them
    assert counts[0] == 4  # the slow client: one untimed, three timed
    assert all(count > 8 for count in counts[1:])  # the others asked on meanwhile
    # But for the first and last moments all three were asking.
    assert statistics.median(under_way) == 3


def test_calls_that_do_not_divide_are_still_all_made():
    assert len(closed_loop(4, 2, lambda: 0, lambda _: None)) == 2
    assert len(closed_loop(3, 10, lambda: 0, lambda _: None)) == 10


def test_what_one_client_raises_ends_all():
    def ask(number: int) -> None:
        time.sleep(0.001)
        if number == 7:
            raise InputError("broken.jpg is not an image.")

    numbers, before = iter(range(10_000)), threading.active_count()
    with pytest.raises(InputError, match=r"broken\.jpg"):
        closed_loop(3, 3000, lambda: next(numbers), ask)
    assert next(numbers) < 100
    assert threading.active_count() <= before


@pytest.fixture
def session(monkeypatch) -> Iterator[ExportSession]:
    """A launch in this process, with three clients, whose engine sleeps."""
    interval = sys.getswitchinterval()
    artifact = open_artifact(GOLDEN / "artifact-4-openvino")
    made = ExportSession(
        SessionRequest(
            folder=str(artifact.model_folder),
            graphs=(artifact.manifest.graphs[0],),
            target=artifact.manifest.variant.on("cpu"),
            batch_size=1,
            clients=3,
            threads=1,
            task=tasks.pack(artifact.task),
            photos=[str(photo) for photo in artifact.photos],
        )
    )
    run, callers = made._runner.run, []

    def slowly(inputs):
        callers.append(threading.get_ident())
        time.sleep(SERVICE_S)
        return run(inputs)

    monkeypatch.setattr(made._runner, "run", slowly)
    made.callers = callers
    yield made
    sys.setswitchinterval(interval)


def test_a_session_times_clients_that_share_its_engine(session):
    assert session.warm_up(0.0, 2) == {"calls": 6}
    session.callers.clear()
    block = session.block("request", 12)
    assert (len(block["samples_ms"]), block["clients"]) == (12, 3)
    assert len(set(session.callers)) == 1  # one thread calls the engine, and it is none of the clients
    assert len(session.callers) > 12
    model = session.block("model", 4)
    assert (len(model["samples_ms"]), model["clients"]) == (4, 1)
    ratio = statistics.median(block["samples_ms"]) / statistics.median(model["samples_ms"])
    assert ratio == pytest.approx(3, rel=0.35)


def test_what_a_client_cannot_decode_is_the_blocks_failure(session, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    session._request.photos.append(str(broken))
    session._order = np.arange(len(session._request.photos))
    with pytest.raises(InputError, match="broken"):
        session.block("request", 30)


# --- the figures ----------------------------------------------------------------------------------


def test_the_simulated_queue_is_what_theory_says():
    rng = np.random.default_rng(0)
    latencies, _ = queue(8, 4000, lambda: float(rng.exponential(5.0)), 0.0)
    assert np.mean(latencies) == pytest.approx(8 * 5.0, rel=0.05)
    tau = stats.autocorrelation_time(np.array(latencies)[None])[0]
    assert tau == pytest.approx(8, rel=0.25)
    # Decoding beside the engine costs nothing, until it takes longer than the others' turns.
    hidden, _ = queue(8, 400, lambda: 5.0, 20.0)
    assert np.median(hidden) == pytest.approx(40.0)
    shown, _ = queue(8, 400, lambda: 5.0, 100.0)
    assert np.median(shown) == pytest.approx(105.0)


def test_throughput_counts_all_clients():
    blocks = [queue_block(8, 64, launch=n, seed=n, median_ms=5.0, request_extra_ms=1.0) for n in range(1, 6)]
    # One image takes 5 ms of the engine, whoever waits for it.
    assert judge.evidence.throughput(blocks, "request", 1) == pytest.approx(200, rel=0.02)
    assert stats.throughput_answer(blocks, 1, 180) == "pass"
    assert stats.throughput_answer(blocks, 1, 220) == "fail"
    assert stats.throughput_answer(blocks, 4, 700) == "pass"
    alone = [dataclasses.replace(block, clients=1) for block in blocks]
    assert stats.throughput_answer(alone, 1, 180) == "fail"


def test_a_pass_takes_as_many_calls_of_each_client_as_of_one():
    """Every N-th call is independent, so N clients' calls are worth a N-th of theirs."""
    for clients in (1, 8):
        few, enough = (
            [queue_block(clients, calls * clients, launch=n, seed=n) for n in (1, 2, 3)] for calls in (24, 60)
        )
        limit = 1e4
        assert stats.LimitTest(percentile=95).evaluate(few, limit).answer == "undecided"
        assert stats.LimitTest(percentile=95).evaluate(enough, limit).answer == "pass"


@pytest.mark.slow
def test_limits_that_do_not_hold_are_rarely_passed_whoever_waits():
    """The limit is a little below the true percentile, so every pass is false: at most alpha / 2 of them.

    Rare stalls are the hard case: one delays all clients, and a short series may hold none.
    """
    seen = {}
    for name, subject in {
        "spread": {"sigma": 0.3},
        "stalls": {"outliers": 0.008, "outlier_times": 20.0},
    }.items():
        many = [queue_block(8, 4000, seed=100 + n, median_ms=5.0, **subject) for n in range(10)]
        true_ms = stats.percentile([ms for block in many for ms in block.samples_ms], 95)
        passes = {8: 0, 1: 0}
        runs = 120
        for seed in range(runs):
            machine = Machine(seed=seed)
            one = SimulatedSubject(machine, clients=8, median_ms=5.0, **subject)
            blocks = [one.launch(launch).block("request", 256) for launch in (1, 2, 3)]
            for clients in passes:  # 1: as if the calls were one client's
                taken = [dataclasses.replace(block, clients=clients) for block in blocks]
                looks = [taken, [dataclasses.replace(b, samples_ms=b.samples_ms[:80]) for b in taken]]
                answers = [stats.LimitTest(percentile=95).evaluate(look, 0.99 * true_ms) for look in looks]
                passes[clients] += any(state.answer == "pass" for state in answers)
        seen[name] = {clients: count / runs for clients, count in passes.items()}
    # 2.5 % and two standard errors of 120 runs.
    assert all(rates[8] <= 0.055 for rates in seen.values()), seen
    assert seen["stalls"][1] > 0.05, seen  # what the floor is for


def test_screening_several_clients_measures_blocks_of_each_clients_calls():
    machine = Machine()
    subject = SimulatedSubject(machine, clients=8, median_ms=2.0, request_extra_ms=1.0)
    outcome = screen(subject, Plan(limit_ms=100, clients=8), clock=machine.clock)
    first, *later = [block for block in outcome.blocks if block.scope == "request"]
    assert (len(first.samples_ms), first.clients) == (24, 8)
    assert all(len(block.samples_ms) % 8 == 0 for block in later)
    assert all(block.clients == 1 for block in outcome.blocks if block.scope == "model")
    assert outcome.contender
    assert figures(outcome.blocks, "request", 95).p50 == pytest.approx(16, rel=0.05)
    assert figures(outcome.blocks, "model", 95).p50 == pytest.approx(2, rel=0.05)
    slow = SimulatedSubject(machine, clients=8, median_ms=20.0)
    assert screen(slow, Plan(limit_ms=100, clients=8), clock=machine.clock).answer == "fail"


def test_their_own_threads_are_not_taken_for_other_processes():
    machine = Machine()
    subject = SimulatedSubject(machine, clients=2)
    session = subject.launch(1)
    busy = dataclasses.replace(session.block("request", 6), involuntary_switches=10_000)

    class Session:
        def block(self, scope, calls):
            return busy if scope == "request" else session.block(scope, calls)

        def close(self):
            pass

    class Subject:
        name = "subject"

        def launch(self, number):
            return Session()

    outcome = screen(Subject(), Plan(clients=2))
    assert not any(flag.startswith("noise") for flag in outcome.flags)


# --- asking ---------------------------------------------------------------------------------------


def test_clients_are_an_option_of_the_workload(tmp_path):
    (tmp_path / "asked.toml").write_text("clients = 8\n")
    _, workload, _ = resolve(toml=tmp_path / "asked.toml")
    assert workload.concurrency == 8
    assert resolve(flags={"clients": "3"})[1].concurrency == 3
    for given, said in (("0", "below 1"), ("2000", "above 1024"), ("two", "clients")):
        with pytest.raises(InputError, match=said):
            resolve(flags={"clients": given})


def test_clients_of_the_model_alone_are_refused():
    check(Workload(concurrency=8))
    with pytest.raises(InputError, match=r"clients and latency-scope model contradict"):
        check(Workload(concurrency=8, latency_scope="model"))
    with pytest.raises(InputError, match=r"contradict"):
        resolve(flags={"clients": "2", "latency-scope": "model"})


def test_the_command_line_refuses_them_too(capsys):
    assert main(["select", "--clients", "2", "--latency-scope", "model"]) == 2
    assert "contradict each other" in capsys.readouterr().err


# --- what is on record ----------------------------------------------------------------------------


def test_what_was_measured_before_there_were_clients_keeps_its_key():
    before = {"batch_size": 1, "threads": 2, "device": "cpu", "latency_scope": "request", "percentile": 95.0}
    before |= {"image_size": None, "images": None, "data": None}
    assert workload_key(Workload(threads=2, images="photos")) == before
    assert workload_key(Workload(threads=2, concurrency=8)) == {**before, "concurrency": 8}


@pytest.fixture
def version_6(tmp_path) -> Path:
    document = json.loads(to_json_bytes(selections.selection())) | {"schema_version": 6}
    del document["workload"]["concurrency"]
    (tmp_path / "old.json").write_text(json.dumps(document))
    return tmp_path / "old.json"


def test_a_document_from_before_says_one_client(version_6, capsys):
    recorded = from_document(version_6.read_bytes(), "old.json")
    assert recorded.selection.workload.concurrency == 1
    assert "concurrency" in recorded.stated
    assert main(["select", "--from", str(version_6), "--max-latency", "50ms"]) in (0, 3)
    assert "does not state" not in capsys.readouterr().out
    assert main(["select", "--from", str(version_6), "--clients", "8"]) == 2
    assert "recorded with concurrency 1" in capsys.readouterr().err


def test_the_manifest_says_under_how_many_clients(tmp_path):
    old = open_artifact(GOLDEN / "artifact-4-openvino")
    assert old.manifest.evidence.workload.concurrency == 1
    document = msgspec.to_builtins(old.manifest)
    assert document["evidence"]["workload"]["concurrency"] == 1


def test_reports_say_how_many_clients():
    found = selections.selection()
    eight = dataclasses.replace(found, workload=dataclasses.replace(found.workload, concurrency=8))
    assert "request, 8 clients" in terminal.summary(eight)
    assert "clients" not in terminal.summary(found)
    assert phrases.load(eight.workload) == "batch 1 from 8 clients"


def test_figures_of_other_numbers_of_clients_are_not_compared(tmp_path, capsys):
    found = selections.selection()
    eight = dataclasses.replace(found, workload=dataclasses.replace(found.workload, concurrency=8))
    for name, each in (("a", found), ("b", eight)):
        (tmp_path / f"{name}.json").write_bytes(to_json_bytes(each))
    assert main(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 0
    said = capsys.readouterr().out
    assert "under different loads (clients 1 in A, 8 in B)" in said
    assert "concurrency" in said

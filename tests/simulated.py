"""A simulated machine: sessions with known latency distributions and a clock that costs no time."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from vitrail.measure.sandbox import ChildFailure
from vitrail.vocabulary import Block, Stage

REFERENCE_MS = 5.0


@dataclass
class Machine:
    """Simulated seconds, and a speed that may change over time."""

    seed: int = 0
    drift_per_s: float = 0.0
    """Relative slowing per simulated second."""
    disturbed: tuple[tuple[float, float], ...] = ()
    """(begin, end) in s: everything takes 1.5 times as long."""
    now: float = 0.0
    rng: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)

    def clock(self) -> float:
        return self.now

    def slowness(self) -> float:
        busy = any(begin <= self.now < end for begin, end in self.disturbed)
        return (1.5 if busy else 1.0) * (1 + self.drift_per_s * self.now)

    def spend(self, ms: float) -> float:
        ms *= self.slowness()
        self.now += ms / 1000
        return ms


@dataclass
class SimulatedSubject:
    """Latency = median x exp(sigma Z + launch offset), Z an AR(1) series with unit variance."""

    machine: Machine
    name: str = "subject"
    median_ms: float = 20.0
    sigma: float = 0.02
    rho: float = 0.0
    launch_sigma: float = 0.0
    outliers: float = 0.0
    """Share of calls that take `outlier_times` as long."""
    outlier_times: float = 3.0
    episodes: float = 0.0
    """Share of time in a state 1.5 times as slow, in runs of 10 calls on average."""
    request_extra_ms: float = 2.0
    """Decoding and preparing."""
    clients: int = 1
    """In scope `request`; each decodes by itself, then waits for its turn at the model."""
    stages_ms: dict[str, float] = field(default_factory=dict)
    """Median of each stage that is timed by itself; launches differ in each independently."""
    launch_s: float = 1.5
    fails_at_block: int | None = None
    disturbed_block: int | None = None
    """Everything in this block of a launch takes 1.5 times as long, the speed reference too."""
    open_sessions: int = 0
    launches: list[int] = field(default_factory=list)
    order: list[tuple[str, int]] | None = None
    """Shared record of (name, launch) in the order blocks were measured."""

    def launch(self, number: int) -> SimulatedSession:
        self.machine.now += self.launch_s
        self.launches.append(number)
        self.open_sessions += 1
        return SimulatedSession(self, number)


class SimulatedSession:
    def __init__(self, subject: SimulatedSubject, number: int) -> None:
        self.subject, self.number, self.measured = subject, number, 0
        self.rng = subject.machine.rng
        self.offset = subject.launch_sigma * self.rng.standard_normal()
        self.z = self.rng.standard_normal()
        self.slow = self.rng.random() < subject.episodes
        self.offsets = {s: subject.launch_sigma * self.rng.standard_normal() for s in subject.stages_ms}

    def block(self, scope: Stage, calls: int) -> Block:
        self.measured += 1
        if self.measured == self.subject.fails_at_block:
            raise ChildFailure("killed: over its memory limit")
        if self.subject.order is not None:
            self.subject.order.append((self.subject.name, self.number))
        slow = 1.5 if self.measured == self.subject.disturbed_block else 1.0
        spend = self.subject.machine.spend
        before = spend(slow * REFERENCE_MS)
        clients = self.subject.clients if scope == "request" else 1
        if clients == 1:
            samples = tuple(spend(slow * self._call_ms(scope)) for _ in range(calls))
        else:
            speed = slow * self.subject.machine.slowness()
            latencies, took_ms = queue(
                clients, calls, lambda: speed * self._call_ms("model"), speed * self.subject.request_extra_ms
            )
            samples = tuple(latencies)
            self.subject.machine.now += took_ms / 1000
        after = spend(slow * REFERENCE_MS)
        return Block(
            launch=self.number,
            scope=scope,
            samples_ms=samples,
            speed_before_ms=before,
            speed_after_ms=after,
            clients=clients,
        )

    def close(self) -> None:
        self.subject.open_sessions -= 1

    def _call_ms(self, scope: Stage) -> float:
        s = self.subject
        self.z = s.rho * self.z + math.sqrt(1 - s.rho**2) * self.rng.standard_normal()
        leave = 0.1 if self.slow else 0.1 * s.episodes / (1 - s.episodes)
        self.slow ^= bool(self.rng.random() < leave)
        median_ms, offset = s.stages_ms.get(scope, s.median_ms), self.offsets.get(scope, self.offset)
        ms = median_ms * math.exp(s.sigma * self.z + offset) * (1.5 if self.slow else 1.0)
        ms *= s.outlier_times if self.rng.random() < s.outliers else 1.0
        return ms + (s.request_extra_ms if scope == "request" else 0.0)


def queue(
    clients: int, calls: int, run_ms: Callable[[], float], prepare_ms: float
) -> tuple[list[float], float]:
    """(latencies of the timed requests in order of completion, duration) in ms of a closed loop of clients.

    One engine, first come, first served. Each client sends one untimed request, its share of the timed ones,
    and untimed ones until all others have made theirs, as `measure/clients.py` does.
    """
    left = {client: calls // clients + (client < calls % clients) for client in range(clients)}
    first = dict.fromkeys(range(clients), True)
    ready = [(prepare_ms, client, 0.0) for client in range(clients)]  # (when prepared, who, when sent)
    free_ms, latencies = 0.0, []
    while any(left.values()):
        prepared, client, sent = heapq.heappop(ready)
        free_ms = max(free_ms, prepared) + run_ms()
        if first[client]:
            first[client] = False
        elif left[client]:
            left[client] -= 1
            latencies.append(free_ms - sent)
        heapq.heappush(ready, (free_ms + prepare_ms, client, free_ms))
    return latencies, free_ms


def true_percentile(q: float, scope: Stage = "request", calls: int = 100_000, **subject) -> float:
    """The percentile over all launches, by brute force: one stationary call each of many launches."""
    many = SimulatedSubject(Machine(seed=99), **subject)
    if many.clients > 1 and scope == "request":  # neighbouring calls depend: a few of each launch
        blocks = [many.launch(0).block(scope, 20 * many.clients) for _ in range(calls // (20 * many.clients))]
        samples = [ms for block in blocks for ms in block.samples_ms]
    else:
        samples = [many.launch(0)._call_ms(scope) for _ in range(calls)]
    return float(np.percentile(samples, q, method="inverted_cdf"))

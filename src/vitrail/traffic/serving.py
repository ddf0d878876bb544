"""`vitrail verify --serving`: does the served artifact hold its latency while clients ask?

Blocks of requests over several fresh starts of the server, by the schedule and the test that measure a model
(measure/latency.py). A request that was refused or failed counts as one that took too long.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from vitrail.artifact import Artifact
from vitrail.errors import InputError
from vitrail.judge.answers import number, undecided_because
from vitrail.measure import latency, quiet
from vitrail.measure.clients import closed_loop
from vitrail.measure.speed import SpeedReference, steal_s
from vitrail.stats import LAUNCHES_TO_PASS
from vitrail.traffic.http import PATHS, Answer, Body, Connections, body_of
from vitrail.traffic.open_loop import most_under_way, open_loop, poisson
from vitrail.traffic.process import Server
from vitrail.verify import Check, again, without_noise
from vitrail.vocabulary import Block, LatencyFigures, Requirements, Stage, Workload
from vitrail.words import counted

__all__ = ["NAME", "Load", "Served", "serving"]

NAME = "serving latency"
"""Of the check."""
MOST_S = 180.0
"""Of requests in all, starts not counted."""
GIVEN_UP_S = 15.0
"""After so long nobody waits for an answer any more; the server gives up after ten."""
BLOCK_S = 2.0
"""An open loop's block is at most about so long, if that is enough for a first one's calls."""
HEAD_S = 0.5
"""An open loop finds an empty server: what is due so early is not timed."""
CALLS = 100
"""Of each client of a closed loop, over the starts that a pass needs."""
OPEN_CALLS, OPEN_SHARE = 1000, 0.6
"""Of an open loop, over the same: enough for a pass while a dozen wait for one another, in this part of
`MOST_S` at most."""
SERVER_IMAGES, SERVER_QUEUE = 16, 64
"""What a request and the queue may hold, unless the server is told otherwise."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """How much is asked."""

    clients: int
    """Connections: in a closed loop all ask at once, in an open one at most so many do."""
    rate: float | None = None
    """Requests per second, at times drawn beforehand; None: a closed loop."""


@dataclass(frozen=True, kw_only=True)
class Served:
    """What clients saw; latencies in ms, null where the request of that rank was not answered."""

    clients: int
    rate: float | None
    """Requests per second that were due; None: each client asked when its last request was answered."""
    images_per_request: int
    requests: int
    answered: int
    refused: int
    failed: int
    per_s: float
    """Answered requests per second."""
    p50: float | None
    p95: float | None
    p99: float | None
    starts: int
    flags: tuple[str, ...]


@dataclass
class _Tally:
    """What the launches saw besides their blocks."""

    outcomes: dict[str, int] = field(default_factory=lambda: {"answered": 0, "refused": 0, "failed": 0})
    passed: float = 0.0
    seconds: float = 0.0
    """Of timed requests: how many were answered in how many seconds."""
    said: str = ""
    """By the first request that was not answered."""
    noise: tuple[str, ...] = ()

    def count(self, answers: Sequence[Answer | None]) -> None:
        """Add a block's; None is a request that was not sent any more."""
        for answer in answers:
            self.outcomes["failed" if answer is None else answer.outcome] += 1
            if not self.said and (answer is None or answer.said):
                self.said = f"was not sent within {GIVEN_UP_S:g} s" if answer is None else answer.said


def serving(
    artifact: Artifact,
    requirements: Requirements,
    workload: Workload,
    load: Load,
    *,
    threads: int | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> tuple[Check, Served]:
    """Start the artifact's server again and again, ask it, and judge what requests took.

    A request is `workload.batch_size` of the artifact's photos. The limit is `requirements.max_latency_ms`
    where that is about whole requests, at the workload's percentile.

    Args:
        threads: of the engine; None: as `vitrail serve` chooses.
        tell: called with a line when something begins that takes seconds.

    Raises:
        InputError: the server does not become ready or ends, or cannot use the artifact's photos.
    """
    if artifact.task.name not in PATHS:
        raise InputError(
            f"{artifact.path} answers prompts about photos that it keeps, so that the same photos under load "
            "would measure neither: leave --serving out, and give --measure."
        )
    limit = requirements.max_latency_ms if workload.latency_scope == "request" else None
    subject = _Subject(artifact, workload.batch_size, load, limit, threads, tell)
    outcome = latency.finals([subject], _plan(load, workload.percentile, limit), rng=random.Random(0))
    found = outcome[subject.name]
    figures = latency.figures(found.blocks, "request", workload.percentile)
    assert figures is not None, "a start without a block would have failed"
    tally = subject.tally
    flags = (*tally.noise, *found.flags)
    served = _served(load, workload.batch_size, figures, tally, found.blocks, flags)
    check = Check(
        name=NAME,
        answer=found.latency_answer,
        observed=_answered(figures.judged.value),
        limit=limit,
        reason=_reason(served, figures, found, limit, tally.said),
    )
    if requirements.max_stage_latency_ms:
        check = replace(check, reason=f"{check.reason}; limits of stages are judged with --measure")
    return without_noise([check], flags)[0], served


def _plan(load: Load, percentile: float, limit: float | None) -> latency.Plan:
    clients, calls = load.clients, CALLS
    if load.rate is not None:  # a low rate must leave time for all starts
        clients, calls = 1, max(min(OPEN_CALLS, round(load.rate * MOST_S * OPEN_SHARE)), 1)
    return latency.Plan(
        percentile=percentile,
        limit_ms=limit,
        clients=clients,
        both=False,
        final_s=MOST_S,
        launches=LAUNCHES_TO_PASS,
        final_calls=calls,
    )


# --- measuring ------------------------------------------------------------------------------------


class _Subject:
    """The artifact's server, as something to launch."""

    name = "vitrail serve"

    def __init__(
        self,
        artifact: Artifact,
        images: int,
        load: Load,
        limit: float | None,
        threads: int | None,
        tell: Callable[[str], None],
    ) -> None:
        self.artifact, self.load, self.tell = artifact, load, tell
        photos = itertools.cycle(artifact.photos)
        groups = [list(itertools.islice(photos, images)) for _ in range(len(artifact.photos))]
        self.bodies = [body_of(group) for group in groups]
        self.missed_ms = 1e3 * max(GIVEN_UP_S, 2e-3 * (limit or 0.0))
        """What a request that was not answered counts as: more than any limit."""
        self.options = _options(images, threads)
        self.tally = _Tally()

    def launch(self, number: int) -> _Launch:
        """Start a server; its blocks carry `number`."""
        reading = quiet.wait(quiet.READING_S, lambda busy: self.tell(f"waiting for a quiet machine: {busy}"))
        self.tally.noise = tuple(dict.fromkeys((*self.tally.noise, *reading.flags)))
        self.tell(f"start {number} of the server")
        return _Launch(self, number)


def _options(images: int, threads: int | None) -> list[str]:
    options = [] if threads is None else ["--threads", str(threads)]
    if images > SERVER_IMAGES:
        options += ["--max-images", str(images), "--max-queue", str(max(images, SERVER_QUEUE))]
    return options


class _Launch:
    """One start of the server, warmed up."""

    def __init__(self, subject: _Subject, number: int) -> None:
        self._subject, self._number, self._measured = subject, number, 0
        self._speed = SpeedReference()
        self._server = Server(subject.artifact.path, subject.options)
        try:
            path = PATHS[subject.artifact.task.name]
            self._connections = Connections(self._server.port, path, GIVEN_UP_S)
            for body in subject.bodies:
                answer = self._connections.ask(body)
                if answer.outcome != "answered":
                    raise self._server.failure(f"did not take the artifact's own photos ({answer.said})")
            self._server.settle()
        except BaseException:
            self._server.close()
            raise
        self._bodies = itertools.cycle(subject.bodies)

    def block(self, scope: Stage, calls: int) -> Block:
        """Time `calls` requests, bracketed by the reference workload, while the server has nothing to do."""
        self._measured += 1
        steal, before = steal_s(), self._speed.measure_ms()
        rate = self._subject.load.rate
        samples, clients = self._closed(calls) if rate is None else self._open(calls, rate)
        after = self._speed.measure_ms()
        if not self._server.alive:
            raise self._server.failure("ended while it was asked")
        return Block(
            launch=self._number,
            scope=scope,
            samples_ms=samples,
            speed_before_ms=before,
            speed_after_ms=after,
            steal_s=max(steal_s() - steal, 0.0),
            clients=clients,
        )

    def close(self) -> None:
        """End the server."""
        self._server.close()

    def _closed(self, calls: int) -> tuple[tuple[float, ...], int]:
        clients = self._subject.load.clients
        timed = closed_loop(clients, calls, self._draw, self._connections.ask_patiently)
        tally = self._subject.tally
        tally.count([answer for _, answer in timed])
        tally.passed += sum(answer.outcome == "answered" for _, answer in timed)
        tally.seconds += sum(seconds for seconds, _ in timed) / clients  # they overlap
        return tuple(self._sample_ms(answer, answer.seconds) for _, answer in timed), clients

    def _open(self, calls: int, rate: float) -> tuple[tuple[float, ...], int]:
        """What waited for one another at most is what one delay can have touched: that many count as one."""
        sent = open_loop(
            self._subject.load.clients,
            math.ceil(rate * HEAD_S),
            min(calls, max(round(rate * BLOCK_S), latency.FIRST_CALLS)),
            poisson(rate, seed=1000 * self._number + self._measured),
            self._draw,
            self._connections.ask,
            given_up_s=GIVEN_UP_S,
        )
        tally = self._subject.tally
        tally.count([each.answer for each in sent])
        done = sorted(each.done for each in sent if each.answer and each.answer.outcome == "answered")
        if len(done) > 1:  # from one answer to the next, however late all of them are
            tally.passed += len(done) - 1
            tally.seconds += done[-1] - done[0]
        return tuple(self._sample_ms(each.answer, each.latency_s) for each in sent), most_under_way(sent)

    def _draw(self) -> Body:
        return next(self._bodies)

    def _sample_ms(self, answer: Answer | None, seconds: float) -> float:
        if answer is None or answer.outcome != "answered":
            return max(1e3 * seconds, self._subject.missed_ms)
        return 1e3 * seconds


# --- what came out --------------------------------------------------------------------------------


def _served(
    load: Load,
    images: int,
    figures: LatencyFigures,
    tally: _Tally,
    blocks: Sequence[Block],
    flags: tuple[str, ...],
) -> Served:
    return Served(
        clients=load.clients,
        rate=load.rate,
        images_per_request=images,
        requests=sum(tally.outcomes.values()),
        **tally.outcomes,
        per_s=tally.passed / tally.seconds if tally.seconds else 0.0,
        p50=_answered(figures.p50),
        p95=_answered(figures.p95),
        p99=_answered(figures.p99),
        starts=len({block.launch for block in blocks}),
        flags=flags,
    )


def _answered(value_ms: float) -> float | None:
    """A figure; None where it is that of a request that was not answered."""
    return None if value_ms >= 1e3 * GIVEN_UP_S else value_ms


def _reason(
    served: Served, figures: LatencyFigures, found: latency.Outcome, limit: float | None, said: str
) -> str:
    judged = figures.judged
    edges = [edge for edge in judged.interval or () if _answered(edge) is not None]
    shown = f" [{number(edges[0])}, {number(edges[1])}]" if len(edges) == 2 else ""
    starts = counted(served.starts, "start")
    value = "not answered" if _answered(judged.value) is None else f"{number(judged.value)}{shown} ms"
    text = f"p{judged.percentile:g} {value}, of {counted(served.requests, 'request')} in {starts}"
    if limit is None:
        return f"{text}: there is no limit on requests, give one with --against"
    text += f", limit {number(limit)}"
    if served.refused or served.failed:
        text += f"; {served.refused} refused, {served.failed} failed ({said})"
    if found.latency_answer != "undecided":
        return text
    because = undecided_because(found.blocks, figures, limit, judged.percentile)
    return again(f"{text}: {because}")

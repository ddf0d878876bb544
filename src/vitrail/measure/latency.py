"""The measuring schedule: which launch measures how many calls of which scope, and when that is enough.

Written against two protocols, so that it can drive child processes or a simulated machine; time
comes from an injected clock. Stages: `screen` (one launch), `finals` (at least three fresh launches,
blocks interleaved with the rivals'), `confirm` (the winner in one more). See docs/measurement.md.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol, get_args

from vitrail import stats
from vitrail.measure.quiet import NOISY_SWITCHES_PER_S
from vitrail.measure.sandbox import ChildFailure
from vitrail.vocabulary import Answer, Block, JudgedLatency, LatencyFigures, Scope, Stage

Clock = Callable[[], float]
Stop = Literal["decided", "precise", "cap", "deadline", "failed"]

FIRST_CALLS = 3
"""Each client's calls in a launch's first block, which determines the length of the next ones."""
MAX_CALLS = 64
"""Each client's calls in a block, at most."""
UNTIMED_CALLS = 2
"""About what each of several clients calls untimed in a block, before and after its timed calls."""
DRIFT = 0.05
"""Relative change of the speed reference above which a block is measured once more."""
NOISY_SHARE = 0.25
"""Share of interrupted blocks above which the figures are flagged as noisy."""
OTHER_SCOPE_EVERY = 3
"""Judged blocks for each block of the other scope."""
CONTENDER_ALPHA = 0.4
PRECISE_HALF_WIDTH = 0.025
PRECISE_CALLS = 24
PRECISE_BLOCKS = stats.ROUNDS_TO_COMPARE


class Session(Protocol):
    """One fresh launch of one export, loaded and warmed up."""

    def block(self, scope: Stage, calls: int) -> Block:
        """Measure `calls` calls of all clients, bracketed by the reference workload. Raises ChildFailure."""
        ...

    def close(self) -> None:
        """End the launch."""
        ...


class Subject(Protocol):
    """One export that can be launched again and again."""

    @property
    def name(self) -> str:
        """`Variant.name`: unique among the rivals."""
        ...

    def launch(self, number: int) -> Session:
        """Start a fresh process; its blocks carry `number`. Raises ChildFailure."""
        ...


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the calls must show, and how much time that may take."""

    scope: Stage = "request"
    percentile: float = 95.0
    limit_ms: float | None = None
    min_throughput: float | None = None
    """images/s"""
    batch_size: int = 1
    clients: int = 1
    """Clients at once in scope `request`; the model alone is called by one."""
    both: bool = True
    """Whether the scope that is not judged is measured and shown too."""
    rank: bool = False
    """Whether the objective is latency or throughput, so that contenders need precise figures."""
    block_s: float = 0.3
    screen_s: float = 6.0
    """Cap of one variant's calls in `screen`."""
    final_s: float = 60.0
    """Cap of one variant's calls in `finals`."""
    launches: int = stats.LAUNCHES_TO_PASS
    max_launches: int = 6
    rounds: int = 4
    """Minimum rounds of interleaved blocks in each launch."""
    final_calls: int = 100
    """Minimum judged calls of each client in `finals`, spread over `launches`."""

    @property
    def other(self) -> Stage:
        """The scope that is measured and shown in addition to the judged one."""
        return "model" if self.scope == "request" else "request"

    def clients_in(self, scope: Stage) -> int:
        """How many clients call at once in a scope."""
        return self.clients if scope == "request" else 1

    def latency(self, blocks: Sequence[Block]) -> Answer:
        """The limit test's answer; `not assessed` without a limit."""
        if self.limit_ms is None:
            return "not assessed"
        test = stats.LimitTest(percentile=self.percentile, launches=self.launches)
        state = test.evaluate(self.judged(blocks), self.limit_ms)
        return "undecided" if state is None else state.answer

    def throughput(self, blocks: Sequence[Block]) -> Answer:
        """The answer on the mean latency; `not assessed` without a required throughput."""
        if self.min_throughput is None:
            return "not assessed"
        return stats.throughput_answer(self.judged(blocks), self.batch_size, self.min_throughput)

    def answer(self, blocks: Sequence[Block]) -> Answer:
        """Both answers combined: one fail fails, a pass needs both; `not assessed` without a limit."""
        answers = (self.latency(blocks), self.throughput(blocks))
        order: tuple[Answer, ...] = ("fail", "undecided", "pass")
        return next((answer for answer in order if answer in answers), "not assessed")

    def judged(self, blocks: Sequence[Block]) -> list[Block]:
        """The blocks of the judged scope."""
        return [block for block in blocks if block.scope == self.scope]

    def contends(self, blocks: Sequence[Block]) -> bool:
        """Whether one launch makes a pass likely: the limit test at a weak alpha."""
        if self.limit_ms is None:
            return True
        test = stats.LimitTest(percentile=self.percentile, alpha=CONTENDER_ALPHA, launches=1)
        state = test.evaluate(self.judged(blocks), self.limit_ms)
        return state is not None and state.answer == "pass"

    def precise(self, blocks: Sequence[Block]) -> bool:
        """Whether the median is known to 2.5 % (95 %, blocks as units) from at least 24 calls."""
        judged = self.judged(blocks)
        if len(judged) < PRECISE_BLOCKS or sum(len(b.samples_ms) for b in judged) < PRECISE_CALLS:
            return False
        logs = [math.log(stats.percentile(block.samples_ms, 50)) for block in judged]
        half = stats.t_quantile(0.975, len(logs) - 1) * statistics.stdev(logs) / math.sqrt(len(logs))
        return half <= PRECISE_HALF_WIDTH


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one stage gathered about one subject; blocks of earlier stages are included."""

    name: str
    blocks: tuple[Block, ...]
    answer: Answer
    """Against the latency limit and the required throughput; `not assessed` without either."""
    latency_answer: Answer
    contender: bool
    """Not failed, and worth the finals."""
    stopped: Stop
    flags: tuple[str, ...] = ()
    failure: str | None = None


def figures(blocks: Sequence[Block], scope: Stage, percentile: float) -> LatencyFigures | None:
    """Percentiles in ms of all calls of one stage, the judged one with the limit test's interval."""
    blocks = [block for block in blocks if block.scope == scope and block.samples_ms]
    state = stats.LimitTest(percentile=percentile).evaluate(blocks)
    if state is None:
        return None
    calls = [sample for block in blocks for sample in block.samples_ms]
    return LatencyFigures(
        p50=stats.percentile(calls, 50),
        p95=stats.percentile(calls, 95),
        p99=stats.percentile(calls, 99),
        judged=JudgedLatency(percentile=percentile, value=state.value, interval=state.interval),
        calls=len(calls),
    )


def by_stage(blocks: Sequence[Block], percentile: float) -> dict[Stage, LatencyFigures]:
    """`figures` of each stage that was timed, those that can be limited first."""
    stages = dict.fromkeys((*get_args(Scope), *(block.scope for block in blocks)))
    found = {stage: figures(blocks, stage, percentile) for stage in stages}
    return {stage: seen for stage, seen in found.items() if seen is not None}


# --- stages ---------------------------------------------------------------------------------------


def screen(
    subject: Subject,
    plan: Plan,
    *,
    clock: Clock = time.monotonic,
    deadline: float = math.inf,
    number: int = 1,
) -> Outcome:
    """One launch: measure until the subject fails, is a contender, or runs out of time."""
    track = _Track(subject, plan, clock, deadline, cap_s=plan.screen_s)
    if not track.launch(number):
        return track.outcome()
    try:
        while track.measure(plan.scope):
            answer = plan.answer(track.blocks)
            if answer == "fail":
                track.stopped = "decided"
                break
            needs_precision = plan.rank or plan.limit_ms is None or plan.min_throughput is not None
            if plan.contends(track.blocks) and (not needs_precision or plan.precise(track.blocks)):
                track.stopped = "precise"
                break
            if plan.both and len(plan.judged(track.blocks)) % OTHER_SCOPE_EVERY == 2:
                track.measure(plan.other)
        track.complete_other_scope()
    finally:
        track.close()
    return track.outcome()


def finals(
    subjects: Sequence[Subject],
    plan: Plan,
    *,
    rng: random.Random,
    clock: Clock = time.monotonic,
    deadline: float = math.inf,
    prior: Mapping[str, Sequence[Block]] | None = None,
) -> dict[str, Outcome]:
    """Fresh launches of all rivals at once, their blocks interleaved in random order, until decided.

    All rivals' processes are alive at the same time, so choose few. `prior`: the blocks of
    `screen` by name; they remain part of the evidence. Returns outcomes by name, in the order given.
    """
    prior = prior or {}
    tracks = [_Track(s, plan, clock, deadline, plan.final_s, prior.get(s.name, ())) for s in subjects]
    for launch in range(plan.max_launches):
        active = [t for t in tracks if t.live and (launch < plan.launches or t.answer() == "undecided")]
        if not active:
            break
        rng.shuffle(active)
        try:
            # What three launches leave undecided needs more calls as well as more launches.
            growth = 2 ** max(0, launch + 1 - plan.launches)
            launched = [t for t in active if t.launch(t.next_number())]
            _interleave(launched, plan, rng, growth)
            for track in launched:  # a limit may be failed before the other scope has had its turn
                track.complete_other_scope()
        finally:
            for track in active:
                track.close()
    for track in tracks:
        track.stopped = track.stopped or ("cap" if track.answer() == "undecided" else "decided")
    return {track.subject.name: track.outcome() for track in tracks}


def _interleave(active: list[_Track], plan: Plan, rng: random.Random, growth: int = 1) -> None:
    """One launch's rounds: each round measures one judged block of every remaining rival, in random order."""
    quota = growth * math.ceil(plan.final_calls / plan.launches)
    rounds = 0
    while active:
        rng.shuffle(active)
        active = [track for track in active if track.measure(plan.scope) and track.still_in()]
        rounds += 1
        if plan.both and rounds % OTHER_SCOPE_EVERY == 0:
            for track in active:
                track.measure(plan.other)
        if rounds >= plan.rounds:
            active = [track for track in active if track.calls_of_launch() < quota]


def confirm(
    subject: Subject,
    plan: Plan,
    blocks: Sequence[Block],
    *,
    clock: Clock = time.monotonic,
    deadline: float = math.inf,
) -> Outcome:
    """The winner in one more fresh launch; passes only if all calls and this launch's own value do."""
    track = _Track(subject, plan, clock, deadline, plan.final_s, blocks)
    number = track.next_number()
    if track.launch(number):
        try:
            _interleave([track], plan, random.Random(0))
            track.complete_other_scope()
        finally:
            track.close()
    outcome = track.outcome()
    fresh = [sample for b in plan.judged(outcome.blocks) if b.launch == number for sample in b.samples_ms]
    if plan.limit_ms is None or outcome.latency_answer != "pass":
        return outcome
    if fresh and stats.percentile(fresh, plan.percentile) <= plan.limit_ms:
        return outcome
    flag = f"launch {number} did not confirm the pass"
    return replace(outcome, answer="undecided", latency_answer="undecided", flags=(*outcome.flags, flag))


# --- one subject within a stage -------------------------------------------------------------------


@dataclass
class _Track:
    """Mutable state of one subject while a stage runs."""

    subject: Subject
    plan: Plan
    clock: Clock
    deadline: float
    cap_s: float
    prior: Sequence[Block] = ()
    blocks: list[Block] = field(default_factory=list)
    session: Session | None = None
    references: list[float] = field(default_factory=list)
    """Durations of the speed reference in this launch, ms."""
    call_ms: dict[Stage, float] = field(default_factory=dict)
    number: int = 0
    launch_s: float = 0.0
    spent_s: float = 0.0
    repeated: int = 0
    drifted: int = 0
    worst_drift: float = 0.0
    stopped: Stop | None = None
    failure: str | None = None

    def __post_init__(self) -> None:
        self.blocks = list(self.prior)

    @property
    def live(self) -> bool:
        """Whether another launch makes sense."""
        return self.stopped is None

    def answer(self) -> Answer:
        return self.plan.answer(self.blocks)

    def next_number(self) -> int:
        return max((block.launch for block in self.blocks), default=0) + 1

    def launch(self, number: int) -> bool:
        """Start a launch; False (and stopped) when there is no time left or it fails."""
        begin = self.clock()
        if begin + self.launch_s >= self.deadline:
            self.stopped = "deadline"
            return False
        try:
            self.session = self.subject.launch(number)
        except ChildFailure as error:
            self._fail(error)
            return False
        self.launch_s = self.clock() - begin
        self.references = []
        self.number = number
        return True

    def close(self) -> None:
        if self.session is not None:
            self.session.close()
            self.session = None

    def measure(self, scope: Stage) -> bool:
        """One block, repeated if the machine's speed changed; False (and stopped) when that is impossible."""
        calls = self._calls(scope)
        if not self._room(self._expected_s(scope, calls)):
            return False
        try:
            drift, noisy = self._block(scope, calls)
            if drift > DRIFT or noisy:
                self.repeated += 1
                drift, noisy = self._block(scope, calls)
                self.worst_drift = max(self.worst_drift, drift)
                self.drifted += drift > DRIFT
        except ChildFailure as error:
            self._fail(error)
            return False
        return True

    def _block(self, scope: Stage, calls: int) -> tuple[float, bool]:
        """Measure and keep one block; how far the speed reference moved, and whether it was disturbed."""
        assert self.session is not None
        begin = self.clock()
        block = self.session.block(scope, calls)
        self.spent_s += self.clock() - begin
        self.blocks.append(block)
        self.call_ms[scope] = stats.percentile(block.samples_ms, 50)
        bracket = (block.speed_before_ms, block.speed_after_ms)
        self.references += bracket
        usual = statistics.median(self.references)
        return max(abs(speed / usual - 1) for speed in bracket), _disturbed(block)

    def _calls(self, scope: Stage) -> int:
        each = FIRST_CALLS
        if scope in self.call_ms:
            each = min(max(round(self.plan.block_s * 1000 / self.call_ms[scope]), FIRST_CALLS), MAX_CALLS)
        return each * self.plan.clients_in(scope)

    def _expected_s(self, scope: Stage, calls: int) -> float:
        """About how long a block takes, going by the last one; 0 for the first."""
        clients = self.plan.clients_in(scope)
        each = calls / clients + (UNTIMED_CALLS if clients > 1 else 0)
        return each * self.call_ms.get(scope, 0.0) / 1000

    def _room(self, expected_s: float) -> bool:
        if self.clock() + expected_s >= self.deadline:
            self.stopped = "deadline"
        elif self.spent_s + expected_s > self.cap_s:
            self.stopped = "cap"
        return self.stopped is None

    def _fail(self, error: ChildFailure) -> None:
        self.stopped, self.failure = "failed", str(error)
        self.close()

    def still_in(self) -> bool:
        """False (and stopped) once the subject has failed a limit."""
        if self.answer() == "fail":
            self.stopped = "decided"
        return self.stopped is None

    def calls_of_launch(self) -> int:
        """Judged calls of each client in the current launch."""
        calls = sum(len(b.samples_ms) for b in self.plan.judged(self.blocks) if b.launch == self.number)
        return calls // self.plan.clients_in(self.plan.scope)

    def complete_other_scope(self) -> None:
        """Where both scopes are shown, make sure that the other one has at least 10 calls."""
        while self.plan.both and self.failure is None and self.session is not None:
            calls = sum(len(b.samples_ms) for b in self.blocks if b.scope == self.plan.other)
            if calls >= 10 or self.clock() >= self.deadline:
                return
            try:
                self._block(self.plan.other, self._calls(self.plan.other))
            except ChildFailure as error:
                self._fail(error)

    def outcome(self) -> Outcome:
        answer = self.answer()
        return Outcome(
            name=self.subject.name,
            blocks=tuple(self.blocks),
            answer=answer,
            latency_answer=self.plan.latency(self.blocks),
            contender=self.failure is None and answer != "fail" and bool(self.plan.judged(self.blocks)),
            stopped=self.stopped or "decided",
            flags=self._flags(),
            failure=self.failure,
        )

    def _flags(self) -> tuple[str, ...]:
        flags = []
        if self.drifted:
            flags.append(
                f"drift: the machine's speed moved by up to {self.worst_drift:.0%} around {self.drifted} "
                f"of {len(self.blocks) - len(self.prior)} blocks, also when measured again"
            )
        steal = sum(block.steal_s for block in self.blocks)
        total = sum(map(_seconds, self.blocks))
        if total and steal > 0.01 * total:
            flags.append(f"steal: other guests took {steal:.2f} s during {total:.1f} s of calls")
        noisy = [block for block in self.blocks if _interrupted(block)]
        if len(noisy) > NOISY_SHARE * len(self.blocks):
            switches = sum(block.involuntary_switches for block in self.blocks)
            flags.append(
                f"noise: other processes interrupted {len(noisy)} of {len(self.blocks)} blocks "
                f"({switches} switches in {total:.1f} s of calls)"
            )
        return (*flags, *self._card_flags())

    def _card_flags(self) -> tuple[str, ...]:
        """What a GPU's driver said, of more blocks than one that was measured again would explain."""
        flags = []
        held = [block for block in self.blocks if block.held_back]
        if len(held) > NOISY_SHARE * len(self.blocks):
            by = " and ".join(sorted({word for block in held for word in block.held_back}))
            flags.append(
                f"throttled: {by} held the GPU's clocks back in {len(held)} of {len(self.blocks)} blocks"
            )
        shared = [block for block in self.blocks if block.others]
        if len(shared) > NOISY_SHARE * len(self.blocks):
            flags.append(
                f"noise: other processes computed on the GPU in {len(shared)} of {len(self.blocks)} blocks"
            )
        return tuple(flags)


def _seconds(block: Block) -> float:
    """How long the timed calls took; those of several clients overlap."""
    return sum(block.samples_ms) / 1000 / block.clients


def _disturbed(block: Block) -> bool:
    """Whether a block is measured once more, because others had the processors or a GPU was held back."""
    return _interrupted(block) or bool(block.held_back or block.others)


def _interrupted(block: Block) -> bool:
    """Whether other processes used the processors so often that the calls were not timed alone.

    The threads of several clients interrupt one another, so that of them the switches say nothing.
    """
    if block.clients > 1:
        return False
    return block.involuntary_switches > NOISY_SWITCHES_PER_S * max(_seconds(block), 0.1)

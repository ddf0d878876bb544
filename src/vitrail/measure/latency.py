"""The measuring schedule: which launch measures how many calls of which scope, and when that is enough.

Written against two protocols, so that it can drive child processes or a simulated machine; time
comes from an injected clock. Stages: `screen` (one launch), `finals` (at least three fresh launches,
blocks interleaved with the rivals'), `confirm` (the winner in one more). Several scopes may have a
limit: each is tested by itself, and a pass needs all of them. See docs/measurement.md.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
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
"""Judged blocks for each block of another scope."""
OTHER_CALLS = 10
"""What a scope that is shown and not judged gets at least."""
OTHER_S = 2.0
"""Of a model with stages, whose scopes overlap: after so many seconds of one of them fewer will do."""
NOT_CONFIRMED = "did not confirm the pass"
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

    scope: Scope = "request"
    percentile: float = 95.0
    limit_ms: float | None = None
    """Of `scope`."""
    stages: tuple[Stage, ...] = ()
    """What else is timed by itself (`Task.stages`): shown, and judged where it has a limit."""
    stage_limits_ms: tuple[tuple[Stage, float], ...] = ()
    """(stage, limit)."""
    min_throughput: float | None = None
    """images/s"""
    batch_size: int = 1
    clients: int = 1
    """Clients at once in scope `request`; the model alone is called by one."""
    both: bool = True
    """Whether the scopes that are not judged are measured and shown too."""
    rank: bool = False
    """Whether the objective is latency or throughput, so that contenders need precise figures."""
    compared: bool = False
    """Whether calls of `scope` are compared with others', so that they are taken whatever has a limit."""
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
    def limits(self) -> dict[Stage, float]:
        """Limits in ms by the scope that they are about."""
        whole: dict[Stage, float] = {} if self.limit_ms is None else {self.scope: self.limit_ms}
        return {**whole, **dict(self.stage_limits_ms)}

    @property
    def scopes(self) -> tuple[Stage, ...]:
        """What is judged: the scopes with a limit, and `scope` where its calls say something else too."""
        return tuple(
            dict.fromkeys((*((self.scope,) if self._needs_precision or self.compared else ()), *self.limits))
        )

    @property
    def _needs_precision(self) -> bool:
        """Whether the calls of `scope` say more than whether it holds its limit."""
        return self.rank or self.min_throughput is not None or not self.limits

    @property
    def others(self) -> tuple[Stage, ...]:
        """The scopes that are measured and shown in addition to the judged ones."""
        every = (*get_args(Scope), *self.stages)
        return tuple(scope for scope in every if self.both and scope not in self.scopes)

    def clients_in(self, scope: Stage) -> int:
        """How many clients call at once in a scope."""
        return self.clients if scope == "request" else 1

    def of_limit(self, blocks: Sequence[Block], scope: Stage) -> Answer:
        """The limit test's answer in one scope; `not assessed` without a limit."""
        if scope not in self.limits:
            return "not assessed"
        test = stats.LimitTest(
            percentile=self.percentile, launches=self.launches, limits=1 + len(self.stages)
        )
        state = test.evaluate(self.in_scope(blocks, scope), self.limits[scope])
        return "undecided" if state is None else state.answer

    def latency(self, blocks: Sequence[Block]) -> Answer:
        """The answer on the limit of `scope`; `not assessed` without one."""
        return self.of_limit(blocks, self.scope)

    def throughput(self, blocks: Sequence[Block]) -> Answer:
        """The answer on the mean latency; `not assessed` without a required throughput."""
        if self.min_throughput is None:
            return "not assessed"
        return stats.throughput_answer(self.judged(blocks), self.batch_size, self.min_throughput)

    def answer(self, blocks: Sequence[Block]) -> Answer:
        """All answers combined: one fail fails, a pass needs all; `not assessed` without a limit."""
        answers = [self.throughput(blocks), *(self.of_limit(blocks, scope) for scope in self.limits)]
        return combined(answers)

    def in_scope(self, blocks: Sequence[Block], scope: Stage) -> list[Block]:
        """The blocks of one scope."""
        return [block for block in blocks if block.scope == scope]

    def judged(self, blocks: Sequence[Block]) -> list[Block]:
        """The blocks of `scope`."""
        return self.in_scope(blocks, self.scope)

    def open_scopes(self, blocks: Sequence[Block]) -> tuple[Stage, ...]:
        """The judged scopes whose calls have not decided yet; without a limit and a throughput, all."""
        undecided = [
            scope
            for scope in self.scopes
            if self.of_limit(blocks, scope) == "undecided"
            or (scope == self.scope and self.throughput(blocks) == "undecided")
        ]
        return tuple(undecided)

    def short(self, blocks: Sequence[Block]) -> tuple[Stage, ...]:
        """The judged scopes that lack what makes a contender: a pass that one launch makes likely, and where
        calls of `scope` say something else too, precise ones."""
        imprecise = self._needs_precision and not self.precise(blocks)
        return tuple(
            scope
            for scope in self.scopes
            if not self._likely(blocks, scope) or (scope == self.scope and imprecise)
        )

    def _likely(self, blocks: Sequence[Block], scope: Stage) -> bool:
        """Whether one launch makes a pass in a scope likely: the limit test at a weak alpha."""
        if scope not in self.limits:
            return True
        test = stats.LimitTest(percentile=self.percentile, alpha=CONTENDER_ALPHA, launches=1)
        state = test.evaluate(self.in_scope(blocks, scope), self.limits[scope])
        return state is not None and state.answer == "pass"

    def precise(self, blocks: Sequence[Block]) -> bool:
        """Whether the median is known to 2.5 % (95 %, blocks as units) from at least 24 calls."""
        judged = self.judged(blocks)
        if len(judged) < PRECISE_BLOCKS or sum(len(b.samples_ms) for b in judged) < PRECISE_CALLS:
            return False
        logs = [math.log(stats.percentile(block.samples_ms, 50)) for block in judged]
        half = stats.t_quantile(0.975, len(logs) - 1) * statistics.stdev(logs) / math.sqrt(len(logs))
        return half <= PRECISE_HALF_WIDTH


def combined(answers: Iterable[Answer]) -> Answer:
    """One fail fails, a pass needs all; `not assessed` where nothing was asked."""
    given = set(answers)
    order: tuple[Answer, ...] = ("fail", "undecided", "pass")
    return next((answer for answer in order if answer in given), "not assessed")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one stage gathered about one subject; blocks of earlier stages are included."""

    name: str
    blocks: tuple[Block, ...]
    answer: Answer
    """Against all limits of the latency and the required throughput; `not assessed` without any."""
    latency_answer: Answer
    """On the limit of `Plan.scope`."""
    stage_answers: Mapping[Stage, Answer] = field(default_factory=dict)
    """On those of stages."""
    contender: bool
    """Not failed, and worth the finals."""
    stopped: Stop
    flags: tuple[str, ...] = ()
    failure: str | None = None


def figures(
    blocks: Sequence[Block], scope: Stage, percentile: float, stages: Sequence[Stage] = ()
) -> LatencyFigures | None:
    """Percentiles in ms of all calls of one stage, the judged one with the limit test's interval.

    `stages`: those that may have limits at the same time (`Task.stages`).
    """
    blocks = [block for block in blocks if block.scope == scope and block.samples_ms]
    state = stats.LimitTest(percentile=percentile, limits=1 + len(stages)).evaluate(blocks)
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


def by_stage(
    blocks: Sequence[Block], percentile: float, stages: Sequence[Stage] = ()
) -> dict[Stage, LatencyFigures]:
    """`figures` of each stage that was timed, whole requests and the model first."""
    timed = dict.fromkeys((*get_args(Scope), *stages, *(block.scope for block in blocks)))
    found = {stage: figures(blocks, stage, percentile, stages) for stage in timed}
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
    """One launch: measure until the subject fails, is a contender, or runs out of time.

    Judged scopes take turns until each has what a contender needs.
    """
    track = _Track(subject, plan, clock, deadline, cap_s=plan.screen_s * len(plan.scopes))
    if not track.launch(number):
        return track.outcome()
    try:
        wanted = plan.scopes
        while track.measure(min(wanted, key=track.blocks_of)):
            if not track.still_in():
                break
            wanted = plan.short(track.blocks)
            if not wanted:
                track.stopped = "precise"
                break
            judged = sum(map(track.blocks_of, plan.scopes))
            if plan.others and judged % OTHER_SCOPE_EVERY == 2:
                track.measure(plan.others[judged // OTHER_SCOPE_EVERY % len(plan.others)])
        track.complete_others()
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
    cap_s = plan.final_s * len(plan.scopes)
    tracks = [_Track(s, plan, clock, deadline, cap_s, prior.get(s.name, ())) for s in subjects]
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
            for track in launched:  # a limit may be failed before another scope has had its turn
                track.complete_others()
        finally:
            for track in active:
                track.close()
    for track in tracks:
        track.stopped = track.stopped or ("cap" if track.answer() == "undecided" else "decided")
    return {track.subject.name: track.outcome() for track in tracks}


def _interleave(active: list[_Track], plan: Plan, rng: random.Random, growth: int = 1) -> None:
    """One launch's rounds, each of one block of every judged scope of every remaining rival, in random order.

    Once all have had their launches (`growth` above 1), only scopes that are still undecided go on.
    """
    quota = growth * math.ceil(plan.final_calls / plan.launches)
    turns = [
        (track, scope)
        for track in active
        for scope in (plan.open_scopes(track.blocks) if growth > 1 else plan.scopes)
    ]
    rounds = 0
    while turns:
        rng.shuffle(turns)
        turns = [(track, s) for track, s in turns if track.live and track.measure(s) and track.still_in()]
        rounds += 1
        if plan.others and rounds % OTHER_SCOPE_EVERY == 0:
            other = plan.others[rounds // OTHER_SCOPE_EVERY % len(plan.others)]
            for track in dict.fromkeys(track for track, _ in turns if track.live):
                track.measure(other)
        if rounds >= plan.rounds:
            turns = [(track, s) for track, s in turns if track.calls_of_launch(s) < quota]


def confirm(
    subject: Subject,
    plan: Plan,
    blocks: Sequence[Block],
    *,
    clock: Clock = time.monotonic,
    deadline: float = math.inf,
) -> Outcome:
    """The winner in one more fresh launch; passes only if all calls and this launch's own value do."""
    track = _Track(subject, plan, clock, deadline, plan.final_s * len(plan.scopes), blocks)
    number = track.next_number()
    if track.launch(number):
        try:
            _interleave([track], plan, random.Random(0))
            track.complete_others()
        finally:
            track.close()
    outcome = track.outcome()
    return without_confirmation(
        outcome,
        plan,
        [
            f"launch {number} {NOT_CONFIRMED}{'' if scope == plan.scope else f' of {scope}'}"
            for scope, limit in plan.limits.items()
            if plan.of_limit(outcome.blocks, scope) == "pass"
            and not _confirmed(plan.in_scope(outcome.blocks, scope), number, plan.percentile, limit)
        ],
    )


def _confirmed(blocks: Sequence[Block], launch: int, percentile: float, limit_ms: float) -> bool:
    """Whether this launch's own percentile meets the limit."""
    fresh = [sample for block in blocks if block.launch == launch for sample in block.samples_ms]
    return bool(fresh) and stats.percentile(fresh, percentile) <= limit_ms


def without_confirmation(outcome: Outcome, plan: Plan, flags: Sequence[str]) -> Outcome:
    """The outcome, undecided in the scopes whose pass the last launch did not confirm, as `flags` say."""
    answers = {plan.scope: outcome.latency_answer, **outcome.stage_answers}
    named = [flag.partition(NOT_CONFIRMED)[2].removeprefix(" of ") or plan.scope for flag in flags]
    doubted = [scope for scope in named if answers.get(scope) == "pass"]
    if not doubted:
        return outcome
    return replace(
        outcome,
        answer=combined((outcome.answer, "undecided")),
        latency_answer="undecided" if plan.scope in doubted else outcome.latency_answer,
        stage_answers={
            stage: "undecided" if stage in doubted else answer
            for stage, answer in outcome.stage_answers.items()
        },
        flags=(*outcome.flags, *(flag for flag in flags if flag not in outcome.flags)),
    )


def outcome_of(
    name: str,
    plan: Plan,
    blocks: Sequence[Block],
    *,
    stopped: Stop = "decided",
    flags: tuple[str, ...] = (),
    failure: str | None = None,
) -> Outcome:
    """What these blocks amount to under a plan."""
    answer = plan.answer(blocks)
    timed = {block.scope for block in blocks}
    return Outcome(
        name=name,
        blocks=tuple(blocks),
        answer=answer,
        latency_answer=plan.latency(blocks),
        stage_answers={stage: plan.of_limit(blocks, stage) for stage, _ in plan.stage_limits_ms},
        contender=failure is None and answer != "fail" and timed.issuperset(plan.scopes),
        stopped=stopped,
        flags=flags,
        failure=failure,
    )


# --- one subject within a stage -------------------------------------------------------------------


@dataclass(eq=False)
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

    def blocks_of(self, scope: Stage) -> int:
        """How many blocks of a scope there are."""
        return len(self.plan.in_scope(self.blocks, scope))

    def calls_of_launch(self, scope: Stage) -> int:
        """Calls of each client in the current launch."""
        blocks = self.plan.in_scope(self.blocks, scope)
        calls = sum(len(b.samples_ms) for b in blocks if b.launch == self.number)
        return calls // self.plan.clients_in(scope)

    def complete_others(self) -> None:
        """Make sure that each scope that is shown has at least `OTHER_CALLS` calls.

        One of several judged scopes may have had none before another one failed.
        """
        plan = self.plan
        for scope in (*plan.others, *(plan.scopes if len(plan.scopes) > 1 else ())):
            while self.failure is None and self.session is not None and self.clock() < self.deadline:
                blocks = plan.in_scope(self.blocks, scope)
                calls = sum(len(block.samples_ms) for block in blocks)
                if calls >= OTHER_CALLS or (plan.stages and calls and sum(map(_seconds, blocks)) > OTHER_S):
                    break
                try:
                    self._block(scope, self._calls(scope))
                except ChildFailure as error:
                    self._fail(error)

    def outcome(self) -> Outcome:
        return outcome_of(
            self.subject.name,
            self.plan,
            self.blocks,
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

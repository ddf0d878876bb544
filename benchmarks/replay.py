"""A bench that replays recorded launches under a simulated clock, so that a search costs no real time.

It answers to the same calls as `vitrail.export.bench.Bench`. Every step takes the time it took when it
was recorded: exporting, launching (load and warm-up), each block, parity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vitrail.export.exports import NothingToRewrite
from vitrail.images.photos import PhotoSet
from vitrail.measure.launch import Seen
from vitrail.measure.sandbox import ChildFailure, ChildTimeout
from vitrail.vocabulary import (
    Block,
    Candidate,
    Environment,
    Export,
    Measurement,
    Memory,
    Parity,
    RunnerFacts,
    Variant,
    Workload,
)
from vitrail.weights.find import Located, WeightsUnavailable

BRACKET_S = 0.012
"""What the speed reference on both sides of a block takes."""
CLOSE_S = 0.01


@dataclass
class Clock:
    """Simulated seconds."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True)
class Recording:
    """What recording one variant gave; times in s, samples in ms."""

    export_s: float
    """Of the model's export, which all its variants share."""
    reference_s: float
    """Of the candidate's fp32 reference scores."""
    parity_s: float
    """Of this variant's own outputs and the comparison."""
    launch_s: tuple[float, ...]
    samples: tuple[dict[str, list[float]], ...]
    """Per launch and scope."""
    memory: Memory
    facts: RunnerFacts
    failure: str | None = None
    made_s: float = 0.0
    """Of the variant's own graph, made of that export: by passes, in int8."""
    nothing: str | None = None
    """Why there is no such graph."""


def graph_of(variant: Variant, *, int8: bool | None = None) -> tuple[tuple[str, ...], bool]:
    """What variants of one export share that read the same graph."""
    return variant.passes, variant.precision == "int8" if int8 is None else int8


@dataclass
class ReplaySubject:
    """A recorded variant that can be launched again and again; launches repeat in a circle."""

    variant: Variant
    recording: Recording
    clock: Clock
    offset: int = 0
    load_timeout_s: float = 120.0
    seen: Seen = field(default_factory=Seen)
    rewriting: None = None

    @property
    def name(self) -> str:
        return self.variant.name

    def launch(self, number: int) -> ReplaySession:
        index = (number + self.offset) % len(self.recording.samples)
        self.clock.now += self.recording.launch_s[index]
        self.seen.facts, self.seen.memory = self.recording.facts, self.recording.memory
        self.seen.load_s, self.seen.warm_up_calls = self.recording.launch_s[index], 3
        return ReplaySession(number, self.recording.samples[index], self.clock)


@dataclass
class ReplaySession:
    """One recorded launch; samples come in their recorded order and start over when they are used up."""

    number: int
    samples: dict[str, list[float]]
    clock: Clock
    used: dict[str, int] = field(default_factory=dict)

    def block(self, scope: str, calls: int) -> Block:
        recorded, begin = self.samples[scope], self.used.get(scope, 0)
        taken = [recorded[(begin + i) % len(recorded)] for i in range(calls)]
        self.used[scope] = begin + calls
        self.clock.now += sum(taken) / 1000 + BRACKET_S
        return Block(
            launch=self.number,
            scope=scope,  # type: ignore[arg-type]
            samples_ms=tuple(taken),
            speed_before_ms=1.0,
            speed_after_ms=1.0,
        )

    def scores(self, *_: object) -> None:
        raise AssertionError("parity is replayed, not computed")

    def close(self) -> None:
        self.clock.now += CLOSE_S


class ReplayBench:
    """Weights count as available and parity as passed: the grid is about time, order and choice."""

    def __init__(
        self,
        recordings: dict[str, Recording],
        workload: Workload,
        clock: Clock,
        *,
        missing: Sequence[str] = (),
        offset: int = 0,
    ) -> None:
        self.workload = workload
        self.photos = PhotoSet(name="recorded", paths=("photo",) * 15, digest="recorded", evidence="")
        self.dataset = None
        self.exports: list[str] = []
        """Models exported so far, in order."""
        self._recordings = recordings
        self._clock = clock
        self._missing = set(missing)
        self._offset = offset
        self._compared: set[str] = set()
        self._graphs: set[tuple[str, object]] = set()
        self.records: dict[str, Measurement] = {}

    def weights(self, candidate: Candidate) -> Located | None:
        return None if candidate.name in self._missing else Located(Path("recorded"), candidate.weights)

    def unavailable(self, candidate: Candidate) -> WeightsUnavailable:
        return WeightsUnavailable(f"the weights of {candidate.name} are not at hand", why="not recorded")

    def export(self, variant: Variant, timeout_s: float) -> Export:
        recording, model, graph = self._recordings[variant.name], _model(variant), graph_of(variant)
        needed_s = 0.0 if model in self.exports else recording.export_s
        if (model, graph) not in self._graphs:
            needed_s += recording.made_s
        self._clock.now += min(needed_s, timeout_s)
        if recording.failure is not None:
            raise ChildFailure(recording.failure)
        if needed_s > timeout_s:
            raise ChildTimeout(f"exporting timed out after {timeout_s:.0f} s")
        if model not in self.exports:
            self.exports.append(model)
        if recording.nothing is not None:
            raise NothingToRewrite(recording.nothing)
        self._graphs.add((model, graph))
        return Export(folder="recorded", files=(), graphs=())

    def subject(self, variant: Variant, export: Export) -> ReplaySubject:
        return ReplaySubject(variant, self._recordings[variant.name], self._clock, self._offset)

    def made(self, subject: ReplaySubject) -> None:
        """Recordings do not say."""

    def discard(self, variant: Variant) -> None:
        return

    def exported(self, variant: Variant) -> bool:
        graph = graph_of(variant)
        return _model(variant) in self.exports and (
            not any(graph) or (_model(variant), graph) in self._graphs
        )

    def parity(self, subject: ReplaySubject, left_s: float) -> Parity:
        variant = subject.variant
        # The fp32 reference is made once per candidate.
        recording = self._recordings[variant.name]
        if variant.candidate.name not in self._compared:
            self._clock.now += recording.reference_s
            self._compared.add(variant.candidate.name)
        self._clock.now += recording.parity_s
        return PASSED

    def recorded(self, variant: Variant) -> Measurement | None:
        return self.records.get(variant.name)

    def record(self, variant: Variant, measurement: Measurement) -> None:
        self.records[variant.name] = measurement

    def environment(self, variant: Variant) -> Environment:
        return Environment(hardware="recorded", engine=variant.runtime, vitrail="recorded", photos="recorded")


def _model(variant: Variant) -> str:
    return f"{variant.candidate.name}@{variant.image_size}"


PASSED = Parity(
    answer="pass",
    cosine=1.0,
    relative_error=0.0,
    photos=15,
    decided=13,
    agreeing=13,
    loss=0.0,
    loss_bound=None,
)
"""Assumed for the grid and marked there: most weights are not at hand where it was recorded."""

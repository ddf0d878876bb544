"""The search: what is measured, in which order, until when. The judge alone says what won.

1. explore  one launch each, most promising first, until nothing left could beat the best contender
2. finals   the best contender and who may tie with it: parity, fresh launches; then the winner once more
3. references  the winner's candidate in eager PyTorch, for comparison, and compiled where that is asked for
4. wishes   variants whose weights are not at hand, timed with random weights, if they would win

The search may be stopped at any time: exploring is first cut short for the finals of whatever leads, so that
a winner is confirmed early, and goes on from there to whatever could beat it. A contender that fails its
finals sends the search back to 1: what it had made hopeless is open again.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from vitrail import judge, runtimes, stats, tasks
from vitrail.errors import InputError
from vitrail.export.bench import Bench
from vitrail.export.exports import NothingToRewrite, uncontrolled
from vitrail.measure.latency import Outcome, Plan, confirm, finals, screen
from vitrail.measure.launch import COMPILE_TIMEOUT_S
from vitrail.measure.quiet import BusyReading
from vitrail.measure.sandbox import ChildFailure, ChildTimeout
from vitrail.selection.costs import Costs
from vitrail.selection.order import LatencyModel, cannot_beat, cannot_fit, rank_key
from vitrail.selection.prune import Peaks, ruled_out, unmade
from vitrail.selection.trial import Trial, failed_in_noise
from vitrail.vocabulary import (
    LedgerEntry,
    Measurement,
    Observation,
    Requirements,
    SearchSettings,
    SpeedUp,
    Variant,
)
from vitrail.weights.find import missing
from vitrail.words import NOT_AT_HAND, counted

EXPORT_TIMEOUT_S = 180.0
QUANTISE_TIMEOUT_S = 900.0
"""Accuracy control runs all judged images for every number of layers that it tries."""
EXPORT_GRACE_S = 5.0
"""What an export may take however little of the budget is left."""
BUILD_TIMEOUT_S = 600.0
"""What an engine may take that builds of the module, and has other things to do meanwhile."""
LACKS_WEIGHTS = "its weights are not at hand"
CUT = "too little of the budget was left: raise --budget"
EARLY_SHARE, EARLY_S = 1 / 3, 30.0
"""By when, as a part of the budget and in seconds, exploring gives way to the finals of a first winner."""
WAIT_SHARE, WAIT_MOST_S = 0.05, 10.0
"""How long, as a part of the budget and at most, to wait for a busy machine."""
RIVALS = 3
"""Finalists at once: all their processes are alive at the same time."""
RIVAL_RATIO = 1.15
"""A contender whose figure is within this of the best one's may tie with it."""
FIRST_SCREEN_S = 2.5
"""Cap of a variant's calls before a winner is confirmed: a contender goes on to its finals anyway."""
FIRST_FINALS_S = 20.0
"""What the finals may take before a winner is confirmed, where half of what is left is less."""
REFERENCE_SCREEN_S = 4.0
COMPILE_LEAST_S = 60.0
"""What compiling a reference is expected to take."""
PROVE_S = 60.0
"""What comparing a provisional best may take beyond the budget: whoever asked for it would rather wait."""


@dataclass(frozen=True)
class SearchProgress:
    """Where the search stands after one more variant, for the person who watches."""

    done: int
    total: int
    entry: LedgerEntry
    best: LedgerEntry | None
    left_s: float


@dataclass
class Search:
    """One search over given variants.

    Args:
        report: called after each variant that was measured or failed.
        note: called with one line when a stage begins.
        doing: called before whatever may last.
    """

    requirements: Requirements
    settings: SearchSettings
    bench: Bench
    peaks: Peaks
    variants: Sequence[Variant]
    excluded: Mapping[str, str] = field(default_factory=dict)
    """Candidate's name -> why nothing of it is measured, known before the search."""
    report: Callable[[SearchProgress], None] = lambda _: None
    note: Callable[[str], None] = lambda _: None
    doing: Callable[[str, float], None] = lambda _, __: None
    """Called when something begins that may last over a second: what it is, and the seconds left."""
    wait_until_quiet: Callable[[float], BusyReading] | None = None
    """Waits at most so many seconds for other processes; None: the machine is taken as it is."""
    prove_provisional: bool = False
    """Without a winner, compare the provisional best with the fp32 reference, so that it may ship."""
    clock: Callable[[], float] = time.monotonic
    seed: int = 0
    trials: dict[str, Trial] = field(default_factory=dict)
    deadline: float = 0.0
    interrupted: bool = False
    """Whether the person ended the search; what was confirmed until then stands."""
    first_winner_s: float | None = None
    """Seconds from the beginning until a winner was confirmed first."""

    def __post_init__(self) -> None:
        workload = self.bench.workload
        self.trials = {variant.name: Trial(variant) for variant in self.variants}
        if len(self.trials) != len(self.variants):
            raise InputError("Two candidates have one name: rename the weights file, or narrow --models.")
        self._model = LatencyModel(workload, self.peaks)
        self._rng = random.Random(self.seed)
        self._plan = Plan(
            scope=workload.latency_scope,
            percentile=workload.percentile,
            limit_ms=self.requirements.max_latency_ms,
            stages=tasks.known(self.settings.task).stages,
            stage_limits_ms=self.requirements.max_stage_latency_ms,
            min_throughput=self.requirements.min_throughput,
            batch_size=workload.batch_size,
            clients=workload.concurrency,
            rank=self.requirements.objective in ("latency", "throughput"),
        )
        self._done = 0
        self._decided = False
        self._costs = Costs(self.bench)
        self._begin = 0.0
        self._late: list[str] = []
        self._patience_s = min(WAIT_SHARE * self.settings.budget_s, WAIT_MOST_S)

    @property
    def _early_s(self) -> float:
        return min(EARLY_SHARE * self.settings.budget_s, EARLY_S)

    # --- the whole --------------------------------------------------------------------------------

    def run(self) -> tuple[Observation, ...]:
        """Search until it is decided, interrupted, or the budget is spent; all that was considered."""
        self._begin = self.clock()
        self.deadline = self._begin + self.settings.budget_s
        for trial in self.trials.values():
            trial.pruned = (
                self.excluded.get(trial.variant.candidate.name)
                or unmade(trial.variant)
                or uncontrolled(trial.variant, self.settings.max_drop)
                or ruled_out(
                    trial.variant,
                    self.requirements,
                    self.bench.workload,
                    self.peaks,
                    len(self.bench.photos.paths),
                )
            )
        try:
            self._stages()
        except KeyboardInterrupt:
            self.interrupted = True
        best = self._best(at_hand=True)
        self._decided = best is not None and best.confirmed
        self._close()
        if self.prove_provisional and not self.interrupted:
            self._prove_provisional()
        return self.observations()

    def _stages(self) -> None:
        self._improve()
        self._measure_references()
        self._wish()

    def _wish(self) -> None:
        """Time what would win if its weights were at hand, once nothing that can win is left to measure.

        A wish never wins, so it is not worth a second that a variant at hand could have used, and what it
        would take beyond the budget is worth nothing.
        """
        if self._next(self._best(at_hand=True), at_hand=True) is None:
            self._explore(at_hand=False)

    def _prove_provisional(self) -> None:
        """Parity for the provisional best: nothing ships without it. One that fails leaves its place."""
        while True:
            judged = judge.judge(self.observations(), self.requirements, self.bench.workload, hardware={})
            trial = self.trials.get(judged.provisional or "")
            if trial is None or trial.parity is not None or not self._ready(trial):
                return
            self.deadline = max(self.deadline, self.clock() + PROVE_S)
            try:
                self._compare(trial)
            except ChildFailure as error:
                trial.failure = str(error)

    def _improve(self) -> None:
        """Confirm a first winner, then whatever beats it, until nothing can or the budget is spent."""
        while True:
            best = self._explore(at_hand=True)
            if best is not None and best.confirmed and self.first_winner_s is None:
                self._first_winner(best)
            if best is None or best.confirmed or self.clock() >= self.deadline:
                return
            if best.finalist:
                self._confirm(best)
            else:
                self._finals(best)

    def observations(self) -> tuple[Observation, ...]:
        """All trials as observations, in the order of the variants."""
        return tuple(trial.observe(decided=self._decided) for trial in self.trials.values())

    def notes(self) -> tuple[str, ...]:
        """What the ledger alone does not say about this search."""
        lines = list(self._late)
        if self.interrupted:
            stands = "what was confirmed until then stands" if self._decided else "nothing was confirmed"
            lines.append(f"interrupted: {stands}")
        unmeasured = sum(trial.open for trial in self.trials.values())
        if unmeasured:
            left = counted(unmeasured, "variant was", "variants were")
            when = "before that" if self.interrupted else "within the budget: raise --budget"
            lines.append(f"{left} not measured {when}")
        doubtful = sum(
            trial.measurement is not None
            and trial.outcome is not None
            and not trial.variant.reference
            and failed_in_noise(trial.outcome.answer, trial.measurement.flags)
            for trial in self.trials.values()
        )
        if doubtful:
            failed = counted(doubtful, "variant missed its limits", "variants missed their limits")
            lines.append(f"{failed} while other processes took the machine: ask again when it is quiet")
        lost = {t.variant.candidate.name: t.variant.candidate for t in self.trials.values() if not t.at_hand}
        reasons = missing(self.bench.unavailable(candidate) for candidate in lost.values())
        lines += [f"{NOT_AT_HAND} for {reason}" for reason in reasons]
        best = self._best(at_hand=True)
        if best is not None and not best.confirmed:
            # What leads by the evidence is `provisional`; this one had the best hopes.
            looked = f"{best.variant.name} looked best in its first launch"
            lines.append(f"{looked}, but the budget ended before its finals: raise --budget")
        return tuple(lines)

    def speed_ups(self) -> tuple[SpeedUp, ...]:
        """Over a baseline: a search among candidates has none."""
        return ()

    # --- stages -----------------------------------------------------------------------------------

    def _explore(self, *, at_hand: bool) -> Trial | None:
        """Measure open trials, most promising first; returns the best contender whose weights are at hand.

        Ends when nothing open can beat the best, when the next one would come too late to win, or when it is
        time to confirm a first winner.
        """
        while True:
            best = self._best(at_hand=True)
            trial = self._next(self._best(at_hand=at_hand), at_hand=at_hand)
            if trial is None:
                return best
            if at_hand and not self._obtain(trial):
                continue
            until = self._until(trial, best) if at_hand else self.deadline
            # With nothing in hand a try that may come too late loses nothing.
            latest = self.deadline if best is None else until
            ready = self.clock() + self._costs.needed_s(trial)
            if ready >= latest:
                for_good = self.first_winner_s is not None or ready >= self.deadline
                if at_hand and not (for_good and self._costs.builds(trial.variant)):
                    return best
                trial.pruned = CUT if at_hand else LACKS_WEIGHTS  # another one may still come in time
                continue
            self._measure(trial, until)
            self._tell(trial)

    def _until(self, trial: Trial, best: Trial | None) -> float:
        """When measuring the trial has to be over, so that what then leads can still be confirmed."""
        spare = self._costs.finals_s(best if best is not None and not best.confirmed else trial, self._plan)
        if self.settings.exhaustive and best is not None and best.confirmed:
            return self.deadline
        until = self.deadline - spare
        if best is not None and not best.confirmed and self.first_winner_s is None:
            until = min(until, self._begin + self._early_s - spare)
        return until

    def _next(self, best: Trial | None, *, at_hand: bool) -> Trial | None:
        """The most promising open trial that could still beat the best one."""
        rival = None if best is None else best.observe(hopeful=True)
        floor = self._memory_baseline()
        hopeful = [
            trial
            for trial in self.trials.values()
            if trial.open
            and trial.at_hand == at_hand
            and not trial.variant.reference
            and not self._excluded(trial, rival, floor)
        ]
        if not hopeful:
            return None
        if at_hand and best is None and self.clock() > self._begin + EARLY_SHARE * self._early_s:
            # Nothing fits so far: what surely does comes before what would be best.
            return min(hopeful, key=lambda t: (self._model.predict_ms(t.variant), t.variant.name))
        return min(hopeful, key=self._order)

    def _order(self, trial: Trial) -> tuple[object, ...]:
        """What is measured next is the trial with the least of these."""
        key = rank_key(trial.variant, self.requirements, self._model, photos=len(self.bench.photos.paths))
        unlikely, *rest = key
        # Until a first winner is confirmed, what must be quantised or built waits for what needs seconds.
        waits = self.first_winner_s is None and self._costs.slow(trial.variant)
        return unlikely, waits, *rest, trial.variant.name

    def _excluded(self, trial: Trial, rival: Observation | None, memory_baseline: float) -> str | None:
        """Why measuring the trial could not make it win, going by what is measured already."""
        if self.settings.exhaustive:
            return None
        reason = cannot_fit(trial.variant, self.requirements, self.bench.workload, self._model)
        if reason is not None:
            return reason
        if rival is None:
            return None
        reason = cannot_beat(
            trial.variant,
            rival,
            self.requirements.objective,
            self._model,
            memory_baseline=memory_baseline,
            photos=len(self.bench.photos.paths),
        )
        return f"cannot beat the best: {reason}" if reason else None

    def _obtain(self, trial: Trial) -> bool:
        """Find or download the trial's weights; downloads are not charged to the budget."""
        begin = self.clock()
        located = self.bench.weights(trial.variant.candidate)
        trial.at_hand = located is not None
        if located is not None:  # from here on with digest and revision
            candidate = replace(trial.variant.candidate, weights=located.weights)
            trial.variant = replace(trial.variant, candidate=candidate)
        self.deadline += self.clock() - begin
        return trial.at_hand

    def _finals(self, best: Trial) -> None:
        """Fresh launches of the best contender and its rivals, interleaved."""
        finalists = [trial for trial in (best, *self._rivals(best)) if self._agrees(trial)]
        if not finalists:
            return
        self.note(f"finals: {', '.join(trial.variant.name for trial in finalists)}")
        self._say(f"finals of {', '.join(trial.variant.name for trial in finalists)}")
        self._await_quiet(finalists)
        until = self.deadline
        if self.first_winner_s is None:  # what stays undecided must leave time for somebody else
            until = self.clock() + max((self.deadline - self.clock()) / 2, FIRST_FINALS_S)
        outcomes = finals(
            [trial.subject for trial in finalists if trial.subject is not None],
            self._plan,
            rng=self._rng,
            clock=self.clock,
            deadline=min(until, self.deadline),
            prior={trial.variant.name: trial.blocks for trial in finalists},
        )
        for trial in finalists:
            self._keep(trial, outcomes[trial.variant.name])

    def _confirm(self, winner: Trial) -> None:
        """The winner of the finals in one more launch, which must agree."""
        winner.confirmed = True
        if not self._ready(winner) or winner.subject is None:
            return
        self._say(f"confirming {winner.variant.name} in a new launch")
        blocks = winner.blocks
        outcome = confirm(winner.subject, self._plan, blocks, clock=self.clock, deadline=self.deadline)
        self._keep(winner, outcome)
        if self.first_winner_s is None and self._best(at_hand=True) is winner:
            self._first_winner(winner)

    def _first_winner(self, winner: Trial) -> None:
        self.first_winner_s = self.clock() - self._begin
        self.note(f"confirmed after {self.first_winner_s:.0f} s: {winner.variant.name}")

    def _rivals(self, best: Trial) -> list[Trial]:
        """Contenders that may tie with the best one by the objective, closest first."""
        top = best.observe(hopeful=True)
        rivals = []
        for trial in self.trials.values():
            if trial is best or trial.finalist or not (trial.at_hand and trial.contends):
                continue
            behind = judge.distance(trial.observe(hopeful=True), top, self.requirements.objective)
            if behind is not None and behind <= RIVAL_RATIO:
                rivals.append((behind, trial.variant.name, trial))
        return [trial for _, _, trial in sorted(rivals, key=lambda rival: rival[:2])[: RIVALS - 1]]

    def _measure_references(self) -> None:
        """The winner in PyTorch, eager and as else named, if it is a module there and the time allows."""
        winner = self._best(at_hand=True)
        if winner is None or winner.variant.implementation == "onnx":
            return
        for name, runtime in runtimes.RUNTIMES.items():
            by_name = name in self.settings.runtimes
            asked = by_name or not (self.settings.runtimes or runtime.named_only)
            if not (runtime.reference and asked) or runtimes.version(name) is None:
                continue
            needed_s = 3 * REFERENCE_SCREEN_S + (COMPILE_LEAST_S if runtime.compiles else 0.0)
            for precision in runtime.on(self.bench.workload.device):
                variant = replace(
                    winner.variant.plain, runtime=name, precision=precision, settings=(), reference=True
                )
                trial = self.trials.setdefault(variant.name, Trial(variant))
                if trial.open and self.clock() + needed_s < self.deadline:
                    self._measure(trial, self.deadline, plan=replace(self._plan, screen_s=REFERENCE_SCREEN_S))
                    self._tell(trial)
                elif trial.open and by_name:
                    self._late.append(f"{variant.name}: {CUT}")
                if trial.open:
                    del self.trials[variant.name]

    def _close(self) -> None:
        """Say of every trial that is still open why it was not measured."""
        best = self._best(at_hand=True)
        floor = self._memory_baseline()
        for trial in self.trials.values():
            if not trial.open:
                continue
            rival = None if best is None else best.observe(hopeful=True)
            trial.pruned = self._excluded(trial, rival, floor)
            if trial.pruned is None and not trial.at_hand:
                trial.pruned = LACKS_WEIGHTS

    # --- one trial --------------------------------------------------------------------------------

    def _measure(self, trial: Trial, until: float, plan: Plan | None = None) -> None:
        """Export and screen one variant; whatever goes wrong becomes its failure."""
        if plan is None:
            first = self.first_winner_s is None and trial.at_hand and not self.settings.exhaustive
            plan = replace(self._plan, rank=False, screen_s=FIRST_SCREEN_S) if first else self._plan
        try:
            recorded = self.bench.recorded(trial.variant)
            if recorded is not None and _reusable(recorded, plan):
                trial.reuse(recorded, plan)
            else:
                self._export(trial)
                self._screen(trial, until, plan)
            self._classify(trial)
            if self.settings.exhaustive and trial.at_hand and trial.contends and self._ready(trial):
                self._compare(trial)
        except NothingToRewrite as error:
            for same in self._of_one_graph(trial.variant):
                same.pruned = str(error)
        except ChildFailure as error:
            self._failed(trial, error)
            self._share_failure(trial)
        if not trial.at_hand and self._last_of_model(trial):
            self.bench.discard(trial.variant)
        if trial.measurement is not None:
            samples = {
                scope: [s for b in trial.measurement.blocks if b.scope == scope for s in b.samples_ms]
                for scope in ("model", plan.scope)
            }
            if all(samples.values()):
                beside = min(samples[plan.scope]) - min(samples["model"])
                self._model.observe(
                    trial.variant,
                    stats.percentile(samples["model"], 50),
                    # Of one among several clients most is waiting for this very model, not host's work.
                    host_ms=beside if plan.clients == 1 else 0.0,
                )

    def _share_failure(self, trial: Trial) -> None:
        """A graph that cannot become int8 cannot for any engine: it would be quantised again."""

        def quantises(variant: Variant) -> bool:
            return variant.precision == "int8" and not runtimes.RUNTIMES[variant.runtime].of_module

        if trial.failure is None or not quantises(trial.variant) or trial.subject is not None:
            return
        for same in self._of_one_graph(trial.variant):
            if quantises(same.variant):
                same.failure = trial.failure

    def _screen(self, trial: Trial, until: float, plan: Plan) -> None:
        """Time one launch, and another one if it fails while others take the machine and time is left."""
        assert trial.subject is not None
        for number in (1, 2):
            self._say(f"timing {trial.variant.name}")
            self._await_quiet([trial])
            # However late it is, a launch gets time for a first block: without one there is no record.
            deadline = max(until, self.clock() + 3.0)
            outcome = screen(trial.subject, plan, clock=self.clock, deadline=deadline, number=number)
            self._keep(trial, outcome)
            doubtful = failed_in_noise(outcome.answer, (*outcome.flags, *trial.noise))
            if not doubtful or self.clock() + plan.screen_s >= until:
                return

    def _export(self, trial: Trial) -> None:
        begin, missing = self.clock(), self._costs.missing(trial.variant)
        if missing:
            self._say(f"exporting {trial.variant.candidate.name}")
        # What the budget cuts is no failure (see `_failed`); a hang is cut by a time of its own.
        left_s = max(self.deadline - begin, EXPORT_GRACE_S)
        engine = runtimes.RUNTIMES[trial.variant.runtime]
        hang_s = COMPILE_TIMEOUT_S if engine.compiles else EXPORT_TIMEOUT_S
        if engine.build_s:
            hang_s = BUILD_TIMEOUT_S
        if trial.variant.precision == "int8":
            hang_s = QUANTISE_TIMEOUT_S
        export = self.bench.export(trial.variant, min(hang_s, left_s))
        trial.subject = self.bench.subject(trial.variant, export)
        if engine.compiles:
            left_s = max(self.deadline - self.clock(), EXPORT_GRACE_S)
            limit_s = min(trial.subject.load_timeout_s, left_s)
            trial.subject = replace(trial.subject, load_timeout_s=limit_s)
        else:  # what compiling takes says nothing of the exports to come
            seconds = self.clock() - begin
            self._costs.observe(trial.variant, missing, seconds, built_s=min(export.built_s, seconds))

    def _ready(self, trial: Trial) -> bool:
        """Have the trial's export at hand, also when its figures came from an earlier run."""
        if trial.subject is None:
            try:
                self._export(trial)
            except ChildFailure as error:
                trial.failure = str(error)
        return trial.subject is not None

    def _agrees(self, trial: Trial) -> bool:
        """Whether a finalist's export can be launched and holds parity."""
        if not self._ready(trial):
            return False
        try:
            self._compare(trial)
        except ChildFailure as error:
            self._failed(trial, error)
            return False
        trial.finalist = True
        return trial.parity is not None and trial.parity.answer == "pass"

    def _failed(self, trial: Trial, error: ChildFailure) -> None:
        """A child's end is the trial's failure, unless the budget alone ended it: then nothing is known."""
        if isinstance(error, ChildTimeout) and self.clock() >= self.deadline:
            if trial.at_hand:
                self._late.append(f"{trial.variant.name}: {error}, the rest of the budget: raise --budget")
        else:
            trial.failure = str(error)

    def _compare(self, trial: Trial) -> None:
        """Parity, unless it is known, in a launch of its own.

        The fp32 reference is slow, so only finalists are compared, or in an exhaustive search all contenders.
        """
        if trial.parity is not None or trial.measurement is None or trial.subject is None:
            return
        self._say(f"comparing {trial.variant.name} with the fp32 reference")
        trial.parity = self.bench.parity(trial.subject, self.deadline - self.clock())
        trial.measurement = replace(trial.measurement, parity=trial.parity)
        self.bench.record(trial.variant, trial.measurement)

    def _classify(self, trial: Trial) -> None:
        """Accuracy of a contender's own export on the user's validation images, unless it is known."""
        if not (self.bench.dataset and trial.at_hand and trial.contends) or trial.quality:
            return
        if self._ready(trial) and trial.subject is not None and trial.measurement is not None:
            trial.quality = self.bench.quality(trial.variant, trial.subject.export, "validation")
            trial.measurement = replace(trial.measurement, quality=trial.quality)
            self.bench.record(trial.variant, trial.measurement)

    def _keep(self, trial: Trial, outcome: Outcome) -> None:
        """Turn an outcome into the trial's measurement and record it at once."""
        trial.outcome = outcome
        if outcome.failure is not None:
            trial.failure = outcome.failure
            return
        assert trial.subject is not None
        seen = trial.subject.seen
        if seen.facts is None or seen.memory is None or not outcome.blocks:
            trial.failure = trial.failure or "measuring ended before the first block: raise --budget"
            return
        trial.measurement = Measurement(
            variant=trial.variant.name,
            workload=self.bench.workload,
            environment=self.bench.environment(trial.variant),
            facts=seen.facts,
            blocks=outcome.blocks,
            memory=seen.memory,
            parity=trial.parity,
            quality=trial.quality,
            load_s=seen.load_s,
            warm_up_calls=seen.warm_up_calls,
            random_weights=not trial.at_hand,
            rewriting=trial.subject.rewriting,
            made=self.bench.made(trial.subject),
            flags=(*outcome.flags, *trial.noise),
        )
        self.bench.record(trial.variant, trial.measurement)

    def _say(self, text: str) -> None:
        self.doing(text, max(self.deadline - self.clock(), 0.0))

    def _await_quiet(self, trials: Sequence[Trial]) -> None:
        """Wait a little for a busy machine; what is timed on one all the same is marked."""
        if self.wait_until_quiet is None:
            return
        begin = self.clock()
        reading = self.wait_until_quiet(self._patience_s)
        self._patience_s = max(self._patience_s - (self.clock() - begin), 0.0)
        for trial in trials:
            trial.noise = reading.flags

    # --- views ------------------------------------------------------------------------------------

    def _best(self, *, at_hand: bool) -> Trial | None:
        """What would win if every contender passed its finals, and unless `at_hand`, had its weights."""
        pool = [t for t in self.trials.values() if t.contends and (t.at_hand or not at_hand)]
        judged = judge.judge(
            [trial.observe(hopeful=True) for trial in pool],
            self.requirements,
            self.bench.workload,
            hardware={},
        )
        wish = next((entry.variant.name for entry in judged.ledger if entry.would_win), None)
        name = wish or judged.selected
        return self.trials[name] if name else None

    def _entry(self, trial: Trial) -> LedgerEntry:
        alone = judge.judge(
            [trial.observe(decided=self._decided)], self.requirements, self.bench.workload, hardware={}
        )
        return alone.ledger[0]

    def _memory_baseline(self) -> float:
        """What a process holds before it loads an export: the least seen so far, in MiB."""
        held = [
            memory.peak - (memory.above_baseline or memory.peak)
            for trial in self.trials.values()
            if trial.measurement and (memory := trial.measurement.memory)
        ]
        return min(held, default=0.0)

    def _of_one_graph(self, variant: Variant) -> list[Trial]:
        """Open trials of the same model that the same passes rewrite."""

        def graph(of: Variant) -> tuple[object, ...]:
            return of.candidate.name, of.image_size, of.implementation, of.passes

        return [t for t in self.trials.values() if t.open and graph(t.variant) == graph(variant)]

    def _last_of_model(self, trial: Trial) -> bool:
        variant = trial.variant
        return not any(
            other.open
            and other.variant.candidate.name == variant.candidate.name
            and other.variant.implementation == variant.implementation
            for other in self.trials.values()
            if other is not trial
        )

    def _tell(self, trial: Trial) -> None:
        self._done += 1
        best = self._best(at_hand=True)
        total = sum(t.pruned is None and not t.variant.reference for t in self.trials.values())
        self.report(
            SearchProgress(
                done=self._done,
                total=total,
                entry=self._entry(trial),
                best=None if best is None else self._entry(best),
                left_s=max(self.deadline - self.clock(), 0.0),
            )
        )


def _reusable(recorded: Measurement, plan: Plan) -> bool:
    """Whether recorded calls are of all that is judged, and no failure that others may explain."""
    timed = {block.scope for block in recorded.blocks}
    return timed.issuperset(plan.scopes) and not failed_in_noise(plan.answer(recorded.blocks), recorded.flags)

"""The search of `vitrail optimize`: one candidate in every form, each beside a baseline.

First the baseline (fp32 in eager PyTorch; of a person's own ONNX file, ONNX Runtime in fp32), then the
engines, of which those that take long to build come last, PyTorch's other ways, and the engines with passes
and settings; then the winner's finals, with the baseline among the finalists. What compiles comes after
all, for it takes longest. With the time that is left, rows take turns with the baseline, so that a machine
that slows down slows both.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from vitrail import runtimes, stats, tasks
from vitrail.errors import InputError
from vitrail.measure.latency import finals
from vitrail.measure.sandbox import ChildFailure
from vitrail.selection.search import COMPILE_LEAST_S, CUT, REFERENCE_SCREEN_S, RIVALS, Search, Trial
from vitrail.sources.source import Context
from vitrail.vocabulary import Block, Candidate, Requirements, SearchSettings, SpeedUp, Variant

__all__ = ["Optimisation", "Optimise", "least_accuracy", "rows"]

EAGER = "pytorch"
OWN_BASELINE = ("onnxruntime", "fp32")
"""Of a person's own ONNX file, which is no module."""
TURN_CALLS, TURN_ROUNDS, TURN_S = 18, 3, 20.0
"""Of a row beside the baseline: calls and rounds at least, and a cap of the seconds of its calls."""
COMPARE_LEAST_S = 6.0
"""What taking turns with the baseline needs at least."""


def rows(variants: Sequence[Variant], settings: SearchSettings, device: str = "cpu") -> tuple[Variant, ...]:
    """The variants, plain ones first, with the references of their candidate among them: a row for each.

    The baseline comes first, references that compile come last.
    """

    def place(variant: Variant) -> tuple[int, bool]:
        first = (variant.runtime, variant.precision) == OWN_BASELINE
        return len(variant.passes) + len(variant.settings), not (variant.implementation == "onnx" and first)

    ordered = sorted(variants, key=place)
    if not ordered or ordered[0].implementation == "onnx":
        return tuple(ordered)
    found = _references(ordered[0], settings, device)
    quick = [each for each in found if not runtimes.RUNTIMES[each.runtime].compiles]
    slow = [each for each in found if runtimes.RUNTIMES[each.runtime].compiles]
    return (*quick, *ordered, *slow)


def _references(variant: Variant, settings: SearchSettings, device: str) -> list[Variant]:
    """What of PyTorch was asked for, or all; eager fp32, with which the others are compared, always."""
    named = [name for name in settings.runtimes if runtimes.RUNTIMES[name].reference]
    plain = replace(variant.plain, settings=(), reference=True)
    return [
        replace(plain, runtime=name, precision=precision)
        for name, runtime in runtimes.RUNTIMES.items()
        if runtime.reference
        and runtimes.version(name) is not None
        and (runtime.open_sizes or not tasks.known(variant.candidate.task).stages)
        for precision in runtime.on(device)
        if (name, precision) == (EAGER, "fp32")
        or ((name in named or not named) and (precision in settings.precisions or not settings.precisions))
    ]


def least_accuracy(
    requirements: Requirements, settings: SearchSettings, candidates: Iterable[Candidate]
) -> Requirements:
    """The requirements, with `max_drop` as the least accuracy where the candidate's own is known.

    It then holds for every row; the control of int8, which takes it too, knows only its own layers.
    """
    known = [candidate.accuracy.value for candidate in candidates if candidate.accuracy is not None]
    if settings.max_drop is None or not known:
        return requirements
    least = round(max(max(known) - settings.max_drop, requirements.min_accuracy or 0.0), 4)
    return replace(requirements, min_accuracy=least)


@dataclass(frozen=True, kw_only=True)
class Optimise:
    """That one candidate is wanted in every form."""

    random_weights: bool = False
    """Whether to time it with random weights if its own are not at hand; then nothing ships."""

    def check(self, context: Context, candidates: Sequence[Candidate]) -> None:
        """Raise an InputError for anything but one candidate, and for weights that are not at hand."""
        (candidate,) = candidates
        if self.random_weights or context.bench.weights(candidate) is not None:
            return
        why = str(context.bench.unavailable(candidate)).rstrip(".")
        raise InputError(f"{why}; --random-weights times it without them.")


@dataclass
class Optimisation(Search):
    """Measures all of `variants`, which are `rows`, and compares each with the first."""

    beside: dict[str, tuple[list[Block], list[Block]]] = field(default_factory=dict)
    """Row -> the blocks of the baseline and its own that took turns."""
    cut: list[str] = field(default_factory=list)
    """Engine and precision of references for which there was no time."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._plan = replace(self._plan, compared=True)

    @property
    def baseline(self) -> Trial:
        """What the others are compared with: the first row."""
        return next(iter(self.trials.values()))

    def _stages(self) -> None:
        everything = list(self.trials.values())
        try:
            for trial in sorted(everything, key=self._turn):
                if not self._compiles(trial):
                    self._row(trial)
            self._improve()
            self._in_turns(self._leaders())
            for trial in everything:
                if self._compiles(trial):
                    self._row(trial)
            self._in_turns(self._waiting())
        finally:
            for trial in everything:
                self.bench.discard(trial.variant)  # only what has random weights

    def _turn(self, trial: Trial) -> int:
        """The baseline, plain forms, slow builds, PyTorch's other ways, forms with passes or settings."""
        if trial is self.baseline:
            return 0
        if runtimes.RUNTIMES[trial.variant.runtime].build_s:  # only where it was named
            return 2
        changed = trial.variant.passes or trial.variant.settings
        return 3 if trial.variant.reference else 4 if changed else 1

    def _next(self, best: Trial | None, *, at_hand: bool) -> Trial | None:
        """None: `_stages` says what is measured, so that finals do not wait for what was cut."""
        return None

    def _spare_s(self, trial: Trial) -> float:
        """What the finals of whatever leads will take, if anything can win."""
        if not trial.at_hand or self._done == 0:
            return 0.0
        best = self._best(at_hand=True) or trial
        return self._costs.finals_s(best, self._plan) + self._costs.finals_s(self.baseline, self._plan)

    def _row(self, trial: Trial) -> None:
        """Measure one row, if there is time for it, and say how it went."""
        reference, compiles = trial.variant.reference, self._compiles(trial)
        if not trial.open and not reference:  # a limit on the model says nothing of what it is compared with
            return
        trial.pruned = None
        self._obtain(trial)
        spare = 0.0 if compiles else self._spare_s(trial)
        least = COMPILE_LEAST_S if compiles else self._costs.needed_s(trial)
        if trial is not self.baseline and self.clock() + least >= self.deadline - spare:
            if reference:
                self.cut.append(f"{trial.variant.runtime} {trial.variant.precision}")
                del self.trials[trial.variant.name]
            elif not trial.at_hand or self._costs.builds(trial.variant):
                trial.pruned = CUT
            return
        plan = replace(self._plan, screen_s=REFERENCE_SCREEN_S) if reference else self._plan
        self._measure(trial, self.deadline - spare, plan)
        if self._to_compare(trial):
            try:
                self._compare(trial)
            except ChildFailure as error:
                self._failed(trial, error)
        self._tell(trial)

    def _to_compare(self, trial: Trial) -> bool:
        """Whether it is a reference whose parity can still be known; the baseline's is with itself."""
        known = not trial.variant.reference or trial is self.baseline or trial.parity is not None
        return not known and trial.at_hand and self.clock() < self.deadline and self._ready(trial)

    # --- beside the baseline ----------------------------------------------------------------------

    def _waiting(self) -> list[Trial]:
        """Rows that did not yet take turns with the baseline, fastest first."""
        left = [
            trial
            for trial in self.trials.values()
            if trial is not self.baseline
            and trial.measurement
            and not trial.failure
            and trial.variant.name not in self.beside
        ]
        return sorted(left, key=lambda trial: stats.percentile(self._calls(trial), 50))

    def _leaders(self) -> list[Trial]:
        """Of each engine and precision the fastest row that waits, unless another one had its turns."""
        done = {self._engine(self.trials[name]) for name in self.beside}
        first: dict[tuple[str, str], Trial] = {}
        for trial in self._waiting():
            if self._engine(trial) not in done:
                first.setdefault(self._engine(trial), trial)
        return list(first.values())

    def _in_turns(self, waiting: Sequence[Trial]) -> None:
        for start in range(0, len(waiting), RIVALS - 1):
            self._take_turns(waiting[start : start + RIVALS - 1])

    def _take_turns(self, rows: Sequence[Trial]) -> None:
        """Fresh launches of some rows and the baseline, interleaved, while there is time."""
        group = [trial for trial in (self.baseline, *rows) if trial.measurement and self._ready(trial)]
        if (
            len(group) < 2
            or self.baseline not in group
            or self.clock() + self._turns_s(group) > self.deadline
        ):
            return
        self._say(f"timing {', '.join(trial.variant.name for trial in group)} in turns")
        plan = replace(self._plan, final_calls=TURN_CALLS, rounds=TURN_ROUNDS, final_s=TURN_S)
        before = {trial.variant.name: trial.blocks for trial in group}
        outcomes = finals(
            [trial.subject for trial in group if trial.subject is not None],
            plan,
            rng=self._rng,
            clock=self.clock,
            deadline=self.deadline,
            prior=before,
        )
        for trial in group:
            self._keep(trial, outcomes[trial.variant.name])
        self._note_turns(group, before)

    def _turns_s(self, group: Sequence[Trial]) -> float:
        plan, needed = self._plan, COMPARE_LEAST_S
        for trial in group:
            call_s = stats.percentile(self._calls(trial), 50) / 1000
            load_s = trial.subject.seen.load_s if trial.subject else 0.0
            needed += min(max(TURN_CALLS * call_s, plan.launches * TURN_ROUNDS * plan.block_s), TURN_S)
            needed += plan.launches * load_s
        return needed

    def _finals(self, best: Trial) -> None:
        group = [self.baseline, *self.trials.values()]
        before = {trial.variant.name: trial.blocks for trial in group}
        super()._finals(best)
        moved = [t for t in self.trials.values() if len(t.blocks) > len(before[t.variant.name])]
        self._note_turns(moved, before)

    def _note_turns(self, group: Sequence[Trial], before: dict[str, tuple[Block, ...]]) -> None:
        """Keep what the baseline's blocks and the others' were in the same launches."""

        def new(trial: Trial) -> list[Block]:
            return list(trial.blocks[len(before[trial.variant.name]) :])

        if self.baseline not in group:
            return
        for trial in group:
            if trial is not self.baseline:
                mine, theirs = self.beside.setdefault(trial.variant.name, ([], []))
                mine += new(self.baseline)
                theirs += new(trial)

    def _rivals(self, best: Trial) -> list[Trial]:
        rivals = super()._rivals(best)
        if best is self.baseline or not self.baseline.measurement:
            return rivals
        return [self.baseline, *(each for each in rivals if each is not self.baseline)][: RIVALS - 1]

    def _agrees(self, trial: Trial) -> bool:
        if trial is self.baseline and trial.variant.reference:  # parity is with itself
            return self._ready(trial)
        return super()._agrees(trial)

    def _last_of_model(self, trial: Trial) -> bool:
        """No: rows take turns after all were timed; what has random weights is discarded then."""
        return False

    def notes(self) -> tuple[str, ...]:
        """Also what of PyTorch was cut."""
        said = (f"{' and '.join(self.cut)}: {CUT}",) if self.cut else ()
        return (*said, *super().notes())

    # --- what came out ----------------------------------------------------------------------------

    def speed_ups(self) -> tuple[SpeedUp, ...]:
        """Of each row over the baseline, and of each with passes or settings over the one without."""
        found = []
        for trial in self.trials.values():
            if trial is self.baseline or not trial.measurement or not self.baseline.measurement:
                continue
            turns = self.beside.get(trial.variant.name)
            found.append(self._speed_up(trial, self.baseline, turns))
            plain = self.trials.get(replace(trial.variant.plain, settings=()).name)
            if plain is not None and plain not in (trial, self.baseline) and plain.measurement:
                found.append(self._speed_up(trial, plain, None))
        return tuple(found)

    def _speed_up(self, trial: Trial, base: Trial, turns: tuple[list[Block], list[Block]] | None) -> SpeedUp:
        plan = self._plan
        if turns is not None:
            slow, fast = (plan.judged(blocks) for blocks in turns)
            if (ratio := stats.ratio_interval(slow, fast)) is not None:
                return _record(trial, base, ratio.value, (ratio.low, ratio.high), interleaved=True)
        slow, fast = plan.judged(base.blocks), plan.judged(trial.blocks)
        ratio = stats.ratio_interval(slow, fast)
        if ratio is not None:
            return _record(trial, base, ratio.value, (ratio.low, ratio.high), interleaved=False)
        times = stats.percentile(self._calls(base), 50) / stats.percentile(self._calls(trial), 50)
        return _record(trial, base, times, None, interleaved=False)

    def _calls(self, trial: Trial) -> list[float]:
        return [ms for block in self._plan.judged(trial.blocks) for ms in block.samples_ms]

    @staticmethod
    def _engine(trial: Trial) -> tuple[str, str]:
        return trial.variant.runtime, trial.variant.precision

    @staticmethod
    def _compiles(trial: Trial) -> bool:
        return runtimes.RUNTIMES[trial.variant.runtime].compiles


def _record(
    trial: Trial, base: Trial, times: float, interval: tuple[float, float] | None, *, interleaved: bool
) -> SpeedUp:
    return SpeedUp(
        variant=trial.variant.name,
        over=base.variant.name,
        times=times,
        interval=interval,
        interleaved=interleaved,
    )

"""What the steps of a search take, going by the ones made so far."""

from __future__ import annotations

from collections import defaultdict

from vitrail import runtimes, stats
from vitrail.export.bench import Bench
from vitrail.measure.latency import Plan
from vitrail.selection.trial import Trial
from vitrail.vocabulary import Variant

__all__ = ["Costs"]

Step = tuple[str, ...]
"""`export`, `rewrite` or `quantise`; or `build`, an engine that builds of the module, its precision."""
EXPORT, REWRITE, QUANTISE = ("export",), ("rewrite",), ("quantise",)
BUILD = "build"
LEAST_S: dict[Step, float] = {EXPORT: 8.0, REWRITE: 1.0, QUANTISE: 15.0}
"""What each is expected to take before one was made; what building takes, the engine's row says."""
LAUNCH_LEAST_S, REFERENCE_LEAST_S = 1.0, 2.0
"""What a launch takes beside loading, and an fp32 reference, before one was seen."""


class Costs:
    """Expects of the next step what the dearest of its kind took."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._made: defaultdict[Step, list[tuple[int, float]]] = defaultdict(list)
        """Of each step made so far, the model's parameters and the seconds it took."""
        self._exported: set[tuple[str, str, int]] = set()

    def missing(self, variant: Variant) -> tuple[Step, ...]:
        """What has to be made before the variant can be launched."""
        if self._bench.exported(variant):
            return ()
        plain: tuple[Step, ...] = () if _code(variant) in self._exported else (EXPORT,)
        if runtimes.RUNTIMES[variant.runtime].build_s:
            return (*plain, (BUILD, variant.runtime, variant.precision))  # int8 comes with it
        if variant.precision == "int8":
            return (*plain, QUANTISE)  # passes come with it
        return (*plain, REWRITE) if variant.passes else plain

    def slow(self, variant: Variant) -> bool:
        """Whether it has to be built or quantised first, which waits for what takes seconds."""
        return any(step == QUANTISE or step[0] == BUILD for step in self.missing(variant))

    def builds(self, variant: Variant) -> bool:
        """Whether its engine has to build of the module first: others may still come in time."""
        return any(step[0] == BUILD for step in self.missing(variant))

    def observe(
        self, variant: Variant, missing: tuple[Step, ...], seconds: float, *, built_s: float = 0.0
    ) -> None:
        """Learn what making these steps of the variant took; `built_s` of it the engine's own building."""
        self._exported.add(_code(variant))
        parameters = max(variant.candidate.parameters, 1)
        if missing and missing[-1][0] == BUILD:
            self._made[missing[-1]].append((parameters, built_s))
            missing, seconds = missing[:-1], seconds - built_s
        for step in missing[:-1]:
            seconds -= min(self.expected_s(step), seconds / 2)
        if missing:
            self._made[missing[-1]].append((parameters, seconds))

    def expected_s(self, step: Step, parameters: int | None = None) -> float:
        """Of one step; with a model's parameters it is at least in proportion to them."""
        made = self._made[step]
        if not made and step[0] == BUILD:  # another precision of the engine tells more than its row
            made = [each for other, found in self._made.items() if other[:2] == step[:2] for each in found]
        least = runtimes.RUNTIMES[step[1]].build_s if step[0] == BUILD else LEAST_S[step]
        if parameters is None:
            return max((seconds for _, seconds in made), default=least)
        grown = [seconds * max(1.0, parameters / other) for other, seconds in made]
        return max(grown, default=least)

    def needed_s(self, trial: Trial) -> float:
        """Least time that measuring the trial takes: what it is made of, or a launch."""
        variant = trial.variant
        if self._bench.recorded(variant) is not None:
            return LAUNCH_LEAST_S
        # A wish may be of any size: exporting, timing and memory grow with its parameters.
        parameters = None if trial.at_hand else variant.candidate.parameters
        made_s = sum(self.expected_s(step, parameters) for step in self.missing(variant))
        return max(made_s, LAUNCH_LEAST_S)

    def finals_s(self, trial: Trial, plan: Plan) -> float:
        """About what the trial's parity, finals and confirmation take, going by its calls so far."""
        calls_s, load_s = 0.0, LAUNCH_LEAST_S + (trial.subject.seen.load_s if trial.subject else 0.0)
        for scope in plan.scopes:
            judged = [s for block in plan.in_scope(trial.blocks, scope) for s in block.samples_ms]
            call_s = stats.percentile(judged, 50) / 1000 if judged else 0.0
            calls_s += max(plan.final_calls * call_s, plan.launches * plan.rounds * plan.block_s)
        launches = plan.launches + 2  # one for parity, one to confirm
        return (
            launches * load_s
            + min(4 / 3 * calls_s, plan.final_s * len(plan.scopes)) * (1 + 1 / plan.launches)
            + (0.0 if trial.parity else REFERENCE_LEAST_S)
        )


def _code(variant: Variant) -> tuple[str, str, int]:
    """What variants of one export share."""
    return variant.candidate.name, variant.implementation, variant.image_size

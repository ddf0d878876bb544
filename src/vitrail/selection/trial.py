"""One variant's way through a search, and what its evidence amounts to so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from vitrail import judge
from vitrail.measure import latency
from vitrail.measure.latency import Outcome, Plan
from vitrail.measure.launch import ExportSubject
from vitrail.vocabulary import Answer, Block, Measurement, Observation, Parity, Quality, Variant

__all__ = ["Trial", "failed_in_noise", "outcome_of"]


@dataclass
class Trial:
    """One variant's way through the search."""

    variant: Variant
    at_hand: bool = True
    outcome: Outcome | None = None
    measurement: Measurement | None = None
    parity: Parity | None = None
    quality: Quality | None = None
    failure: str | None = None
    pruned: str | None = None
    finalist: bool = False
    confirmed: bool = False
    """Its new launch after the finals was measured, whatever it said."""
    subject: ExportSubject | None = None
    noise: tuple[str, ...] = ()
    """What other processes took of the machine when it was timed."""

    @property
    def open(self) -> bool:
        """Whether nothing has decided about it yet."""
        return self.outcome is None and self.failure is None and self.pruned is None

    @property
    def contends(self) -> bool:
        """Whether it may still win."""
        return (
            self.outcome is not None
            and self.outcome.contender
            and self.failure is None
            and not self.variant.reference
        )

    @property
    def blocks(self) -> tuple[Block, ...]:
        """All its calls."""
        return self.measurement.blocks if self.measurement else ()

    def reuse(self, recorded: Measurement, plan: Plan) -> None:
        """Take figures of an earlier run; what was a finalist then and is decided now needs no finals."""
        outcome = outcome_of(self.variant.name, plan, recorded)
        launches = {block.launch for block in recorded.blocks}
        self.measurement, self.parity, self.outcome = recorded, recorded.parity, outcome
        self.quality = recorded.quality
        decided = outcome.answer != "undecided"
        self.finalist = decided and len(launches) >= plan.launches + 1
        self.confirmed = decided and len(launches) >= plan.launches + 2

    def observe(self, *, hopeful: bool = False, decided: bool = False) -> Observation:
        """Its evidence as the judge takes it.

        Args:
            hopeful: as if a contender passed what it has not been asked yet.
            decided: whether a winner was confirmed, so that rivals of its finals stand as what they are.
        """
        if self.measurement is None or self.outcome is None:
            return Observation(
                variant=self.variant,
                accuracy=judge.accuracy_before_measuring(self.variant),
                weights_at_hand=self.at_hand,
                failure=self.failure,
                pruned=self.pruned,
            )
        may_pass = hopeful and not self.finalist and self.outcome.contender

        def hoped(answer: Answer) -> Answer:
            return "pass" if may_pass and answer == "undecided" else answer

        assumed = may_pass and self.at_hand and self.parity is None
        observation = judge.observe(
            self.variant,
            self.measurement,
            latency_answer=hoped(self.outcome.latency_answer),
            stage_answers={stage: hoped(said) for stage, said in self.outcome.stage_answers.items()},
            weights_at_hand=not assumed,
        )
        if assumed:
            observation = judge.as_if_at_hand(observation)
        if may_pass:
            observation = replace(observation, throughput_answer="pass")
        if self.at_hand and not hopeful:
            confirmed = self.confirmed or (self.finalist and decided)
            observation = replace(observation, confirmed=confirmed)
        return replace(observation, weights_at_hand=self.at_hand, failure=self.failure)


def failed_in_noise(answer: Answer, flags: Sequence[str]) -> bool:
    """Whether a failure may be that of other processes."""
    return answer == "fail" and any(flag.startswith("noise:") for flag in flags)


def outcome_of(name: str, plan: Plan, measurement: Measurement) -> Outcome:
    """The outcome that recorded blocks support against this plan's limits."""
    outcome = latency.outcome_of(name, plan, measurement.blocks, flags=measurement.flags)
    # The calls alone do not show that the winner's own new launch disagreed with them.
    return latency.without_confirmation(
        outcome, plan, [flag for flag in measurement.flags if latency.NOT_CONFIRMED in flag]
    )

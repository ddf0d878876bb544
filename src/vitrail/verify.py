"""An artifact against its claims: files, reference outputs, and on request latency and memory.

A damaged artifact is an InputError of opening it. An intact one gets a list of checks; it holds only if
each of them passes. A missing or undecided figure has not been shown to hold, but that is not a failure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np

from vitrail import stats, tasks
from vitrail.artifact import Artifact, Evidence, Manifest, open_artifact
from vitrail.errors import ClaimError
from vitrail.judge.answers import ADVICE
from vitrail.measure import quiet
from vitrail.predict import Predictor, from_artifact
from vitrail.requirements import check
from vitrail.tasks import Arrays, Bounds, agreement
from vitrail.vocabulary import (
    Answer,
    Block,
    LatencyFigures,
    Measurement,
    Observation,
    Requirements,
    RunnerFacts,
    Stage,
    Verdict,
    Workload,
)
from vitrail.words import counted

__all__ = [
    "CLAIM_TOLERANCE",
    "OWN_TOLERANCE",
    "Check",
    "Judge",
    "Measure",
    "Verification",
    "again",
    "verify",
    "without_noise",
]

OWN_TOLERANCE: dict[str, float] = {"fp32": 1e-4, "tf32": 2e-3, "bf16": 2e-2, "fp16": 2e-3, "int8": 2e-2}
"""Largest ||now - then|| / ||then|| of one photo where engine version, CPU and threads are the same: an
engine may sum in a different order from one load to the next, which changes a few roundings."""

CLAIM_TOLERANCE = 0.10
"""How much slower or larger than claimed a figure may be when measured again on the same machine: medians and
peak memory vary by a few percent, and 10 % is the change Vitrail promises to detect. A median comes with an
interval and fails only where all of it lies beyond the tolerance (docs/measurement.md)."""

AGAIN = "verify again when it is quiet"
"""The advice added to anything left undecided here."""

TIMED = ("max_latency", "min_throughput")

Measure: TypeAlias = Callable[[Artifact, Requirements, Workload], Observation]
"""Measures an artifact in a separate process until the requirements are decided."""

Judge: TypeAlias = Callable[[Observation, Requirements, Workload], Sequence[Verdict]]
"""One variant's verdicts, one per limit."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One check of the artifact and its result; only `pass` holds."""

    name: str
    answer: Answer
    observed: float | str | None
    limit: float | str | None
    reason: str


@dataclass(frozen=True, kw_only=True)
class Verification:
    """All checks of one artifact, what the engine did here, and how this machine differs."""

    artifact: str
    name: str
    checks: tuple[Check, ...]
    facts: RunnerFacts
    differences: tuple[str, ...]
    notes: tuple[str, ...] = ()
    """What was not claimed, and what was measured instead of being compared."""

    @property
    def holds(self) -> bool:
        """Whether every check passed."""
        return all(check.answer == "pass" for check in self.checks)

    @property
    def answer(self) -> str:
        """`holds its claims`, or another phrase: an undecided check has neither held nor failed."""
        if self.holds:
            return "holds its claims"
        if any(check.answer == "fail" for check in self.checks):
            return "does not hold its claims"
        return "was not shown to hold its claims"

    def require(self) -> None:
        """Raise a ClaimError naming the checks that did not pass, if any."""
        broken = [check for check in self.checks if check.answer != "pass"]
        # Failures come first; undecided checks are named only where nothing failed.
        failed = [check.name for check in broken if check.answer == "fail"]
        names = failed or [f"{check.name} is {check.answer}" for check in broken]
        if broken:
            raise ClaimError(f"{self.artifact} is intact but {self.answer}: {', '.join(names)}.")


def verify(
    path: Path | str,
    *,
    threads: int | None = None,
    measure: Measure | None = None,
    judge: Judge | None = None,
    requirements: Requirements | None = None,
    workload: Workload | None = None,
) -> Verification:
    """Check an artifact's files and reference outputs; with `measure` and `judge`, speed and memory too.

    Args:
        path: the artifact's folder.
        threads: inference threads for the reference outputs; None: the artifact's.
        measure: takes new measurements, which `judge` judges; None: nothing is measured.
        judge: required with `measure`.
        requirements: what to meet; None: what the artifact was selected under.
        workload: under what load; None: the artifact's.

    Raises:
        InputError: a bad requirement, or a damaged artifact (see `open_artifact`).
        MissingExtraError, EngineMismatch: it cannot run here as its manifest says.
    """
    check(*(record for record in (requirements, workload) if record is not None))
    artifact = open_artifact(path)
    manifest = artifact.manifest
    if requirements is not None:
        tasks.check_stages(requirements, artifact.task.name)
    checks, notes = [_files(manifest)], _unclaimed(manifest.evidence)
    with from_artifact(artifact, threads=threads) as predictor:
        facts = predictor.runner.facts
        differences = _differences(manifest, facts)
        checks += _outputs(artifact, predictor, same_place=not differences)
    if measure is not None:
        assert judge is not None, "measured figures need a judge"
        evidence = manifest.evidence
        requirements, workload = requirements or evidence.requirements, workload or evidence.workload
        observation = _with_claims(manifest, measure(artifact, requirements, workload))
        same_load = not differences and workload == evidence.workload
        verdicts = judge(observation, requirements, workload)
        if not evidence.run:  # parity is what the checks above have just seen for the first time
            verdicts = [each for each in verdicts if each.requirement != "parity"]
        checks += _measured(manifest.evidence, artifact.measurement(), observation, verdicts, same_load)
        notes += () if evidence.figures else (_seen(observation),)
    return Verification(
        artifact=str(path),
        name=manifest.name,
        checks=tuple(checks),
        facts=facts,
        differences=differences,
        notes=notes,
    )


def _unclaimed(evidence: Evidence) -> tuple[str, ...]:
    """What `vitrail export` wrote does not claim."""
    if evidence.figures:
        return ()
    run = "and run on its reference photos" if evidence.run else "where its engine does not run"
    return (f"it was built {run}, never timed: no figures are claimed",)


def _files(manifest: Manifest) -> Check:
    # open_artifact has already raised if any of them was wrong.
    count = len(manifest.files) + 1
    return Check(
        name="files",
        answer="pass",
        observed=count,
        limit=count,
        reason=f"{counted(count, 'file')} as written",
    )


# --- where it runs --------------------------------------------------------------------------------


def _differences(manifest: Manifest, facts: RunnerFacts) -> tuple[str, ...]:
    """How this machine differs from the one where the artifact's outputs were made; empty: it does not."""
    from vitrail import hardware

    claimed, environment = manifest.evidence.facts, manifest.evidence.environment
    if not manifest.evidence.run:
        return ()  # nothing was made that may come out otherwise here
    if claimed is None or environment is None:
        return ("the manifest does not say where its outputs were made",)
    pairs = (
        ("engine", f"{claimed.runtime} {claimed.version}", f"{facts.runtime} {facts.version}"),
        ("threads", claimed.threads, facts.threads),
        ("sizes", _sizes(claimed), _sizes(facts)),
        ("hardware", environment.hardware, hardware.fingerprint(hardware.facts(device=facts.device))),
    )
    return tuple(f"{what}: {now} here, {then} there" for what, then, now in pairs if then != now)


# --- outputs --------------------------------------------------------------------------------------


def _sizes(facts: RunnerFacts) -> str:
    shapes = (spec.shape for graph in facts.graphs for spec in graph.inputs)
    return ", ".join("×".join(map(str, shape)) for shape in shapes)


def _outputs(artifact: Artifact, predictor: Predictor, *, same_place: bool) -> list[Check]:
    outputs = predictor.run(predictor.prepare(artifact.photos, scaled=False))
    if not all(np.isfinite(values).all() for values in outputs.values()):
        return [
            Check(name="reference outputs", answer="fail", observed=None, limit=None, reason="not finite")
        ]
    bounds = artifact.manifest.reference.bounds
    against_fp32 = predictor.task.checks(artifact.fp32_outputs(), outputs, bounds)
    checks = list(map(_answered, against_fp32))
    if artifact.manifest.evidence.run:
        checks.append(_against_own(artifact, outputs, bounds, same_place=same_place))
    return checks


def _answered(found: agreement.Comparison) -> Check:
    return Check(
        name=found.name,
        answer="pass" if found.holds else "fail",
        observed=found.observed,
        limit=found.limit,
        reason=found.reason,
    )


def _against_own(artifact: Artifact, outputs: Arrays, bounds: Bounds, *, same_place: bool) -> Check:
    before = artifact.own_outputs()
    rows = {name: (before[name].reshape(len(before[name]), -1), outputs[name]) for name in before}
    error = max(
        float(agreement.relative_errors(then, now.reshape(then.shape)).max()) for then, now in rows.values()
    )
    # Another engine version or CPU may round differently, but never by more than the precision's tolerance.
    tight = OWN_TOLERANCE[artifact.manifest.variant.precision]
    limit = min(tight, bounds.relative_error) if same_place else bounds.relative_error
    where = "the same engine, CPU and threads" if same_place else "another engine, CPU or threads"
    name = "relative error to its own outputs"
    check = _answered(agreement.bounded(name, error, limit, error <= limit, "at most"))
    return replace(check, reason=f"{check.reason} ({where})")


# --- speed and memory -----------------------------------------------------------------------------


def _with_claims(manifest: Manifest, observation: Observation) -> Observation:
    """New figures for speed and memory, with the claimed accuracy and parity, which are not measured here."""
    evidence = manifest.evidence
    return replace(
        observation,
        variant=manifest.variant,
        accuracy=evidence.accuracy,
        parity=evidence.parity,
        quality=evidence.quality,
    )


def _measured(
    evidence: Evidence,
    claimed: Measurement | None,
    observation: Observation,
    verdicts: Sequence[Verdict],
    same_load: bool,
) -> list[Check]:
    checks = [
        Check(name=v.requirement, answer=v.answer, observed=v.observed, limit=v.limit, reason=again(v.reason))
        for v in verdicts
    ]
    # Figures from different machines or workloads are never compared.
    if same_load:
        checks += _as_claimed(evidence, claimed, observation)
    if checks:
        taken = observation.measurement
        return without_noise(checks, (*observation.flags, *(taken.flags if taken else ())))
    if not evidence.figures:
        return []  # nothing to compare: `_seen` says what was measured
    reason = "no limit was given and the claimed figures are from another machine: give limits with --against"
    return [Check(name="measured", answer="not assessed", observed=None, limit=None, reason=reason)]


def _seen(observation: Observation) -> str:
    """The figures of a measurement that nothing was claimed of, in one line."""
    said = [
        f"{scope} p50 {figures.p50:.3g} ms, p95 {figures.p95:.3g} ms"
        for scope, figures in observation.latency.items()
    ]
    said += [] if observation.memory is None else [f"peak {observation.memory.peak:.4g} MiB"]
    taken = observation.measurement
    flags = dict.fromkeys((*observation.flags, *(taken.flags if taken else ())))
    return f"measured here: {'; '.join([*said, *flags])}"


def again(reason: str) -> str:
    """A reason with advice that fits here: verification has no budget to raise, but can be repeated."""
    for advice in ADVICE:
        reason = reason.replace(f"; {advice}", f"; {AGAIN}")
    return reason


def without_noise(checks: list[Check], flags: Sequence[str]) -> list[Check]:
    """Other processes only ever slow a machine down: a pass stands, a failure becomes undecided."""
    noise = next((flag for flag in flags if flag.startswith(quiet.NOISE)), None)
    if noise is None:
        return checks
    said = f"taken on a busy machine ({noise}): {AGAIN}"

    def timed(name: str) -> bool:
        return name.partition(".")[0] in TIMED or name.endswith(" latency")

    return [
        replace(check, answer="undecided", reason=f"{check.reason}; {said}")
        if check.answer == "fail" and timed(check.name)
        else check
        for check in checks
    ]


def _as_claimed(evidence: Evidence, claimed: Measurement | None, seen: Observation) -> list[Check]:
    # A request's latency depends on its photos; with different photos only the model's can be compared.
    scopes: list[Stage] = ["model"]
    if _same_photos(evidence, seen):
        limited = (stage for stage, _ in evidence.requirements.max_stage_latency_ms)
        scopes = [evidence.workload.latency_scope, *limited]
    peak = None if evidence.memory is None else evidence.memory.peak
    return [
        *(
            check
            for scope in scopes
            for check in _no_slower(
                scope, evidence.latency.get(scope), claimed, seen.latency.get(scope), seen.measurement
            )
        ),
        *_no_larger(peak, None if seen.memory is None else seen.memory.peak),
    ]


def _same_photos(evidence: Evidence, seen: Observation) -> bool:
    there, here = evidence.environment, seen.measurement.environment if seen.measurement else seen.environment
    return there is not None and here is not None and there.photos == here.photos


def _no_slower(
    scope: Stage,
    claim: LatencyFigures | None,
    claimed: Measurement | None,
    figures: LatencyFigures | None,
    measured: Measurement | None,
) -> list[Check]:
    """Compare medians: it fails only if the whole interval of the new one is beyond the tolerance."""
    if claim is None:
        return []
    name = f"claimed {scope} latency"
    then, blocks = _median(scope, claim, claimed), _blocks(scope, measured)
    limit = then[2] * (1 + CLAIM_TOLERANCE)
    if figures is None:
        reason = f"no figure here for the median of {then[0]:.4g} ms claimed"
        return [Check(name=name, answer="not assessed", observed=None, limit=limit, reason=reason)]
    now = _median(scope, figures, measured)
    reason = f"{scope} median {_spelled(now)} here, {_spelled(then)} claimed"
    answer: Answer = "pass"
    if now[0] > limit:
        answer = "fail" if now[1] > limit else "undecided"
        launches = len(stats.launch_medians(blocks))
        slower, machine = f"{_percent(now[0] / then[0] - 1)} slower", _slower_machine(claimed, measured)
        if answer == "fail" and machine is not None:
            answer = "undecided"
        if machine is not None:
            reason += (
                f": {slower}, and so is the machine's own reference workload by {_percent(machine)}; {AGAIN}"
            )
        elif answer == "undecided":
            doubt = f"not beyond what {counted(launches, 'launch', 'launches')} may differ by"
            reason += f": {slower}, {doubt}; {AGAIN}"
        else:
            reason += f": {slower}, at most {_percent(CLAIM_TOLERANCE)} tolerated"
    return [Check(name=name, answer=answer, observed=now[0], limit=limit, reason=reason)]


def _blocks(scope: Stage, measurement: Measurement | None) -> list[Block]:
    return [] if measurement is None else [b for b in measurement.blocks if b.scope == scope]


def _median(
    scope: Stage, figures: LatencyFigures, measurement: Measurement | None
) -> tuple[float, float, float]:
    """(median, low, high) in ms, per launch where the calls were kept, else as if from a single launch."""
    return stats.median_interval(_blocks(scope, measurement)) or stats.one_launch_interval(figures.p50)


def _slower_machine(claimed: Measurement | None, measured: Measurement | None) -> float | None:
    """By how much the reference workload around the calls became slower; None: not noticeably."""
    if claimed is None or measured is None:
        return None
    return stats.reference_slowdown(claimed.blocks, measured.blocks)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _spelled(median: tuple[float, float, float]) -> str:
    return "{:.3g} [{:.3g}, {:.3g}] ms".format(*median)


def _no_larger(claimed: float | None, seen: float | None) -> list[Check]:
    """A peak has no sampling distribution here, so it is compared as a plain number."""
    if claimed is None:
        return []
    name, limit = "claimed memory", claimed * (1 + CLAIM_TOLERANCE)
    if seen is None:
        reason = f"no figure here for the peak of {claimed:.4g} MiB claimed"
        return [Check(name=name, answer="not assessed", observed=None, limit=limit, reason=reason)]
    reason = f"peak {seen:.4g} MiB here, {claimed:.4g} claimed"
    answer: Answer = "pass" if seen <= limit else "fail"
    return [Check(name=name, answer=answer, observed=seen, limit=limit, reason=reason)]

"""An artifact against its claims: files, reference outputs, and on request latency and memory.

A damaged artifact is an InputError of opening it. An intact one gets a list of checks; it holds only if
each of them passes. A figure that is missing or undecided was not shown to hold, which is no failure either.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np

from vitrail.artifact import Artifact, Evidence, Manifest, ParityBounds, open_artifact
from vitrail.errors import ClaimError
from vitrail.predict import Predictor, from_artifact
from vitrail.requirements import check
from vitrail.tasks import Arrays, agreement
from vitrail.vocabulary import Answer, Observation, Requirements, RunnerFacts, Verdict, Workload
from vitrail.words import counted

__all__ = ["CLAIM_TOLERANCE", "OWN_TOLERANCE", "Check", "Judge", "Measure", "Verification", "verify"]

OWN_TOLERANCE: dict[str, float] = {"fp32": 1e-4, "bf16": 2e-2, "fp16": 2e-3, "int8": 2e-2}
"""Largest ||now - then|| / ||then|| of one photo where engine version, CPU and threads are the same: an
engine may sum in another order from one load to the next, by a few roundings of its precision."""

CLAIM_TOLERANCE = 0.10
"""How much slower or larger than claimed a figure may be measured again in the same place: the median of
a fresh launch and the peak memory move by some percent, and 10 % is the change Vitrail promises to see."""

NOISE = ("noise:", "steal:")
"""How flags begin that say somebody else had the processors while calls were timed."""

TIMED = ("max_latency", "min_throughput")

Measure: TypeAlias = Callable[[Artifact, Requirements, Workload], Observation]
"""Measures an artifact in a process of its own until the requirements are decided."""

Judge: TypeAlias = Callable[[Observation, Requirements, Workload], Sequence[Verdict]]
"""One variant's verdicts, one per limit that is asked."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One question to the artifact with its answer; only `pass` holds."""

    name: str
    answer: Answer
    observed: float | str | None
    limit: float | str | None
    reason: str


@dataclass(frozen=True, kw_only=True)
class Verification:
    """All checks of one artifact, what the engine did here, and what differs from where it was written."""

    artifact: str
    name: str
    checks: tuple[Check, ...]
    facts: RunnerFacts
    differences: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether every check passed."""
        return all(check.answer == "pass" for check in self.checks)

    @property
    def answer(self) -> str:
        """`holds its claims`, or what else is to be said: what is undecided has neither held nor failed."""
        if self.holds:
            return "holds its claims"
        if any(check.answer == "fail" for check in self.checks):
            return "does not hold its claims"
        return "was not shown to hold its claims"

    def require(self) -> None:
        """Raise a ClaimError naming the checks that did not pass, if any."""
        broken = [f"{check.name}: {check.reason}" for check in self.checks if check.answer != "pass"]
        if broken:
            raise ClaimError(f"{self.artifact} is intact but {self.answer} ({'; '.join(broken)}).")


def verify(
    path: Path | str,
    *,
    threads: int | None = None,
    measure: Measure | None = None,
    judge: Judge | None = None,
    requirements: Requirements | None = None,
    workload: Workload | None = None,
) -> Verification:
    """Check an artifact's files and reference outputs, and with `measure` and `judge` speed and memory too.

    Args:
        path: the artifact's folder.
        threads: inference threads for the reference outputs; None: the artifact's.
        measure: takes fresh figures, judged by `judge`; None: nothing is measured.
        judge: needed with `measure`.
        requirements: what to meet; None: what the artifact was selected under.
        workload: under what load; None: the artifact's.

    Raises:
        InputError: a bad requirement; the artifact is damaged (each way in `open_artifact`).
        MissingExtraError, EngineMismatch: it cannot run here as it says.
    """
    check(*(record for record in (requirements, workload) if record is not None))
    artifact = open_artifact(path)
    manifest = artifact.manifest
    checks = [_files(manifest)]
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
        checks += _measured(manifest, observation, judge(observation, requirements, workload), same_load)
    return Verification(
        artifact=str(path), name=manifest.name, checks=tuple(checks), facts=facts, differences=differences
    )


def _files(manifest: Manifest) -> Check:
    # open_artifact raised already if a single one was wrong.
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
    """What is not as it was where the artifact's outputs were made; empty: the same place."""
    from vitrail import hardware

    claimed, environment = manifest.evidence.facts, manifest.evidence.environment
    if claimed is None or environment is None:
        return ("the manifest does not say where its outputs were made",)
    pairs = (
        ("engine", f"{claimed.runtime} {claimed.version}", f"{facts.runtime} {facts.version}"),
        ("threads", claimed.threads, facts.threads),
        ("sizes", _sizes(claimed), _sizes(facts)),
        ("hardware", environment.hardware, hardware.fingerprint(hardware.facts())),
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
    return [
        *map(_answered, against_fp32),
        _against_own(artifact, outputs, bounds, same_place=same_place),
    ]


def _answered(found: agreement.Check) -> Check:
    return Check(
        name=found.name,
        answer="pass" if found.holds else "fail",
        observed=found.observed,
        limit=found.limit,
        reason=found.reason,
    )


def _against_own(artifact: Artifact, outputs: Arrays, bounds: ParityBounds, *, same_place: bool) -> Check:
    before = artifact.own_outputs()
    error = max(float(agreement.relative_errors(before[name], outputs[name]).max()) for name in before)
    # Another engine version or CPU may round differently, but never by more than the precision is allowed.
    tight = OWN_TOLERANCE[artifact.manifest.variant.precision]
    limit = min(tight, bounds.relative_error) if same_place else bounds.relative_error
    where = "the same engine, CPU and threads" if same_place else "another engine, CPU or threads"
    name = "relative error to its own outputs"
    check = _answered(agreement.bounded(name, error, limit, error <= limit, "at most"))
    return replace(check, reason=f"{check.reason} ({where})")


# --- speed and memory -----------------------------------------------------------------------------


def _with_claims(manifest: Manifest, observation: Observation) -> Observation:
    """Fresh figures of speed and memory, beside what no measuring here can renew: accuracy and parity."""
    evidence = manifest.evidence
    return replace(
        observation,
        variant=manifest.variant,
        accuracy=evidence.accuracy,
        parity=evidence.parity,
        classification=evidence.classification,
    )


def _measured(
    manifest: Manifest, observation: Observation, verdicts: Sequence[Verdict], same_load: bool
) -> list[Check]:
    checks = [
        Check(name=v.requirement, answer=v.answer, observed=v.observed, limit=v.limit, reason=v.reason)
        for v in verdicts
    ]
    # Figures of different places or loads are never compared.
    if same_load:
        checks += _as_claimed(manifest.evidence, observation)
    if checks:
        return _without_noise(checks, observation)
    reason = "no limit was asked and the claimed figures are of another place: give limits with --against"
    return [Check(name="measured", answer="not assessed", observed=None, limit=None, reason=reason)]


def _without_noise(checks: list[Check], seen: Observation) -> list[Check]:
    """Others on the machine make it slower, never faster: what passed has passed, what failed is open."""
    flags = (*seen.flags, *(seen.measurement.flags if seen.measurement else ()))
    noise = next((flag for flag in flags if flag.startswith(NOISE)), None)
    if noise is None:
        return checks
    said = f"taken on a busy machine ({noise}): verify again when it is quiet"
    return [
        replace(check, answer="undecided", reason=f"{check.reason}; {said}")
        if check.answer == "fail" and (check.name in TIMED or check.name.endswith(" latency"))
        else check
        for check in checks
    ]


def _as_claimed(evidence: Evidence, seen: Observation) -> list[Check]:
    # A request's latency belongs to its photos; on others only the model's can be compared.
    scope = evidence.workload.latency_scope if _same_photos(evidence, seen) else "model"
    claimed_latency, latency = getattr(evidence, scope), getattr(seen, scope)
    return [
        *_no_worse(
            f"claimed {scope} latency", _of(claimed_latency, "p50"), _of(latency, "p50"), "ms (median)"
        ),
        *_no_worse("claimed memory", _of(evidence.memory, "peak"), _of(seen.memory, "peak"), "MiB (peak)"),
    ]


def _same_photos(evidence: Evidence, seen: Observation) -> bool:
    there, here = evidence.environment, seen.measurement.environment if seen.measurement else seen.environment
    return there is not None and here is not None and there.photos == here.photos


def _of(record: object | None, name: str) -> float | None:
    return None if record is None else float(getattr(record, name))


def _no_worse(name: str, claimed: float | None, seen: float | None, unit: str) -> list[Check]:
    if claimed is None:
        return []
    limit = claimed * (1 + CLAIM_TOLERANCE)
    if seen is None:
        reason = f"no figure here for the {claimed:.4g} {unit} claimed"
        return [Check(name=name, answer="not assessed", observed=None, limit=limit, reason=reason)]
    reason = f"{seen:.4g} {unit} here, {claimed:.4g} claimed"
    answer: Answer = "pass" if seen <= limit else "fail"
    return [Check(name=name, answer=answer, observed=seen, limit=limit, reason=reason)]

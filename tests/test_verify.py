from __future__ import annotations

import dataclasses
import json
import random

import numpy as np
import pytest
from artifacts import figures, make_artifact, make_bundle, make_variant
from simulated import Machine, SimulatedSubject

from vitrail import hardware
from vitrail.artifact import write
from vitrail.cli import main
from vitrail.cli import verify as command
from vitrail.errors import ClaimError, InputError
from vitrail.measure.latency import Plan, finals
from vitrail.measure.latency import figures as latency_figures
from vitrail.verify import CLAIM_TOLERANCE, _no_slower, verify
from vitrail.vocabulary import (
    Environment,
    Measurement,
    Memory,
    Observation,
    Requirements,
    RunnerFacts,
    Verdict,
    Workload,
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("verify"))


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    return make_artifact(tmp_path_factory.mktemp("verify"))


def answers(outcome) -> dict[str, str]:
    return {check.name: check.answer for check in outcome.checks}


class Measured:
    """Stands for measuring and judging: gives set figures and remembers what it was asked."""

    def __init__(self, latency=4.0, memory=200.0, verdicts=()):
        self.observation = Observation(
            variant=make_variant(),
            latency={"request": figures(latency)} if latency else {},
            memory=Memory(peak=memory) if memory else None,
        )
        self.verdicts = verdicts
        self.asked = None
        self.judged = None

    def measure(self, artifact, requirements, workload):
        self.asked = (requirements, workload)
        # Measured on the photos that the claim belongs to.
        return dataclasses.replace(self.observation, environment=artifact.manifest.evidence.environment)

    def judge(self, observation, requirements, workload):
        self.judged = (observation, requirements, workload)
        return self.verdicts

    def verify(self, path, **options):
        return verify(path, measure=self.measure, judge=self.judge, **options)


def verdict(answer: str) -> Verdict:
    return Verdict(
        requirement="max_latency", answer=answer, observed=60.0, limit=50.0, margin=-10.0, reason="10 ms over"
    )


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ((), "fail"),
        (("drift: the machine's speed moved by up to 9%",), "fail"),
        (("noise: other processes interrupted 9 of 12 blocks",), "undecided"),
        (("steal: other guests took 2.00 s during 3.0 s of calls",), "undecided"),
    ],
)
def test_slow_among_others_is_undecided_and_says_so(artifact, flags, expected):
    measured = Measured(latency=60.0, memory=999.0, verdicts=[verdict("fail")])
    measured.observation = dataclasses.replace(measured.observation, flags=flags)
    outcome = measured.verify(artifact.path)
    found = answers(outcome)
    assert found["max_latency"] == found["claimed request latency"] == expected
    assert found["claimed memory"] == "fail"  # nobody else can take this process's memory
    reason = next(check.reason for check in outcome.checks if check.name == "max_latency")
    assert (bool(flags) and flags[0] in reason and "verify again when it is quiet" in reason) == (
        expected == "undecided"
    )
    with pytest.raises(ClaimError):
        outcome.require()


# --- outputs --------------------------------------------------------------------------------------


def test_an_intact_artifact_holds_in_its_own_place(artifact):
    outcome = verify(artifact.path)
    assert outcome.differences == ()
    assert set(answers(outcome).values()) == {"pass"}
    assert list(answers(outcome)) == [
        "files",
        "cosine to fp32",
        "relative error to fp32",
        "top-1 of fp32",
        "relative error to its own outputs",
    ]
    outcome.require()


def tilt(outputs: dict[str, np.ndarray], size: float) -> dict[str, np.ndarray]:
    """Move each row by `size` of its norm, lowering its last-ranked score, so that no top-1 changes."""
    scores = outputs["scores"]
    step = np.zeros_like(scores)
    step[np.arange(len(scores)), scores.argmin(axis=1)] = np.linalg.norm(scores, axis=1) * size
    return {"scores": scores - step}


@pytest.mark.parametrize(
    ("which", "size", "broken"),
    [
        ("fp32_outputs", 3e-3, {"relative error to fp32"}),
        ("fp32_outputs", 1e-2, {"relative error to fp32", "cosine to fp32"}),
        ("own_outputs", 3e-4, {"relative error to its own outputs"}),
        ("own_outputs", 3e-5, set()),
    ],
)
def test_outputs_that_moved_are_a_broken_claim(bundle, tmp_path, which, size, broken):
    moved = dataclasses.replace(bundle, **{which: tilt(getattr(bundle, which), size)})
    outcome = verify(write(tmp_path / "w", moved).path)
    assert {name for name, answer in answers(outcome).items() if answer == "fail"} == broken
    assert outcome.holds == (not broken)
    if broken:
        with pytest.raises(ClaimError, match="is intact but does not hold its claims"):
            outcome.require()


def test_changed_preprocessing_is_seen(bundle, tmp_path):
    other = dataclasses.replace(bundle.task.preprocess, interpolation="bilinear")
    candidate = dataclasses.replace(bundle.variant.candidate, preprocess=other)
    variant = dataclasses.replace(bundle.variant, candidate=candidate)
    changed = dataclasses.replace(
        bundle, task=dataclasses.replace(bundle.task, preprocess=other), variant=variant
    )
    outcome = verify(write(tmp_path / "w", changed).path)
    assert answers(outcome)["relative error to fp32"] == "fail"


def test_a_flipped_decided_photo_is_seen(bundle, tmp_path):
    wide = dataclasses.replace(bundle.bounds, cosine=0.01, relative_error=0.99)
    outputs, rows = bundle.fp32_outputs["scores"].copy(), np.arange(len(bundle.photos))
    first, second = np.argsort(-outputs, axis=1)[:, :2].T
    outputs[rows, first], outputs[rows, second] = outputs[rows, second], outputs[rows, first]
    flipped = dataclasses.replace(bundle, fp32_outputs={"scores": outputs}, bounds=wide)
    outcome = verify(write(tmp_path / "w", flipped).path)
    assert {n for n, a in answers(outcome).items() if a == "fail"} == {"top-1 of fp32"}


# --- another place --------------------------------------------------------------------------------


def elsewhere(bundle):
    environment = dataclasses.replace(bundle.evidence.environment, hardware="another")
    facts = dataclasses.replace(bundle.evidence.facts, version="1999.1")
    return dataclasses.replace(
        bundle, evidence=dataclasses.replace(bundle.evidence, environment=environment, facts=facts)
    )


def test_differences_are_named_and_own_outputs_judged_by_the_wider_bounds(bundle, tmp_path):
    moved = dataclasses.replace(elsewhere(bundle), own_outputs=tilt(bundle.own_outputs, 3e-4))
    path = write(tmp_path / "w", moved).path
    outcome = verify(path, threads=2)
    here = hardware.fingerprint(hardware.facts())
    assert any("openvino 1999.1 there" in line for line in outcome.differences)
    assert f"hardware: {here} here, another there" in outcome.differences
    assert "threads: 2 here, 1 there" in outcome.differences
    assert outcome.holds


def test_an_artifact_that_does_not_say_where_it_was_made_is_elsewhere(bundle, tmp_path):
    silent = dataclasses.replace(bundle.evidence, environment=None)
    outcome = verify(write(tmp_path / "w", dataclasses.replace(bundle, evidence=silent)).path)
    assert len(outcome.differences) == 1
    assert outcome.holds


# --- measured again -------------------------------------------------------------------------------


def test_claims_are_the_default_and_reach_measuring_and_judge(artifact):
    measured = Measured(verdicts=(verdict("pass"),))
    outcome = measured.verify(artifact.path)
    evidence = artifact.manifest.evidence
    assert measured.asked == (evidence.requirements, evidence.workload)
    assert measured.judged[0].accuracy == evidence.accuracy
    assert measured.judged[0].variant == artifact.manifest.variant
    assert outcome.holds
    assert {"max_latency", "claimed request latency", "claimed memory"} <= set(answers(outcome))


@pytest.mark.parametrize("answer", ["fail", "undecided", "not assessed"])
def test_only_pass_holds(artifact, answer):
    outcome = Measured(verdicts=(verdict(answer),)).verify(artifact.path)
    assert not outcome.holds
    with pytest.raises(ClaimError, match="max_latency"):
        outcome.require()


def test_the_error_names_what_did_not_pass_and_repeats_no_reason(artifact):
    outcome = Measured(latency=60.0, memory=999.0, verdicts=(verdict("undecided"),)).verify(artifact.path)
    with pytest.raises(ClaimError) as raised:
        outcome.require()
    assert str(raised.value).endswith("does not hold its claims: claimed request latency, claimed memory.")
    outcome = Measured(verdicts=(verdict("undecided"),)).verify(artifact.path)
    with pytest.raises(ClaimError, match="was not shown to hold its claims: max_latency is undecided\\."):
        outcome.require()


@pytest.mark.parametrize(
    ("latency", "memory", "broken"),
    [
        (4.0 * (1 + CLAIM_TOLERANCE) * 1.1, 200.0, {"claimed request latency"}),
        (4.0 * (1 + CLAIM_TOLERANCE) * 1.01, 200.0, set()),  # a number without launches is not that certain
        (1.0, 200.0 * (1 + CLAIM_TOLERANCE) * 1.01, {"claimed memory"}),
        (None, None, {"claimed request latency", "claimed memory"}),
    ],
)
def test_slower_or_larger_than_claimed(artifact, latency, memory, broken):
    outcome = Measured(latency, memory).verify(artifact.path)
    assert {name for name, answer in answers(outcome).items() if answer != "pass"} == broken


def timed(median_ms, seed=0, *, launch_sigma=0.015, slowness=0.0):
    """Five launches on the simulated machine, which itself is slower by `slowness`."""
    machine = Machine(seed=seed, disturbed=(), drift_per_s=0.0)
    machine.slowness = lambda: 1 + slowness
    subject = SimulatedSubject(machine, "tiny", median_ms, launch_sigma=launch_sigma)
    plan = Plan(launches=5, max_launches=8, final_calls=500)
    outcome = finals([subject], plan, rng=random.Random(seed), clock=machine.clock)["tiny"]
    return Measurement(
        variant=make_variant().name,
        workload=Workload(batch_size=2, threads=1),
        environment=Environment(hardware="h", engine="openvino", vitrail="1", photos="none"),
        facts=RunnerFacts(runtime="openvino", version="1", precision="fp32", threads=1, graphs=()),
        blocks=outcome.blocks,
        memory=Memory(peak=200.0),
        parity=None,
        load_s=1.0,
        warm_up_calls=3,
    )


def compared(then, now, scope="model"):
    """The check of `now` against what `then` claims."""
    claim, seen = (latency_figures(each.blocks, scope, 95.0) for each in (then, now))
    (check,) = _no_slower(scope, claim, then, seen, now)
    return check


@pytest.mark.parametrize("launch_sigma", [0.005, 0.015])
def test_a_real_slowdown_of_a_fifth_fails_and_an_untouched_copy_does_not(launch_sigma):
    copies = [
        compared(
            timed(20.0, 2 * i, launch_sigma=launch_sigma), timed(20.0, 2 * i + 1, launch_sigma=launch_sigma)
        )
        for i in range(10)
    ]
    assert {check.answer for check in copies} == {"pass"}
    slowed = [
        compared(
            timed(20.0, 2 * i, launch_sigma=launch_sigma), timed(24.0, 2 * i + 1, launch_sigma=launch_sigma)
        )
        for i in range(10)
    ]
    assert {check.answer for check in slowed} == {"fail"}
    assert all("model median 2" in check.reason and "slower" in check.reason for check in slowed)


def test_where_launches_differ_much_a_copy_never_fails():
    """10 % between launches: two figures of one and the same thing, 14 % apart and more."""
    checks = [
        compared(timed(20.0, 2 * i, launch_sigma=0.1), timed(20.0, 2 * i + 1, launch_sigma=0.1))
        for i in range(20)
    ]
    assert "fail" not in {check.answer for check in checks}
    undecided = [check.reason for check in checks if check.answer == "undecided"]
    assert all("launches may differ by; verify again when it is quiet" in reason for reason in undecided)


def test_a_machine_that_is_slower_itself_explains_a_slowness():
    """The reference workload around each block tells a slow hour of the machine from a slow artifact."""
    check = compared(timed(20.0), timed(20.0, 1, slowness=0.2))
    assert check.answer == "undecided"
    assert "the machine's own reference workload by 20 %" in check.reason


def test_advice_is_what_verify_can_do(artifact):
    reason = "p95 9 ms, limit 60: 12 calls do not decide; raise --budget for more calls"
    asked = dataclasses.replace(verdict("undecided"), reason=reason)
    outcome = Measured(verdicts=(asked,)).verify(artifact.path)
    (check,) = [check for check in outcome.checks if check.name == "max_latency"]
    assert check.reason == "p95 9 ms, limit 60: 12 calls do not decide; verify again when it is quiet"


def test_a_request_on_other_photos_is_not_compared_with_the_claimed_one(artifact):
    measured = Measured()

    def on_other_photos(*asked):
        seen = Measured.measure(measured, *asked)
        return dataclasses.replace(seen, environment=dataclasses.replace(seen.environment, photos="others"))

    measured.measure = on_other_photos
    names = set(answers(measured.verify(artifact.path)))
    assert "claimed request latency" not in names
    assert "claimed model latency" in names


def test_figures_of_another_place_or_load_are_not_compared(bundle, artifact, tmp_path):
    slow = Measured(latency=400.0, verdicts=(verdict("pass"),))
    assert slow.verify(write(tmp_path / "w", elsewhere(bundle)).path).holds
    workload = Workload(batch_size=16, threads=1)
    requirements = Requirements(max_latency_ms=900.0)
    outcome = slow.verify(artifact.path, requirements=requirements, workload=workload)
    assert slow.asked == (requirements, workload)
    assert outcome.holds
    assert not any(name.startswith("claimed") for name in answers(outcome))


def test_measuring_that_decides_nothing_does_not_hold(bundle, tmp_path):
    outcome = Measured().verify(write(tmp_path / "w", elsewhere(bundle)).path)
    assert answers(outcome)["measured"] == "not assessed"
    assert not outcome.holds


# --- the command ----------------------------------------------------------------------------------


def test_command_holds(artifact, capsys):
    assert main(["verify", str(artifact.path)]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == "holds its claims"
    assert err == ""


def test_command_json_stands_alone(artifact, capsys):
    assert main(["verify", str(artifact.path), "--json", "-"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["holds"] is True
    assert document["schema_version"] == 1
    assert document["facts"]["runtime"] == "openvino"
    assert {check["answer"] for check in document["checks"]} == {"pass"}


def test_command_broken_claim_is_exit_code_3_and_still_written(bundle, tmp_path, capsys):
    moved = dataclasses.replace(bundle, fp32_outputs=tilt(bundle.fp32_outputs, 0.1))
    path = write(tmp_path / "w", moved).path
    assert main(["verify", str(path), "--json", str(tmp_path / "v.json")]) == 3
    assert json.loads((tmp_path / "v.json").read_text())["holds"] is False
    out, err = capsys.readouterr()
    assert "FAIL" in out
    assert len(err.splitlines()) == 1


def test_command_damaged_artifact_is_exit_code_2(bundle, tmp_path, capsys):
    path = write(tmp_path / "w", bundle).path
    (path / "labels.txt").write_text("x\n")
    assert main(["verify", str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "labels.txt was changed" in err


def test_requirements_file_replaces_limits_and_only_the_load_it_names(artifact, tmp_path):
    manifest = artifact.manifest
    assert command._requirements_of(None, manifest) == (
        manifest.evidence.requirements,
        manifest.evidence.workload,
    )
    path = tmp_path / "r.toml"
    path.write_text('max-memory = "1GiB"\npercentile = 99\n')
    requirements, workload = command._requirements_of(str(path), manifest)
    assert requirements == Requirements(max_memory_mib=1024.0)
    assert workload == dataclasses.replace(manifest.evidence.workload, percentile=99.0)
    path.write_text("batch-size = 1\n")
    assert command._requirements_of(str(path), manifest)[1].batch_size == 1
    path.write_text('profile = "edge"\n')
    requirements, workload = command._requirements_of(str(path), manifest)
    assert requirements.max_latency_ms == 100.0
    assert workload.batch_size == manifest.evidence.workload.batch_size
    path.write_text("image-size = 64\n")
    with pytest.raises(InputError, match="another image size than the artifact's 32"):
        command._requirements_of(str(path), manifest)

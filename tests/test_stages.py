"""Limits of the latency by stage: asked for, scheduled and tested, judged, said (about 15 s)."""

import json
import random
import re
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from simulated import Machine, SimulatedSubject, true_percentile
from test_judge import measured, variant

from vitrail import cli, tasks, verify
from vitrail import vocabulary as v
from vitrail.artifact import open_artifact
from vitrail.document import from_document, to_document
from vitrail.errors import InputError
from vitrail.judge import judge, observe
from vitrail.measure import latency
from vitrail.measure.latency import Plan, confirm, finals, screen
from vitrail.measure.session import KEPT_PHOTOS, ExportSession, SessionRequest
from vitrail.report import again, decision, html, phrases, terminal
from vitrail.requirements import check, from_toml, resolve
from vitrail.stats import LimitTest
from vitrail.tasks.segment import Segment

ENCODE, PROMPT = "encode", "prompt"
BOTH = (ENCODE, PROMPT)
GOLDEN = Path(__file__).parent / "golden"


# --- what is asked --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "whole", "stages"),
    [
        ("encode=300ms,prompt=20ms", None, ((ENCODE, 300.0), (PROMPT, 20.0))),
        (" prompt = 20ms , encode=0.3s", None, ((ENCODE, 300.0), (PROMPT, 20.0))),
        ("prompt=20ms", None, ((PROMPT, 20.0),)),
        ("400ms,prompt=20ms", 400.0, ((PROMPT, 20.0),)),
        ("50ms", 50.0, ()),
    ],
)
def test_limits_of_stages(text, whole, stages, tmp_path):
    file = tmp_path / "asked.toml"
    file.write_text(f'max-latency = "{text}"\n')
    for given in ({"flags": {"max-latency": text}}, {"toml": file}):
        requirements, _, _ = resolve(**given)
        assert (requirements.max_latency_ms, requirements.max_stage_latency_ms) == (whole, stages)


def test_a_list_in_toml_and_flags_over_a_profile(tmp_path):
    file = tmp_path / "asked.toml"
    file.write_text('max-latency = ["encode=300ms", "prompt=20ms"]\n')
    listed, _, _ = resolve(toml=file)
    assert listed.max_stage_latency_ms == ((ENCODE, 300.0), (PROMPT, 20.0))
    # What is typed replaces the profile's limit, whatever it is about.
    over, _, _ = resolve("edge", flags={"max-latency": "prompt=20ms"})
    assert (over.max_latency_ms, over.max_stage_latency_ms) == (None, ((PROMPT, 20.0),))


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        ("prompt=20ms,prompt=30ms", "prompt is given twice: keep one."),
        ("4ms,5ms,prompt=3ms", "a whole request has two limits: keep one."),
        ("encode=0ms,prompt=20ms", "encode=0ms is not above 0: raise it, or leave it out."),
        ("encode=-1ms", "encode=-1ms is not above 0: raise it, or leave it out."),
        ("encode=3", "3 has no unit: write 3ms."),
        ("encode=", "'' is not a number with a unit: write for example 50ms."),
        ("promt=3ms", "Did you mean prompt?"),
        ("request=3ms", "write encode=3ms or prompt=3ms, and a time alone for a whole request."),
        ("encode=99h", "encode=99h is above 8.64e+07: lower it, or leave it out."),
    ],
)
def test_what_is_no_limit_of_a_stage_is_one_sentence(text, fix):
    with pytest.raises(InputError) as caught:
        resolve(flags={"max-latency": text})
    assert str(caught.value).startswith("--max-latency: ")
    assert str(caught.value).endswith(fix)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ((("enc", 1.0),), "unknown stage 'enc': use encode or prompt."),
        (((ENCODE, 0.0),), "encode=0 is not above 0"),
        (((ENCODE, float("nan")),), "not a finite number"),
        (((ENCODE, 1.0), (ENCODE, 2.0)), "a stage is given twice: keep one."),
        ([(ENCODE, 1.0)], "has the wrong type: give pairs"),
    ],
)
def test_records_built_in_python_follow_the_same_rules(limits, message):
    with pytest.raises(InputError, match="max_stage_latency_ms: ") as caught:
        check(v.Requirements(max_stage_latency_ms=limits))
    assert message in str(caught.value)


@pytest.mark.parametrize(("name", "load"), [("clients", {"clients": 4}), ("batch-size", {"batch-size": 2})])
def test_a_stage_is_of_one_photo(name, load):
    with pytest.raises(InputError, match=rf"^{name} \d and limits of stages contradict each other: .*{name}"):
        resolve(flags={"max-latency": "prompt=20ms", **load})


def test_tasks_without_stages_refuse_their_limits():
    asked = v.Requirements(max_stage_latency_ms=((PROMPT, 20.0),))
    with pytest.raises(InputError, match="--task classify has no stage prompt: limit the whole request"):
        tasks.check_stages(asked, "classify")
    tasks.check_stages(v.Requirements(max_latency_ms=20.0), "classify")


def test_the_commands_refuse_them_before_anything_is_measured(tmp_path, capsys):
    asked = tmp_path / "asked.toml"
    asked.write_text('max-latency = "prompt=20ms"\n')
    recorded = tmp_path / "recorded.json"
    recorded.write_text(json.dumps([{"model": "swin_tiny", "accuracy": 81.4, "latency_ms": 28.0}]))
    for arguments in (
        ["select", "--max-latency", "prompt=20ms"],
        ["select", "--from", str(recorded), "--max-latency", "prompt=20ms"],
        ["verify", str(GOLDEN / "artifact-4-openvino"), "--against", str(asked)],
    ):
        assert cli.main(arguments) == 2, arguments
        out, err = capsys.readouterr()
        assert out == ""
        assert (
            "--task classify has no stage prompt: limit the whole request, as in --max-latency 20ms." in err
        )


def test_what_a_whole_request_may_take():
    assert v.Requirements(max_stage_latency_ms=((ENCODE, 300.0), (PROMPT, 20.0))).whole_ms == 320.0
    assert v.Requirements(max_stage_latency_ms=((ENCODE, 300.0),)).whole_ms is None
    assert v.Requirements(max_latency_ms=200.0, max_stage_latency_ms=((PROMPT, 20.0),)).whole_ms == 200.0


def test_the_report_repeats_the_question(tmp_path):
    for text in ("encode=300ms,prompt=20.5ms", "400ms,prompt=20ms"):
        asked, load, settings = resolve(flags={"max-latency": text})
        file = tmp_path / "requirements.toml"
        file.write_text(again.requirements_toml(asked, load, settings))
        assert resolve(toml=from_toml(file))[0] == asked


# --- the schedule ---------------------------------------------------------------------------------


def plan(encode=None, prompt=None, **given):
    limits = tuple((s, ms) for s, ms in ((ENCODE, encode), (PROMPT, prompt)) if ms is not None)
    return Plan(stages=BOTH, stage_limits_ms=limits, **given)


def subject(machine, encode=100.0, prompt=10.0, **given):
    return SimulatedSubject(
        machine, median_ms=encode + prompt, stages_ms={ENCODE: encode, PROMPT: prompt}, **given
    )


def search(one, asked, machine, seed=0):
    """Screen, and what contends through finals: as a search does it."""
    first = screen(one, asked, clock=machine.clock)
    if not first.contender:
        return first
    prior = {one.name: first.blocks}
    return finals([one], asked, rng=random.Random(seed), clock=machine.clock, prior=prior)[one.name]


def calls(outcome, scope, launch=None):
    return sum(len(b.samples_ms) for b in outcome.blocks if b.scope == scope and launch in (None, b.launch))


@pytest.mark.parametrize(
    ("limits", "answer", "stages"),
    [
        ({"encode": 150, "prompt": 15}, "pass", {ENCODE: "pass", PROMPT: "pass"}),
        ({"encode": 150, "prompt": 5}, "fail", {ENCODE: "undecided", PROMPT: "fail"}),
        ({"encode": 50, "prompt": 15}, "fail", {ENCODE: "fail", PROMPT: "undecided"}),
        ({"encode": 150}, "pass", {ENCODE: "pass"}),
        ({"prompt": 5}, "fail", {PROMPT: "fail"}),
    ],
)
def test_one_fail_fails_and_a_pass_needs_all(limits, answer, stages):
    machine = Machine()
    outcome = search(subject(machine), plan(**limits), machine)
    assert (outcome.answer, outcome.stage_answers) == (answer, stages)
    assert outcome.latency_answer == "not assessed"
    assert outcome.contender == (answer == "pass")


def test_a_whole_limit_beside_those_of_stages():
    machine = Machine()
    slow = search(subject(machine), plan(prompt=15, limit_ms=60.0), machine)
    assert (slow.answer, slow.latency_answer) == ("fail", "fail")
    good = search(subject(machine), plan(prompt=15, limit_ms=160.0), machine)
    assert (good.answer, good.latency_answer, good.stage_answers) == ("pass", "pass", {PROMPT: "pass"})


def test_every_judged_scope_has_its_launches_and_all_are_seen():
    machine = Machine()
    outcome = search(subject(machine), plan(encode=150, prompt=15), machine)
    for scope in BOTH:
        launches = {b.launch for b in outcome.blocks if b.scope == scope}
        assert len(launches) >= Plan().launches
        assert calls(outcome, scope) >= Plan().final_calls
    for scope in ("request", "model"):
        assert calls(outcome, scope) >= 10
    # The limits are judged, so most calls are theirs.
    assert sum(calls(outcome, s) for s in BOTH) > 2 * sum(calls(outcome, s) for s in ("request", "model"))


def test_a_stage_that_fails_at_once_leaves_figures_of_the_others():
    machine = Machine()
    outcome = screen(subject(machine), plan(encode=20, prompt=15), clock=machine.clock)
    assert (outcome.answer, outcome.stopped) == ("fail", "decided")
    assert calls(outcome, ENCODE) <= 12
    assert all(calls(outcome, scope) >= 10 for scope in (PROMPT, "request", "model"))


def test_a_slow_model_is_not_timed_ten_times_in_each_scope():
    machine = Machine()
    outcome = screen(subject(machine, encode=400.0), plan(encode=100), clock=machine.clock)
    assert outcome.answer == "fail"
    assert {scope: calls(outcome, scope) for scope in ("request", "model")} == {"request": 6, "model": 6}
    assert calls(outcome, PROMPT) >= 10


def test_later_launches_are_spent_on_what_is_undecided():
    """The encoder's limit is its own percentile, where no number of calls decides; the prompt's is clear."""
    machine = Machine()
    one = subject(machine)
    percentile = true_percentile(95, scope=ENCODE, stages_ms=one.stages_ms)
    outcome = search(one, plan(encode=percentile, prompt=15, final_s=600), machine)
    assert (outcome.answer, outcome.stage_answers[PROMPT]) == ("undecided", "pass")
    late = [launch for launch in one.launches if launch > Plan().launches + 1]
    assert late
    assert all(calls(outcome, ENCODE, launch) >= 34 for launch in late)
    assert not any(calls(outcome, PROMPT, launch) for launch in late)


def test_rivals_take_turns_in_each_scope():
    machine = Machine()
    pair = [subject(machine, name=name, order=[]) for name in ("a", "b")]
    asked = plan(encode=150, prompt=15)
    both = finals(pair, asked, rng=random.Random(0), clock=machine.clock)
    assert {name: each.answer for name, each in both.items()} == {"a": "pass", "b": "pass"}
    assert all(one.open_sessions == 0 for one in pair)


def test_a_new_launch_that_exceeds_one_limit_confirms_nothing():
    """All calls together still pass: there are few of the new launch among them."""
    machine = Machine(seed=2)
    one, asked = subject(machine), plan(encode=150, prompt=40, final_calls=300)
    won = search(one, asked, machine)
    assert confirm(one, asked, won.blocks, clock=machine.clock).answer == "pass"
    one.outliers = 0.08  # takes the encoder over its limit, and not the prompt, which has the room
    doubted = confirm(one, asked, won.blocks, clock=machine.clock)
    assert asked.of_limit(doubted.blocks, ENCODE) == "pass"
    assert doubted.flags == (f"launch {max(one.launches)} did not confirm the pass of encode",)
    assert (doubted.answer, doubted.stage_answers) == ("undecided", {ENCODE: "undecided", PROMPT: "pass"})


def test_what_was_not_confirmed_stays_so_when_it_is_read_again():
    machine = Machine()
    asked = plan(encode=150, prompt=15)
    won = search(subject(machine), asked, machine)
    flags = ("launch 5 did not confirm the pass of prompt",)
    read = latency.without_confirmation(won, asked, flags)
    assert (read.answer, read.stage_answers) == ("undecided", {ENCODE: "pass", PROMPT: "undecided"})
    stricter = latency.outcome_of("x", plan(encode=150, prompt=5), won.blocks)
    kept = latency.without_confirmation(stricter, plan(encode=150, prompt=5), flags)
    assert kept.stage_answers[PROMPT] == "fail"


# --- how often it is wrong ------------------------------------------------------------------------


def answers(asked, sigma=0.15):
    """Of searches of one subject on twelve machines; benchmarks/error_rates.py has hundreds."""
    found = set()
    for seed in range(12):
        machine = Machine(seed=seed)
        found.add(search(subject(machine, **EDGE, sigma=sigma), asked, machine, seed).answer)
    return found


EDGE = {ENCODE: 20.0, PROMPT: 5.0}
BRIEF = {"final_s": 5, "max_launches": 3}


def percentiles():
    return {stage: true_percentile(95, scope=stage, sigma=0.15, stages_ms=EDGE) for stage in BOTH}


def test_two_stages_at_their_limits_hardly_ever_fail():
    """Nothing but luck fails either, and there are two of them."""
    assert answers(plan(**percentiles(), **BRIEF)) == {"undecided"}


def test_one_limit_that_does_not_hold_is_hardly_ever_passed():
    """The prompt's percentile is just above its limit; the encoder has all the room."""
    above = percentiles()[PROMPT] / 1.001
    assert answers(plan(encode=100, prompt=above, **BRIEF)) <= {"undecided", "fail"}


def test_only_the_side_of_failing_is_shared():
    machine = Machine(seed=3)
    session = SimulatedSubject(machine, sigma=0.1).launch(1)
    blocks = [replace(session.block("model", 20), launch=1 + i // 6) for i in range(18)]
    alone, shared = (LimitTest(percentile=95, limits=n).evaluate(blocks) for n in (1, 3))
    assert alone.upper == shared.upper
    assert shared.lower < alone.lower
    with pytest.raises(ValueError, match="0 limits"):
        LimitTest(percentile=95, limits=0)


# --- a launch -------------------------------------------------------------------------------------


class Fake:
    """Stands for a promptable model's predictor: encoding takes `encode_s`, a prompt next to nothing."""

    def __init__(self, encode_s):
        self.encode_s, self.encoded, self.prompted = encode_s, [], []
        self.prompter = SimpleNamespace(first=self.prompted.append)

    def encode(self, photo):
        time.sleep(self.encode_s)
        self.encoded.append(photo)
        return f"embeddings of {photo}"


def launched(number, encode_s=0.01, photos=20):
    artifact = open_artifact(GOLDEN / "artifact-4-openvino")
    request = SessionRequest(
        folder=str(artifact.model_folder),
        graphs=artifact.manifest.graphs,
        target=artifact.manifest.variant.on("cpu"),
        batch_size=1,
        threads=1,
        task=tasks.pack(artifact.task),
        photos=[str(artifact.photos[0])] * photos,
        seed=number,
    )
    session = ExportSession(request)
    request.photos[:] = [f"{index}.jpg" for index in range(photos)]
    session._predictor = Fake(encode_s)
    return session


def test_encoding_is_timed_on_other_photos_each_time_and_prompts_on_kept_ones():
    session = launched(1)
    fake = session._predictor
    encode = session.block("encode", 5)
    assert len(set(fake.encoded)) == len(encode["samples_ms"]) == 5
    assert min(encode["samples_ms"]) >= 10.0
    assert (encode["clients"], fake.prompted) == (1, [])
    prompt = session.block("prompt", 20)
    assert len(prompt["samples_ms"]) == 20
    assert max(prompt["samples_ms"]) < 10.0  # what was encoded for it is not in it
    kept = set(fake.prompted)
    assert len(kept) == KEPT_PHOTOS
    before = len(fake.encoded)
    session.block("prompt", 4)
    assert len(fake.encoded) == before
    # They take turns, also from one block to the next.
    assert fake.prompted[20:24] == fake.prompted[4:8]
    assert max(map(fake.prompted.count, kept)) == 3


def test_another_launch_keeps_the_same_photos_and_a_slow_encoder_fewer(monkeypatch):
    first, second = launched(1), launched(2)
    for session in (first, second):
        session.block("prompt", 8)
    assert first._predictor.prompted == second._predictor.prompted
    monkeypatch.setattr("vitrail.measure.session.KEPT_S", 0.05)
    slow = launched(1, encode_s=0.04)
    slow.block("prompt", 9)
    assert len(set(slow._predictor.prompted)) == 2


# --- the judge ------------------------------------------------------------------------------------


@pytest.fixture
def staged(monkeypatch):
    """Stands for the task of two stages: segment, with stages."""
    monkeypatch.setattr(Segment, "stages", BOTH)


def staged_variant(name="sam"):
    one = variant(name, None)
    return replace(one, candidate=replace(one.candidate, task="segment"))


def taken(one, machine_seed=0, encode=100.0, prompt=10.0, asked=None):
    machine = Machine(seed=machine_seed)
    outcome = search(
        subject(machine, name=one.name, encode=encode, prompt=prompt),
        asked or plan(encode=150, prompt=15),
        machine,
    )
    return replace(measured(one, 20.0, launches=False), blocks=outcome.blocks), outcome


def decided(encode_ms, prompt_ms, whole=None, **given):
    asked = v.Requirements(
        max_latency_ms=whole, max_stage_latency_ms=((ENCODE, encode_ms), (PROMPT, prompt_ms))
    )
    one = staged_variant()
    measurement, _ = taken(one, **given)
    return judge([observe(one, measurement)], asked, measurement.workload, hardware={})


def by_name(selection):
    return {each.requirement: each for each in selection.ledger[0].verdicts}


def test_each_limit_has_its_verdict(staged):
    selection = decided(150.0, 15.0)
    found = by_name(selection)
    assert found["max_latency.encode"].answer == found["max_latency.prompt"].answer == "pass"
    assert found["max_latency.prompt"].limit == 15.0
    assert found["max_latency.prompt"].reason.startswith("prompt p95 10.")
    assert "max_latency" not in found
    assert selection.ledger[0].observation.latency.keys() >= {"request", "model", *BOTH}


def test_a_stage_that_fails_names_the_limit_that_would_admit_it(staged):
    entry = decided(150.0, 5.0).ledger[0]
    verdict = next(each for each in entry.verdicts if each.answer == "fail")
    assert verdict.requirement == "max_latency.prompt"
    assert verdict.admit == "--max-latency encode=150ms,prompt=11ms"
    assert entry.reasons[0].endswith("over the limit → needs --max-latency encode=150ms,prompt=11ms")
    admitted = resolve(flags={"max-latency": verdict.admit.split(" ")[1]})[0]
    # The option is a whole question: asked again with it, the variant passes.
    one = staged_variant()
    measurement, _ = taken(one)
    selection = judge([observe(one, measurement)], admitted, measurement.workload, hardware={})
    assert {each.answer for each in selection.ledger[0].verdicts if "latency" in each.requirement} == {"pass"}


def test_two_that_fail_need_one_option_which_is_said_once(staged):
    entry = decided(50.0, 5.0, whole=1000.0).ledger[0]
    failing = [each for each in entry.verdicts if each.answer == "fail"]
    assert [each.requirement for each in failing] == ["max_latency.encode", "max_latency.prompt"]
    (option,) = {each.admit for each in failing}
    assert option.startswith("--max-latency 1000ms,encode=10")
    assert " → needs " not in entry.reasons[0]
    assert entry.reasons[1].endswith(f" → needs {option}")
    assert phrases.admission(entry) == option


def test_the_schedules_answer_counts_for_its_stage(staged):
    one = staged_variant()
    measurement, outcome = taken(one)
    told = observe(one, measurement, stage_answers={**outcome.stage_answers, PROMPT: "undecided"})
    asked = v.Requirements(max_stage_latency_ms=((ENCODE, 150.0), (PROMPT, 15.0)))
    found = by_name(judge([told], asked, measurement.workload, hardware={}))
    assert (found["max_latency.encode"].answer, found["max_latency.prompt"].answer) == ("pass", "undecided")
    assert "limit 15: " in found["max_latency.prompt"].reason


def test_a_stage_without_calls_is_not_assessed(staged):
    one = staged_variant()
    measurement, _ = taken(one)
    blocks = tuple(block for block in measurement.blocks if block.scope != PROMPT)
    asked = v.Requirements(max_stage_latency_ms=((PROMPT, 15.0),))
    seen = observe(one, replace(measurement, blocks=blocks))
    verdict = by_name(judge([seen], asked, measurement.workload, hardware={}))["max_latency.prompt"]
    assert (verdict.answer, verdict.reason) == (
        "not assessed",
        "latency of prompt not assessed: no calls in scope prompt",
    )


def test_another_percentile_is_judged_from_the_calls(staged):
    one = staged_variant()
    measurement, _ = taken(one)
    asked = v.Requirements(max_stage_latency_ms=((ENCODE, 150.0), (PROMPT, 15.0)))
    load = replace(measurement.workload, percentile=50.0)
    found = by_name(judge([observe(one, measurement)], asked, load, hardware={}))
    assert found["max_latency.prompt"].reason.startswith("prompt p50 ")
    assert found["max_latency.encode"].answer == "pass"


# --- the document, and what is said ---------------------------------------------------------------


def test_a_document_is_judged_again_under_other_limits(staged):
    selection = decided(150.0, 15.0)
    data = json.dumps(to_document(selection))
    recorded = from_document(data, "it.json")
    assert recorded.selection.requirements == selection.requirements
    for limit, answer in ((15.0, "pass"), (5.0, "fail"), (None, None)):
        stages = ((ENCODE, 150.0), *(((PROMPT, limit),) if limit else ()))
        asked = v.Requirements(max_stage_latency_ms=stages)
        again = judge(recorded.observations, asked, recorded.selection.workload, hardware={}, shipping=False)
        found = by_name(again)
        assert found["max_latency.encode"].answer == "pass"
        assert (found[f"max_latency.{PROMPT}"].answer if limit else None) == answer
        assert ("max_latency.prompt" in found) == (limit is not None)


def test_a_document_of_version_8_has_no_limits_of_stages(staged):
    document = to_document(decided(150.0, 15.0))
    document["schema_version"] = 8
    del document["requirements"]["max_stage_latency_ms"]
    assert from_document(json.dumps(document), "old.json").selection.requirements.max_stage_latency_ms == ()


def test_written_by_hand():
    row = {"model": "sam", "accuracy": 80.0, "latency_ms": {"request": 120.0, "prompt": 12.0}}
    (seen,) = from_document(json.dumps([row]), "mine.json").observations
    assert (seen.latency["prompt"].p95, "encode" in seen.latency) == (12.0, False)
    with pytest.raises(InputError, match='unknown key "promt": did you mean "prompt"'):
        from_document(json.dumps([{**row, "latency_ms": {"promt": 12.0}}]), "mine.json")


def test_terminal_and_page_show_the_stages(staged):
    selection = decided(150.0, 15.0)
    assert selection.winner is not None
    (shown,) = [line for line in terminal.summary(selection).splitlines() if line.startswith("SELECTED")]
    assert re.search(r"p95 10[\d.]* ms \[.*\] encode   p95 10[\d.]* ms \[.*\] prompt", shown)
    assert "p95 latency, prompt" in html.render(selection)
    failed = decided(150.0, 5.0)
    said = terminal.summary(failed)
    assert (
        "p95 latency of prompt (one prompt on a kept embedding, mask at the photo's size) of at most 5 ms"
        in said
    )
    head = next(line for line in said.splitlines() if "p95 ms encode" in line)
    assert "p95 ms prompt" in head
    page = html.render(failed)
    assert "encode p95 " in decision.evidence_in_short(failed.ledger[0], failed)
    assert "<code>--max-latency encode=150ms,prompt=11ms</code>" in page
    assert "latency of prompt" in page


def test_a_failure_in_noise_is_undecided_for_stages_too():
    failed = verify.Check(
        name="max_latency.prompt", answer="fail", observed=30.0, limit=20.0, reason="prompt p95 30"
    )
    (kept,) = verify.without_noise([failed], ("noise: others",))
    assert kept.answer == "undecided"

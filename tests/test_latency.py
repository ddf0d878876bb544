"""The measuring schedule on a simulated machine (about 5 s; simulated minutes cost nothing)."""

import random
from collections import Counter

import pytest
from simulated import Machine, SimulatedSubject

from vitrail.measure.latency import Plan, confirm, figures, finals, screen


def run_finals(subjects, plan, machine, **given):
    return finals(subjects, plan, rng=random.Random(0), clock=machine.clock, **given)


def calls(outcome, scope="request"):
    return sum(len(b.samples_ms) for b in outcome.blocks if b.scope == scope)


# --- screen ---------------------------------------------------------------------------------------


def test_a_clear_fail_takes_a_handful_of_calls():
    machine = Machine()
    outcome = screen(SimulatedSubject(machine, median_ms=100), Plan(limit_ms=50), clock=machine.clock)
    assert (outcome.answer, outcome.contender, outcome.stopped) == ("fail", False, "decided")
    assert calls(outcome) <= 12


def test_a_contender_is_screened_shortly_and_both_scopes_are_seen():
    machine = Machine()
    outcome = screen(SimulatedSubject(machine, median_ms=40), Plan(limit_ms=50), clock=machine.clock)
    assert (outcome.answer, outcome.contender, outcome.stopped) == ("undecided", True, "precise")
    assert 38 <= calls(outcome) <= 60
    assert calls(outcome, "model") >= 10


def test_without_a_limit_it_stops_when_the_median_is_precise():
    spent = []
    for sigma in (0.01, 0.2):
        machine = Machine()
        outcome = screen(SimulatedSubject(machine, sigma=sigma), Plan(screen_s=60), clock=machine.clock)
        assert (outcome.answer, outcome.stopped) == ("not assessed", "precise")
        spent.append(calls(outcome))
    assert spent[1] > spent[0]


def test_a_close_call_stops_at_its_cap():
    machine = Machine()
    subject = SimulatedSubject(machine, median_ms=48.0, sigma=0.03)
    outcome = screen(subject, Plan(limit_ms=52.5), clock=machine.clock)
    assert (outcome.answer, outcome.stopped, outcome.contender) == ("undecided", "cap", True)
    # The launch, the cap, and what the other scope still needs.
    assert machine.now <= subject.launch_s + Plan().screen_s + 1.5


@pytest.mark.parametrize("deadline", [1.0, 2.0, 3.0])
def test_nothing_starts_that_would_not_end_before_the_deadline(deadline):
    machine = Machine()
    subject = SimulatedSubject(machine, median_ms=100, sigma=0.001)
    outcome = screen(subject, Plan(limit_ms=110), clock=machine.clock, deadline=deadline)
    assert outcome.answer == "undecided"
    assert outcome.stopped == "deadline"
    # A block of three calls whose length was not known yet may be over it.
    assert machine.now <= max(deadline, subject.launch_s) + 0.35
    assert subject.open_sessions == 0


def test_throughput_alone_decides():
    for least, answer in ((30, "undecided"), (60, "fail")):
        machine = Machine()
        plan = Plan(min_throughput=least, launches=3)
        outcome = screen(SimulatedSubject(machine, median_ms=20), plan, clock=machine.clock)
        assert outcome.answer in ((answer, "pass") if answer == "undecided" else (answer,))


def test_a_crash_is_a_reason_and_keeps_what_was_measured():
    machine = Machine()
    subject = SimulatedSubject(machine, fails_at_block=4)
    outcome = screen(subject, Plan(limit_ms=50), clock=machine.clock)
    assert outcome.failure == "killed: over its memory limit"
    assert (outcome.stopped, outcome.contender, len(outcome.blocks)) == ("failed", False, 3)
    assert subject.open_sessions == 0


# --- finals and confirmation ----------------------------------------------------------------------


def test_finals_take_three_fresh_launches_interleaved_in_random_order():
    machine, order = Machine(), []
    subjects = [SimulatedSubject(machine, n, ms, order=order) for n, ms in (("a", 20), ("b", 22), ("c", 24))]
    first = {s.name: screen(s, Plan(limit_ms=50), clock=machine.clock) for s in subjects}
    order.clear()
    prior = {name: outcome.blocks for name, outcome in first.items()}
    last = run_finals(subjects, Plan(limit_ms=50), machine, prior=prior)
    assert list(last) == ["a", "b", "c"]
    for subject in subjects:
        outcome = last[subject.name]
        assert (outcome.answer, outcome.stopped) == ("pass", "decided")
        assert subject.launches == [1, 2, 3, 4]
        assert outcome.blocks[: len(prior[subject.name])] == prior[subject.name]
        assert subject.open_sessions == 0
    rounds = [tuple(name for name, _ in order[i : i + 3]) for i in range(0, 9, 3)]
    assert all(sorted(r) == ["a", "b", "c"] for r in rounds)
    assert len(set(rounds)) > 1


def test_the_order_depends_on_the_seed_alone():
    orders = []
    for _ in range(2):
        machine, order = Machine(), []
        subjects = [SimulatedSubject(machine, n, order=order) for n in "abc"]
        run_finals(subjects, Plan(), machine)
        orders.append(order)
    assert orders[0] == orders[1]


def test_without_a_limit_finals_are_exactly_three_launches():
    machine = Machine()
    subject = SimulatedSubject(machine)
    outcome = run_finals([subject], Plan(), machine)["subject"]
    assert subject.launches == [1, 2, 3]
    assert outcome.answer == "not assessed"
    assert calls(outcome) >= 100


def test_who_fails_leaves_and_the_others_go_on():
    machine = Machine()
    fast, slow = SimulatedSubject(machine, "fast", 20), SimulatedSubject(machine, "slow", 80)
    outcomes = run_finals([fast, slow], Plan(limit_ms=50), machine)
    assert outcomes["fast"].answer == "pass"
    assert outcomes["slow"].answer == "fail"
    assert (len(fast.launches), len(slow.launches)) == (3, 1)


def test_a_finalist_that_crashes_does_not_end_the_finals():
    machine = Machine()
    crash, good = SimulatedSubject(machine, "crash", fails_at_block=3), SimulatedSubject(machine, "good")
    outcomes = run_finals([crash, good], Plan(limit_ms=50), machine)
    assert outcomes["crash"].failure
    assert outcomes["good"].answer == "pass"
    assert (crash.open_sessions, good.open_sessions) == (0, 0)


def test_an_undecided_finalist_gets_more_launches_and_then_stays_undecided():
    machine = Machine()
    subject = SimulatedSubject(machine, median_ms=48, sigma=0.03)
    outcome = run_finals([subject], Plan(limit_ms=52.5, final_s=600), machine)["subject"]
    assert (outcome.answer, outcome.stopped) == ("undecided", "cap")
    assert len(subject.launches) == Plan().max_launches
    per_launch = Counter({b.launch: 0 for b in outcome.blocks})
    for b in outcome.blocks:
        per_launch[b.launch] += len(b.samples_ms) if b.scope == "request" else 0
    assert per_launch[6] > 4 * per_launch[3]


def test_finals_keep_to_the_deadline():
    machine = Machine()
    subjects = [SimulatedSubject(machine, n, 48, sigma=0.03) for n in "ab"]
    outcomes = run_finals(subjects, Plan(limit_ms=52.5), machine, deadline=9.0)
    assert {o.stopped for o in outcomes.values()} == {"deadline"}
    assert machine.now <= 9.0 + 2 * 0.4


def test_confirmation_adds_a_launch_and_may_take_the_pass_away():
    for slower, answer in ((1.0, "pass"), (1.8, "undecided")):
        machine = Machine()
        subject = SimulatedSubject(machine, median_ms=28)
        won = run_finals([subject], Plan(limit_ms=50), machine)["subject"]
        assert won.answer == "pass"
        subject.median_ms *= slower
        again = confirm(subject, Plan(limit_ms=50), won.blocks, clock=machine.clock)
        assert subject.launches[-1] == 4
        assert again.blocks[: len(won.blocks)] == won.blocks
        assert again.answer == answer or (slower > 1 and again.answer == "fail")


# --- drift ----------------------------------------------------------------------------------------


def test_a_disturbed_block_is_measured_once_more_and_nothing_is_deleted():
    machine = Machine()
    outcome = screen(SimulatedSubject(machine, disturbed_block=3), Plan(limit_ms=50), clock=machine.clock)
    assert outcome.flags == ()
    hit = [i for i, b in enumerate(outcome.blocks) if max(b.speed_before_ms, b.speed_after_ms) > 7]
    assert len(hit) == 1
    disturbed, again = outcome.blocks[hit[0] : hit[0] + 2]
    assert (disturbed.scope, len(disturbed.samples_ms)) == (again.scope, len(again.samples_ms))
    assert max(disturbed.samples_ms) > 1.4 * max(again.samples_ms)


def test_a_lasting_disturbance_is_flagged():
    machine = Machine(disturbed=tuple((t / 2, t / 2 + 0.12) for t in range(3, 40)))
    outcome = screen(SimulatedSubject(machine), Plan(limit_ms=50), clock=machine.clock)
    assert len(outcome.flags) == 1
    assert outcome.flags[0].startswith("drift")


# --- figures --------------------------------------------------------------------------------------


def test_figures_of_each_scope():
    machine = Machine()
    outcome = run_finals([SimulatedSubject(machine)], Plan(limit_ms=50), machine)["subject"]
    request, model = (figures(outcome.blocks, scope, 95.0) for scope in ("request", "model"))
    assert model.p50 == pytest.approx(20, rel=0.03)
    assert request.p50 == pytest.approx(22, rel=0.03)
    assert request.p50 < request.judged.value == request.p95 <= request.p99
    low, high = request.judged.interval
    assert low < request.p95 < high
    assert request.calls == calls(outcome)
    assert model.judged.interval is None or model.calls >= 81
    assert figures([], "request", 95.0) is None

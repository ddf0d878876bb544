"""Two selections side by side: noise is no move, a shift is one, and a lost winner is named (about 20 s)."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import selections
from compare_error_rates import VARIANT, recorded, selection, share
from hypothesis import given, settings
from test_judge import decide, observations, parity, requirement_sets

import vitrail
from vitrail import vocabulary as v
from vitrail.cli import main
from vitrail.comparison import MOVED, compare
from vitrail.document import to_document, to_json_bytes
from vitrail.errors import ClaimError, InputError
from vitrail.judge import judge, observe
from vitrail.report.compared import summary

GOLDEN = Path(__file__).parent / "golden"
WINNER = "efficientnet_lite2.pkg_in1k@260 openvino fp32"


def changed(changes, **given):
    """The invented selection; `changes` of the observation by variant name, `given` of the selection."""
    base = selections.selection()
    ledger = tuple(
        replace(e, observation=replace(e.observation, **changes.get(e.variant.name, {}))) for e in base.ledger
    )
    return replace(base, ledger=ledger, **given)


def slower(factor, names=None, flags=()):
    """All that is timed of these variants (None: all), by a factor."""
    found = {}
    for each in selections.selection().ledger:
        seen = each.observation
        if seen.latency and (names is None or each.variant.name in names):
            found[each.variant.name] = {
                "latency": {stage: selections.figures(f.p95 * factor) for stage, f in seen.latency.items()},
                "throughput": seen.throughput / factor,
                "flags": flags,
            }
    return found


@pytest.fixture
def written(tmp_path):
    """Writes selections as documents; returns their paths."""

    def write(*found):
        paths = [tmp_path / f"{name}.json" for name in "abc"]
        for path, one in zip(paths, found, strict=False):
            path.write_bytes(to_json_bytes(one))
        return [str(path) for path in paths[: len(found)]]

    return write


def figures(comparison, name=WINNER):
    return {c.figure: c for pair in comparison.pairs if pair.name == name for c in pair.changes}


# --- properties -----------------------------------------------------------------------------------


def assert_nothing_moved(comparison):
    assert not [c for pair in comparison.pairs for c in pair.changes if c.state in (*MOVED, "doubtful")]
    assert not comparison.differences
    assert not comparison.only_a + comparison.only_b
    assert comparison.winners.a == comparison.winners.b
    assert not comparison.regressions(0.0)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(observations(least=1), requirement_sets)
def test_a_selection_against_itself_moved_nowhere(given, requirements):
    one = judge(given, requirements, v.Workload(), hardware={}, shipping=False)
    if any(e.observation.latency or e.observation.accuracy for e in one.ledger):
        assert_nothing_moved(compare(one, one))


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(observations(least=1), observations(least=1), requirement_sets)
def test_swapping_the_two_inverts_everything(given, other, requirements):
    sides = [judge(one, requirements, v.Workload(), hardware={}, shipping=False) for one in (given, other)]
    try:
        there, back = compare(*sides), compare(*sides[::-1])
    except InputError:
        with pytest.raises(InputError):
            compare(*sides[::-1])
        return
    opposite = {"worse": "better", "better": "worse", "only A": "only B", "only B": "only A"}
    assert [e.name for e in there.only_a] == [e.name for e in back.only_b]
    assert (there.winners.a, there.winners.b) == (back.winners.b, back.winners.a)
    for pair in there.pairs:
        mirrored = figures(back, pair.name)
        for change in pair.changes:
            seen = mirrored[change.figure]
            assert seen.state == opposite.get(change.state, change.state)
            assert (seen.a, seen.b) == (change.b, change.a)
            if change.ratio is not None:
                assert seen.ratio.value == pytest.approx(1 / change.ratio.value)
                assert seen.ratio.low == pytest.approx(1 / change.ratio.high)


def test_every_old_document_compares_with_itself_and_with_the_next():
    for name in ("selection-4.json", "selection-5.json"):
        assert_nothing_moved(compare(GOLDEN / name, GOLDEN / name))
    found = compare(GOLDEN / "selection-4.json", GOLDEN / "selection-5.json")
    assert [(d.what, d.a, d.b) for d in found.differences] == [("min recall", "not given", "cat=75")]
    assert not [c for pair in found.pairs for c in pair.changes if c.state in MOVED]


# --- noise and moves, on a simulated machine ------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize("launch_sigma", [0.0, 0.015])
def test_two_selections_of_one_thing_do_not_differ_and_a_real_tenth_does(live, launch_sigma):
    moved, failed = share(10, 1.0, live, launch_sigma=launch_sigma)
    assert moved <= 20
    assert failed == 0
    moved, _ = share(10, 1.1, live, launch_sigma=launch_sigma)
    assert moved >= 80
    _, failed = share(10, 1.2, live, launch_sigma=launch_sigma)
    assert failed >= 90


def test_a_machine_that_became_slower_itself_makes_a_move_doubtful():
    """As one hour and the next: everything takes a fifth longer, the reference workload too."""
    then, now = selection(20.0, 1), selection(20.0, 2, slowness=1.2)
    change = figures(compare(then, now), "net.a@224 openvino fp32")["request latency"]
    assert change.state == "doubtful"
    assert change.reason == "the machine's own reference workload is 20 % slower in B"
    found = compare(then, now)
    assert not found.regressions(0.05)
    assert "request latency" in found.open_regressions(0.05)[0].what


def test_another_percentile_is_computed_from_calls_and_else_medians_are_compared():
    one, two = selection(20.0, 1), selection(24.0, 2)
    at_99 = replace(two.workload, percentile=99.0)
    taken = replace(two.ledger[0].observation.measurement, workload=at_99)
    other = decide([observe(VARIANT, taken)], at_99, shipping=False)
    live = figures(compare(one, other), "net.a@224 openvino fp32")["request latency"]
    assert (live.a.said, live.b.said, live.state) == ("p95", "p95", "worse")
    bare = figures(compare(recorded(one), recorded(other)), "net.a@224 openvino fp32")["request latency"]
    assert (bare.a.said, bare.b.said, bare.state) == ("p50", "p50", "worse")


def test_a_document_of_few_scattered_calls_is_no_more_certain_than_they_are():
    """As it is on a busy machine: medians of 43 and 54 ms, but calls of 300 ms among them."""

    def noisy(p50):
        judged = v.JudgedLatency(percentile=95.0, value=300.0, interval=None)
        seen = v.LatencyFigures(p50=p50, p95=300.0, p99=400.0, judged=judged, calls=20)
        return changed({WINNER: {"latency": {"request": seen}, "throughput": 900 / p50}})

    found = figures(compare(noisy(43.0), noisy(54.0)))
    assert (found["request latency"].state, found["throughput"].state) == ("unmoved", "unmoved")
    assert found["request latency"].a.said == "p50"
    assert found["request latency"].ratio.low < 0.2


def test_no_figure_of_a_reference_is_a_regression():
    eager = next(e.variant.name for e in selections.selection().ledger if e.variant.reference)
    found = compare(changed({}), changed(slower(2.0, [eager])))
    assert figures(found, eager)["request latency"].state == "worse"
    assert not found.regressions(0.05)
    assert not found.open_regressions(0.05)


# --- what moved -----------------------------------------------------------------------------------


def test_a_tenth_slower_is_a_move_of_latency_and_throughput_and_of_nothing_else():
    found = figures(compare(changed({}), changed(slower(1.1, [WINNER]))))
    states = {name: change.state for name, change in found.items()}
    assert states == {
        "request latency": "worse",
        "model latency": "worse",
        "throughput": "worse",
        "memory": "unmoved",
        "accuracy": "unmoved",
        "parity": "unmoved",
    }
    assert found["request latency"].ratio.value == pytest.approx(1.1, rel=1e-3)
    assert found["throughput"].ratio.value == pytest.approx(1 / 1.1, rel=1e-3)


def test_figures_of_a_busy_machine_are_doubtful_where_they_look_slower():
    noisy = changed(slower(1.3, [WINNER], flags=("noise: other processes take 1.2 of 2 processors",)))
    for sides, side in (((changed({}), noisy), "B"), ((noisy, changed({})), "A")):
        change = figures(compare(*sides))["request latency"]
        assert change.state == "doubtful"
        assert change.reason.startswith(f"{side} was taken on a busy machine (noise: ")


def test_memory_moves_beyond_its_tolerance():
    for factor, state in ((1.04, "unmoved"), (1.06, "worse"), (0.94, "better")):
        moved = changed({WINNER: {"memory": v.Memory(peak=259 * factor)}})
        assert figures(compare(changed({}), moved))["memory"].state == state


@pytest.mark.parametrize(
    ("two", "state", "reason"),
    [
        (v.Accuracy(value=78.0, provenance="published"), "better", "the data changed: nothing was measured"),
        (v.Accuracy(value=77.0, provenance="estimated"), "incomparable", "published in A, estimated in B"),
        (None, "only A", "B: not measured"),
    ],
)
def test_claimed_accuracies_move_only_where_the_data_did(two, state, reason):
    change = figures(compare(changed({}), changed({WINNER: {"accuracy": two}})))["accuracy"]
    assert (change.state, change.reason) == (state, reason)


@pytest.mark.parametrize(("value", "state"), [(88.0, "unmoved"), (80.0, "worse")])
def test_measured_accuracies_move_beyond_what_so_many_images_tell(value, state):
    one, two = (
        v.Accuracy(value=each, provenance="measured", images=500, interval=(each - 3, each + 3))
        for each in (90.0, value)
    )
    sides = [changed({WINNER: {"accuracy": each}}) for each in (one, two)]
    assert figures(compare(*sides))["accuracy"].state == state


def test_a_parity_that_fails_is_worse_and_a_regression_at_any_tolerance():
    found = compare(changed({}), changed({WINNER: {"parity": parity("fail", reason="cosine 0.1")}}))
    assert figures(found)["parity"].state == "worse"
    assert [r.what for r in found.regressions(10.0)] == [f"parity of {WINNER}"]


# --- conditions -----------------------------------------------------------------------------------


def test_figures_under_another_load_are_refused_one_by_one_and_accuracy_is_not():
    base = changed({})
    other = replace(base, workload=replace(base.workload, batch_size=8))
    found = compare(base, other)
    states = {name: change.state for name, change in figures(found).items()}
    assert states["request latency"] == states["throughput"] == states["memory"] == "incomparable"
    assert states["accuracy"] == "unmoved"
    assert [(d.what, d.a, d.b) for d in found.differences] == [("batch size", "1", "8")]
    assert "under different loads (batch 1 in A, 8 in B)" in summary(found)


def test_other_photos_refuse_the_request_and_not_the_model():
    photos = replace(selections.ENVIRONMENT, photos="other")
    names = [e.variant.name for e in selections.selection().ledger]
    found = compare(changed({}), changed({name: {"environment": photos} for name in names}))
    assert figures(found)["request latency"].state == "incomparable"
    assert figures(found)["model latency"].state == "unmoved"
    assert [d.what for d in found.differences] == ["photos"]


def test_another_machine_is_compared_and_said():
    machine = replace(selections.ENVIRONMENT, hardware="another")
    moved = slower(1.5)
    for each in moved.values():
        each["environment"] = machine
    found = compare(changed({}), changed(moved))
    assert figures(found)["request latency"].state == "worse"
    assert [d.what for d in found.elsewhere] == ["machine"]
    assert not found.notes, "a machine that is another one may well be slower as a whole"


def test_engines_are_compared_where_both_sides_used_them():
    facts = {
        e.variant.name: e.observation.facts for e in selections.selection().ledger if e.observation.facts
    }
    newer = {
        name: {"facts": replace(one, version="2027.0.0")}
        for name, one in facts.items()
        if one.runtime == "openvino"
    }
    found = compare(changed({}), changed(newer))
    others = "onnxruntime 2026.4.0, {}, pytorch-eager 2026.4.0"
    there, here = (others.format(f"openvino {version}") for version in ("2026.4.0", "2027.0.0"))
    assert [(d.what, d.a, d.b) for d in found.elsewhere] == [("version of the engines", there, here)]
    base = changed({})
    alone = replace(base, ledger=tuple(e for e in base.ledger if e.variant.runtime == "openvino"))
    assert not compare(base, alone).elsewhere, "an engine that one side alone used has not changed"


def test_a_shift_that_all_share_is_pointed_out():
    found = compare(changed({}), changed(slower(1.15)))
    assert found.notes[0].startswith("the latencies of all ")
    assert "1.15 times A's" in found.notes[0]


def test_other_weights_under_the_same_name_are_said():
    base = changed({})
    ledger = []
    for entry in base.ledger:
        candidate = entry.variant.candidate
        weights = replace(candidate.weights, sha256="cd" * 32)
        variant = replace(entry.variant, candidate=replace(candidate, weights=weights))
        ledger.append(replace(entry, observation=replace(entry.observation, variant=variant)))
    found = compare(base, replace(base, ledger=tuple(ledger)))
    note = next(pair.notes for pair in found.pairs if pair.name == WINNER)
    assert note == ("its weights are other ones (sha256 ab12ab12ab12 in A, cdcdcdcdcdcd in B)",)


def test_nothing_in_common_is_refused_with_the_fix(written):
    base = changed({})
    halves = [replace(base, ledger=base.ledger[:5]), replace(base, ledger=base.ledger[5:], selected=None)]
    with pytest.raises(InputError, match=r"no variant is in both .*--models"):
        compare(*halves)
    load = replace(base, workload=replace(base.workload, batch_size=8))
    without = {e.variant.name: {"accuracy": None, "parity": None} for e in base.ledger}
    sides = [replace(changed(without), workload=one.workload) for one in (base, load)]
    with pytest.raises(InputError, match="under different loads"):
        compare(*sides)


# --- winners --------------------------------------------------------------------------------------


def decided(ms_of_best, **requirements):
    """Two variants judged for real: the better one's latency decides whether it wins."""
    from test_judge import recorded as row

    rows = [("best", 85.0, ms_of_best), ("second", 80.0, 10.0)]
    return decide(
        [row(name, top1, ms, interval=(ms * 0.97, ms * 1.03), calls=300) for name, top1, ms in rows],
        shipping=False,
        **({"max_latency_ms": 50.0} | requirements),
    )


BEST, SECOND = "best@224 openvino fp32", "second@224 openvino fp32"


def test_a_winner_that_misses_a_limit_is_named_with_the_limit_and_by_how_much():
    found = compare(decided(30.0), decided(60.0))
    won = found.winners
    assert (won.state, won.a, won.b) == ("changed", BEST, SECOND)
    assert won.a_in_b.place == "rejected"
    assert "p95 60 [58.2, 61.8] ms: 10 over the limit" in won.a_in_b.reasons[0]
    assert won.b_in_a.reasons == ("meets all, 5 points of accuracy less than the winner",)
    said = summary(found)
    assert f"WINNER     changed: {BEST} → {SECOND}" in said
    assert "in B, " in said
    assert "10 over the limit" in said
    lost = found.regressions(2.0)
    assert [each.what for each in lost] == [f"the winner {BEST}"]
    assert lost[0].reason.startswith("no longer meets the limits in B (p95 60")


def test_a_winner_that_loses_by_the_objective_is_no_regression_by_itself():
    found = compare(decided(5.0, objective="latency"), decided(12.0, objective="latency"))
    assert found.winners.a_in_b.place == "meets"
    assert "2 ms more than the winner" in found.winners.a_in_b.reasons[0]
    assert not found.regressions(2.0)


def test_a_winner_that_was_not_considered_or_not_measured_is_lost_and_one_undecided_is_open():
    base = decided(30.0)
    rest = [e.observation for e in base.ledger if e.variant.name != BEST]
    absent = compare(base, decide(rest, shipping=False, max_latency_ms=50.0))
    assert absent.regressions(0.05)[0].reason == "was not considered in B"
    pruned = v.Observation(variant=base.winner.variant, pruned="not measured within the budget")
    unmeasured = compare(base, decide([*rest, pruned], shipping=False, max_latency_ms=50.0))
    reason = unmeasured.regressions(0.05)[0].reason
    assert reason == "was not measured in B (not measured within the budget)"
    unclear = compare(base, decided(49.5))
    assert unclear.winners.a_in_b.place == "undecided"
    assert f"the winner {BEST}" not in {each.what for each in unclear.regressions(1.0)}
    assert f"the winner {BEST}" in {each.what for each in unclear.open_regressions(1.0)}


@pytest.mark.parametrize(
    ("a", "b", "state"),
    [(30.0, 31.0, "same"), (30.0, None, "none in B"), (None, 30.0, "none in A"), (None, None, "none")],
)
def test_a_side_without_a_winner(a, b, state):
    sides = [decided(30.0) if ms else decided(30.0, max_latency_ms=5.0) for ms in (a, b)]
    assert compare(*sides).winners.state == state


def test_what_leads_without_a_winner_is_named():
    base = changed({})
    found = compare(base, replace(base, selected=None, provisional=WINNER))
    assert f"in B, {WINNER} leads, not proven" in summary(found)


# --- the command ----------------------------------------------------------------------------------


def test_the_gate_passes_fails_and_says_what(written, capsys):
    a, b = written(changed({}), changed(slower(1.3, [WINNER])))
    assert main(["compare", a, b]) == 0
    shown = capsys.readouterr().out
    assert shown.index("worse ") < shown.index("did not move beyond noise")
    assert main(["compare", a, a, "--fail-on-regression", "5%"]) == 0
    assert "nothing is shown to be more than 5 % worse" in capsys.readouterr().out
    assert main(["compare", b, a, "--fail-on-regression", "5%"]) == 0, "better is no regression"
    capsys.readouterr()
    assert main(["compare", a, b, "--fail-on-regression", "5%"]) == 3
    captured = capsys.readouterr()
    assert f"WORSE      request latency of {WINNER}: at least 24.6 % worse" in captured.out
    assert captured.err.startswith(
        f"vitrail: error: {b} is worse than {a} by more than 5 %: request latency of"
    )
    assert main(["compare", a, b, "--fail-on-regression", "27%"]) == 0
    assert f"OPEN       request latency of {WINNER}: 30.0 % worse, at least 24.6 %" in capsys.readouterr().out


def test_everything_is_shown_on_request(written, capsys):
    (a,) = written(changed({}))
    assert main(["compare", a, a, "--all"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("unmoved") for line in lines) == 115


def test_one_json_document_alone_on_stdout(written, capsys):
    a, b = written(changed({}), changed(slower(1.3, [WINNER])))
    assert main(["compare", a, b, "--json", "-", "--fail-on-regression", "5"]) == 3
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found["schema_version"] == 1
    assert found["winners"]["state"] == "same"
    assert found["fail_on_regression"]["tolerance_percent"] == 5
    assert len(found["fail_on_regression"]["regressions"]) == 3
    change = found["variants"][0]["changes"][0]
    assert set(change) == {"figure", "unit", "state", "a", "b", "ratio", "upwards", "reason"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0.05", "may be a fraction: write 5 for 5 %"),
        ("-5%", "is not from 0 to 1000 %"),
        ("5 ms", "unknown unit 'ms'"),
        ("five", "is not a number"),
        ("1e9%", "is not from 0 to 1000 %"),
    ],
)
def test_a_nonsensical_tolerance_is_refused(written, capsys, text, said):
    (a,) = written(changed({}))
    assert main(["compare", a, a, "--fail-on-regression", text]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is not valid JSON"),
        (to_json_bytes(selections.selection())[:4000], "is not valid JSON"),
        (b"\x89PNG\r\n", "is not valid JSON"),
        (b'{"images": []}', "holds no recorded variants"),
        (b'[{"model": "a", "accuracy": 80, "latency_ms": 3}]', "not a selection: make one of it with"),
        (json.dumps(to_document(selections.selection()) | {"schema_version": 99}), "newer than the"),
    ],
    ids=["empty", "cut", "binary", "other JSON", "hand-written", "newer"],
)
def test_what_is_no_selection_is_refused_in_one_sentence(written, tmp_path, capsys, content, said):
    (a,) = written(changed({}))
    bad = tmp_path / "bad.json"
    bad.write_bytes(content if isinstance(content, bytes) else content.encode())
    for pair in ([a, str(bad)], [str(bad), a]):
        assert main(["compare", *pair]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert str(bad) in error
        assert error.count("\n") == 1
    assert main(["compare", a, str(tmp_path / "none.json")]) == 2
    assert "cannot be read (No such file or directory)" in capsys.readouterr().err


def test_from_python(written):
    a, b = written(changed({}), changed(slower(1.3, [WINNER])))
    found = vitrail.compare(a, b)
    assert isinstance(found, vitrail.Comparison)
    with pytest.raises(ClaimError, match="request latency"):
        found.require(0.05)
    found.require(0.27)


def test_it_imports_neither_engines_nor_torch(written):
    a, b = written(changed({}), changed({}))
    code = (
        "import sys\nfrom vitrail.cli import main\n"
        f"assert main(['compare', {a!r}, {b!r}]) == 0\n"
        "print(sorted({'torch', 'timm', 'openvino', 'onnxruntime'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"

"""The words of the terminal: what is proven, what leads, what ties, what was taken in noise (below 1 s)."""

from dataclasses import replace

import pytest
from test_judge import measured as timed
from test_judge import raced, recorded, screened, variant

from vitrail import vocabulary as v
from vitrail.errors import ClaimError
from vitrail.judge import judge, observe
from vitrail.report import phrases
from vitrail.report.terminal import summary, written
from vitrail.verify import Check, Verification


def decide(seen, **requirements):
    asked = v.Requirements(license=("any",), **requirements)
    return judge(seen, asked, v.Workload(), hardware={})


def starts(text):
    """The first word of each line, of two where they are one label."""
    return [line[:11].strip() for line in text.splitlines()]


def test_the_provisional_best_is_never_called_selected():
    seen = [screened("best", 85.0, 20.0), screened("slow", 90.0, 80.0)]
    text = summary(decide(seen, max_latency_ms=50.0))
    assert "SELECTED" not in text
    assert starts(text)[:3] == ["NOTHING", "PROVISIONAL"[:11], ""]
    lines = text.splitlines()
    assert lines[1].startswith("PROVISIONAL best@224 openvino fp32   p95 ")
    assert "not proven: " in lines[2]
    assert lines[2].endswith("→ needs a longer --budget")
    assert lines[2].count("--budget") == 1
    assert "needs --max-latency" not in lines[2]
    assert "leads" in starts(text)
    unseen = replace(recorded("unseen", 86.0, None, parity=None), pruned=None)
    assert "unmeasured" not in starts(
        summary(decide([*seen, unseen], max_latency_ms=50.0, min_accuracy=50.0))
    )
    assert any(line.startswith("rejected") and "slow" in line for line in lines)


def test_the_last_line_says_what_was_not_written():
    assert written(None, "winner.report.html", out="winner/") == (
        "report: winner.report.html · nothing was written to winner/"
    )
    assert written("winner", "winner.report.html", out="winner").startswith(
        "winner/ written, verified · winner.rep"
    )


def test_weights_that_are_not_at_hand_have_one_word_and_no_advice():
    seen = replace(screened("far", 85.0, 20.0), weights_at_hand=False)
    found = decide([recorded("net", 80.0, 20.0), seen], max_latency_ms=50.0)
    (far,) = [entry for entry in found.ledger if entry.variant.candidate.name == "far"]
    assert far.status == "undecided"
    assert phrases.place(far) == "no weights at hand"
    assert ("no weights at hand", 1) in phrases.others(found, [])
    assert not any("--budget" in reason for reason in far.reasons)


def test_a_tie_is_called_one():
    text = summary(
        decide(raced({"quick": (74.0, 19.8), "sure": (76.0, 20.2)}, sigma=0.08), objective="latency")
    )
    first, _, winner, tie, *_ = text.splitlines()
    assert first.startswith("SELECTED   sure")
    assert "in a tie with 1 other: the more accurate was taken" in winner
    assert tie.startswith("tie        quick")


def test_a_tie_names_what_decided_it():
    """Equal accuracies that latency cannot part: the winner takes less memory, and that is what is said."""
    seen = raced({"small": (80.0, 20.0), "large": (80.0, 20.1)}, sigma=0.08)
    seen = [
        replace(each, memory=v.Memory(peak=100.0 if "small" in each.variant.name else 120.0)) for each in seen
    ]
    _, _, winner, tie, *_ = summary(decide(seen)).splitlines()
    assert "in a tie with 1 other: the one with less memory was taken" in winner
    assert tie.endswith("a tie with the winner in accuracy: 20 MiB more")
    equal = [replace(each, memory=v.Memory(peak=100.0)) for each in seen]
    assert ": the first by name was taken" in summary(decide(equal))


def test_a_winner_that_was_timed_in_noise_is_marked():
    one = variant("net")
    taken = timed(one, 20.0)
    noise = "noise: other processes interrupted 30 of 40 blocks (14603 switches)"
    text = summary(decide([observe(one, replace(taken, flags=(noise,)))]))
    assert f"DOUBT      {noise}" in text.splitlines()
    assert "DOUBT" not in summary(decide([observe(one, taken)]))


def test_what_lacks_and_what_was_never_measured():
    unseen = replace(recorded("large", 90.0, None, parity=None), pruned="latency: hardly below 90 ms")
    other = replace(recorded("late", 90.0, None, parity=None), pruned=None)
    selection = decide([recorded("net", 80.0, 20.0), unseen, other], max_latency_ms=50.0)
    text = summary(replace(selection, lacks=("large was never measured",)))
    lines = text.splitlines()
    assert lines[1] == "LACKS      large was never measured"
    assert lines[-1] == "rest       1 not measured: hardly fast enough · 1 not measured"
    assert "undecided" not in text


def test_no_verdict_that_is_open_is_worded_as_a_limit_to_loosen():
    """`admission` names limits only for what fails, whatever else is open."""
    seen = screened("net", 80.0, 20.0)
    (found,) = decide([seen], max_latency_ms=50.0, max_memory_mib=10.0).ledger
    assert {x.answer for x in found.verdicts if x.requirement == "max_latency"} == {"undecided"}
    assert phrases.admission(found) == "--max-memory 300MiB"
    (found,) = decide([seen], max_latency_ms=50.0).ledger
    assert phrases.admission(found) is None


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        (("pass", "pass"), "holds its claims"),
        (("pass", "undecided"), "was not shown to hold its claims"),
        (("pass", "not assessed"), "was not shown to hold its claims"),
        (("undecided", "fail"), "does not hold its claims"),
    ],
)
def test_verifying_calls_nothing_a_failure_that_is_open(answers, said):
    checks = tuple(Check(name="x", answer=a, observed=None, limit=None, reason="r") for a in answers)
    facts = v.RunnerFacts(runtime="x", version="1", precision="fp32", threads=2, graphs=())
    outcome = Verification(artifact="winner", name="net", checks=checks, facts=facts, differences=())
    assert outcome.answer == said
    if outcome.holds:
        outcome.require()
    else:
        with pytest.raises(ClaimError, match=f"winner is intact but {said}"):
            outcome.require()

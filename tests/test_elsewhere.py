"""`vitrail export`: what is built for another machine claims nothing, and says whether it was run (15 s)."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import artifacts
import batches
import numpy as np
import pytest
from test_serve_working import Process, until

from vitrail import cli, predict, runtimes, verify
from vitrail.artifact import NOT_RUN, NOT_TIMED, Evidence, open_artifact, write
from vitrail.errors import InputError
from vitrail.export.bench import Bench
from vitrail.selection.select import select
from vitrail.serve import wire
from vitrail.serve.describe import describe
from vitrail.vocabulary import Parity, Requirements, SearchSettings, Workload

ELSEWHERE = ("toyos",)


@pytest.fixture
def toy_elsewhere(monkeypatch) -> None:
    """An engine that reads ONNX files, and runs on a system that this is not."""
    row = runtimes.Runtime(
        label="Toy",
        code="vitrail.runtimes.onnxruntime",
        distribution="onnxruntime",
        module="onnxruntime",
        install="pip install toy",
        precisions={"cpu": ("fp32",)},
        files=("model.onnx", "model.onnx.data"),
        named_only=True,
        platforms=ELSEWHERE,
    )
    monkeypatch.setitem(runtimes.RUNTIMES, "toy", row)


@pytest.fixture
def asked(tiny_weights, tiny_labels, tmp_path, monkeypatch) -> list[str]:
    """The command for the tiny ViT, without its engine."""
    monkeypatch.setenv("VITRAIL_CACHE", str(tmp_path / "cache"))
    model = ["--arch", "test_vit", "--labels", str(tiny_labels), "--image-size", "64", "--offline"]
    return ["export", str(tiny_weights), *model, "--out", str(tmp_path / "out")]


def test_what_runs_here_is_run_and_claims_no_figures(asked, tmp_path, capsys):
    assert cli.main([*asked, "--runtimes", "onnxruntime", "--batch-size", "2"]) == 0
    said = capsys.readouterr().out
    out = tmp_path / "out"
    assert "against fp32: cosine 1.000000" in said
    assert NOT_TIMED in said
    assert f"vitrail verify {out} --measure" in said
    artifact = open_artifact(out)
    evidence = artifact.manifest.evidence
    assert (evidence.run, evidence.figures, artifact.manifest.measurement) == (True, False, None)
    assert evidence.workload.batch_size == 2
    assert evidence.requirements.license == ("any",)
    assert evidence.parity is not None
    assert evidence.facts is not None
    own, fp32 = artifact.own_outputs()["scores"], artifact.fp32_outputs()["scores"]
    np.testing.assert_allclose(own, fp32, atol=1e-3 * np.abs(fp32).max())
    # `describe` is what a server says of it.
    assert not {"latency_ms", "accuracy", "memory_mib"} & set(describe(artifact, evidence.facts)["evidence"])
    found = verify.verify(out)
    assert found.holds
    assert "relative error to its own outputs" in [check.name for check in found.checks]
    assert "no figures are claimed" in found.notes[0]


def test_measuring_it_says_what_it_saw(asked, tmp_path, capsys):
    assert cli.main([*asked, "--runtimes", "onnxruntime"]) == 0
    capsys.readouterr()
    assert cli.main(["verify", str(tmp_path / "out"), "--measure", "--threads", "1"]) == 0
    said = capsys.readouterr().out
    assert "measured here: request p50" in said
    assert "model p50" in said
    assert "peak" in said
    assert "holds its claims" in said


def test_what_does_not_run_here_has_no_outputs_of_its_own(
    asked, toy_elsewhere, tmp_path, capsys, monkeypatch
):
    assert cli.main([*asked, "--runtimes", "toy", "--json", str(tmp_path / "said.json")]) == 0
    said, out = capsys.readouterr().out, tmp_path / "out"
    assert NOT_RUN in said
    assert f"next, on toyos: vitrail verify {out} --measure" in said
    document = json.loads((tmp_path / "said.json").read_text())
    assert (document["run"], document["parity"]) == (False, None)
    artifact = open_artifact(out)
    evidence = artifact.manifest.evidence
    assert (evidence.run, evidence.figures, evidence.facts, evidence.parity) == (False, False, None, None)
    assert artifact.own_outputs() == {}
    assert not (out / "reference" / "own").exists()
    assert np.isfinite(artifact.fp32_outputs()["scores"]).all()
    # Here it is refused, by every command that would run it.
    for command in (["verify", str(out)], ["predict", str(out), str(artifact.photos[0])]):
        assert cli.main(command) == 2
        assert "Toy runs on toyos and this is" in capsys.readouterr().err
    # There it runs, is compared with fp32 alone, and says so.
    monkeypatch.setitem(runtimes.RUNTIMES, "toy", replace(runtimes.RUNTIMES["toy"], platforms=()))
    monkeypatch.setattr("vitrail.runtimes.onnxruntime.NAME", "toy", raising=False)
    found = verify.verify(out)
    assert found.holds
    names = [check.name for check in found.checks]
    assert "cosine to fp32" in names
    assert "relative error to its own outputs" not in names
    assert found.notes == ("it was built where its engine does not run, never timed: no figures are claimed",)
    with predict.load(out) as predictor:
        assert len(predictor.predict(artifact.photos)) == len(artifact.photos)


@pytest.fixture
def never_run(tmp_path) -> artifacts.Bundle:
    """OpenVINO's toy, as if it had been built elsewhere."""
    asked = Requirements(license=("any",))
    evidence = Evidence(requirements=asked, workload=Workload(threads=1), run=False)
    return replace(artifacts.make_bundle(tmp_path), evidence=evidence, own_outputs={}, measurement=None)


def test_it_is_measured_for_the_first_time_there(never_run, tmp_path, capsys):
    write(tmp_path / "built", never_run)
    assert cli.main(["verify", str(tmp_path / "built"), "--measure"]) == 0
    said = capsys.readouterr().out
    assert "cosine to fp32" in said
    assert "measured here: request p50" in said
    assert "not assessed" not in said
    assert "holds its claims" in said


def test_it_is_served_and_runs_over_a_folder(never_run, tmp_path, monkeypatch):
    monkeypatch.setenv("VITRAIL_CACHE", str(tmp_path / "cache"))
    artifact = write(tmp_path / "built", never_run)
    process = Process(artifact)
    process.working.start()
    process.working.take(wire.Try(id=1, photo=0, deadline=time.monotonic() + 20), b"")
    until(lambda: process.said[wire.Tried])
    assert process.said[wire.Tried][0].failures == []
    assert batches.batch(str(artifact.path), artifact.path / "reference" / "photos", tmp_path / "job") == 0
    assert len(batches.rows(tmp_path / "job")) == len(artifact.photos)


def test_it_fails_there_where_the_engine_answers_otherwise(never_run, tmp_path):
    wrong = {name: values + 0.5 for name, values in never_run.fp32_outputs.items()}
    write(tmp_path / "wrong", replace(never_run, fp32_outputs=wrong))
    found = verify.verify(tmp_path / "wrong")
    assert "relative error to fp32" in [check.name for check in found.checks if check.answer == "fail"]
    assert not found.holds


def test_an_artifact_that_was_not_run_cannot_claim(tmp_path):
    bundle = artifacts.make_bundle(tmp_path)
    with pytest.raises(ValueError, match="own outputs"):  # they say what the engine gave
        write(tmp_path / "a", replace(bundle, evidence=replace(bundle.evidence, run=False)))
    claims = replace(bundle, own_outputs={}, evidence=replace(bundle.evidence, run=False))
    with pytest.raises(InputError, match="what was not run has no figures"):
        write(tmp_path / "b", claims)
    said = replace(bundle, evidence=replace(bundle.evidence, flags=(NOT_RUN,)))
    assert write(tmp_path / "d", said).manifest.evidence.run, "a flag is for people"
    with pytest.raises(ValueError, match="own outputs"):  # nor may what was run be without
        write(tmp_path / "c", replace(bundle, own_outputs={}))


def test_parity_gates_what_runs_here(asked, tmp_path, capsys, monkeypatch):
    def failed(self: Bench, subject: object, left_s: float) -> Parity:
        return Parity(
            answer="fail",
            cosine=0.5,
            relative_error=0.9,
            photos=11,
            decided=0,
            agreeing=0,
            loss=None,
            loss_bound=None,
            reason="cosine 0.5 is below 0.999999",
            worst="/photos/cat.png",
        )

    monkeypatch.setattr(Bench, "parity", failed)
    assert cli.main([*asked, "--runtimes", "onnxruntime"]) == 3
    said = capsys.readouterr().err
    assert "cosine 0.5 is below 0.999999, most on /photos/cat.png" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "give --runtimes one name of openvino, onnxruntime"),
        (["--runtimes", "openvino,onnxruntime"], "One engine's files are exported"),
        (["--runtimes", "pytorch"], "is a reference and never ships"),
        (["--runtimes", "openvino", "--precisions", "fp32,bf16"], "One precision is exported"),
        (
            ["--runtimes", "onnxruntime", "--precisions", "bf16"],
            "ONNX Runtime has no bf16: choose fp32 or int8",
        ),
        (
            ["--runtimes", "onnxruntime", "--precisions", "int8"],
            "int8 needs photos to be calibrated on: give --images or --calibration.",
        ),
        (["--runtimes", "onnxruntime", "--out", ""], "The name of the folder to write is empty: give one."),
        (["--runtimes", "onnxruntime", "--calibration", "."], "--calibration is about int8"),
        (["--runtimes", "nothing"], "nknown runtime"),
    ],
)
def test_what_cannot_be_exported_is_refused_first(asked, options: list[str], said: str, capsys):
    assert cli.main([*asked, *options]) == 2
    assert said in capsys.readouterr().err


def test_a_selection_refuses_an_engine_of_another_system(toy_elsewhere, capsys):
    assert "toy" not in runtimes.installed()
    with pytest.raises(InputError, match=r"Toy runs on toyos: build it here with `vitrail export MODEL"):
        select(settings=SearchSettings(runtimes=("toy",)))
    assert cli.main(["optimize", "resnet50.a1_in1k", "--runtimes", "toy"]) == 2
    assert "measure it there with `vitrail verify DIR --measure`" in capsys.readouterr().err


def test_a_file_whose_weights_are_gone_is_refused(tmp_path, capsys):
    command = ["export", str(Path(tmp_path) / "gone" / "a.pth"), "--runtimes", "openvino"]
    assert cli.main([*command, "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith("vitrail: error: ")

"""Limits of stages on a real promptable artifact, measured in processes of its own (about 30 s)."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import clicks
import pytest
import torch

from vitrail import cli, judge, remeasure
from vitrail.artifact import Artifact, open_artifact, write
from vitrail.models.sam import SAM
from vitrail.vocabulary import Requirements, Workload


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, SAM]:
    """The export and its module."""
    torch.set_num_threads(1)
    model = clicks.ours(clicks.theirs().state_dict())
    return clicks.export(model, tmp_path_factory.mktemp("sam")), model


@pytest.fixture(scope="module")
def artifact(made, tmp_path_factory) -> Artifact:
    return clicks.artifact(*made, tmp_path_factory.mktemp("artifact"))


def test_every_scope_is_timed_and_each_limit_is_judged(artifact):
    asked = Requirements(max_stage_latency_ms=(("encode", 2000.0), ("prompt", 0.001)))
    load = Workload(threads=1, batch_size=1)
    seen = remeasure.measure_artifact(artifact, asked, load, launches=3, patience_s=0.0)
    assert list(seen.latency) == ["request", "model", "encode", "prompt"]
    # A request is both stages and more; the model alone is neither decoding nor the mask at the photo's size.
    p50 = {scope: figures.p50 for scope, figures in seen.latency.items()}
    assert p50["request"] > p50["encode"]
    assert p50["request"] > p50["prompt"]
    assert p50["request"] > p50["model"]
    found = {each.requirement: each for each in judge.verdicts(seen, asked, load)}
    assert found["max_latency.prompt"].answer == "fail"
    assert found["max_latency.encode"].answer in ("pass", "undecided")  # the other one ended it early
    assert found["max_latency.prompt"].admit.startswith("--max-latency encode=2000ms,prompt=")


def test_verify_against_limits_of_stages(artifact, tmp_path, capsys):
    asked = tmp_path / "asked.toml"
    asked.write_text('max-latency = "60s,encode=60s,prompt=60s"\n')
    document = tmp_path / "verified.json"
    code = cli.main(["verify", str(artifact.path), "--against", str(asked), "--json", str(document)])
    out = capsys.readouterr().out
    checks = {each["name"]: each for each in json.loads(Path(document).read_text())["checks"]}
    for name in ("max_latency", "max_latency.encode", "max_latency.prompt"):
        assert checks[name]["answer"] == "pass", out
    assert "prompt p95 " in checks["max_latency.prompt"]["reason"]
    assert code in (0, 3)  # 3: parity was invented, and may not be what it is here


def test_an_artifact_keeps_the_limits_it_was_selected_under(made, tmp_path):
    asked = Requirements(max_latency_ms=400.0, max_stage_latency_ms=(("prompt", 20.0),))
    parts = clicks.bundle(*made, tmp_path / "parts")
    evidence = replace(parts.evidence, requirements=asked)
    path = write(tmp_path / "kept", replace(parts, evidence=evidence)).path
    assert open_artifact(path).manifest.evidence.requirements == asked
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["schema_version"] == 9
    assert manifest["evidence"]["requirements"]["max_stage_latency_ms"] == [["prompt", 20.0]]

"""A new engine or task is one file and one row, a new source one file: nothing else changes."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import artifacts
import numpy as np
import openvino as ov
import pytest
import toy_task
from openvino import opset13 as ops

from vitrail import judge, predict, runtimes, tasks
from vitrail.artifact import open_artifact, write
from vitrail.document import from_document, to_json_bytes
from vitrail.errors import InputError
from vitrail.export.variants import variants
from vitrail.images.decode import decode
from vitrail.images.photos import PhotoSet
from vitrail.measure import launch, peaks
from vitrail.measure.latency import Plan, finals
from vitrail.measure.peaks import Probes
from vitrail.measure.session import ExportSession, SessionRequest, start
from vitrail.report import html, terminal
from vitrail.requirements import resolve
from vitrail.sources.gather import arranged, check_task, find, gather
from vitrail.sources.probe import Probe
from vitrail.sources.source import Context, Found, Source
from vitrail.verify import verify
from vitrail.vocabulary import (
    LEAST,
    Block,
    Candidate,
    Export,
    Figure,
    Measurement,
    Quality,
    Requirements,
    SearchSettings,
    Workload,
)


@pytest.fixture
def toy_runtime(monkeypatch):
    row = runtimes.Runtime(
        label="Toy",
        code="toy_runtime",
        distribution="numpy",
        module="numpy",
        install="pip install toy",
        precisions={"cpu": ("fp32",)},
        files=("toy.txt",),
        builds=True,
    )
    monkeypatch.setitem(runtimes.RUNTIMES, "toy", row)


@pytest.fixture
def toy_task_row(monkeypatch):
    monkeypatch.setitem(tasks.TASKS, "colour", "toy_task:Colour")


def session_of(artifact) -> ExportSession:
    variant, photos = artifact.manifest.variant, [str(photo) for photo in artifact.photos]
    return ExportSession(
        SessionRequest(
            folder=str(artifact.model_folder),
            graphs=(artifact.manifest.graphs[0],),
            target=variant.on("cpu"),
            batch_size=2,
            threads=1,
            task=tasks.pack(artifact.task),
            photos=photos,
        )
    )


def walks_the_road(folder: Path, bundle) -> list[object]:
    """Ship, open, verify, measure and use it; what it says of its photos."""
    artifact = write(folder / "winner", bundle)
    assert open_artifact(artifact.path).task == bundle.task
    assert verify(artifact.path, threads=1).holds
    session = session_of(artifact)
    assert session.facts()["facts"]["runtime"] == bundle.variant.runtime
    assert len(session.block("request", 3)["samples_ms"]) == 3
    session.outputs([str(photo) for photo in artifact.photos], 2, str(folder / "outputs.npz"))
    for values in tasks.read_arrays(folder / "outputs.npz").values():
        assert values.shape[:2] == (len(artifact.photos), 2)
    # One crop a photo goes through the threads; the same rows come out, in the same order.
    session.outputs([str(photo) for photo in artifact.photos], 1, str(folder / "first.npz"))
    for name, values in tasks.read_arrays(folder / "first.npz").items():
        np.testing.assert_allclose(
            values[:, 0], tasks.read_arrays(folder / "outputs.npz")[name][:, 0], rtol=1e-4, atol=1e-5
        )
    with predict.load(artifact.path, threads=1) as predictor:
        return predictor.predict(artifact.photos)


def test_an_engine_is_one_file_and_one_row(toy_runtime, tmp_path):
    bundle = artifacts.make_bundle(tmp_path)
    (tmp_path / "toy").mkdir()
    runtimes.implementation("toy").build(Path("model.onnx"), tmp_path / "toy")
    graph = bundle.task.graph("toy.txt")
    facts = replace(
        bundle.evidence.facts, runtime="toy", graphs=(runtimes.sized(graph, {"B": 2}),), details=()
    )
    toy = replace(
        bundle,
        variant=replace(bundle.variant, runtime="toy"),
        export=Export(folder=str(tmp_path / "toy"), files=("toy.txt",), graphs=(graph,)),
        own_outputs=bundle.fp32_outputs,
        evidence=replace(bundle.evidence, facts=facts),
    )
    said = walks_the_road(tmp_path, toy)
    expected = [artifacts.LABELS[row.argmax()] for row in bundle.fp32_outputs["scores"]]
    assert [each.label for each in said] == expected
    asked = SearchSettings(runtimes=("toy",))
    assert {v.runtime for v in variants([toy.variant.candidate], Workload(), asked)} == {"toy"}
    assert runtimes.installed()["toy"] == np.__version__
    # Its own reading of memory is the measurement's, and its own product its peak.
    assert session_of(open_artifact(tmp_path / "winner")).memory() == {
        "peak": 12.5,
        "steady": 11.0,
        "above_baseline": 1.5,
    }
    assert Probes().peak(1, runtime="toy", precision="fp32", device="cpu") > 0


def test_an_engine_is_probed_on_its_devices_alone(toy_runtime, monkeypatch):
    monkeypatch.setitem(
        runtimes.RUNTIMES, "toy", replace(runtimes.RUNTIMES["toy"], precisions={"toy": ("fp32",)})
    )
    asked = []

    class Here:
        def __init__(self, *_, **__):
            pass

        def result(self, _):
            return {}

        def call(self, method, _, **arguments):
            asked.append((arguments["runtime"], arguments["device"]))
            return 1.0

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(peaks.sandbox, "Child", Here)
    assert peaks.peaks(1, "toy") == {"toy": {"fp32": 1.0}}
    assert asked == [("toy", "toy")]
    asked.clear()
    assert "toy" not in peaks.peaks(1, "cpu")


class Here:
    """A launch without a process of its own, in which the toys have their rows."""

    def __init__(self, function, payload, **_):
        self.session = start(json.loads(json.dumps(payload)))

    def result(self, timeout_s):
        return None

    def call(self, method, timeout_s, **arguments):
        return json.loads(json.dumps(getattr(self.session, method)(**arguments)))

    def close(self):
        self.session = None


def test_an_engine_may_have_no_files(monkeypatch, tmp_path):
    """As a remote endpoint: launched, judged, written, read and reported like any other."""
    row = runtimes.Runtime(
        label="Endpoint",
        code="toy_endpoint",
        distribution="numpy",
        module="numpy",
        install="pip install endpoint",
        precisions={"cpu": ("fp32",)},
        files=(),
    )
    monkeypatch.setitem(runtimes.RUNTIMES, "endpoint", row)
    monkeypatch.setattr(launch, "Child", Here)
    (tmp_path / "nothing").mkdir()
    variant = replace(artifacts.make_variant(), runtime="endpoint")
    workload = Workload(threads=1, percentile=50.0)
    photos = tuple(map(str, artifacts.make_photos(tmp_path / "photos")))
    subject = launch.ExportSubject(
        variant=variant,
        export=Export(folder=str(tmp_path / "nothing"), files=(), graphs=(artifacts.TASK.graph(row.entry),)),
        workload=workload,
        task=artifacts.TASK,
        photos=PhotoSet(name="toys", paths=photos, digest="d", evidence="toys"),
        threads=1,
    )
    plan = Plan(percentile=50.0, limit_ms=1000.0, block_s=0.01, rounds=2, final_calls=30)
    outcome = finals([subject], plan, rng=random.Random(0))[variant.name]
    assert outcome.failure is None
    measurement = Measurement(
        variant=variant.name,
        workload=workload,
        environment=artifacts.make_evidence(subject.seen.facts).environment,
        facts=subject.seen.facts,
        blocks=outcome.blocks,
        memory=subject.seen.memory,
        parity=None,
        load_s=subject.seen.load_s,
        warm_up_calls=subject.seen.warm_up_calls,
    )
    seen = judge.observe(variant, measurement, latency_answer=outcome.latency_answer)
    asked = Requirements(max_latency_ms=1000.0)
    selection = judge.judge([seen], asked, workload, hardware={}, shipping=False)
    assert selection.selected == variant.name
    again = from_document(to_json_bytes(selection), "it").selection
    assert again.selected == variant.name
    assert again.ledger[0].observation.latency == seen.latency
    assert again.ledger[0].observation.facts.graphs[0].entry == ""
    assert "endpoint" in html.render(again)
    assert f"SELECTED   {variant.name}" in terminal.summary(again)


def test_a_task_is_one_file_and_one_row(toy_task_row, tmp_path):
    asked = resolve(flags={"task": "colour"})[2]
    assert asked.task == "colour"
    task = toy_task.Colour(preprocess=artifacts.PREPROCESS)
    size = task.preprocess.image_size
    image = ops.parameter([-1, 3, size, size], np.float32, name="images")
    image.output(0).set_names({"images"})
    mean = ops.reduce_mean(image, ops.constant([2, 3]), keep_dims=False)
    mean.output(0).set_names({"channels"})
    (tmp_path / "model").mkdir()
    ov.save_model(
        ov.Model([mean], [image], "colour"), tmp_path / "model" / "model.xml", compress_to_fp16=False
    )
    bundle = artifacts.make_bundle(tmp_path)
    inputs = task.prepare([decode(photo) for photo in bundle.photos])
    outputs = {"channels": inputs["images"].mean(axis=(2, 3))}
    graph = task.graph("model.xml")
    candidate = replace(bundle.variant.candidate, task="colour", accuracy=None)
    facts = replace(bundle.evidence.facts, graphs=(runtimes.sized(graph, {"B": 2}),))
    colour = replace(
        bundle,
        task=task,
        variant=replace(bundle.variant, candidate=candidate),
        export=Export(folder=str(tmp_path / "model"), files=("model.xml", "model.bin"), graphs=(graph,)),
        fp32_outputs=outputs,
        own_outputs=outputs,
        evidence=replace(bundle.evidence, facts=facts, accuracy=None),
    )
    said = walks_the_road(tmp_path, colour)
    assert said == task.finish(outputs)


class Toy(Source):
    """Brings one candidate, which is alone: the catalogue takes part where globs name something of it."""

    option = "toy"

    def __init__(self, candidate: Candidate) -> None:
        self.candidate = candidate

    def licenses(self):
        return (self.candidate.weights.license,)

    def find(self, context):
        return Found(candidates=(self.candidate,), notes=("from a toy",))


def test_a_source_is_one_class_that_the_command_line_makes(tmp_path, monkeypatch):
    candidate = artifacts.make_bundle(tmp_path).variant.candidate
    toy = Toy(candidate)
    bench = SimpleNamespace(dataset=None, workload=Workload())
    context = Context(requirements=Requirements(), settings=SearchSettings(), bench=bench, download_mib=0.0)
    found = gather(find(arranged([toy], context.settings, None), context), context)
    assert found.candidates == (candidate,)
    assert found.notes == ("from a toy",)
    assert variants(found.candidates, Workload(), context.settings)
    beside = replace(context, settings=SearchSettings(models=("swin_tiny*",)))
    both = gather(find(arranged([toy], beside.settings, None), beside), beside)
    assert {each.family for each in both.candidates} == {candidate.family, "swin"}
    # Its head answers other classes than labelled images have, so they would give it a new one.
    asked = []

    def probed(self, context):
        asked.append(self.backbones.candidates)
        return Found(excluded={candidate.name: "no" for candidate in self.backbones.candidates})

    monkeypatch.setattr(Probe, "find", probed)
    labelled = replace(context, bench=SimpleNamespace(dataset=object(), workload=Workload()))
    with pytest.raises(InputError, match="No candidate is left"):
        gather(find([toy], labelled), labelled)
    assert asked == [(candidate,)]
    with pytest.raises(InputError, match=f"Two candidates are named {candidate.name}"):
        find([toy, Toy(candidate)], context)
    with pytest.raises(InputError, match="--toy is about classes"):
        check_task([toy], "embed")


def test_a_task_names_its_own_figures(toy_task_row, monkeypatch):
    """They are judged, written and reported under these names, without what only classifiers have."""
    monkeypatch.setitem(LEAST, "min_recall", "IoU")  # what a limit of another figure would be: a row
    candidate = replace(artifacts.make_variant().candidate, task="colour", accuracy=None)
    variant = replace(artifacts.make_variant(), candidate=candidate)
    quality = Quality(
        split="validation",
        data="d",
        images=45,
        figures=(
            Figure(metric="mean IoU", value=62.5, interval=(58.0, 67.0), images=45),
            Figure(metric="IoU", label="red", value=75.0, images=40),
            Figure(metric="IoU", label="blue", value=50.0, images=30),
            Figure(metric="price per 1,000 images", value=120.0, unit="EUR", images=45),
        ),
    )
    evidence = artifacts.make_evidence(None)
    measurement = Measurement(
        variant=variant.name,
        workload=evidence.workload,
        environment=evidence.environment,
        facts=None,
        blocks=tuple(
            Block(launch=n, scope=stage, samples_ms=(5.0,) * 40, speed_before_ms=1.0, speed_after_ms=1.0)
            for n in range(3)
            for stage in ("request", "model", "encode")
        ),
        memory=evidence.memory,
        parity=None,
        load_s=1.0,
        warm_up_calls=3,
        quality=quality,
    )
    asked = Requirements(min_accuracy=60.0, min_recall=(("blue", 55.0),))
    seen = judge.observe(variant, measurement)
    selection = judge.judge([seen], asked, evidence.workload, hardware={}, shipping=False)
    verdicts = {each.requirement: each for each in selection.ledger[0].verdicts}
    assert verdicts["min_accuracy"].reason == "mean IoU 62.5 % measured: 2.5 points of room"
    assert verdicts["min_recall"].reason.startswith("IoU of blue 50 % of 30 images: 5 points short")
    assert list(seen.latency) == ["request", "model", "encode"]
    selection = judge.judge([seen], Requirements(), evidence.workload, hardware={}, shipping=False)
    again = from_document(to_json_bytes(selection), "it").selection
    assert again.ledger[0].observation.quality == quality
    assert again.ledger[0].observation.latency == seen.latency
    assert "mean IoU 62.5 measured on 45 images [58, 67]" in terminal.summary(again)
    page = html.render(again)
    for said in (
        "mean IoU 62.5 % on 45 validation images [58.0, 67.0]",
        "weakest IoU blue 50.0 %, price per 1,000 images 120.0 EUR",
        "IoU %</th>",
        "mean IoU</p>",
        "latency, encode",
    ):
        assert said in page
    assert "top\u20111" not in page
    assert "top-1" not in page

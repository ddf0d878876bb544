"""A new engine or task is one file and one row, a new source one file: nothing else changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import artifacts
import numpy as np
import openvino as ov
import pytest
import toy_task
from openvino import opset13 as ops

from vitrail import predict, runtimes, tasks
from vitrail.artifact import open_artifact, write
from vitrail.errors import InputError
from vitrail.export.variants import variants
from vitrail.images.decode import decode
from vitrail.measure.session import ExportSession, SessionRequest
from vitrail.sources.gather import arranged, check_task, gather
from vitrail.sources.probe import Probe
from vitrail.sources.source import Context, Found, Source
from vitrail.verify import verify
from vitrail.vocabulary import Candidate, Export, Requirements, SearchSettings, Workload


@pytest.fixture
def toy_runtime(monkeypatch):
    row = runtimes.Runtime(
        label="Toy",
        code="toy_runtime",
        distribution="numpy",
        module="numpy",
        install="pip install toy",
        precisions=("fp32",),
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
            graph=artifact.manifest.graphs[0],
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


def test_a_task_is_one_file_and_one_row(toy_task_row, tmp_path):
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


def test_a_source_is_one_class_that_the_command_line_makes(tmp_path):
    candidate = artifacts.make_bundle(tmp_path).variant.candidate
    toy = Toy(candidate)
    bench = SimpleNamespace(dataset=None, workload=Workload())
    context = Context(requirements=Requirements(), settings=SearchSettings(), bench=bench, download_mib=0.0)
    found = gather(arranged([toy], context.settings, None), context)
    assert found.candidates == (candidate,)
    assert found.notes == ("from a toy",)
    assert variants(found.candidates, Workload(), context.settings)
    beside = replace(context, settings=SearchSettings(models=("swin_tiny*",)))
    both = gather(arranged([toy], beside.settings, None), beside)
    assert {each.family for each in both.candidates} == {candidate.family, "swin"}
    # Its head answers other classes than labelled images have, so they would give it a new one.
    (probe,) = arranged([toy], context.settings, SimpleNamespace(classes=("a", "b")))
    assert probe == Probe((toy,))
    with pytest.raises(InputError, match="--toy is about classes"):
        check_task([toy], "embed")

"""A small real artifact for tests: a convolutional classifier as OpenVINO IR with a NumPy twin."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import openvino as ov
from openvino import opset13 as ops
from PIL import Image

from vitrail import hardware, predict, runtimes
from vitrail.artifact import Artifact, Bundle, Evidence, write
from vitrail.images.decode import decode
from vitrail.images.preprocess import prepare_batch
from vitrail.tasks import Bounds
from vitrail.tasks.classify import Classify
from vitrail.tasks.embed import Embed
from vitrail.vocabulary import (
    Accuracy,
    Candidate,
    Environment,
    Export,
    JudgedLatency,
    LatencyFigures,
    Memory,
    Preprocess,
    Requirements,
    RunnerFacts,
    Target,
    Variant,
    Weights,
    Workload,
)

SIZE = 32
LABELS = ("tench, Tinca tinca", "daisy", "palace", "größe", "form\x0cfeed")
PREPROCESS = Preprocess(image_size=SIZE)
TASK = Classify(preprocess=PREPROCESS, labels=LABELS)
EMBED = Embed(preprocess=PREPROCESS, width=8)
BOUNDS = Bounds(cosine=0.999_99, relative_error=1e-3, agreement=1.0)

_RNG = np.random.default_rng(7)
FILTERS = _RNG.normal(size=(8, 3, 3, 3)).astype(np.float32)
HEAD = _RNG.normal(size=(8, len(LABELS))).astype(np.float32) * 3


def numpy_scores(batch: np.ndarray) -> np.ndarray:
    """The same network without an engine: float32 (n, 3, S, S) -> float64 (n, K)."""
    return numpy_vectors(batch) @ HEAD.astype(np.float64)


def numpy_vectors(batch: np.ndarray) -> np.ndarray:
    """The network before its head: float32 (n, 3, S, S) -> float64 (n, 8)."""
    windows = np.lib.stride_tricks.sliding_window_view(batch.astype(np.float64), (3, 3), axis=(2, 3))
    features = np.maximum(np.einsum("nchwij,fcij->nfhw", windows, FILTERS.astype(np.float64)), 0)
    return features.mean(axis=(2, 3))


def make_export(folder: Path) -> Export:
    """Write the network as IR with a dynamic batch."""
    image = ops.parameter([-1, 3, SIZE, SIZE], np.float32, name="image")
    features = ops.relu(ops.convolution(image, ops.constant(FILTERS), [1, 1], [0, 0], [0, 0], [1, 1]))
    pooled = ops.reduce_mean(features, ops.constant([2, 3]), keep_dims=False)
    scores = ops.matmul(pooled, ops.constant(HEAD), False, False)
    folder.mkdir(parents=True)
    ov.save_model(ov.Model([scores], [image], "tiny"), folder / "model.xml", compress_to_fp16=False)
    return Export(folder=str(folder), files=("model.xml", "model.bin"), graphs=(TASK.graph("model.xml"),))


def make_photos(folder: Path, count: int = 3, seed: int = 3) -> tuple[Path, ...]:
    """Smooth random photos, one of them a JPEG."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    paths = []
    for i in range(count):
        small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        path = folder / f"photo{i}.{'JPG' if i == 1 else 'png'}"
        small.resize((80, 60), Image.Resampling.BICUBIC).save(path)
        paths.append(path)
    return tuple(paths)


def make_variant() -> Variant:
    candidate = Candidate(
        name="tiny.test",
        architecture="tiny",
        family="test",
        weights=Weights(source="package", reference="none", license="apache-2.0"),
        preprocess=PREPROCESS,
        accuracy=Accuracy(value=71.5, provenance="published", source="nowhere"),
        parameters=256,
        macs=1000,
    )
    return Variant(candidate=candidate, image_size=SIZE, runtime="openvino", precision="fp32")


def figures(value: float) -> LatencyFigures:
    judged = JudgedLatency(percentile=95.0, value=value, interval=None)
    return LatencyFigures(p50=value, p95=value, p99=value, judged=judged, calls=100)


def make_evidence(facts: RunnerFacts, *, batch_size: int = 2) -> Evidence:
    here = hardware.fingerprint(hardware.facts())
    return Evidence(
        requirements=Requirements(max_latency_ms=50.0),
        workload=Workload(batch_size=batch_size, threads=1),
        accuracy=Accuracy(value=71.5, provenance="published", source="nowhere"),
        latency={"request": figures(4.0), "model": figures(1.0)},
        throughput=500.0,
        memory=Memory(peak=200.0, steady=180.0, above_baseline=20.0),
        facts=facts,
        environment=Environment(hardware=here, engine="openvino", vitrail="1", photos="none"),
        hardware={"cpu": {"model": "test"}},
    )


def make_bundle(folder: Path, *, batch_size: int = 2) -> Bundle:
    """A bundle whose own outputs come from OpenVINO and whose fp32 outputs come from NumPy."""
    export, photos = make_export(folder / "export"), make_photos(folder / "photos")
    runner = runtimes.load(
        Path(export.folder),
        export.graphs[0],
        Target(runtime="openvino", precision="fp32"),
        sizes={"B": batch_size},
        threads=1,
    )
    batch = prepare_batch([decode(photo) for photo in photos], PREPROCESS)
    own = predict.Predictor(runner, TASK).run({"images": batch})
    return Bundle(
        variant=make_variant(),
        task=TASK,
        export=export,
        evidence=make_evidence(runner.facts, batch_size=batch_size),
        photos=photos,
        fp32_outputs={"scores": numpy_scores(batch).astype(np.float32)},
        own_outputs=own,
        bounds=BOUNDS,
    )


def make_artifact(folder: Path, *, batch_size: int = 2) -> Artifact:
    """Write the small artifact to `folder/winner`."""
    return write(folder / "winner", make_bundle(folder, batch_size=batch_size))


def make_embed_artifact(folder: Path) -> Artifact:
    """The network before its head as an embedding, written to `folder/winner`."""
    image = ops.parameter([-1, 3, SIZE, SIZE], np.float32, name="images")
    maps = ops.relu(ops.convolution(image, ops.constant(FILTERS), [1, 1], [0, 0], [0, 0], [1, 1]))
    model = ov.Model([ops.reduce_mean(maps, ops.constant([2, 3]), keep_dims=False)], [image], "tiny")
    (folder / "model").mkdir(parents=True)
    ov.save_model(model, folder / "model" / "model.xml", compress_to_fp16=False)
    bundle = make_bundle(folder)
    photos = [decode(photo) for photo in bundle.photos]
    outputs = {"vectors": numpy_vectors(prepare_batch(photos, PREPROCESS)).astype(np.float32)}
    graph = EMBED.graph("model.xml")
    changed = replace(
        bundle,
        task=EMBED,
        variant=replace(bundle.variant, candidate=replace(bundle.variant.candidate, task="embed")),
        export=Export(folder=str(folder / "model"), files=("model.xml", "model.bin"), graphs=(graph,)),
        fp32_outputs=outputs,
        own_outputs=outputs,
        evidence=replace(
            bundle.evidence,
            facts=replace(bundle.evidence.facts, graphs=(runtimes.sized(graph, {"B": 2}),)),
        ),
    )
    return write(folder / "winner", changed)


def make_onnx_artifact(folder: Path, *, batch_size: int = 2) -> Artifact:
    """The same network as an ONNX file for ONNX Runtime, written to `folder/onnx`."""
    from onnx import TensorProto, helper, numpy_helper, save

    nodes = [
        helper.make_node("Conv", ["image", "filters"], ["windows"]),
        helper.make_node("Relu", ["windows"], ["features"]),
        helper.make_node("GlobalAveragePool", ["features"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "head"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", len(LABELS)])],
        [numpy_helper.from_array(FILTERS, "filters"), numpy_helper.from_array(HEAD, "head")],
    )
    bundle = make_bundle(folder, batch_size=batch_size)
    export = folder / "onnx-export"
    export.mkdir()
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    save(model, export / "model.onnx")
    facts = replace(bundle.evidence.facts, runtime="onnxruntime")
    changed = replace(
        bundle,
        variant=replace(bundle.variant, runtime="onnxruntime"),
        export=Export(folder=str(export), files=("model.onnx",), graphs=(TASK.graph("model.onnx"),)),
        evidence=replace(bundle.evidence, facts=facts),
    )
    return write(folder / "onnx", changed)

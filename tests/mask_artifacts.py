"""Small real artifacts that make masks: `mask_nets`' net as OpenVINO IR, with ONNX Runtime as its twin."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import artifacts
import mask_nets
import numpy as np
import onnx
import onnxruntime as ort
import openvino as ov

from vitrail import runtimes
from vitrail.artifact import Artifact, write
from vitrail.images.decode import decode
from vitrail.tasks.mask_parity import MASK_BOUNDS
from vitrail.tasks.segment import Segment
from vitrail.vocabulary import Accuracy, Export, Preprocess

DISC = ("disc",)


def segment_task(classes: tuple[str, ...] = mask_nets.CLASSES) -> Segment:
    """What the net is for: all its classes, or the disc to be cut out."""
    preprocess = Preprocess(
        image_size=mask_nets.SIZE,
        crop=1.0,
        crop_mode="squash",
        interpolation="bilinear",
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
    )
    return Segment(preprocess=preprocess, labels=classes, values="logits", height=16, width=16)


def make_segment_artifact(
    folder: Path, classes: tuple[str, ...] = mask_nets.CLASSES, *, swap: bool = False
) -> Artifact:
    """Write the net to `folder/winner`; `swap`: two of its classes change places."""
    task = segment_task(classes)
    bundle = artifacts.make_bundle(folder)
    mask_nets.write_photos(folder / "seen", 4)
    paths = tuple(sorted((folder / "seen").iterdir()))
    (folder / "model").mkdir()
    onnx.save(mask_nets.net(classes=len(classes), swap=swap), folder / "net.onnx")
    session = ort.InferenceSession(str(folder / "net.onnx"), providers=["CPUExecutionProvider"])
    model = ov.convert_model(str(folder / "net.onnx"))
    model.input(0).set_names({"images"})
    model.output(0).set_names({"masks"})
    ov.save_model(model, folder / "model" / "model.xml", compress_to_fp16=False)
    inputs = task.prepare([decode(path) for path in paths])
    outputs = {"masks": session.run(None, {"pixels": inputs["images"]})[0].astype(np.float32)}
    graph = task.graph("model.xml")
    candidate = replace(bundle.variant.candidate, task="segment", preprocess=task.preprocess, accuracy=None)
    accuracy = Accuracy(value=88.5, provenance="measured", source="four drawn photos")
    evidence = replace(
        bundle.evidence,
        accuracy=accuracy,
        facts=replace(bundle.evidence.facts, graphs=(runtimes.sized(graph, {"B": 2}),)),
    )
    changed = replace(
        bundle,
        task=task,
        variant=replace(bundle.variant, candidate=candidate, image_size=mask_nets.SIZE),
        export=Export(folder=str(folder / "model"), files=("model.xml", "model.bin"), graphs=(graph,)),
        photos=paths,
        fp32_outputs=outputs,
        own_outputs=outputs,
        bounds=MASK_BOUNDS["fp32"],
        evidence=evidence,
    )
    return write(folder / "winner", changed)

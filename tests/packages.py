"""Small artifacts to package, and the files of packages as their servers read them."""

from __future__ import annotations

import importlib.util
import json
import re
from dataclasses import replace
from pathlib import Path

import artifacts
import jsonschema
import numpy as np
import openvino as ov
from openvino import opset13 as ops

from vitrail.artifact import Artifact, write
from vitrail.runtimes import sized
from vitrail.tasks.embed import Embed
from vitrail.vocabulary import Export

SIZE, CLASSES = artifacts.SIZE, len(artifacts.LABELS)


def network(*, pixels: bool) -> ov.Model:
    """The small network of artifacts.py; `pixels`: it normalises by itself."""
    entry = ops.parameter(
        [-1, SIZE, SIZE, 3] if pixels else [-1, 3, SIZE, SIZE], np.uint8 if pixels else np.float32
    )
    image = entry
    if pixels:
        mean, std = (
            np.array(v, np.float32).reshape(1, 3, 1, 1)
            for v in (artifacts.PREPROCESS.mean, artifacts.PREPROCESS.std)
        )
        planes = ops.transpose(ops.convert(entry, "f32"), ops.constant([0, 3, 1, 2]))
        image = ops.divide(
            ops.subtract(ops.divide(planes, ops.constant(np.float32(255))), ops.constant(mean)),
            ops.constant(std),
        )
    features = ops.relu(
        ops.convolution(image, ops.constant(artifacts.FILTERS), [1, 1], [0, 0], [0, 0], [1, 1])
    )
    pooled = ops.reduce_mean(features, ops.constant([2, 3]), keep_dims=False)
    return ov.Model([ops.matmul(pooled, ops.constant(artifacts.HEAD), False, False)], [entry], "tiny")


def named(
    folder: Path,
    *,
    pixels: bool = False,
    precision: str = "fp32",
    operations: str = "f32:9",
    embed: bool = False,
) -> Artifact:
    """An OpenVINO artifact whose file names its tensors as its graph does.

    Its evidence says that `operations` ran; the file is of fp32 in any case.
    """
    bundle = artifacts.make_bundle(folder)
    preprocess = replace(artifacts.PREPROCESS, pixels="uint8" if pixels else "normalised")
    task = (
        Embed(preprocess=preprocess, width=CLASSES) if embed else replace(bundle.task, preprocess=preprocess)
    )
    graph = task.graph("model.xml")
    (result,) = (spec.name for spec in graph.outputs)
    model = network(pixels=pixels)
    model.inputs[0].get_tensor().set_names({graph.inputs[0].name})
    model.outputs[0].get_tensor().set_names({result})
    (folder / "named").mkdir()
    ov.save_model(model, folder / "named" / "model.xml", compress_to_fp16=False)
    facts = replace(
        bundle.evidence.facts,
        precision=precision,
        graphs=(sized(graph, {"B": bundle.evidence.workload.batch_size}),),
        details=(("operations", operations),),
    )
    variant = bundle.variant
    candidate = replace(variant.candidate, task=task.name)
    passes = ("uint8",) if pixels else ()
    return write(
        folder / "winner",
        replace(
            bundle,
            variant=replace(variant, candidate=candidate, passes=passes, precision=precision),
            task=task,
            export=Export(folder=str(folder / "named"), files=("model.xml", "model.bin"), graphs=(graph,)),
            evidence=replace(bundle.evidence, facts=facts),
            fp32_outputs={result: bundle.fp32_outputs["scores"]},
            own_outputs={result: bundle.own_outputs["scores"]},
        ),
    )


def program(path: Path, name: str):
    """A program of a package as a module."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """(instruction, the rest), lines joined and comments dropped."""
    text = re.sub(r"^#.*\n", "", dockerfile.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]


def exec_form(dockerfile: Path, name: str) -> list[str]:
    (rest,) = (rest for each, rest in instructions(dockerfile) if each == name)
    return json.loads(rest[rest.index("[") :])


def config(folder: Path):
    """Triton's own reading of a model's configuration."""
    from google.protobuf import text_format
    from tritonclient.grpc.model_config_pb2 import ModelConfig

    return text_format.Parse((folder / "config.pbtxt").read_text(), ModelConfig())


def parameters(found) -> dict[str, str]:
    return {key: value.string_value for key, value in found.parameters.items()}


OF_A_MODEL = {
    "type": "object",
    "required": ["name"],
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string"},
        "base_path": {"type": "string"},
        "shape": {"type": ["string", "object"]},
        "layout": {"type": ["string", "object"], "additionalProperties": {"type": "string"}},
        "nireq": {"type": "integer", "minimum": 0},
        "target_device": {"type": "string"},
        "plugin_config": {
            "type": "object",
            "additionalProperties": {"type": ["string", "boolean", "number"]},
        },
    },
}
"""What the server's src/schema.cpp admits, as far as we use it."""


def server_config(folder: Path) -> dict:
    document = json.loads((folder / "config.json").read_text())
    assert list(document) == ["model_config_list"]
    (entry,) = document["model_config_list"]
    assert list(entry) == ["config"]
    jsonschema.validate(entry["config"], OF_A_MODEL)
    return entry["config"]

"""What takes part: Vitrail's forms of a model, and the peers' plain exports, each made once and kept.

Weights are random with a fixed seed; normalisations have the statistics of their inputs, so that activations
neither grow nor vanish with depth and fp32 rounding is of the usual size.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from optimize_race import Form

from vitrail import runtimes, store
from vitrail.export import variants
from vitrail.export.calibration import Calibration
from vitrail.export.exports import Exports, NothingToRewrite
from vitrail.images.decode import decode
from vitrail.images.photos import digest_of, sample_photos
from vitrail.images.preprocess import crops
from vitrail.vocabulary import Candidate, Precision, Preprocess, SearchSettings, Variant, Weights, Workload
from vitrail.weights.find import WeightsFinder

EXACT = 2e-4
"""Relative error to eager fp32 that a form of fp32 may have: the limit of parity."""
EXPORT_S = 900.0
TORCH_FREEZES = ({}, {"freezing": "1"})


@dataclass(frozen=True, kw_only=True)
class Model:
    """One model with weights on this disk."""

    candidate: Candidate
    macs: int
    """Multiply-accumulates of one image."""

    @property
    def name(self) -> str:
        """timm's name without a tag."""
        return self.candidate.architecture

    @property
    def weights(self) -> str:
        """The safetensors file."""
        return self.candidate.weights.reference


def model(architecture: str, work: Path) -> Model:
    """A model with random weights, kept in `work`; the same seed gives the same file."""
    folder = work / "weights"
    file, facts = folder / f"{architecture}.safetensors", folder / f"{architecture}.json"
    if not facts.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        facts.write_text(json.dumps(_write_weights(architecture, file)))
    found = json.loads(facts.read_text())
    preprocess = Preprocess(
        image_size=found["image_size"], mean=tuple(found["mean"]), std=tuple(found["std"])
    )
    candidate = Candidate(
        name=f"{architecture}.seed0",
        architecture=architecture,
        family=architecture,
        weights=Weights(source="file", reference=str(file)),
        preprocess=preprocess,
        accuracy=None,
        parameters=found["parameters"],
        macs=found["macs"],
    )
    return Model(candidate=candidate, macs=found["macs"])


def _write_weights(architecture: str, file: Path) -> dict[str, Any]:
    import timm
    import torch
    from safetensors.torch import save_file
    from torch import nn

    from vitrail.profiling.cost import count

    torch.manual_seed(0)
    module = timm.create_model(architecture, pretrained=False)
    settings = module.pretrained_cfg
    size = int(settings["input_size"][1])
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.train()
            part.momentum = None
    with torch.no_grad():
        module(torch.randn(8, 3, size, size))
    cost = count(module.eval(), size)
    save_file({name: tensor.contiguous().clone() for name, tensor in module.state_dict().items()}, file)
    facts = {"image_size": size, "mean": settings["mean"], "std": settings["std"]}
    return {**facts, "parameters": cost.parameters, "macs": cost.macs}


def inputs(preprocess: Preprocess, batch: int, work: Path) -> Path:
    """A file with the same views of photos as normalised images and as pixels."""
    digest = store.digest_of({**msgspec.to_builtins(preprocess), "batch": batch})
    file = work / "inputs" / f"{digest[:16]}.npz"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        photos = [decode(path) for path in sample_photos().paths[:batch]]
        views = -(-batch // len(photos))
        both = {
            name: np.concatenate([crops(photo, as_, views) for photo in photos])[:batch]
            for name, as_ in (("images", preprocess), ("pixels", replace(preprocess, pixels="uint8")))
        }
        np.savez(file, **both)
    return file


class Kitchen:
    """Makes the forms of models in `work`; what was made before is used again.

    Args:
        photos: those that calibrate int8; none: no form in int8.
    """

    def __init__(self, work: Path, threads: int, photos: Sequence[str] = ()) -> None:
        self.work, self.threads = work, threads
        calibration = None
        if photos:
            calibration = Calibration(photos=tuple(photos), digest=digest_of(photos), source="photos")
        self.exports = Exports(WeightsFinder(offline=True), threads, calibration=calibration)

    def close(self) -> None:
        """End the exporting process."""
        self.exports.close()

    def ours(
        self, which: Model, batch: int, precisions: Sequence[Precision]
    ) -> Iterator[tuple[Variant, Form]]:
        """Every form that `vitrail optimize` would try, with the group left to be named."""
        workload = Workload(batch_size=batch, threads=self.threads)
        for row in variants.forms(SearchSettings(), workload, quality=False):
            for variant in self._variants(which, precisions, row):
                try:
                    export = self.exports.export(variant, EXPORT_S)
                except NothingToRewrite:
                    continue
                (graph,) = export.graphs
                yield (
                    variant,
                    Form(
                        name=variant.name,
                        group="vitrail",
                        kind="runner",
                        path=export.folder,
                        runtime=variant.runtime,
                        precision=variant.precision,
                        settings=dict(variant.settings),
                        graph=msgspec.to_builtins(graph),
                        max_error=EXACT if variant.precision == "fp32" else None,
                    ),
                )

    def _variants(
        self, which: Model, precisions: Sequence[Precision], row: variants.Form
    ) -> Iterator[Variant]:
        for implementation in variants.implementations(which.candidate, ("vitrail", "timm")):
            for name, engine in runtimes.RUNTIMES.items():
                if engine.reference or engine.named_only or row.runtime not in ("", name):
                    continue
                for precision in precisions:
                    if precision in engine.on("cpu"):
                        yield Variant(
                            candidate=which.candidate,
                            image_size=which.candidate.preprocess.image_size,
                            implementation=implementation,
                            runtime=name,
                            precision=precision,
                            passes=row.passes,
                            settings=row.settings,
                        )

    def peers(self, which: Model, batch: int) -> list[Form]:
        """timm's model through torch.compile, torch.onnx.export and openvino.convert_model, nothing added."""
        folder = self.work / "plain" / f"{which.name}-b{batch}"
        onnx, ir = folder / "model.onnx", folder / "model.xml"
        if not ir.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            _export_plainly(which, batch, onnx, ir)
        return [
            *(
                Form(name=f"torch.compile {freezes}", group="torch.compile", kind="compile", settings=freezes)
                for freezes in TORCH_FREEZES
            ),
            Form(
                name="torch.onnx.export",
                group="onnxruntime",
                kind="onnxruntime",
                path=str(onnx),
                max_error=EXACT,
            ),
            Form(
                name="openvino.convert_model",
                group="openvino",
                kind="openvino",
                path=str(ir),
                max_error=EXACT,
            ),
        ]


def _export_plainly(which: Model, batch: int, onnx: Path, ir: Path) -> None:
    import timm
    import torch
    from safetensors.torch import load_file

    from vitrail.privacy import import_engine

    openvino = import_engine("openvino")
    module = timm.create_model(which.name, pretrained=False)
    module.load_state_dict(load_file(which.weights))
    module.eval().requires_grad_(False)
    size = which.candidate.preprocess.image_size
    images = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))
    torch.onnx.export(module, (images,), onnx, dynamo=True, verbose=False)
    converted = openvino.convert_model(module, example_input=images, input=list(images.shape))
    openvino.save_model(converted, ir, compress_to_fp16=False)

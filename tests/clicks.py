"""A small SAM for tests: transformers' model with random weights, the same in ours, and an artifact of it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import artifacts
import msgspec
import numpy as np
import torch
from PIL import Image
from transformers import SamConfig, SamMaskDecoderConfig, SamModel, SamPromptEncoderConfig, SamVisionConfig

from vitrail import models
from vitrail.artifact import Artifact, Bundle, Evidence, write
from vitrail.export import eager, work
from vitrail.export.requests import ExportRequest
from vitrail.images.decode import decode
from vitrail.models import registry, sam_config
from vitrail.models.sam import SAM
from vitrail.models.sam_config import SAMConfig
from vitrail.predict import Predictor
from vitrail.runtimes.chain import load_graphs
from vitrail.tasks.mask_parity import MASK_BOUNDS
from vitrail.tasks.promptable import Promptable
from vitrail.vocabulary import Candidate, Export, Preprocess, Target, Variant, Weights, Workload

NAME = "sam_vit_tiny_test"
SIDE, MASK = 64, 32
CONFIG = SAMConfig(
    image_size=(SIDE, SIDE),
    patch_size=8,
    width=32,
    depth=2,
    heads=2,
    window=4,
    global_blocks=(1,),
    embed_width=32,
    mask_channels=8,
    decoder_heads=4,
    decoder_mlp_width=48,
    iou_width=24,
)
PREPROCESS = Preprocess(image_size=SIDE, crop=1.0, crop_mode="letterbox", interpolation="bilinear")
TASK = Promptable(preprocess=PREPROCESS, masks=3, width=32, tokens=8, mask_side=MASK)


@contextmanager
def known() -> Iterator[None]:
    """The small model is one of ours by its name, in this process."""
    sam_config.VARIANTS[NAME] = CONFIG
    tables = registry.PROMPTABLE, registry.SEGMENTERS
    for table in tables:
        table[NAME] = "vitrail.models.sam:SAM"
    try:
        yield
    finally:
        del sam_config.VARIANTS[NAME]
        for table in tables:
            del table[NAME]


def theirs() -> SamModel:
    """transformers' model in float64; masks of smooth embeddings, not of noise."""
    c = CONFIG
    vision = SamVisionConfig(
        hidden_size=c.width, output_channels=c.embed_width, num_hidden_layers=c.depth, mlp_dim=4 * c.width,
        num_attention_heads=c.heads, image_size=SIDE, patch_size=c.patch_size, window_size=c.window,
        global_attn_indexes=list(c.global_blocks), num_pos_feats=c.embed_width // 2,
    )  # fmt: skip
    prompt = SamPromptEncoderConfig(
        hidden_size=c.embed_width, image_size=SIDE, patch_size=c.patch_size,
        mask_input_channels=c.mask_channels,
    )  # fmt: skip
    decoder = SamMaskDecoderConfig(
        hidden_size=c.embed_width, mlp_dim=c.decoder_mlp_width, num_attention_heads=c.decoder_heads,
        iou_head_hidden_dim=c.iou_width,
    )  # fmt: skip
    config = SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)
    config._attn_implementation = "sdpa"
    model = SamModel(config).double().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
            if "norm" in name and name.endswith("weight"):
                noise = 1 + 0.3 * noise
            elif value.ndim > 1 and not any(word in name for word in ("embed", "token", "rel_pos")):
                noise = noise / math.sqrt(value[0].numel())
            value.copy_(noise)
    return model.requires_grad_(False)


def ours(state: dict[str, torch.Tensor]) -> SAM:
    """The same in our code, fp32."""
    model = SAM(CONFIG).eval()
    models.load_weights(model, {name: value.float() for name, value in state.items()})
    return model.requires_grad_(False)


def export(model: SAM, folder: Path) -> Path:
    """Both graphs, with what OpenVINO builds of them in `openvino`."""
    weights = folder / "weights.pth"
    torch.save(model.state_dict(), weights)
    request = ExportRequest(
        architecture=NAME, implementation="vitrail", labels="", weights=str(weights), image_size=SIDE,
        folder=str(folder / "export"), threads=1, task="promptable",
    )  # fmt: skip
    with known():
        work.export(msgspec.to_builtins(request))
    made = folder / "export"
    work.build(
        {
            "folder": str(made),
            "runtime": "openvino",
            "target": str(made / "openvino"),
            "stages": ["encode", "prompt"],
        }
    )
    return made


FILES = {"openvino": ("model.xml", "model.bin"), "onnxruntime": ("model.onnx",)}


def loaded(made: Path, runtime: str = "onnxruntime", *, batch: int = 1, task: Promptable = TASK) -> Predictor:
    """The export in an engine."""
    return Predictor(runner(made, runtime, batch=batch, task=task), task)


def runner(made: Path, runtime: str = "onnxruntime", *, batch: int = 1, task: Promptable = TASK) -> Any:
    """The same without its task."""
    return load_graphs(
        made / "openvino" if runtime == "openvino" else made,
        task.graphs(FILES[runtime][0]),
        Target(runtime=runtime, precision="fp32"),
        sizes={"B": batch},
        threads=1,
    )


def photo(seed: int, size: tuple[int, int] = (60, 90)) -> Image.Image:
    """A smooth photo (H, W)."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    return small.resize((size[1], size[0]), Image.Resampling.BICUBIC)


def candidate(preprocess: Preprocess = PREPROCESS) -> Candidate:
    return Candidate(
        name=f"{NAME}.test",
        architecture=NAME,
        family="sam",
        weights=Weights(source="package", reference="none", license="apache-2.0"),
        preprocess=preprocess,
        accuracy=None,
        parameters=1000,
        macs=1000,
        task="promptable",
    )


def bundle(
    made: Path,
    model: torch.nn.Module,
    folder: Path,
    runtime: str = "onnxruntime",
    *,
    task: Promptable = TASK,
) -> Bundle:
    """What ships; the fp32 outputs are the module's."""
    folder.mkdir(parents=True)
    photos = []
    for number, size in enumerate([(60, 90), (90, 60), (64, 64)]):
        photos.append(folder / f"{number}.png")
        photo(number, size).save(photos[-1])
    inputs = task.prepare([decode(path) for path in photos])
    with loaded(made, runtime, task=task) as predictor:
        own, facts = predictor.run(inputs), predictor.runner.facts
    files = tuple(f"{stage}/{name}" for stage in task.stages for name in FILES[runtime])
    evidence: Evidence = replace(
        artifacts.make_evidence(facts, batch_size=1), workload=Workload(batch_size=1, threads=1)
    )
    return Bundle(
        variant=Variant(
            candidate=candidate(task.preprocess),
            image_size=task.preprocess.image_size,
            runtime=runtime,
            precision="fp32",
            implementation="vitrail",
        ),
        task=task,
        export=Export(
            folder=str(made / "openvino" if runtime == "openvino" else made),
            files=files,
            graphs=task.graphs(FILES[runtime][0]),
        ),
        evidence=evidence,
        photos=tuple(photos),
        fp32_outputs=eager.runner(model, task.graphs(""))(inputs),
        own_outputs=own,
        bounds=MASK_BOUNDS["fp32"],
    )


def artifact(
    made: Path,
    model: torch.nn.Module,
    folder: Path,
    runtime: str = "onnxruntime",
    *,
    task: Promptable = TASK,
) -> Artifact:
    """The artifact, at `folder/winner`."""
    return write(folder / "winner", bundle(made, model, folder / "parts", runtime, task=task))

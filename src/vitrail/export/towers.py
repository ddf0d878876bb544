"""What an embedder runs, as a graph: images -> vectors or, of a CLIP, tokens -> vectors.

Shapes: B images or texts, S image size, L tokens, D dimension.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import nn
from torch.nn import functional as F

from vitrail import models, store
from vitrail.catalog.table import NORMALISATIONS
from vitrail.embeddings.towers import MANIFEST, Content, Tower
from vitrail.errors import InputError
from vitrail.export import eager, onnx
from vitrail.models import timm as timm_models
from vitrail.models.clip import CLIP
from vitrail.models.registry import MODELS, TWO_TOWERS
from vitrail.text.tokenizer import TokenizerConfig
from vitrail.vocabulary import Graph, Preprocess, TensorSpec
from vitrail.weights import checkpoints

__all__ = ["TowerRequest", "export"]

FILE = "model.onnx"


class TowerRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Which tower of a model to export; `folder` is made, whole or not at all."""

    model: str
    """Our name, or timm's (its tag determines the preprocess)."""
    content: Content
    """What the tower reads; only a CLIP has one for texts."""
    weights: str
    preprocess: Preprocess | None
    """None: the architecture's own."""
    folder: str
    threads: int


def export(payload: dict[str, Any]) -> dict[str, str]:
    """Export what a `TowerRequest` names; a user's mistake comes back as `{"refused": sentence}`."""
    request = msgspec.convert(payload, TowerRequest)
    torch.set_num_threads(request.threads)
    try:
        if request.model.split(".")[0] in TWO_TOWERS:
            _write_clip(request)
        else:
            _write_backbone(request)
    except InputError as error:
        return {"refused": str(error)}
    return {}


class _Half(nn.Module):
    """One tower of a CLIP as a module of its own."""

    def __init__(self, clip: CLIP, content: Content) -> None:
        super().__init__()
        self.tower = clip.image if content == "image" else clip.text

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(B, …) -> (B, D) of length 1."""
        return F.normalize(self.tower(inputs), dim=-1)


def _write_clip(request: TowerRequest) -> None:
    clip = models.build(request.model.split(".")[0])
    assert isinstance(clip, CLIP)
    models.load_weights(clip, request.weights)
    config = clip.config
    if request.content == "image":
        graph = _image_graph(config.image_size[0], config.text.embed_width)
    else:
        tokens = TensorSpec(name="tokens", shape=("B", config.text.context_length), dtype="int64")
        graph = Graph(entry=FILE, inputs=(tokens,), outputs=(_vectors(config.text.embed_width),))
    tower = Tower(
        implementation="vitrail",
        preprocess=request.preprocess or _clip_preprocess(clip),
        graph=graph,
        sizes={},
        tokenizer=TokenizerConfig(
            **{name: getattr(config.text, name) for name in TokenizerConfig.__dataclass_fields__}
        ),
    )
    _write(request, tower, _Half(clip, request.content).eval().requires_grad_(False))


def _write_backbone(request: TowerRequest) -> None:
    """A classifier's model without its classifier."""
    assert request.content == "image", "only a CLIP reads texts"
    architecture, preprocess = request.model.split(".")[0], request.preprocess
    if preprocess is None:
        timm_models.check_known(architecture)
        preprocess = msgspec.convert(timm_models.published_preprocess(request.model), Preprocess)
    ours = architecture in MODELS
    build = eager.our_backbone if ours else _of_timm
    module = build(architecture, preprocess.image_size, request.weights)
    size = preprocess.image_size
    with torch.inference_mode():
        width = int(module(torch.zeros(1, 3, size, size)).shape[-1])
    tower = Tower(
        implementation="vitrail" if ours else "timm",
        preprocess=preprocess,
        graph=_image_graph(size, width),
        sizes={},
    )
    _write(request, tower, module)


def _write(request: TowerRequest, tower: Tower, module: nn.Module) -> None:
    with store.atomic_folder(Path(request.folder), overwrite=True) as folder:
        onnx.write_onnx(module, tower.graph, folder / tower.graph.entry)
        onnx.check(module, folder, tower.graph)
        sizes = {file.name: file.stat().st_size for file in folder.iterdir()}
        tower = msgspec.structs.replace(tower, sizes=sizes)
        (folder / MANIFEST).write_bytes(msgspec.json.encode(tower))


def _image_graph(size: int, width: int) -> Graph:
    images = TensorSpec(name="images", shape=("B", 3, size, size))
    return Graph(entry=FILE, inputs=(images,), outputs=(_vectors(width),))


def _vectors(width: int) -> TensorSpec:
    return TensorSpec(name="vectors", shape=("B", width))


def _clip_preprocess(model: CLIP) -> Preprocess:
    """As the models were evaluated: a centre crop for CLIP, squashed to a square for SigLIP.

    Some open_clip weights were trained with another mean, which the caller knows.
    Source: open_clip's preprocess_cfg of its pretrained tags.
    """
    siglip = model.config.bias is not None
    mean, std = NORMALISATIONS["half" if siglip else "clip"]
    return Preprocess(
        image_size=model.config.image_size[0],
        crop=1.0,
        crop_mode="squash" if siglip else "center",
        interpolation="bicubic",
        mean=mean,
        std=std,
    )


def _of_timm(architecture: str, image_size: int, weights: str) -> nn.Module:
    """timm's model without its classifier; the file may have one, with any number of classes."""
    classes = timm_models.classes_in(architecture, checkpoints.read_state_dict(Path(weights)))
    try:
        model = timm_models.build(architecture, image_size=image_size, classes=classes, weights=Path(weights))
    except InputError as error:
        raise InputError(str(error).replace("(--arch)", "(--model)")) from None
    return eager.without_classifier(model) if classes else model

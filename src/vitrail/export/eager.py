"""The module an export is made from: the candidate's, in the variant's implementation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from vitrail import models
from vitrail.export.onnx import ExportMismatch
from vitrail.export.requests import ExportRequest, HeadRequest, ModuleRequest
from vitrail.models import clip, timm, upernet
from vitrail.models.registry import PROMPTABLE
from vitrail.models.vit import ViT
from vitrail.runtimes import chain
from vitrail.vocabulary import Graph, RunnerFacts
from vitrail.weights import checkpoints
from vitrail.weights.finite import check_outputs
from vitrail.weights.labels import labels

__all__ = [
    "check",
    "module",
    "named",
    "our_backbone",
    "runner",
    "stage_facts",
    "stages",
    "with_head",
    "without_classifier",
]

HEAD_TOLERANCE = 1e-4


def module(request: ModuleRequest, image_size: int, *, features: bool = False) -> nn.Module:
    """The module in evaluation mode, (B, 3, image_size, image_size) -> (B, K); random weights are timm's.

    A UPerNet gives (B, K, h, w), before its last enlargement: it is done at the photo's size.

    With `features` it has no classifier: -> (B, D).

    Raises:
        InputError: weights that do not fit, or an image size that the architecture cannot take.
    """
    if request.architecture in clip.VARIANTS:
        return _zero_shot(request, image_size)
    if request.architecture in upernet.VARIANTS:
        return _score_maps(request, image_size)
    if request.architecture in PROMPTABLE:
        return _promptable(request, image_size)
    if request.implementation == "timm":
        model = _of_timm(request, image_size)
        return without_classifier(model) if features else model
    if features:
        weights = request.weights or _of_timm(request, image_size).state_dict()
        return our_backbone(request.architecture, image_size, weights)
    model = models.build(request.architecture, image_size=image_size, num_classes=len(labels(request.labels)))
    models.load_weights(model, request.weights or _of_timm(request, image_size).state_dict())
    return model.requires_grad_(False)


def stages(model: nn.Module) -> dict[str, nn.Module]:
    """The parts of a module that are exported as graphs of their own, by the names of its task's graphs."""
    found: dict[str, nn.Module] = model.stages()  # type: ignore[operator]
    return found


def stage_facts(model: nn.Module) -> dict[str, Any]:
    """What the task of such a module needs to know."""
    found: dict[str, Any] = model.facts()  # type: ignore[operator]
    return found


def runner(
    model: nn.Module, graphs: Sequence[Graph]
) -> Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]:
    """The module in fp32 as a function of named arrays; of several stages, one after another."""
    parts = stages(model) if len(graphs) > 1 else {graphs[0].name: model}
    called = {graph.name: _Called(parts[graph.name], graph) for graph in graphs}
    return chain.Chain(called).run if len(called) > 1 else called[graphs[0].name].run


class _Called:
    """A module as a `runtimes.Runner` of whatever batch it is given."""

    def __init__(self, module: nn.Module, graph: Graph) -> None:
        self._module = module
        self.facts = RunnerFacts(
            runtime="pytorch",
            version=str(torch.__version__),
            precision="fp32",
            threads=torch.get_num_threads(),
            graphs=(graph,),
        )

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Named inputs in the order of the module's arguments -> its outputs."""
        (graph,) = self.facts.graphs
        with torch.inference_mode():
            outputs = self._module(*(torch.from_numpy(inputs[spec.name]) for spec in graph.inputs))
        return named(graph, outputs)

    def close(self) -> None:
        """Drop the module."""
        del self._module


def named(graph: Graph, outputs: torch.Tensor | Sequence[torch.Tensor]) -> dict[str, np.ndarray]:
    """What a module gave, as float32 arrays under the graph's names."""
    found = [outputs] if isinstance(outputs, torch.Tensor) else outputs
    return {
        spec.name: np.array(output.float().cpu().numpy())
        for spec, output in zip(graph.outputs, found, strict=True)
    }


def check(model: nn.Module, request: ExportRequest, image_size: int, tolerance: float) -> tuple[int, ...]:
    """The shape of the module's output for one image, (K), (D) or (K, h, w), once two checks hold.

    The scores must be finite; and the same weights must give the same numbers in our module and timm's, on
    one batch of noise. The second check is skipped where the image does not divide into windows (there timm
    lets padding take part in attention and our module does not, so the two differ by design), for CLIP, which
    timm has only in halves, and where the request says so because the weights were trained with our code,
    which then defines what they mean.

    Raises:
        InputError: scores that are not finite.
        ExportMismatch: they differ by more than `tolerance` (relative).
    """
    noise = np.random.default_rng(0).standard_normal((1, 3, image_size, image_size), dtype=np.float32)
    with torch.inference_mode():
        ours = model(torch.from_numpy(noise))
    check_outputs(ours, request.weights or request.architecture, "scores")
    own_only = request.architecture in clip.VARIANTS or not request.compare
    if request.implementation == "timm" or own_only or getattr(model, "pads", False):
        return tuple(ours.shape[1:])
    with torch.inference_mode():
        timms = _of_timm(request, image_size)
        if request.features:
            timms = without_classifier(timms)
        theirs = timms(torch.from_numpy(noise))
    difference = float((ours.double() - theirs).norm() / theirs.double().norm().clamp(min=1e-30))
    if not difference <= tolerance:
        raise ExportMismatch(
            f"our {request.architecture} differs from timm's by {difference:.1e} (relative) with these "
            "weights; choose timm's code with --implementations timm"
        )
    return tuple(ours.shape[1:])


def _score_maps(request: ModuleRequest, image_size: int) -> nn.Module:
    """Our UPerNet with weights that were trained here: none are published, and nobody else has its code."""
    assert request.weights is not None, "masks of random weights mean nothing"
    model = models.build(request.architecture, image_size=image_size, num_classes=len(labels(request.labels)))
    models.load_weights(model, request.weights)
    assert isinstance(model, upernet.UPerNet)
    return upernet.ScoreMaps(model).eval().requires_grad_(False)


def _zero_shot(request: ModuleRequest, image_size: int) -> nn.Module:
    """CLIP's image tower with the head that zeroshot/ made from class names; the file holds only these."""
    assert request.weights is not None, "a zero-shot head with random weights means nothing"
    config = clip.VARIANTS[request.architecture].overridden(image_size=(image_size, image_size))
    state = checkpoints.read_state_dict(Path(request.weights))
    model = clip.ZeroShotClassifier(ViT(config.image), state["head.weight"].float(), state.get("head.bias"))
    image = {key.removeprefix("image."): value for key, value in state.items() if key.startswith("image.")}
    model.image.load_state_dict(model.image.adapt_weights(image))
    return model.eval().requires_grad_(False)


def _promptable(request: ModuleRequest, image_size: int) -> nn.Module:
    """A model of ours with two stages; timm has none of them."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        model = models.build(request.architecture, image_size=image_size)
    if request.weights is not None:
        models.load_weights(model, request.weights)
    return model.requires_grad_(False)


def our_backbone(architecture: str, image_size: int, weights: str | Mapping[str, torch.Tensor]) -> nn.Module:
    """Our model up to what its classifier sees: (B, 3, S, S) -> (B, D)."""
    model = models.build(architecture, image_size=image_size, num_classes=0)
    models.load_weights(model, weights, replace_head=True)
    return model.requires_grad_(False)


def without_classifier(model: nn.Module) -> nn.Module:
    """timm's model up to what its classifier sees: (B, 3, S, S) -> (B, D)."""
    model.reset_classifier(0)  # type: ignore[operator]
    return model.eval().requires_grad_(False)


def with_head(request: HeadRequest, weight_KD: np.ndarray, bias_K: np.ndarray) -> nn.Module:
    """timm's model with its classifiers replaced by one linear classifier on the same features.

    A model with two of them (distilled ones average both) gets the same one twice.

    Raises:
        ExportMismatch: its scores are not the linear function of its features, so no head can be folded in.
    """
    path, classes = Path(request.weights), len(labels(request.labels))
    model = timm.build(request.architecture, image_size=request.image_size, classes=classes, weights=path)
    features = without_classifier(
        timm.build(request.architecture, image_size=request.image_size, classes=classes, weights=path)
    )
    model.reset_classifier(len(bias_K))  # type: ignore[operator]
    heads = model.get_classifier()  # type: ignore[operator]
    for head in heads if isinstance(heads, tuple) else (heads,):
        if not isinstance(head, (nn.Linear, nn.Conv2d)) or head.weight.numel() != weight_KD.size:
            raise ExportMismatch(
                f"{request.architecture} ends in no linear classifier, so it cannot be probed"
            )
        head.weight.data.copy_(torch.from_numpy(weight_KD).reshape(head.weight.shape))
        assert head.bias is not None
        head.bias.data.copy_(torch.from_numpy(bias_K))
    model.eval().requires_grad_(False)
    noise = torch.randn(
        1, 3, request.image_size, request.image_size, generator=torch.Generator().manual_seed(0)
    )
    with torch.inference_mode():
        expected = features(noise).flatten(1) @ torch.from_numpy(weight_KD).T + torch.from_numpy(bias_K)
        difference = float((model(noise) - expected).norm() / expected.norm().clamp(min=1e-30))
    if not difference <= HEAD_TOLERANCE:
        raise ExportMismatch(
            f"{request.architecture} with its new head differs by {difference:.1e} from its features"
        )
    return model


def _of_timm(request: ModuleRequest, image_size: int) -> nn.Module:
    weights = None if request.weights is None else Path(request.weights)
    classes = len(labels(request.labels))
    return timm.build(request.architecture, image_size=image_size, classes=classes, weights=weights)

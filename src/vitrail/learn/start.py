"""What a training run starts from: a model by name, with trained or random weights and a new head."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitrail import catalog, models
from vitrail.errors import InputError
from vitrail.models import timm
from vitrail.models.registry import OWN
from vitrail.profiling import cost
from vitrail.store import sha256_file
from vitrail.vocabulary import Candidate, Implementation, Preprocess
from vitrail.weights import checkpoints
from vitrail.weights.find import WeightsFinder, WeightsUnavailable

__all__ = ["Start", "starting", "weights_of"]

RANDOM = "random"


@dataclass(frozen=True, kw_only=True)
class Start:
    """A model before its first step, and what is known about it."""

    module: nn.Module
    """(B, 3, S, S) -> (B, K), fp32, gradients on."""
    architecture: str
    family: str
    implementation: Implementation
    preprocess: Preprocess
    weights: str
    """Digest of the weights it starts from, or `random`."""
    said: str
    """The same, as text."""
    license: str
    cost: cost.Cost


def starting(
    name: str,
    *,
    classes: int,
    finder: WeightsFinder,
    image_size: int | None = None,
    weights: Path | None = None,
    from_scratch: bool = False,
    drop_path: float = 0.0,
    seed: int = 0,
) -> Start:
    """The model with a new head of K classes.

    Args:
        name: of a candidate (`tf_efficientnet_lite0.in1k`), of an architecture, or of one of our models.
        classes: K.
        finder: finds the published weights.
        image_size: pixels; None: the candidate's own, or the architecture's.
        weights: a file to start from instead of the published ones; with any number of classes, because its
            classifier is left out.
        from_scratch: start from random weights.
        drop_path: rate of the last block.
        seed: for random weights and the new head.

    Raises:
        InputError: an unknown model, weights that are not at hand or do not fit, or a size it cannot take.
    """
    if image_size is not None and image_size < 1:
        raise InputError(f"--image-size {image_size}: give 1 or more.")
    known = next((c for c in catalog.candidates() if name in (c.name, c.architecture)), None)
    architecture = known.architecture if known else name.split(".")[0]
    ours = timm.is_ours(architecture)
    if not ours:
        timm.check_known(architecture)
    preprocess = _preprocess(architecture, known, ours, from_scratch)
    if image_size is not None:
        preprocess = dataclasses.replace(preprocess, image_size=image_size)
    path, digest, said, license = weights_of(name, known, weights, finder, from_scratch)
    size = preprocess.image_size
    build = _built_by_us if ours else _built_by_timm
    try:
        module = build(architecture, size, classes, path, drop_path, seed)
        counted = cost.count(module, size)
    except InputError:
        raise
    except (RuntimeError, ValueError, AssertionError, IndexError, ArithmeticError) as error:
        # What networks raise for an image that becomes too small on its way through them.
        reason = " ".join(str(error).split("\n")[0].split()).rstrip(".") or type(error).__name__
        raise InputError(
            f"{architecture} does not take images of {size} px ({reason}): give another --image-size."
        ) from None
    return Start(
        module=module.requires_grad_(True).train(),
        architecture=architecture,
        family=known.family if known else architecture.split("_")[0],
        implementation="vitrail" if ours else "timm",
        preprocess=preprocess,
        weights=digest,
        said=said,
        license=license,
        cost=counted,
    )


def _built_by_us(
    architecture: str, size: int, classes: int, path: Path | None, drop_path: float, seed: int
) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = models.build(architecture, image_size=size, num_classes=classes, drop_path=drop_path)
    if path is not None:
        models.load_weights(module, path, replace_head=True)
    return module


def _built_by_timm(
    architecture: str, size: int, classes: int, path: Path | None, drop_path: float, seed: int
) -> nn.Module:
    options: dict[str, Any] = {"image_size": size, "weights": None, "seed": seed, "drop_path": drop_path}
    if path is None:
        module = timm.build(architecture, classes=classes, **options)
    else:
        given = timm.classes_in(architecture, checkpoints.read_state_dict(path))
        try:
            module = timm.build(architecture, classes=given, **{**options, "weights": path})
        except InputError as error:
            raise InputError(str(error).replace("(--arch)", "(--model)")) from None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module.reset_classifier(classes)  # type: ignore[operator]
    return module


def _preprocess(architecture: str, known: Candidate | None, ours: bool, from_scratch: bool) -> Preprocess:
    if known is not None and not from_scratch:
        return known.preprocess
    if ours:
        with torch.device("meta"):
            config: Any = models.build(architecture).config
        return Preprocess(image_size=config.image_size[0], crop=1.0)
    return Preprocess(**{**timm.published_preprocess(architecture), "crop": 1.0})


def weights_of(
    name: str, known: Candidate | None, given: Path | None, finder: WeightsFinder, from_scratch: bool
) -> tuple[Path | None, str, str, str]:
    """(file, digest, said, license) of what a model starts from; no file: random.

    Args:
        name: as the person gave it.
        known: the catalogue's candidate of that name.
        given: a file to start from instead.
        finder: finds the candidate's weights.
        from_scratch: random ones are asked for.

    Raises:
        InputError: weights that are not at hand, or two things to start from.
    """
    if given is not None:
        if from_scratch:
            raise InputError("--weights says what to start from: leave --from-scratch out.")
        if not given.is_file():
            raise InputError(f"There is no weights file at {given}: check --weights.")
        return given, sha256_file(given), f"the weights of {given.name}", "own"
    if from_scratch or known is None:
        if not from_scratch and name not in OWN:
            raise InputError(
                f"No trained weights of {name} are known: give a file with --weights, or start from random "
                "ones with --from-scratch. `vitrail models` lists what is known."
            )
        return None, RANDOM, "random weights", "own"
    try:
        located = finder.locate(known)
    except WeightsUnavailable as error:
        raise InputError(
            f"{str(error).rstrip('.')}: give a file with --weights, or start from random ones with "
            "--from-scratch."
        ) from None
    assert located.weights.sha256 is not None
    return located.path, located.weights.sha256, f"the weights of {known.name}", located.weights.license

"""Published CLIP and SigLIP weights: `clip.csv`, one row per set, as open_clip 3.3 lists them.

Left out: weights whose activation does not match their open_clip name (here the name of each row says which
activation it was trained with, `-quickgelu` or not), small DataComp experiments, and early epochs of weights
whose last epoch is listed.
"""

from __future__ import annotations

import csv
import difflib
from functools import lru_cache
from importlib.resources import files
from typing import NamedTuple

from vitrail.catalog.table import NORMALISATIONS
from vitrail.errors import InputError
from vitrail.vocabulary import Preprocess

__all__ = ["RESULTS", "Published", "all_published", "of_hub", "of_model", "preprocess_of", "published"]

RESULTS = "OpenCLIP, docs/openclip_results.csv at commit f862f86"
"""Source of the top-1 figures: zero-shot on ImageNet-1k, measured by the authors of OpenCLIP."""

OWN = {"ViT-nano-8-64": ("clip", "center"), "ViT-nano-8-64-sigmoid": ("clip", "center")}
"""Normalisation and crop mode of our own models, as `vitrail train-clip` trains them."""


class Published(NamedTuple):
    """One set of published weights."""

    model: str
    """Name in `vitrail.models`; it also says which activation (`-quickgelu`)."""
    tag: str
    """open_clip's."""
    hub: str
    """Repository on the Hugging Face hub."""
    license: str
    """From the repository's page or timm's record; unknown if neither states one."""
    normalisation: str
    """Key of `table.NORMALISATIONS`."""
    crop_mode: str
    """"center" or "squash"."""
    accuracy: float | None
    """Zero-shot top-1 on ImageNet-1k in %, from `RESULTS`; None: not in that table."""


@lru_cache(maxsize=1)
def all_published() -> tuple[Published, ...]:
    """All published weights, by model."""
    text = files("vitrail.catalog").joinpath("clip.csv").read_text(encoding="utf-8")
    found = []
    for row in csv.DictReader(text.splitlines()):
        top1 = row.pop("top1")
        found.append(Published(**row, accuracy=float(top1) if top1 else None))
    return tuple(found)


def of_model(model: str) -> tuple[Published, ...]:
    """All published weights of a model; none for a name that the table does not hold."""
    return tuple(row for row in all_published() if row.model == model)


def of_hub(model: str, hub: str) -> Published | None:
    """The row of a repository on the hub, or None."""
    return next((row for row in of_model(model) if row.hub == hub), None)


def published(model: str, tag: str | None) -> Published:
    """The row with this model and tag; without a tag, the model's only row.

    Raises:
        InputError: no such row, or no tag and several rows.
    """
    known = {row.tag: row for row in of_model(model)}
    if not known:
        raise InputError(f"Vitrail knows no published weights of {model}: give a file with --weights FILE.")
    if tag is None:
        if len(known) == 1:
            return next(iter(known.values()))
        raise InputError(
            f"There are several published weights of {model}: choose one with --tag {' or '.join(known)}, or "
            "give a file with --weights FILE."
        )
    if tag in known:
        return known[tag]
    elsewhere = [row.model for row in all_published() if row.tag == tag and _alike(row.model, model)]
    if elsewhere:
        raise InputError(
            f"The weights {tag} were trained with {'' if elsewhere[0].endswith('quickgelu') else 'no '}"
            f"QuickGELU: use --model {elsewhere[0]}."
        )
    near = difflib.get_close_matches(tag, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"choose {' or '.join(known)}."
    raise InputError(f"Vitrail knows no weights {tag!r} of {model}: {hint}")


def preprocess_of(model: str, image_size: int, row: Published | None) -> Preprocess:
    """The preprocessing the weights were trained with.

    Args:
        model: the name.
        image_size: pixels of the model's input.
        row: which weights; None if unknown, which is allowed only if all rows of the model agree.

    Raises:
        InputError: the weights are unknown, and the model was published with several kinds of preprocessing.
    """
    kinds = {(r.normalisation, r.crop_mode) for r in (of_model(model) if row is None else [row])}
    kinds |= {OWN[model]} if model in OWN else set()
    if len(kinds) != 1:
        tags = " or ".join(r.tag for r in of_model(model)) or "none is known"
        raise InputError(
            f"{model} was published with several kinds of preprocessing, and the file does not say which: "
            f"name the published weights it was derived from with --tag ({tags})."
        )
    ((normalisation, crop_mode),) = kinds
    mean, std = NORMALISATIONS[normalisation]
    return Preprocess(
        image_size=image_size,
        crop=1.0,
        crop_mode="squash" if crop_mode == "squash" else "center",
        interpolation="bicubic",
        mean=mean,
        std=std,
    )


def _alike(one: str, other: str) -> bool:
    return one.removesuffix("-quickgelu") == other.removesuffix("-quickgelu")

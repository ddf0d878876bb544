"""CLIP and SigLIP weights that are published, as open_clip lists them (its `pretrained.py`, version 3.3).

A literal table that imports no torch. Left out: weights that another of our names than open_clip's needs
(with QuickGELU or without: here each row stands under the name that computes what it was trained with), small
experiments of DataComp, and early epochs of weights whose last one is listed.
"""

from __future__ import annotations

import difflib
from typing import Literal, NamedTuple

from vitrail.errors import InputError
from vitrail.vocabulary import Preprocess

__all__ = ["PUBLISHED", "RESULTS", "Published", "of_hub", "of_model", "preprocess_of", "published"]

RESULTS = "OpenCLIP, docs/openclip_results.csv at commit f862f86"
"""Source of the top-1 figures: zero-shot on ImageNet-1k, measured by the authors of OpenCLIP."""


class Normalisation(NamedTuple):
    """How pixels become the model's input; the size is the model's, the interpolation bicubic for all."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop_mode: Literal["center", "squash"] = "center"


OPENAI = Normalisation((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
OPENAI_SQUASHED = OPENAI._replace(crop_mode="squash")
HALF = Normalisation((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
HALF_SQUASHED = HALF._replace(crop_mode="squash")


class _Row(NamedTuple):
    tag: str
    hub: str
    license: str
    normalisation: Normalisation
    accuracy: float | None


class Published(NamedTuple):
    """One set of published weights."""

    model: str
    """Name in `vitrail.models`; it says the activation too, so `quick_gelu` follows from it."""
    tag: str
    """open_clip's."""
    hub: str
    """Repository on the Hugging Face hub."""
    license: str
    """As the repository's page or timm's record says; unknown where neither was seen."""
    normalisation: Normalisation
    accuracy: float | None
    """Zero-shot top-1 on ImageNet-1k in %, from `RESULTS`; None: not in that table."""

    @property
    def quick_gelu(self) -> bool:
        return self.model.endswith("-quickgelu")


_ROWS: dict[str, tuple[_Row, ...]] = {
    "ViT-B-32": (
        _Row("laion2b_e16", "timm/vit_base_patch32_clip_224.laion2b_e16", "apache-2.0", OPENAI, 65.65),
        _Row("laion2b_s34b_b79k", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "mit", OPENAI, 66.56),
        _Row("datacomp_xl_s13b_b90k", "laion/CLIP-ViT-B-32-DataComp.XL-s13B-b90K", "mit", OPENAI, 69.17),
    ),
    "ViT-B-32-256": (
        _Row("datacomp_s34b_b86k", "laion/CLIP-ViT-B-32-256x256-DataComp-s34B-b86K", "mit", OPENAI, 72.81),
    ),
    "ViT-B-32-quickgelu": (
        _Row("openai", "timm/vit_base_patch32_clip_224.openai", "apache-2.0", OPENAI, 63.32),
        _Row("laion400m_e32", "timm/vit_base_patch32_clip_224.laion400m_e32", "mit", OPENAI, 62.93),
        _Row("metaclip_400m", "timm/vit_base_patch32_clip_224.metaclip_400m", "cc-by-nc-4.0", OPENAI, 65.58),
        _Row(
            "metaclip_fullcc", "timm/vit_base_patch32_clip_224.metaclip_2pt5b", "cc-by-nc-4.0", OPENAI, 67.66
        ),
    ),
    "ViT-B-16": (
        _Row("laion400m_e32", "timm/vit_base_patch16_clip_224.laion400m_e32", "mit", OPENAI, 67.05),
        _Row("laion2b_s34b_b88k", "laion/CLIP-ViT-B-16-laion2B-s34B-b88K", "mit", OPENAI, 70.23),
        _Row("datacomp_xl_s13b_b90k", "laion/CLIP-ViT-B-16-DataComp.XL-s13B-b90K", "mit", OPENAI, 73.49),
    ),
    "ViT-B-16-quickgelu": (
        _Row("openai", "timm/vit_base_patch16_clip_224.openai", "apache-2.0", OPENAI, 68.34),
        _Row("dfn2b", "apple/DFN2B-CLIP-ViT-B-16", "apple-amlr", OPENAI, 76.24),
        _Row("metaclip_400m", "timm/vit_base_patch16_clip_224.metaclip_400m", "cc-by-nc-4.0", OPENAI, 70.8),
        _Row(
            "metaclip_fullcc", "timm/vit_base_patch16_clip_224.metaclip_2pt5b", "cc-by-nc-4.0", OPENAI, 72.12
        ),
    ),
    "ViT-L-14": (
        _Row("laion400m_e32", "timm/vit_large_patch14_clip_224.laion400m_e32", "mit", OPENAI, 72.77),
        _Row("laion2b_s32b_b82k", "laion/CLIP-ViT-L-14-laion2B-s32B-b82K", "mit", HALF, 75.25),
        _Row("datacomp_xl_s13b_b90k", "laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K", "mit", OPENAI, 79.21),
        _Row(
            "commonpool_xl_clip_s13b_b90k",
            "laion/CLIP-ViT-L-14-CommonPool.XL.clip-s13B-b90K",
            "mit",
            OPENAI,
            76.37,
        ),
        _Row(
            "commonpool_xl_laion_s13b_b90k",
            "laion/CLIP-ViT-L-14-CommonPool.XL.laion-s13B-b90K",
            "mit",
            OPENAI,
            75.45,
        ),
        _Row("commonpool_xl_s13b_b90k", "laion/CLIP-ViT-L-14-CommonPool.XL-s13B-b90K", "mit", OPENAI, 72.29),
        _Row("dfn2b_s39b", "apple/DFN2B-CLIP-ViT-L-14-39B", "unknown", OPENAI, None),
    ),
    "ViT-L-14-quickgelu": (
        _Row("openai", "timm/vit_large_patch14_clip_224.openai", "apache-2.0", OPENAI, 75.54),
        _Row("metaclip_400m", "timm/vit_large_patch14_clip_224.metaclip_400m", "cc-by-nc-4.0", OPENAI, 76.2),
        _Row(
            "metaclip_fullcc", "timm/vit_large_patch14_clip_224.metaclip_2pt5b", "cc-by-nc-4.0", OPENAI, 79.17
        ),
        _Row("dfn2b", "apple/DFN2B-CLIP-ViT-L-14", "apple-amlr", OPENAI, 81.41),
    ),
    "ViT-L-14-336-quickgelu": (
        _Row("openai", "timm/vit_large_patch14_clip_336.openai", "apache-2.0", OPENAI, 76.56),
    ),
    "ViT-H-14": (
        _Row("laion2b_s32b_b79k", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "mit", OPENAI, 77.96),
        _Row(
            "metaclip_altogether",
            "timm/vit_huge_patch14_clip_224.metaclip_altogether",
            "cc-by-nc-4.0",
            OPENAI,
            None,
        ),
    ),
    "ViT-H-14-quickgelu": (
        _Row(
            "metaclip_fullcc", "timm/vit_huge_patch14_clip_224.metaclip_2pt5b", "cc-by-nc-4.0", OPENAI, 80.51
        ),
        _Row("dfn5b", "apple/DFN5B-CLIP-ViT-H-14", "unknown", OPENAI_SQUASHED, 83.44),
    ),
    "ViT-g-14": (
        _Row("laion2b_s12b_b42k", "laion/CLIP-ViT-g-14-laion2B-s12B-b42K", "mit", OPENAI, 76.63),
        _Row("laion2b_s34b_b88k", "laion/CLIP-ViT-g-14-laion2B-s34B-b88K", "mit", OPENAI, 78.47),
    ),
    "ViT-bigG-14": (
        _Row("laion2b_s39b_b160k", "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k", "mit", OPENAI, 80.09),
    ),
    "ViT-B-16-SigLIP": (_Row("webli", "timm/ViT-B-16-SigLIP", "apache-2.0", HALF_SQUASHED, 76.04),),
    "ViT-B-16-SigLIP-256": (_Row("webli", "timm/ViT-B-16-SigLIP-256", "apache-2.0", HALF_SQUASHED, 76.53),),
    "ViT-B-16-SigLIP-384": (_Row("webli", "timm/ViT-B-16-SigLIP-384", "apache-2.0", HALF_SQUASHED, 78.49),),
    "ViT-B-16-SigLIP-512": (_Row("webli", "timm/ViT-B-16-SigLIP-512", "apache-2.0", HALF_SQUASHED, 79.14),),
    "ViT-L-16-SigLIP-256": (_Row("webli", "timm/ViT-L-16-SigLIP-256", "apache-2.0", HALF_SQUASHED, 80.45),),
    "ViT-L-16-SigLIP-384": (_Row("webli", "timm/ViT-L-16-SigLIP-384", "apache-2.0", HALF_SQUASHED, 82.07),),
    "ViT-SO400M-14-SigLIP": (_Row("webli", "timm/ViT-SO400M-14-SigLIP", "apache-2.0", HALF_SQUASHED, 82.03),),
    "ViT-B-16-SigLIP2": (_Row("webli", "timm/ViT-B-16-SigLIP2", "apache-2.0", HALF_SQUASHED, None),),
    "ViT-B-16-SigLIP2-256": (_Row("webli", "timm/ViT-B-16-SigLIP2-256", "apache-2.0", HALF_SQUASHED, None),),
    "ViT-L-16-SigLIP2-256": (_Row("webli", "timm/ViT-L-16-SigLIP2-256", "apache-2.0", HALF_SQUASHED, None),),
    "ViT-SO400M-14-SigLIP2": (
        _Row("webli", "timm/ViT-SO400M-14-SigLIP2", "apache-2.0", HALF_SQUASHED, None),
    ),
}

OWN: dict[str, Normalisation] = {"ViT-nano-8-64": OPENAI, "ViT-nano-8-64-sigmoid": OPENAI}
"""How images are prepared for the models that are ours alone: as `vitrail train-clip` trains them."""

PUBLISHED: dict[tuple[str, str], Published] = {
    (name, row.tag): Published(name, *row) for name, rows in _ROWS.items() for row in rows
}
"""By model and tag."""


def of_model(model: str) -> tuple[Published, ...]:
    """All published weights of a model; none for a name that the table does not hold."""
    return tuple(row for row in PUBLISHED.values() if row.model == model)


def of_hub(model: str, hub: str) -> Published | None:
    """The row of a repository on the hub, or None."""
    return next((row for row in of_model(model) if row.hub == hub), None)


def published(model: str, tag: str | None) -> Published:
    """The row of a model and a tag; without a tag the only row of the model.

    Raises:
        InputError: no such row, or several and no tag.
    """
    rows = {row.tag: row for row in of_model(model)}
    if not rows:
        raise InputError(f"No published weights of {model} are known here: give a file with --weights FILE.")
    if tag is None:
        if len(rows) == 1:
            return next(iter(rows.values()))
        raise InputError(
            f"{model} was published with several weights: choose one with --tag {' or '.join(rows)}, or give "
            "a file with --weights FILE."
        )
    if tag in rows:
        return rows[tag]
    elsewhere = [row.model for row in PUBLISHED.values() if row.tag == tag and _alike(row.model, model)]
    if elsewhere:
        raise InputError(
            f"The weights {tag} were trained with {'' if elsewhere[0].endswith('quickgelu') else 'no '}"
            f"QuickGELU: use --model {elsewhere[0]}."
        )
    near = difflib.get_close_matches(tag, rows, n=1)
    known = f"did you mean {near[0]}?" if near else f"choose {' or '.join(rows)}."
    raise InputError(f"No weights {tag!r} of {model} are known here: {known}")


def preprocess_of(model: str, image_size: int, row: Published | None) -> Preprocess:
    """The preprocessing that weights were trained with.

    Args:
        model: the name.
        image_size: pixels of the model's input.
        row: which weights; None: unknown ones, which is an answer only where all rows of the model agree.

    Raises:
        InputError: the weights are unknown and the model was published with different preprocessings.
    """
    kinds = {r.normalisation for r in of_model(model)} if row is None else {row.normalisation}
    kinds |= {OWN[model]} if model in OWN else set()
    if len(kinds) != 1:
        tags = " or ".join(r.tag for r in of_model(model)) or "none is known"
        raise InputError(
            f"Weights of {model} were trained with different preprocessings and a file does not say which: "
            f"name the published weights it came from with --tag ({tags})."
        )
    (kind,) = kinds
    return Preprocess(
        image_size=image_size,
        crop=1.0,
        crop_mode=kind.crop_mode,
        interpolation="bicubic",
        mean=kind.mean,
        std=kind.std,
    )


def _alike(one: str, other: str) -> bool:
    return one.removesuffix("-quickgelu") == other.removesuffix("-quickgelu")

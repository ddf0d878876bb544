"""Published promptable segmenters: which weights there are, what they cost, and how photos are prepared.

Multiply-accumulates and activations are those of the first stage, once for a photo, counted as for all
candidates (profiling/cost.py): a prompt costs two billion more. No accuracy is stated: their authors publish
mean IoUs per data set and prompt, not one figure that a limit could be about; `--data` measures it.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from vitrail.vocabulary import Candidate, Preprocess, Weights

__all__ = ["CANDIDATES", "preprocess_of"]

CropMode = Literal["letterbox", "squash"]

SAM, SAM_2, EDGETAM = "sa1b", "2pt1", "edgetam"
"""Tags: the data set that SAM was trained on, SAM 2's version, EdgeTAM's one."""

NOTES = {
    SAM: "Meta AI's Segment Anything, as transformers publishes it",
    SAM_2: "Meta AI's SAM 2.1, its image mode",
    EDGETAM: "Meta's EdgeTAM, its image mode, as it was converted for transformers",
}


class _Published(NamedTuple):
    architecture: str
    tag: str
    hub: str
    parameters: int
    macs: int
    activations: int


PUBLISHED = (
    _Published("edgetam", EDGETAM, "yonigozlan/EdgeTAM-hf", 9_120_641, 19_374_551_040, 180_947_240),
    _Published(
        "sam2_hiera_tiny", SAM_2, "facebook/sam2.1-hiera-tiny", 31_440_721, 146_242_248_192, 336_106_240
    ),
    _Published(
        "sam2_hiera_small", SAM_2, "facebook/sam2.1-hiera-small", 38_538_577, 180_080_500_224, 397_669_120
    ),
    _Published(
        "sam2_hiera_base_plus",
        SAM_2,
        "facebook/sam2.1-hiera-base-plus",
        73_328_401,
        323_484_449_280,
        657_556_864,
    ),
    _Published(
        "sam2_hiera_large", SAM_2, "facebook/sam2.1-hiera-large", 216_924_865, 911_476_494_336, 1_373_765_632
    ),
    _Published("sam_vit_base", SAM, "facebook/sam-vit-base", 93_735_472, 589_117_882_368, 364_740_608),
    _Published("sam_vit_large", SAM, "facebook/sam-vit-large", 312_342_832, 1_630_279_106_560, 978_124_800),
    _Published("sam_vit_huge", SAM, "facebook/sam-vit-huge", 641_090_608, 3_117_980_368_896, 1_632_550_912),
)


def preprocess_of(image_size: int, crop_mode: CropMode = "letterbox") -> Preprocess:
    """How photos are prepared: SAM's letterboxed, SAM 2's and EdgeTAM's squashed."""
    return Preprocess(image_size=image_size, crop=1.0, crop_mode=crop_mode, interpolation="bilinear")


CANDIDATES: tuple[Candidate, ...] = tuple(
    Candidate(
        name=f"{row.architecture}.{row.tag}",
        architecture=row.architecture,
        family="sam" if row.tag == SAM else "sam2",
        weights=Weights(source="hub", reference=row.hub, tag=row.tag, license="apache-2.0"),
        preprocess=preprocess_of(1024, "letterbox" if row.tag == SAM else "squash"),
        accuracy=None,
        parameters=row.parameters,
        macs=row.macs,
        activations=row.activations,
        labels="",
        note=NOTES[row.tag],
        task="promptable",
    )
    for row in PUBLISHED
)
"""By family, small to large."""

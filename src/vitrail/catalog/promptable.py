"""Published promptable segmenters: which weights there are, what they cost, and how photos are prepared.

Multiply-accumulates and activations are the image encoder's, counted as for all candidates
(profiling/cost.py): a prompt costs less than a hundredth of it. No accuracy is stated: their authors publish
mean IoUs per data set and prompt, not one figure that a limit could be about; `--data` measures it.
"""

from __future__ import annotations

from typing import NamedTuple

from vitrail.vocabulary import Candidate, Preprocess, Weights

__all__ = ["CANDIDATES", "preprocess_of"]

TAG = "sa1b"
"""The data set that SAM was trained on."""


class _Published(NamedTuple):
    architecture: str
    hub: str
    parameters: int
    macs: int
    activations: int


PUBLISHED = (
    _Published("sam_vit_base", "facebook/sam-vit-base", 93_735_472, 589_117_882_368, 364_740_608),
    _Published("sam_vit_large", "facebook/sam-vit-large", 312_342_832, 1_630_279_106_560, 978_124_800),
    _Published("sam_vit_huge", "facebook/sam-vit-huge", 641_090_608, 3_117_980_368_896, 1_632_550_912),
)


def preprocess_of(image_size: int) -> Preprocess:
    """How SAM's photos are prepared, whatever its size."""
    return Preprocess(image_size=image_size, crop=1.0, crop_mode="letterbox", interpolation="bilinear")


CANDIDATES: tuple[Candidate, ...] = tuple(
    Candidate(
        name=f"{row.architecture}.{TAG}",
        architecture=row.architecture,
        family="sam",
        weights=Weights(source="hub", reference=row.hub, tag=TAG, license="apache-2.0"),
        preprocess=preprocess_of(1024),
        accuracy=None,
        parameters=row.parameters,
        macs=row.macs,
        activations=row.activations,
        labels="",
        note="Meta AI's Segment Anything, as transformers publishes it",
        task="promptable",
    )
    for row in PUBLISHED
)
"""Small to large."""

"""transformers' names of UPerNet's weights on a Swin. Ours are the same, but for the backbone's, which are
Swin's: its norm of the last stage is the one before a Swin's classifier, and the others are `norms`.
"""

from __future__ import annotations

from vitrail.weights.dialects import Dialect
from vitrail.weights.dialects.swin import TRANSFORMERS as SWIN
from vitrail.weights.dialects.swin import TRANSFORMERS_FILES as SWIN_FILES

__all__ = ["DIALECTS"]

STAGES = 4

_BACKBONE: dict[str, str | None] = {
    theirs: None if ours is None else f"backbone.{ours}"
    for theirs, ours in {**SWIN_FILES.names, **SWIN.names}.items()
    # A classifier's: the backbone has neither.
    if theirs not in ("layernorm", "classifier")
}


def _norms(before: str) -> dict[str, str | None]:
    names: dict[str, str | None] = {
        f"{before}hidden_states_norms.stage{stage}": f"norms.{stage - 1}" for stage in range(1, STAGES)
    }
    return names | {f"{before}hidden_states_norms.stage{STAGES}": "backbone.norm"}


_MARKS = ("decode_head.fpn_bottleneck.conv.weight", "embeddings.patch_embeddings.projection.weight")

FILES = Dialect(
    name="Hugging Face transformers (its files)",
    prefix="backbone.",
    marks=_MARKS,
    names={**_BACKBONE, **_norms("")},
)

MODULES = Dialect(
    name="Hugging Face transformers (its modules since version 5)",
    prefix="backbone.swin.",
    marks=_MARKS,
    names={**_BACKBONE, **_norms("backbone."), "layernorm": None},
)

DIALECTS = (FILES, MODULES)

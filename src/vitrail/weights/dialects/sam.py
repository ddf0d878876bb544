"""Other codebases' names of SAM's weights. Ours are Meta's, but for the MLPs, which are shared with others.

Meta's and transformers' position tables have four dimensions; the model's `adapt_weights` flattens them.
transformers ties two copies of the Fourier features: a file may hold one or both, which must be equal.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vitrail.weights.dialects import Dialect, Unclear

__all__ = ["DECODER_NAMES", "DIALECTS", "MATRIX", "PROMPT_NAMES", "one_matrix"]

MATRIX = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
MATRIX_AGAIN = "prompt_encoder.shared_embedding.positional_embedding"
"""transformers' second copy; the name stays until `one_matrix` has compared it."""

META = Dialect(
    name="Meta's segment-anything",
    marks=("image_encoder.blocks.0.mlp.lin1.weight", "mask_decoder.iou_token.weight"),
    names={
        "image_encoder.blocks.{b}.mlp.lin1": "image_encoder.blocks.{b}.mlp.fc1",
        "image_encoder.blocks.{b}.mlp.lin2": "image_encoder.blocks.{b}.mlp.fc2",
        "mask_decoder.transformer.layers.{b}.mlp.lin1": "mask_decoder.transformer.layers.{b}.mlp.layers.0",
        "mask_decoder.transformer.layers.{b}.mlp.lin2": "mask_decoder.transformer.layers.{b}.mlp.layers.1",
    },
)

_THEIRS, _OURS = "vision_encoder.layers.{b}", "image_encoder.blocks.{b}"
_TWO_WAY = "mask_decoder.transformer.layers.{b}"
_HYPER = "mask_decoder.output_hypernetworks_mlps.{b}"
_IOU = "mask_decoder.iou_prediction_head"


PROMPT_NAMES: dict[str, str | None] = {
    "shared_image_embedding.positional_embedding": MATRIX,
    "prompt_encoder.mask_embed.conv1": "prompt_encoder.mask_downscaling.0",
    "prompt_encoder.mask_embed.layer_norm1": "prompt_encoder.mask_downscaling.1",
    "prompt_encoder.mask_embed.conv2": "prompt_encoder.mask_downscaling.3",
    "prompt_encoder.mask_embed.layer_norm2": "prompt_encoder.mask_downscaling.4",
    "prompt_encoder.mask_embed.conv3": "prompt_encoder.mask_downscaling.6",
}
"""transformers' names of what SAM and SAM 2 share."""

DECODER_NAMES: dict[str, str | None] = {
    **{f"{_TWO_WAY}.layer_norm{i}": f"{_TWO_WAY}.norm{i}" for i in (1, 2, 3, 4)},
    "mask_decoder.transformer.layer_norm_final_attn": "mask_decoder.transformer.norm_final_attn",
    "mask_decoder.upscale_conv1": "mask_decoder.output_upscaling.0",
    "mask_decoder.upscale_layer_norm": "mask_decoder.output_upscaling.1",
    "mask_decoder.upscale_conv2": "mask_decoder.output_upscaling.3",
    # Of three layers each, as in all published files.
    **{
        f"{head}.{theirs}": f"{head}.layers.{ours}"
        for head in (_HYPER, _IOU)
        for theirs, ours in (("proj_in", 0), ("layers.0", 1), ("proj_out", 2))
    },
}

_NAMES: dict[str, str | None] = {
    **PROMPT_NAMES,
    **DECODER_NAMES,
    "vision_encoder.patch_embed.projection": "image_encoder.patch_embed.proj",
    "vision_encoder.pos_embed": "image_encoder.pos_embed",
    f"{_THEIRS}.layer_norm1": f"{_OURS}.norm1",
    f"{_THEIRS}.layer_norm2": f"{_OURS}.norm2",
    f"{_THEIRS}.attn.qkv": f"{_OURS}.attn.qkv",
    f"{_THEIRS}.attn.proj": f"{_OURS}.attn.proj",
    f"{_THEIRS}.attn.rel_pos_h": f"{_OURS}.attn.rel_pos_h",
    f"{_THEIRS}.attn.rel_pos_w": f"{_OURS}.attn.rel_pos_w",
    f"{_THEIRS}.mlp.lin1": f"{_OURS}.mlp.fc1",
    f"{_THEIRS}.mlp.lin2": f"{_OURS}.mlp.fc2",
    "vision_encoder.neck.conv1": "image_encoder.neck.0",
    "vision_encoder.neck.layer_norm1": "image_encoder.neck.1",
    "vision_encoder.neck.conv2": "image_encoder.neck.2",
    "vision_encoder.neck.layer_norm2": "image_encoder.neck.3",
    "prompt_encoder.point_embed.{b}": "prompt_encoder.point_embeddings.{b}",
    f"{_TWO_WAY}.mlp.lin1": f"{_TWO_WAY}.mlp.layers.0",
    f"{_TWO_WAY}.mlp.lin2": f"{_TWO_WAY}.mlp.layers.1",
}


TRANSFORMERS = Dialect(
    name="Hugging Face transformers",
    marks=("vision_encoder.layers.0.mlp.lin1.weight", "mask_decoder.iou_token.weight"),
    names=_NAMES,
)

DIALECTS = (META, TRANSFORMERS)


def one_matrix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors with the Fourier features once, under our name.

    Raises:
        Unclear: two copies that differ.
    """
    state = dict(state)
    again = state.pop(MATRIX_AGAIN, None)
    if again is not None and not _same(again, state.setdefault(MATRIX, again)):
        raise Unclear("it holds two matrices of Fourier features that differ: save it again.", state)
    return state


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and (a.is_meta or b.is_meta or torch.equal(a, b))

"""Other codebases' names of SAM 2's weights. Ours are Meta's without `sam_`, but for the MLPs of the trunk,
which are shared with others. What a video needs is left out.

transformers keeps the four kinds of points in one table, and two copies of the Fourier features; the model's
`adapt_weights` splits the one and compares the other. Both name EdgeTAM's trunk with timm's names.
"""

from __future__ import annotations

from vitrail.weights.dialects import Dialect
from vitrail.weights.dialects.sam import DECODER_NAMES, PROMPT_NAMES

__all__ = ["DIALECTS", "KINDS"]

KINDS = "prompt_encoder.point_embed.weight"
"""transformers' table of the four kinds of points."""

_VIDEO = (
    "memory_",
    "mask_downsample",
    "object_pointer",
    "temporal_positional_encoding_projection_layer",
    "no_memory_positional_encoding",
    "no_object_pointer",
    "occlusion_spatial_embedding_parameter",
    "spatial_perceiver",
)
_METAS_VIDEO = (
    "memory_",
    "maskmem_tpos_enc",
    "mask_downsample",
    "obj_ptr_",
    "no_mem_pos_enc",
    "no_obj_ptr",
    "no_obj_embed_spatial",
    "spatial_perceiver",
)
"""What the same files hold for videos; `spatial_perceiver` is EdgeTAM's."""

_TRUNK, _BACKBONE = "image_encoder.trunk", "vision_encoder.backbone"
_BLOCK, _THEIRS = f"{_TRUNK}.blocks.{{b}}", f"{_BACKBONE}.blocks.{{b}}"
_TWO_WAY = "mask_decoder.transformer.layers.{b}"
_OBJECT = "mask_decoder.pred_obj_score_head"

META = Dialect(
    name="Meta's sam2",
    marks=("sam_mask_decoder.obj_score_token.weight", "sam_prompt_encoder.no_mask_embed.weight"),
    names={
        f"{_BLOCK}.mlp.layers.0": f"{_BLOCK}.mlp.fc1",
        f"{_BLOCK}.mlp.layers.1": f"{_BLOCK}.mlp.fc2",
    },
    replaced={"sam_prompt_encoder.": "prompt_encoder.", "sam_mask_decoder.": "mask_decoder."},
    other_parts=_METAS_VIDEO,
)

TRANSFORMERS = Dialect(
    name="Hugging Face transformers",
    marks=("mask_decoder.pred_obj_score_head.proj_in.weight", "prompt_encoder.no_mask_embed.weight"),
    names={
        **PROMPT_NAMES,
        **DECODER_NAMES,
        "no_memory_embedding": "no_mem_embed",
        f"{_BACKBONE}.pos_embed": f"{_TRUNK}.pos_embed",
        f"{_BACKBONE}.pos_embed_window": f"{_TRUNK}.pos_embed_window",
        f"{_BACKBONE}.patch_embed.projection": f"{_TRUNK}.patch_embed.proj",
        f"{_THEIRS}.layer_norm1": f"{_BLOCK}.norm1",
        f"{_THEIRS}.attn.qkv": f"{_BLOCK}.attn.qkv",
        f"{_THEIRS}.attn.proj": f"{_BLOCK}.attn.proj",
        f"{_THEIRS}.layer_norm2": f"{_BLOCK}.norm2",
        f"{_THEIRS}.mlp.proj_in": f"{_BLOCK}.mlp.fc1",
        f"{_THEIRS}.mlp.proj_out": f"{_BLOCK}.mlp.fc2",
        f"{_THEIRS}.proj": f"{_BLOCK}.proj",
        "vision_encoder.neck.convs.{b}": "image_encoder.neck.convs.{b}.conv",
        f"{_TWO_WAY}.mlp.proj_in": f"{_TWO_WAY}.mlp.layers.0",
        f"{_TWO_WAY}.mlp.proj_out": f"{_TWO_WAY}.mlp.layers.1",
        f"{_OBJECT}.proj_in": f"{_OBJECT}.layers.0",
        f"{_OBJECT}.layers.0": f"{_OBJECT}.layers.1",
        f"{_OBJECT}.proj_out": f"{_OBJECT}.layers.2",
        **{
            f"{_TWO_WAY}.{attention}.o_proj": f"{_TWO_WAY}.{attention}.out_proj"
            for attention in ("self_attn", "cross_attn_token_to_image", "cross_attn_image_to_token")
        },
        "mask_decoder.transformer.final_attn_token_to_image.o_proj": (
            "mask_decoder.transformer.final_attn_token_to_image.out_proj"
        ),
    },
    replaced={"vision_encoder.backbone.timm_model.": "image_encoder.trunk.body."},
    other_parts=_VIDEO,
)

DIALECTS = (META, TRANSFORMERS)

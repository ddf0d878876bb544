"""The names of Vision Transformers in other codebases -> ours, which are timm's.

Three names on the right side are not parameters of ours: their content needs arithmetic (`settle`).

    pos_embed+class   a position table whose first row is the class token's, with no rows for registers
    attn_pool.qkv     the query, key and value matrices of an attention pooling in one
    projection        CLIP's projection of images: a head without bias

From a whole CLIP or SigLIP file, its image tower is used.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vitrail.weights.dialects import Dialect
from vitrail.weights.dialects import clip as _clip

__all__ = ["DIALECTS", "settle"]

# Up to version 4, and in every saved file, transformers uses the nested names of its BERT; version 5 has
# shorter ones in memory.
_HUGGING_FACE_BLOCKS: dict[str, str | None] = {
    # ViT and DeiT, in memory
    "layers.{b}.layernorm_before": "blocks.{b}.norm1",
    "layers.{b}.attention.q_proj": "blocks.{b}.attn.qkv[0/3]",
    "layers.{b}.attention.k_proj": "blocks.{b}.attn.qkv[1/3]",
    "layers.{b}.attention.v_proj": "blocks.{b}.attn.qkv[2/3]",
    "layers.{b}.attention.o_proj": "blocks.{b}.attn.proj",
    "layers.{b}.layernorm_after": "blocks.{b}.norm2",
    "layers.{b}.mlp.fc1": "blocks.{b}.mlp.fc1",
    "layers.{b}.mlp.fc2": "blocks.{b}.mlp.fc2",
    # ViT and DeiT, in files
    "encoder.layer.{b}.layernorm_before": "blocks.{b}.norm1",
    "encoder.layer.{b}.layernorm_after": "blocks.{b}.norm2",
    "encoder.layer.{b}.intermediate.dense": "blocks.{b}.mlp.fc1",
    "encoder.layer.{b}.output.dense": "blocks.{b}.mlp.fc2",
    # DINOv2, in both
    "encoder.layer.{b}.norm1": "blocks.{b}.norm1",
    "encoder.layer.{b}.layer_scale1.lambda1": "blocks.{b}.ls1.gamma",
    "encoder.layer.{b}.norm2": "blocks.{b}.norm2",
    "encoder.layer.{b}.mlp.fc1": "blocks.{b}.mlp.fc1",
    "encoder.layer.{b}.mlp.fc2": "blocks.{b}.mlp.fc2",
    "encoder.layer.{b}.layer_scale2.lambda1": "blocks.{b}.ls2.gamma",
    # DINOv2, in memory
    "encoder.layer.{b}.attention.q_proj": "blocks.{b}.attn.qkv[0/3]",
    "encoder.layer.{b}.attention.k_proj": "blocks.{b}.attn.qkv[1/3]",
    "encoder.layer.{b}.attention.v_proj": "blocks.{b}.attn.qkv[2/3]",
    "encoder.layer.{b}.attention.o_proj": "blocks.{b}.attn.proj",
    "encoder.layer.{b}.mlp.gate_proj": "blocks.{b}.mlp.fc1[0/2]",
    "encoder.layer.{b}.mlp.up_proj": "blocks.{b}.mlp.fc1[1/2]",
    "encoder.layer.{b}.mlp.down_proj": "blocks.{b}.mlp.fc2",
    # all, in files
    "encoder.layer.{b}.attention.attention.query": "blocks.{b}.attn.qkv[0/3]",
    "encoder.layer.{b}.attention.attention.key": "blocks.{b}.attn.qkv[1/3]",
    "encoder.layer.{b}.attention.attention.value": "blocks.{b}.attn.qkv[2/3]",
    "encoder.layer.{b}.attention.output.dense": "blocks.{b}.attn.proj",
    "encoder.layer.{b}.mlp.weights_in": "blocks.{b}.mlp.fc1",
    "encoder.layer.{b}.mlp.weights_out": "blocks.{b}.mlp.fc2",
}

_HUGGING_FACE: dict[str, str | None] = {
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "embeddings.cls_token": "cls_token",
    "embeddings.register_tokens": "reg_token",
    "embeddings.position_embeddings": "pos_embed+class",
    "embeddings.mask_token": None,
    **_HUGGING_FACE_BLOCKS,
    "layernorm": "norm",
    "pooler.dense": None,
    "classifier": "head",
}

_HUGGING_FACE_MARKS = (
    "embeddings.cls_token",
    "embeddings.position_embeddings",
    "embeddings.patch_embeddings.projection.weight",
)

_SIGLIP: dict[str, str | None] = {
    "embeddings.patch_embedding": "patch_embed.proj",
    "embeddings.position_embedding.weight": "pos_embed",
    "encoder.layers.{b}.layer_norm1": "blocks.{b}.norm1",
    "encoder.layers.{b}.self_attn.q_proj": "blocks.{b}.attn.qkv[0/3]",
    "encoder.layers.{b}.self_attn.k_proj": "blocks.{b}.attn.qkv[1/3]",
    "encoder.layers.{b}.self_attn.v_proj": "blocks.{b}.attn.qkv[2/3]",
    "encoder.layers.{b}.self_attn.out_proj": "blocks.{b}.attn.proj",
    "encoder.layers.{b}.layer_norm2": "blocks.{b}.norm2",
    "encoder.layers.{b}.mlp.fc1": "blocks.{b}.mlp.fc1",
    "encoder.layers.{b}.mlp.fc2": "blocks.{b}.mlp.fc2",
    "post_layernorm": "norm",
    "head.probe": "attn_pool.latent",
    "head.attention.in_proj_weight": "attn_pool.qkv.weight",
    "head.attention.in_proj_bias": "attn_pool.qkv.bias",
    "head.attention.out_proj": "attn_pool.proj",
    "head.layernorm": "attn_pool.norm",
    "head.mlp.fc1": "attn_pool.mlp.fc1",
    "head.mlp.fc2": "attn_pool.mlp.fc2",
}

_TORCHVISION: dict[str, str | None] = {
    "class_token": "cls_token",
    "conv_proj": "patch_embed.proj",
    "encoder.pos_embedding": "pos_embed+class",
    "encoder.layers.encoder_layer_{b}.ln_1": "blocks.{b}.norm1",
    "encoder.layers.encoder_layer_{b}.self_attention.in_proj_weight": "blocks.{b}.attn.qkv.weight",
    "encoder.layers.encoder_layer_{b}.self_attention.in_proj_bias": "blocks.{b}.attn.qkv.bias",
    "encoder.layers.encoder_layer_{b}.self_attention.out_proj": "blocks.{b}.attn.proj",
    "encoder.layers.encoder_layer_{b}.ln_2": "blocks.{b}.norm2",
    "encoder.layers.encoder_layer_{b}.mlp.0": "blocks.{b}.mlp.fc1",
    "encoder.layers.encoder_layer_{b}.mlp.3": "blocks.{b}.mlp.fc2",
    # the published files are older than these two names
    "encoder.layers.encoder_layer_{b}.mlp.linear_1": "blocks.{b}.mlp.fc1",
    "encoder.layers.encoder_layer_{b}.mlp.linear_2": "blocks.{b}.mlp.fc2",
    "encoder.ln": "norm",
    "heads.head": "head",
}

_META_DINOV2: dict[str, str | None] = {
    "pos_embed": "pos_embed+class",
    "register_tokens": "reg_token",
    "mask_token": None,
    "blocks.{b}.mlp.w12": "blocks.{b}.mlp.fc1",
    "blocks.{b}.mlp.w3": "blocks.{b}.mlp.fc2",
}


def _image_tower(names: dict[str, str] | dict[str, str | None], before: str = "") -> dict[str, str | None]:
    """CLIP's table -> its image tower's names as a separate ViT, `before` stripped from the foreign ones."""
    tower: dict[str, str | None] = {}
    for foreign, ours in names.items():
        if ours is not None and ours.startswith("image.") and ours != "image.head":
            own = ours.removeprefix("image.").replace("head.weight", "projection")
            tower[foreign.removeprefix(before)] = own
    return tower


_TEXT_OF_OPENAI = (
    "transformer.",
    "token_embedding.",
    "positional_embedding",
    "ln_final.",
    "text_projection",
    "text.",
    "logit_scale",
    "logit_bias",
    "attn_mask",
)
_TEXT_OF_HUGGING_FACE = ("text_model.", "text_projection", "logit_scale", "logit_bias")

_CLIP_TOWERS = (
    Dialect(
        name="open_clip",
        marks=("visual.class_embedding", "visual.conv1.weight"),
        names=_image_tower(_clip.VISUAL),
        other_parts=_TEXT_OF_OPENAI,
    ),
    Dialect(
        name="open_clip, image tower alone",
        marks=("class_embedding", "conv1.weight", "ln_pre.weight"),
        names=_image_tower(_clip.VISUAL, "visual."),
    ),
    Dialect(
        name="open_clip, image tower of timm",
        marks=("visual.trunk.patch_embed.proj.weight",),
        names=_image_tower(_clip.TRUNK),
        other_parts=_TEXT_OF_OPENAI,
    ),
    Dialect(
        name="Hugging Face transformers, CLIP",
        prefix="vision_model.",
        marks=("embeddings.class_embedding", "embeddings.patch_embedding.weight"),
        names={
            **_image_tower(_clip.HUGGING_FACE, "vision_model."),
            "visual_projection.weight": "projection",
            "embeddings.position_ids": None,
        },
        other_parts=_TEXT_OF_HUGGING_FACE,
    ),
)

DIALECTS: tuple[Dialect, ...] = (
    *_CLIP_TOWERS,
    Dialect(
        name="Hugging Face transformers, DeiT",
        prefix="deit.",
        # The distillation token has a row in the table; without its own head it is a register.
        marks=(*_HUGGING_FACE_MARKS, "embeddings.distillation_token"),
        names={
            **_HUGGING_FACE,
            "embeddings.position_embeddings": "pos_embed",
            "embeddings.distillation_token": "reg_token",
        },
    ),
    Dialect(
        name="Hugging Face transformers, ViT", prefix="vit.", marks=_HUGGING_FACE_MARKS, names=_HUGGING_FACE
    ),
    Dialect(
        name="Hugging Face transformers, DINOv2",
        prefix="dinov2.",
        marks=_HUGGING_FACE_MARKS,
        names=_HUGGING_FACE,
    ),
    Dialect(
        name="Hugging Face transformers, DINOv2 with registers",
        prefix="dinov2_with_registers.",
        marks=_HUGGING_FACE_MARKS,
        names=_HUGGING_FACE,
    ),
    Dialect(
        name="Hugging Face transformers, SigLIP",
        prefix="vision_model.",
        marks=("embeddings.patch_embedding.weight", "embeddings.position_embedding.weight", "head.probe"),
        names=_SIGLIP,
        other_parts=_TEXT_OF_HUGGING_FACE,
    ),
    Dialect(
        name="torchvision",
        marks=("class_token", "conv_proj.weight", "encoder.pos_embedding"),
        names=_TORCHVISION,
    ),
    Dialect(
        name="DINOv2",
        marks=("cls_token", "pos_embed", "mask_token", "blocks.0.ls1.gamma"),
        names=_META_DINOV2,
    ),
    Dialect(
        name="timm",
        marks=("patch_embed.proj.weight", "pos_embed", "blocks.0.attn.qkv.weight"),
        # DeiT III's own files
        names={"blocks.{b}.gamma_1": "blocks.{b}.ls1.gamma", "blocks.{b}.gamma_2": "blocks.{b}.ls2.gamma"},
    ),
)


def settle(
    translated: dict[str, Tensor], *, registers: int, covers_prefix: bool, head_bias: bool
) -> dict[str, Tensor]:
    """Translated tensors -> our tensors only, position tables as (1, N, D); the dict is not changed.

    Without `covers_prefix` the class token's row of a table is added to the token itself, which gives the
    same sum; with it registers get rows of zeros.
    """
    state = {name: value for name, value in translated.items() if name not in _clip.OPENAI_FACTS}
    if "pos_embed" in state and state["pos_embed"].ndim == 2:
        state["pos_embed"] = state["pos_embed"][None]
    if "cls_token" in state and state["cls_token"].ndim == 1:
        state["cls_token"] = state["cls_token"][None, None]
    projection_ED = state.pop("projection", None)
    if projection_ED is not None:
        state["head.weight"] = projection_ED
        if head_bias:
            state["head.bias"] = projection_ED.new_zeros(len(projection_ED))
    for leaf in ("weight", "bias"):
        packed = state.pop(f"attn_pool.qkv.{leaf}", None)
        if packed is not None:
            width = len(packed) // 3
            state[f"attn_pool.q.{leaf}"], state[f"attn_pool.kv.{leaf}"] = packed[:width], packed[width:]
    table_1ND = state.pop("pos_embed+class", None)
    if table_1ND is None:
        return state
    class_11D, patches_1ND = table_1ND[:, :1], table_1ND[:, 1:]
    if covers_prefix:
        registers_1ND = table_1ND.new_zeros(1, registers, table_1ND.shape[-1])
        state["pos_embed"] = torch.cat([class_11D, registers_1ND, patches_1ND], 1)
    else:
        state["pos_embed"] = patches_1ND
        if "cls_token" in state:
            state["cls_token"] = state["cls_token"] + class_11D
    return state

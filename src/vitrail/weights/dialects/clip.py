"""CLIP and SigLIP as OpenAI, open_clip and Hugging Face transformers name them.

The image tower is a `ViT` under `image.`, the text tower a `TextTransformer` under `text.`. The projection of
images is the ViT's head, stored by OpenAI and open_clip to be multiplied from the right.
"""

from __future__ import annotations

from vitrail.weights.dialects import Dialect

__all__ = ["DIALECTS", "HUGGING_FACE", "OPENAI_FACTS", "TRUNK", "VISUAL"]

OPENAI_FACTS = ("input_resolution", "context_length", "vocab_size")
"""Sizes stored as tensors in OpenAI's files. They keep their names: their presence tells `facts.py` that the
weights are OpenAI's, and so which GELU they were trained with."""

VISUAL = {
    "visual.class_embedding": "image.cls_token",
    "visual.positional_embedding": "image.pos_embed",
    "visual.conv1": "image.patch_embed.proj",
    "visual.ln_pre": "image.norm_pre",
    "visual.transformer.resblocks.{b}.ln_1": "image.blocks.{b}.norm1",
    "visual.transformer.resblocks.{b}.attn.in_proj_weight": "image.blocks.{b}.attn.qkv.weight",
    "visual.transformer.resblocks.{b}.attn.in_proj_bias": "image.blocks.{b}.attn.qkv.bias",
    "visual.transformer.resblocks.{b}.attn.out_proj": "image.blocks.{b}.attn.proj",
    "visual.transformer.resblocks.{b}.ln_2": "image.blocks.{b}.norm2",
    "visual.transformer.resblocks.{b}.mlp.c_fc": "image.blocks.{b}.mlp.fc1",
    "visual.transformer.resblocks.{b}.mlp.c_proj": "image.blocks.{b}.mlp.fc2",
    "visual.ln_post": "image.norm",
    "visual.proj": "image.head.weight^T",
}

TEXT = {
    "token_embedding": "text.token_embedding",
    "positional_embedding": "text.positional_embedding",
    "transformer.resblocks.{b}.ln_1": "text.blocks.{b}.norm1",
    "transformer.resblocks.{b}.attn.in_proj_weight": "text.blocks.{b}.attn.qkv.weight",
    "transformer.resblocks.{b}.attn.in_proj_bias": "text.blocks.{b}.attn.qkv.bias",
    "transformer.resblocks.{b}.attn.out_proj": "text.blocks.{b}.attn.proj",
    "transformer.resblocks.{b}.ln_2": "text.blocks.{b}.norm2",
    "transformer.resblocks.{b}.mlp.c_fc": "text.blocks.{b}.mlp.fc1",
    "transformer.resblocks.{b}.mlp.c_proj": "text.blocks.{b}.mlp.fc2",
    "ln_final": "text.norm",
    # A linear layer with bias in SigLIP, a bare matrix in CLIP: the first matching rule applies.
    "text_projection.weight": "text.projection.weight",
    "text_projection.bias": "text.projection.bias",
    "text_projection": "text.projection.weight^T",
    # Derived: the causal mask.
    "attn_mask": None,
}

TEXT_PREFIXED = {f"text.{foreign}": ours for foreign, ours in TEXT.items()}
"""The same for models whose text tower is a separate module."""

TRUNK = {
    # timm's names, after the prefix.
    "visual.trunk.cls_token": "image.cls_token",
    "visual.trunk.pos_embed": "image.pos_embed",
    "visual.trunk.patch_embed.proj": "image.patch_embed.proj",
    "visual.trunk.blocks.{b}.norm1": "image.blocks.{b}.norm1",
    "visual.trunk.blocks.{b}.attn.qkv": "image.blocks.{b}.attn.qkv",
    "visual.trunk.blocks.{b}.attn.proj": "image.blocks.{b}.attn.proj",
    "visual.trunk.blocks.{b}.norm2": "image.blocks.{b}.norm2",
    "visual.trunk.blocks.{b}.mlp.fc1": "image.blocks.{b}.mlp.fc1",
    "visual.trunk.blocks.{b}.mlp.fc2": "image.blocks.{b}.mlp.fc2",
    "visual.trunk.norm": "image.norm",
    "visual.trunk.attn_pool.latent": "image.attn_pool.latent",
    "visual.trunk.attn_pool.q": "image.attn_pool.q",
    "visual.trunk.attn_pool.kv": "image.attn_pool.kv",
    "visual.trunk.attn_pool.proj": "image.attn_pool.proj",
    "visual.trunk.attn_pool.norm": "image.attn_pool.norm",
    "visual.trunk.attn_pool.mlp.fc1": "image.attn_pool.mlp.fc1",
    "visual.trunk.attn_pool.mlp.fc2": "image.attn_pool.mlp.fc2",
}

HUGGING_FACE = {
    "vision_model.embeddings.class_embedding": "image.cls_token",
    "vision_model.embeddings.position_embedding.weight": "image.pos_embed",
    "vision_model.embeddings.patch_embedding": "image.patch_embed.proj",
    "vision_model.pre_layrnorm": "image.norm_pre",  # misspelt there
    "vision_model.encoder.layers.{b}.layer_norm1": "image.blocks.{b}.norm1",
    "vision_model.encoder.layers.{b}.self_attn.q_proj": "image.blocks.{b}.attn.qkv[0/3]",
    "vision_model.encoder.layers.{b}.self_attn.k_proj": "image.blocks.{b}.attn.qkv[1/3]",
    "vision_model.encoder.layers.{b}.self_attn.v_proj": "image.blocks.{b}.attn.qkv[2/3]",
    "vision_model.encoder.layers.{b}.self_attn.out_proj": "image.blocks.{b}.attn.proj",
    "vision_model.encoder.layers.{b}.layer_norm2": "image.blocks.{b}.norm2",
    "vision_model.encoder.layers.{b}.mlp.fc1": "image.blocks.{b}.mlp.fc1",
    "vision_model.encoder.layers.{b}.mlp.fc2": "image.blocks.{b}.mlp.fc2",
    "vision_model.post_layernorm": "image.norm",
    "visual_projection": "image.head",
    "vision_model.head.probe": "image.attn_pool.latent",
    "vision_model.head.attention.in_proj_weight": "image.attn_pool.qkv.weight",
    "vision_model.head.attention.in_proj_bias": "image.attn_pool.qkv.bias",
    "vision_model.head.attention.out_proj": "image.attn_pool.proj",
    "vision_model.head.layernorm": "image.attn_pool.norm",
    "vision_model.head.mlp.fc1": "image.attn_pool.mlp.fc1",
    "vision_model.head.mlp.fc2": "image.attn_pool.mlp.fc2",
    "text_model.embeddings.token_embedding": "text.token_embedding",
    "text_model.embeddings.position_embedding.weight": "text.positional_embedding",
    "text_model.encoder.layers.{b}.layer_norm1": "text.blocks.{b}.norm1",
    "text_model.encoder.layers.{b}.self_attn.q_proj": "text.blocks.{b}.attn.qkv[0/3]",
    "text_model.encoder.layers.{b}.self_attn.k_proj": "text.blocks.{b}.attn.qkv[1/3]",
    "text_model.encoder.layers.{b}.self_attn.v_proj": "text.blocks.{b}.attn.qkv[2/3]",
    "text_model.encoder.layers.{b}.self_attn.out_proj": "text.blocks.{b}.attn.proj",
    "text_model.encoder.layers.{b}.layer_norm2": "text.blocks.{b}.norm2",
    "text_model.encoder.layers.{b}.mlp.fc1": "text.blocks.{b}.mlp.fc1",
    "text_model.encoder.layers.{b}.mlp.fc2": "text.blocks.{b}.mlp.fc2",
    "text_model.final_layer_norm": "text.norm",
    "text_projection": "text.projection",
    "text_model.head": "text.projection",
    # Derived: 0, 1, 2, …; in files of older versions.
    "vision_model.embeddings.position_ids": None,
    "text_model.embeddings.position_ids": None,
}

DIALECTS = (
    Dialect(
        name="OpenAI CLIP",
        marks=("visual.class_embedding", "token_embedding.weight", OPENAI_FACTS[0]),
        names=VISUAL | TEXT,
    ),
    Dialect(
        name="open_clip",
        marks=("visual.class_embedding", "token_embedding.weight"),
        names=VISUAL | TEXT,
    ),
    Dialect(
        name="open_clip, text tower apart",
        marks=("visual.class_embedding", "text.token_embedding.weight"),
        names=VISUAL | TEXT_PREFIXED,
    ),
    Dialect(
        name="open_clip, image tower of timm",
        marks=("visual.trunk.patch_embed.proj.weight", "text.token_embedding.weight"),
        names=TRUNK | TEXT_PREFIXED,
    ),
    Dialect(
        name="Hugging Face transformers",
        marks=(
            "vision_model.embeddings.patch_embedding.weight",
            "text_model.embeddings.token_embedding.weight",
        ),
        names=HUGGING_FACE,
    ),
)

"""Other codebases' names of Swin's weights. Ours are timm's: merging comes at the start of stages 1 to 3.

All of them store what we compute: `relative_position_index`, `relative_coords_table`, `attn_mask`. The first
two reveal the window and keep a name; a mask adds nothing to them. torchvision's v2 stores the biases of q, k
and v in one tensor whose middle third it never uses: the model's `adapt_weights` splits it.
"""

from __future__ import annotations

from vitrail.weights.dialects import Dialect

__all__ = ["DERIVED", "DIALECTS"]

DERIVED = (".relative_position_index", ".relative_coords_table")
"""Endings of the names of tensors that are checked but not loaded."""

_DERIVED: dict[str, str | None] = {"layers.{s}.blocks.{b}.attn_mask": None}

MICROSOFT = Dialect(
    name="Microsoft's Swin",
    marks=("patch_embed.proj.weight", "layers.0.downsample.reduction.weight"),
    names={
        "layers.{s}.downsample.reduction": "layers.{s+1}.downsample.reduction",
        "layers.{s}.downsample.norm": "layers.{s+1}.downsample.norm",
        "head": "head.fc",
        **_DERIVED,
    },
)

TIMM = Dialect(
    name="timm",
    marks=("patch_embed.proj.weight", "layers.0.blocks.0.norm1.weight"),
    names=_DERIVED,
)

_TORCHVISION_STAGES = {f"features.{2 * s + 1}.{{b}}": f"layers.{s}.blocks.{{b}}" for s in range(4)}

TORCHVISION = Dialect(
    name="torchvision",
    marks=("features.0.0.weight", "features.1.0.attn.qkv.weight"),
    names={
        "features.0.0": "patch_embed.proj",
        "features.0.2": "patch_embed.norm",
        **{
            f"{theirs}.{part}": f"{ours}.{our_part}"
            for theirs, ours in _TORCHVISION_STAGES.items()
            for part, our_part in {
                "norm1": "norm1",
                "attn": "attn",
                "attn.qkv": "attn.qkv",
                "attn.proj": "attn.proj",
                "attn.cpb_mlp.0": "attn.cpb_mlp.0",
                "attn.cpb_mlp.2": "attn.cpb_mlp.2",
                "norm2": "norm2",
                "mlp.0": "mlp.fc1",
                "mlp.3": "mlp.fc2",
            }.items()
        },
        **{
            f"features.{2 * s}.{part}": f"layers.{s}.downsample.{part}"
            for s in range(1, 4)
            for part in ("reduction", "norm")
        },
        "head": "head.fc",
    },
)

_HF_FRAME: dict[str, str | None] = {
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "embeddings.norm": "patch_embed.norm",
    "encoder.layers.{s}.blocks.{b}.layernorm_before": "layers.{s}.blocks.{b}.norm1",
    "encoder.layers.{s}.blocks.{b}.layernorm_after": "layers.{s}.blocks.{b}.norm2",
    "encoder.layers.{s}.downsample.reduction": "layers.{s+1}.downsample.reduction",
    "encoder.layers.{s}.downsample.norm": "layers.{s+1}.downsample.norm",
    "layernorm": "norm",
    "classifier": "head.fc",
}
_HF = "encoder.layers.{s}.blocks.{b}"
_OURS = "layers.{s}.blocks.{b}"

TRANSFORMERS_FILES = Dialect(
    name="Hugging Face transformers (its files)",
    prefix="swin.",
    marks=("encoder.layers.0.blocks.0.attention.self.relative_position_bias_table",),
    names={
        **_HF_FRAME,
        f"{_HF}.attention.self.relative_position_index": f"{_OURS}.attn.relative_position_index",
        f"{_HF}.attention.self.relative_position_bias_table": f"{_OURS}.attn.relative_position_bias_table",
        f"{_HF}.attention.self.query": f"{_OURS}.attn.qkv[0/3]",
        f"{_HF}.attention.self.key": f"{_OURS}.attn.qkv[1/3]",
        f"{_HF}.attention.self.value": f"{_OURS}.attn.qkv[2/3]",
        f"{_HF}.attention.output.dense": f"{_OURS}.attn.proj",
        f"{_HF}.intermediate.dense": f"{_OURS}.mlp.fc1",
        f"{_HF}.output.dense": f"{_OURS}.mlp.fc2",
    },
)

_BIAS_TABLE = "relative_position_bias_table"

TRANSFORMERS = Dialect(
    name="Hugging Face transformers (its modules since version 5)",
    prefix="swin.",
    marks=("encoder.layers.0.blocks.0.attention.q_proj.weight",),
    names={
        **_HF_FRAME,
        f"{_HF}.attention.relative_position_bias.{_BIAS_TABLE}": f"{_OURS}.attn.{_BIAS_TABLE}",
        f"{_HF}.attention.q_proj": f"{_OURS}.attn.qkv[0/3]",
        f"{_HF}.attention.k_proj": f"{_OURS}.attn.qkv[1/3]",
        f"{_HF}.attention.v_proj": f"{_OURS}.attn.qkv[2/3]",
        f"{_HF}.attention.o_proj": f"{_OURS}.attn.proj",
        f"{_HF}.mlp.fc1": f"{_OURS}.mlp.fc1",
        f"{_HF}.mlp.fc2": f"{_OURS}.mlp.fc2",
    },
)

TRANSFORMERS_V2 = Dialect(
    name="Hugging Face transformers (Swinv2)",
    prefix="swinv2.",
    marks=("encoder.layers.0.blocks.0.attention.self.logit_scale",),
    names={
        **_HF_FRAME,
        f"{_HF}.attention.self.relative_position_index": f"{_OURS}.attn.relative_position_index",
        f"{_HF}.attention.self.relative_coords_table": f"{_OURS}.attn.relative_coords_table",
        f"{_HF}.attention.self.logit_scale": f"{_OURS}.attn.logit_scale",
        f"{_HF}.attention.self.continuous_position_bias_mlp.0": f"{_OURS}.attn.cpb_mlp.0",
        f"{_HF}.attention.self.continuous_position_bias_mlp.2": f"{_OURS}.attn.cpb_mlp.2",
        # Before the rules for whole modules: the key has no bias, so these stay separate here too.
        f"{_HF}.attention.self.query.bias": f"{_OURS}.attn.q_bias",
        f"{_HF}.attention.self.value.bias": f"{_OURS}.attn.v_bias",
        f"{_HF}.attention.self.query": f"{_OURS}.attn.qkv[0/3]",
        f"{_HF}.attention.self.key": f"{_OURS}.attn.qkv[1/3]",
        f"{_HF}.attention.self.value": f"{_OURS}.attn.qkv[2/3]",
        f"{_HF}.attention.output.dense": f"{_OURS}.attn.proj",
        f"{_HF}.intermediate.dense": f"{_OURS}.mlp.fc1",
        f"{_HF}.output.dense": f"{_OURS}.mlp.fc2",
    },
)

DIALECTS = (MICROSOFT, TIMM, TORCHVISION, TRANSFORMERS_FILES, TRANSFORMERS, TRANSFORMERS_V2)

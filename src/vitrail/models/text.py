"""The text transformer of CLIP (Radford et al. 2021, section 2.4) and of SigLIP (Zhai et al. 2023).

    x_BLD       = embedding[tokens] + positions
    x_BLD       = block(x)                       the image tower's block, repeated; in CLIP causal
    pooled_BD   = x at the end token (CLIP) or at the last place (SigLIP), after the last norm
    text_BE     = projection(pooled)

In CLIP the causal mask makes the end token the first to see the whole text, and whatever follows it is never
read; in SigLIP each token sees all others, padding included, so a row always has the full length.

Shapes: B texts, L tokens (the context), V vocabulary, D width, E width of the embedding shared with images.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitrail.errors import InputError
from vitrail.models.clip_config import TextConfig
from vitrail.models.inplace import inferring
from vitrail.models.vit import Block

__all__ = ["TextTransformer"]


class TextTransformer(nn.Module):
    """(B, L) token numbers -> (B, E) embeddings, not normalised."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = c = config
        self.token_embedding = nn.Embedding(c.vocab_size, c.width)
        self.positional_embedding = nn.Parameter(torch.zeros(c.context_length, c.width))
        self.blocks = nn.ModuleList(
            Block(
                c.width,
                c.heads,
                mlp_width=c.mlp_width,
                activation=c.activation,
                norm_eps=c.norm_eps,
                attention=c.attention,
            )
            for _ in range(c.depth)
        )
        self.norm = nn.LayerNorm(c.width, eps=c.norm_eps)
        self.projection = nn.Linear(c.width, c.embed_width, bias=c.projection_bias)
        _initialise(self)

    def forward(self, tokens_BL: Tensor) -> Tensor:
        """(B, L) int64, or fewer columns if no text needs more (CLIP) -> (B, E).

        Eager inference of CLIP drops the columns after the longest text: the result is the same, and a batch
        of short prompts takes a fraction of the time.

        Raises:
            InputError: not rows of token numbers, rows of the wrong length, or numbers outside the
                vocabulary.
        """
        self._check(tokens_BL)
        if self.config.any_length and inferring():
            tokens_BL = tokens_BL[:, : int(tokens_BL.argmax(-1).max()) + 1]
        x_BLD = self.token_embedding(tokens_BL) + self.positional_embedding[: tokens_BL.shape[1]]
        for block in self.blocks:
            x_BLD = block(x_BLD, causal=self.config.causal)
        # The norm treats each token separately, so only the pooled one needs it.
        return self.projection(self.norm(self._pool(x_BLD, tokens_BL)))

    def _pool(self, x_BLD: Tensor, tokens_BL: Tensor) -> Tensor:
        if self.config.pool == "last":
            return x_BLD[:, -1]
        rows_B = torch.arange(tokens_BL.shape[0], device=tokens_BL.device)
        return x_BLD[rows_B, tokens_BL.argmax(-1)]

    def _check(self, tokens_BL: Tensor) -> None:
        c = self.config
        if not isinstance(tokens_BL, Tensor):
            raise InputError(
                f"Token numbers are a tensor, not {type(tokens_BL).__name__}: give "
                "torch.from_numpy(tokenizer(texts))."
            )
        if tokens_BL.ndim != 2:
            raise InputError(
                f"Token numbers have the shape (B, {c.context_length}), not {tuple(tokens_BL.shape)}: "
                "give what the tokenizer returns; a single row needs tokens[None]."
            )
        if tokens_BL.dtype not in (torch.int64, torch.int32):
            raise InputError(
                f"Token numbers are int64, not {str(tokens_BL.dtype).removeprefix('torch.')}: "
                "give what the tokenizer returns."
            )
        length = tokens_BL.shape[1]
        if length > c.context_length or length == 0:
            raise InputError(
                f"The rows have {length} tokens and the model reads {c.context_length}: "
                f"use a tokenizer with context_length={c.context_length}."
            )
        if length < c.context_length and not c.any_length:
            raise InputError(
                f"The rows have {length} tokens and this model reads exactly {c.context_length}, padding "
                f"included: use a tokenizer with context_length={c.context_length}."
            )
        # The checks below read values, which a traced graph must not.
        if torch.compiler.is_compiling() or torch.compiler.is_exporting():
            return
        if tokens_BL.shape[0] == 0:
            raise InputError("The batch of texts is empty: give at least one text.")
        if tokens_BL.device.type == "meta":
            return
        low, high = (int(number) for number in tokens_BL.aminmax())
        if low < 0 or high >= c.vocab_size:
            raise InputError(
                f"Token {low if low < 0 else high} is outside the vocabulary of {c.vocab_size}: "
                "use the tokenizer that belongs to the model."
            )


def _initialise(model: TextTransformer) -> None:
    """New weights as in OpenAI's CLIP: the deeper the model, the smaller each block's contribution."""
    width, depth = model.config.width, model.config.depth
    nn.init.normal_(model.token_embedding.weight, std=0.02)
    nn.init.normal_(model.positional_embedding, std=0.01)
    added = width**-0.5 * (2 * depth) ** -0.5
    for block in model.blocks:
        assert isinstance(block, Block)
        for linear, deviation in (
            (block.attn.qkv, width**-0.5),
            (block.attn.proj, added),
            (block.mlp.fc1, (2 * width) ** -0.5),
            (block.mlp.fc2, added),
        ):
            nn.init.normal_(linear.weight, std=deviation)
            nn.init.zeros_(linear.bias)
    nn.init.normal_(model.projection.weight, std=width**-0.5)
    if model.projection.bias is not None:
        nn.init.zeros_(model.projection.bias)

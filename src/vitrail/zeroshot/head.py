"""Class names -> a linear head on CLIP's image tower (Radford et al. 2021, section 3.1.2 and figure 1).

    text_PE   = normalise(text tower(template filled with the class name)), for each of P templates
    class_E   = normalise(mean over P of text_PE)           the prompt ensemble of section 3.1.4
    weight_KE = scale · class_E,   bias_K = the model's bias (SigLIP)
    logits_BK = normalise(image tower(images)) weight_KEᵀ [+ bias_K]

The scale is part of the weight, so the result is an ordinary classifier without a text tower. CLIP's
probabilities are a softmax over the logits, SigLIP's a sigmoid of each; the ranking is the same for both.

Shapes: B images, K classes, P templates, L tokens, E width of the shared embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from vitrail.errors import InputError
from vitrail.limits import whole
from vitrail.models.clip import CLIP, ZeroShotClassifier
from vitrail.text.tokenizer import Tokenizer
from vitrail.weights.finite import check_outputs
from vitrail.zeroshot.prompts import class_names, filled

__all__ = ["TextHead", "ZeroShotClassifier", "check_names", "classifier", "text_head", "tokens_of"]

TEXT_BATCH = 256
"""Prompts per pass of the text tower."""


class TextHead(NamedTuple):
    """A linear head made from text embeddings."""

    weight_KE: Tensor
    """The class embeddings times the scale; fp32."""
    bias_K: Tensor | None
    """SigLIP's bias, the same for all classes; None for CLIP."""


def text_head(
    model: CLIP,
    tokenizer: Tokenizer,
    classes: Sequence[str],
    templates: Sequence[str],
    *,
    batch: int = TEXT_BATCH,
) -> TextHead:
    """The head that compares images with the prompts of each class.

    Args:
        model: CLIP or SigLIP, in evaluation mode.
        tokenizer: the model's own (`load_tokenizer(model.config.text)`).
        classes: K names, checked by `prompts.class_names` and `check_names`.
        templates: P sentences with one `{}` each.
        batch: prompts per pass of the text tower; it affects only time and memory.

    Raises:
        InputError: names that are empty, repeated or without tokens; no template; a prompt longer than the
            model's context; embeddings that are not finite.
    """
    names = class_names(classes)
    if not templates:
        raise InputError("There are no templates to put the class names into: give at least one.")
    whole("batch_size", batch, "batch")
    check_names(tokenizer, names)
    prompts = [filled(template, name) for name in names for template in templates]
    with torch.inference_mode():
        text_NE = torch.cat(
            [
                model.encode_text(tokens_of(tokenizer, prompts[i : i + batch]))
                for i in range(0, len(prompts), batch)
            ]
        )
        class_KE = F.normalize(text_NE.unflatten(0, (len(names), len(templates))).mean(1), dim=-1)
        weight_KE = (class_KE * model.scale()).float()
        bias_K = None if model.logit_bias is None else model.logit_bias.float().repeat(len(names))
    check_outputs(weight_KE, "this model", "text embeddings")
    # Tensors created in inference mode cannot become trainable parameters; copies can.
    return TextHead(weight_KE.clone(), None if bias_K is None else bias_K.clone())


def classifier(model: CLIP, weight_KE: Tensor, bias_K: Tensor | None = None) -> ZeroShotClassifier:
    """An ordinary classifier from a CLIP's image tower and a head of `text_head`, in evaluation mode.

    It requires no gradients and exports like any other classifier (`vitrail.export.onnx.write_onnx`).

    Raises:
        InputError: the head's width is not that of the model's embeddings, or the bias has another length.
    """
    width = model.config.embed_width
    if weight_KE.ndim != 2 or weight_KE.shape[1] != width:
        raise InputError(
            f"The head has the shape {tuple(weight_KE.shape)}, but the image tower returns {width} features: "
            "make the head with this model's own text tower."
        )
    if bias_K is not None and bias_K.shape != weight_KE.shape[:1]:
        raise InputError(
            f"The head has {len(weight_KE)} classes, but the bias has the shape {tuple(bias_K.shape)}: "
            "give both for the same classes."
        )
    return ZeroShotClassifier(model.image, weight_KE, bias_K).requires_grad_(False).eval()


def check_names(tokenizer: Tokenizer, names: Sequence[str]) -> None:
    """Refuse names of which this tokenizer keeps nothing, and names that it cannot tell apart.

    CLIP's drops control characters, SigLIP's all ASCII punctuation; both ignore case and extra spaces.

    Raises:
        InputError: such a name, or one that is already longer than the model's context.
    """
    nothing, *rows = tokens_of(tokenizer, ["", *names]).tolist()
    seen: dict[tuple[int, ...], str] = {}
    for name, row in zip(names, rows, strict=True):
        if row == nothing:
            raise InputError(f"This model reads nothing in the class name {name!r}: write it in letters.")
        other = seen.setdefault(tuple(row), name)
        if other != name:
            raise InputError(
                f"This model cannot tell the class names {other!r} and {name!r} apart: rename one of them."
            )


def tokens_of(tokenizer: Tokenizer, texts: Sequence[str]) -> Tensor:
    """(N, L) int64; a text that is too long is refused, because truncating it would change its meaning.

    Raises:
        InputError: such a text.
    """
    try:
        return torch.from_numpy(tokenizer(list(texts)))
    except InputError as error:
        # The tokenizer's message also offers `truncate`, which our callers cannot pass.
        raise InputError(str(error).replace(", or pass truncate=True", "")) from None

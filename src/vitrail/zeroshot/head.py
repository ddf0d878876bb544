"""Class names -> a linear head on CLIP's image tower (Radford et al. 2021, section 3.1.2 and figure 1).

    text_PE   = normalise(text tower(template filled with the class name)), for each of P templates
    class_E   = normalise(mean over P of text_PE)           the prompt ensemble of section 3.1.4
    weight_KE = scale · class_E,   bias_K = the model's bias (SigLIP)
    logits_BK = normalise(image tower(images)) weight_KEᵀ [+ bias_K]

The scale is part of the weight, so what is left is an ordinary classifier without a text tower. A softmax
over the logits is CLIP's answer, a sigmoid of each SigLIP's; which class comes first is the same for both.

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
"""Prompts that the text tower reads at once."""


class TextHead(NamedTuple):
    """A linear head from text embeddings."""

    weight_KE: Tensor
    """The class embeddings times the scale; fp32."""
    bias_K: Tensor | None
    """SigLIP's bias, the same for all classes; None: CLIP."""


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
        tokenizer: its own (`load_tokenizer(model.config.text)`).
        classes: K names, checked as `prompts.class_names` and `check_names` do.
        templates: P sentences with one `{}` each.
        batch: prompts per pass of the text tower; only time and memory depend on it.

    Raises:
        InputError: names that are empty, repeat or are nothing to the tokenizer; no template; a prompt that
            is longer than the model reads; embeddings that are not finite.
    """
    names = class_names(classes)
    if not templates:
        raise InputError("There is no template to put the class names into: give at least one.")
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
    # Tensors made under inference mode cannot become parameters that are saved or trained; copies can.
    return TextHead(weight_KE.clone(), None if bias_K is None else bias_K.clone())


def classifier(model: CLIP, weight_KE: Tensor, bias_K: Tensor | None = None) -> ZeroShotClassifier:
    """An ordinary classifier from a CLIP's image tower and a head of `text_head`, in evaluation mode.

    It takes gradients nowhere and exports as any other classifier (`vitrail.export.onnx.write_onnx`).

    Raises:
        InputError: a head of another width than the model's embeddings, or a bias of another length.
    """
    width = model.config.embed_width
    if weight_KE.ndim != 2 or weight_KE.shape[1] != width:
        raise InputError(
            f"The head has the shape {tuple(weight_KE.shape)} and the image tower gives {width} features: "
            "make the head with this model's own text tower."
        )
    if bias_K is not None and bias_K.shape != weight_KE.shape[:1]:
        raise InputError(
            f"The head has {len(weight_KE)} classes and the bias the shape {tuple(bias_K.shape)}: "
            "give both for the same classes."
        )
    return ZeroShotClassifier(model.image, weight_KE, bias_K).requires_grad_(False).eval()


def check_names(tokenizer: Tokenizer, names: Sequence[str]) -> None:
    """Refuse names that this tokenizer cannot tell from nothing, or from one another.

    CLIP's drops control characters, SigLIP's all ASCII punctuation; both drop case and space.

    Raises:
        InputError: such a name, or one that alone is longer than the model reads.
    """
    nothing, *rows = tokens_of(tokenizer, ["", *names]).tolist()
    seen: dict[tuple[int, ...], str] = {}
    for name, row in zip(names, rows, strict=True):
        if row == nothing:
            raise InputError(f"The class name {name!r} is no word to this model: write it in letters.")
        other = seen.setdefault(tuple(row), name)
        if other != name:
            raise InputError(
                f"This model reads the class names {other!r} and {name!r} alike: name them differently."
            )


def tokens_of(tokenizer: Tokenizer, texts: Sequence[str]) -> Tensor:
    """(N, L) int64; a text that is too long is refused, because cutting it would change what it says.

    Raises:
        InputError: such a text.
    """
    try:
        return torch.from_numpy(tokenizer(list(texts)))
    except InputError as error:
        # The tokenizer's sentence also offers its own argument, which nobody who calls us can pass.
        raise InputError(str(error).replace(", or pass truncate=True", "")) from None

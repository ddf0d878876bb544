"""A photo and a text -> the outlines of all things that the text names, with transformers' SAM 3.

The code of the model is transformers', run as it is in eager PyTorch: nothing of it is exported or shipped
(docs/decisions/sam3.md). Source: Carion et al. 2025, "SAM 3: Segment anything with concepts",
arXiv:2511.16719.

Shapes: H W the photo, Q queries (at most so many things are found), y x a mask as the model gives it.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from vitrail.errors import InputError, MissingExtraError

__all__ = ["PUBLISHED", "Instance", "TextSegmenter", "load"]

PUBLISHED = "facebook/sam3"
LEAST_SCORE = 0.3
"""transformers' default; Meta's own demonstration has 0.5."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Instance:
    """One thing that a text names."""

    mask: np.ndarray
    """Boolean (H, W)."""
    score: float
    """From 0 to 1: that this is one, times that there is any."""
    box: tuple[float, float, float, float]
    """(left, top, right, bottom) in the photo's pixels, as the model says; not taken from the mask."""


class TextSegmenter:
    """A model and what prepares its inputs, both transformers'.

    Args:
        model: a `Sam3Model`; it is put into evaluation mode.
        processor: its `Sam3Processor`.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model.eval(), processor

    def segment(
        self, image: Image.Image, texts: Sequence[str], *, least_score: float = LEAST_SCORE
    ) -> dict[str, list[Instance]]:
        """All things that each text names, the surest first; the photo is encoded once.

        Args:
            image: a decoded photo (`vitrail.images.decode`).
            texts: short phrases for one kind of thing: "a dog", "yellow school bus".
            least_score: from 0 to 1; what is less sure is left out.

        Raises:
            InputError: no text, an empty one, one that is too long, a score that is none, or a model whose
                outputs are not finite.
        """
        if isinstance(texts, str) or not texts:
            raise InputError('There is no list of texts: give some, such as ["a dog", "a ball"].')
        if not 0 <= least_score <= 1:
            raise InputError(f"least_score is {least_score:g}: give a number from 0 to 1.")
        words = {text: self._tokens(text) for text in texts}
        with torch.inference_mode():
            pixels = self.processor(images=image, return_tensors="pt")["pixel_values"]
            seen = self.model.get_vision_features(pixel_values=pixels)
            return {
                text: self._found(self.model(vision_embeds=seen, **tokens), text, image, least_score)
                for text, tokens in words.items()
            }

    def _tokens(self, text: str) -> dict[str, torch.Tensor]:
        if not text.strip():
            raise InputError('A text is empty: name a thing, such as "a dog".')
        tokens = self.processor(text=text, return_tensors="pt")
        count, most = tokens["input_ids"].shape[1], self.model.config.text_config.max_position_embeddings
        if count > most:
            raise InputError(
                f"{text[:40]!r}… has {count} tokens and the model reads {most}: name the thing in a few "
                "words."
            )
        return {name: tokens[name] for name in ("input_ids", "attention_mask")}

    def _found(self, outputs: Any, text: str, image: Image.Image, least_score: float) -> list[Instance]:
        if not all(t.isfinite().all() for t in (outputs.pred_masks, outputs.pred_logits, outputs.pred_boxes)):
            raise InputError(f"The model's outputs for {text!r} are not finite: its weights are damaged.")
        (found,) = self.processor.image_processor.post_process_instance_segmentation(
            outputs, threshold=least_score, target_sizes=[(image.height, image.width)]
        )
        instances = [
            Instance(mask=mask.bool().numpy(), score=float(score), box=tuple(box.tolist()))
            for mask, score, box in zip(found["masks"], found["scores"], found["boxes"], strict=True)
        ]
        return sorted(instances, key=lambda instance: -instance.score)


def load(name: str = PUBLISHED) -> TextSegmenter:
    """Model and processor of a repository on the hub, or of a folder in transformers' format.

    The published weights are under Meta's SAM licence and are given on request.

    Raises:
        MissingExtraError: transformers is not installed, or is too old to have SAM 3.
        InputError: the files cannot be had or read.
    """
    try:
        transformers: Any = importlib.import_module("transformers")
        model, processor = transformers.Sam3Model, transformers.Sam3Processor
    except (ImportError, AttributeError):
        raise MissingExtraError("transformers with SAM 3", 'pip install "transformers>=5"') from None
    try:
        return TextSegmenter(model.from_pretrained(name), processor.from_pretrained(name))
    except (OSError, ValueError) as error:
        said = str(error).strip().splitlines()[0]
        raise InputError(
            f"{name} could not be loaded ({said}): accept its licence at https://huggingface.co/{PUBLISHED} "
            "and log in with `hf auth login`, or name a folder that holds its files."
        ) from None

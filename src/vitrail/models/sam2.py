"""SAM 2 in image mode: a photo and a click give a mask (Ravi et al. 2024, arXiv:2408.00714).

    features            = image encoder(images)         once per image: the embedding and two finer maps
    sparse, dense       = prompt encoder(points, boxes, masks)
    masks, ious, object = mask decoder(features, positions, sparse, dense)      per prompt

What a video needs (memory of earlier frames) is left out. An image is to the model the first frame of one:
a learned vector says that there is no memory. Names of the weights are Meta's, without `sam_`.

Shapes: B images, P prompts of each, N points of a prompt, C channels, H W pixels, E width of the embedding,
h w its tokens, Y X = 4h 4w pixels of a mask, M masks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from vitrail.errors import InputError
from vitrail.models.sam import facts
from vitrail.models.sam2_config import VARIANTS, SAM2Config
from vitrail.models.sam2_decoder import Features, FineMaskDecoder, clear
from vitrail.models.sam2_encoder import ImageEncoder
from vitrail.models.sam_prompts import PromptEncoder, Prompts
from vitrail.weights.dialects import Dialect
from vitrail.weights.dialects.sam import one_matrix
from vitrail.weights.dialects.sam2 import DIALECTS, KINDS

__all__ = [
    "SAM2",
    "VARIANTS",
    "ClickGraph",
    "EncodeGraph",
    "Features",
    "Prompts",
    "SAM2Config",
    "ScoredMasks",
]


class ScoredMasks(NamedTuple):
    """The decoder's answer to a batch of prompts."""

    masks_BPMYX: Tensor
    """Scores, > 0 inside, of the squashed image at a quarter of its size (Y = 4h)."""
    ious_BPM: Tensor
    """The IoU that the model expects each mask to have, from 0 to 1."""
    objects_BP1: Tensor
    """> 0: the model sees an object there."""


class SAM2(nn.Module):
    """Image encoder, prompt encoder and mask decoder; each is given or built from the config.

    Args:
        config: the model's.
        image_encoder, prompt_encoder, mask_decoder: parts to use, of the sizes in the config; None: new ones.
    """

    DIALECTS: ClassVar[tuple[Dialect, ...]] = DIALECTS
    head_prefix: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        config: SAM2Config,
        *,
        image_encoder: nn.Module | None = None,
        prompt_encoder: PromptEncoder | None = None,
        mask_decoder: FineMaskDecoder | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.image_encoder = ImageEncoder(config) if image_encoder is None else image_encoder
        self.prompt_encoder = PromptEncoder(config) if prompt_encoder is None else prompt_encoder
        self.mask_decoder = FineMaskDecoder(config) if mask_decoder is None else mask_decoder
        self.no_mem_embed = nn.Parameter(torch.zeros(1, 1, config.embed_width))
        nn.init.trunc_normal_(self.no_mem_embed, std=0.02)

    def forward(self, images_BCHW: Tensor, prompts: Prompts, *, multimask: bool = True) -> ScoredMasks:
        """Images of the config's size and the prompts of each -> masks.

        Args:
            images_BCHW: squashed to that size and normalised.
            prompts: in pixels of these images.
            multimask: M masks for an ambiguous prompt; else one for a clear one, which in evaluation mode
                gives way to the best of the M where it is not stable (`sam2_decoder.clear`).

        Raises:
            InputError: images or prompts of the wrong shape, or another number of one than of the other.
        """
        return self.decode(self.encode(images_BCHW), prompts, multimask=multimask)

    def encode(self, images_BCHW: Tensor) -> Features:
        """(B, C, H, W) -> what is kept for all prompts of an image.

        Raises:
            InputError: not a batch of images of the config's size and channels.
        """
        quarter, half, coarse_BEhw = self.image_encoder(images_BCHW)
        embeddings_BEhw = coarse_BEhw + self.no_mem_embed[0, 0][:, None, None]
        return Features(embeddings_BEhw, self.mask_decoder.conv_s1(half), self.mask_decoder.conv_s0(quarter))

    def decode(self, features: Features, prompts: Prompts, *, multimask: bool = True) -> ScoredMasks:
        """Masks (B, P, M, Y, X) for features of `encode`; without `multimask` M is 1.

        Raises:
            InputError: prompts of the wrong shape, or for another number of images.
        """
        sparse_BPNE, dense_BPEhw = self.prompt_encoder(prompts)
        if features.embeddings_BEhw.shape[0] != sparse_BPNE.shape[0]:
            raise InputError(
                f"There are features of {features.embeddings_BEhw.shape[0]} images and prompts for "
                f"{sparse_BPNE.shape[0]}: give prompts for each image."
            )
        positions_Ehw = self.prompt_encoder.image_positions()
        masks_BPMYX, ious_BPM, objects_BP1 = self.mask_decoder(
            features, positions_Ehw, sparse_BPNE, dense_BPEhw
        )
        if multimask:
            return ScoredMasks(masks_BPMYX[:, :, 1:], ious_BPM[:, :, 1:], objects_BP1)
        if self.training:
            return ScoredMasks(masks_BPMYX[:, :, :1], ious_BPM[:, :, :1], objects_BP1)
        return ScoredMasks(*clear(masks_BPMYX, ious_BPM, self.config), objects_BP1)

    def stages(self) -> dict[str, nn.Module]:
        """What is exported, by the names of the task's graphs."""
        return {"encode": EncodeGraph(self).eval(), "prompt": ClickGraph(self).eval()}

    def facts(self) -> dict[str, Any]:
        """What its task needs to know."""
        width, side = self.config.embed_width, self.config.grid[0]
        return facts(self.config, [(width // 4, 2 * side), (width // 8, 4 * side)])

    def adapt_weights(
        self,
        state_dict: Mapping[str, Tensor],
        *,
        image_size: tuple[int, int] | None = None,
        window: tuple[int, int] | None = None,
    ) -> dict[str, Tensor]:
        """Translated tensors, reshaped to this model; the dict is not changed.

        No table depends on the image size, so that `image_size` and `window` change nothing.

        Raises:
            Unclear: two copies of the Fourier features that differ.
        """
        state = dict(state_dict)
        kinds_4E = state.pop(KINDS, None)
        if kinds_4E is not None:
            state |= {
                f"prompt_encoder.point_embeddings.{i}.weight": kind_1E
                for i, kind_1E in enumerate(kinds_4E.split(1))
            }
        return one_matrix(state)


class EncodeGraph(nn.Module):
    """What is exported once per image: tensors in, tensors out."""

    def __init__(self, sam: SAM2) -> None:
        super().__init__()
        self.sam = sam

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings (B, E, h, w), (B, E / 4, 2h, 2w) and (B, E / 8, 4h, 4w)."""
        features = self.sam.encode(images_BCHW)
        return features.embeddings_BEhw, features.half, features.quarter


class ClickGraph(nn.Module):
    """What is exported per prompt: one of points for each image, and all 1 + M masks, the first for a clear
    prompt.

    Boxes come as points with labels 2 and 3; every prompt closes with a point of label -1.
    """

    precise: ClassVar[tuple[str, ...]] = ("points",)
    """Inputs that half precision would move by pixels."""

    def __init__(self, sam: SAM2) -> None:
        super().__init__()
        self.config = sam.config
        self.prompt_encoder, self.mask_decoder = sam.prompt_encoder, sam.mask_decoder

    def forward(
        self,
        embeddings_BEhw: Tensor,
        half: Tensor,
        quarter: Tensor,
        points_BN2: Tensor,
        labels_BN: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Masks (B, 1 + M, Y, X), IoUs (B, 1 + M)."""
        encoder = self.prompt_encoder
        masks_B1MYX, ious_B1M, _ = self.mask_decoder(
            Features(embeddings_BEhw, half, quarter),
            encoder.image_positions(),
            encoder.points(points_BN2[:, None], labels_BN[:, None]),
            encoder.no_mask(1),
        )
        clear_B11YX, iou_B11 = clear(masks_B1MYX, ious_B1M, self.config)
        masks_BMYX = torch.cat((clear_B11YX[:, 0], masks_B1MYX[:, 0, 1:]), 1)
        return masks_BMYX, torch.cat((iou_B11[:, 0], ious_B1M[:, 0, 1:]), 1)

"""Segment Anything: a photo and a click give a mask (Kirillov et al. 2023, arXiv:2304.02643).

    embeddings_BEhw     = image encoder(images)             once per image, nearly all of the work
    sparse, dense       = prompt encoder(points, boxes, masks)
    masks_BPMYX, ious   = mask decoder(embeddings, positions, sparse, dense)      per prompt

A click may mean a shirt, its wearer or a part of it: M = 3 masks answer an ambiguous prompt, and one more,
the first, a prompt that is clear (several points, a box). Names of the weights are Meta's.

Shapes: B images, P prompts of each, N points of a prompt, C channels, H W pixels, E width of the embedding,
h w its tokens, Y X = 4h 4w pixels of a mask, M masks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from vitrail.errors import InputError
from vitrail.models.sam_config import VARIANTS, PromptableConfig, SAMConfig
from vitrail.models.sam_decoder import MaskDecoder
from vitrail.models.sam_encoder import ImageEncoder
from vitrail.models.sam_prompts import PromptEncoder, Prompts
from vitrail.weights.dialects import Dialect
from vitrail.weights.dialects.sam import DIALECTS, one_matrix

__all__ = ["SAM", "VARIANTS", "ClickGraph", "Masks", "PromptGraph", "Prompts", "SAMConfig", "facts"]


class Masks(NamedTuple):
    """The decoder's answer to a batch of prompts."""

    masks_BPMYX: Tensor
    """Scores, > 0 inside, of the padded image at a quarter of its patches' grid (Y = 4h)."""
    ious_BPM: Tensor
    """The IoU that the model expects each mask to have; not clamped."""


class SAM(nn.Module):
    """Image encoder, prompt encoder and mask decoder; each is given or built from the config.

    Args:
        config: the model's.
        image_encoder, prompt_encoder, mask_decoder: parts to use, of the sizes in the config; None: new ones.
    """

    DIALECTS: ClassVar[tuple[Dialect, ...]] = DIALECTS
    head_prefix: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        config: SAMConfig,
        *,
        image_encoder: nn.Module | None = None,
        prompt_encoder: PromptEncoder | None = None,
        mask_decoder: MaskDecoder | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.image_encoder = ImageEncoder(config) if image_encoder is None else image_encoder
        self.prompt_encoder = PromptEncoder(config) if prompt_encoder is None else prompt_encoder
        self.mask_decoder = MaskDecoder(config) if mask_decoder is None else mask_decoder

    def forward(self, images_BCHW: Tensor, prompts: Prompts, *, multimask: bool = True) -> Masks:
        """Images of the config's size and the prompts of each -> masks.

        Args:
            images_BCHW: padded and normalised (`vitrail.images.letterbox`).
            prompts: in pixels of these images.
            multimask: M masks for an ambiguous prompt; else one for a clear one.

        Raises:
            InputError: images or prompts of the wrong shape, or another number of one than of the other.
        """
        return self.decode(self.encode(images_BCHW), prompts, multimask=multimask)

    def encode(self, images_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, E, h, w), to be kept for all prompts of an image.

        Raises:
            InputError: not a batch of images of the config's size and channels.
        """
        embeddings_BEhw: Tensor = self.image_encoder(images_BCHW)
        return embeddings_BEhw

    def decode(self, embeddings_BEhw: Tensor, prompts: Prompts, *, multimask: bool = True) -> Masks:
        """Masks (B, P, M, Y, X) for embeddings of `encode`; without `multimask` M is 1.

        Raises:
            InputError: prompts of the wrong shape, or for another number of images.
        """
        sparse_BPNE, dense_BPEhw = self.prompt_encoder(prompts)
        if embeddings_BEhw.shape[0] != sparse_BPNE.shape[0]:
            raise InputError(
                f"There are embeddings of {embeddings_BEhw.shape[0]} images and prompts for "
                f"{sparse_BPNE.shape[0]}: give prompts for each image."
            )
        positions_Ehw = self.prompt_encoder.image_positions()
        masks_BPMYX, ious_BPM = self.mask_decoder(embeddings_BEhw, positions_Ehw, sparse_BPNE, dense_BPEhw)
        wanted = slice(1, None) if multimask else slice(0, 1)
        return Masks(masks_BPMYX[:, :, wanted], ious_BPM[:, :, wanted])

    def stages(self) -> dict[str, nn.Module]:
        """What is exported, by the names of the task's graphs."""
        return {"encode": self.image_encoder, "prompt": ClickGraph(self).eval()}

    def facts(self) -> dict[str, Any]:
        """What its task needs to know."""
        return facts(self.config)

    def adapt_weights(
        self,
        state_dict: Mapping[str, Tensor],
        *,
        image_size: tuple[int, int] | None = None,
        window: tuple[int, int] | None = None,
    ) -> dict[str, Tensor]:
        """Translated tensors, reshaped to this model; the dict is not changed.

        Tables of another image size or window are not resampled: they do not fit.

        Raises:
            Unclear: two copies of the Fourier features that differ.
        """
        state = dict(state_dict)
        positions = state.get("image_encoder.pos_embed")
        if positions is not None and positions.ndim == 4:
            state["image_encoder.pos_embed"] = positions.flatten(1, 2)
        return one_matrix(state)


def facts(config: PromptableConfig, finer: Sequence[tuple[int, int]] = ()) -> dict[str, Any]:
    """What `tasks/promptable.py` needs to know of a model; `finer`: channels and side of further maps."""
    return {
        "masks": config.masks,
        "width": config.embed_width,
        "tokens": config.grid[0],
        "mask_side": config.mask_size[0],
        "finer": [list(each) for each in finer],
        "closes_boxes": config.closes_boxes,
    }


class PromptGraph(nn.Module):
    """What is exported per prompt: tensors alone, of fixed rank, and all 1 + M masks.

    Boxes come as points with labels 2 and 3, and points without a box close with one of label -1.
    """

    def __init__(self, sam: SAM) -> None:
        super().__init__()
        self.prompt_encoder, self.mask_decoder = sam.prompt_encoder, sam.mask_decoder

    def forward(
        self,
        embeddings_BEhw: Tensor,
        points_BPN2: Tensor,
        labels_BPN: Tensor,
        masks_BPYX: Tensor,
        has_mask_BP: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Masks (B, P, 1 + M, Y, X), IoUs (B, P, 1 + M); `has_mask` is 1, or 0 where `masks` is ignored."""
        encoder = self.prompt_encoder
        sparse_BPNE = encoder.points(points_BPN2, labels_BPN)
        without_11Ehw = encoder.no_mask(1)
        has_BP111 = has_mask_BP[:, :, None, None, None]
        dense_BPEhw = without_11Ehw + has_BP111 * (encoder.masks(masks_BPYX) - without_11Ehw)
        masks_BPMYX: Tensor
        ious_BPM: Tensor
        masks_BPMYX, ious_BPM = self.mask_decoder(
            embeddings_BEhw, encoder.image_positions(), sparse_BPNE, dense_BPEhw
        )
        return masks_BPMYX, ious_BPM


class ClickGraph(nn.Module):
    """The second stage of `tasks/promptable.py`: one prompt of points for each embedding, and no mask.

    Boxes and the end of points come as in `PromptGraph`.
    """

    precise: ClassVar[tuple[str, ...]] = ("points",)
    """Inputs that half precision would move by pixels."""

    def __init__(self, sam: SAM) -> None:
        super().__init__()
        self.prompt_encoder, self.mask_decoder = sam.prompt_encoder, sam.mask_decoder

    def forward(
        self, embeddings_BEhw: Tensor, points_BN2: Tensor, labels_BN: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Masks (B, 1 + M, Y, X) and IoUs (B, 1 + M)."""
        encoder = self.prompt_encoder
        sparse_B1NE = encoder.points(points_BN2[:, None], labels_BN[:, None])
        masks_B1MYX, ious_B1M = self.mask_decoder(
            embeddings_BEhw, encoder.image_positions(), sparse_B1NE, encoder.no_mask(1)
        )
        return masks_B1MYX[:, 0], ious_B1M[:, 0]

"""SAM's prompts: points, boxes and masks, and the encoder that turns them into vectors.

    point, box corner    sin and cos of 2π G (2 p − 1), plus a learned vector for its kind (foreground,
                         background, upper left, lower right)
    not a point          a learned vector alone: closes the points where no box follows
    padding              zeros: points that one prompt has fewer than another
    mask                 two strided convolutions and a 1 × 1, added to the image embedding

G is drawn once and never trained (Tancik et al. 2020, "Fourier features", arXiv:2006.10739, §2); p is the
centre of a pixel, from 0 to 1 across the padded image. Source: Kirillov et al. 2023, arXiv:2304.02643, §A.

Shapes: B images, P prompts of each (each gives masks of its own), N points of a prompt, E width,
h w tokens of the image embedding, Y X = 4h 4w pixels of a mask.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vitrail.errors import InputError
from vitrail.models.layers import LayerNorm2d
from vitrail.models.sam_config import PromptableConfig

__all__ = ["LABELS", "PADDING", "FourierFeatures", "PromptEncoder", "Prompts"]

PADDING, NOT_A_POINT, BACKGROUND, FOREGROUND, UPPER_LEFT, LOWER_RIGHT = -10, -1, 0, 1, 2, 3
LABELS = (PADDING, NOT_A_POINT, BACKGROUND, FOREGROUND, UPPER_LEFT, LOWER_RIGHT)
"""What a point may be, numbered as in Meta's and transformers' code."""


class Prompts(NamedTuple):
    """What to segment. At least one of them; all have the same B and, except masks, the same P."""

    points_BPN2: Tensor | None = None
    """(x, y) in pixels of the model's input, 0 to its size."""
    labels_BPN: Tensor | None = None
    """int64, of `LABELS`; needed with points."""
    boxes_BP4: Tensor | None = None
    """(left, top, right, bottom) in the same pixels."""
    masks_BPYX: Tensor | None = None
    """Scores as the decoder gives them, > 0 inside; P may be 1 for all prompts of an image."""


class FourierFeatures(nn.Module):
    """Points of the unit square (…, 2) -> (…, E); at least in fp32, as bf16 would move a point by pixels."""

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(2, width // 2))

    def forward(self, points_2: Tensor) -> Tensor:
        matrix_2F = self.positional_encoding_gaussian_matrix
        precise = torch.promote_types(matrix_2F.dtype, torch.float32)
        x_1, y_1 = (2 * points_2.to(precise) - 1).split(1, -1)
        of_x_F, of_y_F = matrix_2F.to(precise)
        # Not as a product of matrices, which autocast would round to bf16.
        angles_F = 2 * math.pi * (x_1 * of_x_F + y_1 * of_y_F)
        return torch.cat((angles_F.sin(), angles_F.cos()), -1).to(matrix_2F.dtype)


class PromptEncoder(nn.Module):
    """Prompts -> vectors (B, P, N', E) of points and boxes, maps (B, P or 1, E, h, w) of masks."""

    def __init__(self, config: PromptableConfig) -> None:
        super().__init__()
        self.config = c = config
        half = c.mask_channels // 4
        self.pe_layer = FourierFeatures(c.embed_width)
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, c.embed_width) for _ in range(4))
        self.not_a_point_embed = nn.Embedding(1, c.embed_width)
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, half, 2, stride=2),
            LayerNorm2d(half, eps=c.norm_eps),
            nn.GELU(),
            nn.Conv2d(half, c.mask_channels, 2, stride=2),
            LayerNorm2d(c.mask_channels, eps=c.norm_eps),
            nn.GELU(),
            nn.Conv2d(c.mask_channels, c.embed_width, 1),
        )
        self.no_mask_embed = nn.Embedding(1, c.embed_width)

    def forward(self, prompts: Prompts) -> tuple[Tensor, Tensor]:
        """Points without a box are followed by a token that is not a point. With the config's `closes_boxes`
        boxes are too, and two such tokens stand for a mask alone; else N' is 0 there.

        Raises:
            InputError: no prompt at all, or shapes or labels that do not belong together.
        """
        check_prompts(prompts, self.config)
        points_BPN2, labels_BPN, boxes_BP4, masks_BPYX = prompts
        parts_BPNE = []
        if points_BPN2 is not None and labels_BPN is not None:
            parts_BPNE.append(self.points(points_BPN2, labels_BPN))
        if boxes_BP4 is not None:
            corners_BP22 = boxes_BP4.unflatten(-1, (2, 2))
            kinds_2 = torch.tensor([UPPER_LEFT, LOWER_RIGHT], device=boxes_BP4.device)
            parts_BPNE.append(self.points(corners_BP22, kinds_2.expand(*boxes_BP4.shape[:2], -1)))
        given = next(tensor for tensor in (points_BPN2, boxes_BP4, masks_BPYX) if tensor is not None)
        closing_E = self.not_a_point_embed.weight[0]
        parts_BPNE.append(closing_E.expand(*given.shape[:2], self._closing(prompts), -1))
        if masks_BPYX is None:
            return torch.cat(parts_BPNE, 2), self.no_mask(given.shape[0])
        return torch.cat(parts_BPNE, 2), self.masks(masks_BPYX)

    def _closing(self, prompts: Prompts) -> int:
        """The number of tokens at the end that are not a point."""
        if prompts.boxes_BP4 is not None:
            return int(self.config.closes_boxes)
        if prompts.points_BPN2 is not None:
            return 1
        # SAM 2 was trained with a point that is none in place of points, and its closing.
        return 2 if self.config.closes_boxes else 0

    def points(self, points_BPN2: Tensor, labels_BPN: Tensor) -> Tensor:
        """(B, P, N, E): where each point is, plus what it is; no position below label 0."""
        height, width = self.config.image_size
        # A coordinate names a pixel, whose centre is half a pixel further.
        size_2 = torch.tensor([width, height], device=points_BPN2.device)
        where_BPNE = self.pe_layer((points_BPN2 + 0.5) / size_2)
        not_a_point_1E = self.not_a_point_embed.weight
        others_1E = [kind.weight for kind in self._kinds()]
        kinds_6E = torch.cat((torch.zeros_like(not_a_point_1E), not_a_point_1E, *others_1E))
        what_BPNE = kinds_6E[(labels_BPN - BACKGROUND + 2).clamp(0, 5)]
        return where_BPNE * (labels_BPN >= BACKGROUND)[..., None].to(where_BPNE.dtype) + what_BPNE

    def masks(self, masks_BPYX: Tensor) -> Tensor:
        """(B, P, Y, X) -> (B, P, E, h, w)."""
        dense_GEhw = self.mask_downscaling(masks_BPYX.flatten(0, 1)[:, None])
        dense_BPEhw: Tensor = dense_GEhw.unflatten(0, masks_BPYX.shape[:2])
        return dense_BPEhw

    def no_mask(self, batch: int) -> Tensor:
        """(B, 1, E, h, w) of prompts without a mask."""
        return self.no_mask_embed.weight[:, None, :, None, None].expand(batch, -1, -1, *self.config.grid)

    def image_positions(self) -> Tensor:
        """(E, h, w): where each token of the image embedding is."""
        like = self.pe_layer.positional_encoding_gaussian_matrix
        centres = [
            (torch.arange(side, device=like.device, dtype=like.dtype) + 0.5) / side
            for side in self.config.grid
        ]
        y_hw, x_hw = torch.meshgrid(*centres, indexing="ij")
        positions_hwE: Tensor = self.pe_layer(torch.stack((x_hw, y_hw), -1))
        return positions_hwE.permute(2, 0, 1)

    def _kinds(self) -> list[nn.Embedding]:
        return [kind for kind in self.point_embeddings if isinstance(kind, nn.Embedding)]


def check_prompts(prompts: Prompts, config: PromptableConfig) -> None:
    """Refuse prompts that do not belong together.

    Raises:
        InputError: as `PromptEncoder.forward`.
    """
    points, labels, boxes, masks = prompts
    if points is None and boxes is None and masks is None:
        raise InputError("There is no prompt: give points with labels, boxes or masks.")
    if (points is None) != (labels is None):
        raise InputError("Points need labels and labels points: give both (1 inside the object, 0 outside).")
    wanted = {
        "points": (points, 4, (2,), "(B, P, N, 2)"),
        "boxes": (boxes, 3, (4,), "(B, P, 4)"),
        "masks": (masks, 4, config.mask_size, "(B, P, {}, {})".format(*config.mask_size)),
    }
    for name, (tensor, ndim, last, shape) in wanted.items():
        if tensor is not None and (tensor.ndim != ndim or tuple(tensor.shape[-len(last) :]) != last):
            raise InputError(f"The {name} of prompts have the shape {shape}, not {tuple(tensor.shape)}.")
    if points is not None and labels is not None and labels.shape != points.shape[:-1]:
        raise InputError(
            f"There are labels of shape {tuple(labels.shape)} for points of {tuple(points.shape)}: give one "
            "for each point."
        )
    counts = [tuple(t.shape[:2]) for t in (points, boxes) if t is not None]
    if len(set(counts)) > 1:
        raise InputError(
            f"There are points for {counts[0]} images and prompts and boxes for {counts[1]}: give both to "
            "each."
        )
    if counts and masks is not None and tuple(masks.shape[:2]) not in (counts[0], (counts[0][0], 1)):
        raise InputError(
            f"There are masks for {tuple(masks.shape[:2])} images and prompts and other prompts for "
            f"{counts[0]}: give one mask to each, or one to each image."
        )
    # Values are not looked at while a graph is traced.
    if labels is not None and labels.device.type == "cpu" and not torch.compiler.is_compiling():
        unknown = set(labels.unique().tolist()) - set(LABELS)
        if unknown:
            raise InputError(
                f"{min(unknown)} is not a label of a point: use 1 (inside the object), 0 (outside), 2 and 3 "
                f"(corners of a box), {NOT_A_POINT} (none) or {PADDING} (padding)."
            )

"""Prompts that a person might give for an object, drawn at random, and the loss of the masks they bring.

    first     a click anywhere in the object, or a box around it that is a little off
    then      a click where the mask is wrong: inside if the object is missed there, outside if it is not
    loss      20 · focal + Dice of the mask that fits best, of those that may answer the prompt
              + squared error of the IoU that the model promises

A single click is ambiguous: all M masks may answer it, and only the best of them learns. A box, or several
clicks, are clear: the one mask that is kept for them answers. Source: Kirillov et al. 2023, arXiv:2304.02643,
§3 and §A, training. All randomness is torch's default generator's.

Shapes: G prompts, N points of one, M masks, L side of the maps on which masks are compared.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from vitrail.models.sam_prompts import BACKGROUND, FOREGROUND, LOWER_RIGHT, NOT_A_POINT, UPPER_LEFT

__all__ = ["Drawn", "correction", "drawn", "ious", "losses"]

FOCAL_WEIGHT = 20.0
FOCUS, INSIDE = 2.0, 0.25
"""γ and α of the focal loss (Lin et al. 2017, arXiv:1708.02002, §5.1)."""
SMOOTH = 1.0
"""Added to both counts of the Dice loss (Milletari et al. 2016): an empty mask has one, too."""
BOX_SHARE = 0.25
"""Of the first prompts, those that are boxes. The paper has half, but clicks are harder to learn from."""
BOX_NOISE, MOST_NOISE = 0.1, 20.0
"""Standard deviation of a box's edges as a share of its side, and the largest shift in pixels."""


class Drawn(NamedTuple):
    """The first prompts, two points each: a click and one that is none, or a box's corners."""

    points_GN2: Tensor
    """float32, (x, y) on the map of L pixels."""
    labels_GN: Tensor
    """int64."""
    clear_G: Tensor
    """Whether it is a box."""


def drawn(objects_GLL: Tensor) -> Drawn:
    """Prompts for objects, boolean (G, L, L); those of an empty one lie anywhere."""
    click_G2 = _somewhere(objects_GLL)
    box_G22 = _noisy_boxes(objects_GLL)
    clear_G = torch.rand(len(objects_GLL), device=objects_GLL.device) < BOX_SHARE
    alone_G22 = torch.stack((click_G2, torch.zeros_like(click_G2)), 1)
    box, click = (
        torch.tensor(kinds, device=objects_GLL.device)
        for kinds in ((UPPER_LEFT, LOWER_RIGHT), (FOREGROUND, NOT_A_POINT))
    )
    return Drawn(
        points_GN2=torch.where(clear_G[:, None, None], box_G22, alone_G22),
        labels_GN=torch.where(clear_G[:, None], box, click),
        clear_G=clear_G,
    )


def correction(found_GLL: Tensor, objects_GLL: Tensor) -> tuple[Tensor, Tensor]:
    """A click (G, 1, 2) anywhere in what is wrong, and its label (G, 1); if nothing is, inside the object."""
    wrong_GLL = found_GLL != objects_GLL
    right_G = ~wrong_GLL.flatten(1).any(1)
    at_G2 = _somewhere(torch.where(right_G[:, None, None], objects_GLL, wrong_GLL))
    x_G, y_G = at_G2.long().unbind(1)
    missed_G = objects_GLL[torch.arange(len(at_G2), device=at_G2.device), y_G, x_G]
    labels_G = torch.where(missed_G, FOREGROUND, BACKGROUND)
    return at_G2[:, None], labels_G[:, None]


def _somewhere(places_GLL: Tensor) -> Tensor:
    """(x, y) of one of the places (G, L, L) that are true, all alike; if there is none, anywhere. float32."""
    weights_GS = places_GLL.flatten(1).float()
    weights_GS = torch.where(weights_GS.any(1, keepdim=True), weights_GS, 1.0)
    at_G = torch.multinomial(weights_GS, 1)[:, 0]
    width = places_GLL.shape[-1]
    return torch.stack((at_G % width, at_G // width), -1).float()


def _noisy_boxes(objects_GLL: Tensor) -> Tensor:
    """(G, 2, 2): upper left and lower right corners, each edge shifted, within the map."""
    side = objects_GLL.shape[-1]
    edges = []
    for axis in (1, 2):  # columns, then rows
        there_GL = objects_GLL.any(axis).float()
        edges.append((there_GL.argmax(1), side - there_GL.flip(1).argmax(1)))
    (left, right), (top, bottom) = edges
    box_G4 = torch.stack((left, top, right, bottom), -1).float()
    sides_G4 = torch.stack((right - left, bottom - top), -1).float().repeat(1, 2)
    shift_G4 = (torch.randn_like(box_G4) * BOX_NOISE * sides_G4).clamp(-MOST_NOISE, MOST_NOISE)
    return (box_G4 + shift_G4).clamp(0, side).unflatten(1, (2, 2))


def losses(scores_GMLL: Tensor, objects_GLL: Tensor) -> Tensor:
    """(G, M): 20 · focal + Dice of each mask's scores (logits), fp32.

    focal = mean of −α_t (1 − p_t)^γ ln p_t over the pixels; Dice = 1 − (2 Σ p y + 1) / (Σ p + Σ y + 1).
    """
    scores_GMLL = scores_GMLL.float()
    objects_GMLL = objects_GLL[:, None].float().expand_as(scores_GMLL)
    inside_GMLL = scores_GMLL.sigmoid()
    entropy_GMLL = F.binary_cross_entropy_with_logits(scores_GMLL, objects_GMLL, reduction="none")
    missing_GMLL = torch.where(objects_GLL[:, None], 1 - inside_GMLL, inside_GMLL)
    weight_GMLL = torch.where(objects_GLL[:, None], INSIDE, 1 - INSIDE)
    focal_GM = (weight_GMLL * missing_GMLL**FOCUS * entropy_GMLL).mean((-2, -1))
    both_GM = (inside_GMLL * objects_GMLL).sum((-2, -1))
    sum_GM = inside_GMLL.sum((-2, -1)) + objects_GMLL.sum((-2, -1))
    return FOCAL_WEIGHT * focal_GM + 1 - (2 * both_GM + SMOOTH) / (sum_GM + SMOOTH)


def ious(scores_GMLL: Tensor, objects_GLL: Tensor) -> Tensor:
    """(G, M): IoU of each mask, scores above 0, with the object; of two empty ones 0."""
    found_GMLL, objects_G1LL = scores_GMLL > 0, objects_GLL[:, None]
    both_GM = (found_GMLL & objects_G1LL).sum((-2, -1))
    either_GM = (found_GMLL | objects_G1LL).sum((-2, -1))
    return both_GM / either_GM.clamp(min=1)

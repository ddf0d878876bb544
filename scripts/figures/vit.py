"""The Vision Transformer's figures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from figures import photo
from figures.canvas import BLUE, FAINT, INK, MUTED, ORANGE, RED, Canvas, shaded
from figures.digits import digits, trained_vit

__all__ = ["growth", "patches", "rollout"]


def patches() -> Canvas:
    """The photo as 14 × 14 patches, and the row of tokens they become."""
    side, cell = 336, 24
    canvas = Canvas(880, 430, "An image of 224 × 224 pixels as 196 patches and 197 tokens")
    picture = photo.square(2 * side)
    canvas.text(24, 32, "224 × 224 pixels: 14 × 14 patches of 16 × 16", size=14, bold=True)
    canvas.image(24, 50, side, side, picture, photo=True)
    for line in range(1, 14):
        canvas.path([(24 + line * cell, 50), (24 + line * cell, 50 + side)], stroke="#ffffff", thick=0.9)
        canvas.path([(24, 50 + line * cell), (24 + side, 50 + line * cell)], stroke="#ffffff", thick=0.9)
    canvas.rect(24, 50 + 6 * cell, 5 * cell, cell, stroke=ORANGE, thick=3)
    canvas.text(
        24, 410, "outlined: patches 85 to 89, counted from 1, drawn on the right", size=12, colour=MUTED
    )
    elbow = [(24 + 5 * cell, 50 + 6.5 * cell), (400, 50 + 6.5 * cell), (400, 94), (470, 94)]
    canvas.path(elbow, stroke=ORANGE, thick=2, arrow=True)
    _tokens(canvas, picture, 2 * side // 14)
    return canvas


def _tokens(canvas: Canvas, picture: np.ndarray, pixels: int) -> None:
    left, step, size = 480, 76, 56
    for column in range(5):
        x = left + column * step
        part = picture[6 * pixels : 7 * pixels, column * pixels : (column + 1) * pixels]
        canvas.image(x, 66, size, size, part, photo=True)
        canvas.path([(x + size / 2, 126), (x + size / 2, 156)], thick=1.2, arrow=True)
        canvas.path([(x + size / 2, 192), (x + size / 2, 226)], thick=1.2, arrow=True)
        canvas.rect(x, 230, size, 22, fill=BLUE, opacity=0.25 + 0.1 * column, radius=3)
        canvas.text(x + size / 2, 274, f"+ p{85 + column}", size=12, anchor="middle", mono=True)
    canvas.rect(left, 160, 4 * step + size, 30, fill="#eef2f5", radius=5)
    canvas.text(left + 180, 180, "one linear map for all: 768 × 768", size=13, anchor="middle")
    canvas.rect(left - 66, 230, size, 22, fill=RED, opacity=0.75, radius=3)
    canvas.text(left - 38, 222, "class", size=12, anchor="middle", colour=RED, bold=True)
    canvas.text(left - 38, 274, "+ p0", size=12, anchor="middle", mono=True)
    canvas.rect(left - 76, 204, 5 * step + size + 20, 82, stroke=FAINT, thick=1.2, dash="5 4", radius=6)
    canvas.text(left - 66, 310, "a token: 768 numbers; a position is added to each", size=12, colour=MUTED)
    canvas.text(
        left - 66,
        342,
        "From here on the image is a sequence of 197 tokens. Each of\n"
        "12 blocks lets every token look at every other one, then\n"
        "passes each through an MLP; the class token's last state\nis what the head reads.",
        size=13,
    )


def growth() -> Canvas:
    """Tokens as squares of tokens²: the attention matrix of one head, to scale."""
    canvas = Canvas(880, 330, "The attention matrix of one head at 224, 384, 512 and 1024 pixels, to scale")
    canvas.text(
        24, 32, "One head's attention matrix, to scale (patches of 16 × 16, class token)", size=14, bold=True
    )
    x = 24.0
    for side in (224, 384, 512, 1024):
        tokens = (side // 16) ** 2 + 1
        size = tokens / 4097 * 210
        canvas.rect(x, 50 + 210 - size, size, size, fill=BLUE, opacity=0.75)
        mib = tokens**2 * 4 / 2**20
        words = f"{side} × {side}\n{tokens} tokens\n{mib:.2g} MiB" if mib < 10 else (
            f"{side} × {side}\n{tokens} tokens\n{mib:.0f} MiB"
        )  # fmt: skip
        canvas.text(x, 282, words, size=12)
        x += max(size, 96) + 26
    canvas.text(
        x + 10,
        84,
        "Twice the side:\n4 times the tokens,\n16 times the matrix.\n\n"
        "ViT-B has 12 heads;\nwritten out, they need\n"
        "768 MiB per image and\nblock at 1024 pixels.",
        size=13,
    )
    return canvas


def rolled_out(maps_LBHNN: Sequence[Tensor]) -> Tensor:
    """Attention rollout, (B, N, N): how much of each input token (column) is in each token at the end (row).

    Per block the heads' mean, half of it the residual's identity; the product over the blocks, the last one
    leftmost (Abnar & Zuidema 2020, section 3).
    """
    eye_NN = torch.eye(maps_LBHNN[0].shape[-1])
    total_BNN = eye_NN.expand(len(maps_LBHNN[0]), -1, -1)
    for map_BHNN in maps_LBHNN:
        total_BNN = (0.5 * map_BHNN.mean(1) + 0.5 * eye_NN) @ total_BNN
    return total_BNN


def rollout() -> Canvas:
    """Ten kept digits, where each block's class token looks, and the rollout over all blocks."""
    model, share = trained_vit()
    _, kept = digits(24)
    chosen = [int(torch.nonzero(kept.classes_B == k)[0]) for k in range(10)]
    images_B1hw = kept.images_B1hw[chosen]
    with torch.inference_mode():
        maps = model.attention_maps(images_B1hw)
        answers = model(images_B1hw).argmax(1).tolist()
    rows = [(f"block {i + 1}", each.mean(1)) for i, each in enumerate(maps)] + [("rollout", rolled_out(maps))]
    size, left, top = 66, 92, 50
    canvas = Canvas(
        left + 10 * (size + 8) + 16, top + 5 * (size + 8) + 66, "Attention rollout of a small ViT"
    )
    canvas.text(
        24, 32, "What the class token looks at: a small ViT trained on handwritten digits", size=14, bold=True
    )
    canvas.text(24, top + 38, "input", size=13)
    for column in range(10):
        x = left + column * (size + 8)
        image_hw = (1 - images_B1hw[column, 0].numpy()) / 2
        canvas.image(x, top, size, size, shaded(image_hw, "#8a8f94", high=1.0)[..., :3])
        for row, (_, attention_BNN) in enumerate(rows):
            y = top + (row + 1) * (size + 8)
            values = attention_BNN[column, 0, 1:].view(6, 6).numpy()
            canvas.image(x, y, size, size, shaded(values, ORANGE if row == len(rows) - 1 else BLUE))
            canvas.rect(x, y, size, size, stroke=FAINT, thick=0.8)
        wrong = answers[column] != column
        canvas.text(x + size / 2, top + 5 * (size + 8) + 12, f"“{answers[column]}”", size=12, anchor="middle",
                    colour=RED if wrong else INK)  # fmt: skip
    for row, (words, _) in enumerate(rows):
        canvas.text(24, top + (row + 1) * (size + 8) + 38, words, size=13)
    canvas.text(24, top + 5 * (size + 8) + 12, "answer", size=13)
    canvas.text(
        24,
        top + 5 * (size + 8) + 38,
        f"3 blocks, 36 patches of 4 × 4, {100 * share:.0f} % of 397 kept digits right. "
        "Each map: white 0, dark its own maximum.",
        size=12,
        colour=MUTED,
    )
    return canvas

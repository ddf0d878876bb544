"""CLIP's figures."""

from __future__ import annotations

import numpy as np
import torch

from figures.canvas import BLUE, FAINT, GREEN, INK, MUTED, PURPLE, RED, Canvas, shaded
from figures.digits import WORDS, digits, trained_clip
from vitrail.models.clip import similarity
from vitrail.text.tokenizer import BPETokenizer

__all__ = ["causal", "contrast", "towers"]

SENTENCE = "a photo of a stained-glass window"


def towers() -> Canvas:
    """What goes through which tower, and the matrix where they meet."""
    canvas = Canvas(960, 330, "CLIP's two towers and the matrix of their similarities")
    canvas.text(24, 32, "Two towers, one space", size=14, bold=True)
    for y, colour, words in (
        (62, BLUE, ("B images", "image tower\n(ViT)", "projection\n768 → 512", "image_BE")),
        (192, PURPLE, ("T texts\nas tokens", "text tower\n(causal)", "projection\n512 → 512", "text_TE")),
    ):
        for column, label in enumerate(words):
            x = 24 + 128 * column
            last = column == 3
            canvas.rect(x, y, 100, 58, fill=colour, opacity=0.75 if last else 0.14 + 0.1 * column, radius=6)
            canvas.text(
                x + 50, y + (34 if "\n" not in label else 26), label, size=13, anchor="middle",
                colour="#ffffff" if last else INK, mono=last,
            )  # fmt: skip
            if column:
                canvas.path([(x - 26, y + 29), (x - 4, y + 29)], thick=1.4, arrow=True)
        canvas.text(24 + 128 * 3 + 50, y + 76, "length 1", size=12, anchor="middle", colour=MUTED)
    left, top, cell = 630, 62, 30
    for i in range(6):
        for j in range(6):
            same = i == j
            canvas.rect(left + j * cell, top + i * cell, cell - 2, cell - 2,
                        fill=GREEN if same else "#e8eef4", radius=2)  # fmt: skip
    canvas.text(left + 88, top - 12, "scale · image_BE text_TEᵀ", size=13, anchor="middle", mono=True)
    canvas.path([(512, 91), (left - 10, 112)], thick=1.4, arrow=True)
    canvas.path([(512, 221), (left - 10, 190)], thick=1.4, arrow=True)
    canvas.path([(left + 186, top + 14), (left + 226, top + 14)], stroke=BLUE, thick=1.6, arrow=True)
    canvas.text(left + 188, top + 34, "softmax: which text?", size=11, colour=BLUE)
    canvas.path([(left + 14, top + 184), (left + 14, top + 214)], stroke=PURPLE, thick=1.6, arrow=True)
    canvas.text(left + 24, top + 206, "softmax: which image?", size=11, colour=PURPLE)
    canvas.text(
        24,
        300,
        "Green: pairs that belong together. Training raises them against their row and their column.",
        size=12,
        colour=MUTED,
    )
    return canvas


def contrast() -> Canvas:
    """Similarities of ten kept digits with ten texts, before and after a small CLIP was trained."""
    before, after, pairs = trained_clip()
    _, kept = digits(8)
    images_B1hw = kept.images_B1hw[[int(torch.nonzero(kept.classes_B == k)[0]) for k in range(10)]]
    with torch.inference_mode():
        right = similarity(*after(kept.images_B1hw, pairs.tokens_TL)).argmax(1) == kept.classes_B
        tables = [
            (model.encode_image(images_B1hw) @ model.encode_text(pairs.tokens_TL).T).numpy()
            for model in (before, after)
        ]
    canvas, cell = Canvas(880, 500, "Similarity of ten digits with ten texts, before and after training"), 33
    for column, (words, table_BT) in enumerate(
        zip(("random weights", "after 400 steps of contrastive training"), tables, strict=True)
    ):
        left, top = 60 + column * 420, 130
        canvas.text(left - 36, 32, words, size=14, bold=True)
        canvas.image(
            left, top, 10 * cell, 10 * cell, shaded(table_BT.astype(np.float64), BLUE, low=-0.5, high=1.2)
        )
        for (i, j), value in np.ndenumerate(table_BT):
            x, y = left + (j + 0.5) * cell, top + (i + 0.62) * cell
            words = f"{value:.1f}".replace("-0.0", "0.0").replace("-", "−")
            canvas.text(x, y, words, size=10, anchor="middle", colour="#ffffff" if value > 0.6 else INK)
        for i, word in enumerate(WORDS):
            image_hw = shaded((1 - images_B1hw[i, 0].numpy()) / 2, "#8a8f94", high=1.0)
            canvas.image(left - 34, top + i * cell + 2, cell - 5, cell - 5, image_hw)
            canvas.text(left + (i + 0.6) * cell, top - 8, f"… {word}", size=12, turn=-55)
            canvas.rect(left + i * cell, top + i * cell, cell, cell, stroke=RED, thick=1.4)
    canvas.text(
        24,
        484,
        f"Cosines; text: “a photo of the digit …”. Kept digits whose nearest text is the right one: "
        f"{100 * float(right.float().mean()):.0f} % of 397.",
        size=12,
        colour=MUTED,
    )
    return canvas


def causal() -> Canvas:
    """A sentence as CLIP's tokens, and who sees whom."""
    tokenizer = BPETokenizer()
    ids = tokenizer(SENTENCE)[0].tolist()
    length = ids.index(tokenizer.end_id) + 1
    shown = [*ids[:length], *ids[length : length + 2]]
    names = [
        "start",
        *(tokenizer.decode([i]).strip() for i in ids[1 : length - 1]),
        "end",
        "(zero)",
        "(zero)",
    ]
    canvas, cell, left, top = Canvas(800, 480, "CLIP's causal mask for a sentence"), 26, 150, 118
    canvas.text(24, 32, f"“{SENTENCE}”: tokens and who sees whom", size=14, bold=True)
    for i, (name, number) in enumerate(zip(names, shown, strict=True)):
        last = i == length - 1
        colour = RED if last else (INK if i < length else MUTED)
        canvas.text(
            left - 10,
            top + (i + 0.66) * cell,
            name,
            size=12,
            anchor="end",
            colour=colour,
            bold=last,
            mono=True,
        )
        canvas.text(left + (i + 0.6) * cell, top - 8, name, size=11, colour=colour, turn=-50, mono=True)
        for j in range(len(names)):
            unread = i >= length or j >= length
            seen = BLUE if i < length - 1 else RED
            fill = (FAINT if unread else seen) if j <= i else "#f6f8f9"
            canvas.rect(left + j * cell, top + i * cell, cell - 2, cell - 2, fill=fill, radius=2,
                        opacity=0.85 if j <= i else 1.0)  # fmt: skip
        canvas.text(
            left + len(names) * cell + 12,
            top + (i + 0.66) * cell,
            str(number),
            size=12,
            colour=MUTED,
            mono=True,
        )
    x = left + len(names) * cell + 90
    canvas.text(
        x,
        top + 40,
        "rows: the token that looks\ncolumns: what it sees\n\nblue: itself and what stands\nbefore it\n\n"
        "red: the end token, the only\none that has seen the whole\ntext; its state is the embedding\n\n"
        f"grey: the {len(ids) - length} places left of {len(ids)};\nafter the end, never read",
        size=12,
    )  # fmt: skip
    return canvas

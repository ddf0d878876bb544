"""Swin's figures, from the tables the model itself works with (`vitrail.models.windows`)."""

from __future__ import annotations

import warnings
from itertools import pairwise, product

import numpy as np
import torch
from torch import Tensor

from figures import photo
from figures.canvas import BLUE, FAINT, GREEN, INK, KINDS, MUTED, ORANGE, PURPLE, RED, Canvas, shaded
from vitrail.models import build
from vitrail.models.offsets import log_coordinates, relative_index
from vitrail.models.windows import Order, StagePlan, plan_stage

__all__ = ["bias", "masks", "pyramid", "reach", "windows"]

WORDS = ("no mask", "right edge: two regions", "bottom edge: two regions", "corner: four regions")


def windows() -> Canvas:
    """Regular and shifted windows of stage 1 over the photo, the shifted ones coloured by their mask."""
    side, left = 392, 24
    plan = plan_stage((56, 56), (7, 7))
    picture = photo.square(448)
    canvas = Canvas(2 * side + 3 * left, side + 142, "Regular and shifted windows of Swin's first stage")
    for column, (order, words) in enumerate(
        (
            (plan.regular, "even blocks: 8 × 8 windows"),
            (plan.shifted, "odd blocks: moved 3 tokens down and right"),
        )
    ):
        x, y = left + column * (side + left), 52
        canvas.text(x, 34, words, size=14, bold=True)
        canvas.image(x, y, side, side, picture, photo=True)
        _windows_over(canvas, x, y, side / 56, plan, order)
    _legend(canvas, left, side + 80, plan.shifted)
    canvas.text(
        left,
        side + 108,
        "Stage 1 of a 224 × 224 image: 56 × 56 tokens of 4 × 4 pixels, 7 × 7 to a window. Coloured windows\n"
        "wrap around the edges: what is far apart on the image is in one window, and a mask keeps it apart.",
        size=12,
        colour=MUTED,
    )
    return canvas


def _windows_over(canvas: Canvas, x: float, y: float, pixel: float, plan: StagePlan, order: Order) -> None:
    """Outline every window of an order on a map drawn at (x, y) with tokens of `pixel`; tint masked ones."""
    height, width = plan.padded
    for start, end, kind in order.runs:
        masked = bool(order.masks_KMM[kind].any())
        for window in range(start, end):
            place_M = order.place_N.view(-1, plan.tokens)[window].numpy()
            for rows, columns in _pieces(np.divmod(place_M, width)):
                box = (
                    x + columns[0] * pixel,
                    y + rows[0] * pixel,
                    (columns[1] - columns[0]) * pixel,
                    (rows[1] - rows[0]) * pixel,
                )
                if masked:
                    canvas.rect(*box, fill=KINDS[kind], opacity=0.55)
                canvas.rect(*box, stroke="#ffffff", thick=1.6, opacity=0.95)
    canvas.rect(x, y, width * pixel, height * pixel, stroke=INK, thick=1)


def _pieces(
    places: tuple[np.ndarray, np.ndarray],
) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """The rectangles ((first row, end), (first column, end)) that one window's tokens form on the map."""
    return list(product(_stretches(places[0]), _stretches(places[1])))


def _stretches(positions: np.ndarray) -> list[tuple[int, int]]:
    """Positions along one axis as stretches (first, end) without a gap."""
    found = np.unique(positions)
    cuts = [0, *np.flatnonzero(np.diff(found) > 1) + 1, len(found)]
    return [(int(found[a]), int(found[b - 1]) + 1) for a, b in pairwise(cuts)]


def _legend(canvas: Canvas, x: float, y: float, order: Order) -> None:
    counts = {kind: end - start for start, end, kind in order.runs}
    for kind, words in enumerate(WORDS):
        canvas.rect(x, y - 11, 13, 13, fill="#f2f5f7" if kind == 0 else KINDS[kind], stroke=FAINT, radius=2)
        canvas.text(x + 19, y, f"{words} ({counts[kind]})", size=12)
        x += 19 + 6.6 * len(words) + 48


def masks() -> Canvas:
    """The distinct masks of a shifted 8 × 8 map, and those that padding adds on 7 × 7."""
    canvas = Canvas(868, 592, "The attention masks of shifted windows, with and without padding")
    for row, (size, words) in enumerate(
        (
            ((8, 8), "8 × 8 tokens, windows of 4 × 4, shift 2: four masks"),
            ((7, 7), "7 × 7 tokens: the map is padded to 8 × 8, and no token may look at padding"),
        )
    ):
        plan, top = plan_stage(size, (4, 4)), 52 + 268 * row
        canvas.text(24, top - 18, words, size=14, bold=True)
        _map(canvas, 24, top, 20, plan)
        for kind, mask_MM in enumerate(plan.shifted.masks_KMM.numpy()):
            x = 216.0 + 160 * kind
            canvas.text(x, top + 2, f"window {kind}", size=12, bold=True, colour=KINDS[kind])
            _mask(canvas, x, top + 12, 9, mask_MM)
    canvas.text(
        24, 552, "Rows of a mask: the 16 queries of a window, columns: its 16 keys.", size=12, colour=MUTED
    )
    x = 24.0
    for colour, words in (
        ("#e8eef4", "0: attends"),
        (ORANGE, "−100: a neighbour only through the wrapping"),
        (INK, "−∞: padding"),
    ):
        canvas.rect(x, 565, 12, 12, fill=colour, radius=2)
        canvas.text(x + 18, 575, words, size=12)
        x += 60 + 6.6 * len(words)
    return canvas


def _map(canvas: Canvas, x: float, y: float, cell: float, plan: StagePlan) -> None:
    """The map with each token in the colour of its shifted window and its slot's number there."""
    height, width = plan.padded
    for slot, (place, real) in enumerate(
        zip(plan.shifted.place_N.tolist(), plan.shifted.real_N.tolist(), strict=True)
    ):
        row, column = divmod(place, width)
        window, token = divmod(slot, plan.tokens)
        box = (x + column * cell, y + row * cell, cell, cell)
        canvas.rect(*box, fill=KINDS[window] if real else "#f0f0f0", opacity=0.3 if real else 1.0)
        canvas.rect(*box, stroke="#ffffff", thick=1)
        canvas.text(
            box[0] + cell / 2,
            box[1] + cell / 2 + 3.5,
            str(token),
            size=9,
            anchor="middle",
            colour=INK if real else "#b5bec5",
        )
    for line in range(4, height, 4):
        canvas.path([(x, y + line * cell), (x + width * cell, y + line * cell)], thick=1, dash="4 3")
        canvas.path([(x + line * cell, y), (x + line * cell, y + height * cell)], thick=1, dash="4 3")
    canvas.rect(x, y, plan.size[1] * cell, plan.size[0] * cell, stroke=INK, thick=1.2)
    canvas.text(
        x, y + height * cell + 18, "colour: shifted window\nnumber: slot in it", size=11, colour=MUTED
    )


def _mask(canvas: Canvas, x: float, y: float, cell: float, mask_MM: np.ndarray) -> None:
    pixels = np.empty((*mask_MM.shape, 3), dtype=np.uint8)
    for value, colour in ((0.0, "#e8eef4"), (-100.0, ORANGE), (-np.inf, INK)):
        pixels[mask_MM == value] = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    side = len(mask_MM) * cell
    canvas.image(x, y, side, side, pixels)
    for line in range(1, len(mask_MM)):
        canvas.path([(x, y + line * cell), (x + side, y + line * cell)], stroke="#ffffff", thick=0.4)
        canvas.path([(x + line * cell, y), (x + line * cell, y + side)], stroke="#ffffff", thick=0.4)
    canvas.rect(x, y, side, side, stroke=INK, thick=0.8)


def reached(plan: StagePlan, start: int, blocks: int, *, shifting: bool) -> list[Tensor]:
    """After each block, which tokens of the map (h·w booleans) can hold something of token `start`.

    Blocks alternate between the plan's two orders; without `shifting` all take the regular one.
    """
    slots = plan.padded[0] * plan.padded[1]
    known_P = torch.zeros(slots, dtype=torch.bool)
    known_P[start // plan.size[1] * plan.padded[1] + start % plan.size[1]] = True
    steps = []
    for block in range(blocks):
        order = plan.shifted if shifting and block % 2 else plan.regular
        sees_WMM = torch.cat(
            [(order.masks_KMM[kind] == 0).expand(end - begin, -1, -1) for begin, end, kind in order.runs]
        )
        holds_WM = known_P[order.place_N].view(-1, plan.tokens)
        after_WM = holds_WM | (sees_WMM & holds_WM[:, None, :]).any(-1)
        # What padding computes is never read: as a key the masks hide it, here it is simply not kept.
        known_P = torch.zeros_like(known_P).index_put_((order.place_N,), after_WM.view(-1) & order.real_N)
        steps.append(known_P.view(plan.padded)[: plan.size[0], : plan.size[1]].reshape(-1))
    return steps


def reach() -> Canvas:
    """How far one token's content travels through four blocks, with and without the shift."""
    cell, size = 6.0, 28
    plan = plan_stage((size, size), (7, 7))
    start = 9 * size + 10
    canvas = Canvas(
        4 * (size * cell + 20) + 146, 2 * (size * cell + 36) + 54, "Tokens reached after 1 to 4 blocks"
    )
    canvas.text(24, 32, "Where one token's content (red) can be after 1, 2, 3, 4 blocks", size=14, bold=True)
    for row, (shifting, words) in enumerate(
        ((False, "windows that\nnever move"), (True, "every second\nblock shifted"))
    ):
        top = 58 + row * (size * cell + 36)
        canvas.text(24, top + 80, words, size=13)
        for step, tokens_hw in enumerate(reached(plan, start, 4, shifting=shifting)):
            x = 140 + step * (size * cell + 20)
            values = tokens_hw.view(size, size).numpy().astype(np.float64)
            canvas.image(x, top, size * cell, size * cell, shaded(values, GREEN, high=1.6))
            for line in range(7, size, 7):
                canvas.path(
                    [(x, top + line * cell), (x + size * cell, top + line * cell)], stroke=FAINT, thick=0.8
                )
                canvas.path(
                    [(x + line * cell, top), (x + line * cell, top + size * cell)], stroke=FAINT, thick=0.8
                )
            canvas.rect(x + 10 * cell, top + 9 * cell, cell, cell, fill=RED)
            canvas.rect(x, top, size * cell, size * cell, stroke=INK, thick=1)
            share = 100 * float(values.mean())
            canvas.text(
                x,
                top + size * cell + 15,
                f"block {step + 1}: {share:.0f} % of the map",
                size=11,
                colour=MUTED,
            )
    return canvas


def bias() -> Canvas:
    """Which learned number each key gets (v1), and where v2 reads its curve."""
    canvas = Canvas(950, 330, "Relative position bias of Swin v1 and v2")
    index_MM, cell = relative_index((7, 7)).numpy(), 26.0
    canvas.text(24, 32, "v1: row of the learned table, per key", size=14, bold=True)
    for column, query in enumerate((0, 24)):
        x, y = 24 + column * (7 * cell + 28), 52
        rows = index_MM[query].reshape(7, 7)
        canvas.image(x, y, 7 * cell, 7 * cell, shaded(rows.astype(np.float64), BLUE, high=260))
        for (i, j), number in np.ndenumerate(rows):
            canvas.text(x + (j + 0.5) * cell, y + (i + 0.66) * cell, str(number), size=10, anchor="middle")
        at = divmod(query, 7)
        canvas.rect(x + at[1] * cell, y + at[0] * cell, cell, cell, stroke=RED, thick=2.5)
        canvas.text(x, y + 7 * cell + 18, f"query {query}, row {at[0]} column {at[1]}", size=12, colour=MUTED)
    canvas.text(
        24,
        292,
        "Red: the query. A row depends on query minus key only, so one\n"
        "table of 13 · 13 rows serves all windows of all images.",
        size=12,
        colour=MUTED,
    )
    _curve(canvas, 560, 52)
    return canvas


def _curve(canvas: Canvas, x: float, y: float) -> None:
    width, height = 340, 182
    canvas.text(x - 24, 32, "v2: an MLP reads the offset on a logarithmic scale", size=14, bold=True)

    def at(offset: float, value: float) -> tuple[float, float]:
        return x + (offset + 23) / 46 * width, y + (1.4 - value) / 2.8 * height

    for tick in (-1.0, 0.0, 1.0):
        canvas.path([at(-23, tick), at(23, tick)], stroke=FAINT, thick=1)
        canvas.text(x - 8, at(0, tick)[1] + 4, f"{tick:.0f}", size=11, anchor="end", colour=MUTED)
    for offset in (-23, -11, 0, 11, 23):
        canvas.text(at(offset, 0)[0], y + height + 16, str(offset), size=11, anchor="middle", colour=MUTED)
    ratio = float(log_coordinates((24, 1), (12, 1)).max() / log_coordinates((12, 1), (12, 1)).max())
    for window, reference, colour, words in (
        (24, 12, PURPLE, "window 24, trained with 12"),
        (12, 12, ORANGE, "window 12"),
    ):
        values = log_coordinates((window, 1), (reference, 1))[:, 0].tolist()
        steps = range(-(window - 1), window)
        canvas.path([at(o, v) for o, v in zip(steps, values, strict=True)], stroke=colour, thick=2)
        for offset, value in zip(steps, values, strict=True):
            canvas.circle(*at(offset, value), 2.4, fill=colour)
        canvas.text(
            x + width - 170,
            y + height - (34 if window == 24 else 14),
            words,
            size=12,
            colour=colour,
            bold=True,
        )
    canvas.text(x, y + height + 34, "offset between query and key, in tokens", size=12, colour=MUTED)
    canvas.text(
        x - 24,
        292,
        f"A window twice as large goes {ratio:.2f} times beyond what the\n"
        "MLP was trained on; with linear offsets it would be 2.09 times.",
        size=12,
        colour=MUTED,
    )


def pyramid() -> Canvas:
    """The four maps of `forward_pyramid` for the photo; the weights are random."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = build("swin_tiny_patch4_window7_224", image_size=448)
    pixels = photo.square(448)
    with torch.inference_mode():
        maps = model.forward_pyramid(photo.as_tensor(pixels))  # type: ignore[operator]
    side, gap = 168, 20
    canvas = Canvas(
        5 * (side + gap) + 28, side + 124, "The feature pyramid of Swin-T for a photo of 448 × 448"
    )
    canvas.text(
        24, 32, "forward_pyramid of Swin-T: per stage half the side, twice the width", size=14, bold=True
    )
    canvas.image(24, 52, side, side, photo.square(336), photo=True)
    canvas.text(24, side + 72, "image", size=13, bold=True)
    canvas.text(24, side + 90, "448 × 448 × 3", size=12, colour=MUTED)
    for stage, map_1Dhw in enumerate(maps):
        x = 24 + (stage + 1) * (side + gap)
        canvas.image(x, 52, side, side, principal_colours(map_1Dhw[0].numpy()))
        _, width, height, across = map_1Dhw.shape
        canvas.text(x, side + 72, f"stage {stage + 1}, stride {448 // height}", size=13, bold=True)
        canvas.text(x, side + 90, f"{height} × {across} × {width}", size=12, colour=MUTED)
    canvas.text(
        24,
        side + 112,
        "Random weights. Colours: the map's first three principal components.",
        size=12,
        colour=MUTED,
    )
    return canvas


def principal_colours(map_Dhw: np.ndarray) -> np.ndarray:
    """(D, h, w) -> uint8 (h, w, 3): its three strongest directions as red, green and blue."""
    rows_ND = map_Dhw.reshape(len(map_Dhw), -1).T.astype(np.float64)
    rows_ND = rows_ND - rows_ND.mean(0)
    *_, directions_DD = np.linalg.svd(rows_ND, full_matrices=False)
    # A direction has no sign of its own; the largest entry decides, so that every run gives the same colours.
    top_3D = directions_DD[:3]
    top_3D = top_3D * np.sign(top_3D[np.arange(3), np.abs(top_3D).argmax(1)])[:, None]
    values_N3 = rows_ND @ top_3D.T
    low, high = np.percentile(values_N3, [2, 98], axis=0)
    shares = ((values_N3 - low) / (high - low)).clip(0, 1)
    return (255 * shares).round().astype(np.uint8).reshape(*map_Dhw.shape[1:], 3)

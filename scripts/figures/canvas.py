"""A drawing as SVG: a light card of fixed size, so that it reads the same on light and dark pages.

Lengths are pixels of the drawing, colours CSS. Pixels of photos and tables are embedded, nothing is linked.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from xml.sax.saxutils import escape, quoteattr

import numpy as np
from PIL import Image

__all__ = ["BLUE", "FAINT", "GREEN", "INK", "KINDS", "MUTED", "ORANGE", "PURPLE", "RED", "Canvas", "shaded"]

INK, MUTED, FAINT, CARD = "#22303c", "#5f6f7c", "#d5dde3", "#ffffff"
BLUE, ORANGE, GREEN, PURPLE, RED = "#2c6fb7", "#d9802a", "#3a9867", "#8254a8", "#c4423b"
KINDS = (BLUE, ORANGE, GREEN, PURPLE, RED)
"""In this order for whatever has kinds."""

FONT = "system-ui, -apple-system, 'Segoe UI', 'Helvetica Neue', Arial, sans-serif"
MONO = "ui-monospace, 'SF Mono', Menlo, Consolas, monospace"


class Canvas:
    """Shapes in the order in which they are drawn; `svg` gives the document."""

    def __init__(self, width: float, height: float, title: str) -> None:
        self.width, self.height, self.title = width, height, title
        self._parts: list[str] = []

    def rect(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        *,
        fill: str = "none",
        stroke: str = "none",
        thick: float = 1.0,
        opacity: float = 1.0,
        radius: float = 0.0,
        dash: str = "",
    ) -> None:
        """A rectangle from its upper left corner."""
        self._parts.append(
            f'<rect x="{_n(x)}" y="{_n(y)}" width="{_n(width)}" height="{_n(height)}" rx="{_n(radius)}" '
            f'fill="{fill}" stroke="{stroke}" stroke-width="{_n(thick)}" opacity="{_n(opacity)}"'
            f"{_dash(dash)}/>"
        )

    def path(
        self,
        points: Sequence[tuple[float, float]],
        *,
        stroke: str = INK,
        thick: float = 1.5,
        dash: str = "",
        fill: str = "none",
        closed: bool = False,
        arrow: bool = False,
        opacity: float = 1.0,
    ) -> None:
        """Straight lines through the points; with `arrow` a head at the last one."""
        steps = " L".join(f"{_n(x)} {_n(y)}" for x, y in points)
        self._parts.append(
            f'<path d="M{steps}{" Z" if closed else ""}" fill="{fill}" stroke="{stroke}" '
            f'stroke-width="{_n(thick)}" stroke-linejoin="round" opacity="{_n(opacity)}"{_dash(dash)}/>'
        )
        if arrow:
            self._head(points[-2], points[-1], stroke)

    def _head(self, before: tuple[float, float], tip: tuple[float, float], colour: str) -> None:
        along = np.subtract(tip, before)
        along = along / np.hypot(*along)
        across = np.array([-along[1], along[0]])
        corners = [np.array(tip), tip - 9 * along + 4 * across, tip - 9 * along - 4 * across]
        points = [(float(x), float(y)) for x, y in corners]
        self.path(points, stroke=colour, fill=colour, closed=True, thick=0.5)

    def circle(
        self, x: float, y: float, radius: float, *, fill: str, stroke: str = "none", thick: float = 1.0
    ) -> None:
        """A disc or ring around (x, y)."""
        self._parts.append(
            f'<circle cx="{_n(x)}" cy="{_n(y)}" r="{_n(radius)}" fill="{fill}" stroke="{stroke}" '
            f'stroke-width="{_n(thick)}"/>'
        )

    def text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        size: float = 13,
        anchor: str = "start",
        colour: str = INK,
        bold: bool = False,
        mono: bool = False,
        turn: float = 0.0,
    ) -> None:
        """One line per line of `words`; (x, y) is the first baseline, `anchor` start, middle or end."""
        turned = f' transform="rotate({_n(turn)} {_n(x)} {_n(y)})"' if turn else ""
        for number, line in enumerate(words.split("\n")):
            self._parts.append(
                f'<text x="{_n(x)}" y="{_n(y + number * size * 1.35)}" font-size="{_n(size)}" '
                f'text-anchor="{anchor}" fill="{colour}"{" font-weight=" + quoteattr("600") if bold else ""}'
                f"{' font-family=' + quoteattr(MONO) if mono else ''}{turned}>{escape(line)}</text>"
            )

    def image(
        self, x: float, y: float, width: float, height: float, pixels: np.ndarray, *, photo: bool = False
    ) -> None:
        """uint8 (h, w, 3) stretched to the box: as JPEG if a photo, else lossless with hard pixel edges."""
        file = io.BytesIO()
        if photo:
            Image.fromarray(pixels).save(file, "JPEG", quality=82, optimize=True)
        else:
            Image.fromarray(pixels).save(file, "PNG", optimize=True)
        kind, style = ("jpeg", "") if photo else ("png", ' style="image-rendering:pixelated"')
        data = base64.b64encode(file.getvalue()).decode()
        self._parts.append(
            f'<image x="{_n(x)}" y="{_n(y)}" width="{_n(width)}" height="{_n(height)}" '
            f'preserveAspectRatio="none"{style} href="data:image/{kind};base64,{data}"/>'
        )

    def svg(self) -> str:
        """The whole document."""
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_n(self.width)} {_n(self.height)}" '
                f'width="{_n(self.width)}" height="{_n(self.height)}" font-family="{FONT}" role="img">',
                f"<title>{escape(self.title)}</title>",
                f'<rect width="{_n(self.width)}" height="{_n(self.height)}" rx="8" fill="{CARD}"/>',
                *self._parts,
                "</svg>\n",
            ]
        )


def shaded(
    values: np.ndarray, colour: str = BLUE, *, low: float = 0.0, high: float | None = None
) -> np.ndarray:
    """(h, w) numbers as uint8 (h, w, 3): white at `low`, `colour` at two thirds, nearly black at `high`.

    `high` None: the largest number. Numbers outside are cut.
    """
    top = float(values.max()) if high is None else high
    share = np.clip((values - low) / max(top - low, 1e-12), 0.0, 1.0)[..., None]
    middle = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)], dtype=np.float64)
    dark = 0.25 * middle
    light = 255 + (middle - 255) * np.minimum(share * 1.5, 1.0)
    mixed = np.where(share < 2 / 3, light, middle + (dark - middle) * (share * 3 - 2))
    return np.asarray(mixed.round(), dtype=np.uint8)


def _dash(dash: str) -> str:
    return f' stroke-dasharray="{dash}"' if dash else ""


def _n(value: float) -> str:
    """A number with two digits at most: files stay small and equal from run to run."""
    return f"{value:.2f}".rstrip("0").rstrip(".")

"""Draw the figures of docs/architectures, and count the sizes in its tables.

    python scripts/draw_figures.py [NAME ...]     # all, or the named ones (vit-patches, …, sizes)

Needs the workbench. Two figures train a small model first (half a minute each); the plot of the benchmark is
drawn from the newest committed result and left out while there is none.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

from figures import clip, sizes, swin, versus, vit
from figures.canvas import Canvas

DOCS = Path(__file__).parents[1] / "docs"
LARGEST = 300_000
"""Bytes of a figure: pages must load fast."""

FIGURES: dict[str, Callable[[], Canvas | None]] = {
    "vit-patches": vit.patches,
    "vit-growth": vit.growth,
    "vit-rollout": vit.rollout,
    "swin-windows": swin.windows,
    "swin-masks": swin.masks,
    "swin-reach": swin.reach,
    "swin-bias": swin.bias,
    "swin-pyramid": swin.pyramid,
    "swin-vs-vit": lambda: versus.growth(document) if (document := versus.latest()) else None,
    "clip-towers": clip.towers,
    "clip-contrast": clip.contrast,
    "clip-causal": clip.causal,
}

TABLES: dict[str, Callable[[], str]] = {"vit": sizes.vit, "swin": sizes.swin, "clip": sizes.clip}
"""By the page they stand on."""

MARKED = re.compile(r"(<!-- sizes: .*? -->\n).*?(<!-- end of sizes -->)", re.DOTALL)


def draw(name: str) -> None:
    """Write docs/figures/NAME.svg."""
    canvas = FIGURES[name]()
    if canvas is None:
        print(f"{name}: no committed result, left out", file=sys.stderr)
        return
    svg = canvas.svg()
    assert len(svg.encode()) < LARGEST, f"{name} has {len(svg.encode())} bytes"
    (DOCS / "figures" / f"{name}.svg").write_text(svg, encoding="utf-8")
    print(f"{name}: {len(svg.encode()) / 1000:.0f} kB", file=sys.stderr)


def write_sizes(page: str) -> None:
    """Replace the table between the marks of docs/architectures/PAGE.md."""
    path = DOCS / "architectures" / f"{page}.md"
    text, found = MARKED.subn(
        lambda marks: f"{marks[1]}{TABLES[page]()}{marks[2]}", path.read_text(encoding="utf-8")
    )
    assert found == 1, f"{path} has {found} tables of sizes"
    path.write_text(text, encoding="utf-8")


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join([*FIGURES, "sizes"]))
    names = parser.parse_args().names or [*FIGURES, "sizes"]
    for name in names:
        if name == "sizes":
            for page in TABLES:
                write_sizes(page)
        elif name in FIGURES:
            draw(name)
        else:
            parser.error(f"there is no figure {name}: choose from {', '.join([*FIGURES, 'sizes'])}")


if __name__ == "__main__":
    main()

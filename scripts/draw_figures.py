"""Draw the figures of docs/architectures, and fill in the tables there that are counted or measured.

    python scripts/draw_figures.py [NAME ...]     # all, or the named ones (vit-patches, …, sizes, comparison)

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

FIGURES: dict[str, Callable[[], Canvas]] = {
    "vit-patches": vit.patches,
    "vit-growth": vit.growth,
    "vit-rollout": vit.rollout,
    "swin-windows": swin.windows,
    "swin-masks": swin.masks,
    "swin-reach": swin.reach,
    "swin-bias": swin.bias,
    "swin-pyramid": swin.pyramid,
    "clip-towers": clip.towers,
    "clip-contrast": clip.contrast,
    "clip-causal": clip.causal,
}

TABLES: dict[str, Callable[[], str]] = {
    "vit": sizes.vit,
    "swin": sizes.swin,
    "clip": sizes.clip,
    "sam": sizes.sam,
    "sam2": sizes.sam_2,
    "upernet": sizes.upernet,
}
"""By the page they stand on."""


def draw(name: str, canvas: Canvas) -> None:
    """Write docs/figures/NAME.svg."""
    svg = canvas.svg()
    assert len(svg.encode()) < LARGEST, f"{name} has {len(svg.encode())} bytes"
    (DOCS / "figures" / f"{name}.svg").write_text(svg, encoding="utf-8")
    print(f"{name}: {len(svg.encode()) / 1000:.0f} kB", file=sys.stderr)


def compare() -> None:
    """Plot and table of the newest committed result of benchmarks/swin_vs_vit.py, if there is one."""
    document = versus.latest()
    if document is None:
        print("comparison: no committed result, left out", file=sys.stderr)
        return
    draw("swin-vs-vit", versus.growth(document))
    fill_in("swin", "comparison", versus.table(document))


def fill_in(page: str, what: str, text: str) -> None:
    """Replace what stands between the marks of docs/architectures/PAGE.md."""
    path = DOCS / "architectures" / f"{page}.md"
    marks = re.compile(rf"(<!-- {what}: .*? -->\n).*?(<!-- end of {what} -->)", re.DOTALL)
    page_text, found = marks.subn(lambda mark: f"{mark[1]}{text}{mark[2]}", path.read_text(encoding="utf-8"))
    assert found == 1, f"{path} has {found} places for {what}"
    path.write_text(page_text, encoding="utf-8")


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    known = [*FIGURES, "sizes", "comparison"]
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(known))
    for name in parser.parse_args().names or known:
        if name == "sizes":
            for page, table in TABLES.items():
                fill_in(page, "sizes", table())
        elif name == "comparison":
            compare()
        elif name in FIGURES:
            draw(name, FIGURES[name]())
        else:
            parser.error(f"there is no figure {name}: choose from {', '.join(known)}")


if __name__ == "__main__":
    main()

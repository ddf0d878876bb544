"""Where names stand in a figure: beside their mark, covering neither marks, lines nor one another.

Each name takes the best free place around its mark: near, off the lines, at its full length. A place further
away has a leader. A name that finds no place in any form is left out: the mark's title and the table say it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vitrail.report.axes import Canvas

__all__ = ["LINE", "Box", "Label", "Wanted", "place", "width_of"]

LINE = 15.0
"""Height of a line of text."""
_CHAR, _BOLD = 7.4, 8.3  # of a letter at 12.5 px, on the generous side: fonts differ
_COVERS, _ACROSS, _SHORT = 40.0, 60.0, 70.0  # pixels of way that a fault of a place is worth
_FURTHER = (0.0, 7.0, 15.0, 25.0, 37.0, 51.0, 67.0, 85.0, 105.0, 129.0)  # than a name without a leader


@dataclass(frozen=True)
class Box:
    """A rectangle that names keep clear of, or that a name fills."""

    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: Box) -> float:
        """Shared area in square pixels."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(0.0, width) * max(0.0, height)

    def holds(self, one: Wanted) -> bool:
        """Whether the mark of `one` is in it."""
        return self.left <= one.x <= self.right and self.top <= one.y <= self.bottom

    def within(self, other: Box) -> bool:
        """Wholly inside `other`."""
        across = other.left <= self.left and self.right <= other.right
        return across and other.top <= self.top and self.bottom <= other.bottom


@dataclass(frozen=True)
class Wanted:
    """A name for the mark at (x, y), as `texts` from the longest form to the shortest."""

    x: float
    y: float
    texts: tuple[str, ...]
    kind: str = ""
    """CSS classes of the mark, which the name takes over."""
    bold: bool = False
    reach: float = 9.0
    """From the middle of the mark to a name that needs no leader."""


@dataclass(frozen=True)
class Label:
    """A name in its place; `leader` is the line to its mark (x1, y1, x2, y2), where it needs one."""

    wanted: Wanted
    text: str
    box: Box
    leader: tuple[float, float, float, float] | None

    @property
    def anchor(self) -> tuple[str, float]:
        """(text-anchor, x) on the side that faces the mark: a wider font grows away from it."""
        if self.box.left >= self.wanted.x:
            return "start", self.box.left + 2
        if self.box.right <= self.wanted.x:
            return "end", self.box.right - 2
        return "middle", (self.box.left + self.box.right) / 2


def width_of(text: str, *, bold: bool = False) -> float:
    """How wide the text may become, in pixels."""
    return (_BOLD if bold else _CHAR) * len(text) + 4


def place(wanted: Sequence[Wanted], marks: Sequence[Box], lines: Sequence[Box], frame: Canvas) -> list[Label]:
    """Names in their places, the first of `wanted` first; those without a free place are left out.

    Args:
        marks: what no name may cover.
        lines: what a name covers only where every other place is far.
        frame: names stay inside its plot.
    """
    inside = Box(frame.left + 2, frame.top, frame.width - 4, frame.floor - 2)
    found: list[Label] = []
    for one in wanted:
        label = _cheapest(one, marks, lines, found, inside)
        if label is not None:
            found.append(label)
    return found


def _cheapest(
    one: Wanted, marks: Sequence[Box], lines: Sequence[Box], found: Sequence[Label], inside: Box
) -> Label | None:
    """The place nearest its mark; covering a line, leading across a mark and a short form cost as much as
    some way further does."""
    best, least = None, math.inf
    for form, text in enumerate(one.texts):
        width = width_of(text, bold=one.bold)
        for further in _FURTHER:
            for box in _around(one, width, one.reach + further):
                cost = further + _SHORT * form
                if cost >= least or not box.within(inside) or any(box.overlap(mark) for mark in marks):
                    continue
                leader = (one.x, one.y, *_end(one, box)) if further else None
                if not _free(box, leader, found):
                    continue
                cost += _COVERS * any(box.overlap(line) for line in lines)
                cost += _ACROSS * bool(leader and any(_crosses(leader, m) for m in marks if not m.holds(one)))
                if cost < least:
                    best, least = Label(one, text, box, leader), cost
    return best


def _around(one: Wanted, width: float, distance: float) -> list[Box]:
    """Boxes at a distance, those in line with the mark first."""
    left, right, over, under = -distance - width, distance, -distance - LINE, distance
    places = [(right, -LINE / 2), (left, -LINE / 2), (-width / 2, over), (-width / 2, under)]
    places += [(right, over), (right, under), (left, over), (left, under)]
    places += [(-width * part, row) for part in (0.25, 0.75, 0.1, 0.9) for row in (over, under)]
    places += [(side, row) for side in (right, left) for row in (over / 2, under / 2)]
    return [Box(one.x + dx, one.y + dy, one.x + dx + width, one.y + dy + LINE) for dx, dy in places]


def _free(box: Box, leader: tuple[float, float, float, float] | None, found: Sequence[Label]) -> bool:
    """Neither the name nor its leader touches a name or a leader that stands."""
    for label in found:
        if box.overlap(label.box) or (leader and _crosses(leader, label.box)):
            return False
        if label.leader and (_crosses(label.leader, box) or (leader and _cut(leader, label.leader))):
            return False
    return True


def _end(one: Wanted, box: Box) -> tuple[float, float]:
    """Where a leader meets the name in `box`."""
    x = min(max(one.x, box.left), box.right)
    y = box.bottom - 2 if box.bottom < one.y else box.top + 2 if box.top > one.y else one.y
    return x, y


def _crosses(line: tuple[float, float, float, float], box: Box) -> bool:
    x1, y1, x2, y2 = line
    steps = max(2, math.ceil(math.hypot(x2 - x1, y2 - y1) / 3))
    spots = ((x1 + (x2 - x1) * k / steps, y1 + (y2 - y1) * k / steps) for k in range(steps + 1))
    return any(box.left <= x <= box.right and box.top <= y <= box.bottom for x, y in spots)


def _cut(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    """Whether two lines cross."""

    def side(line: tuple[float, float, float, float], x: float, y: float) -> float:
        return (line[2] - line[0]) * (y - line[1]) - (line[3] - line[1]) * (x - line[0])

    return (side(one, *other[:2]) > 0) != (side(one, *other[2:]) > 0) and (side(other, *one[:2]) > 0) != (
        side(other, *one[2:]) > 0
    )

"""What a comparison of two selections consists of: frozen records without I/O.

Ratios are of B over A. `State` is about B as seen from A.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vitrail.errors import ClaimError
from vitrail.vocabulary import Selection

State = Literal["worse", "better", "changed", "doubtful", "unmoved", "incomparable", "only A", "only B"]
"""`changed`: no longer the same, and neither better nor worse. `doubtful`: beyond what launches differ by,
but the machine explains it as well. `incomparable`: taken under different conditions."""
MOVED: tuple[State, ...] = ("worse", "better", "changed")
COMPARED: tuple[State, ...] = (*MOVED, "doubtful", "unmoved")

WinnerState = Literal["same", "changed", "none in B", "none in A", "none"]
Place = Literal["selected", "meets", "undecided", "not measured", "rejected", "reference", "absent"]


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """B over A, and the interval outside of which no noise explains it."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Value:
    """One side's figure; `value` in the change's unit, or a word."""

    value: float | str
    interval: tuple[float, float] | None = None
    said: str = ""
    """What it is: a percentile, a provenance."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """One figure of one variant on both sides."""

    figure: str
    """`request latency`, `model latency`, `throughput`, `memory`, `accuracy` or `parity`."""
    unit: str
    state: State
    a: Value | None = None
    b: Value | None = None
    ratio: Ratio | None = None
    """None: not comparable, or no numbers."""
    upwards: bool = False
    """Whether more is better."""
    reason: str = ""
    """Why it is incomparable or doubtful, or what was compared where that is not the figure shown."""

    @property
    def worse_by(self) -> tuple[float, float] | None:
        """(estimate, least) share by which B is worse than A; negative: better. None: no numbers.

        Of time and memory B / A - 1, of accuracy and throughput A / B - 1.
        """
        if self.ratio is None:
            return None
        if self.upwards:
            return 1 / self.ratio.value - 1, 1 / self.ratio.high - 1
        return self.ratio.value - 1, self.ratio.low - 1


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A variant that both selections considered."""

    name: str
    reference: bool
    """Shown, never shipped: no figure of it is a regression."""
    notes: tuple[str, ...]
    """What differs about the variant itself: weights, engine version, engine settings."""
    changes: tuple[Change, ...]


@dataclass(frozen=True, kw_only=True)
class Standing:
    """The place of one variant in a selection, with that selection's own reasons."""

    name: str
    place: Place
    reasons: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Winners:
    """The two winners, and where each stands on the other side (None: there is no such winner)."""

    state: WinnerState
    a: str | None
    b: str | None
    a_in_b: Standing | None
    b_in_a: Standing | None


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Something about the two questions, or where they were asked, that is not the same."""

    what: str
    a: str
    b: str


@dataclass(frozen=True, kw_only=True)
class Side:
    """One selection and where it was read."""

    source: str
    selection: Selection
    engines: tuple[str, ...]
    """`openvino 2026.4.0`, of what was measured."""
    machines: tuple[str, ...]
    """Fingerprints of the hardware; a selection has one, or none where nothing was measured."""
    method: tuple[str, ...]
    """Versions of Vitrail that took the figures."""


@dataclass(frozen=True, kw_only=True)
class Regression:
    """What got worse by more than was tolerated, or may have."""

    what: str
    """`request latency of NAME`, or `the winner NAME`."""
    reason: str


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two selections side by side."""

    a: Side
    b: Side
    differences: tuple[Difference, ...]
    """Between the questions."""
    elsewhere: tuple[Difference, ...]
    """Between machines, engines and methods: what such a comparison is usually about."""
    notes: tuple[str, ...]
    winners: Winners
    pairs: tuple[Pair, ...]
    only_a: tuple[Standing, ...]
    only_b: tuple[Standing, ...]

    def regressions(self, tolerance: float) -> tuple[Regression, ...]:
        """What got worse by more than `tolerance` (a share), beyond noise; A's lost winner first.

        A figure is one if even the favourable end of its ratio lies beyond the tolerance.
        """
        found = _lost(self.winners, ("rejected", "not measured", "absent", "reference"))
        for name, change in self._worse():
            if change.worse_by is None:
                found.append(_regression(name, change, change.reason))
            elif change.worse_by[1] > tolerance:
                found.append(_regression(name, change, f"at least {100 * change.worse_by[1]:.1f} % worse"))
        return tuple(found)

    def open_regressions(self, tolerance: float) -> tuple[Regression, ...]:
        """What looks worse by more than `tolerance` and is not shown to be: these fail nothing.

        So does a winner that B did not show to meet the limits, as its own reasons say.
        """
        found = _lost(self.winners, ("undecided",))
        for pair, change in self._gated():
            by = change.worse_by
            if by is None or by[0] <= tolerance or (change.state == "worse" and by[1] > tolerance):
                continue
            why = f"at least {100 * by[1]:.1f} %" if change.state == "worse" else "within noise"
            why = change.reason if change.state == "doubtful" else why
            found.append(_regression(pair.name, change, f"{100 * by[0]:.1f} % worse, {why}"))
        return tuple(found)

    def require(self, tolerance: float) -> None:
        """Raise a ClaimError that names the first regressions, if there is any."""
        found = self.regressions(tolerance)
        if not found:
            return
        named = "; ".join(f"{each.what}: {each.reason}" for each in found[:3])
        more = f"; and {len(found) - 3} more" if len(found) > 3 else ""
        raise ClaimError(
            f"{self.b.source} is worse than {self.a.source} by more than {100 * tolerance:g} %: "
            f"{named}{more}."
        )

    def _worse(self) -> list[tuple[str, Change]]:
        return [(pair.name, change) for pair, change in self._gated() if change.state == "worse"]

    def _gated(self) -> list[tuple[Pair, Change]]:
        return [(pair, change) for pair in self.pairs if not pair.reference for change in pair.changes]


def _regression(name: str, change: Change, reason: str) -> Regression:
    return Regression(what=f"{change.figure} of {name}", reason=reason)


def _lost(winners: Winners, places: tuple[Place, ...]) -> list[Regression]:
    """A's winner, if it has one of these places in B."""
    stands = winners.a_in_b
    if stands is None or stands.place not in places:
        return []
    said = {
        "absent": "was not considered in B",
        "not measured": "was not measured in B",
        "undecided": "was not shown to meet the limits in B",
    }.get(stands.place, "no longer meets the limits in B")
    why = f" ({'; '.join(stands.reasons)})" if stands.reasons else ""
    return [Regression(what=f"the winner {winners.a}", reason=said + why)]

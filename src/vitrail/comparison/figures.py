"""One variant's figures on two sides: what moved beyond noise, and what cannot be compared."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TypeAlias

from vitrail import judge, stats
from vitrail.comparison.records import Change, Ratio, State, Value
from vitrail.measure import quiet
from vitrail.vocabulary import Block, LatencyFigures, LedgerEntry, Observation, Stage, Workload

MEMORY_TOLERANCE = 0.05
"""Peaks have no interval; those of copies differ by a few percent."""

MOST_LOG = 100.0
"""Logarithm of a ratio beyond which figures are absurd."""

Span: TypeAlias = tuple[float, float, float]
"""(value, low, high)"""


@dataclass(frozen=True, kw_only=True)
class Taken:
    """An observation and what is known of the conditions under which it was made."""

    side: str
    """`A` or `B`."""
    entry: LedgerEntry
    workload: Workload

    @property
    def seen(self) -> Observation:
        """What was observed."""
        return self.entry.observation

    @property
    def photos(self) -> str | None:
        """Digest of the photos that it was timed with; None: not known."""
        where = self.seen.measurement.environment if self.seen.measurement else self.seen.environment
        return where.photos if where else None

    @property
    def hardware(self) -> str | None:
        """The machine's fingerprint; None: not known."""
        where = self.seen.measurement.environment if self.seen.measurement else self.seen.environment
        return where.hardware if where else None

    @property
    def load(self) -> dict[str, object]:
        """What a figure depends on beside variant and photos; threads as the engine had them."""
        taken = self.seen.measurement
        load = taken.workload if taken else self.workload
        facts = self.seen.facts or (taken.facts if taken else None)
        threads = facts.threads if facts else load.threads
        return {
            "batch": load.batch_size,
            "clients": load.concurrency,
            "threads": threads,
            "device": load.device,
        }

    def blocks(self, stage: Stage) -> list[Block]:
        """The calls of one stage; [] where they were not kept."""
        taken = self.seen.measurement
        return [] if taken is None else [block for block in taken.blocks if block.scope == stage]


def changes(a: Taken, b: Taken) -> tuple[Change, ...]:
    """Every figure that either side has."""
    judged = (a.workload.latency_scope, b.workload.latency_scope)
    stages = dict.fromkeys((*judged, *a.seen.latency, *b.seen.latency))
    latencies = [_latency(a, b, stage) for stage in stages]
    found = [*latencies, _throughput(a, b, latencies), _memory(a, b), _accuracy(a, b), _parity(a, b)]
    return tuple(change for change in found if change is not None)


# --- conditions -----------------------------------------------------------------------------------


def _other_load(a: Taken, b: Taken) -> str | None:
    differ = [
        f"{name} {there} in A, {b.load[name]} in B"
        for name, there in a.load.items()
        if None not in (there, b.load[name]) and there != b.load[name]
    ]
    return f"under different loads ({', '.join(differ)})" if differ else None


def _other_photos(a: Taken, b: Taken) -> str | None:
    known = a.photos is not None and b.photos is not None
    return "timed with different photos" if known and a.photos != b.photos else None


def _doubt(a: Taken, b: Taken, state: State, stage: Stage) -> str | None:
    """What explains a move as well: other processes on the slower side, or a machine that became slower."""
    slow, fast = (b, a) if state == "worse" else (a, b)
    flags = (*slow.seen.flags, *(slow.seen.measurement.flags if slow.seen.measurement else ()))
    noise = next((flag for flag in flags if flag.startswith(quiet.NOISE)), None)
    if noise is not None:
        return f"{slow.side} was taken on a busy machine ({noise})"
    same = a.hardware is not None and a.hardware == b.hardware
    slower = stats.reference_slowdown(fast.blocks(stage), slow.blocks(stage)) if same else None
    if slower is not None:
        return f"the machine's own reference workload is {100 * slower:.0f} % slower in {slow.side}"
    return None


# --- figures --------------------------------------------------------------------------------------


def _sided(figure: str, unit: str, a: Value | None, b: Value | None, missing: Taken) -> Change | None:
    """A figure of one side alone, with why the other has none."""
    if a is None and b is None:
        return None
    seen = missing.seen
    why = seen.failure or seen.pruned or "not measured"
    state: State = "only A" if b is None else "only B"
    return Change(figure=figure, unit=unit, state=state, a=a, b=b, reason=f"{missing.side}: {why}")


def _refused(figure: str, unit: str, a: Value, b: Value, reason: str) -> Change:
    return Change(figure=figure, unit=unit, state="incomparable", a=a, b=b, reason=reason)


def _judged(
    figure: str,
    unit: str,
    a: Value,
    b: Value,
    ratio: Ratio | None,
    *,
    upwards: bool = False,
    reason: str = "",
) -> Change:
    """The change that a ratio shows: it moved if its interval excludes 1."""
    if ratio is None:
        return _refused(figure, unit, a, b, "figures so far apart have no ratio")
    state: State = "unmoved"
    if ratio.low > 1 or ratio.high < 1:
        state = "better" if (ratio.low > 1) == upwards else "worse"
    return Change(
        figure=figure, unit=unit, state=state, a=a, b=b, ratio=ratio, upwards=upwards, reason=reason
    )


def _ratio(a: Span, b: Span) -> Ratio | None:
    """B over A; its interval adds the two sides' distances in quadrature, as logarithms.

    The two sides are independent. Zou and Donner, Statistics in Medicine 27, 2008 (MOVER).
    """
    if min(*a, *b) <= 0:
        return None
    (one, low, high), (two, other_low, other_high) = ([math.log(x) for x in side] for side in (a, b))
    centre = two - one
    down, up = math.hypot(two - other_low, high - one), math.hypot(other_high - two, one - low)
    if abs(centre) + max(down, up) > MOST_LOG:
        return None
    return Ratio(value=math.exp(centre), low=math.exp(centre - down), high=math.exp(centre + up))


def _latency(a: Taken, b: Taken, stage: Stage) -> Change | None:
    figure, unit = f"{stage} latency", "ms"
    ours, theirs = _at_one_percentile(a, b, stage)
    left, right = (None if one is None else _shown(one) for one in (ours, theirs))
    if ours is None or theirs is None or left is None or right is None:
        return _sided(figure, unit, left, right, b if theirs is None else a)
    # Of a request, decoding is a part; the model alone sees the same number of pixels of any photo.
    refusal = _other_load(a, b) or (None if stage == "model" else _other_photos(a, b))
    if refusal is not None:
        return _refused(figure, unit, left, right, refusal)
    ratio = _judged_ratio(ours, theirs)
    medians = _median(a, ours, stage), _median(b, theirs, stage)
    if ratio is None or _medians_tell(ratio, _ratio(*medians), ours, theirs):
        ratio = _ratio(*medians)
        left, right = (Value(value=m[0], interval=m[1:], said="p50") for m in medians)
    return _unless_doubtful(_judged(figure, unit, left, right, ratio), a, b, stage)


def _unless_doubtful(change: Change, a: Taken, b: Taken, stage: Stage) -> Change:
    doubt = _doubt(a, b, change.state, stage) if change.state in ("worse", "better") else None
    if doubt is None:
        return change
    return replace(change, state="doubtful", reason=doubt)


def _at_one_percentile(
    a: Taken, b: Taken, stage: Stage
) -> tuple[LatencyFigures | None, LatencyFigures | None]:
    """Both sides' figures, at the same percentile where the calls of one of them are known."""
    ours, theirs = a.seen.latency.get(stage), b.seen.latency.get(stage)
    if ours is None or theirs is None or ours.judged.percentile == theirs.judged.percentile:
        return ours, theirs
    if b.seen.measurement is not None:
        return ours, judge.latency_at(b.seen, stage, ours.judged.percentile)
    if a.seen.measurement is not None:
        return judge.latency_at(a.seen, stage, theirs.judged.percentile), theirs
    return ours, theirs


def _shown(figures: LatencyFigures) -> Value:
    judged = figures.judged
    return Value(value=judged.value, interval=judged.interval, said=f"p{judged.percentile:g}")


def _judged_ratio(ours: LatencyFigures, theirs: LatencyFigures) -> Ratio | None:
    """Of the judged percentile; None where it is not the same one, or a side lacks its interval."""
    if ours.judged.percentile != theirs.judged.percentile:
        return None
    spans = [(j.value, *j.interval) for j in (ours.judged, theirs.judged) if j.interval is not None]
    return _ratio(spans[0], spans[1]) if len(spans) == 2 else None


def _medians_tell(ratio: Ratio, medians: Ratio | None, ours: LatencyFigures, theirs: LatencyFigures) -> bool:
    """Whether the medians moved, in the same direction, where the judged percentile's intervals overlap.

    Only if neither judged figure lies in the other's interval: so a judge tells two variants apart.
    """
    if medians is None or ratio.low > 1 or ratio.high < 1:
        return False
    one, two = ours.judged, theirs.judged
    assert one.interval is not None
    assert two.interval is not None
    inside = (
        one.interval[0] <= two.value <= one.interval[1] or two.interval[0] <= one.value <= two.interval[1]
    )
    return not inside and (medians.low > 1 if ratio.value > 1 else medians.high < 1)


def _median(taken: Taken, figures: LatencyFigures, stage: Stage) -> Span:
    """By what its launches differ, where enough of them are known; else its calls' scatter counts."""
    blocks = taken.blocks(stage)
    found = stats.median_interval(blocks) if _launches(blocks) else None
    return found or stats.one_launch_interval(figures.p50, _scatter(figures))


def _launches(blocks: list[Block]) -> bool:
    return len(stats.launch_medians(blocks)) >= stats.LAUNCHES_TO_PASS


def _scatter(figures: LatencyFigures) -> float:
    """From the median to the 95th percentile of the calls, as a difference of logarithms."""
    if figures.p50 <= 0 or figures.p95 <= figures.p50:
        return 0.0
    return min(math.log(figures.p95) - math.log(figures.p50), MOST_LOG)


def _throughput(a: Taken, b: Taken, latencies: Iterable[Change | None]) -> Change | None:
    figure, unit = "throughput", "images/s"
    spans = [_throughput_span(one) for one in (a, b)]
    left, right = (None if span is None else Value(value=span[0]) for span in spans)
    if spans[0] is None or spans[1] is None or left is None or right is None:
        return _sided(figure, unit, left, right, b if right is None else a)
    scopes = (a.workload.latency_scope, b.workload.latency_scope)
    refusal = _other_load(a, b)
    if refusal is None and scopes[0] != scopes[1]:
        refusal = f"of different scopes ({scopes[0]} in A, {scopes[1]} in B)"
    if refusal is None and scopes[0] != "model":
        refusal = _other_photos(a, b)
    if refusal is not None:
        return _refused(figure, unit, left, right, refusal)
    change = _judged(figure, unit, left, right, _ratio(spans[0], spans[1]), upwards=True)
    same_calls = next((c for c in latencies if c is not None and c.figure == f"{scopes[0]} latency"), None)
    bare = not all(_launches(one.blocks(scopes[0])) for one in (a, b))
    if bare and change.state in ("worse", "better") and same_calls and same_calls.state != change.state:
        # A mean without its launches has no interval of its own; the latency of the same calls has one.
        why = f"the {same_calls.figure} of the same calls is {same_calls.state}"
        state: State = "doubtful" if same_calls.state == "doubtful" else "unmoved"
        return replace(change, state=state, reason=why)
    return _unless_doubtful(change, a, b, scopes[0])


def _throughput_span(taken: Taken) -> Span | None:
    """Images/s, by what launches differ where enough of them are known, else as if from one launch."""
    if taken.seen.throughput is None:
        return None
    scope = taken.workload.latency_scope
    blocks = taken.blocks(scope)
    mean = stats.mean_latency_interval(blocks) if _launches(blocks) else None
    if mean is None:
        return stats.one_launch_interval(taken.seen.throughput)
    scale = 1000 * stats.images_at_once(blocks, taken.workload.batch_size)
    return scale / mean[0], scale / mean[2], scale / mean[1]


def _memory(a: Taken, b: Taken) -> Change | None:
    figure, unit = "memory", "MiB"
    peaks = [one.seen.memory.peak if one.seen.memory else None for one in (a, b)]
    left, right = (None if peak is None else Value(value=peak) for peak in peaks)
    if peaks[0] is None or peaks[1] is None or left is None or right is None:
        return _sided(figure, unit, left, right, b if right is None else a)
    if refusal := _other_load(a, b):
        return _refused(figure, unit, left, right, refusal)
    near = 1 + MEMORY_TOLERANCE
    ratio = _ratio((peaks[0],) * 3, (peaks[1], peaks[1] / near, peaks[1] * near))
    return _judged(figure, unit, left, right, ratio)


def _accuracy(a: Taken, b: Taken) -> Change | None:
    figure, unit = "accuracy", "%"
    one, two = a.seen.accuracy, b.seen.accuracy
    left, right = (
        None if each is None else Value(value=each.value, interval=each.interval, said=each.provenance)
        for each in (one, two)
    )
    if one is None or two is None or left is None or right is None:
        return _sided(figure, unit, left, right, b if two is None else a)
    if one.provenance != two.provenance:
        return _refused(figure, unit, left, right, f"{one.provenance} in A, {two.provenance} in B")
    images = [each.seen.quality.data if each.seen.quality else None for each in (a, b)]
    if None not in images and images[0] != images[1]:
        return _refused(figure, unit, left, right, "measured on different labelled images")
    if judge.within_uncertainty(a.seen, b.seen):
        # The interval is Agresti and Caffo's of a difference: that it reaches 0 is all that is said here.
        spans = [(each.value, *(each.interval or (each.value,) * 2)) for each in (one, two)]
        ratio = _ratio(spans[0], spans[1])
        return Change(figure=figure, unit=unit, state="unmoved", a=left, b=right, ratio=ratio, upwards=True)
    claimed = one.provenance != "measured" and one.value != two.value
    reason = "the data changed: nothing was measured" if claimed else ""
    ratio = _ratio((one.value,) * 3, (two.value,) * 3)
    return _judged(figure, unit, left, right, ratio, upwards=True, reason=reason)


def _parity(a: Taken, b: Taken) -> Change | None:
    figure = "parity"
    one, two = a.seen.parity, b.seen.parity
    left, right = (
        None if each is None else Value(value=each.answer, said=f"cosine {each.cosine:.6f}")
        for each in (one, two)
    )
    if one is None or two is None or left is None or right is None:
        return _sided(figure, "", left, right, b if two is None else a)
    if refusal := _other_photos(a, b):
        return _refused(figure, "", left, right, refusal.replace("timed", "compared"))
    state: State = "unmoved"
    if one.answer != two.answer:
        state = "worse" if two.answer == "fail" else "better" if one.answer == "fail" else "changed"
    return Change(
        figure=figure, unit="", state=state, a=left, b=right, reason=two.reason if state != "unmoved" else ""
    )

"""The figure of latency against accuracy: axes, intervals, marks, and names that avoid each other."""

from __future__ import annotations

import itertools
import random
import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest
import selections
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ImageFont

from vitrail import vocabulary as v
from vitrail.report import axes, figure, labels, phrases
from vitrail.report.html import render
from vitrail.report.scene import off_the_axes, scene

FRAMES = {"wide": axes.WIDE, "narrow": axes.NARROW}


def with_latency(entry: v.LedgerEntry, ms: float, interval=None, **changes) -> v.LedgerEntry:
    """The entry at another latency, and with other fields."""
    judged = v.JudgedLatency(percentile=95.0, value=ms, interval=interval)
    figures = replace(selections.figures(ms), judged=judged)
    latency = {**entry.observation.latency, "request": figures}
    return replace(entry, observation=replace(entry.observation, latency=latency), **changes)


def alone(ms: float, interval=None) -> v.Selection:
    """A selection of its winner only, without limits."""
    selection = selections.selection()
    winner = with_latency(selection.winner, ms, interval)
    return replace(selection, requirements=v.Requirements(), ledger=(winner,), front=(winner.variant.name,))


# --- axes ---------------------------------------------------------------------------------------


def test_an_axis_places_values_and_has_round_ticks():
    axis = axes.Axis(5, 100, 0, 100, log=True)
    assert axis(5) == pytest.approx(0)
    assert axis(100) == pytest.approx(100)
    assert axis(22.360679775) == pytest.approx(50)
    assert axis.ticks() == [5, 10, 20, 50, 100]
    assert axes.Axis(74, 86, 0, 1).ticks() == [74, 76, 78, 80, 82, 84, 86]
    assert axes.Axis(0.9, 1100, 0, 1, log=True).ticks(most=5) == [1, 10, 100, 1000]


@given(
    low=st.floats(0.01, 1e4), ratio=st.floats(1.001, 1e6), log=st.booleans(), most=st.integers(4, 12)
)  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_ticks_lie_inside_and_have_room(low, ratio, log, most):
    high = low * ratio
    log = log and ratio > axes.LOG_FROM
    ticks = axes.Axis(low, high, 0, 100, log).ticks(most)
    assert 1 <= len(ticks) <= most
    assert all(low * (1 - 1e-9) <= tick <= high * (1 + 1e-9) for tick in ticks)
    assert ticks == sorted(set(ticks))


def test_references_do_not_stretch_the_axis_but_are_shown_and_said():
    """PyTorch at 2.4 s beside variants of 6 to 104 ms: a mark at the edge, its figure in the caption."""
    selection = selections.selection()
    without = tuple(e for e in selection.ledger if e.status != "reference")
    slow = tuple(with_latency(e, 2405) if e.status == "reference" else e for e in selection.ledger)
    usual, slowed = scene(replace(selection, ledger=without)), scene(replace(selection, ledger=slow))
    assert (slowed.x.low, slowed.x.high) == (usual.x.low, usual.x.high)
    at_edge = [point for point in slowed.points if point.entry.status == "reference"]
    assert [(point.x, point.beyond[0]) for point in at_edge] == [(axes.WIDE.edge, 1)] * 2
    assert str(figure.scatter(replace(selection, ledger=slow))).count('class="onwards"') == 2
    said = off_the_axes(replace(selection, ledger=slow))
    assert said[0] == "efficientnet_lite0.ra_in1k@224 pytorch-eager fp32: 2405 ms, 75.48 %"
    assert "Marks with an arrow lie further out: " + said[0] in render(replace(selection, ledger=slow))
    assert off_the_axes(replace(selection, ledger=without)) == []


def test_references_that_are_all_there_is_have_an_axis():
    selection = selections.selection()
    only = tuple(e for e in selection.ledger if e.status == "reference")
    shown = scene(replace(selection, ledger=only, selected=None, front=()))
    assert [point.beyond for point in shown.points] == [(0, 0)] * 2


@pytest.mark.parametrize("interval", [(11.9, 12.7), (2.0, 188.0), (0.5, 12.5), (12.2, 5000.0)])
@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
def test_one_variant_alone_draws_its_whole_interval(interval, frame):
    shown = scene(alone(12.3, interval), frame)
    assert shown.x.low <= interval[0] < interval[1] <= shown.x.high
    path = str(figure.scatter(alone(12.3, interval), frame))
    bar = re.search(r'class="interval[^"]*" d="([^"]*)"', path)[1]
    assert bar.count("v6") == 2
    left, right = (float(x) for x in re.match(r"M([\d.]+) [\d.]+H([\d.]+)", bar).groups())
    assert frame.left < left < right < frame.edge


def test_the_winner_s_interval_is_whole_and_a_loser_s_does_not_stretch_the_axis():
    selection = selections.selection()
    wide = tuple(
        with_latency(e, 12.3, (6.0, 400.0)) if e is selection.winner else e for e in selection.ledger
    )
    assert scene(replace(selection, ledger=wide)).x.high >= 400
    loser = next(e for e in selection.ledger if e.status == "undecided")
    lost = tuple(with_latency(e, 50.2, (40.0, 9000.0)) if e is loser else e for e in selection.ledger)
    assert scene(replace(selection, ledger=lost)).x.high < 400


@pytest.mark.parametrize(
    ("interval", "caps", "arrows"),
    [((9.0, 11.0), 2, 0), ((9.0, 900.0), 1, 1), ((0.001, 11.0), 1, 1), ((0.001, 900.0), 0, 2)],
)
def test_a_bar_that_goes_on_past_the_axis_ends_in_an_arrow_and_not_in_a_cap(interval, caps, arrows):
    """Reading the path itself: a cap is a vertical stroke, an arrow ends its stroke on the axis."""
    judged = v.JudgedLatency(percentile=95.0, value=10.0, interval=interval)
    figures = replace(selections.figures(10.0), judged=judged)
    entry = selections.selection().ledger[0]
    axis = axes.Axis(5, 100, 50, 450, log=True)
    path = str(figure._interval(figure.Point(entry, figures, 10.0, 80.0, axis(10), 200.0), axis))
    assert path.count("v6") == caps
    tips = [
        (float(x) + dx)
        for x, dx in ((m[1], float(m[2])) for m in re.finditer(r"M([\d.]+) 196\.0l(-?4) 4l", path))
    ]
    assert len(tips) == arrows
    assert tips == [x for x, past in ((50.0, interval[0] < 5), (450.0, interval[1] > 100)) if past]


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
@pytest.mark.parametrize("accuracies", [(76.7, 77.7), (0.3, 0.9), (99.2, 99.9), (4.0, 98.0)])
def test_the_numbers_at_the_axes_have_room(frame, accuracies):
    """Beside the plot, and from one another, measured with a font that is at hand."""
    font = ImageFont.load_default(12)
    selection = selections.selection(max_latency=None, min_accuracy=None)
    entries = [
        with_latency(replace(entry, status="meets"), ms)
        for entry, ms in zip(phrases.measured(selection), (8.13, 2345.0), strict=False)
    ]
    entries = [
        replace(e, observation=replace(e.observation, accuracy=v.Accuracy(value=a, provenance="published")))
        for e, a in zip(entries, accuracies, strict=True)
    ]
    shown = scene(replace(selection, ledger=tuple(entries), selected=None, front=()), frame)
    assert all(font.getlength(f"{tick:g}") + 8 <= frame.left for tick in shown.y.ticks())
    svg = str(figure.scatter(replace(selection, ledger=tuple(entries)), frame))
    along = re.findall(r'class="tick" x="([\d.]+)" y="[\d.]+" text-anchor="middle">([^<]+)<', svg)
    ends = [(float(x) - font.getlength(t) / 2, float(x) + font.getlength(t) / 2) for x, t in along]
    assert len(ends) >= 3
    assert all(right + 4 <= left for (_, right), (left, _) in itertools.pairwise(ends))


# --- marks --------------------------------------------------------------------------------------


def test_the_figure_shows_every_measured_variant_and_the_limits():
    selection = selections.selection()
    svg = str(figure.scatter(selection))
    assert svg.count('<g class="mark ') == len(phrases.measured(selection)) == 21 - 1
    assert svg.count('class="limit"') == 2
    assert svg.count('class="fits"') == 1
    assert svg.count('class="front"') == 1
    for name in ("efficientnet_lite2 fp32", "tf_efficientnetv2_s would win"):
        assert f">{name}</text>" in svg
    assert "log scale" in svg
    unlimited = str(figure.scatter(selections.selection(max_latency=None, min_accuracy=None)))
    assert 'class="limit"' not in unlimited
    assert 'class="fits"' not in unlimited


@pytest.mark.parametrize("make", [selections.selection, lambda: selections.selection(max_latency=6)])
def test_a_mark_s_colour_is_its_status_and_hollow_means_weights_not_at_hand(make):
    selection = make()
    svg = ElementTree.fromstring(str(figure.scatter(selection)))
    entries = {entry.variant.name: entry for entry in selection.ledger}
    marks = [group for group in svg.iter("g") if (group.get("class") or "").startswith("mark ")]
    assert len(marks) == len(phrases.measured(selection))
    for mark in marks:
        entry = entries[mark.find("title").text.partition("\n")[0]]
        hollow = {"hollow"} if not entry.observation.weights_at_hand else set()
        assert set(mark.get("class").split()) == {"mark", entry.status.replace(" ", "-")} | hollow


def test_the_ledger_s_dots_look_as_the_marks_do():
    selection = selections.selection()
    html = render(selection)
    table = html[html.index('<table id="ledger">') :]
    dots = re.findall(r'<i class="dot ([a-z -]*)"></i>', table)
    assert len(dots) == len(selection.ledger)
    assert sum("hollow" in dot for dot in dots) == sum(
        not e.observation.weights_at_hand for e in selection.ledger
    )


def test_the_page_has_a_figure_for_telephones_whose_text_keeps_its_size():
    """Text of 12 px or more in a viewBox that fits between the margins of a window of 390 px."""
    html = render(selections.selection())
    assert html.count('<svg class="wide"') == html.count('<svg class="narrow"') == 1
    style = html[html.index("<style>") : html.index("</style>")]
    sizes = [float(size) for size in re.findall(r"svg [^{}]*\{[^}]*?font(?:-size)?: ([\d.]+)px", style)]
    assert len(sizes) >= 3
    assert min(sizes) >= 12
    assert axes.NARROW.width <= 390 - 2 * 16 - 2 * 8 - 2
    narrow = style[style.index("@media screen and (max-width: 700px)") :]
    assert "svg.wide { display: none; }" in narrow[:150]


# --- names --------------------------------------------------------------------------------------


def check_names(shown) -> None:
    """No name touches another, a winner's ring, a mark or a leader; none leaves the plot."""
    frame = shown.frame
    plot = labels.Box(frame.left, frame.top, frame.width, frame.floor)
    marks = [labels.Box(p.x - 6, p.y - 6, p.x + 6, p.y + 6) for p in shown.points]
    font = ImageFont.load_default(12.5)
    for i, label in enumerate(shown.names):
        box = label.box
        assert font.getlength(label.text) <= box.right - box.left
        assert box.within(plot), label
        assert not any(box.overlap(mark) for mark in marks), label
        for limit in shown.limits:
            assert not box.overlap(limit.box), (label, limit)
        for other in shown.names[:i]:
            assert not box.overlap(other.box), (label, other)
        for other in shown.names:
            if other is not label and other.leader:
                x1, y1, x2, y2 = other.leader
                spots = ((x1 + (x2 - x1) * k / 200, y1 + (y2 - y1) * k / 200) for k in range(201))
                assert not any(
                    box.left + 1 < x < box.right - 1 and box.top + 1 < y < box.bottom - 1 for x, y in spots
                ), (label, other)


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
@pytest.mark.parametrize("seed", range(25))
def test_names_avoid_each_other_and_stay_in_the_plot(frame, seed):
    """However crowded the front is: random figures, all on the front, with names short and long."""
    rng = random.Random(seed)
    selection = selections.selection(
        max_latency=rng.choice([None, 6.0, 20.0, 100.0]), min_accuracy=rng.choice([None, 70.0, 75.0, 84.0])
    )
    spread = rng.choice([1.2, 4.0, 60.0])
    entries = []
    for i in range(rng.choice([1, 3, 12, 30])):
        entry = rng.choice(phrases.measured(selection))
        name = "x" * rng.randint(3, 40) if rng.random() < 0.5 else "net"
        variant = entry.variant
        candidate = replace(variant.candidate, name=f"{name}{i}", architecture=name)
        seen = replace(
            entry.observation,
            variant=replace(variant, candidate=candidate),
            accuracy=v.Accuracy(value=rng.uniform(70, 72 + 14 * rng.random()), provenance="published"),
        )
        ms = 10 * spread ** rng.random()
        status = "selected" if i == 0 else rng.choice(["meets", "undecided", "rejected", "reference"])
        entries.append(
            with_latency(replace(entry, observation=seen), ms, (ms * 0.9, ms * 1.3), status=status)
        )
    names = tuple(entry.variant.name for entry in entries)
    shown = scene(replace(selection, ledger=tuple(entries), selected=names[0], front=names), frame)
    assert len(shown.points) == len(entries)
    check_names(shown)
    assert any(label.wanted.bold for label in shown.names), "the winner has its name"
    frame_box = labels.Box(0, 0, frame.width, frame.height)
    for limit in shown.limits:
        assert limit.box.within(frame_box)


def test_a_name_without_room_is_cut_before_it_is_left_out():
    frame = axes.Canvas(200, 120, left=10, right=10, top=10, bottom=10)
    wanted = labels.Wanted(100, 60, ("a name that is far too long for this", "a name …"))
    (label,) = labels.place([wanted], [labels.Box(93, 53, 107, 67)], [], frame)
    assert label.text == "a name …"
    everywhere = [labels.Box(0, 0, 200, 120)]
    assert labels.place([wanted], everywhere, [], frame) == []


def test_a_name_covers_a_line_only_where_there_is_no_other_place():
    mark = labels.Box(393, 193, 407, 207)
    line = labels.Box(400, 195, 700, 205)
    (free,) = labels.place([labels.Wanted(400, 200, ("name",))], [mark], [line], axes.WIDE)
    assert not free.box.overlap(line)
    everywhere = labels.Box(0, 0, 760, 450)
    (forced,) = labels.place([labels.Wanted(400, 200, ("name",))], [mark], [everywhere], axes.WIDE)
    assert not forced.box.overlap(mark)


def test_the_figure_is_named_and_described_in_words():
    selection = selections.selection()
    for part in str(figure.both(selection)).split("</svg>")[:2]:
        svg = ElementTree.fromstring(part + "</svg>")
        assert svg.get("role") == "img"
        assert svg.find("title").text == "Latency against top-1 accuracy of 20 measured variants"
        said = svg.find("desc").text
        assert said.startswith("1 selected, 6 meets, ")
        assert "Selected: efficientnet_lite2.pkg_in1k@260 openvino fp32 at 12.3 ms and 77.5 %." in said
        assert "Limits: ≤ 50 ms and ≥ 75 %." in said

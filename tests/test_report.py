"""The terminal, HTML and notebook views of a selection."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import selections

from vitrail import vocabulary as v
from vitrail.document import from_document
from vitrail.report import figure, phrases
from vitrail.report.html import render
from vitrail.report.decision import decision
from vitrail.report.again import requirements_toml
from vitrail.report.notebook import selection_table_html
from vitrail.report.terminal import progress_line, show, summary
from vitrail.requirements import resolve

HOSTILE = '<script>alert("1")</script><img src=x onerror=alert(2)>'


class Page(HTMLParser):
    """What a browser would build: tags with attributes, and the text outside of style and script."""

    VOID = ("meta", "input", "br", "img", "link", "wbr")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == [], "every element is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.words))


def hostile() -> v.Selection:
    """Every text that can come from outside says HOSTILE."""
    selection = selections.selection()
    first = selection.winner
    seen = first.observation
    candidate = replace(
        seen.variant.candidate,
        name=HOSTILE,
        architecture=HOSTILE,
        note=HOSTILE,
        weights=replace(seen.variant.candidate.weights, license=HOSTILE, reference=HOSTILE),
        accuracy=v.Accuracy(value=75, provenance="published", source=HOSTILE),
    )
    variant = replace(seen.variant, candidate=candidate, runtime=HOSTILE, settings=((HOSTILE, HOSTILE),))
    parity = replace(seen.parity, reason=HOSTILE)
    verdicts = tuple(replace(one, reason=HOSTILE) for one in first.verdicts)
    seen = replace(seen, variant=variant, parity=parity, flags=(HOSTILE,))
    bad = replace(first, observation=seen, reasons=(HOSTILE,), verdicts=verdicts)
    broken = replace(
        first,
        observation=replace(seen, variant=replace(variant, runtime="x"), failure=HOSTILE),
        status="rejected",
        verdicts=tuple(replace(one, answer="fail", admit=HOSTILE) for one in verdicts),
    )
    return replace(
        selection,
        requirements=replace(selection.requirements, license=(HOSTILE,)),
        workload=replace(selection.workload, images=HOSTILE),
        ledger=(bad, broken, *selection.ledger),
        selected=variant.name,
        front=(variant.name,),
        nearest=(broken.variant.name,),
        notes=(HOSTILE,),
        hardware={HOSTILE: HOSTILE, "cpu": {HOSTILE: [HOSTILE]}},
        method={HOSTILE: HOSTILE},
        created=HOSTILE,
    )


def finalists() -> v.Selection:
    """A hand-written file, without anything but names and two figures."""
    recorded = from_document(selections.finalists(), "finalists.json")
    requirements = v.Requirements(max_latency_ms=50, min_accuracy=85, license=("any",))
    ledger = [selections.entry(seen, requirements, "rejected") for seen in recorded.observations]
    ledger[-1] = replace(ledger[-1], status="selected")
    return v.Selection(
        requirements=requirements,
        workload=recorded.workload,
        hardware={},
        ledger=tuple(ledger),
        selected="efficientnetv2_m",
    )


SELECTIONS = {
    "winner": selections.selection,
    "nothing fits": lambda: selections.selection(max_latency=6, min_accuracy=80),
    "no limits": lambda: selections.selection(max_latency=None, min_accuracy=None),
    "hand-written": finalists,
    "hostile": hostile,
    "empty": lambda: replace(selections.selection(), ledger=(), selected=None, nearest=(), front=()),
}


# --- HTML ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", SELECTIONS.values(), ids=SELECTIONS)
def test_the_file_is_well_formed_and_asks_nothing_of_a_network(make):
    html = render(make())
    page = Page(html)
    for tag, attributes in page.tags:
        assert tag not in ("link", "img", "iframe", "object", "embed", "image", "use"), tag
        assert not {"src", "href", "srcset", "action", "xlink:href"} & set(attributes), (tag, attributes)
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    style = html[html.index("<style>") : html.index("</style>")]
    script = html[html.rindex("<script>") :]
    for part in (style, script):
        assert not re.search(r"url\(|@import|https?:|fetch|XMLHttp|import\(", part)
    policy = next(a["content"] for t, a in page.tags if t == "meta" and a.get("http-equiv"))
    assert policy.startswith("default-src 'none'")


def test_hostile_names_stay_text():
    html = render(hostile())
    assert HOSTILE not in html
    assert Page(html).text.count('<script>alert("1")</script>') > 10
    table = selection_table_html(hostile())
    assert "<script" not in table
    assert "<img" not in table


def test_the_decision_comes_first_and_says_what_matters():
    selection = selections.selection()
    html = render(selection)
    assert html.index('class="decision"') < html.index("<figure>") < html.index('id="ledger"')
    said = decision(selection).striptags()
    for part in (
        "the highest top-1 accuracy",
        "at most 50 ms",
        "at least 75 %",
        "Of 17 models in 25 variants, 20",
        "efficientnet_lite2.pkg_in1k@260 openvino fp32 wins",
        "12.3 ms [11.9, 12.7] from 360 calls",
        "77.5 published",
        "9 of 9 decided photos",
        "tf_efficientnetv2_s.in21k_ft_in1k@384 openvino bf16 would win if its weights were at hand",
        "random weights",
        "weaker evidence",
    ):
        assert part in said
    nothing = decision(selections.selection(max_latency=6, min_accuracy=80)).striptags()
    assert "Nothing fits" in nothing
    assert "--max-latency 7ms --min-accuracy 74.98 would admit it" in nothing


def test_everything_reads_without_javascript():
    """The table is in the file itself; what only works with JavaScript is hidden until it runs."""
    selection = selections.selection()
    page = Page(render(selection))
    bodies = [a for t, a in page.tags if t == "tbody"]
    assert len(bodies) == len(selection.ledger)
    assert not any("hidden" in a or "display" in (a.get("style") or "") for a in bodies)
    assert all("hidden" in a for _, a in page.tags if a.get("class") == "controls")
    heads = [a for t, a in page.tags if t == "th"]
    assert sum(a.get("scope") == "col" for a in heads) == 8
    assert sum(a.get("scope") == "row" for a in heads) == len(selection.ledger)
    for entry in selection.ledger:
        for reason in entry.reasons:
            assert reason in page.text
        for verdict in entry.verdicts:
            assert verdict.reason in page.text
    for provenance in ("published", "estimated", "random weights"):
        assert provenance in page.text


def test_the_requirements_of_the_report_ask_the_same_again(tmp_path):
    requirements = v.Requirements(
        max_latency_ms=12.345678901, min_accuracy=80.5, max_memory_mib=1024, min_throughput=0.3,
        license=("mit", "apache-2.0"), objective="latency",
    )  # fmt: skip
    workload = v.Workload(
        batch_size=4, threads=2, percentile=99.5, latency_scope="model", image_size=256, images='/a "b"\\c\td'
    )
    file = tmp_path / "requirements.toml"
    file.write_text(requirements_toml(requirements, workload), encoding="utf-8")
    assert resolve(toml=file)[:2] == (requirements, workload)
    file.write_text(requirements_toml(v.Requirements(), v.Workload()), encoding="utf-8")
    assert resolve(toml=file)[:2] == (v.Requirements(), v.Workload())


# --- the user's own images ----------------------------------------------------------------------


def labelled() -> v.Selection:
    """A winner measured on 45 labelled images, its probe (another precision) a bit better."""
    confusion = ((18, 1, 1), (0, 14, 1), (2, 0, 8))
    recalls = tuple(
        v.Recall(label=label, images=sum(row), value=100 * row[i] / sum(row))
        for i, (label, row) in enumerate(zip(("cat", "dog", "defect"), confusion, strict=True))
    )
    seen = v.Classification(
        split="validation",
        data="ab",
        images=45,
        accuracy=80.5,
        interval=(66.7, 89.4),
        balanced_accuracy=87.8,
        recalls=recalls,
        confusion=confusion,
        calibration_error=3.1,
    )
    measured = v.Accuracy(
        value=80.5, provenance="measured", source="validation split", images=45, interval=(66.7, 89.4)
    )
    selection = selections.selection()
    ledger = list(selection.ledger)
    place = next(i for i, entry in enumerate(ledger) if entry.status == "selected")
    old = ledger[place]
    candidate = replace(old.variant.candidate, accuracy=replace(measured, value=81.0))
    variant = replace(old.variant, candidate=candidate)
    observation = replace(old.observation, variant=variant, accuracy=measured, classification=seen)
    ledger[place] = replace(old, observation=observation)
    asked = replace(selection.requirements, min_recall=(("defect", 75.0), ("cat", 85.0)))
    return replace(selection, ledger=tuple(ledger), selected=variant.name, requirements=asked)


def test_limits_on_recall_are_among_the_cards():
    html = render(labelled())
    cards = re.findall(
        r'tile-name">([^<]*)<.*?tile-value">([^ <]*).*?tile-detail">([^<]*)<.*?tile-limit">([^<]*)<',
        html,
        re.S,
    )
    found = {name: rest for name, *rest in cards}
    assert found["recall of defect"] == ["80", "measured on 10 images of that class", "limit ≥ 75 %"]
    assert found["recall of cat"] == ["90", "measured on 20 images of that class", "limit ≥ 85 %"]
    assert found["top-1 accuracy"] == ["80.5", "measured on 45 images [66.7, 89.4]", "limit ≥ 75 %"]
    assert "recall of" not in "".join(
        name for name, *_ in re.findall(r'(tile-name">[^<]*)', render(finalists()))
    )


def test_an_accuracy_is_one_short_phrase_without_nested_parentheses():
    winner = labelled().winner
    assert phrases.accuracy(winner) == "80.5 measured on 45 images [66.7, 89.4]"
    published = replace(winner.variant.candidate, accuracy=v.Accuracy(value=84.28, provenance="published"))
    variant = replace(winner.variant, candidate=published)
    entry = replace(winner, observation=replace(winner.observation, variant=variant))
    assert phrases.accuracy(entry) == "80.5 measured on 45 images [66.7, 89.4] (84.28 published)"


def test_the_confusion_matrix_scrolls_by_itself_and_says_so():
    html = render(labelled())
    page = Page(html)
    box = next(a for _, a in page.tags if "matrix" in a.get("class", "").split())
    assert (box["tabindex"], box["role"]) == ("0", "region")  # arrow keys scroll what has the focus
    assert "scroll it sideways" in page.text
    narrow = html[html.index("@media (max-width: 860px) {\n  .hint") :]
    assert ".matrix { overflow-x: auto;" in narrow[: narrow.index("\n}")]
    assert "scroll it sideways" not in Page(render(selections.selection())).text


# --- the figure ---------------------------------------------------------------------------------


def test_the_figure_places_points_by_their_figures():
    axis = figure.Axis(5, 100, 0, 100, log=True)
    assert axis(5) == pytest.approx(0)
    assert axis(100) == pytest.approx(100)
    assert axis(22.360679775) == pytest.approx(50)
    assert axis.ticks() == [5, 10, 20, 50, 100]
    assert figure.Axis(74, 86, 0, 1).ticks() == [74, 76, 78, 80, 82, 84, 86]


def test_names_in_the_figure_cover_neither_each_other_nor_a_mark():
    """The placing is greedy; whatever it places must be free, however crowded the front is."""
    points = [figure.Point(None, None, 0, 0, 200 + 9 * i, 200 + (i % 3)) for i in range(12)]
    marks = [figure.Box(p.x - 7, p.y - 7, p.x + 7, p.y + 7) for p in points]
    names: list[figure.Box] = []
    for point in points:
        found = figure._free_place(point, 90, [*marks, *names], names)
        if found:
            assert not any(found[0].overlap(other) for other in [*marks, *names])
            names.append(found[0])
    assert len(names) >= 6


def test_the_figure_shows_every_measured_variant_and_the_limits():
    selection = selections.selection()
    svg = str(figure.scatter(selection))
    assert svg.count("<title>") == len(phrases.measured(selection)) == 21 - 1
    assert svg.count('class="limit"') == 2
    assert svg.count('class="fits"') == 1
    assert svg.count('class="front"') == 1
    for name in ("efficientnet_lite2 fp32", "tf_efficientnetv2_s"):
        assert f">{name}</text>" in svg
    assert "log scale" in svg
    unlimited = str(figure.scatter(selections.selection(max_latency=None, min_accuracy=None)))
    assert 'class="limit"' not in unlimited
    assert 'class="fits"' not in unlimited


@pytest.mark.parametrize(
    ("interval", "caps", "arrows"),
    [((9.0, 11.0), 2, 0), ((9.0, 900.0), 1, 1), ((0.001, 11.0), 1, 1), ((0.001, 900.0), 0, 2)],
)
def test_a_bar_that_goes_on_past_the_axis_ends_in_an_arrow_and_not_in_a_cap(interval, caps, arrows):
    """Reading the path itself: a cap is a vertical stroke, an arrow ends its stroke on the axis."""
    judged = v.JudgedLatency(percentile=95.0, value=10.0, interval=interval)
    figures = replace(selections.figures(10.0), judged=judged)
    entry = selections.selection().ledger[0]
    axis = figure.Axis(5, 100, 50, 450, log=True)
    path = str(figure._interval(figure.Point(entry, figures, 10.0, 80.0, axis(10), 200.0), axis))
    assert path.count("v6") == caps
    tips = [
        (float(x) + dx)
        for x, dx in ((m[1], float(m[2])) for m in re.finditer(r"M([\d.]+) 196\.0l(-?4) 4l", path))
    ]
    assert len(tips) == arrows
    assert tips == [x for x, past in ((50.0, interval[0] < 5), (450.0, interval[1] > 100)) if past]


# --- terminal and notebook ----------------------------------------------------------------------


def test_the_summary_names_winner_rivals_and_what_is_next():
    text = summary(selections.selection(), artifact="winner/", report="winner.report.html")
    lines = text.splitlines()
    assert lines[0].startswith(
        "SELECTED   efficientnet_lite2.pkg_in1k@260 openvino fp32   p95 12.3 ms [11.9, 12.7]"
    )
    assert "top-1 77.5 published" in lines[0]
    assert lines[1].startswith("WOULD WIN  tf_efficientnetv2_s.in21k_ft_in1k@384 openvino bf16")
    assert "top-1 83.78 estimated (84.28 published)" in lines[1]
    assert any(line.startswith("LOST") and "→ needs --max-latency 70ms" in line for line in lines)
    assert any("2 not measured: cannot be fast enough" in line for line in lines)
    assert lines[-1] == "winner/ written, verified · winner.report.html · next: vitrail predict winner IMAGE"
    assert len(lines) < 15


def test_every_variant_is_either_named_or_counted():
    for make in (selections.selection, SELECTIONS["nothing fits"], SELECTIONS["no limits"]):
        selection = make()
        shown = phrases.rivals(selection)
        counts = sum(count for _, count in phrases.others(selection, shown))
        assert counts + len(shown) + (selection.winner is not None) == len(selection.ledger)


def test_when_nothing_fits_the_nearest_options_are_named():
    text = summary(SELECTIONS["nothing fits"]())
    assert text.startswith("NOTHING    fits:")
    assert text.count("\nNEAREST") == 3
    assert "→ needs --max-latency 7ms --min-accuracy 74.98" in text
    assert "SELECTED" not in text


@pytest.mark.parametrize("make", SELECTIONS.values(), ids=SELECTIONS)
def test_every_view_can_show_every_selection(make):
    selection = make()
    assert summary(selection).endswith("\n")
    table = selection_table_html(selection)
    assert table.startswith("<table>")
    Page(table)


def test_colour_only_in_a_terminal():
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    piped, seen = io.StringIO(), Terminal()
    selection = selections.selection()
    show(selection, piped)
    show(selection, seen)
    assert piped.getvalue() == summary(selection)
    assert re.sub(r"\x1b\[[0-9;]*m", "", seen.getvalue()) == summary(selection)


@pytest.mark.parametrize("width", [60, 80, 110, 140])
def test_progress_is_one_line_with_the_clock_at_its_end(width: int):
    selection = selections.selection()
    for entry in selection.ledger:
        for best in (None, selection.winner):
            line = progress_line(6, 41, entry, best, 129.2, selection.workload, width)
            assert len(line) <= width
            assert line.startswith("[ 6/41] ")
            assert line.endswith("  2:10 left")
    line = progress_line(6, 41, selection.ledger[0], selection.winner, 0, selection.workload, 140)
    assert "efficientnet_lite0 openvino bf16" in line
    assert "p95 5.72–6.08 ms" in line
    assert "best efficientnet_lite2" in line


@pytest.mark.parametrize(
    ("value", "text"),
    [(9.1, "9.1"), (41.94, "41.9"), (104.5, "104"), (1234.5, "1234"), (0.0, "0"), (0.02345, "0.0234")],
)
def test_numbers_have_three_digits_and_no_exponent(value: float, text: str):
    assert phrases.number(value) == text

"""The terminal, HTML and notebook views of a selection."""

from __future__ import annotations

import io
import re
import shlex
import sys
from dataclasses import replace
from html.parser import HTMLParser
from importlib import resources
from types import SimpleNamespace

import pytest
import selections
from markupsafe import Markup

from vitrail import vocabulary as v
from vitrail.document import from_document
from vitrail.report import again, phrases, typeset
from vitrail.report.again import requirements_toml
from vitrail.report.decision import decision, notes
from vitrail.report.html import render
from vitrail.report.notebook import selection_table_html, show_in_notebooks
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
        self.blocks: list[str] = []
        """What stands in each `<pre>`."""
        self.feed(html)
        self.close()
        assert self.open == [], "every element is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "pre":
            self.blocks.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.words.append(data)
        if "pre" in self.open:
            self.blocks[-1] += data

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
        workload=recorded.selection.workload,
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


def words(text) -> str:
    """What a reader sees: no tags, and spaces that may not break are spaces."""
    return text.striptags().replace("\u00a0", " ").replace("\u2011", "-")


def sentences(text: str) -> int:
    return len(re.findall(r"\.(?=\s+[A-Z]|\s*$)", text))


def test_the_decision_is_two_sentences_and_comes_first():
    selection = selections.selection()
    html = render(selection)
    order = ('class="decision"', 'class="notes"', 'class="tiles"', "<figure>", 'id="ledger"')
    assert [html.index(part) for part in order] == sorted(html.index(part) for part in order)
    said = words(decision(selection))
    assert sentences(said) == 2
    for part in (
        "Of 25 variants of 17 models, efficientnet_lite2.pkg_in1k@260 openvino fp32 has the highest top-1",
        "p95 ≤ 50 ms, top-1 ≥ 75 %, peak memory ≤ 1024 MiB and a permissive license.",
        "p95 12.3 ms [11.9, 12.7] from 360 calls",
        "77.5 published",
        "9 of 9 decided photos",
    ):
        assert part in said


def test_what_qualifies_the_decision_is_a_list():
    found = [words(note) for note in notes(selections.selection())]
    name = "tf_efficientnetv2_s.in21k_ft_in1k@384 openvino bf16"
    assert found[0].startswith(f"{name} would win if its weights were at hand: top-1 83.78 estimated")
    assert "random weights" in found[0]
    assert found[-1].startswith("Timed on 11 sample photos: weaker evidence")
    page = render(selections.selection())
    assert page[page.index('<ul class="notes">') : page.index('class="tiles"')].count("<li>") == len(found)
    lacking = replace(
        selections.selection(), lacks=("12 faster variants were pruned under the old question",)
    )
    assert "12 faster variants were pruned under the old question." in map(words, notes(lacking))


def test_when_nothing_meets_all_the_decision_names_the_nearest_and_what_would_admit_it():
    selection = selections.selection(max_latency=6, min_accuracy=80)
    said = words(decision(selection))
    assert sentences(said) == 2
    assert said.startswith("None of 25 variants of 17 models was shown to meet p95 ≤ 6 ms, top-1 ≥ 80 %,")
    assert "it needs --min-accuracy 74.98" in said
    assert sum(" is near: " in words(note) for note in notes(selection)) == len(selection.nearest) - 1


def test_a_provisional_best_and_a_tie_are_named_as_such():
    selection = selections.selection()
    tied = [replace(e, tie=e.status == "meets") for e in selection.ledger]
    count = sum(entry.tie for entry in tied)
    said = words(decision(replace(selection, ledger=tuple(tied))))
    assert f"has the highest top-1 accuracy (in a tie with {count} others) among" in said
    faster = replace(selection.requirements, objective="latency")
    said = words(decision(replace(selection, ledger=tuple(tied), requirements=faster)))
    assert (
        f"is the most accurate of {count + 1} that tie for the lowest latency among those that meet" in said
    )
    open_one = replace(selection.winner, status="undecided", reasons=("53 calls do not decide",))
    ledger = tuple(open_one if e is selection.winner else e for e in selection.ledger)
    provisional = replace(selection, ledger=ledger, selected=None, provisional=open_one.variant.name)
    said = words(decision(provisional))
    assert "The best so far, not proven, is efficientnet_lite2.pkg_in1k@260 openvino fp32: top-1 77.5" in said
    assert said.endswith("53 calls do not decide.")
    assert sentences(said) == 2
    page = Page(render(provisional, artifact="winner")).text
    assert "Nothing meets all" in page
    assert (
        "The best so far, efficientnet_lite2.pkg_in1k@260 openvino fp32, which is not proven: top-1" in page
    )
    assert "It holds the best so far, which is not proven to meet all." in page
    assert "not proven to meet all" not in Page(render(selection, artifact="winner")).text


def test_options_are_code_and_what_belongs_together_stays_on_one_line():
    said = str(
        typeset.options_as_code("p95 1 < 2 → needs --max-latency 59.5ms; raise --budget if so (--images DIR)")
    )
    assert said == (
        "p95 1 &lt; 2 → needs <code>--max-latency 59.5ms</code>; raise <code>--budget</code> if so "
        "(<code>--images DIR</code>)"
    )
    assert typeset.options_as_code("--min-accuracy 74.98%.") == "<code>--min-accuracy 74.98%</code>."
    assert typeset.tight(Markup("p95 ≤ 50 ms, top-1 ≥ 75 %, 259 MiB")) == (
        "p95\u00a0≤\u00a050\u00a0ms, top\u20111\u00a0≥\u00a075\u00a0%, 259\u00a0MiB"
    )
    assert typeset.sentence("timed on 11 photos") == "Timed on 11 photos."
    assert typeset.sentence("vit_tiny: its weights") == "vit_tiny: its weights."
    assert typeset.spelled("vit_tiny.a@224 <x>") == "vit_<wbr>tiny.a<wbr>@224 &lt;x&gt;"


def test_one_variant_alone_is_no_contest():
    selection = selections.selection()
    winner = selection.winner
    said = words(decision(replace(selection, ledger=(winner,), front=(winner.variant.name,))))
    assert said.startswith(
        "efficientnet_lite2.pkg_in1k@260 openvino fp32, the only variant considered, meets p95 ≤ 50 ms"
    )


def test_everything_reads_without_javascript():
    """The table is in the file itself; what only works with JavaScript is hidden until it runs."""
    selection = selections.selection()
    page = Page(render(selection))
    bodies = [a for t, a in page.tags if t == "tbody" and "data-is" in a]
    assert len(bodies) == len(selection.ledger)
    assert not any("hidden" in a or "display" in (a.get("style") or "") for a in bodies)
    assert all("hidden" in a for _, a in page.tags if a.get("class") == "controls")
    ledger = page.tags.index(("table", {"id": "ledger"}))
    heads = [a for t, a in page.tags[ledger:] if t == "th"][: 8 + len(selection.ledger)]
    assert [a.get("scope") for a in heads] == ["col"] * 8 + ["row"] * len(selection.ledger)
    for entry in selection.ledger:
        for reason in entry.reasons:
            assert reason in page.text
        for verdict in entry.verdicts:
            assert verdict.reason in page.text
    for provenance in ("published", "estimated", "random weights"):
        assert provenance in page.text


def test_what_the_report_says_asks_the_same_again(tmp_path):
    """Read from the page as a person copies it: limits, load, and where was searched and for how long."""
    requirements = v.Requirements(
        max_latency_ms=12.345678901, min_accuracy=80.5, max_memory_mib=1024, min_throughput=0.3,
        min_recall=(("defect", 95.123456789), ('a "b" = c', 50.0)),
        license=("mit", "apache-2.0"), objective="latency",
    )  # fmt: skip
    workload = v.Workload(
        batch_size=4, threads=2, percentile=99.5, latency_scope="model", image_size=256,
        images='/a "b"\\c\td',
        data="/lab<elled>",
    )  # fmt: skip
    settings = v.SearchSettings(
        models=("swin_*", "vit_*"), runtimes=("openvino",), precisions=("bf16", "fp32"), budget_s=90.5,
        implementations=("timm",), max_download_mib=2048.0, fresh=True, exhaustive=True,
    )  # fmt: skip
    for asked in (
        (requirements, workload, settings),
        (v.Requirements(), v.Workload(), v.SearchSettings(offline=True)),
    ):
        selection = replace(
            selections.selection(), requirements=asked[0], workload=asked[1], settings=asked[2]
        )
        page = Page(render(selection))
        block = page.blocks[-1]
        file = tmp_path / "requirements.toml"
        file.write_text(block, encoding="utf-8")
        assert resolve(toml=file) == asked
    assert requirements_toml(v.Requirements(), v.Workload()) in requirements_toml(
        v.Requirements(), v.Workload(), v.SearchSettings()
    )


def test_what_no_requirements_file_can_say_stands_in_the_command():
    selection = replace(selections.selection(), arguments=("--trained", "my run"))
    assert "vitrail select requirements.toml --trained 'my run'" in Page(render(selection)).text


def test_the_report_says_how_to_use_the_artifact_and_its_python_does(tmp_path, monkeypatch, capsys):
    import artifacts

    name = "my winner's"
    artifacts.make_artifact(tmp_path / "made").path.rename(tmp_path / name)
    (photo,) = artifacts.make_photos(tmp_path / "photos", count=1)
    photo.rename(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    shell, python, _ = Page(render(selections.selection(), artifact=name)).blocks
    exec(python, {})
    label, probability = capsys.readouterr().out.strip().rsplit(" ", 1)
    assert label in artifacts.LABELS
    assert 0 < float(probability) <= 1

    from vitrail.cli import main

    first, second = (shlex.split(line) for line in shell.splitlines())
    assert main(first[1:]) == 0
    assert capsys.readouterr().out
    assert second == ["vitrail", "verify", name, "--measure"]
    assert again.use("-x").shell.startswith("vitrail predict ./-x ")


def test_an_embedder_is_used_and_praised_for_what_it_does():
    selection = selections.selection()
    ledger = tuple(
        replace(entry, observation=replace(entry.observation, variant=replace(
            entry.variant, candidate=replace(entry.variant.candidate, task="embed")
        )))
        for entry in selection.ledger
    )  # fmt: skip
    page = render(replace(selection, ledger=ledger), artifact="winner")
    assert "vitrail embed photos/ --artifact winner --out photos.parquet" in page
    assert "vitrail predict" not in page
    assert "reference’s nearest neighbour on" in Page(page).text


def test_without_an_artifact_there_is_nothing_to_use():
    assert "Use it" not in Page(render(selections.selection())).text
    assert "Use it" not in Page(render(SELECTIONS["nothing fits"]())).text


# --- hardware and method ------------------------------------------------------------------------


def test_the_machine_is_a_sentence_and_its_engines_a_table():
    from vitrail import hardware
    from vitrail.runtimes import RUNTIMES

    known = hardware.facts(table=RUNTIMES)
    method = {"version": "2", "peaks_gflops": {"openvino": {"fp32": 303.7, "bf16": 1534.1}}}
    page = Page(render(replace(selections.selection(), hardware=known, method=method)))
    cores = hardware.one_line(known).split(" · ")[0]
    assert f"{known['cpu']['model']} (" in page.text
    assert f" with {cores}, " in page.text
    assert f"under {known['os']['system']} " in page.text
    version = known["engines"]["openvino"]["version"]
    assert re.search(rf"OpenVINO\s*{re.escape(version)}\s*304\s*1534", page.text)
    assert "Peak fp32, GFLOP/sPeak bf16, GFLOP/s" in page.text


@pytest.mark.parametrize(
    ("workload", "method", "said", "unsaid"),
    [
        ({}, {"photos": "sample"}, "sample photos of installed packages", "validation"),
        ({"data": "labelled"}, {"photos": "sample"}, "validation images of labelled", "sample photos"),
        ({"images": "mine", "data": "labelled"}, {}, "the photos in mine", "validation images"),
    ],
)
def test_the_method_names_the_photos_that_were_used(workload, method, said, unsaid):
    selection = selections.selection()
    asked = replace(selection, workload=v.Workload(**workload), method=method, notes=())
    text = Page(render(asked)).text
    method_text = text[text.index("Hardware and method") : text.index("Ask again")]
    assert f"Timing and parity used {said}" in method_text
    assert unsaid not in method_text


def test_a_hand_written_record_claims_no_photos():
    assert "Timing and parity used" not in Page(render(finalists())).text


# --- colours and print --------------------------------------------------------------------------


def themes() -> dict[str, dict[str, str]]:
    style = (resources.files("vitrail.report") / "page.css").read_text(encoding="utf-8")
    found = [dict(re.findall(r"--([a-z]+): (#[0-9a-f]{3,8});", block))
             for block in re.findall(r":root \{(.*?)\}", style, re.S)]  # fmt: skip
    light, dark, paper = found
    return {"light": light, "dark": light | dark, "print": light | paper}


def luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(c * 2 for c in colour[1:])
    channels = (int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4))
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


@pytest.mark.parametrize("theme", ["light", "dark", "print"])
def test_text_and_marks_stand_out_from_their_ground(theme):
    """WCAG 2.2: 4.5 to 1 for text (1.4.3), 3 to 1 for what carries meaning (1.4.11)."""
    colours = themes()[theme]

    def contrast(one: str, other: str) -> float:
        high, low = sorted((luminance(colours[one]), luminance(colours[other])), reverse=True)
        return (high + 0.05) / (low + 0.05)

    for ground in ("paper", "card", "wash", "selected", "code"):
        for text in ("ink", "soft"):
            assert contrast(text, ground) >= 4.5, (text, ground)
    for ground in ("card", "selected"):
        for text in ("accent", "good", "bad", "doubt"):
            assert contrast(text, ground) >= 4.5, (text, ground)
        for mark in ("ref", "none"):
            assert contrast(mark, ground) >= 3, (mark, ground)


def test_each_status_has_a_colour_of_its_own():
    style = (resources.files("vitrail.report") / "page.css").read_text(encoding="utf-8")
    own = dict(re.findall(r"\.([a-z-]+) \{ --status: var\(--([a-z]+)\); \}", style))
    names = [status.replace(" ", "-") for status in phrases.STATUSES]
    assert set(names) <= set(own)
    for colours in themes().values():
        assert len({colours[own[name]] for name in names}) == len(names)


def test_on_paper_nothing_is_cut_off_and_controls_are_gone():
    style = (resources.files("vitrail.report") / "page.css").read_text(encoding="utf-8")
    printed = "".join(part[: part.index("\n}")] for part in style.split("@media print {")[1:])
    for rule in (".controls", ".scroll, .matrix { overflow: visible; }", "white-space: pre-wrap"):
        assert rule in printed
    narrow = [line for line in style.splitlines() if line.startswith("@media") and "max-width" in line]
    assert narrow
    assert all("screen" in line for line in narrow), "a sheet of paper is narrow too, and holds the table"


# --- the user's own images ----------------------------------------------------------------------


def labelled() -> v.Selection:
    """A winner measured on 45 labelled images, its probe (another precision) a bit better."""
    confusion = ((18, 1, 1), (0, 14, 1), (2, 0, 8))
    labels = ("cat", "dog", "defect")
    recalls = tuple(
        v.Figure(metric="recall", label=label, images=sum(row), value=100 * row[i] / sum(row), share=True)
        for i, (label, row) in enumerate(zip(labels, confusion, strict=True))
    )
    seen = v.Quality(
        split="validation",
        data="ab",
        images=45,
        figures=(
            v.Figure(metric="top-1", value=80.5, interval=(66.7, 89.4), images=45, share=True),
            v.Figure(metric="balanced accuracy", value=87.8, images=45),
            *recalls,
            v.Figure(metric="calibration error", value=3.1, unit="points", images=45),
        ),
        tables=(v.Table(name="confusion", labels=labels, counts=confusion),),
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
    observation = replace(old.observation, variant=variant, accuracy=measured, quality=seen)
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
    assert "scroll" in box["class"].split()
    assert ".scroll { overflow-x: auto;" in html
    cards = next(a for _, a in page.tags if "cards" in a.get("class", "").split())
    assert "matrix" not in cards["class"]  # only the ledger becomes cards on a telephone
    assert "scroll it sideways" not in Page(render(selections.selection())).text


def test_an_embedders_accuracy_is_called_what_it_is():
    def embedding(entry: v.LedgerEntry) -> v.LedgerEntry:
        variant = entry.observation.variant
        candidate = replace(variant.candidate, task="embed")
        return replace(
            entry, observation=replace(entry.observation, variant=replace(variant, candidate=candidate))
        )

    plain = selections.selection()
    selection = replace(plain, ledger=tuple(map(embedding, plain.ledger)))
    assert "ImageNet top-1 77.5 published" in summary(selection)
    html = render(selection)
    for said in (
        "ImageNet top\u20111 ≥ 75",
        "the highest ImageNet top\u20111 accuracy",
        "(decode, preprocess, run)",
    ):
        assert said in html.replace("\u00a0", " ")
    assert "top-k" in render(plain)
    assert "top-k" not in html


# --- terminal and notebook ----------------------------------------------------------------------


def test_the_summary_names_winner_rivals_and_what_is_next():
    text = summary(selections.selection(), artifact="winner/", report="winner.report.html")
    lines = text.splitlines()
    assert lines[0].startswith(
        "SELECTED   efficientnet_lite2.pkg_in1k@260 openvino fp32   p95 12.3 ms [11.9, 12.7]"
    )
    assert "top-1 77.5 published" in lines[0]
    assert lines[2].split()[:2] == ["winner", "efficientnet_lite2.pkg_in1k@260"]
    assert lines[3].startswith("would win  tf_efficientnetv2_s.in21k_ft_in1k@384 openvino bf16")
    assert "83.78 estimated" in lines[3]
    assert any(line.startswith("rejected") and "→ needs --max-latency 70ms" in line for line in lines)
    assert sum(line.startswith("rest ") for line in lines) == 1
    columns = [line.index("[") for line in lines[2:8]]
    assert len(set(columns)) <= 4, "figures stand under each other"
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
    assert text.startswith("NOTHING    is selected: no variant was shown to meet p95 latency")
    assert text.count("\nrejected") == 3
    assert "→ needs --min-accuracy 74.98" in text
    assert "SELECTED" not in text


@pytest.mark.parametrize("make", SELECTIONS.values(), ids=SELECTIONS)
def test_every_view_can_show_every_selection(make):
    selection = make()
    assert summary(selection).endswith("\n")
    Page(selection_table_html(selection))


@pytest.mark.parametrize("make", SELECTIONS.values(), ids=SELECTIONS)
def test_the_notebook_holds_the_whole_ledger_folded_and_touches_nothing_around_it(make):
    """What styles are there stand on the elements themselves, and none of them sets a colour."""
    selection = make()
    page = Page(selection_table_html(selection))
    allowed = {"div", "p", "table", "thead", "tbody", "tr", "th", "td", "details", "summary", "ul", "li"}
    assert {tag for tag, _ in page.tags} <= allowed | {"b", "strong", "code", "wbr"}
    for tag, attributes in page.tags:
        assert set(attributes) <= {"style", "scope"}, tag
        assert not re.search(r"color|background|position|url", attributes.get("style") or "")
    assert not any("open" in attributes for tag, attributes in page.tags if tag == "details")
    for entry in selection.ledger:
        assert entry.variant.name in page.text
        assert phrases.reasons(entry) in page.text


def test_a_running_notebook_is_taught_the_table_and_nothing_else_is(monkeypatch):
    known = {}

    class Shell:
        class display_formatter:
            class HTML:
                for_type = staticmethod(known.__setitem__)

            formatters = {"text/html": HTML}  # noqa: RUF012

    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: None))
    show_in_notebooks()
    assert known == {}
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=Shell))
    show_in_notebooks()
    assert known == {v.Selection: selection_table_html}


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

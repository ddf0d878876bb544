"""What labelled images change in judging, pruning, the document and the report."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image
from selections import selection

from vitrail import judge
from vitrail import vocabulary as v
from vitrail.data import load as read_data
from vitrail.document import from_document, to_json_bytes
from vitrail.errors import InputError
from vitrail.replay import judge_recorded
from vitrail.report import html, terminal
from vitrail.selection import prune
from vitrail.tasks import accuracy


def classified(split="validation", right=(40, 27)):
    """Two classes of 50 and 30 images, of which so many are right."""
    labels = [0] * 50 + [1] * 30
    named = [0] * right[0] + [1] * (50 - right[0]) + [1] * right[1] + [0] * (30 - right[1])
    return accuracy.classify(np.eye(2)[named] * 3, labels, ("cat", "dog <b>"), split=split, data="d1")


@pytest.fixture
def own():
    """A selection whose every measured variant was classified, and whose winner was tested."""
    found = selection()
    ledger = tuple(
        dataclasses.replace(e, observation=dataclasses.replace(e.observation, quality=classified()))
        for e in found.ledger
    )
    return dataclasses.replace(
        found, ledger=ledger, test=classified("test", (45, 21)), expected_test=(72.5, 93.75)
    )


def recall_verdicts(seen, asked):
    requirements = v.Requirements(min_recall=tuple(asked.items()), license=("any",))
    verdicts = judge.verdicts(seen, requirements, v.Workload())
    return [each for each in verdicts if each.requirement == "min_recall"]


def test_probabilities_far_from_what_they_say_are_noted(own):
    from vitrail.selection.labelled import calibrated

    def noted(error, images):
        first = own.winner
        known = first.observation.quality.figures
        top_1 = dataclasses.replace(known[0], value=95.0)
        calibration = dataclasses.replace(known[-1], value=error, images=images)
        seen = dataclasses.replace(first.observation.quality, figures=(top_1, calibration))
        entry = dataclasses.replace(first, observation=dataclasses.replace(first.observation, quality=seen))
        found = dataclasses.replace(own, ledger=(entry,), notes=())
        return calibrated(found).notes

    (note,) = noted(25.8, 48)
    assert "25.8 points off on validation images" in note
    assert noted(9.0, 5000) == ()
    assert noted(15.0, 48) == (), "so few images are that far off by chance"


def test_few_images_and_all_of_them_are_said_so(tmp_path):
    from vitrail.selection.labelled import described, photos_of

    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        for i in range(20):
            Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(
                tmp_path / label / f"{i}.png"
            )
    dataset = read_data(tmp_path)
    assert described(dataset).endswith(" · one folder per class")
    validation = len(dataset.of("validation"))
    photos = photos_of(v.Workload(), dataset)
    assert photos.evidence == f"timing and parity on its {validation} validation images"
    other = dataclasses.replace(dataset, found="split/class in b: Training is train")
    assert other.laid_out == "a folder per split with one folder per class in b: Training is train"
    assert dataclasses.replace(dataset, found="classes.csv").laid_out == "classes.csv"


def test_a_recall_is_judged_class_by_class(own):
    seen = own.ledger[0].observation
    cat, dog = recall_verdicts(seen, {"cat": 85, "dog <b>": 85})
    assert (cat.answer, dog.answer) == ("fail", "pass")
    assert (cat.observed, cat.margin) == pytest.approx((80, -5))
    assert cat.admit.startswith("--min-recall cat=80")
    assert dog.observed == pytest.approx(90)
    (unknown,) = recall_verdicts(seen, {"cow": 1})
    (unseen,) = recall_verdicts(dataclasses.replace(seen, quality=None), {"cat": 1})
    assert unknown.answer == unseen.answer == "not assessed"


def test_the_document_holds_all_of_it(own, tmp_path):
    recorded = from_document(to_json_bytes(own), "own.json")
    assert recorded.selection.test == own.test
    assert recorded.selection.expected_test == own.expected_test
    assert recorded.observations[0].quality == own.ledger[0].observation.quality
    file = tmp_path / "own.json"
    file.write_bytes(to_json_bytes(own))
    asked = v.Requirements(min_recall=(("cat", 99.0),), license=("any",))
    again = judge_recorded(file, asked, v.Workload(), v.SearchSettings())
    assert again.winner is None
    with pytest.raises(InputError, match="cat or dog"):
        judge_recorded(
            file, dataclasses.replace(asked, min_recall=(("cow", 9.0),)), v.Workload(), v.SearchSettings()
        )


def test_the_recorded_data_may_be_spelled_another_way(own, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("labelled", "others"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to("labelled")
    recorded = dataclasses.replace(own, workload=dataclasses.replace(own.workload, data="labelled"))
    (tmp_path / "own.json").write_bytes(to_json_bytes(recorded))

    def again(data: str) -> v.Selection:
        asked = (v.Requirements(license=("any",)), v.Workload(data=data), v.SearchSettings())
        return judge_recorded("own.json", *asked, said=("data",))

    for same in ("labelled", "labelled/", "./labelled", str(tmp_path / "labelled"), "link/"):
        assert again(same).winner is not None
    for other in ("others", "others/", "labelled/others"):
        with pytest.raises(InputError, match="was recorded with data labelled"):
            again(other)


def test_a_document_of_version_1_is_still_read(own):
    document = json.loads(to_json_bytes(selection()))
    document["schema_version"] = 1
    for place, key in (("requirements", "min_recall"), ("workload", "data")):
        del document[place][key]
    for key in ("test", "expected_test"):
        del document[key]
    for row in document["variants"]:
        del row["quality"]
    recorded = from_document(document, "old.json")
    assert recorded.selection.test is None
    assert recorded.selection.requirements.min_recall == ()


def test_the_terminal_and_the_page_say_what_the_test_said(own):
    text = terminal.summary(own)
    assert "TEST       82.5 % of 80 untouched images" in text
    assert "expected 72.5 to 93.8" in text
    assert "weakest recall dog <b> 70.0 %" in text
    page = html.render(own)
    assert "On your images" in page
    assert "dog &lt;b&gt;" in page
    assert "dog <b>" not in page
    assert page.count('class="num named right"') == 2
    assert "On your images" not in html.render(selection())


def test_what_a_probe_reached_may_be_a_little_higher_in_another_precision():
    found = selection().ledger[0].variant
    for provenance, bf16 in (("measured", 90.5), ("published", 89.5)):
        figure = v.Accuracy(value=90.0, provenance=provenance)
        candidate = dataclasses.replace(found.candidate, accuracy=figure)
        variant = dataclasses.replace(found, candidate=candidate, precision="bf16")
        assert prune.accuracy_ceiling(variant, 100) == bf16

"""The road end to end, on real weights and real photos: killed, resumed, shipped, predicted, verified.

About two minutes: the README's first selection and what it says of its winner. Everything here runs as a user
would run it, in processes.
"""

from __future__ import annotations

import html
import json
import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import desk
import jsonschema
import psutil
import pytest
from desk import PHOTOS, vitrail

pytestmark = [pytest.mark.alone, pytest.mark.timeout(1800)]

GOLDEN = Path(__file__).parent / "golden" / "selection-5.json"
WINNER = "tf_efficientnet_lite2.pypi"
SCHEMA = json.loads((Path(__file__).parents[1] / "docs" / "selection.schema.json").read_text())


def start(*arguments, cache, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "vitrail", *map(str, arguments)],
        env={**os.environ, "VITRAIL_CACHE": str(cache)},
        # A shell that started the tests in the background has them ignore Ctrl-C, and so would this one.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def wait_for(condition, seconds):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False


def measurements(cache):
    files = sorted((cache / "measurements").glob("*.json"))
    return {file.name: json.loads(file.read_text())["record"] for file in files}


def speed_ms(record):
    """How long the reference workload around the blocks took."""
    return statistics.median(
        b[when] for b in record["blocks"] for when in ("speed_before_ms", "speed_after_ms")
    )


@pytest.fixture(scope="module")
def road(tmp_path_factory):
    """The README's first selection, killed after its first measurement and started again."""
    folder = tmp_path_factory.mktemp("road") / "desk"
    desk.lay_out(folder)
    cache, document = folder.parent / "cache", folder.parent / "selection.json"
    arguments = [*desk.patiently(desk.commands(timed=True)[0]), "--json", document]
    process = start(*arguments, cache=cache, cwd=folder)
    try:
        assert wait_for(lambda: measurements(cache), 600), process.stderr.read()
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    before = measurements(cache)
    exports = {path: path.stat().st_mtime_ns for path in (cache / "exports").glob("*/export.json")}
    assert exports
    assert not (folder / "winner").exists()
    again = vitrail(*arguments, cache=cache, cwd=folder)
    return {
        "cache": cache, "out": folder / "winner", "before": before, "again": again, "folder": folder,
        "exports": exports, "document": document,
    }  # fmt: skip


def test_a_killed_selection_goes_on_without_repeating_what_was_finished(road):
    assert road["again"].returncode == 0, road["again"].stderr
    assert {path: path.stat().st_mtime_ns for path in road["exports"]} == road["exports"]
    after = measurements(road["cache"])
    for name, record in road["before"].items():
        blocks = record["blocks"]
        kept = after[name]["blocks"][: len(blocks)] == blocks
        # On a machine that has become slower or faster since, figures are taken anew.
        assert kept or abs(speed_ms(after[name]) / speed_ms(record) - 1) > 0.05


def test_the_terminal_says_what_won_and_why_the_others_lost(road):
    lines = road["again"].stdout.splitlines()
    assert lines[0].startswith(f"SELECTED   {WINNER}@260 ")
    assert any(line.startswith(("winner", "rest")) for line in lines)
    assert "written, verified" in lines[-1]
    assert not any(line.startswith("[") for line in lines), "progress is for terminals"


def test_the_document_and_the_report(road):
    document = json.loads(road["document"].read_text())
    jsonschema.validate(document, SCHEMA)
    assert document["selected"].startswith(WINNER)
    statuses = {v["precision"]: v["status"] for v in document["variants"] if v["runtime"] == "openvino"}
    assert set(statuses) == {"fp32", "bf16"}
    page = road["out"].with_name("winner.report.html").read_text()
    assert WINNER in page
    assert "https://" not in page.replace("https://creativecommons", "")


def test_what_the_report_says_to_ask_again_asks_the_same_and_selects_the_same(road, tmp_path):
    page = html.unescape(road["out"].with_name("winner.report.html").read_text())
    command = re.search(r"this asks the same: <code>(.*?)</code>", page)[1]
    (tmp_path / "requirements.toml").write_text(re.findall(r"<pre[^>]*>(.*?)</pre>", page, re.S)[-1])
    (tmp_path / "photos").symlink_to(road["folder"] / "photos")
    program, *arguments = shlex.split(command)
    assert program == "vitrail"
    done = vitrail(*arguments, "--json", "again.json", cache=road["cache"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    both = [json.loads(file.read_text()) for file in (road["document"], tmp_path / "again.json")]
    first, second = both
    for document in both:  # a file's path is relative to the file, and loses its last slash
        document["workload"]["images"] = Path(document["workload"]["images"]).name
    for key in ("requirements", "workload", "settings", "arguments"):
        assert first[key] == second[key]
    timed = [
        {v["name"]: v["latency_ms"] for v in d["variants"] if not v["reference"]} for d in (first, second)
    ]
    assert timed[0].keys() == timed[1].keys()
    assert second["selected"].startswith(WINNER)
    # Where the machine's speed has changed since, all is timed anew, and of engines that tie another may win.
    assert first["selected"] == second["selected"] or timed[0] != timed[1]


def test_predict_calls_the_palace_a_palace_and_the_cat_a_cat_without_torch(road):
    photos = (PHOTOS / "china.jpg", road["folder"] / "cat.jpg", road["folder"] / "coffee.jpg")
    done = vitrail("predict", road["out"], *photos, "--json", "-", cache=road["cache"], without_torch=True)
    assert done.returncode == 0, done.stderr
    tops = [image["top"][0]["label"] for image in json.loads(done.stdout)["predictions"]]
    assert tops == ["palace", "Egyptian cat", "espresso"]


def test_one_bad_image_among_many(road, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_text("no picture")
    done = vitrail("predict", road["out"], PHOTOS / "china.jpg", bad, cache=road["cache"])
    assert done.returncode == 1
    assert "palace" in done.stdout
    assert "bad.jpg" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [(), ("--measure",)], ids=["outputs", "measured"])
def test_verify_holds_without_torch(road, arguments):
    done = vitrail("verify", road["out"], *arguments, cache=road["cache"], without_torch=True)
    if arguments and done.returncode == 3:
        # A shared machine may be slower now than when the claim was made, or too busy to tell: that is said.
        assert "claimed" in done.stderr or "was not shown to hold its claims" in done.stderr
        return
    assert done.returncode == 0, done.stdout + done.stderr
    assert "holds its claims" in done.stdout


def test_verify_against_requirements_it_cannot_hold(road, tmp_path):
    asked = tmp_path / "asked.toml"
    asked.write_text('max-latency = "1us"\n')
    done = vitrail("verify", road["out"], "--against", asked, cache=road["cache"])
    assert done.returncode == 3
    assert "max_latency" in done.stderr
    assert "Traceback" not in done.stderr


def test_recorded_figures_are_judged_again_without_torch(road):
    recorded = road["document"]
    done = vitrail(
        "select", "--from", recorded, "--max-latency", "10s", "--json", "-",
        cache=road["cache"], without_torch=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["selected"].startswith(WINNER)
    done = vitrail("select", "--from", recorded, "--max-latency", "1us", cache=road["cache"])
    assert done.returncode == 3
    assert "NOTHING" in done.stdout


def test_the_article_s_four_finalists(tmp_path):
    rows = [("ViT-Base", 81.8, 35), ("Swin-Base", 83.5, 28), ("ConvNeXt-Base", 83.8, 25), ("EfficientNetV2-M", 85.1, 15)]  # fmt: skip # noqa: E501
    recorded = tmp_path / "article.json"
    recorded.write_text(json.dumps([{"model": m, "accuracy": a, "latency_ms": ms} for m, a, ms in rows]))
    done = vitrail(
        "select", "--from", recorded, "--max-latency", "50ms", "--min-accuracy", "85",
        cache=tmp_path, without_torch=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("SELECTED   EfficientNetV2-M")
    for name, short in (("ViT-Base", "3.2"), ("Swin-Base", "1.5"), ("ConvNeXt-Base", "1.2")):
        assert any(name in line and f"{short} points short" in line for line in done.stdout.splitlines())


def test_ctrl_c_ends_every_child_and_keeps_what_was_measured(tmp_path):
    process = start("select", "--models", "tf_efficientnet_lite0.pypi", "--offline", cache=tmp_path)
    parent = psutil.Process(process.pid)
    assert wait_for(lambda: parent.children(), 30)
    time.sleep(1.0)
    # Between two jobs there is a moment without any child.
    children: list[psutil.Process] = []
    assert wait_for(lambda: children.extend(parent.children(recursive=True)) or children, 30)
    process.send_signal(signal.SIGINT)
    begin = time.monotonic()
    _, said = process.communicate(timeout=20)
    _, alive = psutil.wait_procs(children, timeout=2)
    assert not alive
    assert time.monotonic() - begin < 4
    assert process.returncode == 130
    assert "run the same command to go on" in said
    assert "Traceback" not in said
    assert not list(tmp_path.rglob(".vitrail-*"))


@pytest.mark.parametrize(
    "command",
    [["doctor"], ["models", "vit_*"], ["profiles"], ["compare", GOLDEN, GOLDEN]],
    ids=lambda c: c[0],
)
def test_light_commands_never_import_torch(command, tmp_path):
    assert vitrail(*command, cache=tmp_path, without_torch=True).returncode == 0


# --- the README -----------------------------------------------------------------------------------


@pytest.mark.timeout(1800)
def test_the_readme_s_other_commands_about_this_winner_run_as_they_stand(road):
    """Its first one is how the road began; the others: test_readme.py."""
    for arguments in desk.commands(timed=True)[1:]:
        done = vitrail(*desk.patiently(arguments), cache=road["cache"], cwd=road["folder"])
        assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
    assert (road["folder"] / "answers.csv").is_file()


@pytest.mark.timeout(1800)
def test_the_readme_s_python_about_this_winner_runs_as_it_stands(road):
    snippets = [text for text in desk.blocks("python") if "import torch" not in text]
    assert len(snippets) == 2
    for snippet in snippets:
        patient = snippet.replace("max_latency_ms=100", "max_latency_ms=600_000")
        patient = patient.replace("budget_s=180", "budget_s=600, passes=()")
        done = desk.python("-c", patient, cache=road["cache"], cwd=road["folder"])
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip()

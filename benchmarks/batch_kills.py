"""Does a batch job that is killed at any moment end as one that never was?

    python benchmarks/batch_kills.py ARTIFACT [--kills 100] [--images 400] [--seed 0]

One job runs undisturbed. Then the same job is started again and again in a fresh process that gets SIGKILL
after a random time, until it ends by itself; its results, errors, markers and list must be the undisturbed
job's, byte by byte, or it counts as wrong. This repeats until enough kills have struck. A few of the images
are damaged, so that there are error rows too. The last line of standard output is one JSON document; the exit
code is 1 if any job was wrong.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

COMPARED = ("list", "results", "errors", "done")


def make_images(folder: Path, count: int) -> None:
    """Small images, every twentieth of them cut off."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for k in range(count):
        path = folder / f"{k % 7}" / f"{k:05}.png"
        path.parent.mkdir(exist_ok=True)
        small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        small.resize((160, 120), Image.Resampling.BICUBIC).save(path)
        if k % 20 == 7:
            path.write_bytes(path.read_bytes()[:200])


def started(artifact: Path, images: Path, out: Path) -> subprocess.Popen:
    """The command in a process of its own."""
    command = ["batch", str(artifact), str(images), "--out", str(out), "--shard-size", "16", "--threads", "1"]
    return subprocess.Popen(
        [sys.executable, "-m", "vitrail", *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def tree(out: Path) -> dict[str, bytes]:
    """What is compared of a finished job."""
    files = [path for kind in COMPARED for path in (out / kind).rglob("*")]
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


def phase(out: Path, shards: int) -> str:
    """Where a kill struck."""
    if not (out / "job.json").exists():
        return "before the job began"
    done = len(list((out / "done").glob("*.json")))
    return "while committing" if any(out.rglob(".vitrail-*")) else f"with {10 * (10 * done // shards)}% done"


def one_job(
    artifact: Path,
    images: Path,
    out: Path,
    seconds: float,
    rng: random.Random,
    shards: int,
    phases: Counter[str],
) -> None:
    """Kill and start until the job ends by itself. Raises RuntimeError if a start fails otherwise."""
    while True:
        process = started(artifact, images, out)
        try:
            _, said = process.communicate(timeout=rng.uniform(0, seconds))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            phases[phase(out, shards)] += 1
            continue
        if process.returncode != 1:  # 1: done, some inputs failed
            raise RuntimeError(f"exit code {process.returncode}: {said.decode(errors='replace')}")
        return


def campaign(artifact: Path, *, kills: int, count: int, seed: int) -> dict:
    """Kill jobs until `kills` have struck; how many jobs ended wrong."""
    rng, phases = random.Random(seed), Counter[str]()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make_images(folder / "images", count)
        begin = time.monotonic()
        whole = started(artifact, folder / "images", folder / "whole")
        _, said = whole.communicate()
        if whole.returncode != 1:
            raise RuntimeError(said.decode(errors="replace"))
        seconds = time.monotonic() - begin
        expected = tree(folder / "whole")
        shards = len(list((folder / "whole" / "done").iterdir()))
        jobs = wrong = 0
        while phases.total() < kills:
            out = folder / f"job{jobs}"
            one_job(artifact, folder / "images", out, 1.1 * seconds, rng, shards, phases)
            jobs += 1
            wrong += tree(out) != expected
            shutil.rmtree(out)
    return {
        "kills": phases.total(),
        "struck": dict(sorted(phases.items())),
        "jobs": jobs,
        "wrong": wrong,
        "images": count,
        "shards": shards,
        "undisturbed_s": round(seconds, 2),
        "seed": seed,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    found = campaign(args.artifact, kills=args.kills, count=args.images, seed=args.seed)
    print(json.dumps(found))
    return 1 if found["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())

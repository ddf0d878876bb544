"""Textile inspection: which model tells faultless cloth from local and global faults, fast enough?

    pip install conformal-clip-data
    python examples/textile/run.py --out textile

The images (2,000 JPEGs of 250 pixels in three classes) come with that package. Three steps, each a few
commands of `vitrail` that are printed before they run:

probe    `select --data`: linear heads on frozen features
train    `train`: EfficientNet-Lite0 from its ImageNet weights, and a small Swin of ours from random ones
ship     `select --trained` under 10 ms and 95 %, then `verify`
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shlex
import subprocess
import sys
from pathlib import Path

PACKAGE = "conformal_clip_data"
HERE = Path(__file__).parent
STEPS = ("probe", "train", "ship")


def images() -> str:
    """The folder with one folder per class inside the installed package."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        sys.exit("The images are not installed: run `pip install conformal-clip-data`.")
    package = Path(next(iter(spec.submodule_search_locations)))
    return str(package / "data" / "textile_images" / "simulated")


def command(*parts: str) -> None:
    """Run one command of vitrail, shown as a user would type it; end here if it fails."""
    shown = ["…" if part == images() else part for part in parts]
    print("$ vitrail", shlex.join(shown), flush=True)
    code = subprocess.run([sys.executable, "-m", "vitrail", *parts]).returncode
    if code:
        sys.exit(code)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="textile", help="folder for runs and artifacts")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--budget", default="10m", help="of each selection")
    parser.add_argument("--epochs", help="fewer, to try it out")
    args = parser.parse_args()
    out, data, few = Path(args.out), ("--data", images()), ("--epochs", args.epochs) if args.epochs else ()
    ending = ("--budget", args.budget, "--offline", "--overwrite")
    if "probe" in args.steps:
        command("select", *data, "--max-latency", "100ms", *ending, "--out", str(out / "probe"))
    runs = (str(out / "lite0"), str(out / "swin"))
    if "train" in args.steps:
        turned = ("--set", "augmentation.flip_vertical=0.5")
        command(
            "train", *data, "--model", "tf_efficientnet_lite0", *turned, *few, "--offline", "--out", runs[0]
        )
        small = ("--model", "swin_nano_patch2_window7_28", "--image-size", "84")
        # One thread each: a model this small trains faster so than on two threads.
        shared = ("--processes", str(min(2, len(os.sched_getaffinity(0)))))
        recipe = ("--recipe", str(HERE / "swin.toml"))
        command("train", *data, *small, *recipe, *shared, *few, "--out", runs[1])
    if "ship" in args.steps:
        trained = [part for run in runs for part in ("--trained", run)]
        limits = ("--max-latency", "10ms", "--min-accuracy", "95")
        command("select", *trained, *data, *limits, *ending, "--out", str(out / "trained"))
        command("verify", str(out / "trained"), "--measure")
    return 0


if __name__ == "__main__":
    sys.exit(main())

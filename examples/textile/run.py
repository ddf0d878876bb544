"""Textile inspection: which model tells faultless cloth from local and global faults, fast enough?

    pip install conformal-clip-data
    python examples/textile/run.py --out textile

The images (2,000 JPEGs of 250 pixels in three classes) come with that package. This is `vitrail select` with
`--data` on them and nothing else: what it runs is printed first.
"""

from __future__ import annotations

import argparse
import importlib.util
import shlex
import sys
from pathlib import Path

from vitrail.cli import main as vitrail

PACKAGE = "conformal_clip_data"


def images() -> Path:
    """The folder with one folder per class inside the installed package."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        sys.exit("The images are not installed: run `pip install conformal-clip-data`.")
    return Path(next(iter(spec.submodule_search_locations))) / "data" / "textile_images" / "simulated"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="textile", help="folder of the artifact")
    parser.add_argument("--budget", default="10m")
    args = parser.parse_args()
    command = ["select", "--data", str(images()), "--max-latency", "100ms", "--budget", args.budget]
    command += ["--offline", "--out", args.out, "--overwrite"]
    print("$ vitrail", shlex.join(["…" if part == str(images()) else part for part in command]), flush=True)
    return vitrail(command)


if __name__ == "__main__":
    sys.exit(main())

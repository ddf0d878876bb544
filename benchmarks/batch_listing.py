"""What does listing a folder take, in memory and time, as it grows?

    python benchmarks/batch_listing.py [--names 20000 200000 1000000]

Folders of that many empty files named like images, listed, sorted and cut into shards as `vitrail batch`
does, and then once more, when all is known. Each in a process of its own, whose peak of resident memory
is read from the kernel. The last line of standard output is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FILES_IN_A_FOLDER = 1_000_000
"""All in one: a folder's names are what a listing could be tempted to hold."""


def peak_mib() -> float:
    """VmHWM of this process."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def listed(folder: str, out: str) -> dict:
    """In a process of its own."""
    from vitrail.batch import plan
    from vitrail.batch.sources import open_source

    (Path(out) / "list").mkdir(parents=True, exist_ok=True)
    before, begin = peak_mib(), time.perf_counter()
    found = plan.extend(Path(out), open_source(folder), 1024)
    return {
        "new": found.new,
        "known": found.known,
        "seconds": round(time.perf_counter() - begin, 1),
        "peak MiB": round(peak_mib(), 1),
        "of it before listing MiB": round(before, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--names", type=int, nargs="+", default=[20_000, 200_000, 1_000_000])
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(listed(*args.one)))
        return
    rows, made = [], 0
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "images"
        folder.mkdir()
        for count in sorted(args.names):
            for number in range(made, count):
                (folder / f"{number * 7919 % FILES_IN_A_FOLDER:08}.jpg").touch()
            made = count
            for _ in range(2):
                command = [sys.executable, __file__, "--one", str(folder), f"{place}/out{count}"]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                rows.append({"names": count, **json.loads(done.stdout)})
                print(rows[-1])
    print(json.dumps(rows))


if __name__ == "__main__":
    main()

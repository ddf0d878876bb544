"""Does the test accuracy lie where the report says it will?

    python benchmarks/own_classes.py [--data digits|fashion] [--splits 20] [--images 1797] [--save [HARDWARE]]

Splits a labelled set anew, selects on each split as a user does (probe, search, finals, the winner's own
export on the untouched test images), and counts how often the test accuracy lies in the 95 % prediction
interval that the validation images gave. Target: at least 17 of 20. Nothing is timed, so the machine need not
be idle. The last line of standard output is one JSON document.

digits: scikit-learn's, 8 x 8 pixels enlarged to 64.
fashion: Debian's dataset-fashion-mnist, 28 x 28 enlarged to 64.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import gzip
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from vitrail.selection.select import select
from vitrail.vocabulary import Requirements, SearchSettings, Workload

RESULTS = Path(__file__).parent / "results"
FASHION = Path("/usr/share/datasets/fashion-mnist")
FRACTIONS = (0.6, 0.2, 0.2)
SIDE = 64
TARGET = 0.85
"""17 of 20."""


def digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    found = load_digits()
    return (found.images / 16 * 255).astype(np.uint8), found.target


def fashion() -> tuple[np.ndarray, np.ndarray]:
    if not FASHION.is_dir():
        sys.exit("Fashion-MNIST is not here: apt-get install dataset-fashion-mnist")

    def read(name: str) -> bytes:
        file = next(FASHION.glob(f"{name}*"))
        return gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()

    images = np.frombuffer(read("t10k-images-idx3-ubyte"), np.uint8, offset=16).reshape(-1, 28, 28)
    return images, np.frombuffer(read("t10k-labels-idx1-ubyte"), np.uint8, offset=8)


def write_images(images: np.ndarray, folder: Path) -> list[str]:
    """PNG files; the names, relative to the folder."""
    names = []
    for i, pixels in enumerate(images):
        names.append(f"{i:05d}.png")
        Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(folder / names[-1])
    return names


def write_split(names: list[str], labels: np.ndarray, seed: int, target: Path) -> None:
    """A manifest whose splits are stratified and drawn by the seed."""
    rng = np.random.default_rng(seed)
    with open(target, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "label", "split"))
        for label in np.unique(labels):
            members = rng.permutation(np.flatnonzero(labels == label))
            first, second = (round(len(members) * share) for share in np.cumsum(FRACTIONS[:2]))
            for place, member in enumerate(members):
                split = "train" if place < first else "validation" if place < second else "test"
                writer.writerow((names[member], f"class {label}", split))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=("digits", "fashion"), default="digits")
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--images", type=int, default=2000, help="at most so many images")
    parser.add_argument("--model", default="tf_efficientnet_lite0*")
    parser.add_argument("--save", nargs="?", const="this-machine", metavar="HARDWARE")
    args = parser.parse_args()
    images, labels = {"digits": digits, "fashion": fashion}[args.data]()
    some = np.random.default_rng(0).permutation(len(images))[: args.images]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        names = write_images(images[some], Path(folder))
        for seed in range(args.splits):
            manifest = Path(folder) / f"split-{seed}.csv"
            write_split(names, labels[some], seed, manifest)
            selection = select(
                Requirements(objective="accuracy"),
                Workload(data=str(manifest)),
                SearchSettings(
                    models=(args.model,), runtimes=("openvino",), precisions=("fp32",), offline=True
                ),
            )
            assert selection.winner is not None, selection.notes
            test, expected = selection.test, selection.expected_test
            assert test is not None
            assert expected is not None
            seen = selection.winner.observation.quality
            assert seen is not None
            low, high = expected
            row = {
                "seed": seed,
                "validation": round(seen.main.value, 2),
                "test": round(test.main.value, 2),
                "expected": [round(low, 2), round(high, 2)],
                "held": low <= test.main.value <= high,
                "images": test.images,
            }
            rows.append(row)
            print(json.dumps(row), file=sys.stderr, flush=True)
    held = sum(row["held"] for row in rows)
    gap = float(np.mean([row["validation"] - row["test"] for row in rows]))
    print(f"{args.data}: {held} of {len(rows)} test accuracies lie in their interval; validation {gap:+.2f}")
    document = {
        "benchmark": "own_classes",
        "data": args.data,
        "date": datetime.date.today().isoformat(),
        "held": held,
        "splits": len(rows),
        "reached": held >= TARGET * len(rows),
        "validation_less_test": gap,
        "rows": rows,
    }
    text = json.dumps(document)
    if args.save:
        RESULTS.mkdir(exist_ok=True)
        name = f"own-classes-{args.data}-{args.save}-{document['date']}.json".replace(" ", "-")
        (RESULTS / name).write_text(text + "\n")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())

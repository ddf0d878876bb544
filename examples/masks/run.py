"""UPerNet on a small Swin learns emoji on photos in three drawing styles, and is judged on a fourth.

    python examples/masks/run.py --set emoji-on-photos --out masks-run

`--set` is what build.py wrote. README.md says what the figures are; the last line of output is one JSON
document.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import vitrail
from vitrail.images.labels import read_labels
from vitrail.masks.folder import read_folder
from vitrail.masks.iou import ClassIous

MODEL, SIDE = "upernet_swin_nano", 128
PRECISIONS = ("bf16", "int8")
AT_ONCE = 32
"""Photos that are answered together."""


def main(arguments: Sequence[str] | None = None) -> int:
    args = _arguments(arguments)
    data, run = Path(args.set), Path(args.out) / "run"
    labels = data / "labels.txt"
    where = ["--data", str(data / "seen"), "--labels", str(labels)]
    code = _vitrail(
        "train", "--task", "segment", *where, "--model", MODEL, "--image-size", str(SIDE), "--out", str(run),
        *(["--epochs", str(args.epochs)] if args.epochs else []),
        *(["--threads", str(args.threads)] if args.threads else []),
    )  # fmt: skip
    found = {}
    for precision in PRECISIONS if not code else ():
        artifact = Path(args.out) / precision
        # On what was learned from: nothing but the figures comes from the unseen style.
        calibrated = ["--calibration", str(data / "seen" / "images")] if precision == "int8" else []
        code = code or _vitrail(
            "select", "--task", "segment", "--trained", str(run), "--data", str(data / "unseen"),
            "--precisions", precision, *calibrated,
            "--min-iou", args.min_iou, "--max-latency", args.max_latency,
            "--out", str(artifact), "--overwrite",
        )  # fmt: skip
        if not code:
            found[precision] = judged(artifact, data / "unseen", read_labels(labels))
            print(f"{precision}: {found[precision]}", flush=True)
    print(json.dumps({"model": MODEL, **found}))
    return code


def judged(artifact: Path, folder: Path, classes: Sequence[str]) -> dict[str, object]:
    """IoU in % of all photos in the folder: the mean with and without the background, and of each class."""
    photos, counted = read_folder(folder).photos, ClassIous(classes)
    with vitrail.load(artifact) as model:
        for begin in range(0, len(photos), AT_ONCE):
            some = photos[begin : begin + AT_ONCE]
            for photo, answer in zip(some, model.segment([each.path for each in some]), strict=True):
                counted.add(photo.labels().astype(np.int64), answer.labels().astype(np.int64))
    result = counted.result()
    of_class = {each.name: round(100 * each.iou, 2) for each in result.classes}
    objects = [iou for name, iou in of_class.items() if name != classes[0]]
    return {
        "photos": result.photos,
        "mean_iou": round(100 * result.value, 2),
        "mean_iou_without_background": round(sum(objects) / len(objects), 2),
        "of_class": of_class,
    }


def _vitrail(*arguments: str) -> int:
    print(f"$ vitrail {shlex.join(arguments)}", flush=True)
    return subprocess.run([sys.executable, "-m", "vitrail", *arguments]).returncode


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--set", default="emoji-on-photos", help="what build.py wrote (emoji-on-photos)")
    parser.add_argument("--out", default="masks-run", help="folder for the run and artifacts (masks-run)")
    parser.add_argument("--epochs", type=int, help="instead of the recipe's")
    parser.add_argument("--threads", type=int, help="for training (all cores)")
    parser.add_argument("--min-iou", default="75", help="mean IoU in percent (75)")
    parser.add_argument("--max-latency", default="30ms", help="of a request (30ms)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())

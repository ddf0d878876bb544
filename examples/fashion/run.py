"""Fashion-MNIST from scratch: our ViT and our Swin, below two million parameters, on two CPU cores.

    apt-get install dataset-fashion-mnist
    pip install "vitrail[workbench,train]"
    python examples/fashion/run.py --work fashion

Writes the 70,000 images as PNG files with a manifest (55,000 train, 5,000 validation, and the 10,000 test
images that everyone tests on), trains both models with `vitrail train`, and ships each as an fp32 and as a
bf16 artifact, tested on those 10,000.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

SOURCE = Path("/usr/share/datasets/fashion-mnist")
HERE = Path(__file__).parent
CLASSES = ("top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
VALIDATION = 5_000
MODELS = {"vit": "vit_nano_patch4_28", "swin": "swin_nano_patch2_window7_28"}


def write_images(folder: Path) -> Path:
    """PNG files and their manifest; written once."""
    manifest = folder / "manifest.csv"
    if manifest.is_file():
        return manifest
    if not SOURCE.is_dir():
        sys.exit("Fashion-MNIST is not here: apt-get install dataset-fashion-mnist")
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for part in ("train", "t10k"):
        pixels = _read(f"{part}-images-idx3-ubyte", 16).reshape(-1, 28, 28)
        labels = _read(f"{part}-labels-idx1-ubyte", 8)
        held_out = set(np.random.default_rng(0).permutation(len(labels))[:VALIDATION].tolist())
        (folder / part).mkdir(exist_ok=True)
        for i, (image, label) in enumerate(zip(pixels, labels, strict=True)):
            name = f"{part}/{i:05d}.png"
            Image.fromarray(image).save(folder / name)
            split = "test" if part == "t10k" else "validation" if i in held_out else "train"
            rows.append((name, CLASSES[label], split))
    with open(manifest, "w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "split"), *rows])
    return manifest


def _read(name: str, offset: int) -> np.ndarray:
    file = next(SOURCE.glob(f"{name}*"))
    content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    return np.frombuffer(content, np.uint8, offset=offset)


def command(*parts: str) -> int:
    """Run one command of vitrail, shown as a user would type it."""
    print("$ vitrail", shlex.join(parts), flush=True)
    return subprocess.run([sys.executable, "-m", "vitrail", *parts]).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", default="fashion", help="folder for images, runs and artifacts")
    parser.add_argument("--models", nargs="+", choices=tuple(MODELS), default=list(MODELS))
    parser.add_argument("--epochs", help="fewer, to try it out")
    # One thread each: in models this small, two threads wait for one another after every product.
    parser.add_argument("--processes", default=str(min(2, len(os.sched_getaffinity(0)))))
    args = parser.parse_args()
    work = Path(args.work)
    manifest = str(write_images(work / "images"))
    result = {}
    for name in args.models:
        run, few = str(work / name), ["--epochs", args.epochs] if args.epochs else []
        what = ["--data", manifest, "--model", MODELS[name], "--recipe", str(HERE / f"{name}.toml"), *few]
        code = command("train", *what, "--processes", args.processes, "--out", run)
        if code:
            return code
        result[name] = selected(name, run, manifest, work)
    print(json.dumps({"example": "fashion", "models": result}))
    return 0


def selected(name: str, run: str, manifest: str, work: Path) -> dict[str, object]:
    """The run as an fp32 and as a bf16 artifact, each tested on the 10,000 test images."""
    found: dict[str, object] = {}
    for precision in ("fp32", "bf16"):
        document = work / f"{name}-{precision}.json"
        asked = ["--trained", run, "--data", manifest, "--precisions", precision, "--runtimes", "openvino"]
        out = ["--out", str(work / f"{name}-{precision}"), "--overwrite", "--json", str(document)]
        if command("select", *asked, *out):
            sys.exit(f"no {precision} artifact of {name}")
        test = json.loads(document.read_text())["test"]
        found[precision] = test["accuracy"]
    return found


if __name__ == "__main__":
    sys.exit(main())

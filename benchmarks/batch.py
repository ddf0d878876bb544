"""How near is `vitrail batch` to what the machine can do, and how much faster than what people run instead?

    python benchmarks/batch.py ARTIFACT --photos DIR [--images 2000] [--rounds 3] [--work DIR]
                               [--options '--workers 3'] [--peer-images 300] [--save HARDWARE]

ARTIFACT is EfficientNet-Lite0 as `vitrail select --models tf_efficientnet_lite0.pypi` ships it. A folder of
JPEGs of 500 to 4000 px (long side, evenly spread in the logarithm) is made from the photos; what is enlarged
gets the noise of a sensor, without which its files would be smaller and quicker to decode than real ones. By
turns, on all cores and the same files:

    decode      reading, decoding and preparing alone
    model       the engine alone
    batch       `vitrail batch FOLDER --out OUT` in a process of its own, to Parquet

What shares the cores adds up, so the limit is 1 / (1/decode + 1/model). `batch` is given twice: its work, and
the whole command with starting Python, loading the model and listing. Then, on a part of the files, by turns
with `batch` on the same part, the peers, each in a process of its own and timed without its start:

    timm            timm's eager model behind a DataLoader with a worker for each core
    transformers    the `image-classification` pipeline over the same timm model, batches of 8

and how often their best label is ours. The last line of standard output is one JSON document.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from folder import decoding, model_alone, per_second
from PIL import Image

from vitrail import hardware
from vitrail.artifact import open_artifact
from vitrail.predict import from_artifact

RESULTS = Path(__file__).parent / "results"
SMALLEST, LARGEST = 500, 4000
NOISE = 4.0
"""Standard deviation of an enlarged photo's noise, of 255."""
PEERS = ("timm", "transformers")


# --- the folder ---------------------------------------------------------------------------------


def one_photo(job: tuple[str, str, int]) -> None:
    """Cut, resize and save one photo; all of it follows from its number."""
    source, target, number = job
    rng = np.random.default_rng(number)
    photo = Image.open(source).convert("RGB")
    share = rng.uniform(0.6, 1.0)
    width, height = int(photo.width * share), int(photo.height * share)
    left, top = int(rng.integers(photo.width - width + 1)), int(rng.integers(photo.height - height + 1))
    photo = photo.crop((left, top, left + width, top + height))
    scale = np.exp(rng.uniform(np.log(SMALLEST), np.log(LARGEST))) / max(photo.size)
    photo = photo.resize(
        (max(round(photo.width * scale), 1), max(round(photo.height * scale), 1)), Image.Resampling.BICUBIC
    )
    if scale > 1:
        grain = rng.normal(0, NOISE, (photo.height, photo.width, 1)).astype(np.float32)
        photo = Image.fromarray(np.clip(np.asarray(photo) + grain, 0, 255).astype(np.uint8))
    photo.save(target, quality=int(rng.integers(80, 96)))


def make_folder(photos: Path, folder: Path, count: int) -> list[str]:
    """The JPEGs; those that are there already are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    sources = sorted(
        str(path) for path in photos.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png")
    )
    if not sources:
        raise SystemExit(f"{photos} holds no photos")
    names = [str(folder / f"{k:05}.jpg") for k in range(count)]
    jobs = [(sources[k % len(sources)], name, k) for k, name in enumerate(names) if not os.path.exists(name)]
    with ProcessPoolExecutor(hardware.usable_cores()) as pool:
        list(pool.map(one_photo, jobs, chunksize=8))
    return names


# --- ours ---------------------------------------------------------------------------------------


def batch(artifact: Path, folder: str, out: Path, extra: list[str]) -> dict[str, Any]:
    """The whole command; its own summary, and the seconds it took from outside."""
    begin = time.perf_counter()
    command = [
        sys.executable,
        "-m",
        "vitrail",
        "batch",
        str(artifact),
        folder,
        "--out",
        str(out),
        "--top",
        "1",
    ]
    done = subprocess.run([*command, "--json", "-", *extra], capture_output=True, check=True)
    return {**json.loads(done.stdout), "command_s": time.perf_counter() - begin}


def ours(artifact: Path, names: list[str], rounds: int, work: Path, extra: list[str]) -> dict[str, Any]:
    """Medians over rounds in which all parts take turns, and the ratios within each round."""
    cores = hardware.usable_cores()
    rates: dict[str, list[float]] = {"decode": [], "model": [], "batch": [], "command": []}
    last: dict[str, Any] = {}
    with from_artifact(open_artifact(artifact), threads=cores) as predictor:
        calls = max(len(names) // predictor.batch_size, 1)
        decoding(predictor, names[:20], cores)
        for number in range(rounds):
            rates["decode"].append(per_second(len(names), lambda: decoding(predictor, names, cores)))
            model = len(names) // predictor.batch_size * predictor.batch_size
            rates["model"].append(per_second(model, lambda: model_alone(predictor, names, calls)))
            last = batch(artifact, str(Path(names[0]).parent), work / f"out{number}", extra)
            assert (last["inputs"], last["failed"]) == (len(names), 0)
            rates["batch"].append(last["images_per_second"])
            rates["command"].append(len(names) / last["command_s"])
    limits = [1 / (1 / d + 1 / m) for d, m in zip(rates["decode"], rates["model"], strict=True)]
    return {
        **{f"{name} images/s": round(statistics.median(values), 1) for name, values in rates.items()},
        "limit images/s": round(statistics.median(limits), 1),
        "batch of limit": _ratio(rates["batch"], limits),
        "command of limit": _ratio(rates["command"], limits),
        "settings": last["settings"],
        "busy": last["busy"],
        "held_back_by": last["held_back_by"],
        "stages": last["stages"],
    }


def _ratio(values: list[float], others: list[float]) -> dict[str, Any]:
    found = [round(a / b, 3) for a, b in zip(values, others, strict=True)]
    return {"median": round(statistics.median(found), 3), "all": found}


# --- peers, each in a process of its own --------------------------------------------------------


class _Photos:
    """timm's data set: Pillow and timm's own transform."""

    def __init__(self, names: list[str], transform: Any) -> None:
        self.names, self.transform = names, transform

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, k: int) -> Any:
        return self.transform(Image.open(self.names[k]).convert("RGB"))


def peer(kind: str, artifact: Path, names: list[str]) -> dict[str, Any]:
    """Seconds and best classes of a peer with the artifact's weights and preprocessing."""
    import torch
    from timm.data import create_transform

    from vitrail import catalog
    from vitrail.models import timm as ours_timm
    from vitrail.weights.find import WeightsFinder

    candidate = open_artifact(artifact).manifest.variant.candidate
    (candidate,) = catalog.find((candidate.name,))
    preprocess, cores = candidate.preprocess, hardware.usable_cores()
    torch.set_num_threads(cores)
    weights = WeightsFinder(offline=True).locate(candidate).path
    model = ours_timm.build(
        candidate.architecture, image_size=preprocess.image_size, classes=1000, weights=weights
    )
    transform = create_transform(
        (3, preprocess.image_size, preprocess.image_size),
        mean=preprocess.mean,
        std=preprocess.std,
        crop_pct=preprocess.crop,
        interpolation=preprocess.interpolation,
    )
    run = {"timm": _timm, "transformers": _transformers}[kind](model, transform, names, cores)
    begin = time.perf_counter()
    classes = run()
    return {"seconds": time.perf_counter() - begin, "classes": classes}


def _timm(model: Any, transform: Any, names: list[str], cores: int) -> Callable[[], list[int]]:
    import torch

    loader = torch.utils.data.DataLoader(_Photos(names, transform), batch_size=8, num_workers=cores)

    def run() -> list[int]:
        with torch.inference_mode():
            return [int(k) for images in loader for k in model(images).argmax(dim=1)]

    return run


def _transformers(model: Any, transform: Any, names: list[str], cores: int) -> Callable[[], list[int]]:
    """The pipeline as its documentation shows it, with the model and image processor that wrap timm's."""
    from transformers import ImageClassificationPipeline, TimmWrapperConfig, TimmWrapperForImageClassification
    from transformers.models.timm_wrapper.image_processing_timm_wrapper import TimmWrapperImageProcessor

    pretrained = model.pretrained_cfg
    config = TimmWrapperConfig(
        architecture=pretrained["architecture"], num_labels=1000, pretrained_cfg=dict(pretrained)
    )
    wrapped = TimmWrapperForImageClassification(config)
    wrapped.timm_model.load_state_dict(model.state_dict())
    processor = TimmWrapperImageProcessor(dict(pretrained), architecture=pretrained["architecture"])
    processor.val_transforms = transform
    pipe = ImageClassificationPipeline(model=wrapped.eval(), image_processor=processor, device="cpu")

    def run() -> list[int]:
        found = pipe((name for name in names), top_k=1, batch_size=8, num_workers=cores)
        return [config.label2id[answer[0]["label"]] for answer in found]

    return run


def peers(artifact: Path, names: list[str], rounds: int, work: Path, extra: list[str]) -> dict[str, Any]:
    """Each peer and ours by turns on the same files: ratios within each round, and equal best labels."""
    import pyarrow.parquet as pq

    labels = open_artifact(artifact).task.labels  # type: ignore[attr-defined]
    folder = work / "some"
    folder.mkdir()
    for name in names:
        os.link(name, folder / os.path.basename(name))
    found: dict[str, Any] = {}
    for kind in PEERS:
        rates: list[float] = []
        mine: list[float] = []
        for number in range(rounds):
            out = work / f"{kind}{number}"
            mine.append(batch(artifact, str(folder), out, extra)["images_per_second"])
            command = [sys.executable, __file__, str(artifact), "--peer", kind]
            done = subprocess.run(command, input=json.dumps(names), capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{kind}: {done.stderr[-2000:]}")
            answer = json.loads(done.stdout.splitlines()[-1])
            rates.append(len(names) / answer["seconds"])
            table = pq.read_table(out / "results", columns=["path", "label"]).to_pylist()
        ours_best = {row["path"]: row["label"] for row in table}
        theirs = {os.path.basename(name): labels[k] for name, k in zip(names, answer["classes"], strict=True)}
        found[kind] = {
            "images/s": round(statistics.median(rates), 1),
            "ours times as fast": _ratio(mine, rates),
            "same best label %": round(100 * float(np.mean([ours_best[k] == theirs[k] for k in theirs])), 2),
            "images": len(names),
        }
    return found


# --- all of it ----------------------------------------------------------------------------------


def measure(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    load_before = os.getloadavg()[0]
    names = make_folder(args.photos, (args.work or work) / f"jpegs-{args.images}", args.images)
    sizes = [os.path.getsize(name) for name in names]
    extra = args.options.split() if args.options else []
    row = ours(args.artifact, names, args.rounds, work, extra)
    print(json.dumps(row, indent=1))
    few = names[:: max(len(names) // args.peer_images, 1)][: args.peer_images]
    compared = peers(args.artifact, few, max(args.rounds - 1, 1), work, extra) if args.peer_images else {}
    return {
        "machine": hardware.one_line(hardware.facts()),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "images": len(names),
        "mean MB": round(float(np.mean(sizes)) / 1e6, 2),
        "load_before": load_before,
        "ours": row,
        "peers": compared,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--peer-images", type=int, default=300, help="0: leave the peers out")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--options", help="more options for vitrail batch, in one string")
    parser.add_argument("--work", type=Path, help="keep the JPEGs here")
    parser.add_argument("--save", metavar="HARDWARE")
    parser.add_argument("--peer", choices=PEERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peer:
        print(json.dumps(peer(args.peer, args.artifact, json.load(sys.stdin))))
        return
    if args.photos is None:
        parser.error("name the photos that the JPEGs are made from with --photos DIR")
    with tempfile.TemporaryDirectory(dir=args.work) as place:
        result = measure(args, Path(place))
    if args.save:
        target = RESULTS / f"batch-{args.save}-{result['date']}.json"
        target.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()

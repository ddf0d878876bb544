"""How near is `vitrail predict ARTIFACT FOLDER` to what the machine can do at all?

    python benchmarks/folder.py [--images 500] [--rounds 3] [--save [HARDWARE]]

A folder of mixed JPEGs (500 to 3000 px) through EfficientNet-Lite0 with its real weights, by turns:

    decode      decoding and preparing alone, on all cores
    model       the engine alone, on all cores, set for single requests
    pipeline    `Predictor.predict_each`, which `vitrail predict` and `vitrail embed --artifact` use
    in turn     one request after another, as one thread would
    timm        the peer: timm's eager model behind a DataLoader with a worker for each core

and the same of `vitrail embed --model`, which decodes at full size and ends with vectors in a table.

What shares the cores adds up, so the limit is 1 / (1/decode + 1/model). The last line of standard output is
one JSON document.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import engines
import numpy as np
from PIL import Image

from vitrail import catalog, hardware
from vitrail.embeddings import embed
from vitrail.images.photos import sample_photos
from vitrail.images.preprocess import check_preprocess
from vitrail.predict import Predictor
from vitrail.tasks.classify import Classify
from vitrail.vocabulary import Preprocess
from vitrail.weights.find import WeightsFinder
from vitrail.zeroshot.embed import open_embedder

MODEL = "tf_efficientnet_lite0.pypi"
ENGINES = (("openvino", "fp32", 1), ("openvino", "fp32", 8), ("onnxruntime", "fp32", 1))
LABELS = tuple(str(k) for k in range(1000))
RESULTS = Path(__file__).parent / "results"


def make_photos(folder: Path, count: int) -> list[str]:
    """JPEGs of 500 to 3000 px on the long side, cut and scaled from the sample photos."""
    rng = np.random.default_rng(0)
    sources = [Image.open(path).convert("RGB") for path in sample_photos().paths]
    names = []
    for k in range(count):
        photo = sources[k % len(sources)]
        long_side = int(np.exp(rng.uniform(np.log(500), np.log(3000))))
        scale = long_side / max(photo.size)
        size = (max(int(photo.width * scale), 64), max(int(photo.height * scale), 64))
        name = folder / f"{k:04d}.jpg"
        photo.resize(size, Image.Resampling.BICUBIC).save(name, quality=int(rng.integers(80, 96)))
        names.append(str(name))
    return names


def per_second(count: int, call: Callable[[], object]) -> float:
    """Images a second of one call that does `count`."""
    begin = time.perf_counter()
    call()
    return count / (time.perf_counter() - begin)


def decoding(predictor: Predictor, photos: list[str], cores: int) -> None:
    """Decode and prepare all photos with a thread for each core."""
    with ThreadPoolExecutor(cores) as pool:
        for _ in pool.map(lambda photo: predictor.prepare([photo]), photos):
            pass


def model_alone(predictor: Predictor, photos: list[str], calls: int) -> None:
    """The engine on one prepared batch, again and again."""
    inputs = predictor.prepare(photos[: predictor.batch_size])
    for _ in range(calls):
        predictor.run(inputs)


def in_turn(predictor: Predictor, photos: list[str]) -> None:
    """One request of a batch after another."""
    for begin in range(0, len(photos), predictor.batch_size):
        predictor.request(photos[begin : begin + predictor.batch_size])


def one_engine(folder: Path, photos: list[str], preprocess: Preprocess, rounds: int, which: tuple) -> dict:
    """Medians over rounds in which all parts take turns."""
    engine, precision, batch = which
    cores = hardware.usable_cores()
    asked = {"size": preprocess.image_size, "batch": batch, "precision": precision, "threads": cores}
    usual, runner = engines.load(folder, engine, **asked), engines.load(folder, engine, **asked, many=True)
    task = Classify(preprocess=preprocess, labels=LABELS)
    rates: dict[str, list[float]] = {"decode": [], "model": [], "pipeline": [], "in turn": []}
    with Predictor(usual, task) as single, Predictor(runner, task) as predictor:
        list(predictor.predict_each(photos[:20]))
        for _ in range(rounds):
            few = photos[: max(len(photos) // 4, 1)]
            rates["decode"].append(per_second(len(photos), lambda: decoding(predictor, photos, cores)))
            calls = max(len(photos) // batch, 1)
            rates["model"].append(per_second(calls * batch, lambda n=calls: model_alone(single, photos, n)))
            rates["pipeline"].append(
                per_second(len(photos), lambda: list(predictor.predict_each(photos, top=5)))
            )
            rates["in turn"].append(per_second(len(few), lambda few=few: in_turn(single, few)))
    found = {name: round(statistics.median(values), 1) for name, values in rates.items()}
    limits = [1 / (1 / d + 1 / m) for d, m in zip(rates["decode"], rates["model"], strict=True)]
    shares = [p / limit for p, limit in zip(rates["pipeline"], limits, strict=True)]
    return {
        "engine": f"{engine} {precision}",
        "batch": batch,
        **{f"{name} images/s": value for name, value in found.items()},
        "limit images/s": round(statistics.median(limits), 1),
        "pipeline of limit": round(statistics.median(shares), 3),
        "pipeline of in turn": round(found["pipeline"] / found["in turn"], 2),
    }


def by_name(photos: list[str], rounds: int) -> dict:
    """The embedder that `vitrail embed --model` makes, against what its parts could do."""
    cores = hardware.usable_cores()
    rates: dict[str, list[float]] = {"decode": [], "model": [], "embed": []}
    with open_embedder(MODEL) as embedder:
        list(embedder.images_each(photos[:20]))
        predictor = embedder._predictor  # its parts, alone
        for _ in range(rounds):
            rates["decode"].append(per_second(len(photos), lambda: decoding(predictor, photos, cores)))
            calls = max(len(photos) // predictor.batch_size, 1)
            rates["model"].append(
                per_second(calls * predictor.batch_size, lambda n=calls: model_alone(predictor, photos, n))
            )
            rates["embed"].append(per_second(len(photos), lambda: embed(embedder, photos, "image")))
    limits = [1 / (1 / d + 1 / m) for d, m in zip(rates["decode"], rates["model"], strict=True)]
    shares = [e / limit for e, limit in zip(rates["embed"], limits, strict=True)]
    return {
        "engine": "embed by name",
        **{f"{name} images/s": round(statistics.median(values), 1) for name, values in rates.items()},
        "limit images/s": round(statistics.median(limits), 1),
        "embed of limit": round(statistics.median(shares), 3),
    }


class _Photos:
    """The peer's data set: Pillow and timm's own transform."""

    def __init__(self, photos: list[str], transform: Any) -> None:
        self.photos, self.transform = photos, transform

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, k: int) -> Any:
        return self.transform(Image.open(self.photos[k]).convert("RGB"))


def peer(model: Any, photos: list[str], preprocess: Preprocess) -> float:
    """timm eager behind a DataLoader, images/s."""
    import torch
    from timm.data import create_transform

    cores = hardware.usable_cores()
    transform = create_transform(
        (3, preprocess.image_size, preprocess.image_size),
        mean=preprocess.mean,
        std=preprocess.std,
        crop_pct=preprocess.crop,
        interpolation=preprocess.interpolation,
    )
    loader = torch.utils.data.DataLoader(_Photos(photos, transform), batch_size=8, num_workers=cores)

    def run() -> None:
        with torch.inference_mode():
            for batch in loader:
                model(batch)

    return per_second(len(photos), run)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--save", nargs="?", const="here", metavar="HARDWARE")
    arguments = parser.parse_args()
    import torch

    from vitrail.models import timm

    (candidate,) = catalog.find((MODEL,))
    preprocess = candidate.preprocess
    check_preprocess(preprocess)
    weights = WeightsFinder(offline=True).locate(candidate).path
    model = timm.build(
        candidate.architecture, image_size=preprocess.image_size, classes=1000, weights=weights
    )
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "photos").mkdir()
        photos = make_photos(folder / "photos", arguments.images)
        engines.write(model, folder, preprocess.image_size)
        rows = [one_engine(folder, photos, preprocess, arguments.rounds, which) for which in ENGINES]
        for row in rows:
            print(row)
        named = by_name(photos, arguments.rounds)
        print(named)
        torch.set_num_threads(hardware.usable_cores())
        timms = round(peer(model, photos[: max(len(photos) // 4, 1)], preprocess), 1)
    print({"timm eager + DataLoader images/s": timms})
    result = {
        "machine": hardware.one_line(hardware.facts()),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "images": arguments.images,
        "load_before": load_before,
        "rows": rows,
        "embed": {**named, "of timm": round(named["embed images/s"] / timms, 2)},
        "timm eager + DataLoader images/s": timms,
        "pipeline of timm": [round(row["pipeline images/s"] / timms, 2) for row in rows],
    }
    if arguments.save:
        target = RESULTS / f"folder-{arguments.save}-{result['date']}.json"
        target.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()

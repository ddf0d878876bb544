"""Features of many images through an export, inside a process of its own; decoding as production does.

Shapes: n images, B batch, S image size, D features.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from vitrail import runtimes
from vitrail.errors import InputError
from vitrail.images.decode import decode
from vitrail.images.preprocess import prepare_batch, resized_short_side
from vitrail.vocabulary import Preprocess


class FeaturesRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Which export on which images; `target` is the `.npy` file to write."""

    folder: str
    entry: str
    runtime: str
    precision: str
    batch_size: int
    threads: int
    preprocess: Preprocess
    images: list[str]
    target: str


def extract(payload: dict[str, Any]) -> dict[str, float]:
    """Save float32 (n, D) features of the images in their order; returns ms of the engine alone per image.

    Raises:
        InputError: an image that cannot be decoded.
    """
    request = msgspec.convert(payload, FeaturesRequest)
    size, batch = request.preprocess.image_size, request.batch_size
    runner = runtimes.load(
        Path(request.folder),
        request.entry,
        runtime=request.runtime,
        precision=request.precision,
        batch_size=batch,
        image_size=size,
        threads=request.threads,
        settings={},
    )
    short_side = resized_short_side(request.preprocess)

    def prepared(path: str) -> np.ndarray:
        try:
            return prepare_batch([decode(path, short_side=short_side)], request.preprocess)[0]
        except InputError as error:
            raise InputError(f"{path}: {error}") from None

    rows, seconds = [], []
    with ThreadPoolExecutor(max_workers=request.threads) as pool:
        for begin in range(0, len(request.images), batch):
            names = request.images[begin : begin + batch]
            inputs = np.zeros((batch, 3, size, size), np.float32)
            for slot, image in zip(inputs, pool.map(prepared, names), strict=False):
                slot[:] = image
            start = time.perf_counter()
            # The runner may hand out its own buffer, which the next call overwrites.
            rows.append(np.array(runner.run(inputs)[: len(names)]))
            seconds.append(time.perf_counter() - start)
    features = np.concatenate(rows).astype(np.float32)
    with open(request.target, "wb") as target:
        np.save(target, features.reshape(len(features), -1), allow_pickle=False)
    # The first call pays for what is set up lazily.
    return {"ms": float(np.median(seconds[1:] or seconds)) / batch * 1e3}

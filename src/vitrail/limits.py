"""The ranges of whole numbers that a person, a program or a file may ask for, all in one place.

Engines accept any number: 100,000 threads take 16 GiB of stacks, and a batch of a billion images is an
allocation that kills the process. The bounds lie above what the largest machines can do, so they stop only
mistakes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from numbers import Integral

from vitrail.errors import InputError

__all__ = ["LARGEST_INPUT_BYTES", "RANGES", "input_bytes", "whole"]

RANGES: dict[str, tuple[int, int]] = {
    "threads": (1, 1024),
    "batch_size": (1, 65_536),
    "clients": (1, 1024),
    "image_size": (1, 8192),
    "top": (1, 1_000_000),
    "processes": (1, 1024),
    "nodes": (1, 65_536),
    "workers": (0, 1024),
    "epochs": (1, 1_000_000),
    "patience": (1, 1_000_000),
    "checkpoint_every": (1, 1_000_000_000),
    "accumulate": (1, 65_536),
    "pad": (0, 8192),
    "operations": (1, 100),
    "tokens": (1, 10_000_000),
    "heads": (1, 1024),
    "head_width": (1, 4096),
    "classes": (1, 1_000_000),
    "max_megapixels": (1, 10_000),
    "shard_size": (1, 1_000_000),
    "port": (0, 65_535),
    "max_queue": (1, 100_000),
    "max_queue_megapixels": (1, 1_000_000),
    "max_batch": (1, 32),
    "max_images": (1, 10_000),
    "max_body_mib": (1, 512),
    "max_uploads_mib": (1, 65_536),
    "max_connections": (1, 65_536),
    "keep_photos": (1, 10_000),
    "replicas": (1, 1000),
}
"""name: (least, most)."""

LARGEST_INPUT_BYTES = 8 << 30
"""For one batch as the engine takes it. A batch of 4,096 at 384 px is 7 GB."""


def whole(name: str, value: object, said: str | None = None) -> int:
    """`value`, if it is a whole number in the range of `name`; `said` is its name in the error.

    Raises:
        InputError: it is not.
    """
    least, most = RANGES[name]
    said = said or name.replace("_", " ")
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise InputError(f"{said} is {value!r}: give a whole number from {least} to {most}.")
    number = int(value)
    if not least <= number <= most:
        shown = number if abs(number) < 10**30 else "a number of more than 30 digits"
        raise InputError(f"{said} is {shown}: give {least} to {most}.")
    return number


def input_bytes(shapes: Iterable[Sequence[int]]) -> int:
    """Total bytes of float32 inputs of these shapes.

    Raises:
        InputError: more than `LARGEST_INPUT_BYTES`.
    """
    shapes = list(shapes)
    size = sum(4 * math.prod(shape) for shape in shapes)
    if size > LARGEST_INPUT_BYTES:
        shown = " and ".join("×".join(map(str, shape)) for shape in shapes)
        raise InputError(
            f"An input of {shown} takes {size / 2**30:.0f} GiB, and {LARGEST_INPUT_BYTES >> 30} GiB are the "
            "most: give a smaller batch."
        )
    return size

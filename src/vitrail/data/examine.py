"""What each image file is: one decoding gives its digest, size, format and thumbnail."""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from vitrail.errors import InputError
from vitrail.store import sha256_file
from vitrail.words import is_utf8, utf8

THUMBNAIL = 16
"""Pixels of a thumbnail's side."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """One readable image: sha256 of the file, upright (width, height) in pixels, format, and the uint8 grey
    levels of its squashed thumbnail, row by row (`THUMBNAIL` squared bytes)."""

    digest: str
    size: tuple[int, int]
    kind: str
    thumbnail: bytes


def examine(paths: Iterable[str]) -> dict[str, Look | str]:
    """Open each distinct path once, sorted; the answer is a `Look` or the reason why it cannot be read."""
    distinct = sorted(set(paths))
    # Pillow decodes, and hashlib hashes, outside the interpreter's lock.
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        return dict(zip(distinct, pool.map(_look, distinct), strict=True))


def _look(path: str) -> Look | str:
    from PIL import Image

    from vitrail.images.decode import decode, frame_of
    from vitrail.images.headers import HEAD_BYTES, image_kind

    if not is_utf8(path):
        return f"{utf8(path)} is not UTF-8, so no record can hold its name: rename it."
    try:
        # Scaled decoding reads the whole file but produces few pixels. It refuses pipes and devices, on which
        # the digest would block, so it comes first.
        image = decode(path, short_side=2 * THUMBNAIL)
        frame = frame_of(image)
        square = (THUMBNAIL, THUMBNAIL)
        small = image.convert("L").resize(square, Image.Resampling.BILINEAR, box=frame.box)
        with open(path, "rb") as file:
            kind = image_kind(file.read(HEAD_BYTES))
        return Look(
            digest=sha256_file(Path(path)), size=frame.size, kind=kind or "unknown", thumbnail=small.tobytes()
        )
    except (InputError, OSError) as error:
        return str(error)

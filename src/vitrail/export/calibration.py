"""The photos that int8 is calibrated on: they judge nothing, and their digest is part of what is made.

Activations' ranges are read off these photos. Were they also the photos of parity or accuracy, int8 would be
judged on what it was fitted to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vitrail.data import Dataset
from vitrail.errors import InputError
from vitrail.images.photos import PhotoSet, digest_of, evenly_spaced, photo_folder
from vitrail.store import sha256_file
from vitrail.words import counted

__all__ = ["LEAST_PHOTOS", "MOST_PHOTOS", "Calibration", "calibration"]

LEAST_PHOTOS = 10
"""With fewer, ranges depend on which photos they happened to be."""
MOST_PHOTOS = 128
"""More change ranges little, and take time: NNCF's own default is 300 images."""
SHARE = 4
"""One in so many of `--images` calibrates, where nothing else was given."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Photos, and where they come from."""

    photos: tuple[str, ...]
    digest: str
    """sha256 over their contents."""
    source: str
    """In words."""


def calibration(
    folder: str | None,
    images: str | None,
    dataset: Dataset | None,
    photos: PhotoSet,
    *,
    options: str = "--images, --data or --calibration",
) -> tuple[Calibration | str, PhotoSet]:
    """The photos that calibrate, or why there are none; and the photos that are left to judge.

    Args:
        folder: `--calibration`; None: the training split of labelled images, or else a part of `images`.
        images: the folder that `photos` come from; None: the sample set, which is too small to be divided.
        options: what the command takes to give photos.

    Raises:
        InputError: `folder` cannot be used, holds too few photos, or shares photos with those that judge.
    """
    if folder is not None:
        return _of_folder(folder, dataset, photos), photos
    if dataset is not None:
        judging = set(photos.paths)
        examples = [example.path for example in dataset.of("train") if example.path not in judging]
        return _of(examples, "the training split of the labelled images"), photos
    if images is None:
        return f"int8 needs photos to be calibrated on: give {options}", photos
    if len(photos.paths) < SHARE * LEAST_PHOTOS:
        found = counted(len(photos.paths), "photo")
        least = SHARE * LEAST_PHOTOS
        return f"int8 needs {least} photos, of which a part calibrates it: {images} has {found}", photos
    part = evenly_spaced(list(photos.paths), min(len(photos.paths) // SHARE, MOST_PHOTOS))
    left = tuple(path for path in photos.paths if path not in set(part))
    made = _of(part, f"a part of {images} that judges nothing")
    said = f"{photos.evidence}; {len(part)} of them calibrate int8 and judge nothing"
    return made, replace(photos, paths=left, digest=digest_of(left), evidence=said)


def _of(paths: Sequence[str | Path], source: str) -> Calibration | str:
    if len(paths) < LEAST_PHOTOS:
        return f"int8 needs {LEAST_PHOTOS} photos to be calibrated on: {source} has {len(paths)}"
    chosen = tuple(str(path) for path in evenly_spaced([str(path) for path in paths], MOST_PHOTOS))
    return Calibration(photos=chosen, digest=digest_of(chosen), source=source)


def _of_folder(folder: str, dataset: Dataset | None, photos: PhotoSet) -> Calibration:
    found = photo_folder(folder)
    judging = {sha256_file(Path(path)): path for path in photos.paths}
    if dataset is not None:
        judging |= {
            example.digest: example.path for split in ("validation", "test") for example in dataset.of(split)
        }
    shared = [(path, same) for path in found.paths if (same := judging.get(sha256_file(Path(path))))]
    if shared:
        path, same = shared[0]
        some = counted(len(shared), "photo")
        raise InputError(
            f"{some} of --calibration {folder} would also judge ({Path(path).name} is {same}): int8 would be "
            "judged on what it was fitted to; give other photos."
        )
    made = _of(found.paths, folder)
    if isinstance(made, str):
        raise InputError(f"{made}; give a folder with more photos.")
    return made

"""Sets of photos for timing and parity: the user's folder, or a named sample from installed packages."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from vitrail.errors import InputError, MissingExtraError
from vitrail.images.find import images_below
from vitrail.words import counted, is_utf8, shown, some_of

MAX_PHOTOS = 800
"""Largest number of a folder's photos that are used; more are thinned evenly. It is enough to bound the
accuracy that a lower precision loses, which takes 600 (docs/measurement.md)."""

NAMED_UNREADABLE = 10
"""This many unreadable photos are named in the evidence; the rest are counted."""

INSTALL = 'pip install "vitrail[workbench]"'


@dataclass(frozen=True, kw_only=True)
class PhotoSet:
    """The photos that figures were taken with.

    `paths` are absolute. `digest` is the sha256 over the contents of these photos, regardless of names
    and order. `evidence` describes the set and what is doubtful about it.
    """

    name: str
    paths: tuple[str, ...]
    digest: str
    evidence: str


@dataclass(frozen=True, kw_only=True)
class SamplePhoto:
    """A freely licensed photo in an installed package; `file` is relative to its package."""

    package: str
    file: str
    license: str
    origin: str


_SKLEARN = "datasets/images"
_CC_BY = "CC-BY-2.0"
_PUBLIC = "public domain"
_NO_KNOWN = "no known copyright restrictions"

# License and origin as the packages state them: scikit-learn in the README next to its images,
# scikit-image in the docstrings of skimage.data. Its photos without a stated license are left out.
SAMPLES: dict[str, SamplePhoto] = {
    "china": SamplePhoto(
        package="sklearn",
        file=f"{_SKLEARN}/china.jpg",
        license=_CC_BY,
        origin="https://www.flickr.com/photos/danielbuechele/6061409035/",
    ),
    "flower": SamplePhoto(
        package="sklearn",
        file=f"{_SKLEARN}/flower.jpg",
        license=_CC_BY,
        origin="https://www.flickr.com/photos/vultilion/6056698931/",
    ),
    "astronaut": SamplePhoto(
        package="skimage", file="data/astronaut.png", license=_PUBLIC, origin="NASA, https://flic.kr/p/r9qvLn"
    ),
    "brick": SamplePhoto(
        package="skimage", file="data/brick.png", license="CC0", origin="CC0Textures, Bricks25"
    ),
    "camera": SamplePhoto(package="skimage", file="data/camera.png", license="CC0", origin="Lav Varshney"),
    "chelsea": SamplePhoto(
        package="skimage", file="data/chelsea.png", license="CC0", origin="Stefan van der Walt"
    ),
    "clock": SamplePhoto(
        package="skimage", file="data/clock_motion.png", license=_PUBLIC, origin="Stefan van der Walt"
    ),
    "coffee": SamplePhoto(package="skimage", file="data/coffee.png", license="CC0", origin="Rachel Michetti"),
    "coins": SamplePhoto(
        package="skimage",
        file="data/coins.png",
        license=_NO_KNOWN,
        origin="Brooklyn Museum Collection, image 51611",
    ),
    "grass": SamplePhoto(
        package="skimage",
        file="data/grass.png",
        license="CC0",
        origin="https://www.deviantart.com/linolafett/art/Grass-01-434853879",
    ),
    "gravel": SamplePhoto(
        package="skimage", file="data/gravel.png", license="CC0", origin="CC0Textures, Gravel04"
    ),
    "hubble_deep_field": SamplePhoto(
        package="skimage",
        file="data/hubble_deep_field.jpg",
        license=_PUBLIC,
        origin="NASA, http://hubblesite.org/newscenter/archive/releases/2012/37/image/a/",
    ),
    "ihc": SamplePhoto(
        package="skimage",
        file="data/ihc.png",
        license=_NO_KNOWN,
        origin="Center for Microscopy and Molecular Imaging (CMMI)",
    ),
    "retina": SamplePhoto(
        package="skimage",
        file="data/retina.jpg",
        license="CC0",
        origin="https://commons.wikimedia.org/wiki/File:Fundus_photograph_of_normal_left_eye.jpg",
    ),
    "rocket": SamplePhoto(
        package="skimage",
        file="data/rocket.jpg",
        license=_PUBLIC,
        origin="SpaceX, https://www.flickr.com/photos/spacexphotos/16511594820/",
    ),
}

Item = TypeVar("Item")

PACKAGES = {"sklearn": "scikit-learn", "skimage": "scikit-image"}


def sample_photos() -> PhotoSet:
    """Return the sample set, found without importing the packages that carry it.

    Raises `MissingExtraError` if scikit-learn or scikit-image is not installed.
    """
    folders = {package: _package_folder(package) for package in PACKAGES}
    paths = {name: folders[sample.package] / sample.file for name, sample in SAMPLES.items()}
    present = {name: path for name, path in paths.items() if path.is_file()}
    absent = [name for name in paths if name not in present]
    if not present:
        raise InputError("The installed packages carry none of the sample photos: give --images DIR.")
    missing = f"; not in the installed packages: {', '.join(absent)}" if absent else ""
    return PhotoSet(
        name="sample",
        paths=tuple(str(path.absolute()) for path in present.values()),
        digest=digest_of(present.values()),
        evidence=(
            f"{len(present)} sample photos of scikit-learn and scikit-image{missing}: "
            "weaker evidence than your own photos (--images DIR)"
        ),
    )


def photo_folder(path: str | Path) -> PhotoSet:
    """Return the photos below a folder, sorted by path, at most `MAX_PHOTOS` of them evenly spaced.

    `images/find.py` decides what a photo is. Every photo used has been decoded once; those that cannot be
    are left out and named in `evidence`, as are those whose name is not UTF-8, which no record could hold.
    Raises `InputError` if the folder has no photos or none that can be used.
    """
    root = Path(path)
    if not root.exists():
        raise InputError(f"{path} does not exist: give a folder of photos.")
    if not root.is_dir():
        raise InputError(f"{path} is not a folder: give a folder of photos.")
    everything = [os.path.relpath(photo, root) for photo in images_below(root)]
    if not everything:
        raise InputError(f"{path} holds no photos: put image files in it.")
    chosen = evenly_spaced(everything, MAX_PHOTOS)
    reasons = _unreadable(root / name for name in chosen)
    bad = {name: reason for name, reason in zip(chosen, reasons, strict=True) if reason}
    bad |= {name: f"{root / name} is not UTF-8: rename it." for name in chosen if not is_utf8(root / name)}
    if len(bad) == len(chosen):
        first = next(iter(bad.values()))
        raise InputError(f"None of the photos in {path} can be read ({_some(bad)}); the first: {first}")
    good = [(root / name).absolute() for name in chosen if name not in bad]
    return PhotoSet(
        name=root.resolve().name or str(root),
        paths=tuple(str(photo) for photo in good),
        digest=digest_of(good),
        evidence=_evidence(str(path), len(good), len(chosen), len(everything), bad),
    )


def evenly_spaced(items: list[Item], limit: int) -> list[Item]:
    """Return at most `limit` of the items, evenly spaced over the whole list, in its order."""
    if len(items) <= limit:
        return items
    return [items[index * len(items) // limit] for index in range(limit)]


def _evidence(path: str, good: int, chosen: int, total: int, bad: dict[str, str]) -> str:
    text = f"{counted(good, 'photo')} in {path}"
    if chosen < total:
        text += f", from {chosen} of {total} evenly spaced"
    return f"{text}; {len(bad)} unreadable left out: {_some(bad)}" if bad else text


def _unreadable(paths: Iterable[Path]) -> list[str]:
    """For each photo, why it cannot be decoded, or an empty text."""
    from vitrail.images.decode import decode

    def reason(photo: Path) -> str:
        try:
            # The smallest scale: the whole file is read, but few pixels are produced.
            decode(photo, short_side=1)
        except InputError as error:
            return str(error)
        return ""

    # Pillow decodes outside the interpreter's lock.
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        return list(pool.map(reason, paths))


def digest_of(paths: Iterable[str | Path]) -> str:
    """sha256 over the sorted sha256 of the files, so that a renamed or moved set stays the same set."""
    contents = sorted(hashlib.sha256(Path(path).read_bytes()).digest() for path in paths)
    return hashlib.sha256(b"".join(contents)).hexdigest()


def _package_folder(package: str) -> Path:
    """Folder of an installed package, without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError(f"{PACKAGES[package]}, which carries the sample photos,", INSTALL)
    return Path(next(iter(spec.submodule_search_locations)))


def _some(bad: Iterable[str]) -> str:
    return some_of(list(map(shown, bad)), NAMED_UNREADABLE)

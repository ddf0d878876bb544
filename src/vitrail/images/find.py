"""Which files of a folder are images: one rule for all commands.

An image is a file whose first bytes are an image's, whatever its name, or whose name is an image's, so that a
damaged file, or one of a kind that cannot be read, gets the decoder's error rather than being skipped. Hidden
files and folders and `__MACOSX` are left by file managers and archives, and are skipped. Linked folders are
entered once.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from vitrail.errors import InputError
from vitrail.images.headers import HEAD_BYTES, recognise

__all__ = [
    "called_image",
    "expand",
    "holds_images",
    "images_below",
    "images_in",
    "is_folder",
    "is_hidden",
    "looks_like_image",
    "subfolders",
    "walk_images",
]

SUFFIXES = frozenset((
    # read by images/decode.py
    ".jpg", ".jpeg", ".jpe", ".jfif", ".jfi", ".png", ".apng", ".webp", ".bmp", ".dib", ".gif", ".tif",
    ".tiff", ".avif", ".avifs", ".heic", ".heif", ".heics", ".hif", ".ppm", ".pgm", ".pbm", ".pnm",
    # images that it does not read, so that they are reported
    ".pam", ".jp2", ".j2k", ".jpf", ".jpx", ".jxl", ".jxr", ".svg", ".svgz", ".psd", ".psb", ".ico", ".icns",
    ".tga", ".exr", ".dds", ".pcx", ".qoi", ".xcf", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2",
    ".raf", ".pef", ".srw", ".dcm",
))  # fmt: skip
"""Endings of names that only images have."""


def images_below(folder: str | Path) -> list[str]:
    """The files below a folder that are images or named so; each path starts with `folder` as given.

    Sorted by their path below the folder.

    Raises:
        InputError: a folder in it cannot be listed.
    """
    return [os.path.join(folder, name) for name in sorted(walk_images(str(folder)))]


def holds_images(folder: str | Path) -> bool:
    """Whether `images_below` would find any."""
    return next(walk_images(str(folder)), None) is not None


def images_in(folder: str | Path) -> list[str]:
    """The same for the files directly in a folder."""
    return sorted(e.path for e in _scan(folder) if not e.is_dir() and looks_like_image(e.path))


def subfolders(folder: str | Path) -> list[str]:
    """Names of the folders directly in a folder, sorted; hidden ones are left out."""
    return sorted(entry.name for entry in _scan(folder) if entry.is_dir() and not is_hidden(entry.name))


def is_hidden(name: str) -> bool:
    """What file managers and archives leave next to the data (.DS_Store, ._photo.jpg, __MACOSX)."""
    return name.startswith(".") or name == "__MACOSX"


def called_image(path: str) -> bool:
    """Whether a name has an ending that only images have."""
    return os.path.splitext(path)[1].lower() in SUFFIXES


def looks_like_image(path: str) -> bool:
    """Whether a file's first bytes, or its name, are an image's."""
    name = os.path.basename(path)
    if is_hidden(name):
        return False
    if called_image(name):
        return True
    try:
        if not os.path.isfile(path):
            return False
        with open(path, "rb") as file:
            return recognise(file.read(HEAD_BYTES)) is not None
    except OSError:
        # An unreadable file without an ending may be an image: the decoder will say what it is.
        return not os.path.splitext(name)[1]


def expand(arguments: Sequence[str]) -> Iterator[tuple[str, InputError | None]]:
    """The images that files, folders and patterns (`*`, `?`, `[...]`, `**` for any depth) name, in order.

    A file is taken as it is, a folder gives what `images_below` does, and so do the folders that a pattern
    matches; of the files that it matches, those that look like images. An argument that gives nothing comes
    with the reason.
    """
    for argument in arguments:
        try:
            yield from ((path, None) for path in _expanded(argument))
        except InputError as error:
            yield argument, error


def _expanded(argument: str) -> Sequence[str]:
    if os.path.isdir(argument):
        if images := images_below(argument):
            return images
        raise InputError(f"{argument} is a folder without images: give one with image files in it.")
    if os.path.lexists(argument) or not glob.has_magic(argument):
        return [argument]  # if it does not exist, the decoder says so
    images = []
    for match in sorted(glob.glob(argument, recursive=True)):
        if not os.path.isdir(match):
            images += [match] if looks_like_image(match) else []
        elif "**" not in argument:  # its files match themselves
            images += images_below(match)
    if not images:
        raise InputError(f"No image matches {argument}: check the pattern.")
    return images


def walk_images(
    root: str,
    *,
    leave_out: Callable[[str], bool] = lambda folder: False,
    unlistable: Callable[[OSError], None] | None = None,
) -> Iterator[str]:
    """The paths below `root`, as `images_below` would give them, in the order of the disk.

    Of a folder's files none is held, so that a folder of millions takes no memory.

    Args:
        root: a folder.
        leave_out: whether a folder is not entered, by its path without links.
        unlistable: takes the error of a folder that cannot be listed; None: an InputError ends it.
    """
    entered: set[str] = set()
    waiting, before = [root], len(os.path.join(root, ""))
    while waiting:
        folder = waiting.pop()
        real = os.path.realpath(folder)
        if real in entered or leave_out(real):
            continue
        entered.add(real)
        inner: list[str] = []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if is_folder(entry):
                        inner.append(entry.path)
                    elif looks_like_image(entry.path):
                        yield entry.path[before:]
        except OSError as error:
            (unlistable or _unlistable)(error)
        # The order decides which of two links to one folder is entered.
        waiting += sorted((path for path in inner if not is_hidden(os.path.basename(path))), reverse=True)


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _scan(folder: str | Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(str(folder)) as entries:
            return list(entries)
    except OSError as error:
        _unlistable(error)
        return []


def _unlistable(error: OSError) -> None:
    """Skipping a folder that may not be listed would lose images silently."""
    raise InputError(
        f"{error.filename} cannot be listed ({error.strerror}): make it readable or move it out."
    )

"""What a path holds: a folder per class, folders per split, a manifest, or a saved Hugging Face data set."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from vitrail.data.records import Broken, Row, Source, Split
from vitrail.errors import InputError

SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
MANIFESTS = (".csv", ".parquet", ".pq")
LAYOUT = "give a folder with one folder of images per class, or a manifest (CSV or Parquet)"


def find(path: str | Path) -> Source:
    """List the labelled images of `path`; nothing but manifests is read.

    Raises InputError if it is none of the kinds that are known, is empty, or contradicts itself.
    """
    root = Path(path)
    if not os.path.exists(root):  # unlike Path.exists, also for a name that is too long
        raise InputError(f"{path} does not exist: {LAYOUT}.")
    if root.is_file():
        return _manifest(root)
    if not root.is_dir():
        raise InputError(f"{path} is neither a folder nor a file: {LAYOUT}.")
    root = root.absolute()
    if (root / "dataset_dict.json").is_file() or (root / "state.json").is_file():
        from vitrail.data import saved

        return saved.read(root)
    return _folders(root)


def split_name(text: str, place: str) -> Split:
    """Return the split that a source names; InputError, naming the place, for an unknown one."""
    known = SPLIT_NAMES.get(text.strip().casefold())
    if known is None:
        raise InputError(f"{place} has the unknown split {text!r}: name it train, validation or test.")
    return known


def _manifest(path: Path) -> Source:
    from vitrail.data import manifest

    suffix = path.suffix.lower()
    if suffix not in MANIFESTS:
        raise InputError(f"{path} is not a manifest that ends in {', '.join(MANIFESTS)}: {LAYOUT}.")
    return manifest.read_csv(path) if suffix == ".csv" else manifest.read_parquet(path)


# --- folders --------------------------------------------------------------------------------------


def _folders(root: Path) -> Source:
    """DIR/CLASS/... or DIR/SPLIT/CLASS/...; images beside the class folders are unplaced."""
    subfolders = _subfolders(root)
    parts: list[tuple[Path, Split | None]] = [(root, None)]
    if _is_split_layout(root, subfolders):
        parts = [
            (root / name, split_name(name, f"{root}: the folder {name}, beside the split folders,"))
            for name in subfolders
        ]
        if "train" not in {split for _, split in parts}:
            raise InputError(
                f"{root} has no train folder beside {', '.join(subfolders)}: add {root / 'train'}."
            )
    rows, unplaced = [], [] if parts[0][0] == root else _loose(root)
    for folder, split in parts:
        unplaced += _loose(folder)
        for name in _subfolders(folder):
            rows += [Row(path=path, label=name, split=split) for path in _class_images(folder / name)]
    if not rows:
        raise _nothing(root, len(unplaced))
    return Source(name=root.resolve().name or str(root), rows=tuple(rows), unplaced=tuple(unplaced))


def _is_split_layout(root: Path, subfolders: list[str]) -> bool:
    """Whether the folders are splits. A class may be called "train" too: then others stand beside it that
    are not splits, or images lie in it directly."""
    splits = {SPLIT_NAMES.get(name.casefold()) for name in subfolders}
    if not subfolders or splits == {None}:
        return False
    if None not in splits:
        return any(_subfolders(root / name) for name in subfolders)
    # train and test beside something else: only if train is visibly no class.
    train = next((root / name for name in subfolders if SPLIT_NAMES.get(name.casefold()) == "train"), None)
    held_out = bool(splits & {"validation", "test"})
    return train is not None and held_out and bool(_subfolders(train)) and not _loose(train)


def _nothing(root: Path, loose: int) -> InputError:
    found = [entry.name for entry in sorted(root.iterdir()) if entry.suffix.lower() in MANIFESTS]
    if found:
        return InputError(f"{root} has no class folders with images: give {root / found[0]} itself.")
    if loose:
        return InputError(f"{root} holds {loose} images without a class: put them into one folder per class.")
    return InputError(f"{root} holds no images: put one folder of images per class in it.")


def _class_images(folder: Path) -> list[str]:
    images = sorted(str(folder / name) for name in _images_below(folder))
    if not images:
        raise InputError(f"The class folder {folder} holds no images: add some or remove the folder.")
    return images


def _subfolders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not _hidden(entry.name))


def _hidden(name: str) -> bool:
    """What file managers and archives leave beside the data (.DS_Store, ._photo.jpg, __MACOSX)."""
    return name.startswith(".") or name == "__MACOSX"


def _loose(folder: Path) -> list[Broken]:
    """Images directly in a folder that holds class folders."""
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_file() and _is_image(entry.path))
    reason = "it lies beside the class folders: move it into the folder of its class"
    return [Broken(path=str(folder / name), reason=reason) for name in names]


def _images_below(root: Path) -> Iterator[str]:
    """Paths relative to `root`; linked folders are entered once."""
    entered = set()
    for folder, subfolders, files in os.walk(root, followlinks=True, onerror=_unreadable):
        real = os.path.realpath(folder)
        subfolders[:] = [] if real in entered else sorted(name for name in subfolders if not _hidden(name))
        if real in entered:
            continue
        entered.add(real)
        for name in files:
            if _is_image(os.path.join(folder, name)):
                yield os.path.relpath(os.path.join(folder, name), root)


def _unreadable(error: OSError) -> None:
    """os.walk passes over what it may not list, and images would be missing without a word."""
    raise InputError(
        f"{error.filename} cannot be listed ({error.strerror}): make it readable or move it out."
    )


def _is_image(path: str) -> bool:
    """Whether a file calls itself an image, or begins like one whatever it is called."""
    from vitrail.images.headers import HEAD_BYTES, image_kind
    from vitrail.images.photos import SUFFIXES

    name = os.path.basename(path)
    if _hidden(name):
        return False
    if name.lower().endswith(SUFFIXES):
        return True
    try:
        if not os.path.isfile(path):
            return False
        with open(path, "rb") as file:
            return image_kind(file.read(HEAD_BYTES)) is not None
    except OSError:
        return False

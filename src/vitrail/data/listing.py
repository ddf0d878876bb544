"""What a path holds: a folder per class, folders per split, a manifest, or a saved Hugging Face data set."""

from __future__ import annotations

import os
from pathlib import Path

from vitrail.data import layouts
from vitrail.data.records import Layout, ListedImage, Listing
from vitrail.errors import InputError
from vitrail.images import find
from vitrail.words import counted

MANIFESTS = (".csv", ".parquet", ".pq")
LAYOUT = "give a folder with one folder of images per class, or a manifest (CSV or Parquet)"


def list_images(path: str | Path, layout: Layout | None = None) -> Listing:
    """List the labelled images of `path`; nothing but manifests is read.

    `layout`: what its folders are, where that is ambiguous (layouts.py).

    Raises InputError if it is of no known kind, is empty, or contradicts itself.
    """
    root = Path(path)
    if not os.path.exists(root):  # unlike Path.exists, this also handles a name that is too long
        raise InputError(f"{path} does not exist: {LAYOUT}.")
    if layout is not None and not root.is_dir():
        raise InputError(f"{path} is a file, and --layout is about folders: leave it out.")
    if root.is_file():
        return _manifest(root)
    if not root.is_dir():
        raise InputError(f"{path} is neither a folder nor a file: {LAYOUT}.")
    root = root.absolute()
    if (root / "dataset_dict.json").is_file() or (root / "state.json").is_file():
        from vitrail.data import saved

        return saved.read(root)
    return _folders(root, layout)


def _manifest(path: Path) -> Listing:
    from vitrail.data import manifest

    suffix = path.suffix.lower()
    if suffix not in MANIFESTS:
        raise InputError(f"{path} is not a manifest that ends in {', '.join(MANIFESTS)}: {LAYOUT}.")
    return manifest.read_csv(path) if suffix == ".csv" else manifest.read_parquet(path)


# --- folders --------------------------------------------------------------------------------------


def _folders(root: Path, layout: Layout | None) -> Listing:
    recognised = layouts.recognise(root, layout)
    rows = [
        ListedImage(path=path, label=folder.label, split=folder.split)
        for folder in recognised.classes
        for path in find.images_below(folder.folder)
    ]
    if not rows:
        raise _nothing(root, len(recognised.unplaced))
    return Listing(
        name=root.resolve().name or str(root),
        rows=tuple(rows),
        unplaced=recognised.unplaced,
        found=_said(root, recognised),
    )


def _said(root: Path, recognised: layouts.RecognisedLayout) -> str:
    """`split/class in archive: Training is train, Testing is test; without images: Annotations`."""
    below = os.path.relpath(recognised.root, root)
    text = recognised.layout + ("" if below == "." else f" in {below}")
    splits = ", ".join(f"{name} is {split}" for name, split in recognised.splits.items())
    text += f": {splits}" if splits else ""
    ignored = ", ".join(os.path.relpath(path, root) for path in recognised.ignored)
    return text + (f"; without images: {ignored}" if ignored else "")


def _nothing(root: Path, loose: int) -> InputError:
    manifests = [entry.name for entry in sorted(root.iterdir()) if entry.suffix.lower() in MANIFESTS]
    if manifests:
        return InputError(f"{root} has no class folders with images: give {root / manifests[0]} itself.")
    if loose:
        images = counted(loose, "image")
        return InputError(f"{root} holds {images} without a class: put them into one folder per class.")
    return InputError(f"{root} holds no images: put one folder of images per class in it.")

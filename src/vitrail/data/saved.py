"""Data sets that Hugging Face `datasets` saved to disk, read with pyarrow alone.

`save_to_disk` writes Arrow streams (the whole file one stream of record batches), `state.json` with their
names and `dataset_info.json` with the features; a `DatasetDict` is a folder of these per split. The images
are embedded, so each is written once into the cache under the sha256 of its bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vitrail.data.arrow import import_pyarrow
from vitrail.data.records import ListedImage, Listing, Split
from vitrail.data.splits import split_name
from vitrail.errors import InputError
from vitrail.store import cache_dir, sha256_file, writing

SUFFIX = {
    "JPEG": ".jpg",
    "PNG": ".png",
    "WebP": ".webp",
    "BMP": ".bmp",
    "GIF": ".gif",
    "TIFF": ".tiff",
    "AVIF": ".avif",
    "HEIF": ".heic",
    "PPM": ".ppm",
}
SAVE_AGAIN = "save it again with `save_to_disk`"


def read(root: Path) -> Listing:
    """Rows of a saved `Dataset` or `DatasetDict`: one Image feature, one ClassLabel or text feature.

    Raises InputError for any other form of data set, for a row without a label or embedded image, or for an
    unknown split; MissingExtraError without pyarrow.
    """
    import_pyarrow("A saved Hugging Face data set")
    parts: list[tuple[Path, Split | None]] = [(root, None)]
    if (root / "dataset_dict.json").is_file():
        names = _json(root / "dataset_dict.json").get("splits") or []
        if not isinstance(names, list):
            raise InputError(f"{root / 'dataset_dict.json'} lists no splits: {SAVE_AGAIN}.")
        parts = [(root / _plain(root, name), split_name(str(name), str(root))) for name in names]
    rows = tuple(row for folder, split in parts for row in _rows(folder, split))
    if not rows:
        raise InputError(f"{root} holds no images: save a data set with rows in it.")
    return Listing(name=root.name, rows=rows)


def _rows(folder: Path, split: Split | None) -> Iterator[ListedImage]:
    state = _json(folder / "state.json")
    if state.get("_indices_files") or state.get("_indices_data_files"):
        raise InputError(f"{folder} was saved with an indices file: call flatten_indices() and {SAVE_AGAIN}.")
    image, label, names = _features(folder)
    number = 0
    for entry in state.get("_data_files") or []:
        file = folder / _plain(folder, entry.get("filename") if isinstance(entry, dict) else None)
        for cell, value in _cells(file, image, label):
            number += 1
            place = f"{folder} row {number}"
            yield ListedImage(
                path=_kept(cell, image, place), label=_label(value, names, place), split=split, place=place
            )


def _features(folder: Path) -> tuple[str, str, list[str] | None]:
    """Names of the image and the label column, and the class names if labels are numbers."""
    features = _json(folder / "dataset_info.json").get("features")
    if not isinstance(features, dict):
        raise InputError(f"{folder / 'dataset_info.json'} describes no features: {SAVE_AGAIN}.")
    kinds = {name: value for name, value in features.items() if isinstance(value, dict)}
    images = [name for name, value in kinds.items() if value.get("_type") == "Image"]
    labels = [name for name, value in kinds.items() if value.get("_type") == "ClassLabel"]
    if not labels:  # labels written out as text
        labels = [
            n for n, v in kinds.items() if n == "label" and v.get("dtype") in ("string", "large_string")
        ]
    for columns, kind in ((images, "Image feature"), (labels, "ClassLabel feature or text feature `label`")):
        if len(columns) != 1:
            count = f"{len(columns)} features of the kind" if columns else "no"
            raise InputError(
                f"{folder} has {count} {kind} (features: {', '.join(features)}): keep exactly one with "
                f"select_columns() or cast_column(), then {SAVE_AGAIN}."
            )
    names = kinds[labels[0]].get("names")
    return images[0], labels[0], [str(name) for name in names] if names else None


def _cells(file: Path, image: str, label: str) -> Iterator[tuple[Any, Any]]:
    """(image, label) of each row, a record batch at a time."""
    import pyarrow

    try:
        with pyarrow.memory_map(str(file)) as file_map, pyarrow.ipc.open_stream(file_map) as stream:
            for batch in stream:
                # Arrow trusts the lengths and offsets in a file; using damaged ones ends the process.
                batch.validate(full=True)
                # One image at a time: a batch as Python objects would hold all its bytes twice.
                for cell, value in zip(batch.column(image), batch.column(label), strict=True):
                    yield cell.as_py(), value.as_py()
    except (OSError, KeyError, UnicodeDecodeError, pyarrow.ArrowException) as error:
        text = (str(error) or type(error).__name__).splitlines()[0][:160]
        raise InputError(f"{file} cannot be read as an Arrow stream ({text}): {SAVE_AGAIN}.") from None


def _label(value: Any, names: list[str] | None, place: str) -> str:
    if names is None and isinstance(value, str) and value.strip():
        return value
    if names is not None and isinstance(value, int) and 0 <= value < len(names):
        return names[value]
    raise InputError(f"{place} has no label ({value!r}): filter such rows out, then {SAVE_AGAIN}.")


def _kept(cell: Any, column: str, place: str) -> str:
    """Path of the cached file that holds an embedded image's bytes."""
    from vitrail.images.headers import HEAD_BYTES, image_kind

    data = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(data, bytes):
        raise InputError(
            f"{place} has no embedded bytes in the feature {column!r}, at most a path: "
            f"cast_column({column!r}, Image()) where the files are, then {SAVE_AGAIN}."
        )
    digest = hashlib.sha256(data).hexdigest()
    suffix = SUFFIX.get(image_kind(data[:HEAD_BYTES]) or "", ".bin")
    path = cache_dir().absolute() / "images" / digest[:2] / f"{digest}{suffix}"
    with writing(path):
        if path.is_file() and path.stat().st_size == len(data) and sha256_file(path) == digest:
            return str(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not `atomic_write`: two fsyncs for each of 60,000 images take minutes, and a file that a crash
        # left damaged is found by its digest above.
        temporary = path.with_name(f".vitrail-{secrets.token_hex(8)}.tmp")
        try:
            temporary.write_bytes(data)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    return str(path)


def _plain(folder: Path, name: object) -> str:
    """A name of something in the folder itself; with separators it could lead anywhere."""
    if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise InputError(
            f"{folder} names a part of itself {name!r}, which is not a plain name: {SAVE_AGAIN}."
        )
    return name


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: {SAVE_AGAIN}.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error}): {SAVE_AGAIN}.") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} is not a JSON object: {SAVE_AGAIN}.")
    return value

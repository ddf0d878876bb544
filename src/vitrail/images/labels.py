"""Reading the names of a model's classes."""

from __future__ import annotations

import json
from pathlib import Path

from vitrail.errors import InputError


def read_labels(path: str | Path) -> tuple[str, ...]:
    """Return the K class names in `path`, in the order of the model's outputs.

    A `.json` file holds one list of strings; any other file has one label per line (UTF-8). Space around
    a label is dropped. Raises `InputError` for a file that cannot be read, an empty label or a duplicate.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: give the file with one label per line.") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder: give the file with one label per line.") from None
    except PermissionError:
        raise InputError(f"{path} may not be read: give yourself read permission.") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text: save the labels as UTF-8, one per line.") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}): check the path.") from None
    if path.suffix.lower() == ".json":
        return _checked(path, _parse_json(path, text), "item")
    # Not splitlines(): that also breaks at form feeds and Unicode separators inside a label.
    lines = text.replace("\r\n", "\n").rstrip().split("\n") if text.strip() else []
    return _checked(path, lines, "line")


def _parse_json(path: Path, text: str) -> list[str]:
    try:
        labels = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error}): give one list of strings.") from None
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise InputError(f"{path} is not a list of strings: give the labels as one JSON list.")
    return labels


def _checked(path: Path, raw: list[str], unit: str) -> tuple[str, ...]:
    """Strip the labels; refuse an empty list, an empty label and duplicates, naming the place."""
    if not raw:
        raise InputError(f"{path} holds no labels: give one label per line.")
    seen: dict[str, int] = {}
    for number, label in enumerate((label.strip() for label in raw), start=1):
        if not label:
            raise InputError(f"{path} has an empty label at {unit} {number}: name it or remove it.")
        if label in seen:
            raise InputError(
                f'{path} has the label "{label}" at {unit}s {seen[label]} and {number}: make the two differ.'
            )
        seen[label] = number
    return tuple(seen)

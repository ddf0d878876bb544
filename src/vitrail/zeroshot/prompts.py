"""Class names and prompts: the user's input, checked before any model is loaded. Imports no torch.

A template is a sentence with one `{}`, where the class name goes. The sets are those of CLIP's authors
(https://github.com/openai/CLIP/blob/main/notebooks/Prompt_Engineering_for_ImageNet.ipynb): 80 sentences, and
the seven of them that a greedy search selected.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from vitrail.errors import InputError

__all__ = ["IMAGENET", "SETS", "SIMPLE", "class_names", "filled", "key", "parse_classes", "templates"]

PLACE = "{}"
MIN_CLASSES = 2

IMAGENET: tuple[str, ...] = (
    "a bad photo of a {}.",
    "a photo of many {}.",
    "a sculpture of a {}.",
    "a photo of the hard to see {}.",
    "a low resolution photo of the {}.",
    "a rendering of a {}.",
    "graffiti of a {}.",
    "a bad photo of the {}.",
    "a cropped photo of the {}.",
    "a tattoo of a {}.",
    "the embroidered {}.",
    "a photo of a hard to see {}.",
    "a bright photo of a {}.",
    "a photo of a clean {}.",
    "a photo of a dirty {}.",
    "a dark photo of the {}.",
    "a drawing of a {}.",
    "a photo of my {}.",
    "the plastic {}.",
    "a photo of the cool {}.",
    "a close-up photo of a {}.",
    "a black and white photo of the {}.",
    "a painting of the {}.",
    "a painting of a {}.",
    "a pixelated photo of the {}.",
    "a sculpture of the {}.",
    "a bright photo of the {}.",
    "a cropped photo of a {}.",
    "a plastic {}.",
    "a photo of the dirty {}.",
    "a jpeg corrupted photo of a {}.",
    "a blurry photo of the {}.",
    "a photo of the {}.",
    "a good photo of the {}.",
    "a rendering of the {}.",
    "a {} in a video game.",
    "a photo of one {}.",
    "a doodle of a {}.",
    "a close-up photo of the {}.",
    "a photo of a {}.",
    "the origami {}.",
    "the {} in a video game.",
    "a sketch of a {}.",
    "a doodle of the {}.",
    "a origami {}.",
    "a low resolution photo of a {}.",
    "the toy {}.",
    "a rendition of the {}.",
    "a photo of the clean {}.",
    "a photo of a large {}.",
    "a rendition of a {}.",
    "a photo of a nice {}.",
    "a photo of a weird {}.",
    "a blurry photo of a {}.",
    "a cartoon {}.",
    "art of a {}.",
    "a sketch of the {}.",
    "a embroidered {}.",
    "a pixelated photo of a {}.",
    "itap of the {}.",
    "a jpeg corrupted photo of the {}.",
    "a good photo of a {}.",
    "a plushie {}.",
    "a photo of the nice {}.",
    "a photo of the small {}.",
    "a photo of the weird {}.",
    "the cartoon {}.",
    "art of the {}.",
    "a drawing of the {}.",
    "a photo of the large {}.",
    "a black and white photo of a {}.",
    "the plushie {}.",
    "a dark photo of a {}.",
    "itap of a {}.",
    "graffiti of the {}.",
    "a toy {}.",
    "itap of my {}.",
    "a photo of a cool {}.",
    "a photo of a small {}.",
    "a tattoo of the {}.",
)

SIMPLE: tuple[str, ...] = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)

SETS: dict[str, tuple[str, ...]] = {"imagenet": IMAGENET, "simple": SIMPLE}


def templates(source: str) -> tuple[str, ...]:
    """The templates of a set, or of a file with one per line (UTF-8; empty lines and outer spaces dropped).

    Raises:
        InputError: neither a set nor a readable file; a line without exactly one `{}`; a repeated line.
    """
    if source in SETS:
        return SETS[source]
    path = Path(source)
    seen: dict[str, int] = {}
    for number, line in enumerate(_lines(path, source), start=1):
        template = line.strip()
        if not template:
            continue
        if template.count(PLACE) != 1:
            raise InputError(
                f"{path} has {template.count(PLACE) or 'no'} {PLACE} at line {number}: write exactly one in "
                "each template, where the class name goes."
            )
        if template in seen:
            raise InputError(
                f"{path} has the same template at lines {seen[template]} and {number}: remove one of them."
            )
        seen[template] = number
    if not seen:
        raise InputError(f"{path} has no templates: write one per line, such as `a photo of a {PLACE}.`")
    return tuple(seen)


def filled(template: str, name: str) -> str:
    """The template with the class name filled in; the name may itself contain braces."""
    before, _, after = template.partition(PLACE)
    return f"{before}{name}{after}"


def parse_classes(source: str) -> tuple[str, ...]:
    """The value of `--classes`: a file with one name per line (or a JSON list), or names separated by commas.

    A name that contains a comma needs a file.

    Raises:
        InputError: as `class_names`; a file that cannot be read; neither a file nor a list with commas.
    """
    path = Path(source)
    if _is_file(path):
        from vitrail.images.labels import read_labels

        return class_names(read_labels(path), source=source)
    if "," not in source:
        raise InputError(
            f"{source!r} is neither a file nor several class names: separate names with commas, such as "
            "--classes 'cat,dog', or give a file with one per line."
        )
    return class_names(source.split(","), source="--classes")


def class_names(names: Iterable[str], *, source: str = "The list of classes") -> tuple[str, ...]:
    """The names without surrounding spaces, in the same order.

    Raises:
        InputError: an empty name, fewer than two names, or two that a person would read as the same (`key`).
    """
    stripped = [name.strip() for name in names]
    seen: dict[str, int] = {}
    for number, name in enumerate(stripped, start=1):
        if not name:
            raise InputError(
                f"{source} has an empty name at position {number}: name that class, or remove it."
            )
        first = seen.setdefault(key(name), number)
        if first != number:
            raise InputError(
                f"{source} names the same class at positions {first} and {number} "
                f"({stripped[first - 1]!r} and {name!r}): make them different, or remove one."
            )
    if len(stripped) < MIN_CLASSES:
        only = f"only {stripped[0]!r}" if stripped else "no class"
        raise InputError(f"{source} names {only}: give at least two classes to choose between.")
    return tuple(stripped)


def key(name: str) -> str:
    """The same for all spellings of a class name: caseless (Unicode D145), composed, with single spaces."""
    decomposed = unicodedata.normalize("NFD", unicodedata.normalize("NFD", name).casefold())
    return " ".join(unicodedata.normalize("NFC", decomposed).split())


def _lines(path: Path, source: str) -> Sequence[str]:
    if not _is_file(path):
        raise InputError(
            f"{source!r} is neither a set of prompts ({', '.join(SETS)}) nor a file: give a file with one "
            "template per line."
        )
    try:
        return path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text: save the templates as UTF-8, one per line.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): check its permissions.") from None


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a long list of names cannot be a path
        return False

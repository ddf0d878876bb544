"""What there is to embed: a folder of images, one image, or a file with one text a line."""

from __future__ import annotations

from pathlib import Path

from vitrail.errors import InputError
from vitrail.images.find import images_below

__all__ = ["image_paths", "text_lines"]


def image_paths(path: str) -> list[str]:
    """The image itself, or all images below the folder (images/find.py says what one is), sorted.

    Each path begins with `path` as given.

    Raises:
        InputError: it does not exist, or it is a folder without images.
    """
    root = Path(path)
    if root.is_file():
        return [path]
    if not root.is_dir():
        raise InputError(f"{path} does not exist: give a folder of images, an image, or texts with --text.")
    found = images_below(root)
    if not found:
        raise InputError(f"{path} holds no images: put image files in it.")
    return found


def text_lines(path: str) -> list[str]:
    """The lines of a UTF-8 file, stripped; blank lines are skipped.

    Raises:
        InputError: the file cannot be read, is not UTF-8, or holds no text.
    """
    try:
        content = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}): give a file with one text a line."
        ) from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text: save it as UTF-8, one text a line.") from None
    # Not splitlines: it also splits at separators that a text may contain.
    texts = [line.strip() for line in content.split("\n") if line.strip()]
    if not texts:
        raise InputError(f"{path} holds no text: write one text a line.")
    return texts

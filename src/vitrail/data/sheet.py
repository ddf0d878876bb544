"""A contact sheet: one row of small images per class, with its name and counts."""

from __future__ import annotations

import io
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING

from vitrail.data.records import SPLITS, Dataset
from vitrail.errors import InputError
from vitrail.store import atomic_write

if TYPE_CHECKING:
    from PIL import Image, ImageDraw, ImageFont

    Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG"}
SIDE = 112
"""Pixels of the square that an image is fitted into."""
GAP = 6
NAME_WIDTH = 210
TEXT_SIZE = 15
MAX_CLASSES = 200
"""Rows of a sheet; a JPEG ends at 65,535 pixels, and a reader's patience sooner."""
MAX_PER_CLASS = 50
"""Columns of a sheet: with all rows it takes 0.4 GB while being drawn."""

# Pillow's own font has only ASCII letters. These are looked for in the system's font folders.
FONTS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "LiberationSans-Regular.ttf", "Arial.ttf", "arial.ttf")

BACKGROUND, INK, PALE, CELL = (255, 255, 255), (30, 30, 30), (110, 110, 110), (236, 236, 236)


def check_sheet(path: str | Path) -> None:
    """Raise InputError unless `path` can be a contact sheet: its suffix, and a folder that exists."""
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"The contact sheet {path} is neither JPEG nor PNG: end its name in .jpg or .png.")
    if not path.absolute().parent.is_dir():
        raise InputError(f"The folder of {path} does not exist: make it first.")


def write_sheet(dataset: Dataset, path: str | Path, *, per_class: int = 8) -> int:
    """Write the sheet, `per_class` evenly spaced images of each class; return how many classes are on it.

    Raises InputError if the file cannot be written.
    """
    check_sheet(path)
    image = draw(dataset, per_class=per_class)
    buffer = io.BytesIO()
    image.save(buffer, FORMATS[Path(path).suffix.lower()], quality=88)
    atomic_write(path, buffer.getvalue())
    return min(len(dataset.classes), MAX_CLASSES)


def draw(dataset: Dataset, *, per_class: int) -> Image.Image:
    """The sheet as an RGB image; with more than `MAX_CLASSES` classes, only the first ones."""
    from PIL import Image, ImageDraw

    from vitrail.images.photos import evenly_spaced

    shown = dataset.classes[:MAX_CLASSES]
    paths = [
        evenly_spaced([e.path for e in dataset.examples if e.label == label], per_class)
        for label in range(len(shown))
    ]
    width = NAME_WIDTH + max(map(len, paths)) * (SIDE + GAP) + GAP
    sheet = Image.new("RGB", (width, GAP + len(shown) * (SIDE + GAP)), BACKGROUND)
    canvas, font = ImageDraw.Draw(sheet), _font()
    counts = dataset.counts()
    for row, name in enumerate(shown):
        top = GAP + row * (SIDE + GAP)
        canvas.text((GAP, top), _fitted(canvas, legible(name, font), font), INK, font)
        for line, split in enumerate(SPLITS, start=1):
            text = f"{counts[name][split]} {split}"
            canvas.text((GAP, top + line * (TEXT_SIZE + GAP)), text, PALE, font)
        for column, path in enumerate(paths[row]):
            sheet.paste(_cell(path), (NAME_WIDTH + column * (SIDE + GAP), top))
    return sheet


def _cell(path: str) -> Image.Image:
    """The whole image in the middle of a square; small ones are enlarged to its width or height."""
    from PIL import Image, ImageOps

    from vitrail.images.decode import decode, frame_of

    image = decode(path, short_side=SIDE)
    left, top, right, bottom = frame_of(image).box
    image = image.crop((round(left), round(top), round(right), round(bottom)))
    return ImageOps.pad(image, (SIDE, SIDE), Image.Resampling.BICUBIC, color=CELL)


def _fitted(canvas: ImageDraw.ImageDraw, name: str, font: Font) -> str:
    """The name, or as much of it as fits next to the images."""
    if canvas.textlength(name, font) <= NAME_WIDTH - 2 * GAP:
        return name
    while name and canvas.textlength(name + "…", font) > NAME_WIDTH - 2 * GAP:
        name = name[:-1]
    return name + "…"


def _font() -> Font:
    """A system font with letters beyond ASCII, else Pillow's own."""
    from PIL import ImageFont

    for name in FONTS:
        try:
            return ImageFont.truetype(name, TEXT_SIZE)
        except OSError:  # not on this system
            continue
    return ImageFont.load_default(TEXT_SIZE)


def legible(name: str, font: Font) -> str:
    """The name with letters that the font lacks replaced by their base letter, else by a question mark."""
    nothing = _drawn("\uffff", font)  # no font has this one, so it shows what a missing letter looks like

    def spelled(letter: str) -> str:
        if letter.isspace() or _drawn(letter, font) != nothing:
            return letter
        base = unicodedata.normalize("NFKD", letter)[0]
        return base if _drawn(base, font) != nothing else "?"

    return "".join(map(spelled, name))


def _drawn(letter: str, font: Font) -> bytes:
    return bytes(font.getmask(letter))

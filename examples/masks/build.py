"""Emoji pasted on photos: pictures whose masks and boxes are known, one drawing style kept apart.

    python examples/masks/build.py --packages emoji --out emoji-on-photos [--pictures 2400] [--side 128]

`--packages` is a folder with four npm packages, as examples/emoji takes them; what is not there is fetched
with npm. `seen/` holds the styles that may be learned from, `unseen/` the one kept apart, on other photos. In
each: `images/`, `masks/` (a number for each pixel: 0 is the photo, 1 to 10 the classes), and
`instances.json` with every object's mask and box as COCO has them. The same arguments give the same pictures.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vitrail.images.decode import decode
from vitrail.images.photos import photo_folder, sample_photos
from vitrail.masks import rle

sys.path.insert(0, str(Path(__file__).parents[1] / "emoji"))
import prepare

CLASSES = {
    "mammal": ("animal mammal",),
    "bird": ("animal bird",),
    "fish": ("animal marine",),
    "flower": ("plant flower",),
    "fruit": ("food fruit",),
    "dish": ("food prepared", "food asian"),
    "sweet": ("food sweet",),
    "vehicle": ("transport ground",),
    "clothing": ("clothing",),
    "face": ("face smiling", "face affection"),
}
"""What pixels are called -> the emoji's kinds."""
UNSEEN_SHARE = 0.25
"""Of all pictures, those of the unseen style."""
MOST_OBJECTS = 3
SIZES = (0.28, 0.62)
"""Of an object, as a share of the picture's side."""
MOST_TURNED = 25.0
"""Degrees."""
SOLID = 128
"""Alpha from which a pixel is the object's."""
LEAST_SHOWN = 0.5
"""Share of an object that those pasted over it must leave; else it is not pasted."""
QUALITY = 90


@dataclass(frozen=True, kw_only=True)
class Placed:
    """One object of a picture."""

    label: int
    """1 to 10."""
    mask: np.ndarray
    """(S, S): the pixels that show it."""


def main(arguments: Sequence[str] | None = None) -> int:
    args = _arguments(arguments)
    unpacked = prepare.packages(Path(args.packages))
    drawings = drawings_of(unpacked, args.unseen)
    photos = _photos(args.photos)
    counted: dict[str, Any] = {}
    for part, share, pick in (("seen", 1 - UNSEEN_SHARE, 0), ("unseen", UNSEEN_SHARE, 1)):
        count = round(args.pictures * share)
        # Every fourth photo is the unseen part's: no background is in both.
        own = [photo for i, photo in enumerate(photos) if (i % 4 == 3) == bool(pick)]
        counted[part] = build(Path(args.out) / part, drawings[part], own, count, args.side, seed=pick)
        print(f"{part}: {counted[part]}", flush=True)
    (Path(args.out) / "labels.txt").write_text("\n".join(["photo", *CLASSES]) + "\n", encoding="utf-8")
    print(json.dumps({"classes": list(CLASSES), "unseen_style": args.unseen, **counted}))
    return 0


def drawings_of(unpacked: dict[str, Path], unseen: str) -> dict[str, list[list[Path]]]:
    """The files of each class, of the styles that may be learned from and of the one that may not."""
    known = prepare.emojis(unpacked[unseen], None)
    kinds = {kind: place for place, kinds in enumerate(CLASSES.values()) for kind in kinds}
    found: dict[str, list[list[Path]]] = {part: [[] for _ in CLASSES] for part in ("seen", "unseen")}
    for emoji in known:
        if emoji.kind in kinds:
            for style, package in unpacked.items():
                part = "unseen" if style == unseen else "seen"
                found[part][kinds[emoji.kind]].append(package / "img" / style / "64" / emoji.file)
    for name, files in zip(CLASSES, found["unseen"], strict=True):
        assert files, f"no emoji of {name} in these packages"
    return found


def build(
    folder: Path,
    drawings: list[list[Path]],
    photos: Sequence[Image.Image],
    count: int,
    side: int,
    *,
    seed: int,
) -> dict[str, int]:
    """Write `count` pictures of `side` pixels with their masks; how many objects of each class they show."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, side])
    images, annotations = [], []
    for number in range(count):
        picture, placed = composed(drawings, photos, side, rng)
        stem = f"{number:05d}"
        picture.save(folder / "images" / f"{stem}.jpg", quality=QUALITY)
        labels = np.zeros((side, side), np.uint8)
        for each in placed:
            labels[each.mask] = each.label
        Image.fromarray(labels).save(folder / "masks" / f"{stem}.png")
        images.append({"id": number, "file_name": f"{stem}.jpg", "width": side, "height": side})
        annotations += [_annotation(each, number, len(annotations) + i) for i, each in enumerate(placed)]
    categories = [{"id": i, "name": name} for i, name in enumerate(CLASSES, start=1)]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "instances.json").write_text(json.dumps(document) + "\n")
    shown = [each["category_id"] for each in annotations]
    return {name: shown.count(i) for i, name in enumerate(CLASSES, start=1)}


def composed(
    drawings: list[list[Path]], photos: Sequence[Image.Image], side: int, rng: np.random.Generator
) -> tuple[Image.Image, list[Placed]]:
    """A piece of a photo with one to three objects on it, the later ones over the earlier."""
    picture = _background(photos[rng.integers(len(photos))], side, rng)
    placed: list[Placed] = []
    for _ in range(rng.integers(1, MOST_OBJECTS + 1)):
        label = int(rng.integers(len(drawings)))
        files = drawings[label]
        drawn = _drawn(files[rng.integers(len(files))], side, rng)
        left, top = (int(rng.integers(0, side - length + 1)) for length in drawn.size)
        layer = Image.new("RGBA", (side, side))
        layer.paste(drawn, (left, top))
        mask = np.asarray(layer.getchannel("A")) >= SOLID
        left_of = [Placed(label=each.label, mask=each.mask & ~mask) for each in placed]
        if any(a.mask.sum() < LEAST_SHOWN * b.mask.sum() for a, b in zip(left_of, placed, strict=True)):
            continue
        picture = Image.alpha_composite(picture.convert("RGBA"), layer).convert("RGB")
        placed = [*left_of, Placed(label=label + 1, mask=mask)]
    return picture, placed


def _background(photo: Image.Image, side: int, rng: np.random.Generator) -> Image.Image:
    """A square of the photo, from a third of its short side to all of it."""
    length = int(min(photo.size) * rng.uniform(1 / 3, 1.0))
    left, top = (int(rng.integers(0, whole - length + 1)) for whole in photo.size)
    piece = photo.crop((left, top, left + length, top + length))
    found = piece.resize((side, side), Image.Resampling.BILINEAR)
    return found.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else found


def _drawn(file: Path, side: int, rng: np.random.Generator) -> Image.Image:
    """The emoji, resized, turned and perhaps mirrored, cut to what is not transparent."""
    with Image.open(file) as picture:
        drawn = picture.convert("RGBA")
    length = max(int(side * rng.uniform(*SIZES)), 8)
    drawn = drawn.resize((length, length), Image.Resampling.LANCZOS)
    drawn = drawn.rotate(rng.uniform(-MOST_TURNED, MOST_TURNED), Image.Resampling.BICUBIC, expand=True)
    if rng.random() < 0.5:
        drawn = drawn.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    drawn = drawn.crop(drawn.getchannel("A").getbbox())
    drawn.thumbnail((side, side))
    return drawn


def _annotation(placed: Placed, image: int, number: int) -> dict[str, Any]:
    runs = rle.encode(placed.mask)
    return {
        "id": number + 1,
        "image_id": image,
        "category_id": placed.label,
        "segmentation": runs.coco(),
        "area": runs.area,
        "bbox": list(runs.box),
        "iscrowd": 0,
    }


def _photos(folder: str | None) -> list[Image.Image]:
    found = sample_photos() if folder is None else photo_folder(folder)
    return [decode(path).convert("RGB") for path in found.paths]


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--packages", default="emoji", help="folder with the npm packages (emoji)")
    parser.add_argument("--out", default="emoji-on-photos", help="folder to write (emoji-on-photos)")
    parser.add_argument("--photos", help="folder of photos to paste on (the sample photos)")
    parser.add_argument("--pictures", type=int, default=2400, help="in all (2400)")
    parser.add_argument("--side", type=int, default=128, help="pixels of a side (128)")
    parser.add_argument("--unseen", choices=prepare.STYLES, default="twitter", help="style kept apart")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())

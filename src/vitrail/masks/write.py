"""Masks as files: PNG, an overlay, a cut-out, and COCO's JSON of all photos.

In the folder: `masks/NAME.png` (numbers of classes as a palette, or 0 and 255), `overlays/NAME.jpg`, of a
cut-out `alpha/NAME.png` and `cutouts/NAME.png`, and `masks.json`. What `masks.folder` and `masks.coco` read.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vitrail.masks import pictures, rle
from vitrail.masks.overlay import colours, overlay
from vitrail.store import writing
from vitrail.words import utf8_all

__all__ = ["DOCUMENT", "MaskFolder"]

DOCUMENT = "masks.json"


class MaskFolder:
    """A folder that masks are written into, photo by photo.

    Args:
        folder: exists already.
        classes: (name, number in the PNG masks) of each.
        single: whether masks are of one thing: 0 outside, 255 inside.
    """

    def __init__(self, folder: Path, classes: Sequence[tuple[str, int]], *, single: bool) -> None:
        self.folder, self.classes, self._single = folder, classes, single
        self._colours = colours(max(number for _, number in classes) + 1)
        self._names: set[str] = set()
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []

    def add(self, path: str, photo: Image.Image, labels: np.ndarray, alpha: np.ndarray | None = None) -> str:
        """Write the masks of an RGB photo from labels (H, W), alpha (H, W) in [0, 1]; the name of its files.

        Raises:
            InputError: a file cannot be written.
        """
        name, image = self._name(path), self._image(path, labels.shape)
        found = {number: labels == number for _, number in self.classes if (labels == number).any()}
        for number, mask in found.items():
            self._annotate(image, number, mask)
        drawn = pictures.of_inside(labels) if self._single else pictures.of_labels(labels, len(self._colours))
        self._save("masks", f"{name}.png", drawn)
        drawn = overlay(photo, list(found.values()), colour=[self._colours[number] for number in found])
        self._save("overlays", f"{name}.jpg", drawn, quality=90)
        if alpha is not None:
            self._save("alpha", f"{name}.png", pictures.of_alpha(alpha))
            self._save("cutouts", f"{name}.png", pictures.cut_out(photo, alpha))
        return name

    def add_objects(self, path: str, photo: Image.Image, objects: Sequence[tuple[np.ndarray, float]]) -> str:
        """Write the masks of single things in an RGB photo, each with its score; the name of its files.

        Several have a file each, `masks/NAME-001.png` and so on: they may overlap.

        Raises:
            InputError: a file cannot be written.
        """
        name, image = self._name(path), self._image(path, (photo.height, photo.width))
        ((_, number),) = self.classes
        for place, (mask, score) in enumerate(objects, start=1):
            self._annotate(image, number, mask, score=round(float(score), 4))
            drawn = pictures.of_inside(mask)
            self._save("masks", f"{name}.png" if len(objects) == 1 else f"{name}-{place:03d}.png", drawn)
        drawn = overlay(photo, [mask for mask, _ in objects], colour=colours(len(objects)))
        self._save("overlays", f"{name}.jpg", drawn, quality=90)
        return name

    def _image(self, path: str, size: Sequence[int]) -> int:
        """Note a photo of (H, W); its id."""
        number = len(self._images) + 1
        self._images.append({"id": number, "file_name": path, "height": size[0], "width": size[1]})
        return number

    def _annotate(self, image: int, category: int, mask: np.ndarray, **more: Any) -> None:
        runs = rle.encode(mask)
        self._annotations.append(
            {
                "id": len(self._annotations) + 1,
                "image_id": image,
                "category_id": category,
                "segmentation": runs.coco(),
                "area": runs.area,
                "bbox": list(runs.box),
                "iscrowd": 0,
                **more,
            }
        )

    def end(self, origin: str) -> None:
        """Write COCO's JSON of all photos; `origin` says what made the masks. Raises InputError as `add`."""
        document = {
            "info": {"description": f"masks by {origin}"},
            "images": self._images,
            "annotations": self._annotations,
            "categories": [{"id": number, "name": name} for name, number in self.classes],
        }
        with writing(self.folder / DOCUMENT):
            text = json.dumps(utf8_all(document), ensure_ascii=False, allow_nan=False)
            (self.folder / DOCUMENT).write_text(text + "\n", encoding="utf-8")

    def _name(self, path: str) -> str:
        """The photo's own name, with a number where another has it."""
        stem, count = Path(path).stem or "photo", 1
        name = stem
        while name.casefold() in self._names:
            count += 1
            name = f"{stem}-{count}"
        self._names.add(name.casefold())
        return name

    def _save(self, folder: str, name: str, image: Image.Image, **options: Any) -> None:
        place = self.folder / folder / name
        with writing(place):
            place.parent.mkdir(exist_ok=True)
            image.save(place, **options)

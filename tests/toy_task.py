"""A task in one file: the mean colour of an image. `test_toys.py` gives it its row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import msgspec
import numpy as np
from PIL import Image

from vitrail.images.preprocess import crops, prepare_batch
from vitrail.tasks import Arrays, Bounds, Column, Comparison, agreement
from vitrail.vocabulary import Graph, Parity, Preprocess, Stage, TensorSpec


@dataclass(frozen=True, kw_only=True)
class Colour:
    """Images -> the name of the channel that is strongest."""

    preprocess: Preprocess
    name: str = "colour"
    metric: ClassVar[str] = "mean IoU"
    metric_name: ClassVar[str] = "mean IoU"
    request: ClassVar[str] = "decode, preprocess, run, compare"
    kept: ClassVar[str] = "colour"
    most_views: ClassVar[int] = 8
    shell: ClassVar[str] = "vitrail paint {folder}"
    python: ClassVar[str] = "print(model)"
    table_options: ClassVar[Mapping[str, Any]] = {}
    sorted_by: ClassVar[str | None] = "colour"
    stages: ClassVar[tuple[Stage, ...]] = ()

    def graph(self, entry: str) -> Graph:
        """images (B, 3, S, S) -> channels (B, 3)."""
        size = self.preprocess.image_size
        return Graph(
            entry=entry,
            inputs=(TensorSpec(name="images", shape=("B", 3, size, size)),),
            outputs=(TensorSpec(name="channels", shape=("B", 3)),),
        )

    def graphs(self, entry: str) -> tuple[Graph, ...]:
        """The one."""
        return (self.graph(entry),)

    def prepare(self, images: Sequence[Image.Image]) -> Arrays:
        """As any image."""
        return {"images": prepare_batch(images, self.preprocess)}

    def views(self, image: Image.Image, count: int) -> Arrays:
        """As any image."""
        return {"images": crops(image, self.preprocess, count)}

    def finish(self, outputs: Mapping[str, np.ndarray]) -> list[str]:
        """red, green or blue."""
        return [("red", "green", "blue")[k] for k in outputs["channels"].argmax(axis=1)]

    def columns(self) -> tuple[Column, ...]:
        """The name."""
        return (Column(name="colour", kind="text"),)

    def rows(self, outputs: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
        """As `columns`."""
        return [{"colour": name} for name in self.finish(outputs)]

    def groups(self) -> tuple[str, ...]:
        """All names."""
        return ("red", "green", "blue")

    def compare(
        self, reference: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray], precision: str
    ) -> Parity:
        """By cosine alone."""
        a, b = reference["channels"], outputs["channels"]
        cosine = float(agreement.cosines(a, b).min())
        return Parity(
            answer="pass" if cosine > 0.99 else "fail",
            cosine=cosine,
            relative_error=float(agreement.relative_errors(a, b).max()),
            photos=len(a),
            decided=len(a),
            agreeing=len(a),
            loss=None,
            loss_bound=None,
        )

    def checks(
        self, reference: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray], bounds: Bounds
    ) -> list[Comparison]:
        """By the numbers."""
        return agreement.numeric(reference["channels"], outputs["channels"], bounds)

    def bounds(self, precision: str) -> Bounds:
        """A classifier's."""
        return agreement.BOUNDS[precision]

    def lost(self, *_: object) -> float:
        """Nothing."""
        return 0.0

    def score(self, *_: object, **__: object) -> None:
        """Nothing."""

    def facts(self) -> dict[str, Any]:
        """Name and preprocess."""
        return {"name": self.name, "preprocess": msgspec.to_builtins(self.preprocess)}

    def files(self) -> dict[str, bytes]:
        """None."""
        return {}

    @classmethod
    def of_export(cls, preprocess: Preprocess, facts: Mapping[str, Any], file: object) -> Colour:
        """From the preprocess."""
        return cls(preprocess=preprocess)

    @classmethod
    def read(cls, facts: Mapping[str, Any], file: Callable[[str], bytes]) -> Colour:
        """From an artifact's facts."""
        return cls(preprocess=msgspec.convert(facts["preprocess"], Preprocess))

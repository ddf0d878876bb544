"""Label sets: `imagenet-1k`, from timm's tables, or a file with one label per line."""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path

from vitrail.errors import InputError
from vitrail.images.labels import read_labels

__all__ = ["labels"]


@cache
def labels(name: str) -> tuple[str, ...]:
    """The K labels of a label set, in the order of the model's outputs.

    Raises:
        InputError: neither a known label set nor a readable file.
    """
    if name == "imagenet-1k":
        return _imagenet()
    path = Path(name)
    if not path.is_file():
        raise InputError(
            f"There is no label set {name!r}: use imagenet-1k or a file of labels, one per line."
        )
    return read_labels(path)


def _imagenet() -> tuple[str, ...]:
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    indices = range(info.num_classes())
    names = [info.index_to_description(i, detailed=False) for i in indices]
    # WordNet has two cranes and two maillots; only the definition tells them apart.
    times = Counter(names)
    return tuple(
        name if times[name] == 1 else info.index_to_description(i, detailed=True).split(";")[0]
        for i, name in zip(indices, names, strict=True)
    )

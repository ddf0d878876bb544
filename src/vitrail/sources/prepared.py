"""How a person says that images are prepared for their own ONNX file: a TOML file, never a guess."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec

from vitrail.errors import InputError
from vitrail.images.preprocess import check_preprocess
from vitrail.requirements import read_toml
from vitrail.units import nearest
from vitrail.vocabulary import Preprocess
from vitrail.words import shown

__all__ = ["Prepared", "example", "prepared"]

Layout = Literal["NCHW", "NHWC"]
Channels = Literal["RGB", "BGR"]
Values = Literal["logits", "probabilities"]
RANGES = (1, 255)
REQUIRED = ("image_size", "crop", "crop_mode", "interpolation", "range", "mean", "std")
OPTIONAL = ("layout", "channels", "input", "output", "values")
CHOICES = {
    "crop_mode": ("center", "squash"),
    "interpolation": ("bicubic", "bilinear"),
    "layout": get_args(Layout),
    "channels": get_args(Channels),
    "values": get_args(Values),
}


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What a person says of the images and scores of their file."""

    preprocess: Preprocess
    """For pixels from 0 to 1 in the order RGB, whatever the file takes."""
    layout: Layout | None = None
    channels: Channels = "RGB"
    input: str = ""
    output: str = ""
    values: Values | None = None
    """What the maps of masks hold; None: as the file shows."""


def prepared(said: str | Path | Mapping[str, object]) -> Prepared:
    """Read a TOML file, or the same keys from a mapping.

    Raises:
        InputError: a file that cannot be read, or a key that is missing, unknown or out of range.
    """
    where = "preprocess" if isinstance(said, Mapping) else str(said)
    keys = dict(said) if isinstance(said, Mapping) else read_toml(Path(said), "preprocessing")
    for name in keys:
        if name not in (*REQUIRED, *OPTIONAL):
            known = ", ".join((*REQUIRED, *OPTIONAL))
            hint = nearest(str(name), (*REQUIRED, *OPTIONAL))
            raise InputError(f"{where} has an unknown key {str(name)!r}: use {known}.{hint}")
    if missing := [name for name in REQUIRED if name not in keys]:
        raise InputError(
            f"{where} does not say {', '.join(missing)}: say how the model's images were prepared in its "
            "training (without --preprocess, an example to edit is printed)."
        )
    for name, choices in CHOICES.items():
        if name in keys and keys[name] not in choices:
            raise InputError(f"{where}: {name} is {keys[name]!r}: use {' or '.join(choices)}.")
    scale = keys["range"]
    if isinstance(scale, bool) or scale not in RANGES:
        raise InputError(
            f"{where}: range is {scale!r}: use 1 where mean and std are of pixels from 0 to 1, 255 where "
            "they are of pixels from 0 to 255."
        )
    return _record(keys, 255.0 if scale == 255 else 1.0, where)


def _record(keys: Mapping[str, Any], scale: float, where: str) -> Prepared:
    turned = keys.get("channels") == "BGR"
    try:
        mean, std = (_three(keys[name], name) for name in ("mean", "std"))
        if turned:
            mean, std = mean[::-1], std[::-1]
        preprocess = msgspec.convert(
            {
                **{name: keys[name] for name in ("image_size", "crop", "crop_mode", "interpolation")},
                "mean": [value / scale for value in mean],
                "std": [value / scale for value in std],
            },
            Preprocess,
        )
        check_preprocess(preprocess)
        rest = {name: keys[name] for name in OPTIONAL if name in keys}
        for name in ("input", "output"):
            if not isinstance(rest.get(name, ""), str):
                raise InputError(f"{name} is {rest[name]!r}: give its name as text.")
    except msgspec.ValidationError as error:
        raise InputError(f"{where}: {error}: give image_size and crop as in the example.") from None
    except InputError as error:
        scaled = " (divided by 255, as range says)" if scale == 255 else ""
        raise InputError(f"{where}{scaled}: {error}") from None
    return Prepared(preprocess=preprocess, **rest)


def _three(values: object, name: str) -> Sequence[float]:
    if (
        not isinstance(values, Sequence)
        or len(values) != 3
        or any(isinstance(value, bool) or not isinstance(value, int | float) for value in values)
    ):
        raise InputError(f"{name} is {values!r}: give three numbers, one for each channel.")
    return values


def example(facts: Mapping[str, Any], file: str, task: str = "classify") -> str:
    """A TOML file to edit, with what the file's inputs and outputs show (`own_onnx.inspect`)."""
    whole = task == "segment"
    answer = "maps" if whole else "a row"
    (name, shape), (output, scores) = facts["inputs"][0], facts["outputs"][0]
    last = len(shape) == 4 and shape[3] == 3 and shape[1] != 3
    sides = shape[1:3] if last else shape[2:4]
    inside = bool(facts["uint8"])
    mean, std = ("[0, 0, 0]", "[1, 1, 1]") if inside else ("[0.485, 0.456, 0.406]", "[0.229, 0.224, 0.225]")
    lines = [
        (
            "image_size",
            next((side for side in sides if side), 224),
            "side of the square that the model sees, in pixels",
        ),
        (
            "crop",
            1.0 if whole else 0.875,
            "image_size / what photos are resized to before the cut; 1.0: nothing is cut",
        ),
        (
            "crop_mode",
            '"squash"' if whole else '"center"',
            '"center": short side resized, middle cut; "squash": both sides resized',
        ),
        ("interpolation", '"bicubic"', 'or "bilinear"'),
        ("range", 255 if inside else 1, "mean and std are of pixels from 0 to this: 1 or 255"),
        ("mean", mean, "[0, 0, 0] where the model subtracts it itself"),
        ("std", std, "[1, 1, 1] where the model divides by it itself"),
        ("layout", '"NHWC"' if last else '"NCHW"', "B images, C channels, H × W pixels: NCHW or NHWC"),
        ("channels", '"RGB"', 'or "BGR"'),
        ("input", _text(name), _shown(shape) + _others(facts["inputs"])),
        (
            "output",
            _text(output),
            f"{_shown(scores)}, {answer} of scores for each image{_others(facts['outputs'])}",
        ),
    ]
    title = f"# How images are prepared for {shown(file)}: make each line say what its training did."
    return "\n".join([title, *(f"{key} = {value}  # {why}" for key, value, why in lines), ""])


def _others(there: Sequence[Sequence[Any]]) -> str:
    if len(there) == 1:
        return ""
    return "; others: " + ", ".join(f"{shown(name)} {_shown(shape)}" for name, shape in there[1:6])


def _shown(shape: Sequence[int | None]) -> str:
    return f"({', '.join('?' if side is None else str(side) for side in shape)})"


def _text(name: str) -> str:
    """A TOML string of any name."""
    return json.dumps(name, ensure_ascii=True)

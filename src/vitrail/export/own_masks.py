"""A person's own ONNX file that answers with masks: where its maps lie and what their values are.

Shapes: B images, K classes (1: a cut-out), h w a map.
"""

from __future__ import annotations

import math

import numpy as np

from vitrail.errors import InputError
from vitrail.export.onnx_copy import Scores
from vitrail.export.requests import OwnGraph, OwnRequest
from vitrail.masks.dense import probability
from vitrail.words import counted

__all__ = ["MOST_VALUES", "check_ending", "notes", "placed"]

MOST_VALUES = 1 << 24
"""K × h × w, 64 MiB: parity holds the maps of 16 photos twice."""
CLOSE = 1e-4
"""How far a Sigmoid may be from what the file gives."""
UNLIKE = 1e-3
"""Share of the pixels whose best class may differ from the file's own, by rounding."""


def placed(given: np.ndarray, own: OwnGraph, request: OwnRequest, scores: Scores) -> OwnGraph:
    """How the maps of an output lie, from what it is for some images.

    Raises:
        InputError: it is no map for each class, or too large to be compared.
    """
    shape = f"({', '.join(map(str, ('B', *given.shape[1:])))})"
    said = f"{request.file} gives {own.output} {shape}"
    count = request.classes
    if given.ndim == 3 and min(given.shape[1:]) > 1:
        maps, found, sides = "NHW", 1, given.shape[1:]
    elif given.ndim == 4 and sum(side > 1 for side in given.shape[1:]) > 1:
        last = given.shape[3] == count and (own.layout == "NHWC" or given.shape[1] != count)
        maps, found = ("NHWC", given.shape[3]) if last else ("NCHW", given.shape[1])
        sides = given.shape[1:3] if last else given.shape[2:]
    else:
        raise InputError(
            f"{said}, not a map of scores for each image: name an output (B, K, h, w) in --preprocess, or "
            "leave --task segment out for a classifier."
        )
    if found != count:
        raise InputError(
            f"{said}, {counted(found, 'map')} for each image, and --labels holds {counted(count, 'label')}: "
            + (
                "give one, the name of what it cuts out."
                if found == 1
                else "give one for each map, in order."
            )
        )
    if math.prod((count, *sides)) > MOST_VALUES:
        raise InputError(
            f"{said}, {math.prod((count, *sides)):,} values for each image and above the limit of "
            f"{MOST_VALUES:,}: export it without its last enlargement, which Vitrail does itself."
        )
    return OwnGraph(
        **{name: getattr(own, name) for name in own.__struct_fields__ if name not in FOUND},
        maps=maps,  # type: ignore[arg-type]
        values=_values(given, scores, request),
        sides=(int(sides[0]), int(sides[1])),
    )


FOUND = ("maps", "values", "sides")


def _values(given: np.ndarray, scores: Scores, request: OwnRequest) -> str:
    """What they are: of a file that ends in what makes probabilities, scores are read before that."""
    if scores.ended_in in ("Sigmoid", "Softmax"):
        return "logits"
    if request.values is not None:
        return request.values
    return "probabilities" if (given >= 0).all() and (given <= 1).all() else "logits"


def check_ending(ending: str, given: np.ndarray, scores: np.ndarray, path: object) -> None:
    """What the file itself gives must be what its scores (B, K, h, w) mean.

    Raises:
        InputError: it is not.
    """
    if scores.shape[1] == 1:
        same = np.abs(given.reshape(scores.shape) - probability(scores)).max() <= CLOSE
    else:
        best = given if ending == "ArgMax" else given.argmax(axis=1 if given.shape == scores.shape else 3)
        same = float(np.mean(best.reshape(scores[:, 0].shape) != scores.argmax(axis=1))) <= UNLIKE
    if not same:
        raise InputError(f"{path} ends in a {ending} that is not over the classes: export it without.")


def notes(name: str, own: OwnGraph, scores: Scores, request: OwnRequest) -> list[str]:
    """How the file is understood, where that could have been otherwise."""
    if scores.ended_in:
        return [f"{name} ends in a {scores.ended_in}: its scores are read before it, which changes no mask"]
    if request.values is not None or request.classes > 1:
        return []
    inside = "0.5, as they lie from 0 to 1" if own.values == "probabilities" else "0, as logits"
    return [
        f"what {name} gives is taken as inside above {inside}: values in --preprocess says otherwise "
        "(logits or probabilities)"
    ]

"""Whether a request's own tensors are those that a model takes, before anything is made of them.

The HTTP process asks before it reads the data, the model's process because the model may have been exchanged
in between.
"""

from __future__ import annotations

from collections.abc import Sequence

from vitrail.errors import InputError
from vitrail.serve import wire

__all__ = ["rows"]

SHOWN_SIDES, SHOWN_LETTERS = 8, 50


def rows(given: Sequence[wire.Tensor], wanted: Sequence[wire.Tensor]) -> int:
    """The number of rows, which all tensors share.

    Raises:
        InputError: other names, types or shapes than the model takes, or rows that differ.
    """
    by_name = {tensor.name: tensor for tensor in given}
    for spec in wanted:
        found = by_name.get(spec.name)
        if found is None:
            raise InputError(f"The input {spec.name} is missing: send {_said(spec)}.")
        # The number of sides first: a shape may have a million of them.
        same = len(found.shape) == len(spec.shape) and found.shape[1:] == spec.shape[1:]
        if found.dtype != spec.dtype or not same or found.shape[0] < 1:
            raise InputError(f"The input {_said(found)} is not what the model takes: send {_said(spec)}.")
    if len(by_name) != len(wanted) or len(given) != len(wanted):
        raise InputError(f"The model takes {', '.join(map(_said, wanted))} and nothing else.")
    counts = {tensor.shape[0] for tensor in given}
    if len(counts) != 1:
        raise InputError("The inputs differ in their number of rows: send as many of each.")
    return counts.pop()


def _said(tensor: wire.Tensor) -> str:
    sides = ", ".join(str(side) if abs(side) < 10**9 else "…" for side in tensor.shape[:SHOWN_SIDES])
    more = ", …" if len(tensor.shape) > SHOWN_SIDES else ""
    return f"{tensor.name[:SHOWN_LETTERS]} as {tensor.dtype} [{sides}{more}]"

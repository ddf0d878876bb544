"""What may be done to an exported graph before engines build their files from it: one table, one file a pass.

Adding a pass is one new file and one line in `PASSES`. The file has a function

    apply(model: onnx.ModelProto, preprocess: Preprocess) -> int

that rewrites the graph in place and returns the number of places it rewrote: 0 if there is nothing to do.
Exact passes compute the same function to fp32's tight parity. An approximate one changes the answers, and is
tried only where it is asked for by name and the accuracy of what comes out is measured.

A name may carry a number, as in `merge=8`: what it means, the pass says.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vitrail.errors import InputError
from vitrail.vocabulary import Preprocess

if TYPE_CHECKING:
    import onnx

__all__ = ["PASSES", "VERSION", "Pass", "apply", "check", "exact", "known"]

VERSION = 1
"""Part of the key of all that passes make: raise it when one of them gives other graphs."""


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One way to rewrite a graph."""

    label: str
    """What it does, in words."""
    code: str
    """The module that has `apply`, imported only when the pass is used."""
    exact: bool = True
    argument: str = ""
    """What the number after `=` counts; "": the name stands alone."""


PASSES: dict[str, Pass] = {}
"""In the order in which they are applied."""


def known(name: str) -> Pass:
    """The row of a pass, by its name with or without a number.

    Raises:
        InputError: there is none of this name, or its number is missing, superfluous or not a number.
    """
    bare, equals, number = name.partition("=")
    row = PASSES.get(bare)
    if row is None:
        raise InputError(f"Unknown pass {bare!r}: choose of {', '.join(PASSES) or 'none'}.")
    if bool(equals) != bool(row.argument) or (equals and not number.isdecimal()):
        wanted = f"{bare}=N, N {row.argument}" if row.argument else bare
        raise InputError(f"{name!r} is not how the pass is named: write {wanted}.")
    return row


def check(names: Iterable[str]) -> None:
    """Raise an InputError for a name that `known` refuses."""
    for name in names:
        known(name)


def exact(names: Iterable[str]) -> bool:
    """Whether all passes compute the same function."""
    return all(known(name).exact for name in names)


def apply(model: onnx.ModelProto, names: Iterable[str], preprocess: Preprocess) -> dict[str, int]:
    """Apply passes in place, in the table's order; how many places each of them rewrote.

    Args:
        preprocess: how images become the graph's input, before any pass.
    """
    order = {name: place for place, name in enumerate(PASSES)}
    changed = {}
    for name in sorted(names, key=lambda each: order[each.partition("=")[0]]):
        changed[name] = int(importlib.import_module(known(name).code).apply(model, preprocess))
    return changed

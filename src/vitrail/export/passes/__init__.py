"""What may be done to a model on its way to the engines: one table, one file a pass.

Adding a pass is one new file and one line in `PASSES`. The file has a function

    apply(model: onnx.ModelProto, preprocess: Preprocess) -> int

that rewrites the exported graph in place and returns the number of places it rewrote: 0 if there is nothing
to do. Where `of_module` is set, it has

    apply(model: nn.Module, number: int) -> nn.Module | None

instead, which is called before the export; None if there is nothing to do.
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
from vitrail.vocabulary import MERGE, SIZE, Preprocess

if TYPE_CHECKING:
    import onnx
    from torch import nn

__all__ = ["PASSES", "VERSION", "Pass", "applied", "apply", "check", "known", "of_module"]

VERSION = 1
"""Part of the key of all that passes make: raise it when one of them gives other graphs."""


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One way to rewrite a graph."""

    label: str
    """What it does, in words."""
    code: str
    """The module that has `apply`, imported only when the pass is used; "": the variant says it all."""
    of_module: bool = False
    """It changes the module before it is exported, instead of the graph afterwards."""
    sometimes: bool = False
    """It pays on some graphs and costs on others, so graphs are tried without it as well."""
    argument: str = ""
    """What the number after `=` counts; "": the name stands alone."""
    runtimes: tuple[str, ...] = ()
    """The engines that it helps; (): all."""
    precisions: tuple[str, ...] = ()
    """The precisions that it helps; (): all."""

    def helps(self, runtime: str, precision: str) -> bool:
        """Whether there is a point in trying it."""
        return (not self.runtimes or runtime in self.runtimes) and (
            not self.precisions or precision in self.precisions
        )


PASSES: dict[str, Pass] = {
    SIZE: Pass(label="images of another size", code="", of_module=True, argument="pixels of a side"),
    MERGE: Pass(
        label="tokens that are alike become one, after each block of a plain ViT",
        code="vitrail.export.passes.merge",
        of_module=True,
        argument="tokens after each block",
    ),
    "uint8": Pass(label="takes pixels as they are decoded", code="vitrail.export.passes.uint8"),
    "branches": Pass(label="parallel convolutions become one", code="vitrail.export.passes.branches"),
    "gelu": Pass(
        label="GELU apart from its linear layer",
        code="vitrail.export.passes.gelu",
        sometimes=True,
        runtimes=("openvino",),
        precisions=("fp32",),
    ),
}
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
    if bool(equals) != bool(row.argument) or (equals and not (number.isdecimal() and int(number))):
        wanted = f"{bare}=N, N {row.argument}" if row.argument else bare
        raise InputError(f"{name!r} is not how the pass is named: write {wanted}.")
    return row


def check(names: Iterable[str]) -> None:
    """Raise an InputError for a name that `known` refuses."""
    for name in names:
        known(name)


def of_module(names: Iterable[str]) -> tuple[str, ...]:
    """Those that change the module before it is exported."""
    return tuple(name for name in names if known(name).of_module)


def apply(model: onnx.ModelProto, names: Iterable[str], preprocess: Preprocess) -> dict[str, int]:
    """Apply the graph's passes in place, in the table's order; how many places each of them rewrote.

    Args:
        preprocess: how images become the graph's input, before any pass.
    """
    order = {name: place for place, name in enumerate(PASSES)}
    changed = {}
    for name in sorted(names, key=lambda each: order[each.partition("=")[0]]):
        if not (row := known(name)).of_module:
            changed[name] = int(importlib.import_module(row.code).apply(model, preprocess))
    return changed


def applied(model: nn.Module, names: Iterable[str]) -> nn.Module | None:
    """The module after the passes that change it; None if one of them has nothing to do."""
    found: nn.Module | None = model
    for name in of_module(names):
        number = int(name.partition("=")[2])
        found = importlib.import_module(known(name).code).apply(found, number) if found is not None else None
    return found

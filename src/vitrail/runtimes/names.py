"""Names in an engine's file -> names in the graph that describes it."""

from __future__ import annotations

from collections.abc import Sequence

from vitrail.vocabulary import TensorSpec


def matched(specs: Sequence[TensorSpec], names: Sequence[str]) -> dict[str, str]:
    """{name in the file: name in the graph}; a single tensor may have any name in a file."""
    if len(specs) == len(names) == 1:
        return {names[0]: specs[0].name}
    return {name: name for name in names}

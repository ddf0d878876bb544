"""The catalogue's published models as candidates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

from vitrail import catalog
from vitrail.sources.source import Context, Found, Source

__all__ = ["Catalogue"]


@dataclass(frozen=True, kw_only=True)
class Catalogue(Source):
    """All of the catalogue, or what the globs of `SearchSettings.models` name."""

    option: ClassVar[str] = "models"
    tasks: ClassVar[tuple[str, ...]] = ("classify", "embed")
    elsewhere: Callable[[str], bool] = lambda _: False
    """Whether a glob names something of another source, so that the catalogue need not know it."""

    def find(self, context: Context) -> Found:
        """The models that match, in the table's order. Raises InputError for a glob that names nothing."""
        globs = context.settings.models
        meant = [glob for glob in globs if not self.elsewhere(glob) or _known(glob)]
        found = catalog.find(meant) if meant or not globs else ()
        return Found(candidates=tuple(replace(each, task=context.settings.task) for each in found))


def _known(glob: str) -> bool:
    return any(catalog.matches(candidate, glob) for candidate in catalog.candidates())

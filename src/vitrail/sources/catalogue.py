"""The catalogue's published models as candidates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

from vitrail import catalog
from vitrail.data import Dataset
from vitrail.masks import objects
from vitrail.sources.source import Context, Found, Source
from vitrail.vocabulary import SearchSettings

__all__ = ["Catalogue"]


@dataclass(frozen=True, kw_only=True)
class Catalogue(Source):
    """All of the catalogue, or what the globs of `SearchSettings.models` name."""

    option: ClassVar[str] = "models"
    tasks: ClassVar[tuple[str, ...]] = ("classify", "embed", "promptable")
    elsewhere: Callable[[str], bool] = lambda _: False
    """Whether a glob names something of another source, so that the catalogue need not know it."""

    def find(self, context: Context) -> Found:
        """The models that match, in the table's order. Raises InputError for a glob that names nothing."""
        globs, task = context.settings.models, context.settings.task
        meant = [glob for glob in globs if not self.elsewhere(glob) or _known(glob, task)]
        found = catalog.find(meant, task) if meant or not globs else ()
        return Found(candidates=tuple(replace(each, task=task) for each in found))

    def read_labelled(self, place: str, settings: SearchSettings) -> Dataset:
        """Labelled images, or for what takes prompts, photos with objects to click on."""
        if settings.task == "promptable":
            return objects.load(place)
        return super().read_labelled(place, settings)


def _known(glob: str, task: str) -> bool:
    return any(catalog.matches(candidate, glob) for candidate in catalog.of_task(task))

"""What is known about candidates before measuring: one frozen table, the licenses, and name search."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from importlib.resources import files

from vitrail.catalog import promptable
from vitrail.catalog.licenses import admits, check_requirement, license_class
from vitrail.catalog.table import read_table
from vitrail.errors import InputError
from vitrail.vocabulary import Candidate

__all__ = [
    "admits",
    "architectures",
    "candidates",
    "check_requirement",
    "families",
    "find",
    "fits",
    "license_class",
    "matches",
    "of_task",
]

# Names people are likely to try, and why the table has no row for them.
ABSENT: dict[str, str] = {
    "dinov2": "timm's DINOv2 weights are backbones without a classifier and have no published top-1, "
    "so the catalog has none; choose another family (`vitrail models` lists them).",
}


@lru_cache(maxsize=1)
def candidates() -> tuple[Candidate, ...]:
    """All candidates, in the table's order (by family, small to large)."""
    text = files("vitrail.catalog").joinpath("table.csv").read_text(encoding="utf-8")
    return read_table(text.splitlines())


def of_task(task: str) -> tuple[Candidate, ...]:
    """The candidates that can be for a task: the table's, or those that take prompts."""
    return promptable.CANDIDATES if task == "promptable" else candidates()


def architectures() -> tuple[str, ...]:
    """The distinct architecture names, in the table's order."""
    return tuple(dict.fromkeys(candidate.architecture for candidate in candidates()))


def families() -> tuple[str, ...]:
    """The distinct family names, in the table's order."""
    return tuple(dict.fromkeys(candidate.family for candidate in candidates()))


def find(globs: Sequence[str], task: str = "classify") -> tuple[Candidate, ...]:
    """The candidates for a task that match at least one glob, each once, in their order; no globs: all.

    A glob (`*`, `?`, `[...]`, ignoring case) must match a whole `architecture.tag` or a whole
    architecture. Raises InputError, naming the nearest names, for a glob that matches nothing.
    """
    there = of_task(task)
    if not globs:
        return there
    chosen: set[str] = set()
    for glob in globs:
        found = [candidate.name for candidate in there if matches(candidate, glob)]
        if not found:
            raise InputError(_no_match(glob) if task != "promptable" else _none_takes_prompts(glob))
        chosen.update(found)
    return tuple(candidate for candidate in there if candidate.name in chosen)


def matches(candidate: Candidate, glob: str) -> bool:
    """Whether the glob matches the whole `architecture.tag` or the whole architecture, ignoring case."""
    return fits(glob, candidate.name, candidate.architecture)


def fits(glob: str, *names: str) -> bool:
    """Whether the glob (`*`, `?`, `[...]`) matches the whole of one of the names, ignoring case."""
    return any(fnmatchcase(name.lower(), glob.lower()) for name in names)


def _none_takes_prompts(glob: str) -> str:
    names = ", ".join(candidate.name for candidate in promptable.CANDIDATES)
    return f"No model that takes prompts matches {glob!r}: choose of {names}, or give your own weights."


def _no_match(glob: str) -> str:
    for key, reason in ABSENT.items():
        if key in glob.lower():
            return f"No model matches {glob!r}: {reason}"
    near = nearest(glob)
    if not near:
        return f"No model matches {glob!r}: `vitrail models` lists all names."
    return f"No model matches {glob!r}: the nearest names are {', '.join(near)}."


def nearest(glob: str, count: int = 3) -> tuple[str, ...]:
    """Up to `count` candidate names most similar to `glob`, best first; none if nothing is similar."""
    typed = glob.lower().strip("*?")
    if not typed:
        return ()

    def likeness(candidate: Candidate) -> float:
        # People leave out the tag, or type only the beginning of a long name.
        name = candidate.name
        texts = (name, name[: len(typed)], candidate.architecture)
        return max(difflib.SequenceMatcher(None, typed, text).ratio() for text in texts)

    # A stable sort keeps the table's order (small to large) among equals.
    ranked = sorted(candidates(), key=likeness, reverse=True)[:count]
    return tuple(candidate.name for candidate in ranked if likeness(candidate) >= 0.6)

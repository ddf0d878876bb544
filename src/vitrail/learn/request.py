"""What a run was asked to do, as kept in its run.json; whether it resumes, is extended, or is another run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from vitrail.errors import InputError
from vitrail.learn.recipe import Leg
from vitrail.words import counted

__all__ = ["RUN_FILE", "Record", "RunRequest", "continued", "is_done"]

RUN_FILE = "run.json"
LENGTH = 32
"""Longest value in a message; a digest is cut off."""


class Record(Protocol):
    """The part of a run's record that says how far it got."""

    @property
    def epochs(self) -> int:
        """Done."""
        ...

    @property
    def finished(self) -> bool:
        """Whether it reached its end, or the end of the leg before its extension."""
        ...


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """What a run was asked to do; resuming needs the same."""

    model: str
    image_size: int
    start: str
    """`random`, or the digest of the weights it starts from."""
    data: str
    """Digest of the images, labels and splits."""
    recipe: Mapping[str, Any]
    extended: tuple[Leg, ...] = ()
    """What was done before each extension; `recipe` has the final epoch."""

    def differences(self, other: Mapping[str, Any]) -> list[str]:
        """What differs from `other`, each as `key is … and was …`."""
        return [said for _, said in _differences(self.plain(), other)]

    def plain(self) -> dict[str, Any]:
        """As stored in JSON."""
        values = {**vars(self), "recipe": {**self.recipe}}
        values["recipe"].pop("source", None)
        if not self.extended:  # as written by versions without extensions
            del values["extended"]
        plain: dict[str, Any] = json.loads(json.dumps(values))
        return plain


def continued(
    request: RunRequest, folder: Path, record: Record | None, *, extend: bool = False
) -> RunRequest:
    """The request of the run in `folder`, with its extensions; `request` itself if there is no run yet.

    Args:
        request: from the command, which knows nothing of earlier extensions.
        record: of the existing run, if it left one.
        extend: a finished run may be asked for more epochs, and for nothing else.

    Raises:
        InputError: the run has different settings, or cannot be extended; its file is damaged.
    """
    place = folder / RUN_FILE
    if not place.is_file():
        if extend:
            raise InputError(f"There is no run in {folder} to extend: leave --extend out, or check --out.")
        return request
    before, extended = _read(place)
    request = replace(request, extended=extended)
    changed = _differences(request.plain(), before)
    ended = record.epochs if record is not None and is_done(record, request) else None
    if changed and {key for key, _ in changed} != {"recipe.epochs"}:
        raise InputError(
            f"The run in {folder} was started with other settings: {'; '.join(said for _, said in changed)}. "
            "Repeat its settings to resume it, or give --out a new folder."
        )
    planned, epochs = int(before["recipe"]["epochs"]), int(request.recipe["epochs"])
    if not changed and (not extend or extended or ended is None):
        return request
    if ended is None:
        raise InputError(
            f"The run in {folder} has not finished: resume it with --epochs {planned}, and extend it then."
        )
    if epochs <= ended:
        more = f"--epochs {ended + max(1, planned // 2)} --extend" if extend else f"--epochs {planned}"
        raise InputError(f"The run in {folder} has had {_epochs(ended)}: give {more}, for instance.")
    if not extend:
        raise InputError(
            f"The run in {folder} ended after {_epochs(ended)}: add --extend to continue to {epochs}, with a "
            "learning rate that rises and falls once more, or give --out a new folder."
        )
    return replace(request, extended=(*extended, Leg(planned, ended)))


def is_done(record: Record, request: RunRequest) -> bool:
    """Whether a run's record is of its end, rather than of the end of the leg before its extension."""
    return record.finished and (not request.extended or record.epochs > request.extended[-1].ended)


def _read(place: Path) -> tuple[dict[str, Any], tuple[Leg, ...]]:
    try:
        before = json.loads(place.read_text("utf-8"))
        int(before["recipe"]["epochs"])
        return before, tuple(Leg(int(planned), int(ended)) for planned, ended in before.get("extended", ()))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise InputError(f"{place} is damaged: give --out a new folder.") from None


def _differences(now: Any, before: Any, key: str = "") -> list[tuple[str, str]]:
    if isinstance(now, dict) and isinstance(before, dict):
        changed = []
        for name in dict.fromkeys((*now, *before)):
            changed += _differences(now.get(name), before.get(name), f"{key}.{name}".strip("."))
        return changed
    return [] if now == before else [(key, f"{key} is {_short(now)} and was {_short(before)}")]


def _epochs(count: int) -> str:
    return counted(count, "epoch")


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= LENGTH else text[: LENGTH // 2] + "…"

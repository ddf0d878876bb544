"""How two selections differ before any figure: what was asked, and where."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from vitrail.comparison.records import Difference, Side
from vitrail.vocabulary import Environment, LedgerEntry, Selection

# A machine's folder of photos and labelled images says nothing; digests do.
_PATHS = ("images", "data")


def side(source: str, selection: Selection) -> Side:
    """A selection with what its measurements say of engines and method."""
    facts = [
        e.observation.facts or (m.facts if (m := e.observation.measurement) else None)
        for e in selection.ledger
    ]
    engines = {f"{one.runtime} {one.version}" for one in facts if one is not None}
    return Side(
        source=source,
        selection=selection,
        engines=tuple(sorted(engines)),
        machines=_of(selection, "hardware"),
        method=_of(selection, "vitrail"),
    )


def asked(a: Selection, b: Selection) -> tuple[Difference, ...]:
    """Differences between requirements, workload, images and search settings."""
    found = [Difference(what="task", a=a.task, b=b.task)] if a.task != b.task else []
    found += _fields(a.requirements, b.requirements)
    found += _fields(a.workload, b.workload, without=_PATHS)
    found += _difference("photos", _of(a, "photos"), _of(b, "photos"))
    found += _difference("labelled images", _data(a), _data(b))
    if a.settings is not None and b.settings is not None:
        found += _fields(a.settings, b.settings)
    return tuple(found)


def elsewhere(a: Side, b: Side) -> tuple[Difference, ...]:
    """Differences between machines, engines and versions of the method."""
    return (
        *_difference("machine", a.machines, b.machines),
        *_versions(a.engines, b.engines),
        *_difference("version of Vitrail", a.method, b.method),
    )


def _versions(a: Iterable[str], b: Iterable[str]) -> list[Difference]:
    """Of engines that both used: one that was used by one side alone has not changed."""
    ours, theirs = ({each.partition(" ")[0] for each in side} for side in (a, b))
    kept = [[each for each in side if each.partition(" ")[0] in ours & theirs] for side in (a, b)]
    return _difference("version of the engines", *kept)


def environment(entry: LedgerEntry) -> Environment | None:
    """Where a variant's figures were taken; None: not known."""
    taken = entry.observation.measurement
    return taken.environment if taken else entry.observation.environment


def _of(selection: Selection, name: str) -> tuple[str, ...]:
    places = filter(None, map(environment, selection.ledger))
    return tuple(sorted({str(getattr(place, name)) for place in places}))


def _data(selection: Selection) -> tuple[str, ...]:
    return tuple(sorted({q.data for e in selection.ledger if (q := e.observation.quality) is not None}))


def _difference(what: str, a: Iterable[str], b: Iterable[str]) -> list[Difference]:
    """Nothing where one side does not say."""
    ours, theirs = ", ".join(each[:40] for each in a), ", ".join(each[:40] for each in b)
    return [Difference(what=what, a=ours, b=theirs)] if ours and theirs and ours != theirs else []


def _fields(a: object, b: object, without: Iterable[str] = ()) -> list[Difference]:
    names = [field.name for field in dataclasses.fields(a) if field.name not in without]  # type: ignore[arg-type]
    pairs = [(name, getattr(a, name), getattr(b, name)) for name in names]
    return [
        Difference(what=name.replace("_", " "), a=_plain(x), b=_plain(y)) for name, x, y in pairs if x != y
    ]


def _plain(value: object) -> str:
    if value in (None, ()):
        return "not given"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ", ".join(
            "=".join(map(_plain, each)) if isinstance(each, tuple) else str(each) for each in value
        )
    return f"{value:g}" if isinstance(value, float) else str(value)

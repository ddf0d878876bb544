"""Quantities as people write them -> floats in the records' units; suggestions for misspelled names.

Every parser takes the text (or a number from a TOML file) and the name to use in messages, and raises
InputError with one sentence that names the fix.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from decimal import Decimal, DecimalException

from vitrail.errors import InputError

__all__ = ["count", "duration_ms", "nearest", "percent", "size_mib", "throughput"]

_NUMBER = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(.*?)\s*", re.ASCII | re.DOTALL)

# milliseconds per unit
_TIME = {
    "us": Decimal("0.001"),
    "µs": Decimal("0.001"),
    "ms": Decimal(1),
    "s": Decimal(1000),
    "m": Decimal(60_000),
    "min": Decimal(60_000),
    "h": Decimal(3_600_000),
}
# bytes per unit
_BYTES = {
    "B": Decimal(1),
    "kB": Decimal(10**3),
    "MB": Decimal(10**6),
    "GB": Decimal(10**9),
    "TB": Decimal(10**12),
    "KiB": Decimal(2**10),
    "MiB": Decimal(2**20),
    "GiB": Decimal(2**30),
    "TiB": Decimal(2**40),
}
# images per second
_RATE = {"": Decimal(1), "/s": Decimal(1), "images/s": Decimal(1), "/min": 1 / Decimal(60)}


def duration_ms(value: object, name: str = "duration", example: str = "50ms") -> float:
    """`50ms`, `0.05s`, `5m`, `250us` -> ms. Raises InputError for a bare number: 50 of what?

    `example` has the unit that was probably meant; two of them joined by ` or ` where two are likely.
    """
    return _quantity(value, name, _TIME, example)


def size_mib(value: object, name: str = "size") -> float:
    """`1GiB`, `512MiB`, `1.5GB` (decimal) -> MiB. Raises InputError for a bare number other than 0."""
    units = {**_BYTES, "KB": _BYTES["kB"], **{unit.lower(): factor for unit, factor in _BYTES.items()}}
    if isinstance(value, (int, float)) and value == 0 and not isinstance(value, bool):
        return 0.0
    if isinstance(value, str) and value.strip() == "0":
        return 0.0
    return _quantity(value, name, units, "512MiB", known=_BYTES) / 2**20


def percent(value: object, name: str = "percentage") -> float:
    """`80`, `80%`, `99.9` -> %. A bare number up to 1 is refused: 0.8 means 80 % to some, 0.8 % to others.

    A Python number is bare too.
    """
    number = _quantity(value, name, {"": Decimal(1), "%": Decimal(1)}, "80")
    if 0 < number <= 1 and not str(value).strip().endswith("%"):
        raise InputError(f"{name}: {value} may be a fraction: write {number * 100:g} for {number * 100:g} %.")
    return number


def throughput(value: object, name: str = "throughput") -> float:
    """`20`, `20/s`, `20 images/s`, `1200/min` -> images/s."""
    return _quantity(value, name, _RATE, "20/s")


def count(value: object, name: str = "count") -> int:
    """`8` -> 8. Raises InputError for anything but a whole number without a unit."""
    number = _quantity(value, name, {"": Decimal(1)}, "8")
    if number != int(number):
        raise InputError(f"{name}: {value} is not a whole number: write {max(1, math.ceil(number))}.")
    return int(number)


def _quantity(
    value: object, name: str, units: Mapping[str, Decimal], example: str, known: Iterable[str] | None = None
) -> float:
    """Decimal arithmetic throughout, so that 0.1s is 100 ms and not the nearest float to it."""
    text = value if isinstance(value, str) else str(value)
    match = _NUMBER.fullmatch(text)
    if isinstance(value, bool) or match is None:
        raise InputError(f"{name}: {text!r} is not a number with a unit: write for example {example}.")
    digits, unit = match.groups()
    if unit not in units:
        if not unit:
            raise InputError(f"{name}: {text.strip()} has no unit: write {_with_unit(digits, example)}.")
        known_units = ", ".join(u for u in (known or units) if u) or "no unit"
        raise InputError(f"{name}: unknown unit {unit!r} in {text.strip()!r}: use {known_units}.")
    try:
        number = float(Decimal(digits) * units[unit])
    except DecimalException:
        number = math.inf
    if not math.isfinite(number):
        raise InputError(f"{name}: {text.strip()} is too large: write for example {example}.")
    return number


def _with_unit(digits: str, example: str) -> str:
    return " or ".join(digits.lstrip("+-") + one.lstrip("0123456789.") for one in example.split(" or "))


def nearest(name: str, known: Iterable[str]) -> str:
    """` Did you mean a, b?` with the known names similar to `name`; empty if there are none."""
    found = difflib.get_close_matches(name, list(known), n=3)
    return f" Did you mean {', '.join(found)}?" if found else ""

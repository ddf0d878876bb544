"""Numbers on the command line, within the bounds of vitrail.limits."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from vitrail.errors import InputError
from vitrail.limits import RANGES, whole

__all__ = ["whole_number"]


def whole_number(name: str) -> Callable[[str], int]:
    """The `type` of an argument that takes a whole number in the range of `name`."""

    def parse(text: str) -> int:
        try:
            return whole(name, int(text))
        except (InputError, ValueError):
            least, most = RANGES[name]
            raise argparse.ArgumentTypeError(
                f"{text[:40]!r} is not a whole number from {least} to {most}"
            ) from None

    return parse

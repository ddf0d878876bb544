"""What a model may be called: one rule for addresses, folders, and the tags of images."""

from __future__ import annotations

import re

from vitrail.errors import InputError

__all__ = ["model_name"]

LONGEST = 100
# What Docker takes as a repository's name, and capitals, which a tag then has small.
_NAME = re.compile(r"[A-Za-z0-9]+(?:(?:\.|__?|-+)[A-Za-z0-9]+)*")


def model_name(name: str, fix: str) -> str:
    """`name`, if a model may be called so; `fix` ends the error's sentence: how to give it another.

    Raises:
        InputError: it may not.
    """
    if len(name) > LONGEST or not _NAME.fullmatch(name):
        raise InputError(
            f"{name!r} cannot be a model's name: use up to {LONGEST} letters and digits, with a dot, hyphen "
            f"or underscore between some, {fix}."
        )
    return name

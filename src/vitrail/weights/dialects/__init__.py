"""Literal tables from other codebases' tensor names to ours, one file per architecture.

A table's left side is a key, or a module's path, which stands for all tensors of that module (weight, bias,
…). `{b}` matches a number; the right side may use it, also as `{b+1}` or `{b-1}`. The right side may end with

    [0/3]   this tensor is part 0 of 3, concatenated along its first dimension (q, k and v stored separately)
    ^T      transposed (matrices that are stored to be multiplied from the right)

and None drops the tensor: it is derived from sizes alone, or never used. Derived tables that reveal what the
file was made for keep a name of ours: the model checks them (`facts.py`) and then drops them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vitrail.errors import InputError

__all__ = ["Dialect", "Unclear", "detect", "translate"]


class Unclear(InputError):
    """A table whose number of rows does not determine its grid; the message does not name the file."""

    def __init__(self, message: str, state: dict[str, Tensor]) -> None:
        super().__init__(message)
        self.state = state
        """All tensors of the file in the model's names; the table in question is unchanged."""


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """How one codebase names the weights of one architecture."""

    name: str
    """A readable name: "Hugging Face transformers", "torchvision", …"""
    marks: tuple[str, ...]
    """Keys that only this dialect has; all must be present."""
    names: Mapping[str, str | None] = field(default_factory=dict)
    """Foreign key or module path -> ours. Keys without an entry keep their name."""
    prefix: str = ""
    """Stripped from keys before `marks` and `names` are looked up."""
    replaced: Mapping[str, str] = field(default_factory=dict)
    """How keys begin -> what stands there instead, before `names` are looked up: a whole part's names."""
    other_parts: tuple[str, ...] = ()
    """Prefixes of keys (including `prefix`) of a part this architecture lacks: CLIP's text tower in a file
    for its image tower."""


def detect(keys: Mapping[str, Tensor], dialects: tuple[Dialect, ...]) -> Dialect | None:
    """The first dialect whose marks are all among the keys; None: unknown dialect."""
    for dialect in dialects:
        stripped = {key.removeprefix(dialect.prefix) for key in keys}
        if all(mark in stripped for mark in dialect.marks):
            return dialect
    return None


def translate(state_dict: Mapping[str, Tensor], dialect: Dialect) -> dict[str, Tensor]:
    """The same tensors under our names, joined, transposed or dropped according to the table.

    Raises:
        ValueError: a tensor stored in parts lacks one of them, or two keys give the same name.
    """
    rules = [(_pattern(foreign), ours) for foreign, ours in dialect.names.items()]
    result: dict[str, Tensor] = {}
    parts: dict[str, dict[int, Tensor]] = {}
    counts: dict[str, int] = {}
    for key, tensor in state_dict.items():
        if dialect.other_parts and key.startswith(dialect.other_parts):
            continue
        name = _renamed(_replaced(key.removeprefix(dialect.prefix), dialect.replaced), rules)
        if name is None:
            continue
        if name.endswith("^T"):
            name, tensor = name[:-2], tensor.T
        part = _PART.search(name)
        if part:
            name = name.replace(part.group(0), "")
            parts.setdefault(name, {})[int(part.group(1))] = tensor
            counts[name] = int(part.group(2))
            continue
        if name in result:
            raise ValueError(f"two tensors of the file are {name} here (one is {key})")
        result[name] = tensor
    for name, found in parts.items():
        lacking = sorted(set(range(counts[name])) - found.keys())
        if lacking:
            raise ValueError(f"{name} is stored in {counts[name]} parts and part {lacking[0]} is missing")
        result[name] = torch.cat([found[i] for i in sorted(found)])
    return result


def _replaced(key: str, beginnings: Mapping[str, str]) -> str:
    for foreign, ours in beginnings.items():
        if key.startswith(foreign):
            return ours + key[len(foreign) :]
    return key


_PART = re.compile(r"\[(\d+)/(\d+)\]")
_PLACE = re.compile(r"\{(\w)\}")
_USE = re.compile(r"\{(\w)([+-]\d+)?\}")


def _pattern(foreign: str) -> re.Pattern[str]:
    pieces = _PLACE.split(foreign)
    # split() alternates literal text and placeholder names.
    text = "".join(f"(?P<{p}>\\d+)" if i % 2 else re.escape(p) for i, p in enumerate(pieces))
    return re.compile(f"{text}(?P<leaf>\\.\\w+)?")


def _renamed(key: str, rules: list[tuple[re.Pattern[str], str | None]]) -> str | None:
    for pattern, ours in rules:
        match = pattern.fullmatch(key)
        if match is None:
            continue
        if ours is None:
            return None
        found = match.groupdict()

        def number(use: re.Match[str], found: dict[str, str | None] = found) -> str:
            return str(int(found[use.group(1)] or 0) + int(use.group(2) or 0))

        # The leaf goes before the mark.
        name, mark = _split_mark(_USE.sub(number, ours))
        return name + (found["leaf"] or "") + mark
    return key


def _split_mark(ours: str) -> tuple[str, str]:
    if ours.endswith("^T"):
        return ours[:-2], "^T"
    part = _PART.search(ours)
    return (ours[: part.start()], part.group(0)) if part else (ours, "")

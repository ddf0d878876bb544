"""`--json FILE|-`, the same for every command."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from vitrail.errors import InputError
from vitrail.store import atomic_write, check_target

STDOUT = "-"
APART = "each probability stands by itself: SigLIP does not choose among the classes"
"""The last line below the probabilities of sigmoids."""


def add_json_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--json FILE|-` to a command."""
    parser.add_argument(
        "--json", metavar="FILE|-", help="write the result as JSON to FILE, or alone to stdout with -"
    )


def check_json_target(target: str | None) -> None:
    """Find out before the work, not after, that its result could not be written to `--json`.

    Raises:
        InputError: it is a folder, or lies where nothing can be written.
    """
    if target is None or target == STDOUT:
        return
    if Path(target).is_dir():
        raise InputError(f"--json {target} is a folder: name a file.")
    check_target(Path(target).parent / ".vitrail-probe")


def write_json(document: Any, target: str | Path) -> None:
    """Write a record or JSON value as indented JSON: `-` is stdout, anything else a file written atomically.

    Raises:
        InputError: the file cannot be written.
        ValueError: a number that is not finite, which JSON cannot hold.
    """
    import msgspec

    plain = msgspec.to_builtins(document)
    text = json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    if str(target) == STDOUT:
        sys.stdout.write(text)
        sys.stdout.flush()
    else:
        atomic_write(Path(target), text.encode("utf-8"))

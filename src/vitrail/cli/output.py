"""Output shared by all commands: `--json FILE|-`, lines of text, errors about single inputs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

from vitrail.errors import InputError
from vitrail.store import atomic_write, check_target
from vitrail.words import shown, utf8_all

STDOUT = "-"
INDEPENDENT = "each probability is independent: SigLIP does not choose among the classes"
"""The note below probabilities from sigmoids."""


def add_json_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--json FILE|-` to a command."""
    parser.add_argument(
        "--json",
        metavar="FILE|-",
        help="write the result as JSON to FILE, or alone to stdout with -",
    )


def check_file_target(option: str, target: str) -> None:
    """Raise before the work, not after, if its result could not be written to this file; `-` is stdout.

    Raises:
        InputError: it is a folder, has no name, or is in a place that is not there or cannot be written.
    """
    path = Path(target)
    if not target:
        raise InputError(f"{option} has an empty name: name a file, or - for standard output.")
    if path.is_dir():
        raise InputError(f"{option} {target} is a folder: name a file.")
    # Devices and pipes are written to, not replaced.
    if target != STDOUT and (path.is_file() or not path.exists()):
        if not path.parent.is_dir():
            raise InputError(f"There is no folder {path.parent} for {option}: make it, or name another.")
        check_target(path.parent / ".vitrail-probe")


def write_json(document: Any, target: str | Path) -> None:
    """Write a record or JSON value as indented JSON in UTF-8 to stdout (`-`) or, atomically, to a file.

    Names that are not UTF-8 are written like `words.utf8` does, whatever the encoding of stdout.

    Raises:
        InputError: the file cannot be written.
        ValueError: a number that is not finite, which JSON cannot hold.
    """
    import msgspec

    plain = utf8_all(msgspec.to_builtins(document))
    text = json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    if str(target) == STDOUT:
        write_bytes(text.encode("utf-8"))
    else:
        atomic_write(Path(target), text.encode("utf-8"))


def write_bytes(data: bytes) -> None:
    """Write bytes to standard output after anything already printed, regardless of the terminal's
    encoding."""
    sys.stdout.flush()
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def write_lines(lines: Iterable[str], file: TextIO | None = None) -> None:
    """Print lines, escaping whatever in a name would break a line or control the terminal."""
    for line in lines:
        print(shown(line), file=file)


LABEL_WIDTH = 40
"""Columns of a label next to its bar or number."""


def short(label: str) -> str:
    """The label in at most `LABEL_WIDTH` terminal columns; an ellipsis replaces its end."""
    text, dots = shown(label), "…" if can_print("…") else "..."
    return text if len(text) <= LABEL_WIDTH else text[: LABEL_WIDTH - len(dots)].rstrip() + dots


def can_print(text: str) -> bool:
    """Whether the encoding of standard output has these characters."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def complain(error: object) -> None:
    """Report one unusable input on standard error, in one line; the command continues."""
    sys.stdout.flush()  # keep the order of lines on stdout and stderr
    write_lines([f"vitrail: error: {error}"], sys.stderr)

"""The command line's surface as text: every option of every command.

`make cli-surface` writes it to cli_surface.txt; test_cli.py fails when the two differ, so that no option
appears, goes or changes its default unnoticed.
"""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

from vitrail.cli import COMMANDS, command_parser

FROZEN = Path(__file__).with_name("cli_surface.txt")


def surface() -> str:
    """One paragraph per command, one line per argument; built from the parsers, not from their help text."""
    paragraphs = []
    for name, (module, help_line) in COMMANDS.items():
        lines = [f"vitrail {name}: {help_line}"]
        if importlib.util.find_spec(module) is None:
            lines.append("  (not written yet)")
        else:
            lines += sorted(_line(action) for action in command_parser(name)._actions)
        paragraphs.append("\n".join(lines))
    return "\n\n".join(paragraphs) + "\n"


def _line(action: argparse.Action) -> str:
    names = ", ".join(action.option_strings) or action.dest
    facts = {
        "metavar": action.metavar,
        "nargs": action.nargs,
        "choices": None if action.choices is None else "|".join(map(str, action.choices)),
        "default": None if action.default in (None, argparse.SUPPRESS) else action.default,
        "required": (action.required and bool(action.option_strings)) or None,
    }
    shown = " ".join(f"{key}={value}" for key, value in facts.items() if value is not None)
    return f"  {names}  {shown}".rstrip()


if __name__ == "__main__":
    FROZEN.write_text(surface(), encoding="utf-8")
    print(f"wrote {FROZEN}")

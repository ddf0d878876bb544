"""`vitrail profiles`: the ready-made requirement profiles, as text or JSON."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from vitrail.cli.output import STDOUT, add_json_argument, write_json
from vitrail.requirements import PROFILES, Profile

SCHEMA_VERSION = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Print the profiles, or write them as JSON."""
    if args.json is not None:
        profiles = [asdict(profile) for profile in PROFILES.values()]
        write_json({"schema_version": SCHEMA_VERSION, "profiles": profiles}, args.json)
    if args.json != STDOUT:
        print("\n\n".join(_text(profile) for profile in PROFILES.values()))
        print("\nUse one with `vitrail select --profile NAME`; a TOML file and flags override its settings.")
    return 0


def _text(profile: Profile) -> str:
    flags = " ".join(f"--{name} {_shown(value)}" for name, value in profile.settings.items())
    return "\n".join(
        [
            f"{profile.name}: {profile.recommendation}",
            f"  for        {profile.use}",
            f"  trade-off  {profile.trade_off}",
            f"  stands for {flags}",
        ]
    )


def _shown(value: object) -> str:
    return " ".join(f"'{item}'" for item in value) if isinstance(value, list) else str(value)

"""The options of requirements, workload and search, for every command that takes them."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from pathlib import Path

from vitrail.requirements import OPTIONS, PROFILES, resolve
from vitrail.vocabulary import Requirements, SearchSettings, Workload

__all__ = ["add_requirement_arguments", "flags_of", "resolve_arguments"]

GROUPS = {Requirements: "requirements", Workload: "workload", SearchSettings: "search"}


def add_requirement_arguments(parser: argparse.ArgumentParser, *, without: Collection[str] = ()) -> None:
    """Add all of `OPTIONS` and --profile, or those that are not left out.

    Values stay text and default to None, so that layers can merge.
    """
    groups = {record: parser.add_argument_group(title) for record, title in GROUPS.items()}
    if "profile" not in without:
        groups[Requirements].add_argument(
            "--profile", metavar="NAME", help=f"start from a profile: {', '.join(PROFILES)}"
        )
    for name, option in OPTIONS.items():
        if name in without:
            continue
        group = groups[option.record]
        text = option.help.replace("%", "%%")
        if option.metavar is None:
            group.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, default=None, help=text)
        elif option.many:
            group.add_argument(f"--{name}", nargs="+", action="extend", metavar=option.metavar, help=text)
        else:
            group.add_argument(f"--{name}", metavar=option.metavar, help=text)


def flags_of(args: argparse.Namespace) -> dict[str, object]:
    """{option: text as typed} for the options given."""
    given = {name: getattr(args, name.replace("-", "_"), None) for name in (*OPTIONS, "profile")}
    return {name: value for name, value in given.items() if value is not None}


def resolve_arguments(
    args: argparse.Namespace, toml: str | Path | None = None, *, runtimes: Collection[str] = ()
) -> tuple[Requirements, Workload, SearchSettings]:
    """Merges flags over TOML over profile over defaults; raises InputError as `requirements.resolve`."""
    return resolve(toml=toml, flags=flags_of(args), runtimes=runtimes)

"""`vitrail models`: list, filter and sort the catalog. Light: reads one table, imports no engine."""

from __future__ import annotations

import argparse
import difflib
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Literal

from vitrail.catalog import admits, check_requirement, families, find, license_class
from vitrail.cli.output import STDOUT, add_json_argument, write_json
from vitrail.errors import InputError
from vitrail.units import percent
from vitrail.vocabulary import Candidate
from vitrail.words import counted

SCHEMA_VERSION = 1

# Best first: the highest accuracy, the cheapest, the smallest, A to Z; ties by name.
SORT_KEYS: dict[str, Callable[[Candidate], tuple[float | str, ...]]] = {
    "accuracy": lambda candidate: (-(candidate.accuracy.value if candidate.accuracy else -1), candidate.name),
    "macs": lambda candidate: (candidate.macs, candidate.name),
    "params": lambda candidate: (candidate.parameters, candidate.name),
    "name": lambda candidate: (candidate.name,),
}

COLUMNS = ("model", "family", "top-1 %", "size", "params M", "GMACs", "license", "class", "weights")
NUMERIC = frozenset({"top-1 %", "size", "params M", "GMACs"})
# The columns that a narrow terminal drops, in this order.
DISPENSABLE = ("weights", "family", "class", "license")
GAP = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("globs", nargs="*", metavar="GLOB", help="names or patterns such as 'swin*'; all")
    parser.add_argument("--family", metavar="F", help="only this family, e.g. convnext")
    parser.add_argument(
        "--license",
        action="append",
        metavar="L",
        help="any, permissive or another class, or a license's name; repeat or separate by commas (any)",
    )
    parser.add_argument("--min-accuracy", metavar="PERCENT", help="published top-1 of at least X %%")
    parser.add_argument("--max-params", type=_millions, metavar="M", help="at most M million parameters")
    parser.add_argument("--sort", choices=sorted(SORT_KEYS), default="accuracy", help="(accuracy)")
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Print the entries that pass all filters; 0 even if none does.

    Raises InputError for an unknown name, family or license.
    """
    chosen = sorted(_filter(args), key=SORT_KEYS[args.sort])
    if args.json is not None:
        write_json(models_document(chosen), args.json)
        if args.json == STDOUT:
            return 0
    if not chosen:
        print("No model in the catalog passes all these filters.", file=sys.stderr)
    elif sys.stdout.isatty():
        _print_rich(chosen)
    else:
        _print_plain(chosen)
    return 0


def models_document(chosen: Sequence[Candidate]) -> dict[str, object]:
    """The `--json` document: every field of each candidate, and its license's class."""
    models = []
    for candidate in chosen:
        entry = asdict(candidate)
        entry["weights"]["license_class"] = license_class(candidate.weights.license)
        models.append(entry)
    return {"schema_version": SCHEMA_VERSION, "models": models}


def _filter(args: argparse.Namespace) -> list[Candidate]:
    known = families()
    if args.family is not None and args.family not in known:
        near = difflib.get_close_matches(args.family, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"use one of {', '.join(known)}."
        raise InputError(f"Unknown family {args.family!r}: {hint}")
    given = args.license or ["any"]
    licenses = tuple(token.strip() for text in given for token in text.split(",") if token.strip())
    found = find(args.globs)
    check_requirement(licenses, also=(candidate.weights.license for candidate in found))
    least = None if args.min_accuracy is None else _percent(args.min_accuracy)
    return [
        candidate
        for candidate in found
        if args.family in (None, candidate.family)
        and admits(licenses, candidate.weights.license)[0]
        and _accurate_enough(candidate, least)
        and (args.max_params is None or candidate.parameters <= args.max_params * 1e6)
    ]


def _accurate_enough(candidate: Candidate, least: float | None) -> bool:
    # A missing figure is a failure, never a pass.
    return least is None or (candidate.accuracy is not None and candidate.accuracy.value >= least)


def _cells(candidate: Candidate) -> tuple[str, ...]:
    return (
        candidate.name,
        candidate.family,
        f"{candidate.accuracy.value:.1f}" if candidate.accuracy else "-",
        str(candidate.preprocess.image_size),
        f"{candidate.parameters / 1e6:.1f}",
        f"{candidate.macs / 1e9:.2f}",
        candidate.weights.license,
        license_class(candidate.weights.license),
        candidate.weights.source,
    )


def _print_plain(chosen: Sequence[Candidate]) -> None:
    header = tuple(column.replace(" ", "_") for column in COLUMNS)
    rows = [header, *map(_cells, chosen)]
    widths = _widths(rows)
    for row in rows:
        cells = (
            cell.rjust(width) if column in NUMERIC else cell.ljust(width)
            for cell, width, column in zip(row, widths, COLUMNS, strict=True)
        )
        print((" " * GAP).join(cells).rstrip())


def _print_rich(chosen: Sequence[Candidate]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    rows = [_cells(candidate) for candidate in chosen]
    shown = _fitting(rows, console.width)
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
    for column in shown:
        justify: Literal["left", "right"] = "right" if column in NUMERIC else "left"
        table.add_column(column, justify=justify, overflow="fold", no_wrap=column != "model")
    for row in rows:
        table.add_row(*(cell for cell, column in zip(row, COLUMNS, strict=True) if column in shown))
    console.print(table, highlight=False)
    console.print(
        f"{counted(len(chosen), 'model')} · top-1 as published, at the size shown",
        style="dim",
        highlight=False,
    )


def _fitting(rows: Sequence[tuple[str, ...]], width: int) -> list[str]:
    """The columns that fit into `width` characters, dropping as few as possible."""
    needed = dict(zip(COLUMNS, _widths([COLUMNS, *rows]), strict=True))
    for column in DISPENSABLE:
        if sum(needed.values()) + GAP * len(needed) <= width:
            break
        del needed[column]
    return list(needed)


def _widths(rows: Sequence[tuple[str, ...]]) -> list[int]:
    return [max(map(len, column)) for column in zip(*rows, strict=True)]


def _percent(text: str) -> float:
    value = percent(text, "--min-accuracy")
    if not 0 <= value <= 100:
        raise InputError(f"--min-accuracy: {text} is not a percentage: give one from 0 to 100.")
    return value


def _millions(text: str) -> float:
    value = _number(text.removesuffix("M"))
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of millions")
    return value


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return value

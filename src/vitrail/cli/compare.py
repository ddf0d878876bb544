"""`vitrail compare A.json B.json`: two selections side by side, for a person or a CI."""

from __future__ import annotations

import argparse
import sys

from vitrail.cli.output import STDOUT, add_json_argument, write_json
from vitrail.errors import InputError

MOST_PERCENT = 1000.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("a", metavar="A.json", help="what vitrail select --json wrote: the earlier one")
    parser.add_argument("b", metavar="B.json", help="the later one, or another machine's")
    parser.add_argument("--all", action="store_true", help="show every figure, not only what moved")
    parser.add_argument(
        "--fail-on-regression",
        metavar="PERCENT",
        help="exit code 3 if a figure is worse by more than this beyond noise (5%%), or A's winner lost",
    )
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Compare; exit code 0, 2 if nothing can be compared, 3 if it got worse than `--fail-on-regression`."""
    tolerance = _tolerance(args.fail_on_regression)
    from vitrail.comparison import compare
    from vitrail.report import compared

    comparison = compare(args.a, args.b)
    if args.json:
        write_json(compared.to_document(comparison, tolerance), args.json)
    if args.json != STDOUT:
        compared.show(comparison, sys.stdout, tolerance=tolerance, everything=args.all)
        sys.stdout.flush()  # before the error on stderr
    if tolerance is not None:
        comparison.require(tolerance)
    return 0


def _tolerance(text: str | None) -> float | None:
    """`5%` as a share."""
    if text is None:
        return None
    from vitrail.units import percent

    name = "--fail-on-regression"
    tolerated = percent(text, name)
    if not 0 <= tolerated <= MOST_PERCENT:
        raise InputError(f"{name}: {text} is not from 0 to {MOST_PERCENT:g} %: write for example 5%.")
    return tolerated / 100

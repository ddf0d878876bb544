"""`vitrail predict DIR IMAGE...`: classify images with an artifact, without torch."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vitrail.cli.numbers import whole_number
from vitrail.cli.output import APART, STDOUT, add_json_argument, write_json
from vitrail.errors import InputError

if TYPE_CHECKING:
    from vitrail.artifact import Probability
    from vitrail.predict import Prediction

SCHEMA_VERSION = 1
BAR_WIDTH = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("artifact", metavar="DIR", help="folder that vitrail select wrote")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="image files")
    parser.add_argument(
        "--top", type=whole_number("top"), default=5, metavar="K", help="labels per image (default 5)"
    )
    parser.add_argument(
        "--threads",
        type=whole_number("threads"),
        metavar="N",
        help="inference threads (default: the artifact's)",
    )
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Classify all images; exit code 0, 1 if some could not be used, 2 if none could."""
    from vitrail.predict import load

    with load(args.artifact, threads=args.threads) as predictor:
        outcomes = list(predictor.predict_each(args.images, top=args.top))
        kind = predictor.probability
    bad = [outcome for outcome in outcomes if isinstance(outcome, InputError)]
    if args.json:
        write_json(_document(args.artifact, args.images, outcomes, kind), args.json)
    if args.json != STDOUT:
        for line in _lines(args.images, outcomes):
            print(line)
        if kind == "sigmoid" and len(bad) < len(outcomes):
            print(APART)
    for error in bad:
        print(f"vitrail: error: {error}", file=sys.stderr)
    if not bad:
        return 0
    return InputError.exit_code if len(bad) == len(outcomes) else 1


def _document(
    artifact: str, images: Sequence[str], outcomes: Sequence[Prediction | InputError], kind: Probability
) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    for image, outcome in zip(images, outcomes, strict=True):
        if isinstance(outcome, InputError):
            rows.append({"image": image, "error": str(outcome), "top": []})
        else:
            rows.append({"image": image, "error": None, "top": outcome.top})
    return {
        "schema_version": SCHEMA_VERSION,
        "artifact": artifact,
        "probability": kind,
        "predictions": rows,
    }


def _lines(images: Sequence[str], outcomes: Sequence[Prediction | InputError]) -> list[str]:
    done = [(i, o) for i, o in zip(images, outcomes, strict=True) if not isinstance(o, InputError)]
    width = max((len(r.label) for _, outcome in done for r in outcome.top), default=0)
    filled, empty = _bar_characters()
    lines = []
    for image, outcome in done:
        lines.append(image)
        for ranked in outcome.top:
            length = round(ranked.probability * BAR_WIDTH)
            bar = filled * length + empty * (BAR_WIDTH - length)
            lines.append(f"  {ranked.label:<{min(width, 40)}}  {bar}  {ranked.probability:6.1%}")
    return lines


def _bar_characters() -> tuple[str, str]:
    try:
        "█·".encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return "#", "."
    return "█", "·"

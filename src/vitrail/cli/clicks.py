"""`vitrail segment` with an artifact that answers prompts: what is clicked on, or everything."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vitrail.cli.output import complain, write_lines
from vitrail.errors import InputError

if TYPE_CHECKING:
    from vitrail.masks.write import MaskFolder
    from vitrail.predict import Clicked, Predictor

SHOWN = 5
"""Things that are printed of a photo with `--everything`, the surest."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what is asked of an artifact that answers prompts."""
    group = parser.add_argument_group("what is meant, of an artifact that answers prompts")
    group.add_argument(
        "--point",
        metavar="X,Y[,0|1]",
        action="append",
        help="a pixel of the photo inside of it, or with 0 outside; may be repeated",
    )
    group.add_argument("--box", metavar="X0,Y0,X1,Y1", help="left, top, right and bottom around it")
    group.add_argument("--everything", action="store_true", help="all that a grid of points finds")


def given(args: argparse.Namespace) -> str:
    """The first option that asks something, as it is typed; "": none."""
    asked = {"--point": args.point, "--box": args.box, "--everything": args.everything}
    return next((name for name, value in asked.items() if value), "")


class Asked:
    """What the command line asks.

    Raises:
        InputError: nothing, or something that is no point or box.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.everything: bool = args.everything
        if not given(args):
            raise InputError(
                f"{args.artifact} answers prompts: say what is meant with --point X,Y or --box X0,Y0,X1,Y1, "
                "or give --everything."
            )
        if self.everything and (args.point or args.box):
            raise InputError(
                "--everything asks for all, and --point and --box for one: give one or the other."
            )
        points = [_point(text) for text in args.point or ()]
        self.points = [(x, y) for x, y, _ in points]
        self.labels = [label for _, _, label in points]
        self.box = None if args.box is None else _numbers("--box", args.box, "X0,Y0,X1,Y1", (4,))

    def answers(self, predictor: Predictor, path: str) -> list[Clicked]:
        """What is meant in a photo. Raises InputError for an image or a prompt that cannot be used."""
        if self.everything:
            return predictor.everything(path)
        return [predictor.segment(path, points=self.points, labels=self.labels, box=self.box)]


def _point(text: str) -> tuple[float, float, int]:
    x, y, *label = _numbers("--point", text, "X,Y or X,Y,0", (2, 3))
    if label and label[0] not in (0, 1):
        raise InputError(f"--point {text}: the third number is 1 inside of it or 0 outside.")
    return x, y, int(label[0]) if label else 1


def _numbers(option: str, text: str, form: str, counts: Sequence[int]) -> list[float]:
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if len(found) not in counts:
        raise InputError(
            f"{option} {text} is not {form}: give numbers in pixels of the photo, without spaces."
        )
    return found


def write_all(
    predictor: Predictor, asked: Asked, paths: Sequence[str], target: MaskFolder
) -> list[InputError]:
    """Photo after photo into the folder; the errors of those that could not be used.

    Raises:
        InputError: several photos for one prompt, or a prompt that one photo cannot be asked.
    """
    from vitrail.images.decode import decode

    if len(paths) > 1 and not asked.everything:
        raise InputError(
            f"--point and --box are in pixels of one photo, and {len(paths)} are given: ask one at a time."
        )
    errors = []
    for path in paths:
        try:
            photo = decode(path)
            found = asked.answers(predictor, path)
        except InputError as error:
            if not asked.everything:  # of the one photo, it says more than that none could be used
                raise
            errors.append(error)
            complain(str(error))
            continue
        target.add_objects(path, photo, [(each.mask, each.iou) for each in found])
        write_lines(_lines(path, found, everything=asked.everything))
    return errors


def _lines(path: str, found: Sequence[Clicked], *, everything: bool) -> list[str]:
    name = Path(path).name
    if not everything:
        (one,) = found
        others = [f"{iou:.2f}" for place, iou in enumerate(one.ious) if place and place != one.best]
        said = f"{name}: {one.mask.mean():.1%} of the photo, predicted IoU {one.iou:.2f}"
        return [f"{said} (other readings of the click: {', '.join(others)})" if one.best else said]
    shown = [f"  {each.mask.mean():6.1%}  predicted IoU {each.iou:.2f}" for each in found[:SHOWN]]
    more = [f"  and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
    return [f"{name}: {len(found)} found", *shown, *more]

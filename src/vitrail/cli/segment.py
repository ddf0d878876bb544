"""`vitrail segment ARTIFACT IMAGE... --out DIR`: masks of photos with an artifact, without torch."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vitrail.cli import clicks
from vitrail.cli.numbers import whole_number
from vitrail.cli.output import complain, short, write_lines
from vitrail.errors import InputError
from vitrail.words import counted

if TYPE_CHECKING:
    from vitrail.masks.write import MaskFolder
    from vitrail.predict import Predictor
    from vitrail.tasks.segment import Segmentation

SHOWN = 5
"""Classes that are printed of a photo, the largest."""
LEAST_SHOWN = 0.0005
"""Share of a photo below which a class is not printed."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "artifact",
        metavar="ARTIFACT",
        help="folder that `vitrail select --task segment` or `--task promptable` wrote",
    )
    parser.add_argument(
        "images",
        metavar="IMAGE",
        nargs="+",
        help="image files, folders, or patterns such as 'photos/**/*.jpg'",
    )
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="folder to write: masks, overlays, COCO's masks.json"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the masks of an earlier call")
    parser.add_argument(
        "--threads",
        type=whole_number("threads"),
        metavar="N",
        help="inference threads (default: the artifact's)",
    )
    clicks.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Segment all photos; exit code 0, 1 if some could not be used, 2 if none could.

    The folder appears whole at the end, or not at all.
    """
    from vitrail.images.find import expand
    from vitrail.masks.write import DOCUMENT, MaskFolder
    from vitrail.predict import load
    from vitrail.store import atomic_folder, check_name, check_target
    from vitrail.tasks.promptable import Promptable
    from vitrail.tasks.segment import Segment, numbered

    items = list(expand(args.images))
    check_name(args.out)
    out = Path(args.out)
    if args.overwrite and out.is_dir() and any(out.iterdir()) and not (out / DOCUMENT).is_file():
        raise InputError(
            f"{out} holds no masks of an earlier call and is not replaced: choose another folder."
        )
    check_target(out, overwrite=args.overwrite)
    with load(args.artifact, threads=args.threads) as predictor:
        task = predictor.task
        if not isinstance(task, (Segment, Promptable)):
            raise InputError(f"{args.artifact} makes no masks, it is to {task.name}: {_instead(task.name)}.")
        asked = None if isinstance(task, Segment) else clicks.Asked(args)
        if asked is None and (option := clicks.given(args)):
            raise InputError(
                f"{args.artifact} says what each pixel is, and takes no prompts: leave {option} out."
            )
        # Things that are clicked on have no names.
        classes = numbered(task.labels) if isinstance(task, Segment) else [("object", 1)]
        failed = [error for _, error in items if error is not None]
        for error in failed:
            complain(str(error))
        paths = [path for path, error in items if error is None]
        with atomic_folder(out, overwrite=args.overwrite) as folder:
            target = MaskFolder(folder, classes, single=len(classes) == 1)
            if asked is None:
                errors = _all(predictor, paths, target)
            else:
                errors = clicks.write_all(predictor, asked, paths, target)
            if len(errors) == len(paths):
                raise InputError(
                    f"No photo could be used ({len(items)} tried): give photos that can be read."
                )
            target.end(args.artifact)
    bad = len(failed) + len(errors)
    write_lines([f"{counted(len(paths) - len(errors), 'photo')} → {out}"])
    if bad:
        print(f"vitrail: {bad} of {counted(len(items), 'image')} could not be used.", file=sys.stderr)
    return 1 if bad else 0


def _instead(task: str) -> str:
    return {"classify": "use vitrail predict", "embed": "use vitrail embed"}.get(
        task, "give another artifact"
    )


def _all(predictor: Predictor, paths: Sequence[str], target: MaskFolder) -> list[InputError]:
    """Photo after photo into the folder; the errors of those that could not be used."""
    from vitrail.images.decode import decode

    errors = []
    for path in paths:
        try:
            photo = decode(path)
        except InputError as error:
            errors.append(error)
            complain(str(error))
            continue
        (found,) = predictor.segment(photo)
        labels = found.labels()
        target.add(path, photo, labels, found.alpha() if found.single else None)
        write_lines(_lines(path, found))
    return errors


def _lines(path: str, found: Segmentation) -> list[str]:
    shares = sorted(found.shares().items(), key=lambda each: -each[1])
    there = [(name, share) for name, share in shares if share >= LEAST_SHOWN][:SHOWN]
    width = max((len(short(name)) for name, _ in there), default=0)
    return [path, *(f"  {short(name):<{width}}  {share:6.1%}" for name, share in there or shares[:1])]

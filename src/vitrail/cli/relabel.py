"""`vitrail relabel DIR --classes ...`: a zero-shot artifact with other classes, measured again."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vitrail.errors import InputError

if TYPE_CHECKING:
    from vitrail.artifact import Artifact
    from vitrail.vocabulary import Selection

NOTHING_FITS = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("artifact", metavar="DIR", help="artifact of `select --classes … --keep-text-tower`")
    parser.add_argument(
        "--classes",
        required=True,
        metavar="NAMES|FILE",
        help="comma-separated names, or a file with one per line",
    )
    parser.add_argument("--prompts", metavar="SET|FILE", help="sentences for the names (the artifact's own)")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the new artifact")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier artifact there")
    parser.add_argument("--budget", metavar="TIME", default="5m", help="wall time (5m)")


def run(args: argparse.Namespace) -> int:
    """Relabel; exit code 0, or 3 if the variant no longer meets the artifact's requirements."""
    from vitrail.artifact import open_artifact
    from vitrail.report import terminal

    selection = _selected(args, open_artifact(args.artifact))
    terminal.show(selection, sys.stdout, artifact=args.out if selection.winner else None)
    return 0 if selection.winner is not None else NOTHING_FITS


def _selected(args: argparse.Namespace, artifact: Artifact) -> Selection:
    """Select under the artifact's requirements, with its engine and precision and a head for the new names.

    Raises:
        InputError: an artifact without a text tower, or names that it cannot read.
    """
    from vitrail.requirements import resolve
    from vitrail.selection.select import select
    from vitrail.sources.zero_shot import ClassNames, OwnCLIP
    from vitrail.vocabulary import LEAST, SearchSettings
    from vitrail.zeroshot.prompts import parse_classes, templates

    tower = artifact.text_tower()
    if tower is None:
        raise InputError(
            f"{args.artifact} has no text tower to read names with: make it with "
            "`vitrail select --classes … --keep-text-tower`."
        )
    evidence, variant = artifact.manifest.evidence, artifact.manifest.variant
    if variant.precision == "int8" or not variant.exact:
        raise InputError(
            f"{args.artifact} is {variant.name}, which takes your photos to make again: use "
            "`vitrail select --classes … --images …`."
        )
    names = ClassNames(
        classes=parse_classes(args.classes),
        templates=tower.templates if args.prompts is None else templates(args.prompts),
        own=OwnCLIP(file=str(tower.weights), arch=tower.model, tag=tower.tag or None, license=tower.license),
    )
    _, _, timed = resolve(flags={"budget": args.budget})
    # Accuracy requirements were about the old classes.
    unlimited: dict[str, Any] = dict.fromkeys(LEAST, ())
    requirements = replace(evidence.requirements, min_accuracy=None, **unlimited)
    settings = SearchSettings(
        runtimes=(variant.runtime,),
        precisions=(variant.precision,),
        passes=variant.passes,
        budget_s=timed.budget_s,
        offline=True,
    )
    return select(
        requirements,
        replace(evidence.workload, data=None),
        settings,
        sources=[names],
        out=args.out,
        overwrite=args.overwrite,
        keep_text_tower=True,
    )

"""`vitrail package ARTIFACT --for TARGET --out DIR`: an artifact as what other servers take."""

from __future__ import annotations

import argparse

from vitrail.cli.numbers import whole_number
from vitrail.cli.output import STDOUT, add_json_argument, write_json, write_lines

SCHEMA_VERSION = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("artifact", metavar="ARTIFACT", help="folder that vitrail select wrote")
    parser.add_argument(
        "--for",
        dest="target",
        metavar="TARGET",
        required=True,
        help="what will serve it: docker (with vitrail serve), triton, openvino-model-server or phone",
    )
    parser.add_argument("--out", metavar="DIR", required=True, help="folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier package")
    parser.add_argument("--name", metavar="NAME", help="what clients call the model (the folder's name)")
    parser.add_argument(
        "--wheel",
        metavar="FILE",
        help="Vitrail's own wheel, for an image (docker, triton) that is built without a package index",
    )
    parser.add_argument(
        "--max-batch",
        type=whole_number("batch_size"),
        metavar="N",
        help="images in one batch (triton; default: as the artifact was measured)",
    )
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Write the package; 0."""
    from vitrail.package import package

    packed = package(
        args.artifact,
        args.target,
        args.out,
        overwrite=args.overwrite,
        name=args.name,
        wheel=args.wheel,
        max_batch=args.max_batch,
    )
    if args.json:
        write_json({"schema_version": SCHEMA_VERSION, **vars(packed), "path": str(packed.path)}, args.json)
    if args.json != STDOUT:
        write_lines(
            [
                f"{packed.path}/ written: {packed.artifact} for {packed.target}, called {packed.name}",
                *(f"  note: {note}" for note in packed.notes),
                f"next: {packed.path}/README.md",
            ]
        )
    return 0

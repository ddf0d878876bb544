"""`vitrail embed SOURCE --out OUT.parquet`: images or texts as vectors, in a file to search."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitrail.cli.output import STDOUT, add_json_argument, write_json
from vitrail.errors import InputError

if TYPE_CHECKING:
    from vitrail.embeddings import Table

SCHEMA_VERSION = 1
MIB = 1024 * 1024


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("source", metavar="SOURCE", help="folder of images, one image, or with --text a file")
    parser.add_argument("--out", required=True, metavar="FILE", help="Parquet file to write")
    parser.add_argument(
        "--model", required=True, metavar="NAME", help="of the catalogue, timm's, or for a CLIP open_clip's"
    )
    parser.add_argument("--weights", metavar="FILE", help="its weights (the catalogue's)")
    parser.add_argument("--text", action="store_true", help="SOURCE holds one text a line (CLIP models only)")
    parser.add_argument("--tokenizer", metavar="FILE", help="tokenizer.json, for texts of a SigLIP")
    parser.add_argument(
        "--normalisation",
        choices=("imagenet", "half", "none", "clip", "edge"),
        help="mean and standard deviation the weights were trained with (the model's usual ones)",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="(all usable cores)")
    parser.add_argument("--offline", action="store_true", help="use weights that are on this machine only")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Embed and write; 0, or 1 if some inputs could not be embedded (they are named on standard error).

    Raises InputError for a source without images or texts, a model that cannot be had or reads no texts, and
    a FILE that cannot be written.
    """
    from vitrail.embeddings import embed, write_table
    from vitrail.embeddings.sources import image_paths, text_lines
    from vitrail.models.embed import open_embedder

    if args.threads is not None and args.threads < 1:
        raise InputError(f"--threads is {args.threads}: give at least 1.")
    _check_out(args.out, overwrite=args.overwrite)
    names = text_lines(args.source) if args.text else image_paths(args.source)
    with open_embedder(
        args.model,
        weights=args.weights,
        normalisation=args.normalisation,
        tokenizer=args.tokenizer,
        offline=args.offline,
        threads=args.threads,
    ) as embedder:
        table = embed(embedder, names, "text" if args.text else "image", progress=_progress(len(names)))
    write_table(table, args.out)
    if args.json is not None:
        write_json(_document(args.source, args.out, table), args.json)
    if args.json != STDOUT:
        print("\n".join(_lines(args.source, args.out, table)))
    for broken in table.broken:
        print(f"vitrail: error: {broken.reason}", file=sys.stderr)
    return 1 if table.broken else 0


def _check_out(out: str, *, overwrite: bool) -> None:
    """Say before hours of work what would stop the writing after them."""
    path = Path(out)
    if path.is_dir():
        raise InputError(f"{out} is a folder: give the name of a file.")
    if path.is_file() and not overwrite:
        raise InputError(f"{out} already exists: choose another name, or replace it with --overwrite.")
    parent = path.absolute().parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise InputError(f"{parent} is no folder that can be written to: make it, or choose another --out.")


def _progress(total: int) -> Callable[[int], None] | None:
    if not sys.stderr.isatty():
        return None

    def show(done: int) -> None:
        print(f"\r{done}/{total}", end="" if done < total else "\n", file=sys.stderr, flush=True)

    return show


def _document(source: str, out: str, table: Table) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "source": source,
        "out": out,
        "content": table.content,
        "rows": len(table.names),
        "digest": table.digest,
        "origin": table.origin,
        "broken": table.broken,
    }


def _lines(source: str, out: str, table: Table) -> list[str]:
    origin, rows = table.origin, len(table.names)
    thing = table.content if rows == 1 else f"{table.content}s"
    size = origin.preprocess.image_size
    lines = [
        f"{rows} {thing} of {source} · {origin.model} ({origin.implementation}) at {size} px · "
        f"{origin.dimension} numbers each",
        f"{out} written, {Path(out).stat().st_size / MIB:.1f} MiB · next: vitrail search {out} "
        + ("IMAGE or TEXT" if origin.reads_text else "IMAGE"),
    ]
    if table.broken:
        lines.insert(1, f"{len(table.broken)} of {rows + len(table.broken)} could not be embedded:")
    return lines

"""`vitrail embed INPUT --out OUT.parquet`: turn images or texts into vectors, in a file to search."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitrail.cli.numbers import whole_number
from vitrail.cli.output import STDOUT, add_json_argument, complain, write_json, write_lines
from vitrail.errors import InputError
from vitrail.words import counted

if TYPE_CHECKING:
    from vitrail.embeddings import VectorTable
    from vitrail.embeddings.artifact import ArtifactEmbedder
    from vitrail.vocabulary import Weights
    from vitrail.zeroshot.embed import ModelEmbedder

SCHEMA_VERSION = 1
HUB = "hub:"
BATCH = 4
"""Images per call of an artifact's engine; larger batches gain little on a CPU."""
ENDINGS = (".parquet", ".pq")
MIB = 1024 * 1024


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("input", metavar="INPUT", help="folder of images, one image, or with --text a file")
    parser.add_argument("--out", required=True, metavar="FILE", help="file to write, .parquet or .pq")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--artifact", metavar="DIR", help="what `vitrail select --task embed` shipped; needs no torch"
    )
    which.add_argument("--model", metavar="NAME", help="of the catalogue, timm's, or for a CLIP open_clip's")
    parser.add_argument(
        "--weights", metavar="FILE|hub:REPO", help="a file, or for a CLIP a repository (the published ones)"
    )
    parser.add_argument("--tag", help="open_clip's tag of a CLIP's weights; decides the preprocess too")
    parser.add_argument("--text", action="store_true", help="INPUT has one text per line (CLIP models only)")
    parser.add_argument("--tokenizer", metavar="FILE", help="tokenizer.json, for texts of a SigLIP")
    parser.add_argument("--threads", type=whole_number("threads"), metavar="N", help="(all usable cores)")
    parser.add_argument("--offline", action="store_true", help="only use weights that are on this machine")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Embed and write; 0, or 1 if some inputs could not be embedded (they are named on standard error).

    Raises InputError for an input without images or texts, a model that is unavailable or reads no texts, and
    a FILE that cannot be written.
    """
    from vitrail.embeddings import embed, write_table
    from vitrail.embeddings.inputs import image_paths, text_lines
    from vitrail.embeddings.vectors import check_installed

    check_installed()
    _check_artifact(args)
    _check_out(args.out, overwrite=args.overwrite)
    names = text_lines(args.input) if args.text else image_paths(args.input)
    with _embedder(args) as embedder:
        table = embed(embedder, names, "text" if args.text else "image", progress=_progress(len(names)))
    write_table(table, args.out)
    if args.json is not None:
        write_json(_document(args.input, args.out, table), args.json)
    if args.json != STDOUT:
        write_lines(_lines(args.input, args.out, table))
    for broken in table.broken:
        complain(broken.reason)
    return 1 if table.broken else 0


def _embedder(args: argparse.Namespace) -> ArtifactEmbedder | ModelEmbedder:
    if args.artifact is not None:
        return _of_artifact(args)
    from vitrail.models.registry import TWO_TOWERS
    from vitrail.weights.find import WeightsFinder
    from vitrail.zeroshot.embed import open_embedder
    from vitrail.zeroshot.hub import Finder

    if args.model in TWO_TOWERS:
        weights, changes = _of_clip(args.model, args.weights, args.tag)
        finder: WeightsFinder = Finder(offline=args.offline)
    elif args.tag is not None or (args.weights or "").startswith(HUB):
        raise InputError(f"{args.model} is not one of our CLIPs: leave --tag out, give --weights as a file.")
    else:
        weights, changes, finder = args.weights, {}, WeightsFinder(offline=args.offline)
    return open_embedder(
        args.model,
        content="text" if args.text else "image",
        weights=weights,
        changes=changes,
        tokenizer=args.tokenizer,
        finder=finder,
        threads=args.threads,
    )


def _check_artifact(args: argparse.Namespace) -> None:
    for name in ("weights", "tag", "text", "tokenizer", "offline"):
        if args.artifact is not None and getattr(args, name) not in (None, False):
            raise InputError(f"--{name} goes with --model: an artifact has its own weights. Leave it out.")


def _of_artifact(args: argparse.Namespace) -> ArtifactEmbedder:
    from vitrail.embeddings.artifact import ArtifactEmbedder

    return ArtifactEmbedder(args.artifact, threads=args.threads, batch_size=BATCH)


def _of_clip(model: str, weights: str | None, tag: str | None) -> tuple[str | Weights, dict[str, Any]]:
    """Where a CLIP's weights are, and their preprocess: the same choice as in `vitrail zero-shot`."""
    from vitrail.catalog.clip import of_hub, of_model, preprocess_of, published
    from vitrail.vocabulary import Weights
    from vitrail.zeroshot.hub import repository

    row = published(model, tag) if tag is not None or weights is None else None
    if row is None and weights is not None and weights.startswith(HUB):
        row = of_hub(model, weights.removeprefix(HUB))
    changes: dict[str, Any] = {}
    if of_model(model):  # otherwise only the family's preprocess is known
        known = preprocess_of(model, 1, row)
        changes = {"mean": known.mean, "std": known.std, "crop_mode": known.crop_mode}
    if weights is not None and not weights.startswith(HUB):
        return weights, changes
    reference = weights.removeprefix(HUB) if weights is not None else ""
    return Weights(
        source="hub",
        reference=repository(reference or (row.hub if row is not None else "")),
        tag=row.tag if row is not None else "",
        license=row.license if row is not None else "unknown",
    ), changes


def _check_out(out: str, *, overwrite: bool) -> None:
    """Raise before hours of work if the file could not be written afterwards."""
    path = Path(out)
    if path.is_dir():
        raise InputError(f"{out} is a folder: give the name of a file.")
    if path.suffix.lower() not in ENDINGS:
        raise InputError(f"{out} is for Parquet: give a name that ends in {' or '.join(ENDINGS)}.")
    if path.is_file() and not overwrite:
        raise InputError(f"{out} already exists: choose another name, or replace it with --overwrite.")
    parent = path.absolute().parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise InputError(f"{parent} is not a writable folder: create it, or choose another --out.")


def _progress(total: int) -> Callable[[int], None] | None:
    if not sys.stderr.isatty():
        return None

    def show(done: int) -> None:
        print(f"\r{done}/{total}", end="" if done < total else "\n", file=sys.stderr, flush=True)

    return show


def _document(given: str, out: str, table: VectorTable) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "source": given,
        "out": out,
        "content": table.content,
        "rows": len(table.names),
        "digest": table.digest,
        "origin": table.origin,
        "broken": table.broken,
    }


def _lines(given: str, out: str, table: VectorTable) -> list[str]:
    origin, rows = table.origin, len(table.names)
    size = origin.preprocess.image_size
    lines = [
        f"{counted(rows, table.content)} of {given} · {origin.model} ({origin.implementation}) at "
        f"{size} px · {origin.dimension} numbers each",
        f"{out} written, {Path(out).stat().st_size / MIB:.1f} MiB · next: vitrail search {out} "
        + ("IMAGE or TEXT" if origin.reads_text else "IMAGE"),
    ]
    if table.broken:
        lines.insert(1, f"{len(table.broken)} of {rows + len(table.broken)} could not be embedded:")
    return lines

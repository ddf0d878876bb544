"""`vitrail search INDEX QUERY`: the images or texts of an index that are nearest to an image or a text."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

from vitrail.cli.numbers import whole_number
from vitrail.cli.output import STDOUT, add_json_argument, write_json, write_lines
from vitrail.errors import InputError

if TYPE_CHECKING:
    from vitrail.embeddings import Hit, Index, Origin
    from vitrail.embeddings.artifact import ArtifactEmbedder
    from vitrail.embeddings.towers import Content
    from vitrail.zeroshot.embed import ModelEmbedder

SCHEMA_VERSION = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("index", metavar="INDEX", help="Parquet file that vitrail embed wrote")
    parser.add_argument("query", metavar="QUERY", help="an image file, or a text (CLIP models only)")
    parser.add_argument(
        "--top", type=whole_number("top"), default=10, metavar="K", help="how many to show (10)"
    )
    parser.add_argument("--text", action="store_true", help="QUERY is a text, even if a file has that name")
    parser.add_argument("--artifact", metavar="DIR", help="the index's artifact, if it was moved")
    parser.add_argument("--weights", metavar="FILE", help="the index's weights, if they were moved")
    parser.add_argument("--tokenizer", metavar="FILE", help="the index's tokenizer.json, if it was moved")
    parser.add_argument("--offline", action="store_true", help="only use weights that are on this machine")
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Search and show.

    Raises InputError for an unreadable index, weights other than the index's, an unusable image, or a text if
    the model reads none.
    """
    from vitrail.embeddings import Index
    from vitrail.images.find import called_image

    index = Index.read(args.index)
    origin = index.table.origin
    is_image = not args.text and os.path.isfile(args.query)  # Path fails on a long text
    if not is_image and not args.text and called_image(args.query):
        raise InputError(f"There is no image at {args.query}: check it, or search for that text with --text.")
    if not is_image and not origin.reads_text:
        raise InputError(
            f"{args.index} was made by {origin.model}, which embeds images only: search by an image "
            f"({args.query!r} is not a file), or embed again with a CLIP, e.g. --model ViT-B-32."
        )
    with _embedder(args, origin, "image" if is_image else "text") as embedder:
        index.check(embedder)
        query = embedder.images([args.query]) if is_image else embedder.texts([args.query])
    (hits,) = index.search(query, top=args.top)
    if args.json is not None:
        write_json(_document(args, index, hits, is_image=is_image), args.json)
    if args.json != STDOUT:
        write_lines(f"{hit.score:7.4f}  {hit.name}" for hit in hits)
    return 0


def _embedder(args: argparse.Namespace, origin: Origin, content: Content) -> ArtifactEmbedder | ModelEmbedder:
    if args.artifact and (args.weights or args.tokenizer):
        raise InputError("An --artifact has its own weights: leave --weights and --tokenizer out.")
    artifact = args.artifact or (None if args.weights else origin.artifact)
    if artifact is not None:
        if not args.artifact and not os.path.isdir(artifact):
            raise InputError(
                f"The index was made by the artifact {artifact}, which is gone: give its new place with "
                "--artifact DIR, or give the weights with --weights FILE."
            )
        from vitrail.embeddings.artifact import ArtifactEmbedder

        return ArtifactEmbedder(artifact, batch_size=1)
    if origin.precision != "fp32":
        raise InputError(
            f"The index was made in {origin.precision}, which only its artifact can do: give its place "
            "with --artifact DIR."
        )
    from vitrail.weights.find import WeightsFinder
    from vitrail.zeroshot.embed import reopen
    from vitrail.zeroshot.hub import Finder

    # On the hub a CLIP's files have different names from a classifier's.
    finder = (Finder if origin.reads_text else WeightsFinder)(offline=args.offline)
    return reopen(origin, content=content, weights=args.weights, tokenizer=args.tokenizer, finder=finder)


def _document(args: argparse.Namespace, index: Index, hits: list[Hit], *, is_image: bool) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "index": args.index,
        "rows": len(index),
        "model": index.table.origin.model,
        "query": args.query,
        "query_content": "image" if is_image else "text",
        "content": index.table.content,
        "exact": index.exact,
        "hits": hits,
    }

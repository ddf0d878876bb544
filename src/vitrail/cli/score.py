"""`vitrail score IMAGE TEXT`: rate how well an image and a text match, by CLIPScore."""

from __future__ import annotations

import argparse

from vitrail.cli.output import STDOUT, add_json_argument, write_json, write_lines
from vitrail.cli.zero_shot import add_model_arguments, load_model
from vitrail.errors import InputError

SCHEMA_VERSION = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("image", metavar="IMAGE", help="image file")
    parser.add_argument("text", metavar="TEXT", help="what the image should show")
    parser.add_argument(
        "--prefix",
        default="",
        metavar="TEXT",
        help='put before the text; the CLIPScore paper uses "A photo depicts" (nothing)',
    )
    add_model_arguments(parser)
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Score one pair and show it.

    Raises InputError for an unreadable image or an empty or overlong text, and as `load_model`.
    """
    if not args.text.strip():
        raise InputError("The text is empty: say what the image should show.")
    import torch

    from vitrail.images.decode import decode
    from vitrail.images.preprocess import prepare
    from vitrail.zeroshot.head import tokens_of
    from vitrail.zeroshot.score import clip_score

    photo = decode(args.image)
    loaded = load_model(args)
    text = f"{args.prefix.rstrip()} {args.text}" if args.prefix.strip() else args.text
    tokens = tokens_of(loaded.tokenizer, [text])
    pixels = torch.from_numpy(prepare(photo, loaded.preprocess))[None]
    score = clip_score(loaded.model, pixels, tokens)
    document = {
        "schema_version": SCHEMA_VERSION,
        "model": loaded.name,
        "weights": loaded.weights,
        "preprocess": loaded.preprocess,
        "image": args.image,
        "text": text,
        "clip_score": float(score.clip_score_B[0]),
        "cosine": float(score.cosine_B[0]),
    }
    if args.json is not None:
        write_json(document, args.json)
    if args.json != STDOUT:
        figures = f"CLIPScore {document['clip_score']:.4f}  (cosine {document['cosine']:.4f}"
        write_lines([f"{figures}, {loaded.name})"])
    return 0

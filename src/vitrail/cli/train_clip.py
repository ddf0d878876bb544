"""`vitrail train-clip`: train a CLIP on images with texts."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from vitrail.cli.output import STDOUT, add_json_argument, write_json, write_lines
from vitrail.cli.train_options import (
    add_train_arguments,
    existing,
    machine_of,
    need_training,
    recipe_of,
    trained_by,
)
from vitrail.errors import InputError

if TYPE_CHECKING:
    from vitrail.learn.clip import ClipRun
    from vitrail.vocabulary import Preprocess


RECIPE = "clip"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "--pairs", metavar="MANIFEST", required=True, help="CSV or Parquet: path,text[,split][,category]"
    )
    parser.add_argument("--model", metavar="NAME", required=True, help="a CLIP, such as ViT-nano-8-64")
    parser.add_argument(
        "--loss", choices=("clip", "sigmoid"), help="(sigmoid for a model with a bias, else clip)"
    )
    parser.add_argument("--weights", metavar="FILE", help="start from these instead of random ones")
    parser.add_argument("--tag", help="which published weights say how images are prepared")
    parser.add_argument("--tokenizer", metavar="FILE", help="tokenizer.json of a SigLIP")
    add_train_arguments(parser, recipe=RECIPE)
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Train; exit code 0.

    Raises InputError as `vitrail.learn.clip.train_clip`.
    """
    need_training()
    recipe, machine = recipe_of(args, RECIPE), machine_of(args)
    for name in ("weights", "tokenizer"):
        path = getattr(args, name)
        if path is not None and not Path(path).is_file():
            raise InputError(f"There is no file at {path}: check --{name}.")
    from vitrail.learn.clip import ClipSetup, train_clip

    setup = ClipSetup(
        pairs=Path(args.pairs),
        model=args.model,
        preprocess=_preprocess(args.model, args.tag),
        recipe=recipe,
        out=Path(args.out),
        loss=args.loss,
        weights=existing(args.weights),
        tokenizer=existing(args.tokenizer),
        checkpoint_every=args.checkpoint_every,
        extend=args.extend,
        machine=machine,
    )
    trained = trained_by(args, lambda watcher: train_clip(setup, watcher))
    if trained is None:
        return 0
    if args.json:
        write_json({"run": args.out, **_plain(trained)}, args.json)
    if args.json != STDOUT:
        write_lines(_ended(args, trained))
    return 0


def _preprocess(model: str, tag: str | None) -> Preprocess:
    """How `zero-shot`, `embed` and the others will prepare images for these weights."""
    from vitrail.catalog.clip import preprocess_of, published
    from vitrail.models import clip

    if model not in clip.VARIANTS:
        raise InputError(f"Vitrail has no CLIP or SigLIP named {model!r}: choose {', '.join(clip.VARIANTS)}.")
    return preprocess_of(
        model, clip.VARIANTS[model].image_size[0], None if tag is None else published(model, tag)
    )


def _plain(trained: ClipRun) -> dict[str, object]:
    import msgspec

    found: dict[str, object] = msgspec.to_builtins(trained)
    return found


def _ended(args: argparse.Namespace, trained: ClipRun) -> list[str]:
    best = max(trained.history, key=lambda figures: figures["recall_1"])
    return [
        f"{args.out} · best recall@1 {best['recall_1']:.2f} % "
        f"(image to text {best['image_to_text_1']:.2f} %, text to image {best['text_to_image_1']:.2f} %) "
        f"in epoch {best['epoch']:.0f} of {trained.epochs} · "
        f"{trained.history[-1]['seconds']:.0f} s",
        f"next: vitrail zero-shot IMAGE --classes A,B --model {trained.model} "
        f"--weights {Path(args.out) / trained.weights}",
    ]

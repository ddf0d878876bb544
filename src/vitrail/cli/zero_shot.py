"""`vitrail zero-shot IMAGE... --classes ...`: classify images by class names alone, with CLIP or SigLIP."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitrail.cli.numbers import whole_number
from vitrail.cli.output import (
    INDEPENDENT,
    STDOUT,
    add_json_argument,
    complain,
    short,
    write_json,
    write_lines,
)
from vitrail.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from vitrail.tasks.classify import Probability
    from vitrail.zeroshot.loading import Loaded

SCHEMA_VERSION = 1
BATCH = 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="image files, folders or patterns")
    parser.add_argument(
        "--classes",
        required=True,
        metavar="NAMES|FILE",
        help="comma-separated names, or a file with one per line",
    )
    add_model_arguments(parser)
    parser.add_argument(
        "--prompts",
        default="imagenet",
        metavar="SET|FILE",
        help="imagenet (80 sentences), simple (7), or a file of lines with {} for the name (imagenet)",
    )
    parser.add_argument(
        "--top", type=whole_number("top"), default=5, metavar="K", help="classes per image (5)"
    )
    add_json_argument(parser)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that name a CLIP or SigLIP and its files; `load_model` reads them."""
    parser.add_argument("--model", required=True, metavar="NAME", help="open_clip's name, such as ViT-B-32")
    parser.add_argument(
        "--weights", metavar="FILE|hub:ID", help="a file, or a repository of the hub (the published ones)"
    )
    parser.add_argument("--tag", metavar="TAG", help="which published weights, by open_clip's tag")
    parser.add_argument(
        "--tokenizer", metavar="FILE", help="tokenizer.json of a SigLIP (fetched from the hub)"
    )


def load_model(args: argparse.Namespace) -> Loaded:
    """The CLIP or SigLIP that the options name.

    Raises InputError as `vitrail.zeroshot.loading.load`.
    """
    from vitrail.zeroshot.loading import load

    tokenizer = None if args.tokenizer is None else Path(args.tokenizer)
    return load(args.model, weights=args.weights, tag=args.tag, tokenizer=tokenizer)


def run(args: argparse.Namespace) -> int:
    """Classify all images; exit code 0, 1 if some could not be used, 2 if none could."""
    from vitrail.images.find import expand
    from vitrail.zeroshot import prompts

    # Report wrong names before reading gigabytes.
    classes, templates = prompts.parse_classes(args.classes), prompts.templates(args.prompts)
    images = list(expand(args.images))
    loaded = load_model(args)
    outcomes: list[np.ndarray | InputError] = []
    try:
        outcomes.extend(_classified(loaded, images, classes, templates))
    finally:  # results computed before an error or Ctrl-C are written
        done = [name for name, _ in images][: len(outcomes)]
        document = _document(args, loaded, classes, len(templates), done, outcomes)
        document |= {"images": len(images), "complete": len(done) == len(images)}
        if done and args.json is not None:
            write_json(document, args.json)
        if done and args.json != STDOUT:
            write_lines(_lines(document))
    bad = [outcome for outcome in outcomes if isinstance(outcome, InputError)]
    for error in bad:
        complain(error)
    if not bad:
        return 0
    return InputError.exit_code if len(bad) == len(outcomes) else 1


def _classified(
    loaded: Loaded,
    images: Sequence[tuple[str, InputError | None]],
    classes: Sequence[str],
    templates: Sequence[str],
) -> Iterator[np.ndarray | InputError]:
    """For each image its logits (K,), or its error; a batch at a time."""
    import torch

    from vitrail.images.decode import decode
    from vitrail.images.preprocess import prepare_batch, resized_short_side
    from vitrail.weights.finite import check_outputs
    from vitrail.zeroshot.head import classifier, text_head

    model = classifier(loaded.model, *text_head(loaded.model, loaded.tokenizer, classes, templates))
    for start in range(0, len(images), BATCH):
        photos: list[Any] = []
        outcomes: list[InputError | None] = []
        for path, wrong in images[start : start + BATCH]:
            try:
                if wrong is not None:
                    raise wrong
                photos.append(decode(path, short_side=resized_short_side(loaded.preprocess)))
                outcomes.append(None)
            except InputError as error:
                outcomes.append(error)
        logits: Iterator[Any] = iter(())
        if photos:
            with torch.inference_mode():
                logits_BK = model(torch.from_numpy(prepare_batch(photos, loaded.preprocess)))
            check_outputs(logits_BK, loaded.weights.reference, "scores")
            logits = iter(logits_BK.numpy())
        yield from (next(logits) if outcome is None else outcome for outcome in outcomes)


def _document(
    args: argparse.Namespace,
    loaded: Loaded,
    classes: Sequence[str],
    templates: int,
    images: Sequence[str],
    outcomes: Sequence[np.ndarray | InputError],
) -> dict[str, Any]:
    import numpy as np

    from vitrail.tasks.classify import probabilities

    # SigLIP is trained to judge each class independently, CLIP to choose among them.
    kind: Probability = "softmax" if loaded.model.logit_bias is None else "sigmoid"
    rows: list[dict[str, Any]] = []
    for image, outcome in zip(images, outcomes, strict=True):
        if isinstance(outcome, InputError):
            rows.append({"image": image, "error": str(outcome), "top": []})
            continue
        found = probabilities(outcome[None], kind)[0]
        best = [int(k) for k in np.argsort(-outcome, kind="stable")[: args.top]]
        top = [
            {
                "label": classes[k],
                "index": k,
                "probability": float(found[k]),
                "logit": float(outcome[k]),
            }
            for k in best
        ]
        rows.append({"image": image, "error": None, "top": top})
    return {
        "schema_version": SCHEMA_VERSION,
        "model": loaded.name,
        "weights": loaded.weights,
        "preprocess": loaded.preprocess,
        "prompts": args.prompts,
        "templates": templates,
        "classes": list(classes),
        "probability": kind,
        "predictions": rows,
    }


def _lines(document: dict[str, Any]) -> list[str]:
    done = [row for row in document["predictions"] if row["error"] is None]
    width = max((len(short(ranked["label"])) for row in done for ranked in row["top"]), default=0)
    lines = []
    for row in done:
        lines.append(row["image"])
        lines += [
            f"  {short(ranked['label']):<{width}}  {ranked['probability']:7.2%}" for ranked in row["top"]
        ]
    if done and document["probability"] == "sigmoid":
        lines.append(INDEPENDENT)
    return lines

"""`vitrail batch ARTIFACT SOURCE --out OUT`: an artifact over any number of images, without torch."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitrail.batch.formats import FORMATS
from vitrail.cli.numbers import whole_number
from vitrail.cli.output import STDOUT, add_json_argument, write_json, write_lines
from vitrail.errors import InputError
from vitrail.words import counted

if TYPE_CHECKING:
    from vitrail.batch.records import Summary


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("artifact", metavar="ARTIFACT", help="folder that vitrail select wrote")
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="folder, pattern such as 'photos/**/*.jpg', manifest (.csv, .parquet), or URL of one (s3://…)",
    )
    parser.add_argument("--out", required=True, metavar="OUT", help="folder for results and errors")
    parser.add_argument(
        "--format", choices=FORMATS, default=FORMATS[0], help="of results and errors (default parquet)"
    )
    parser.add_argument("--top", type=whole_number("top"), metavar="K", help="labels per image (default 5)")
    parser.add_argument(
        "--min-confidence", metavar="PERCENT", help="label what is less probable `unknown` (default 0)"
    )
    parser.add_argument(
        "--sort-into", metavar="DIR", help="also link each image in a folder per label below DIR"
    )
    parser.add_argument(
        "--root", metavar="DIR|URL", help="what a manifest's paths start from (default: its own folder)"
    )
    parser.add_argument(
        "--retry-errors", action="store_true", help="try again what failed in an earlier run of the job"
    )
    parser.add_argument(
        "--ray",
        nargs="?",
        const="auto",
        metavar="ADDRESS",
        help="do the work on a Ray cluster: this machine's, or the one at ADDRESS",
    )
    parser.add_argument(
        "--shard-size",
        type=whole_number("shard_size"),
        metavar="N",
        help="inputs that are committed together (default 1024)",
    )
    parser.add_argument(
        "--threads",
        type=whole_number("threads"),
        metavar="N",
        help="inference threads (default: all usable cores; with --ray 1)",
    )
    parser.add_argument(
        "--workers",
        type=whole_number("workers"),
        metavar="N",
        help="threads that read and decode; 0: in turn with the model (default: what is fastest here)",
    )
    parser.add_argument(
        "--max-megapixels",
        type=whole_number("max_megapixels"),
        metavar="N",
        help="largest image, in millions of pixels (default 50; memory and time grow with it)",
    )
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Run the job; exit code 0, 1 if some inputs have no result, 2 if none has one."""
    from vitrail.batch import job
    from vitrail.batch.progress import Progress
    from vitrail.batch.records import SHARD_SIZE
    from vitrail.batch.request import Request
    from vitrail.batch.summary import document
    from vitrail.images.limits import LIMITS, Limits

    request = Request(
        artifact=args.artifact,
        source=args.source,
        out=args.out,
        format=args.format,
        options=_options(args),
        root=args.root,
        sort_into=args.sort_into,
        shard_size=args.shard_size or SHARD_SIZE,
        threads=args.threads,
        workers=args.workers,
        limits=LIMITS if args.max_megapixels is None else Limits.of_megapixels(args.max_megapixels),
        retry_errors=args.retry_errors,
        ray=args.ray,
    )
    try:
        with Progress(sys.stderr) as shown:
            summary = job.run(request, shown)
    except KeyboardInterrupt:
        if (Path(args.out) / "job.json").exists():
            text = f"vitrail: {args.out} keeps all finished parts: the same command goes on from there"
            print(text, file=sys.stderr)
        raise
    if args.json is not None:
        write_json(document(summary), args.json)
    if args.json != STDOUT:
        write_lines(_lines(summary, args))
    if not summary.failed:
        return 0
    if summary.results:
        return 1
    raise InputError(f"No input has a result: {args.out}/errors says why for each.")


def _options(args: argparse.Namespace) -> dict[str, Any]:
    from vitrail.units import percent

    options: dict[str, Any] = {}
    if args.top is not None:
        options["top"] = args.top
    if args.min_confidence is not None:
        options["min_confidence"] = percent(args.min_confidence, "--min-confidence")
        if not 0 <= options["min_confidence"] <= 100:
            raise InputError(f"--min-confidence is {args.min_confidence}: give a percentage from 0 to 100.")
    return options


def _lines(summary: Summary, args: argparse.Namespace) -> list[str]:
    from vitrail.batch.progress import clock, stage_words

    out = args.out.rstrip("/")
    lines = [f"{counted(summary.inputs, 'input')} → {counted(summary.results, 'row')} in {out}/results"]
    if summary.failed:
        reasons = ", ".join(f"{count} {reason}" for reason, count in summary.errors.items())
        lines[0] += f", {counted(summary.failed, 'error')} in {out}/errors ({reasons})"
    rate = summary.images_per_second
    if rate is None:
        lines.append("all was done before: nothing to do")
    else:
        busy = ", ".join(
            f"{stage_words(name)} {share:.0%}"
            for name, share in sorted(summary.busy.items(), key=lambda item: -item[1])
            if share >= 0.005
        )
        done = f"{summary.done_now} done in {clock(summary.seconds)}, {rate:.0f} images/s"
        if summary.done_now < summary.inputs:
            done = f"{summary.inputs - summary.done_now} done before, {done}"
        lines.append(f"{done} · busy: {busy}" if busy else done)
    if summary.shards_redone:
        lines.append(f"{counted(summary.shards_redone, 'shard')} done again")
    if summary.retried:
        lines.append(f"{counted(summary.retried, 'failed input')} tried again")
    if summary.listed.repeated:
        lines.append(f"{counted(summary.listed.repeated, 'input')} listed more than once: done once")
    if summary.listed.gone:
        lines.append(f"{counted(summary.listed.gone, 'input')} of the job not listed any more: kept")
    if args.sort_into is not None:
        lines.append(f"links to {counted(summary.results, 'image')} in {args.sort_into}")
    return lines + [f"NOTE  {note}" for note in summary.notes]

"""`vitrail optimize`: one model in every form that this machine has, how fast each is, the best to ship."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from typing import TYPE_CHECKING

from vitrail.cli.output import STDOUT, add_json_argument, write_lines
from vitrail.cli.requirement_options import add_requirement_arguments, flags_of
from vitrail.cli.select import NOTHING_FITS, check_targets, report_path, watching
from vitrail.errors import InputError

if TYPE_CHECKING:
    from vitrail.vocabulary import Requirements, SearchSettings, Selection, Workload

__all__ = ["add_arguments", "run"]

LEFT_OUT = ("profile", "models", "exhaustive", "license")
"""Options that choose among models: here there is one, and its license is its owner's matter."""
DEFAULTS: dict[str, object] = {
    "objective": "latency",
    "latency-scope": "model",
    "percentile": "50",
    "budget": "10m",
    "license": "any",
}
"""What is asked where nothing else is said."""
FILE_OPTIONS = ("arch", "labels", "preprocess", "accuracy")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a name of the catalogue, a training run's or an artifact's folder, weights, or an ONNX file",
    )
    parser.add_argument(
        "--out", metavar="DIR", help="write the best one's artifact; DIR.report.html beside it"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier artifact at DIR")
    parser.add_argument(
        "--random-weights",
        action="store_true",
        help="if its weights are not at hand, time it without them; nothing ships",
    )
    own = parser.add_argument_group("a file of your own")
    own.add_argument("--arch", metavar="NAME", help="timm's name of the architecture of a weights file")
    own.add_argument("--labels", metavar="FILE", help="one label per line, in the order of the outputs")
    own.add_argument("--preprocess", metavar="TOML", help="how the images of an ONNX file are prepared")
    own.add_argument("--accuracy", metavar="PERCENT", help="its top-1, as you declare it")
    add_requirement_arguments(parser, without=LEFT_OUT)
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Optimise; exit code 0 with a best one, 3 when nothing holds parity and what was asked."""
    from vitrail.requirements import resolve
    from vitrail.runtimes import RUNTIMES

    asked = resolve(flags={**DEFAULTS, **flags_of(args)}, runtimes=RUNTIMES)
    check_targets(args.out)
    selection = _measure(args, *asked)
    timed_only = args.random_weights and _timed_only(selection)
    return 0 if selection.winner is not None or timed_only else NOTHING_FITS


def _timed_only(selection: Selection) -> bool:
    """Whether figures were taken, all of them with random weights."""
    from vitrail.report import phrases

    timed = phrases.measured(selection)
    return bool(timed) and all(map(phrases.is_random, timed))


def _measure(
    args: argparse.Namespace, requirements: Requirements, workload: Workload, settings: SearchSettings
) -> Selection:
    from vitrail.selection.optimise import Optimise
    from vitrail.selection.select import select
    from vitrail.sources.one_model import Shipped, one_model
    from vitrail.sources.own_onnx import NeedsPreprocess
    from vitrail.units import percent

    if args.random_weights and workload.data is not None:
        raise InputError(
            "--random-weights times a model only, and --data asks how good it is: drop one of them."
        )
    accuracy = None if args.accuracy is None else percent(args.accuracy, "--accuracy")
    source = one_model(
        args.model,
        arch=args.arch,
        labels=args.labels,
        preprocess=args.preprocess,
        accuracy=accuracy,
        task=settings.task,
    )
    if isinstance(source, Shipped):
        if args.task not in (None, source.task):
            raise InputError(f"{args.model} is to {source.task}: leave --task {args.task} out.")
        settings = dataclasses.replace(settings, task=source.task)
    settings = dataclasses.replace(settings, exhaustive=True)
    try:
        with watching(args, workload, _as_asked(args)) as watcher:
            selection = select(
                requirements,
                workload,
                settings,
                sources=[source],
                out=args.out,
                overwrite=args.overwrite,
                watcher=watcher,
                optimise=Optimise(random_weights=args.random_weights),
            )
    except NeedsPreprocess as error:
        write_lines(error.example.splitlines())
        raise
    except KeyboardInterrupt:
        print("vitrail: what was measured is kept: run the same command to go on.", file=sys.stderr)
        raise
    if args.out is not None and args.json != STDOUT:
        from vitrail.report.terminal import written

        folder = args.out if selection.winner is not None else None
        write_lines([written(folder, str(report_path(args.out)), settings.task, out=args.out)])
    return selection


def _as_asked(args: argparse.Namespace) -> tuple[str, ...]:
    """The command that asks the same, without its outputs."""
    said = ["optimize", args.model, *(["--random-weights"] if args.random_weights else [])]
    for name in FILE_OPTIONS:
        value = getattr(args, name)
        said += [] if value is None else [f"--{name}", str(value)]
    for name, value in flags_of(args).items():
        if isinstance(value, bool):
            said.append(f"--{name}" if value else f"--no-{name}")
        else:
            said += [f"--{name}", *([*value] if isinstance(value, list) else [str(value)])]
    return tuple(said)

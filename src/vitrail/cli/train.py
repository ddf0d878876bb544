"""`vitrail train`: fine-tune a model on labelled images, or train it from scratch."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from vitrail.cli.numbers import whole_number
from vitrail.cli.output import STDOUT, add_json_argument, write_json, write_lines
from vitrail.cli.train_options import (
    add_train_arguments,
    existing,
    machine_of,
    need_training,
    recipe_of,
    trained_by,
)
from vitrail.data.records import LAYOUTS
from vitrail.errors import InputError
from vitrail.learn.setup import LEARNED

if TYPE_CHECKING:
    from vitrail.learn.trained import Trained


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "--task", choices=tuple(LEARNED), default="classify", help="what is learned (classify)"
    )
    parser.add_argument(
        "--data", metavar="DIR|MANIFEST", required=True, help="labelled images, as for select"
    )
    parser.add_argument(
        "--layout", choices=LAYOUTS, help="what the folders of --data are, if that is not recognised"
    )
    parser.add_argument("--labels", metavar="FILE", help="of masks: one class per line, from number 0")
    parser.add_argument(
        "--model", metavar="NAME", required=True, help="a candidate, architecture or own model"
    )
    parser.add_argument(
        "--image-size", type=whole_number("image_size"), metavar="PIXELS", help="instead of the model's own"
    )
    parser.add_argument("--weights", metavar="FILE", help="start from these instead of the published ones")
    parser.add_argument("--from-scratch", action="store_true", help="start from random weights")
    parser.add_argument("--offline", action="store_true", help="never contact a model hub")
    parser.add_argument(
        "--then-select", metavar="TOML", help="then run `select` under these requirements, on the same data"
    )
    parser.add_argument(
        "--artifact", metavar="DIR", help="where --then-select ships the winner (RUN-artifact)"
    )
    add_train_arguments(parser, recipe=_defaults())
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Train; exit code 0, or with --then-select that of `select`."""
    need_training()
    recipe, machine = recipe_of(args, LEARNED[args.task].recipe), machine_of(args)
    selecting = _selection_arguments(args)
    from vitrail.learn.finetune import finetune
    from vitrail.learn.setup import FinetuneSetup
    from vitrail.weights.find import WeightsFinder

    setup = FinetuneSetup(
        task=args.task,
        data=args.data,
        layout=args.layout,
        labels=existing(args.labels),
        model=args.model,
        recipe=recipe,
        out=Path(args.out),
        image_size=args.image_size,
        weights=existing(args.weights),
        from_scratch=args.from_scratch,
        checkpoint_every=args.checkpoint_every,
        extend=args.extend,
        machine=machine,
    )
    finder = WeightsFinder(offline=args.offline)
    trained = trained_by(args, lambda watcher: finetune(setup, finder, watcher))
    if trained is None:
        return 0
    if args.json:
        write_json({"schema_version": 1, "run": args.out, **_document(trained)}, args.json)
    if args.json != STDOUT:
        write_lines(_ended(args, trained, selecting is not None))
    if selecting is None:
        return 0
    from vitrail.cli import command_parser
    from vitrail.cli import select as select_command

    return select_command.run(command_parser("select").parse_args(selecting))


def _defaults() -> str:
    """`light`; of several tasks each with its recipe."""
    first, *others = LEARNED.items()
    return "; ".join([first[1].recipe, *(f"for {task} {row.recipe}" for task, row in others)])


def _selection_arguments(args: argparse.Namespace) -> list[str] | None:
    """Arguments of `select` after training, checked now, before hours of training."""
    if args.then_select is None:
        if args.artifact is not None:
            raise InputError("--artifact goes with --then-select: give --then-select TOML too.")
        return None
    if args.json == STDOUT:
        raise InputError("--json - and --then-select would both write to the standard output: give a file.")
    from vitrail.requirements import from_toml

    from_toml(args.then_select)
    out = args.artifact or f"{args.out.rstrip('/')}-artifact"
    if os.path.lexists(out):
        raise InputError(f"{out} already exists: give another place for the artifact with --artifact DIR.")
    arguments = [args.then_select, "--trained", args.out, "--data", args.data, "--out", out]
    layout = [] if args.layout is None else ["--layout", args.layout]
    task = [] if args.task == "classify" else ["--task", args.task]
    return [*arguments, *task, *layout, *(["--offline"] if args.offline else [])]


def _document(trained: Trained) -> dict[str, object]:
    import msgspec

    found: dict[str, object] = msgspec.to_builtins(trained)
    del found["schema_version"], found["seen"]
    return found


def _ended(args: argparse.Namespace, trained: Trained, goes_on: bool) -> list[str]:
    from vitrail import tasks

    metric = tasks.known(trained.task).metric_name
    best = max(trained.history, key=lambda epoch: epoch.accuracy or 0.0)
    lines = [
        f"{args.out} · best validation {metric} {best.accuracy:.2f} % in epoch {best.epoch} of "
        f"{trained.epochs} · {trained.history[-1].seconds:.0f} s",
        *_advice(trained),
    ]
    if not goes_on:
        task = "" if trained.task == "classify" else f"--task {trained.task} "
        lines.append(f"next: vitrail select {task}--trained {args.out} --data {args.data} --out DIR")
    return lines


def _advice(trained: Trained) -> list[str]:
    """What would help, according to the curves."""
    from vitrail.learn.outlook import outlook

    found = outlook(trained)
    if found is None:
        return []
    if found.helps == "more epochs":
        more = f"the same command with --epochs {2 * trained.epochs} --extend trains it on"
        return [f"{found.why}: {more}"]
    return [f"{found.why}: more labelled images would help, more epochs would not"]

"""Options shared by `train` and `train-clip`: the recipe, the machine, the run."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vitrail.cli.numbers import whole_number
from vitrail.cli.output import STDOUT
from vitrail.errors import InputError, MissingExtraError
from vitrail.words import shown

if TYPE_CHECKING:
    from vitrail.learn.recipe import Recipe
    from vitrail.learn.run import RunWatcher
    from vitrail.learn.setup import Machine

Result = TypeVar("Result")

# Option -> the recipe key it sets.
SHORT = {
    "epochs": "epochs",
    "batch_size": "batch_size",
    "learning_rate": "optimizer.learning_rate",
    "seed": "seed",
    "precision": "engine.precision",
    "patience": "patience",
}


def add_train_arguments(parser: argparse.ArgumentParser, *, recipe: str) -> None:
    """Declare them; `recipe` says which one is the default."""
    parser.add_argument(
        "--out", metavar="RUN", required=True, help="the run's folder; an existing run is resumed"
    )
    parser.add_argument(
        "--extend", action="store_true", help="train the finished run in RUN further, to a total of --epochs"
    )
    what = parser.add_argument_group("recipe")
    what.add_argument("--recipe", metavar="NAME|FILE", help=f"a recipe or TOML file ({recipe})")
    what.add_argument("--epochs", type=whole_number("epochs"), metavar="N")
    what.add_argument(
        "--batch-size",
        type=whole_number("batch_size"),
        metavar="N",
        help="images per step, over all processes",
    )
    what.add_argument(
        "--learning-rate",
        type=float,
        metavar="RATE",
        help="the highest, after the warm-up; scaled by the batch size if the recipe has learning_rate_batch",
    )
    what.add_argument("--seed", type=int, metavar="N")
    what.add_argument(
        "--patience",
        type=whole_number("patience"),
        metavar="N",
        help="stop after N epochs without a better figure",
    )
    what.add_argument("--precision", choices=("fp32", "bf16", "fp16"))
    what.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, default=None, help="torch.compile the model"
    )
    what.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="any other key: optimizer.clip_norm=5"
    )
    where = parser.add_argument_group("machine")
    where.add_argument("--accelerator", choices=("auto", "cpu", "cuda"), default="auto")
    where.add_argument(
        "--processes", type=whole_number("processes"), metavar="N", default=1, help="on each node (1)"
    )
    where.add_argument(
        "--nodes",
        type=whole_number("nodes"),
        metavar="N",
        default=1,
        help="started with torchrun on each (1)",
    )
    where.add_argument("--strategy", choices=("auto", "ddp", "fsdp"), default="auto")
    where.add_argument(
        "--threads", type=whole_number("threads"), metavar="N", help="of each process on a CPU"
    )
    where.add_argument(
        "--workers", type=whole_number("workers"), metavar="N", help="processes that prepare images, each"
    )
    parser.add_argument(
        "--checkpoint-every",
        type=whole_number("checkpoint_every"),
        metavar="STEPS",
        help="in addition to the checkpoint of each epoch",
    )


def recipe_of(args: argparse.Namespace, default: str) -> Recipe:
    """The recipe with the options applied; `default` where none is named.

    Raises:
        InputError: an unknown recipe or key, or a value out of range.
    """
    from vitrail.learn.recipe import load_recipe

    changes = [f"{key}={_toml(getattr(args, name))}" for name, key in SHORT.items() if _given(args, name)]
    if args.compile is not None:
        changes.append(f"engine.compile={'true' if args.compile else 'false'}")
    return load_recipe(args.recipe or default, [*args.set, *changes])


def machine_of(args: argparse.Namespace) -> Machine:
    """The processes, threads and devices of the run."""
    from vitrail.learn.setup import Machine

    return Machine(
        accelerator=args.accelerator,
        processes=args.processes,
        nodes=args.nodes,
        strategy=args.strategy,
        threads=args.threads,
        workers=args.workers,
    )


def need_training() -> None:
    """Raise a MissingExtraError unless everything that training needs is installed."""
    import importlib.util

    for module in ("torch", "torchvision", "timm", "lightning_fabric", "tensorboard"):
        if importlib.util.find_spec(module) is None:
            raise MissingExtraError(
                f"{module}, which training needs,", 'pip install "vitrail[workbench,train]"'
            )


def trained_by(args: argparse.Namespace, train: Callable[[RunWatcher], Result]) -> Result | None:
    """Run `train` and show its progress; None in all but the first of several processes.

    Raises InputError as `train`; if the first process reports an error, the others end quietly.
    """
    from vitrail.learn.run import ReportedByProcessZero

    watcher = watcher_of(args)
    try:
        result = train(watcher)
    except ReportedByProcessZero:
        return None
    except KeyboardInterrupt:
        watcher.note("everything up to the last checkpoint is saved: run the same command to resume.")
        raise
    finally:
        watcher.end()
    # torchrun sets RANK, Fabric's launcher LOCAL_RANK and NODE_RANK.
    ranks = ("RANK",) if "RANK" in os.environ else ("LOCAL_RANK", "NODE_RANK")
    return None if any(int(os.environ.get(name, "0")) for name in ranks) else result


def watcher_of(args: argparse.Namespace) -> RunWatcher:
    """A progress bar on a terminal, else a line per epoch; on stderr while stdout holds JSON."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from vitrail.learn.run import RunWatcher

    stream = sys.stderr if args.json == STDOUT else sys.stdout
    # Names of files and folders may look like markup or emoji.
    console = Console(file=stream, markup=False, emoji=False, highlight=False, soft_wrap=True)
    bar = Progress(
        *(BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn()),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )
    task = bar.add_task("")

    def begin(step: int, total: int) -> None:
        if step:
            console.print(f"resuming at step {step} of {total}")
        bar.update(task, completed=step, total=total)
        bar.start()

    def stepped(step: int, loss: float, images_per_s: float) -> None:
        bar.update(task, completed=step, description=f"loss {loss:.3f} · {images_per_s:.0f} images/s")

    def epoch(figures: dict[str, Any]) -> None:
        console.print(_line(figures))

    return RunWatcher(
        begin=begin, step=stepped, epoch=epoch, note=lambda line: console.print(shown(line)), end=bar.stop
    )


def _line(figures: dict[str, Any]) -> str:
    rest = {k: v for k, v in figures.items() if k not in ("epoch", "step", "seconds", "learning_rate")}
    said = " · ".join(_figure(name, value) for name, value in rest.items())
    return f"epoch {figures['epoch']:.0f} · {said} · {figures['seconds']:.0f} s"


def _figure(name: str, value: float) -> str:
    """`image_to_text_1` → `image to text recall@1 12.5 %`; a loss has no unit."""
    if match := re.fullmatch(r"(image_to_text|text_to_image|recall)_(\d+)", name):
        way, first = match.groups()
        of = "" if way == "recall" else f"{way.replace('_', ' ')} "
        return f"{of}recall@{first} {value:.4g} %"
    unit = " %" if name.endswith(("accuracy", "iou")) else ""
    return f"{name.replace('_', ' ').replace('iou', 'IoU')} {value:.4g}{unit}"


def _given(args: argparse.Namespace, name: str) -> bool:
    return getattr(args, name) is not None


def _toml(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


def existing(path: str | None) -> Path | None:
    """The path of a file, if one was given.

    Raises:
        InputError: there is no such file.
    """
    if path is not None and not Path(path).is_file():
        raise InputError(f"There is no file {path}: check the path.")
    return None if path is None else Path(path)

"""`vitrail select`: measure candidates on this machine, say which one to ship and why, and ship it."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from vitrail.cli.output import STDOUT, add_json_argument, write_bytes, write_lines
from vitrail.cli.requirement_options import add_requirement_arguments, flags_of, resolve_arguments
from vitrail.errors import InputError
from vitrail.words import utf8

if TYPE_CHECKING:
    from vitrail.selection.search import SearchProgress
    from vitrail.selection.select import Watcher
    from vitrail.sources.source import Source
    from vitrail.sources.zero_shot import OwnCLIP
    from vitrail.vocabulary import Requirements, SearchSettings, Selection, Workload

NOTHING_FITS = 3
LIVE = [
    "out",
    "overwrite",
    "ship_provisional",
    "weights",
    "onnx",
    "preprocess",
    "arch",
    "labels",
    "accuracy",
    "trained",
    "classes",
    "prompts",
    "tag",
]
"""Options that mean nothing to recorded figures."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("requirements", metavar="TOML", nargs="?", help="requirements; flags override them")
    parser.add_argument("--out", metavar="DIR", help="write the winner's artifact; DIR.report.html beside it")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier artifact at DIR")
    parser.add_argument(
        "--ship-provisional",
        action="store_true",
        help="if the budget ends without a winner, write the leader to DIR, marked as unproven",
    )
    parser.add_argument(
        "--from",
        dest="recorded",
        metavar="JSON",
        help="judge recorded figures again; ships nothing",
    )
    own = parser.add_argument_group("your own weights")
    own.add_argument("--weights", metavar="FILE", help="safetensors, or a torch file of tensors only")
    own.add_argument("--onnx", metavar="FILE", help="an ONNX file that any tool exported; needs --labels")
    own.add_argument(
        "--preprocess", metavar="TOML", help="how its images are prepared; without it, an example is printed"
    )
    own.add_argument("--arch", metavar="NAME", help="timm's name of their architecture")
    own.add_argument("--labels", metavar="FILE", help="one label per line, in the order of the outputs")
    own.add_argument("--accuracy", metavar="PERCENT", help="their top-1, as you declare it")
    own.add_argument(
        "--trained", metavar="RUN", action="append", help="a training run's folder; may be repeated"
    )
    zero_shot = parser.add_argument_group("zero-shot")
    zero_shot.add_argument(
        "--classes", metavar="NAMES|FILE", help="class names for CLIP, separated by commas or one per line"
    )
    zero_shot.add_argument(
        "--prompts", metavar="SET|FILE", help="sentences for the names: imagenet, simple or a file (imagenet)"
    )
    zero_shot.add_argument(
        "--keep-text-tower", action="store_true", help="ship the whole CLIP, for `vitrail relabel` (larger)"
    )
    zero_shot.add_argument("--tag", metavar="TAG", help="which published weights --weights came from")
    add_requirement_arguments(parser)
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Select; exit code 0 with a winner, 3 when nothing meets all or the answer lacks evidence."""
    from vitrail.runtimes import RUNTIMES

    asked = resolve_arguments(args, args.requirements, runtimes=RUNTIMES)
    check_targets(args.out)
    if args.ship_provisional and args.out is None:
        raise InputError("--ship-provisional says what is written to --out DIR: give that too.")
    if args.recorded is not None:
        selection = _judge_again(args, asked)
        show_selection(args, selection)
    else:
        selection = _measure(args, asked)
    return 0 if selection.winner is not None and not selection.lacks else NOTHING_FITS


def check_targets(out: str | None) -> None:
    """Find out before measuring, not after, that a result could not be written. Raises InputError."""
    if out is not None:
        from vitrail.store import check_name

        check_name(out)
    if out is not None and not Path(out).name.strip("."):
        raise InputError(f"--out {out} does not name a new folder: give it a name of its own.")
    if out is not None and report_path(out).is_dir():
        raise InputError(f"{report_path(out)}, where the report goes, is a folder: choose another --out.")


def _measure(args: argparse.Namespace, asked: tuple[Requirements, Workload, SearchSettings]) -> Selection:
    from vitrail.selection.select import select, shipping
    from vitrail.sources.own_onnx import NeedsPreprocess

    requirements, workload, settings = asked
    sources = _sources(args, settings.task)
    try:
        with watching(args, workload, beside_requirements(args), args.ship_provisional) as watcher:
            selection = select(
                requirements,
                workload,
                settings,
                sources=sources,
                out=args.out,
                overwrite=args.overwrite,
                keep_text_tower=args.keep_text_tower,
                ship_provisional=args.ship_provisional,
                watcher=watcher,
            )
    except NeedsPreprocess as error:
        write_lines(error.example.splitlines())
        raise
    except KeyboardInterrupt:
        print("vitrail: what was measured is kept: run the same command to go on.", file=sys.stderr)
        raise
    if args.out is not None and args.json != STDOUT:
        from vitrail.report.terminal import written

        artifact = args.out if shipping(selection, provisional=args.ship_provisional) else None
        write_lines([written(artifact, str(report_path(args.out)), settings.task, out=args.out)])
    return selection


def _judge_again(args: argparse.Namespace, asked: tuple[Requirements, Workload, SearchSettings]) -> Selection:
    for name in LIVE:
        if getattr(args, name) not in (None, False):
            raise InputError(
                f"--from judges recorded figures and ships nothing: leave --{name.replace('_', '-')} out."
            )
    from vitrail.replay import judge_recorded
    from vitrail.requirements import OPTIONS, from_toml
    from vitrail.vocabulary import Workload

    named = {*flags_of(args), *(from_toml(args.requirements) if args.requirements else ())}
    said = [OPTIONS[name].field for name in named if name in OPTIONS and OPTIONS[name].record is Workload]
    return judge_recorded(args.recorded, *asked, said=said)


def _sources(args: argparse.Namespace, task: str) -> list[Source]:
    """Where candidates come from, beside the catalogue."""
    _check_own(args)
    for name in ("prompts", "tag", "keep_text_tower"):
        if args.classes is None and getattr(args, name) not in (None, False):
            flag = name.replace("_", "-")
            raise InputError(f"--{flag} is about zero-shot classes: give --classes too.")
    sources: list[Source] = []
    if args.classes is not None:
        sources.append(_class_names(args))
    elif args.weights is not None:
        sources.append(_own_weights(args, task))
    if args.onnx is not None:
        sources.append(_own_onnx(args))
    if args.trained:
        from vitrail.sources.trained import TrainedRuns

        sources.append(TrainedRuns(args.trained))
    return sources


def _check_own(args: argparse.Namespace) -> None:
    """Refuse what describes a file that was not given, or the same of two."""
    if args.weights is not None and args.onnx is not None:
        raise InputError("--weights and --onnx do not go together: give one of them.")
    if args.weights is None:
        if args.arch is not None:
            raise InputError("--arch describes your own weights: give --weights FILE too.")
        for name in ("labels", "accuracy"):
            if args.onnx is None and getattr(args, name) is not None:
                raise InputError(f"--{name} describes your own weights: give --weights FILE too.")
    if args.preprocess is not None and args.onnx is None:
        raise InputError("--preprocess describes your own ONNX file: give --onnx FILE too.")


def _class_names(args: argparse.Namespace) -> Source:
    from vitrail.sources.zero_shot import ClassNames
    from vitrail.zeroshot.prompts import parse_classes, templates

    own = None if args.weights is None else _own_clip(args)
    classes = parse_classes(args.classes)
    return ClassNames(classes=classes, templates=templates(args.prompts or "imagenet"), own=own)


def _own_clip(args: argparse.Namespace) -> OwnCLIP:
    if args.arch is None:
        raise InputError("--weights needs --arch NAME, open_clip's name of the model, such as ViT-B-32.")
    for name in ("labels", "accuracy"):
        if getattr(args, name) is not None:
            raise InputError(f"--{name} does not go with --classes, which names the labels: leave it out.")
    from vitrail.sources.zero_shot import OwnCLIP

    return OwnCLIP(file=args.weights, arch=args.arch, tag=args.tag)


def _own_weights(args: argparse.Namespace, task: str) -> Source:
    if task == "promptable":
        from vitrail.sources.own import OwnPromptable

        for name in ("labels", "accuracy"):
            if getattr(args, name) is not None:
                raise InputError(f"--{name} is about classes, and prompts have none: leave it out.")
        if args.arch is None:
            raise InputError("--weights needs --arch NAME, such as sam_vit_base: nothing else says it.")
        return OwnPromptable(file=args.weights, arch=args.arch)
    if args.arch is None or args.labels is None:
        raise InputError("--weights needs --arch NAME and --labels FILE: without them nothing can be built.")
    from vitrail.sources.own import OwnWeights
    from vitrail.units import percent

    accuracy = None if args.accuracy is None else percent(args.accuracy, "--accuracy")
    return OwnWeights(file=args.weights, arch=args.arch, labels=args.labels, accuracy=accuracy)


def _own_onnx(args: argparse.Namespace) -> Source:
    if args.labels is None:
        raise InputError("--onnx needs --labels FILE, with one label a line in the order of its scores.")
    from vitrail.sources.own_onnx import OwnONNX
    from vitrail.units import percent

    accuracy = None if args.accuracy is None else percent(args.accuracy, "--accuracy")
    return OwnONNX(file=args.onnx, labels=args.labels, preprocess=args.preprocess, accuracy=accuracy)


@contextlib.contextmanager
def watching(
    args: argparse.Namespace, workload: Workload, arguments: tuple[str, ...], provisional: bool = False
) -> Iterator[Watcher]:
    """Progress on a terminal: stdout, or stderr while stdout holds JSON; piped, a line every ten seconds.

    The result is shown and written (`show_selection`) as soon as it is judged. `arguments`: what asks for the
    same candidates again.
    """
    from vitrail.cli.status import Heartbeat, Status
    from vitrail.selection.select import Watcher

    stream = sys.stderr if args.json == STDOUT else sys.stdout

    def judged(selection: Selection) -> None:
        show_selection(args, dataclasses.replace(selection, arguments=arguments), provisional)

    if not stream.isatty():
        with Heartbeat(sys.stderr) as heart:
            yield Watcher(doing=heart.doing, judged=judged)
        return
    from vitrail.report.terminal import progress_line

    status = Status(stream)

    def progress(step: SearchProgress) -> None:
        status.line(progress_line(step.done, step.total, step.entry, step.best, step.left_s, workload))

    def done(selection: Selection) -> None:
        status.clear()
        judged(selection)

    try:
        yield Watcher(progress=progress, note=status.line, doing=status.doing, judged=done)
    finally:
        status.clear()


def beside_requirements(args: argparse.Namespace) -> tuple[str, ...]:
    """The options that say which candidates are meant and that no requirements file can hold."""
    said: list[str] = []
    for name in ("weights", "onnx", "preprocess", "arch", "labels", "accuracy", "tag", "classes", "prompts"):
        value = getattr(args, name)
        said += [] if value is None else [f"--{name}", str(value)]
    for run_folder in args.trained or ():
        said += ["--trained", run_folder]
    return (*said, *(["--keep-text-tower"] if args.keep_text_tower else []))


def show_selection(args: argparse.Namespace, selection: Selection, provisional: bool = False) -> None:
    """The result itself, before anything ships: terminal or JSON, and the report."""
    if args.json != STDOUT:
        from vitrail.report import terminal

        terminal.show(selection, sys.stdout)
    if args.json:
        from vitrail.document import to_json_bytes

        if args.json == STDOUT:
            write_bytes(to_json_bytes(selection))
        else:
            from vitrail.store import atomic_write

            atomic_write(args.json, to_json_bytes(selection))
    if args.out is not None:
        from vitrail.report.html import render
        from vitrail.selection.select import shipping
        from vitrail.store import atomic_write, writing

        report = report_path(args.out)
        with writing(report):
            report.parent.mkdir(parents=True, exist_ok=True)
        # The artifact is written next, under a name that the page, which lies beside it, can use.
        written = shipping(selection, provisional=provisional) is not None
        folder = Path(args.out).name if written else None
        atomic_write(report, utf8(render(selection, artifact=folder)).encode("utf-8"))


def report_path(out: str) -> Path:
    """Where the report of what goes to `--out` is written."""
    return Path(out).with_name(Path(out).name + ".report.html")

"""`vitrail predict ARTIFACT IMAGE...`: classify images with an artifact, without torch."""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitrail.cli.numbers import whole_number
from vitrail.cli.output import (
    INDEPENDENT,
    STDOUT,
    add_json_argument,
    can_print,
    complain,
    short,
    write_bytes,
    write_json,
    write_lines,
)
from vitrail.errors import InputError
from vitrail.store import atomic_write
from vitrail.words import counted, shown

if TYPE_CHECKING:
    from vitrail.predict import Prediction, Predictor
    from vitrail.tasks.classify import Classify

SCHEMA_VERSION = 1
BAR_WIDTH = 20
STDIN = "-"

Item = tuple[str, "bytes | InputError | None"]
"""An image's name, with its bytes if it is not a file, or the error if there is none."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("artifact", metavar="ARTIFACT", help="folder that vitrail select wrote")
    parser.add_argument(
        "images",
        metavar="IMAGE",
        nargs="*",
        help="image files, folders, patterns such as 'photos/**/*.jpg', or - for one image on standard input",
    )
    parser.add_argument(
        "--files-from",
        metavar="FILE|-",
        help="read more IMAGEs from FILE, one per line or NUL-separated, or from standard input with -",
    )
    parser.add_argument(
        "--top", type=whole_number("top"), default=5, metavar="K", help="labels per image (default 5)"
    )
    parser.add_argument(
        "--threads",
        type=whole_number("threads"),
        metavar="N",
        help="inference threads (default: the artifact's)",
    )
    parser.add_argument(
        "--csv",
        metavar="FILE|-",
        help="write one CSV row per image to FILE, or alone to stdout with -",
    )
    parser.add_argument(
        "--max-megapixels",
        type=whole_number("max_megapixels"),
        metavar="N",
        help="largest image, in millions of pixels (default 50; memory and time grow with it)",
    )
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Classify all images; exit code 0, 1 if some could not be used, 2 if none could.

    Results computed before an error or Ctrl-C are written.
    """
    items = _items(args)
    from vitrail.images.limits import LIMITS, Limits
    from vitrail.predict import load
    from vitrail.tasks.classify import Classify

    limits = LIMITS if args.max_megapixels is None else Limits.of_megapixels(args.max_megapixels)
    with load(args.artifact, threads=args.threads, limits=limits, many=len(items) > 1) as predictor:
        if not isinstance(predictor.task, Classify):
            use = {
                "segment": "use vitrail segment",
                "promptable": "use vitrail segment with --point or --box",
                "embed": "use vitrail embed",
            }.get(predictor.task.name)
            said = f"its task is {predictor.task.name}{f', {use}' if use else ''}."
            raise InputError(f"{args.artifact} was not made to classify: {said}")
        output = _Output(args, predictor.task, len(items))
        try:
            with _progress(args, len(items)) as step:
                nothing = {name for name, data in items if isinstance(data, InputError)}
                for name, outcome in _outcomes(predictor, items, args.top):
                    output.add(name, outcome, is_image=name not in nothing)
                    step()
        finally:
            output.end()
    if not output.failed:
        return 0
    return InputError.exit_code if output.failed == len(items) else 1


# --- what to classify ---------------------------------------------------------------------------


def _items(args: argparse.Namespace) -> list[Item]:
    """All images named by the arguments, in order; only paths and the bytes from stdin are held.

    Raises InputError if nothing is named, or standard input or output would be used twice.
    """
    if args.csv == STDOUT and args.json == STDOUT:
        raise InputError("--csv - and --json - would both write to the standard output: give one a file.")
    if [*args.images, args.files_from].count(STDIN) > 1:
        raise InputError("Standard input holds one image or, with --files-from, a list: use - once.")
    if not args.images and args.files_from is None:
        raise InputError("There is nothing to classify: name image files, folders or patterns.")
    from vitrail.images.find import expand

    items: list[Item] = []
    for image in args.images:
        items += [(STDIN, _stdin())] if image == STDIN else expand([image])
    if args.files_from is not None:
        items += expand(_listed(args.files_from))
    return items


def _stdin() -> bytes:
    """One image from standard input; the decoder refuses one that is too large."""
    from vitrail.images.limits import LIMITS

    if sys.stdin.isatty():
        raise InputError("Standard input is a terminal: pipe an image into it.")
    return sys.stdin.buffer.read(LIMITS.file_bytes + 1)


def _listed(file: str) -> list[str]:
    """The names in a list, one per line or NUL-separated (`find -print0`), decoded with `os.fsdecode`.

    Raises InputError if it cannot be read or names nothing.
    """
    import os

    where = "Standard input" if file == STDIN else file
    try:
        data = sys.stdin.buffer.read() if file == STDIN else Path(file).read_bytes()
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror}): give a list of images.") from None
    separator = b"\0" if b"\0" in data else b"\n"
    names = [os.fsdecode(name.removesuffix(b"\r")) for name in data.split(separator) if name.strip()]
    if not names:
        raise InputError(f"{where} names no image: write one path per line.")
    return names


# --- classifying --------------------------------------------------------------------------------


def _outcomes(
    predictor: Predictor, items: Sequence[Item], top: int
) -> Iterator[tuple[str, Prediction | InputError]]:
    """Each name with its prediction or error, in order; images are decoded ahead."""
    good = (name if data is None else data for name, data in items if not isinstance(data, InputError))
    outcomes = predictor.predict_each(good, top=top)
    for name, data in items:
        yield name, data if isinstance(data, InputError) else next(outcomes)


@contextmanager
def _progress(args: argparse.Namespace, total: int) -> Iterator[Callable[[], object]]:
    """A progress bar on standard error, if that is a terminal; printed lines appear above it."""
    mixed = STDOUT in (args.csv, args.json) and sys.stdout.isatty()
    if total < 2 or mixed or not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True, markup=False, emoji=False, highlight=False, soft_wrap=True)
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(
        *columns, console=console, transient=True, redirect_stdout=sys.stdout.isatty(), redirect_stderr=True
    ) as bar:
        task = bar.add_task("", total=total)
        yield lambda: bar.advance(task)


# --- showing ------------------------------------------------------------------------------------


class _Output:
    """Writes text, CSV and JSON: lines and rows immediately, documents and files at the end."""

    def __init__(self, args: argparse.Namespace, task: Classify, total: int) -> None:
        self._args, self._total = args, total
        self._kind = task.probability
        self._top = min(args.top, len(task.labels))
        self._rows: list[dict[str, Any]] = []
        self._table = io.StringIO()
        self._csv = csv.writer(self._table, lineterminator="\n")
        self.done = self.failed = self.arguments_failed = 0
        if args.csv is not None:
            ranks = range(1, self._top + 1)
            named = [column for k in ranks for column in (f"label_{k}", f"probability_{k}")]
            self._write_row(["image", "error", *named])

    def add(self, name: str, outcome: Prediction | InputError, *, is_image: bool = True) -> None:
        """Record one image's outcome, or the error of an argument that named no image."""
        self.arguments_failed += not is_image
        error = str(outcome) if isinstance(outcome, InputError) else None
        top = () if isinstance(outcome, InputError) else outcome.top
        self.done += 1
        if error is not None:
            self.failed += 1
            complain(error)
        elif self._args.json is None and self._args.csv is None:
            write_lines(_lines(name, outcome))  # type: ignore[arg-type]
        if self._args.json is not None:
            self._rows.append({"image": name, "error": error, "top": top})
        if self._args.csv is not None:
            cells = [cell for ranked in top for cell in (ranked.label, f"{ranked.probability:.6g}")]
            cells += [""] * (2 * self._top - len(cells))
            self._write_row([name, error or "", *cells])

    def end(self) -> None:
        """Write documents and files, even if the run ended early."""
        targets = [target for target in (self._args.json, self._args.csv) if target is not None]
        if not targets and self._kind == "sigmoid" and self.failed < self.done:
            print(INDEPENDENT)
        try:
            if self._args.csv not in (None, STDOUT):
                atomic_write(self._args.csv, self._table.getvalue().encode("utf-8"))
        finally:
            if self._args.json is not None:
                write_json(self._document(), self._args.json)
        if targets and STDOUT not in targets:  # results in files are not printed too
            write_lines([f"{counted(self.done, 'image')} → {', '.join(targets)}"])
        if self.failed and self._total > 1:
            # A pattern or folder without images is not an image itself.
            named = counted(self._total, "argument" if self.arguments_failed else "image")
            print(f"vitrail: {self.failed} of {named} could not be used.", file=sys.stderr)

    def _write_row(self, cells: Sequence[str]) -> None:
        # A name with a line break would be two lines to most tools, and terminals obey control characters.
        self._csv.writerow(map(shown, cells))
        if self._args.csv == STDOUT:
            write_bytes(self._table.getvalue().encode("utf-8"))
            self._table.seek(0)
            self._table.truncate()

    def _document(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "artifact": self._args.artifact,
            "probability": self._kind,
            "images": self._total,
            "failed": self.failed,
            "complete": self.done == self._total,
            "predictions": self._rows,
        }


def _lines(image: str, prediction: Prediction) -> list[str]:
    labels = [short(ranked.label) for ranked in prediction.top]
    width = max(map(len, labels), default=0)
    filled, empty = ("█", "·") if can_print("█·") else ("#", ".")
    lines = [image]
    for label, ranked in zip(labels, prediction.top, strict=True):
        length = round(ranked.probability * BAR_WIDTH)
        bar = filled * length + empty * (BAR_WIDTH - length)
        lines.append(f"  {label:<{width}}  {bar}  {ranked.probability:6.1%}")
    return lines

"""The command line: one module per command, imported only when that command is called.

A command is a module with `add_arguments(parser)` and `run(args) -> int`, and one line in `COMMANDS`.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import io
import os
import re
import sys
from collections.abc import Sequence
from typing import NoReturn

from vitrail.errors import InputError, VitrailError
from vitrail.privacy import quiet_process
from vitrail.version import __version__
from vitrail.words import shown

__all__ = ["COMMANDS", "command_parser", "main"]

COMMANDS: dict[str, tuple[str, str]] = {
    "select": ("vitrail.cli.select", "find the model, runtime and precision that meet your requirements"),
    "optimize": (
        "vitrail.cli.optimize",
        "make one model faster on this machine, and show what each way brings",
    ),
    "export": ("vitrail.cli.export", "build one engine's files of one model, for another machine"),
    "compare": ("vitrail.cli.compare", "show what moved beyond noise between two selections, and fail a CI"),
    "train": ("vitrail.cli.train", "fine-tune a model on your labelled images, or train it from scratch"),
    "train-clip": ("vitrail.cli.train_clip", "train a CLIP on images with texts"),
    "predict": ("vitrail.cli.predict", "classify images with an artifact"),
    "segment": ("vitrail.cli.segment", "label every pixel of photos, or cut objects out, with an artifact"),
    "batch": ("vitrail.cli.batch", "run an artifact over any number of images, into a table that loses none"),
    "serve": ("vitrail.cli.serve", "answer over HTTP with artifacts, batching as the load grows"),
    "relabel": ("vitrail.cli.relabel", "change the classes of a zero-shot artifact"),
    "package": ("vitrail.cli.package", "hand an artifact over to Docker, Triton or OpenVINO Model Server"),
    "verify": ("vitrail.cli.verify", "check an artifact against its claims or against requirements"),
    "sign": ("vitrail.cli.sign", "sign an artifact, so that others can check who made it"),
    "zero-shot": ("vitrail.cli.zero_shot", "classify images by class names alone, with CLIP or SigLIP"),
    "score": ("vitrail.cli.score", "rate how well an image and a text match (CLIPScore)"),
    "data": ("vitrail.cli.data", "show what a labelled data set contains, and what is wrong with it"),
    "models": ("vitrail.cli.models", "list the candidates of the catalogue"),
    "profiles": ("vitrail.cli.profiles", "show the ready-made requirement profiles"),
    "attention": ("vitrail.cli.attention", "show the attention kernels of this machine and what each costs"),
    "memory": ("vitrail.cli.memory", "predict the peak memory of a model, and measure it"),
    "embed": ("vitrail.cli.embed", "turn images or texts into vectors, in a file to search"),
    "search": ("vitrail.cli.search", "find the images or texts nearest to an image or a text"),
    "doctor": ("vitrail.cli.doctor", "show what this machine has, and what is missing"),
}

# Commands that never import torch, so that its caches need no folder.
WITHOUT_TORCH = (
    "compare",
    "predict",
    "segment",
    "batch",
    "serve",
    "package",
    "verify",
    "sign",
    "data",
    "models",
    "profiles",
    "doctor",
)

INTERRUPTED = 130
PIPE_CLOSED = 141
"""The exit code of a program ended by SIGPIPE, as shells report it."""

OUTPUTS = ("json", "csv")
"""Options that name a file for a command's result."""

# File system errors that no code of ours can prevent, and what the user can do about them.
FILE_FIXES = {
    errno.EACCES: "choose a place you may use",
    errno.EPERM: "choose a place you may use",
    errno.EROFS: "choose a writable place",
    errno.ENOSPC: "free some space or choose another place",
    errno.EDQUOT: "free some space or choose another place",
}

# Modules of the workbench extra.
WORKBENCH = (
    "torch",
    "torchvision",
    "timm",
    "onnx",
    "onnxscript",
    "safetensors",
    "huggingface_hub",
    "sklearn",
    "skimage",
    "lightning_fabric",
    "tensorboard",
)


class _Parser(argparse.ArgumentParser):
    """Turns wrong use into an InputError: one sentence, without the usage text."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message.rstrip('.')}: see `{self.prog} --help`.")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; errors meant for the user are one line on stderr."""
    _never_fail_to_print()
    try:
        code = _run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return code
    except VitrailError as error:
        return _complain(f"error: {error}", error.exit_code)
    except KeyboardInterrupt:
        return _complain("interrupted.", INTERRUPTED)
    except BrokenPipeError:
        if not _stdout_is_closed():
            raise
        return PIPE_CLOSED
    except OSError as error:
        if error.errno not in FILE_FIXES:
            raise
        place = error.filename or "output"
        return _complain(f"error: {place}: {error.strerror}: {FILE_FIXES[error.errno]}.", 2)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in WORKBENCH:
            raise
        from vitrail.install import here

        install = here('pip install "vitrail[workbench]"')
        return _complain(f"error: {error.name} is not installed: run `{install}`.", 2)


def command_parser(name: str) -> argparse.ArgumentParser:
    """One command's parser; imports that command's module."""
    module, help_line = COMMANDS[name]
    parser = _Parser(prog=f"vitrail {name}", description=help_line, allow_abbrev=False)
    importlib.import_module(module).add_arguments(parser)
    return parser


def _run(argv: list[str]) -> int:
    if argv and not argv[0].startswith("-"):
        name, rest = argv[0], argv[1:]
        if name not in COMMANDS:
            from vitrail.units import nearest

            raise InputError(f"Unknown command {name!r}: see `vitrail --help`.{nearest(name, COMMANDS)}")
        _settle(name)
        try:
            # Options may come before, between or after images.
            args = command_parser(name).parse_intermixed_args(_join_negative_values(rest))
        except SystemExit as end:  # --help
            return int(end.code or 0)
        _check_targets(args)
        code: int = importlib.import_module(COMMANDS[name][0]).run(args)
        return code
    parser = _top_parser()
    try:
        parser.parse_args(argv)
    except SystemExit as end:  # --help, --version
        return int(end.code or 0)
    parser.print_help(sys.stderr)
    return 2


def _settle(name: str) -> None:
    """Called before any library is imported, so that none reports or writes outside Vitrail's folders."""
    if name in WITHOUT_TORCH:
        quiet_process()
    else:
        from vitrail.store import cache_dir

        quiet_process(cache_dir())


def _check_targets(args: argparse.Namespace) -> None:
    """Check that results can be written, before hours of work."""
    for name in OUTPUTS:
        target = getattr(args, name, None)
        if target is not None:
            from vitrail.cli.output import check_file_target

            check_file_target(f"--{name}", target)


def _never_fail_to_print() -> None:
    """Escape letters that the terminal's encoding lacks, so that they cannot end a command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _top_parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {help_line}" for name, (_, help_line) in COMMANDS.items()]
    parser = _Parser(
        prog="vitrail",
        usage="vitrail [--help] [--version] COMMAND ...",
        description="From requirements to a verified, deployable vision model.",
        epilog="commands:\n" + "\n".join(lines) + "\n\n`vitrail COMMAND --help` shows a command's options.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"vitrail {__version__}")
    return parser


def _join_negative_values(argv: list[str]) -> list[str]:
    """`--max-latency -5ms` -> `--max-latency=-5ms`, because argparse takes -5ms for an option."""
    joined: list[str] = []
    for item in argv:
        before = joined[-1] if joined else ""
        if re.match(r"-\.?\d", item) and before.startswith("--") and "=" not in before and before != "--":
            joined[-1] = f"{before}={item}"
        else:
            joined.append(item)
    return joined


def _complain(line: str, code: int) -> int:
    print(f"vitrail: {shown(line)}", file=sys.stderr)
    return code


def _stdout_is_closed() -> bool:
    """Whether the reader of our stdout is gone; if so, nothing more is written to it, not even at exit.

    The system is asked, because a child's pipe can break too, and that would be our bug.
    """
    import select

    try:
        stdout = sys.stdout.fileno()
    except (OSError, ValueError):
        return False
    if hasattr(select, "poll"):
        watch = select.poll()
        watch.register(stdout, 0)
        if not any(event & (select.POLLERR | select.POLLHUP) for _, event in watch.poll(0)):
            return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), stdout)
    return True

"""`vitrail export`: one engine's files of one model, built here for a machine that is not this one."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from vitrail.cli.output import STDOUT, add_json_argument, write_json, write_lines
from vitrail.cli.requirement_options import add_requirement_arguments, flags_of
from vitrail.cli.select import watching
from vitrail.errors import InputError

if TYPE_CHECKING:
    from vitrail.selection.elsewhere import Exported
    from vitrail.vocabulary import SearchSettings, Workload

__all__ = ["add_arguments", "run"]

SCHEMA_VERSION = 1
TAKEN = (
    "batch-size", "image-size", "threads", "images", "task", "runtimes", "precisions", "implementations",
    "calibration", "max-download", "offline",
)  # fmt: skip
"""Of the options of a selection: those that say what is built. Nothing is searched, judged or timed."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    from vitrail.requirements import OPTIONS

    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a name of the catalogue, a training run's or an artifact's folder, weights, or an ONNX file",
    )
    parser.add_argument("--out", metavar="DIR", required=True, help="folder of the artifact")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier artifact at DIR")
    own = parser.add_argument_group("a file of your own")
    own.add_argument("--arch", metavar="NAME", help="timm's name of the architecture of a weights file")
    own.add_argument("--labels", metavar="FILE", help="one label per line, in the order of the outputs")
    own.add_argument("--preprocess", metavar="TOML", help="how the images of an ONNX file are prepared")
    left_out = [name for name in OPTIONS if name not in TAKEN]
    add_requirement_arguments(parser, without=[*left_out, "profile"])
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Export; 0, or 3 if the engine runs here and does not hold its precision's parity."""
    from vitrail.requirements import resolve
    from vitrail.runtimes import RUNTIMES

    if args.runtimes is None:
        ship = ", ".join(name for name, engine in RUNTIMES.items() if not engine.reference)
        raise InputError(f"An export is for one engine: give --runtimes one name of {ship}.")
    _, workload, settings = resolve(flags=flags_of(args), runtimes=RUNTIMES)
    exported = _export(args, workload, settings)
    if args.json:
        write_json(_document(exported), args.json)
    if args.json != STDOUT:
        write_lines(_lines(exported))
    return 0


def _export(args: argparse.Namespace, workload: Workload, settings: SearchSettings) -> Exported:
    from dataclasses import replace

    from vitrail.selection.elsewhere import export_one
    from vitrail.sources.one_model import Shipped, one_model
    from vitrail.sources.own_onnx import NeedsPreprocess

    source = one_model(args.model, arch=args.arch, labels=args.labels, preprocess=args.preprocess)
    if isinstance(source, Shipped):
        settings = replace(settings, task=source.task)
    try:
        with watching(args, workload, ()) as watcher:
            return export_one(
                source, workload, settings, out=args.out, overwrite=args.overwrite, watcher=watcher
            )
    except NeedsPreprocess as error:
        write_lines(error.example.splitlines())
        raise


def _document(exported: Exported) -> dict[str, Any]:
    manifest = exported.artifact.manifest
    return {
        "schema_version": SCHEMA_VERSION,
        "path": str(exported.artifact.path),
        "name": manifest.name,
        "batch_size": manifest.evidence.workload.batch_size,
        "run": not exported.why_not_run,
        "why_not_run": exported.why_not_run or None,
        "parity": exported.parity,
        "mib": exported.mib,
        "made_s": exported.made_s,
        "flags": list(exported.notes),
    }


def _lines(exported: Exported) -> list[str]:
    from vitrail.package.phone import APPS
    from vitrail.report.phrases import parity_figures
    from vitrail.runtimes import elsewhere

    manifest, path = exported.artifact.manifest, exported.artifact.path
    name = manifest.variant.runtime
    lines = [f"{path}/ written: {manifest.name}, {exported.mib:.3g} MiB, made in {exported.made_s:.0f} s"]
    if exported.parity is not None:
        seen = exported.parity
        held = f"cosine {seen.cosine:.6f}, relative error {seen.relative_error:.2g}"
        lines.append(f"  against fp32: {held}{parity_figures(seen)}, {seen.photos} photos")
    lines += [f"  note: {note}" for note in exported.notes]
    lines += [f"  not run: {exported.why_not_run}"] if exported.why_not_run else []
    where = f"on {elsewhere(name)}" if elsewhere(name) else "on the machine that it is for"
    lines.append(f"next, {where}: vitrail verify {path} --measure")
    if name in APPS:
        lines.append(f"for a phone: vitrail package {path} --for phone")
    return lines

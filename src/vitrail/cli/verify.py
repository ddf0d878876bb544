"""`vitrail verify DIR`: check an artifact against its claims or requirements; a gate for CI."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitrail.cli.numbers import whole_number
from vitrail.cli.output import STDOUT, add_json_argument, write_json, write_lines
from vitrail.errors import InputError
from vitrail.vocabulary import Requirements, Workload
from vitrail.words import counted

if TYPE_CHECKING:
    from vitrail.artifact import Manifest
    from vitrail.measure.quiet import BusyReading
    from vitrail.verify import Verification

SCHEMA_VERSION = 1
MARKS = {"pass": "ok", "fail": "FAIL", "undecided": "undecided", "not assessed": "not assessed"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("artifact", metavar="DIR", help="folder that vitrail select wrote")
    parser.add_argument(
        "--measure", action="store_true", help="measure latency and memory again, and compare with the claims"
    )
    parser.add_argument(
        "--against",
        metavar="TOML",
        help="requirements to meet instead of those it was selected under; measures",
    )
    parser.add_argument(
        "--threads",
        type=whole_number("threads"),
        metavar="N",
        help="inference threads (default: the artifact's)",
    )
    whose = parser.add_argument_group("signature (written by vitrail sign)")
    whose.add_argument("--public-key", metavar="PEM", help="trust signatures of this key")
    whose.add_argument(
        "--chain",
        metavar="PEM",
        nargs="+",
        default=[],
        help="trust signers whose certificates chain to these",
    )
    whose.add_argument("--identity", metavar="NAME", help="trust this identity of sigstore's service")
    whose.add_argument("--identity-provider", metavar="URL", help="who vouches for that identity")
    whose.add_argument("--signature", metavar="FILE", help="the signature (DIR.sig next to DIR)")
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Verify; exit code 0, 2 if the artifact is damaged, 3 if it is intact but does not hold."""
    from vitrail.artifact import open_artifact
    from vitrail.verify import verify

    signed = _signed_by(args)
    options: dict[str, Any] = {}
    if args.measure or args.against:
        manifest = open_artifact(args.artifact).manifest
        requirements, workload = _requirements_of(args.against, manifest)
        if args.threads is not None:
            workload = replace(workload, threads=args.threads)
        from vitrail import judge, remeasure

        options = {
            "measure": partial(remeasure.measure_artifact, tell=_tell_of_noise),
            "judge": judge.verdicts,
            "requirements": requirements,
            "workload": workload,
        }
    outcome = verify(args.artifact, threads=args.threads, **options)
    if args.json:
        facts = {"holds": outcome.holds, "signed_by": signed, **vars(outcome)}
        write_json({"schema_version": SCHEMA_VERSION, **facts}, args.json)
    if args.json != STDOUT:
        write_lines([*([f"signed by {signed}"] if signed else []), *_lines(outcome)])
        sys.stdout.flush()  # before the error on stderr
    outcome.require()
    return 0


def _tell_of_noise(reading: BusyReading) -> None:
    print(f"waiting for a quiet machine: {reading}", file=sys.stderr, flush=True)


def _signed_by(args: argparse.Namespace) -> str | None:
    """The trusted signer, in words; None if no signature was to be checked.

    Raises InputError as `verify_signature`, before anything in the artifact is used.
    """
    if not (args.public_key or args.chain or args.identity or args.identity_provider or args.signature):
        return None
    from vitrail.signature import Trusted, verify_signature

    trusted = Trusted(
        public_key=None if args.public_key is None else Path(args.public_key),
        chain=tuple(map(Path, args.chain)),
        identity=args.identity,
        provider=args.identity_provider,
    )
    return verify_signature(args.artifact, trusted, None if args.signature is None else Path(args.signature))


def _requirements_of(path: str | None, manifest: Manifest) -> tuple[Requirements, Workload]:
    """Requirements and workload: the file's, and the artifact's where the file leaves them out."""
    evidence = manifest.evidence
    if path is None:
        return evidence.requirements, evidence.workload
    from vitrail.requirements import OPTIONS, from_toml, resolve

    given = from_toml(path)
    requirements, workload, _ = resolve(toml=given)
    said = {OPTIONS[name].field for name in given if name in OPTIONS}
    changes = {
        field.name: getattr(workload, field.name)
        for field in fields(Workload)
        if field.name in said or getattr(workload, field.name) != field.default  # from a profile
    }
    if changes.get("image_size") not in (None, manifest.variant.image_size):
        size = manifest.variant.image_size
        raise InputError(f"{path} asks for another image size than the artifact's {size}: leave it out.")
    return requirements, replace(evidence.workload, **changes)


def _lines(outcome: Verification) -> list[str]:
    width = max(len(check.name) for check in outcome.checks)
    facts = outcome.facts
    lines = [f"{outcome.name}  ({facts.runtime} {facts.version}, {counted(facts.threads, 'thread')})"]
    lines += [f"  {check.name:<{width}}  {MARKS[check.answer]}  {check.reason}" for check in outcome.checks]
    lines += [f"  differs: {difference}" for difference in outcome.differences]
    lines.append(outcome.answer)
    return lines

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
    from vitrail.artifact import Artifact, Manifest
    from vitrail.measure.quiet import BusyReading
    from vitrail.traffic.serving import Served
    from vitrail.verify import Verification

SCHEMA_VERSION = 1
CLIENTS = 8
"""Where nothing says how many."""
LEAST_RATE, MOST_RATE = 0.1, 100_000.0
"""Requests per second."""
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
    served = parser.add_argument_group("serving")
    served.add_argument(
        "--serving",
        action="store_true",
        help="start vitrail serve, send it photos from several clients, and judge what requests take",
    )
    served.add_argument(
        "--clients",
        type=whole_number("clients"),
        metavar="N",
        help="connections (those the artifact was selected for, or 8)",
    )
    served.add_argument(
        "--rate",
        metavar="RATE",
        help="requests a second, due at random times (without it, each client sends when it was answered)",
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
    from vitrail import tasks
    from vitrail.artifact import open_artifact
    from vitrail.requirements import check
    from vitrail.verify import verify

    load = _load_of(args)
    signed = _signed_by(args)
    options: dict[str, Any] = {}
    if args.measure or args.against or load is not None:
        artifact = open_artifact(args.artifact)
        requirements, workload = _requirements_of(args.against, artifact.manifest)
        if args.threads is not None:
            workload = replace(workload, threads=args.threads)
        tasks.check_stages(requirements, artifact.task.name)
        check(requirements, workload)
    if args.measure or (args.against and load is None):
        from vitrail import judge, remeasure

        options = {
            "measure": partial(remeasure.measure_artifact, tell=_tell_of_noise),
            "judge": judge.verdicts,
            "requirements": requirements,
            "workload": workload,
        }
    outcome, served = verify(args.artifact, threads=args.threads, **options), None
    if load is not None:
        outcome, served = _served(artifact, outcome, requirements, workload, load, args.threads)
    if args.json:
        facts = {"holds": outcome.holds, "signed_by": signed, **vars(outcome), "serving": served}
        write_json({"schema_version": SCHEMA_VERSION, **facts}, args.json)
    if args.json != STDOUT:
        write_lines([*([f"signed by {signed}"] if signed else []), *_lines(outcome, served)])
        sys.stdout.flush()  # before the error on stderr
    outcome.require()
    return 0


def _load_of(args: argparse.Namespace) -> tuple[int | None, float | None] | None:
    """Clients and rate as far as they were given; None: nothing is served.

    Raises:
        InputError: the rate is none, or one was given without `--serving`.
        MissingExtraError: the server's libraries are not installed.
    """
    if not args.serving:
        for name in ("clients", "rate"):
            if getattr(args, name) is not None:
                raise InputError(f"--{name} is about requests to a server: add --serving, or leave it out.")
        return None
    from vitrail.serve.installed import check_installed
    from vitrail.units import throughput

    check_installed()
    rate = None if args.rate is None else throughput(args.rate, "--rate")
    if rate is not None and not LEAST_RATE <= rate <= MOST_RATE:
        raise InputError(f"--rate is {rate:g} a second: give {LEAST_RATE:g} to {MOST_RATE:g}.")
    return args.clients, rate


def _served(
    artifact: Artifact,
    outcome: Verification,
    requirements: Requirements,
    workload: Workload,
    load: tuple[int | None, float | None],
    threads: int | None,
) -> tuple[Verification, Served | None]:
    """The verification with the server's check, and what clients saw of it."""
    from vitrail.traffic import serving
    from vitrail.verify import Check

    if any(each.answer == "fail" for each in outcome.checks):
        why = "what does not hold its other claims is not served"
        found = Check(name=serving.NAME, answer="not assessed", observed=None, limit=None, reason=why)
        return replace(outcome, checks=(*outcome.checks, found)), None
    clients = load[0] or (workload.concurrency if workload.concurrency > 1 else CLIENTS)
    asked = serving.Load(clients=clients, rate=load[1])
    found, seen = serving.serving(artifact, requirements, workload, asked, threads=threads, tell=_tell)
    return replace(outcome, checks=(*outcome.checks, found)), seen


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _tell_of_noise(reading: BusyReading) -> None:
    _tell(f"waiting for a quiet machine: {reading}")


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


def _lines(outcome: Verification, served: Served | None) -> list[str]:
    width = max(len(check.name) for check in outcome.checks)
    facts = outcome.facts
    lines = [f"{outcome.name}  ({facts.runtime} {facts.version}, {counted(facts.threads, 'thread')})"]
    lines += [f"  {check.name:<{width}}  {MARKS[check.answer]}  {check.reason}" for check in outcome.checks]
    lines += [f"  differs: {difference}" for difference in outcome.differences]
    lines += [f"  note: {note}" for note in outcome.notes]
    lines += _served_lines(served) if served else []
    lines.append(outcome.answer)
    return lines


def _served_lines(served: Served) -> list[str]:
    def shown(value: float | None) -> str:
        return "not answered" if value is None else f"{value:.3g}"

    figures = ", ".join(f"p{q} {shown(getattr(served, f'p{q}'))}" for q in (50, 95, 99))
    asked = f"of {served.rate:g} requests/s due" if served.rate is not None else "requests/s"
    images = f" of {served.images_per_request} images" if served.images_per_request > 1 else ""
    return [
        f"  {served.requests} requests{images} over {counted(served.clients, 'connection')}: {figures} ms; "
        f"{served.per_s:.4g} {asked} answered; {served.refused} refused, {served.failed} failed",
        *(f"  doubt: {flag}" for flag in served.flags),
    ]

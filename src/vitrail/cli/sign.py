"""`vitrail sign DIR`: sign an artifact, so that `vitrail verify` can check who made it."""

from __future__ import annotations

import argparse
from pathlib import Path

from vitrail.cli.output import write_lines
from vitrail.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("artifact", metavar="DIR", help="folder that vitrail select wrote")
    parser.add_argument("--key", metavar="PEM", help="private key on an elliptic curve")
    parser.add_argument("--certificate", metavar="PEM", help="that key's certificate, which names the signer")
    parser.add_argument(
        "--chain", metavar="PEM", nargs="+", default=[], help="certificates between that one and its root"
    )
    parser.add_argument(
        "--keyless", action="store_true", help="sign in with sigstore's public service instead of a key"
    )
    parser.add_argument("--signature", metavar="FILE", help="where to write it (DIR.sig next to DIR)")


def run(args: argparse.Namespace) -> int:
    """Check the artifact, sign it and say where the signature is; 0.

    Raises InputError for a damaged artifact, or a key or certificate that cannot be used.
    """
    from vitrail.signature import Signer, sign

    if (args.key is None) != args.keyless:
        raise InputError("Choose one way to sign: --key PEM or --keyless.")
    signer = Signer(
        key=None if args.key is None else Path(args.key),
        certificate=None if args.certificate is None else Path(args.certificate),
        chain=tuple(map(Path, args.chain)),
    )
    place = sign(args.artifact, signer, None if args.signature is None else Path(args.signature))
    write_lines([f"{place} written · distribute it together with {args.artifact}"])
    return 0

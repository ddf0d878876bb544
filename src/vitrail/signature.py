"""Signing an artifact and checking a signature, with sigstore's model-signing (docs/artifact.md).

The signature is a file next to the folder. It covers the name and content of every file, the manifest
included: it says who made the artifact, while the manifest's own digests only say that it is intact.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitrail.artifact import open_artifact
from vitrail.errors import InputError, MissingExtraError

__all__ = ["INSTALL", "Signer", "Trusted", "sign", "signature_path", "verify_signature"]

INSTALL = 'pip install "vitrail[sign]"'


@dataclass(frozen=True, kw_only=True)
class Signer:
    """Who signs: a private key, a key with its certificate, or a sigstore identity."""

    key: Path | None = None
    """PEM, an elliptic curve (P-256, P-384 or P-521); None: keyless, through sigstore's public service."""
    certificate: Path | None = None
    """PEM, of that key."""
    chain: tuple[Path, ...] = ()
    """PEM, the certificates between the signer's and its root."""


@dataclass(frozen=True, kw_only=True)
class Trusted:
    """Whose signature to accept: exactly one of the three."""

    public_key: Path | None = None
    """PEM."""
    chain: tuple[Path, ...] = ()
    """PEM, certificates that the signer's must chain to."""
    identity: str | None = None
    """Of sigstore, e.g. `name@example.com` ..."""
    provider: str | None = None
    """... as this service knows it, e.g. `https://accounts.example.com`."""


def signature_path(artifact: Path | str) -> Path:
    """The default place of an artifact's signature: `winner.sig` next to `winner/`."""
    folder = Path(artifact).absolute()
    return folder.with_name(f"{folder.name}.sig")


def sign(artifact: Path | str, signer: Signer, signature: Path | None = None) -> Path:
    """Check the whole artifact and sign it; returns the path of the signature.

    Raises:
        InputError: a damaged artifact, a key or certificate that cannot be used, or no place to write.
        MissingExtraError: model-signing is not installed.
    """
    open_artifact(artifact)
    place = _beside(artifact, signature)
    if signer.key is None and (signer.certificate is not None or signer.chain):
        raise InputError("A certificate signs with its key: give the private key too.")
    for file in (signer.key, signer.certificate, *signer.chain):
        _readable(file)
    config = _library("signing").Config()
    try:
        if signer.key is None:
            config.use_sigstore_signer()
        elif signer.certificate is None:
            config.use_elliptic_key_signer(private_key=signer.key)
        else:
            config.use_certificate_signer(
                private_key=signer.key,
                signing_certificate=signer.certificate,
                # The library cannot read an empty chain; repeating the certificate in it changes nothing.
                certificate_chain=list(signer.chain) or [signer.certificate],
            )
        config.set_hashing_config(_hashing())
        config.sign(Path(artifact), place)
    except Exception as error:  # the library lets any exception of its dependencies through
        raise InputError(f"{artifact} could not be signed ({_said(error)}): check the key.") from None
    return place


def verify_signature(artifact: Path | str, trusted: Trusted, signature: Path | None = None) -> str:
    """Check that a trusted party signed this artifact as it is now; returns that party, in words.

    Raises:
        InputError: no signature, one by somebody else or for other files, or an unreadable key.
        MissingExtraError: model-signing is not installed.
    """
    place = _beside(artifact, signature)
    given = [trusted.public_key is not None, bool(trusted.chain), trusted.identity is not None]
    if sum(given) != 1:
        raise InputError("Say whom to trust, once: a public key, a certificate chain, or an identity.")
    if (trusted.identity is None) != (trusted.provider is None):
        raise InputError("A sigstore identity goes with its provider: give both.")
    if not place.is_file():
        raise InputError(f"There is no signature at {place}: give its path, or ask the sender for it.")
    for file in (trusted.public_key, *trusted.chain):
        _readable(file)
    config = _library("verifying").Config()
    try:
        if trusted.public_key is not None:
            config.use_elliptic_key_verifier(public_key=trusted.public_key)
            whom = f"the key {trusted.public_key}"
        elif trusted.chain:
            config.use_certificate_verifier(certificate_chain=list(trusted.chain))
            whom = f"a certificate of {', '.join(map(str, trusted.chain))}"
        else:
            config.use_sigstore_verifier(identity=trusted.identity, oidc_issuer=trusted.provider)
            whom = f"{trusted.identity} ({trusted.provider})"
        config.set_hashing_config(_hashing())
        config.verify(Path(artifact), place)
    except Exception as error:  # the library lets any exception of its dependencies through
        raise InputError(
            f"{place} is not a signature of {artifact} by anyone you trust ({_said(error)}): do not use it."
        ) from None
    return whom


def _beside(artifact: Path | str, signature: Path | None) -> Path:
    place = signature_path(artifact) if signature is None else signature
    if place.resolve().is_relative_to(Path(artifact).resolve()):
        raise InputError(f"{place} is inside the artifact, which holds only its own files: keep it outside.")
    return place


def _readable(file: Path | None) -> None:
    if file is not None and not file.is_file():
        raise InputError(f"There is no file {file}: check the path.")


def _library(name: str) -> Any:
    for module in ("model_signing", "OpenSSL"):
        if importlib.util.find_spec(module) is None:
            raise MissingExtraError("model-signing", INSTALL)
    return importlib.import_module(f"model_signing.{name}")


def _hashing() -> Any:
    # Every file, including those git would ignore: all files of an artifact count.
    return _library("hashing").Config().set_ignored_paths(paths=[], ignore_git_paths=False)


def _said(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__

"""API keys: random, shown once, kept as their SHA-256.

A key has 256 random bits, so a slow hash would add nothing but work for whoever floods the server.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable
from pathlib import Path

from vitrail.errors import InputError

__all__ = ["Keys", "new_key", "read_keys"]

_LINE = re.compile(r"([A-Za-z0-9._-]{1,64}) sha256:([0-9a-f]{64})")
PREFIX = "vitrail_"


def new_key(name: str) -> tuple[str, str]:
    """A new key, and the line to keep of it.

    Raises:
        InputError: the name cannot stand in a line.
    """
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", name):
        raise InputError(
            f"{name!r} cannot name a key: use up to 64 letters, digits, dots, hyphens, underscores."
        )
    key = PREFIX + secrets.token_urlsafe(32)
    return key, f"{name} sha256:{_hash(key)}"


class Keys:
    """Names and hashes of the keys that open the server."""

    def __init__(self, hashes: Iterable[tuple[str, str]]) -> None:
        self._hashes = tuple(hashes)

    def owner(self, presented: str) -> str | None:
        """The name of the presented key, compared with all of them in constant time; None: none is it."""
        hashed = _hash(presented)
        found = None
        for name, known in self._hashes:
            if hmac.compare_digest(hashed, known):
                found = name
        return found


def read_keys(path: Path) -> Keys:
    """The keys of a file with one `NAME sha256:...` a line; blank lines and those with `#` are skipped.

    Raises:
        InputError: it cannot be read, holds another line (a key itself, perhaps), or no key.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise InputError(
            f"{path} cannot be read: give a file of lines from `vitrail serve --new-key`."
        ) from None
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise InputError(
                f"{path}, line {number}, is not a name and a hash: paste the line that "
                "`vitrail serve --new-key NAME` printed, not the key."
            )
        if match[1] in found:
            raise InputError(f"{path} names {match[1]} twice: give each key its own name.")
        found[match[1]] = match[2]
    if not found:
        raise InputError(f"{path} holds no key: make one with `vitrail serve --new-key NAME`.")
    return Keys(found.items())


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()

"""Licenses of weights: which class each one is in, and whether a requirement admits it.

The classes say what a person can rely on before reading the text. They are not legal advice.

| class | what it means here |
|---|---|
| `permissive` | use, change and redistribute, for money too, if notices are kept |
| `copyleft` | the same, but derived work that is shared must carry the same license |
| `noncommercial` | research or noncommercial use only |
| `custom` | a vendor's own text with conditions of its own: read it, then admit it by name |
| `unknown` | no license stated, or one that is not in the table; never counts as permissive |
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Literal, get_args

from vitrail.errors import InputError

LicenseClass = Literal["permissive", "copyleft", "noncommercial", "custom", "unknown"]
CLASSES: tuple[str, ...] = get_args(LicenseClass)

# Names as model hubs and timm's records write them, in lower case.
LICENSES: dict[str, LicenseClass] = {
    # SPDX licenses approved by the OSI, and attribution or public-domain grants for data.
    "apache-2.0": "permissive",
    "mit": "permissive",
    "bsd-2-clause": "permissive",
    "bsd-3-clause": "permissive",
    "bsd-3-clause-clear": "permissive",
    "isc": "permissive",
    "unlicense": "permissive",
    "cc0-1.0": "permissive",
    "cc-by-4.0": "permissive",
    "gpl-2.0": "copyleft",
    "gpl-3.0": "copyleft",
    "agpl-3.0": "copyleft",
    "lgpl-3.0": "copyleft",
    "mpl-2.0": "copyleft",
    "cc-by-sa-4.0": "copyleft",
    "cc-by-nc-4.0": "noncommercial",
    "cc-by-nc-sa-4.0": "noncommercial",
    "cc-by-nc-nd-4.0": "noncommercial",
    "apple-amlr": "noncommercial",
    "fair-noncommercial-research-license": "noncommercial",
    "seer-license": "noncommercial",
    # Vendors' own texts: no patent grant, limits on use, or terms that change above some size.
    "apple-ascl": "custom",
    "cvnets-license": "custom",
    "fastvit-license": "custom",
    "mobileone-license": "custom",
    "dinov3-license": "custom",
    "nvidia-open-model-license": "custom",
    "sapiens2-license": "custom",
    "qwen-community-1.0": "custom",
    "gemma": "custom",
    # The user's own weights (`select --weights`): no third party's terms apply.
    "own": "permissive",
    "unknown": "unknown",
}


def license_class(name: str) -> LicenseClass:
    """The class of a license string; `unknown` for a name that the table does not hold."""
    return LICENSES.get(_normal(name), "unknown")


def admits(requirement: tuple[str, ...], license: str) -> tuple[bool, str]:
    """Whether `requirement` admits weights under `license`, and why.

    `requirement` holds `any`, classes and license names; one match is enough. An empty requirement admits
    nothing. Names are compared as written, whatever their class, so that a license outside the table can
    be admitted by its own name.
    """
    wanted = {_normal(token) for token in requirement}
    name, kind = _normal(license), license_class(license)
    if "any" in wanted:
        return True, f"any license is admitted; this one is {name} ({kind})"
    if name in wanted:
        return True, f"{name} is admitted by name"
    if kind in wanted:
        return True, f"{name} is {kind}"
    required = " or ".join(requirement) or "no license at all"
    if kind != "unknown":
        return False, f"{name} is {kind}, not {required}"
    if name == "unknown":
        return False, f"the license is unknown, so it does not count as {required}"
    return False, f"{name} is not in the table of licenses, so it does not count as {required}"


def check_requirement(requirement: Iterable[str], also: Iterable[str] = ()) -> None:
    """Raise InputError for a token that is neither `any`, a class, a license of the table nor in `also`.

    `also` names further licenses that the caller knows, e.g. those of the user's own weights.
    """
    known = {"any", *CLASSES, *LICENSES, *map(_normal, also)}
    for token in requirement:
        if _normal(token) in known:
            continue
        near = difflib.get_close_matches(_normal(token), sorted(known), n=2)
        hint = f"did you mean {' or '.join(near)}?" if near else f"use any, {', '.join(CLASSES)} or a name."
        raise InputError(f"Unknown license {token!r}: {hint}")


def _normal(name: str) -> str:
    return name.strip().lower() or "unknown"

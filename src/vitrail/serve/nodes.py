"""What a replica needs, and whether a node of the cluster has it. Nothing here needs the extra `serve`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vitrail.artifact import open_artifact
from vitrail.errors import InputError, VitrailError
from vitrail.serve.installed import check_installed
from vitrail.serve.keys import Keys
from vitrail.serve.settings import Served, Settings
from vitrail.version import __version__

__all__ = ["Setup", "check_node", "refusal"]


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a replica needs to know."""

    vitrail: str
    models: tuple[Served, ...]
    """With absolute paths, the same on all nodes."""
    digests: Mapping[Path, str]
    """Of all artifacts, the shadow's too."""
    settings: Settings
    keys: Keys | None


def refusal(setup: Setup) -> str | None:
    """Why this node cannot serve; None: it can. Every file of the artifacts is read."""
    try:
        check_node(setup)
    except VitrailError as error:
        return str(error)
    return None


def check_node(setup: Setup) -> None:
    """Raise a VitrailError if this node cannot serve."""
    node = os.uname().nodename
    if setup.vitrail != __version__:
        raise InputError(
            f"Vitrail is {__version__} on {node} and {setup.vitrail} for the command: install the same."
        )
    check_installed()
    for path, digest in setup.digests.items():
        if not path.is_dir():
            raise InputError(f"{path} does not exist on {node}: copy the artifact there.")
        if open_artifact(path).digest != digest:
            raise InputError(f"{path} is another artifact on {node}: copy the command's there.")
